"""Sub-categories found by clustering: a harder classification, whose maps cover more of an object.

Chang et al., *Weakly-Supervised Semantic Segmentation via Sub-category Exploration*, CVPR 2020, as
taken up by SDA-CAM (``cv_segmentation.methods.sda_cam``).
"""

from __future__ import annotations

import numpy as np
import torch
from cv_core.checks import (
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.losses.reduction import Reduction, check_reduction, reduce_all
from cv_core.random import derive_seed
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

_AT_ONCE = 256  # images whose distances are in memory together


def subcategory_labels(
    features: Float[Tensor, "n d"], labels: Shaped[Tensor, "n c"], k: int, seed: int
) -> Float[Tensor, "n ck"]:
    """Split every class into ``k`` clusters of the images that show it.

    An image of several classes takes part in the clustering of each.

    Args:
        features: Pooled features ``(N, d)``, of a classifier of the classes.
        labels: 1 or True where an image shows a class ``(N, C)``, else 0.
        k: Sub-categories of each class.
        seed: Seed of k-means.

    Returns:
        float32 ``(N, C * k)``, class by class: exactly one 1 for each class that an image shows.

    Raises:
        TypeError: If the features are not floating or ``k`` is not whole.
        ValueError: If a shape does not fit, a feature is not finite, or labels are not 0 and 1.

    Example:
        >>> features = torch.tensor([[0.0], [0.1], [5.0], [9.0]])
        >>> labels = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]])
        >>> subcategory_labels(features, labels, k=2, seed=0).view(4, 2, 2).sum(2)
        tensor([[1., 0.],
                [1., 0.],
                [1., 0.],
                [0., 1.]])
    """
    return assign_subcategories(features, labels, subcategory_centres(features, labels, k, seed))


def subcategory_centres(
    features: Float[Tensor, "n d"], labels: Shaped[Tensor, "n c"], k: int, seed: int
) -> Float[Tensor, "c k d"]:
    """Cluster the images of each class by k-means.

    Args:
        features: Pooled features ``(N, d)``.
        labels: 1 or True where an image shows a class ``(N, C)``.
        k: Sub-categories of each class.
        seed: Seed of k-means.

    Returns:
        Centres ``(C, k, d)``. Where a class has fewer different images than ``k``, the centres that
        are left are infinite: no image is nearest to them.

    Raises:
        TypeError: If the features are not floating or ``k`` is not whole.
        ValueError: If a shape does not fit, a feature is not finite, or labels are not 0 and 1.
    """
    from sklearn.cluster import KMeans

    owner = "subcategory_centres"
    check_integer(owner, "k", k, low=1)
    shown = _shown(owner, features, labels)
    points = features.detach().double().cpu().numpy()
    centres = np.full((shown.shape[1], k, points.shape[1]), np.inf)
    for c, of_class in enumerate(shown.T.cpu().numpy()):
        own = points[of_class]
        count = min(k, len(np.unique(own, axis=0)))
        if count:
            state = derive_seed(seed, "subcategories", c) % 2**32
            found = KMeans(count, n_init=10, random_state=state).fit(own)
            centres[c, :count] = found.cluster_centers_
    return torch.from_numpy(centres).to(features)


def assign_subcategories(
    features: Float[Tensor, "n d"], labels: Shaped[Tensor, "n c"], centres: Float[Tensor, "c k d"]
) -> Float[Tensor, "n ck"]:
    """Give each image, for each class that it shows, the sub-category of the nearest centre.

    Args:
        features: Pooled features ``(N, d)``.
        labels: 1 or True where an image shows a class ``(N, C)``.
        centres: From ``subcategory_centres``.

    Returns:
        float32 ``(N, C * k)``, class by class.

    Raises:
        TypeError: If the features are not floating.
        ValueError: If a shape does not fit, a feature is not finite, or labels are not 0 and 1.
    """
    owner = "assign_subcategories"
    shown = _shown(owner, features, labels)
    classes, k, _ = centres.shape
    check_shape(owner, "labels", labels, "n c", c=classes)
    check_shape(owner, "centres", centres, "c k d", d=features.shape[1])
    nearest = torch.stack([_nearest(features, own) for own in centres.to(features)], dim=1)
    one_of = functional.one_hot(nearest, k) * shown[:, :, None]
    return one_of.flatten(1).float()


def subcategory_loss(
    logits: Float[Tensor, "b c"],
    sub_logits: Float[Tensor, "b ck"],
    y: Shaped[Tensor, "b c"],
    y_sub: Shaped[Tensor, "b ck"],
    gamma: float = 5.0,
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Classify classes and sub-categories: :math:`L(s, Y) + \gamma L(s', Y')`.

    Each L is the mean over (sub-)classes of the binary cross entropy with logits.

    Args:
        logits: Logits of the classes ``(B, C)``.
        sub_logits: Logits of the sub-categories ``(B, C * k)``.
        y: 1 or True where an image shows a class.
        y_sub: Its sub-categories, from ``subcategory_labels``.
        gamma: Weight of the second term, at least 0; 5 as in sub-category exploration.
        reduction: ``"mean"`` over the images, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``.

    Raises:
        TypeError: If logits are not floating.
        ValueError: If shapes do not fit or an option is out of range.

    Example:
        >>> zeros = torch.zeros(2, 3)
        >>> subcategory_loss(zeros, torch.zeros(2, 6), zeros, torch.zeros(2, 6), gamma=1.0)
        tensor(1.3863)
    """
    owner = "subcategory_loss"
    check_range(owner, "gamma", gamma, low=0.0)
    check_reduction(owner, reduction)
    check_shape(owner, "logits", logits, "b c")
    check_shape(owner, "sub_logits", sub_logits, "b s", b=len(logits))
    check_same_shape(owner, logits=logits, y=y)
    check_same_shape(owner, sub_logits=sub_logits, y_sub=y_sub)
    for name, tensor in (("logits", logits), ("sub_logits", sub_logits)):
        check_floating(owner, name, tensor)
    return reduce_all(_mean_bce(logits, y) + gamma * _mean_bce(sub_logits, y_sub), reduction)


def _nearest(features: Tensor, centres: Tensor) -> Tensor:
    # differences, for the distances of torch.cdist cancel and do not take infinities; in parts,
    # for those of a whole data set are many
    parts = features.split(_AT_ONCE)
    return torch.cat([(part[:, None] - centres).square().sum(2).argmin(1) for part in parts])


def _mean_bce(logits: Tensor, target: Tensor) -> Tensor:
    target = target.to(logits)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return each.mean(1)


def _shown(owner: str, features: Tensor, labels: Tensor) -> Tensor:
    check_floating(owner, "features", features)
    sizes = check_shape(owner, "features", features, "n d")
    check_finite(owner, "features", features)
    check_shape(owner, "labels", labels, "n c", n=sizes["n"])
    shown = labels != 0
    if not bool((labels == shown).all()):
        raise ValueError(f"{owner}: labels must be 0 or 1; they hold other values.")
    return shown
