"""HD95 of 8 pairs of masks of 256 x 256, beside MONAI, scipy's transform and torchmetrics."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import numpy as np
import torch
from cv_core.metrics.surface import hausdorff_distance
from cv_core.random import numpy_generator
from cv_core.testing.race import Peer, race, write
from scipy import ndimage


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random blobs, and the same with noise added before the threshold."""
    rng = numpy_generator(0, "masks")
    field = ndimage.gaussian_filter(rng.standard_normal((8, 256, 256)), (0, 20, 20))
    noise = ndimage.gaussian_filter(rng.standard_normal((8, 256, 256)), (0, 8, 8))
    scale = field.std() / noise.std()
    return torch.tensor(field > 0.0), torch.tensor(field + 0.3 * scale * noise > 0.0)


def by_transform(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    values = []
    for pair in zip(prediction.numpy(), target.numpy(), strict=True):
        first, second = (mask & ~ndimage.binary_erosion(mask) for mask in pair)
        there = ndimage.distance_transform_edt(~second)[first]
        back = ndimage.distance_transform_edt(~first)[second]
        values.append(max(np.percentile(there, 95), np.percentile(back, 95)))
    return torch.tensor(values)


def main() -> None:
    warnings.simplefilter("ignore")  # the peers' own news
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from torchmetrics.functional.segmentation import hausdorff_distance as torchmetrics_distance

    prediction, target = masks()
    first, second = prediction[:, None], target[:, None]  # one-hot with a single class

    def ours() -> torch.Tensor:
        return hausdorff_distance(prediction, target, percentile=95)

    def monai() -> torch.Tensor:
        return compute_hausdorff_distance(first, second, include_background=True, percentile=95)

    def torchmetrics() -> torch.Tensor:
        return torchmetrics_distance(
            first.int(), second.int(), num_classes=1, include_background=True
        )

    torch.testing.assert_close(ours().float(), monai()[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours(), by_transform(prediction, target))
    torch.testing.assert_close(
        hausdorff_distance(prediction, target).float(), torchmetrics()[:, 0].float()
    )
    peers = {
        "MONAI": Peer(monai, version("monai"), bar=1.0),
        "scipy EDT": Peer(lambda: by_transform(prediction, target), version("scipy"), bar=1.0),
        "torchmetrics": Peer(
            torchmetrics,
            version("torchmetrics"),
            bar=500.0,
            repeats=2,
            note="maximum instead of the 95th percentile, which it does not offer",
        ),
    }
    write(race("surface", "HD95", "8 masks of 256 x 256", ours=ours, peers=peers), __file__)


if __name__ == "__main__":
    main()
