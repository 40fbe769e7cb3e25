"""Erasing in the encoders of timm and segmentation-models-pytorch."""

from __future__ import annotations

import copy

import pytest
import torch
from cv_segmentation.domain_generalization import StyleJitter
from cv_segmentation.methods.scre import attach_scre
from torch import Tensor, nn


def leaves(output: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def check_encoder(model: nn.Module, layers: list[str]) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    plain = copy.deepcopy(model.train())
    keys, kinds = list(model.state_dict()), [type(part) for part in model.modules()]
    with attach_scre(model, layers, keep_prob=0.0) as scre:
        found = scre.find_channels(x, StyleJitter(torch.Generator().manual_seed(0)))
        outputs = leaves(model(x))
        for name, (_, ssc) in found.items():
            assert int(ssc.sum()) == int(0.3 * len(ssc)) > 0, name
        # the erased map of a stage is one of those that the encoder returns
        _, ssc = found[layers[-1]]
        (erased,) = [item for item in outputs if item.shape[1] == len(ssc)]
        assert not erased[:, ssc].any()
        assert erased[:, ~ssc].flatten(2).any(2).float().mean() > 0.5
        scre.whitening_loss().backward()
        assert next(model.parameters()).grad.abs().sum() > 0
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert list(model.state_dict()) == keys
    assert [type(part) for part in model.modules()] == kinds
    model.load_state_dict(plain.state_dict())  # undoes the running means of the passes
    ours, theirs = leaves(model.eval()(x)), leaves(plain.eval()(x))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer1", "layer2"]),
        ("convnext_atto", ["stages_0", "stages_1"]),
    ],
)
def test_timm(name: str, layers: list[str]) -> None:
    timm = pytest.importorskip("timm")
    check_encoder(timm.create_model(name, features_only=True), layers)


def test_smp() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    check_encoder(encoder, ["layer1.1", "layer2"])


def test_smp_model() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("resnet18", encoder_weights=None, classes=4)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with attach_scre(model, ["encoder.layer1", "encoder.layer2"]) as scre:
        scre.find_channels(x, StyleJitter(torch.Generator().manual_seed(0)))
        loss = model(x).square().mean() + scre.whitening_loss()
        loss.backward()
    assert all(part.grad is not None for part in model.encoder.layer2.parameters())
    assert not any(part._forward_hooks for part in model.modules())
