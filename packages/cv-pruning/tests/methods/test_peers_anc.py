"""ANC's mean shift, bandwidth and surgery against scikit-learn and torch-pruning."""

from __future__ import annotations

import pytest
import torch
from cv_core.random import torch_generator
from cv_pruning.methods.anc import cluster_neurons, compress_by_clustering, mean_shift
from torch import nn


def clumps(seed: int) -> torch.Tensor:
    generator = torch_generator(seed, "clumps")
    middles = 3 * torch.randn(6, 1, 4, generator=generator, dtype=torch.float64)
    return (middles + torch.randn(6, 10, 4, generator=generator, dtype=torch.float64)).flatten(0, 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bandwidth", [0.8, 2.0, 3.5])
def test_mean_shift_is_scikit_learn_s(seed, bandwidth):
    from sklearn.cluster import MeanShift

    X = clumps(seed)
    fitted = MeanShift(bandwidth=bandwidth).fit(X.numpy())
    centers, labels = mean_shift(X, bandwidth, tol=1e-3)  # scikit-learn's own
    used = torch.as_tensor(fitted.labels_).unique()  # it keeps modes that no point is nearest to
    torch.testing.assert_close(centers, torch.as_tensor(fitted.cluster_centers_)[used])
    assert torch.equal(used[labels], torch.as_tensor(fitted.labels_))


@pytest.mark.parametrize("quantile", [0.05, 0.3, 1.0])
def test_quantile_is_scikit_learn_s(quantile):
    from sklearn.cluster import estimate_bandwidth

    X = clumps(0)
    bandwidth = estimate_bandwidth(X.numpy(), quantile=quantile)
    expected = cluster_neurons(X, bandwidth=bandwidth)
    found = cluster_neurons(X, quantile=quantile)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.centers, expected.centers)


def test_layers_of_a_torchvision_resnet_are_those_that_torch_pruning_can_prune_alone():
    """A chain is a layer whose channels are bound to no other layer's output channels."""
    import torch_pruning
    import torchvision

    model = torchvision.models.resnet18(num_classes=4).eval()
    x = torch.rand(1, 3, 32, 32, generator=torch_generator(0, "x"))
    _, report = compress_by_clustering(model, x, bandwidth=0.0)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    free = []
    for name, part in model.named_modules():
        if not isinstance(part, nn.Conv2d):
            continue
        group = graph.get_pruning_group(part, torch_pruning.prune_conv_out_channels, idxs=[0])
        heads = {
            dep.target.module
            for dep, _ in group
            if graph.is_out_channel_pruning_fn(dep.handler)
            and isinstance(dep.target.module, nn.Conv2d)
        }
        if heads == {part}:
            free.append(name)
    assert [layer.name for layer in report.layers] == free
