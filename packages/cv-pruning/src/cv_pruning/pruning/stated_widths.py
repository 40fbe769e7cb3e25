"""Networks that state a width a second time, in an attribute that their code reads or checks.

A width that is stated elsewhere, in a way not listed here, makes the narrowed network fail, and
``prune`` then takes everything back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cv_pruning.pruning.narrowing import Edit, apply

_OF_LAYER = {
    "torchvision.models.vision_transformer.VisionTransformer": ("hidden_dim", "conv_proj"),
}
"""By class: an attribute, and the layer inside whose number of outputs it repeats."""
_OF_INPUT = {
    "cv_core.models.unet.UNetDecoder": "in_channels",
    "cv_core.nn.gates.ChannelAttention": "channels",
    "cv_core.nn.gates.SqueezeExcitation": "channels",
}
"""By class: an attribute that repeats the channels of the input, or of each input in a list."""


def stated(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return, by full name, the module and attribute of every width that is stated again."""
    found = {}
    for name, module in model.named_modules():
        kind = _kind(module)
        attribute = _OF_INPUT.get(kind) or _OF_LAYER.get(kind, ("",))[0]
        if attribute:
            found[f"{name}.{attribute}".lstrip(".")] = (module, attribute)
    return found


@contextmanager
def restating(model: nn.Module, edits: Sequence[Edit], undo: list[Edit]) -> Iterator[None]:
    """Bring stated widths up to date with the layers, and with what flows in the next call.

    Args:
        model: A network whose layers have been narrowed.
        edits: By these edits.
        undo: The edits that take everything back, in order; those made here are put in front.
    """

    def set_to(owner: nn.Module, attribute: str, value: object) -> None:
        if getattr(owner, attribute) != value:
            undo[:0] = apply([Edit(owner, attribute, value)])

    def before_forward(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        set_to(module, _OF_INPUT[_kind(module)], _channels(inputs[0]))

    outputs = {id(e.owner): e.value for e in edits if e.name in ("out_channels", "out_features")}
    handles = []
    try:
        for module in model.modules():
            if _kind(module) in _OF_INPUT:
                handles.append(module.register_forward_pre_hook(before_forward))
            elif _kind(module) in _OF_LAYER:
                attribute, layer = _OF_LAYER[_kind(module)]
                width = outputs.get(id(module.get_submodule(layer)))
                if width is not None:
                    set_to(module, attribute, width)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _channels(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, Tensor):
        return value.shape[1]
    return tuple(part.shape[1] for part in value)
