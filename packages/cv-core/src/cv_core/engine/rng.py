"""Torch's global generators, which layers such as dropout draw from, set for a while and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def global_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Set torch's global generators for a ``with`` block, then put them back as they were.

    Args:
        seed: Seed of the CPU's generator and, if ``device`` is one, of the CUDA device's.
        device: Where the block computes.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


class RandomState:
    """The state of torch's global generators as a part of a checkpoint.

    Loading it changes the global generators: do so inside ``global_stream``.

    Args:
        device: The CUDA device whose generator counts besides the CPU's, or a CPU device.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the generators' states."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators; a state from a machine without CUDA leaves CUDA's as it is."""
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
