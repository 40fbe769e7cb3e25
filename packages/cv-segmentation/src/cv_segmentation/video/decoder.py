"""A decoder that is recurrent in two directions: over the objects of a frame, and over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from cv_core.checks import check_floating, check_integer, check_shape
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.video.context import resize, separable

Memory = list[Tensor]
"""The decoder's h of all objects, one tensor (B, N, C, H, W) per level, deepest first."""


class BiRecurrentConvLSTMCell(nn.Module):
    r"""One object's step of a convolutional LSTM over objects that also reads the last frame.

    .. math:: i, f, o = \sigma(z), \; g = \tanh(z), \;
              z = W * [x, h_{t,i-1}, h_{t-1,i}] + b, \quad
              c_{t,i} = f \odot c_{t,i-1} + i \odot g, \quad h_{t,i} = o \odot \tanh c_{t,i}

    The cell state travels over objects only; time enters through :math:`h_{t-1,i}`. W is 3x3,
    separable by depth. The gates are stacked in the order i, f, g, o.

    Args:
        in_channels: Channels of the input x.
        hidden_channels: Channels of the states.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> h, c = BiRecurrentConvLSTMCell(3, 8)(torch.rand(2, 4, 3, 6, 5))  # four objects
        >>> h.shape, c.shape
        (torch.Size([2, 4, 8, 6, 5]), torch.Size([2, 4, 8, 6, 5]))
    """

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__()
        check_integer("BiRecurrentConvLSTMCell", "in_channels", in_channels, low=1)
        check_integer("BiRecurrentConvLSTMCell", "hidden_channels", hidden_channels, low=1)
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.conv_x = separable(in_channels + hidden_channels, 4 * hidden_channels)
        self.conv_h = separable(hidden_channels, 4 * hidden_channels, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n c h w"],
        past: Float[Tensor, "b n d h w"] | None = None,
        *,
        over_objects: bool = True,
    ) -> tuple[Float[Tensor, "b n d h w"], Float[Tensor, "b n d h w"]]:
        """Read the objects of a frame one after the other.

        Args:
            x: The input of each object ``(B, N, in_channels, H, W)``.
            past: h of each object in the frame before; zeros by default.
            over_objects: Whether an object reads the state of the one before it; if not, each one
                starts from zeros.

        Returns:
            h and c of each object.

        Raises:
            ValueError: If a shape does not fit.
        """
        owner = "BiRecurrentConvLSTMCell"
        sizes = check_shape(owner, "x", x, "b n c h w", c=self.in_channels)
        del sizes["c"]
        if past is None:
            past = x.new_zeros(*x.shape[:2], self.hidden_channels, *x.shape[3:])
        check_shape(owner, "past", past, "b n d h w", d=self.hidden_channels, **sizes)
        # all but the state of the object before is known, so that it is computed for all at once
        drive = self.conv_x(torch.cat([x, past], dim=2).flatten(0, 1)).unflatten(0, x.shape[:2])
        if not over_objects:
            return _gates(drive, None)
        states = [_gates(drive[:, 0], None)]
        for number in range(1, x.shape[1]):
            hidden, cell = states[-1]
            states.append(_gates(drive[:, number] + self.conv_h(hidden), cell))
        hiddens, cells = zip(*states, strict=True)
        return torch.stack(hiddens, dim=1), torch.stack(cells, dim=1)


def _gates(z: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Advance the cell state, or begin with one of zeros."""
    i, f, g, o = z.chunk(4, dim=-3)
    fresh = i.sigmoid() * g.tanh()
    cell = fresh if cell is None else f.sigmoid() * cell + fresh
    return o.sigmoid() * cell.tanh(), cell


class HierarchicalConvLSTMDecoder(nn.Module):
    """Cells from the deepest level to the finest, each one reading the level below it.

    A level's input is its feature map, the object's mask in the frame before and, but for the
    deepest level, the h of the level below, resized. The finest h becomes the mask.

    Args:
        skip_channels: Channels of the feature maps, deepest first.
        hidden: Channels of the deepest cell; every finer one has half as many, at least one.
        over_objects: Whether an object's cells read those of the object before.
        over_time: Whether they read those of the frame before.

    Raises:
        ValueError: If a number is below 1 or there is no level.
    """

    def __init__(
        self,
        skip_channels: Sequence[int],
        hidden: int,
        *,
        over_objects: bool = True,
        over_time: bool = True,
    ) -> None:
        super().__init__()
        owner = "HierarchicalConvLSTMDecoder"
        check_integer(owner, "hidden", hidden, low=1)
        if len(skip_channels) == 0:
            raise ValueError(f"{owner}: skip_channels must name at least one level; got none.")
        self.skip_channels = tuple(skip_channels)
        self.over_objects = over_objects
        self.over_time = over_time
        self.cells = nn.ModuleList()
        below = 0
        for level, channels in enumerate(self.skip_channels):
            check_integer(owner, f"skip_channels[{level}]", channels, low=1)
            width = max(1, hidden // 2**level)
            self.cells.append(BiRecurrentConvLSTMCell(below + channels + 1, width))
            below = width
        self.head = separable(below, 1)

    def extra_repr(self) -> str:
        """Show the directions of the recurrence."""
        return f"over_objects={self.over_objects}, over_time={self.over_time}"

    def forward(
        self,
        features: Sequence[Float[Tensor, "b _ _ _"]],
        masks: Float[Tensor, "b n h w"],
        memory: Memory | None = None,
    ) -> tuple[Float[Tensor, "b n h2 w2"], Memory]:
        """Decode one frame.

        Args:
            features: Its maps ``(B, C, H, W)``, deepest first.
            masks: The objects' masks in the frame before, or the given ones in the first frame;
                any size.
            memory: What the frame before returned; None in the first one.

        Returns:
            Logits of the masks at the finest level's size, and the memory for the next frame.

        Raises:
            TypeError: If the masks are not floating.
            ValueError: If a shape or a number of maps does not fit.
        """
        owner = "HierarchicalConvLSTMDecoder"
        check_floating(owner, "masks", masks)
        sizes = check_shape(owner, "masks", masks, "b n h w")
        for name, given in (("features", features), ("memory", memory)):
            if given is not None and len(given) != len(self.cells):
                raise ValueError(
                    f"{owner}: {name} must hold {len(self.cells)} levels; got {len(given)}."
                )
        hiddens: Memory = []
        for level, module in enumerate(self.cells):
            cell = cast("BiRecurrentConvLSTMCell", module)  # a ModuleList forgets the class
            skip, channels = features[level], self.skip_channels[level]
            check_shape(owner, f"features[{level}]", skip, "b c h w", b=sizes["b"], c=channels)
            # the mean over a cell: thin objects would fall between the samples of an interpolation
            small = functional.adaptive_avg_pool2d(masks, (skip.shape[-2], skip.shape[-1]))
            small = small.to(skip.dtype)  # NumPy's masks are float64
            parts = [skip[:, None].expand(-1, sizes["n"], -1, -1, -1), small[:, :, None]]
            if hiddens:
                below = resize(hiddens[-1].flatten(0, 1), skip)
                parts.insert(0, below.unflatten(0, masks.shape[:2]))
            past = memory[level] if memory is not None and self.over_time else None
            x = torch.cat(parts, dim=2)
            hiddens.append(cell(x, past, over_objects=self.over_objects)[0])
        logits = self.head(hiddens[-1].flatten(0, 1)).squeeze(1)
        return logits.unflatten(0, masks.shape[:2]), hiddens
