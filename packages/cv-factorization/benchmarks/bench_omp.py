"""Orthogonal matching pursuit of 5000 samples of 64 numbers, beside scikit-learn."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from cv_core.random import torch_generator
from cv_core.testing.race import Peer, race, write
from cv_factorization.sparse.pursuit import omp
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

NONZEROS = 5


def problem(n: int = 5000, d: int = 64, m: int = 128) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "omp")
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    D = torch.randn(m, d, generator=generator, dtype=torch.float64)
    return X, D / D.norm(dim=1, keepdim=True)


def main() -> None:
    X, D = problem()
    rows, atoms = X.numpy(), D.numpy()

    def ours() -> Tensor:
        return omp(X, D, n_nonzero=NONZEROS)

    def scikit_learn() -> np.ndarray:
        # what sparse_encode(algorithm="omp") calls, less its overhead
        return orthogonal_mp_gram(atoms @ atoms.T, atoms @ rows.T, n_nonzero_coefs=NONZEROS).T

    torch.testing.assert_close(ours(), torch.from_numpy(scikit_learn()), rtol=1e-9, atol=1e-11)
    peer = Peer(scikit_learn, version("scikit-learn"), bar=10.0)
    write(
        race(
            "omp",
            "orthogonal matching pursuit",
            "5000 x 64, 128 atoms, 5 nonzeros",
            ours=ours,
            peers={"scikit-learn": peer},
        ),
        __file__,
    )


if __name__ == "__main__":
    main()
