"""Images of any size for networks that want sides divisible by some number."""

from __future__ import annotations

from cv_core.checks import check_integer, check_shape
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Padded(nn.Module):
    """Pad the input of a network to a multiple, and crop its output back.

    The border is repeated at the bottom and at the right (and behind, for volumes), so that pixel
    positions stay. An input that fits already goes through untouched. A network of one fixed size
    of input is served by ``multiple`` = that size.

    Args:
        model: Maps ``(N, C, ...)`` to ``(N, K, ...)`` of the same sides: images or volumes.
        multiple: What the sides must be divisible by, such as 32.

    Raises:
        ValueError: If ``multiple`` is below 1; in ``forward``, if the network changes the sides.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.MaxPool2d(4), nn.Upsample(scale_factor=4))
        >>> Padded(model, 4)(torch.zeros(1, 3, 9, 6)).shape
        torch.Size([1, 3, 9, 6])
    """

    def __init__(self, model: nn.Module, multiple: int) -> None:
        super().__init__()
        check_integer("Padded", "multiple", multiple, low=1)
        self.model = model
        self.multiple = multiple

    def extra_repr(self) -> str:
        """Show the multiple."""
        return f"multiple={self.multiple}"

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n k ..."]:
        """Map images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)`` of any sides."""
        check_shape("Padded", "x", x, "n c d h w" if x.ndim > 4 else "n c h w")
        sides = x.shape[2:]
        missing = [-side % self.multiple for side in sides]
        if not any(missing):
            return self.model(x)
        amounts = [amount for gap in reversed(missing) for amount in (0, gap)]
        wide = functional.pad(x, amounts, mode="replicate")
        out = self.model(wide)
        if not isinstance(out, Tensor) or out.shape[2:] != wide.shape[2:]:
            came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"Padded: model must return a tensor with the sides {tuple(wide.shape[2:])} of its "
                f"input; got {came}."
            )
        for axis, side in enumerate(sides, start=2):
            out = out.narrow(axis, 0, side)
        return out
