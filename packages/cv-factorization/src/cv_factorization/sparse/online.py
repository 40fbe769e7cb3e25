"""Online dictionary learning: a dictionary for codes with an L1 penalty, batch by batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_choice, check_integer, check_range
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cv_factorization._shared.arrays import as_samples, like_given
from cv_factorization.sparse.atoms import Array, as_atoms, decode, starting_atoms, unit_rows
from cv_factorization.sparse.coding import lasso_cd, lasso_fista


class OnlineDictionaryLearning(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Online dictionary learning (Mairal, Bach, Ponce, Sapiro).

    .. math::
        \min_D \frac1n \sum_i \min_{a_i} \tfrac12 \|x_i - a_i D\|^2 + \alpha \|a_i\|_1
        \quad\text{with}\quad \|d_j\| \le 1

    Mairal, Bach, Ponce, Sapiro: Online Learning for Matrix Factorization and Sparse Coding. JMLR
    11, 2010. Each batch is coded by FISTA; the sums :math:`P = \sum a_i^\top a_i` and
    :math:`Q = \sum a_i^\top x_i` hold all that the atoms need to know of the past, and one pass of
    block descent over the atoms, :math:`d_j \leftarrow \Pi(d_j + (Q_j - P_j D) / P_{jj})`, lowers
    the surrogate :math:`\tfrac12 \mathrm{tr}(D^\top P D) - \mathrm{tr}(D^\top Q)`. Before batch t
    joins them, both sums shrink by :math:`(1 - 1/t)^\rho`.

    Takes NumPy arrays and tensors; what is learned is of the kind, type and device of X.

    Args:
        n_components: Atoms; by default as many as features.
        alpha: Weight :math:`\alpha` of the penalty.
        batch_size: Samples per batch in ``fit``.
        max_iter: Most passes over the data in ``fit``.
        tol: Passes end once one lowers the mean objective by this share or less; 0 takes them all.
        code_iter: FISTA iterations for the codes of a batch.
        forgetting: :math:`\rho \ge 0`; 0 forgets nothing.
        positive_codes: Whether codes must be at least 0.
        positive_atoms: Whether atoms must be at least 0.
        init: Atoms to start from (m, d), or ``"samples"``: samples in random order.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (m, d) the atoms, at most of unit length.
        objective_: (n_iter_,) mean objective of the samples over each pass (each batch with the
            atoms as they were when it came), or after ``partial_fit`` over each batch.
        n_iter_: Passes taken.
        n_steps_: Batches seen.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: codes are not exact, which the sums average out; atoms that are not
    used any more are replaced by samples of the batch.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((500, 16))
        >>> model = OnlineDictionaryLearning(32, alpha=0.5, max_iter=3, random_state=0).fit(X)
        >>> bool(model.objective_[-1] < model.objective_[0])
        True
    """

    components_: Any
    _P: Tensor
    _Q: Tensor

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1.0,
        batch_size: int = 256,
        max_iter: int = 100,
        tol: float = 1e-3,
        code_iter: int = 10,
        forgetting: float = 10.0,
        positive_codes: bool = False,
        positive_atoms: bool = False,
        init: Any = "samples",
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.code_iter = code_iter
        self.forgetting = forgetting
        self.positive_codes = positive_codes
        self.positive_atoms = positive_atoms
        self.init = init
        self.random_state = random_state

    @torch.no_grad()
    def fit(self, X: Array, y: object = None) -> OnlineDictionaryLearning:  # noqa: ARG002
        """Learn the atoms afresh, in passes over the data in random order.

        Args:
            X: Samples as rows (n, d).
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X is not finite or an option is out of range.
        """
        self._check_options()
        rows = as_samples(self, X, reset=True)
        self._begin(rows)
        history: list[float] = []
        for _ in range(self.max_iter):
            order = torch.from_numpy(self._rng.permutation(len(rows))).to(rows.device)
            total = sum(self._step(rows[part]) for part in order.split(self.batch_size))
            history.append(total / len(rows))
            fall = history[-2] - history[-1] if len(history) > 1 else float("inf")
            if self.tol > 0 and fall <= self.tol * history[-1]:
                break
        return self._learned(X, history)

    @torch.no_grad()
    def partial_fit(self, X: Array, y: object = None) -> OnlineDictionaryLearning:  # noqa: ARG002
        """Learn from one batch, and go on from what was learned before.

        Args:
            X: Samples as rows (n, d): one batch, whatever ``batch_size`` says.
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X is not finite, has not the columns of earlier batches, or an option is
                out of range.
        """
        self._check_options()
        first = not hasattr(self, "components_")
        rows = as_samples(self, X, reset=first)
        if first:
            self._begin(rows)
        else:
            self._atoms = as_atoms(type(self).__name__, "components_", self.components_, rows)
            self._P, self._Q = self._P.to(rows), self._Q.to(rows)
        history = [] if first else self.objective_.tolist()
        history.append(self._step(rows) / len(rows))
        return self._learned(X, history)

    @torch.no_grad()
    def transform(self, X: Array) -> Any:
        """Return the codes of samples: the lasso's solutions by coordinate descent.

        Args:
            X: Samples as rows (n, d).

        Returns:
            Codes (n, m).

        Raises:
            ValueError: If X is not finite or has not the columns of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        rows = as_samples(self, X, reset=False)
        atoms = as_atoms(type(self).__name__, "components_", self.components_, rows)
        return like_given(lasso_cd(rows, atoms, self.alpha, positive=self.positive_codes), X)

    def inverse_transform(self, codes: Array) -> Any:
        """Return what codes (n, m) stand for: ``codes @ components_``, of the codes' kind."""
        check_is_fitted(self)
        return decode(type(self).__name__, codes, self.components_)

    def _check_options(self) -> None:
        owner = type(self).__name__
        if self.n_components is not None:
            check_integer(owner, "n_components", self.n_components, low=1)
        check_range(owner, "alpha", self.alpha, low=0.0)
        check_integer(owner, "batch_size", self.batch_size, low=1)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0.0)
        check_integer(owner, "code_iter", self.code_iter, low=1)
        check_range(owner, "forgetting", self.forgetting, low=0.0)
        if isinstance(self.init, str):
            check_choice(owner, "init", self.init, ("samples",))

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _begin(self, X: Tensor) -> None:
        count = X.shape[1] if self.n_components is None else self.n_components
        self._rng = np.random.default_rng(self.random_state)
        self._atoms = starting_atoms(type(self).__name__, X, count, self.init, self._rng)
        if self.positive_atoms:
            self._atoms = unit_rows(self._atoms.clamp(min=0.0))[0]
        self._P = X.new_zeros(count, count)
        self._Q = X.new_zeros(count, X.shape[1])
        self.n_steps_ = 0

    def _learned(self, X: Array, history: list[float]) -> OnlineDictionaryLearning:
        self.objective_ = np.array(history)
        self.n_iter_ = len(history)
        self.components_ = like_given(self._atoms, X)
        return self

    def _step(self, batch: Tensor) -> float:
        """Take one batch; return its objective with the atoms as they were."""
        codes = lasso_fista(
            batch,
            self._atoms,
            self.alpha,
            positive=self.positive_codes,
            max_iter=self.code_iter,
            tol=0.0,
        )
        P, Q = codes.mT @ codes, codes.mT @ batch
        error = batch.square().sum() - 2 * (Q * self._atoms).sum()
        error = error + (P * (self._atoms @ self._atoms.mT)).sum()
        objective = 0.5 * max(float(error), 0.0) + self.alpha * float(codes.abs().sum())
        self.n_steps_ += 1
        keep = (1.0 - 1.0 / self.n_steps_) ** self.forgetting if self.n_steps_ > 1 else 0.0
        self._P.mul_(keep).add_(P)
        self._Q.mul_(keep).add_(Q)
        self._atoms = self._atoms.clone()  # the last batch's are the user's
        update_atoms_(self._atoms, self._P, self._Q, positive=self.positive_atoms)
        self._replace_unused(batch)
        return objective

    def _replace_unused(self, batch: Tensor) -> None:
        """Give atoms that the sums have forgotten the directions of samples."""
        use = self._P.diagonal()
        unused = (use <= 1e-6 * use.max()).nonzero()[:, 0]
        if not len(unused):
            return
        drawn = self._rng.choice(len(batch), size=len(unused))
        atoms = unit_rows(batch[torch.from_numpy(drawn).to(batch.device)])[0]
        if self.positive_atoms:
            atoms = unit_rows(atoms.clamp(min=0.0))[0]
        self._atoms[unused] = torch.where(
            atoms.any(dim=1, keepdim=True), atoms, self._atoms[unused]
        )
        self._P[unused] = self._P[:, unused] = 0.0
        self._Q[unused] = 0.0


def update_atoms_(
    atoms: Float[Tensor, "m d"],
    P: Float[Tensor, "m m"],
    Q: Float[Tensor, "m d"],
    *,
    positive: bool = False,
) -> None:
    """Lower the surrogate by exact minimisation over one atom at a time, in place.

    Args:
        atoms: The atoms, at most of unit length, and so they stay.
        P: Sum of the codes' outer products.
        Q: Sum of codes times samples.
        positive: Whether atoms must be at least 0.
    """
    # in the fewest calls: each takes longer to begin than to compute
    sums = zip(P.diagonal().tolist(), P.unbind(), Q.unbind(), strict=True)
    for atom, (use, products, wanted) in zip(atoms.unbind(), sums, strict=True):
        if use <= 0.0:
            continue
        atom.add_(torch.addmv(wanted, atoms.mT, products, alpha=-1), alpha=1.0 / use)
        if positive:
            atom.clamp_(min=0.0)
        square = float(atom.dot(atom))
        if square > 1.0:
            atom.div_(math.sqrt(square))
