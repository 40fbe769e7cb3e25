"""What a network costs: parameters, multiply-accumulates, bytes, time and peak memory."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from cv_core.checks import check_integer, check_range
from cv_core.optional import require

_MIB = 1024.0 * 1024.0


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Count the parameters of a network; a shared parameter counts once.

    Args:
        model: The network.
        trainable_only: Whether to leave out parameters with ``requires_grad=False``.

    Returns:
        The number of scalars.

    Raises:
        ValueError: If a lazy layer has not seen data yet.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    parameters = list(model.parameters())
    if any(nn.parameter.is_lazy(parameter) for parameter in parameters):
        raise ValueError("count_parameters: model has lazy layers; run it once on data first.")
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable_only)


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of a network's state: parameters and saved buffers, shared ones once.

    Example:
        >>> state_bytes(nn.Linear(3, 2, dtype=torch.float16))
        16
    """
    entries = model.state_dict(keep_vars=True).values()
    tensors = {id(entry): entry for entry in entries if isinstance(entry, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def count_macs(model: nn.Module, *inputs: Any) -> int:
    """Count the multiply-accumulates of one forward call in evaluation mode.

    Matrix products, convolutions and attention count, whatever module or function calls them;
    element-wise work and pooling do not. One multiply-accumulate is two of the floating-point
    operations that ``torch.utils.flop_counter`` counts.

    Args:
        model: The network. Its train/eval flags are restored, and no gradient is computed.
        *inputs: Arguments of the call, on the model's device; a batch of one for the cost of one
            example.

    Returns:
        The number of multiply-accumulates.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10))
        21600
    """
    from torch.utils.flop_counter import FlopCounterMode

    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(_unfused())
        # Stochastic layers may draw; the global stream must go on as if nothing had happened.
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        stack.enter_context(torch.no_grad())
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=_FUSED))
        model(*inputs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _unfused() -> Iterator[None]:
    """Switch off fused transformer layers, which the counter would see as nothing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _recurrent_flops(inputs: Sequence[int], *weights: Any, **_: Any) -> int:
    """Count a fused recurrent layer: every weight matrix meets every vector of the sequence.

    The counter hands over shapes instead of tensors, here (T, B, F) or, packed, (T, F), then
    weights and biases one by one (oneDNN) or in a list (cuDNN), then what does not count.
    """
    shapes = weights[0] if isinstance(weights[0][0], Sequence) else weights[:2]
    matrices = (math.prod(shape) for shape in shapes if len(shape) == 2)
    return 2 * math.prod(inputs[:-1]) * sum(matrices)


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Count fused attention on the CPU, which older torch does not: Q K^T and its product with V.

    Shapes are (B, heads, tokens, channels).
    """
    pairs = math.prod(query[:3]) * key[2]
    return 2 * pairs * (query[3] + value[3])


_FUSED = {
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})


@dataclass(frozen=True)
class Latency:
    """Time of one call.

    Args:
        median_ms: Median over the repeats, in milliseconds.
        iqr_ms: Distance between the quartiles, in milliseconds.
        times_ms: The times themselves, in the order measured.
    """

    median_ms: float
    iqr_ms: float
    times_ms: tuple[float, ...] = ()


def latency(
    fn: Callable[[], object], *, warmup: int = 3, repeats: int = 20, threads: int | None = None
) -> Latency:
    """Measure the time of a call; on CUDA until the device has finished.

    Args:
        fn: What to call, without arguments.
        warmup: Calls before the first that counts.
        repeats: Calls that count; at least 2.
        threads: Number of torch's threads during the measurement; unchanged by default.

    Returns:
        Median, interquartile range and the times.
    """
    check_integer("latency", "warmup", warmup, low=0)
    check_integer("latency", "repeats", repeats, low=2)
    if threads is not None:
        check_integer("latency", "threads", threads, low=1)
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        for _ in range(warmup):
            fn()
        times = [_time_ms(fn) for _ in range(repeats)]
    finally:
        torch.set_num_threads(before)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, high - low, tuple(times))


def _time_ms(fn: Callable[[], object]) -> float:
    _synchronise()
    start = time.perf_counter()
    fn()
    _synchronise()
    return (time.perf_counter() - start) * 1000.0


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class PeakMemory:
    """Measure the peak memory of a ``with`` block, in MiB.

    On CUDA it is what torch's allocator held at the peak. Blocks on one device must not be nested.
    On the CPU it is the resident set of the whole process, Python and its libraries included: on
    Linux from the kernel's own peak counter, which the block's start resets, elsewhere sampled by a
    thread, so that a peak shorter than ``interval`` can be missed.

    Args:
        device: ``"cpu"`` or a CUDA device.
        interval: Seconds between two samples, where memory is sampled.

    Attributes:
        mib: The peak; NaN until the block has ended.
        added_mib: The peak less what was held at the block's start; NaN until the block has ended.
    """

    def __init__(self, device: torch.device | str = "cpu", *, interval: float = 0.01) -> None:
        check_range("PeakMemory", "interval", interval, low=0.0, low_open=True)
        self.device = torch.device(device)
        self.interval = interval
        self.mib = float("nan")
        self.added_mib = float("nan")

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        else:
            self._counted = _reset_peak()
            self._start = self._peak = _resident_bytes()
            if not self._counted:
                self._done = threading.Event()
                self._thread = threading.Thread(target=self._sample, daemon=True)
                self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._peak = torch.cuda.max_memory_allocated(self.device)
        elif self._counted:
            self._peak = _status_bytes("VmHWM")
        else:
            self._done.set()
            self._thread.join()
        self.mib = self._peak / _MIB
        self.added_mib = (self._peak - self._start) / _MIB

    def _sample(self) -> None:
        more = True
        while more:  # the last sample is taken after the block's end has been signalled
            more = not self._done.wait(self.interval)
            self._peak = max(self._peak, _resident_bytes())


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _reset_peak() -> bool:
    """Let the kernel's peak counter start anew; tell whether there is one."""
    try:
        _CLEAR.write_text("5")
    except OSError:  # not Linux, or a container that forbids it
        return False
    return True


def _status_bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _resident_bytes() -> int:
    if _STATUS.exists():
        return _status_bytes("VmRSS")
    psutil = require(
        "psutil", package="cv-core", extra="lab", purpose="peak memory on this operating system"
    )
    return int(psutil.Process().memory_info().rss)
