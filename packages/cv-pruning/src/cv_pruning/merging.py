"""Merge the neurons of any network: find its chains, then sum what reads the merged ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from cv_core.checks import check_finite, check_floating, check_indices, check_shape
from cv_core.metrics.cost import count_macs, count_parameters
from cv_core.nn.surgery import Where, find, replace
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cv_pruning.chains import Chain, Layer, arguments, find_chains, layer_of

Model = TypeVar("Model", bound=nn.Module)


class NeuronClusters(NamedTuple):
    """Which neurons of a layer become one.

    Args:
        labels: (n,) cluster of each neuron in ``[0, k)``, or -1 for a neuron that is removed.
        centers: (k, d) incoming weights of the k new neurons, laid out as in ``neuron_rows``.
    """

    labels: Int64[Tensor, " n"]
    centers: Float[Tensor, "k d"]


Cluster = Callable[[str, Tensor, Tensor | None], NeuronClusters]
"""Takes a layer's name, weight and bias (or ``None``) and tells which neurons become one."""


@dataclass(frozen=True)
class MergedLayer:
    """What became of one layer.

    Args:
        name: The layer's dotted name.
        neurons: Neurons before.
        clusters: Neurons after.
        dead: Neurons whose incoming weights had a norm of at most 1 % of the layer's largest: any
            criterion would remove them.
        parameters: Weights and biases of the layer, before and after; folded normalisations
            count before.
    """

    name: str
    neurons: int
    clusters: int
    dead: int
    parameters: tuple[int, int]


@dataclass(frozen=True)
class MergeReport:
    """What merging did to a network; ``print`` shows it as a table.

    Args:
        layers: The layers that were merged, in the order in which they run.
        skipped: The reason for every other layer, by its name.
        parameters: Of the whole network, before and after.
        macs: Multiply-accumulates of the example inputs, before and after. Floating-point
            operations are twice as many, additions of biases not counted.
    """

    layers: tuple[MergedLayer, ...]
    skipped: Mapping[str, str]
    parameters: tuple[int, int]
    macs: tuple[int, int]

    def __str__(self) -> str:
        rows = [
            f"{layer.name}: {layer.neurons} -> {layer.clusters} neurons ({layer.dead} dead)"
            for layer in self.layers
        ]
        rows += [f"{name}: skipped, {reason}" for name, reason in self.skipped.items()]
        for what, (before, after) in (("parameters", self.parameters), ("MACs", self.macs)):
            rows.append(f"{what}: {before:,} -> {after:,} ({after / before - 1:+.1%})")
        return "\n".join(rows)


def neuron_rows(weight: Tensor, bias: Tensor | None = None) -> Float[Tensor, "n d"]:
    """Return each neuron's incoming weights as a row, its bias last.

    Args:
        weight: (n, fan-in) of a linear layer or (n, C, kh, kw) of a convolution.
        bias: (n,), or ``None`` for a layer without.
    """
    rows = weight.detach().flatten(1)
    return rows if bias is None else torch.cat([rows, bias.detach()[:, None]], dim=1)


def merge_neurons(layer: Layer, next_layer: Layer, clusters: NeuronClusters) -> tuple[Layer, Layer]:
    r"""Replace clusters of neurons by one neuron each, in a layer and in the one that reads it.

    .. math:: \hat w^l_p = c_p, \qquad \hat w^{l+1}_{ip} = \sum_{j: r_j = p} w^{l+1}_{ij}

    In a convolution the kernels of merged input channels are summed; in a linear layer behind a
    flattened map, the blocks of columns, one column per pixel.

    Args:
        layer: The layer of the n neurons.
        next_layer: The layer that reads them: n channels, or a multiple of n features.
        clusters: The clusters, from ``cluster_neurons`` or your own.

    Returns:
        Both layers anew; the ones handed in stay as they are.

    Raises:
        TypeError: If a layer is neither ``Conv2d`` nor ``Linear``.
        ValueError: If a convolution has groups, or the shapes do not fit together.
    """
    for name, part in (("layer", layer), ("next_layer", next_layer)):
        if not isinstance(part, Layer):
            raise TypeError(
                f"merge_neurons: {name} must be a Conv2d or Linear; got {type(part).__name__}."
            )
        if isinstance(part, nn.Conv2d) and part.groups != 1:
            raise ValueError(f"merge_neurons: {name} must have groups=1; got {part.groups}.")
    n, inputs = len(layer.weight), next_layer.weight.shape[1]
    wrong = isinstance(layer, nn.Linear) or isinstance(next_layer, nn.Conv2d)
    if inputs % n or (wrong and inputs != n):
        raise ValueError(
            f"merge_neurons: next_layer must read the {n} neurons of layer; it reads {inputs}."
        )
    check_clusters("merge_neurons", clusters, layer)
    merged, reading = copy.deepcopy(layer), copy.deepcopy(next_layer)
    set_rows_(merged, clusters.centers)
    sum_columns_(reading, clusters)
    return merged, reading


def check_clusters(owner: str, clusters: NeuronClusters, layer: Layer) -> None:
    """Refuse clusters that do not fit a layer.

    Args:
        owner: Who asks, for the message.
        clusters: The clusters.
        layer: The layer of the n neurons.

    Raises:
        TypeError: If labels or centres are of a wrong type.
        ValueError: If the shapes do not fit, or a label is out of range.
    """
    labels, centers = clusters
    check_floating(owner, "clusters.centers", centers)
    n, width = len(layer.weight), layer.weight[0].numel() + (layer.bias is not None)
    check_shape(owner, "clusters.centers", centers, "k d", d=width)
    check_shape(owner, "clusters.labels", labels, "n", n=n)
    check_indices(owner, "clusters.labels", labels, high=len(centers), ignore=-1)


@torch.no_grad()
def set_rows_(layer: Layer, rows: Tensor) -> None:
    """Give a layer other neurons, in place.

    Args:
        layer: The layer.
        rows: (k, d) as from ``neuron_rows``.
    """
    rows = rows.to(layer.weight)
    if layer.bias is not None:
        layer.bias = _parameter(rows[:, -1], layer.bias)
        rows = rows[:, :-1]
    shape = (len(rows), *layer.weight.shape[1:])
    layer.weight = _parameter(rows.reshape(shape), layer.weight)
    _tell_widths(layer)


@torch.no_grad()
def sum_columns_(layer: Layer, clusters: NeuronClusters) -> None:
    """Sum the weights with which a layer reads the neurons of a cluster, in place.

    Args:
        layer: The layer that reads; several columns per neuron are summed one by one.
        clusters: The clusters of the neurons it reads. Removed neurons are no longer read.
    """
    labels, weight = clusters.labels, layer.weight
    blocks = weight.reshape(len(weight), len(labels), -1)
    kept = labels >= 0
    summed = blocks.new_zeros(len(weight), len(clusters.centers), blocks.shape[2])
    summed.index_add_(1, labels[kept], blocks[:, kept])
    shape = (len(weight), -1, *weight.shape[2:])
    layer.weight = _parameter(summed.reshape(shape), weight)
    _tell_widths(layer)


def _parameter(value: Tensor, old: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)


def _tell_widths(layer: Layer) -> None:
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    else:
        layer.out_features, layer.in_features = layer.weight.shape


def merge_network(
    model: Model, example_inputs: Any, cluster: Cluster, *, skip: Where = ()
) -> tuple[Model, MergeReport]:
    """Merge the neurons of all chains of a network.

    Batch normalisations directly behind a merged layer are folded into it first, which is exact in
    evaluation mode. All layers are clustered as they are before anything is merged; rows are
    replaced and columns summed afterwards, an order that changes nothing, as both are linear.

    Args:
        model: Any network; it is left as it is.
        example_inputs: A tensor or a tuple of the arguments of one call, on the model's device.
        cluster: Called with the name, the weight and the bias of each layer, normalisation
            included; see ``Cluster``. It says what becomes of the layer's neurons.
        skip: Layers that keep all their neurons: a name pattern, a class of modules, or several
            of these. What they read may still shrink.

    Returns:
        A smaller copy in plain torch modules, with all training flags as in ``model``, and what
        was done.

    Raises:
        ValueError: If the network has no chain that is not skipped, a weight is NaN or infinite,
            or ``cluster`` returns what does not fit.
    """
    small = copy.deepcopy(model)
    chains, skipped = _chains_to_merge(small, example_inputs, skip)
    layers = {chain.layer: layer_of(small, chain.layer) for chain in chains}
    before = {name: count_parameters(layer) for name, layer in layers.items()}
    for chain in chains:
        if chain.norm:
            before[chain.layer] += count_parameters(small.get_submodule(chain.norm))
            _fold(small, chain)
    dead = {name: _dead(layer) for name, layer in layers.items()}
    found = {name: _clusters(name, layer, cluster) for name, layer in layers.items()}
    for chain in chains:
        set_rows_(layers[chain.layer], found[chain.layer].centers)
    for chain in chains:
        for reader in chain.readers:
            sum_columns_(layer_of(small, reader), found[chain.layer])
    merged = tuple(
        MergedLayer(
            name=name,
            neurons=len(found[name].labels),
            clusters=len(found[name].centers),
            dead=dead[name],
            parameters=(before[name], count_parameters(layer)),
        )
        for name, layer in layers.items()
    )
    inputs = arguments(example_inputs)
    return small, MergeReport(
        layers=merged,
        skipped=skipped,
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(count_macs(model, *inputs), count_macs(small, *inputs)),
    )


def _chains_to_merge(
    model: nn.Module, example_inputs: Any, skip: Where
) -> tuple[list[Chain], dict[str, str]]:
    """Find the chains that are not to be skipped, and the reasons for all other layers."""
    chains, skipped = find_chains(model, example_inputs)
    unwanted = set(find(model, skip))
    skipped |= {chain.layer: "as asked for" for chain in chains if chain.layer in unwanted}
    chains = [chain for chain in chains if chain.layer not in unwanted]
    if not chains:
        reasons = [f"{name}: {why}" for name, why in skipped.items()] or ["no Conv2d or Linear"]
        raise ValueError(
            f"merge_network: model must have a layer whose neurons only other layers read; "
            f"{type(model).__name__} has none. {'; '.join(reasons[:5])}."
        )
    return chains, skipped


def _clusters(name: str, layer: Layer, cluster: Cluster) -> NeuronClusters:
    weight = layer.weight.detach()
    check_finite("merge_network", f"{name}.weight", weight)
    clusters = cluster(name, weight, None if layer.bias is None else layer.bias.detach())
    check_clusters("merge_network", clusters, layer)
    return clusters


def _dead(layer: Layer) -> int:
    norms = neuron_rows(layer.weight, layer.bias).norm(dim=1)
    return int((norms <= 0.01 * norms.max()).sum())


def _fold(model: nn.Module, chain: Chain) -> None:
    """Fold the normalisation behind a layer into it, wherever the network holds the two."""
    layer, norm = layer_of(model, chain.layer), model.get_submodule(chain.norm)
    assert isinstance(norm, _BatchNorm)  # noqa: S101 - find_chains takes no other
    weight, bias = fuse_conv_bn_weights(  # of a linear layer too: it scales rows
        layer.weight, layer.bias, norm.get_buffer("running_mean"), norm.get_buffer("running_var"),
        norm.eps, norm.weight, norm.bias,
    )  # fmt: skip
    # torch's new bias would not be trained if the layer had none
    trained = any(each.requires_grad for part in (layer, norm) for each in part.parameters())
    layer.weight, layer.bias = _parameter(weight, layer.weight), bias.requires_grad_(trained)
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if part is norm:
            replace(model, name, nn.Identity().train(norm.training))
