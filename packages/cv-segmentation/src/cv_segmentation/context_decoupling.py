"""Context decoupling: objects pasted into foreign images, so that they no longer predict a context.

Su, Sun, Lin and Wu, *Context Decoupling Augmentation for Weakly Supervised Semantic Segmentation*,
ICCV 2021, as taken up by SDA-CAM (``cv_segmentation.methods.sda_cam``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from cv_core.checks import (
    check_floating,
    check_indices,
    check_integer,
    check_odd,
    check_range,
    check_shape,
)
from cv_core.imaging.filtering import filter_separable
from cv_core.imaging.kernels import gaussian_kernel1d
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

Cut = tuple[Float[Tensor, "c _ _"], Shaped[Tensor, "_ _"]]
"""An object cut out: its picture with some surroundings, and its mask or opacity in [0, 1]."""


class ContextDecoupling:
    """Paste an object of a class that an image does not show, and add the class to its labels.

    The class is drawn among the absent ones of which there are objects, then one of its objects,
    its scale, its angle and its place: the middle of the object lies off the middle of the image,
    where objects usually are. The mask is blurred; the image stays as it was where the blurred
    mask is 0.

    Args:
        objects: Objects cut out, for each class; see ``cut_objects``.
        p: Probability of pasting, in [0, 1].
        scale: Least and largest factor of the object's size, above 0. An object that would be
            larger than the image is reduced to it.
        angle: Largest rotation to either side in degrees, in [0, 180].
        blur: Side of the Gaussian window in pixels, odd; 1 for a hard edge. Its deviation is
            ``0.15 * blur + 0.35``.
        off_centre: How far the object's middle lies from the image's at least, along one axis, as
            a share of that side, in [0, 0.5); as far as possible where the object is too large.

    Raises:
        TypeError: If a picture is not floating or a number has the wrong type.
        ValueError: If there is no object, a mask is empty or leaves [0, 1], or an option is out of
            range.

    Example:
        >>> objects = {1: [(torch.ones(3, 6, 6), torch.ones(6, 6))]}
        >>> decouple = ContextDecoupling(objects, angle=0.0, blur=1)
        >>> image, labels = torch.zeros(3, 16, 16), torch.tensor([1, 0])
        >>> image, labels, mask = decouple(image, labels, torch.Generator().manual_seed(0))
        >>> labels, torch.equal(image[0], mask)
        (tensor([1, 1]), True)
    """

    def __init__(
        self,
        objects: Mapping[int, Sequence[Cut]],
        p: float = 1.0,
        scale: tuple[float, float] = (0.5, 1.0),
        *,
        angle: float = 30.0,
        blur: int = 3,
        off_centre: float = 0.25,
    ) -> None:
        owner = "ContextDecoupling"
        check_range(owner, "p", p, low=0.0, high=1.0)
        check_range(owner, "scale[0]", scale[0], low=0.0, low_open=True)
        check_range(owner, "scale[1]", scale[1], low=scale[0])
        check_range(owner, "angle", angle, low=0.0, high=180.0)
        check_odd(owner, "blur", blur)
        check_range(owner, "off_centre", off_centre, low=0.0, high=0.5, high_open=True)
        self.objects = {label: list(cuts) for label, cuts in objects.items() if len(cuts)}
        if not self.objects:
            raise ValueError(f"{owner}: objects must hold at least one object; got none.")
        for label, cuts in self.objects.items():
            check_integer(owner, "a class of objects", label, low=0)
            for cut in cuts:
                _check_cut(owner, cut)
        self.p = p
        self.scale = scale
        self.angle = angle
        self.blur = blur
        self.off_centre = off_centre

    def __call__(
        self,
        image: Float[Tensor, "c h w"],
        labels: Shaped[Tensor, " n"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "c h w"], Shaped[Tensor, " n"], Float[Tensor, "h w"]]:
        """Return a changed copy of an image, its labels, and the opacity of what was pasted.

        Args:
            image: ``(C, H, W)``.
            labels: 1 for each class that it shows, else 0.
            generator: On the CPU; decides everything.

        Returns:
            Image, labels and opacity in [0, 1]. Nothing is pasted (opacity 0) with probability
            ``1 - p``, and where no class is absent of which there are objects.

        Raises:
            TypeError: If the image is not floating.
            ValueError: If a shape does not fit.
        """
        owner = "ContextDecoupling"
        check_floating(owner, "image", image)
        _, height, width = check_shape(owner, "image", image, "c h w").values()
        check_shape(owner, "labels", labels, "n")
        opacity = image.new_zeros(height, width)
        absent = [c for c in self.objects if c < len(labels) and not bool(labels[c])]
        if not absent or _uniform(0.0, 1.0, generator) >= self.p:
            return image.clone(), labels.clone(), opacity
        label = absent[_below(len(absent), generator)]
        cuts = self.objects[label]
        rgb, mask = self._turned(*cuts[_below(len(cuts), generator)], (height, width), generator)
        top, left = self._place(mask.shape, (height, width), generator)
        colours = torch.zeros_like(image)
        rows, columns, inside = _window(top, left, mask.shape, (height, width), self.blur // 2)
        opacity[rows, columns] = self._softened(mask)[inside].to(image)
        colours[:, rows, columns] = self._surrounded(rgb)[(slice(None), *inside)].to(image)
        changed = labels.clone()
        changed[label] = 1
        return opacity * colours + (1.0 - opacity) * image, changed, opacity

    def _turned(
        self, rgb: Tensor, mask: Tensor, room: tuple[int, int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Rotate and scale an object; return the smallest rectangle that holds its mask."""
        angle = math.radians(_uniform(-self.angle, self.angle, generator))
        cos, sin = math.cos(angle), math.sin(angle)
        height, width = mask.shape
        sides = (
            height * abs(cos) + width * abs(sin),
            height * abs(sin) + width * abs(cos),
        )
        factor = min(
            _uniform(*self.scale, generator),
            *(have / need for have, need in zip(room, sides, strict=True)),
        )
        rows, columns = (
            torch.arange(size) - (size - 1) / 2
            for size in (max(1, math.floor(factor * side + 1e-6)) for side in sides)
        )
        y, x = torch.meshgrid(rows / factor, columns / factor, indexing="ij")
        grid = torch.stack(
            [2 * (cos * x + sin * y) / width, 2 * (cos * y - sin * x) / height], dim=2
        )
        solid = _sampled(mask[None].to(rgb.dtype), grid, "zeros")[0]
        colours = _sampled(rgb, grid, "border")
        top = float(mask.max())
        inside = solid > 0.5 * top
        if not bool(inside.any()):  # what is left of a speck
            inside = solid >= solid.max()
            solid = top * inside.to(solid)
        box = tuple(_extent(inside.any(axis)) for axis in (1, 0))
        return colours[(slice(None), *box)], solid[box]

    def _place(
        self, size: Sequence[int], room: tuple[int, int], generator: torch.Generator
    ) -> tuple[int, int]:
        """Draw the upper left corner among all places that are far enough off the centre."""
        distances = [
            (torch.arange(have - need + 1) + (need - have) / 2).abs() / have
            for need, have in zip(size, room, strict=True)
        ]
        distance = torch.maximum(distances[0][:, None], distances[1])
        least = min(self.off_centre, float(distance.max()))
        places = (distance >= least).nonzero()
        top, left = places[_below(len(places), generator)].tolist()
        return top, left

    def _softened(self, mask: Tensor) -> Tensor:
        radius = self.blur // 2
        padded = functional.pad(mask, [radius] * 4)
        if radius == 0:
            return padded
        taps = gaussian_kernel1d(0.15 * self.blur + 0.35, self.blur, dtype=padded.dtype)
        return filter_separable(padded[None, None], taps, taps, padding="zeros")[0, 0].clamp(0, 1)

    def _surrounded(self, rgb: Tensor) -> Tensor:
        return functional.pad(rgb[None], [self.blur // 2] * 4, mode="replicate")[0]


def cut_objects(
    images: Float[Tensor, "n c h w"],
    masks: Int[Tensor, "n h w"],
    labels: Shaped[Tensor, "n classes"],
    *,
    margin: int = 2,
) -> dict[int, list[Cut]]:
    """Cut the objects out of the images that show one class alone.

    Args:
        images: ``(N, C, H, W)``.
        masks: The class of every pixel plus one, 0 for the background: true ones, or seeds.
        labels: 1 or True for each class that an image shows ``(N, C)``.
        margin: Pixels of the surroundings that are kept, so that smooth edges mix with them and not
            with black.

    Returns:
        For each class pictures and masks. An image without a pixel of its class yields none.

    Raises:
        TypeError: If images are not floating or masks not integer.
        ValueError: If a shape does not fit or a class is out of range.

    Example:
        >>> masks = torch.zeros(1, 8, 8, dtype=torch.int64)
        >>> masks[0, 2:4, 3:7] = 2
        >>> ((rgb, mask),) = cut_objects(torch.rand(1, 3, 8, 8), masks, torch.tensor([[0, 1]]))[1]
        >>> rgb.shape, mask.shape, int(mask.sum())
        (torch.Size([3, 6, 7]), torch.Size([6, 7]), 8)
    """
    owner = "cut_objects"
    check_floating(owner, "images", images)
    sizes = check_shape(owner, "images", images, "n c h w")
    check_shape(owner, "masks", masks, "n h w", n=sizes["n"], h=sizes["h"], w=sizes["w"])
    classes = check_shape(owner, "labels", labels, "n classes", n=sizes["n"])["classes"]
    check_indices(owner, "masks", masks, high=classes + 1, ignore=None)
    check_integer(owner, "margin", margin, low=0)
    found: dict[int, list[Cut]] = {}
    for image, classes_at, shown in zip(images, masks, labels != 0, strict=True):
        if int(shown.sum()) != 1:
            continue
        label = int(shown.int().argmax())
        mask = classes_at == label + 1
        if bool(mask.any()):
            box = tuple(_extent(mask.any(axis), margin) for axis in (1, 0))
            found.setdefault(label, []).append((image[(slice(None), *box)], mask[box].to(image)))
    return found


def _extent(line: Tensor, margin: int = 0) -> slice:
    """Return from where to where a line is True, with a margin as far as it reaches."""
    places = line.nonzero()[:, 0]
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin)


def _window(
    top: int, left: int, size: Sequence[int], room: tuple[int, int], rim: int
) -> tuple[slice, slice, tuple[slice, slice]]:
    """Return where an object with its rim lies in the image, and which part of it that is."""
    rows, columns = (
        slice(max(0, first - rim), min(have, first + need + rim))
        for first, need, have in zip((top, left), size, room, strict=True)
    )
    inside = tuple(
        slice(part.start - first + rim, part.stop - first + rim)
        for part, first in ((rows, top), (columns, left))
    )
    return rows, columns, (inside[0], inside[1])


def _sampled(image: Tensor, grid: Tensor, padding: str) -> Tensor:
    return functional.grid_sample(
        image[None], grid[None].to(image), padding_mode=padding, align_corners=False
    )[0]


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _check_cut(owner: str, cut: Cut) -> None:
    rgb, mask = cut
    check_floating(owner, "an object's picture", rgb)
    sizes = check_shape(owner, "an object's picture", rgb, "c h w")
    check_shape(owner, "an object's mask", mask, "h w", h=sizes["h"], w=sizes["w"])
    if not bool(mask.any()):
        raise ValueError(f"{owner}: an object's mask must not be empty; one of them is.")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(
            f"{owner}: an object's mask must lie in [0, 1]; got values up to {mask.max().item():g}."
        )
