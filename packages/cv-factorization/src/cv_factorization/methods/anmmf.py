"""Several non-negative factorisations of one matrix, made independent of each other (ANMMF)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from cv_core.checks import check_choice, check_finite, check_integer, check_range, check_shape
from cv_core.numerics.affinity import check_affinity, knn_affinity
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from cv_factorization._shared.multiplicative import (
    Pull,
    balance_,
    dependence_parts,
    nonnegative_codes,
    random_factors,
    unit_atoms_,
    update_atoms_,
    update_codes_,
)

if TYPE_CHECKING:
    import torch
    from scipy import sparse


class _Graph(NamedTuple):
    """Affinities (n, n) and their row sums (n, 1)."""

    W: sparse.csr_array
    degrees: np.ndarray


class ANMMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Attributed non-negative matrix multi-factorisation: several independent views of one matrix.

    Wang, Sun, Guo, Hu, Yin: Attributed Non-negative Matrix Multi-factorization for Data
    Representation. PRCV 2021, LNCS 13022, pp. 66-77.

    .. math::
        \min_{U_i, V_i \ge 0}\; \sum_i \|X - V_i U_i\|_F^2
        + \lambda_1 \sum_{i<j} \mathrm{tr}(K_i H K_j H)
        + \lambda_2 \sum_i \mathrm{tr}(V_i^\top L V_i)

    :math:`X` (n, d) holds samples as rows; view :math:`i` has atoms :math:`U_i` (m, d) and codes
    :math:`V_i` (n, m). The second term is the Hilbert-Schmidt independence criterion of every two
    views (:math:`K_i = V_i V_i^\top`, :math:`H = I - 11^\top / n`), the third keeps neighbours near
    each other (:math:`L = D - W`, the Laplacian of a nearest-neighbour graph). A sweep takes each
    view in turn and updates, with :math:`K = \sum_{j \ne i} H K_j H = K^+ - K^-`,

    .. math::
        U_i \leftarrow U_i \odot \frac{V_i^\top X}{V_i^\top V_i U_i}, \qquad
        V_i \leftarrow V_i \odot \left(\frac{X U_i^\top + \lambda_1 K^- V_i + \lambda_2 W V_i}
        {V_i U_i U_i^\top + \lambda_1 K^+ V_i + \lambda_2 D V_i}\right)^{p}

    With one view it is GNMF, without the graph MCNMF, without both NMF: see
    ``cv_factorization.nonnegative.nmf`` and ``cv_factorization.baselines.nmf``. K is n x n but is
    only ever held in blocks: a sweep takes O(views (n d m + n^2 m)) operations and O(n) memory
    beside X and the factors.

    Args:
        n_components: Components m of each view; the paper's protocol takes the number of classes.
        n_views: Factorisations.
        lam_hsic: :math:`\lambda_1 \ge 0` of the *update*: the paper drops the factor
            :math:`(n - 1)^{-2}` and counts pairs once there. For its printed objective pass
            :math:`2 \lambda_1 / (n - 1)^2`.
        lam_graph: :math:`\lambda_2 \ge 0`.
        n_neighbors: Neighbours of each sample in the graph; at most all others.
        affinity: ``"heat"``, ``"binary"`` or ``"cosine"`` as in ``cv_core.numerics.affinity``, or
            W itself, (n, n) symmetric and non-negative, an array or a sparse matrix.
        init: ``"nmf"`` runs plain NMF for each view from a random start of its own, ``"random"``
            leaves that out; both then give each atom the length of its column of codes. A pair
            (atoms (views, m, d), codes (views, n, m)) is taken as it is.
        init_iter: Sweeps of plain NMF with ``init="nmf"``.
        max_iter: Most sweeps.
        tol: Sweeps end once one changes the objective by this share or less; 0 takes them all.
        damping: The exponent p in (0, 1]: 1 as printed, 0.5 for the one with a textbook proof.
        normalize: ``"u_columns"`` gives atoms unit length after every sweep and scales the codes
            against it; the objective may then rise.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (views, m, d) the atoms.
        embeddings_: (views, n, m) the codes of the training samples.
        objective_: (n_iter_ + 1,) the objective at the start and after each sweep.
        reconstruction_err_: (views,) the :math:`\|X - V_i U_i\|_F`.
        n_iter_: Sweeps taken.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: the tolerance is relative (the printed 1e-5 is absolute, beside
    objectives of 1e9); denominators are at least 1e-12. The fit does not change if :math:`V_i`
    shrinks while :math:`U_i` grows, and both penalties then vanish. The printed rule escapes them
    in part that way, and how far depends on the start's scale, which the paper does not state;
    hence the balanced start here. ``normalize="u_columns"`` closes the escape, and then wants a far
    smaller ``lam_hsic``. Judge independence by ``cv_core.numerics.dependence.cka``, which has no
    scale.

    Example:
        The paper clusters with all views at once:

        >>> import numpy as np
        >>> from cv_factorization.multiview import RobustMultiViewKMeans
        >>> X = np.random.default_rng(0).random((30, 12))
        >>> model = ANMMF(4, lam_hsic=10.0, random_state=0).fit(X)
        >>> model.embeddings_.shape
        (3, 30, 4)
        >>> labels = RobustMultiViewKMeans(2, random_state=0).fit_predict(model.embeddings_)
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        n_views: int = 3,
        lam_hsic: float = 1.0,
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
        self.n_components = n_components
        self.n_views = n_views
        self.lam_hsic = lam_hsic
        self.lam_graph = lam_graph
        self.n_neighbors = n_neighbors
        self.affinity = affinity
        self.init = init
        self.init_iter = init_iter
        self.max_iter = max_iter
        self.tol = tol
        self.damping = damping
        self.normalize = normalize
        self.random_state = random_state

    def fit(
        self,
        X: Float[np.ndarray, "n d"],
        y: object = None,  # noqa: ARG002 - scikit-learn's signature
    ) -> ANMMF:
        """Factorise X.

        Args:
            X: Samples as rows, non-negative; computed in float64.
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X is negative somewhere, not finite, or has fewer than two rows, or an
                option is out of range.
        """
        self._check_options()
        X = self._checked(X, reset=True)
        graph = self._graph(X)
        U, V = self._start(X)
        self.objective_ = np.array(self._sweep_all(X, graph, U, V))
        self.n_iter_ = len(self.objective_) - 1
        self.components_ = np.stack(U)
        self.embeddings_ = np.stack(V)
        self.reconstruction_err_ = np.array(
            [np.linalg.norm(X - v @ u) for u, v in zip(U, V, strict=True)]
        )
        return self

    def fit_transform(
        self, X: Float[np.ndarray, "n d"], y: object = None
    ) -> Float[np.ndarray, "n k"]:
        """Factorise X and return the codes of its rows, the views side by side.

        These codes felt the penalties; ``transform`` of the same rows does not, and differs.

        Args:
            X: Samples as rows, non-negative.
            y: Not used; for scikit-learn's conventions.

        Returns:
            ``embeddings_`` joined to (n, views * m).
        """
        return np.concatenate(self.fit(X, y).embeddings_, axis=1)

    def transform(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        r"""Return codes of new samples: the exact :math:`\min_{v \ge 0} \|x - v U_i\|` per view.

        Args:
            X: Samples as rows, non-negative. Each row's codes are its own affair: the graph and the
                independence of the views concern the training samples only.

        Returns:
            (n, views * m), the views side by side.

        Raises:
            ValueError: If X is negative somewhere, not finite, or has not the columns of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        return np.concatenate([nonnegative_codes(X, U) for U in self.components_], axis=1)

    def _check_options(self) -> None:
        owner = type(self).__name__
        check_integer(owner, "n_components", self.n_components, low=1)
        check_integer(owner, "n_views", self.n_views, low=1)
        check_range(owner, "lam_hsic", self.lam_hsic, low=0)
        check_range(owner, "lam_graph", self.lam_graph, low=0)
        check_integer(owner, "n_neighbors", self.n_neighbors, low=1)
        check_integer(owner, "init_iter", self.init_iter, low=0)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0)
        check_range(owner, "damping", self.damping, low=0, high=1, low_open=True)
        check_choice(owner, "normalize", self.normalize, (None, "u_columns"))
        if isinstance(self.affinity, str):
            check_choice(owner, "affinity", self.affinity, ("heat", "binary", "cosine"))
        if isinstance(self.init, str):
            check_choice(owner, "init", self.init, ("nmf", "random"))
        elif not (isinstance(self.init, tuple | list) and len(self.init) == 2):
            raise ValueError(
                f"{owner}: init must be 'nmf', 'random' or a pair (atoms, codes); got "
                f"{type(self.init).__name__}."
            )

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        return validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64,
            ensure_non_negative=True,
            ensure_min_samples=2 if reset else 1,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.components_.shape[0] * self.components_.shape[1]

    def _graph(self, X: np.ndarray) -> _Graph | None:
        """Return the neighbourhood graph, or ``None`` where it has no influence."""
        if self.lam_graph == 0:
            return None
        if isinstance(self.affinity, str):
            neighbors = min(self.n_neighbors, len(X) - 1)
            W = knn_affinity(X, neighbors, weight=self.affinity)  # type: ignore[arg-type] # checked
        else:
            W = check_affinity(type(self).__name__, "affinity", self.affinity, n=len(X))
        return _Graph(W, W.sum(axis=1)[:, None])

    def _start(self, X: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        if not isinstance(self.init, str):
            return self._given_start(X)
        # Each view draws its own start: equal starts would stay equal where lam_hsic is small.
        rng = np.random.default_rng(self.random_state)
        starts = [random_factors(X, self.n_components, rng) for _ in range(self.n_views)]
        if self.init == "nmf":
            for U, V in starts:
                for _ in range(self.init_iter):
                    update_atoms_(U, X, V)
                    update_codes_(V, X, U, Pull())
        for U, V in starts:
            balance_(U, V)
        return [U for U, _ in starts], [V for _, V in starts]

    def _given_start(self, X: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        owner = type(self).__name__
        factors = []
        sizes = {"v": self.n_views, "m": self.n_components, "n": X.shape[0], "d": X.shape[1]}
        for name, pattern, given in zip(
            ("atoms", "codes"), ("v m d", "v n m"), self.init, strict=True
        ):
            array = np.array(given, dtype=np.float64)  # a copy: the updates work in place
            check_shape(
                owner, f"init {name}", array, pattern, **{a: sizes[a] for a in pattern.split()}
            )
            check_finite(owner, f"init {name}", array)
            if array.min() < 0:
                raise ValueError(f"{owner}: init {name} must be non-negative; got {array.min():g}.")
            factors.append(list(array))
        return factors[0], factors[1]

    def _sweep_all(
        self,
        X: np.ndarray,
        graph: _Graph | None,
        U: list[np.ndarray],
        V: list[np.ndarray],
    ) -> list[float]:
        """Update the factors in place until the objective rests; return its course."""
        norm = float(np.vdot(X, X))
        fits = [float(np.square(X - v @ u).sum()) for u, v in zip(U, V, strict=True)]
        history = [sum(fits) + self._penalty(V, graph)]
        for _ in range(self.max_iter):
            for i in range(self.n_views):
                update_atoms_(U[i], X, V[i])
                fits[i] = norm + update_codes_(V[i], X, U[i], self._pull(V, i, graph), self.damping)
            if self.normalize == "u_columns":
                for u, v in zip(U, V, strict=True):
                    unit_atoms_(u, v)
            history.append(max(sum(fits), 0.0) + self._penalty(V, graph))
            if self.tol > 0 and abs(history[-2] - history[-1]) <= self.tol * history[-1]:
                return history
        if self.tol > 0:
            warnings.warn(
                f"{type(self).__name__}: tol={self.tol:g} was not reached in max_iter="
                f"{self.max_iter} sweeps. Raise either, or set tol=0 to take all sweeps.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return history

    def _pull(self, V: list[np.ndarray], i: int, graph: _Graph | None) -> Pull:
        pull = Pull()
        others = [v for j, v in enumerate(V) if j != i]
        if self.lam_hsic > 0 and others:
            falling, rising = dependence_parts(V[i], others)
            pull = Pull(self.lam_hsic * falling, self.lam_hsic * rising)
        if graph is not None:
            pull.falling += self.lam_graph * (graph.W @ V[i])
            pull.rising += self.lam_graph * (graph.degrees * V[i])
        return pull

    def _penalty(self, V: list[np.ndarray], graph: _Graph | None) -> float:
        value = 0.0
        if self.lam_hsic > 0:
            centred = [v - v.mean(axis=0) for v in V]
            # ||(HV_i)'(HV_j)||^2 is the trace without its cancellation and without n x n matrices
            pairs = (float(np.square(a.T @ b).sum()) for a, b in combinations(centred, 2))
            value += self.lam_hsic * sum(pairs)
        if graph is not None:
            differences = (float(np.vdot(v, graph.degrees * v - graph.W @ v)) for v in V)
            value += self.lam_graph * sum(differences)
        return value


def _examples() -> Sequence[Example]:
    from cv_factorization.baselines.nmf import MCNMF
    from cv_factorization.nonnegative.nmf import GNMF

    def inputs(generator: torch.Generator) -> tuple[np.ndarray]:
        import torch

        return (torch.rand(24, 10, generator=generator, dtype=torch.float64).numpy(),)

    # at rest, where the codes of training rows are near those of new rows, as the suite asks
    options: dict[str, Any] = {"tol": 1e-5, "max_iter": 1000, "random_state": 0}
    return [
        Example(build=partial(ANMMF, 2, n_views=2, **options), inputs=inputs),
        Example(build=partial(GNMF, 2, **options), inputs=inputs),
        Example(build=partial(MCNMF, 2, n_views=2, **options), inputs=inputs),
    ]


CARD = Card(
    slug="anmmf",
    title="Several independent non-negative factorisations of one matrix",
    reference=Reference(
        title="Attributed Non-negative Matrix Multi-factorization for Data Representation",
        authors="Wang, Sun, Guo, Hu, Yin",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="66-77",
    ),
    kind="estimator",
    objects=(
        "cv_factorization.methods.anmmf.ANMMF",
        "cv_factorization.nonnegative.nmf.GNMF",
        "cv_factorization.baselines.nmf.MCNMF",
    ),
    examples=_examples,
    properties=("non-negative",),
)
