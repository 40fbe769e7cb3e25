r"""ICCE: a cross entropy that trusts a label the more, the more the network believes it.

*Improved Categorical Cross-Entropy Loss for Training Deep Neural Networks with Noisy Labels*,
P. Li, X. He, D. Song, Z. Ding, M. Qiao, X. Cheng and R. Li, PRCV 2021, LNCS 13022, pp. 78-89.

With :math:`p` the softmax probability of the label, the loss is (Eq. 5)

.. math:: L(p) = \int_p^1 \frac{e^{T(u - 1/2)}}{u}\,du
               = e^{-T/2}\Big[-\ln p + \sum_{k \ge 1} \frac{T^k (1 - p^k)}{k\,k!}\Big],

so that its gradient (Eq. 6) is cross entropy's, weighted by :math:`e^{T(p - 1/2)}`:

.. math:: \frac{\partial L}{\partial z_j} = e^{T(p - 1/2)} (p_j - 1[j = y]).

``T = 0`` is cross entropy. For ``T > 1`` the label's gradient is largest at ``p = 1 - 1/T``, and
labels that the network finds unlikely, wrong ones among them, count little.

Deviations from the paper, and why:

- The paper gives the integral only. Here it is the series above, summed in a form without
  cancellation, which holds for negative ``T`` too; the gradient is Eq. 6 itself.
- The probability is never clamped: ``-ln p`` comes from ``log_softmax``, so the loss is finite for
  all finite logits. The paper's bounds (its Theorems 1 to 4) hold for ``p >= eps`` only.
- Eq. 6 is labelled as the gradient of CCE in print; it is ICCE's.

Example:
    >>> import torch
    >>> from cv_adversarial import ICCELoss
    >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> ICCELoss(T=4.0)(logits, torch.tensor([0, 0]))
    tensor(1.6908)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_range, check_shape
from cv_core.losses.reduction import Reduction, check_reduction, reduce, target_log_probabilities
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int
from torch import Tensor, nn

_LOW, _HIGH = -8.0, 32.0  # where the series keeps at least ten digits in float64


def _coefficients(T: float) -> tuple[float, ...]:
    r"""Return :math:`C_j = \sum_{k > j} T^k / (k\,k!)`, the last one first.

    Because :math:`1 - p^k = (1 - p)(1 + p + \dots + p^{k-1})`, the series is
    :math:`(1 - p) \sum_j C_j p^j`: for ``T > 0`` a sum of positive terms, exact near ``p = 1`` too.
    """
    terms, power = [], 1.0
    for k in range(1, 400):
        power *= T / k  # T^k / k!
        terms.append(power / k)
        if k > abs(T) and abs(terms[-1]) < 1e-20:
            break
    return tuple(accumulate(reversed(terms)))


def _series(p: Any, one_minus_p: Any, T: float) -> Any:
    total = 0.0 * p
    for coefficient in _coefficients(T):
        total = total * p + coefficient
    return one_minus_p * total


class _ICCE(torch.autograd.Function):
    """The loss as a function of log p, with Eq. 6 as its gradient."""

    @staticmethod
    def forward(log_p: Tensor, T: float) -> Tensor:
        """Evaluate the series, in float32 or wider: its coefficients leave the range of halves."""
        wide = log_p.to(torch.promote_types(log_p.dtype, torch.float32))
        value = math.exp(-T / 2) * (_series(wide.exp(), -torch.expm1(wide), T) - wide)
        return value.to(log_p.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004 - torch's signature
        """Keep what the gradient needs; apart from ``forward``, for ``torch.func`` asks for it."""
        log_p, ctx.T = inputs
        ctx.save_for_backward(log_p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Return -e^{T(p - 1/2)}: dL/dp times p. It is made of differentiable operations."""
        (log_p,) = ctx.saved_tensors
        return -grad_outputs[0] * torch.exp(ctx.T * (log_p.exp() - 0.5)), None


def icce_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    *,
    T: float = 4.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    """Improved categorical cross entropy (Eq. 5 of the paper named in this module).

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)`` in ``[0, K)``.
        T: How strongly belief in a label weighs, in ``[-8, 32]``; the paper's 4 by default,
            and cross entropy for 0.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, ...)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If an option or an index is out of range, or the shapes do not fit.
    """
    check_range("icce_loss", "T", T, low=_LOW, high=_HIGH)
    check_reduction("icce_loss", reduction)
    log_p, valid = target_log_probabilities(logits, target, ignore_index, "icce_loss")
    values: Tensor = _ICCE.apply(log_p, float(T))
    return reduce(values, valid, reduction)


class ICCELoss(nn.Module):
    """Improved categorical cross entropy as a module, a drop-in for ``nn.CrossEntropyLoss``.

    Args:
        T: How strongly belief in a label weighs, in ``[-8, 32]``; the paper's 4 by default,
            and cross entropy for 0.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Raises:
        TypeError: If ``T`` is not a number.
        ValueError: If an option is out of range.
    """

    def __init__(
        self, T: float = 4.0, *, reduction: Reduction = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__()
        check_range("ICCELoss", "T", T, low=_LOW, high=_HIGH)
        check_reduction("ICCELoss", reduction)
        self.T = float(T)
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Show the options."""
        return f"T={self.T:g}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def forward(
        self, logits: Float[Tensor, "b k *rest"], target: Int[Tensor, "b *rest"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of logits ``(B, K, ...)`` for labels ``(B, ...)``."""
        return icce_loss(
            logits, target, T=self.T, reduction=self.reduction, ignore_index=self.ignore_index
        )


def icce(p: Float[np.ndarray, "..."] | float, T: float = 4.0) -> Float[np.ndarray, "..."]:
    """Evaluate the loss for probabilities of the label, for users of NumPy.

    Args:
        p: Probabilities in ``(0, 1]``, any shape.
        T: As in ``ICCELoss``.

    Returns:
        The loss, of the shape of ``p``.

    Raises:
        ValueError: If ``T`` or a probability is out of range.

    Example:
        >>> icce(np.array([1.0, 0.5]), T=0.0).round(4)
        array([0.    , 0.6931])
    """
    check_range("icce", "T", T, low=_LOW, high=_HIGH)
    array = np.asarray(p, dtype=np.float64)
    if not bool(((array > 0) & (array <= 1)).all()):
        raise ValueError("icce: p must lie in (0, 1]; some entries do not (or are NaN).")
    value = math.exp(-T / 2) * (_series(array, 1.0 - array, float(T)) - np.log(array))
    return np.asarray(value)


def gradient_weight(
    loss: Callable[[Tensor, Tensor], Tensor], p: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return how strongly a loss pulls the label's logit when the label has probability ``p``.

    This is ``|dL / dz_y|`` by automatic differentiation, the curve by which the paper compares
    losses: ``1 - p`` for cross entropy, ``e^{T(p - 1/2)} (1 - p)`` for ICCE.

    Args:
        loss: Any loss of logits ``(B, K)`` and labels ``(B,)`` that depends on ``p`` alone.
        p: Probabilities in ``(0, 1)``, shape ``(N,)``.

    Returns:
        The weights, shape ``(N,)``.

    Raises:
        ValueError: If ``p`` has another shape or leaves ``(0, 1)``.
    """
    check_shape("gradient_weight", "p", p, "n")
    if not bool(((p > 0) & (p < 1)).all()):
        raise ValueError("gradient_weight: p must lie in (0, 1); some entries do not.")
    logits = torch.stack([p.log(), torch.log1p(-p)], dim=1).detach().requires_grad_()
    label = torch.zeros(1, dtype=torch.int64, device=p.device)
    with torch.enable_grad():  # one row at a time, so that no reduction mixes them
        total = torch.stack([loss(row[None], label).sum() for row in logits]).sum()
        (gradient,) = torch.autograd.grad(total, logits)
    return gradient[:, 0].abs()


def _examples() -> list[Example]:
    def flat(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        logits = 2 * torch.randn(6, 5, generator=generator)
        return logits, torch.randint(5, (6,), generator=generator)

    def pixels(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        logits = torch.randn(2, 3, 4, 5, generator=generator)
        return logits, torch.randint(3, (2, 4, 5), generator=generator)

    return [
        Example(build=ICCELoss, inputs=flat, output_shapes=((),)),
        Example(
            build=lambda: ICCELoss(T=1.0, reduction="none"),
            inputs=pixels,
            output_shapes=((2, 4, 5),),
        ),
    ]


CARD = Card(
    slug="icce",
    title="Improved categorical cross entropy: training under noisy labels",
    reference=Reference(
        title=(
            "Improved Categorical Cross-Entropy Loss for Training Deep Neural Networks with "
            "Noisy Labels"
        ),
        authors="P. Li, X. He, D. Song, Z. Ding, M. Qiao, X. Cheng, R. Li",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="78-89",
    ),
    kind="loss",
    objects=(
        "cv_adversarial.methods.icce.ICCELoss",
        "cv_adversarial.methods.icce.icce_loss",
        "cv_adversarial.methods.icce.icce",
        "cv_adversarial.methods.icce.gradient_weight",
    ),
    examples=_examples,
    properties=("deterministic", "non-negative", "parameter-free", "twice-differentiable"),
)
