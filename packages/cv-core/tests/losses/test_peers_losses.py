import pytest
import torch
from cv_core.losses.image import charbonnier_loss, total_variation
from cv_core.losses.segmentation import soft_dice_loss, soft_iou_loss
from torch.nn import functional


def test_total_variation_is_kornias():
    losses = pytest.importorskip("kornia.losses", reason="kornia is the peer compared with")
    x = torch.rand(3, 2, 6, 7)  # theirs keeps the channels apart
    expected = losses.total_variation(x, reduction="mean")
    torch.testing.assert_close(total_variation(x, reduction="none"), expected.mean(1))


def test_charbonnier_is_kornias_at_its_scale():
    losses = pytest.importorskip("kornia.losses", reason="kornia is the peer compared with")
    x, y = torch.rand(3, 4), torch.rand(3, 4)
    expected = losses.charbonnier_loss(x, y, reduction="none")
    torch.testing.assert_close(charbonnier_loss(x, y, eps=1.0, reduction="none"), expected)


@pytest.mark.slow  # importing MONAI alone takes that long
@pytest.mark.parametrize("jaccard", [False, True])
def test_overlap_is_monais(jaccard):
    losses = pytest.importorskip("monai.losses", reason="MONAI is the peer compared with")
    logits, target = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))
    # MONAI smooths twice the intersection over twice the union
    smooth = 1.0 if jaccard else 0.5
    peer = losses.DiceLoss(
        softmax=True, smooth_nr=2 * smooth if jaccard else smooth,
        smooth_dr=2 * smooth if jaccard else smooth, jaccard=jaccard, reduction="none",
    )  # fmt: skip
    expected = peer(logits, functional.one_hot(target, 3).movedim(-1, 1).float()).view(2, 3)
    loss = soft_iou_loss if jaccard else soft_dice_loss
    torch.testing.assert_close(loss(logits, target, smooth=smooth, reduction="none"), expected)
