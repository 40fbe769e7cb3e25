"""SSIM of 16 colour images of 256 x 256, beside torchmetrics and kornia."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import torch
from cv_core.metrics.images import ssim
from cv_core.random import torch_generator
from cv_core.testing.race import Peer, race, write


def main() -> None:
    warnings.simplefilter("ignore")  # the peers' own news
    import kornia
    from torchmetrics.functional.image import structural_similarity_index_measure

    generator = torch_generator(0, "images")
    y = torch.rand(16, 3, 256, 256, generator=generator)
    x = (y + 0.1 * torch.randn(y.shape, generator=generator)).clamp(0.0, 1.0)

    def ours() -> torch.Tensor:
        return ssim(x, y)

    def torchmetrics() -> torch.Tensor:
        value = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
        assert isinstance(value, torch.Tensor)
        return value

    def by_kornia() -> torch.Tensor:
        return kornia.metrics.ssim(x, y, 11).mean(dim=(1, 2, 3))

    torch.testing.assert_close(ours(), torchmetrics(), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(), by_kornia(), rtol=0, atol=1e-5)
    peers = {
        "torchmetrics": Peer(torchmetrics, version("torchmetrics"), bar=3.0),
        "kornia": Peer(by_kornia, version("kornia"), bar=0.85),
    }
    write(race("ssim", "SSIM", "16 x 3 x 256 x 256, float32", ours=ours, peers=peers), __file__)


if __name__ == "__main__":
    main()
