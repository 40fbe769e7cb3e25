r"""Adversarial logit pairing: adversarial training that also brings pairs of logits together.

*Adversarial Logit Pairing*, H. Kannan, A. Kurakin and I. Goodfellow, arXiv 1803.06373, 2018. With a
PGD example :math:`x'` of each of ``B`` images,

.. math:: L = (1 - c) \frac1B \sum_i \ell(f(x'_i), y_i) + c \frac1B \sum_i \ell(f(x_i), y_i)
              + \lambda \frac1B \sum_i \| f(x_i) - f(x'_i) \|_2^2 .

Example:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 2])
    >>> loss, parts = ALPLoss(eps=8 / 255)(model, x, y)
    >>> sorted(parts)
    ['adversarial', 'clean', 'pairing']
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from cv_core.checks import check_choice, check_floating, check_range, check_same_shape, check_shape
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Norm
from cv_adversarial.attacks.base import Model
from cv_adversarial.training.base import Parts, TrainingLoss, detached, together

Distance = Literal["l2", "l2sq"]


def check_distance(owner: str, distance: str) -> None:
    """Refuse a distance of logits other than ``l2`` and ``l2sq``."""
    check_choice(owner, "distance", distance, get_args(Distance))


def logit_distance(
    first: Float[Tensor, "b k"], second: Float[Tensor, "b k"], *, distance: Distance = "l2"
) -> Float[Tensor, " b"]:
    r"""Return how far the logits of each pair are apart.

    .. math:: \| a_i - b_i \|_2 \quad \text{or} \quad \| a_i - b_i \|_2^2

    The norm's gradient is zero where the two are equal: the subgradient of smallest length, with no
    constant under the root.

    Args:
        first: Logits ``(B, K)``.
        second: Logits ``(B, K)``.
        distance: ``"l2"``, the norm, or ``"l2sq"``, its square.

    Returns:
        One number per pair, ``(B,)``.

    Raises:
        TypeError: If the logits are not floating.
        ValueError: If the shapes differ, a batch is empty, or the distance has another name.

    Example:
        >>> logit_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([5.])
    """
    check_distance("logit_distance", distance)
    for name, logits in (("first", first), ("second", second)):
        check_floating("logit_distance", name, logits)
        check_shape("logit_distance", name, logits, "b k")
    check_same_shape("logit_distance", first=first, second=second)
    gap = first - second
    return torch.linalg.vector_norm(gap, dim=1) if distance == "l2" else gap.square().sum(1)


class ALPLoss(TrainingLoss):
    """Adversarial logit pairing; the loss and the paper are in this module's docstring.

    Clean and adversarial images go through the model together, as in the paper's mixed batches.

    Deviations from the paper: it leaves open whether squares are summed or averaged over the
    classes; here they are summed, so that a weight for their mean is ``lam / K``.

    Args:
        eps: Radius of the ball in its norm, in pixel units.
        lam: Weight of the pairing, at least 0; the paper's 0.5 by default.
        clean_share: Share of the cross entropy that the clean images have, in [0, 1]; 0.5 by
            default, and 0 for PGD-AT with pairing.
        alpha: Length of a step in the norm; ``2.5 * eps / steps`` by default.
        steps: Number of steps of PGD; 10 by default.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        distance: How pairs are compared: ``"l2sq"``, as in the paper, or ``"l2"``.
        seed: Of the random points; one stream runs through all calls.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        eps: float,
        lam: float = 0.5,
        *,
        clean_share: float = 0.5,
        alpha: float | None = None,
        steps: int = 10,
        norm: Norm = "linf",
        distance: Distance = "l2sq",
        seed: int = 0,
    ) -> None:
        super().__init__(eps, alpha=alpha, steps=steps, norm=norm, seed=seed)
        check_range(self._owner, "lam", lam, low=0.0)
        check_range(self._owner, "clean_share", clean_share, low=0.0, high=1.0)
        check_distance(self._owner, distance)
        self.lam = lam
        self.clean_share = clean_share
        self.distance: Distance = distance

    def forward(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Parts]:
        """Return the loss and its parts ``"adversarial"``, ``"clean"`` and ``"pairing"``.

        They are without their weights.
        """
        logits, adv_logits = together(model, x, self.examples(model, x, y))
        clean, adversarial = F.cross_entropy(logits, y), F.cross_entropy(adv_logits, y)
        pairing = logit_distance(logits, adv_logits, distance=self.distance).mean()
        entropy = (1.0 - self.clean_share) * adversarial + self.clean_share * clean
        loss = entropy + self.lam * pairing
        return loss, detached(adversarial=adversarial, clean=clean, pairing=pairing)

    def extra_repr(self) -> str:
        """Show the options."""
        own = f"lam={self.lam!r}, clean_share={self.clean_share!r}, distance={self.distance!r}"
        return f"{super().extra_repr()}, {own}"
