"""Relations between the actors of a scene, by appearance and by place.

The actor relation graph of Wu, Wang, Wang, Guo, Wu: *Learning Actor Relation Graphs for Group
Activity Recognition*, CVPR 2019, as ``cv_graph.methods.sarg`` prints it, on dense, padded batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from cv_core.checks import check_floating, check_range, check_shape
from cv_core.nn.attention import attention_map
from jaxtyping import Bool, Float
from torch import Tensor

from cv_graph.pooling import check_nodes

Embedding = Callable[[Tensor], Tensor]
"""Maps features (B, N, d) to (B, N, e), as ``nn.Linear`` does."""


def actor_relation_graph(
    x: Float[Tensor, "b n d"],
    centers: Float[Tensor, "b n 2"],
    mu: float,
    *,
    mask: Bool[Tensor, "b n"] | None = None,
    theta: Embedding | None = None,
    phi: Embedding | None = None,
) -> Float[Tensor, "b n n"]:
    r"""Return the weights A between actors of the actor relation graph (Eqs. 1 and 2 of SARG).

    .. math:: A_{ij} \propto 1[\|c_i - c_j\| \le \mu]\,
              \exp(\theta(x_i)^\top \phi(x_j) / \sqrt e)

    Args:
        x: Features ``(B, N, d)``.
        centers: Centres of the actors' boxes ``(B, N, 2)``.
        mu: Greatest distance of related actors, in the units of ``centers``, at least 0; the
            actor relation graph takes a fifth of the image's width.
        mask: True where there is an actor ``(B, N)``; False for padding, whatever it holds. All by
            default.
        theta: Embedding of the actor that looks, to e features; the features as they are (e = d) by
            default.
        phi: Embedding of the actors looked at; given with ``theta`` or not at all.

    Returns:
        ``(B, N, N)``; the rows of actors sum to 1, rows and columns of padding are zero. Every
        actor is related to itself.

    Raises:
        TypeError: If ``x`` or ``centers`` is not floating, or ``mask`` not boolean.
        ValueError: If a shape does not fit, a scene has no actor, ``mu`` is negative, or only one
            embedding is given.

    Example:
        >>> x, centers = torch.zeros(1, 3, 4), torch.tensor([[[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
        >>> actor_relation_graph(x, centers, mu=2.0)
        tensor([[[0.5000, 0.5000, 0.0000],
                 [0.5000, 0.5000, 0.0000],
                 [0.0000, 0.0000, 1.0000]]])
    """
    owner = "actor_relation_graph"
    check_range(owner, "mu", mu, low=0.0)
    if (theta is None) != (phi is None):
        raise ValueError(f"{owner}: theta and phi must be given together; got one of them.")
    check_actors(owner, x, centers, mask)
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(2), 0.0)
    near = within_reach(centers, mu, mask)
    return relate(x if theta is None else theta(x), x if phi is None else phi(x), near, mask)


def check_actors(
    owner: str, x: Tensor, centers: Tensor, mask: Tensor | None, frames: int = 1, **sizes: int
) -> None:
    """Refuse features and centres of other types or shapes, and what ``check_nodes`` refuses.

    Raises:
        TypeError: If ``x`` or ``centers`` is not floating, or ``mask`` not boolean.
        ValueError: If a shape does not fit, a scene has no actor, or frames are unequal.
    """
    check_floating(owner, "x", x)
    check_floating(owner, "centers", centers)
    found = check_shape(owner, "x", x, "b n d", **sizes)
    check_shape(owner, "centers", centers, "b n 2", b=found["b"], n=found["n"])
    check_nodes(owner, mask, found["b"], found["n"], frames)


def within_reach(
    centers: Float[Tensor, "b n 2"], mu: float, mask: Bool[Tensor, "b n"] | None
) -> Bool[Tensor, "b n n"]:
    """Tell which actors are related; padding only to itself, so that no row is empty."""
    # by differences: with cdist's products an actor may be apart from itself
    apart = torch.linalg.vector_norm(centers.unsqueeze(2) - centers.unsqueeze(1), dim=3)
    near = apart <= mu
    if mask is not None:
        near = near & mask.unsqueeze(1) & mask.unsqueeze(2)
    return near | torch.eye(near.shape[1], dtype=torch.bool, device=near.device)


def relate(
    query: Float[Tensor, "b n e"],
    key: Float[Tensor, "b n e"],
    near: Bool[Tensor, "b n n"],
    mask: Bool[Tensor, "b n"] | None,
) -> Float[Tensor, "b n n"]:
    """Return the soft-max of the products over those in reach; rows of padding are zero."""
    A = attention_map(query, key, mask=near)
    return A if mask is None else A.masked_fill(~mask.unsqueeze(2), 0.0)
