import pytest
import torch
from cv_core.nn.attention import Attention, NonLocalBlock
from cv_core.nn.gates import (
    CBAM,
    ChannelAttention,
    EfficientChannelAttention,
    SqueezeExcitation,
)
from cv_core.nn.transformer import TransformerBlock, TransformerEncoder
from torch import nn

timm = pytest.importorskip("timm", reason="timm is the peer compared with")

X = torch.randn(2, 32, 6, 5, generator=torch.Generator().manual_seed(0))


def test_squeeze_excitation():
    from timm.layers import SEModule

    ours = SqueezeExcitation(32, reduction=4)
    theirs = SEModule(32, rd_channels=8)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(X), theirs(X))


@pytest.mark.parametrize("channels", [8, 16, 64, 128, 256, 512, 2048])
def test_efficient_channel_attention(channels):
    from timm.layers import EcaModule

    ours, theirs = EfficientChannelAttention(channels), EcaModule(channels)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, channels, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_cbam():
    from timm.layers.cbam import CbamModule, ChannelAttn

    gate, peer = ChannelAttention(32, reduction=8), ChannelAttn(32, rd_channels=4)
    peer.load_state_dict(gate.state_dict())
    torch.testing.assert_close(gate(X), peer(X))
    ours, theirs = CBAM(32, reduction=8), CbamModule(32, rd_channels=4)
    nn.init.normal_(ours.spatial.bn.bias)
    theirs.channel.load_state_dict(ours.channel.state_dict())
    theirs.spatial.conv.conv.load_state_dict(ours.spatial.conv.state_dict())
    theirs.spatial.conv.bn.load_state_dict(ours.spatial.bn.state_dict())
    torch.testing.assert_close(ours(X), theirs(X))  # in training mode, with batch statistics
    torch.testing.assert_close(ours.eval()(X), theirs.eval()(X))


def test_non_local_block():
    from timm.layers.non_local_attn import NonLocalAttn

    theirs = NonLocalAttn(32, rd_channels=8)
    theirs.norm = nn.Identity()  # theirs ends in a normalisation, ours as published
    for layer in (theirs.t, theirs.p, theirs.g, theirs.z):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)
    ours = NonLocalBlock(32, 8, scale=32**-0.5)
    for name in "tpgz":
        mine, other = getattr(ours, name), getattr(theirs, name)
        mine.load_state_dict({"weight": other.weight[:, :, :, 0], "bias": other.bias})
    torch.testing.assert_close(ours(X), theirs(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias):
    from timm.layers import Attention as Peer

    ours, theirs = Attention(16, 4, qkv_bias=bias), Peer(16, 4, qkv_bias=bias)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_a_vision_transformers_blocks_load_as_they_are():
    from timm.models.vision_transformer import Block, VisionTransformer

    tokens = torch.randn(2, 9, 16)
    ours, theirs = TransformerBlock(16, 4), Block(16, 4, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(tokens), theirs(tokens))
    vit = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=4, num_classes=3
    ).eval()
    encoder = TransformerEncoder(16, depth=2, heads=4).eval()
    states = {k: v for k, v in vit.state_dict().items() if k.startswith(("blocks.", "norm."))}
    encoder.load_state_dict(states)
    torch.testing.assert_close(encoder(tokens), vit.norm(vit.blocks(tokens)))
