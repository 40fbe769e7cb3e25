"""What an evaluation of robustness is about and what comes of it: threat, shares, rows, report."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from cv_adversarial.attacks.balls import Norm, check_ball
from cv_adversarial.evaluation_flags import Flag

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Threat:
    """What an adversary may do: change an image by at most ``eps`` in a norm.

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: Radius of the ball, in pixel units.

    Raises:
        TypeError: If ``eps`` is not a number.
        ValueError: If it is not positive, or the norm is unknown.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        check_ball("Threat", self.norm, self.eps)

    def __str__(self) -> str:
        levels = f" ({self.eps * 255:.3g}/255)" if self.norm == "linf" else ""
        return f"{self.norm} <= {self.eps:.4g}{levels}"


@dataclass(frozen=True)
class Share:
    """How many images of how many, with the exact binomial interval (Clopper-Pearson, 95 %)."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % interval."""
        from scipy.stats import binomtest

        ends = binomtest(self.count, self.total).proportion_ci(_CONFIDENCE, method="exact")
        return float(ends.low), float(ends.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True)
class AttackRow:
    """What one attack did.

    Args:
        name: Its name.
        seen: How many images were still robust when its turn came.
        fooled: On how many of them it succeeded within the ball.
        outside: On how many more it succeeded, but beyond the ball, which does not count.
        robust: The share of all images that is robust after it.
        forwards: How many images went through the model in the attack.
        backwards: How many images gradients were taken for.
        seconds: Wall time.
    """

    name: str
    seen: int
    fooled: int
    outside: int
    robust: Share
    forwards: int
    backwards: int
    seconds: float

    @property
    def alone(self) -> float:
        """Robust accuracy of this attack alone on what it saw; NaN if it saw nothing."""
        return 1.0 - self.fooled / self.seen if self.seen else float("nan")


@dataclass(frozen=True)
class RobustnessReport:
    """The outcome of an evaluation; ``print`` it.

    Args:
        threat: What the adversary may do.
        clean: Accuracy on the images as they are.
        robust: Accuracy on the worst of what the attacks found.
        attacks: One row for each attack, in the order in which they ran.
        flags: What the checks came to.
        survived: Which images are robust, ``(N,)``, in the order of the data.
        adv: For each image a misclassified one from the ball where an attack found one, and the
            image itself elsewhere.
    """

    threat: Threat
    clean: Share
    robust: Share
    attacks: tuple[AttackRow, ...]
    flags: tuple[Flag, ...]
    survived: Bool[Tensor, " n"] = field(repr=False)
    adv: Float[Tensor, "n *image"] = field(repr=False)

    @property
    def raised(self) -> tuple[Flag, ...]:
        """The flags that say that something is wrong."""
        return tuple(flag for flag in self.flags if flag.raised)

    def __str__(self) -> str:
        head = ["attack", "seen", "alone", "union", "outside", "forwards", "backwards", "seconds"]
        rows = [
            [
                row.name,
                str(row.seen),
                f"{100 * row.alone:.1f} %" if row.seen else "-",
                f"{100 * row.robust.value:.1f} %",
                str(row.outside),
                str(row.forwards),
                str(row.backwards),
                f"{row.seconds:.1f}",
            ]
            for row in self.attacks
        ]
        return "\n".join(
            [
                f"{self.clean.total} images, {self.threat}",
                f"clean accuracy   {self.clean}",
                f"robust accuracy  {self.robust}  (exact binomial 95 % intervals)",
                "",
                *_table([head, *rows]),
                "",
                f"{len(self.raised)} of {len(self.flags)} flags raised",
                *map(str, self.flags),
            ]
        )


def _table(rows: list[list[str]]) -> list[str]:
    """Line columns up, the first one to the left and numbers to the right."""
    widths = [max(map(len, texts)) for texts in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
