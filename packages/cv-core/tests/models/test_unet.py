import pytest
import torch
from cv_core.models.resnet import cifar_resnet
from cv_core.models.unet import UNet, UNetDecoder, double_conv
from cv_core.nn.blocks import ResidualBlock
from cv_core.nn.hooks import tap
from cv_core.nn.surgery import insert_after
from cv_core.random import seeded
from torch import nn
from torch.nn import functional


@pytest.mark.parametrize("size", [(16, 16), (9, 7), (1, 1), (5, 12)])
def test_any_size_comes_back_and_every_parameter_learns(size):
    with seeded(0):
        model = UNet(2, 3, widths=(4, 8, 16)).eval()  # statistics of single pixels would be zero
    out = model(torch.rand(2, 2, *size))
    assert out.shape == (2, 3, *size)
    (out * torch.randn_like(out)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoder.stages[0][0].conv.weight.grad.abs().sum() > 0


def test_it_is_encoder_decoder_head_written_out():
    model = UNet(1, 2, widths=(3, 5, 7)).eval()
    x = torch.rand(2, 1, 8, 12)
    fine = model.encoder.stages[0](x)
    middle = model.encoder.stages[1](functional.max_pool2d(fine, 2))
    coarse = model.encoder.stages[2](functional.max_pool2d(middle, 2))

    def up(x):
        return functional.interpolate(x, scale_factor=2, mode="bilinear")

    joined = model.decoder.stages[1](torch.cat([middle, up(coarse)], dim=1))
    joined = model.decoder.stages[0](torch.cat([fine, up(joined)], dim=1))
    torch.testing.assert_close(model(x), model.head(joined))


def test_an_odd_size_is_a_padded_even_one():
    model = UNet(1, 2, widths=(3, 5)).eval()
    x = torch.rand(1, 1, 7, 9)
    padded = torch.cat([x, x[:, :, -1:]], dim=2)
    padded = torch.cat([padded, padded[..., -1:]], dim=3)
    torch.testing.assert_close(model(x), model(padded)[:, :, :7, :9])


def test_blocks_and_halvings_may_be_exchanged():
    model = UNet(
        1,
        1,
        widths=(3, 5),
        block=lambda a, b: ResidualBlock(a, b, norm=nn.InstanceNorm2d),
        down=lambda width: nn.Conv2d(width, width, 2, stride=2),
    )
    assert sum(isinstance(m, ResidualBlock) for m in model.modules()) == 3
    assert isinstance(model.encoder.downs[0], nn.Conv2d)
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.MaxPool2d)) for m in model.modules())
    made = insert_after(model, "encoder.stages.1", lambda _: nn.Tanh())  # into the bottleneck
    with tap(model, "encoder.stages.1") as taps:
        model(torch.rand(1, 1, 4, 4))
    assert taps["encoder.stages.1"].output.abs().max() < 1
    assert list(made) == ["encoder.stages.1"]


def test_the_decoder_takes_the_maps_of_a_foreign_encoder():
    encoder = cifar_resnet(8, width=0.25).eval()
    decoder = UNetDecoder((4, 8, 16), widths=(6, 10)).eval()
    with tap(encoder, "layer?") as taps:
        encoder(torch.rand(2, 3, 15, 13))  # odd maps: 15x13, 8x7, 4x4
    maps = [taps[f"layer{number}"].output for number in (1, 2, 3)]
    assert decoder(maps).shape == (2, 6, 15, 13)
    assert decoder.out_channels == 6
    single = torch.rand(1, 4, 3, 3)
    assert UNetDecoder((4,))([single]) is single


def test_the_block_of_the_paper_has_two_convolutions():
    layers = [type(m) for m in double_conv(2, 3).modules() if not list(m.children())]
    assert layers == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2


def test_bad_options_and_inputs_are_refused():
    with pytest.raises(ValueError, match="widths must name at least one scale"):
        UNet(1, 1, widths=())
    with pytest.raises(ValueError, match="widths must have 1 entries"):
        UNetDecoder((4, 8), widths=(4, 8))
    with pytest.raises(ValueError, match="maps must be 2 feature maps; got 1"):
        UNetDecoder((4, 8))([torch.zeros(1, 4, 2, 2)])
    with pytest.raises(ValueError, match=r"maps\[1\] must have shape .* c=8"):
        UNetDecoder((4, 8))([torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 2, 2)])
    with pytest.raises(ValueError, match="c=1"):
        UNet(1, 1)(torch.zeros(1, 2, 8, 8))
