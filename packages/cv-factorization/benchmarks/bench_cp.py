"""CP decomposition of a 100 x 100 x 100 tensor of rank 10 of which 30 % is missing.

The peer is tensorly on torch, which fills missing entries in before every update. Ours solves the
observed rows' equations and needs fewer sweeps; it takes as many as give it no larger error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from importlib.metadata import version

import torch
from cv_core.random import numpy_generator
from cv_core.testing.race import Peer, race, write
from cv_factorization.tensors import parafac

SWEEPS = 50


def data(size: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    rng = numpy_generator(0, "cp")
    factors, start = (
        [torch.from_numpy(rng.random((size, rank))) for _ in range(3)] for _ in range(2)
    )
    tensor = torch.einsum("ir,jr,kr->ijk", *factors)
    noise = torch.from_numpy(rng.standard_normal(tensor.shape))
    mask = torch.from_numpy(rng.random(tensor.shape) < 0.7)
    return tensor + 0.05 * noise, mask, start


def observed_error(
    tensor: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, factors: list[torch.Tensor]
) -> float:
    full = torch.einsum("r,ir,jr,kr->ijk", weights, *factors)
    return float((mask * (tensor - full)).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="check the outputs on little data")
    small = parser.parse_args().small
    size, rank = (15, 3) if small else (100, 10)
    tensor, mask, start = data(size, rank)
    mine = parafac(tensor, rank, mask=mask, init=start, max_iter=SWEEPS, tol=0)
    error = observed_error(tensor, mask, *mine)
    assert abs(error - mine.objective[-1]) <= 1e-6 * error
    assert (mine.objective[1:] <= mine.objective[:-1] * (1 + 1e-9)).all()
    if importlib.util.find_spec("tensorly") is None:
        print("tensorly is not installed: nothing to race with")
        return
    tensorly = importlib.import_module("tensorly")
    decomposition = importlib.import_module("tensorly.decomposition")
    tensorly.set_backend("pytorch")
    weights = mask.to(tensor.dtype)  # it subtracts the mask from 1

    def peer() -> tuple[torch.Tensor, list[torch.Tensor]]:
        begin = (torch.ones(rank, dtype=tensor.dtype), [factor.clone() for factor in start])
        return decomposition.parafac(
            tensor,
            rank,
            mask=weights,
            init=begin,
            n_iter_max=SWEEPS,
            tol=0,
            normalize_factors=False,
        )

    theirs = observed_error(tensor, mask, *peer())
    enough = [sweep for sweep, value in enumerate(mine.objective) if value <= theirs]
    assert enough, (mine.objective[-1], theirs)
    sweeps = max(1, enough[0])

    def ours() -> object:
        return parafac(tensor, rank, mask=mask, init=start, max_iter=sweeps, tol=0)

    if small:
        return
    peers = {
        "tensorly": Peer(
            peer,
            version("tensorly"),
            bar=5.0,
            note=f"on torch, {SWEEPS} sweeps; ours needs {sweeps} for no larger error",
        )
    }
    given = f"{size}^3, rank {rank}, 30 % missing"
    write(race("cp", "masked CP", given, ours=ours, peers=peers, repeats=7), __file__)


if __name__ == "__main__":
    main()
