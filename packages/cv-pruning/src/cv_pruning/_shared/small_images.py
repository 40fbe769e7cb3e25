"""The images of a run, cut down to what its budget allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cv_core.experiment.trial import Trial
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Images:
    """Standardised images and their classes.

    Args:
        x: Training images ``(N, C, H, W)``.
        y: Their classes ``(N,)``.
        test_x: Test images.
        test_y: Their classes.
        classes: Number of classes.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


def small_images(trial: Trial) -> Images:
    """Draw training images, halve them where they are too large, and standardise all of them.

    Args:
        trial: Its settings say how many ``images`` and ``test_images`` there are and the
            ``largest_side`` that is not halved.

    Returns:
        The images; channels have mean 0 and deviation 1 over the training part.
    """
    data, settings = trial.data, trial.settings
    order = torch.randperm(len(data.train_y), generator=trial.generator("sample"))
    chosen = order[: settings.images]
    x, test_x = data.train_x[chosen], data.test_x[: settings.test_images]
    if min(data.image_size) > settings.largest_side:
        x, test_x = (functional.avg_pool2d(part, 2) for part in (x, test_x))
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True) + 1e-6
    return Images(
        x=(x - mean) / deviation,
        y=data.train_y[chosen],
        test_x=(test_x - mean) / deviation,
        test_y=data.test_y[: settings.test_images],
        classes=data.num_classes,
    )
