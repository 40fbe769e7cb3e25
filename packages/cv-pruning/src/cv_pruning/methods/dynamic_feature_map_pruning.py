r"""Feature maps that are almost all zero are found at run time and not loaded by the next layer.

Zhang, Liang, Glossner, Wang, Shi, Zhang: *Dynamic Runtime Feature Map Pruning*, PRCV 2021,
LNCS 13022, pp. 411-422.

On edge processors the traffic of feature maps between memory and compute unit dominates. After the
activation, elements and then whole maps :math:`x_c` of :math:`n = HW` elements are dropped:

.. math:: a(x) = \begin{cases} x & |x| > \epsilon \\ 0 & \text{else} \end{cases} \quad (1), \qquad
          \text{skip } c \iff \#\{|x_c| \le \epsilon\} \ge \lceil \rho n \rceil

with a threshold :math:`\epsilon \ge 0` and a density :math:`\rho = 0.99`. The next layer reads one
bit for each map and loads those that are left. In a video the bits of one frame are used again for
the :math:`t - 1` that follow, which saves, for :math:`k_{ij}` maps of side :math:`n_i` skipped in
layer :math:`i` and stage :math:`j`,

.. math:: R = \sum_i \sum_j (t - 1) \, k_{ij} \, n_i^2 \text{ elements per second.} \quad (2)

Weights stay as they are and nothing is trained. No speed-up in PyTorch is claimed: what is counted
is the traffic of a processor that skips whole maps.

Deviations from the paper, and why:

- Its listing counts elements *above* the threshold and would mark the densest maps; its own comment
  and its tables count those below, as here.
- Its text lets the saving of short stages converge to that of single images; by Eq. 2 it is 0 for
  :math:`t = 1`. Here ``recalibrate_every=1`` is the image mode of its tables (a map that is found
  is not loaded in the same image); above 1, Eq. 2 holds and the calibration frame is loaded whole.
- It does not say how a batch is pruned: here every image has its own bits.
- It does not say how often a map counts that several layers read: here, once for each read.

Example:
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    >>> with torch.no_grad():  # a channel that never fires
    ...     model[0].bias[2] = -100.0
    >>> with DynamicFeatureMapPruner(model, eps=0.0) as pruner, torch.no_grad():
    ...     out = model(torch.ones(2, 1, 8, 8))
    >>> pruner.report().layers["1"].skipped >= 2
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from cv_core.checks import check_floating, check_integer, check_range, check_shape
from cv_core.nn.surgery import Where, find
from cv_core.registry import Card, Example, Reference
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from cv_pruning.traffic import LayerTraffic, Output, Reads, TrafficReport

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish,
)  # fmt: skip
"""Classes of modules whose outputs are pruned by default."""

Choose = Callable[[Tensor, Tensor], Tensor]


def prunable_maps(
    x: Float[Tensor, "b c h w"], eps: float = 0.1, density: float = 0.99, *, relative: bool = False
) -> Bool[Tensor, "b c"]:
    r"""Mark the maps of which at least the share :math:`\rho` lies within the threshold.

    Args:
        x: Activations ``(B, C, H, W)``.
        eps: Threshold of the absolute value, at least 0.
        density: Share of elements, in (0, 1]. Of :math:`n` elements
            :math:`\lceil \rho n \rceil` are needed: all of them for ``n < 100`` at 0.99.
        relative: Whether ``eps`` is in units of the deviation of each image's activations.

    Returns:
        ``(B, C)``, true for a map to skip. NaN lies above every threshold.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If a shape or an option is out of range.

    Example:
        >>> prunable_maps(torch.tensor([[[[0.0, 0.05]], [[0.0, 3.0]]]])).tolist()
        [[True, False]]
    """
    _check_maps("prunable_maps", x, eps, density)
    return _marks(_within(x, eps, relative=relative), density)


def map_statistics(
    x: Float[Tensor, "b c h w"], eps: float = 0.1, density: float = 0.99
) -> dict[str, float]:
    """Return the share of elements within the threshold and the share of prunable maps.

    Args:
        x: Activations ``(B, C, H, W)``.
        eps: Threshold, at least 0.
        density: Share of elements that makes a map prunable, in (0, 1].

    Returns:
        ``"element_sparsity"`` and ``"map_sparsity"``.

    Example:
        >>> map_statistics(torch.tensor([[[[0.0, 0.0]], [[0.0, 3.0]]]]), eps=0.0)
        {'element_sparsity': 0.75, 'map_sparsity': 0.5}
    """
    _check_maps("map_statistics", x, eps, density)
    small = _within(x, eps, relative=False)
    return {
        "element_sparsity": float(small.double().mean()),
        "map_sparsity": float(_marks(small, density).double().mean()),
    }


def _check_maps(owner: str, x: Tensor, eps: float, density: float) -> None:
    check_shape(owner, "x", x, "b c h w")
    check_floating(owner, "x", x)
    check_range(owner, "eps", eps, low=0.0)
    check_range(owner, "density", density, low=0.0, low_open=True, high=1.0)


def _within(x: Tensor, eps: float, *, relative: bool) -> Tensor:
    if relative:
        return x.abs() <= eps * x.std((1, 2, 3), correction=0, keepdim=True)
    return x.abs() <= eps


def _marks(small: Tensor, density: float) -> Tensor:
    elements = small.shape[2] * small.shape[3]
    needed = math.ceil(density * elements - 1e-9)  # 0.99 * 100 may be a hair above 99
    return small.sum((2, 3)) >= needed


def conv2d_skip(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "o i kh kw"],
    bias: Float[Tensor, " o"] | None,
    keep: Bool[Tensor, " c"],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Float[Tensor, "b o h2 w2"]:
    """Convolve the kept channels only: what zeroing the others gives, up to rounding.

    Without groups the other channels are neither read nor multiplied. With groups a group of which
    no channel is kept drops out, and its outputs are the bias.

    Args:
        x: Maps ``(B, C, H, W)``.
        weight: As in ``torch.nn.functional.conv2d``, ``(O, C / groups, kh, kw)``.
        bias: ``(O,)`` or none.
        keep: ``(C,)``, true for a channel to read. For a batch: those that any image needs.
        stride: Of the convolution.
        padding: Of the convolution.
        dilation: Of the convolution.
        groups: Of the convolution.

    Returns:
        ``(B, O, H', W')``.

    Raises:
        TypeError: If ``x`` is not a floating tensor or ``keep`` not a boolean one.
        ValueError: If shapes do not fit.
    """
    check_integer("conv2d_skip", "groups", groups, low=1)
    channels = check_shape("conv2d_skip", "x", x, "b c h w")["c"]
    check_floating("conv2d_skip", "x", x)
    sizes = check_shape("conv2d_skip", "weight", weight, "o i kh kw", i=channels // groups)
    check_shape("conv2d_skip", "keep", keep, "c", c=channels)
    if bias is not None:
        check_shape("conv2d_skip", "bias", bias, "o", o=sizes["o"])
    if keep.dtype != torch.bool:
        raise TypeError(f"conv2d_skip: keep must be a boolean tensor; got {keep.dtype}.")
    if channels % groups or sizes["o"] % groups:
        raise ValueError(
            f"conv2d_skip: groups must divide the {channels} channels of x and the {sizes['o']} of "
            f"weight; got {groups}."
        )
    alive = keep.view(groups, -1).any(1)
    rows = alive.repeat_interleave(sizes["o"] // groups)  # outputs of groups that are computed
    if not bool(alive.any()):
        return _nothing(x, weight, bias, stride, padding, dilation, groups)
    if groups == 1:
        return functional.conv2d(x[:, keep], weight[:, keep], bias, stride, padding, dilation)
    read = alive.repeat_interleave(channels // groups)
    partly = x.masked_fill(~keep.view(1, -1, 1, 1), 0.0)[
        :, read
    ]  # a group may keep some of its channels
    some = functional.conv2d(
        partly, weight[rows], None, stride, padding, dilation, int(alive.sum())
    )
    out = some.new_zeros(len(x), sizes["o"], *some.shape[2:])
    out[:, rows] = some
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def _nothing(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """Return the answer to maps of zeros: the bias everywhere."""
    shape = functional.conv2d(x.to("meta"), weight.to("meta"), None, *options).shape
    zeros = x.new_zeros(shape)
    return zeros if bias is None else zeros + bias.view(1, -1, 1, 1)


def bandwidth_reduction(
    k: Sequence[int | Sequence[int]], n: Sequence[int], frame_rate: int, interval: int
) -> int:
    r"""Return the elements that are not loaded in one second of video (Eq. 2).

    A second's last stage is shorter where ``interval`` does not divide ``frame_rate``; its frames
    are counted as they are.

    Args:
        k: Maps skipped in each layer: one number that holds for all stages, or one for each of the
            :math:`\lceil f / t \rceil` stages.
        n: Side of the maps of each layer.
        frame_rate: Frames per second :math:`f`.
        interval: Frames between calibrations :math:`t`, at most ``frame_rate``; 1 saves nothing.

    Raises:
        ValueError: If a number is out of range or the lengths differ.

    Example:
        >>> bandwidth_reduction([10], [7], frame_rate=30, interval=30)
        14210
    """
    owner = "bandwidth_reduction"
    check_integer(owner, "frame_rate", frame_rate, low=1)
    check_integer(owner, "interval", interval, low=1, high=frame_rate)
    stages = -(-frame_rate // interval)
    reused = [min(interval, frame_rate - stage * interval) - 1 for stage in range(stages)]
    if len(k) != len(n):
        raise ValueError(f"{owner}: k and n must name the same layers; got {len(k)} and {len(n)}.")
    total = 0
    for maps, side in zip(k, n, strict=True):
        check_integer(owner, "n", side, low=1)
        counts = list(maps) if isinstance(maps, Sequence) else [maps] * stages
        if len(counts) != stages:
            raise ValueError(f"{owner}: k must have {stages} stages per layer; got {len(counts)}.")
        for count, frames in zip(counts, reused, strict=True):
            check_integer(owner, "k", count, low=0)
            total += frames * count * side**2
    return total


@dataclass
class _State:
    frame: int = -1
    calls: dict[str, int] = field(default_factory=dict)
    marks: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    traffic: dict[str, LayerTraffic] = field(default_factory=dict)


class DynamicFeatureMapPruner:
    """Prunes the maps of a foreign network in a ``with`` block, and counts what that would save.

    Skipped maps are set to zero behind the activations, so that every network works as it is;
    ``conv2d_skip`` shows that not reading them gives the same. In video mode each call is one
    frame, of as many streams as the batch has entries. Activations that are called as functions
    (``torch.relu``) are not seen, and outputs that are not ``(B, C, H, W)`` are left alone.

    Args:
        model: Any network.
        eps: Threshold of the absolute value, at least 0. The paper uses 0, 0.01, 0.1 and 1.
        density: Share of elements that makes a map prunable, in (0, 1].
        recalibrate_every: Calls for which one calibration holds; 1 finds the maps in every call.
        layers: Name patterns or classes of modules whose outputs are pruned, such as the linear
            bottlenecks of MobileNetV2; by default all activation modules.
        threshold_elements: Whether small elements of the maps that are kept become 0 too (Eq. 1).
        relative: Whether ``eps`` is in units of the deviation of each image's activations.
        choose: For controls: ``choose(x, marks)`` gets a layer's output and the maps found in it,
            ``(B, C)``, and returns the maps to skip instead.

    Raises:
        ValueError: If an option is out of range, or there is no such layer.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))
        >>> x = torch.tensor([[[[0.0, -1.0]], [[0.0, 3.0]]]])
        >>> with DynamicFeatureMapPruner(model) as pruner:
        ...     out = model(x)
        >>> pruner.report().map_fraction, pruner.report().layers["0"].bytes_saved
        (0.5, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.1,
        *,
        density: float = 0.99,
        recalibrate_every: int = 1,
        layers: Where | None = None,
        threshold_elements: bool = True,
        relative: bool = False,
        choose: Choose | None = None,
    ) -> None:
        owner = "DynamicFeatureMapPruner"
        check_range(owner, "eps", eps, low=0.0)
        check_range(owner, "density", density, low=0.0, low_open=True, high=1.0)
        check_integer(owner, "recalibrate_every", recalibrate_every, low=1)
        if layers is None:
            found = {n: m for n, m in model.named_modules() if isinstance(m, ACTIVATIONS)}
        else:
            found = find(model, layers)
        if not found:
            raise ValueError(
                f"{owner}: model has no activation module; name the modules whose outputs are to "
                "be pruned with layers=."
            )
        self.model, self.eps, self.density = model, eps, density
        self.recalibrate_every = recalibrate_every
        self.threshold_elements, self.relative, self.choose = threshold_elements, relative, choose
        self._modules = {module: name for name, module in reversed(found.items())}
        self._stack: ExitStack | None = None
        self.reset()

    def reset(self) -> None:
        """Forget marks and counts; the next call is a calibration frame."""
        self._state = _State()

    def report(self) -> TrafficReport:
        """Return maps and bytes of all calls since the last ``reset``."""
        mode = "image" if self.recalibrate_every == 1 else "video"
        return TrafficReport(dict(self._state.traffic), mode, self._state.frame + 1)

    def __enter__(self) -> DynamicFeatureMapPruner:
        if self._stack is not None:
            raise RuntimeError("DynamicFeatureMapPruner: the block is open already.")
        self._reads = Reads()
        with ExitStack() as stack:
            stack.callback(self.model.register_forward_pre_hook(self._next_frame).remove)
            for module, name in reversed(self._modules.items()):
                stack.callback(module.register_forward_hook(self._hook(name)).remove)
            stack.enter_context(self._reads)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _next_frame(self, *_: Any) -> None:
        self._state.frame += 1
        self._state.calls.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not (isinstance(output, Tensor) and output.ndim == 4):
                return output
            self._reads.paused = True
            try:
                return self._prune(name, output)
            finally:
                self._reads.paused = False

        return hook

    def _prune(self, name: str, x: Tensor) -> Tensor:
        state = self._state
        call = state.calls.get(name, 0)  # one module may be called at several places
        state.calls[name] = call + 1
        calibrates = state.frame % self.recalibrate_every == 0 or (name, call) not in state.marks
        small = _within(x, self.eps, relative=self.relative)
        if calibrates:
            marks = _marks(small, self.density)
            state.marks[name, call] = marks if self.choose is None else self.choose(x, marks)
        marks = state.marks[name, call]
        if marks.shape != x.shape[:2]:
            raise ValueError(
                f"DynamicFeatureMapPruner: layer {name!r} was calibrated for (B, C) = "
                f"{tuple(marks.shape)}; got {tuple(x.shape[:2])}. Call reset() for another video."
            )
        dropped = marks[:, :, None, None]
        pruned = x.masked_fill(small | dropped if self.threshold_elements else dropped, 0.0)
        whole = calibrates and self.recalibrate_every > 1
        self._count(name, pruned, 0 if whole else int(marks.sum()))
        return pruned

    def _count(self, name: str, x: Tensor, skipped: int) -> None:
        traffic = self._state.traffic.setdefault(name, LayerTraffic())
        maps = x.shape[0] * x.shape[1]
        traffic.maps += maps
        traffic.skipped += skipped
        size = x.shape[2] * x.shape[3] * x.element_size()
        self._reads.outputs[x] = Output(traffic, (maps - skipped) * size, skipped * size)


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        x, weight, bias = (
            torch.randn(shape, generator=generator) for shape in ((2, 4, 6, 5), (3, 4, 3, 3), (3,))
        )
        return x, weight, bias, torch.tensor([True, False, True, False])

    return [
        Example(build=lambda: conv2d_skip, inputs=inputs, output_shapes=((2, 3, 4, 3),)),
        Example(build=lambda: prunable_maps, inputs=lambda g: inputs(g)[:1]),
    ]


CARD = Card(
    slug="dynamic-feature-map-pruning",
    title="Skipping feature maps that are found to be almost all zero at run time",
    reference=Reference(
        title="Dynamic Runtime Feature Map Pruning",
        authors="Zhang, Liang, Glossner, Wang, Shi, Zhang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="411-422",
    ),
    kind="function",
    objects=(
        "cv_pruning.methods.dynamic_feature_map_pruning.DynamicFeatureMapPruner",
        "cv_pruning.traffic.LayerTraffic",
        "cv_pruning.traffic.TrafficReport",
        "cv_pruning.methods.dynamic_feature_map_pruning.bandwidth_reduction",
        "cv_pruning.methods.dynamic_feature_map_pruning.conv2d_skip",
        "cv_pruning.methods.dynamic_feature_map_pruning.map_statistics",
        "cv_pruning.methods.dynamic_feature_map_pruning.prunable_maps",
    ),
    examples=_examples,
    properties=("deterministic",),
)
