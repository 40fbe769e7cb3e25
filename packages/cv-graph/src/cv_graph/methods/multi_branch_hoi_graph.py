r"""Human-object interactions at several granularities: classes merged by what their objects share.

Wu, Zhang, Duan, Chang: *Multi-branch Graph Network for Learning Human-Object Interaction*, PRCV
2021, LNCS 13022, pp. 425-436.

An interaction is a triplet (subject, predicate, object). To classify triplets leaves the rare ones
with few samples; to classify predicates alone asks one class to hold what a verb means with every
object. Between the two, object classes are clustered into k groups, and triplets of one predicate
whose objects are of one group become one super class. With ``T_k`` (c_k, c_0) the matrix of zeros
and ones that says which triplets a super class holds, ``y`` a pair's labels and ``z_k`` its logits
in the branch of granularity k,

    loss  = mean over pairs and branches of  sum FL(min(T_k y, 1), sigmoid(z_k))
    score = s_subject s_object  mean over branches of  T_k^T sigmoid(z_k)

with FL the focal loss, and scores of other objects than the detected one set to 0. The features of
a pair come from graph attention over an image's boxes, one layer for all branches and one for each:
``HOIGraphNet``. The head, ``MultiGranularityHead``, serves any labels of this structure.

Deviations from the paper:
    - It does not name the clustering: k-means, the best of ten starts.
    - Its spatial features change when a pair moves in the image; ``pair_spatial_features`` counts
      coordinates from the union's corner, and offers the printed form.
    - Not printed, and chosen: slope 0.2 of the LeakyReLU, a ReLU between the two layers that embed
      an edge and none behind, the focal loss summed over classes.
    - ``T_k y`` is cut at 1, and scores of other objects are set to 0, as the paper implies.

Example:
    >>> triplets = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 2]])  # predicate, object
    >>> merge_label_matrix(triplets, torch.tensor([0, 0, 1]))
    tensor([[1., 1., 0., 0.],
            [0., 0., 1., 0.],
            [0., 0., 0., 1.]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from cv_core.checks import (
    check_floating,
    check_indices,
    check_integer,
    check_range,
    check_shape,
)
from cv_core.losses.segmentation import binary_focal_loss
from cv_core.registry import Card, Example, Reference
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cv_graph.hgat import HGATConv
from cv_graph.interactions import SPATIAL_FEATURES
from cv_graph.label_merging import merge_label_matrix

Layer = Callable[[int, int, int], nn.Module]


class MultiGranularityHead(nn.Module):
    """Classifies pairs into super classes, one branch for each granularity.

    A branch is a linear layer, a ReLU and a linear layer with one logit per super class. For any
    labels that can be merged: "same verb, similar object", or classes and their superclasses.

    Args:
        in_dim: Length of a pair's vector.
        label_matrices: ``T_k`` (c_k, c_0) of each branch, as ``merge_label_matrix`` makes them.
        hidden_dim: Width of a branch; 1024 in the paper.
        alpha: Weight of positive labels in the focal loss, ``1 - alpha`` of negative; 0.8 in the
            paper.
        gamma: How strongly the focal loss weights easy labels down; 2 in the paper.

    Raises:
        ValueError: If an option is out of range, the matrices are of different labels, or a column
            holds anything but one 1.

    Example:
        >>> triplets = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> merged = [merge_label_matrix(triplets, torch.tensor(c)) for c in ([0, 0], [0, 1])]
        >>> head = MultiGranularityHead(8, merged, hidden_dim=16)
        >>> [logits.shape[1] for logits in head(torch.rand(5, 8))]
        [2, 4]
    """

    def __init__(
        self,
        in_dim: int,
        label_matrices: Sequence[Float[Tensor, "_ c"]],
        *,
        hidden_dim: int = 1024,
        alpha: float = 0.8,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        owner = "MultiGranularityHead"
        check_integer(owner, "in_dim", in_dim, low=1)
        check_integer(owner, "hidden_dim", hidden_dim, low=1)
        check_range(owner, "alpha", alpha, low=0.0, high=1.0)
        check_range(owner, "gamma", gamma, low=0.0)
        _check_label_matrices(owner, label_matrices)
        self.in_dim = in_dim
        self.num_labels = int(label_matrices[0].shape[1])
        self.alpha, self.gamma = alpha, gamma
        self.branches = nn.ModuleList(_Branch(in_dim, hidden_dim, T) for T in label_matrices)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"labels={self.num_labels}, alpha={self.alpha:g}, gamma={self.gamma:g}"

    def forward(
        self, pairs: Float[Tensor, "p d"] | Sequence[Float[Tensor, "p d"]]
    ) -> list[Float[Tensor, "p _"]]:
        """Return each branch's logits.

        Args:
            pairs: Vectors ``(P, in_dim)``, the same for all branches or one tensor for each.

        Returns:
            Logits ``(P, c_k)`` of each branch.

        Raises:
            TypeError: If a tensor is not floating.
            ValueError: If a shape or the number of tensors does not fit.
        """
        owner = "MultiGranularityHead"
        each = [pairs] * len(self.branches) if isinstance(pairs, Tensor) else list(pairs)
        self._check_count("pairs", each)
        for item in each:
            check_floating(owner, "pairs", item)
            check_shape(owner, "pairs", item, "p d", d=self.in_dim)
        return [branch(item) for branch, item in zip(self.branches, each, strict=True)]

    def loss(
        self,
        logits: Sequence[Float[Tensor, "p _"]],
        y: Float[Tensor, "p c"] | Int[Tensor, "p c"] | Bool[Tensor, "p c"],
    ) -> Float[Tensor, ""]:
        """Return the focal loss, summed over super classes, mean over pairs and branches.

        Args:
            logits: What ``forward`` returned.
            y: 1 where a pair has a label, else 0: ``(P, c_0)``.

        Returns:
            A scalar.

        Raises:
            ValueError: If a shape does not fit or a label lies outside [0, 1].
        """
        owner = "MultiGranularityHead"
        self._check_count("logits", logits)
        check_shape(owner, "y", y, "p c", p=len(logits[0]), c=self.num_labels)
        if not bool(((y >= 0) & (y <= 1)).all()):
            raise ValueError(f"{owner}: y must lie in [0, 1].")
        total = sum(
            binary_focal_loss(
                z, branch.merged(y.to(z.dtype)), gamma=self.gamma, alpha=self.alpha, reduction="sum"
            )
            for z, branch in zip(logits, self._branches(), strict=True)
        )
        return torch.as_tensor(total) / (len(y) * len(self.branches))

    def fuse(self, logits: Sequence[Float[Tensor, "p _"]]) -> Float[Tensor, "p c"]:
        """Return the mean over branches of each label's score, that of its super class.

        Args:
            logits: What ``forward`` returned.

        Returns:
            Scores in [0, 1], ``(P, c_0)``.

        Raises:
            ValueError: If there are not as many tensors as branches.
        """
        self._check_count("logits", logits)
        pairs = zip(logits, self._branches(), strict=True)
        return torch.stack([z.sigmoid() @ branch.T for z, branch in pairs]).mean(0)

    def _branches(self) -> list[_Branch]:
        return [branch for branch in self.branches if isinstance(branch, _Branch)]

    def _check_count(self, name: str, items: Sequence[Tensor]) -> None:
        if len(items) != len(self.branches):
            raise ValueError(
                f"MultiGranularityHead: {name} must hold one tensor per branch, "
                f"{len(self.branches)}; got {len(items)}."
            )


class _Branch(nn.Sequential):
    """A branch's layers, and the label matrix ``T`` that belongs to its logits."""

    T: Tensor

    def __init__(self, in_dim: int, hidden_dim: int, T: Tensor) -> None:
        super().__init__(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, len(T)))
        self.register_buffer("T", T.detach().clone().float())

    def merged(self, y: Tensor) -> Tensor:
        """Return the super classes of labels (p, c_0); two labels of one count once."""
        return (y @ self.T.T).clamp(max=1.0)


class HOIGraphNet(nn.Module):
    """Scores pairs of an image's boxes by graph attention, at several granularities.

    Edges come from the spatial features of two boxes through two linear layers. One layer of
    ``HGATConv`` is shared; each branch has a second one and a classifier of its own, which sees a
    pair's two nodes and the edge from subject to object.

    Args:
        node_dim: Length of a node's vector; 2048 in the paper.
        edge_dim: Length of an edge's vector; 512 in the paper.
        label_matrices: ``T_k`` (c_k, c_0) of each branch, as ``merge_label_matrix`` makes them.
        hidden_dim: Length of nodes' vectors inside, and width of a classifier; 1024 in the paper.
        spatial_dim: Width of the layer that embeds spatial features; 256 in the paper.
        layer: Makes a graph layer from (in_dim, out_dim, edge_dim); any module that is called as
            ``HGATConv`` is.
        alpha: As in ``MultiGranularityHead``.
        gamma: As in ``MultiGranularityHead``.

    Attributes:
        head: The ``MultiGranularityHead``, with ``loss`` and ``fuse``.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> from cv_graph.interactions import pair_spatial_features
        >>> T = merge_label_matrix(torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([0, 1]))
        >>> net = HOIGraphNet(8, 6, [T], hidden_dim=16, spatial_dim=16)
        >>> boxes = torch.tensor([[[0.0, 0, 4, 9], [3, 4, 9, 9], [1, 1, 9, 2]]])
        >>> spatial = pair_spatial_features(boxes, boxes, (10, 10))
        >>> pairs = torch.tensor([[0, 0, 1], [0, 0, 2]])  # image, subject, object
        >>> net.head.fuse(net(torch.rand(1, 3, 8), spatial, pairs)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        node_dim: int,
        edge_dim: int,
        label_matrices: Sequence[Float[Tensor, "_ c"]],
        *,
        hidden_dim: int = 1024,
        spatial_dim: int = 256,
        layer: Layer = HGATConv,
        alpha: float = 0.8,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        sizes = {"node_dim": node_dim, "edge_dim": edge_dim, "hidden_dim": hidden_dim,
                 "spatial_dim": spatial_dim}  # fmt: skip
        for name, size in sizes.items():
            check_integer("HOIGraphNet", name, size, low=1)
        self.node_dim = node_dim
        self.embed_edge = nn.Sequential(
            nn.Linear(SPATIAL_FEATURES, spatial_dim), nn.ReLU(), nn.Linear(spatial_dim, edge_dim)
        )
        self.shared = layer(node_dim, hidden_dim, edge_dim)
        self.layers = nn.ModuleList(layer(hidden_dim, hidden_dim, edge_dim) for _ in label_matrices)
        self.head = MultiGranularityHead(
            2 * hidden_dim + edge_dim, label_matrices, hidden_dim=hidden_dim, alpha=alpha,
            gamma=gamma,
        )  # fmt: skip

    def forward(
        self,
        nodes: Float[Tensor, "b n d"],
        spatial: Float[Tensor, "b n n 16"],
        pairs: Int[Tensor, "p 3"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> list[Float[Tensor, "p _"]]:
        """Return each branch's logits of the pairs asked for.

        Args:
            nodes: Features of the images' boxes, ``(B, N, node_dim)``. The paper adds the whole
                image as a node, which is in no pair.
            spatial: What ``pair_spatial_features`` gives for them, ``(B, N, N, 16)``.
            pairs: Index of image, subject and object of each pair, ``(P, 3)``.
            mask: Which nodes are there, ``(B, N)``; all by default.

        Returns:
            Logits ``(P, c_k)`` of each branch, for ``head.loss`` and ``head.fuse``.

        Raises:
            TypeError: If a tensor has the wrong type.
            ValueError: If a shape does not fit or a pair names a node that is not there.
        """
        self._check(nodes, spatial, pairs, mask)
        image, subject, target = pairs.long().T
        edge = self.embed_edge(spatial)
        shared = self.shared(nodes, edge, mask)
        vectors = []
        for layer in self.layers:
            v = layer(shared, edge, mask)
            vectors.append(
                torch.cat(
                    [v[image, subject], v[image, target], edge[image, subject, target]], dim=1
                )
            )
        return self.head(vectors)

    def _check(self, nodes: Tensor, spatial: Tensor, pairs: Tensor, mask: Tensor | None) -> None:
        owner = "HOIGraphNet"
        check_floating(owner, "nodes", nodes)
        check_floating(owner, "spatial", spatial)
        sizes = check_shape(owner, "nodes", nodes, "b n d", d=self.node_dim)
        b, n = sizes["b"], sizes["n"]
        check_shape(owner, "spatial", spatial, "b n n f", b=b, n=n, f=SPATIAL_FEATURES)
        check_shape(owner, "pairs", pairs, "p 3")
        check_indices(owner, "pairs' images", pairs[:, 0], high=b, ignore=None)
        check_indices(owner, "pairs' nodes", pairs[:, 1:], high=n, ignore=None)
        if mask is None:
            return
        check_shape(owner, "mask", mask, "b n", b=b, n=n)
        if mask.dtype != torch.bool:
            raise TypeError(f"{owner}: mask must hold booleans; got {mask.dtype}.")
        if not bool(mask[pairs[:, :1].long(), pairs[:, 1:].long()].all()):
            raise ValueError(f"{owner}: pairs must name nodes that are there, as mask says.")


def _check_label_matrices(owner: str, label_matrices: Sequence[Tensor]) -> None:
    if not len(label_matrices):
        raise ValueError(f"{owner}: label_matrices must hold at least one matrix.")
    for T in label_matrices:
        check_floating(owner, "label_matrices", T)
        check_shape(owner, "label_matrices", T, "k c", c=label_matrices[0].shape[-1])
        if not bool(((T == 0) | (T == 1)).all() & (T.sum(0) == 1).all() & T.any(1).all()):
            raise ValueError(
                f"{owner}: label_matrices must hold zeros and ones, one 1 in every column and at "
                "least one in every row; see merge_label_matrix."
            )


def _examples() -> list[Example]:
    triplets = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 2]])
    merged = [merge_label_matrix(triplets, torch.tensor(c)) for c in ([0, 0, 1], [0, 1, 2])]

    def graphs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        nodes = torch.randn(2, 4, 6, generator=generator)
        edges = torch.randn(2, 4, 4, 16, generator=generator)
        return nodes, edges, torch.tensor([[True] * 4, [True] * 3 + [False]])

    def asked(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        nodes, spatial, mask = graphs(generator)
        return nodes, spatial, torch.tensor([[0, 0, 1], [1, 2, 0], [0, 3, 1]]), mask

    return [
        Example(
            build=lambda: HOIGraphNet(6, 4, merged, hidden_dim=8, spatial_dim=8),
            inputs=asked,
            output_shapes=((3, 4), (3, 5)),
        ),
        Example(build=lambda: HGATConv(6, 5, 16), inputs=graphs, output_shapes=((2, 4, 5),)),
        Example(
            build=lambda: MultiGranularityHead(6, merged, hidden_dim=8),
            inputs=lambda generator: (torch.randn(7, 6, generator=generator),),
            output_shapes=((7, 4), (7, 5)),
        ),
    ]


CARD = Card(
    slug="multi-branch-hoi-graph",
    title="Human-object interactions classified at several granularities by graph attention",
    reference=Reference(
        title="Multi-branch Graph Network for Learning Human-Object Interaction",
        authors="Wu, Zhang, Duan, Chang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="425-436",
    ),
    kind="module",
    objects=(
        "cv_graph.methods.multi_branch_hoi_graph.HOIGraphNet",
        "cv_graph.methods.multi_branch_hoi_graph.MultiGranularityHead",
        "cv_graph.label_merging.merge_label_matrix",
        "cv_graph.label_merging.cluster_objects",
        "cv_graph.label_merging.object_embedding",
        "cv_graph.hgat.HGATConv",
        "cv_graph.interactions.pair_spatial_features",
        "cv_graph.interactions.interaction_scores",
        "cv_graph.interactions.hoi_mean_ap",
        "cv_graph.interactions.InteractionPrecision",
    ),
    examples=_examples,
    properties=("deterministic",),
)
