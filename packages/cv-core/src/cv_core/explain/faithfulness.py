"""How good a map is: does it lie on the object, and does the network depend on what it marks?"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cv_core.checks import check_finite, check_integer, check_same_shape, check_shape
from cv_core.explain.scores import chunks, decide


def energy_in_mask(
    maps: Float[Tensor, "b h w"], masks: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b"]:
    """Share of each map's positive part that lies on the object (Wang et al., CVPRW 2020).

    Compare it with ``masks.float().mean((1, 2))``, the share that a constant map has.

    Args:
        maps: ``(B, H, W)``.
        masks: True on the object ``(B, H, W)``.

    Returns:
        ``(B,)`` in [0, 1]; 0 for a map without positive part.

    Raises:
        ValueError: If the shapes differ or a map is not finite.
    """
    _check_maps("energy_in_mask", maps, masks)
    energy = maps.relu()
    total = energy.sum((1, 2))
    return (energy * masks).sum((1, 2)) / torch.where(total > 0, total, 1.0)


def pointing_game(maps: Float[Tensor, "b h w"], masks: Bool[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """Whether each map's maximum lies on the object (Zhang et al., IJCV 2018).

    Args:
        maps: ``(B, H, W)``.
        masks: True on the object ``(B, H, W)``.

    Returns:
        ``(B,)``: 1 or 0; where several pixels share the maximum, the share of them on the object,
        which is the expectation of a fair draw among them.

    Raises:
        ValueError: If the shapes differ or a map is not finite.
    """
    _check_maps("pointing_game", maps, masks)
    top = maps == maps.amax((1, 2), keepdim=True)
    return (top & masks).sum((1, 2)) / top.sum((1, 2))


def _check_maps(owner: str, maps: Tensor, masks: Tensor) -> None:
    check_shape(owner, "maps", maps, "b h w")
    check_same_shape(owner, maps=maps, masks=masks)
    check_finite(owner, "maps", maps)
    if masks.dtype != torch.bool:
        raise TypeError(f"{owner}: masks must be of type bool; got {masks.dtype}.")


def deletion_curve(
    model: nn.Module,
    inputs: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b h w"],
    *,
    target: int | Tensor | None = None,
    reference: float | Tensor = 0.0,
    steps: int = 20,
    batch_size: int = 64,
) -> Float[Tensor, "b points"]:
    """Probability of the class while pixels go, the highest of the map first.

    Petsiuk, Das and Saenko, *RISE*, BMVC 2018.

    Args:
        model: A classifier, used in the mode it is in.
        inputs: Images ``(B, C, H, W)``.
        maps: ``(B, H, W)``; equal values go in reading order.
        target: A class, classes ``(B,)``, or None for the decision on the whole images.
        reference: What takes a pixel's place: a number, or a tensor that broadcasts to the images.
        steps: In how many equal parts the pixels go.
        batch_size: How many images go through the network at once.

    Returns:
        ``(B, steps + 1)``, from the whole image to the reference. A faithful map falls early.

    Raises:
        ValueError: If the shapes do not fit or a map is not finite.
    """
    classes, ranks = _prepare("deletion_curve", model, inputs, maps, target, steps, batch_size)
    end = torch.as_tensor(reference).to(inputs).expand_as(inputs)
    return _curve(model, inputs, end, ranks, classes, steps, batch_size)


def insertion_curve(
    model: nn.Module,
    inputs: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b h w"],
    *,
    target: int | Tensor | None = None,
    reference: float | Tensor = 0.0,
    steps: int = 20,
    batch_size: int = 64,
) -> Float[Tensor, "b points"]:
    """Probability of the class while pixels come, the highest of the map first.

    The arguments are those of ``deletion_curve``; a blurred copy of the images is the usual
    ``reference``.

    Returns:
        ``(B, steps + 1)``, from the reference to the whole image. A faithful map rises early.
    """
    classes, ranks = _prepare("insertion_curve", model, inputs, maps, target, steps, batch_size)
    start = torch.as_tensor(reference).to(inputs).expand_as(inputs)
    return _curve(model, start, inputs, ranks, classes, steps, batch_size)


def _prepare(
    owner: str,
    model: nn.Module,
    inputs: Tensor,
    maps: Tensor,
    target: int | Tensor | None,
    steps: int,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Return each image's class ``(B,)`` and each pixel's place in the order ``(B, H, W)``."""
    sizes = check_shape(owner, "inputs", inputs, "b c h w")
    check_shape(owner, "maps", maps, "b h w", b=sizes["b"], h=sizes["h"], w=sizes["w"])
    check_finite(owner, "maps", maps)
    check_integer(owner, "steps", steps, low=1)
    check_integer(owner, "batch_size", batch_size, low=1)
    classes = decide(model, inputs, target, owner, batch_size)
    if not isinstance(classes, Tensor):
        raise TypeError(f"{owner}: target must be a class, classes or None; got a function.")
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    return classes, order.argsort(dim=1).view_as(maps)


def _curve(
    model: nn.Module,
    start: Tensor,
    end: Tensor,
    ranks: Tensor,
    classes: Tensor,
    steps: int,
    batch_size: int,
) -> Tensor:
    """Return the probabilities ``(B, steps + 1)`` on the way from one image to the other."""
    count, pixels = len(start), ranks[0].numel()
    found: list[Tensor] = []
    with torch.no_grad():
        for chunk in chunks((steps + 1) * count, batch_size, start.device):
            image, step = chunk % count, chunk // count
            changed = (ranks[image] * steps < (step * pixels).view(-1, 1, 1)).unsqueeze(1)
            p = model(torch.where(changed, end[image], start[image])).softmax(1)
            found.append(p.gather(1, classes[image].unsqueeze(1)).squeeze(1))
    return torch.cat(found).view(steps + 1, count).T


def area_under_curve(curves: Float[Tensor, "b points"]) -> Float[Tensor, "b"]:
    """Area under each curve by trapezia, over an axis of length 1.

    Args:
        curves: ``(B, points)`` at equal distances.
    """
    check_shape("area_under_curve", "curves", curves, "b p")
    return torch.trapezoid(curves, dx=1.0 / max(1, curves.shape[1] - 1))
