from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from cv_attention.depth import imae, irmse, mae, rmse
from torch import Tensor


def maps() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pred, gt = torch.rand(2, 3, 1, 4, 5, generator=generator, dtype=torch.float64)
    valid = torch.rand(3, 1, 4, 5, generator=generator) < 0.5
    return pred - 0.1, (gt + 0.2).where(valid, 0.0), valid


def by_loops(pred: Tensor, gt: Tensor, valid: Tensor, min_depth: float) -> dict[str, float]:
    errors, inverse = [], []
    for p, g, v in zip(pred.flatten(), gt.flatten(), valid.flatten(), strict=True):
        if v:
            errors.append(abs(float(p) - float(g)))
            inverse.append(abs(1 / max(float(p), min_depth) - 1 / float(g)))
    return {
        "rmse": math.sqrt(fmean(error**2 for error in errors)),
        "mae": fmean(errors),
        "irmse": math.sqrt(fmean(error**2 for error in inverse)),
        "imae": fmean(inverse),
    }


@pytest.mark.parametrize("metric", [rmse, mae, irmse, imae])
def test_slow_reference(metric) -> None:
    options = {"min_depth": 0.05} if metric in (irmse, imae) else {}
    pred, gt, valid = maps()
    expected = [by_loops(*image, 0.05)[metric.__name__] for image in zip(*maps(), strict=True)]
    got = metric(pred, gt, valid, **options)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    without_channel = metric(pred[:, 0], gt[:, 0], valid[:, 0], **options)
    torch.testing.assert_close(without_channel, got)


@pytest.mark.parametrize("metric", [rmse, mae, irmse, imae])
def test_an_image_without_a_known_depth_is_undefined(metric) -> None:
    pred, gt, valid = maps()
    valid[1] = False
    assert metric(pred, gt, valid).isnan().tolist() == [False, True, False]


def test_metres_to_what_kitti_prints() -> None:
    pred, gt = torch.full((1, 1, 1, 1), 5.0), torch.full((1, 1, 1, 1), 4.0)
    known = gt > 0
    assert 1000 * float(mae(pred, gt, known)) == 1000  # millimetres
    assert 1000 * float(imae(pred, gt, known)) == pytest.approx(50)  # 250/km less 200/km


def test_bad_maps_are_refused() -> None:
    pred, gt, valid = maps()
    with pytest.raises(TypeError, match=r"mae: valid must be a boolean tensor, such as gt > 0"):
        mae(pred, gt, valid.double())
    with pytest.raises(TypeError, match=r"rmse: pred must be a floating-point tensor"):
        rmse(pred.long(), gt, valid)
    with pytest.raises(ValueError, match=r"rmse: pred and gt and valid must have the same shape"):
        rmse(pred, gt[:, 0], valid)
    with pytest.raises(ValueError, match=r"rmse: pred is empty"):
        rmse(pred[:0], gt[:0], valid[:0])
    with pytest.raises(ValueError, match=r"irmse: gt must be above 0 where valid"):
        irmse(pred, gt, torch.ones_like(valid))
    with pytest.raises(ValueError, match=r"imae: min_depth must lie in \(0, inf\)"):
        imae(pred, gt, valid, min_depth=0.0)
