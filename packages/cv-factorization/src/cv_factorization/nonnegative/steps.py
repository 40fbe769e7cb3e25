r"""The steps of alternating non-negative factorisation.

Samples are rows: :math:`X \approx C^\top U` with codes C (m, n), held transposed so that both
factors store a component as a contiguous row, and atoms U (m, d). A problem in one factor F with
the other, G, fixed is given by ``product`` :math:`G A^\top` and ``gram`` :math:`G G^\top`, where A
is X for the codes and its transpose for the atoms. A name that ends in an underscore changes its
factor in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], None]

INNER = 10
"""Projected gradient steps per sweep: they are cheap beside the product with the data."""

BLOCK = 2**20
"""Entries that are worked on at a time where a product is only wanted at given places."""


def floor_of(dtype: torch.dtype) -> float:
    """Return the least denominator for data of size 1: far below rounding, far above underflow."""
    return torch.finfo(dtype).eps ** 2


def product(G: Float[Tensor, "m p"], A: Float[Tensor, "q p"]) -> Float[Tensor, "m q"]:
    """Return G A' in contiguous rows; A may be sparse."""
    return (A @ G.mT).mT.contiguous() if A.is_sparse else G @ A.mT


def square_sum(A: Tensor) -> float:
    """Return the squared Frobenius norm, summed in float64."""
    values = A.values() if A.is_sparse else A
    return float(values.square().sum(dtype=torch.float64))


def multiply_(F: Float[Tensor, "m q"], target: Float[Tensor, "m q"], gram: Tensor) -> None:
    """Take one step of Lee and Seung: F *= target / (gram F)."""
    F *= target / (gram @ F).clamp(min=floor_of(F.dtype))


def hals_(F: Float[Tensor, "m q"], target: Float[Tensor, "m q"], gram: Tensor) -> None:
    """Minimise over each component in turn, exactly (Cichocki and Phan, 2009).

    A component whose partner is zero has no influence and stays.
    """
    diagonal = gram.diagonal()
    scale = torch.where(diagonal > 0, 1 / torch.where(diagonal > 0, diagonal, 1.0), 0.0)
    scaled = gram * scale[:, None]
    wanted = target * scale[:, None]
    rows = zip(F, wanted, scaled, (scale > 0).tolist(), strict=True)
    for row, goal, weights, used in rows:
        if used:
            # goal - weights F + row, where the row's own weight is 1
            row.add_(torch.addmv(goal, F.mT, weights, alpha=-1)).clamp_(min=0)


def project_(F: Float[Tensor, "m q"], target: Float[Tensor, "m q"], gram: Tensor) -> None:
    """Take projected gradient steps of length 1 / L, none of which raises the objective."""
    lipschitz = float(torch.linalg.eigvalsh(gram)[-1])
    if lipschitz > 0:
        for _ in range(INNER):
            F.add_(target - gram @ F, alpha=1 / lipschitz).clamp_(min=0)


STEPS: dict[str, Step] = {"hals": hals_, "mu": multiply_, "pg": project_}


def fit_value(norm: float, F: Tensor, target: Tensor, gram: Float[Tensor, "m m"]) -> float:
    """Return ||X - C'U||^2 from one factor's own products and ||X||^2, at least 0."""
    inner = (F * target).sum(dtype=torch.float64)
    square = ((F @ F.mT) * gram).sum(dtype=torch.float64)
    return max(norm + float(square - 2 * inner), 0.0)


def frobenius_sweeps(
    X: Tensor, U: Float[Tensor, "m d"], C: Float[Tensor, "m n"], step_: Step
) -> Iterator[float]:
    """Update atoms, then codes, for ever; yield the squared error at the start and per sweep."""
    Xt = transposed(X)
    norm = square_sum(X)
    yield fit_value(norm, C, product(U, X), U @ U.mT)
    while True:
        step_(U, product(C, Xt), C @ C.mT)
        target, gram = product(U, X), U @ U.mT
        step_(C, target, gram)
        yield fit_value(norm, C, target, gram)


def transposed(X: Tensor) -> Tensor:
    """Return the transpose, coalesced if it is sparse."""
    return X.mT.coalesce() if X.is_sparse else X.mT


def divergence(
    A: Float[Tensor, "q p"], F: Float[Tensor, "m q"], G: Float[Tensor, "m p"]
) -> tuple[Tensor, float]:
    r"""Return :math:`A / F^\top G` and the divergence of Kullback and Leibler.

    :math:`\sum A \log(A / F^\top G) - A + F^\top G`; of a sparse A only the nonzeros are visited.
    """
    floor = floor_of(F.dtype)
    if A.is_sparse:
        values = A.values() / _entries(A.indices(), F, G).clamp(min=floor)
        ratio = torch.sparse_coo_tensor(
            A.indices(), values, A.shape, is_coalesced=True, check_invariants=True
        )
        given = A.values()
    else:
        ratio = values = A / (F.mT @ G).clamp(min=floor)
        given = A
    total = torch.dot(F.sum(dim=1, dtype=torch.float64), G.sum(dim=1, dtype=torch.float64))
    gap = torch.xlogy(given, values) - given
    return ratio, max(float(gap.sum(dtype=torch.float64) + total), 0.0)


def _entries(index: Tensor, F: Tensor, G: Tensor) -> Tensor:
    """Return entries of F'G at the given places, without the rest of it."""
    size = max(1, BLOCK // len(F))
    parts = [(F[:, i] * G[:, j]).sum(dim=0) for i, j in index.split(size, dim=1)]
    return torch.cat(parts) if parts else F.new_zeros(0)


def follow_ratio_(F: Float[Tensor, "m q"], G: Float[Tensor, "m p"], ratio: Tensor) -> None:
    """Take one step of Lee and Seung for the divergence."""
    F *= product(G, ratio) / G.sum(dim=1, keepdim=True).clamp(min=floor_of(F.dtype))


def divergence_sweeps(
    X: Tensor, U: Float[Tensor, "m d"], C: Float[Tensor, "m n"]
) -> Iterator[float]:
    """Update atoms, then codes, for ever; yield the divergence at the start and per sweep."""
    Xt = transposed(X)
    ratio, value = divergence(Xt, U, C)
    while True:
        yield value
        follow_ratio_(U, C, ratio)
        follow_ratio_(C, U, divergence(X, C, U)[0])
        ratio, value = divergence(Xt, U, C)


def code_sweeps(X: Tensor, U: Float[Tensor, "m d"], C: Float[Tensor, "m n"]) -> Iterator[float]:
    """Update the codes alone, for ever; yield the divergence at the start and per sweep."""
    while True:
        ratio, value = divergence(X, C, U)
        yield value
        follow_ratio_(C, U, ratio)


def descend(sweeps: Iterator[float], max_iter: int, tol: float) -> tuple[list[float], bool]:
    """Run sweeps until the objective rests.

    Args:
        sweeps: Yields the objective at the start and after every sweep.
        max_iter: Most sweeps.
        tol: Stop once a sweep lowers the objective by at most this share of it; 0 never stops.

    Returns:
        The objective at the start and after every sweep, and whether the tolerance was reached.
    """
    history = [next(sweeps)]
    for value in itertools.islice(sweeps, max_iter):
        history.append(value)
        if tol > 0 and history[-2] - value <= tol * value:
            return history, True
    return history, tol == 0


def nonnegative_least_squares(
    X: Tensor, U: Float[Tensor, "m d"], *, max_iter: int = 1000
) -> Float[Tensor, "n m"]:
    r"""Solve :math:`\min_{v \ge 0} \|x - vU\|` for all rows at once by HALS.

    Args:
        X: Rows; may be sparse.
        U: Atoms, of any sign.
        max_iter: Most sweeps over the atoms.

    Returns:
        The codes, once no sweep moves them by more than the square root of rounding.
    """
    # at unit length the atoms have equal say in when the codes rest
    peak = U.abs().amax(dim=1, keepdim=True)
    lengths = torch.where(peak > 0, peak, 1.0)
    lengths = lengths * torch.linalg.vector_norm(U / lengths, dim=1, keepdim=True).clamp(min=1.0)
    unit = U / lengths
    gram, target = unit @ unit.mT, product(unit, X)
    C = target.clamp(min=0)
    C *= (gram.diagonal() > 0)[:, None]
    enough = torch.finfo(X.dtype).eps ** 0.5
    for _ in range(max_iter):
        before = C.clone()
        hals_(C, target, gram)
        if bool((C - before).abs().max() <= enough * C.abs().max()):
            break
    return (C / lengths).mT.contiguous()
