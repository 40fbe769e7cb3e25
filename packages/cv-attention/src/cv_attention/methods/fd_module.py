"""Feature difference: what a convolution changes tells where to look.

Xu, Duan, Qiao, Chen: *Convolution Tells Where to Look*, PRCV 2021, LNCS 13022, pp. 16-28.

Attention as in SE or CBAM computes its mask from the present feature alone, which in early layers
says little about the object. Here the mask comes from the change that a convolution makes. With
``X`` the input and ``F`` the output of a stage that keeps the shape, element by element,

    D = smooth_l1(F - X)        D = z^2 / (2 beta) if |z| < beta, else |z| - beta / 2   (Eq. 2, 3)
    M = sigmoid(D)              0.5 <= M < 1                                            (Eq. 4)
    F' = M * F                                                                          (Eq. 5)

No parameters and no layers; nothing is detached, the gradient flows through ``F`` and ``X``. A mask
of at least 0.5 suppresses only in proportion: where nothing changes, ``F`` is halved.

Deviations from the paper:
    - Its Eq. 3 is discontinuous unless ``beta = 1``, where it equals the smooth L1 used here.
    - It announces its sigmoid without a formula; "close to 0.5" at no change means the logistic.
    - It does not say whether the mask belongs before or after normalisation and ReLU, and the
      choice changes the result: see ``tap``. By default ``X`` is what enters the convolution and
      ``F`` what leaves the normalisation behind it, before ReLU and shortcut.
    - In a bottleneck the mask refines the 3x3 stage, as the paper's text says and the shapes
      demand, not the expansion where its Table 2 lists it.

Example:
    >>> import torchvision
    >>> model = add_feature_difference(torchvision.models.resnet18())
    >>> print(fd_placement(model))  # doctest: +ELLIPSIS
    layer1.0.conv2 -> layer1.0.bn2
    ...
    layer4.1.conv2 -> layer4.1.bn2
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from cv_core.checks import check_floating, check_range, check_same_shape, check_shape
from cv_core.models.resnet import CifarResNet, cifar_resnet
from cv_core.nn.surgery import Where
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_attention._shared.refining import refine_stage_, refined
from cv_attention._shared.stages import Placement, Tap, find_stages

Model = TypeVar("Model", bound=nn.Module)


def feature_difference_mask(
    x: Float[Tensor, "b c *size"], f: Float[Tensor, "b c *size"], *, beta: float = 1.0
) -> Float[Tensor, "b c *size"]:
    """Compute the mask ``M = sigmoid(smooth_l1(f - x))``.

    Args:
        x: What enters the stage, ``(B, C, H, W)`` or with any other number of spatial axes.
        f: What leaves it, of the same shape.
        beta: Where the smooth L1 turns from quadratic to linear, above 0; 1 in the paper.

    Returns:
        The mask, with the shape and type of ``f``, in ``[0.5, 1)``; in float32 it rounds to 1
        where ``f`` and ``x`` differ by more than about 17.

    Raises:
        TypeError: If ``x`` or ``f`` is not a floating-point tensor.
        ValueError: If their shapes differ, an axis is empty, or ``beta`` is not above 0.

    Example:
        >>> same = torch.ones(1, 1, 2, 2)
        >>> feature_difference_mask(same, same).unique()
        tensor([0.5000])
    """
    _check("feature_difference_mask", x, f, beta)
    return _mask(x, f, beta)


def feature_difference(
    x: Float[Tensor, "b c *size"], f: Float[Tensor, "b c *size"], *, beta: float = 1.0
) -> Float[Tensor, "b c *size"]:
    """Weight ``f`` by how much it differs from ``x``: ``f * feature_difference_mask(x, f)``.

    Args:
        x: What enters the stage, ``(B, C, H, W)`` or with any other number of spatial axes.
        f: What leaves it, of the same shape.
        beta: Where the smooth L1 turns from quadratic to linear, above 0; 1 in the paper.

    Returns:
        The refined feature, with the shape and type of ``f``.

    Raises:
        TypeError: If ``x`` or ``f`` is not a floating-point tensor.
        ValueError: If their shapes differ, an axis is empty, or ``beta`` is not above 0.

    Example:
        >>> same = torch.ones(1, 1, 2, 2)
        >>> feature_difference(same, same).unique()
        tensor([0.5000])
    """
    _check("feature_difference", x, f, beta)
    return f * _mask(x, f, beta)


class FeatureDifference(nn.Module):
    """Weights a feature by how much it differs from what it was computed from.

    Args:
        beta: Where the smooth L1 turns from quadratic to linear, above 0; 1 in the paper.

    Raises:
        ValueError: If ``beta`` is not above 0.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        check_range("FeatureDifference", "beta", beta, low=0.0, low_open=True)
        self.beta = beta

    def extra_repr(self) -> str:
        """Show ``beta``."""
        return f"beta={self.beta:g}"

    def forward(
        self, x: Float[Tensor, "b c *size"], f: Float[Tensor, "b c *size"]
    ) -> Float[Tensor, "b c *size"]:
        """Refine ``f``, ``(B, C, H, W)``, by its difference to ``x`` of the same shape."""
        _check("FeatureDifference", x, f, self.beta)
        return f * _mask(x, f, self.beta)


class FDConv(nn.Module):
    """A stage with feature difference: ``f = stage(x)``, refined by its difference to ``x``.

    For networks that you write yourself; ``add_feature_difference`` is for networks that exist.

    Args:
        stage: A convolution or any module that keeps the shape of its input. It must not change
            its input in place, as a first ``nn.ReLU(inplace=True)`` would: ``x`` is compared after.
        beta: Where the smooth L1 turns from quadratic to linear, above 0; 1 in the paper.
        strict: Whether an output of another shape is an error; if not, it is passed on as it is.

    Raises:
        ValueError: If ``beta`` is not above 0.

    Example:
        >>> layer = FDConv(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)))
        >>> layer(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(self, stage: nn.Module, beta: float = 1.0, *, strict: bool = True) -> None:
        super().__init__()
        self.stage = stage
        self.refine = FeatureDifference(beta)
        self.strict = strict

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c2 *size2"]:
        """Run the stage on ``x``, ``(B, C, H, W)``, and refine what comes out.

        Raises:
            ValueError: If ``strict`` and the stage changes the shape.
        """
        f = self.stage(x)
        if f.shape != x.shape:
            if self.strict:
                raise ValueError(
                    f"FDConv: stage must keep the shape of x {tuple(x.shape)}; its output has "
                    f"{tuple(f.shape)}. Pass strict=False to leave such outputs unrefined."
                )
            return f
        return self.refine(x, f)


def fd_placement(model: nn.Module, where: Where = "auto", *, tap: Tap = "bn") -> Placement:
    """Say where ``add_feature_difference`` puts the mask in a network, and where not and why.

    Args:
        model: Any network; it is neither run nor changed.
        where: ``"auto"`` or patterns of module names, as in ``add_feature_difference``.
        tap: What counts as the output ``F``, as in ``add_feature_difference``.

    Returns:
        The chosen stages and the reason for every one skipped; ``print`` shows both.

    Raises:
        ValueError: If a pattern matches nothing, or no stage keeps its shape.
    """
    return find_stages("add_feature_difference", model, where, tap)


def add_feature_difference(
    model: Model, where: Where = "auto", *, tap: Tap = "bn", beta: float = 1.0
) -> Model:
    """Return a copy of a network with feature difference; the network itself stays as it is.

    Parameters and ``state_dict`` keys are those of the original, so that pretrained weights load
    before or after. ``remove_attention`` gives back the plain network.

    Args:
        model: Any network of torchvision, timm, cv-core or your own.
        where: ``"auto"`` takes the paper's places: ``conv2`` of every residual block (ResNet,
            ResNeXt, SENet); else the depthwise convolutions (MobileNetV2); else all convolutions
            larger than one pixel (VGG). Otherwise patterns such as ``"layer*.*.conv2"`` of
            convolutions or of whole stages. Convolutions that change the shape are skipped:
            ``print(fd_placement(model))`` lists them.
        tap: Where ``F`` is read. ``"bn"``: behind the normalisation that follows the convolution,
            if any, before ReLU. ``"conv"``: behind the convolution. ``"relu"``: as ``"bn"``, but
            the mask compares ReLU(F) with ``X``; this differs from ``"bn"`` only where no ReLU
            follows directly, as in front of a shortcut's addition.
        beta: Where the smooth L1 turns from quadratic to linear, above 0; 1 in the paper.

    Returns:
        The changed copy.

    Raises:
        ValueError: If a pattern matches nothing, no stage keeps its shape, or an option is wrong.
    """
    return add_feature_difference_(copy.deepcopy(model), where, tap=tap, beta=beta)


def add_feature_difference_(
    model: Model, where: Where = "auto", *, tap: Tap = "bn", beta: float = 1.0
) -> Model:
    """Put feature difference into a network in place; else as ``add_feature_difference``.

    Args:
        model: The network to change.
        where: ``"auto"`` or patterns of module names.
        tap: ``"bn"``, ``"conv"`` or ``"relu"``: where ``F`` is read.
        beta: Where the smooth L1 turns from quadratic to linear, above 0; 1 in the paper.

    Returns:
        The same network.

    Raises:
        ValueError: If a pattern matches nothing, no stage keeps its shape, or an option is wrong.
    """
    check_range("add_feature_difference", "beta", beta, low=0.0, low_open=True)
    stages = fd_placement(model, where, tap=tap).stages
    have = {name for name, part in refined(model).items() if isinstance(part, FeatureDifference)}
    if again := sorted(have & {stage.last for stage in stages}):
        raise ValueError(
            f"add_feature_difference: model has it already behind {', '.join(again[:3])}; "
            "call remove_attention first."
        )
    module = _RectifiedDifference if tap == "relu" else FeatureDifference
    for stage in stages:
        refine_stage_(model, stage, module(beta))
    return model


def fd_resnet(
    depth: int,
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    tap: Tap = "bn",
    beta: float = 1.0,
) -> CifarResNet:
    """Build a ResNet for small images (He et al.) with feature difference in every block.

    Args:
        depth: Number of layers, ``6n + 2``; the paper takes 20, 32, 44, 56 and 110.
        num_classes: Number of outputs.
        in_channels: Channels of the image.
        width: Multiplies the channels 16, 32 and 64 of the stages.
        tap: ``"bn"``, ``"conv"`` or ``"relu"``: where ``F`` is read.
        beta: Where the smooth L1 turns from quadratic to linear, above 0; 1 in the paper.

    Returns:
        The network, with the parameters and ``state_dict`` keys of the plain one.

    Raises:
        ValueError: If an option is out of range.
    """
    plain = cifar_resnet(depth, num_classes, in_channels=in_channels, width=width)
    return add_feature_difference_(plain, tap=tap, beta=beta)


def fd_resnet20(num_classes: int = 10) -> CifarResNet:
    """Build ``fd_resnet(20, num_classes)``."""
    return fd_resnet(20, num_classes)


def fd_resnet32(num_classes: int = 10) -> CifarResNet:
    """Build ``fd_resnet(32, num_classes)``."""
    return fd_resnet(32, num_classes)


def fd_resnet44(num_classes: int = 10) -> CifarResNet:
    """Build ``fd_resnet(44, num_classes)``."""
    return fd_resnet(44, num_classes)


def fd_resnet56(num_classes: int = 10) -> CifarResNet:
    """Build ``fd_resnet(56, num_classes)``."""
    return fd_resnet(56, num_classes)


def fd_resnet110(num_classes: int = 10) -> CifarResNet:
    """Build ``fd_resnet(110, num_classes)``."""
    return fd_resnet(110, num_classes)


def _check(owner: str, x: Tensor, f: Tensor, beta: float) -> None:
    check_range(owner, "beta", beta, low=0.0, low_open=True)
    check_floating(owner, "x", x)
    check_floating(owner, "f", f)
    check_shape(owner, "f", f, "b c ...")
    check_same_shape(owner, x=x, f=f)


def _mask(x: Tensor, f: Tensor, beta: float) -> Tensor:
    # Under autocast x may be wider than f, and the loss answers in float32: f's type decides.
    change = functional.smooth_l1_loss(f, x.to(f.dtype), reduction="none", beta=beta)
    return torch.sigmoid(change).to(f.dtype)


class _RectifiedDifference(FeatureDifference):
    """Weights ``f`` by how much ``relu(f)`` differs from ``x``."""

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        return f * feature_difference_mask(x, functional.relu(f), beta=self.beta)


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, f = torch.randn(2, 3, 4, 5, 6, generator=generator)
        return x, f

    return [Example(build=FeatureDifference, inputs=inputs, output_shapes=((3, 4, 5, 6),))]


CARD = Card(
    slug="fd-module",
    title="Attention from the difference between a convolution's output and input",
    reference=Reference(
        title="Convolution Tells Where to Look",
        authors="Xu, Duan, Qiao, Chen",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="16-28",
    ),
    kind="module",
    objects=(
        "cv_attention.methods.fd_module.FeatureDifference",
        "cv_attention.methods.fd_module.FDConv",
        "cv_attention.methods.fd_module.add_feature_difference",
        "cv_attention.methods.fd_module.add_feature_difference_",
        "cv_attention.methods.fd_module.fd_placement",
        "cv_attention.methods.fd_module.fd_resnet",
        "cv_attention.methods.fd_module.fd_resnet20",
        "cv_attention.methods.fd_module.fd_resnet32",
        "cv_attention.methods.fd_module.fd_resnet44",
        "cv_attention.methods.fd_module.fd_resnet56",
        "cv_attention.methods.fd_module.fd_resnet110",
        "cv_attention.methods.fd_module.feature_difference",
        "cv_attention.methods.fd_module.feature_difference_mask",
    ),
    examples=_examples,
    properties=(
        "batch-independent",
        "deterministic",
        "parameter-free",
        "shape-preserving",
        "twice-differentiable",
    ),
)
