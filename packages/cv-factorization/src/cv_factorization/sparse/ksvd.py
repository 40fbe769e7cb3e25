"""K-SVD: a dictionary for codes with a fixed number of nonzeros."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from cv_core.checks import check_choice, check_integer, check_range
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cv_factorization._shared.arrays import as_samples, like_given
from cv_factorization.sparse.atoms import Array, as_atoms, decode, starting_atoms, unit_rows
from cv_factorization.sparse.pursuit import most_nonzeros, pursue


class KSVD(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""K-SVD: atoms and codes with at most k nonzeros per sample (Aharon, Elad, Bruckstein).

    .. math:: \min_{A, D} \|X - AD\|_F^2 \quad\text{with}\quad \|a_i\|_0 \le k,\; \|d_j\| = 1

    Aharon, Elad, Bruckstein: K-SVD: An Algorithm for Designing Overcomplete Dictionaries for Sparse
    Representation. IEEE TSP 54(11), 2006. Each iteration codes all samples by orthogonal matching
    pursuit, then takes the atoms in turn: the samples that use atom j, less all other atoms, are
    the matrix E, and :math:`g d_j^\top` becomes its best approximation of rank one.

    Takes NumPy arrays and tensors; what is learned is of the kind, type and device of X.

    Args:
        n_components: Atoms; by default as many as features.
        n_nonzero: Most nonzeros k of a code; by default a tenth of the features, at least 1.
        update: ``"approximate"`` takes one alternating step, :math:`d = E^\top g / \|E^\top g\|`,
            :math:`g = E d` (Rubinstein, Zibulevsky, Elad 2008); ``"exact"`` the singular vectors.
        max_iter: Most iterations.
        tol: Iterations end once one lowers the objective by this share or less; 0 takes them all.
        init: Atoms to start from (m, d), or ``"samples"``: samples in random order.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (m, d) the atoms, at unit length.
        objective_: (n_iter_ + 1,) the squared error after the first coding and each iteration.
        n_iter_: Iterations taken.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: pursuit is greedy and may find worse codes than those a sample has;
    it then keeps its old ones, so that the objective never rises. An atom that no sample uses is
    replaced by the sample with the largest error.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((200, 16))
        >>> model = KSVD(32, n_nonzero=3, max_iter=5, random_state=0).fit(X)
        >>> int((model.transform(X) != 0).sum(axis=1).max())
        3
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        n_nonzero: int | None = None,
        update: Literal["approximate", "exact"] = "approximate",
        max_iter: int = 50,
        tol: float = 1e-3,
        init: Any = "samples",
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_components = n_components
        self.n_nonzero = n_nonzero
        self.update = update
        self.max_iter = max_iter
        self.tol = tol
        self.init = init
        self.random_state = random_state

    @torch.no_grad()
    def fit(self, X: Array, y: object = None) -> KSVD:  # noqa: ARG002 - scikit-learn's signature
        """Learn the atoms.

        Args:
            X: Samples as rows (n, d).
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X is not finite, an option is out of range, or a code would have more
                nonzeros than there are atoms.
        """
        self._check_options()
        rows = as_samples(self, X, reset=True)
        count = rows.shape[1] if self.n_components is None else self.n_components
        rng = np.random.default_rng(self.random_state)
        atoms = starting_atoms(type(self).__name__, rows, count, self.init, rng)
        n_nonzero = most_nonzeros(type(self).__name__, self.n_nonzero, atoms)
        self.objective_ = np.array(self._iterate(rows, atoms, n_nonzero))
        self.n_iter_ = len(self.objective_) - 1
        self.components_ = like_given(atoms, X)
        return self

    @torch.no_grad()
    def transform(self, X: Array) -> Any:
        """Return the codes of samples by orthogonal matching pursuit.

        Args:
            X: Samples as rows (n, d).

        Returns:
            Codes (n, m) with at most ``n_nonzero`` nonzeros in a row.

        Raises:
            ValueError: If X is not finite or has not the columns of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        rows = as_samples(self, X, reset=False)
        atoms = as_atoms(type(self).__name__, "components_", self.components_, rows)
        n_nonzero = most_nonzeros(type(self).__name__, self.n_nonzero, atoms)
        return like_given(pursue(rows, atoms, n_nonzero), X)

    def inverse_transform(self, codes: Array) -> Any:
        """Return what codes (n, m) stand for: ``codes @ components_``, of the codes' kind."""
        check_is_fitted(self)
        return decode(type(self).__name__, codes, self.components_)

    def _check_options(self) -> None:
        owner = type(self).__name__
        if self.n_components is not None:
            check_integer(owner, "n_components", self.n_components, low=1)
        check_choice(owner, "update", self.update, ("approximate", "exact"))
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0.0)
        if isinstance(self.init, str):
            check_choice(owner, "init", self.init, ("samples",))

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _iterate(self, X: Tensor, atoms: Tensor, n_nonzero: int) -> list[float]:
        """Learn atoms in place; return the course of the objective."""
        codes = pursue(X, atoms, n_nonzero)
        residual = X - codes @ atoms
        history = [float(residual.square().sum())]
        direction = best_direction if self.update == "exact" else next_direction
        for iteration in range(self.max_iter):
            if iteration > 0:
                _recode_(X, atoms, codes, residual, n_nonzero)
            for j in range(len(atoms)):
                _update_atom_(j, atoms, codes, residual, direction)
            _replace_unused_(X, atoms, codes, residual)
            history.append(float(residual.square().sum()))
            if self.tol > 0 and history[-2] - history[-1] <= self.tol * history[-1]:
                break
        return history


def _recode_(X: Tensor, atoms: Tensor, codes: Tensor, residual: Tensor, n_nonzero: int) -> None:
    """Pursue all samples anew; those whose error would rise keep their codes."""
    fresh = pursue(X, atoms, n_nonzero)
    left = X - fresh @ atoms
    better = left.square().sum(dim=1) < residual.square().sum(dim=1)
    codes[better] = fresh[better]
    residual[better] = left[better]


def next_direction(E: Float[Tensor, "n d"], codes: Float[Tensor, " n"]) -> Float[Tensor, " d"]:
    """Return the best direction for given codes, at unit length; zeros if none is best."""
    return unit_rows((codes @ E)[None])[0][0]


def best_direction(
    E: Float[Tensor, "n d"],
    codes: Float[Tensor, " n"],  # noqa: ARG001 - one signature
) -> Float[Tensor, " d"]:
    """Return the direction of the best approximation of rank one; zeros for a matrix of zeros."""
    _, values, right = torch.linalg.svd(E, full_matrices=False)
    return torch.where(values[0] > 0, right[0], 0.0)


def _update_atom_(j: int, atoms: Tensor, codes: Tensor, residual: Tensor, direction: Any) -> None:
    """Set an atom and its codes by one step on the samples that use it."""
    users = codes[:, j].nonzero()[:, 0]
    if not len(users):
        return
    own = codes[users, j]
    E = residual[users] + own[:, None] * atoms[j]
    new = direction(E, own)
    if not bool(new.any()):
        return
    atoms[j] = new
    own = E @ new
    codes[users, j] = own
    residual[users] = E - own[:, None] * new


def _replace_unused_(X: Tensor, atoms: Tensor, codes: Tensor, residual: Tensor) -> None:
    """Give atoms without a sample the directions of the samples with the largest errors."""
    unused = (~codes.any(dim=0)).nonzero()[:, 0]
    errors = residual.square().sum(dim=1)
    worst = errors.argsort(descending=True)[: len(unused)]
    worst = worst[errors[worst] > 0]
    atoms[unused[: len(worst)]] = unit_rows(X[worst])[0]
