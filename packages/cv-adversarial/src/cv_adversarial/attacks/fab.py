r"""FAB: small perturbations by walking along the decision boundary and back towards the image.

*Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack*, F. Croce and
M. Hein, ICML 2020. At a point :math:`x_i` the nearest linearised boundary :math:`\pi` is found
as in DeepFool, and both the point and the image :math:`x` are projected onto its intersection with
[0, 1], by :math:`\delta_i` and :math:`\delta`. The next point leans towards the image's projection,

.. math:: x_{i+1} = \mathrm{clip}\big((1 - a)(x_i + \eta\,\delta_i) + a (x + \eta\,\delta)\big),
          \qquad a = \min\Big(\frac{\|\delta_i\|}{\|\delta_i\| + \|\delta\|}, 0.1\Big),

and once it is adversarial, the search goes on from :math:`(1 - \beta) x + \beta x_{i+1}`. A final
search on the segment to the image brings the nearest success closer to the boundary.

Deviations from the paper, and why:

- One run without random restarts; a second run from elsewhere is the caller's to make.
- The final search bisects instead of three secant steps: it cannot leave the adversarial side.
- Images that the model gets wrong anyway stay as they are.

Example:
    >>> import torch
    >>> from cv_adversarial.attacks.fab import FAB
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(model.weight)
    >>> result = FAB(model, norm="linf").run(torch.tensor([[0.6, 0.2]]), torch.tensor([0]))
    >>> round(float(result.norm), 3)  # the boundary lies at 0.2
    0.2
"""

from __future__ import annotations

from typing import Any

import torch
from cv_core.checks import check_choice, check_integer, check_range
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Norm, column, distance, lengths, per_sample
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.attacks.boundary import nearest_boundary, rivals

_BISECTIONS = 12


def to_hyperplane(
    x: Float[Tensor, "b *image"],
    gap: Float[Tensor, " b"],
    slope: Float[Tensor, "b *image"],
    norm: Norm,
) -> Float[Tensor, "b *image"]:
    r"""Return the shortest change that makes ``gap + <slope, change>`` zero within [0, 1].

    Entries move in the direction that closes the gap, all by :math:`\lambda` in l-infinity and by
    :math:`\lambda |slope|` in l2, until they meet the end of the range. The gap that they close is
    piecewise linear in :math:`\lambda`. Where it cannot be closed, all entries go to their ends.

    Args:
        x: Points in [0, 1], ``(B, ...)``.
        gap: A linear function's values there, ``(B,)``.
        slope: Its gradients.
        norm: ``"linf"`` or ``"l2"``.

    Returns:
        The changes, of the shape of ``x``.
    """
    flat, weight = x.double().flatten(1), slope.double().flatten(1).abs()
    towards = -per_sample(gap.sign(), slope) * slope.sign()
    room = torch.where(towards.flatten(1) > 0, 1.0 - flat, flat)
    speed = torch.ones_like(weight) if norm == "linf" else weight
    usable = weight > 0
    corner = torch.where(usable, room / speed.masked_fill(~usable, 1.0), 0.0)
    corner, order = corner.sort(dim=1)
    rate = (weight * speed).gather(1, order)
    ended = (weight * room).gather(1, order).cumsum(1)  # closed by the entries at their ends
    moving = rate.sum(1, keepdim=True) - rate.cumsum(1)
    closed = ended + moving * corner
    wanted = gap.double().abs()[:, None]
    segment = (closed < wanted).sum(1, keepdim=True)  # how many corners are passed
    none = torch.zeros_like(wanted)
    fixed = torch.cat([none, ended], dim=1).gather(1, segment)
    pace = torch.cat([rate.sum(1, keepdim=True), moving], dim=1).gather(1, segment)
    tiny = torch.finfo(torch.float64).tiny
    shift = torch.where(pace > tiny, (wanted - fixed) / pace.clamp(min=tiny), corner[:, -1:])
    change = torch.minimum(shift * speed, room) * usable
    return towards * change.to(x.dtype).view_as(x)


class FAB(Attack):
    """Minimal perturbations in l-infinity or l2.

    An image for which no step succeeds comes back unchanged; ``run`` tells which.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        steps: Number of steps, 100 by default.
        norm: ``"linf"`` or ``"l2"``.
        overshoot: The paper's eta, how far beyond the boundary a step goes, at least 1; 1.05.
        lean: The most that a step leans towards the image, in [0, 1]; the paper's 0.1.
        beta: How far from the image the search goes on after a success, in (0, 1); 0.9.
        candidates: How many of the likeliest wrong classes are looked at; ``None``, the default,
            for all. A step takes one backward pass for each.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        model: Model,
        steps: int = 100,
        *,
        norm: Norm = "linf",
        overshoot: float = 1.05,
        lean: float = 0.1,
        beta: float = 0.9,
        candidates: int | None = None,
    ) -> None:
        super().__init__(model)
        check_integer(self._owner, "steps", steps, low=1)
        check_choice(self._owner, "norm", norm, ("linf", "l2"))
        check_range(self._owner, "overshoot", overshoot, low=1.0)
        check_range(self._owner, "lean", lean, low=0.0, high=1.0)
        check_range(self._owner, "beta", beta, low=0.0, high=1.0, low_open=True, high_open=True)
        if candidates is not None:
            check_integer(self._owner, "candidates", candidates, low=1)
        self.steps = steps
        self.norm = norm
        self.overshoot = overshoot
        self.lean = lean
        self.beta = beta
        self.candidates = candidates

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        del generator
        logits = oracle.query(x)
        going = ~goal.reached(logits)
        adv = x.clone()
        if bool(going.any()):
            classes = rivals(logits, goal, self.candidates)[going]
            adv[going] = self._walk(x[going], goal.rows(going), classes, oracle)
        return adv

    def _walk(self, x: Tensor, goal: Goal, classes: Tensor, oracle: Oracle) -> Tensor:
        best, z = x, x
        nearest = torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
        for _ in range(self.steps):
            z = self._step(x, z, goal, classes, oracle)
            found = oracle.reached(z, goal)
            length = distance(self.norm, z, x)
            better = column(found & (length < nearest), z)
            best = torch.where(better, z, best)
            nearest = torch.where(found, torch.minimum(length, nearest), nearest)
            z = torch.where(column(found, z), torch.lerp(x, z, self.beta), z)
        return self._bisect(x, best, goal, oracle)

    def _step(self, x: Tensor, z: Tensor, goal: Goal, classes: Tensor, oracle: Oracle) -> Tensor:
        gap, slope = nearest_boundary(oracle, z, goal, classes, self.norm)
        # the same plane seen from the image
        offset = (slope.double() * (x.double() - z.double())).flatten(1).sum(1).to(gap.dtype)
        from_point = to_hyperplane(z, gap, slope, self.norm)
        from_image = to_hyperplane(x, gap + offset, slope, self.norm)
        near, far = lengths(self.norm, from_point), lengths(self.norm, from_image)
        share = near / (near + far).clamp(min=torch.finfo(near.dtype).tiny)
        lean = per_sample(share.clamp(max=self.lean), x)
        point, image = z + self.overshoot * from_point, x + self.overshoot * from_image
        return torch.lerp(point, image, lean).clamp(0.0, 1.0)

    def _bisect(self, x: Tensor, best: Tensor, goal: Goal, oracle: Oracle) -> Tensor:
        """Halve the segment between the image and a success, keeping the far end a success."""
        low = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        high = torch.ones_like(low)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            z = torch.lerp(x, best, per_sample(middle, x))
            found = oracle.reached(z, goal)
            low, high = torch.where(found, low, middle), torch.where(found, middle, high)
        moved = torch.lerp(x, best, per_sample(high, x))
        return torch.where(column(high < 1.0, x), moved, best)


def fab(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    **options: Any,
) -> Float[Tensor, "b *image"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``FAB``."""
    return FAB(model, **options)(x, y, target=target)
