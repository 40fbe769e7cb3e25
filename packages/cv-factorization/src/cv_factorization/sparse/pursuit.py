"""Orthogonal matching pursuit of many samples at once."""

from __future__ import annotations

import torch
from cv_core.checks import check_finite, check_floating, check_integer, check_range, check_shape
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cv_factorization.sparse.atoms import unit_rows

BLOCK = {"cpu": 2**18, "cuda": 2**26}
"""Entries of the block of samples x atoms that is worked on at a time: on a CPU it stays in the
cache, elsewhere it bounds the memory."""


@torch.no_grad()
def omp(
    X: Float[Tensor, "n d"],
    dictionary: Float[Tensor, "m d"],
    *,
    n_nonzero: int | None = None,
    tol: float | None = None,
) -> Float[Tensor, "n m"]:
    r"""Orthogonal matching pursuit: greedy codes with few nonzeros, each sample on its own.

    .. math:: \min_a \|x - aD\|^2 \quad\text{with}\quad \|a\|_0 \le k

    A sample takes the atom that its residual is most correlated with, projects itself on all atoms
    taken so far, and goes on. Batch-OMP (Rubinstein, Zibulevsky, Elad: Efficient Implementation of
    the K-SVD Algorithm using Batch Orthogonal Matching Pursuit, Technion CS-2008-08) never forms a
    residual: with :math:`G = DD^\top` the correlations are :math:`xD^\top - aG`, and the inverse
    of the Cholesky factor of each sample's part of G grows by a row per atom.

    Args:
        X: Samples as rows.
        dictionary: Atoms as rows :math:`D`. The codes refer to the atoms as they are; which atom is
            taken does not depend on their lengths. Atoms of zeros are never taken.
        n_nonzero: Most atoms :math:`k` per sample, from 1 to m. By default a tenth of the features,
            at least 1; with ``tol`` as many as can be independent.
        tol: A sample is done once its *squared* residual is at most this.

    Returns:
        The codes. A sample has fewer than k nonzeros if no atom is left that would help it: all of
        them are orthogonal to its residual, or lie in the span of those taken, to rounding.

    Raises:
        ValueError: For shapes that do not fit, NaN, or more nonzeros than atoms.

    Example:
        >>> omp(torch.tensor([[3.0, 0.1, 2.0]]), torch.eye(3), n_nonzero=2).round(decimals=3)
        tensor([[3., 0., 2.]])
    """
    check_inputs("omp", X, dictionary)
    n_nonzero = most_nonzeros("omp", n_nonzero, dictionary, open_ended=tol is not None)
    if tol is not None:
        check_range("omp", "tol", tol, low=0.0)
    atoms, lengths = unit_rows(dictionary)
    codes = pursue(X, atoms, n_nonzero, tol)
    return codes / torch.where(lengths > 0, lengths, 1.0)


def check_inputs(owner: str, X: Tensor, dictionary: Tensor) -> None:
    """Refuse samples and atoms that do not fit each other or are not finite."""
    check_floating(owner, "X", X)
    check_floating(owner, "dictionary", dictionary)
    check_shape(owner, "dictionary", dictionary, "m d", d=check_shape(owner, "X", X, "n d")["d"])
    check_finite(owner, "X", X)
    check_finite(owner, "dictionary", dictionary)


def most_nonzeros(
    owner: str, n_nonzero: int | None, dictionary: Tensor, *, open_ended: bool = False
) -> int:
    """Return how many nonzeros a code may have, after a check or by default."""
    atoms, features = dictionary.shape
    if n_nonzero is None:
        return min(atoms, features if open_ended else max(1, features // 10))
    check_integer(owner, "n_nonzero", n_nonzero, low=1)
    if n_nonzero > atoms:
        raise ValueError(
            f"{owner}: n_nonzero must not exceed the number of atoms, {atoms}; got {n_nonzero}."
        )
    return int(n_nonzero)


def pursue(
    X: Float[Tensor, "n d"],
    atoms: Float[Tensor, "m d"],
    n_nonzero: int,
    tol: float | None = None,
) -> Float[Tensor, "n m"]:
    """Pursue samples with atoms of length 1 or 0: ``omp`` without its checks, block by block."""
    gram = atoms @ atoms.mT
    codes = X.new_zeros(len(X), len(atoms))
    rows = max(1, BLOCK.get(X.device.type, BLOCK["cuda"]) // len(atoms))
    for start in range(0, len(X), rows):
        part, lengths = unit_rows(X[start : start + rows])
        enough = torch.zeros_like(lengths) if tol is None else tol / lengths.square()
        support, values = _pursue_block(gram, part @ atoms.mT, n_nonzero, enough)
        codes[start : start + rows].scatter_add_(1, support.mT, (values * lengths).mT)
    return codes


def _pursue_block(
    gram: Float[Tensor, "m m"],
    products: Float[Tensor, "n m"],
    n_nonzero: int,
    enough: Float[Tensor, " n"],
) -> tuple[Int[Tensor, "k n"], Float[Tensor, "k n"]]:
    """Return atoms and codes of samples of length 1 or 0; codes are 0 where a sample was done."""
    n = len(products)
    eps = torch.finfo(products.dtype).eps
    support = torch.zeros(n_nonzero, n, dtype=torch.long, device=products.device)
    codes = products.new_zeros(n_nonzero, n)
    inverse = products.new_zeros(n_nonzero, n_nonzero, n)  # of the Cholesky factors
    left = torch.ones_like(enough)  # squared residuals
    going = left > enough
    correlation = products
    for j in range(n_nonzero):
        size, atom = correlation.abs().max(dim=1)
        row, outside = _grow(gram, support[:j], atom, inverse[:j, :j])
        # An atom this close to the span has the largest correlation only if all are below 1e-4 of
        # the residual: nothing is lost, and what follows stays far from dividing by rounding.
        going = going & (size > 100 * eps) & (outside > eps**0.5)
        scale = torch.where(going, outside.clamp(min=eps).rsqrt(), 0.0)
        inverse[j, : j + 1] = row * scale
        gain = correlation.gather(1, atom[:, None])[:, 0] * scale
        codes[: j + 1] += gain * inverse[j, : j + 1]
        support[j] = atom
        left = left - gain.square()
        going = going & (left > enough)
        if j + 1 == n_nonzero or not bool(going.any()):
            break
        # a G for codes that are mostly zero: only the atoms taken are read
        taken, weights = support[: j + 1].mT.contiguous(), codes[: j + 1].mT.contiguous()
        explained = functional.embedding_bag(taken, gram, per_sample_weights=weights, mode="sum")
        correlation = torch.sub(products, explained, out=explained)
    return support, codes


def _grow(
    gram: Float[Tensor, "m m"],
    support: Int[Tensor, "j n"],
    atom: Int[Tensor, " n"],
    inverse: Float[Tensor, "j j n"],
) -> tuple[Float[Tensor, "i n"], Float[Tensor, " n"]]:
    """Return the next row of the inverse factor, not yet scaled, and the atom's squared distance.

    The row holds the new direction in terms of the atoms: it is orthogonal to all atoms taken. The
    distance is that of the new atom from their span.
    """
    inside = (inverse * gram[support, atom]).sum(dim=1)
    row = -(inverse * inside[:, None]).sum(dim=0)
    return torch.cat([row, row.new_ones(1, len(atom))]), 1.0 - inside.square().sum(dim=0)
