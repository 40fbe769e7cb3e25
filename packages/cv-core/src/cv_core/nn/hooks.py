"""Record or rewrite the activations of a foreign network for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from cv_core.checks import check_choice
from cv_core.nn.surgery import Where, find

Keep = Literal["last", "all"]


@dataclass
class _Call:
    inputs: tuple[Any, ...]
    output: Any
    given: dict[int, int]
    returned: dict[int, int]

    def checked_inputs(self, name: str) -> tuple[Any, ...]:
        """Return the inputs, or refuse them if the module or a later one has written into them."""
        _check_unchanged(self.inputs, self.given, name, "the layer or a later one")
        return self.inputs

    def checked_output(self, name: str) -> Any:
        """Return the output, or refuse it if a later layer has written into it."""
        _check_unchanged(self.output, self.returned, name, "a later layer")
        return self.output


def _check_unchanged(value: Any, versions: dict[int, int], name: str, who: str) -> None:
    if _versions(value) != versions:
        raise RuntimeError(
            f"tap: {who} has changed the activation at {name!r} in place (an inplace ReLU?). Use "
            "tap(..., copy=True)."
        )


@dataclass
class Activation:
    """What a module was given and what it returned, of the last call or of all calls.

    Args:
        name: The module's name.
    """

    name: str
    _calls: list[_Call] = field(default_factory=list)

    def __len__(self) -> int:
        """Return how many calls are recorded."""
        return len(self._calls)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """All arguments of the last call, keyword arguments last."""
        return self._last().checked_inputs(self.name)

    @property
    def input(self) -> Tensor:
        """The first argument of the last call."""
        return self.inputs[0]

    @property
    def output(self) -> Any:
        """What the last call returned."""
        return self._last().checked_output(self.name)

    @property
    def outputs(self) -> list[Any]:
        """What every recorded call returned, in order; see ``tap(keep="all")``."""
        return [call.checked_output(self.name) for call in self._calls]

    def _last(self) -> _Call:
        if not self._calls:
            raise RuntimeError(f"tap: {self.name!r} was not called; run the model first.")
        return self._calls[-1]


class _Recorder:
    """The two hooks of one tapped module."""

    def __init__(self, activation: Activation, *, keep: Keep, copy: bool) -> None:
        self._activation = activation
        self._keep = keep
        self._copy = copy
        # inputs and their versions of calls that have not returned, the innermost last
        self._open: list[tuple[tuple[Any, ...], dict[int, int]]] = []

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # inputs are taken before the call, because the module itself may write into them
        inputs = (*args, *kwargs.values())
        inputs = _copied(inputs) if self._copy else inputs
        self._open.append((inputs, _versions(inputs)))

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        inputs, given = self._open.pop()
        output = _copied(output) if self._copy else output
        if self._keep == "last":
            self._activation._calls.clear()
        self._activation._calls.append(_Call(inputs, output, given, _versions(output)))


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run a compiled network uncompiled while the block runs.

    Compiled code was traced before the hooks were set, and does not call them.

    Args:
        model: Any network; compiled or not, as a whole or in parts.

    Raises:
        RuntimeError: If it is compiled and torch is too old to run it otherwise.
    """
    compiled = any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in model.modules()
    )
    if not compiled:
        yield
        return
    if not hasattr(torch.compiler, "set_stance"):
        raise RuntimeError(
            "torch < 2.6 cannot run a compiled network uncompiled: use the network that was "
            "handed to torch.compile instead."
        )
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def tap(
    model: nn.Module, where: Where, *, keep: Keep = "last", copy: bool = False
) -> Iterator[dict[str, Activation]]:
    """Record what the selected modules are given and return, while the block runs.

    Tensors are recorded as they are, with their graph, so that gradients reach them. An activation
    that the layer itself or a later one overwrites is refused when it is read; ``copy`` avoids
    that, and is needed for such layers in inference mode, where torch does not count the writes.
    A compiled network runs uncompiled while the block runs; see ``eager``.

    Args:
        model: Any network.
        where: Name patterns or classes; see ``cv_core.nn.surgery.find``.
        keep: Only the ``"last"`` call of each module, or ``"all"``, for modules that are called
            several times in one pass.
        copy: Record copies that in-place layers do not touch.

    Yields:
        One ``Activation`` per selected module, by name. They stay readable after the block.

    Raises:
        ValueError: If ``where`` selects nothing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with tap(model, "0") as taps:
        ...     out = model(torch.ones(1, 2))
        >>> bool((taps["0"].output.relu() == out).all())
        True
    """
    check_choice("tap", "keep", keep, get_args(Keep))
    modules = find(model, where)
    taps = {name: Activation(name) for name in modules}

    with ExitStack() as stack:
        stack.enter_context(eager(model))
        for name, module in modules.items():
            recorder = _Recorder(taps[name], keep=keep, copy=copy)
            for hook in (
                module.register_forward_pre_hook(recorder.before, with_kwargs=True),
                module.register_forward_hook(recorder.after),
            ):
                stack.callback(hook.remove)
        yield taps


@contextmanager
def rewrite(model: nn.Module, where: Where, function: Callable[..., Any]) -> Iterator[None]:
    """Replace what the selected modules return, while the block runs.

    A compiled network runs uncompiled meanwhile; see ``eager``.

    Args:
        model: Any network.
        where: Name patterns or classes; see ``cv_core.nn.surgery.find``.
        function: Called as ``function(output, *inputs)``; what it returns takes the output's place.

    Raises:
        ValueError: If ``where`` selects nothing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with rewrite(model, "0", lambda output, x: output - x):
        ...     out = model(torch.ones(1, 2))
    """
    modules = find(model, where)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return function(output, *args, *kwargs.values())

    with ExitStack() as stack:
        stack.enter_context(eager(model))
        for module in dict.fromkeys(modules.values()):  # a shared module is rewritten once
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _versions(value: Any) -> dict[int, int]:
    """Return how often each tensor in a nest of containers was written into, by its ``id``.

    Tensors of inference mode do not count the writes; they are left out.
    """
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return {id(tensor): tensor._version for tensor in tensors if not tensor.is_inference()}


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
