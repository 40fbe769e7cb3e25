"""Scenes as a data set: the scene of an index depends on seed and index alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from cv_core import random
from cv_core.checks import check_integer
from cv_core.data.scenes.compose import compose, crop_background
from cv_core.data.scenes.scene import Scene
from cv_core.data.scenes.spec import SceneSpec
from cv_core.data.scenes.sprites import ArrayLike, as_glyphs


class SceneDataset(Dataset[Scene]):
    """Scenes composed on demand; the same index gives the same bytes in any order and process.

    Args:
        spec: What the scenes may look like.
        glyphs: (N, h, w) or (N, 1, h, w), bright ink on black in [0, 1].
        labels: (N,) classes of the glyphs.
        backgrounds: Images (3, H, W) in [0, 1], each at least as large as the scene.
        length: Number of scenes.
        seed: Of the whole set; train and test sets need different ones (and, for a fair test,
            different glyphs).

    Use ``detection_batch`` or ``segmentation_batch`` as ``collate_fn`` of a loader.
    """

    def __init__(
        self,
        spec: SceneSpec,
        glyphs: ArrayLike,
        labels: ArrayLike | Sequence[int],
        backgrounds: ArrayLike | Sequence[ArrayLike],
        *,
        length: int,
        seed: int,
    ) -> None:
        check_integer("SceneDataset", "length", length, low=0)
        check_integer("SceneDataset", "seed", seed)
        self.spec = spec
        self.glyphs, self.labels = as_glyphs("SceneDataset", glyphs, labels)
        for label in np.unique(self.labels).tolist():
            spec.name_of(label)
        for background in backgrounds:  # each is tried once: refused here rather than in a worker
            crop_background("SceneDataset", spec, [background], np.random.default_rng(0))
        self.backgrounds = backgrounds
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        """Compose the scene of an index; negative ones count from the end."""
        if not -self.length <= index < self.length:
            raise IndexError(f"SceneDataset: index {index} is outside a set of {self.length}.")
        generator = random.numpy_generator(self.seed, "scene", index % self.length)
        return compose(self.spec, self.glyphs, self.labels, self.backgrounds, generator)


def detection_batch(
    scenes: Sequence[Scene],
) -> tuple[list[Float32[Tensor, "3 h w"]], list[dict[str, Tensor]]]:
    """Collate scenes as torchvision's detection models take them: images and targets."""
    return [scene.image for scene in scenes], [scene.target() for scene in scenes]


def segmentation_batch(
    scenes: Sequence[Scene],
) -> tuple[Float32[Tensor, "b 3 h w"], Int64[Tensor, "b h w"]]:
    """Collate scenes as images and semantic masks (class plus one, background 0)."""
    images = torch.stack([scene.image for scene in scenes])
    return images, torch.stack([scene.semantic_mask() for scene in scenes])
