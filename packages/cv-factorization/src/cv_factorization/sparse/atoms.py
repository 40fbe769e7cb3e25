"""Atoms: how they are taken, started, measured and decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cv_core.checks import check_finite, check_shape
from jaxtyping import Float
from torch import Tensor

from cv_factorization._shared.arrays import drawn, like_given

Array = np.ndarray | Tensor
"""What estimators here take."""


def as_atoms(owner: str, name: str, atoms: Any, like: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """Return given atoms as a tensor of the samples' type and device.

    Raises:
        ValueError: If their shape does not fit the samples, or they are not finite.
    """
    tensor = torch.as_tensor(atoms, dtype=like.dtype, device=like.device)
    check_shape(owner, name, tensor, "m d", d=like.shape[1])
    check_finite(owner, name, tensor)
    return tensor.detach()


def unit_rows(rows: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """Return rows at unit length, and their lengths; rows of zeros stay."""
    # by the largest entry first: the square of 1e-200 would be 0
    peak = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / torch.where(peak > 0, peak, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0), (peak * length)[:, 0]


def starting_atoms(
    owner: str, X: Float[Tensor, "n d"], count: int, init: Any, rng: np.random.Generator
) -> Float[Tensor, "m d"]:
    """Return the atoms to start from, at unit length.

    Args:
        owner: The class that asks.
        X: Samples.
        count: How many atoms.
        init: Atoms (count, d), or ``"samples"``: different samples in random order, and random
            directions where there are too few samples or they are zero.
        rng: Draws on the CPU, so that the device does not change the start.
    """
    if not isinstance(init, str):
        given = as_atoms(owner, "init", init, X)
        check_shape(owner, "init", given, "m d", m=count)
        return unit_rows(given)[0]
    order = rng.permutation(len(X))[:count]
    atoms = X.new_zeros(count, X.shape[1])
    atoms[: len(order)] = X[torch.from_numpy(order).to(X.device)]
    return fill_zero_atoms(unit_rows(atoms)[0], rng)


def fill_zero_atoms(atoms: Float[Tensor, "m d"], rng: np.random.Generator) -> Tensor:
    """Replace atoms that are zero by random directions."""
    empty = ~atoms.any(dim=1)
    return torch.where(empty[:, None], unit_rows(drawn(rng, tuple(atoms.shape), atoms))[0], atoms)


def decode(owner: str, codes: Any, components: Any) -> Any:
    """Return codes times atoms, as an array or tensor like the codes."""
    tensor = codes if isinstance(codes, Tensor) else torch.as_tensor(codes)
    atoms = torch.as_tensor(components, dtype=tensor.dtype, device=tensor.device)
    check_shape(owner, "codes", tensor, "n m", m=len(atoms))
    return like_given(tensor @ atoms, codes)
