"""Tensor decompositions by alternating least squares, with entries that may be missing.

The results unpack as in tensorly: ``weights, factors = parafac(...)``, ``core, factors =
tucker(...)``, with a factor (size, rank) per axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from cv_core.checks import check_choice, check_finite, check_integer, check_range, check_shape
from jaxtyping import Float
from torch import Tensor

from cv_factorization._shared.arrays import as_floating, as_tensor, check_tensor, drawn, like_given

BLOCK = 2**21
"""Entries of the products of pairs of columns that exist at one time."""


@dataclass(frozen=True)
class CPTensor:
    r"""A sum of rank-one tensors :math:`\sum_r w_r\, a_r \circ b_r \circ c_r \dots`.

    Args:
        weights: (rank,) the :math:`w_r`, falling and at least 0.
        factors: Per axis (size, rank), with columns of unit length, or zero.
        objective: Squared error over the observed entries, at the start and after every sweep.
        n_iter: Sweeps taken; as many as allowed if the tolerance was not reached.
    """

    weights: Any
    factors: list[Any]
    objective: np.ndarray
    n_iter: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.weights, self.factors))

    def full(self) -> Any:
        """Return the tensor that the parts add up to."""
        weights, *factors = (as_tensor(part) for part in (self.weights, *self.factors))
        return like_given(_cp_full([weights * factors[0], *factors[1:]]), self.weights)


@dataclass(frozen=True)
class TuckerTensor:
    r"""A core tensor multiplied along every axis by a factor with orthonormal columns.

    Args:
        core: (rank_1, rank_2, ...).
        factors: Per axis (size, rank).
        objective: Squared error over the observed entries, at the start and after every sweep.
        n_iter: Sweeps taken; as many as allowed if the tolerance was not reached.
    """

    core: Any
    factors: list[Any]
    objective: np.ndarray
    n_iter: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.core, self.factors))

    def full(self) -> Any:
        """Return the tensor that core and factors stand for."""
        core, *factors = (as_tensor(part) for part in (self.core, *self.factors))
        return like_given(_multiply(core, factors), self.core)


class _Given(NamedTuple):
    """A tensor divided by its largest entry, 0 where missing, and the mask of the others."""

    X: Tensor
    mask: Tensor | None
    scale: float


@torch.no_grad()
def parafac(
    tensor: Any,
    rank: int,
    *,
    mask: Any = None,
    init: Literal["svd", "random"] | Sequence[Any] = "svd",
    max_iter: int = 100,
    tol: float = 1e-8,
    random_state: int | np.random.Generator | None = None,
) -> CPTensor:
    r"""Canonical polyadic decomposition (CANDECOMP, PARAFAC) by alternating least squares.

    .. math:: \min\; \sum_{ijk} m_{ijk} \Big(x_{ijk} - \sum_r a_{ir} b_{jr} c_{kr}\Big)^2

    T. G. Kolda, B. W. Bader: Tensor decompositions and applications. SIAM Review 51(3), 2009.

    With a mask every row of a factor solves its own normal equations over the observed entries, so
    that a sweep never raises their error, whatever is missing. Each update adds
    :math:`\delta \|A - A_{old}\|^2` with a :math:`\delta` near rounding: it keeps the descent and
    the last value of rows of which nothing is observed.

    Args:
        tensor: Two axes or more, an array or a tensor of float32 or float64. Missing entries may
            hold anything, NaN too.
        rank: Components; may exceed the sizes of the axes.
        mask: True where an entry is observed, in the shape of the tensor; all are by default.
        init: ``"svd"`` (leading left singular vectors of the unfoldings, random beyond their
            number), ``"random"``, or a factor per axis.
        max_iter: Most sweeps.
        tol: Sweeps end once one lowers the squared error by this share or less; 0 takes them all.
        random_state: Seed or ``numpy.random.Generator``.

    Returns:
        Weights and factors, of the kind, type and device of the tensor.

    Raises:
        TypeError: If the tensor is neither float32 nor float64, or sparse.
        ValueError: For observed NaN, shapes that do not fit, a mask without an observed entry, or
            options out of range.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> parts = [rng.standard_normal((size, 2)) for size in (4, 5, 3)]
        >>> tensor = np.einsum("ir,jr,kr->ijk", *parts)
        >>> weights, factors = parafac(tensor, 2, max_iter=500, tol=0)
        >>> np.allclose(np.einsum("r,ir,jr,kr->ijk", weights, *factors), tensor, atol=1e-4)
        True
    """
    owner = "parafac"
    check_integer(owner, "rank", rank, low=1)
    _check_loop(owner, max_iter, tol)
    given = _checked(owner, tensor, mask)
    rng = np.random.default_rng(random_state)
    factors = _start(owner, given, rank, init, rng)
    history, factors = _als(given, factors, max_iter, tol)
    lengths = [torch.linalg.vector_norm(factor, dim=0) for factor in factors]
    weights = torch.stack(lengths).prod(dim=0)
    order = weights.argsort(descending=True, stable=True)
    factors = [
        (factor / torch.where(length > 0, length, 1.0))[:, order]
        for factor, length in zip(factors, lengths, strict=True)
    ]
    return CPTensor(
        weights=like_given(weights[order] * given.scale, tensor),
        factors=[like_given(factor, tensor) for factor in factors],
        objective=np.array(history) * given.scale**2,
        n_iter=len(history) - 1,
    )


@torch.no_grad()
def tucker(
    tensor: Any,
    rank: int | Sequence[int],
    *,
    mask: Any = None,
    max_iter: int = 100,
    tol: float = 1e-8,
) -> TuckerTensor:
    r"""Tucker decomposition by higher-order orthogonal iteration.

    .. math:: \min\; \|M \odot (X - G \times_1 U_1 \times_2 U_2 \dots)\|^2,
        \qquad U_k^\top U_k = I

    L. De Lathauwer, B. De Moor, J. Vandewalle: On the best rank-1 and rank-(R1, ..., RN)
    approximation of higher-order tensors. SIAM J. Matrix Anal. Appl. 21(4), 2000.

    It starts from the higher-order singular value decomposition. Missing entries are filled with
    what the last sweep makes of them (at first the mean of the others), which never raises the
    error over the observed ones.

    Args:
        tensor: Two axes or more, an array or a tensor of float32 or float64.
        rank: The core's size along every axis, or one for all; at most the size of the axis.
        mask: True where an entry is observed, in the shape of the tensor; all are by default.
        max_iter: Most sweeps.
        tol: Sweeps end once one lowers the squared error by this share or less; 0 takes them all.

    Returns:
        Core and factors, of the kind, type and device of the tensor.

    Raises:
        TypeError: If the tensor is neither float32 nor float64, or sparse.
        ValueError: For observed NaN, shapes that do not fit, a mask without an observed entry, or
            options out of range.

    Example:
        >>> import numpy as np
        >>> tensor = np.random.default_rng(0).random((4, 5, 3))
        >>> core, factors = tucker(tensor, (4, 5, 3))
        >>> np.allclose(np.einsum("abc,ia,jb,kc->ijk", core, *factors), tensor)
        True
    """
    owner = "tucker"
    _check_loop(owner, max_iter, tol)
    given = _checked(owner, tensor, mask)
    ranks = _ranks(owner, rank, tuple(given.X.shape))
    X, mask, scale = given
    if mask is not None:
        X = torch.where(mask, X, X.sum() / mask.sum())
    factors = [_leading(_unfold(X, axis), r) for axis, r in enumerate(ranks)]
    core = _multiply(X, [factor.mT for factor in factors])
    full = _multiply(core, factors)
    history = [_error(given, full)]
    for _ in range(max_iter):
        if mask is not None:
            X = torch.where(mask, given.X, full)
        for axis, r in enumerate(ranks):
            others = [factor.mT for factor in factors]
            reduced = _multiply(X, others, skip=axis)
            factors[axis] = _leading(_unfold(reduced, axis), r)
        core = _multiply(X, [factor.mT for factor in factors])
        full = _multiply(core, factors)
        history.append(_error(given, full))
        if tol > 0 and history[-2] - history[-1] <= tol * history[-1]:
            break
    return TuckerTensor(
        core=like_given(core * scale, tensor),
        factors=[like_given(factor, tensor) for factor in factors],
        objective=np.array(history) * scale**2,
        n_iter=len(history) - 1,
    )


def _check_loop(owner: str, max_iter: int, tol: float) -> None:
    check_integer(owner, "max_iter", max_iter, low=1)
    check_range(owner, "tol", tol, low=0)


def _checked(owner: str, tensor: Any, mask: Any) -> _Given:
    X = as_floating(tensor)
    check_tensor(owner, "tensor", X)
    if X.ndim < 2 or X.numel() == 0:
        raise ValueError(
            f"{owner}: tensor must have at least two axes and no empty one; got {tuple(X.shape)}."
        )
    if mask is not None:
        mask = torch.as_tensor(mask).to(X.device).bool()
        check_shape(owner, "mask", mask, " ".join(str(size) for size in X.shape))
        if not bool(mask.any()):
            raise ValueError(f"{owner}: mask must have an observed entry; got none.")
        X = torch.where(mask, X, 0.0)
    check_finite(owner, "tensor", X)
    scale = float(X.abs().max()) or 1.0
    return _Given(X / scale, mask, scale)


def _ranks(owner: str, rank: int | Sequence[int], shape: tuple[int, ...]) -> list[int]:
    ranks = list(rank) if isinstance(rank, Sequence) else [rank] * len(shape)
    if len(ranks) != len(shape):
        raise ValueError(
            f"{owner}: rank must have one number per axis, {len(shape)}; got {len(ranks)}."
        )
    for axis, (r, size) in enumerate(zip(ranks, shape, strict=True)):
        check_integer(owner, f"rank[{axis}]", r, low=1, high=size)
    return ranks


def _start(
    owner: str, given: _Given, rank: int, init: Any, rng: np.random.Generator
) -> list[Tensor]:
    X = given.X
    if not isinstance(init, str):
        if len(init) != X.ndim:
            raise ValueError(
                f"{owner}: init must have a factor per axis, {X.ndim}; got {len(init)}."
            )
        factors = [torch.as_tensor(factor).to(X.device, X.dtype, copy=True) for factor in init]
        for axis, factor in enumerate(factors):
            check_shape(owner, f"init[{axis}]", factor, "n r", n=X.shape[axis], r=rank)
            check_finite(owner, f"init[{axis}]", factor)
        # given factors are in the data's units, which the sweeps do not see
        return [factor / given.scale ** (1 / X.ndim) for factor in factors]
    check_choice(owner, "init", init, ("svd", "random"))
    factors = [drawn(rng, (size, rank), X) for size in X.shape]
    if init == "svd":
        for axis, factor in enumerate(factors):
            leading = _leading(_unfold(X, axis), min(rank, X.shape[axis]))
            factor[:, : leading.shape[1]] = leading
    return factors


def _als(
    given: _Given, factors: list[Tensor], max_iter: int, tol: float
) -> tuple[list[float], list[Tensor]]:
    """Return the course of the squared error and the factors, scale shared between them."""
    axes = range(given.X.ndim)
    unfolded = [_unfold(given.X, axis).contiguous() for axis in axes]
    masks = None
    if given.mask is not None:
        masks = [_unfold(given.mask, axis).to(given.X.dtype) for axis in axes]
    history = [_error(given, _cp_full(factors))]
    norm = float(given.X.square().sum(dtype=torch.float64))
    for _ in range(max_iter):
        for axis in axes:
            others = _khatri_rao([factor for k, factor in enumerate(factors) if k != axis])
            target = unfolded[axis] @ others
            gram = others.mT @ others if masks is None else _masked_gram(masks[axis], others)
            factors[axis] = _solve(factors[axis], target, gram)
        history.append(max(norm + _gap(factors[-1], target, gram), 0.0))
        factors = _balanced(factors)
        if tol > 0 and history[-2] - history[-1] <= tol * history[-1]:
            break
    return history, factors


def _masked_gram(
    mask: Float[Tensor, "i j"], others: Float[Tensor, "j r"]
) -> Float[Tensor, "i r r"]:
    """Return for every row the Gram matrix of those rows of ``others`` that it observes."""
    rank = others.shape[1]
    first, second = torch.triu_indices(rank, rank, device=mask.device)
    sums = others.new_zeros(len(mask), len(first))
    size = max(1, BLOCK // len(first))
    for start in range(0, len(others), size):
        part = others[start : start + size]
        sums.addmm_(mask[:, start : start + size], part[:, first] * part[:, second])
    gram = others.new_empty(len(mask), rank, rank)
    gram[:, first, second] = sums
    gram[:, second, first] = sums
    return gram


def _solve(
    A: Float[Tensor, "i r"], target: Float[Tensor, "i r"], gram: Tensor
) -> Float[Tensor, "i r"]:
    """Return the minimiser of a'(gram)a - 2 target'a + delta |a - A|^2 for every row."""
    rank = A.shape[1]
    delta = 100 * rank * torch.finfo(A.dtype).eps * gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    delta = torch.where(delta > 0, delta, 1.0)
    eye = torch.eye(rank, dtype=A.dtype, device=A.device)
    lower, info = torch.linalg.cholesky_ex(gram + delta[..., None, None] * eye)
    if gram.ndim == 2:
        step = torch.cholesky_solve((target - A @ gram).mT, lower).mT
    else:
        rest = target[..., None] - gram @ A[..., None]
        step = torch.cholesky_solve(rest, lower)[..., 0]
    usable = info[..., None] == 0  # a factor that rounding has spoilt moves nothing
    return torch.where(usable, A + step, A)


def _gap(A: Tensor, target: Tensor, gram: Tensor) -> float:
    """Return the squared error less the squared norm of the data."""
    image = A @ gram if gram.ndim == 2 else (gram @ A[..., None])[..., 0]
    return float((A * (image - 2 * target)).sum(dtype=torch.float64))


def _balanced(factors: list[Tensor]) -> list[Tensor]:
    """Give a component's columns one length, except where a column is zero."""
    lengths = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in factors])
    mean = lengths.log().mean(dim=0).exp()  # a product of many lengths might underflow
    scales = torch.where(mean > 0, mean / torch.where(lengths > 0, lengths, 1.0), 1.0)
    return [factor * scale for factor, scale in zip(factors, scales, strict=True)]


def _error(given: _Given, full: Tensor) -> float:
    rest = given.X - full if given.mask is None else torch.where(given.mask, given.X - full, 0.0)
    return float(rest.square().sum(dtype=torch.float64))


def _unfold(X: Tensor, axis: int) -> Float[Tensor, "i j"]:
    return X.movedim(axis, 0).reshape(X.shape[axis], -1)


def _khatri_rao(factors: list[Tensor]) -> Float[Tensor, "j r"]:
    """Return the products of columns over all combinations of rows, the last one fastest."""
    result = factors[0]
    for factor in factors[1:]:
        result = (result[:, None, :] * factor).reshape(-1, factor.shape[1])
    return result


def _cp_full(factors: list[Tensor]) -> Tensor:
    shape = [len(factor) for factor in factors]
    return (factors[0] @ _khatri_rao(factors[1:]).mT).reshape(shape)


def _multiply(X: Tensor, matrices: Sequence[Tensor], skip: int | None = None) -> Tensor:
    """Multiply a tensor by a matrix along every axis but one."""
    for axis, matrix in enumerate(matrices):
        if axis != skip:
            X = torch.tensordot(matrix, X, dims=([1], [axis])).movedim(0, axis)
    return X


def _leading(matrix: Float[Tensor, "i j"], rank: int) -> Float[Tensor, "i r"]:
    """Return leading left singular vectors; of a wide matrix by way of its triangular factor."""
    if matrix.shape[1] > matrix.shape[0]:
        matrix = torch.linalg.qr(matrix.mT, mode="r")[1].mT
    elif matrix.shape[1] < rank:
        padding = matrix.new_zeros(matrix.shape[0], rank - matrix.shape[1])
        matrix = torch.cat([matrix, padding], dim=1)
    return torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
