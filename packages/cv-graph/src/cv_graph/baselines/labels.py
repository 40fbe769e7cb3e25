"""Labels spread along a prepared operator, without features and without training."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from cv_core.checks import check_integer, check_range, check_shape
from jaxtyping import Float, Int64
from torch import Tensor

from cv_graph.propagation import Propagation


def label_spreading(
    operator: Propagation,
    y: Int64[Tensor, " n"],
    *,
    alpha: float = 0.99,
    max_iter: int = 2000,
    tol: float = 1e-3,
) -> Float[Tensor, "n q"]:
    r"""Spread labels (Zhou, Bousquet, Lal, Weston, Schölkopf: Local and global consistency, 2003).

    :math:`F \leftarrow \alpha S F + (1 - \alpha) Y` until it rests, :math:`Y` the one-hot labels.
    On the operator of a graph without self-loops it equals scikit-learn's ``LabelSpreading``; on
    that of a hypergraph it is the transduction of Zhou, Huang, Schölkopf (NIPS 2006).

    Args:
        operator: :math:`S`, symmetric: ``graph_propagation(..., self_loops=False)`` or
            ``hypergraph_propagation(...)``.
        y: (n,) classes, -1 where unknown.
        alpha: Share of what comes from the neighbours, in (0, 1).
        max_iter: Most iterations.
        tol: Iterations end once the sum of all changes is below.

    Returns:
        (n, q) shares of the classes; zero for a node that no label reaches.

    Raises:
        ValueError: If an option is out of range, or no node has a class.
    """
    owner = "label_spreading"
    check_range(owner, "alpha", alpha, low=0, high=1, low_open=True, high_open=True)
    known = _one_hot(owner, operator, y)

    def step(shares: Tensor) -> Tensor:
        return alpha * operator(shares) + (1 - alpha) * known

    return _shares(_rest(owner, step, known, max_iter, tol))


def label_propagation(
    operator: Propagation,
    y: Int64[Tensor, " n"],
    *,
    max_iter: int = 2000,
    tol: float = 1e-3,
) -> Float[Tensor, "n q"]:
    r"""Propagate labels (Zhu, Ghahramani: Learning from labeled and unlabeled data, 2002).

    :math:`F \leftarrow P F` with known nodes put back to their class, until it rests. It equals
    scikit-learn's ``LabelPropagation`` on the same affinities.

    Args:
        operator: :math:`P`, with rows of sum 1: ``normalization="random-walk"``.
        y: (n,) classes, -1 where unknown.
        max_iter: Most iterations.
        tol: Iterations end once the sum of all changes is below.

    Returns:
        (n, q) shares of the classes; zero for a node that no label reaches.

    Raises:
        ValueError: If an option is out of range, or no node has a class.
    """
    owner = "label_propagation"
    known = _one_hot(owner, operator, y)
    is_known = (y >= 0)[:, None]

    def step(shares: Tensor) -> Tensor:
        return torch.where(is_known, known, _shares(operator(shares)))

    return _shares(_rest(owner, step, known, max_iter, tol))


def _one_hot(owner: str, operator: Propagation, y: Tensor) -> Tensor:
    n = check_shape(owner, "y", y, "n", n=operator.shape[0])["n"]
    if y.is_floating_point() or int(y.min()) < -1 or int(y.max()) < 0:
        raise ValueError(
            f"{owner}: y must hold classes from 0, at least one, and -1 where unknown; got "
            f"{y.dtype} from {y.min().item()} to {y.max().item()}."
        )
    values = operator.factors[0].values
    known = values.new_zeros(n, int(y.max()) + 1)
    labelled = (y >= 0).nonzero().flatten()
    known[labelled, y[labelled].long()] = 1.0
    return known


@torch.no_grad()
def _rest(
    owner: str, step: Callable[[Tensor], Tensor], start: Tensor, max_iter: int, tol: float
) -> Tensor:
    check_integer(owner, "max_iter", max_iter, low=1)
    check_range(owner, "tol", tol, low=0, low_open=True)
    shares = start
    for _ in range(max_iter):
        shares, last = step(shares), shares
        if float((shares - last).abs().sum()) < tol:
            return shares
    warnings.warn(
        f"{owner}: tol={tol:g} was not reached in max_iter={max_iter} iterations. Raise either.",
        RuntimeWarning,
        stacklevel=3,
    )
    return shares


def _shares(values: Tensor) -> Tensor:
    """Divide rows by their sums; a row of zeros stays."""
    total = values.sum(dim=1, keepdim=True)
    return values / torch.where(total > 0, total, 1.0)
