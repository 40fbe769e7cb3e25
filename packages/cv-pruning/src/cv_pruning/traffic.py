"""Counting which feature maps the operations of a network read, and in how many bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


@dataclass
class LayerTraffic:
    """What one layer's maps cost.

    Args:
        maps: Maps that came out.
        skipped: Those of them that were not loaded.
        bytes_loaded: Bytes read by the layers that follow.
        bytes_saved: Bytes that they did not have to read.
    """

    maps: int = 0
    skipped: int = 0
    bytes_loaded: int = 0
    bytes_saved: int = 0


@dataclass(frozen=True)
class TrafficReport:
    """Maps and bytes of all calls so far.

    Args:
        layers: By the layer's name.
        mode: ``"image"``: a map that is found is not loaded in the same image. ``"video"``: the
            calibration frame is loaded whole, as in Eq. 2.
        frames: Calls of the model.
    """

    layers: dict[str, LayerTraffic]
    mode: str
    frames: int

    @property
    def map_fraction(self) -> float:
        """Share of the maps that were skipped, in [0, 1]."""
        total = sum(layer.maps for layer in self.layers.values())
        return sum(layer.skipped for layer in self.layers.values()) / max(1, total)

    @property
    def byte_fraction(self) -> float:
        """Share of the bytes that were saved, in [0, 1]."""
        saved = sum(layer.bytes_saved for layer in self.layers.values())
        return saved / max(1, saved + sum(layer.bytes_loaded for layer in self.layers.values()))

    def __str__(self) -> str:
        width = max([len("layer"), *map(len, self.layers)])
        rows = [f"{'layer':{width}}  {'maps':>10}  {'skipped':>10}  {'loaded':>14}  {'saved':>14}"]
        rows += [
            f"{name:{width}}  {layer.maps:>10,}  {layer.skipped:>10,}  "
            f"{layer.bytes_loaded:>14,}  {layer.bytes_saved:>14,}"
            for name, layer in self.layers.items()
        ]
        rows.append(
            f"{100 * self.map_fraction:.2f} % of the maps and {100 * self.byte_fraction:.2f} % of "
            f"the bytes in {self.mode} mode over {self.frames} calls"
        )
        return "\n".join(rows)


@dataclass
class Output:
    """An activation's maps, for those who count its reads."""

    traffic: LayerTraffic
    loaded: int
    saved: int


class Reads(TorchFunctionMode):
    """Counts the operations that read a registered tensor; views of it are registered too.

    In inference mode, where torch counts no writes, operations in place are not seen as reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs = WeakIdKeyDictionary()
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation and count what it reads; looking at a shape reads nothing."""
        kwargs = kwargs or {}
        if self.paused or not self.outputs:
            return func(*args, **kwargs)
        leaves = {id(leaf): leaf for leaf in tree_leaves((args, kwargs))}.values()
        known = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf in self.outputs]
        versions = [_version(tensor) for tensor in known]
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor, version in zip(known, versions, strict=True):
            output = self.outputs[tensor]
            if all(_share(leaf, tensor) for leaf in made) and _version(tensor) == version:
                self.outputs.update(dict.fromkeys(made, output))
            else:
                output.traffic.bytes_loaded += output.loaded
                output.traffic.bytes_saved += output.saved
        return result


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
