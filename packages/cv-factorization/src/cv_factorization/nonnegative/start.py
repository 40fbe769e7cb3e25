"""Where non-negative factorisations start."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cv_core.checks import check_finite, check_shape
from jaxtyping import Float
from torch import Tensor

from cv_factorization._shared.arrays import drawn


def uniform_factors(
    X: Tensor, n_components: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m n"]]:
    """Draw positive atoms and codes, as large as the mean of |X| wants them."""
    n, d = X.shape
    mean = float((X.values() if X.is_sparse else X).abs().sum(dtype=torch.float64)) / (n * d)
    scale = 2 * np.sqrt(mean / n_components)

    def draw(size: int) -> Tensor:
        values = scale * (1 - rng.random((n_components, size)))  # zero could never be left
        return torch.from_numpy(values).to(X.device, X.dtype)

    return draw(d), draw(n)


def nndsvda(
    X: Tensor, n_components: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m n"]]:
    """Start from singular vectors: of each pair the larger one-signed part, zeros as the mean.

    C. Boutsidis, E. Gallopoulos: SVD based initialization: A head start for nonnegative matrix
    factorization. Pattern Recognition 41(4), 2008, pp. 1350-1362.
    """
    left, values, right = leading_svd(X, n_components, rng)
    # the leading pair has one sign, up to rounding; the rule below then takes all of it
    lengths, parts = [], []
    for sign in (1, -1):
        a, b = (sign * left).clamp(min=0), (sign * right).clamp(min=0)
        lengths.append(torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1))
        parts.append((_unit(a), _unit(b)))
    positive = (lengths[0] >= lengths[1])[:, None]
    scale = (values * torch.maximum(*lengths)).sqrt()[:, None]
    C = scale * torch.where(positive, parts[0][0], parts[1][0])
    U = scale * torch.where(positive, parts[0][1], parts[1][1])
    mean = X.sum() / (X.shape[0] * X.shape[1])
    return tuple(torch.where(torch.finfo(F.dtype).eps < F, F, mean) for F in (U, C))  # type: ignore[return-value]


def _unit(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def leading_svd(
    X: Tensor, count: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "k n"], Float[Tensor, " k"], Float[Tensor, "k d"]]:
    """Return leading singular vectors as rows, by random projection; exact for small matrices.

    N. Halko, P. G. Martinsson, J. A. Tropp: Finding structure with randomness. SIAM Review 53(2),
    2011, algorithm 4.4.
    """
    n, d = X.shape
    size = min(count + 10, n, d)
    Q = torch.linalg.qr(X @ drawn(rng, (d, size), X))[0]
    for _ in range(4):
        Q = torch.linalg.qr(X.mT @ Q)[0]
        Q = torch.linalg.qr(X @ Q)[0]
    left, values, right = torch.linalg.svd((X.mT @ Q).mT, full_matrices=False)
    return (Q @ left[:, :count]).mT, values[:count], right[:count]


def given_factors(
    owner: str, init: tuple[Any, Any], X: Tensor, n_components: int, *, free_atoms: bool = False
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m n"]]:
    """Return copies of given atoms (m, d) and codes (n, m) as tensors, the codes transposed.

    Raises:
        ValueError: For a wrong shape, NaN, infinities, or negative entries.
    """
    sizes = {"m": n_components, "n": X.shape[0], "d": X.shape[1]}
    factors = []
    for name, pattern, given in zip(("atoms", "codes"), ("m d", "n m"), init, strict=True):
        factor = torch.as_tensor(given).to(X.device, X.dtype, copy=True)
        check_shape(
            owner,
            f"init {name}",
            factor,
            pattern,
            **{axis: sizes[axis] for axis in pattern.split()},
        )
        check_finite(owner, f"init {name}", factor)
        if bool((factor < 0).any()) and not (free_atoms and name == "atoms"):
            raise ValueError(
                f"{owner}: init {name} must be non-negative; got {float(factor.min()):g}."
            )
        factors.append(factor)
    return factors[0], factors[1].mT.contiguous()
