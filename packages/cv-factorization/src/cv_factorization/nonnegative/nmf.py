"""Non-negative matrix factorisation, plain and with a graph of the samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from cv_core.checks import check_choice, check_integer, check_range
from cv_core.numerics.affinity import check_affinity, knn_affinity
from jaxtyping import Float
from torch import Tensor

from cv_factorization._shared.arrays import coo_tensor
from cv_factorization.nonnegative.base import NonnegativeCoding, Run
from cv_factorization.nonnegative.start import given_factors, nndsvda, uniform_factors
from cv_factorization.nonnegative.steps import (
    STEPS,
    code_sweeps,
    descend,
    divergence,
    divergence_sweeps,
    fit_value,
    floor_of,
    frobenius_sweeps,
    multiply_,
    product,
    square_sum,
    transposed,
)

Init = Literal["nndsvda", "random"] | tuple[Any, Any] | None


def check_init(owner: str, init: Any) -> None:
    """Refuse what is neither the name of a start, nor a pair of factors, nor ``None``."""
    if init is None or (isinstance(init, tuple | list) and len(init) == 2):
        return
    if isinstance(init, str):
        check_choice(owner, "init", init, ("nndsvda", "random"))
        return
    raise ValueError(
        f"{owner}: init must be 'nndsvda', 'random', None or a pair (atoms, codes); got "
        f"{type(init).__name__}."
    )


def start(
    owner: str, init: Init, X: Tensor, scale: float, n_components: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m n"]]:
    """Return atoms and codes to start from, for data that have been divided by ``scale``."""
    if init is None:
        init = "nndsvda" if n_components <= min(X.shape) else "random"
    if init == "nndsvda":
        if n_components > min(X.shape):
            raise ValueError(
                f"{owner}: init='nndsvda' needs n_components <= min(n_samples, n_features), "
                f"{min(X.shape)}; got {n_components}. Use init='random'."
            )
        return nndsvda(X, n_components, rng)
    if init == "random":
        return uniform_factors(X, n_components, rng)
    U, C = given_factors(owner, init, X, n_components)
    return U / scale**0.5, C / scale**0.5


class NMF(NonnegativeCoding):
    r"""Non-negative matrix factorisation (Lee and Seung, Nature 1999; Cichocki and Phan, 2009).

    .. math:: \min_{U, V \ge 0}\; \|X - VU\|_F^2 \quad\text{or}\quad
        \sum_{ij} X_{ij} \log\frac{X_{ij}}{(VU)_{ij}} - X_{ij} + (VU)_{ij}

    with samples as rows of X (n, d), atoms U (m, d) and codes V (n, m). A sweep updates atoms, then
    codes; no solver's sweep raises the objective beyond rounding.

    D. D. Lee, H. S. Seung: Learning the parts of objects by non-negative matrix factorization.
    Nature 401, 1999 (``"mu"``). A. Cichocki, A.-H. Phan: Fast local algorithms for large scale
    nonnegative matrix and tensor factorizations. IEICE Trans. Fundamentals E92-A(3), 2009
    (``"hals"``). C.-J. Lin: Projected gradient methods for nonnegative matrix factorization. Neural
    Computation 19(10), 2007 (``"pg"``).

    Args:
        n_components: Components m; may exceed the size of the data.
        solver: ``"hals"`` minimises over one component at a time, the fastest; ``"mu"`` multiplies,
            so that a zero stays zero; ``"pg"`` takes projected gradient steps.
        beta_loss: ``"frobenius"``, or ``"kullback-leibler"``, which only ``"mu"`` can minimise.
        init: ``"nndsvda"`` (from singular vectors), ``"random"``, or a pair (atoms, codes);
            ``None`` takes the first where n_components <= min(n, d), else the second.
        max_iter: Most sweeps.
        tol: Sweeps end once one lowers the objective by this share or less; 0 takes them all.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (m, d) the atoms.
        embedding_: (n, m) the codes of the training samples.
        objective_: (n_iter_ + 1,) the objective at the start and after each sweep.
        reconstruction_err_: :math:`\|X - VU\|_F`, or the root of twice the divergence.
        n_iter_: Sweeps taken.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the papers: projected gradient takes steps of length 1 / L, ten per sweep and
    factor, instead of a line search; denominators are at least the square of rounding, for data
    that are divided by their largest entry. scikit-learn's objective is half of this one.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).random((30, 12))
        >>> model = NMF(4, max_iter=500, random_state=0).fit(X)
        >>> model.embedding_.shape, model.components_.shape
        ((30, 4), (4, 12))
        >>> np.allclose(model.transform(X), model.embedding_, atol=0.05)
        True
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        solver: Literal["hals", "mu", "pg"] = "hals",
        beta_loss: Literal["frobenius", "kullback-leibler"] = "frobenius",
        init: Init = None,
        max_iter: int = 200,
        tol: float = 1e-4,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.beta_loss = beta_loss
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @property
    def _power(self) -> int:  # type: ignore[override]
        return 2 if self.beta_loss == "frobenius" else 1

    def _check_options(self) -> None:
        super()._check_options()
        owner = type(self).__name__
        check_choice(owner, "solver", self.solver, tuple(STEPS))
        check_choice(owner, "beta_loss", self.beta_loss, ("frobenius", "kullback-leibler"))
        if self.beta_loss == "kullback-leibler" and self.solver != "mu":
            raise ValueError(
                f"{owner}: beta_loss='kullback-leibler' needs solver='mu'; got {self.solver!r}."
            )
        check_init(owner, self.init)

    def _begin(self, X: Tensor, scale: float, rng: np.random.Generator) -> Run:
        U, C = start(type(self).__name__, self.init, X, scale, self.n_components, rng)
        if self.beta_loss == "frobenius":
            return Run(U, C, frobenius_sweeps(X, U, C, STEPS[self.solver]))
        return Run(U, C, divergence_sweeps(X, U, C))

    def _codes(self, X: Tensor, U: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        if self.beta_loss == "frobenius":
            return super()._codes(X, U)
        # the best multiple of equal codes; multiplication leaves no trace of their size later on
        total = X.sum(dim=1)
        C = (total.to_dense() if total.is_sparse else total) / U.sum().clamp(min=floor_of(U.dtype))
        C = C.expand(len(U), -1).contiguous()
        descend(code_sweeps(X, U, C), self.max_iter, self.tol)
        return C.mT.contiguous()

    def _error(self, X: Tensor, U: Tensor, C: Tensor) -> float:
        if self.beta_loss == "frobenius":
            return super()._error(X, U, C)
        return float(np.sqrt(2 * divergence(X, C, U)[1]))


class GNMF(NonnegativeCoding):
    r"""Graph regularised non-negative matrix factorisation (Cai, He, Han, Huang, TPAMI 2011).

    .. math::
        \min_{U, V \ge 0}\; \|X - VU\|_F^2 + \lambda\, \mathrm{tr}(V^\top L V), \qquad
        V \leftarrow V \odot \frac{XU^\top + \lambda W V}{V U U^\top + \lambda D V}

    :math:`L = D - W` is the Laplacian of a nearest-neighbour graph: codes of neighbours are drawn
    together. Atoms are updated as in NMF, which is the case :math:`\lambda = 0`.

    D. Cai, X. He, J. Han, T. S. Huang: Graph Regularized Nonnegative Matrix Factorization for Data
    Representation. IEEE TPAMI 33(8), 2011, pp. 1548-1560.

    Args:
        n_components: Components m.
        lam_graph: :math:`\lambda \ge 0`.
        n_neighbors: Neighbours of each sample in the graph; at most all others.
        affinity: ``"heat"``, ``"binary"`` or ``"cosine"`` as in ``cv_core.numerics.affinity``, or
            W itself, (n, n) symmetric and non-negative, an array or a sparse matrix. A graph of
            sparse data is searched in a dense copy of them.
        init: How to start, as in ``NMF``.
        max_iter: Most sweeps.
        tol: Sweeps end once one lowers the objective by this share or less; 0 takes them all.
        normalize: ``"u_columns"`` gives atoms unit length after every sweep and scales the codes
            against it; the objective may then rise, and the penalty cannot be escaped by codes that
            shrink while atoms grow.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (m, d) the atoms.
        embedding_: (n, m) the codes of the training samples. They felt the graph; ``transform``,
            a non-negative least-squares fit of each row alone, does not, and differs.
        objective_: (n_iter_ + 1,) the objective at the start and after each sweep.
        reconstruction_err_: :math:`\|X - VU\|_F`.
        n_iter_: Sweeps taken.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: it scales atoms to unit length once, at the end; here that is
    ``normalize``, in every sweep, or not at all.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).random((30, 12))
        >>> GNMF(4, random_state=0).fit_transform(X).shape
        (30, 4)
    """

    _min_samples = 2

    def __init__(
        self,
        n_components: int = 10,
        *,
        lam_graph: float = 1.0,
        n_neighbors: int = 5,
        affinity: Any = "heat",
        init: Init = None,
        max_iter: int = 500,
        tol: float = 1e-4,
        normalize: Literal["u_columns"] | None = None,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_components = n_components
        self.lam_graph = lam_graph
        self.n_neighbors = n_neighbors
        self.affinity = affinity
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.normalize = normalize
        self.random_state = random_state

    def _check_options(self) -> None:
        super()._check_options()
        owner = type(self).__name__
        check_range(owner, "lam_graph", self.lam_graph, low=0)
        check_integer(owner, "n_neighbors", self.n_neighbors, low=1)
        check_choice(owner, "normalize", self.normalize, (None, "u_columns"))
        if isinstance(self.affinity, str):
            check_choice(owner, "affinity", self.affinity, ("heat", "binary", "cosine"))
        check_init(owner, self.init)

    def _begin(self, X: Tensor, scale: float, rng: np.random.Generator) -> Run:
        W = self._graph(X)
        U, C = start(type(self).__name__, self.init, X, scale, self.n_components, rng)
        if self.normalize:
            _unit_atoms_(U, C)
        # the fit of X / s is s ** -2 of X's, the penalty of codes that took half of s is 1 / s
        sweeps = graph_sweeps(X, U, C, W * (self.lam_graph / scale), unit=bool(self.normalize))
        return Run(U, C, sweeps)

    def _graph(self, X: Tensor) -> Tensor:
        if isinstance(self.affinity, str):
            dense = X.to_dense() if X.is_sparse else X
            W = knn_affinity(
                dense.cpu().double().numpy(),
                min(self.n_neighbors, len(X) - 1),
                weight=self.affinity,  # type: ignore[arg-type] # checked
            )
        else:
            W = check_affinity(type(self).__name__, "affinity", self.affinity, n=len(X))
        return coo_tensor(W).to(X.device, X.dtype)


def graph_sweeps(
    X: Tensor,
    U: Float[Tensor, "m d"],
    C: Float[Tensor, "m n"],
    W: Float[Tensor, "n n"],
    *,
    unit: bool,
) -> Iterator[float]:
    """Update atoms, then codes with the pull of a graph, for ever.

    Args:
        X: Samples.
        U: Atoms, changed in place.
        C: Codes, changed in place.
        W: Sparse affinities, times the weight of the penalty.
        unit: Whether atoms get unit length after every sweep.

    Yields:
        The objective at the start and after every sweep.
    """
    Xt, norm = transposed(X), square_sum(X)
    degrees = (W @ torch.ones_like(C[:1]).mT)[:, 0]

    def objective() -> float:
        fit = fit_value(norm, C, product(U, X), U @ U.mT)
        drawn = C * (degrees * C - product(C, W))
        return fit + max(float(drawn.sum(dtype=torch.float64)), 0.0)

    yield objective()
    while True:
        multiply_(U, product(C, Xt), C @ C.mT)
        rising = (U @ U.mT) @ C + degrees * C
        C *= (product(U, X) + product(C, W)) / rising.clamp(min=floor_of(C.dtype))
        if unit:
            _unit_atoms_(U, C)
        yield objective()


def _unit_atoms_(U: Float[Tensor, "m d"], C: Float[Tensor, "m n"]) -> None:
    """Give every atom unit length and scale its codes against it; the product stays."""
    length = torch.linalg.vector_norm(U, dim=1, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
    U /= length
    C *= length
