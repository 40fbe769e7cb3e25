"""Fréchet distance of 1000 and 1000 features of 2048 numbers, beside scipy and torchmetrics."""

from __future__ import annotations

from importlib.metadata import version

import scipy.linalg
import torch
from cv_core.metrics.frechet import frechet_distance
from cv_core.random import torch_generator
from cv_core.testing.race import Peer, race, write


def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Non-negative and correlated, as after a ReLU."""
    generator = torch_generator(0, "features")
    mixing = torch.randn(256, 2048, generator=generator, dtype=torch.float64) / 16
    a, b = torch.randn(2, 1000, 256, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(2, 1000, 2048, generator=generator, dtype=torch.float64)
    return (a @ mixing + noise[0]).relu(), (1.1 * b @ mixing + 0.1 + noise[1]).relu()


def main() -> None:
    from torchmetrics.image.fid import _compute_fid

    a, b = features()

    def torchmetrics() -> float:
        return float(_compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T)))

    def matrix_root() -> float:
        first, second = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
        gap = (a.mean(0) - b.mean(0)).square().sum()
        root = scipy.linalg.sqrtm(first @ second).real
        return float(gap) + float((first + second - 2.0 * root).trace())

    expected = frechet_distance(a, b)
    for other in (torchmetrics(), matrix_root()):
        assert abs(other - expected) <= 1e-6 * expected, (other, expected)
    peers = {
        "torchmetrics": Peer(
            torchmetrics, version("torchmetrics"), bar=8.0, repeats=7, note="its inner function"
        ),
        "scipy sqrtm": Peer(matrix_root, version("scipy"), bar=50.0, repeats=2),
    }
    result = race(
        "frechet",
        "Fréchet distance",
        "2 x 1000 features, d = 2048",
        ours=lambda: frechet_distance(a, b),
        peers=peers,
    )
    write(result, __file__)


if __name__ == "__main__":
    main()
