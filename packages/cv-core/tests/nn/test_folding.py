import copy

import pytest
import torch
from cv_core.nn.folding import fold_batchnorm, scale_into_batchnorm
from torch import nn


def _filled(bn):
    generator = torch.Generator().manual_seed(0)
    bn.running_mean.normal_(generator=generator)
    bn.running_var.uniform_(0.1, 3.0, generator=generator)
    if bn.affine:
        with torch.no_grad():
            bn.weight.normal_(generator=generator)
            bn.bias.normal_(generator=generator)
    return bn.double()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [
        (nn.Conv1d, nn.BatchNorm1d, (2, 4, 9)),
        (nn.Conv2d, nn.BatchNorm2d, (2, 4, 7, 6)),
        (nn.Conv3d, nn.BatchNorm3d, (2, 4, 5, 4, 3)),
    ],
)
def test_folding_is_exact(conv, norm, shape, bias, affine):
    layer = conv(4, 6, 3, stride=2, padding=1, groups=2, bias=bias).double()
    bn = _filled(norm(6, affine=affine)).eval()
    before = copy.deepcopy((layer, bn))
    folded = fold_batchnorm(layer, bn)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(folded(x), bn(layer(x)), rtol=1e-12, atol=1e-12)
    for module, copied in zip((layer, bn), before, strict=True):  # neither is touched
        states = copied.state_dict()
        assert all(torch.equal(value, states[key]) for key, value in module.state_dict().items())
    assert folded.training is layer.training is True


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("factor", [0.25, torch.tensor(-3.0), torch.tensor([0.0, 1.0, -2.0])])
@pytest.mark.parametrize("training", [True, False])
def test_a_gate_folds_into_the_normalisation(factor, affine, training):
    bn = _filled(nn.BatchNorm2d(3, affine=affine)).train(training)
    weight = None if bn.weight is None else bn.weight.clone()
    scaled = scale_into_batchnorm(bn, factor)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    gate = factor.view(-1, 1, 1).double() if isinstance(factor, torch.Tensor) else factor
    torch.testing.assert_close(scaled(x), gate * bn(x), rtol=1e-12, atol=1e-12)
    assert scaled.training is training
    assert scaled.weight.requires_grad
    assert weight is None or torch.equal(bn.weight, weight)


def test_gate_and_convolution_fold_into_one():
    conv, bn = nn.Conv2d(2, 3, 1).double(), _filled(nn.BatchNorm2d(3)).eval()
    gate = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    one = fold_batchnorm(conv, scale_into_batchnorm(bn, gate))
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(one(x), gate.view(-1, 1, 1) * bn(conv(x)), rtol=1e-12, atol=1e-12)


def test_what_cannot_be_folded_is_refused():
    with pytest.raises(TypeError, match="got ConvTranspose2d"):  # weights in another order
        fold_batchnorm(nn.ConvTranspose2d(2, 2, 1), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="running statistics"):
        fold_batchnorm(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ValueError, match="2 channels of conv; got 3"):
        fold_batchnorm(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="c=3"):
        scale_into_batchnorm(nn.BatchNorm2d(3), torch.ones(2))
    with pytest.raises(TypeError, match="floating-point"):
        scale_into_batchnorm(nn.BatchNorm2d(3), torch.ones(3, dtype=torch.long))


def test_folded_bias_is_trained_where_the_convolution_had_none():
    folded = fold_batchnorm(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))
    assert folded.weight.requires_grad
    assert folded.bias.requires_grad
    frozen = [nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)]
    for part in frozen:
        part.requires_grad_(False)
    assert not fold_batchnorm(*frozen).bias.requires_grad
