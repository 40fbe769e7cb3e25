"""Torch's global generators inside a stream."""

import pytest
import torch
from cv_core.engine.rng import global_stream

CPU = torch.device("cpu")


def test_a_stream_repeats_and_leaves_no_trace():
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        with global_stream(seed, CPU):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.get_rng_state())


def test_put_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative dimension"), global_stream(1, CPU):
        torch.rand(-1)
    assert torch.equal(before, torch.get_rng_state())
