"""Gradients made easier to read: times the input, and averaged over noise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_integer, check_range
from cv_core.explain.attribution import Explainer, InputGradients
from cv_core.explain.scores import Target, check_images, chunks, decide
from cv_core.random import torch_generator


class InputXGradient(InputGradients):
    r"""Input times gradient (Shrikumar et al., 2016): :math:`\sum_c x_c \,\partial s/\partial x_c`.

    For a network without biases whose layers are linear or ReLU, a map adds up to the score.

    Args:
        model: A classifier.
    """

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return signed maps ``(B, H, W)``.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.
        """
        return (inputs.detach() * self.gradients(inputs, target)).sum(1).float()


class SmoothGrad:
    r"""SmoothGrad of Smilkov et al., 2017: the mean of an explainer's maps over noisy copies.

    .. math:: \frac1n \sum_{i=1}^n M(x + \varepsilon_i), \qquad
              \varepsilon_i \sim \mathcal N(0, \sigma^2 I), \quad
              \sigma = \text{noise} \cdot (\max x - \min x)

    The range is that of each image. Without a target, the decision on the clean image is explained.

    Args:
        explainer: Any explainer, such as ``InputGradients(model)``.
        samples: Number of noisy copies of each image.
        noise: Standard deviation as a share of the image's range; the paper advises 0.1 to 0.2.
        seed: Of the noise; the same images get the same noise in every call.
        batch_size: How many copies the explainer is given at once; the maps do not depend on it.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> SmoothGrad(InputGradients(model)).attribute(torch.rand(2, 3, 2, 2), target=1).shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self,
        explainer: Explainer,
        *,
        samples: int = 25,
        noise: float = 0.15,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        check_integer("SmoothGrad", "samples", samples, low=1)
        check_range("SmoothGrad", "noise", noise, low=0.0)
        check_integer("SmoothGrad", "batch_size", batch_size, low=1)
        self.explainer = explainer
        self.model = explainer.model
        self.samples = samples
        self.noise = noise
        self.seed = seed
        self.batch_size = batch_size

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: Target = None
    ) -> Float[Tensor, "b h w"]:
        """Return the mean maps ``(B, H, W)``.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.
        """
        check_images("SmoothGrad", inputs)
        inputs = inputs.detach()
        classes = decide(self.model, inputs, target, "SmoothGrad", self.batch_size)
        span = inputs.amax((1, 2, 3)) - inputs.amin((1, 2, 3))
        sigma = (self.noise * span).view(-1, 1, 1, 1)
        total = inputs.new_zeros(len(inputs), *inputs.shape[2:], dtype=torch.float32)
        generator = torch_generator(self.seed, "SmoothGrad")
        for chunk in chunks(self.samples * len(inputs), self.batch_size, inputs.device):
            image = chunk % len(inputs)
            # one draw per copy, so that the noise does not depend on the size of a chunk
            draws = [torch.randn(inputs.shape[1:], generator=generator) for _ in range(len(chunk))]
            noisy = inputs[image] + sigma[image] * torch.stack(draws).to(inputs)
            chosen = classes[image] if isinstance(classes, Tensor) else classes
            total.index_add_(0, image, self.explainer.attribute(noisy, chosen))
        return total / self.samples
