"""Online dictionary learning, ten passes over 5000 samples of 64 numbers, beside scikit-learn."""

from __future__ import annotations

import warnings
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from cv_core.random import numpy_generator
from cv_core.testing.race import Peer, race, write
from cv_factorization.sparse.coding import lasso_fista, lasso_objective
from cv_factorization.sparse.online import OnlineDictionaryLearning
from sklearn.decomposition import MiniBatchDictionaryLearning

PASSES = 10
ALPHA = 1.0


def samples(n: int = 5000, d: int = 64) -> np.ndarray:
    return numpy_generator(0, "dictionary").standard_normal((n, d))


def objective(X: np.ndarray, atoms: np.ndarray) -> float:
    """The mean objective with the best codes for these atoms."""
    rows, D = torch.from_numpy(X), torch.from_numpy(atoms)
    codes = lasso_fista(rows, D, ALPHA, tol=1e-6)
    return float(lasso_objective(rows, D, codes, ALPHA).mean())


def ours(X: np.ndarray, count: int) -> np.ndarray:
    model = OnlineDictionaryLearning(count, alpha=ALPHA, max_iter=PASSES, tol=0, random_state=0)
    return model.fit(X).components_


def scikit_learn(X: np.ndarray, count: int, algorithm: str) -> np.ndarray:
    model = MiniBatchDictionaryLearning(
        count,
        alpha=ALPHA,
        batch_size=256,
        max_iter=PASSES,
        tol=0.0,
        max_no_improvement=None,
        fit_algorithm=algorithm,
        random_state=0,
    )
    return model.fit(X).components_


def compared(X: np.ndarray, count: int) -> dict[str, float]:
    """Everyone's objective; ours must not be the worse one."""
    found = {"ours": objective(X, ours(X, count))}
    for algorithm in ("lars", "cd"):
        found[algorithm] = objective(X, scikit_learn(X, count, algorithm))
        assert found["ours"] <= 1.001 * found[algorithm], found
    return found


def main() -> None:
    warnings.simplefilter("ignore")  # the peer's own, about its codes
    X = samples()
    found = compared(X, 128)
    print("mean objectives:", found)
    peers = {
        f"scikit-learn, {algorithm}": Peer(
            partial(scikit_learn, X, 128, algorithm),
            version("scikit-learn"),
            bar=10.0,
            repeats=repeats,
            note=f"objective {found[algorithm]:.3f} against our {found['ours']:.3f}",
        )
        for algorithm, repeats in (("lars", 2), ("cd", 5))
    }
    write(
        race(
            "online_dictionary",
            "online dictionary learning",
            "5000 x 64, 128 atoms, 10 passes in batches of 256",
            ours=partial(ours, X, 128),
            peers=peers,
            repeats=7,
        ),
        __file__,
    )


if __name__ == "__main__":
    main()
