"""Readers of segmentation sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cv_core.data.archives import read_members
from cv_core.data.kinds import Segmentation, SegmentationSample
from cv_core.data.origin import Origin
from cv_core.data.readers.pictures import Channels, Decoded, decode_image, decode_mask
from cv_core.data.splits import group_split, stratified_split

IGNORED = 255
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
_CAMVID_UNLABELLED = 11
TILE = ("background", "blowhole", "break", "crack", "fray", "uneven")
_SHARES = (0.6, 0.2, 0.2)


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """A picture and its mask that are still encoded.

    Args:
        image: Content or path of the picture's file.
        mask: Content or path of the mask's file.
        name: What to call it in an error.
        channels: Channels of the decoded picture.
        label: Class of the mask's foreground, where the mask is binary.
        field: Mask of the pixels that count, if not all do.
    """

    image: bytes | Path
    mask: bytes | Path
    name: str
    channels: Channels = "rgb"
    label: int = 1
    field: bytes | None = None


Masked = Decoded[SegmentationSample]


def decode_indices(item: MaskedImage) -> SegmentationSample:
    """Decode a picture and a mask that holds class indices."""
    return _image(item), decode_mask(item.mask, name=item.name)


def decode_bright(item: MaskedImage) -> SegmentationSample:
    """Decode a picture and a binary mask that is bright on the foreground."""
    return _image(item), _bright(item) * item.label


def decode_dark(item: MaskedImage) -> SegmentationSample:
    """Decode a picture and a binary mask that is dark on the foreground."""
    return _image(item), (1 - _bright(item)) * item.label


def _image(item: MaskedImage) -> Tensor:
    return decode_image(item.image, name=item.name, channels=item.channels)


def _bright(item: MaskedImage) -> Tensor:
    mask = decode_mask(item.mask, name=item.name)
    mask = (2 * mask > mask.max()).long()  # white is 1 or 255
    if item.field is not None:
        mask[decode_mask(item.field, name=item.name) == 0] = IGNORED
    return mask


def _mask_only(item: MaskedImage) -> Tensor:
    return _bright(item)


def _picture_only(picture: bytes) -> Tensor:
    return decode_image(picture, channels="rgb")


def camvid(origin: Origin, paths: Sequence[Path]) -> Segmentation:
    """Read CamVid: 367 training, 101 validation and 233 test frames."""
    members = read_members(paths[0])

    def part(name: str) -> Masked:
        stems = sorted(PurePosixPath(file).stem for file in members if file.startswith(f"{name}/"))
        items = [
            MaskedImage(
                members[f"{name}/{stem}.jpg"], members[f"{name}annot/{stem}.png"], f"{name}/{stem}"
            )
            for stem in stems
        ]
        return Decoded(items, decode_indices)

    return Segmentation(
        part("train"), part("val"), part("test"), CAMVID, _CAMVID_UNLABELLED, origin
    )


def isbi_em(origin: Origin, paths: Sequence[Path]) -> Segmentation:
    """Read the membranes of ISBI 2012: slices 0-19 train, 20-24 validate, 25-29 test.

    Neighbouring slices are alike, so the parts are runs of slices.
    """
    members = read_members(paths[0])
    items = [
        MaskedImage(
            members[f"image/{place}.png"], members[f"label/{place}.png"], str(place), "grey"
        )
        for place in range(30)
    ]
    slices = Decoded(items, decode_dark)
    return Segmentation(slices[:20], slices[20:25], slices[25:], ("cell", "membrane"), None, origin)


def drive(origin: Origin, paths: Sequence[Path]) -> Segmentation:
    """Read DRIVE: 20 training and 10 test images; outside the field of view nothing counts."""
    members = read_members(paths[0])
    second = _drive_part(members, "testing", "2nd_manual", "manual2")
    return Segmentation(
        train=Decoded(_drive_part(members, "training", "1st_manual", "manual1"), decode_bright),
        val=(),
        test=Decoded(_drive_part(members, "testing", "1st_manual", "manual1"), decode_bright),
        class_names=("background", "vessel"),
        ignore_index=IGNORED,
        origin=origin,
        second_observer=Decoded(second, _mask_only),
    )


def _drive_part(
    members: dict[str, bytes], part: str, folder: str, ending: str
) -> list[MaskedImage]:
    items = []
    for name in sorted(name for name in members if name.startswith(f"{part}/images/")):
        stem = PurePosixPath(name).stem  # such as 21_training
        number = stem.partition("_")[0]
        items.append(
            MaskedImage(
                members[name],
                members[f"{part}/{folder}/{number}_{ending}.png"],
                stem,
                field=members[f"{part}/mask/{stem}_mask.png"],
            )
        )
    return items


def chasedb1(origin: Origin, paths: Sequence[Path]) -> Segmentation:
    """Read CHASE_DB1: the images of subjects 1-10 train (20), of 11-14 test (8)."""
    members = read_members(paths[0])
    stems = sorted(PurePosixPath(name).stem for name in members if name.endswith(".jpg"))

    def items(observer: str, part: Sequence[str]) -> list[MaskedImage]:
        return [
            MaskedImage(members[f"{stem}.jpg"], members[f"{stem}_{observer}HO.png"], stem)
            for stem in part
        ]

    return Segmentation(
        train=Decoded(items("1st", stems[:20]), decode_bright),
        val=(),
        test=Decoded(items("1st", stems[20:]), decode_bright),
        class_names=("background", "vessel"),
        ignore_index=None,
        origin=origin,
        second_observer=Decoded(items("2nd", stems[20:]), _mask_only),
    )


def crackforest(
    origin: Origin, paths: Sequence[Path], *, annotation: str = "segmentation"
) -> Segmentation:
    """Read CrackForest: 118 images with masks, split by seed 0, and 37 without.

    Args:
        origin: Where the data come from.
        paths: The archive.
        annotation: ``segmentation`` (the cracks' areas) or ``boundaries``.
    """
    members = read_members(paths[0])
    stems = sorted(PurePosixPath(name).stem for name in members if name.startswith("image/"))
    masked = [stem for stem in stems if f"{annotation}/{stem}.png" in members]
    items = [
        MaskedImage(members[f"image/{stem}.jpg"], members[f"{annotation}/{stem}.png"], stem)
        for stem in masked
    ]
    bare = [members[f"image/{stem}.jpg"] for stem in stems if stem not in masked]
    return Segmentation(
        *_split(items, [0] * len(items), decode_bright),
        ("road", "crack"),
        None,
        origin,
        unlabelled=Decoded(bare, _picture_only),
    )


def magnetic_tile(origin: Origin, paths: Sequence[Path]) -> Segmentation:
    """Read the magnetic tiles, split by seed 0 with the defects in their proportions.

    A tile was photographed up to six times, and nothing in the files says which pictures belong
    together. Pictures that look alike, mask and all, stay in one part (``alike``).
    """
    members = read_members(paths[0])
    items = []
    for name in sorted(name for name in members if name.endswith(".jpg")):
        folder, _, file = name.partition("/image/")
        label = TILE.index(folder) if folder in TILE else 0  # free tiles have no defect
        mask = members[f"{folder}/mask/{PurePosixPath(file).stem}.png"]
        items.append(MaskedImage(members[name], mask, name, "grey", label))
    whole = Decoded(items, decode_bright)
    kinds, groups = np.array([item.label for item in items]), alike(items)
    parts: list[list[int]] = [[], [], []]
    for kind in range(len(TILE)):
        (where,) = np.nonzero(kinds == kind)
        dealt = group_split(groups[where], _SHARES, seed=0)
        for part, found in zip(parts, dealt, strict=True):
            part.extend(where[found].tolist())
    train, val, test = (whole.select(sorted(part)) for part in parts)
    return Segmentation(train, val, test, TILE, None, origin)


def alike(
    items: Sequence[MaskedImage], *, picture: float = 0.8, mask: float = 0.6, bare: float = 0.9
) -> Int64[np.ndarray, " n"]:
    """Group pictures that show the same thing, as chains of pairs that look alike.

    A pair looks alike if it has one label, its thumbnails of 32 x 32 pixels correlate, and its
    masks lie in one place or are both empty. Rather too many are joined than too few: pictures of
    one thing on both sides of a split are worse than a coarse split.

    Args:
        items: Pictures with binary masks.
        picture: Correlation of the pictures that counts as alike.
        mask: Cosine of the angle between the masks that does.
        bare: Correlation that counts where no mask helps to tell them apart.

    Returns:
        The number of each picture's group.
    """
    from scipy.sparse.csgraph import connected_components

    pictures = np.stack([_thumbnail(_image(item)) for item in items])
    masks = np.stack([_thumbnail(_bright(item)[None].float()) for item in items])
    pictures -= pictures.mean(1, keepdims=True)
    labels = np.array([item.label for item in items])
    same, empty = np.equal.outer(labels, labels), ~masks.any(1)
    likeness = _cosines(pictures)
    near = same & (likeness > picture) & (_cosines(masks) > mask)
    near |= same & (likeness > bare) & np.logical_and.outer(empty, empty)
    groups: np.ndarray = connected_components(near, directed=False)[1]
    return groups.astype(np.int64)


def _thumbnail(image: Tensor) -> np.ndarray:
    return adaptive_avg_pool2d(image, 32).flatten().numpy()


def _cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return unit @ unit.T


def _split(
    items: list[MaskedImage],
    kinds: Sequence[int],
    decode: Callable[[MaskedImage], SegmentationSample],
) -> tuple[Masked, Masked, Masked]:
    whole = Decoded(items, decode)
    train, val, test = stratified_split(kinds, _SHARES, seed=0)
    return whole.select(train), whole.select(val), whole.select(test)
