"""NMF and its kin, as the special cases of ANMMF that they are.

Plain NMF by multiplicative updates is ``sklearn.decomposition.NMF(solver="mu")``; it takes the
steps of ``ANMMF(n_views=1, lam_graph=0)`` if it is given the transposed matrix.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from cv_factorization.methods.anmmf import ANMMF


class GNMF(ANMMF):
    r"""Graph regularised non-negative matrix factorisation (Cai, He, Han, Huang, TPAMI 2011).

    :math:`\min_{U, V \ge 0} \|X - VU\|_F^2 + \lambda\, \mathrm{tr}(V^\top L V)`: ANMMF with one
    view, hence without an independence term. Arguments, attributes (with a first axis of length 1)
    and deviations are those of ``ANMMF``.

    D. Cai, X. He, J. Han, T. S. Huang: Graph Regularized Nonnegative Matrix Factorization for Data
    Representation. IEEE TPAMI 33(8), 2011, pp. 1548-1560.

    Args:
        n_components: Components m.
        lam_graph: :math:`\lambda \ge 0`; 0 is plain NMF.
        n_neighbors: Neighbours of each sample in the graph.
        affinity: The graph's weights, or the graph.
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
        >>> GNMF(4, random_state=0).fit_transform(X).shape
        (30, 4)
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        lam_graph: float = 1.0,
        n_neighbors: int = 5,
        affinity: Any = "heat",
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
            n_views=1,
            lam_hsic=0.0,
            lam_graph=lam_graph,
            n_neighbors=n_neighbors,
            affinity=affinity,
            init=init,
            init_iter=init_iter,
            max_iter=max_iter,
            tol=tol,
            damping=damping,
            normalize=normalize,
            random_state=random_state,
        )


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
