"""Attention within a map that adds few weights: criss-cross over places, affinity over channels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from cv_core.nn.attention import criss_cross_attention, criss_cross_maps
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Affinity = Literal["dot", "cosine", "danet"]


class CrissCrossContext(nn.Module):
    r"""Rounds of criss-cross attention whose values are the map itself.

    .. math:: H'_u = H_u + \sum_{i \in \Omega_u}
              \mathrm{softmax}_i\bigl((W_Q H)_u^\top (W_K H)_i\bigr) \, H_i

    with :math:`\Omega_u` the H + W - 1 places in u's row and column, u itself once. Every round has
    the same weights; after two, every place has seen all. CCNet (Huang et al., ICCV 2019) has a
    value convolution besides.

    Args:
        channels: Channels of the map.
        reduction: Q and K have ``channels // reduction`` channels, at least one.
        rounds: How often it is applied; 2 in the paper.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> CrissCrossContext(16)(torch.rand(2, 16, 7, 9)).shape
        torch.Size([2, 16, 7, 9])
    """

    def __init__(self, channels: int, *, reduction: int = 8, rounds: int = 2) -> None:
        super().__init__()
        given = {"channels": channels, "reduction": reduction, "rounds": rounds}
        for name, value in given.items():
            check_integer("CrissCrossContext", name, value, low=1)
        hidden = max(1, channels // reduction)
        self.channels = channels
        self.rounds = rounds
        self.query = nn.Conv2d(channels, hidden, 1, bias=False)
        self.key = nn.Conv2d(channels, hidden, 1, bias=False)

    def extra_repr(self) -> str:
        """Show how often it is applied."""
        return f"rounds={self.rounds}"

    def maps(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b h w w"], Float[Tensor, "b h w h"]]:
        """Return the first round's weights: on a place's row (itself included), on its column."""
        self._check(x)
        return criss_cross_maps(self.query(x), self.key(x))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply the rounds to ``(B, C, H, W)``."""
        self._check(x)
        for _ in range(self.rounds):
            x = criss_cross_attention(self.query(x), self.key(x), x, residual=x)
        return x

    def _check(self, x: Tensor) -> None:
        check_floating("CrissCrossContext", "x", x)
        check_shape("CrissCrossContext", "x", x, "b c h w", c=self.channels)


class ChannelAffinityAttention(nn.Module):
    r"""Adds to each channel a mean of all channels, weighted by how alike they are.

    .. math:: C = B + \beta X B, \qquad X_{ji} = \mathrm{softmax}_i(B_j^\top B_i)

    with the map's channels as the rows of B and a learnt :math:`\beta` that starts at 0.

    - ``"dot"``: as above. :math:`B_j^\top B_j` grows with the number of places and dominates, so
      that on all but tiny maps X is nearly the identity and :math:`C \approx (1 + \beta) B`.
    - ``"cosine"``: the rows of B are brought to length 1 for X; the weights stay graded.
    - ``"danet"``: :math:`\mathrm{softmax}_i(\max_k e_{jk} - e_{ji})` with :math:`e = B B^\top`, as
      in the code of Fu et al., CVPR 2019: the least similar channel has the largest weight.

    Args:
        affinity: ``"dot"``, ``"cosine"`` or ``"danet"``.

    Raises:
        ValueError: If ``affinity`` is none of them.

    Example:
        >>> x = torch.rand(2, 8, 3, 4)
        >>> bool((ChannelAffinityAttention("cosine")(x) == x).all())  # beta is 0
        True
    """

    def __init__(self, affinity: Affinity = "dot") -> None:
        super().__init__()
        check_choice("ChannelAffinityAttention", "affinity", affinity, get_args(Affinity))
        self.affinity = affinity
        self.beta = nn.Parameter(torch.zeros(()))

    def extra_repr(self) -> str:
        """Show the kind of affinity."""
        return repr(self.affinity)

    def maps(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
        """Return X, ``(B, C, C)``; each row sums to 1."""
        check_floating("ChannelAffinityAttention", "x", x)
        check_shape("ChannelAffinityAttention", "x", x, "b c h w")
        # products over all places leave the range of half precision, and the rows become NaN
        rows = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            if self.affinity == "cosine":
                rows = functional.normalize(rows, dim=2)
            energy = rows @ rows.mT
            weights = (-energy if self.affinity == "danet" else energy).softmax(2)
        return weights.to(x.dtype)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix the channels of ``(B, C, H, W)``."""
        mixed = (self.maps(x) @ x.flatten(2)).view_as(x)
        return x + self.beta * mixed
