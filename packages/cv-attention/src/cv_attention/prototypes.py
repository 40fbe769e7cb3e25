"""Classes as points of an embedding: means of pooled features, and L1 distances to them."""

from __future__ import annotations

import torch
from cv_core.checks import (
    check_finite,
    check_floating,
    check_indices,
    check_integer,
    check_shape,
)
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def widened(x: Float[Tensor, "*size"]) -> Float[Tensor, "*size"]:
    """Return at least float32: half precision is too coarse for means and reciprocals."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pooled(maps: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch"]:
    """Return the mean over all places, at least in float32."""
    return widened(maps).mean((-2, -1))


def class_prototypes(
    features: Float[Tensor, "n k *size"], labels: Int[Tensor, " n"], num_classes: int
) -> Float[Tensor, "c k"]:
    """Average the pooled features of each class.

    Args:
        features: Pooled ``(N, K)``, or feature maps ``(N, K, H, W)``, which are pooled here.
        labels: Classes ``(N,)``.
        num_classes: How many classes there are; each needs at least one sample.

    Returns:
        Prototypes ``(num_classes, K)``, at least in float32.

    Raises:
        TypeError: If the features are not floating or the labels not integers.
        ValueError: If a shape does not fit, a label is out of range, or a class has no sample.

    Example:
        >>> class_prototypes(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 0, 0]), 2)
        tensor([[3.],
                [1.]])
    """
    owner = "class_prototypes"
    check_integer(owner, "num_classes", num_classes, low=1)
    check_floating(owner, "features", features)
    sizes = check_shape(owner, "features", features, "n k h w" if features.ndim == 4 else "n k")
    check_shape(owner, "labels", labels, "n", n=sizes["n"])
    check_indices(owner, "labels", labels, high=num_classes, ignore=None)
    vectors = pooled(features) if features.ndim == 4 else widened(features)
    member = functional.one_hot(labels.long(), num_classes).T.to(vectors)
    count = member.sum(1, keepdim=True)
    if not bool(count.all()):
        empty = (count[:, 0] == 0).nonzero()[:, 0].tolist()
        raise ValueError(f"{owner}: labels must hold every class; there is no sample of {empty}.")
    return member @ vectors / count


def nearest_prototype(
    query: Float[Tensor, "b k"], prototypes: Float[Tensor, "c k"]
) -> Int[Tensor, " b"]:
    """Return the paper's prediction: the prototype at the smallest L1 distance.

    Args:
        query: Pooled features ``(B, K)``.
        prototypes: Pooled references ``(C, K)``: class means, support or gallery images.

    Returns:
        Indices ``(B,)``.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If a shape does not fit or a feature is not finite.
    """
    return prototype_distances(query, prototypes).argmin(1)


def prototype_distances(
    query: Float[Tensor, "b k"], prototypes: Float[Tensor, "c k"]
) -> Float[Tensor, "b c"]:
    """Return the L1 distance of every query to every prototype.

    Args:
        query: Pooled features ``(B, K)``.
        prototypes: Pooled references ``(C, K)``: class means, support or gallery images.

    Returns:
        Distances ``(B, C)``, at least in float32; their negative serves as logits.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If a shape does not fit or a feature is not finite.

    Example:
        >>> prototype_distances(torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 2.0], [1.0, 1.0]]))
        tensor([[4., 4.]])
    """
    owner = "prototype_distances"
    for name, features in (("query", query), ("prototypes", prototypes)):
        check_floating(owner, name, features)
        check_finite(owner, name, features)
    sizes = check_shape(owner, "query", query, "b k")
    check_shape(owner, "prototypes", prototypes, "c k", k=sizes["k"])
    query = widened(query)
    return torch.cdist(query, prototypes.to(query), p=1.0)
