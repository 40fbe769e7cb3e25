r"""Proximal operators and projections, each in closed form.

The proximal operator of a penalty :math:`g` with weight :math:`\lambda` is

.. math:: \mathrm{prox}_{\lambda g}(x) = \arg\min_z \tfrac12 \|z - x\|^2 + \lambda\, g(z).

A gradient step of size :math:`t` on the smooth part is followed by the operator with weight
:math:`t\lambda`. A projection is the operator of a set's indicator; it has no weight. Weights are
non-negative numbers or tensors that broadcast with ``x``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_floating, check_range

Weight = float | Tensor


def prox_l1(x: Float[Tensor, "..."], weight: Weight) -> Float[Tensor, "..."]:
    r"""Soft thresholding, the operator of :math:`\|z\|_1`: shrink every entry by the weight.

    Args:
        x: Any shape.
        weight: At least 0.

    Returns:
        The shape of ``x``.

    Example:
        >>> prox_l1(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
        tensor([-2.,  0.,  1.])
    """
    _check("prox_l1", x, weight)
    # x less its projection onto [-weight, weight]: two passes, and the zeros carry no sign
    weight = torch.as_tensor(weight, dtype=x.dtype, device=x.device)
    return x - torch.clamp(x, min=-weight, max=weight)


def prox_l0(x: Float[Tensor, "..."], weight: Weight) -> Float[Tensor, "..."]:
    r"""Hard thresholding, the operator of :math:`\|z\|_0`: keep what is large enough.

    An entry stays if :math:`|x| > \sqrt{2\lambda}`. At equality both 0 and ``x`` are minimisers,
    and 0 is returned.

    Args:
        x: Any shape.
        weight: At least 0.

    Returns:
        The shape of ``x``.
    """
    _check("prox_l0", x, weight)
    return torch.where(x * x > 2.0 * weight, x, 0.0)


def prox_log(x: Float[Tensor, "..."], weight: Weight, *, eps: float) -> Float[Tensor, "..."]:
    r"""Log thresholding, the operator of :math:`\sum \log(1 + |z|/\epsilon)`.

    For :math:`x \ge 0` the minimiser is 0 or the larger root of
    :math:`(z - x)(z + \epsilon) + \lambda = 0`. While :math:`\lambda \le \epsilon^2` the problem is
    convex and the positive root wins; beyond, the operator jumps, and the two values are compared.
    For large :math:`\epsilon` it nears the soft threshold at :math:`\lambda/\epsilon`.

    Args:
        x: Any shape.
        weight: At least 0.
        eps: Where the penalty bends, above 0.

    Returns:
        The shape of ``x``.
    """
    _check("prox_log", x, weight)
    check_range("prox_log", "eps", eps, low=0.0, low_open=True)
    size = x.abs()
    weight = torch.as_tensor(weight, dtype=x.dtype, device=x.device)
    spread = ((size + eps).square() - 4.0 * weight).clamp(min=0.0).sqrt()
    # Two forms of one root: each is used where its difference does not cancel.
    root = torch.where(
        size > eps,
        0.5 * (size - eps + spread),
        2.0 * (size * eps - weight) / (eps - size + spread).clamp(min=torch.finfo(x.dtype).tiny),
    ).clamp(min=0.0)
    gain = root * (size - 0.5 * root) - weight * torch.log1p(root / eps)
    keep = (weight <= eps * eps) | (gain > 0.0)
    return torch.where(keep, root.copysign(x), 0.0)


def prox_group(x: Float[Tensor, "..."], weight: Weight, *, dim: int = -1) -> Float[Tensor, "..."]:
    r"""Group soft thresholding, the operator of :math:`\|z\|_{2,1}`: shrink each group's length.

    Args:
        x: Any shape.
        weight: At least 0; a tensor must broadcast with the groups' lengths (``dim`` kept as 1).
        dim: The axis along which a group lies.

    Returns:
        The shape of ``x``.
    """
    _check("prox_group", x, weight)
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    scale = (1.0 - weight / length).clamp(min=0.0)
    return torch.where(length > 0.0, x * scale, 0.0)


def prox_nuclear(x: Float[Tensor, "... m n"], weight: Weight) -> Float[Tensor, "... m n"]:
    r"""Singular-value thresholding, the operator of the nuclear norm.

    Args:
        x: Matrices.
        weight: At least 0; a tensor must broadcast with the singular values.

    Returns:
        The shape of ``x``.
    """
    _check("prox_nuclear", x, weight)
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    return (left * prox_l1(values, weight).unsqueeze(-2)) @ right


def project_box(x: Float[Tensor, "..."], low: Weight, high: Weight) -> Float[Tensor, "..."]:
    """Project onto a box: clip every entry to ``[low, high]``.

    Raises:
        ValueError: If ``low`` exceeds ``high`` anywhere.
    """
    check_floating("project_box", "x", x)
    low = torch.as_tensor(low, dtype=x.dtype, device=x.device)
    high = torch.as_tensor(high, dtype=x.dtype, device=x.device)
    if bool((low > high).any()):
        raise ValueError("project_box: low must not exceed high.")
    return torch.clamp(x, min=low, max=high)


def project_nonnegative(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Project onto the non-negative orthant."""
    check_floating("project_nonnegative", "x", x)
    return x.clamp(min=0.0)


def project_simplex(
    x: Float[Tensor, "..."], *, radius: float = 1.0, dim: int = -1
) -> Float[Tensor, "..."]:
    r"""Project onto the simplex :math:`\{z \ge 0, \sum z = r\}` along an axis.

    All entries are lowered by one number and clipped at 0; the number follows from the sorted
    entries (Held, Wolfe and Crowder, Mathematical Programming 6, 1974).

    Args:
        x: Any shape.
        radius: The sum :math:`r`, above 0.
        dim: The axis along which the entries sum to ``radius``.

    Returns:
        The shape of ``x``.
    """
    check_floating("project_simplex", "x", x)
    check_range("project_simplex", "radius", radius, low=0.0, low_open=True)
    x = x.movedim(dim, -1)
    # Subtracting the maximum changes nothing in exact arithmetic and keeps the sums small.
    x = x - x.amax(dim=-1, keepdim=True)
    ordered = x.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(dim=-1) - radius
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    support = (ordered * count > excess).sum(dim=-1, keepdim=True)
    shift = excess.gather(-1, support - 1) / support
    return (x - shift).clamp(min=0.0).movedim(-1, dim)


def project_l2_ball(
    x: Float[Tensor, "..."], *, radius: float = 1.0, dim: int | tuple[int, ...] = -1
) -> Float[Tensor, "..."]:
    """Project onto the Euclidean ball: shorten what is longer than ``radius``.

    Args:
        x: Any shape.
        radius: At least 0.
        dim: The axis or axes along which lengths are taken.

    Returns:
        The shape of ``x``.
    """
    check_floating("project_l2_ball", "x", x)
    check_range("project_l2_ball", "radius", radius, low=0.0)
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return torch.where(length > radius, x * (radius / length), x)


def _check(owner: str, x: Tensor, weight: Weight) -> None:
    check_floating(owner, "x", x)
    if not isinstance(weight, Tensor):
        check_range(owner, "weight", weight, low=0.0)
    elif bool((weight < 0.0).any()):
        raise ValueError(f"{owner}: weight must be at least 0; the least is {weight.min().item()}.")
