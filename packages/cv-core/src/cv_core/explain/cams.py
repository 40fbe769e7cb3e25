"""Class activation maps beside GradCAM: LayerCAM, GradCAM++ and, without gradients, ScoreCAM.

They are called as in ``cv_core.explain.attribution``; for token layers of transformers see
``cv_core.explain.transformers.reshape_tokens``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_floating, check_integer, check_shape
from cv_core.explain.attribution import GradCAM, normalize_maps
from cv_core.explain.scores import Target, check_images, resolve_target, score
from cv_core.nn.hooks import tap
from cv_core.nn.surgery import find


class LayerCAM(GradCAM):
    r"""LayerCAM of Jiang et al., IEEE TIP 2021: every place has a weight of its own.

    .. math:: L_p = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\Big(\frac{\partial s}{\partial A_{kp}}
              \Big) A_{kp}\Big)

    With the layer's activations A. It stays sharp in early layers, where GradCAM's means over all
    places say little.

    Args:
        model: A classifier.
        layer: One layer, or its name, with an output ``(B, C, h, w)``.
        reshape: Turns another output, such as tokens, into ``(B, C, h, w)``.
        relu: Whether negative evidence is cut off.

    Raises:
        ValueError: If the name selects no or several layers.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
        >>> LayerCAM(model, "0").attribute(torch.rand(2, 3, 4, 4), target=1).shape
        torch.Size([2, 4, 4])
    """

    def _weights(self, _activation: Tensor, gradient: Tensor) -> Tensor:
        return gradient.relu()


class GradCAMPlusPlus(GradCAM):
    r"""Grad-CAM++ of Chattopadhyay et al., WACV 2018: several objects of one class count alike.

    .. math:: w_k = \sum_p \frac{g_{kp}^2}{2 g_{kp}^2 + g_{kp}^3 \sum_q A_{kq}}\,
              \mathrm{ReLU}(g_{kp})
              = \sum_p \frac{\mathrm{ReLU}(g_{kp})}{2 + g_{kp} \sum_q A_{kq}}, \qquad
              g = \frac{\partial s}{\partial A}

    The paper's score is :math:`e^s`, whose derivatives are powers of g times a factor that is the
    same for a whole image and is left out.

    Args:
        model: A classifier.
        layer: One layer, or its name, with an output ``(B, C, h, w)``, not negative.
        reshape: Turns another output, such as tokens, into ``(B, C, h, w)``.
        relu: Whether negative evidence is cut off.

    Raises:
        ValueError: If the name selects no or several layers.

    Deviations from the paper: a channel whose activations have a negative sum, which the paper
    does not foresee, counts as if the sum were 0; the quotient would have a pole.
    """

    def _weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        total = activation.sum((2, 3), keepdim=True).relu()
        gradient = gradient.relu()
        return (gradient / (2.0 + gradient * total)).sum((2, 3), keepdim=True)


class ScoreCAM:
    r"""Score-CAM of Wang et al., CVPRW 2020: a channel counts by what the network sees through it.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \alpha_k A_k\Big), \qquad
              \alpha = \mathrm{softmax}_k\big(s(x \odot H_k)\big)

    with :math:`H_k`, the layer's channel :math:`A_k` enlarged to the size of the image and scaled
    to [0, 1]. The score of the paper's baseline image is the same for all channels, and the softmax
    does not see it. The maps :math:`A_k` come from one pass; the masked images go through the
    network in chunks, and those of constant channels, which are all black, as one.

    Args:
        model: A classifier.
        layer: One layer, or its name, with an output ``(B, C, h, w)``.
        reshape: Turns another output, such as tokens, into ``(B, C, h, w)``.
        batch_size: How many masked images go through the network at once. On a CPU few at once are
            fastest, and images in ``torch.channels_last``, which the masked ones keep.

    Raises:
        ValueError: If the name selects no or several layers.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
        >>> ScoreCAM(model, "0").attribute(torch.rand(2, 3, 4, 4), target=1).shape
        torch.Size([2, 4, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        *,
        reshape: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = 16,
    ) -> None:
        check_integer("ScoreCAM", "batch_size", batch_size, low=1)
        found = list(find(model, layer))
        if len(found) != 1:
            raise ValueError(f"ScoreCAM: layer must select one layer; {layer!r} selects {found}.")
        self.model = model
        self.layer = found[0]
        self.reshape = reshape
        self.batch_size = batch_size

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return one non-negative map per image.

        Args:
            inputs: Images ``(B, C, H, W)``; black is 0, the mean where they are normalised.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.

        Returns:
            Maps ``(B, H, W)``.

        Raises:
            ValueError: If a shape or a class does not fit.
        """
        check_images("ScoreCAM", inputs)
        with torch.no_grad():
            outputs, activation = self._run(inputs)
            classes = resolve_target(outputs, target, "ScoreCAM")
            weights = self._scores(inputs, activation, classes).softmax(1)
            maps = (weights[:, :, None, None] * activation).sum(1, keepdim=True).relu().float()
            size = inputs.shape[2:]
            return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[
                :, 0
            ]

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        # a copy, because a layer that works in place may follow
        with tap(self.model, self.layer, keep="all", copy=True) as taps:
            outputs = self.model(inputs)
        found = taps[self.layer].outputs
        if len(found) != 1:
            raise ValueError(f"ScoreCAM: layer must run once in a pass; it ran {len(found)} times.")
        check_floating("ScoreCAM", "the layer's output", found[0])
        activation = found[0] if self.reshape is None else self.reshape(found[0])
        check_shape("ScoreCAM", "the layer's output", activation, "b c h w", b=len(inputs))
        return outputs, activation

    def _scores(
        self, inputs: Tensor, activation: Tensor, target: Tensor | Callable[..., Tensor]
    ) -> Tensor:
        """Return the score of each image behind each channel's mask ``(B, C)``."""
        black = self.model(torch.zeros_like(inputs[:1]))
        black = score(black.expand(len(inputs), *black.shape[1:]), target, "ScoreCAM")
        scores = black[:, None].repeat(1, activation.shape[1])
        channels_last = inputs.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        alive = activation.amax((2, 3)) > activation.amin((2, 3))
        for image, channel in (pair.T for pair in alive.nonzero().split(self.batch_size)):
            masks = functional.interpolate(
                activation[image, channel, None],
                size=inputs.shape[2:],
                mode="bilinear",
                align_corners=False,
            )
            masked = inputs[image] * normalize_maps(masks[:, 0])[:, None]
            seen = self.model(masked.contiguous(memory_format=layout))
            chosen = target[image] if isinstance(target, Tensor) else target
            scores[image, channel] = score(seen, chosen, "ScoreCAM")
        return scores
