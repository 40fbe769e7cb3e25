"""See what the attention modules of a foreign network attend to, while it runs as it is.

A module that calls ``scaled_dot_product_attention`` is watched by torch's own function mode, which
sees the queries and keys that are handed over, behind norms, rotary embeddings and position biases.
``torch.nn.MultiheadAttention`` is hooked, because no mode sees inside it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cv_core.checks import check_shape
from cv_core.nn.hooks import eager
from cv_core.nn.surgery import Where, find

Adapter = Callable[..., Tensor]
"""Called as ``adapter(module, *inputs)`` with what a chosen module was given; returns its attention
maps ``(B, heads, N, N)``, whose rows add up to 1."""

_SOFTMAX = (torch.softmax, functional.softmax, Tensor.softmax)


@dataclass(frozen=True)
class Call:
    """One computation of attention, and how its maps are had.

    Args:
        shape: Of the maps.
        maps: Computes them, ``(B, heads, N, N)``.
        output: What the score is derived by.
        gradient: Turns that derivative into the one by the maps.
    """

    shape: tuple[int, ...]
    maps: Callable[[], Tensor]
    output: Tensor
    gradient: Callable[[Tensor], Tensor]


def _fused(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    """Describe a call of ``scaled_dot_product_attention``; its dropout is left out of the maps.

    With O = A V, the derivative of a score by A is its derivative by O times V transposed.
    """
    del dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    exact = torch.promote_types(query.dtype, torch.float32)

    def maps() -> Tensor:
        logits = (query.to(exact) * factor) @ key.to(exact).mT
        if is_causal:
            seen = torch.ones_like(logits[0, 0], dtype=torch.bool).tril()
            logits = logits.masked_fill(~seen, -math.inf)
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask
        return logits.softmax(-1)

    def gradient(by_output: Tensor) -> Tensor:
        return by_output.to(exact) @ value.to(exact).mT

    shape = (*query.shape[:-1], key.shape[-2])
    return Call(shape, maps, output, gradient)


def _plain(output: Tensor) -> Call:
    """Describe a softmax that returned attention maps."""
    return Call(tuple(output.shape), lambda: output, output, lambda by_output: by_output)


def _multihead(module: nn.MultiheadAttention, arguments: dict[str, Any], output: Tensor) -> Call:
    """Describe a call of torch's own module from what it was given."""
    masked = arguments.get("attn_mask") is not None or arguments.get("key_padding_mask") is not None
    if masked or module.bias_k is not None or module.add_zero_attn or output.ndim != 3:
        raise ValueError(
            "attention maps of a nn.MultiheadAttention with masks, extra keys or without a batch "
            "are not supported; hand in an adapter."
        )
    names = ("query", "key", "value")
    given = [arguments[name] for name in names]
    given = given if module.batch_first else [item.transpose(0, 1) for item in given]
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    bias = module.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)

    def heads(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)

    query, key, value = (
        heads(functional.linear(item.to(weight.dtype), weight, part))
        for item, weight, part in zip(given, weights, biases, strict=True)
    )
    call = _fused(output, query, key, value)

    def gradient(by_output: Tensor) -> Tensor:
        by_output = by_output if module.batch_first else by_output.transpose(0, 1)
        return call.gradient(heads(by_output @ module.out_proj.weight))

    return Call(call.shape, call.maps, output, gradient)


class _Watch(TorchFunctionMode):
    """Sees every function of torch that is called in it, and keeps what attends."""

    def __init__(self, calls: dict[str, list[Call]]) -> None:
        super().__init__()
        self.calls = calls
        self.inside: list[str] = []  # the chosen modules that are running, the innermost last

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.inside:
            found = self.calls[self.inside[-1]]
            if func is functional.scaled_dot_product_attention and output.ndim == 4:
                found.append(_fused(output, *args, **kwargs))
            elif func in _SOFTMAX and output.ndim == 4:
                found.append(_plain(output))
        return output


@contextmanager
def watched(
    model: nn.Module, chosen: dict[str, nn.Module], adapter: Adapter | None
) -> Iterator[dict[str, list[Call]]]:
    """Keep what the chosen modules attend to, by their names, while the block runs."""
    calls: dict[str, list[Call]] = {name: [] for name in chosen}
    watch = _Watch(calls)
    needed = False
    with ExitStack() as stack:
        for name, module in chosen.items():
            parts = [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]
            if adapter is not None:
                hooks = [_adapter_hook(module, calls[name], adapter)]
            elif parts:
                hooks = [_multihead_hook(part, calls[name]) for part in parts]
            else:
                hooks = _place_hooks(module, watch.inside, name)
                needed = True
            for hook in hooks:
                stack.callback(hook.remove)
        stack.enter_context(eager(model))
        if needed:
            stack.enter_context(watch)
        yield calls


def _place_hooks(module: nn.Module, inside: list[str], name: str) -> list[Any]:
    def enter(_module: nn.Module, _args: Any) -> None:
        inside.append(name)

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        inside.pop()

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _multihead_hook(module: nn.MultiheadAttention, calls: list[Call]) -> Any:
    signature = inspect.signature(module.forward)

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        calls.append(_multihead(module, arguments, output[0]))

    return module.register_forward_hook(keep, with_kwargs=True)


def _adapter_hook(module: nn.Module, calls: list[Call], adapter: Adapter) -> Any:
    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        with torch.no_grad():
            maps = adapter(module, *args, **kwargs)
        check_shape("adapter", "what adapter returns", maps, "b heads n m")
        calls.append(_plain(maps))

    return module.register_forward_hook(keep, with_kwargs=True)


def choose(owner: str, model: nn.Module, blocks: Where | None) -> dict[str, nn.Module]:
    """Return the chosen modules, or all that are called attention and hold no other such."""
    if blocks is not None:
        return find(model, blocks)
    named = {
        name: module
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__ and "Pool" not in type(module).__name__
    }
    inner = {
        name: module
        for name, module in named.items()
        if not any(other.startswith(f"{name}.") for other in named)
    }
    if not inner:
        raise ValueError(
            f"{owner}: {type(model).__name__} has no module that is called attention; name those "
            "to look at with blocks=."
        )
    return inner


def only_calls(owner: str, calls: dict[str, list[Call]], images: int) -> dict[str, Call]:
    """Return each module's one call, or say why it has no map of the whole image."""
    for name, found in calls.items():
        if len(found) != 1:
            raise ValueError(
                f"{owner}: {name!r} must compute attention once in a pass, with "
                f"scaled_dot_product_attention or softmax; it did {len(found)} times. Choose other "
                "blocks, or hand in an adapter."
            )
        batch, _, queries, keys = found[0].shape
        if batch != images:
            raise ValueError(
                f"{owner}: {name!r} attends inside windows, as Swin does ({batch} maps for "
                f"{images} images): no map covers an image. Use GradCAM or LayerCAM."
            )
        if queries != keys:
            raise ValueError(
                f"{owner}: {name!r} must attend from all tokens to all tokens; it attends from "
                f"{queries} to {keys}. Choose other blocks."
            )
    return {name: found[0] for name, found in calls.items()}
