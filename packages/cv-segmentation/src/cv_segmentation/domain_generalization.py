r"""Which channels of a network react to an image's style, and a loss that decorrelates them.

The correlation of two channels over the positions of one image, G, is free of both channels' gain
and offset. How much it changes under a change of style :math:`\tau` is measured by

.. math::
    V = \frac1N \sum_n \tfrac14 \bigl( G(x_n) - G(\tau(x_n)) \bigr)^2

after Choi et al., *RobustNet*, CVPR 2021, who push the correlations of large V to zero (instance
selective whitening), and Su et al., PRCV 2021, who erase such channels at random: see
``cv_segmentation.methods.scre``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.engine.evaluation import modes_kept
from cv_core.imaging.filtering import gaussian_blur
from cv_core.imaging.styles import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    rotate_hue,
)
from cv_core.nn.hooks import rewrite
from cv_core.nn.surgery import Where, find
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cv_segmentation._shared.clusters import least_of_top_clusters

Score = Literal["count", "variance"]
Reduction = Literal["mean", "sum"]
Images = Tensor | Iterable[Any]
"""Images (N, C, H, W), or a loader of batches: of images, or of tuples that begin with them."""
StyleTransform = Callable[[Tensor], Tensor]

# rounding leaves a constant channel this many units in the last place off its mean
_ROUNDING = 32.0
_NOTHING = 1e-12  # a variance of this size is rounding in single precision


class StyleJitter:
    """A random change of style that leaves the content: colours, then a Gaussian blur.

    Every image gets brightness, contrast, saturation, hue and blur of its own, in this order. The
    ranges are those of Choi et al., for photographs of about 800 pixels.

    Args:
        generator: Draws the amounts.
        brightness: The factor lies in [1 - brightness, 1 + brightness]; in [0, 1].
        contrast: Likewise.
        saturation: Likewise.
        hue: Greatest turn of the hue either way, in turns of the colour circle, in [0, 0.5].
        blur: Least and greatest standard deviation of the blur in pixels; None for none.

    Raises:
        ValueError: If a range is out of bounds.

    Example:
        >>> jitter = StyleJitter(torch.Generator().manual_seed(0))
        >>> jitter(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        generator: torch.Generator,
        *,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.3,
        blur: tuple[float, float] | None = (0.15, 1.3),
    ) -> None:
        for name, value in (
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
        ):
            check_range("StyleJitter", name, value, low=0.0, high=1.0)
        check_range("StyleJitter", "hue", hue, low=0.0, high=0.5)
        if blur is not None:
            check_range("StyleJitter", "blur[0]", blur[0], low=0.0, low_open=True)
            check_range("StyleJitter", "blur[1]", blur[1], low=blur[0])
        self.generator = generator
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.blur = blur

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Restyle RGB images (B, 3, H, W) in [0, 1]."""
        check_floating("StyleJitter", "images", images)
        count = check_shape("StyleJitter", "images", images, "b 3 h w")["b"]
        draw = partial(self._uniform, count)
        images = adjust_brightness(images, draw(1 - self.brightness, 1 + self.brightness))
        images = adjust_contrast(images, draw(1 - self.contrast, 1 + self.contrast))
        images = adjust_saturation(images, draw(1 - self.saturation, 1 + self.saturation))
        images = rotate_hue(images, draw(-self.hue, self.hue))
        if self.blur is None:
            return images
        sigmas = draw(*self.blur).tolist()
        return torch.cat(
            [gaussian_blur(image[None], sigma) for image, sigma in zip(images, sigmas, strict=True)]
        )

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        draw = torch.rand(count, generator=self.generator, device=self.generator.device)
        return low + (high - low) * draw


def channel_correlation(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    r"""Correlate the channels of each map over its positions.

    .. math::
        G = \frac1{HW} \bar F_s \bar F_s^T, \qquad \bar F_s = \frac{\bar F - \mu}{\sigma}

    A channel that is constant over space has no correlation with others: 0.

    Args:
        features: ``(B, C, H, W)``.

    Returns:
        Correlation matrices ``(B, C, C)`` with unit diagonal, in float32 at least.

    Raises:
        TypeError: If ``features`` is not floating.
        ValueError: If it has another number of axes or an empty one.

    Example:
        >>> x = torch.tensor([[0.0, 1.0, 2.0], [5.0, 3.0, 1.0], [4.0, 4.0, 4.0]])
        >>> channel_correlation(x[None, :, None])[0].round().int().tolist()
        [[1, -1, 0], [-1, 1, 0], [0, 0, 1]]
    """
    check_floating("channel_correlation", "features", features)
    check_shape("channel_correlation", "features", features, "b c h w")
    return _correlation(features)


def _correlation(features: Tensor) -> Tensor:
    flat = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(flat.device.type, enabled=False):
        centred = flat - flat.mean(2, keepdim=True)
        power = centred.square().sum(2, keepdim=True)
        rounding = (_ROUNDING * torch.finfo(flat.dtype).eps) ** 2
        varies = power > rounding * flat.square().sum(2, keepdim=True)
        scale = torch.where(varies, power, 1.0).rsqrt() * varies
        unit = centred * scale
        gram = unit @ unit.mT
    return gram.diagonal_scatter(gram.new_ones(gram.shape[:2]), dim1=1, dim2=2)


def gram_style_variance(
    model: nn.Module,
    layers: Where,
    images: Images,
    style_transform: StyleTransform,
    *,
    batch_size: int = 16,
) -> dict[str, Float[Tensor, "_ _"]]:
    """Measure how much the correlations of some layers' channels change with the style.

    The network runs in evaluation mode and without gradients; its modes are restored.

    Args:
        model: Any network that is called with a batch of images.
        layers: The modules whose outputs (B, C, H, W) are looked at: name patterns, classes or the
            modules themselves; see ``cv_core.nn.surgery.find``.
        images: (N, C, H, W), on the network's device, or an iterable of such batches.
        style_transform: Changes the style of a batch of images; a ``StyleJitter``, for example.
        batch_size: Of ``images`` in one tensor.

    Returns:
        V of each layer by name: (C, C) in float64 on the CPU, with zeros on the diagonal.

    Raises:
        TypeError: If a layer's output is not a floating tensor.
        ValueError: If ``layers`` selects nothing, a layer's output has other axes or the layer is
            not called, there are no images, or the transform changes their shape.
    """
    owner = "gram_style_variance"
    found = find(model, layers)
    seen: dict[str, Tensor] = {}

    def record(name: str, output: Any, *_: Any) -> Any:
        check_floating(owner, f"the output of layer {name!r}", output)
        check_shape(owner, f"the output of layer {name!r}", output, "b c h w")
        seen[name] = _correlation(output)
        return output

    totals: dict[str, Tensor] = {}
    count = 0
    with ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        stack.enter_context(torch.no_grad())
        model.eval()
        for name, module in found.items():
            stack.enter_context(rewrite(model, module, partial(record, name)))
        for batch in _batches(owner, images, batch_size):
            model(batch)
            plain = dict(seen)
            styled = style_transform(batch)  # afterwards, for it may work in place
            check_same_shape(owner, images=batch, styled=styled)
            model(styled)
            if missing := sorted(found.keys() - seen.keys()):
                raise ValueError(f"{owner}: layers must be called by the model; not so {missing}.")
            for name, gram in plain.items():
                change = (gram.double() - seen[name].double()).square().sum(0).cpu() / 4
                totals[name] = totals[name] + change if name in totals else change
            count += len(batch)
    if count == 0:
        raise ValueError(f"{owner}: images must hold at least one batch; got none.")
    return {name: total / count for name, total in totals.items()}


def _batches(owner: str, images: Images, batch_size: int) -> Iterator[Tensor]:
    check_integer(owner, "batch_size", batch_size, low=1)
    for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
        first = batch[0] if isinstance(batch, (tuple, list)) else batch
        check_floating(owner, "images", first)
        check_shape(owner, "images", first, "b c h w")
        yield first


class StyleChannels(NamedTuple):
    """What ``style_sensitive_channels`` finds.

    Args:
        mask: (C, C), symmetric: the pairs of channels whose correlation depends on the style.
        ssc: (C,): the style-sensitive channels.
    """

    mask: Bool[Tensor, "c c"]
    ssc: Bool[Tensor, " c"]


def style_sensitive_channels(
    variance: Float[Tensor, "c c"],
    *,
    k: int = 3,
    m: int = 1,
    rho: float = 0.3,
    score: Score = "count",
) -> StyleChannels:
    r"""Choose the channels in most of the pairs whose correlation depends on the style.

    The entries of V above the diagonal are parted into k clusters; pairs in the m clusters with the
    largest means are masked. The :math:`\lfloor \rho C \rfloor` channels with most masked pairs are
    style-sensitive; ties, which are frequent, go to the larger row sum of V, then to the first. The
    clusters are the best ones, not those of one random start: for numbers they can be computed.

    Args:
        variance: V of ``gram_style_variance``; only the part above its diagonal counts.
        k: Number of clusters, at least 2.
        m: How many of the top clusters are taken, from 1 to k - 1.
        rho: Share of the channels that is chosen, in [0, 1].
        score: ``"count"`` ranks channels by their masked pairs, as the paper does; ``"variance"``
            by the row sum of V. The mask marks pairs, and a channel that does not react to style
            collects counts from partners that do; the row sums rank those partners first.

    Returns:
        Mask and channels, both empty if V is zero up to rounding.

    Raises:
        ValueError: If V is not square or not finite, or an option is out of range.

    Example:
        >>> v = torch.zeros(4, 4)
        >>> v[2, :] = v[:, 2] = 0.25
        >>> style_sensitive_channels(v, k=2, rho=0.25).ssc
        tensor([False, False,  True, False])
    """
    owner = "style_sensitive_channels"
    check_floating(owner, "variance", variance)
    channels = check_shape(owner, "variance", variance, "c c")["c"]
    check_finite(owner, "variance", variance)
    check_integer(owner, "k", k, low=2)
    check_integer(owner, "m", m, low=1, high=k - 1)
    check_range(owner, "rho", rho, low=0.0, high=1.0)
    check_choice(owner, "score", score, get_args(Score))
    rows, columns = np.triu_indices(channels, 1)
    v = variance.detach().double().cpu().numpy()
    upper = v[rows, columns]
    mask, ssc = np.zeros((channels, channels), dtype=bool), np.zeros(channels, dtype=bool)
    if len(upper) and upper.max() >= _NOTHING:
        mask[rows, columns] = upper >= least_of_top_clusters(upper, k, m)
        mask |= mask.T
        sums = np.zeros(channels)
        np.add.at(sums, rows, upper)
        np.add.at(sums, columns, upper)
        counts = mask.sum(1) if score == "count" else np.zeros(channels)
        order = np.lexsort((-sums, -counts))  # stable: the last resort is the index
        ssc[order[: _share(rho, channels)]] = True
    device = variance.device
    return StyleChannels(torch.from_numpy(mask).to(device), torch.from_numpy(ssc).to(device))


def _share(rho: float, channels: int) -> int:
    return math.floor(rho * channels + 1e-9)  # 0.29 * 100 is a little below 29


class SizedOnLoad(nn.Module):
    """A module whose buffers take the sizes of those that are loaded."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, buffer in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if buffer is not None and loaded is not None:
                self._buffers[name] = buffer.new_empty(loaded.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class InstanceSelectiveWhiteningLoss(SizedOnLoad):
    r"""Mean absolute correlation of chosen pairs of channels (Choi et al., CVPR 2021).

    .. math:: L = \frac1B \sum_b \frac1{|M|} \sum_{i < j, M_{ij}} |G_{ij}(F_b)|

    Deviations: G is the exact correlation, of any features; Choi et al. take the covariance of
    features after an instance normalisation, which agrees up to its epsilon. The divisor is the
    number of pairs, as in their code; their formula has the sum.

    Args:
        mask: (C, C) bool, symmetric: the pairs, from ``style_sensitive_channels``. The diagonal
            does not count. None for no pairs yet: the loss is 0.
        reduction: Over the pairs: ``"mean"`` or ``"sum"``. Images are always averaged.

    Raises:
        TypeError: If the mask is not bool.
        ValueError: If it is not square or not symmetric, or there is no such reduction.
    """

    mask: Tensor

    def __init__(
        self, mask: Bool[Tensor, "c c"] | None = None, *, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        check_choice("InstanceSelectiveWhiteningLoss", "reduction", reduction, get_args(Reduction))
        self.reduction: Reduction = reduction
        self.register_buffer("mask", torch.zeros(0, 0, dtype=torch.bool))
        if mask is not None:
            self.set_mask(mask)

    def set_mask(self, mask: Bool[Tensor, "c c"]) -> None:
        """Choose other pairs."""
        owner = "InstanceSelectiveWhiteningLoss"
        check_shape(owner, "mask", mask, "c c")
        if mask.dtype != torch.bool:
            raise TypeError(f"{owner}: mask must be of type bool; got {mask.dtype}.")
        if not bool((mask == mask.T).all()):
            raise ValueError(f"{owner}: mask must be symmetric; use mask | mask.T.")
        self.mask = mask.detach().clone().to(self.mask.device)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"channels={len(self.mask)}, reduction={self.reduction!r}"

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Return the loss of features (B, C, H, W)."""
        owner = "InstanceSelectiveWhiteningLoss"
        check_floating(owner, "features", features)
        if not len(self.mask):
            return features.new_zeros(())
        check_shape(owner, "features", features, "b c h w", c=len(self.mask))
        pairs = self.mask.triu(1)
        total = (_correlation(features).abs() * pairs).sum((1, 2)).mean()
        if self.reduction == "mean":
            total = total / pairs.sum().clamp_min(1)
        return total
