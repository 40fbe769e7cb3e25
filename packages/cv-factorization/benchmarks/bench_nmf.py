"""NMF of 2000 samples with 784 features, rank 49, beside scikit-learn's coordinate descent.

Both start from the same singular vectors; ours takes as many sweeps as give it no larger error.
"""

from __future__ import annotations

import argparse
import warnings
from importlib.metadata import version

import numpy as np
from cv_core.random import numpy_generator
from cv_core.testing.race import Peer, race, write
from cv_factorization.nonnegative.nmf import NMF
from sklearn import decomposition

SWEEPS = 20


def data(samples: int, features: int, rank: int) -> np.ndarray:
    """Parts that are mostly zero, mixed, with noise."""
    rng = numpy_generator(0, "nmf")
    codes = rng.gamma(1.0, size=(samples, rank)) * (rng.random((samples, rank)) < 0.3)
    atoms = rng.gamma(1.0, size=(rank, features)) * (rng.random((rank, features)) < 0.2)
    return codes @ atoms + 0.1 * rng.random((samples, features))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="check the outputs on little data")
    small = parser.parse_args().small
    warnings.simplefilter("ignore")  # both warn that they take all sweeps, as they are asked to
    shape = (200, 80, 8) if small else (2000, 784, 49)
    X = data(*shape)
    options = {"init": "nndsvda", "tol": 0, "random_state": 0}

    def peer() -> decomposition.NMF:
        return decomposition.NMF(shape[2], max_iter=SWEEPS, **options).fit(X)

    theirs = peer().reconstruction_err_
    course = NMF(shape[2], max_iter=SWEEPS, **options).fit(X).objective_
    enough = np.flatnonzero(np.sqrt(course) <= theirs)
    assert len(enough), (course[-1] ** 0.5, theirs)
    sweeps = max(1, int(enough[0]))

    def ours() -> NMF:
        return NMF(shape[2], max_iter=sweeps, **options).fit(X)

    assert ours().reconstruction_err_ <= theirs * (1 + 1e-6)
    if small:
        return
    peers = {
        "scikit-learn": Peer(
            peer,
            version("scikit-learn"),
            bar=1.0,
            note=f"solver='cd', {SWEEPS} sweeps; ours needs {sweeps} for no larger error",
        )
    }
    given = f"{shape[0]} x {shape[1]}, rank {shape[2]}"
    write(race("nmf", "NMF by HALS", given, ours=ours, peers=peers), __file__)


if __name__ == "__main__":
    main()
