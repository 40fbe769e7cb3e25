import pytest
import torch
from cv_core.losses.segmentation import soft_dice_loss as core_dice
from cv_core.losses.segmentation import soft_iou_loss as core_iou
from cv_segmentation.losses.overlap import TverskyLoss, dice_loss, soft_iou_loss, tversky_loss

MODES = [("binary", 1), ("multiclass", 3), ("multilabel", 3)]


def draw(mode, channels, sides=(4, 5)):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, *sides, generator=rng, dtype=torch.float64)
    shape = (2, channels, *sides) if mode == "multilabel" else (2, *sides)
    return logits, torch.randint(0, channels if mode == "multiclass" else 2, shape, generator=rng)


def loops(p, truth, alpha, beta, smooth, groups):
    """Soft counts pixel by pixel; ``groups`` lists the images that are counted together."""
    values = []
    for images in groups:
        for c in range(p.shape[1]):
            hit = false = missed = 0.0
            for n in images:
                for value, real in zip(p[n, c].flatten(), truth[n, c].flatten(), strict=True):
                    hit += float(value) if real else 0.0
                    false += 0.0 if real else float(value)
                    missed += 1.0 - float(value) if real else 0.0
            values.append(1.0 - (hit + smooth) / (hit + alpha * false + beta * missed + smooth))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("mode", "channels"), MODES)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("sides", [(4, 5), (2, 3, 4)])
def test_tversky_pixel_by_pixel(mode, channels, per_image, sides):
    logits, target = draw(mode, channels, sides)
    p = logits.softmax(1) if mode == "multiclass" else logits.sigmoid()
    planes = target if mode == "multilabel" else target.unsqueeze(1)
    truth = torch.cat([planes == c for c in range(3)], 1) if mode == "multiclass" else planes == 1
    groups = [[0], [1]] if per_image else [[0, 1]]
    expected = loops(p, truth, 0.3, 0.7, 0.1, groups)
    found = tversky_loss(logits, target, mode, alpha=0.3, beta=0.7, smooth=0.1,
                         per_image=per_image, reduction="none")  # fmt: skip
    assert found.shape == ((2, channels) if per_image else (channels,))
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize(("mode", "channels"), MODES)
def test_dice_and_iou_are_tversky_at_their_prices(mode, channels):
    logits, target = draw(mode, channels)
    for smooth in (0.0, 2.0):
        half = tversky_loss(logits, target, mode, smooth=smooth)
        assert torch.equal(dice_loss(logits, target, mode, smooth=smooth), half)
        whole = tversky_loss(logits, target, mode, alpha=1.0, beta=1.0, smooth=smooth)
        assert torch.equal(soft_iou_loss(logits, target, mode, smooth=smooth), whole)


@pytest.mark.parametrize(("mode", "channels"), MODES)
def test_iou_follows_from_dice(mode, channels):
    logits, target = draw(mode, channels)
    dice = 1.0 - dice_loss(logits, target, mode, reduction="none")
    iou = 1.0 - soft_iou_loss(logits, target, mode, reduction="none")
    torch.testing.assert_close(iou, dice / (2.0 - dice))


def test_per_image_and_smoothed_they_are_the_cores():
    logits, target = draw("multiclass", 3)
    target[1, 0, :2] = 255
    options = {"reduction": "none", "ignore_index": 255}
    found = dice_loss(logits, target, "multiclass", per_image=True, smooth=0.5, **options)
    torch.testing.assert_close(found, core_dice(logits, target, smooth=1.0, **options))
    found = soft_iou_loss(logits, target, "multiclass", per_image=True, smooth=1.0, **options)
    torch.testing.assert_close(found, core_iou(logits, target, smooth=1.0, **options))


def test_prices_weigh_the_two_errors():
    target = torch.tensor([[[1, 1, 0, 0]]])
    wide = torch.tensor([[[[9.0, 9.0, 9.0, -9.0]]]])
    narrow = torch.tensor([[[[9.0, -9.0, -9.0, -9.0]]]])
    kind = {"alpha": 0.1, "beta": 0.9}
    assert tversky_loss(wide, target, "binary", **kind) < tversky_loss(
        narrow, target, "binary", **kind
    )
    right = tversky_loss(torch.tensor([[[[50.0, 50.0, -50.0, -50.0]]]]), target, "binary")
    assert float(right) == pytest.approx(0.0, abs=1e-6)


def test_options_are_refused():
    for option in ({"alpha": -0.1}, {"beta": 0.0}, {"smooth": -1.0}):
        with pytest.raises(ValueError, match=f"TverskyLoss: {next(iter(option))}"):
            TverskyLoss("binary", **option)
