"""Our attention beside timm's, with the same weights."""

from __future__ import annotations

import pytest
import torch
from cv_attention.insertion import KNOWN
from torch import Tensor, nn

pytest.importorskip("timm", reason="timm is the peer compared with")


def maps() -> Tensor:
    return torch.randn(2, 32, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_coordinate_attention(bias: bool) -> None:
    from timm.layers import create_attn

    ours = KNOWN["coordinate"].build(32, reduction=2, bias=bias)
    theirs = create_attn("coord", 32, rd_channels=16, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(maps()), theirs(maps()))  # with batch statistics
    torch.testing.assert_close(ours.eval()(maps()), theirs.eval()(maps()))
    assert not torch.allclose(ours(maps()), maps())


@pytest.mark.parametrize(
    ("name", "options", "peer"),
    [("se", {"reduction": 4}, {"rd_channels": 8}), ("eca", {}, {})],
)
def test_gates(name: str, options: dict[str, int], peer: dict[str, int]) -> None:
    from timm.layers import create_attn

    ours, theirs = KNOWN[name].build(32, **options), create_attn(name, 32, **peer)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(maps()), theirs(maps()))


def test_cbam() -> None:
    from timm.layers import create_attn

    ours, theirs = KNOWN["cbam"].build(32, reduction=8), create_attn("cbam", 32, rd_channels=4)
    names = {"spatial.conv.weight": "spatial.conv.conv.weight"}
    state = {
        names.get(key, key.replace("spatial.bn", "spatial.conv.bn")): value
        for key, value in ours.state_dict().items()
    }
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours(maps()), theirs(maps()))


def test_non_local_block() -> None:
    from timm.layers import create_attn

    theirs = create_attn("nl", 32, rd_channels=16)
    nn.init.ones_(theirs.norm.weight)  # theirs ends in a normalisation, zero at first
    ours = KNOWN["non-local"].build(32, scale=32**-0.5)
    for name in "tpgz":
        weight = getattr(theirs, name).weight
        getattr(ours, name).load_state_dict(
            {"weight": weight[:, :, :, 0], "bias": getattr(theirs, name).bias}
        )
    inner = ours(maps()) - maps()
    torch.testing.assert_close(maps() + theirs.norm(inner), theirs(maps()), rtol=1e-4, atol=1e-4)
