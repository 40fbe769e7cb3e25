"""Equality with segmentation-models-pytorch and MONAI where the definitions agree.

They agree where every class is present: segmentation-models-pytorch averages an absent class as 0
over all classes, and its hinge takes all labels of ``"multilabel"`` as one set.
"""

import pytest
import torch
from cv_segmentation.losses.lovasz import lovasz_loss
from cv_segmentation.losses.overlap import dice_loss, soft_iou_loss, tversky_loss
from cv_segmentation.losses.pixelwise import focal_loss
from torch.nn import functional

MODES = ["binary", "multiclass", "multilabel"]


@pytest.fixture(scope="module")
def smp():
    return pytest.importorskip(
        "segmentation_models_pytorch.losses", reason="smp is the peer compared with"
    )


def draw(mode, sides=(9, 8)):
    rng = torch.Generator().manual_seed(0)
    channels = 1 if mode == "binary" else 4
    logits = torch.randn(2, channels, *sides, generator=rng)
    shape = (2, channels, *sides) if mode == "multilabel" else (2, *sides)
    target = torch.randint(0, channels if mode == "multiclass" else 2, shape, generator=rng)
    target.view(-1)[::5] = 255
    return logits, target


def both(ours, peer, logits, target):
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = ours(mine, target), peer(theirs, target)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_overlap_is_smps(smp, mode, smooth):
    logits, target = draw(mode)
    options = {"smooth": smooth, "ignore_index": 255}
    for ours, peer, more in (
        (dice_loss, smp.DiceLoss, {}),
        (soft_iou_loss, smp.JaccardLoss, {}),
        (tversky_loss, smp.TverskyLoss, {"alpha": 0.3, "beta": 0.7}),
    ):
        if ours is soft_iou_loss:
            kept = torch.where(target == 255, 0, target)  # theirs has no ignore_index
            theirs = peer(mode, smooth=smooth)
            both(lambda z, y: soft_iou_loss(z, y, mode, smooth=smooth), theirs, logits, kept)
            continue
        theirs = peer(mode, **options, **more)
        both(lambda z, y, f=ours, m=more: f(z, y, mode, **options, **m), theirs, logits, target)


def test_smp_counts_absent_classes_as_zero_in_the_mean(smp):
    logits, target = draw("multiclass")
    target[target == 3] = 0
    expected = smp.DiceLoss("multiclass", ignore_index=255)(logits, target)
    found = dice_loss(logits, target, "multiclass", ignore_index=255)
    torch.testing.assert_close(found * 3 / 4, expected)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_is_smps(smp, mode, per_image):
    logits, target = draw(mode)
    options = {"per_image": per_image, "ignore_index": 255}
    theirs = smp.LovaszLoss(mode, **options)
    shaped = (lambda z, y: theirs(z[:, 0], y)) if mode == "binary" else theirs
    both(lambda z, y: lovasz_loss(z, y, mode, **options), shaped, logits, target)


def test_lovasz_of_labels_is_smps_of_each_label(smp):
    logits, target = draw("multilabel")
    found = lovasz_loss(logits, target, "multilabel", ignore_index=255, reduction="none")
    theirs = smp.LovaszLoss("binary", ignore_index=255)
    for c in range(4):
        torch.testing.assert_close(found[c], theirs(logits[:, c], target[:, c]))


def test_binary_focal_is_smps(smp):
    logits, target = draw("binary")
    theirs = smp.FocalLoss("binary", alpha=0.25, gamma=1.5, ignore_index=255)
    both(
        lambda z, y: focal_loss(z, y, "binary", alpha=0.25, gamma=1.5, ignore_index=255),
        lambda z, y: theirs(z, y.float()),
        logits,
        target,
    )


@pytest.mark.slow  # importing MONAI alone takes that long
@pytest.mark.parametrize("sides", [(9, 8), (4, 5, 6)])
def test_overlap_and_focal_are_monais(sides):
    monai = pytest.importorskip("monai.losses", reason="MONAI is the peer compared with")
    logits, target = draw("multiclass", sides)
    target[target == 255] = 0
    hot = functional.one_hot(target, 4).movedim(-1, 1).float()
    smooth = {"smooth_nr": 0.0, "smooth_dr": 0.0}
    for batch in (False, True):
        for ours, jaccard in ((dice_loss, False), (soft_iou_loss, True)):
            peer = monai.DiceLoss(softmax=True, batch=batch, jaccard=jaccard, **smooth)
            found = ours(logits, target, "multiclass", per_image=not batch)
            torch.testing.assert_close(found, peer(logits, hot))
        peer = monai.TverskyLoss(softmax=True, alpha=0.3, beta=0.7, batch=batch, **smooth)
        found = tversky_loss(logits, target, "multiclass", alpha=0.3, beta=0.7, per_image=not batch)
        torch.testing.assert_close(found, peer(logits, hot))
    peer = monai.FocalLoss(gamma=2.0, alpha=0.25, reduction="mean")
    labels = (hot > 0).long()
    found = focal_loss(logits, labels, "multilabel", alpha=0.25)
    torch.testing.assert_close(found, peer(logits, hot))
