"""A multi-label classifier whose class activation maps are its logits before they are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from cv_core.checks import check_floating, check_integer, check_shape
from cv_core.engine.evaluation import modes_kept
from jaxtyping import Float
from torch import Tensor, nn


class CAMClassifier(nn.Module):
    r"""Global average pooling and a linear layer behind any backbone, and the maps of its classes.

    With the backbone's features F, :math:`f = \mathrm{GAP}(F)` and rows :math:`\omega_c`,

    .. math:: s_c = \omega_c f + b_c, \qquad M_c = \sum_k \omega_c^k F^k, \qquad
              \mathrm{CAM}_c = \mathrm{ReLU}(M_c),

    so that :math:`s_c` is the mean of :math:`M_c` plus :math:`b_c`. A second linear layer beside
    the first one may tell sub-categories apart: ``n_sub`` for each class, of which the maps take no
    notice.

    A foreign network becomes one by its parts, and keeps its weights::

        resnet = torchvision.models.resnet50(weights="DEFAULT")
        model = CAMClassifier(nn.Sequential(*list(resnet.children())[:-2]), 1000, channels=2048)
        model.head.load_state_dict(resnet.fc.state_dict())

    Args:
        backbone: Maps images to features ``(B, d, h, w)``, or to a list whose last entry they are.
        n_classes: Number of classes C.
        n_sub: Sub-categories K of each class; None for no second layer.
        channels: Channels d of the features; by default ``backbone.out_channels`` (its last entry
            if these are several).

    Raises:
        TypeError: If a number is not whole.
        ValueError: If a number is below 1, or ``channels`` is needed.

    Example:
        >>> model = CAMClassifier(nn.Conv2d(3, 8, 3, stride=4), n_classes=5, n_sub=2)
        >>> logits, sub_logits = model(torch.rand(2, 3, 16, 16))
        >>> logits.shape, sub_logits.shape, model.cam(torch.rand(2, 3, 16, 16)).shape
        (torch.Size([2, 5]), torch.Size([2, 10]), torch.Size([2, 5, 4, 4]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_classes: int,
        n_sub: int | None = None,
        *,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        owner = "CAMClassifier"
        check_integer(owner, "n_classes", n_classes, low=1)
        if n_sub is not None:
            check_integer(owner, "n_sub", n_sub, low=1)
        width = _channels(backbone) if channels is None else channels
        check_integer(owner, "channels", width, low=1)
        self.backbone = backbone
        self.head = nn.Linear(width, n_classes)
        self.sub_head = None if n_sub is None else nn.Linear(width, n_classes * n_sub)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Return the backbone's last features for images ``(B, C, H, W)``."""
        owner = "CAMClassifier"
        check_floating(owner, "x", x)
        check_shape(owner, "x", x, "b c h w")
        features = self.backbone(x)
        if isinstance(features, (list, tuple)):
            features = features[-1]
        check_shape(owner, "the backbone's output", features, "b d h w", d=self.head.in_features)
        return features

    def forward(
        self, x: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b n"] | tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]:
        """Return logits.

        Args:
            x: Images ``(B, C, H, W)``.

        Returns:
            Logits ``(B, n_classes)``; with ``n_sub``, those of the sub-categories too,
            ``(B, n_classes * n_sub)``, class by class.
        """
        pooled = self.features(x).mean((2, 3))
        if self.sub_head is None:
            return self.head(pooled)
        return self.head(pooled), self.sub_head(pooled)

    def activations(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n h2 w2"]]:
        """Return logits and signed maps of all classes in one pass, with gradients.

        Args:
            x: Images ``(B, C, H, W)``.

        Returns:
            Logits ``(B, n_classes)`` and maps ``(B, n_classes, h, w)``.
        """
        maps = torch.einsum("nd,bdhw->bnhw", self.head.weight, self.features(x))
        return maps.mean((2, 3)) + self.head.bias, maps

    @torch.no_grad()
    def cam(
        self, x: Float[Tensor, "b c h w"], classes: Sequence[int] | None = None
    ) -> Float[Tensor, "b n h2 w2"]:
        """Return class activation maps, in evaluation mode.

        Args:
            x: Images ``(B, C, H, W)``.
            classes: Which classes; all by default.

        Returns:
            Non-negative maps ``(B, n, h, w)`` at the features' size, not brought to [0, 1].

        Raises:
            ValueError: If a class is out of range.
        """
        for index in classes or ():
            check_integer("CAMClassifier", "classes", index, low=0, high=self.head.out_features - 1)
        with evaluating(self):
            maps = self.activations(x)[1].relu()
        return maps if classes is None else maps[:, list(classes)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and every part back into its own mode afterwards."""
    with modes_kept(model):
        model.eval()
        yield


def _channels(backbone: nn.Module) -> int:
    channels = getattr(backbone, "out_channels", None)
    if isinstance(channels, (list, tuple)) and channels:
        channels = channels[-1]
    if not isinstance(channels, int):
        raise ValueError(
            "CAMClassifier: channels must be given, for the backbone has no out_channels."
        )
    return channels
