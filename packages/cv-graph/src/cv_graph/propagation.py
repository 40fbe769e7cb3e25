r"""Sparse propagation over graphs and hypergraphs, prepared once and reused over epochs.

A layer's costly part is a product with a fixed sparse matrix, and its gradient the product with the
transpose. Sorting the memberships into rows costs as much as the product, so it is done once, in
both directions: a :class:`Propagation` holds a chain of sparse factors, each with its transpose.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from cv_core.checks import check_choice, check_integer, check_shape
from jaxtyping import Float, Int
from torch import Tensor

from cv_graph.hypergraph import Hypergraph, check_pairs, check_weights

Normalization = Literal["symmetric", "random-walk"]
_NARROW = 2**31 - 1  # matrix libraries are several times faster with 32-bit indices


class Propagation:
    r"""A chain of sparse matrices, applied to node features, with its gradient prepared.

    ``P(x)`` computes :math:`F_1 F_2 \cdots F_k x`. Build one with :func:`hypergraph_propagation` or
    :func:`graph_propagation`, keep it, and hand it to a layer in place of the index.

    Args:
        factors: Sparse matrices in the order in which they are written, each with as many columns
            as the next has rows.

    Raises:
        ValueError: If there is no factor, or two do not fit.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> P = graph_propagation(edges, num_nodes=2, normalization="random-walk")
        >>> P(torch.tensor([[1.0], [3.0]]))
        tensor([[2.],
                [2.]])
    """

    def __init__(self, *factors: SparseFactor) -> None:
        if not factors:
            raise ValueError("Propagation: at least one factor is needed; got none.")
        for left, right in pairwise(factors):
            if left.shape[1] != right.shape[0]:
                raise ValueError(
                    f"Propagation: factors of shapes {left.shape} and {right.shape} do not fit."
                )
        self.factors = factors

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of the result and rows of what it takes."""
        return self.factors[0].shape[0], self.factors[-1].shape[1]

    @property
    def nnz(self) -> int:
        """Stored entries of all factors together."""
        return sum(factor.values.numel() for factor in self.factors)

    def transpose(self) -> Propagation:
        """Return the transposed operator."""
        return Propagation(*(factor.transpose() for factor in reversed(self.factors)))

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
        """Propagate node features.

        Args:
            x: (n, d) features on the factors' device; half precision is computed in the factors'
                type. NaN and infinity reach every node that a row's weights connect with them.

        Raises:
            ValueError: If shape, device or type do not fit.
        """
        check_shape("Propagation", "x", x, "n d", n=self.shape[1])
        values = self.factors[-1].values
        if x.device != values.device:
            raise ValueError(
                f"Propagation: x is on {x.device}, the operator on {values.device}. "
                f"Move it once with .to({str(x.device)!r})."
            )
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.to(values.dtype)
        if x.dtype != values.dtype:
            raise ValueError(
                f"Propagation: x is {x.dtype}, the operator {values.dtype}. "
                f"Convert it once with .to({x.dtype})."
            )
        for factor in reversed(self.factors):
            x = factor @ x
        return x

    def __repr__(self) -> str:
        return f"Propagation(shape={self.shape}, factors={len(self.factors)}, nnz={self.nnz})"

    def power(self, exponent: int) -> Propagation:
        """Return the operator that applies this one several times.

        Args:
            exponent: How often, from 1.

        Raises:
            ValueError: If the operator is not square or the exponent below 1.
        """
        check_integer("Propagation.power", "exponent", exponent, low=1)
        return Propagation(*(self.factors * exponent))

    def to(self, target: torch.device | str | torch.dtype) -> Propagation:
        """Return a copy on another device or in another floating-point type."""
        return Propagation(*(factor.to(target) for factor in self.factors))

    def dense(self) -> Float[Tensor, "m n"]:
        """Return the matrix itself: for small graphs and for tests."""
        return self(torch.eye(self.shape[1], dtype=self.factors[0].values.dtype,
                              device=self.factors[0].values.device))  # fmt: skip


class Rows(NamedTuple):
    """Compressed rows: where each begins, and the columns."""

    start: Tensor
    columns: Tensor


class Structure(NamedTuple):
    """Where a matrix has entries: its own rows and those of its transpose.

    ``order`` says, for each entry of the transpose, the place of the same entry in the matrix.
    """

    shape: tuple[int, int]
    rows: Rows
    columns: Rows
    order: Tensor

    def transpose(self) -> Structure:
        """Return the transpose's structure."""
        back = torch.empty_like(self.order)
        back[self.order] = torch.arange(len(back), dtype=back.dtype, device=back.device)
        return Structure((self.shape[1], self.shape[0]), self.columns, self.rows, back)

    def to(self, device: torch.device | str) -> Structure:
        """Return a copy on another device."""
        rows, columns = (
            Rows(*(part.to(device) for part in side)) for side in (self.rows, self.columns)
        )
        return Structure(self.shape, rows, columns, self.order.to(device))


class SparseFactor:
    """A sparse matrix in compressed rows, together with its transpose.

    Build one with :func:`sparse_factor`.

    Args:
        structure: Where the entries are.
        values: The entries, row by row; they may carry gradients.
    """

    def __init__(self, structure: Structure, values: Tensor) -> None:
        self.structure = structure
        self.values = values
        self._kept: dict[str, tuple[int, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out torch's own sparse tensors, which cannot be copied; they are made anew."""
        return {**self.__dict__, "_kept": {}}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.structure.shape

    def transpose(self) -> SparseFactor:
        """Return the transpose."""
        return SparseFactor(self.structure.transpose(), self.values[self.structure.order])

    def __matmul__(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(self.values, x, self)
        return product

    def to(self, target: torch.device | str | torch.dtype) -> SparseFactor:
        """Return a copy on another device or in another floating-point type."""
        if isinstance(target, torch.dtype):
            return SparseFactor(self.structure, self.values.to(target))
        return SparseFactor(self.structure.to(target), self.values.to(target))

    def forward_matrix(self) -> Tensor:
        """Return the matrix as torch's own sparse tensor."""
        return self._matrix("forward", self.structure.rows, self.shape)

    def backward_matrix(self) -> Tensor:
        """Return the transpose as torch's own sparse tensor."""
        return self._matrix(
            "backward", self.structure.columns, self.shape[::-1], self.structure.order
        )

    def _matrix(
        self, name: str, rows: Rows, shape: tuple[int, ...], order: Tensor | None = None
    ) -> Tensor:
        # a copy in another order does not see what is changed in place
        version = 0 if self.values.is_inference() else self.values._version
        kept = self._kept.get(name)
        if kept is not None and kept[0] == version:
            return kept[1]
        values = self.values if order is None else self.values[order]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse (CSR tensor|invariant)")
            built = torch.sparse_csr_tensor(
                rows.start, rows.columns, values.detach(), shape, check_invariants=False
            )
        if not self.values.requires_grad:  # learned entries change in place
            self._kept[name] = version, built
        return built


class _Product(torch.autograd.Function):
    """Sparse times dense, with the prepared transpose in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, factor: SparseFactor) -> Tensor:
        ctx.factor = factor
        ctx.save_for_backward(x if values.requires_grad else None)
        return _multiply(factor.forward_matrix(), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        factor: SparseFactor = ctx.factor
        (x,), (gradient,) = ctx.saved_tensors, gradients
        for_values = for_x = None
        if ctx.needs_input_grad[0]:
            rows = factor.structure.rows
            sizes = rows.start.diff().long()
            row = torch.repeat_interleave(sizes, output_size=len(rows.columns))
            for_values = (gradient[row] * x[rows.columns.long()]).sum(dim=1)
        if ctx.needs_input_grad[1]:
            if torch.is_grad_enabled():  # a gradient of the gradient is asked for
                for_x = factor.transpose() @ gradient
            else:
                for_x = _multiply(factor.backward_matrix(), gradient)
        return for_values, for_x, None


def _multiply(matrix: Tensor, dense: Tensor) -> Tensor:
    with torch.autocast(dense.device.type, enabled=False):  # half precision knows no sparse matrix
        return matrix @ dense.contiguous()


def sparse_factor(
    row: Int[Tensor, " nnz"],
    column: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"],
    shape: tuple[int, int],
) -> SparseFactor:
    """Sort entries into compressed rows and columns.

    Args:
        row: Row of every entry.
        column: Column of every entry; no pair of row and column occurs twice.
        values: The entries; they may carry gradients.
        shape: Rows and columns.

    Returns:
        The matrix, on the entries' device.
    """
    structure, along = sorted_structure(row, column, shape)
    return SparseFactor(structure, values[along])


def sorted_structure(
    row: Tensor, column: Tensor, shape: tuple[int, int]
) -> tuple[Structure, Tensor]:
    """Return the sorted structure, and for each of its entries the place it came from."""
    height, width = shape
    index = torch.int32 if max(height, width, len(row)) <= _NARROW else torch.int64
    along = torch.argsort(row.long() * width + column)
    row, column = row[along], column[along]
    order = torch.argsort(column.long() * height + row)
    rows = Rows(_starts(row, height, index), column.to(index))
    columns = Rows(_starts(column[order], width, index), row[order].to(index))
    return Structure(shape, rows, columns, order), along


def _starts(sorted_index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    start = torch.zeros(size + 1, dtype=torch.int64, device=sorted_index.device)
    start[1:] = torch.bincount(sorted_index, minlength=size).cumsum(0)
    return start.to(dtype)


def hypergraph_propagation(
    hypergraph: Hypergraph,
    *,
    normalization: Normalization = "symmetric",
    dtype: torch.dtype = torch.float32,
) -> Propagation:
    r"""Prepare a hypergraph's propagation.

    With incidence :math:`H` (nodes by hyperedges), weights :math:`W` of the hyperedges and degrees
    :math:`d(v) = \sum_e w_e h_{ve}` and :math:`\delta(e) = \sum_v h_{ve}`:

    - ``"symmetric"``: :math:`D_v^{-1/2} H W D_e^{-1} H^\top D_v^{-1/2}` (Feng et al., Hypergraph
      Neural Networks, AAAI 2019);
    - ``"random-walk"``: :math:`D_v^{-1} H W D_e^{-1} H^\top` (HGNN+, and PyG's HypergraphConv).

    A node in no hyperedge and an empty hyperedge contribute nothing: their rows are zero.

    Args:
        hypergraph: The hypergraph; its weights may carry gradients.
        normalization: ``"symmetric"`` or ``"random-walk"``.
        dtype: Type of the entries, that of the features it will be applied to; at least single
            precision, for half precision counts no further than 256 or 2048.

    Returns:
        An operator of shape (nodes, nodes).

    Example:
        >>> h = Hypergraph.from_lists([[0, 1], [1, 2]], num_nodes=4)
        >>> hypergraph_propagation(h, normalization="random-walk").dense()
        tensor([[0.5000, 0.5000, 0.0000, 0.0000],
                [0.2500, 0.5000, 0.2500, 0.0000],
                [0.0000, 0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    check_choice(
        "hypergraph_propagation", "normalization", normalization, ("symmetric", "random-walk")
    )
    dtype = torch.promote_types(dtype, torch.float32)
    node, edge = hypergraph.hyperedge_index
    incidence = hypergraph.incidence_values(dtype)
    weight = hypergraph.hyperedge_weight
    if weight is None:
        weight = incidence.new_ones(hypergraph.num_hyperedges)
    weight = weight.to(dtype)
    size = incidence.new_zeros(len(weight)).index_add(0, edge, incidence)
    degree = incidence.new_zeros(hypergraph.num_nodes).index_add(0, node, weight[edge] * incidence)
    gather = (weight * _inverse(size))[edge] * incidence
    if normalization == "symmetric":
        spread = _inverse(degree, 0.5)[node] * incidence
        gather = _inverse(degree, 0.5)[node] * gather
    else:
        spread = _inverse(degree)[node] * incidence
    shape = (hypergraph.num_nodes, hypergraph.num_hyperedges)
    structure, along = sorted_structure(node, edge, shape)
    return Propagation(
        SparseFactor(structure, spread[along]), SparseFactor(structure, gather[along]).transpose()
    )


def graph_propagation(
    edge_index: Int[Tensor, "2 e"],
    edge_weight: Float[Tensor, " e"] | None = None,
    *,
    num_nodes: int,
    normalization: Normalization = "symmetric",
    self_loops: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Propagation:
    r"""Prepare a graph's propagation.

    Row :math:`i` gathers over the edges :math:`(j, i)` that end in :math:`i`, as in PyG. With
    self-loops of weight 1: ``"symmetric"`` is :math:`D^{-1/2} (A + I) D^{-1/2}` (Kipf and Welling,
    ICLR 2017), ``"random-walk"`` :math:`D^{-1} (A + I)`; :math:`D` holds the incoming weights.

    Args:
        edge_index: Sources in row 0, targets in row 1; weights of a repeated edge add up.
        edge_weight: Non-negative weights; 1 by default. They may carry gradients.
        num_nodes: Number of nodes.
        normalization: ``"symmetric"`` or ``"random-walk"``.
        self_loops: Whether to join each node with itself; a node that already has a loop keeps
            its weight.
        dtype: Type of the entries; at least single precision.

    Returns:
        An operator of shape (nodes, nodes).

    Raises:
        TypeError: If the indices are no integers.
        ValueError: If an index is out of range, or a weight negative or not finite.
    """
    owner = "graph_propagation"
    check_choice(owner, "normalization", normalization, ("symmetric", "random-walk"))
    check_integer(owner, "num_nodes", num_nodes, low=1)
    check_pairs(owner, "edge_index", edge_index, {"source": num_nodes, "target": num_nodes})
    edge_index = edge_index.long()
    dtype = torch.promote_types(dtype, torch.float32)
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
    check_weights(owner, "edge_weight", edge_weight, edge_index.shape[1])
    source, target, weight = _merged(edge_index, edge_weight.to(dtype), num_nodes)
    if self_loops:
        loop = torch.ones(num_nodes, dtype=torch.bool, device=source.device)
        loop[source[source == target]] = False
        extra = loop.nonzero().flatten()
        source, target = torch.cat([source, extra]), torch.cat([target, extra])
        weight = torch.cat([weight, weight.new_ones(len(extra))])
    degree = weight.new_zeros(num_nodes).index_add(0, target, weight)
    if normalization == "symmetric":
        scale = _inverse(degree, 0.5)
        weight = scale[target] * weight * scale[source]
    else:
        weight = _inverse(degree)[target] * weight
    return Propagation(sparse_factor(target, source, weight, (num_nodes, num_nodes)))


def _merged(edge_index: Tensor, weight: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return every edge once, with the sum of its weights."""
    key, place = torch.unique(edge_index[0] * n + edge_index[1], return_inverse=True)
    total = weight.new_zeros(len(key)).index_add(0, place, weight)
    return key // n, key % n, total


def _inverse(values: Tensor, power: float = 1.0) -> Tensor:
    """Return ``values`` to the negative power, 0 for 0, with a finite gradient everywhere."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).pow(-power), 0.0)
