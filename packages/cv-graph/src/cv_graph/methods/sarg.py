r"""SARG: a group's activity read from its key actors, which a graph finds without their labels.

*Learning Key Actors and Their Interactions for Group Activity Recognition*, Y. Duan and J. Wang,
PRCV 2021, LNCS 13022, pp. 53-65.

N actors have features :math:`X \in R^{N \times d}` and box centres c. Each of G graphs, which
share no parameters, relates them by appearance within a distance :math:`\mu` (Eqs. 1 and 2),

.. math:: A_{ij} = \frac{1[\|c_i - c_j\| \le \mu]\, e^{x_i^\top x_j / \sqrt d}}
                        {\sum_l 1[\|c_i - c_l\| \le \mu]\, e^{x_i^\top x_l / \sqrt d}},
          \qquad H = \mathrm{ReLU}(A X W),

scores the actors by self-attention and keeps the upper half (Eqs. 5 to 10, in
``SubgraphAttentionPool``): :math:`H'` is H times its score where kept, else zero. Then (Eqs. 11 to
13) with Z' the scene's feature,

.. math:: \text{max:}\ Z = X + \sum_g (H^g + H'^g),\ Z' = \max_i Z_i; \quad
          \text{add: the same}\ Z,\ Z' = \sum_i Z_i; \quad
          \text{net:}\ Z = \sum_g \mathrm{ReLU}([X, H^g, H'^g] W_p^g + b^g),\ Z' = \sum_i Z_i.

One linear layer reads the activity from Z', another each actor's action from its row of Z.

Deviations from the paper, and why:

- :math:`\Theta` is printed as N x 1, which does not conform; it is d x 1 here.
- What is gated is H, as Eq. 10 writes; the action features :math:`H_a` only make the scores.
- With raw features the graphs have one A in common, and at d = 1024 it is nearly one-hot (entries
  underflow to zero). ``embed_dim=256`` gives each graph learned embeddings, as in the actor
  relation graph that the paper builds on; the printed form is the default.
- The perceptron's scores have no activation in print; ``gate="sigmoid"`` adds one.
- :math:`A_s`, the kept actors' weights, feeds no layer, in print as here.
- Actors of several frames are selected jointly, as printed; ``frames`` selects within each.
- Of scenes with fewer actors, k counts those that are there.

Any features per actor will do. Of boxes on a backbone's map, by RoIAlign:

Example:
    >>> import torch
    >>> from torchvision.ops import roi_align
    >>> maps = torch.rand(2, 16, 10, 18)  # a backbone's, of images of 320 x 576 pixels
    >>> corner = 250 * torch.rand(2, 12, 2)
    >>> boxes = torch.cat([corner, corner + 60], dim=2)  # 12 actors, xyxy in pixels
    >>> crops = roi_align(maps, list(boxes), output_size=3, spatial_scale=1 / 32)
    >>> embed = torch.nn.Linear(16 * 3 * 3, 32)
    >>> x = embed(crops.flatten(1)).relu().unflatten(0, (2, 12))
    >>> centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    >>> model = SARG(32, num_graphs=2, mu=576 / 5, num_activities=8, num_actions=9)
    >>> activity, action = model(x, centers)
    >>> activity.shape, action.shape, model.key_actor_scores(x, centers).shape
    (torch.Size([2, 8]), torch.Size([2, 12, 9]), torch.Size([2, 12]))
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_range, check_shape
from cv_core.losses.reduction import Reduction, check_reduction, reduce, target_log_probabilities
from cv_core.registry import Card, Example, Reference
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cv_graph.pooling import Encoder, Gate, Subgraph, SubgraphAttentionPool, check_nodes
from cv_graph.relations import check_actors, relate, within_reach

Fusion = Literal["max", "add", "net"]


class _Graph(nn.Module):
    """The parameters of one graph: relation (if embedded), convolution, pooling, fusion."""

    def __init__(
        self, dim: int, pool: SubgraphAttentionPool, embed_dim: int | None, *, fused: bool
    ) -> None:
        super().__init__()
        self.theta: nn.Module = nn.Identity()
        self.phi: nn.Module = nn.Identity()
        if embed_dim is not None:
            self.theta = nn.Linear(dim, embed_dim)
            self.phi = nn.Linear(dim, embed_dim, bias=False)  # the soft-max would not see a bias
        self.gcn = nn.Linear(dim, dim, bias=False)
        self.pool = pool
        self.fuse = nn.Linear(3 * dim, dim) if fused else None

    def forward(self, x: Tensor, near: Tensor, mask: Tensor | None) -> tuple[Tensor, Subgraph]:
        """Return the graph's part of Z, and what it keeps."""
        A = relate(self.theta(x), self.phi(x), near, mask)
        H = self.gcn(A @ x).relu()
        kept: Subgraph = self.pool(H, A, mask)
        if self.fuse is None:
            return H + kept.features, kept
        return self.fuse(torch.cat([x, H, kept.features], dim=2)).relu(), kept


class SARG(nn.Module):
    """The paper's head: from actors' features and places to the group's activity and each action.

    Args:
        dim: Features d of an actor; 1024 in the paper.
        num_graphs: How many graphs G; of 1 to 32 the paper finds 8 best.
        mu: Greatest distance of related actors, in the units of the centres; the actor relation
            graph takes a fifth of the image's width.
        num_activities: Classes of a scene.
        num_actions: Classes of an actor.
        ratio: The share k of actors that is kept, in (0, 1]; 0.5 in the paper.
        encoder: What scores the actors: ``"gcn"`` or ``"fc"``.
        fusion: ``"max"``, ``"add"`` or ``"net"``, which the paper settles on.
        embed_dim: Width of learned embeddings for the relation, None for the features as they are.
        gate: ``"printed"`` or ``"sigmoid"``, as in ``SubgraphAttentionPool``.
        frames: The actors are those of so many frames, one frame after the other in equally long,
            padded runs, and k holds within each; 1 for all jointly, from however many frames.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_graphs: int = 8,
        *,
        mu: float,
        num_activities: int,
        num_actions: int,
        ratio: float = 0.5,
        encoder: Encoder = "gcn",
        fusion: Fusion = "net",
        embed_dim: int | None = None,
        gate: Gate = "printed",
        frames: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (
            ("dim", dim), ("num_graphs", num_graphs), ("num_activities", num_activities),
            ("num_actions", num_actions),
        ):  # fmt: skip
            check_integer("SARG", name, value, low=1)
        if embed_dim is not None:
            check_integer("SARG", "embed_dim", embed_dim, low=1)
        check_range("SARG", "mu", mu, low=0.0)
        check_choice("SARG", "fusion", fusion, get_args(Fusion))
        self.dim = dim
        self.mu = mu
        self.fusion = fusion
        self.embed_dim = embed_dim
        self.frames = frames
        self.graphs = nn.ModuleList(
            _Graph(
                dim,
                SubgraphAttentionPool(dim, ratio, encoder=encoder, gate=gate, frames=frames),
                embed_dim,
                fused=fusion == "net",
            )
            for _ in range(num_graphs)
        )
        self.activity = nn.Linear(dim, num_activities)
        self.action = nn.Linear(dim, num_actions)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"mu={self.mu:g}, fusion={self.fusion!r}, embed_dim={self.embed_dim}"

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        centers: Float[Tensor, "b n 2"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n a"]]:
        """Classify scenes and their actors.

        Args:
            x: Features ``(B, N, d)``.
            centers: Centres of the actors' boxes ``(B, N, 2)``.
            mask: True where there is an actor ``(B, N)``; False for padding. All by default.

        Returns:
            Logits ``(B, num_activities)`` and ``(B, N, num_actions)``; those of padding mean
            nothing.

        Raises:
            TypeError: If ``x`` or ``centers`` is not floating, or ``mask`` not boolean.
            ValueError: If a shape does not fit, or a scene has no actor.
        """
        Z, scene = self.features(x, centers, mask)
        return self.activity(scene), self.action(Z)

    def features(
        self,
        x: Float[Tensor, "b n d"],
        centers: Float[Tensor, "b n 2"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        """Return the actors' features Z, zero where padded, and the scenes' Z'."""
        x, parts = self._run(x, centers, mask)
        Z = torch.stack([part for part, _ in parts]).sum(0)
        if self.fusion != "net":
            Z = x + Z
        if mask is not None:
            Z = Z.masked_fill(~mask.unsqueeze(2), 0.0)
        if self.fusion != "max":
            return Z, Z.sum(1)
        seen = Z if mask is None else Z.masked_fill(~mask.unsqueeze(2), -math.inf)
        return Z, seen.amax(1)

    def subgraphs(
        self,
        x: Float[Tensor, "b n d"],
        centers: Float[Tensor, "b n 2"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> list[Subgraph]:
        """Return what each graph keeps."""
        return [kept for _, kept in self._run(x, centers, mask)[1]]

    def key_actor_scores(
        self,
        x: Float[Tensor, "b n d"],
        centers: Float[Tensor, "b n 2"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Return every actor's score, the mean over the graphs, for display; 0 where padded."""
        return torch.stack([kept.scores for kept in self.subgraphs(x, centers, mask)]).mean(0)

    def _run(
        self, x: Tensor, centers: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, list[tuple[Tensor, Subgraph]]]:
        check_actors("SARG", x, centers, mask, self.frames, d=self.dim)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(2), 0.0)
        near = within_reach(centers, self.mu, mask)
        return x, [graph(x, near, mask) for graph in self.graphs]


def group_activity_loss(
    group_logits: Float[Tensor, "b k"],
    action_logits: Float[Tensor, "b n a"],
    y_group: Int[Tensor, " b"],
    y_action: Int[Tensor, "b n"],
    *,
    lam: float = 1.0,
    mask: Bool[Tensor, "b n"] | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    r"""Return cross entropies of scene and actors (Eq. 14 of the paper named in this module).

    .. math:: L = \mathrm{CE}(\text{group}) + \lambda\, \frac1n \sum_i \mathrm{CE}(\text{action}_i)

    Args:
        group_logits: ``(B, num_activities)``.
        action_logits: ``(B, N, num_actions)``.
        y_group: Classes of the scenes ``(B,)``.
        y_action: Classes of the actors ``(B, N)``.
        lam: Weight of the actions, at least 0. The paper does not print it; the actor relation
            graph has 1.
        mask: True where there is an actor ``(B, N)``. All by default.
        reduction: ``"mean"`` over scenes, in each over its actors, so that a scene's weight does
            not depend on how many it has; ``"sum"``; or ``"none"``, one value per scene.
        ignore_index: The label, of scene or actor, that does not count.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``.

    Raises:
        TypeError: If logits are not floating, labels not integer, or ``mask`` not boolean.
        ValueError: If an option or a label is out of range, or the shapes do not fit.

    Example:
        >>> labels = torch.tensor([1, 0]), torch.tensor([[2, 0], [1, 1]])
        >>> group_activity_loss(torch.zeros(2, 4), torch.zeros(2, 2, 4), *labels, lam=0.5)
        tensor(2.0794)
    """
    owner = "group_activity_loss"
    check_range(owner, "lam", lam, low=0.0)
    check_reduction(owner, reduction)
    check_floating(owner, "action_logits", action_logits)
    sizes = check_shape(owner, "action_logits", action_logits, "b n a")
    check_shape(owner, "group_logits", group_logits, "b k", b=sizes["b"])
    check_nodes(owner, mask, sizes["b"], sizes["n"])
    check_shape(owner, "y_action", y_action, "b n", b=sizes["b"], n=sizes["n"])
    if mask is not None:  # int64, for other types may not hold the label
        y_action = torch.where(
            mask, y_action, torch.full_like(y_action, ignore_index, dtype=torch.int64)
        )
    group_log_p, known = target_log_probabilities(group_logits, y_group, ignore_index, owner)
    log_p, counts = target_log_probabilities(action_logits.mT, y_action, ignore_index, owner)
    actors = counts.sum(1)
    actions = -log_p.sum(1) / actors.clamp(min=1)
    return reduce(-group_log_p, known, reduction) + lam * reduce(actions, actors > 0, reduction)


def _examples() -> list[Example]:
    def actors(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(2, 5, 8, generator=generator)
        return x, torch.rand(2, 5, 2, generator=generator)

    def padded(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return (*actors(generator), torch.arange(5) < torch.tensor([[5], [3]]))

    def printed() -> SARG:
        return SARG(8, 2, mu=0.5, num_activities=3, num_actions=4)

    def other() -> SARG:
        return SARG(
            8, 2, mu=0.7, num_activities=3, num_actions=4, encoder="fc", fusion="max",
            embed_dim=3, ratio=0.8,
        )  # fmt: skip

    shapes = ((2, 3), (2, 5, 4))
    return [
        Example(build=printed, inputs=actors, output_shapes=shapes),
        Example(build=other, inputs=padded, output_shapes=shapes),
    ]


CARD = Card(
    slug="sarg",
    title="Group activity from key actors, found by self-attention on a graph of the actors",
    reference=Reference(
        title="Learning Key Actors and Their Interactions for Group Activity Recognition",
        authors="Y. Duan, J. Wang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="53-65",
    ),
    kind="module",
    objects=(
        "cv_graph.methods.sarg.SARG",
        "cv_graph.relations.actor_relation_graph",
        "cv_graph.methods.sarg.group_activity_loss",
        "cv_graph.pooling.SubgraphAttentionPool",
        "cv_graph.pooling.Subgraph",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
