r"""SCRE: channels that react to an image's style are erased at random while the network learns.

*Suppressing Style-Sensitive Features via Randomly Erasing for Domain Generalizable Semantic
Segmentation*, Su, H. Wang and Yang, PRCV 2021, LNCS 13022, pp. 300-311.

After some epochs, the correlations of a layer's channels are compared between images and their
restyled copies (``cv_segmentation.domain_generalization``): ``SSC`` marks the channels in most of
the pairs that change much. From then on, in training only,

.. math::
    F_e = F \odot \mathrm{SSC} \odot E + F \odot (1 - \mathrm{SSC}), \qquad
    E_{c,s} \sim \mathrm{Bernoulli}(p)

with one draw per channel and position s, while instance selective whitening pushes the correlation
of the masked pairs to 0. Neither adds a parameter.

Deviations from the paper, and why:

- Its Gram matrix that standardises is printed of features that are not centred; a correlation
  needs centred ones. It divides by HW in neither place, which is the same as in both. A channel
  that is constant over space has no correlation, where the formula divides 0 by 0.
- Its Eq. 5 has the ½ on one of two squares; that is a constant factor of V, without effect.
- Its k-means has a random start; the clusters of numbers can be computed exactly.
- Its whitening term is a sum over pairs, whose weight depends on their number: it is their mean,
  as in the code of the paper that it builds on; ``reduction="sum"`` is as printed.
- It does not say where whitening looks at the features: before they are erased.
- Training sees fewer active values than evaluation, as printed; ``rescale`` divides those that are
  kept by p, as dropout does.

Example:
    >>> from cv_segmentation.domain_generalization import StyleJitter
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> images = torch.rand(4, 3, 16, 16)
    >>> with attach_scre(net, "1") as scre:
    ...     # ... train some epochs by cross-entropy alone ...
    ...     _ = scre.find_channels(images, StyleJitter(torch.Generator().manual_seed(0)))
    ...     # ... and the others with the whitening, while the hooks erase
    ...     loss = net(images).square().mean() + scre.whitening_loss()
    >>> int(scre.erasers["1"].ssc.sum())
    2
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from cv_core.checks import check_floating, check_range, check_shape
from cv_core.nn.hooks import rewrite
from cv_core.nn.surgery import Where, find
from cv_core.registry import Card, Example, Reference
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cv_segmentation.domain_generalization import (
    Images,
    InstanceSelectiveWhiteningLoss,
    Reduction,
    Score,
    SizedOnLoad,
    StyleChannels,
    StyleTransform,
    gram_style_variance,
    style_sensitive_channels,
)


class StyleChannelRandomErasing(SizedOnLoad):
    """Sets activations of chosen channels to 0 at random; the identity in evaluation mode.

    Args:
        ssc: (C,) bool: the channels, from ``style_sensitive_channels``; None for none yet.
        keep_prob: Probability p that an activation of these channels is kept, in [0, 1].
        rescale: Divide what is kept by p, so that the expectation stays.
        generator: Draws; torch's global generator by default, as for dropout.

    Raises:
        TypeError: If ``ssc`` is not bool.
        ValueError: If an option is out of range, or ``rescale`` meets ``keep_prob=0``.

    Example:
        >>> erase = StyleChannelRandomErasing(torch.tensor([True, False]), keep_prob=0.0)
        >>> erase(torch.ones(1, 2, 1, 3))
        tensor([[[[0., 0., 0.]],
        <BLANKLINE>
                 [[1., 1., 1.]]]])
    """

    ssc: Tensor

    def __init__(
        self,
        ssc: Bool[Tensor, " c"] | None = None,
        keep_prob: float = 0.8,
        *,
        rescale: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        owner = "StyleChannelRandomErasing"
        check_range(owner, "keep_prob", keep_prob, low=0.0, high=1.0, low_open=rescale)
        self.keep_prob = keep_prob
        self.rescale = rescale
        self.generator = generator
        self.register_buffer("ssc", torch.zeros(0, dtype=torch.bool))
        if ssc is not None:
            self.set_channels(ssc)

    def set_channels(self, ssc: Bool[Tensor, " c"]) -> None:
        """Choose other channels."""
        check_shape("StyleChannelRandomErasing", "ssc", ssc, "c")
        if ssc.dtype != torch.bool:
            raise TypeError(
                f"StyleChannelRandomErasing: ssc must be of type bool; got {ssc.dtype}."
            )
        self.ssc = ssc.detach().clone().to(self.ssc.device)

    def extra_repr(self) -> str:
        """Show the options."""
        chosen = f"{int(self.ssc.sum())} of {len(self.ssc)}"
        return f"channels={chosen}, keep_prob={self.keep_prob:g}, rescale={self.rescale}"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Erase in (B, C, H, W), in training mode."""
        owner = "StyleChannelRandomErasing"
        check_floating(owner, "x", x)
        known = {"c": len(self.ssc)} if len(self.ssc) else {}
        check_shape(owner, "x", x, "b c h w", **known)
        if not self.training or not known:
            return x
        source = x.device if self.generator is None else self.generator.device
        draw = torch.rand(x.shape, generator=self.generator, device=source).to(x.device)
        chosen = self.ssc[:, None, None]
        kept = torch.where(chosen & (draw >= self.keep_prob), 0.0, x)
        return torch.where(chosen, kept / self.keep_prob, kept) if self.rescale else kept


class SCREHooks(nn.Module):
    """Erasing and whitening at some layers of a foreign network; made by ``attach_scre``.

    Keep it as an attribute of the module that is trained, beside the network, to have the channels
    that were found in its checkpoints. A copy of the network made while it is attached shares the
    hooks: copy first. This module itself cannot be copied or pickled while it is attached.

    Args:
        model: As for ``attach_scre``.
        layers: Likewise, and so on.
        keep_prob: Probability that an activation of a chosen channel is kept.
        rescale: Divide what is kept by it.
        reduction: Of the whitening loss.
        generator: Draws what is erased.

    Attributes:
        erasers: The ``StyleChannelRandomErasing`` of each layer, by the layer's name.
        whiteners: The ``InstanceSelectiveWhiteningLoss`` of each layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Where,
        *,
        keep_prob: float = 0.8,
        rescale: bool = False,
        reduction: Reduction = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: the network is no part of this module
        self._layers: dict[str, nn.Module] = {}
        for name, module in find(model, layers).items():
            if module not in self._layers.values():  # a module with two names is erased once
                self._layers[name] = module
        self.erasers = {
            name: StyleChannelRandomErasing(None, keep_prob, rescale=rescale, generator=generator)
            for name in self._layers
        }
        self.whiteners = {
            name: InstanceSelectiveWhiteningLoss(reduction=reduction) for name in self._layers
        }
        self._parts = nn.ModuleList([*self.erasers.values(), *self.whiteners.values()])
        self._losses: dict[str, Tensor] = {}
        self._stack = ExitStack()
        for name, module in self._layers.items():
            self._stack.enter_context(rewrite(model, module, partial(self._erase, name)))

    def find_channels(
        self,
        images: Images,
        style_transform: StyleTransform,
        *,
        k: int = 3,
        m: int = 1,
        rho: float = 0.3,
        score: Score = "count",
        batch_size: int = 16,
    ) -> dict[str, StyleChannels]:
        """Measure how each layer reacts to style, and erase and whiten by it from now on.

        The paper calls for it after 5 epochs, on the training images.

        Args:
            images: (N, C, H, W), on the network's device, or an iterable of such batches.
            style_transform: Changes the style of a batch of images; a ``StyleJitter``.
            k: Clusters of the pairs of channels; see ``style_sensitive_channels``.
            m: How many top clusters are masked.
            rho: Share of the channels that is erased.
            score: ``"count"`` or ``"variance"``: what channels are ranked by.
            batch_size: Of ``images`` in one tensor.

        Returns:
            The masked pairs and the chosen channels of each layer.
        """
        layers = list(self._layers.values())
        variances = gram_style_variance(
            self._model[0], layers, images, style_transform, batch_size=batch_size
        )
        chosen = {
            name: style_sensitive_channels(variances[name], k=k, m=m, rho=rho, score=score)
            for name in self._layers
        }
        for name, (mask, ssc) in chosen.items():
            self.whiteners[name].set_mask(mask)
            self.erasers[name].set_channels(ssc)
        return chosen

    def whitening_loss(self) -> Float[Tensor, ""]:
        """Return the mean over layers of the whitening loss of the last pass in training mode.

        It is handed out once, and 0 where there is none: before channels were found, in evaluation
        mode, or after ``detach``. The paper adds it to the cross-entropy with weight 1.
        """
        losses, self._losses = list(self._losses.values()), {}
        if losses:
            return torch.stack(losses).mean()
        some = next(self._model[0].parameters(), torch.zeros(()))
        return some.new_zeros(())

    def detach(self) -> None:
        """Take the hooks off: the network is what it was, with the weights it has now."""
        self._stack.close()
        self._losses = {}

    def __enter__(self) -> SCREHooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _erase(self, name: str, output: Any, *_: Any) -> Any:
        """Stand at a layer's end: note the whitening loss of what leaves it, then erase in it."""
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise TypeError(f"attach_scre: the output of {name!r} must be a tensor; got {kind}.")
        eraser, whiten = self.erasers[name], self.whiteners[name]
        eraser.train(self._layers[name].training)  # the eraser is where the layer is
        if eraser.ssc.device != output.device:
            eraser.to(output.device)
            whiten.to(output.device)
        if eraser.training and len(whiten.mask):
            self._losses[name] = whiten(output)
        return eraser(output)


def attach_scre(
    model: nn.Module,
    layers: Where,
    *,
    keep_prob: float = 0.8,
    rescale: bool = False,
    reduction: Reduction = "mean",
    generator: torch.Generator | None = None,
) -> SCREHooks:
    """Hook style-channel erasing and whitening into any network; ``detach`` takes them off again.

    Nothing changes until ``find_channels`` is called, and nothing ever in evaluation mode. In a
    ``with`` block, the hooks come off at its end, exceptions included.

    Args:
        model: Any network, of torchvision, timm, segmentation-models-pytorch or your own.
        layers: Modules with outputs (B, C, H, W): name patterns, classes or the modules themselves;
            see ``cv_core.nn.surgery.find``. The paper's base whitens behind the stem and the first
            two stages, each with an instance normalisation: what leaves the normalisation is the
            place to erase. Each layer has channels of its own.
        keep_prob: Probability p that an activation of a chosen channel is kept, in [0, 1].
        rescale: Divide what is kept by p.
        reduction: Of the whitening loss over pairs: ``"mean"`` or ``"sum"``.
        generator: Draws what is erased; torch's global generator by default, as for dropout.

    Raises:
        ValueError: If ``layers`` selects nothing or an option is out of range.
    """
    return SCREHooks(
        model,
        layers,
        keep_prob=keep_prob,
        rescale=rescale,
        reduction=reduction,
        generator=generator,
    )


def _examples() -> Iterator[Example]:
    def features(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(3, 4, 5, 6, generator=generator),)

    ssc = torch.tensor([True, False, False, True])
    yield Example(
        # in training mode two calls differ, as for dropout; its own tests look at them
        build=lambda: StyleChannelRandomErasing(ssc).eval(),
        inputs=features,
        output_shapes=((3, 4, 5, 6),),
    )
    yield Example(
        build=lambda: InstanceSelectiveWhiteningLoss(ssc[:, None] ^ ssc),
        inputs=features,
        output_shapes=((),),
    )


CARD = Card(
    slug="scre",
    title="Random erasing of channels that react to an image's style",
    reference=Reference(
        title=(
            "Suppressing Style-Sensitive Features via Randomly Erasing for Domain Generalizable "
            "Semantic Segmentation"
        ),
        authors="Su, H. Wang, Yang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="300-311",
    ),
    kind="module",
    objects=(
        "cv_segmentation.methods.scre.attach_scre",
        "cv_segmentation.methods.scre.SCREHooks",
        "cv_segmentation.methods.scre.StyleChannelRandomErasing",
        "cv_segmentation.domain_generalization.InstanceSelectiveWhiteningLoss",
        "cv_segmentation.domain_generalization.StyleChannels",
        "cv_segmentation.domain_generalization.StyleJitter",
        "cv_segmentation.domain_generalization.channel_correlation",
        "cv_segmentation.domain_generalization.gram_style_variance",
        "cv_segmentation.domain_generalization.style_sensitive_channels",
    ),
    examples=lambda: list(_examples()),
)
