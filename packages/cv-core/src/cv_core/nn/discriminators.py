"""The patch discriminator."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cv_core.checks import check_integer, check_shape


class PatchGAN(nn.Module):
    """A discriminator that judges overlapping patches, of Isola et al., CVPR 2017.

    Convolutions of size 4 with spectral normalisation (Miyato et al., ICLR 2018), which takes the
    place of batch normalisation, and leaky ReLUs of slope 0.2. With three layers a logit sees 70x70
    pixels. Spectral normalisation is a parametrization: save the ``state_dict``, not the object.

    Args:
        in_channels: Channels of the image, with those of the condition if there is one.
        width: Channels of the first layer; they double up to eight times that.
        layers: Number of layers of stride 2.
    """

    def __init__(self, in_channels: int, width: int = 64, *, layers: int = 3) -> None:
        super().__init__()
        check_integer("PatchGAN", "in_channels", in_channels, low=1)
        check_integer("PatchGAN", "width", width, low=1)
        check_integer("PatchGAN", "layers", layers, low=1)
        self.in_channels = in_channels
        self.smallest = 3 * 2**layers  # two convolutions of stride 1 take one row each
        self.layers = nn.Sequential()
        before = in_channels
        for number in range(layers + 1):
            after = width * min(2**number, 8)
            conv = nn.Conv2d(before, after, 4, stride=2 if number < layers else 1, padding=1)
            self.layers.add_module(f"conv{number + 1}", spectral_norm(conv))
            self.layers.add_module(f"act{number + 1}", nn.LeakyReLU(0.2))
            before = after
        self.head = spectral_norm(nn.Conv2d(before, 1, 4, padding=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """Judge images.

        Args:
            x: ``(B, C, H, W)``; the sides are at least ``3 * 2**layers`` pixels.

        Returns:
            One logit per patch ``(B, 1, H / 2**layers - 2, W / 2**layers - 2)``.

        Raises:
            ValueError: If the shape does not fit or a side is too short.
        """
        check_shape("PatchGAN", "x", x, "b c h w", c=self.in_channels)
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"PatchGAN: x must have sides of at least {self.smallest} pixels; got shape "
                f"{tuple(x.shape)}. Use fewer layers."
            )
        return self.head(self.layers(x))
