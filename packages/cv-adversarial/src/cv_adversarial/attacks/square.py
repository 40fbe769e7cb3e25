r"""Square attack: random search over squares, with scores and no gradients.

*Square Attack: a Query-Efficient Black-Box Adversarial Attack via Random Search*,
M. Andriushchenko, F. Croce, N. Flammarion and M. Hein, ECCV 2020, Algorithms 1 to 3. Each step
changes the perturbation within a random square of ``h x h`` pixels, and keeps the change if the
margin between the label's logit and the best other one becomes smaller. ``h`` shrinks as the search
goes on.

- In l-infinity the start is vertical stripes, and a square becomes :math:`\pm\epsilon` in each
  channel.
- In l2 the start is a grid of bumps, and the mass of a second square moves, with whatever the ball
  has left, into the first one, in the form of two bumps of opposite signs.

Deviations from the paper, and why:

- A targeted attack raises the margin of the target, too, where the paper lowers the target's cross
  entropy: one objective for both.
- Squares cover 80 % of the image at first, as in AutoAttack; the paper begins with 5 % (l-infinity)
  or 10 % (l2).
- Images that have left their class leave the batch; those that the model gets wrong anyway stay as
  they are.

Example:
    >>> import torch
    >>> from cv_adversarial.attacks.square import Square
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
    >>> x, y = torch.full((2, 1, 6, 6), 0.5), torch.tensor([0, 2])
    >>> result = Square(model, eps=8 / 255, steps=20).run(x, y)
    >>> bool((result.norm <= 8 / 255).all()), result.backwards
    (True, 0)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from cv_core.checks import check_choice, check_integer, check_range, check_shape
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Ball, Norm, ball, check_ball, column
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.attacks.objectives import margin

_HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 steps
_TILES = 5  # the l2 start is a grid of 5 x 5 bumps


def side(step: int, steps: int, p: float, height: int, width: int) -> int:
    """Return the square's side in a step.

    Args:
        step: Number of the step, from 0.
        steps: Number of all steps, over which the paper's schedule is stretched.
        p: Share of the image's area that the first square covers.
        height: The image's height in pixels.
        width: Its width.

    Example:
        >>> [side(step, 10_000, 0.8, 32, 32) for step in (0, 100, 1000, 9999)]
        [29, 14, 10, 2]
    """
    passed = sum(step * 10_000 > halving * steps for halving in _HALVINGS)
    wanted = round(math.sqrt(p / 2**passed * height * width))
    return min(max(wanted, 1), height, width)


def bump(height: int, width: int) -> Float[Tensor, "h w"]:
    """Return the paper's bump: at distance ``d`` from the middle, the sum of ``1 / (j + 1)^2``.

    The sum runs over ``j`` from ``d``, the larger of the distances along the axes, to the border.
    """
    down = (torch.arange(height) - height // 2).abs()
    right = (torch.arange(width) - width // 2).abs()
    far = torch.maximum(down[:, None], right[None, :])
    rings = 1.0 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64).square()
    return rings.flip(0).cumsum(0).flip(0)[far]


def double_bump(size: int) -> Float[Tensor, "h h"]:
    """Return a bump above a negative one, side ``size``, of length 1."""
    upper = size // 2
    pattern = torch.cat([bump(upper, size), -bump(size - upper, size)])
    return pattern / pattern.norm()


class Square(Attack):
    """Black-box attack by random search, in l-infinity or l2.

    Args:
        model: Maps images ``(B, C, H, W)`` with pixels in [0, 1] to logits; it need not be
            differentiable.
        eps: Radius of the ball in its norm, in pixel units; 8/255 by default.
        steps: Most queries of each image, 5000 by default.
        norm: ``"linf"`` or ``"l2"``.
        p: Share of the image's area that the first squares cover, in (0, 1]; 0.8 by default.
        seed: Of the search.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        steps: int = 5000,
        norm: Norm = "linf",
        p: float = 0.8,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        check_ball(self._owner, norm, eps)
        check_choice(self._owner, "norm", norm, ("linf", "l2"))
        check_integer(self._owner, "steps", steps, low=1)
        check_range(self._owner, "p", p, low=0.0, high=1.0, low_open=True)
        self.eps = eps
        self.steps = steps
        self.norm = norm
        self.p = p

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        check_shape(self._owner, "images", x, "b c h w")
        draw = _Draws(x, generator)
        rows = torch.nonzero(~oracle.reached(x, goal)).squeeze(1)
        adv = x.clone()
        if len(rows) == 0:
            return adv
        start, propose = (_stripes, _square) if self.norm == "linf" else (_grid, _moved_mass)
        region, goal = ball(self.norm, x[rows], self.eps), goal.rows(rows)
        z = region.project(start(region, draw))
        logits = oracle.query(z)
        values = margin(logits, goal)
        adv[rows] = z
        for step in range(self.steps - 1):
            going = ~goal.reached(logits)
            if not bool(going.all()):
                rows, z, values, logits = rows[going], z[going], values[going], logits[going]
                region, goal = region.rows(going), goal.rows(going)
            if len(rows) == 0:
                break
            size = side(step, self.steps, self.p, *x.shape[-2:])
            proposal = region.project(propose(region, z, size, draw))
            offered = oracle.query(proposal)
            raised = margin(offered, goal)
            better = raised > values
            z = torch.where(column(better, z), proposal, z)
            logits = torch.where(better[:, None], offered, logits)
            values = torch.where(better, raised, values)
            adv[rows] = z
        return adv


class _Draws:
    """Random numbers, drawn where the generator lives and brought to the images."""

    def __init__(self, like: Tensor, generator: torch.Generator) -> None:
        self._like = like
        self._generator = generator

    def whole(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Draw whole numbers in ``[0, high)``."""
        numbers = torch.randint(
            high, shape, generator=self._generator, device=self._generator.device
        )
        return numbers.to(self._like.device)

    def signs(self, *shape: int) -> Tensor:
        """Draw 1 or -1."""
        return 2.0 * self.whole(2, shape).to(self._like.dtype) - 1.0

    def squares(self, z: Tensor, size: int) -> Tensor:
        """Draw one square of each image: its pixels, counted along the rows, ``(B, 1, s * s)``."""
        height, width = z.shape[-2:]
        top = self.whole(height - size + 1, (len(z),))
        left = self.whole(width - size + 1, (len(z),))
        along = torch.arange(size, device=z.device)
        pixels = (top[:, None] + along)[:, :, None] * width + (left[:, None] + along)[:, None, :]
        return pixels.flatten(1)[:, None]


def _stripes(region: Ball, draw: _Draws) -> Tensor:
    batch, channels, _, width = region.x.shape
    return region.x + region.eps * draw.signs(batch, channels, 1, width)


def _square(region: Ball, z: Tensor, size: int, draw: _Draws) -> Tensor:
    pixels = draw.squares(z, size).expand(-1, z.shape[1], -1)
    sign = draw.signs(*z.shape[:2], 1)
    inside = region.x.flatten(2).gather(2, pixels) + region.eps * sign
    return z.flatten(2).scatter(2, pixels, inside).view_as(z)


def _grid(region: Ball, draw: _Draws) -> Tensor:
    x = region.x
    batch, channels, height, width = x.shape
    tall, wide = max(1, height // _TILES), max(1, width // _TILES)
    tile = double_bump(min(tall, wide)).to(x)
    size = len(tile)
    down, right = height // size, width // size
    sign = draw.signs(batch, channels, down, right)
    bumps = torch.einsum("bcij,hw->bcihjw", sign, tile)
    change = torch.zeros_like(x)
    change[..., : down * size, : right * size] = bumps.reshape(
        batch, channels, down * size, right * size
    )
    return x + region.eps * region.direction(x, change)


def _moved_mass(region: Ball, z: Tensor, size: int, draw: _Draws) -> Tensor:
    """Move the mass of one square into another one, with what the ball has left."""
    tiny = torch.finfo(z.dtype).tiny
    change = (z - region.x).flatten(2)
    batch, channels, _ = change.shape
    first = draw.squares(z, size).expand(-1, channels, -1)
    second = draw.squares(z, size).expand(-1, channels, -1)
    pattern = double_bump(size).to(z)
    flip = draw.whole(2, (batch, 1, 1)).bool()
    pattern = torch.where(flip, pattern.T, pattern).reshape(batch, 1, -1)

    union = torch.zeros_like(change).scatter_(2, first, 1.0).scatter_(2, second, 1.0)
    inside = (change.square() * union).sum(2, keepdim=True)
    left = (region.eps**2 - change.square().sum((1, 2), keepdim=True)).clamp(min=0.0)
    available = (inside + left / channels).sqrt()

    old = change.gather(2, first)
    length = old.norm(dim=2, keepdim=True).clamp(min=tiny)
    new = draw.signs(batch, channels, 1) * pattern + old / length
    new = new / new.norm(dim=2, keepdim=True).clamp(min=tiny) * available
    moved = change.scatter(2, second, 0.0).scatter(2, first, new)
    return region.x + moved.view_as(z)


def square(
    model: Model,
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Float[Tensor, "b c h w"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``Square`` and of its call."""
    return Square(model, **options)(x, y, target=target, generator=generator)
