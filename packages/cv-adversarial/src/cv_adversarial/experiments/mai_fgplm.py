"""Do MAI-FGPLM's examples transfer better than others, and do they change images less?

Four networks of four families are attacked one by one, and as an ensemble. What is made on one is
shown to the others and to two defended ones (trained adversarially; behind a blur), all trained
apart. Every attack takes ten gradients per image, has the same eps, and is judged on the same
images, which all six networks read rightly. What else could explain a gain has its control:

- a smaller mean change may be nothing but smaller steps: each arm's steps are also scaled until its
  mean change is that of the paper's method (the success is not looked at), and judged again;
- one of the three parts may do it all: each is added alone to NI-TI-DI-AITM;
- the jump of the paper's direction may matter: a slope of 1/3 has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from cv_core.data.sources import load
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import fit
from cv_core.engine.task import FunctionTask
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.trial import Settings, Trial
from cv_core.imaging.filtering import gaussian_blur
from cv_core.metrics.images import ssim
from cv_core.models.resnet import cifar_resnet
from cv_core.models.small import MLP, SmallCNN
from cv_core.nn.transformer import TransformerEncoder
from cv_core.random import seeded, torch_generator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cv_adversarial.attacks.base import Attack
from cv_adversarial.attacks.ensemble import LogitEnsemble
from cv_adversarial.attacks.gradient import PGD
from cv_adversarial.attacks.transfer import TransferAttack
from cv_adversarial.methods.mai_fgplm import (
    AdamRatioAttack,
    average_perturbation_size,
    piecewise_linear,
)

Build = Callable[[nn.Module, Settings, float], Attack]
"""Makes an attack on a network; the number scales its steps."""

SOURCES = ("MLP", "CNN", "ResNet-8", "ViT")
DEFENDED = ("ResNet-8, adversarially trained", "ResNet-8 behind a blur")
_RATES = {"MLP": 3e-3, "CNN": 1e-2, "ViT": 5e-3}  # and 1e-2 for the ResNets
_CORRECTIONS = 2  # of the steps' scale, which leave less than a per cent


def sign_steps(
    model: nn.Module, settings: Settings, scale: float, *, parts: str, scales: int = 1
) -> Attack:
    """Build an attack that steps along signs; ``parts`` names MI, NI, TI and DI."""
    steps = settings.steps // scales
    options = _parts(settings, parts)
    return TransferAttack(
        model, settings.eps, alpha=scale * settings.eps / steps, steps=steps, scales=scales,
        decay=1.0 if "MI" in parts or "NI" in parts else 0.0, **options,
    )  # fmt: skip


def ratio_steps(
    model: nn.Module,
    settings: Settings,
    scale: float,
    *,
    direction: Callable[[Tensor], Tensor],
    parts: str,
) -> Attack:
    """Build an attack that steps along the ratio of moments; ``parts`` may name GR and MIX too."""
    gamma = 0.12 if "GR" in parts else 0.0
    return AdamRatioAttack(
        model, settings.eps, direction=lambda z: scale * direction(z), steps=settings.steps,
        gamma1=gamma, gamma2=gamma, tau=0.5 if "MIX" in parts else 0.0,
        mix_kernel_size=settings.kernel, **_parts(settings, parts),
    )  # fmt: skip


def _parts(settings: Settings, parts: str) -> dict[str, Any]:
    return {
        "nesterov": "NI" in parts,
        "kernel_size": settings.kernel if "TI" in parts else 1,
        "diversity": 1.0 if "DI" in parts else 0.0,
    }


PAPER = partial(ratio_steps, direction=piecewise_linear, parts="NI TI DI GR MIX")


def run(trial: Trial, *, attack: Build, at_equal_change: bool = False) -> dict[str, float]:
    """Attack every source, show what comes out to every network, and measure the change."""
    bench = prepared(trial)
    settings, x = trial.settings, bench.x
    made, success = {}, {}
    for name in trial.track(SOURCES, "sources"):
        made[name], success[name] = bench.judge(attack(bench.networks[name], settings, 1.0))
    changes = [bench.change(adv) for adv in made.values()]
    _, success["all four"] = bench.judge(attack(bench.ensemble(), settings, 1.0))
    found = {
        "transfer success": transferred(success),
        "ensemble success": mean(success["all four"][name] for name in DEFENDED),
        "white-box success": mean(success[name][name] for name in SOURCES),
        "mean change": mean(changes),
        "L2 change": mean((adv - x).flatten(1).norm(dim=1).mean() for adv in made.values()),
        "SSIM": mean(ssim(adv, x).mean() for adv in made.values()),
    }
    if at_equal_change:
        found |= equalised(trial, bench, attack, changes)
    record(trial, bench, success, made["CNN"])
    return found


def equalised(trial: Trial, bench: Bench, attack: Build, changes: list[float]) -> dict[str, float]:
    """Scale an attack's steps until it changes images as much as the paper's, and judge again."""
    success, reached = {}, []
    for name, change in zip(trial.track(SOURCES, "sources at equal change"), changes, strict=True):
        scale, wanted = 1.0, bench.paper_change[name]
        for _ in range(_CORRECTIONS):
            scale *= wanted / change
            adv, success[name] = bench.judge(attack(bench.networks[name], trial.settings, scale))
            change = bench.change(adv)  # noqa: PLW2901 - the next correction starts from it
        reached.append(change / wanted)
    return {
        "transfer success at equal change": transferred(success),
        "equal change reached": mean(reached),
    }


def transferred(success: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean success on networks that the examples were not made on."""
    return mean(
        share for name in SOURCES for other, share in success[name].items() if other != name
    )


def mean(values: Any) -> float:
    """Return the mean of numbers."""
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)


@dataclass(frozen=True)
class Bench:
    """Trained networks and the images that all of them read rightly, shared by a seed's arms."""

    networks: Mapping[str, nn.Module]
    x: Tensor
    y: Tensor
    eps: float
    paper_change: Mapping[str, float]

    def ensemble(self) -> nn.Module:
        """Return all sources as one network."""
        return LogitEnsemble([self.networks[name] for name in SOURCES]).eval()

    def judge(self, attack: Attack) -> tuple[Tensor, dict[str, float]]:
        """Return an attack's examples and the share of them that each network gets wrong."""
        adv = attack(self.x, self.y)
        with torch.no_grad():
            return adv, {
                name: float((model(adv).argmax(1) != self.y).float().mean())
                for name, model in self.networks.items()
            }

    def change(self, adv: Tensor) -> float:
        """Return the mean absolute change of a pixel, as a share of eps."""
        return float(average_perturbation_size(self.x, adv, scale=1.0 / self.eps).mean())


def prepared(trial: Trial) -> Bench:
    """Return the bench of a trial; the arms of one seed share it within a process."""
    return _prepared(trial.source, trial.seed, trial.device, tuple(sorted(trial.settings.items())))


@lru_cache(maxsize=1)
def _prepared(source: str, seed: int, device: str, items: tuple[tuple[str, Any], ...]) -> Bench:
    settings, data = Settings(items), load(source)
    order = torch.randperm(len(data.train_y), generator=torch_generator(seed, "sample"))
    chosen = order[: settings.images]
    train_x, train_y = enlarged(data.train_x[chosen]), data.train_y[chosen]
    networks = {}
    for name in (*SOURCES, *DEFENDED):
        with seeded(seed, "init", name):
            model = network(name, tuple(train_x.shape[1:]), data.num_classes, settings.width)
        networks[name] = train(model.to(device), name, train_x, train_y, settings, seed)
    order = torch.randperm(len(data.test_y), generator=torch_generator(seed, "attacked"))
    candidates = order[: 4 * settings.attacked]
    x, y = enlarged(data.test_x[candidates]).to(device), data.test_y[candidates].to(device)
    with torch.no_grad():
        right = torch.stack([model(x).argmax(1) == y for model in networks.values()]).all(0)
    x, y = x[right][: settings.attacked], y[right][: settings.attacked]
    bench = Bench(networks, x, y, settings.eps, paper_change={})
    made = {name: PAPER(networks[name], settings, 1.0)(x, y) for name in SOURCES}
    return replace(bench, paper_change={name: bench.change(adv) for name, adv in made.items()})


def enlarged(x: Tensor) -> Tensor:
    """Double the sides of images too small for blurs and for SSIM's window."""
    return x if x.shape[-1] >= 16 else x.repeat_interleave(2, -1).repeat_interleave(2, -2)


class ViT(nn.Module):
    """A small vision transformer on 4 x 4 patches of the image, with the mean of its tokens."""

    def __init__(self, channels: int, side: int, classes: int, dim: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, side // 4, stride=side // 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, dim))
        self.encoder = TransformerEncoder(dim, depth=2, heads=4, mlp_ratio=2.0)
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        tokens = self.patches(x).flatten(2).mT + self.position
        return self.fc(self.encoder(tokens).mean(1))


class Blur(nn.Module):
    """A Gaussian blur of one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Blur images."""
        return gaussian_blur(x, 1.0)


def network(name: str, shape: tuple[int, ...], classes: int, width: int) -> nn.Module:
    """Build a network; ResNets see blocks of 2 x 2 pixels, as channels."""
    channels, side = shape[0], shape[1]
    if name == "MLP":
        return MLP(channels * side * side, [16 * width, 16 * width], classes)
    if name == "CNN":
        return SmallCNN(channels, classes, width)
    if name == "ViT":
        return ViT(channels, side, classes, 6 * width)
    net = cifar_resnet(8, classes, in_channels=4 * channels, width=width / 16)
    first = Blur() if name == "ResNet-8 behind a blur" else nn.Identity()
    return nn.Sequential(first, nn.PixelUnshuffle(2), net)


def train(
    model: nn.Module, name: str, x: Tensor, y: Tensor, settings: Settings, seed: int
) -> nn.Module:
    """Train a network in batches of its own; one of them on the examples of one random step."""
    device = next(model.parameters()).device
    generator = torch_generator(seed, "defence")

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        if name == "ResNet-8, adversarially trained":
            model.eval()  # else the attack would move the running statistics
            attack = PGD(model, settings.eps, alpha=1.25 * settings.eps, steps=1)
            images = attack(images, labels, generator=generator)
            model.train()
        return {"loss": cross_entropy(model(images), labels)}

    loader = TensorLoader(
        x, y, batch_size=64, shuffle=True, seed=torch_generator(seed, "order", name), device=device
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATES.get(name, 1e-2))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.training_steps)
    task = FunctionTask(model, step)
    fit(task, loader, optimizer, max_steps=settings.training_steps, scheduler=decay)
    return model.eval()


def record(
    trial: Trial, bench: Bench, success: Mapping[str, Mapping[str, float]], adv: Tensor
) -> None:
    """Leave the matrix of successes, examples made on the CNN, and what the attack costs."""
    names = (*SOURCES, *DEFENDED)
    for place, name in enumerate(names, start=1):
        others = mean(success[source][name] for source in SOURCES if source != name)
        trial.curve(f"success by target, 1 to 6: {'; '.join(names)}", place, others)
    matrix = torch.tensor([[row[name] for name in names] for row in success.values()])
    caption = "success (white: all), by row MLP, CNN, ResNet-8, ViT, ensemble; columns as the curve"
    trial.picture(caption, matrix.repeat_interleave(24, 0).repeat_interleave(24, 1))
    if trial.arm in ("MI-FGSM", AITM, MAILM):  # a report has to stay small
        change = 0.5 + (adv[:4] - bench.x[:4]) / (2 * bench.eps)
        rows = [torch.cat([*part], dim=-1) for part in (adv[:4], change)]
        shown = torch.cat(rows, dim=-2).movedim(0, -1)
        trial.picture("made on the CNN, and the change", shown.squeeze(-1))
    trial.cost(gradients=trial.settings.steps)
    trial.model_cost(bench.ensemble(), bench.x[:1])


DIM, AITM, MAILM = "NI-TI-DIM", "NI-TI-DI-AITM", "NI-TI-DI-MAILM"
PL, GR, MIX, THIRD = f"{AITM} + PL", f"{AITM} + GR", f"{AITM} + MIX", f"{MAILM}, slope 1/3"

# As printed for one source, the mean of its four: average success on six defended networks, and
# the mean change in grey levels for eps = 16.
SINGLE = {
    "AI-FGTM": (0.1833, 7.835),
    "MAI-FGPLM": (0.2270, 7.2125),
    DIM: (0.4628, 10.325),
    AITM: (0.5405, 8.1775),
    MAILM: (0.5545, 6.89),
}
# As printed for the ensemble of the four, its ablation included.
ENSEMBLE = {
    DIM: (0.792, 10.3),
    AITM: (0.887, 8.11),
    PL: (0.889, 7.31),
    GR: (0.891, 7.91),
    MIX: (0.908, 8.21),
    MAILM: (0.908, 7.00),
}
_SINGLE = "one source, mean of the four; the defended networks are six others"
_ENSEMBLE = "ensemble of four sources, six defended networks"
_ABLATION = "ablation, ensemble of four sources; the marks of its rows are inferred"


def _signs(parts: str, *, scales: int = 1) -> partial[dict[str, float]]:
    return partial(run, attack=partial(sign_steps, parts=parts, scales=scales))


def _ratio(
    parts: str, direction: Callable[[Tensor], Tensor] = torch.tanh
) -> partial[dict[str, float]]:
    attack = partial(ratio_steps, direction=direction, parts=parts)
    return partial(run, attack=attack, at_equal_change=True)


def _more_success(arm: str, other: str) -> tuple[Claim, Claim]:
    """Claim a greater success with one source and, where it is printed, with the ensemble."""
    return (
        Claim(
            arm=arm, above=other, metric="transfer success",
            paper=(SINGLE[arm][0], SINGLE[other][0]), source=_SINGLE,
        ),
        Claim(
            arm=arm, above=other, metric="ensemble success",
            paper=(
                (ENSEMBLE[arm][0], ENSEMBLE[other][0])
                if arm in ENSEMBLE and other in ENSEMBLE
                else None
            ),
            source=_ENSEMBLE,
        ),
    )  # fmt: skip


def _less_change(
    arm: str, other: str, printed: Mapping[str, tuple[float, float]], source: str
) -> Claim:
    return Claim(
        arm=arm, below=other, metric="mean change",
        paper=(printed[arm][1] / 16, printed[other][1] / 16), source=source,
    )  # fmt: skip


_COMMON = {"steps": 10, "eps": 0.2, "kernel": 5, "width": 8}

EXPERIMENT = Experiment(
    slug="mai-fgplm",
    question="Do MAI-FGPLM's adversarial examples transfer better, and change images less?",
    data={"smoke": "digits", "default": "digits", "full": "mnist"},
    arms=(
        Arm("I-FGSM", _signs(""), "baseline", "Steps along the gradient's sign."),
        Arm("MI-FGSM", _signs("MI"), "baseline", "With momentum."),
        Arm("NI-FGSM", _signs("NI"), "baseline", "With momentum and look-ahead."),
        Arm("SI-NI-FGSM", _signs("NI", scales=5), "baseline", "Two steps over five scales each."),
        Arm("DI-FGSM", _signs("DI"), "baseline", "Through randomly shrunk images."),
        Arm("TI-FGSM", _signs("TI"), "baseline", "With blurred gradients."),
        Arm(
            DIM,
            partial(run, attack=partial(sign_steps, parts="NI TI DI"), at_equal_change=True),
            "baseline",
            "Look-ahead, blurred gradients and shrunk images in one.",
        ),
        Arm("AI-FGTM", _ratio(""), "baseline", "Steps along tanh of the ratio of moments."),
        Arm(AITM, _ratio("NI TI DI"), "baseline", "AI-FGTM with the three parts of NI-TI-DIM."),
        Arm(PL, _ratio("NI TI DI", piecewise_linear), "control", "Piecewise linear for tanh."),
        Arm(GR, _ratio("NI TI DI GR"), "control", "The gradient beside its blur in the moments."),
        Arm(MIX, _ratio("NI TI DI MIX"), "control", "Gradients at half-blurred images."),
        Arm(
            THIRD,
            _ratio("NI TI DI GR MIX", partial(piecewise_linear, rho=1 / 3)),
            "control",
            "The paper's method with a continuous direction.",
        ),
        Arm(
            "MAI-FGPLM",
            _ratio("GR MIX", piecewise_linear),
            "paper",
            "The method without look-ahead, blurred gradients and shrunk images.",
        ),
        Arm(MAILM, partial(run, attack=PAPER, at_equal_change=True), "paper", "All of it."),
    ),
    cases=(
        Case(""),
        Case(
            "CIFAR-10", {"eps": 16 / 255, "training_steps": 6000}, data="cifar10", budgets=("full",)
        ),
    ),
    metrics=(
        Metric(
            "transfer success",
            note="Share fooled, made on one network and shown to the five others; mean of all.",
        ),
        Metric(
            "ensemble success",
            note="Share fooled, made on all four sources and shown to the two defended networks.",
        ),
        Metric("white-box success", better="neither", note="Share fooled on the source itself."),
        Metric(
            "mean change",
            better="lower",
            note="Mean absolute change of a pixel as a share of eps, one source.",
        ),
        Metric("L2 change", better="lower", note="Mean Euclidean length of the change."),
        Metric("SSIM", note="Structural similarity to the clean image."),
        Metric(
            "transfer success at equal change",
            note="With steps scaled until the mean change is NI-TI-DI-MAILM's.",
        ),
        Metric(
            "equal change reached",
            better="neither",
            note="The mean change after scaling over the one aimed at.",
        ),
    ),
    claims=(
        *_more_success(MAILM, AITM),
        *_more_success(MAILM, DIM),
        *_more_success("MAI-FGPLM", "AI-FGTM"),
        _less_change(MAILM, AITM, SINGLE, _SINGLE),
        _less_change(MAILM, DIM, SINGLE, _SINGLE),
        _less_change("MAI-FGPLM", "AI-FGTM", SINGLE, _SINGLE),
        _less_change(PL, AITM, ENSEMBLE, _ABLATION),
        _less_change(GR, AITM, ENSEMBLE, _ABLATION),
        Claim(
            arm=MIX, above=AITM, metric="ensemble success",
            paper=(ENSEMBLE[MIX][0], ENSEMBLE[AITM][0]), source=_ABLATION,
        ),
        *(
            Claim(
                arm=MAILM, above=other, metric="transfer success at equal change",
                source="Implied: the change is smaller for another reason than smaller steps.",
            )
            for other in (AITM, DIM, THIRD)
        ),
        Claim(
            arm="MAI-FGPLM", above="AI-FGTM", metric="transfer success at equal change",
            source="The same for the plain methods.",
        ),
    ),
    settings={
        "smoke": {
            **_COMMON, "images": 600, "training_steps": 60, "attacked": 10, "width": 4,
            "steps": 5,
        },
        "default": {**_COMMON, "images": 6000, "training_steps": 250, "attacked": 80},
        "full": {
            **_COMMON, "images": 60_000, "training_steps": 3000, "attacked": 1000, "width": 32
        },
    },
    evidence=Evidence(data="mnist"),
    selection=(
        "lambda, mu1, mu2, gamma, rho, tau, the probability 1 of shrinking and ten steps are the "
        "papers'. eps = 0.2 and Gaussians of 5 x 5 are set for images of 28 x 28 before any run. "
        "The steps are scaled for an equal change by the change alone, and the networks' learning "
        "rates were set by their accuracy alone."
    ),
    notes=(
        (
            "The paper attacks four ImageNet networks of 299 x 299 pixels with eps = 16/255 and "
            "shows the examples to six defended ones; its numbers stand beside other networks, "
            "other images and another eps here. Mean changes are shares of eps on both sides."
        ),
        (
            "MNIST's background is black, so that half of the signs cannot be followed there: mean "
            "changes are smaller than on photographs for every attack alike."
        ),
        (
            "Networks and images are those of the seed, the same for all arms; a process trains "
            "them once, and the time of the arm that does so includes it. Every attack takes ten "
            "gradients per image and source: SI-NI-FGSM, with five per step, makes two steps."
        ),
    ),
)  # fmt: skip
