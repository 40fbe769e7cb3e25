r"""FGSMPR: FGSM adversarial training that a few PGD examples keep from collapsing.

*Robust Single-Step Adversarial Training with Regularizer*, L. Xie, Y. Wang, J.-L. Yin and X. Liu,
PRCV 2021, LNCS 13022, pp. 29-41.

FGSM training collapses when the network has learnt to fool the single step: FGSM examples are all
classified rightly, PGD examples none, and the logits :math:`f` of the two drift apart. The loss of
a batch of ``B`` images is therefore (Algorithm 1, Eq. 5)

.. math:: L = \frac1B \sum_{i=1}^{B} \ell\big(f(x_i^{\text{fgsm}}), y_i\big) + \frac{\lambda}{m}
          \sum_{j=1}^{m} \big\| f(x_j^{\text{fgsm}}) - f(x_j^{\text{pgd}}) \big\|_2

with cross entropy :math:`\ell`, and for the first ``m`` images of the batch only

.. math:: x^{\text{fgsm}} = \Pi\big(x + \epsilon \operatorname{sign} \nabla_x \ell(f(x), y)\big),
          \quad z_0 = x, \quad
          z_k = \Pi\big(z_{k-1} + \alpha \operatorname{sign} \nabla_z \ell(f(z_{k-1}), y)\big),
          \quad x^{\text{pgd}} = z_K, \quad \alpha = \epsilon / K .

:math:`\Pi` clips to the ball and to the pixel range. Gradients reach the parameters through both
logits and none goes through the examples.

Deviations from the paper, and why:

- Algorithm 1 prints one step length, ``eps / K``, for both attacks. An FGSM example would then
  reach a K-th of the ball; Eq. 2 prints ``eps``, which is the default. The printed algorithm is
  ``fgsm_alpha=eps / K``.
- The gradient of a PGD step is taken at the current point, as in Algorithm 1; Eq. 3 prints the
  image.
- Clipping to the pixel range is not in Algorithm 1.
- Which images get a PGD example is left open. The first of the batch do: batches are shuffled.
- Batch normalisation is not mentioned. Statistics of one image would spoil it, so both attacks see
  the model in evaluation mode, and the FGSM and PGD examples go through it in one pass.
- The norm has no constant under its root: where both logits are equal, its gradient is zero.

Example:
    >>> import torch
    >>> from cv_adversarial import FGSMPRLoss
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 2])
    >>> loss, parts = FGSMPRLoss(eps=8 / 255)(model, x, y)  # in place of the cross entropy
    >>> loss.backward()
    >>> sorted(parts)
    ['fgsm_loss', 'logit_gap', 'reg']
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from cv_core.checks import check_integer, check_range
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.base import Model
from cv_adversarial.training.base import Parts, TrainingLoss, detached, evaluating, together
from cv_adversarial.training.pairing import Distance, check_distance, logit_distance


class FGSMPRLoss(TrainingLoss):
    """FGSM adversarial training with logits paired to PGD examples (the paper of this module).

    Args:
        eps: Largest change of a pixel, in pixel units; the paper's are 0.3 (MNIST) and 8/255.
        lam: Weight of the pairing, at least 0; the paper's 0.5 for CIFAR-10 by default, 0.1 is its
            choice for MNIST. With 0 the loss is FGSM-AT's, and no PGD example is made.
        steps: Number of PGD steps K; the paper's 3 by default.
        m: How many images of a batch get a PGD example; the paper's 1 by default, at most all of
            them, and with 0 the loss is FGSM-AT's.
        alpha: Length of a PGD step; the paper's ``eps / steps`` by default.
        fgsm_alpha: Length of the FGSM step; ``eps`` by default.
        distance: ``"l2"``, the paper's, or its square ``"l2sq"``.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        eps: float,
        lam: float = 0.5,
        *,
        steps: int = 3,
        m: int = 1,
        alpha: float | None = None,
        fgsm_alpha: float | None = None,
        distance: Distance = "l2",
    ) -> None:
        super().__init__(eps, alpha=alpha, pace=1.0, steps=steps, random_start=False)
        check_range(self._owner, "lam", lam, low=0.0)
        check_integer(self._owner, "m", m, low=0)
        fgsm_alpha = eps if fgsm_alpha is None else fgsm_alpha
        check_range(self._owner, "fgsm_alpha", fgsm_alpha, low=0.0, low_open=True)
        check_distance(self._owner, distance)
        self.lam = lam
        self.m = m
        self.fgsm_alpha = fgsm_alpha
        self.distance: Distance = distance

    def examples(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *image"]:
        """Return the FGSM examples."""
        return self._climb(model, x, y, alpha=self.fgsm_alpha, steps=1)

    def partners(
        self, model: Model, x: Float[Tensor, "m *image"], y: Int[Tensor, " m"]
    ) -> Float[Tensor, "m *image"]:
        """Return the images with which the FGSM examples of ``x`` are paired: PGD examples."""
        return super().examples(model, x, y)

    def forward(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Parts]:
        """Return the loss and its parts ``"fgsm_loss"``, ``"reg"`` and ``"logit_gap"``.

        ``"reg"`` is the weighted regulariser, ``"logit_gap"`` the mean distance of the pairs: NaN
        where there are none.
        """
        single = self.examples(model, x, y)
        paired = min(self.m, len(x)) if self.lam > 0 else 0
        if paired == 0:
            loss = F.cross_entropy(model(single), y)
            return loss, detached(
                fgsm_loss=loss, reg=loss.new_zeros(()), logit_gap=loss.new_full((), torch.nan)
            )
        partners = self.partners(model, x[:paired], y[:paired])
        logits, others = together(model, single, partners)
        loss = F.cross_entropy(logits, y)
        gap = logit_distance(logits[:paired], others, distance=self.distance).mean()
        reg = self.lam * gap
        return loss + reg, detached(fgsm_loss=loss, reg=reg, logit_gap=gap)

    def extra_repr(self) -> str:
        """Show the options."""
        own = ("lam", "m", "fgsm_alpha", "distance")
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in own)
        return f"{super().extra_repr()}, {options}"


def logit_gap(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    eps: float,
    steps: int = 3,
    alpha: float | None = None,
) -> Float[Tensor, " b"]:
    r"""Return :math:`\| f(x^{\text{fgsm}}) - f(x^{\text{pgd}}) \|_2`, the probe of a collapse.

    The paper plots the logarithm of its mean over the test set (Eq. 4), which jumps when the
    training collapses. The model is seen in evaluation mode and comes back in its own.

    Args:
        model: Maps images ``(B, ...)`` with pixels in [0, 1] to logits ``(B, K)``.
        x: Images with pixels in [0, 1], ``(B, ...)``.
        y: Their classes, ``(B,)``.
        eps: Largest change of a pixel, in pixel units.
        steps: Number of PGD steps; 3 by default.
        alpha: Length of a PGD step; ``eps / steps`` by default.

    Returns:
        One distance per image, ``(B,)``, without a graph.

    Raises:
        TypeError: If images are not float32 or float64, or labels not integer.
        ValueError: If an option is out of range, pixels leave [0, 1], or labels do not fit.
    """
    pairs = FGSMPRLoss(eps, steps=steps, alpha=alpha)
    single, several = pairs.examples(model, x, y), pairs.partners(model, x, y)
    with evaluating(model), torch.no_grad():
        return logit_distance(model(single), model(several))


def _examples() -> list[Example]:
    def logits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first, second = torch.randn(2, 4, 3, generator=generator)
        return first, second

    return [
        Example(build=lambda: logit_distance, inputs=logits, output_shapes=((4,),)),
        Example(
            build=lambda: partial(logit_distance, distance="l2sq"),
            inputs=logits,
            output_shapes=((4,),),
        ),
    ]


CARD = Card(
    slug="fgsmpr",
    title="Single-step adversarial training that pairs a few logits with those of PGD examples",
    reference=Reference(
        title="Robust Single-Step Adversarial Training with Regularizer",
        authors="L. Xie, Y. Wang, J.-L. Yin, X. Liu",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="29-41",
    ),
    kind="function",  # what maps tensors to tensors here is the distance of the pairs
    objects=(
        "cv_adversarial.methods.fgsmpr.FGSMPRLoss",
        "cv_adversarial.methods.fgsmpr.logit_gap",
        "cv_adversarial.training.pairing.logit_distance",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic", "non-negative"),
)
