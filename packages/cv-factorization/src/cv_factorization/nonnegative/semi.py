"""Factorisations of data of any sign with non-negative codes (Ding, Li, Jordan)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from cv_core.numerics.linear import solve_psd
from jaxtyping import Float
from torch import Tensor

from cv_factorization._shared.arrays import like_given
from cv_factorization.nonnegative.base import NonnegativeCoding, Run
from cv_factorization.nonnegative.start import uniform_factors
from cv_factorization.nonnegative.steps import (
    fit_value,
    floor_of,
    product,
    square_sum,
    transposed,
)


class _AnySign(NonnegativeCoding):
    _nonnegative_data = False

    def __init__(
        self,
        n_components: int = 10,
        *,
        max_iter: int = 500,
        tol: float = 1e-4,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_components = n_components
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def _settle(self, X: Tensor, U: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        # square roots make for slow updates: without this the codes were not those of transform
        return U, self._codes(X, U).mT


class SemiNMF(_AnySign):
    r"""Semi-non-negative matrix factorisation (Ding, Li, Jordan, TPAMI 2010).

    .. math::
        \min_{U,\, V \ge 0} \|X - VU\|_F^2, \qquad U = (V^\top V)^{-1} V^\top X, \qquad
        V \leftarrow V \odot \sqrt{\frac{[XU^\top]^+ + V [UU^\top]^-}{[XU^\top]^- + V [UU^\top]^+}}

    Data and atoms may have any sign, codes not: a relaxation of k-means, where the codes are
    indicators. A sweep updates atoms, then codes; neither raises the objective.

    C. Ding, T. Li, M. I. Jordan: Convex and Semi-Nonnegative Matrix Factorizations. IEEE TPAMI
    32(1), 2010, pp. 45-55.

    Args:
        n_components: Components m.
        max_iter: Most sweeps.
        tol: Sweeps end once one lowers the objective by this share or less; 0 takes them all.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (m, d) the atoms.
        embedding_: (n, m) the codes of the training samples.
        objective_: (n_iter_ + 1,) the objective at the start and after each sweep.
        reconstruction_err_: :math:`\|X - VU\|_F`.
        n_iter_: Sweeps taken.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: codes start at random instead of from k-means, and end as the exact
    non-negative least-squares codes of the last atoms, which ``transform`` returns as well.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((30, 12))
        >>> bool((SemiNMF(4, random_state=0).fit_transform(X) >= 0).all())
        True
    """

    def _begin(self, X: Tensor, scale: float, rng: np.random.Generator) -> Run:  # noqa: ARG002
        U, C = uniform_factors(X, self.n_components, rng)
        return Run(U, C, semi_sweeps(X, U, C))


class ConvexNMF(_AnySign):
    r"""Convex non-negative matrix factorisation (Ding, Li, Jordan, TPAMI 2010).

    .. math::
        \min_{G, V \ge 0} \|X - V G X\|_F^2

    Atoms :math:`U = GX` are mixtures of samples, which keeps them interpretable for data of any
    sign. With :math:`K = XX^\top = K^+ - K^-` a sweep updates

    .. math::
        V \leftarrow V \odot \sqrt{\frac{K^+ G^\top + V G K^- G^\top}{K^- G^\top + V G K^+ G^\top}},
        \qquad
        G \leftarrow G \odot \sqrt{\frac{V^\top K^+ + V^\top V G K^-}{V^\top K^- + V^\top V G K^+}}

    and raises the objective in neither step. It holds three n x n matrices.

    C. Ding, T. Li, M. I. Jordan: Convex and Semi-Nonnegative Matrix Factorizations. IEEE TPAMI
    32(1), 2010, pp. 45-55.

    Args:
        n_components: Components m.
        max_iter: Most sweeps.
        tol: Sweeps end once one lowers the objective by this share or less; 0 takes them all.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (m, d) the atoms.
        mixing_: (m, n) the G with ``components_ = mixing_ @ X``; rows sum to 1.
        embedding_: (n, m) the codes of the training samples.
        objective_: (n_iter_ + 1,) the objective at the start and after each sweep.
        reconstruction_err_: :math:`\|X - VU\|_F`.
        n_iter_: Sweeps taken.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: both factors start at random instead of from k-means; in the end the
    rows of G are scaled to the sum 1, and the codes are the exact non-negative least-squares codes
    of these atoms, which ``transform`` returns as well.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((30, 12))
        >>> model = ConvexNMF(4, random_state=0).fit(X)
        >>> np.allclose(model.components_, model.mixing_ @ X)
        True
    """

    _accept_sparse = False

    mixing_: Any

    def fit(self, X: Any, y: object = None) -> Any:
        """Factorise X.

        Args:
            X: Samples as rows, an array or a tensor.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If X is a tensor that is neither float32 nor float64, or sparse.
            ValueError: If X is not finite, empty or of a wrong shape, or an option is out of range.
        """
        super().fit(X, y)
        self.mixing_ = like_given(self.mixing_, X)
        return self

    def _begin(self, X: Tensor, scale: float, rng: np.random.Generator) -> Run:  # noqa: ARG002
        shape = (self.n_components, len(X))
        C, G = (torch.from_numpy(1 - rng.random(shape)).to(X) for _ in range(2))
        self.mixing_ = G / G.sum(dim=1, keepdim=True)
        U = self.mixing_ @ X
        return Run(U, C, convex_sweeps(X, U, C, self.mixing_))

    def _settle(self, X: Tensor, U: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        total = self.mixing_.sum(dim=1, keepdim=True)
        self.mixing_ = self.mixing_ / torch.where(total > 0, total, 1.0)
        return super()._settle(X, self.mixing_ @ X, C)


def semi_sweeps(X: Tensor, U: Float[Tensor, "m d"], C: Float[Tensor, "m n"]) -> Iterator[float]:
    """Update atoms, then codes, for ever; yield the squared error at the start and per sweep."""
    Xt, norm = transposed(X), square_sum(X)
    floor = floor_of(X.dtype)
    yield fit_value(norm, C, product(U, X), U @ U.mT)
    while True:
        U.copy_(solve_psd(C @ C.mT, product(C, Xt)))
        target, gram = product(U, X), U @ U.mT
        falling = target.clamp(min=0) + (-gram).clamp(min=0) @ C
        rising = (-target).clamp(min=0) + gram.clamp(min=0) @ C
        C *= (falling / rising.clamp(min=floor)).sqrt()
        yield fit_value(norm, C, target, gram)


def convex_sweeps(
    X: Float[Tensor, "n d"],
    U: Float[Tensor, "m d"],
    C: Float[Tensor, "m n"],
    G: Float[Tensor, "m n"],
) -> Iterator[float]:
    """Update codes, then mixtures, and the atoms ``G X`` with them; yield the squared error."""
    K = X @ X.mT
    positive, negative = K.clamp(min=0), (-K).clamp(min=0)
    norm, floor = square_sum(X), floor_of(X.dtype)
    plus, minus = G @ positive, G @ negative
    while True:
        yield fit_value(norm, C, plus - minus, U @ U.mT)
        rising = minus + (plus @ G.mT) @ C
        C *= ((plus + (minus @ G.mT) @ C) / rising.clamp(min=floor)).sqrt()
        gram = C @ C.mT
        rising = C @ negative + gram @ plus
        G *= ((C @ positive + gram @ minus) / rising.clamp(min=floor)).sqrt()
        plus, minus = G @ positive, G @ negative
        U.copy_(G @ X)
