"""Labels merged by what their objects share: object embeddings, their clusters, label matrices."""

from __future__ import annotations

import numpy as np
import torch
from cv_core.checks import (
    check_finite,
    check_floating,
    check_indices,
    check_integer,
    check_shape,
)
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional


def object_embedding(*blocks: Float[Tensor, "n _"]) -> Float[Tensor, "n d"]:
    """Put several descriptions of the object classes side by side, each normalised.

    Blocks of any length weigh the same. The paper takes a detector's classifier rows, word vectors,
    and which predicates a class is defined with.

    Args:
        *blocks: Descriptions ``(n, d_i)``, one row per object class.

    Returns:
        ``(n, d_1 + d_2 + ...)``: every row of every block has length 1; a row of zeros stays so.

    Raises:
        TypeError: If a block is not floating.
        ValueError: If there is none, a shape does not fit, or an entry is not finite.

    Example:
        >>> object_embedding(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0, 0.0]]))
        tensor([[0.6000, 0.8000, 0.0000, 1.0000, 0.0000]])
    """
    owner = "object_embedding"
    if not blocks:
        raise ValueError(f"{owner}: blocks must hold at least one description.")
    for block in blocks:
        check_floating(owner, "blocks", block)
        check_shape(owner, "blocks", block, "n d", n=len(blocks[0]))
        check_finite(owner, "blocks", block)
    return torch.cat([functional.normalize(block, dim=1) for block in blocks], dim=1)


def cluster_objects(embeddings: Float[Tensor, "n d"], k: int, seed: int = 0) -> Int64[Tensor, " n"]:
    """Cluster object classes by k-means, the best of ten starts.

    Args:
        embeddings: One row per object class, such as ``object_embedding`` gives.
        k: Number of clusters, from 1 to the number of different rows.
        seed: Of the starts.

    Returns:
        The cluster of each class in ``[0, k)``, numbered in the order in which they first occur.

    Raises:
        TypeError: If the embeddings are not floating.
        ValueError: If ``k`` is out of range or an entry is not finite.

    Example:
        >>> cluster_objects(torch.tensor([[9.0], [0.0], [9.1]]), 2)
        tensor([0, 1, 0])
    """
    from sklearn.cluster import KMeans

    owner = "cluster_objects"
    check_floating(owner, "embeddings", embeddings)
    check_shape(owner, "embeddings", embeddings, "n d")
    check_finite(owner, "embeddings", embeddings)
    rows = embeddings.detach().cpu().double().numpy()
    check_integer(owner, "k", k, low=1, high=len(np.unique(rows, axis=0)))
    found = KMeans(k, n_init=10, random_state=seed).fit(rows).labels_
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[inverse]).long()


def merge_label_matrix(
    triplets: Int[Tensor, "c 2"], object_cluster: Int[Tensor, " n"]
) -> Float[Tensor, "k c"]:
    """Merge triplets of one predicate whose objects are of one cluster.

    Args:
        triplets: Predicate and object class of each label, all different.
        object_cluster: Cluster of each object class. All in one: predicates are left; each in its
            own: triplets.

    Returns:
        ``T``, which is 1 where the super class (row) holds the label (column); super classes are in
        the order of predicate, then cluster. Each column has exactly one 1.

    Raises:
        TypeError: If the indices are not whole numbers.
        ValueError: If a shape does not fit, an index is out of range or a triplet occurs twice.

    Example:
        >>> merge_label_matrix(torch.tensor([[0, 0], [0, 1], [1, 1]]), torch.tensor([0, 0]))
        tensor([[1., 1., 0.],
                [0., 0., 1.]])
    """
    owner = "merge_label_matrix"
    check_shape(owner, "triplets", triplets, "c 2")
    classes = check_shape(owner, "object_cluster", object_cluster, "n")["n"]
    check_indices(owner, "triplets", triplets[:, 0], high=2**31, ignore=None)
    check_indices(owner, "triplets' objects", triplets[:, 1], high=classes, ignore=None)
    check_indices(owner, "object_cluster", object_cluster, high=2**31, ignore=None)
    if len(triplets.unique(dim=0)) < len(triplets):
        raise ValueError(f"{owner}: triplets must all be different; one occurs twice.")
    merged = torch.stack([triplets[:, 0], object_cluster[triplets[:, 1].long()]], dim=1)
    inverse = merged.unique(dim=0, return_inverse=True)[1]
    return functional.one_hot(inverse).T.float().contiguous()
