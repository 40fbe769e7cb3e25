"""A ReLU network with its activations as variables: the blocks of block-wise training.

``cv_factorization.methods.log_pbcd`` has the objective and its symbols.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from cv_core.checks import check_floating, check_range, check_same_shape
from cv_core.numerics.proximal import prox_log
from jaxtyping import Float
from torch import Tensor

from cv_factorization._shared.arrays import drawn
from cv_factorization.sparse.coding import spectral_bound

Blocks = Mapping[str, Tensor]
"""By name: ``W1``, ``b1``, ``Z1``, ``A1``, ... ``WL``, ``bL``, ``ZL``."""


def prox_relu_split(
    a: Float[Tensor, "..."], s: Float[Tensor, "..."], eta: float
) -> Float[Tensor, "..."]:
    r"""Return the minimiser of :math:`\tfrac12 (a - \max(z, 0))^2 + \tfrac{\eta}{2} (z - s)^2`.

    On each side of 0 the problem is quadratic; the better of the two minima is taken, which is what
    the paper's four cases (10-13) come to.

    Args:
        a: Any shape.
        s: The shape of ``a``.
        eta: Above 0.

    Returns:
        The shape of ``a``; of two equal minima the one at most 0.

    Example:
        >>> prox_relu_split(torch.tensor([2.0, -1.0, 0.1]), torch.tensor([1.0, -3.0, -0.5]), 1.0)
        tensor([ 1.5000, -3.0000, -0.5000])
    """
    check_floating("prox_relu_split", "a", a)
    check_same_shape("prox_relu_split", a=a, s=s)
    check_range("prox_relu_split", "eta", eta, low=0.0, low_open=True)
    below = s.clamp(max=0.0)
    above = ((a + eta * s) / (1.0 + eta)).clamp(min=0.0)
    cost_below = a.square() + eta * (below - s).square()
    cost_above = (a - above).square() + eta * (above - s).square()
    return torch.where(cost_above < cost_below, above, below)


def printed_log_threshold(
    x: Float[Tensor, "..."], weight: float, *, eps: float
) -> Float[Tensor, "..."]:
    r"""Return the paper's log threshold (17), made odd; ``prox_log`` is the exact one.

    .. math::
        \mathrm{sign}(x) \tfrac12 \big(|x| - \epsilon + \sqrt{(|x| + \epsilon)^2 - 4\lambda}\big)
        \;\text{ where }\; |x| > 2\sqrt\lambda - \epsilon, \quad \text{else } 0

    Just above its threshold 0 would be better still; where :math:`\sqrt\lambda < \epsilon` it may
    turn the sign.

    Args:
        x: Any shape.
        weight: :math:`\lambda`, at least 0.
        eps: Where the penalty bends, above 0.

    Returns:
        The shape of ``x``.
    """
    check_floating("printed_log_threshold", "x", x)
    check_range("printed_log_threshold", "weight", weight, low=0.0)
    check_range("printed_log_threshold", "eps", eps, low=0.0, low_open=True)
    size = x.abs()
    spread = ((size + eps).square() - 4.0 * weight).clamp(min=0.0).sqrt()
    return torch.where(size > 2.0 * weight**0.5 - eps, 0.5 * x.sign() * (size - eps + spread), 0.0)


@dataclass(frozen=True, eq=False)
class SplitNetwork:
    """The relaxed problem: its objective and the update of every block.

    Args:
        X: Samples (n, d0).
        Y: Their classes (n, k), one-hot.
        depth: Layers L, at least 2.
        alpha: Weight of the last layer's fit to Y.
        beta: Weight of the last layer's tie to its input.
        gamma: Weight of activations' tie to pre-activations.
        rho: Weight of pre-activations' tie to the layer's input.
        delta: Weight of the previous value of the block.
        lam: Weight of the log penalty.
        eps: Where the log penalty bends.
        safeguard: Whether the proximal step is short enough to descend.
    """

    X: Tensor
    Y: Tensor
    depth: int
    alpha: float
    beta: float
    gamma: float
    rho: float
    delta: float
    lam: float
    eps: float
    safeguard: bool

    def start(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return all blocks by a forward pass with these weights and no biases."""
        blocks: dict[str, Tensor] = {}
        layer_input = self.X
        for layer, W in enumerate(weights, 1):
            blocks[f"W{layer}"] = W
            blocks[f"b{layer}"] = W.new_zeros(len(W))
            blocks[f"Z{layer}"] = layer_input @ W.mT
            if layer < self.depth:
                layer_input = blocks[f"A{layer}"] = blocks[f"Z{layer}"].clamp(min=0.0)
        return blocks

    def updates(self) -> dict[str, Callable[[Blocks], Tensor]]:
        """Return the update of every block, in the order of a sweep."""
        steps: dict[str, Callable[[Blocks], Tensor]] = {}
        for layer in range(1, self.depth + 1):
            hidden = layer < self.depth
            steps[f"W{layer}"] = partial(self._weights, layer)
            steps[f"b{layer}"] = partial(self._bias, layer)
            steps[f"Z{layer}"] = partial(self._hidden, layer) if hidden else self._output
            if hidden:
                last = layer == self.depth - 1
                steps[f"A{layer}"] = self._last_code if last else partial(self._code, layer)
        return steps

    def objective(self, blocks: Blocks) -> float:
        """Return the objective (4), without the terms that hold on to previous values."""
        value = 0.5 * self.alpha * (blocks[f"Z{self.depth}"] - self.Y).square().sum()
        for layer in range(1, self.depth + 1):
            value += 0.5 * self._tie(layer) * self._residual(layer, blocks).square().sum()
        for layer in range(1, self.depth):
            A, Z = blocks[f"A{layer}"], blocks[f"Z{layer}"]
            value += 0.5 * self.gamma * (A - Z.clamp(min=0.0)).square().sum()
            if layer < self.depth - 1:
                value += self.lam * torch.log1p(A.abs() / self.eps).sum()
        return float(value)

    def _tie(self, layer: int) -> float:
        return self.rho if layer < self.depth else self.beta

    def _input(self, layer: int, blocks: Blocks) -> Tensor:
        return self.X if layer == 1 else blocks[f"A{layer - 1}"]

    def _affine(self, layer: int, blocks: Blocks) -> Tensor:
        W, b = blocks[f"W{layer}"], blocks[f"b{layer}"]
        return torch.addmm(b, self._input(layer, blocks), W.mT)

    def _residual(self, layer: int, blocks: Blocks) -> Tensor:
        return blocks[f"Z{layer}"] - self._affine(layer, blocks)

    # Every quadratic block is written as its previous value plus a step: in that form rounding
    # hurts the step only, and float32 will do.

    def _weights(self, layer: int, blocks: Blocks) -> Tensor:
        A, tie = self._input(layer, blocks), self._tie(layer)
        factor = self._first_factor if layer == 1 else _factor(A, tie, self.delta)
        pull = tie * (A.mT @ self._residual(layer, blocks))
        return blocks[f"W{layer}"] + torch.cholesky_solve(pull, factor).mT

    @cached_property
    def _first_factor(self) -> Tensor:
        return _factor(self.X, self._tie(1), self.delta)  # X stays, and is the widest input

    def _bias(self, layer: int, blocks: Blocks) -> Tensor:
        tie = self._tie(layer)
        mean = self._residual(layer, blocks).mean(dim=0)
        return blocks[f"b{layer}"] + tie / (tie + self.delta) * mean

    def _hidden(self, layer: int, blocks: Blocks) -> Tensor:
        total = self.rho + self.delta
        s = blocks[f"Z{layer}"] - self.rho / total * self._residual(layer, blocks)
        return prox_relu_split(blocks[f"A{layer}"], s, total / self.gamma)

    def _output(self, blocks: Blocks) -> Tensor:
        affine, Z = self._affine(self.depth, blocks), blocks[f"Z{self.depth}"]
        total = self.alpha + self.beta + self.delta
        return (self.beta * affine + self.alpha * self.Y + self.delta * Z) / total

    def _code(self, layer: int, blocks: Blocks) -> Tensor:
        W, A = blocks[f"W{layer + 1}"], blocks[f"A{layer}"]
        away = A - blocks[f"Z{layer}"].clamp(min=0.0)
        slope = self.gamma * away - self.rho * self._residual(layer + 1, blocks) @ W
        if not self.safeguard:
            point = A - slope / self.delta
            return printed_log_threshold(point, self.lam / self.delta, eps=self.eps)
        curvature = max(self.delta, self.rho * spectral_bound(W.mT @ W) + self.gamma)
        return prox_log(A - slope / curvature, self.lam / curvature, eps=self.eps)

    def _last_code(self, blocks: Blocks) -> Tensor:
        W, A = blocks[f"W{self.depth}"], blocks[f"A{self.depth - 1}"]
        away = blocks[f"Z{self.depth - 1}"].clamp(min=0.0) - A
        pull = self.beta * self._residual(self.depth, blocks) @ W + self.gamma * away
        factor = _factor(W, self.beta, self.gamma + self.delta)
        return A + torch.cholesky_solve(pull.mT, factor).mT


def _factor(A: Tensor, weight: float, ridge: float) -> Tensor:
    """Return the Cholesky factor of weight A'A + ridge I."""
    gram = weight * (A.mT @ A)
    gram.diagonal().add_(ridge)
    return torch.linalg.cholesky(gram)


def starting_weights(
    widths: Sequence[int], std: float | Literal["he"], rng: np.random.Generator, like: Tensor
) -> list[Tensor]:
    """Draw normal weights, each (outputs, inputs), of the type and on the device of ``like``.

    Args:
        widths: Inputs of the network, its hidden layers, its outputs.
        std: Standard deviation, or ``"he"`` for that of He et al.
        rng: Draws on the CPU, so that the device does not change the start.
        like: Gives type and device.
    """
    return [
        drawn(rng, (outputs, inputs), like) * ((2.0 / inputs) ** 0.5 if std == "he" else std)
        for inputs, outputs in itertools.pairwise(widths)
    ]
