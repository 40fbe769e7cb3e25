from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cv_core.testing.tensors import global_state
from cv_pruning.masks import apply_masks, export_masks, maskable_weights, unstructured_masks
from cv_pruning.measurement import Measurement, compare, measure, median_interval
from safetensors.torch import save_file
from torch import nn


def network(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


X = torch.zeros(2, 3, 8, 8)


def made(**changes: object) -> Measurement:
    plain = Measurement(
        parameters=1000, nonzero_parameters=1000, masked=False, macs=10**6, file_bytes=4100,
        latency_ms=10.0, latency_interval_ms=(9.8, 10.2), peak_memory_mib=1.0, threads=1,
        device="cpu", shapes=((1, 3),),
    )  # fmt: skip
    return replace(plain, **changes)


def test_counts_of_a_known_network(tmp_path) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:4] = 0.0
        model[1].bias.fill_(1.0)
    found = measure(model, X, repeats=6)
    assert found.parameters == 16 * 27 + 16 + 32 + 170
    assert found.nonzero_parameters == found.parameters - 4 * 27
    assert found.macs == 2 * (16 * 27 * 64 + 160)
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    # the file of a module names its format, which the header pads to a multiple of 8 bytes
    assert 0 <= found.file_bytes - (tmp_path / "state.safetensors").stat().st_size <= 64
    low, high = found.latency_interval_ms
    assert 0 < low <= found.latency_ms <= high
    assert (found.threads, found.device, found.shapes) == (1, "cpu", ((2, 3, 8, 8),))
    assert math.isfinite(found.peak_memory_mib)
    assert found.notes == ()
    assert found.ratios == {}


def test_interval_against_the_binomial_table() -> None:
    # ranks of the sign test's interval, as tabulated: n = 6: 1, 10: 2, 20: 6, 50: 18, 100: 40
    for count, rank in ((6, 1), (10, 2), (20, 6), (50, 18), (100, 40)):
        times = [float(value) for value in range(count, 0, -1)]
        assert median_interval(times) == (rank, (count + 1) / 2, count + 1 - rank)


def test_interval_covers_the_median() -> None:
    draws = torch.rand(2000, 25, generator=torch.Generator().manual_seed(0)).pow(3)
    inside = 0
    for row in draws.tolist():
        low, _, high = median_interval(row)
        inside += low <= 0.125 <= high
    assert 0.945 <= inside / 2000 <= 0.97  # exactly 0.9567


def test_masked_and_baked_networks_are_told_apart() -> None:
    model = network()
    dense = measure(model, X, repeats=6)
    scores = {name: weight.detach().abs() for name, weight in maskable_weights(model).items()}
    apply_masks(model, unstructured_masks(scores, 0.75))
    masked = measure(model, X, repeats=6)
    export_masks(model)
    baked = measure(model, X, repeats=6)
    gone = round(0.75 * 16 * 27) + round(0.75 * 160)
    assert dense.nonzero_parameters - masked.nonzero_parameters == gone
    assert masked.nonzero_parameters == baked.nonzero_parameters
    assert masked.parameters == baked.parameters == dense.parameters
    assert masked.macs == baked.macs == dense.macs
    assert (dense.masked, masked.masked, baked.masked) == (False, True, False)
    assert masked.file_bytes > baked.file_bytes == dense.file_bytes


def test_narrow_network_beside_the_wide_one() -> None:
    wide = measure(network(32), X, repeats=6)
    narrow = measure(network(16), X, repeats=6, reference=wide)
    assert narrow.ratios["macs"] == 0.5
    assert "0.500" in str(narrow)
    assert "parameters" in str(narrow)


def test_shared_weights_are_saved_once() -> None:
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False))
    apart = measure(model, torch.zeros(1, 40), repeats=6)
    model[1].weight = model[0].weight
    tied = measure(model, torch.zeros(1, 40), repeats=6)
    assert (apart.parameters, tied.parameters) == (3200, 1600)
    assert apart.file_bytes - tied.file_bytes > 6000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nonzero_parameters": 100}, "90 % of the weights are zero"),
        ({"nonzero_parameters": 100, "masked": True}, "export_masks"),
        ({"parameters": 500, "macs": 960_000}, "only 4.0 % of the multiply-accumulates"),
        ({"macs": 400_000}, "memory traffic"),
        ({"latency_interval_ms": (8.0, 12.0), "macs": 400_000}, "interval after is wide"),
    ],
)
def test_notes_say_why_it_is_not_faster(changes: dict, expected: str) -> None:
    found = compare(made(), made(**changes))
    assert any("did not fall" in note for note in found.notes)
    assert any(expected in note for note in found.notes)
    assert all(note in str(found) for note in found.notes)


def test_notes_of_small_networks_and_of_gains() -> None:
    small = {"latency_ms": 0.1, "latency_interval_ms": (0.09, 0.11)}
    assert any("overhead" in n for n in compare(made(**small), made(macs=10, **small)).notes)
    faster = made(latency_ms=5.0, latency_interval_ms=(4.9, 5.1), macs=10, nonzero_parameters=9)
    assert compare(made(), faster).notes == ()
    assert compare(made(), faster).ratios["latency_ms"] == 0.5
    touching = made(latency_ms=9.5, latency_interval_ms=(9.2, 9.8))
    assert compare(made(), touching).notes


def test_nothing_is_left_changed() -> None:
    model = network()
    model[3].eval()
    flags = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with global_state() as changed:
        measure(model, X, repeats=6, threads=2)
        assert not changed()

        with pytest.raises(ValueError, match=r"fails on example_inputs: .* to have 3 channels"):
            measure(model, X[:, :2], repeats=6, threads=2)
        assert not changed()
    assert [part.training for part in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_errors() -> None:
    model = network()
    with pytest.raises(ValueError, match="repeats must be at least 6"):
        measure(model, X, repeats=5)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        measure(model, X, threads=0)
    with pytest.raises(ValueError, match="on one device; they are on cpu, meta"):
        measure(model, X.to("meta"))
    model[6].to("meta")
    with pytest.raises(ValueError, match="on one device"):
        measure(model, X)
    with pytest.raises(ValueError, match="same threads, device and input"):
        compare(made(), made(threads=2))
    with pytest.raises(ValueError, match="same threads, device and input"):
        measure(network(), X, reference=made())
