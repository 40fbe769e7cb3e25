"""Hypergraphs in torch-geometric's format: (node, hyperedge) pairs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from cv_core.checks import check_integer
from jaxtyping import Float, Int
from torch import Tensor


class Hypergraph:
    """Which nodes belong to which hyperedges, checked once.

    Memberships are kept sorted by hyperedge, then node, each once. Isolated nodes, empty
    hyperedges and more hyperedges than nodes are all allowed.

    Args:
        hyperedge_index: One column per membership, as in torch-geometric: row 0 the node, row 1
            the hyperedge. A column that occurs twice counts once.
        num_nodes: Number of nodes; by default one more than the highest that occurs.
        num_hyperedges: Number of hyperedges; by default one more than the highest that occurs.
        hyperedge_weight: One non-negative weight per hyperedge; 1 by default. May carry gradients.
        incidence_weight: One non-negative weight per column, the entries of the incidence matrix;
            1 by default. Columns that occur twice must agree.

    Raises:
        TypeError: If the indices are no integers, or the weights no floating-point numbers.
        ValueError: If an index is out of range (the message says which column), a weight is
            negative or not finite, or the sizes do not fit.

    Example:
        >>> import torch
        >>> h = Hypergraph(torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]]), num_nodes=4)
        >>> h
        Hypergraph(num_nodes=4, num_hyperedges=2, memberships=4)
        >>> h.node_degree().tolist(), h.hyperedge_size().tolist()
        ([1.0, 2.0, 1.0, 0.0], [2.0, 2.0])
    """

    def __init__(
        self,
        hyperedge_index: Int[Tensor, "2 nnz"],
        *,
        num_nodes: int | None = None,
        num_hyperedges: int | None = None,
        hyperedge_weight: Float[Tensor, " m"] | None = None,
        incidence_weight: Float[Tensor, " nnz"] | None = None,
    ) -> None:
        owner = "Hypergraph"
        sizes = {"node": num_nodes, "hyperedge": num_hyperedges}
        found = check_pairs(owner, "hyperedge_index", hyperedge_index, sizes)
        self.num_nodes, self.num_hyperedges = found
        if incidence_weight is not None:
            count = hyperedge_index.shape[1]
            check_weights(owner, "incidence_weight", incidence_weight, count)
        if hyperedge_weight is not None:
            check_weights(owner, "hyperedge_weight", hyperedge_weight, self.num_hyperedges)
        self.hyperedge_weight = hyperedge_weight
        index = hyperedge_index.long()
        self.hyperedge_index, self.incidence_weight = self._sorted(index, incidence_weight)

    def _sorted(self, index: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        key = index[1] * max(self.num_nodes, 1) + index[0]
        if bool((key[1:] > key[:-1]).all()):
            return index, weight
        key, order = key.sort(stable=True)
        new = torch.ones(len(key), dtype=torch.bool, device=key.device)
        new[1:] = key[1:] != key[:-1]
        if weight is not None:
            first = order[new][new.cumsum(0) - 1]  # for each sorted column the first of its kind
            wrong = (weight[order] != weight[first]).nonzero().flatten()
            if len(wrong):
                a, b = sorted((int(order[wrong[0]]), int(first[wrong[0]])))
                raise ValueError(
                    f"Hypergraph: columns {a} and {b} of hyperedge_index are the same membership "
                    f"(node {int(index[0, a])}, hyperedge {int(index[1, a])}) with different "
                    "incidence_weight; merge them first."
                )
        order = order[new]
        return index[:, order], None if weight is None else weight[order]

    @classmethod
    def from_lists(
        cls,
        hyperedges: Iterable[Sequence[int]],
        *,
        num_nodes: int | None = None,
        hyperedge_weight: Float[Tensor, " m"] | None = None,
    ) -> Hypergraph:
        """Build from one list of nodes per hyperedge.

        Args:
            hyperedges: The members of every hyperedge; an empty one stays, without members.
            num_nodes: Number of nodes; by default one more than the highest that occurs.
            hyperedge_weight: One non-negative weight per hyperedge; 1 by default.

        Raises:
            TypeError: If a member is no integer.
            ValueError: If a member is out of range; the message says of which hyperedge.

        Example:
            >>> Hypergraph.from_lists([[0, 2], [], [1, 2, 3]]).hyperedge_index
            tensor([[0, 2, 1, 2, 3],
                    [0, 0, 2, 2, 2]])
        """
        import numpy as np

        owner = "Hypergraph.from_lists"
        if num_nodes is not None:
            check_integer(owner, "num_nodes", num_nodes, low=0)
        members = [edge if isinstance(edge, Sequence) else list(edge) for edge in hyperedges]
        sizes = np.fromiter(map(len, members), dtype=np.int64, count=len(members))
        flat = np.array(list(chain.from_iterable(members)))
        if not flat.size:
            flat = flat.astype(np.int64)
        if flat.dtype.kind not in "iu":
            raise TypeError(f"{owner}: members must be integers (node numbers); got {flat.dtype}.")
        edge_numbers = np.repeat(np.arange(len(members)), sizes)
        outside = flat < 0 if num_nodes is None else (flat < 0) | (flat >= num_nodes)
        if outside.any():
            place = int(outside.argmax())
            edge = int(edge_numbers[place])
            known = "" if num_nodes is None else f", and there are {num_nodes}"
            raise ValueError(
                f"{owner}: hyperedges[{edge}][{place - int(sizes[:edge].sum())}] is node "
                f"{flat[place]}; nodes are numbered from 0{known}."
            )
        return cls(
            torch.from_numpy(np.stack([flat.astype(np.int64), edge_numbers])),
            num_nodes=num_nodes,
            num_hyperedges=len(members),
            hyperedge_weight=hyperedge_weight,
        )

    @classmethod
    def from_incidence(
        cls, incidence: Any, *, hyperedge_weight: Float[Tensor, " m"] | None = None
    ) -> Hypergraph:
        """Build from an incidence matrix, nodes by hyperedges.

        Args:
            incidence: Non-negative entries: a dense tensor, a torch sparse tensor of any layout, a
                NumPy array or a SciPy sparse matrix. Entries other than 0 and 1 are kept as weights
                of the memberships; an entry that a sparse matrix lists twice is their sum there.
            hyperedge_weight: One non-negative weight per hyperedge; 1 by default.

        Raises:
            ValueError: If it is no matrix, or an entry is negative or not finite; the message says
                which.
        """
        rows, columns, values, shape = _entries(incidence)
        bad = (~(values >= 0) | values.isinf()).nonzero().flatten()
        if len(bad):
            place = int(bad[0])
            raise ValueError(
                "Hypergraph.from_incidence: incidence must be finite and at least 0; entry "
                f"[{int(rows[place])}, {int(columns[place])}] is {float(values[place].detach()):g}."
            )
        kept = values != 0
        index, values = torch.stack([rows[kept], columns[kept]]), values[kept]
        return cls(
            index,
            num_nodes=shape[0],
            num_hyperedges=shape[1],
            hyperedge_weight=hyperedge_weight,
            incidence_weight=None if bool((values == 1).all()) else values,
        )

    @property
    def device(self) -> torch.device:
        """Where the memberships are kept."""
        return self.hyperedge_index.device

    def __repr__(self) -> str:
        count = self.hyperedge_index.shape[1]
        return (
            f"Hypergraph(num_nodes={self.num_nodes}, num_hyperedges={self.num_hyperedges}, "
            f"memberships={count})"
        )

    def to(self, device: torch.device | str) -> Hypergraph:
        """Return a copy on another device."""
        return Hypergraph(
            self.hyperedge_index.to(device),
            num_nodes=self.num_nodes,
            num_hyperedges=self.num_hyperedges,
            hyperedge_weight=None
            if self.hyperedge_weight is None
            else self.hyperedge_weight.to(device),
            incidence_weight=None
            if self.incidence_weight is None
            else self.incidence_weight.to(device),
        )

    def incidence_values(self, dtype: torch.dtype | None = None) -> Float[Tensor, " nnz"]:
        """Return the weight of every membership, 1 where none was given.

        Args:
            dtype: Their type; by default float32, or float64 where they were given so.
        """
        weight = self.incidence_weight
        if weight is not None:
            return weight.to(dtype or torch.promote_types(weight.dtype, torch.float32))
        dtype = dtype or torch.float32
        return torch.ones(self.hyperedge_index.shape[1], dtype=dtype, device=self.device)

    def incidence(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the incidence matrix, (nodes, hyperedges), as a coalesced sparse tensor."""
        shape = (self.num_nodes, self.num_hyperedges)
        return torch.sparse_coo_tensor(
            self.hyperedge_index, self.incidence_values(dtype), shape, check_invariants=False
        ).coalesce()

    def scipy_incidence(self) -> Any:
        """Return the incidence matrix, (nodes, hyperedges), as SciPy's CSR array, float64."""
        from scipy.sparse import csr_array

        node, edge = self.hyperedge_index.cpu().numpy()
        values = self.incidence_values(torch.float64).detach().cpu().numpy()
        return csr_array((values, (node, edge)), shape=(self.num_nodes, self.num_hyperedges))

    def node_degree(self) -> Float[Tensor, " n"]:
        r"""Return :math:`d(v) = \sum_e w_e h_{ve}` of every node."""
        node, edge = self.hyperedge_index
        values = self.incidence_values()
        if self.hyperedge_weight is not None:
            values = values * self.hyperedge_weight[edge]
        return values.new_zeros(self.num_nodes).index_add(0, node, values)

    def hyperedge_size(self) -> Float[Tensor, " m"]:
        r"""Return :math:`\delta(e) = \sum_v h_{ve}` of every hyperedge."""
        values = self.incidence_values()
        return values.new_zeros(self.num_hyperedges).index_add(0, self.hyperedge_index[1], values)

    def lists(self) -> list[list[int]]:
        """Return the members of every hyperedge, in rising order."""
        sizes = torch.bincount(self.hyperedge_index[1], minlength=self.num_hyperedges)
        return [part.tolist() for part in self.hyperedge_index[0].split(sizes.tolist())]


def check_pairs(
    owner: str, name: str, index: Tensor, sizes: dict[str, int | None]
) -> tuple[int, int]:
    """Refuse (2, e) indices of the wrong shape, type or range.

    Args:
        owner: The class or function that takes the argument.
        name: The argument.
        index: The indices.
        sizes: What row 0 and row 1 hold, each with how many there are or ``None`` for as many as
            occur.

    Returns:
        How many things row 0 and row 1 index.

    Raises:
        TypeError: If the indices are no tensor of integers.
        ValueError: If the shape is wrong, or an index is negative or too high; the message names
            row, column and index.
    """
    if not isinstance(index, Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor; got {type(index).__name__}.")
    if index.ndim != 2 or index.shape[0] != 2:
        (first, second) = sizes
        raise ValueError(
            f"{owner}: {name} must have shape (2, e): row 0 the {first}, row 1 the {second}; "
            f"got {tuple(index.shape)}."
        )
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{owner}: {name} must hold integers; got {index.dtype}.")
    counts = []
    for row, (kind, size) in enumerate(sizes.items()):
        if size is not None:
            check_integer(owner, f"number of {kind}s", size, low=0)
        values = index[row]
        highest = int(values.max()) if values.numel() else -1
        count = highest + 1 if size is None else int(size)
        if highest >= count or (values.numel() and int(values.min()) < 0):
            column = int(((values < 0) | (values >= count)).nonzero()[0])
            raise ValueError(
                f"{owner}: {name}[{row}, {column}] is {kind} {int(values[column])}, but there are "
                f"{count} {kind}s: indices lie in [0, {count - 1}]."
            )
        counts.append(count)
    return counts[0], counts[1]


def check_finite_rows(owner: str, name: str, x: Tensor) -> None:
    """Refuse features (n, d) that hold NaN or an infinity.

    Raises:
        ValueError: With the number of rows that do, and the first of them.
    """
    bad = (~torch.isfinite(x)).any(dim=1).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{owner}: {name} must be finite; {len(bad)} rows are not, the first is row "
            f"{int(bad[0])}."
        )


def check_weights(owner: str, name: str, weight: Tensor, count: int) -> None:
    """Refuse weights of the wrong number or type, negative or not finite.

    Raises:
        TypeError: If they are no floating-point tensor.
        ValueError: If the number is wrong, or one is negative or not finite; the message says
            which.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"{owner}: {name} must be a floating-point tensor; got {kind}.")
    if tuple(weight.shape) != (count,):
        raise ValueError(f"{owner}: {name} must have shape ({count},); got {tuple(weight.shape)}.")
    bad = (~(weight >= 0) | weight.isinf()).nonzero().flatten()
    if len(bad):
        place = int(bad[0])
        raise ValueError(
            f"{owner}: {name} must be finite and at least 0; entry {place} is "
            f"{float(weight[place].detach()):g}."
        )


def _entries(incidence: Any) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Return rows, columns and values of a matrix of any supported kind, and its shape."""
    import numpy as np
    from scipy import sparse

    if len(incidence.shape) != 2:
        raise ValueError(
            "Hypergraph.from_incidence: incidence must be a matrix (nodes, hyperedges); got shape "
            f"{tuple(incidence.shape)}."
        )
    shape = (int(incidence.shape[0]), int(incidence.shape[1]))
    if isinstance(incidence, Tensor):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse (CSR tensor|invariant)")
            matrix = incidence.to_sparse_coo().coalesce()
        rows, columns = matrix.indices()
        values = matrix.values()
    else:
        found = sparse.coo_array(incidence)
        found.sum_duplicates()
        rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in found.coords)
        values = torch.from_numpy(np.asarray(found.data))
    if not values.is_floating_point():
        values = values.to(torch.float32)
    return rows, columns, values, shape
