"""Composing a scene: cut a background, place objects, paint them, read off the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cv_core.checks import check_shape
from cv_core.data.scenes.caption import describe
from cv_core.data.scenes.scene import Attributes, Scene, extreme_points, tight_box
from cv_core.data.scenes.spec import PALETTE, SceneSpec
from cv_core.data.scenes.sprites import Array, ArrayLike, Sprite, as_glyphs, opacity, paint

Place = tuple[int, int]
"""Row and column of a sprite's upper left corner."""


def compose(
    spec: SceneSpec,
    glyphs: ArrayLike,
    labels: ArrayLike | Sequence[int],
    backgrounds: ArrayLike | Sequence[ArrayLike],
    generator: np.random.Generator,
) -> Scene:
    """Paste glyphs on a random part of a background, with exact ground truth.

    An object's pixels are ``alpha * colour + (1 - alpha) * below``; its mask is where ``alpha`` is
    above 0, less what later objects cover. Outside all masks the image is the background.

    Args:
        spec: What the scene may look like.
        glyphs: (N, h, w) or (N, 1, h, w), bright ink on black in [0, 1].
        labels: (N,) classes of the glyphs.
        backgrounds: Images (3, H, W) in [0, 1], each at least as large as the scene; sizes may
            differ.
        generator: NumPy's; decides everything.

    Returns:
        The scene.

    Raises:
        TypeError: If glyphs or backgrounds are not floating.
        ValueError: If shapes do not fit, a background is smaller than the scene, or the part of
            it that is taken leaves [0, 1].
    """
    images, classes = as_glyphs("compose", glyphs, labels)
    background = crop_background("compose", spec, backgrounds, generator)
    sprites, places = arrange(spec, images, classes, background, generator)
    image, masks = render(background, sprites, places)
    return _scene(spec, image, background, masks, sprites, places)


def crop_background(
    owner: str,
    spec: SceneSpec,
    backgrounds: ArrayLike | Sequence[ArrayLike],
    generator: np.random.Generator,
) -> Array:
    """Cut a random part of the scene's size out of a random background."""
    if len(backgrounds) == 0:
        raise ValueError(f"{owner}: backgrounds must hold at least one image; got none.")
    index = int(generator.integers(len(backgrounds)))
    whole = np.asarray(backgrounds[index])
    sizes = check_shape(owner, f"backgrounds[{index}]", whole, "3 h w")
    if not np.issubdtype(whole.dtype, np.floating):
        raise TypeError(
            f"{owner}: backgrounds must be floating-point images in [0, 1]; got {whole.dtype}. "
            "Divide uint8 images by 255."
        )
    if sizes["h"] < spec.height or sizes["w"] < spec.width:
        raise ValueError(
            f"{owner}: backgrounds[{index}] must be at least ({spec.height}, {spec.width}); got "
            f"({sizes['h']}, {sizes['w']}). Enlarge it or leave it out."
        )
    top = int(generator.integers(sizes["h"] - spec.height + 1))
    left = int(generator.integers(sizes["w"] - spec.width + 1))
    part = whole[:, top : top + spec.height, left : left + spec.width].astype(np.float32)
    if not (part.min() >= 0.0 and part.max() <= 1.0):
        raise ValueError(
            f"{owner}: backgrounds[{index}] must lie in [0, 1]; this one does not, or holds NaN."
        )
    return part


def arrange(
    spec: SceneSpec,
    images: Array,
    classes: Array,
    background: Array,
    generator: np.random.Generator,
) -> tuple[list[Sprite], list[Place]]:
    """Draw objects and places one after the other, from below to above."""
    sprites: list[Sprite] = []
    places: list[Place] = []
    visible: list[Array] = []
    least, largest = spec.sides()
    for _ in range(int(generator.integers(spec.objects[0], spec.objects[1] + 1))):
        index = int(generator.integers(len(images)))
        side = int(generator.integers(least, largest + 1))
        alpha, shade = opacity(images[index], side, spec.appearance)
        alpha, shade = alpha[: spec.height, : spec.width], shade[: spec.height, : spec.width]
        place = _find_place(spec, alpha > 0.0, sprites, visible, generator)
        if place is None:
            continue
        used = {sprite.attributes.colour for sprite in sprites}
        colour = _choose_colour(spec, used, background, place, alpha.shape, generator)
        label = int(classes[index])
        size = "" if least == largest else ("large" if 2 * side > least + largest else "small")
        words = Attributes(spec.name_of(label), colour, size)
        sprite = paint(alpha, shade, PALETTE[colour], label, words, spec.appearance)
        for below in visible:
            below[_window(sprite, place)] &= ~sprite.mask
        sprites.append(sprite)
        places.append(place)
        visible.append(_on_canvas(sprite, place, spec.height, spec.width))
    return sprites, places


def render(
    background: Array, sprites: Sequence[Sprite], places: Sequence[Place]
) -> tuple[Array, Array]:
    """Paint sprites from below to above.

    Returns:
        The image (3, H, W) and the visible masks (K, H, W).
    """
    image = background.copy()
    height, width = image.shape[1:]
    masks = np.zeros((len(sprites), height, width), dtype=bool)
    for number, (sprite, place) in enumerate(zip(sprites, places, strict=True)):
        rows, columns = _window(sprite, place)
        part = image[:, rows, columns]
        part[...] = sprite.alpha * sprite.colour + (1 - sprite.alpha) * part
        masks[:number, rows, columns] &= ~sprite.mask
        masks[number, rows, columns] = sprite.mask
    return image, masks


def _scene(
    spec: SceneSpec,
    image: Array,
    background: Array,
    masks: Array,
    sprites: Sequence[Sprite],
    places: Sequence[Place],
) -> Scene:
    boxes = np.array([tight_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
    attributes = tuple(sprite.attributes for sprite in sprites)
    return Scene(
        image=torch.from_numpy(image),
        background=torch.from_numpy(background),
        masks=torch.from_numpy(masks),
        boxes=torch.from_numpy(boxes),
        labels=torch.tensor([sprite.label for sprite in sprites], dtype=torch.int64),
        keypoints=torch.from_numpy(_keypoints(spec, sprites, places)),
        attributes=attributes,
        caption=describe(attributes, boxes),
    )


def _keypoints(spec: SceneSpec, sprites: Sequence[Sprite], places: Sequence[Place]) -> Array:
    points = np.zeros((len(sprites), 5, 3), dtype=np.float32)
    covered = np.zeros((spec.height, spec.width), dtype=bool)
    for number in reversed(range(len(sprites))):
        top, left = places[number]
        corner = np.array((left, top), dtype=np.float32)
        points[number, :, :2] = extreme_points(sprites[number].mask) + corner
        at = points[number, :, :2].astype(np.int64)
        points[number, :, 2] = ~covered[at[:, 1], at[:, 0]]
        covered[_window(sprites[number], places[number])] |= sprites[number].mask
    return points


def _find_place(
    spec: SceneSpec,
    mask: Array,
    sprites: Sequence[Sprite],
    visible: Sequence[Array],
    generator: np.random.Generator,
) -> Place | None:
    rows, columns = spec.height - mask.shape[0] + 1, spec.width - mask.shape[1] + 1
    tops = generator.integers(rows, size=spec.attempts)
    lefts = generator.integers(columns, size=spec.attempts)
    for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
        window = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
        if all(
            _stays_visible(spec, sprite, seen, seen[window] & mask)
            for sprite, seen in zip(sprites, visible, strict=True)
        ):
            return top, left
    return None


def _stays_visible(spec: SceneSpec, sprite: Sprite, seen: Array, newly_hidden: Array) -> bool:
    hit = int(newly_hidden.sum())
    if hit == 0:
        return True
    left_over = int(seen.sum()) - hit
    whole = int(sprite.mask.sum())
    # an object without a visible pixel has no box, whatever overlap is allowed
    return left_over > 0 and whole - left_over <= spec.max_overlap * whole


def _choose_colour(
    spec: SceneSpec,
    used: set[str],
    background: Array,
    place: Place,
    shape: tuple[int, int],
    generator: np.random.Generator,
) -> str:
    """Draw a colour that stands out, and that the scene does not hold yet where there is one."""
    below = background[:, place[0] : place[0] + shape[0], place[1] : place[1] + shape[1]]
    palette = np.array([PALETTE[name] for name in spec.colours], dtype=np.float32)
    distance = np.linalg.norm(below.reshape(1, 3, -1) - palette[:, :, None], axis=1)
    fifth = distance.shape[1] // 5
    reach = np.partition(distance, fifth, axis=1)[:, fifth]
    fit = [name for name, far in zip(spec.colours, reach, strict=True) if far >= spec.contrast]
    fit = [name for name in fit if name not in used] or fit
    if not fit:
        return spec.colours[int(reach.argmax())]
    return fit[int(generator.integers(len(fit)))]


def _window(sprite: Sprite, place: Place) -> tuple[slice, slice]:
    height, width = sprite.alpha.shape
    return slice(place[0], place[0] + height), slice(place[1], place[1] + width)


def _on_canvas(sprite: Sprite, place: Place, height: int, width: int) -> Array:
    canvas = np.zeros((height, width), dtype=bool)
    canvas[_window(sprite, place)] = sprite.mask
    return canvas
