"""Codes with an L1 penalty by descent; all kinds of codes as one function and one estimator."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple, get_args

import torch
from cv_core.checks import check_choice, check_integer, check_range, check_shape
from cv_core.numerics import descent
from cv_core.numerics.proximal import prox_l1
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cv_factorization._shared.arrays import as_samples, like_given
from cv_factorization.sparse.atoms import Array, as_atoms, decode, unit_rows
from cv_factorization.sparse.pursuit import BLOCK, check_inputs, most_nonzeros, omp

Algorithm = Literal["omp", "lasso_cd", "lasso_fista", "lasso_ista"]


class _Problem(NamedTuple):
    """Lasso problems of many samples: minimise aGa'/2 - ac' + weight |a|_1 over each row a."""

    gram: Float[Tensor, "m m"]
    products: Float[Tensor, "n m"]
    start: Float[Tensor, "n m"]


@torch.no_grad()
def lasso_cd(
    X: Float[Tensor, "n d"],
    dictionary: Float[Tensor, "m d"],
    alpha: float,
    *,
    positive: bool = False,
    start: Float[Tensor, "n m"] | None = None,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> Float[Tensor, "n m"]:
    r"""Lasso codes by coordinate descent: exact minimisation over one atom's codes at a time.

    .. math:: \min_a \tfrac12 \|x - aD\|^2 + \alpha \|a\|_1

    All samples take the same coordinate at the same time, each until it has converged on its own;
    no sweep raises a sample's objective (Friedman, Hastie, Höfling, Tibshirani: Pathwise Coordinate
    Optimization, Annals of Applied Statistics 1(2), 2007).

    Args:
        X: Samples as rows.
        dictionary: Atoms as rows :math:`D`, of any length; those of zeros get the code 0.
        alpha: Weight of the penalty, at least 0, as in ``sklearn.decomposition.sparse_encode`` (and
            d times that of ``sklearn.linear_model.Lasso``).
        positive: Whether codes must be at least 0.
        start: Where to start, zeros by default.
        max_iter: Most sweeps over the atoms.
        tol: A sample has converged once a sweep finds no condition of optimality violated by more
            than this share of its largest product with an atom (of unit length; not asking for less
            than a few roundings); 0 takes all sweeps.

    Returns:
        The codes.

    Raises:
        ValueError: For shapes that do not fit, NaN, or options out of range.

    Warns:
        sklearn.exceptions.ConvergenceWarning: If ``max_iter`` was too few for some sample.

    Example:
        >>> lasso_cd(torch.tensor([[3.0, -0.5]]), torch.eye(2), 1.0)
        tensor([[2., 0.]])
    """
    _check_lasso("lasso_cd", X, dictionary, alpha, start, max_iter, tol)
    atoms, lengths = unit_rows(dictionary)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    gram = atoms @ atoms.mT
    others = gram - torch.diag(gram.diagonal())
    weights = (alpha / lengths).tolist()
    codes = torch.zeros_like(X[:, :1].expand(-1, len(atoms))) if start is None else start * lengths
    rows = max(1, BLOCK.get(X.device.type, BLOCK["cuda"]) // len(atoms))
    converged = True
    for begin in range(0, len(X), rows):
        part = slice(begin, begin + rows)
        products = X[part] @ atoms.mT
        codes[part], done = _descend(
            others, products, codes[part], weights, positive=positive, max_iter=max_iter, tol=tol
        )
        converged = converged and done
    _warn_unless(converged, "lasso_cd", max_iter, tol)
    return codes / lengths


def _descend(
    others: Float[Tensor, "m m"],
    products: Float[Tensor, "n m"],
    start: Float[Tensor, "n m"],
    weights: list[float],
    *,
    positive: bool,
    max_iter: int,
    tol: float,
) -> tuple[Float[Tensor, "n m"], bool]:
    """Sweep over the coordinates; samples that have converged are left out from then on."""
    result = start.clone()
    going = torch.arange(len(start), device=start.device)
    target = products.mT.contiguous()  # an atom's entries side by side
    codes = start.mT.contiguous()
    for _ in range(max_iter):
        before = codes.clone()
        pull = torch.empty_like(codes[0])
        for k, weight in enumerate(weights):
            torch.addmv(target[k], codes.mT, others[k], alpha=-1, out=pull)
            if positive:
                torch.clamp(pull.sub_(weight), min=0.0, out=codes[k])
            else:
                torch.sub(pull, pull.clamp(-weight, weight), out=codes[k])  # no negative zeros
        # what a coordinate moves by is what its condition of optimality was violated by
        moved = (codes - before).abs().amax(dim=0)
        open_ = moved > _reachable(tol, codes) * target.abs().amax(dim=0)
        result[going] = codes.mT
        if not bool(open_.any()):
            return result, True
        if not bool(open_.all()):
            going, codes = going[open_], codes[:, open_].contiguous()
            target = target[:, open_].contiguous()
    return result, False


@torch.no_grad()
def lasso_ista(
    X: Float[Tensor, "n d"],
    dictionary: Float[Tensor, "m d"],
    alpha: float,
    *,
    positive: bool = False,
    start: Float[Tensor, "n m"] | None = None,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> Float[Tensor, "n m"]:
    """Lasso codes by proximal gradient steps (``cv_core.numerics.descent.ista``) with step 1/L.

    The objective falls in every iteration. Arguments are those of ``lasso_cd``; here ``tol`` is the
    least relative step of all codes together.

    Args:
        X: Samples as rows.
        dictionary: Atoms as rows.
        alpha: Weight of the penalty.
        positive: Whether codes must be at least 0.
        start: Where to start, zeros by default.
        max_iter: Most iterations.
        tol: Tolerance.

    Returns:
        The codes.
    """
    _check_lasso("lasso_ista", X, dictionary, alpha, start, max_iter, tol)
    problem, options = _smooth_problem(X, dictionary, alpha, start, positive=positive)
    found = descent.ista(problem.start, **options, max_iter=max_iter, tol=_reachable(tol, X))
    _warn_unless(found.converged, "lasso_ista", max_iter, tol)
    return found.solution


@torch.no_grad()
def lasso_fista(
    X: Float[Tensor, "n d"],
    dictionary: Float[Tensor, "m d"],
    alpha: float,
    *,
    positive: bool = False,
    start: Float[Tensor, "n m"] | None = None,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> Float[Tensor, "n m"]:
    """Lasso codes by accelerated proximal gradient steps, restarted where momentum points uphill.

    ``cv_core.numerics.descent.fista`` with step 1/L. Arguments are those of ``lasso_cd``; here
    ``tol`` is the least relative step of all codes together.

    Args:
        X: Samples as rows.
        dictionary: Atoms as rows.
        alpha: Weight of the penalty.
        positive: Whether codes must be at least 0.
        start: Where to start, zeros by default.
        max_iter: Most iterations.
        tol: Tolerance.

    Returns:
        The codes.
    """
    _check_lasso("lasso_fista", X, dictionary, alpha, start, max_iter, tol)
    problem, options = _smooth_problem(X, dictionary, alpha, start, positive=positive)
    found = descent.fista(
        problem.start, **options, restart="gradient", max_iter=max_iter, tol=_reachable(tol, X)
    )
    _warn_unless(found.converged, "lasso_fista", max_iter, tol)
    return found.solution


def _smooth_problem(
    X: Tensor, dictionary: Tensor, alpha: float, start: Tensor | None, *, positive: bool
) -> tuple[_Problem, dict[str, Any]]:
    gram = dictionary @ dictionary.mT
    products = X @ dictionary.mT
    problem = _Problem(gram, products, torch.zeros_like(products) if start is None else start)

    def prox(codes: Tensor, step: float) -> Tensor:
        return (codes - step * alpha).clamp(min=0.0) if positive else prox_l1(codes, step * alpha)

    return problem, {
        "gradient": lambda codes: torch.addmm(products, codes, gram, beta=-1),
        "prox": prox,
        "step": 1.0 / spectral_bound(gram),
    }


def spectral_bound(gram: Float[Tensor, "m m"]) -> float:
    r"""Return a bound of the largest eigenvalue of a Gram matrix, at most a seventh too large.

    :math:`\lambda_{\max} \le (\sum \lambda_i^{32})^{1/32}`, by squaring: no iteration that may stop
    too early, and far cheaper than the eigenvalues. It exceeds the truth by the 32nd root of the
    rank at the most: 14 % at rank 64. A matrix of zeros gives 1, for which any step will do.
    """
    bound, power = 1.0, gram
    for exponent in (1, 2, 4, 8, 16):
        size = float(torch.linalg.matrix_norm(power))
        if size == 0.0:
            return 1.0
        bound *= size ** (1.0 / exponent)
        power = power / size
        if exponent < 16:
            power = power @ power
    return bound


def lasso_objective(
    X: Float[Tensor, "n d"],
    dictionary: Float[Tensor, "m d"],
    codes: Float[Tensor, "n m"],
    alpha: float,
) -> Float[Tensor, " n"]:
    r"""Return :math:`\tfrac12 \|x - aD\|^2 + \alpha \|a\|_1` of every sample."""
    fit = (X - codes @ dictionary).square().sum(dim=1)
    return 0.5 * fit + alpha * codes.abs().sum(dim=1)


def sparse_encode(
    X: Float[Tensor, "n d"],
    dictionary: Float[Tensor, "m d"],
    *,
    algorithm: Algorithm = "omp",
    n_nonzero: int | None = None,
    alpha: float = 1.0,
    positive: bool = False,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> Float[Tensor, "n m"]:
    """Code samples by the atoms of a dictionary, by whichever algorithm.

    Args:
        X: Samples as rows.
        dictionary: Atoms as rows.
        algorithm: ``"omp"`` for few nonzeros, or a solver of the lasso: ``"lasso_cd"`` ends sample
            by sample, ``"lasso_fista"`` takes nothing but matrix products, which suits a GPU, and
            ``"lasso_ista"`` is its plain form.
        n_nonzero: Most nonzeros per sample, for ``"omp"``.
        alpha: Weight of the L1 penalty, for the lasso.
        positive: Whether codes must be at least 0, for the lasso.
        max_iter: Most iterations, for the lasso.
        tol: Tolerance, for the lasso.

    Returns:
        The codes.
    """
    check_choice("sparse_encode", "algorithm", algorithm, get_args(Algorithm))
    if algorithm == "omp":
        if positive:
            raise ValueError(
                "sparse_encode: positive codes are not supported by algorithm='omp'; take a lasso."
            )
        return omp(X, dictionary, n_nonzero=n_nonzero)
    solve = {"lasso_cd": lasso_cd, "lasso_fista": lasso_fista, "lasso_ista": lasso_ista}[algorithm]
    return solve(X, dictionary, alpha, positive=positive, max_iter=max_iter, tol=tol)


def _check_lasso(
    owner: str,
    X: Tensor,
    dictionary: Tensor,
    alpha: float,
    start: Tensor | None,
    max_iter: int,
    tol: float,
) -> None:
    check_inputs(owner, X, dictionary)
    check_range(owner, "alpha", alpha, low=0.0)
    check_integer(owner, "max_iter", max_iter, low=1)
    check_range(owner, "tol", tol, low=0.0)
    if start is not None:
        check_shape(owner, "start", start, "n m", n=len(X), m=len(dictionary))


def _reachable(tol: float, like: Tensor) -> float:
    """Return a tolerance that rounding lets an iteration reach; 0, for all iterations, stays."""
    return max(tol, 10 * torch.finfo(like.dtype).eps) if tol > 0 else tol


def _warn_unless(converged: bool, owner: str, max_iter: int, tol: float) -> None:  # noqa: FBT001
    if not converged and tol > 0:
        warnings.warn(
            f"{owner}: tol={tol:g} was not reached in max_iter={max_iter} iterations. Raise "
            "either, or set tol=0 to take all iterations.",
            ConvergenceWarning,
            stacklevel=3,
        )


class SparseCoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Sparse codes of samples by a fixed dictionary, as an estimator.

    Takes NumPy arrays and tensors; codes are of the kind, type and device of the samples.

    Args:
        dictionary: Atoms as rows (m, d), array or tensor. ``None`` takes the samples given to
            ``fit`` at unit length, for classification by sparse representation (Wright, Yang,
            Ganesh, Sastry, Ma: Robust Face Recognition via Sparse Representation, TPAMI 31(2),
            2009).
        algorithm: ``"omp"``, ``"lasso_cd"``, ``"lasso_fista"`` or ``"lasso_ista"``; see
            ``sparse_encode``.
        n_nonzero: Most nonzeros per sample, for ``"omp"``; by default a tenth of the features, at
            least 1.
        alpha: Weight of the L1 penalty, for the lasso.
        positive: Whether codes must be at least 0, for the lasso.
        max_iter: Most iterations, for the lasso.
        tol: Tolerance, for the lasso.

    Attributes:
        components_: (m, d) the atoms.
        n_iter_: 1, for scikit-learn's conventions: nothing is learned.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Example:
        >>> import numpy as np
        >>> coder = SparseCoder(np.eye(3), n_nonzero=1)
        >>> coder.fit_transform(np.array([[1.0, 4.0, 2.0]]))
        array([[0., 4., 0.]])
    """

    def __init__(
        self,
        dictionary: Array | None = None,
        *,
        algorithm: Algorithm = "omp",
        n_nonzero: int | None = None,
        alpha: float = 1.0,
        positive: bool = False,
        max_iter: int = 1000,
        tol: float = 1e-4,
    ) -> None:
        self.dictionary = dictionary
        self.algorithm = algorithm
        self.n_nonzero = n_nonzero
        self.alpha = alpha
        self.positive = positive
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Array, y: object = None) -> SparseCoder:  # noqa: ARG002 - scikit-learn's
        """Check the options and take the atoms.

        Args:
            X: Samples as rows (n, d); their values matter only without a dictionary.
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X or the dictionary is not finite, or they do not fit each other.
        """
        owner = type(self).__name__
        rows = as_samples(self, X, reset=True)
        atoms = (
            unit_rows(rows)[0]
            if self.dictionary is None
            else as_atoms(owner, "dictionary", self.dictionary, rows)
        )
        check_choice(owner, "algorithm", self.algorithm, get_args(Algorithm))
        most_nonzeros(owner, self.n_nonzero, atoms)
        self.components_ = like_given(atoms, X)
        self.n_iter_ = 1
        return self

    def transform(self, X: Array) -> Any:
        """Return the codes of samples.

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
        codes = sparse_encode(
            rows,
            as_atoms(type(self).__name__, "components_", self.components_, rows),
            algorithm=self.algorithm,
            n_nonzero=self.n_nonzero,
            alpha=self.alpha,
            positive=self.positive,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        return like_given(codes, X)

    def inverse_transform(self, codes: Array) -> Any:
        """Return what codes (n, m) stand for: ``codes @ components_``, of the codes' kind."""
        check_is_fitted(self)
        return decode(type(self).__name__, codes, self.components_)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)
