"""Find, wrap, replace and follow modules of a foreign network, and undo it.

Modules are named as in ``model.named_modules()``. A pattern is a glob over such names: ``*`` and
``?`` stay within one part, ``**`` crosses dots, ``[12]`` is a choice. ``"layer*.*.conv2"`` means
the second convolution of every block of a torchvision ResNet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from cv_core.checks import nearest

Choice = str | type[nn.Module] | nn.Module
Where = Choice | Sequence[Choice]
"""A glob pattern over module names, a class of modules, a module itself, or several of these."""


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    special = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]*\])", pattern)
    return re.compile("".join(special.get(part, _literal_or_choice(part)) for part in parts))


def _literal_or_choice(part: str) -> str:
    if part[:1] == "[":
        return "[" + part[1:].replace("[", r"\[")  # re warns of a bare one inside a choice
    return re.escape(part)


def find(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    """Return the submodules that a pattern or a class selects, by name, in the model's order.

    A module that sits in two places is listed under both names. The model itself is selected by the
    empty pattern only.

    Args:
        model: Any network.
        where: A glob pattern, a class, or several of these; each has to select something.

    Returns:
        The selected modules by name.

    Raises:
        TypeError: If ``where`` is neither a pattern nor a class.
        ValueError: If one of them selects nothing; the message shows the nearest names.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
        >>> list(find(model, "*")), list(find(model, nn.Conv2d))
        (['0', '1', '2'], ['0', '2'])
    """
    choices = [where] if isinstance(where, (str, type, nn.Module)) else list(where)
    modules = dict(model.named_modules(remove_duplicate=False))
    selected: set[str] = set()
    for choice in choices:
        names = {name for name, module in modules.items() if _selects(choice, name, module)}
        if not names:
            raise ValueError(_nothing_found(model, choice, list(modules)))
        selected |= names
    return {name: module for name, module in modules.items() if name in selected}


def _selects(choice: Choice, name: str, module: nn.Module) -> bool:
    if isinstance(choice, nn.Module):
        return module is choice
    if isinstance(choice, str):
        return name == choice or bool(name and _compiled(choice).fullmatch(name))
    if isinstance(choice, type) and issubclass(choice, nn.Module):
        return bool(name) and isinstance(module, choice)
    raise TypeError(
        f"find: where must be a name pattern, a class of modules or a module; got {choice!r}."
    )


def _nothing_found(model: nn.Module, choice: Choice, names: list[str]) -> str:
    owner = type(model).__name__
    if isinstance(choice, nn.Module):
        return f"find: the {type(choice).__name__} given is no part of this {owner}."
    if not isinstance(choice, str):
        return f"find: {owner} has no module of class {choice.__name__}."
    close = nearest(choice, names) or names[1:4]
    hint = f" Nearest: {', '.join(map(repr, close))}." if close else ""
    return f"find: {choice!r} selects no module of {owner}.{hint}"


def replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module where another one sits.

    Args:
        model: Any network; it is changed.
        name: The full name of the place, without wildcards.
        module: What to put there.

    Returns:
        The module that sat there; putting it back undoes the change.

    Raises:
        ValueError: If there is no such place, or it is the model itself.
    """
    old = next(iter(find(model, re.sub(r"([*?\[])", r"[\1]", name)).values()))
    if old is model:
        raise ValueError("replace: the model itself has no place; name one of its submodules.")
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module
    return old


class Wrapper(nn.Module):
    """A module around another one that keeps the inner one's ``state_dict`` keys.

    A wrapped network saves the inner parameters under their former names and loads a checkpoint of
    the plain network; a subclass's own parameters follow under their own names, and torch refuses
    one that the inner module has too. Unknown attributes (``weight``, ``out_channels``) are the
    inner module's. Subclasses override ``forward`` and call ``self.inner`` there.

    Args:
        inner: The module to wrap.
    """

    inner: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the inner module."""
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # the inner one is not there yet while unpickling, and its special methods, such as a
            # GraphModule's __deepcopy__, would make a copy without the wrapper
            if name == "inner" or (name.startswith("__") and name.endswith("__")):
                raise
            return getattr(self.inner, name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state with the inner module's keys as if it were not wrapped."""
        states = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        inner = f"{prefix}inner."
        for key in [key for key in states if key.startswith(inner)]:
            states[prefix + key.removeprefix(inner)] = states.pop(key)
        return states

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = {*self._parameters, *self._buffers, *self._modules} - {"inner"}
        for key in [key for key in state_dict if key.startswith(prefix)]:
            rest = key.removeprefix(prefix)
            if rest.partition(".")[0] not in own:
                state_dict[f"{prefix}inner.{rest}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Followed(Wrapper):
    """A module and another one, the ``follower``, applied to its output.

    The follower's keys begin with ``after``, or ``after2``, ... where several follow one module.

    Args:
        inner: The module whose output is changed.
        after: What is applied to that output.
    """

    def __init__(self, inner: nn.Module, after: nn.Module) -> None:
        super().__init__(inner)
        level, layer = 1, inner
        while isinstance(layer, Wrapper):
            level += isinstance(layer, Followed)
            layer = layer.inner
        self._name = "after" if level == 1 else f"after{level}"
        self.add_module(self._name, after)

    @property
    def follower(self) -> nn.Module:
        """What is applied to the output."""
        return self.get_submodule(self._name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``follower(inner(...))``."""
        return self.follower(self.inner(*args, **kwargs))


def wrap(
    model: nn.Module, where: Where, factory: Callable[[nn.Module], nn.Module]
) -> dict[str, nn.Module]:
    """Replace modules by what a factory makes of them; ``remove`` undoes it for ``Wrapper``.

    What the factory adds goes to the device and dtype of the module it wraps and takes over its
    training flag; the wrapped module is left as it is. If the factory fails, so is the network.

    Args:
        model: Any network; it is changed.
        where: What to wrap; see ``find``.
        factory: Takes a module and returns its replacement.

    Returns:
        The replacements by name.

    Raises:
        ValueError: If ``where`` selects nothing or the model itself.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = wrap(model, nn.Linear, Wrapper)
        >>> list(model.state_dict())
        ['0.weight', '0.bias']
    """
    found = find(model, where)
    if not found:
        raise ValueError("wrap: where must select a module; it is empty.")
    if "" in found:
        raise ValueError("wrap: the model itself has no place; name one of its submodules.")
    made: dict[str, nn.Module] = {}
    try:
        for name in sorted(found, key=lambda name: -name.count(".")):  # children before parents
            new = factory(found[name])
            _adopt(new, found[name], model)
            replace(model, name, new)
            made[name] = new
    except Exception:
        for name in reversed(made):
            replace(model, name, found[name])
        raise
    return {name: made[name] for name in found}


def _adopt(new: nn.Module, old: nn.Module, model: nn.Module) -> None:
    """Give what is new the device, dtype and training flag of what it is put around."""
    known = set(old.modules())
    floating = [item for item in _tensors(old) if item.is_floating_point()]
    floating = floating or [item for item in _tensors(model) if item.is_floating_point()]
    added = [module for module in new.modules() if module not in known]
    for module in added:
        module.training = old.training
        if floating:
            _move(module, floating[0].device, floating[0].dtype)


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a module's own tensors, not its children's."""
    for name, parameter in module._parameters.items():
        if parameter is not None and (parameter.device, parameter.dtype) != (device, dtype):
            moved = parameter.detach().to(device, dtype)
            module._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            wanted = dtype if buffer.is_floating_point() else buffer.dtype
            module._buffers[name] = buffer.to(device, wanted)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def insert_after(
    model: nn.Module, where: Where, factory: Callable[[nn.Module], nn.Module]
) -> dict[str, nn.Module]:
    """Apply a new module to the output of each selected one; ``remove`` undoes it.

    Checkpoints of the plain network stay loadable (with ``strict=False`` if what is inserted has
    parameters of its own).

    Args:
        model: Any network; it is changed.
        where: After which modules; see ``find``.
        factory: Takes the module in front and returns the one to put after it. ``out_channels``
            tells how many channels it will see.

    Returns:
        The inserted modules by the name of the module in front.

    Raises:
        ValueError: If ``where`` selects nothing or the model itself.
    """
    made: dict[nn.Module, nn.Module] = {}

    def follow(module: nn.Module) -> Followed:
        wrapper = Followed(module, factory(module))
        made[wrapper] = wrapper.follower
        return wrapper

    return {name: made[wrapper] for name, wrapper in wrap(model, where, follow).items()}


def remove(model: nn.Module, kind: type[Wrapper] = Wrapper) -> list[str]:
    """Take wrappers off again, so that the network is the one it was before.

    Args:
        model: Any network; it is changed.
        kind: Which wrappers; all of them by default.

    Returns:
        The names of the places that were wrapped.
    """
    places: list[str] = []
    _unwrap(model, "", kind, places)
    return places


def _unwrap(parent: nn.Module, prefix: str, kind: type[Wrapper], places: list[str]) -> None:
    for last, child in list(parent._modules.items()):
        kept = child
        while isinstance(kept, kind):
            kept = kept.inner
        if kept is not child:
            parent._modules[last] = kept
            places.append(prefix + last)
        if kept is not None:
            _unwrap(kept, f"{prefix}{last}.", kind, places)


def out_channels(module: nn.Module) -> int:
    """Return how many channels a convolution, normalisation or linear layer puts out.

    Args:
        module: The layer, or a container whose last such layer counts.

    Raises:
        ValueError: If it holds no layer of a known kind.
    """
    for layer in reversed(list(module.modules())):
        for name in ("out_channels", "num_features", "out_features", "num_channels"):
            value = getattr(layer, name, None)
            if isinstance(value, int):
                return value
    raise ValueError(
        f"out_channels: {type(module).__name__} holds no convolution, normalisation or linear "
        "layer that tells its channels."
    )
