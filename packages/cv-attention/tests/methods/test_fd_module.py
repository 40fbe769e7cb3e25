from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torchvision
from cv_attention._shared.refining import StagePart, refine_stage_, refined
from cv_attention._shared.stages import Stage
from cv_attention.methods import fd_module
from cv_attention.methods.fd_module import (
    FDConv,
    FeatureDifference,
    add_feature_difference,
    add_feature_difference_,
    fd_placement,
    fd_resnet,
    feature_difference,
    feature_difference_mask,
)
from cv_core.models.resnet import cifar_preactivated_resnet, cifar_resnet
from cv_core.nn.surgery import remove
from torch import Tensor, nn
from torch.nn import functional


def pair(*shape: int, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, f = scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x, f


def randomised(model: nn.Module) -> nn.Module:
    """Give a network statistics and gains that differ from 0 and 1, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


def images(size: int = 32, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)


# --- the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_slow_reference(beta: float) -> None:
    x, f = pair(2, 3, 4, 5)
    expected = torch.empty_like(f)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in f.shape)).tolist():
        z = f[tuple(index)].item() - x[tuple(index)].item()
        change = z * z / (2 * beta) if abs(z) < beta else abs(z) - beta / 2
        expected[tuple(index)] = 1 / (1 + math.exp(-change))
    torch.testing.assert_close(feature_difference_mask(x, f, beta=beta), expected)
    torch.testing.assert_close(feature_difference(x, f, beta=beta), expected * f)
    assert torch.equal(FeatureDifference(beta)(x, f), feature_difference(x, f, beta=beta))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_is_the_sigmoid_of_torchs_smooth_l1(beta: float) -> None:
    x, f = pair(2, 3, 4, 5)
    change = functional.smooth_l1_loss(f, x, reduction="none", beta=beta)
    assert torch.equal(feature_difference_mask(x, f, beta=beta), change.sigmoid())


def test_no_change_halves_and_large_change_keeps() -> None:
    _, f = pair(2, 3, 4, 5)
    assert torch.equal(feature_difference(f, f), f / 2)
    assert torch.equal(feature_difference(f + 1e3, f), f)


def test_bounds_and_sign() -> None:
    x, f = pair(4, 8, 8, 8, scale=6.0)
    refined = feature_difference(x, f)
    assert (refined.abs() >= f.abs() / 2).all()
    assert (refined.abs() <= f.abs()).all()
    assert torch.equal(refined.sign(), f.sign())
    strictly = (f - x).abs() < 16
    assert strictly.any()
    assert (refined.abs()[strictly] < f.abs()[strictly]).all()


def test_mask_ignores_order_and_common_shift() -> None:
    x, f = pair(2, 3, 4, 5)
    mask = feature_difference_mask(x, f)
    assert torch.equal(mask, feature_difference_mask(f, x))
    torch.testing.assert_close(mask, feature_difference_mask(x + 0.7, f + 0.7))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_gradient_flows_through_both_paths_as_derived(beta: float) -> None:
    x, f = (tensor.requires_grad_() for tensor in pair(2, 3, 4, 5))
    feature_difference(x, f, beta=beta).sum().backward()
    with torch.no_grad():
        m = feature_difference_mask(x, f, beta=beta)
        through_mask = f * m * (1 - m) * ((f - x) / beta).clamp(-1, 1)
    torch.testing.assert_close(f.grad, m + through_mask)
    torch.testing.assert_close(x.grad, -through_mask)
    small = [tensor.detach()[:1, :2, :2, :2].requires_grad_() for tensor in (x, f)]
    refine = FeatureDifference(beta)
    assert torch.autograd.gradcheck(refine, small)
    assert torch.autograd.gradgradcheck(refine, small)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5, 6), (2, 3)])
def test_any_number_of_spatial_axes(shape: tuple[int, ...]) -> None:
    x, f = pair(*shape)
    flat = feature_difference(x.reshape(1, 1, 1, -1), f.reshape(1, 1, 1, -1))
    assert torch.equal(feature_difference(x, f), flat.reshape(shape))


# --- networks written by hand -----------------------------------------------------------------


def basic_block(block: nn.Module, x: Tensor) -> Tensor:
    hidden = block.bn1(block.conv1(x)).relu()
    f = feature_difference(hidden, block.bn2(block.conv2(hidden)))
    return (f + (x if block.downsample is None else block.downsample(x))).relu()


def bottleneck(block: nn.Module, x: Tensor) -> Tensor:
    hidden = block.bn1(block.conv1(x)).relu()
    f = block.bn2(block.conv2(hidden))
    if block.conv2.stride == (1, 1):
        f = feature_difference(hidden, f)
    out = block.bn3(block.conv3(f.relu()))
    return (out + (x if block.downsample is None else block.downsample(x))).relu()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("resnet18", basic_block),
        ("resnet50", bottleneck),
        ("resnext50_32x4d", bottleneck),
    ],
)
def test_torchvision_residual_networks(name: str, reference) -> None:
    plain = randomised(torchvision.models.get_model(name))
    with_fd = add_feature_difference(plain)
    x = plain.maxpool(plain.bn1(plain.conv1(images())).relu())
    expected = x
    for layer in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
        for block in layer:
            expected = reference(block, expected)
    expected = plain.fc(plain.avgpool(expected).flatten(1))
    torch.testing.assert_close(with_fd(images()), expected)


def test_torchvision_vgg() -> None:
    layout = torchvision.models.vgg.cfgs["A"]
    plain = randomised(torchvision.models.vgg.make_layers(layout, batch_norm=True))
    layers = list(plain)
    expected, entered = images(), images()
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            entered = expected.clone()  # torchvision's ReLU works in place
        expected = layer(expected)
        if isinstance(layer, nn.BatchNorm2d) and entered.shape == expected.shape:
            assert layers[place - 1].in_channels == layer.num_features
            expected = feature_difference(entered, expected)
    torch.testing.assert_close(add_feature_difference(plain)(images()), expected)
    with torch.device("meta"):  # the whole network, without its large classifier's memory
        places = fd_placement(torchvision.models.vgg11_bn())
    assert [stage.last for stage in places.stages] == [
        "features.12",
        "features.19",
        "features.23",
        "features.26",
    ]


def test_torchvision_mobilenet() -> None:
    plain = randomised(torchvision.models.mobilenet_v2())
    expected = images()
    for part in plain.features:
        if not hasattr(part, "use_res_connect"):
            expected = part(expected)
            continue
        *expand, depthwise, project, norm = part.conv
        hidden = expand[0](expected) if expand else expected
        f = depthwise[1](depthwise[0](hidden))
        if depthwise[0].stride == (1, 1):
            f = feature_difference(hidden, f)
        out = norm(project(functional.relu6(f)))
        expected = expected + out if part.use_res_connect else out
    torch.testing.assert_close(add_feature_difference(plain).features(images()), expected)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_networks_keep_parameters_and_keys(depth: int) -> None:
    plain = cifar_resnet(depth)
    with_fd = getattr(fd_module, f"fd_resnet{depth}")(num_classes=10)
    assert list(plain.state_dict()) == list(with_fd.state_dict())
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (plain, with_fd)]
    assert shapes[0] == shapes[1]
    assert len(refined(with_fd)) == (depth - 2) // 2  # every block


def test_cifar_network_by_hand() -> None:
    plain = randomised(cifar_resnet(8, width=0.5))
    with_fd = fd_resnet(8, width=0.5, beta=0.5).double().eval()
    with_fd.load_state_dict(plain.state_dict())
    expected = plain.bn1(plain.conv1(images())).relu()
    for layer in (plain.layer1, plain.layer2, plain.layer3):
        (block,) = layer
        hidden = block.bn1(block.conv1(expected)).relu()
        f = feature_difference(hidden, block.bn2(block.conv2(hidden)), beta=0.5)
        expected = (f + block.shortcut(expected)).relu()
    torch.testing.assert_close(with_fd(images()), plain.fc(expected.mean((2, 3))))


def test_preactivated_block_ends_at_its_convolution() -> None:
    plain = randomised(cifar_preactivated_resnet(8, width=0.5))
    block = plain.layer1[0]
    entered = block.bn2(block.conv1(block.bn1(images()[:, :1].expand(-1, 8, -1, -1)).relu())).relu()
    expected = feature_difference(entered, block.conv2(entered))
    with_fd = add_feature_difference(plain)
    got = with_fd.layer1[0].conv2(entered)
    torch.testing.assert_close(got, expected)


# --- taps -------------------------------------------------------------------------------------


class Half(nn.Module):
    def forward(self, _x: Tensor, f: Tensor) -> Tensor:
        return f / 2


def test_halving_before_the_norm_is_no_change_and_behind_it_halves_the_branch() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, eps=1e-12)).double()
    before, behind = copy.deepcopy(plain), copy.deepcopy(plain)
    refine_stage_(before, Stage("0", "0"), Half())
    refine_stage_(behind, Stage("0", "1"), Half())
    torch.testing.assert_close(before(images()), plain(images()))
    torch.testing.assert_close(behind(images()), plain(images()) / 2)


def test_tap_decides_where_f_is_read() -> None:
    torch.manual_seed(0)
    plain = randomised(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)))
    plain[1].bias.data.neg_()  # so that a ReLU has something to cut
    x, (conv, norm) = images(), plain
    f = norm(conv(x))
    expected = {
        "conv": norm(feature_difference(x, conv(x))),
        "bn": feature_difference(x, f),
        "relu": f * feature_difference_mask(x, f.relu()),
    }
    for tap, value in expected.items():
        torch.testing.assert_close(add_feature_difference(plain, tap=tap)(x), value)
    assert not torch.allclose(expected["bn"], expected["relu"])
    # a ReLU that follows directly makes them one, and the same as a mask behind the ReLU
    torch.testing.assert_close(expected["bn"].relu(), expected["relu"].relu())
    torch.testing.assert_close(expected["bn"].relu(), feature_difference(x, f.relu()))


# --- where ------------------------------------------------------------------------------------


def test_placement_lists_the_stages_and_the_reasons() -> None:
    model = torchvision.models.resnet50()
    placement = fd_placement(model)
    assert Stage("layer1.0.conv2", "layer1.0.bn2") in placement.stages
    assert len(placement.stages) == 13
    assert list(placement.skipped) == ["layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"]
    assert "layer2.0.conv2: skipped, its stride is (2, 2)" in str(placement)
    assert str(fd_placement(add_feature_difference(model))) == str(placement)


def test_patterns_reach_foreign_layers_and_whole_stages() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), nn.Conv2d(8, 3, 1))
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 3, 5, padding=2), "body": body}).double()
    with_fd = add_feature_difference(model, where=["stem", "body"])
    stem, f = model["stem"](images()), model["body"](images())
    torch.testing.assert_close(with_fd["stem"](images()), feature_difference(images(), stem))
    torch.testing.assert_close(with_fd["body"](images()), feature_difference(images(), f))


def test_where_refuses_what_it_cannot_do() -> None:
    model = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=r"'layer1.0.conv3' selects no module.*layer1.0.conv"):
        add_feature_difference(model, "layer1.0.conv3")
    with pytest.raises(ValueError, match=r"keep the shape.*conv1: it turns 3 channels into 64"):
        add_feature_difference(model, "conv1")
    with pytest.raises(ValueError, match="no convolution"):
        add_feature_difference(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"tap must be one of .* Did you mean 'bn'"):
        add_feature_difference(model, tap="bnn")
    with pytest.raises(ValueError, match=r"beta must lie in \(0, inf\)"):
        add_feature_difference(model, beta=0.0)
    with pytest.raises(ValueError, match=r"already behind layer1\.0\.bn2"):
        add_feature_difference(add_feature_difference(model))


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), ""),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), ""),
        (nn.Conv2d(4, 4, 3, padding="same"), ""),
        (nn.Conv1d(4, 4, 5, padding=2), ""),
        (nn.Conv2d(4, 4, 3), "padding"),
        (nn.Conv2d(4, 4, 3, padding="valid"), "padding"),
        (nn.Conv2d(4, 4, (3, 5), padding=(1, 1)), "padding"),
        (nn.Conv2d(4, 4, 3, padding=1, stride=(1, 2)), "stride"),
        (nn.Conv2d(4, 8, 3, padding=1), "4 channels into 8"),
        (nn.ConvTranspose2d(4, 4, 3, padding=1), "transposed"),
    ],
)
def test_static_shape_rule_agrees_with_running_the_layer(conv: nn.Module, reason: str) -> None:
    model = nn.Sequential(conv, nn.Conv1d(1, 1, 1))
    placement = fd_placement(model, "*")
    assert reason in placement.skipped.get("0", "")
    assert ("0" in placement.skipped) == bool(reason)
    size = (9,) if isinstance(conv, nn.Conv1d) else (9, 9)
    kept = conv(torch.zeros(1, 4, *size)).shape == (1, 4, *size)
    # a transposed convolution of stride 1 may keep the shape; it is left out all the same
    assert kept == (not reason) or isinstance(conv, nn.ConvTranspose2d)


def test_whole_stage_that_changes_the_shape_is_named() -> None:
    model = nn.Sequential(nn.Sequential(nn.MaxPool2d(2)))
    with pytest.raises(ValueError, match=r"x and f must have the same shape") as caught:
        add_feature_difference(model, "0")(torch.zeros(1, 3, 4, 4))
    assert "stage 0 -> 0" in caught.value.__notes__[0]


# --- what a user does with a network ------------------------------------------------------------


def test_original_is_untouched_and_removal_gives_it_back_bit_for_bit() -> None:
    plain = randomised(torchvision.models.resnet18())
    before, expected = repr(plain), plain(images())
    with_fd = add_feature_difference(plain)
    assert repr(plain) == before
    assert torch.equal(plain(images()), expected)
    assert not torch.allclose(with_fd(images()), expected)
    assert list(with_fd.state_dict()) == list(plain.state_dict())
    remove(with_fd, StagePart)
    assert repr(with_fd) == before
    assert torch.equal(with_fd(images()), expected)
    assert add_feature_difference_(plain) is plain


def test_checkpoints_load_in_both_directions() -> None:
    torch.manual_seed(0)
    plain, with_fd = cifar_resnet(8), fd_resnet(8)
    with_fd.load_state_dict(plain.state_dict(), strict=True)
    fresh = cifar_resnet(8)
    fresh.load_state_dict(with_fd.state_dict(), strict=True)
    x = images().float()
    assert torch.equal(fresh.eval()(x), plain.eval()(x))


def test_copies_answer_alike_and_hold_no_activation() -> None:
    model = fd_resnet(8)
    model(images().float()).sum().backward()  # leaves nothing behind that cannot be copied
    model.eval()
    expected = model(images().float())
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # noqa: S301 - our own bytes
    del model
    assert torch.equal(copied(images().float()), expected)


def test_every_parameter_gets_a_gradient() -> None:
    model = fd_resnet(8)
    model(images().float()).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not dead


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_type_of_f(dtype: torch.dtype) -> None:
    x, f = pair(2, 3, 4, 5)
    out = feature_difference(x.float(), f.to(dtype))
    assert out.dtype == dtype
    exact = feature_difference(x, f)
    torch.testing.assert_close(out.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


def test_autocast() -> None:
    model = fd_resnet(8).eval()
    x = images().float()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.1, atol=0.1)


def test_compiles_in_one_graph() -> None:
    model = fd_resnet(8, width=0.25).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images().float()), model(images().float()))


def test_survives_the_conversion_to_synchronised_norms() -> None:
    model = fd_resnet(8)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert isinstance(converted.layer1[0].bn2.inner, nn.SyncBatchNorm)
    assert torch.equal(converted(images().float()), model.eval()(images().float()))


def test_last_layer_alone_is_refused() -> None:
    model = fd_resnet(8)
    with pytest.raises(RuntimeError, match=r"layer1.0.bn2 was called without layer1.0.conv2"):
        model.layer1[0].bn2(torch.zeros(1, 16, 4, 4))


# --- FDConv and bad input -----------------------------------------------------------------------


def test_fdconv_refines_or_passes_through() -> None:
    torch.manual_seed(0)
    same = nn.Conv2d(3, 3, 3, padding=1).double()
    f = same(images())
    assert torch.equal(FDConv(same, 2.0)(images()), feature_difference(images(), f, beta=2.0))
    strided = nn.Conv2d(3, 3, 3, padding=1, stride=2).double()
    assert torch.equal(FDConv(strided, strict=False)(images()), strided(images()))
    with pytest.raises(ValueError, match=r"FDConv: stage must keep .*\(2, 3, 32, 32\)"):
        FDConv(strided)(images())


@pytest.mark.parametrize("refine", [feature_difference, feature_difference_mask])
def test_bad_input_is_refused(refine) -> None:
    owner, x = refine.__name__, torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match=rf"{owner}: x and f must have the same shape"):
        refine(x, x[:1])
    with pytest.raises(TypeError, match=rf"{owner}: f must be a floating-point tensor"):
        refine(x, x.long())
    with pytest.raises(ValueError, match=rf"{owner}: f is empty"):
        refine(x[:0], x[:0])
    with pytest.raises(ValueError, match=rf"{owner}: beta must lie in \(0, inf\)"):
        refine(x, x, beta=-1.0)


@pytest.mark.parametrize("beta", [0.0, math.nan, math.inf])
def test_bad_beta_is_refused_at_construction(beta: float) -> None:
    with pytest.raises(ValueError, match="FeatureDifference: beta must lie in"):
        FeatureDifference(beta)
