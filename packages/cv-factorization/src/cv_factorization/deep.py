"""Networks that take the place of the factors of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn

Rows = Int[Tensor, " b"] | slice
ALL = slice(None)


def mlp(widths: Sequence[int], *, bias: bool = True) -> nn.Sequential:
    """Build linear layers with a ReLU between every two, and none after the last.

    Args:
        widths: Features of the input, of every layer in between, and of the output.
        bias: Whether layers have one.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class IdentityEncoder(nn.Module):
    r"""A network on the rows of the identity matrix: sample j is the j-th unit vector.

    :math:`H_0 = I, H_i = \mathrm{ReLU}(H_{i-1} E_i + b_i)`, the last layer linear. The first
    product is a row of :math:`E_1`, hence a table: no identity matrix is ever formed. Layers start
    as ``torch.nn.Linear`` does.

    Args:
        n_samples: Samples n.
        widths: Features of every layer; the last is that of H.
        bias: Whether layers have one.
    """

    def __init__(self, n_samples: int, widths: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        first = nn.Linear(n_samples, widths[0], bias=bias)
        self.table = nn.Parameter(first.weight.detach().T.contiguous())
        self.bias = first.bias
        self.layers = mlp(widths, bias=bias)

    def forward(self, rows: Rows = ALL) -> Float[Tensor, "b k"]:
        """Return H, or those of its rows."""
        first = self.table[rows]
        if self.bias is not None:
            first = first + self.bias
        return self.layers(first.relu()) if len(self.layers) else first


class SharedFactors(nn.Module):
    r"""The factors: an encoder of sample numbers, and a decoder :math:`g_v` for every view.

    Args:
        n_samples: Samples n.
        view_sizes: Features d_v of every view.
        n_components: Columns k of H.
        hidden: Widths between the table and H; the decoders take them in the opposite order.
        nonnegative: Whether H passes a ReLU too.
    """

    def __init__(
        self,
        n_samples: int,
        view_sizes: Sequence[int],
        n_components: int,
        *,
        hidden: Sequence[int] = (1000, 500, 200),
        nonnegative: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = IdentityEncoder(n_samples, [*hidden, n_components])
        self.nonnegative = nonnegative
        back = [n_components, *reversed(hidden)]
        self.decoders = nn.ModuleList(mlp([*back, size]) for size in view_sizes)

    def codes(self, rows: Rows = ALL) -> Float[Tensor, "b k"]:
        """Return H, or those of its rows."""
        H = self.encoder(rows)
        return H.relu() if self.nonnegative else H

    def decode(self, H: Float[Tensor, "b k"]) -> list[Float[Tensor, "b _"]]:
        """Return what codes stand for in every view; logits where entries are probabilities."""
        return [decoder(H) for decoder in self.decoders]

    def forward(self, rows: Rows = ALL) -> list[Float[Tensor, "b _"]]:
        """Return the reconstructions of all samples, or of some."""
        return self.decode(self.codes(rows))
