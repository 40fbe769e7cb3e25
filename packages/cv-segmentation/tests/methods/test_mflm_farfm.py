from __future__ import annotations

import pytest
import torch
from cv_core.metrics.cost import count_parameters
from cv_segmentation.encoders import ConvEncoder
from cv_segmentation.losses.weighted_bce_iou import WeightedBCEIoULoss
from cv_segmentation.methods.mflm_farfm import (
    AttentionRefinement,
    FARFMDecoder,
    FeatureFusion,
    MultiScaleFeatureLearning,
    SaliencyNet,
)
from torch import Tensor, nn
from torch.nn import functional


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(model: nn.Module) -> nn.Module:
    """Give a module statistics and gains that differ from 0 and 1, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


def convolved(part: nn.Sequential, x: Tensor) -> Tensor:
    """A convolution of odd sides, its normalisation and, where there is one, its ReLU."""
    conv, norm, *rest = part
    (down, across), (rows, columns) = conv.kernel_size, conv.dilation
    padded = functional.pad(x, [columns * (across // 2)] * 2 + [rows * (down // 2)] * 2)
    out = functional.conv2d(padded, conv.weight, dilation=conv.dilation)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    out = (out - norm.running_mean[:, None, None]) * scale[:, None, None]
    out = out + norm.bias[:, None, None]
    return out.relu() if rest else out


# --- MFLM -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilated", [False, True])
def test_branches_as_in_the_table(dilated: bool) -> None:
    module = randomised(MultiScaleFeatureLearning(4, 6, kernels=(3, 7), dilated=dilated))
    x = draw(2, 4, 9, 11)
    maps = [convolved(module.branches[0], x)]
    for branch in list(module.branches)[1:]:
        y = x
        for part in branch:
            y = convolved(part, y)
        maps.append(y)
    expected = convolved(module.join, torch.cat(maps, 1)) + convolved(module.shortcut, x)
    torch.testing.assert_close(module(x), expected.relu())
    sizes = [[part[0].kernel_size for part in branch] for branch in list(module.branches)[1:]]
    whole = (3, 3) if dilated else (7, 7)
    assert sizes == [
        [(1, 1), (1, 3), (3, 1), (3, 3), (3, 3)],
        [(1, 1), (1, 7), (7, 1), whole, whole],
    ]


@pytest.mark.parametrize("dilated", [False, True])
def test_a_branch_sees_three_kernels_in_a_row(dilated: bool) -> None:
    module = randomised(MultiScaleFeatureLearning(2, 3, dilated=dilated))
    for branch, kernel in zip(list(module.branches)[1:], (3, 5, 7), strict=True):
        for part in branch.modules():
            if isinstance(part, nn.Conv2d):  # positive, so that no ReLU hides a pixel
                part.weight.data.abs_()
        x = draw(1, 2, 25, 25).abs().requires_grad_()
        branch(x)[0, :, 12, 12].sum().backward()
        seen = x.grad[0].abs().sum(0) > 0
        extent = 3 * (kernel - 1)  # each way together: nx1 or 1xn, and twice nxn
        for hit in (seen.any(0), seen.any(1)):
            places = hit.nonzero()[:, 0]
            assert int(places[-1] - places[0]) == extent


def test_number_of_weights() -> None:
    c_in, c = 5, 4
    branches = c_in * c + sum(c_in * c + 2 * n * c * c + 2 * n * n * c * c for n in (3, 5, 7))
    rest = 9 * 4 * c * c + c_in * c
    norms = 2 * c * (1 + 3 * 5 + 2)
    module = MultiScaleFeatureLearning(c_in, c)
    assert count_parameters(module) == branches + rest + norms


# --- FFM --------------------------------------------------------------------------------------


def test_fusion_as_printed() -> None:
    module = randomised(FeatureFusion(3))
    low, small = draw(2, 3, 7, 6), draw(2, 3, 4, 3, seed=1)
    high = functional.interpolate(small, (7, 6), mode="bilinear", align_corners=False)
    deep_low, deep_high = low, high
    for part in module.of_low:
        deep_low = convolved(part, deep_low)
    for part in module.of_high:
        deep_high = convolved(part, deep_high)
    common = deep_low * deep_high
    expected_low = low + convolved(module.to_low, common)  # Eq. 1
    expected_high = high + convolved(module.to_high, common)  # Eq. 2
    for found, expected in zip(module.fuse(low, high), (expected_low, expected_high), strict=True):
        torch.testing.assert_close(found, expected)
    found_low, found_high = module(low, small)
    torch.testing.assert_close(found_low, convolved(module.restore_low, expected_low))
    torch.testing.assert_close(found_high, convolved(module.restore_high, expected_high))
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert len({id(weight) for weight in weights}) == 8  # a G of its own at each place


@pytest.mark.parametrize("training", [False, True])
def test_without_its_last_convolutions_fusion_changes_nothing(training: bool) -> None:
    module = randomised(FeatureFusion(3)).train(training)
    for part in (module.to_low, module.to_high):
        nn.init.zeros_(part.conv.weight)
        for tensor in (part.norm.bias, part.norm.running_mean):
            nn.init.zeros_(tensor)
    low, high = draw(2, 3, 5, 6), draw(2, 3, 5, 6, seed=1)
    found_low, found_high = module.fuse(low, high)
    assert torch.equal(found_low, low)
    assert torch.equal(found_high, high)


def test_swapped_inputs_and_weights_swap_the_outputs() -> None:
    module, swapped = randomised(FeatureFusion(3)), FeatureFusion(3).double().eval()
    marks = str.maketrans({"1": "low", "2": "high"})
    state = {
        name.replace("low", "2").replace("high", "1").translate(marks): value
        for name, value in module.state_dict().items()
        if name.split(".")[0] in ("to_low", "to_high", "restore_low", "restore_high")
    }
    for name, value in module.state_dict().items():
        kind, rest = name.split(".", 1)
        if kind in ("of_low", "of_high"):
            state[f"{'of_high' if kind == 'of_low' else 'of_low'}.{rest}"] = value
    swapped.load_state_dict(state)
    low, high = draw(2, 3, 5, 6), draw(2, 3, 5, 6, seed=1)
    first, second = module(low, high), swapped(high, low)
    assert not torch.allclose(first[0], first[1])
    torch.testing.assert_close(first, second[::-1])


# --- ARM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_attention_as_printed_bounded_and_the_same_everywhere(training: bool) -> None:
    module = randomised(AttentionRefinement(4))
    x = 5 * draw(3, 4, 6, 5)
    weight, z = module.conv.weight.detach()[:, :, 0, 0], torch.zeros(3, 4).double()
    for n in range(3):
        means = [float(x[n, c].sum()) / 30 for c in range(4)]
        for c in range(4):
            z[n, c] = sum(float(weight[c, k]) * means[k] for k in range(4))
    norm = module.norm
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    if training:
        mean, variance = z.mean(0), z.var(0, correction=0)
    gate = ((z - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias).sigmoid()
    module.train(training)
    found = module(x)
    torch.testing.assert_close(found, x * gate[:, :, None, None])
    assert bool((found.abs() <= x.abs()).all())
    assert module.gate(x).shape == (3, 4, 1, 1)


@torch.no_grad()
def test_attention_does_not_see_where_things_are() -> None:
    module = randomised(AttentionRefinement(4))
    x = draw(2, 4, 6, 5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(module.gate(shuffled), module.gate(x))


def test_attention_needs_two_images_to_train_and_one_to_predict() -> None:
    module, x = AttentionRefinement(4), torch.rand(1, 4, 3, 3)
    with pytest.raises(ValueError, match="at least two images"):
        module(x)
    assert module.eval()(x).shape == x.shape
    module.train().norm.eval()
    assert module(x).shape == x.shape


# --- FARFM ------------------------------------------------------------------------------------


def maps_of(channels: int, *, count: int = 2) -> list[Tensor]:
    sides = ((12, 10), (6, 5), (3, 3), (2, 2))
    return [draw(count, channels, *size, seed=seed) for seed, size in enumerate(sides)]


def sized(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def test_decoder_step_by_step() -> None:
    decoder = randomised(FARFMDecoder(3))
    s2, s3, s4, s5 = maps_of(3)
    for number, step in enumerate(decoder.passes):
        if number:
            s2, s3, s4, s5 = (side + sized(merged, side) for side in (s2, s3, s4, s5))
        high = s5
        l4, h4 = step.fusions[0](s4, high)
        s4, high = step.gates_low[0](l4), step.gates_high[0](h4)
        l3, h3 = step.fusions[1](s3, high)
        s3, high = step.gates_low[1](l3), step.gates_high[1](h3)
        l2, h2 = step.fusions[2](s2, high)
        s2, merged = step.gates_low[2](l2), step.gates_high[2](h2)
    assert len(decoder.passes) == 2
    found = decoder(maps_of(3))
    for head, item, logits in zip(decoder.heads, (merged, s2, s3, s4, s5), found, strict=True):
        torch.testing.assert_close(
            logits, functional.conv2d(item, head.weight, head.bias, padding=1)
        )


@pytest.mark.parametrize("feedback", [0, 1, 2])
def test_only_feedback_lets_the_coarse_maps_see_the_fine_ones(feedback: int) -> None:
    decoder = randomised(FARFMDecoder(3, feedback=feedback))
    maps = [item.requires_grad_() for item in maps_of(3)]
    logits = decoder(maps)
    assert len(decoder.passes) == feedback + 1
    for level, output in enumerate(logits[1:]):
        gradients = torch.autograd.grad(
            output.square().sum(), maps, retain_graph=True, allow_unused=True
        )
        sees = [g is not None and bool(g.any()) for g in gradients]
        expected = [True] * 4 if feedback else [at >= level for at in range(4)]
        assert sees == expected


def test_one_scale_more_is_one_merge_more() -> None:
    for levels in (2, 3, 4):
        logits = FARFMDecoder(3, levels=levels).double()(maps_of(3)[:levels])
        sides = [tuple(item.shape[2:]) for item in maps_of(3)[:levels]]
        assert [tuple(item.shape) for item in logits] == [
            (2, 1, *side) for side in (sides[0], *sides)
        ]


# --- the network ------------------------------------------------------------------------------


def small(**options: object) -> SaliencyNet:
    return SaliencyNet(ConvEncoder((4, 6, 8, 10)), 4, **options)


@pytest.mark.parametrize("size", [(32, 32), (50, 71), (33, 97), (17, 16)])
def test_outputs_have_the_images_size(size: tuple[int, int]) -> None:
    model = small()
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert [item.shape for item in logits] == [(2, 1, *size)] * 5
    assert model.eval()(x).shape == (2, 1, *size)


def test_a_prediction_is_the_mean_of_the_logits() -> None:
    model = randomised(small())
    x = draw(2, 3, 33, 40).sigmoid()
    maps = [neck(item) for neck, item in zip(model.necks, model.encoder(x)[1:], strict=True)]
    total = sum(sized(item, x) for item in model.decoder(maps))
    torch.testing.assert_close(model(x), (total / 5).sigmoid())


def test_named_encoders_give_the_papers_scales() -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="the extra smp")
    with torch.device("meta"):  # its shapes, without drawing its weights
        model = SaliencyNet()
    assert [neck.in_channels for neck in model.necks] == [256, 512, 1024, 2048]
    model = SaliencyNet("resnet18", channels=4).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 40, 70)).shape == (1, 1, 40, 70)


def test_parts_can_be_exchanged() -> None:
    class Mean(nn.Module):
        def __init__(self, channels: int, levels: int) -> None:
            super().__init__()
            self.shape = (channels, levels)

        def forward(self, maps: list[Tensor]) -> list[Tensor]:
            return [item.mean(1, keepdim=True) for item in maps]

    model = small(levels=3, neck=lambda a, b: nn.Conv2d(a, b, 1), decoder=Mean)
    assert model.decoder.shape == (4, 3)
    assert [neck.in_channels for neck in model.necks] == [6, 8, 10]
    assert len(model(torch.rand(2, 3, 32, 32))) == 3


def test_learns_to_find_a_square() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.rand(3, 3, 20, 20, generator=generator)
    masks = torch.zeros(3, 20, 20)
    for n, at in enumerate((2, 6, 10)):
        masks[n, at : at + 7, 12 - at : 19 - at] = 1
    x[:, 0] += 0.5 * masks
    torch.manual_seed(0)
    model, loss = SaliencyNet(ConvEncoder((6, 8)), 6, levels=2), WeightedBCEIoULoss(window=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        logits = model(x)
        sum(loss(item, masks) for item in logits).backward()
        optimizer.step()
    found = torch.stack(logits).mean(0)[:, 0] > 0.0
    assert float((found & (masks > 0)).sum() / (found | (masks > 0)).sum()) > 0.8


def test_bad_options_and_inputs_are_refused() -> None:
    for build, words in (
        (lambda: MultiScaleFeatureLearning(4, 4, kernels=(3, 4)), "kernels must be odd"),
        (lambda: MultiScaleFeatureLearning(4, 0), "out_channels"),
        (lambda: FARFMDecoder(4, levels=1), "levels"),
        (lambda: FARFMDecoder(4, feedback=-1), "feedback"),
        (lambda: small(levels=5), "maps at 5 scales"),
        (lambda: small(weights="imagenet"), "weights must be None"),
        (lambda: SaliencyNet(ConvEncoder((4, 6)), 4), "maps at 4 scales"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    decoder = FARFMDecoder(3)
    with pytest.raises(ValueError, match="4 maps; got 3"):
        decoder([item.float() for item in maps_of(3)][:3])
    with pytest.raises(ValueError, match=r"maps\[0\]"):
        decoder([item.float() for item in maps_of(2)])
    with pytest.raises(ValueError, match="FeatureFusion: high"):
        FeatureFusion(3)(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 2, 2))
