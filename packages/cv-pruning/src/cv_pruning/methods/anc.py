r"""ANC: neurons with almost the same incoming weights become one.

Liu, Liu, Wang, Zhong: *Deep Architecture Compression with Automatic Clustering of Similar Neurons*,
PRCV 2021, LNCS 13022, pp. 361-373.

A neuron is the vector of its incoming weights and bias. Mean shift with a flat kernel clusters the
neurons of a layer; how many clusters there are follows from the bandwidth, and is not chosen for
each layer. With the centres :math:`p` and the clusters :math:`r` of the neurons,

.. math::
    x \leftarrow \frac{1}{|N_h(x)|} \sum_{x_i \in N_h(x)} x_i, \qquad
    \hat w^l_p = p^l_p, \qquad
    \hat w^{l+1}_{ip} = \sum_{j: r^l_j = p} w^{l+1}_{ij}

where :math:`N_h(x)` are the neurons within the bandwidth :math:`h` of :math:`x`: one neuron per
cluster takes the centre's weights, and whatever read its members reads it with the sum of their
weights. The network is smaller and dense; a short fine-tuning restores its accuracy. Neurons that
are copies of each other are merged without any change of the network's function.

Deviations from the paper:
    - Its bandwidths (0.004 to 0.2) mean nothing across layers, whose weights differ in size. By
      default the bandwidth is half the median distance between the layer's neurons;
      ``bandwidth`` takes the paper's absolute one, ``quantile`` that of scikit-learn's
      ``estimate_bandwidth``.
    - It clusters all layers first and merges then, as here, but does not say whether later layers
      are clustered as trained: they are, so that no layer depends on another's clusters.
    - It does not treat batch normalisation, which is folded into the layer in front of it, exactly
      so in evaluation mode. A network without it is fine-tuned.
    - It treats chains of layers only. In residual blocks the inner layers are merged; what the
      residual stream adds up is left alone, and ``print(report)`` names every layer left out.
    - A mode that is nearest to no neuron is dropped, for it would be a neuron that nothing reads.

Example:
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight[3:].copy_(model[0].weight[:3])  # three neurons and their copies
    ...     _ = model[0].bias[3:].copy_(model[0].bias[:3])
    >>> small, report = compress_by_clustering(model, torch.zeros(1, 4), relative_bandwidth=0)
    >>> print(report)
    0: 6 -> 3 neurons (0 dead)
    2: skipped, the network puts it out
    parameters: 44 -> 23 (-47.7%)
    MACs: 36 -> 18 (-50.0%)
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(small(x), model(x), atol=1e-6)
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_shape,
)
from cv_core.nn.surgery import Where
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cv_pruning.merging import MergeReport, NeuronClusters, merge_network, neuron_rows

Model = TypeVar("Model", bound=nn.Module)
Center = Literal["mode", "mean"]


@torch.no_grad()
def mean_shift(
    X: Float[Tensor, "n d"], bandwidth: float, *, max_iter: int = 300, tol: float = 1e-6
) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " n"]]:
    """Cluster points by mean shift with a flat kernel.

    Every point climbs to the mean of the points within the bandwidth until it rests. The modes are
    taken in the order of their support, the number of points within the bandwidth, ties by their
    coordinates; one within the bandwidth of a mode taken before is dropped. Each point belongs to
    the nearest mode. All points climb at once, in float64. The result does not depend on the order
    of the points, but for the order of the labels.

    Args:
        X: (n, d) points.
        bandwidth: Radius of the kernel, at least 0; with 0 every distinct point is a cluster.
        max_iter: Most steps of a point.
        tol: A point rests once it moves by at most ``tol * bandwidth``.

    Returns:
        The modes (k, d), and the mode of each point (n,).

    Raises:
        TypeError: If ``X`` is not a floating-point tensor.
        ValueError: If it is not a finite matrix, or an option is out of range.

    Example:
        >>> centers, labels = mean_shift(torch.tensor([[0.0], [1.0], [9.0]]), bandwidth=2)
        >>> centers.flatten().tolist(), labels.tolist()
        ([0.5, 9.0], [0, 0, 1])
    """
    owner = "mean_shift"
    _check_points(owner, "X", X)
    check_range(owner, "bandwidth", bandwidth, low=0.0)
    check_integer(owner, "max_iter", max_iter, low=1)
    check_range(owner, "tol", tol, low=0.0)
    # Sorted and without copies: no result depends on the order, and copies never part by rounding.
    points, copies, counts = torch.unique(
        X.detach().double(), dim=0, return_inverse=True, return_counts=True
    )
    middle = points.mean(0)  # distances by products of matrices are exact near the origin only
    points = points - middle
    modes, support = _climb(points, counts.double(), bandwidth, max_iter, tol * bandwidth)
    modes = modes[_distinct(modes, support, bandwidth)]
    nearest = _distances(points, modes, bandwidth).argmin(1)
    used, nearest = torch.unique(nearest, return_inverse=True)
    return (modes[used] + middle).to(X.dtype), nearest[copies]


def _check_points(owner: str, name: str, points: Tensor) -> None:
    check_floating(owner, name, points)
    check_shape(owner, name, points, "n d")
    check_finite(owner, name, points)


def _climb(
    points: Tensor, counts: Tensor, bandwidth: float, max_iter: int, rest: float
) -> tuple[Tensor, Tensor]:
    """Move a copy of every point uphill; return where they end and how many points are there."""
    modes, support = points.clone(), counts.clone()
    moving = torch.arange(len(points), device=points.device)
    for _ in range(max_iter):
        here = modes[moving]
        near = (_distances(here, points, bandwidth) <= bandwidth) * counts
        total = near.sum(1)
        means = (near @ points) / total[:, None]
        # with a bandwidth near the rounding error, a point may not even be near itself
        means = torch.where(total[:, None] > 0, means, here)
        modes[moving], support[moving] = means, total
        moving = moving[(means - here).norm(dim=1) > rest]
        if not len(moving):
            break
    return modes, support


def _distinct(modes: Tensor, support: Tensor, bandwidth: float) -> list[int]:
    """Return which modes to keep: the best supported ones more than a bandwidth apart."""
    rank = list(zip(support.tolist(), modes.tolist(), strict=True))
    order = sorted(range(len(modes)), key=rank.__getitem__, reverse=True)
    near = (_distances(modes, modes, bandwidth) <= bandwidth).cpu().numpy()
    kept: list[int] = []
    for mode in order:
        if not near[mode, kept].any():
            kept.append(mode)
    return kept


def _distances(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return the distances of all pairs, exact enough to be compared with ``scale``."""
    # Products of matrices are ten times as fast; their error is about 1e-8 of the points' norm.
    is_far = scale > 1e-3 * float(b.norm(dim=1).max())
    mode = "use_mm_for_euclid_dist" if is_far else "donot_use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=mode)


@torch.no_grad()
def cluster_neurons(
    weight: Float[Tensor, "n *inputs"],
    bias: Float[Tensor, " n"] | None = None,
    *,
    relative_bandwidth: float | None = None,
    bandwidth: float | None = None,
    quantile: float | None = None,
    center: Center = "mode",
) -> NeuronClusters:
    """Cluster the neurons of a layer by mean shift.

    Args:
        weight: (n, fan-in) of a linear layer or (n, C, kh, kw) of a convolution.
        bias: (n,), or ``None`` for a layer without; the last entry of a neuron's vector.
        relative_bandwidth: Bandwidth as a share of the median distance between two neurons of the
            layer, at least 0; 0.5 by default. Distances of many independent weights are nearly
            equal, so that all neurons merge at once a little below 1.
        bandwidth: Absolute bandwidth, at least 0, instead.
        quantile: Instead the mean distance of a neuron to the nearest ``quantile * n`` ones, itself
            included, in (0, 1], as in ``sklearn.cluster.estimate_bandwidth``.
        center: The weights of a merged neuron: the ``"mode"``, as in the paper, or the ``"mean"``
            of the cluster's neurons, which is nearest to them.

    Returns:
        The cluster of each neuron and the centres, largest support first.

    Raises:
        TypeError: If a tensor is not of a floating type.
        ValueError: If shapes do not fit, an entry is not finite, more than one bandwidth is given,
            or an option is out of range.

    Example:
        >>> cluster_neurons(torch.tensor([[0.0, 1.0], [0.0, 1.0], [5.0, 5.0]])).labels
        tensor([0, 0, 1])
    """
    rows = _checked_rows("cluster_neurons", weight, bias)
    _check_options("cluster_neurons", relative_bandwidth, bandwidth, quantile, center)
    if quantile is not None:
        bandwidth = _quantile_distance(rows, quantile)
    elif bandwidth is None:
        share = 0.5 if relative_bandwidth is None else relative_bandwidth
        bandwidth = share * _median_distance(rows)
    centers, labels = mean_shift(rows, bandwidth)
    if center == "mean":
        centers = cluster_means(rows, labels)
    return NeuronClusters(labels, centers)


def clusters_by_bandwidth(
    weight: Float[Tensor, "n *inputs"],
    bias: Float[Tensor, " n"] | None = None,
    *,
    shares: Sequence[float],
) -> list[int]:
    """Count the clusters of a layer's neurons at several bandwidths.

    Where there are clusters to find, the count stays the same over a range of bandwidths; where it
    falls from n to 1 at once, the bandwidth chooses between all neurons and none.

    Args:
        weight: (n, fan-in) of a linear layer or (n, C, kh, kw) of a convolution.
        bias: (n,), or ``None`` for a layer without.
        shares: Bandwidths as shares of the median distance between two neurons.

    Returns:
        The number of clusters at each bandwidth.

    Raises:
        TypeError: If a tensor is not of a floating type.
        ValueError: If shapes do not fit, an entry is not finite or a share is out of range.

    Example:
        >>> weight = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> clusters_by_bandwidth(weight, shares=[0.01, 0.1, 0.5, 1.2])
        [4, 2, 2, 1]
    """
    rows = _checked_rows("clusters_by_bandwidth", weight, bias)
    for share in shares:
        check_range("clusters_by_bandwidth", "shares", share, low=0.0)
    median = _median_distance(rows)
    return [len(mean_shift(rows, share * median)[0]) for share in shares]


def _checked_rows(owner: str, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_floating(owner, "weight", weight)
    n = check_shape(owner, "weight", weight, "n ...")["n"]
    if weight.ndim == 1:
        raise ValueError(f"{owner}: weight must have one row per neuron; got one axis only.")
    if bias is not None:
        check_floating(owner, "bias", bias)
        check_shape(owner, "bias", bias, "n", n=n)
    rows = neuron_rows(weight, bias)
    check_finite(owner, "weight", rows)
    return rows


def _check_options(
    owner: str,
    relative_bandwidth: float | None,
    bandwidth: float | None,
    quantile: float | None,
    center: str,
) -> None:
    given = {
        "relative_bandwidth": relative_bandwidth, "bandwidth": bandwidth, "quantile": quantile,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise ValueError(f"{owner}: only one bandwidth can be given; got {' and '.join(chosen)}.")
    for name, value in chosen.items():
        is_share = name == "quantile"
        check_range(
            owner, name, value, low=0.0, low_open=is_share, high=1.0 if is_share else float("inf")
        )
    check_choice(owner, "center", center, get_args(Center))


def _all_distances(rows: Tensor) -> Tensor:
    points = rows.double()
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def _median_distance(rows: Tensor) -> float:
    if len(rows) == 1:
        return 0.0
    above = torch.ones(len(rows), len(rows), dtype=torch.bool, device=rows.device).triu(1)
    return float(_all_distances(rows)[above].median())


def _quantile_distance(rows: Tensor, quantile: float) -> float:
    count = max(1, int(len(rows) * quantile))
    return float(_all_distances(rows).kthvalue(count, dim=1).values.mean())


def cluster_means(rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Tensor:
    """Return the mean (k, d) of the rows of each cluster; every cluster needs a row."""
    counts = torch.bincount(labels)
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, labels, rows)
    return sums / counts[:, None]


def kmeans_neurons(
    weight: Float[Tensor, "n *inputs"],
    bias: Float[Tensor, " n"] | None = None,
    *,
    n_clusters: int,
    seed: int = 0,
) -> NeuronClusters:
    """Cluster the neurons of a layer by k-means, whose number of clusters has to be known.

    The method that the paper compares with (MSN): scikit-learn's, the best of ten starts.

    Args:
        weight: (n, fan-in) of a linear layer or (n, C, kh, kw) of a convolution.
        bias: (n,), or ``None`` for a layer without.
        n_clusters: Number of clusters, at most n.
        seed: Seed of the starts.

    Returns:
        The cluster of each neuron and the centres.

    Raises:
        TypeError: If a tensor is not of a floating type.
        ValueError: If shapes do not fit, an entry is not finite or ``n_clusters`` is out of range.
    """
    from sklearn.cluster import KMeans

    rows = _checked_rows("kmeans_neurons", weight, bias)
    check_integer("kmeans_neurons", "n_clusters", n_clusters, low=1, high=len(rows))
    fitted = KMeans(n_clusters, n_init=10, random_state=seed).fit(rows.double().cpu().numpy())
    return NeuronClusters(
        torch.as_tensor(fitted.labels_, dtype=torch.int64, device=rows.device),
        torch.as_tensor(fitted.cluster_centers_).to(rows),
    )


def compress_by_clustering(
    model: Model,
    example_inputs: Any,
    *,
    relative_bandwidth: float | None = None,
    bandwidth: float | None = None,
    quantile: float | None = None,
    center: Center = "mode",
    skip: Where = (),
) -> tuple[Model, MergeReport]:
    """Merge similar neurons in all layers of a network that other layers alone read.

    Fine-tune what comes back with any loop, and an optimiser made afterwards. For other clusters,
    such as those of ``kmeans_neurons``, call ``merge_network``.

    Args:
        model: Any network of torchvision, timm or your own; it is left as it is.
        example_inputs: A tensor or a tuple of the arguments of one call, on the model's device.
        relative_bandwidth: As in ``cluster_neurons``, 0.5 by default: one number for all layers.
        bandwidth: As in ``cluster_neurons``.
        quantile: As in ``cluster_neurons``.
        center: As in ``cluster_neurons``.
        skip: Layers that keep all their neurons: name patterns or classes of modules.

    Returns:
        The smaller network, in plain torch modules, and what was done; ``print`` shows it.

    Raises:
        ValueError: If no layer can be merged, more than one bandwidth is given, or an option is
            out of range.
    """
    _check_options("compress_by_clustering", relative_bandwidth, bandwidth, quantile, center)

    def cluster(_name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
        return cluster_neurons(
            weight,
            bias,
            relative_bandwidth=relative_bandwidth,
            bandwidth=bandwidth,
            quantile=quantile,
            center=center,
        )

    return merge_network(model, example_inputs, cluster, skip=skip)


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weight = torch.randn(4, 3, 2, 2, generator=generator).repeat(3, 1, 1, 1)
        bias = torch.randn(4, generator=generator).repeat(3)
        return weight + 0.1 * torch.rand(weight.shape, generator=generator), bias

    return [
        Example(build=lambda: cluster_neurons, inputs=inputs, output_shapes=((12,), (4, 13))),
    ]


CARD = Card(
    slug="anc",
    title="Compression by merging neurons that mean shift finds similar",
    reference=Reference(
        title="Deep Architecture Compression with Automatic Clustering of Similar Neurons",
        authors="Liu, Liu, Wang, Zhong",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="361-373",
    ),
    kind="function",
    objects=(
        "cv_pruning.methods.anc.cluster_neurons",
        "cv_pruning.methods.anc.clusters_by_bandwidth",
        "cv_pruning.methods.anc.compress_by_clustering",
        "cv_pruning.methods.anc.kmeans_neurons",
        "cv_pruning.methods.anc.mean_shift",
        "cv_pruning.merging.MergeReport",
        "cv_pruning.merging.MergedLayer",
        "cv_pruning.merging.NeuronClusters",
        "cv_pruning.merging.merge_network",
        "cv_pruning.merging.merge_neurons",
    ),
    examples=_examples,
    properties=("deterministic",),
)
