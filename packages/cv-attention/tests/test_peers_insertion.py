"""Attention in a network of timm."""

from __future__ import annotations

import pytest
import torch
from cv_attention.insertion import KNOWN, insert_attention, remove_attention

timm = pytest.importorskip("timm", reason="the peer's networks are needed")


@pytest.mark.parametrize("kind", KNOWN)
def test_convnext(kind: str) -> None:
    plain = timm.create_model("convnext_atto", num_classes=5).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = plain(x)
    model = insert_attention(plain, kind, where="stages.[12].blocks.0").eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".after." in name:
            parameter.data.uniform_(-0.3, 0.3, generator=generator)
    layer, old = model.stages[2].blocks[0], plain.stages[2].blocks[0]
    hidden = torch.rand(1, old.conv_dw.in_channels, 6, 5)
    assert torch.equal(layer(hidden), layer.follower(old(hidden)))
    assert not torch.allclose(model(x), expected)
    again = remove_attention(model)
    assert repr(again) == repr(plain)
    assert list(again.state_dict()) == list(plain.state_dict())
    assert torch.equal(again(x), expected)
