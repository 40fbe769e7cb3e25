"""Named streams: the same everywhere, independent of each other, nothing global touched."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from cv_core.random import derive_seed, numpy_generator, seeded, torch_generator


def test_seed_is_the_documented_hash():
    digest = hashlib.sha256(b"3\x1fnoise\x1f7").digest()
    assert derive_seed(3, "noise", 7) == int.from_bytes(digest[:8], "big") // 2
    assert all(0 <= derive_seed(seed) < 2**63 for seed in range(100))


def test_seed_is_the_same_in_another_process():
    code = "from cv_core.random import derive_seed; print(derive_seed(3, 'noise'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(3, "noise")


def test_names_and_seeds_tell_streams_apart():
    streams = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "a", 1), (1, "a")]
    assert len({derive_seed(*stream) for stream in streams}) == len(streams)
    drawn = [torch.rand(4, generator=torch_generator(*stream)).tolist() for stream in streams]
    assert len({tuple(row) for row in drawn}) == len(streams)


def test_equal_names_draw_equal_numbers():
    for make in (numpy_generator, torch_generator):
        first, second = make(5, "x"), make(5, "x")
        if isinstance(first, torch.Generator):
            assert torch.equal(torch.rand(9, generator=first), torch.rand(9, generator=second))
        else:
            assert np.array_equal(first.random(9), second.random(9))


def test_seeded_block_draws_its_stream_and_puts_the_generator_back():
    torch.rand(3)
    before = torch.get_rng_state()
    with seeded(1, "weights"):
        inside = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(4, generator=torch_generator(1, "weights")))


def test_seeded_block_puts_the_generator_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shape"), seeded(1):
        torch.rand(3).view(2, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_seeded_block_leaves_the_cuda_generator():
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()
    with seeded(1):
        torch.rand(1)
    assert torch.equal(torch.cuda.get_rng_state(), before)
