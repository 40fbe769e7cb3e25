"""Equality with segmentation-models-pytorch where the definitions agree.

Its U-Net with bilinear up-sampling is ours. Its DeepLabv3+ and FPN enlarge by factors, with corners
aligned, so that only the pooling of the one and the number of weights of the other can be compared.
"""

import pytest
import torch
from cv_segmentation.decoders.deeplab import ASPP
from cv_segmentation.decoders.fpn import FPNDecoder
from cv_segmentation.decoders.unet import UNetDecoder

CHANNELS = (3, 8, 8, 16, 24, 32)


@pytest.fixture(scope="module")
def decoders():
    reason = "smp is the peer compared with"
    return pytest.importorskip("segmentation_models_pytorch.decoders", reason=reason)


def copied(ours, theirs):
    """Give theirs the weights of ours, which come in the same order."""
    mine, other = list(ours.parameters()), list(theirs.parameters())
    assert [p.shape for p in mine] == [p.shape for p in other]
    with torch.no_grad():
        for source, target in zip(mine, other, strict=True):
            target.copy_(torch.randn_like(source) * 0.1)
            source.copy_(target)


def maps(size):
    return [
        torch.rand(2, width, -(-size[0] // 2**scale), -(-size[1] // 2**scale))
        for scale, width in enumerate(CHANNELS)
    ]


@pytest.mark.parametrize("training", [False, True])
def test_unet(decoders, training):
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    widths = (6, 8, 10, 12, 14)
    ours = UNetDecoder(CHANNELS, widths).train(training)
    theirs = UnetDecoder(CHANNELS, widths[::-1], interpolation_mode="bilinear").train(training)
    with torch.no_grad():  # theirs lists the coarsest step first
        for stage, block in zip(reversed(ours.stages), theirs.blocks, strict=True):
            copied(stage, block)
    features = maps((97, 131))
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-4, atol=1e-5)


def test_pooling_of_deeplab(decoders):
    from segmentation_models_pytorch.decoders.deeplabv3 import decoder

    ours = ASPP(8, 6, (2, 3, 5)).eval()
    theirs = decoder.ASPP(8, 6, (2, 3, 5), separable=False, dropout=0.5).eval()
    for mine, other in zip(ours.branches, theirs.convs, strict=False):
        copied(mine, other)
    copied(ours.join, theirs.project)
    with torch.no_grad():  # the normalisation of their mean, folded into our bias
        pooled = theirs.convs[-1]
        scale = pooled[2].weight / (pooled[2].running_var + pooled[2].eps).sqrt()
        ours.mean.conv.weight.copy_(pooled[1].weight * scale[:, None, None, None])
        ours.mean.conv.bias.copy_(pooled[2].bias - pooled[2].running_mean * scale)
    x = torch.rand(2, 8, 9, 11)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-6)


def test_weights_of_fpn(decoders):
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder as Peer

    ours, theirs = FPNDecoder(CHANNELS, 64, 32), Peer(CHANNELS, 5, 64, 32)
    counts = [sorted(p.numel() for p in decoder.parameters()) for decoder in (ours, theirs)]
    assert counts[0] == counts[1]
