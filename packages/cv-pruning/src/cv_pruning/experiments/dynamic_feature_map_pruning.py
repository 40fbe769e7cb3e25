"""Do feature maps that are almost all zero at run time save traffic that a fixed mask does not?

Every arm trains the same network from the same weights and differs only in the maps it skips. What
else could explain the method's result:

- the maps that are skipped are those of dead channels, which a mask fixed after training would skip
  for every image: a static mask takes as many channels as it can, those most often prunable in the
  training images first, without falling below the method's accuracy on held-out images;
- any maps would do: as many are drawn by lot, in every layer of every image;
- the size of the activations says as much: as many maps of least mean;
- the accuracy is that of thresholding elements, not of skipping maps: skipping alone.

What a stage of video reuses is measured on crops that pan over two photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from cv_core.data.scenes.backgrounds import sample_photographs
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import fit
from cv_core.engine.schedule import cosine_with_warmup
from cv_core.engine.task import SupervisedTask
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.trial import Trial
from torch import Tensor, nn
from torch.nn import functional

from cv_pruning._shared.small_images import Images, small_images
from cv_pruning.methods.dynamic_feature_map_pruning import Choose, DynamicFeatureMapPruner

LAYERS = 6
KINDS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "leaky ReLU": lambda: nn.LeakyReLU(0.1),
    "ReLU6": nn.ReLU6,
}


class SixConvolutions(nn.Sequential):
    """Two convolutions, pooling, four more with twice the channels, a global mean and a layer."""

    def __init__(
        self, in_channels: int, classes: int, width: int, act: Callable[[], nn.Module]
    ) -> None:
        widths = [width, width, 2 * width, 2 * width, 2 * width, 2 * width]
        super().__init__()
        for place, channels in enumerate(widths, 1):
            self.add_module(f"conv{place}", nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False))
            self.add_module(f"bn{place}", nn.BatchNorm2d(channels))
            self.add_module(f"act{place}", act())
            if place == 2:
                self.add_module("pool", nn.MaxPool2d(2))
            in_channels = channels
        self.add_module("mean", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(in_channels, classes))


@dataclass(frozen=True)
class Trained:
    """A trained network and the images it has and has not seen."""

    model: SixConvolutions
    train_x: Tensor
    held_x: Tensor
    held_y: Tensor
    test_x: Tensor
    test_y: Tensor


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Return the percentage of right answers."""
    return 100.0 * float((logits.argmax(1) == y).double().mean())


def train(trial: Trial) -> Trained:
    """Train the case's network on four fifths of the images, enlarged where they are small."""
    settings, images = trial.settings, enlarged(small_images(trial), trial.settings.least_side)
    cut = len(images.y) * 4 // 5
    with trial.seeded("init"):
        model = SixConvolutions(
            images.x.shape[1], images.classes, settings.width, KINDS[trial.case]
        )
    model = model.to(trial.device)
    loader = TensorLoader(
        images.x[:cut], images.y[:cut], batch_size=settings.batch, shuffle=True,
        seed=trial.generator("order"), device=trial.device,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    result = fit(
        SupervisedTask(model),
        loader,
        optimizer,
        max_steps=settings.steps,
        scheduler=cosine_with_warmup(optimizer, settings.steps),
        fabric=trial.fabric,
    )
    for step, loss in enumerate(result.history.steps["loss"], 1):
        if step % max(1, settings.steps // 50) == 0:
            trial.curve("train loss", step, loss)
    trial.cost(steps=settings.steps)
    model.eval().requires_grad_(requires_grad=False)
    trial.model_cost(model, images.x[:1].to(trial.device))
    parts = (images.x[:cut], images.x[cut:], images.y[cut:], images.test_x, images.test_y)
    return Trained(model, *(part.to(trial.device) for part in parts))


def enlarged(images: Images, side: int) -> Images:
    """Enlarge images of less than ``side`` pixels: small maps have no tolerance at 0.99."""
    if min(images.x.shape[-2:]) >= side:
        return images
    x, test_x = (
        functional.interpolate(part, (side, side), mode="bilinear", antialias=True)
        for part in (images.x, images.test_x)
    )
    return Images(x, images.y, test_x, images.test_y, images.classes)


@dataclass(frozen=True)
class Pass:
    """One pass: the logits, the marks of every layer in order, the shares saved."""

    logits: Tensor
    marks: list[Tensor]
    bytes_saved: float
    maps_skipped: float


def forward(
    model: nn.Module,
    x: Tensor,
    eps: float,
    *,
    density: float = 0.99,
    threshold: bool = True,
    choose: Choose | None = None,
) -> Pass:
    """Run the network with its maps pruned, and record which ones were."""
    marks: list[Tensor] = []

    def record(maps: Tensor, found: Tensor) -> Tensor:
        marks.append(found if choose is None else choose(maps, found))
        return marks[-1]

    pruner = DynamicFeatureMapPruner(
        model, eps, density=density, threshold_elements=threshold, choose=record
    )
    with pruner, torch.inference_mode():
        logits = torch.cat([model(part) for part in x.split(500)])
    report = pruner.report()
    return Pass(logits, marks, 100 * report.byte_fraction, 100 * report.map_fraction)


def judged(net: Trained, done: Pass) -> dict[str, float]:
    """Return what every arm is judged by."""
    return {
        "test accuracy": accuracy(done.logits, net.test_y),
        "bytes saved": done.bytes_saved,
        "maps skipped": done.maps_skipped,
    }


def run_dense(trial: Trial) -> dict[str, float]:
    """Judge the network as it was trained."""
    net = train(trial)
    with torch.inference_mode():
        whole = accuracy(net.model(net.test_x), net.test_y)
    return {
        "test accuracy": whole,
        "accuracy less half a point": whole - 0.5,
        "bytes saved": 0.0,
        "maps skipped": 0.0,
    }


def run_dynamic(trial: Trial, *, threshold: bool = True) -> dict[str, float]:
    """Skip the maps found at run time; the paper's arm also sweeps the options and pans."""
    net, settings = train(trial), trial.settings
    found = judged(net, forward(net.model, net.test_x, settings.eps, threshold=threshold))
    if not threshold:
        return found
    exact = forward(net.model, net.test_x, 0.0)
    picture(trial, net, settings.eps)
    sweep(trial, net)
    return {**found, "maps skipped at 0": exact.maps_skipped, **pan(trial, net.model)}


def sweep(trial: Trial, net: Trained) -> None:
    """Leave curves of accuracy and savings over the threshold, for each density."""
    x, y = net.test_x[:300], net.test_y[:300]
    for eps in trial.settings.sweep:
        for density in (0.95, 0.99, 1.0):
            done = forward(net.model, x, eps, density=density)
            trial.curve(f"maps skipped over eps, density {density:g}", eps, done.maps_skipped)
            if density == 0.99:
                trial.curve("accuracy over eps", eps, accuracy(done.logits, y))
                trial.curve("bytes saved over eps", eps, done.bytes_saved)
        alone = forward(net.model, x, eps, threshold=False)
        trial.curve("accuracy over eps, skipping alone", eps, accuracy(alone.logits, y))


def picture(trial: Trial, net: Trained, eps: float) -> None:
    """Show which maps are skipped: a row for each of 40 test images, layers side by side."""
    marks = forward(net.model, net.test_x[:40], eps).marks
    gap = torch.full((len(marks[0]), 1), 0.5, device=marks[0].device)
    columns = [column for part in marks for column in (part.float(), gap)]
    shown = torch.cat(columns[:-1], 1).repeat_interleave(5, 0).repeat_interleave(2, 1)
    trial.picture("maps skipped (white) in 40 images, layer by layer", shown)


Score = Callable[[Tensor, torch.Generator], Tensor]


def by_lot(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Score maps by numbers drawn at random."""
    return torch.rand(maps.shape[:2], generator=generator).to(maps.device)


def by_mean(maps: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - as by_lot
    """Score maps by the mean of their absolute values."""
    return maps.abs().mean((2, 3))


def run_equal_count(trial: Trial, *, score: Score) -> dict[str, float]:
    """Skip as many maps in every layer of every image as the method does, those of least score."""
    net, eps, generator = train(trial), trial.settings.eps, trial.generator("lot")
    counts = iter([marks.sum(1) for marks in forward(net.model, net.test_x, eps).marks])

    def choose(maps: Tensor, _: Tensor) -> Tensor:
        return least(score(maps, generator), next(counts))

    return judged(net, forward(net.model, net.test_x, eps, choose=choose))


def least(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark in each row of ``(B, C)`` as many of the least scores as ``(B,)`` says."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1) < counts[:, None]


def run_static(trial: Trial) -> dict[str, float]:
    """Skip the same maps in every image: as many as the method's accuracy allows."""
    net, eps = train(trial), trial.settings.eps
    often = frequencies(net, eps)

    def held_out(done: Pass) -> float:
        return accuracy(done.logits, net.held_y)

    wanted = held_out(forward(net.model, net.held_x, eps))
    best = 0
    for count in range(sum(map(len, often))):
        reached = held_out(masked(net.model, net.held_x, first(often, count)))
        trial.curve("held-out accuracy over channels off", count, reached)
        # Where the method is by chance better than the whole network, no mask keeps up with it.
        wanted = min(wanted, reached) if count == 0 else wanted
        best = count if reached >= wanted else best
        if reached < wanted - 10.0:
            break
    found = masked(net.model, net.test_x, first(often, best))
    without_dead = masked(net.model, net.test_x, [share >= 1.0 for share in often])
    return {
        **judged(net, found),
        "bytes saved by dead channels": without_dead.bytes_saved,
        "accuracy without dead channels": accuracy(without_dead.logits, net.test_y),
    }


def frequencies(net: Trained, eps: float) -> list[Tensor]:
    """Return for every layer the share of the training images in which each map is prunable."""
    marks = forward(net.model, net.train_x, eps).marks  # layer by layer, part by part
    return [torch.cat(marks[layer::LAYERS]).double().mean(0) for layer in range(LAYERS)]


def first(often: list[Tensor], count: int) -> list[Tensor]:
    """Mark the ``count`` channels of the whole network that are prunable most often."""
    flat = torch.cat(often)
    marks = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    marks[flat.argsort(descending=True, stable=True)[:count]] = True
    return list(marks.split([len(part) for part in often]))


def masked(model: nn.Module, x: Tensor, masks: list[Tensor]) -> Pass:
    """Run the network with fixed channels switched off and no element thresholded."""
    layers = iter(masks * len(x.split(500)))

    def choose(_: Tensor, found: Tensor) -> Tensor:
        return next(layers).expand_as(found)

    return forward(model, x, 0.0, threshold=False, choose=choose)


def crops(trial: Trial, model: SixConvolutions, speed: int) -> Iterator[Tensor]:
    """Yield the frames of eight crops that pan to the right over the two photographs."""
    rng, side, settings = trial.rng("pan"), trial.settings.least_side, trial.settings
    grey = next(model.parameters()).shape[1] == 1
    photographs = []
    for photograph in sample_photographs(scales=(0.25,)):
        picture = torch.from_numpy(photograph)
        picture = picture.mean(0, keepdim=True) if grey else picture
        mean, deviation = (f((1, 2), keepdim=True) for f in (picture.mean, picture.std))
        photographs.append((picture - mean) / deviation)
    tops = rng.integers(0, photographs[0].shape[1] - side, size=8)
    for frame in range(settings.frames):
        left = frame * speed
        views = [
            photographs[stream % 2][:, top : top + side, left : left + side]
            for stream, top in enumerate(tops.tolist())
        ]
        yield torch.stack(views).to(trial.device)


def pan(trial: Trial, model: SixConvolutions) -> dict[str, float]:
    """Compare the marks of a stage's first frame with those of each later frame."""
    settings, found = trial.settings, {}
    for speed in (1, 4):
        name = f"pan of {speed} px per frame"
        frames = list(crops(trial, model, speed))
        fresh = [torch.cat(forward(model, x, settings.eps).marks, 1) for x in frames]
        pruner = DynamicFeatureMapPruner(model, settings.eps, recalibrate_every=settings.frames)
        with pruner, torch.inference_mode():
            reused = [model(x) for x in frames]
        agreement = [overlap(fresh[0], marks) for marks in fresh]
        for later, x in enumerate(frames):
            whole = model(x)
            error = float((reused[later] - whole).norm() / whole.norm())
            trial.curve(f"agreement of the marks, {name}", later, agreement[later])
            trial.curve(f"error of the output, {name}", later, error)
        found[f"agreement, {name}"] = float(np.mean(agreement[1:]))
        if speed == 1:
            found["bytes saved in video"] = 100 * pruner.report().byte_fraction
    return found


def overlap(one: Tensor, other: Tensor) -> float:
    """Return the percentage of the maps marked in either frame that are marked in both."""
    either = int((one | other).sum())
    return 100.0 * int((one & other).sum()) / either if either else 100.0


_COMMON = {
    "eps": 0.1, "sweep": (0.0, 0.01, 0.05, 0.1, 0.3, 1.0), "frames": 30, "least_side": 28,
    "largest_side": 32, "batch": 50, "rate": 1e-2,
}  # fmt: skip

EXPERIMENT = Experiment(
    slug="dynamic-feature-map-pruning",
    question="Does finding empty feature maps at run time save what a fixed mask does not?",
    data={"smoke": "digits", "default": "digits", "full": "cifar10-full"},
    arms=(
        Arm("dense", run_dense, "baseline", "No map is skipped."),
        Arm("dynamic", run_dynamic, "paper", "Threshold 0.1, density 0.99, elements thresholded."),
        Arm(
            "skipping alone", partial(run_dynamic, threshold=False), "control",
            "Small elements of the maps that are kept stay as they are.",
        ),
        Arm(
            "static mask", run_static, "control",
            "One mask for all images: as many channels as the method's held-out accuracy allows.",
        ),
        Arm(
            "random maps", partial(run_equal_count, score=by_lot), "control",
            "As many maps in every layer of every image, drawn by lot.",
        ),
        Arm(
            "least mean", partial(run_equal_count, score=by_mean), "control",
            "As many maps in every layer of every image, those of least mean.",
        ),
    ),
    cases=(
        Case("ReLU"),
        Case("leaky ReLU", budgets=("default", "full")),
        Case("ReLU6", budgets=("full",)),
    ),
    metrics=(
        Metric("test accuracy", "%"),
        Metric("accuracy less half a point", "%", "neither", "What the method may not fall below."),
        Metric("bytes saved", "%", note="Of the reads of all activations, image mode."),
        Metric("maps skipped", "%"),
        Metric("maps skipped at 0", "%", "neither", "With a threshold of 0."),
        Metric("bytes saved by dead channels", "%", note="Those prunable in all training images."),
        Metric("accuracy without dead channels", "%"),
        Metric("bytes saved in video", "%", note="Pan of 1 pixel per frame, one calibration."),
        Metric(
            "agreement, pan of 1 px per frame", "%",
            note="Maps marked in the first and the later frame, of those marked in either.",
        ),
        Metric("agreement, pan of 4 px per frame", "%"),
    ),
    claims=(
        Claim(
            arm="dynamic", above="dense", metric="test accuracy",
            other_metric="accuracy less half a point", paper=(71.0, 70.5),
            source="MobileNetV2, ILSVRC-2012, threshold 0.1: top-1 unchanged to the percent",
        ),
        Claim(
            arm="dynamic", above="dense", metric="maps skipped", cases=("ReLU", "ReLU6"),
            paper=(11.5, 0.0), source="MobileNetV2, threshold 0.1",
        ),
        Claim(
            arm="dynamic", above="dynamic", metric="maps skipped",
            other_metric="maps skipped at 0", cases=("leaky ReLU",), paper=(1.4, 0.0),
            source="ResNet-50 with leaky ReLU, thresholds 0.1 and 0",
        ),
        Claim(
            arm="dynamic", above="static mask", metric="bytes saved",
            source="Implied: maps have to be found at run time.",
        ),
        Claim(
            arm="dynamic", above="static mask", metric="bytes saved",
            other_metric="bytes saved by dead channels", paper=(0.79, 0.34),
            source="Caffe AlexNet: 0.79 % of the maps, 0.45 % of them after static pruning",
        ),
        *(
            Claim(
                arm="dynamic", above=control, metric="test accuracy",
                source="Implied: empty maps are those that can be spared.",
            )
            for control in ("random maps", "least mean")
        ),
        Claim(
            arm="dynamic", above="dense", metric="bytes saved in video", other_metric="bytes saved",
            paper=(11.12, 0.0), source="MobileNetV2, 224 x 224, threshold 0.1, t = 30",
        ),
        Claim(
            arm="dynamic", above="dynamic", metric="agreement, pan of 1 px per frame",
            other_metric="agreement, pan of 4 px per frame",
            source="Implied by the similarity of frames that are close in time.",
        ),
    ),
    settings={
        "smoke": {
            **_COMMON, "sweep": (0.0, 0.1), "frames": 4, "width": 2, "images": 100,
            "test_images": 60, "steps": 10,
        },
        "default": {
            **_COMMON, "width": 8, "images": 3000, "test_images": 1000, "steps": 240,
        },
        "full": {
            **_COMMON, "width": 64, "images": 50_000, "test_images": 10_000, "batch": 128,
            "rate": 1e-3, "steps": 15_000,
        },
    },
    evidence=Evidence(data="mnist"),
    selection=(
        "Threshold 0.1, density 0.99 and 30 frames are the paper's. The static mask's size is "
        "chosen on the fifth of the training images that is held out. The training, the same in "
        "every arm, was set for the accuracy of the whole network, on seed 0 of MNIST: a constant "
        "rate left it near 72 % (test), so that a cosine was added; then rates of 0.003, 0.01 and "
        "0.02 gave 87.7, 95.5 and 96.0 % (held out), and 0.01 was taken. Results of the method and "
        "of the static mask had been seen at 0.003, and the rule by which its size is searched was "
        "changed once after that."
    ),
    notes=(
        (
            "Images of fewer than 28 pixels (digits) are enlarged to 28, because maps of fewer "
            "than 100 elements have no tolerance at a density of 0.99."
        ),
        (
            "Six convolutions with batch normalisation take the place of the paper's ImageNet "
            "networks. A chain of layers reads every map once. So narrow a network leaves few maps "
            "empty; where hardly any is skipped, the arms cannot differ in accuracy."
        ),
        "Saved bytes are those of a processor that skips whole maps; nothing is faster here.",
        (
            "Video: crops pan to the right over two photographs, which the network was not trained "
            "on. The calibration frame is loaded whole, and its marks hold for the other frames."
        ),
    ),
)  # fmt: skip
