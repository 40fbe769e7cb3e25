"""Readers of photographs, stereo pairs and clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from cv_core.data.archives import read_members
from cv_core.data.kinds import Clip, ImageSet, StereoPair, StereoPairs
from cv_core.data.origin import Origin
from cv_core.data.readers.images import unit
from cv_core.data.readers.pictures import Decoded, decode_image, decode_mask, to_tensor

_DISPARITY_STEPS = 4.0  # Middlebury stores disparities in quarters of a pixel


def image_set(origin: Origin, paths: Sequence[Path]) -> ImageSet:
    """Read an archive of pictures, by name."""
    members = read_members(paths[0], suffixes=(".png",))
    names = sorted(members)
    images = Decoded([members[name] for name in names], _decode)
    return ImageSet(images, tuple(PurePosixPath(name).stem for name in names), origin)


def _decode(picture: bytes) -> Tensor:
    return decode_image(picture)


def sample_photographs(origin: Origin) -> ImageSet:
    """Read the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    names = tuple(PurePosixPath(Path(name).as_posix()).stem for name in bunch.filenames)
    return ImageSet(tuple(to_tensor(image) for image in bunch.images), names, origin)


def teddy_cones(origin: Origin, paths: Sequence[Path]) -> StereoPairs:
    """Read Middlebury's Teddy and Cones; disparities in pixels, 0 where unknown."""
    members = read_members(paths[0])
    pairs = {}
    for scene in ("teddy", "cones"):
        left, right = (
            decode_image(members[f"{scene}/im{view}.png"], channels="rgb") for view in (2, 6)
        )
        near, far = (
            decode_mask(members[f"{scene}/disp{view}.png"]).float() / _DISPARITY_STEPS
            for view in (2, 6)
        )
        pairs[scene] = StereoPair(left, right, near, far)
    return StereoPairs(pairs, origin)


def davis(origin: Origin, paths: Sequence[Path]) -> Clip:
    """Read a clip of DAVIS in colour."""
    members = read_members(paths[0])
    frames = [decode_image(members[name]) for name in sorted(members) if name.endswith(".jpg")]
    masks = [decode_mask(members[name]) for name in sorted(members) if name.endswith(".png")]
    return Clip(torch.stack(frames), (torch.stack(masks) > 0).long(), origin)


def davis_grey(origin: Origin, paths: Sequence[Path]) -> Clip:
    """Read the small grey copy of a clip of DAVIS."""
    with np.load(paths[0], allow_pickle=False) as archive:
        masks = torch.from_numpy(archive["masks"].astype(np.int64))
        return Clip(unit(archive["frames"][:, None]), masks, origin)
