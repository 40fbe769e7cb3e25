r"""Balls around images, cut with the pixel range: steepest steps, projections, random points.

A point that a ball returns lies in it to the last bit: the difference to the image, taken exactly,
is no longer than ``eps``, and pixels lie in [0, 1]. For the l2 and l1 balls the length aimed at is
64 rounding errors shorter than ``eps``, so that it holds for a length summed up in the images' own
type as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from cv_core.checks import check_choice, check_range
from jaxtyping import Float, Float64
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]
_ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_MARGIN = 64.0
_SPARSITY = 0.01  # share of the entries that an l1 step moves (Tramer and Boneh's q is 99 %)


def check_ball(owner: str, norm: Norm, eps: float) -> None:
    """Refuse a radius that is not a positive number, and an unknown norm."""
    check_range(owner, "eps", eps, low=0.0, low_open=True)
    check_choice(owner, "norm", norm, get_args(Norm))


def lengths(norm: Norm, delta: Float[Tensor, "b *image"]) -> Float64[Tensor, " b"]:
    """Return each sample's length, summed up in float64."""
    return torch.linalg.vector_norm(delta.flatten(1), _ORDERS[norm], dim=1, dtype=torch.float64)


def distance(
    norm: Norm, adv: Float[Tensor, "b *image"], x: Float[Tensor, "b *image"]
) -> Float64[Tensor, " b"]:
    """Return each sample's distance, from differences that are not rounded to the images' type."""
    return lengths(norm, adv.double() - x.double())


def column(values: Tensor, like: Float[Tensor, "b *image"]) -> Tensor:
    """Shape one value per sample so that it broadcasts with the samples."""
    return values.view(-1, *[1] * (like.ndim - 1))


def per_sample(values: Float[Tensor, " b"], like: Float[Tensor, "b *image"]) -> Tensor:
    """Shape one number per sample so that it broadcasts with the samples, in their type."""
    return column(values.to(like.dtype), like)


def add_towards(x: Tensor, delta: Tensor) -> Tensor:
    """Add and round towards ``x``, so that the exact difference is never above ``|delta|``."""
    total = x + delta
    part = total - x
    error = (x - (total - part)) + (delta - part)  # exact: Knuth's two-sum
    beyond = error.sign() * delta.sign() < 0
    return torch.where(beyond, torch.nextafter(total, x), total)


class Ball(ABC):
    """The points within ``eps`` of each image of a batch that are images themselves.

    Args:
        x: The images ``(B, ...)``, pixels in [0, 1].
        eps: The radius in the ball's norm, in pixel units.
    """

    norm: Norm

    def __init__(self, x: Float[Tensor, "b *image"], eps: float) -> None:
        self.x = x
        self.eps = eps

    def rows(self, index: Tensor) -> Ball:
        """Return the balls around some of the images."""
        return type(self)(self.x[index], self.eps)

    def move(self, z: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Step as far as ``size`` in the direction that raises a linear function most; project.

        Args:
            z: The points.
            gradient: The function's gradients there.
            size: Length of the step in the ball's norm, a number or shaped by ``per_sample``.
        """
        return self.project(z + size * self.direction(z, gradient))

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """Return a nearest point of the ball, within the pixel range."""

    @abstractmethod
    def direction(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Return the direction of steepest ascent, of length one (zero for no gradient)."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw points evenly from the ball; those outside the pixel range are clipped to it."""


class LinfBall(Ball):
    """No pixel changes by more than ``eps``."""

    norm: Norm = "linf"

    def __init__(self, x: Float[Tensor, "b *image"], eps: float) -> None:
        super().__init__(x, eps)
        reach = torch.tensor(eps, dtype=x.dtype, device=x.device)
        if float(reach) > eps:
            reach = torch.nextafter(reach, torch.zeros_like(reach))
        self._low = add_towards(x, -reach).clamp_(min=0.0)
        self._high = add_towards(x, reach).clamp_(max=1.0)

    def project(self, z: Tensor) -> Tensor:
        """Clip to the ball and the pixel range, which are one box."""
        return torch.clamp(z, self._low, self._high)

    def direction(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Return the signs."""
        del z
        return gradient.sign()

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw every pixel evenly."""
        return self.project(self.x + self.eps * (2.0 * _uniform(self.x, generator) - 1.0))


class L2Ball(Ball):
    """The Euclidean length of the change is at most ``eps``."""

    norm: Norm = "l2"

    def project(self, z: Tensor) -> Tensor:
        """Shorten what is too long, then clip to the pixel range, which shortens it further."""
        delta = z - self.x
        factor = (_reach(self) / lengths("l2", delta)).clamp(max=1.0)
        return add_towards(self.x, delta * per_sample(factor, delta)).clamp_(0.0, 1.0)

    def direction(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient over its length."""
        del z
        return gradient / per_sample(_positive(lengths("l2", gradient), gradient), gradient)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a direction, then the radius that spreads points evenly over the volume."""
        normal = _normal(self.x, generator)
        radius = _uniform(self.x.flatten(1)[:, 0], generator) ** (1.0 / self.x[0].numel())
        step = self.direction(self.x, normal) * per_sample(self.eps * radius, self.x)
        return self.project(self.x + step)


class L1Ball(Ball):
    """The absolute changes sum to at most ``eps``."""

    norm: Norm = "l1"

    def project(self, z: Tensor) -> Tensor:
        r"""Project onto the intersection of ball and pixel range, as one set.

        With :math:`u = z - x` and the room :math:`r` that each entry has in its direction, the
        nearest point moves entries by :math:`\min(r, \max(|u| - \lambda, 0))`. The sum of these is
        piecewise linear in :math:`\lambda`, with corners at :math:`|u|` and :math:`|u| - r`, so
        sorting the corners finds the :math:`\lambda` at which it is ``eps``.
        """
        delta = (z - self.x).double().flatten(1)
        x = self.x.double().flatten(1)
        size = delta.abs()
        room = torch.where(delta > 0, 1.0 - x, x)
        moved = torch.minimum(room, (size - _threshold(size, room, _reach(self))).clamp(min=0.0))
        # for a small ball lambda has lost digits beside the entries; what is left is the margin's
        excess = (moved.sum(1, keepdim=True) / _reach(self)).clamp(min=1.0)
        change = (moved / excess).copysign(delta).view_as(self.x)
        return add_towards(self.x, change.to(self.x.dtype)).clamp_(0.0, 1.0)

    def direction(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Return the signs of the largest gradients among pixels with room, sharing the length."""
        blocked = ((gradient > 0) & (z >= 1.0)) | ((gradient < 0) & (z <= 0.0))
        size = gradient.abs().masked_fill(blocked, 0.0).flatten(1)
        count = max(1, round(_SPARSITY * size.shape[1]))
        value, index = size.topk(count, dim=1)
        sign = gradient.flatten(1).gather(1, index).sign() * (value > 0)
        sign = sign / sign.abs().sum(1, keepdim=True).clamp(min=1.0)
        return torch.zeros_like(size).scatter_(1, index, sign).view_as(gradient)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw exponential numbers, of which all but one are the entries and all are the sum."""
        entries = torch.log1p(-_uniform(self.x, generator))  # minus an exponential number
        rest = -torch.log1p(-_uniform(self.x.flatten(1)[:, 0], generator))
        total = rest - entries.flatten(1).sum(1)
        sign = _normal(self.x, generator).sign()
        scale = self.eps / total.clamp(min=torch.finfo(total.dtype).tiny)
        return self.project(self.x + sign * entries * per_sample(scale, entries))


_BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}


def ball(norm: Norm, x: Float[Tensor, "b *image"], eps: float) -> Ball:
    """Return the balls around images in a norm given by name."""
    return _BALLS[norm](x, eps)


def _reach(region: Ball) -> float:
    return region.eps * (1.0 - _MARGIN * torch.finfo(region.x.dtype).eps)


def _threshold(size: Tensor, room: Tensor, reach: float) -> Tensor:
    """Solve for lambda, per row; 0 where the sum is within reach without any."""
    corner, order = torch.cat([size, size - room], dim=1).sort(dim=1, descending=True)
    slope = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1).gather(1, order)
    weighted, slopes = (slope * corner).cumsum(1), slope.cumsum(1)
    total = weighted - slopes * corner  # the sum of moves for lambda at each corner, increasing
    segment = (total < reach).sum(1, keepdim=True).clamp(min=1, max=corner.shape[1]) - 1
    rate = slopes.gather(1, segment)
    threshold = (weighted.gather(1, segment) - reach) / rate.clamp(min=1.0)
    return torch.where(rate > 0, threshold, 0.0).clamp(min=0.0)


def _positive(values: Tensor, like: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(like.dtype).tiny)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw where the generator lives, so that a seed means the same numbers on every device."""
    draws = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return draws.to(like.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return draws.to(like.device)
