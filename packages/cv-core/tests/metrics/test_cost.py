"""Costs against counts done by hand."""

import subprocess
import sys
import time

import pytest
import torch
from cv_core.metrics.cost import (
    PeakMemory,
    count_macs,
    count_parameters,
    latency,
    state_bytes,
)
from torch import nn


def test_parameters_by_hand_and_shared_ones_once():
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.BatchNorm1d(4))
    assert count_parameters(model) == 16 + 8
    first.weight.requires_grad_(False)
    assert count_parameters(model, trainable_only=True) == 8


def test_lazy_layers_are_refused():
    with pytest.raises(ValueError, match="lazy"):
        count_parameters(nn.LazyLinear(3))


def test_state_bytes_by_hand():
    norm = nn.BatchNorm1d(4)  # weight, bias, mean, variance of 4 bytes, and one int64 counter
    assert state_bytes(norm) == 4 * 4 * 4 + 8
    tied = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    assert state_bytes(nn.ModuleList([tied, tied])) == 9 * 8


def test_macs_of_a_strided_grouped_convolution():
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    # output 5 x 7, each value from 2 channels of 3 x 3
    assert count_macs(layer, torch.zeros(2, 4, 10, 14)) == 2 * 8 * 5 * 7 * 2 * 9


class Functional(nn.Module):
    def forward(self, x):
        return torch.einsum("bnd,bmd->bnm", x, x)


def test_macs_of_functional_calls():
    assert count_macs(Functional(), torch.zeros(3, 5, 7)) == 3 * 5 * 5 * 7


def test_macs_of_fused_layers_are_not_zero():
    tokens = torch.zeros(1, 5, 16)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    projections = 5 * 16 * 16 * 4
    attention = 2 * 5 * 5 * 16
    feed_forward = 2 * 5 * 16 * 32
    assert count_macs(layer, tokens) == projections + attention + feed_forward
    stacked = nn.LSTM(16, 8, num_layers=2, bidirectional=True, batch_first=True)
    first, second = 4 * 8 * (16 + 8), 4 * 8 * (2 * 8 + 8)
    assert count_macs(stacked, tokens) == 5 * 2 * (first + second)
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_leave_the_model_and_the_random_stream_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    model[1].eval()
    flags = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    count_macs(model, torch.ones(1, 1, 5, 5))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(stream, torch.get_rng_state())


def test_flags_are_restored_after_an_error():
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        count_macs(model, torch.zeros(1, 4))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_latency_measures_and_restores_the_threads():
    threads = torch.get_num_threads()
    calls = []

    def work():
        calls.append(torch.get_num_threads())
        time.sleep(0.002)

    result = latency(work, warmup=2, repeats=5, threads=1)
    assert calls == [1] * 7
    assert torch.get_num_threads() == threads
    assert result.median_ms >= 2.0
    assert result.iqr_ms >= 0.0


@pytest.mark.parametrize("bad", [{"repeats": 1}, {"warmup": -1}, {"threads": 0}])
def test_latency_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        latency(lambda: None, **bad)


BLOCK = """
import sys, time
from pathlib import Path
from cv_core.metrics import cost
if sys.argv[1] == "sampled":
    cost._CLEAR = Path("/nowhere/clear_refs")
with cost.PeakMemory(interval=0.001) as memory:
    block = bytearray(b"\\1") * (64 * 1024 * 1024)
    time.sleep(1.0 if sys.argv[1] == "sampled" else 0.0)  # the sampling thread may wait for a core
    del block
with cost.PeakMemory(interval=0.001) as later:
    pass
print(memory.mib, memory.added_mib, later.added_mib)
"""


@pytest.mark.parametrize("way", ["counted", "sampled"])
def test_peak_memory_sees_a_block_that_is_gone(way):
    """In a process of its own: what others free meanwhile would be subtracted."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK, way], capture_output=True, text=True, check=True
    )
    peak, added, later = map(float, done.stdout.split())
    assert 60.0 < added < 80.0
    assert peak > added
    assert later < 4.0, "the second block starts from nothing"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_cuda():
    with PeakMemory("cuda") as memory:
        block = torch.ones(16 * 1024 * 1024, device="cuda")
        del block
    assert memory.added_mib == pytest.approx(64.0)
