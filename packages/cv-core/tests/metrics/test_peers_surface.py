"""HD, HD95, ASSD and NSD equal MONAI's, empty masks and spacing included."""

import math
import warnings

import numpy as np
import pytest
import torch
from cv_core.metrics.surface import average_surface_distance, hausdorff_distance, surface_dice
from scipy import ndimage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MONAI's import speaks of its own optional parts
    pytest.importorskip("monai", reason="MONAI is the peer")
    from monai import metrics as peer


def blobs(n, size, seed):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(size), 2.0) for _ in range(n)]
    return torch.tensor(np.stack([field > 0.5 * field.std() for field in fields]))


@pytest.mark.parametrize(
    ("size", "spacing"), [((40, 50), 1.0), ((30, 20), [0.6, 1.7]), ((12, 14, 9), [2.0, 1.0, 0.5])]
)
def test_equal_to_monai(size, spacing):
    first, second = blobs(4, size, 0), blobs(4, size, 1)
    second[2] = False
    one_hot = {"y_pred": first[:, None], "y": second[:, None], "include_background": True}
    options = {**one_hot, "spacing": spacing}

    def same(ours, theirs):
        # MONAI computes in single precision
        torch.testing.assert_close(ours.float(), theirs[:, 0], rtol=1e-6, atol=1e-6, equal_nan=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of the empty mask
        same(
            hausdorff_distance(first, second, spacing=spacing),
            peer.compute_hausdorff_distance(**options),
        )
        robust = peer.compute_hausdorff_distance(**options, percentile=95)
        # MONAI interpolates between infinite distances, which gives NaN
        robust[2] = math.inf
        same(hausdorff_distance(first, second, percentile=95, spacing=spacing), robust)
        theirs = peer.compute_average_surface_distance(**options, symmetric=True)
        same(average_surface_distance(first, second, spacing=spacing), theirs)
        theirs = peer.compute_surface_dice(**options, class_thresholds=[1.3])
        same(surface_dice(first, second, tolerance=1.3, spacing=spacing), theirs)


def test_two_empty_masks_are_undefined_in_both():
    empty = torch.zeros(1, 8, 8, dtype=torch.bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of the empty mask
        theirs = peer.compute_hausdorff_distance(
            empty[:, None], empty[:, None], include_background=True
        )
    assert theirs.isnan().all()
    assert hausdorff_distance(empty, empty).isnan().all()
