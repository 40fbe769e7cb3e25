"""What a network costs before and after pruning: size, arithmetic, and the time that it takes.

Fewer weights do not make a network faster by themselves. ``measure`` times it, and says what the
probable reason is where pruning did not pay.

Example:
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> before = measure(model, torch.zeros(1, 64), repeats=20)
    >>> before.parameters, before.macs
    (4810, 4736)
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cv_core.checks import check_integer
from cv_core.engine.evaluation import modes_kept
from cv_core.metrics.cost import PeakMemory, count_macs, count_parameters, latency
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cv_pruning.masks import masks_of

_WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one network costs, alone or beside the one that it came from.

    Args:
        parameters: Scalars in the parameters; a shared one counts once.
        nonzero_parameters: Those of them that the network computes with and that are not zero.
        masked: Whether masks (``cv_pruning.masks``) are applied in every call.
        macs: Multiply-accumulates of the call.
        file_bytes: Size of a safetensors file of its state, masks included.
        latency_ms: Median time of a call, in milliseconds.
        latency_interval_ms: 95 % interval of the median, from order statistics.
        peak_memory_mib: What the first call added at its peak, in MiB; see
            ``cv_core.metrics.cost.PeakMemory``. On a CPU it is that of the process, and memory
            that the allocator already holds does not count.
        threads: Torch's threads during the measurement.
        device: Where it was measured.
        shapes: Shapes of the example inputs.
        reference: What it is compared with.
        notes: Why it is not faster than the reference, if it is not.
    """

    parameters: int
    nonzero_parameters: int
    masked: bool
    macs: int
    file_bytes: int
    latency_ms: float
    latency_interval_ms: tuple[float, float]
    peak_memory_mib: float
    threads: int
    device: str
    shapes: tuple[tuple[int, ...], ...]
    reference: Measurement | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratios(self) -> dict[str, float]:
        """Every number divided by the reference's; empty without one, NaN where that is 0."""
        if self.reference is None:
            return {}
        pairs = zip(_numbers(self).items(), _numbers(self.reference).values(), strict=True)
        return {name: mine / other if other else math.nan for (name, mine), other in pairs}

    def __str__(self) -> str:
        low, high = self.latency_interval_ms
        place = f"{self.device}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        columns = [_numbers(m) for m in (self.reference, self) if m is not None]
        rows = []
        for name in columns[0]:
            cells = "".join(f"{column[name]:>16,.{_DIGITS.get(name, 0)}f}" for column in columns)
            ratio = f"{self.ratios[name]:>9.3f}" if self.reference else ""
            rows.append(f"{name:<22}{cells}{ratio}")
        rows.append(f"95 % interval of the latency: {low:.3f} to {high:.3f} ms ({place})")
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)])


_DIGITS = {"latency_ms": 3, "peak_memory_mib": 2}


def _numbers(measured: Measurement) -> dict[str, float]:
    names = (
        "parameters", "nonzero_parameters", "macs", "file_bytes", "latency_ms", "peak_memory_mib",
    )  # fmt: skip
    return {name: getattr(measured, name) for name in names}


def measure(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    *,
    threads: int = 1,
    repeats: int = 50,
    reference: Measurement | None = None,
) -> Measurement:
    """Measure a network in evaluation mode, without gradients.

    The time is that of whole calls after three that do not count, on CUDA until the device has
    finished. Other work on the machine widens the interval. The median's interval holds whatever
    the distribution: it lies between two of the sorted times, whose ranks the binomial
    distribution of 1/2 gives.

    Args:
        model: Any network on one device. Flags, global generators and threads are restored.
        example_inputs: A tensor, or the arguments of one call, on the model's device.
        threads: Torch's threads during the measurement.
        repeats: Calls that count, at least 6: fewer have no interval of 95 %.
        reference: A measurement of the network before pruning, under the same conditions.

    Returns:
        The costs; with a reference also ratios, and notes where nothing was gained in time.

    Raises:
        ValueError: If the model or the inputs are on several devices, the inputs do not fit, or
            the reference was measured under other conditions.
    """
    check_integer("measure", "threads", threads, low=1)
    check_integer("measure", "repeats", repeats, low=6)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    device = _device(model, inputs)
    shapes = tuple(tuple(leaf.shape) for leaf in _tensors(inputs))
    if reference is not None:
        _check_conditions(reference, threads, str(device), shapes)
    with _as_deployed(model, device, threads):
        with PeakMemory(device) as memory:
            try:
                model(*inputs)
            except Exception as error:
                raise ValueError(f"measure: the model fails on example_inputs: {error}") from error
        times = latency(partial(model, *inputs), warmup=_WARM_UP, repeats=repeats).times_ms
        macs = count_macs(model, *inputs)
    low, median, high = median_interval(times)
    masks = masks_of(model)
    found = Measurement(
        parameters=count_parameters(model),
        nonzero_parameters=_nonzero(model, masks),
        masked=bool(masks),
        macs=macs,
        file_bytes=_file_bytes(model),
        latency_ms=median,
        latency_interval_ms=(low, high),
        peak_memory_mib=memory.added_mib,
        threads=threads,
        device=str(device),
        shapes=shapes,
    )
    return found if reference is None else compare(reference, found)


def compare(before: Measurement, after: Measurement) -> Measurement:
    """Return the second measurement with the first as its reference, and with notes.

    Raises:
        ValueError: If threads, device or shapes of the inputs differ.
    """
    _check_conditions(before, after.threads, after.device, after.shapes)
    return replace(after, reference=before, notes=tuple(_notes(before, after)))


def median_interval(times: Sequence[float]) -> tuple[float, float, float]:
    r"""Return the median with a 95 % interval that holds for every distribution.

    The number of :math:`n` draws below the true median is binomial; with the greatest :math:`k`
    such that :math:`P(X < k) \le 0.025` the interval is that from the k-th smallest to the k-th
    largest.

    Args:
        times: At least 6 numbers.

    Returns:
        Lower end, median, upper end.
    """
    count = len(times)
    check_integer("median_interval", "len(times)", count, low=6)
    ordered, below, rank = sorted(times), 0.0, 0
    while (below := below + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    half = count // 2
    median = ordered[half] if count % 2 else (ordered[half - 1] + ordered[half]) / 2
    return ordered[rank - 1], median, ordered[count - rank]


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _device(model: nn.Module, inputs: tuple[Any, ...]) -> torch.device:
    state = [*model.parameters(), *model.buffers()]
    places = {tensor.device for tensor in [*state, *_tensors(inputs)]}
    if len(places) > 1:
        listed = ", ".join(sorted(map(str, places)))
        raise ValueError(
            f"measure: model and example_inputs must be on one device; they are on {listed}."
        )
    return places.pop() if places else torch.device("cpu")


def _check_conditions(
    reference: Measurement, threads: int, device: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    theirs = (reference.threads, reference.device, reference.shapes)
    if theirs != (threads, device, shapes):
        raise ValueError(
            "measure: the reference must be measured with the same threads, device and input "
            f"shapes; it has {theirs}, this one {(threads, device, shapes)}."
        )


@contextmanager
def _as_deployed(model: nn.Module, device: torch.device, threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    devices = [device] if device.type == "cuda" else []
    with modes_kept(model), torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _nonzero(model: nn.Module, masks: dict[str, Tensor]) -> int:
    count = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        stored = f"{path}.parametrizations" if path else "parametrizations"
        dense = model.get_parameter(f"{stored}.{attribute}.original")
        count -= int(dense[~mask].count_nonzero())
    return count


def _file_bytes(model: nn.Module) -> int:
    from safetensors.torch import save_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_model(model, str(path))
        return path.stat().st_size


def _notes(before: Measurement, after: Measurement) -> Iterator[str]:
    if after.latency_interval_ms[1] < before.latency_interval_ms[0]:
        return
    yield (
        f"latency did not fall beyond the 95 % intervals: {before.latency_ms:.3f} ms before, "
        f"{after.latency_ms:.3f} ms after."
    )
    zeros = 1.0 - after.nonzero_parameters / max(1, after.parameters)
    if after.macs >= before.macs:
        if zeros > 0.01:
            yield (
                f"{100 * zeros:.0f} % of the weights are zero, but dense kernels multiply by zero "
                "as fast as by anything else. Remove channels instead of masking weights."
            )
        yield "the multiply-accumulates did not fall, so that there is no less to compute."
    elif after.macs > 0.9 * before.macs:
        share = 100 * (1 - after.macs / before.macs)
        yield f"only {share:.1f} % of the multiply-accumulates are gone."
    elif after.latency_ms < 1.0:
        yield "a call takes less than 1 ms, most of it overhead; measure a larger batch."
    else:
        yield (
            "the multiply-accumulates fell: the time goes into memory traffic or into widths that "
            "the kernels do not like; keep multiples of 8."
        )
    if after.masked:
        yield "masks are applied in every call; export_masks bakes them into the weights."
    for name, one in (("before", before), ("after", after)):
        low, high = one.latency_interval_ms
        if high - low > 0.2 * one.latency_ms:
            yield f"the interval {name} is wide: is the machine busy? Measure with more repeats."
