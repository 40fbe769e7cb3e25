r"""Robust accuracy: the worst case over several attacks, with an interval and with sanity flags.

An image counts as robust if the model classifies it rightly and none of the attacks finds a
misclassified image within the threat's ball. Attacks run one after another, each on what is left,
so the number is the point-wise worst case (*Reliable Evaluation of Adversarial Robustness with an
Ensemble of Diverse Parameter-free Attacks*, F. Croce and M. Hein, ICML 2020), and it is only ever
an upper bound of the true one. How much it can be trusted is what the flags of
``cv_adversarial.evaluation_flags`` tell; they are computed and printed without being asked for.

Example:
    >>> import torch
    >>> from cv_adversarial.evaluation import evaluate_robustness
    >>> from cv_adversarial.evaluation_report import Threat
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
    >>> _ = torch.nn.init.eye_(model[1].weight)
    >>> x = torch.tensor([[0.6, 0.5], [0.7, 0.1], [0.9, 0.1], [0.2, 0.8]]).view(4, 1, 1, 2)
    >>> report = evaluate_robustness(model, (x, torch.tensor([0, 0, 0, 1])), Threat("linf", 0.1))
    >>> report.clean.value, report.robust.value  # the boundary lies 0.05 from the first image
    (1.0, 0.75)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from cv_core.checks import check_indices, check_integer, check_shape
from cv_core.random import derive_seed, torch_generator
from jaxtyping import Float, Int
from torch import Tensor, nn

from cv_adversarial.attacks.apgd import APGD
from cv_adversarial.attacks.balls import Norm, column, distance
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle, check_images
from cv_adversarial.attacks.boundary import rivals
from cv_adversarial.attacks.fab import FAB
from cv_adversarial.attacks.gradient import PGD
from cv_adversarial.attacks.square import Square
from cv_adversarial.evaluation_flags import CHECKS, Logits, Probe, has_black_box
from cv_adversarial.evaluation_report import AttackRow, RobustnessReport, Share, Threat

Batch = tuple[Float[Tensor, "b *image"], Int[Tensor, " b"]]
_OWNER = "evaluate_robustness"


class TargetedAPGD(APGD):
    """APGD towards each of the likeliest wrong classes in turn, until one attempt succeeds.

    An image on which none succeeds comes back unchanged.

    Args:
        model: Maps images with pixels in [0, 1] to logits of four classes or more.
        eps: Radius of the ball in its norm, in pixel units.
        steps: Number of steps for each class.
        norm: ``"linf"`` or ``"l2"``.
        targets: Most classes to try; 9 by default, as in AutoAttack.
        seed: Of the random starts.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        steps: int = 100,
        norm: Norm = "linf",
        targets: int = 9,
        seed: int = 0,
    ) -> None:
        super().__init__(model, eps, steps=steps, loss="dlr", norm=norm, seed=seed)
        check_integer(self._owner, "targets", targets, low=1)
        self.targets = targets

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        logits = oracle.query(x)
        adv, going = x.clone(), ~goal.reached(logits)
        for target in rivals(logits, goal, self.targets).T:
            rows = torch.nonzero(going).squeeze(1)
            if len(rows) == 0:
                break
            aim = Goal(goal.labels[rows], target[rows])
            z = super()._perturb(x[rows], aim, oracle, generator)
            # any wrong class will do, even if it is not the one aimed at
            found = oracle.reached(z, goal.rows(rows))
            adv[rows] = torch.where(column(found, z), z, adv[rows])
            going[rows] = ~found
        return adv


def standard_attacks(
    model: Model,
    threat: Threat,
    *,
    classes: int,
    steps: int = 100,
    queries: int = 500,
    seed: int = 0,
) -> dict[str, Attack]:
    """Return the attacks of an evaluation, the cheapest first.

    In l-infinity and l2 they are APGD on the cross entropy; APGD on the ratio of logit differences,
    towards up to nine classes in turn if there are four or more, untargeted if there are three; FAB
    on the three likeliest wrong classes; and Square. In l1, where these are not defined, they are
    PGD with ``steps`` steps and with three times as many, which is a weaker ensemble.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        threat: What the adversary may do.
        classes: Number of classes.
        steps: Steps of each attack by gradients; 100 by default.
        queries: Steps of Square; 500 by default, AutoAttack's are 5000.
        seed: Of the attacks' random numbers.
    """
    norm, eps = threat.norm, threat.eps
    check_integer("standard_attacks", "classes", classes, low=2)
    if norm == "l1":
        return {
            f"PGD-{count}": PGD(
                model, eps, alpha=2.5 * eps / count, steps=count, norm=norm, seed=seed
            )
            for count in (steps, 3 * steps)
        }
    attacks: dict[str, Attack] = {"APGD-CE": APGD(model, eps, steps=steps, norm=norm, seed=seed)}
    if classes >= 4:
        attacks["APGD-T"] = TargetedAPGD(model, eps, steps=steps, norm=norm, seed=seed)
    elif classes == 3:
        attacks["APGD-DLR"] = APGD(model, eps, steps=steps, loss="dlr", norm=norm, seed=seed)
    attacks["FAB"] = FAB(model, steps, norm=norm, candidates=3)
    attacks["Square"] = Square(model, eps, steps=queries, norm=norm, seed=seed)
    return attacks


def evaluate_robustness(
    model: Model,
    data: Batch | Iterable[Batch],
    threat: Threat,
    *,
    attacks: Mapping[str, Attack] | None = None,
    batch_size: int = 128,
    flag_images: int = 64,
    seed: int = 0,
) -> RobustnessReport:
    """Measure a model's accuracy in the worst case that several attacks find.

    Args:
        model: Maps images ``(B, ...)`` with pixels in [0, 1] to logits ``(B, K)``, in evaluation
            mode.
        data: Images and labels, or batches of them such as a ``DataLoader`` gives. They are held
            in memory, and go to the model's device batch by batch.
        threat: What the adversary may do.
        attacks: Attacks by name, in the order in which they run; ``standard_attacks`` by default.
            An attack may be built on another model (a transfer attack); what counts is whether
            ``model`` is fooled within the threat's ball.
        batch_size: Most images to go through the model at once; 128 by default.
        flag_images: How many images the flags look at, spread evenly over the data, at most
            ``batch_size``; 64 by default.
        seed: Of all random numbers; it takes the place of the attacks' own.

    Returns:
        The report: accuracies with intervals, one row for each attack, flags, adversarial images.

    Raises:
        TypeError: If images are not float32 or float64, labels not integer, or an attack is none.
        ValueError: If there are no data, pixels leave [0, 1], labels do not fit, the model is in
            training mode, or no standard attack can be run on it.
    """
    for name, value in (("batch_size", batch_size), ("flag_images", flag_images)):
        check_integer(_OWNER, name, value, low=1)
    check_integer(_OWNER, "seed", seed)
    if not isinstance(threat, Threat):
        raise TypeError(f'{_OWNER}: threat must be a Threat, such as Threat("linf", 8 / 255).')
    _check_attacks(attacks)
    images, labels = _gathered(data)
    run = _Run(model, threat, images, labels, batch_size, seed)
    clean = Share(int(run.survived.sum()), len(labels))
    probe = run.probe(flag_images)
    flags = tuple(check(probe) for check in CHECKS)
    if attacks is None:
        attacks = _applicable(probe, threat, derive_seed(seed, "attacks"))
    rows = tuple(run.attack(name, attack) for name, attack in attacks.items())
    robust = Share(int(run.survived.sum()), len(labels))
    return RobustnessReport(threat, clean, robust, rows, flags, run.survived, run.adv)


class _Run:
    """An evaluation under way: the images that are still robust, and what became of the others."""

    def __init__(
        self,
        model: Model,
        threat: Threat,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
    ) -> None:
        self.adv, self.survived = images.clone(), torch.zeros(len(labels), dtype=torch.bool)
        self._model, self._threat, self._seed = model, threat, seed
        self._images, self._labels = images, labels
        self._batch_size = batch_size
        self._device = _device(model, images)
        for rows in torch.arange(len(labels)).split(batch_size):
            x, y = self._batch(rows)
            self.survived[rows] = ~self._wrong(x, y).cpu()

    def probe(self, count: int) -> Probe:
        """Look at a few images that are spread evenly over the data."""
        count = min(count, self._batch_size, len(self._labels))
        rows = torch.arange(count) * len(self._labels) // count
        x, y = self._batch(rows)
        right = self.survived[rows].to(self._device)
        norm, eps = self._threat.norm, self._threat.eps
        return Probe.look(
            self._model, norm, eps, x, y, right, seed=derive_seed(self._seed, "probe")
        )

    def attack(self, name: str, attack: Attack) -> AttackRow:
        """Run an attack on the images that are still robust."""
        start = time.perf_counter()
        generator = torch_generator(self._seed, _OWNER, name)
        seen = torch.nonzero(self.survived).squeeze(1)
        fooled = outside = forwards = backwards = 0
        for rows in seen.split(self._batch_size) if len(seen) else ():
            x, y = self._batch(rows)
            result = attack.run(x, y, generator=generator)
            own = attack.model is self._model
            found = result.success if own else self._wrong(result.adv, y)
            inside = distance(self._threat.norm, result.adv, x) <= self._threat.eps
            inside &= ((result.adv >= 0.0) & (result.adv <= 1.0)).flatten(1).all(1)
            self._note(rows, result.adv, found & inside)
            fooled += int((found & inside).sum())
            outside += int((found & ~inside).sum())
            forwards += result.forwards
            backwards += result.backwards
        robust = Share(int(self.survived.sum()), len(self._labels))
        seconds = time.perf_counter() - start
        return AttackRow(name, len(seen), fooled, outside, robust, forwards, backwards, seconds)

    def _note(self, rows: Tensor, adv: Tensor, fooled: Tensor) -> None:
        lost = rows[fooled.cpu()]
        self.survived[lost] = False
        self.adv[lost] = adv[fooled].to(self.adv.device)

    def _wrong(self, images: Tensor, labels: Tensor) -> Tensor:
        return Logits(self._model).run(images, labels).success

    def _batch(self, rows: Tensor) -> Batch:
        return self._images[rows].to(self._device), self._labels[rows].to(self._device)


def _check_attacks(attacks: Mapping[str, Attack] | None) -> None:
    if attacks is None:
        return
    if not isinstance(attacks, Mapping) or not all(
        isinstance(attack, Attack) for attack in attacks.values()
    ):
        raise TypeError(
            f'{_OWNER}: attacks must map names to attacks, such as {{"PGD": PGD(model)}}.'
        )
    if not attacks:
        raise ValueError(f"{_OWNER}: attacks is empty; leave it out for the standard ones.")


def _gathered(data: Batch | Iterable[Batch]) -> Batch:
    """Join the batches, each of them checked."""
    held: list[Any] = list(data)
    if len(held) == 2 and all(isinstance(part, Tensor) for part in held):
        held = [held]  # one batch
    if not held:
        raise ValueError(f"{_OWNER}: data holds no batch.")
    for batch in held:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"{_OWNER}: data must be images and labels, or batches of these.")
        images, labels = batch
        check_images(_OWNER, images)
        check_shape(_OWNER, "labels", labels, "b", b=len(images))
        check_indices(_OWNER, "labels", labels, high=1 << 31, ignore=None)
        if images.shape[1:] != held[0][0].shape[1:] or images.dtype != held[0][0].dtype:
            raise ValueError(f"{_OWNER}: all batches must have images of one shape and type.")
    images = torch.cat([batch[0].detach() for batch in held])
    return images, torch.cat([batch[1].long() for batch in held])


def _device(model: Model, images: Tensor) -> torch.device:
    """Return where the model lives, if it tells."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return images.device if first is None else first.device


def _applicable(probe: Probe, threat: Threat, seed: int) -> dict[str, Attack]:
    """Return the standard attacks that can be run on the model and its images."""
    classes = probe.logits.shape[1]
    attacks = standard_attacks(probe.model, threat, classes=classes, seed=seed)
    if not has_black_box(threat.norm, probe.images):
        attacks.pop("Square", None)
    if probe.gradient is None:
        attacks = {name: attacks[name] for name in attacks if name == "Square"}
    if not attacks:
        raise ValueError(
            f"{_OWNER}: the model is not differentiable ({probe.obstacle}), and Square needs "
            "(B, C, H, W) images and linf or l2; give attacks of your own."
        )
    return attacks
