"""Convolutional LSTM over clips."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cv_core.checks import check_integer, check_odd, check_shape

State = tuple[Tensor, Tensor]


class ConvLSTMCell(nn.Module):
    r"""One step of the convolutional LSTM of Shi et al., NeurIPS 2015, without peepholes.

    .. math:: i, f, o = \sigma(W_x * x + W_h * h + b), \quad g = \tanh(W_x * x + W_h * h + b), \quad
              c' = f \odot c + i \odot g, \quad h' = o \odot \tanh c'

    The gates are stacked in the order i, f, g, o, as in ``torch.nn.LSTMCell``.

    Args:
        in_channels: Channels of the input.
        hidden_channels: Channels of the state.
        kernel_size: Size of both convolutions, an odd number.
    """

    def __init__(self, in_channels: int, hidden_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        check_integer("ConvLSTM", "in_channels", in_channels, low=1)
        check_integer("ConvLSTM", "hidden_channels", hidden_channels, low=1)
        check_odd("ConvLSTM", "kernel_size", kernel_size)
        gates, padding = 4 * hidden_channels, kernel_size // 2
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.conv_x = nn.Conv2d(in_channels, gates, kernel_size, padding=padding)
        self.conv_h = nn.Conv2d(hidden_channels, gates, kernel_size, padding=padding, bias=False)

    def start(self, x: Float[Tensor, "b c h w"]) -> State:
        """Return the zero state for inputs like ``x``."""
        zeros = x.new_zeros(x.shape[0], self.hidden_channels, *x.shape[2:])
        return zeros, zeros

    def step(self, drive: Float[Tensor, "b g h w"], state: State) -> State:
        """Advance the state ``(h, c)`` by an input that has been through ``conv_x``."""
        hidden, cell = state
        i, f, g, o = (drive + self.conv_h(hidden)).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    def forward(self, x: Float[Tensor, "b c h w"], state: State | None = None) -> State:
        """Advance the state by one frame.

        Args:
            x: A frame ``(B, C, H, W)``.
            state: ``(h, c)``, each ``(B, hidden_channels, H, W)``; zeros by default.

        Returns:
            The new ``(h, c)``.

        Raises:
            ValueError: If a shape does not fit.
        """
        sizes = check_shape("ConvLSTMCell", "x", x, "b c h w", c=self.in_channels)
        del sizes["c"]
        for name, part in zip(("h", "c"), () if state is None else state, strict=False):
            check_shape(
                "ConvLSTMCell", f"state {name}", part, "b d h w", d=self.hidden_channels, **sizes
            )
        return self.step(self.conv_x(x), self.start(x) if state is None else state)


class ConvLSTM(nn.Module):
    """Layers of convolutional LSTM, called like ``torch.nn.LSTM(batch_first=True)``.

    Args:
        in_channels: Channels of a frame.
        hidden_channels: Channels of the states.
        kernel_size: Size of the convolutions, an odd number.
        num_layers: Number of layers; each one reads the states of the one below.

    Example:
        >>> out, (h, c) = ConvLSTM(3, 8)(torch.zeros(2, 5, 3, 4, 4))
        >>> out.shape, h.shape
        (torch.Size([2, 5, 8, 4, 4]), torch.Size([1, 2, 8, 4, 4]))
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        kernel_size: int = 3,
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        check_integer("ConvLSTM", "num_layers", num_layers, low=1)
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.cells = nn.ModuleList(
            ConvLSTMCell(hidden_channels if layer else in_channels, hidden_channels, kernel_size)
            for layer in range(num_layers)
        )

    def forward(
        self, x: Float[Tensor, "b t c h w"], state: State | None = None
    ) -> tuple[Float[Tensor, "b t d h w"], State]:
        """Read a clip.

        Args:
            x: Frames ``(B, T, C, H, W)``.
            state: ``(h, c)``, each ``(num_layers, B, hidden_channels, H, W)``; zeros by default.

        Returns:
            The last layer's h of each frame ``(B, T, hidden_channels, H, W)``, and the final state.

        Raises:
            ValueError: If a shape does not fit.
        """
        sizes = check_shape("ConvLSTM", "x", x, "b t c h w", c=self.in_channels)
        if state is not None:
            known = {name: sizes[name] for name in ("b", "h", "w")}
            for name, part in zip(("h", "c"), state, strict=True):
                check_shape(
                    "ConvLSTM",
                    f"state {name}",
                    part,
                    "l b d h w",
                    l=len(self.cells),
                    d=self.hidden_channels,
                    **known,
                )
        finals: list[State] = []
        for layer, module in enumerate(self.cells):
            cell = cast("ConvLSTMCell", module)  # a ModuleList forgets the class
            # the input's share of all frames at once: only the recurrence has to wait
            drives = cell.conv_x(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            now = cell.start(x[:, 0]) if state is None else (state[0][layer], state[1][layer])
            hiddens: list[Tensor] = []
            for drive in drives.unbind(1):
                now = cell.step(drive, now)
                hiddens.append(now[0])
            x = torch.stack(hiddens, dim=1)
            finals.append(now)
        hidden, cells = zip(*finals, strict=True)
        return x, (torch.stack(hidden), torch.stack(cells))
