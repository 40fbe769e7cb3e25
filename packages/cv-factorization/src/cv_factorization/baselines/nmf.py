"""MCNMF as the special case of ANMMF that it is.

NMF and GNMF, the special cases with one view, are in ``cv_factorization.nonnegative.nmf``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cv_factorization.methods.anmmf import ANMMF


class MCNMF(ANMMF):
    r"""Multi-component non-negative matrix factorisation (Wang et al., IJCAI 2017).

    :math:`\min_{U_i, V_i \ge 0} \sum_i \|X - V_i U_i\|_F^2
    + \lambda \sum_{i<j} \mathrm{tr}(K_i H K_j H)`: ANMMF without a graph. Arguments, attributes and
    deviations are those of ``ANMMF``.

    J. Wang, F. Tian, X. Wang, H. Yu, C. H. Liu, L. Yang: Multi-Component Nonnegative Matrix
    Factorization. IJCAI 2017.

    Args:
        n_components: Components m of each view.
        n_views: Factorisations.
        lam_hsic: :math:`\lambda \ge 0`, counted as in ``ANMMF``.
        init: How to start.
        init_iter: Sweeps of plain NMF with ``init="nmf"``.
        max_iter: Most sweeps.
        tol: Relative tolerance of the objective.
        damping: Exponent of the codes' update.
        normalize: Whether to keep atoms at unit length, and how.
        random_state: Seed or ``numpy.random.Generator``.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).random((30, 12))
        >>> MCNMF(4, n_views=2, random_state=0).fit_transform(X).shape
        (30, 8)
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        n_views: int = 3,
        lam_hsic: float = 1.0,
        init: Literal["nmf", "random"] | tuple[np.ndarray, np.ndarray] = "nmf",
        init_iter: int = 100,
        max_iter: int = 500,
        tol: float = 1e-4,
        damping: float = 1.0,
        normalize: Literal["u_columns"] | None = None,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            n_components,
            n_views=n_views,
            lam_hsic=lam_hsic,
            lam_graph=0.0,
            init=init,
            init_iter=init_iter,
            max_iter=max_iter,
            tol=tol,
            damping=damping,
            normalize=normalize,
            random_state=random_state,
        )
