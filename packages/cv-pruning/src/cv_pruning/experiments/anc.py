"""Does merging the neurons that mean shift finds similar compress better than other criteria?

Every arm trains the same network. Then one bandwidth for all layers, the smallest that removes the
wanted share of the parameters, gives every layer its width; no accuracy is looked at. All other
arms shrink the network to those widths: by k-means, by clusters of the same sizes drawn by lot, by
dropping the filters of the smallest L1 norm. One arm trains a network of those widths from scratch.
All are fine-tuned alike, the uncompressed network too.

The paper says that one bandwidth finds the widths by itself. If there are clusters to find, the
number of neurons stays the same over a range of bandwidths, a plateau, and does not fall from all
to one within a few per cent of bandwidth. The width of the fall is compared with that of shuffled
weights, where each weight is exchanged between the neurons and nothing is similar any more. Dead
neurons are left out of both: that they are alike is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import evaluate, fit
from cv_core.engine.task import SupervisedTask
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.trial import Trial
from torch import Tensor, nn
from torch.nn import functional

from cv_pruning.merging import MergeReport, NeuronClusters, merge_network, neuron_rows
from cv_pruning.methods.anc import (
    cluster_means,
    cluster_neurons,
    clusters_by_bandwidth,
    kmeans_neurons,
)

Found = Mapping[str, NeuronClusters]
Shrink = Callable[[Trial, nn.Sequential, Found], nn.Module]

MLP, VGG, VGG16 = "MLP", "small VGG", "VGG-16"


@dataclass(frozen=True)
class Images:
    """The images of a trial and their classes."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


def run(trial: Trial, *, shrink: Shrink | None) -> dict[str, float]:
    """Train, shrink, measure, fine-tune, measure; without ``shrink`` the network stays as it is."""
    images = images_of(trial)
    model: nn.Module = network(trial, images)
    train(trial, model, images, "training")
    found: dict[str, float] = {}
    if shrink is not None:
        assert isinstance(model, nn.Sequential)  # noqa: S101 - for the type checker
        clusters, report, share = widths(trial, model, images)
        if shrink is merged:
            found |= {"relative bandwidth": share, **shares(report, model)}
            rows = folded_rows(trial, model, clusters)
            found |= structure(trial, rows)
            show_clusters(trial, rows, clusters, kernel_shape(model, images))
        model = shrink(trial, model, clusters)
    if shrink is from_scratch:
        train(trial, model, images, "training")
    else:
        found["accuracy at once"] = accuracy(trial, model, images)
    train(trial, model, images, "tuning")
    found["accuracy after tuning"] = accuracy(trial, model, images)
    trial.model_cost(model, images.train_x[:1].to(trial.device))
    trial.cost(steps=sum(steps(trial, phase) for phase in ("training", "tuning")))
    return found


def images_of(trial: Trial) -> Images:
    """Draw as many of the run's images as the budget allows."""
    data, settings = trial.data, trial.settings
    train = torch.randperm(len(data.train_y), generator=trial.generator("training images"))
    test = torch.randperm(len(data.test_y), generator=trial.generator("test images"))
    train = train[: int(settings.part * settings.images)]
    test = test[: settings.test_images]
    return Images(
        data.train_x[train], data.train_y[train], data.test_x[test], data.test_y[test],
        data.num_classes,
    )  # fmt: skip


def network(
    trial: Trial, images: Images, layer_widths: Sequence[int] | None = None
) -> nn.Sequential:
    """Build the case's network, with widths of its own or with given ones, in order."""
    with trial.seeded("init"):
        model = build(
            images.train_x.shape[1:],
            images.classes,
            trial.settings.convolutions,
            trial.settings.hidden,
            layer_widths,
        )
    return model.to(trial.device)


def build(
    shape: Sequence[int],
    classes: int,
    convolutions: Sequence[int | str],
    hidden: Sequence[int],
    layer_widths: Sequence[int] | None = None,
) -> nn.Sequential:
    """Build a VGG with batch normalisation, or a perceptron if there are no convolutions.

    Args:
        shape: (C, H, W) of an image.
        classes: Number of outputs.
        convolutions: Channels of the 3x3 convolutions, and ``"M"`` for a maximum over 2x2 pixels.
        hidden: Widths of the hidden linear layers.
        layer_widths: Replace the numbers of both, in order.
    """
    channels, height, width = shape
    wanted = [item for item in (*convolutions, *hidden) if item != "M"]
    left = iter(wanted if layer_widths is None else layer_widths)
    layers: list[nn.Module] = []
    for item in convolutions:
        if item == "M":
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        else:
            after = int(next(left))
            convolution = nn.Conv2d(channels, after, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
            channels = after
    layers.append(nn.Flatten())
    features = channels * height * width
    for _ in hidden:
        after = int(next(left))
        layers += [nn.Linear(features, after), nn.ReLU()]
        features = after
    return nn.Sequential(*layers, nn.Linear(features, classes))


def steps(trial: Trial, phase: str) -> int:
    """Return the optimiser steps of a phase."""
    return int(trial.settings.part * trial.settings[f"{phase}_steps"])


def train(trial: Trial, model: nn.Module, images: Images, phase: str) -> None:
    """Train or fine-tune by SGD with a cosine schedule."""
    settings, total = trial.settings, steps(trial, phase)
    loader = TensorLoader(
        images.train_x, images.train_y, batch_size=settings.batch, shuffle=True, drop_last=True,
        seed=trial.generator("order", phase), device=trial.device,
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings[f"{phase}_rate"], momentum=0.9, weight_decay=1e-3
    )
    model.train()
    fit(
        SupervisedTask(model),
        loader,
        optimizer,
        max_steps=total,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total),
        on_epoch=lambda row: trial.curve(f"{phase} loss", row["step"], row["loss"]),
        fabric=trial.fabric,
    )
    model.eval()


def accuracy(trial: Trial, model: nn.Module, images: Images) -> float:
    """Return the test accuracy in per cent."""
    loader = TensorLoader(images.test_x, images.test_y, batch_size=500, device=trial.device)
    return 100 * evaluate(SupervisedTask(model), loader)["accuracy"]


def widths(trial: Trial, model: nn.Module, images: Images) -> tuple[Found, MergeReport, float]:
    """Find the smallest relative bandwidth that removes the wanted share of the parameters.

    Bisection; the count falls with the bandwidth but for single neurons.
    """
    example = images.train_x[:1].to(trial.device)
    low, high = 0.0, 2.0
    best: tuple[Found, MergeReport, float] | None = None
    for _ in range(trial.settings.halvings):
        share = (low + high) / 2
        found, report = clusters_at(model, example, share)
        before, after = report.parameters
        if 1 - after / before >= trial.settings.removed:
            high, best = share, (found, report, share)
        else:
            low = share
    return (*clusters_at(model, example, high), high) if best is None else best


def clusters_at(model: nn.Module, example: Tensor, share: float) -> tuple[Found, MergeReport]:
    """Cluster all layers with one relative bandwidth."""
    found: dict[str, NeuronClusters] = {}

    def cluster(name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
        found[name] = cluster_neurons(weight, bias, relative_bandwidth=share)
        return found[name]

    _, report = merge_network(model, example, cluster)
    return found, report


def shrunk(
    trial: Trial,
    model: nn.Module,
    found: Found,
    cluster: Callable[[str, Tensor, Tensor | None], NeuronClusters],
) -> nn.Module:
    """Merge as ``cluster`` says; the layers have as many neurons as the paper's method found."""
    shape = trial.data.train_x.shape[1:]
    example = torch.zeros(1, *shape, device=trial.device)
    small, report = merge_network(model, example, cluster)
    kept = {layer.name: layer.clusters for layer in report.layers}
    if kept != {name: len(clusters.centers) for name, clusters in found.items()}:
        raise ValueError(f"shrunk: cluster must keep the found widths; got {kept}.")
    return small


def merged(trial: Trial, model: nn.Module, found: Found) -> nn.Module:
    """Merge what mean shift found: the paper's method."""
    return shrunk(trial, model, found, lambda name, _weight, _bias: found[name])


def merged_by_kmeans(trial: Trial, model: nn.Module, found: Found) -> nn.Module:
    """Merge the clusters of k-means, as many as mean shift found."""

    def cluster(name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
        seed = int(trial.rng("k-means", name).integers(2**31))
        return kmeans_neurons(weight, bias, n_clusters=len(found[name].centers), seed=seed)

    return shrunk(trial, model, found, cluster)


def merged_by_lot(trial: Trial, model: nn.Module, found: Found) -> nn.Module:
    """Merge clusters of the found sizes whose members are drawn by lot."""

    def cluster(name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
        labels = found[name].labels
        lot = torch.randperm(len(labels), generator=trial.generator("lot", name))
        labels = labels[lot.to(labels.device)]
        return NeuronClusters(labels, cluster_means(neuron_rows(weight, bias), labels))

    return shrunk(trial, model, found, cluster)


def pruned_by_l1(trial: Trial, model: nn.Module, found: Found) -> nn.Module:
    """Keep the neurons of the largest L1 norms of incoming weights (Li et al., ICLR 2017)."""

    def cluster(name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
        return largest_l1(weight, bias, len(found[name].centers))

    return shrunk(trial, model, found, cluster)


def largest_l1(weight: Tensor, bias: Tensor | None, count: int) -> NeuronClusters:
    """Keep ``count`` neurons, each as its own cluster, and drop the others."""
    kept = weight.flatten(1).abs().sum(1).topk(count).indices
    labels = torch.full((len(weight),), -1, device=weight.device)
    labels[kept] = torch.arange(count, device=weight.device)
    return NeuronClusters(labels, neuron_rows(weight, bias)[kept])


def from_scratch(trial: Trial, model: nn.Module, found: Found) -> nn.Module:  # noqa: ARG001
    """Build an untrained network of the found widths."""
    counts = [len(clusters.centers) for clusters in found.values()]
    return network(trial, images_of(trial), counts)


def shares(report: MergeReport, model: nn.Module) -> dict[str, float]:
    """Tell what went, of convolutions and linear layers apart, and how much of it was dead."""
    (before, after), (macs_before, macs_after) = report.parameters, report.macs
    found = {
        "parameters removed": 100 * (1 - after / before),
        "MACs removed": 100 * (1 - macs_after / macs_before),
    }
    for kind, name in ((nn.Conv2d, "convolutions"), (nn.Linear, "hidden linear layers")):
        rows = [row for row in report.layers if isinstance(model.get_submodule(row.name), kind)]
        if rows:
            was, now = (sum(row.parameters[place] for row in rows) for place in (0, 1))
            found[f"parameters removed, {name}"] = 100 * (1 - now / was)
    gone = sum(row.neurons - row.clusters for row in report.layers)
    dead = sum(row.dead for row in report.layers)
    return found | {"dead neurons, of those removed": 100 * min(1.0, dead / max(gone, 1))}


def folded_rows(trial: Trial, model: nn.Module, found: Found) -> dict[str, Tensor]:
    """Return the neurons of each layer as they are clustered, with normalisations folded in."""
    example = torch.zeros(1, *trial.data.train_x.shape[1:], device=trial.device)
    rows: dict[str, Tensor] = {}

    def note(name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
        rows[name] = neuron_rows(weight, bias)
        return found[name]

    merge_network(model, example, note)
    return rows


def structure(trial: Trial, rows_of: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure how the number of neurons falls with the bandwidth; the least of the layers."""
    grid = torch.logspace(-0.4, 0.1, trial.settings.bandwidths, base=10.0).tolist()
    falls: dict[str, list[float]] = {"trained": [], "shuffled": []}
    plateaus: list[float] = []
    for name, rows in rows_of.items():
        norms = rows.norm(dim=1)
        alive = rows[norms > 0.01 * norms.max()]
        order = torch.rand(alive.shape, generator=trial.generator("shuffle", name)).argsort(0)
        shuffled = alive.gather(0, order.to(alive.device))
        for kind, points in (("trained", alive), ("shuffled", shuffled)):
            counts = clusters_by_bandwidth(points, shares=grid)
            falls[kind].append(fall(grid, counts, len(points)))
            if kind == "trained":
                plateaus.append(plateau(grid, counts, len(points)))
            for share, count in zip(grid, counts, strict=True):
                trial.curve(f"neurons left, layer {name}, {kind}", share, count / len(points))
    widths_of_falls = {f"width of the fall, {kind}": min(found) for kind, found in falls.items()}
    return {**widths_of_falls, "shortest plateau": min(plateaus)}


def fall(grid: Sequence[float], counts: Sequence[int], points: int) -> float:
    """Return by how many per cent the bandwidth grows from 90 to 10 % of the neurons.

    Both ends are the first bandwidth of the grid with so few; the grid's end if there is none.
    """
    ends = [
        next((share for share, count in zip(grid, counts, strict=True) if count <= limit), grid[-1])
        for limit in (0.9 * points, max(1.0, 0.1 * points))
    ]
    return 100 * (ends[1] / ends[0] - 1)


def plateau(grid: Sequence[float], counts: Sequence[int], points: int) -> float:
    """Return by how many per cent the bandwidth can grow while the count falls by a tenth at most.

    Counts of one cluster and of more than nine tenths of the points are left out: there, nothing
    or everything is merged.
    """
    longest = 1.0
    for start, first in enumerate(counts):
        if not 1 < first <= 0.9 * points:
            continue
        for end in range(start, len(counts)):
            if not max(2, 0.9 * first) <= counts[end] <= 1.1 * first:
                break
            longest = max(longest, grid[end] / grid[start])
    return 100 * (longest - 1)


def kernel_shape(model: nn.Sequential, images: Images) -> Sequence[int]:
    """Return (C, H, W) of what a neuron of the first layer looks at."""
    first = model[0]
    return first.weight.shape[1:] if isinstance(first, nn.Conv2d) else images.train_x.shape[1:]


def show_clusters(
    trial: Trial, rows_of: Mapping[str, Tensor], found: Found, shape: Sequence[int], most: int = 6
) -> None:
    """Show the first layer's largest clusters: each a row, its centre first, then its neurons."""
    name, (labels, centers) = next(iter(found.items()))
    rows = []
    for cluster in labels.bincount().argsort(descending=True)[:most].tolist():
        members = rows_of[name][labels == cluster][: most - 1]
        line = torch.cat([centers[cluster : cluster + 1], members])[:, :-1]  # without biases
        tiles = line.reshape(-1, *shape).mean(1)
        rows.append(functional.pad(tiles, (0, 1, 0, 1, 0, most - len(line))))
    sheet = torch.stack(rows)  # (clusters, tiles, height, width)
    sheet = sheet.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    scale = max(1, 240 // max(sheet.shape))
    sheet = (0.5 + 0.5 * sheet / sheet.abs().max().clamp_min(1e-12)).cpu()
    trial.picture("first layer, by cluster", sheet.kron(torch.ones(scale, scale)))


_COMMON = {
    "convolutions": (), "hidden": (256, 128), "batch": 100, "removed": 0.7, "halvings": 8,
    "part": 1.0, "training_rate": 0.1, "tuning_rate": 0.01, "bandwidths": 16,
}  # fmt: skip
_SMALL_VGG = {"convolutions": (16, "M", 32, "M", 64, "M"), "hidden": (128,), "part": 0.25}
_VGG16 = {
    "convolutions": (
        64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M",
    ),
    "hidden": (4096, 4096), "training_steps": 16_000, "tuning_steps": 6000,
}  # fmt: skip

EXPERIMENT = Experiment(
    slug="anc",
    question="Does merging similar neurons compress better than other criteria, and are there any?",
    data={"smoke": "digits", "default": "digits", "full": "mnist"},
    arms=(
        Arm("original", partial(run, shrink=None), "baseline", "Not compressed, tuned alike."),
        Arm("ANC", partial(run, shrink=merged), "paper", "Clusters by mean shift, modes."),
        Arm("k-means", partial(run, shrink=merged_by_kmeans), "control", "As many clusters."),
        Arm("random", partial(run, shrink=merged_by_lot), "control", "Clusters of these sizes."),
        Arm("L1 pruning", partial(run, shrink=pruned_by_l1), "control", "As many neurons kept."),
        Arm("from scratch", partial(run, shrink=from_scratch), "control", "The small network."),
    ),
    cases=(
        Case(MLP),
        Case(VGG, _SMALL_VGG, budgets=("smoke", "default")),
        Case(VGG16, _VGG16, data="cifar10", budgets=("full",)),
    ),
    metrics=(
        Metric("accuracy at once", "%", note="Test accuracy before any fine-tuning."),
        Metric("accuracy after tuning", "%", note="Test accuracy in the end."),
        Metric("parameters removed", "%", "neither", "The same in all compressed arms."),
        Metric("parameters removed, convolutions", "%", "neither"),
        Metric("parameters removed, hidden linear layers", "%", "neither"),
        Metric("MACs removed", "%", "neither"),
        Metric("dead neurons, of those removed", "%", "neither", "Norm <= 1 % of the largest."),
        Metric("relative bandwidth", "", "neither", "In median distances, one for all layers."),
        Metric(
            "width of the fall, trained", "%", "neither",
            "Growth of the bandwidth from 90 to 10 % of the neurons; least of the layers.",
        ),
        Metric("width of the fall, shuffled", "%", "neither", "For exchanged weights."),
        Metric(
            "shortest plateau", "%", "neither",
            "Growth of the bandwidth in which the count stays within a tenth; least of the layers.",
        ),
    ),
    claims=(
        Claim(
            arm="ANC", above="k-means", metric="accuracy after tuning", cases=(MLP,),
            paper=(98.97, 98.44), source="MNIST, DBN, net B: errors 1.03 and 1.56 %",
        ),
        Claim(
            arm="ANC", above="k-means", metric="accuracy after tuning", cases=(VGG, VGG16),
            paper=(93.73, 93.03), source="CIFAR-10, VGG-16, net B: errors 6.27 and 6.97 %",
        ),
        Claim(
            arm="ANC", above="original", metric="accuracy after tuning", cases=(MLP,),
            paper=(99.01, 98.97), source="MNIST, DBN, net A: errors 0.99 and 1.03 %",
        ),
        Claim(
            arm="ANC", above="original", metric="accuracy after tuning", cases=(VGG, VGG16),
            paper=(93.65, 93.62), source="CIFAR-10, VGG-16, net A: errors 6.35 and 6.38 %",
        ),
        Claim(
            arm="ANC", above="from scratch", metric="accuracy after tuning", cases=(MLP,),
            paper=(98.97, 96.79), source="MNIST, DBN, net B: errors 1.03 and 3.21 %",
        ),
        Claim(
            arm="ANC", above="from scratch", metric="accuracy after tuning", cases=(VGG, VGG16),
            source="Implied: shown for MNIST only.",
        ),
        Claim(
            arm="ANC", above="L1 pruning", metric="accuracy at once", cases=(VGG, VGG16),
            paper=(81.77, 32.54), source="CIFAR-10, the network of the L1 paper, not fine-tuned",
        ),
        Claim(
            arm="ANC", above="L1 pruning", metric="accuracy at once", cases=(MLP,),
            source="Implied: shown for convolutions only.",
        ),
        *(
            Claim(
                arm="ANC", above=control, metric="accuracy at once",
                source="Implied: merging these neurons changes the function least.",
            )
            for control in ("k-means", "random")
        ),
        Claim(
            arm="ANC", above="ANC", metric="width of the fall, trained",
            other_metric="width of the fall, shuffled",
            source="Implied: one bandwidth finds how many neurons each layer needs.",
        ),
    ),
    settings={
        "smoke": {
            **_COMMON, "hidden": (32, 16), "images": 400, "test_images": 200, "batch": 50,
            "training_steps": 16, "tuning_steps": 8, "halvings": 3, "bandwidths": 3,
        },
        "default": {
            **_COMMON, "images": 10_000, "test_images": 2000, "training_steps": 600,
            "tuning_steps": 200,
        },
        "full": {
            **_COMMON, "hidden": (500, 500, 2000), "images": 60_000, "test_images": 10_000,
            "training_steps": 36_000, "tuning_steps": 36_000, "bandwidths": 32,
        },
    },
    evidence=Evidence(data="mnist"),
    selection=(
        "The bandwidth is the smallest that removes 70 % of the parameters, the compression at "
        "which the claim is to be judged; no accuracy is looked at, and the other arms take over "
        "its widths. Rate, decay and length of the training were raised until the whole network "
        "was trained well, before any arm was compared; they are the same for all. The paper gives "
        "none."
    ),
    notes=(
        (
            "The paper's bandwidths are absolute (0.004 to 0.2), differ between its nets, and are "
            "chosen by hand; it gives neither seeds nor deviations."
        ),
        (
            "Merging folds the normalisations, so that compressed networks are tuned without them; "
            "the small network from scratch has its own and is trained for as many steps as the "
            "large one and its tuning."
        ),
        (
            "The default budget trains a 784-256-128-10 perceptron and a VGG of 16, 32 and 64 "
            "channels; the full one the paper's 784-500-500-2000-10 and VGG-16 with two hidden "
            "layers of 4096. The cifar10 data set is a sample of 10,000 images, JPEG copies."
        ),
    ),
)  # fmt: skip
