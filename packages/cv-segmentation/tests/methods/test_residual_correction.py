from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from cv_segmentation.decoders.deeplab import DeepLabV3PlusDecoder
from cv_segmentation.decoders.unet import UNetDecoder
from cv_segmentation.encoders import ConvEncoder
from cv_segmentation.methods.residual_correction import (
    AncillaryEncoder,
    ResidualCorrectionNet,
    add_logits,
    add_probabilities,
    corrected_logits,
    correction_loss,
    deeplabv3plus_pair,
    pseudo_label,
    residual_correction_losses,
    small_unet_pair,
)
from torch import Tensor, nn
from torch.nn import functional

CLASSES, SIZE = 4, (18, 23)


def draws(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def batch(seed: int = 0, count: int = 2) -> tuple[Tensor, Tensor]:
    """Return images and masks, some of whose pixels do not count."""
    x = draws(count, 3, *SIZE, seed=seed)
    y = (CLASSES * draws(count, *SIZE, seed=seed + 100)).long()
    return x, torch.where(draws(count, *SIZE, seed=seed + 200) < 0.2, 255, y)


def pair(*, stirred: bool = True) -> tuple[nn.Module, ResidualCorrectionNet]:
    """Return S and C; stirred ones answer differently from pixel to pixel."""
    seg, cor = (net.double() for net in small_unet_pair(CLASSES, base=3))
    if stirred:
        norms = [part for net in (seg, cor) for part in net.modules()]
        norms = [part for part in norms if isinstance(part, nn.BatchNorm2d)]
        for net in (seg, cor):
            nn.init.normal_(net.head.weight, std=3.0)
        for momentum in (1.0, 0.1):  # statistics of a batch in the first round
            for norm in norms:
                norm.momentum = momentum
            with torch.no_grad():
                corrected_logits(seg, cor, draws(2, 3, *SIZE, seed=9))
    return seg, cor


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor | None]:
    return list(
        torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    )


class Given(nn.Module):
    """A segmentation or correction network that answers with given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, *_inputs: Tensor) -> Tensor:
        return self.logits


class Shifted(nn.Module):
    """A network whose logits are shifted by one number per pixel, the same for all classes."""

    def __init__(self, net: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.net, self.shift = net, shift

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(*inputs) + self.shift


# --- the spec's properties ----------------------------------------------------------------------


def test_without_correction_it_is_plain_self_training() -> None:
    seg, cor = pair(stirred=False)  # C starts from zero
    (x, y), (u, _) = batch(), batch(7)
    plain = copy.deepcopy(seg)
    losses = residual_correction_losses(seg, cor, x, y, u, lam=0.5)
    assert torch.equal(losses["cor"], losses["ce"])
    assert not cor(x, seg(x)).any()
    assert torch.equal(corrected_logits(seg.eval(), cor.eval(), x), copy.deepcopy(seg).eval()(x))
    supervised = functional.cross_entropy(plain(x), y, ignore_index=255)
    labels = plain.eval()(u).argmax(1)
    loss = supervised + 0.5 * functional.cross_entropy(plain.train()(u), labels)
    torch.testing.assert_close(losses["ce"] + 0.5 * losses["semi"], loss)
    ours, theirs = gradients(seg, losses["total"]), gradients(plain, loss)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_each_network_learns_from_its_own_losses_only() -> None:
    seg, cor = pair()
    (x, y), (u, _) = batch(), batch(7)
    losses = residual_correction_losses(seg, cor, x, y, u)
    assert all(grad is None for grad in gradients(seg, losses["cor"]))
    assert all(grad is None for grad in gradients(cor, losses["semi"]))
    assert all(grad is None for grad in gradients(cor, losses["ce"]))
    for net, name in ((seg, "ce"), (cor, "cor"), (seg, "semi")):
        assert any(grad is not None and grad.any() for grad in gradients(net, losses[name]))
    labels = pseudo_label(seg, cor, u)
    assert not labels.requires_grad
    assert labels.dtype == torch.int64


def test_gradient_of_the_correction_is_softmax_minus_label() -> None:
    x, y = batch()
    fixed = 3 * draws(2, CLASSES, *SIZE, seed=1)
    right = torch.zeros(2, *SIZE, dtype=torch.bool)
    right[0, :5, :5] = True  # there the segmentation is confident and right
    y[right] = 2
    fixed = torch.where(right[:, None], 30 * (torch.arange(CLASSES) == 2)[:, None, None], fixed)
    cor = Given(0.5 * draws(2, CLASSES, *SIZE, seed=2))
    correction_loss(cor, x, fixed, y).backward()
    got = cor.logits.grad
    count = int((y != 255).sum())
    probabilities = (fixed + cor.logits.detach()).softmax(1)
    for n in range(2):
        for row in range(SIZE[0]):
            for column in range(SIZE[1]):
                label = int(y[n, row, column])
                expected = probabilities[n, :, row, column].clone()
                if label == 255:
                    expected.zero_()
                else:
                    expected[label] -= 1
                torch.testing.assert_close(got[n, :, row, column], expected / count)
    assert got.movedim(1, -1)[right].abs().max() < 1e-12 < got.abs().max()


@pytest.mark.parametrize("shifted", ["S", "C"])
def test_pseudo_labels_do_not_see_a_shift_of_all_classes(shifted: str) -> None:
    seg, cor = pair()
    u, _ = batch()
    shift = 20 * draws(2, 1, *SIZE, seed=3) - 10
    expected = pseudo_label(seg, cor, u)
    if shifted == "S":
        got = pseudo_label(Shifted(seg, shift), cor, u)
    else:
        got = pseudo_label(seg, Shifted(cor, shift), u)
    assert len(expected.unique()) > 1
    assert torch.equal(got, expected)


def test_attention_lies_between_0_and_1_and_is_a_half_without_weights() -> None:
    encoder = AncillaryEncoder(CLASSES, 5).double()
    attention = encoder(draws(2, CLASSES, 9, 9).softmax(1), (4, 7))
    assert attention.shape == (2, 5, 4, 7)
    assert 0 < attention.min() < attention.max() < 1
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(
        encoder(draws(2, CLASSES, 9, 9), (4, 7)), torch.full((2, 5, 4, 7), 0.5).double()
    )
    _, cor = pair()
    for parameter in cor.attention.parameters():
        nn.init.zeros_(parameter)
    x, _ = batch()
    image, *maps = cor.backbone_features(x)
    halved = cor.head(cor.decoder([image, *(0.5 * item for item in maps)]))
    torch.testing.assert_close(cor(x, draws(2, CLASSES, *SIZE)), halved)


def test_ignored_pixels_contribute_nothing() -> None:
    seg, cor = Given(draws(2, CLASSES, *SIZE)), Given(draws(2, CLASSES, *SIZE, seed=1))
    x, y = batch()
    losses = residual_correction_losses(seg, cor, x, y)
    for name, logits in (("ce", seg.logits), ("cor", seg.logits + cor.logits)):
        log_p = logits.detach().log_softmax(1)
        values = [
            -float(log_p[n, int(y[n, i, j]), i, j])
            for n in range(2) for i in range(SIZE[0]) for j in range(SIZE[1])
            if y[n, i, j] != 255
        ]  # fmt: skip
        assert float(losses[name].detach()) == pytest.approx(sum(values) / len(values))
    losses["total"].backward()
    for given in (seg, cor):
        seen = given.logits.grad.abs().sum(1) > 0
        assert torch.equal(seen, y != 255)
    none = residual_correction_losses(seg, cor, x, torch.full_like(y, 7), ignore_index=7)
    assert float(none["total"].detach()) == 0.0


@pytest.mark.parametrize("options", [{"x_u": None}, {"lam": 0.0}])
def test_without_unlabelled_images_it_is_the_supervised_pair(options: dict) -> None:
    seg, cor = pair()
    plain, other = copy.deepcopy(seg), copy.deepcopy(cor)
    (x, y), (u, _) = batch(), batch(7)
    losses = residual_correction_losses(seg, cor, x, y, **{"x_u": u, **options})
    logits = plain(x)
    loss = functional.cross_entropy(logits, y, ignore_index=255)
    corrected = logits.detach() + other(x, logits.detach())
    loss = loss + functional.cross_entropy(corrected, y, ignore_index=255)
    assert float(losses["semi"]) == 0.0
    torch.testing.assert_close(losses["total"], loss)
    for mine, theirs in ((seg, plain), (cor, other)):
        for got, expected in zip(
            gradients(mine, losses["total"]), gradients(theirs, loss), strict=True
        ):
            torch.testing.assert_close(got, expected)
        for got, expected in zip(mine.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(got, expected)  # the running statistics too


# --- the network --------------------------------------------------------------------------------


def by_hand(encoder: AncillaryEncoder, probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    hidden = functional.interpolate(
        probabilities, size=size, mode="bilinear", antialias=True, align_corners=False
    )
    convolutions = [layer for layer in encoder.body if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size for layer in convolutions] == [(3, 3)] * 3
    for place, layer in enumerate(convolutions):
        hidden = functional.conv2d(hidden, layer.weight, layer.bias, padding=1)
        if place < 2:
            hidden = hidden.clamp_min(0)
    return 1 / (1 + (-hidden).exp())


def test_network_written_out() -> None:
    _, cor = pair()
    x, logits = batch()[0], 4 * draws(2, CLASSES, *SIZE, seed=5)
    image, *maps = cor.backbone_features(x)
    assert list(cor.attention) == ["1", "2", "3", "4"]  # the image itself does not enter
    fused = [
        item * by_hand(cor.attention[str(place)], logits.softmax(1), tuple(item.shape[2:]))
        for place, item in enumerate(maps, 1)
    ]
    torch.testing.assert_close(cor(x, logits), cor.head(cor.decoder([image, *fused])))


def test_segmentation_is_averaged_where_the_map_is_smaller() -> None:
    encoder = AncillaryEncoder(2, 1).double()
    probabilities = draws(1, 2, 8, 8)
    one_pixel = probabilities.clone()
    one_pixel[0, 0, 3, 3] += 0.5  # between the points that plain interpolation looks at
    first, second = (encoder(item, (2, 2)) for item in (probabilities, one_pixel))
    assert not torch.equal(first, second)
    same = encoder(probabilities.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8), (2, 2))
    constant = encoder(probabilities.mean((2, 3), keepdim=True).expand(-1, -1, 2, 2), (2, 2))
    torch.testing.assert_close(same, constant)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_segmentation_in_half_precision(kind: torch.dtype) -> None:
    seg, cor = (net.float() for net in pair())
    x, y = batch()
    expected = residual_correction_losses(seg, cor, x.float(), y, x.float())
    with torch.autocast("cpu", dtype=kind):
        losses = residual_correction_losses(seg, cor, x.float(), y, x.float())
    for name in ("ce", "cor"):
        torch.testing.assert_close(losses[name], expected[name], rtol=0.05, atol=0.0)
    losses["total"].backward()
    encoder = AncillaryEncoder(CLASSES, 5).to(kind)
    assert encoder(draws(1, CLASSES, 9, 9).to(kind), (4, 7)).dtype == kind


def test_deeplab_pair_attends_to_the_two_maps_that_enter_the_decoder() -> None:
    seg, cor = deeplabv3plus_pair(CLASSES, encoder="small")
    seg, cor = seg.double().eval(), cor.double().eval()
    features, join = cor.backbone_features, cor.decoder
    seg.encoder.load_state_dict(features.encoder.state_dict())  # the keys of a pretrained encoder
    decoder = seg.decoder
    assert isinstance(decoder, DeepLabV3PlusDecoder)
    decoder.aspp.load_state_dict(features.aspp.state_dict())
    decoder.reduce.load_state_dict(join.reduce.state_dict())
    decoder.refine.load_state_dict(join.refine.state_dict())
    cor.head.load_state_dict(seg.head.state_dict())
    x, logits = draws(1, 3, 64, 70), draws(1, CLASSES, 64, 70)
    low, context = features(x)
    assert low.shape[2:] == (16, 18)
    assert context.shape[1:] == (256, 2, 3)
    wide, narrow = (
        encoder(logits.softmax(1), tuple(item.shape[2:]))
        for encoder, item in zip(cor.attention.values(), (low, context), strict=True)
    )
    expected = functional.interpolate(
        cor.head(join([low * wide, context * narrow])), (64, 70), mode="bilinear"
    )
    torch.testing.assert_close(cor(x, logits), expected)
    for encoder in cor.attention.values():  # attention of 1 leaves a plain DeepLabv3+
        nn.init.zeros_(encoder.body[-1].weight)
        nn.init.constant_(encoder.body[-1].bias, 100.0)
    torch.testing.assert_close(cor(x, logits), seg(x))


def test_backbone_of_torchvision_that_returns_a_mapping() -> None:
    body = torchvision.models._utils.IntermediateLayerGetter(
        torchvision.models.resnet18(), {"layer1": "low", "layer4": "high"}
    )

    class Join(nn.Module):
        out_channels = 64 + 512

        def forward(self, maps: list[Tensor]) -> Tensor:
            low, high = maps
            high = functional.interpolate(high, size=low.shape[2:])
            return torch.cat([low, high], dim=1)

    cor = ResidualCorrectionNet(body, Join(), [64, 512], CLASSES).eval()
    cor.head.reset_parameters()
    x, logits = draws(1, 3, 40, 50).float(), draws(1, CLASSES, 40, 50).float()
    low, high = body(x).values()
    attention = [
        encoder(logits.softmax(1), item.shape[2:])
        for encoder, item in zip(cor.attention.values(), (low, high), strict=True)
    ]
    raw = cor.head(Join()([low * attention[0], high * attention[1]]))
    expected = functional.interpolate(raw, (40, 50), mode="bilinear")
    torch.testing.assert_close(cor(x, logits), expected)


def test_every_parameter_of_the_pair_learns() -> None:
    seg, cor = pair()
    (x, y), (u, _) = batch(), batch(7)
    residual_correction_losses(seg, cor, x, y, u)["total"].backward()
    for net in (seg, cor):
        dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead


def test_correction_mends_what_the_segmentation_cannot_see() -> None:
    """S says nothing; C learns the rest from the image, and pseudo labels are better than S's."""
    seg = Given(torch.zeros(4, 2, 16, 16, dtype=torch.float64))
    cor = small_unet_pair(2, base=4)[1].double()
    x = draws(4, 3, 16, 16)
    x[:, :, :, 8:] *= 0.3
    y = torch.zeros(4, 16, 16, dtype=torch.int64)
    y[:, :, 8:] = 1
    optimizer = torch.optim.SGD(cor.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        correction_loss(cor, x, seg(x), y).backward()
        optimizer.step()
    right = (pseudo_label(seg, cor, x) == y).double().mean()
    assert float(right) > 0.95


# --- sums ---------------------------------------------------------------------------------------


def test_sum_of_probabilities_by_loops() -> None:
    logits, residual = 3 * draws(1, 3, 2, 2), draws(1, 3, 2, 2, seed=1) - 0.5
    got = add_probabilities(logits, residual).softmax(1)
    for i in range(2):
        for j in range(2):
            raw = [math.exp(float(logits[0, k, i, j])) for k in range(3)]
            sums = [
                max(value / sum(raw) + float(residual[0, k, i, j]), 1e-6)
                for k, value in enumerate(raw)
            ]
            expected = torch.tensor([value / sum(sums) for value in sums]).double()
            torch.testing.assert_close(got[0, :, i, j], expected, rtol=1e-6, atol=1e-8)


def test_either_sum_leaves_the_segmentation_without_a_residual() -> None:
    logits = 3 * draws(2, CLASSES, 5, 5)
    zero = torch.zeros_like(logits)
    assert torch.equal(add_logits(logits, zero), logits)
    torch.testing.assert_close(add_probabilities(logits, zero).softmax(1), logits.softmax(1))


@pytest.mark.parametrize("correct", [add_logits, add_probabilities])
def test_sum_is_used_in_losses_and_labels(correct: Callable) -> None:
    s, c = 3 * draws(2, CLASSES, *SIZE), 2 * draws(2, CLASSES, *SIZE, seed=1) - 1
    seg, cor = Given(s), Given(c)
    x, y = batch()
    expected = correct(s, c)
    losses = residual_correction_losses(seg, cor, x, y, x, correct=correct)
    labels = expected.argmax(1)
    assert torch.equal(pseudo_label(seg, cor, x, correct=correct), labels)
    assert torch.equal(corrected_logits(seg, cor, x, correct=correct), expected)
    torch.testing.assert_close(
        losses["cor"], functional.cross_entropy(expected, y, ignore_index=255)
    )
    torch.testing.assert_close(losses["semi"], functional.cross_entropy(s, labels))


# --- modes and bad input ------------------------------------------------------------------------


def test_pseudo_labels_leave_modes_and_statistics_alone() -> None:
    seg, cor = pair()
    u, _ = batch()
    seg.train()
    cor.eval().decoder.train()  # a mixture
    before = {name: each.training for name, each in (*seg.named_modules(), *cor.named_modules())}
    statistics = copy.deepcopy((seg.state_dict(), cor.state_dict()))
    labels = pseudo_label(seg, cor, u)
    after = {name: each.training for name, each in (*seg.named_modules(), *cor.named_modules())}
    assert after == before
    for old, net in zip(statistics, (seg, cor), strict=True):
        assert all(torch.equal(net.state_dict()[name], value) for name, value in old.items())
    assert torch.equal(labels, corrected_logits(seg.eval(), cor.eval(), u).argmax(1))
    seg.train()
    with pytest.raises(ValueError, match="ResidualCorrectionNet: seg_logits must have shape"):
        pseudo_label(Given(torch.zeros(2, CLASSES + 1, *SIZE)), cor, u)
    assert not cor.training  # also after an error
    assert torch.is_grad_enabled()


def test_bad_input_is_refused() -> None:
    seg, cor = pair()
    x, y = batch()
    logits = draws(2, CLASSES, *SIZE)
    with pytest.raises(ValueError, match=r"ResidualCorrectionNet: seg_logits must have shape"):
        cor(x, logits[:, :, :-1])
    with pytest.raises(TypeError, match="ResidualCorrectionNet: image must be a floating"):
        cor(x.long(), logits)
    with pytest.raises(ValueError, match=r"residual_correction_losses: y_l must have shape"):
        residual_correction_losses(seg, cor, x, y[:1])
    with pytest.raises(ValueError, match=r"residual_correction_losses: lam must lie in"):
        residual_correction_losses(seg, cor, x, y, lam=-1.0)
    with pytest.raises(ValueError, match=r"residual_correction_losses: x_u must have shape"):
        residual_correction_losses(seg, cor, x, y, x[:, :1])
    with pytest.raises(ValueError, match=r"target must lie in \[0, 3\]; got 4"):
        residual_correction_losses(seg, cor, x, torch.full_like(y, CLASSES))
    with pytest.raises(ValueError, match=r"AncillaryEncoder: hidden must be at least 1"):
        AncillaryEncoder(2, 3, hidden=0)
    encoder = ConvEncoder((4,))
    decoder = UNetDecoder(encoder.out_channels)
    with pytest.raises(ValueError, match=r"ResidualCorrectionNet: num_classes must be at least 2"):
        ResidualCorrectionNet(encoder, decoder, [0, 4], 1)
    for make in (small_unet_pair, deeplabv3plus_pair):
        with pytest.raises(ValueError, match=r"_pair: num_classes must be at least 2; got 1"):
            make(1)
    with pytest.raises(ValueError, match=r"ResidualCorrectionNet: feature_channels must name"):
        ResidualCorrectionNet(encoder, decoder, [0, 0], 2)
    with pytest.raises(ValueError, match=r"must return 1 maps, as many as feature_channels; got 2"):
        ResidualCorrectionNet(encoder, decoder, [4], 2)(x.float(), x[:, :2].float())
