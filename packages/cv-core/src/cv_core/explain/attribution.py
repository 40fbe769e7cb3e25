"""Where in an image a network's decision comes from: GradCAM, gradients, occlusion.

Every explainer is called as ``explainer.attribute(inputs, target=...)`` and returns float32 maps
``(B, H, W)`` on the inputs' device, not normalised (see ``normalize_maps``). The network is used in
the mode it is in, keeps no hook and gets no gradients: call ``model.eval()`` first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_finite, check_floating, check_integer, check_shape
from cv_core.explain.scores import (
    Target,
    check_images,
    chunks,
    decide,
    outputs_of,
    recordable,
    resolve_target,
    score,
)
from cv_core.nn.hooks import eager
from cv_core.nn.surgery import find


@runtime_checkable
class Explainer(Protocol):
    """What all explainers offer."""

    model: nn.Module

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return one map per image."""
        ...


def normalize_maps(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Scale each map to [0, 1]; a constant map becomes 0.

    Args:
        maps: ``(B, H, W)``.

    Raises:
        ValueError: If a map is not finite; it would look like one without evidence.
    """
    check_shape("normalize_maps", "maps", maps, "b h w")
    check_finite("normalize_maps", "maps", maps)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1.0), 0.0)


class GradCAM:
    r"""Class activation maps of Selvaraju et al., ICCV 2017.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A_k\Big), \qquad
              \alpha_k = \frac{1}{HW} \sum_p \frac{\partial s}{\partial A_{kp}}

    with the layer's activations A, enlarged bilinearly to the size of the image. Nothing is
    recorded in front of the layer, and the backward pass stops there.

    Args:
        model: A classifier.
        layer: One layer, or its name, with an output ``(B, C, h, w)``.
        reshape: Turns another output, such as tokens, into ``(B, C, h, w)``.
        relu: Whether negative evidence is cut off.

    Raises:
        ValueError: If the name selects no or several layers.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
        >>> GradCAM(model, "0").attribute(torch.rand(2, 3, 4, 4), target=1).shape
        torch.Size([2, 4, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        *,
        reshape: Callable[[Tensor], Tensor] | None = None,
        relu: bool = True,
    ) -> None:
        found = find(model, layer)
        if len(found) != 1:
            raise ValueError(
                f"{type(self).__name__}: layer must select one layer; {layer!r} selects {[*found]}."
            )
        self.model = model
        self.layer = next(iter(found.values()))
        self.reshape = reshape
        self.relu = relu

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return one map per image.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.

        Returns:
            Maps ``(B, H, W)``, non-negative unless ``relu=False``.

        Raises:
            ValueError: If a shape or a class does not fit.
        """
        owner = type(self).__name__
        check_images(owner, inputs)
        leaves: list[Tensor] = []

        def start_here(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            check_floating(owner, "the layer's output", output)
            leaves.append(output.detach().requires_grad_())
            torch.set_grad_enabled(mode=True)  # until the end of the no_grad block below
            return leaves[-1].clone()  # a layer that works in place may follow

        hook = self.layer.register_forward_hook(start_here)
        try:
            with torch.inference_mode(mode=False), torch.no_grad(), eager(self.model):
                outputs = self.model(recordable(inputs))
                classes = resolve_target(outputs, target, owner)
                total = score(outputs, classes, owner).sum()
        finally:
            hook.remove()
        if len(leaves) != 1:
            raise ValueError(f"{owner}: layer must run once in a pass; it ran {len(leaves)} times.")
        (gradient,) = torch.autograd.grad(total, leaves[0])
        return self._maps(leaves[0].detach(), gradient, inputs.shape[2:])

    def _maps(self, activation: Tensor, gradient: Tensor, size: torch.Size) -> Tensor:
        if self.reshape is not None:
            activation, gradient = self.reshape(activation), self.reshape(gradient)
        check_shape(type(self).__name__, "the layer's output", activation, "b c h w")
        maps = (self._weights(activation, gradient) * activation).sum(1, keepdim=True).float()
        maps = maps.relu() if self.relu else maps
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0]

    def _weights(self, _activation: Tensor, gradient: Tensor) -> Tensor:
        """Return what each activation counts, one number per channel or per place."""
        return gradient.mean((2, 3), keepdim=True)


def _gradients(model: nn.Module, inputs: Tensor, target: Any, owner: str) -> Tensor:
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        outputs = model(leaf)
        classes = resolve_target(outputs, target, owner)
        (gradient,) = torch.autograd.grad(score(outputs, classes, owner).sum(), leaf)
    return gradient


class InputGradients:
    r"""Saliency of Simonyan et al., 2014: :math:`\max_c |\partial s / \partial x_c|`.

    Args:
        model: A classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def gradients(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b c h w"]:
        """Return the gradient of the score with respect to the images, channels kept apart."""
        owner = type(self).__name__
        check_images(owner, inputs)
        return _gradients(self.model, inputs, target, owner)

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return the largest absolute gradient over the channels, ``(B, H, W)``.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.
        """
        return self.gradients(inputs, target).abs().amax(1).float()


class IntegratedGradients:
    r"""Integrated gradients of Sundararajan et al., ICML 2017, summed over the channels.

    .. math:: a = (x - x_0) \odot \int_0^1 \nabla s(x_0 + t (x - x_0)) \, dt

    The integral is taken by Gauss-Legendre quadrature. A map adds up to :math:`s(x) - s(x_0)`.

    Args:
        model: A classifier.
        baseline: The :math:`x_0`: a number, or a tensor that broadcasts to the images.
        steps: Number of nodes.
        batch_size: How many images go through the network at once.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        baseline: float | Tensor = 0.0,
        steps: int = 50,
        batch_size: int = 64,
    ) -> None:
        check_integer("IntegratedGradients", "steps", steps, low=1)
        check_integer("IntegratedGradients", "batch_size", batch_size, low=1)
        self.model = model
        self.baseline = baseline
        self.steps = steps
        self.batch_size = batch_size

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return signed maps ``(B, H, W)``.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.
        """
        owner = "IntegratedGradients"
        check_images(owner, inputs)
        classes = decide(self.model, inputs, target, owner, self.batch_size)
        start = torch.as_tensor(self.baseline).detach().to(inputs).expand_as(inputs)
        difference = inputs.detach() - start
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        count = len(inputs)
        mean = torch.zeros_like(difference)
        # (step, image) pairs in chunks, so that small batches fill a pass as well as large ones
        for chunk in chunks(self.steps * count, self.batch_size, inputs.device):
            image = chunk % count
            step = (chunk // count).cpu().numpy()
            t = torch.as_tensor((nodes[step] + 1.0) / 2.0).to(inputs).view(-1, 1, 1, 1)
            w = torch.as_tensor(weights[step] / 2.0).to(inputs).view(-1, 1, 1, 1)
            chosen = classes[image] if isinstance(classes, Tensor) else classes
            points = start[image] + t * difference[image]
            mean.index_add_(0, image, w * _gradients(self.model, points, chosen, owner))
        return (difference * mean).sum(1).float()


class Occlusion:
    """Drop of the score when a window of the image is covered (Zeiler and Fergus, ECCV 2014).

    A pixel gets the mean drop of all windows that cover it. The last windows of a row and a column
    are moved inwards so that the border is covered.

    Args:
        model: A classifier.
        window: Side of the window in pixels.
        stride: How far the window moves; half its side by default.
        fill: What a window is filled with: a number, or one per channel ``(C,)``.
        batch_size: How many covered images go through the network at once.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int = 8,
        stride: int | None = None,
        fill: float | Tensor = 0.0,
        batch_size: int = 64,
    ) -> None:
        stride = max(1, window // 2) if stride is None else stride
        check_integer("Occlusion", "window", window, low=1)
        check_integer("Occlusion", "stride", stride, low=1, high=window)
        check_integer("Occlusion", "batch_size", batch_size, low=1)
        self.model = model
        self.window = window
        self.stride = stride
        self.fill = fill
        self.batch_size = batch_size

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return signed maps ``(B, H, W)``; positive where covering lowers the score.

        Args:
            inputs: Images ``(B, C, H, W)`` with sides of at least ``window`` pixels.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.

        Raises:
            ValueError: If the images are smaller than the window.
        """
        check_images("Occlusion", inputs)
        if min(inputs.shape[2:]) < self.window:
            raise ValueError(
                f"Occlusion: window must fit into the images; got {self.window} for shape "
                f"{tuple(inputs.shape)}."
            )
        rows, columns = (self._bands(size, inputs.device) for size in inputs.shape[2:])
        with torch.no_grad():
            outputs = outputs_of(self.model, inputs, self.batch_size)
            classes = resolve_target(outputs, target, "Occlusion")
            plain = score(outputs, classes, "Occlusion")
            total = inputs.new_zeros(len(inputs), *inputs.shape[2:], dtype=torch.float32)
            places = len(rows) * len(columns)
            for chunk in chunks(places * len(inputs), self.batch_size, inputs.device):
                image, place = chunk % len(inputs), chunk // len(inputs)
                # windows are made chunk by chunk: all of them at once may not fit into memory
                across, down = columns[place % len(columns)], rows[place // len(columns)]
                window = down[:, :, None] & across[:, None, :]
                covered = torch.where(window[:, None], self._fill(inputs), inputs[image])
                chosen = classes[image] if isinstance(classes, Tensor) else classes
                drop = plain[image] - score(self.model(covered), chosen, "Occlusion")
                total.index_add_(0, image, (drop.view(-1, 1, 1) * window).float())
        return total / torch.outer(rows.sum(0), columns.sum(0))

    def _fill(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.fill).to(inputs).reshape(1, -1, 1, 1)

    def _bands(self, size: int, device: torch.device) -> Tensor:
        """Return which pixels of a side the window covers, ``(positions, size)``."""
        starts = sorted({*range(0, size - self.window, self.stride), size - self.window})
        first = torch.tensor(starts, device=device).unsqueeze(1)
        pixels = torch.arange(size, device=device)
        return (pixels >= first) & (pixels < first + self.window)
