"""Seeds and generators: every draw comes from a named stream, the global generators stay untouched.

A stream is derived from a seed and names, so that two streams are independent, the order in which
they are made does not matter, and a method and its baseline that ask for the same name see the same
numbers (paired comparisons).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: object) -> int:
    """Derive a 63-bit seed from a seed and any number of names.

    Args:
        seed: A whole number.
        *names: Whatever tells this stream from others; their ``str`` counts.

    Returns:
        A seed in ``[0, 2**63)`` that is the same on every machine and in every process.
    """
    text = "\x1f".join(str(part) for part in (int(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """Return NumPy's generator for a named stream of a seed."""
    return np.random.default_rng(derive_seed(seed, *names))


def torch_generator(
    seed: int, *names: object, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return torch's generator for a named stream of a seed, on a device."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Run a block with torch's global CPU generator set to a stream, then put it back.

    For code that takes no generator, above all the initialisation of ``torch.nn`` layers. Only
    torch's CPU generator is set: build the model on the CPU and move it afterwards.

    Args:
        seed: A whole number.
        *names: Names of the stream.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would also reseed every accelerator, which fork_rng([]) keeps
        torch.default_generator.manual_seed(derive_seed(seed, *names))
        yield
