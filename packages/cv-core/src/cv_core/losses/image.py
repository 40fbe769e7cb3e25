"""Losses between images: Charbonnier, total variation, Gram matrices and feature distances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_choice, check_range, check_shape
from cv_core.losses.reduction import Reduction, check_pair, check_reduction, reduce_all
from cv_core.nn.frozen import Frozen

Distance = Literal["l1", "l2"]
Features = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""What an extractor returns: one map, several, or several by name."""


def charbonnier_loss(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    eps: float = 1e-3,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Smooth absolute difference of Charbonnier et al., ICIP 1994.

    .. math:: L = \sqrt{(x - y)^2 + \epsilon^2} - \epsilon

    The last term, which many implementations leave out, makes equal images cost nothing and does
    not change the gradient.

    Args:
        prediction: Of any shape.
        target: Of the same shape.
        eps: Where the loss turns from quadratic to linear, in units of the images.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the shape of the images for ``reduction="none"``.

    Raises:
        TypeError: If an image is not floating.
        ValueError: If the shapes differ, the images are empty or an option is out of range.
    """
    check_pair("charbonnier_loss", prediction=prediction, target=target)
    check_range("charbonnier_loss", "eps", eps, low=0.0, low_open=True)
    check_reduction("charbonnier_loss", reduction)
    difference = prediction - target
    return reduce_all((difference.square() + eps * eps).sqrt() - eps, reduction)


class CharbonnierLoss(nn.Module):
    """Smooth absolute difference as a module; see ``charbonnier_loss``.

    Args:
        eps: Where the loss turns from quadratic to linear.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(self, eps: float = 1e-3, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_range("CharbonnierLoss", "eps", eps, low=0.0, low_open=True)
        check_reduction("CharbonnierLoss", reduction)
        self.eps = eps
        self.reduction: Reduction = reduction

    def extra_repr(self) -> str:
        """Show the options."""
        return f"eps={self.eps}, reduction={self.reduction!r}"

    def forward(
        self, prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of two images of one shape."""
        return charbonnier_loss(prediction, target, eps=self.eps, reduction=self.reduction)


def total_variation(
    images: Float[Tensor, "b c h w"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    r"""Mean absolute difference of neighbours, down plus across (Rudin et al., 1992; anisotropic).

    .. math:: TV = \mathrm{mean} |x_{i+1,j} - x_{i,j}| + \mathrm{mean} |x_{i,j+1} - x_{i,j}|

    Args:
        images: ``(B, C, H, W)``; an axis of one pixel has no differences and adds nothing.
        reduction: Over the images: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``.

    Raises:
        ValueError: If the shape or the reduction is another.
    """
    check_shape("total_variation", "images", images, "b c h w")
    check_reduction("total_variation", reduction)
    total = images.new_zeros(len(images))
    for axis in (2, 3):
        if images.shape[axis] > 1:
            total = total + images.diff(dim=axis).abs().mean((1, 2, 3))
    return reduce_all(total, reduction)


def gram_matrix(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    r"""Correlations of the channels of a map, as in Johnson et al., ECCV 2016.

    .. math:: G_{ij} = \frac{1}{CHW} \sum_p F_{ip} F_{jp}

    Args:
        features: ``(B, C, H, W)``.

    Returns:
        Symmetric and positive semi-definite matrices ``(B, C, C)``.
    """
    check_shape("gram_matrix", "features", features, "b c h w")
    flat = features.flatten(2)
    # divided before the product, whose sum over the positions leaves the range of half precision
    flat = flat / (flat.shape[1] * flat.shape[2]) ** 0.5
    return flat @ flat.mT


class PerceptualLoss(nn.Module):
    r"""Distance between the features of two images, of Johnson et al., ECCV 2016.

    .. math:: L = \sum_l w_l \, \mathrm{mean} |\phi_l(x) - \phi_l(y)|^k

    Args:
        extractor: Any callable that turns images into a map, a sequence of maps or maps by name. A
            module is frozen: copied, in evaluation mode, without gradients of its own.
        weights: The weight of each map, in order; all 1 by default.
        distance: ``"l1"`` (k = 1) or ``"l2"`` (k = 2).
        transform: Applied to each map first: ``gram_matrix`` makes this the style loss.

    Raises:
        ValueError: If an option has no such value.

    Example:
        >>> loss = PerceptualLoss(nn.AvgPool2d(2), transform=gram_matrix)
        >>> loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(0.3333)
    """

    def __init__(
        self,
        extractor: Callable[[Tensor], Features],
        weights: Sequence[float] | None = None,
        *,
        distance: Distance = "l1",
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_choice("PerceptualLoss", "distance", distance, get_args(Distance))
        self.extractor = Frozen(extractor) if isinstance(extractor, nn.Module) else extractor
        self.weights = None if weights is None else tuple(weights)
        self.distance = distance
        self.transform = transform

    def extra_repr(self) -> str:
        """Show the options."""
        return f"weights={self.weights}, distance={self.distance!r}"

    def forward(
        self, prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, ""]:
        """Compare images ``(B, C, H, W)``; gradients reach the prediction only.

        Raises:
            TypeError: If an image is not floating.
            ValueError: If the shapes differ, the images are empty, or the extractor returns no map
                or not as many as there are weights.
        """
        check_pair("PerceptualLoss", prediction=prediction, target=target)
        with torch.no_grad():
            wanted = self._maps(target)
        maps = self._maps(prediction)
        if not maps:
            raise ValueError("PerceptualLoss: extractor must return at least one map; got none.")
        weights = (1.0,) * len(maps) if self.weights is None else self.weights
        if len(weights) != len(maps):
            raise ValueError(
                f"PerceptualLoss: weights must have one entry per map; got {len(weights)} weights "
                f"and {len(maps)} maps."
            )
        compare = functional.l1_loss if self.distance == "l1" else functional.mse_loss
        losses = [
            weight * compare(got, want)
            for weight, got, want in zip(weights, maps, wanted, strict=True)
        ]
        return torch.stack(losses).sum()

    def _maps(self, images: Tensor) -> list[Tensor]:
        features = self.extractor(images)
        if isinstance(features, Tensor):
            features = [features]
        maps = list(features.values() if isinstance(features, Mapping) else features)
        return maps if self.transform is None else [self.transform(item) for item in maps]
