"""Convolutional sparse coding of an image of 128 x 128 by 32 filters of 8 x 8, beside SPORCO."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from cv_core.random import torch_generator
from cv_core.testing.race import Peer, race, write
from cv_factorization.sparse.convolutional import convolutional_codes, convolutional_image
from torch import Tensor

ITERATIONS = 50
WEIGHT = 0.05


def problem(size: int = 128, count: int = 32, side: int = 8) -> tuple[Tensor, Tensor]:
    """A photograph without what is smooth in it, and random filters of unit length."""
    from scipy.ndimage import gaussian_filter
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg").mean(axis=2)[100 : 100 + size, 200 : 200 + size] / 255
    image = torch.from_numpy(photo - gaussian_filter(photo, 3.0))[None, None]
    generator = torch_generator(0, "filters")
    filters = torch.randn(count, 1, side, side, generator=generator, dtype=torch.float64)
    return image, filters / filters.flatten(1).norm(dim=1)[:, None, None, None]


def objective(image: Tensor, filters: Tensor, codes: Tensor) -> float:
    misfit = image - convolutional_image(codes, filters)
    return float(0.5 * misfit.square().sum() + WEIGHT * codes.abs().sum())


def sporco_codes(image: Tensor, filters: Tensor) -> tuple[Callable[[], Tensor], str]:
    """A run of SPORCO in its fastest setting, and its version.

    Raises:
        ImportError: If SPORCO is not installed.
    """
    cbpdn = import_module("sporco.admm.cbpdn")
    options = cbpdn.ConvBPDN.Options(
        {"Verbose": False, "MaxMainIter": ITERATIONS, "RelStopTol": 0.0, "FastSolve": True}
    )
    D, S = filters[:, 0].permute(1, 2, 0).contiguous().numpy(), image[0, 0].numpy()

    def run() -> Tensor:
        maps = cbpdn.ConvBPDN(D, S, WEIGHT, options, dimK=0).solve()
        return torch.from_numpy(maps.reshape(*S.shape, -1)).permute(2, 0, 1)[None]

    return run, import_module("sporco").__version__


def main() -> None:
    image, filters = problem()

    def ours() -> Tensor:
        return convolutional_codes(image, filters, WEIGHT, max_iter=ITERATIONS, tol=0.0).codes

    try:
        theirs, version = sporco_codes(image, filters)
    except ImportError:
        print("SPORCO is not installed: there is nobody to race against")
        return
    # it counts places from a filter's corner, we from its centre
    shift = (filters.shape[-2] // 2, filters.shape[-1] // 2)
    own = objective(image, filters, ours())
    other = objective(image, filters, theirs().roll(shift, dims=(-2, -1)))
    assert own <= 1.001 * other, (own, other)
    note = f"objective {other:.4f} against our {own:.4f}"
    write(
        race(
            "convolutional_codes",
            "convolutional sparse coding",
            f"128 x 128, 32 filters of 8 x 8, {ITERATIONS} iterations",
            ours=ours,
            peers={"SPORCO": Peer(theirs, version, bar=2.0, note=note)},
        ),
        __file__,
    )


if __name__ == "__main__":
    main()
