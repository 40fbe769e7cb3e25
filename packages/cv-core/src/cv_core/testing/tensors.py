"""Common checks of whatever maps tensors to tensors: modules, losses, functions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.autograd.gradcheck import GradcheckError

from cv_core.registry import Kind
from cv_core.testing.checks import (
    ALL_KINDS,
    TENSOR_KINDS,
    Subject,
    common_check,
    flatten,
    names_owner,
)
from cv_core.testing.tolerances import assert_close

_CALLED: tuple[Kind, ...] = ("module", "loss", "function", "graph-module", "attack")


def _is_float(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.is_floating_point()


def _cast(item: Any, dtype: torch.dtype) -> Any:
    return item.to(dtype) if _is_float(item) else item


def _double(subject: Subject) -> tuple[Any, tuple[Any, ...]]:
    built = subject.build()
    if isinstance(built, torch.nn.Module):
        built = built.double()
    return built, tuple(_cast(item, torch.float64) for item in subject.inputs())


def _difference(built: Any, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    return [tensor for tensor in flatten(built(*inputs)) if tensor.is_floating_point()]


@common_check(*TENSOR_KINDS)
def check_documented_shapes(subject: Subject) -> None:
    """The outputs have the shapes that the card documents."""
    if not subject.example.output_shapes:
        return
    shapes = tuple(tuple(out.shape) for out in flatten(subject.build()(*subject.inputs())))
    assert shapes == subject.example.output_shapes, (
        f"documented output shapes {subject.example.output_shapes}, got {shapes}"
    )


@common_check(*TENSOR_KINDS)
def check_float64_agrees(subject: Subject) -> None:
    """Float64 gives what float32 gives, more exactly, and the type of the input is kept."""
    single = flatten(subject.build()(*subject.inputs()))
    built, inputs = _double(subject)
    double = flatten(built(*inputs))
    has_float = any(_is_float(item) for item in inputs)
    for low, high in zip(single, double, strict=True):
        if low.is_floating_point() and has_float:
            assert low.dtype == torch.float32, f"float32 in, {low.dtype} out"
            assert high.dtype == torch.float64, f"float64 in, {high.dtype} out"
        assert_close(low, high, scale=10.0)


@common_check(*TENSOR_KINDS)
def check_finite(subject: Subject) -> None:
    """No NaN and no infinity, neither for the example nor for inputs a thousand times as large.

    Inputs that large may be refused, by an error that names its owner: masks end at 1.
    """
    for out in flatten(subject.build()(*subject.inputs())):
        assert bool(torch.isfinite(out).all()), "not finite"
    large = [1e3 * item if _is_float(item) else item for item in subject.inputs()]
    built = subject.build()
    try:
        outputs = flatten(built(*large))
    except ValueError as error:
        assert names_owner(str(error), built), f"scaled inputs: {error}"
        return
    for out in outputs:
        assert bool(torch.isfinite(out).all()), "not finite for inputs scaled by 1000"


@common_check("module", "loss", "graph-module", "function")
def check_gradients(subject: Subject) -> None:
    """The gradient by autograd equals the one by finite differences, in float64."""
    built, inputs = _double(subject)
    inputs = tuple(item.requires_grad_() if _is_float(item) else item for item in inputs)
    if not any(_is_float(item) for item in inputs):
        return

    def call(*arguments: Any) -> tuple[torch.Tensor, ...]:
        return tuple(out for out in _difference(built, arguments) if out.requires_grad)

    if call(*inputs):
        _passes(torch.autograd.gradcheck, call, inputs)


@common_check("module", "loss", "graph-module", needs="twice-differentiable")
def check_second_gradients(subject: Subject) -> None:
    """The second derivative by autograd equals the one by finite differences, in float64."""
    built, inputs = _double(subject)
    inputs = tuple(item.requires_grad_() if _is_float(item) else item for item in inputs)
    _passes(torch.autograd.gradgradcheck, lambda *call: tuple(_difference(built, call)), inputs)


def _passes(gradient_check: Any, call: Any, inputs: tuple[Any, ...]) -> None:
    try:
        gradient_check(call, inputs, fast_mode=True)
    except GradcheckError as error:
        raise AssertionError(str(error)) from error


@common_check("module", "loss", "graph-module")
def check_parameters_get_gradients(subject: Subject) -> None:
    """Every parameter that asks for a gradient gets one that is not all zero."""
    built = subject.build()
    total = sum(out.square().sum() for out in _difference(built, subject.inputs()))
    parameters = [item for item in built.named_parameters() if item[1].requires_grad]
    if not parameters:
        return
    assert isinstance(total, torch.Tensor)
    total.backward()
    dead = [name for name, item in parameters if item.grad is None or not item.grad.abs().sum()]
    assert not dead, f"parameters without a gradient: {dead}"


@common_check(*_CALLED)
def check_input_not_modified(subject: Subject) -> None:
    """A call leaves its arguments as they were."""
    inputs = subject.inputs()
    before = copy.deepcopy(inputs)
    subject.build()(*inputs)
    for old, new in zip(before, inputs, strict=True):
        if isinstance(new, torch.Tensor):
            assert torch.equal(old, new), "an argument was changed in place"
        elif isinstance(new, np.ndarray):
            assert np.array_equal(old, new), "an argument was changed in place"


@contextmanager
def global_state() -> Iterator[Callable[[], list[str]]]:
    """Yield a function that names what has changed since; restore everything afterwards."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - looked at
    flags = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
    names = ("default dtype", "grad mode", "number of threads")

    def changed() -> list[str]:
        now = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
        found = [name for name, old, new in zip(names, flags, now, strict=True) if old != new]
        if not torch.equal(torch.get_rng_state(), torch_state):
            found.append("torch's global generator")
        if str(np.random.get_state()) != str(numpy_state):  # noqa: NPY002 - looked at
            found.append("NumPy's global generator")
        return found

    try:
        yield changed
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - put back
        torch.set_default_dtype(flags[0])
        torch.set_grad_enabled(flags[1])
        torch.set_num_threads(flags[2])


@common_check(*_CALLED)
def check_global_state_untouched(subject: Subject) -> None:
    """A call changes neither the global generators nor default dtype, grad mode or threads."""
    built, inputs = subject.build(), subject.inputs()
    if isinstance(built, torch.nn.Module):
        built.eval()
    with global_state() as changed:
        built(*inputs)
        assert not changed(), f"a call changed {', '.join(changed())}"


@common_check("module", "loss", "graph-module")
def check_eval_repeatable(subject: Subject) -> None:
    """In eval mode two calls agree bit for bit, and a call leaves the mode as it was."""
    built = subject.build().eval()
    first, second = (flatten(built(*subject.inputs())) for _ in range(2))
    assert all(map(torch.equal, first, second)), "two calls in eval mode differ"
    assert not any(part.training for part in built.modules()), "a call left eval mode"
    built.train()
    built(*subject.inputs())
    assert all(part.training for part in built.modules()), "a call left training mode"


@common_check(*TENSOR_KINDS, needs="deterministic")
def check_deterministic(subject: Subject) -> None:
    """Two calls agree bit for bit, in training mode too."""
    built = subject.build()
    first, second = (flatten(built(*subject.inputs())) for _ in range(2))
    assert all(map(torch.equal, first, second)), "two calls differ"


@common_check("module", "loss", "graph-module")
def check_saved_and_copied(subject: Subject) -> None:
    """State dict, pickle and deepcopy give back a module that answers the same."""
    built = subject.build().eval()
    expected = flatten(built(*subject.inputs()))
    loaded = subject.example.build().to(subject.device).eval()
    loaded.load_state_dict(built.state_dict(), strict=True)
    ways = {
        "state dict": loaded,
        "pickle": pickle.loads(pickle.dumps(built)),  # noqa: S301 - our own bytes
        "deepcopy": copy.deepcopy(built),
    }
    for way, again in ways.items():
        got = flatten(again(*subject.inputs()))
        assert all(map(torch.equal, got, expected)), f"another answer after {way}"


@common_check(*TENSOR_KINDS)
def check_empty_refused(subject: Subject) -> None:
    """An empty batch is refused with a ValueError that names the owner."""
    inputs = [
        item[:0] if isinstance(item, torch.Tensor | np.ndarray) and item.ndim else item
        for item in subject.inputs()
    ]
    _refuses(subject.build(), tuple(inputs), "an empty batch", (ValueError,))


@common_check(*TENSOR_KINDS)
def check_scalar_refused(subject: Subject) -> None:
    """A number where an array is expected is refused with an error that names the owner."""
    for place, item in enumerate(subject.inputs()):
        if isinstance(item, torch.Tensor) and item.ndim > 1:
            inputs = list(subject.inputs())
            inputs[place] = item.flatten()[0]
            what = f"a tensor without axes as argument {place}"
            _refuses(subject.build(), tuple(inputs), what, (ValueError, TypeError))


@common_check("module", "loss", "graph-module")
def check_wrong_type_refused(subject: Subject) -> None:
    """Integers where floats are expected, and floats for class indices, are refused."""
    for place, item in enumerate(subject.inputs()):
        if isinstance(item, torch.Tensor) and item.ndim:
            inputs = list(subject.inputs())
            inputs[place] = item.long() if item.is_floating_point() else item + 0.5
            what = f"{inputs[place].dtype} as argument {place}"
            _refuses(subject.build(), tuple(inputs), what, (ValueError, TypeError))


def _refuses(
    built: Any, inputs: tuple[Any, ...], what: str, errors: tuple[type[Exception], ...]
) -> None:
    try:
        built(*inputs)
    except errors as error:
        assert names_owner(str(error), built), f"{what}: the message names no owner: {error}"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} instead of ours: {error}") from error
    else:
        raise AssertionError(f"{what} was taken without an error")


@common_check("module", "graph-module", "loss", needs="parameter-free")
def check_parameter_free(subject: Subject) -> None:
    """No parameters, no buffers, an empty state dict."""
    state = subject.build().state_dict()
    assert not state, f"declared parameter-free, but its state dict holds {list(state)}"


@common_check(*TENSOR_KINDS, needs="non-negative")
def check_non_negative(subject: Subject) -> None:
    """Every output is at least zero."""
    for out in flatten(subject.build()(*subject.inputs())):
        assert bool((out >= 0).all()), f"declared non-negative, got {out.min().item():g}"


@common_check("module", "function", needs="shape-preserving")
def check_shape_preserving(subject: Subject) -> None:
    """The output has the shape of the first argument."""
    inputs = subject.inputs()
    out = flatten(subject.build()(*inputs))[0]
    assert out.shape == inputs[0].shape, f"{tuple(inputs[0].shape)} in, {tuple(out.shape)} out"


@common_check("module", "function", needs="batch-independent")
def check_batch_independent(subject: Subject) -> None:
    """In eval mode a sample's output does not depend on the others; a batch of one works."""
    built = subject.build()
    if isinstance(built, torch.nn.Module):
        built.eval()
    inputs = subject.inputs()
    whole = flatten(built(*inputs))
    for row in range(inputs[0].shape[0]):
        alone = [
            item[row : row + 1] if isinstance(item, torch.Tensor) and item.ndim else item
            for item in inputs
        ]
        for one, many in zip(flatten(built(*alone)), whole, strict=True):
            assert_close(one[0], many[row])


@common_check(*TENSOR_KINDS)
def check_devices_agree(subject: Subject) -> None:
    """Another device gives what the CPU gives; trivial on the CPU itself."""
    here = flatten(subject.build()(*subject.inputs()))
    reference = Subject(subject.card, subject.example, "cpu")
    for mine, theirs in zip(here, flatten(reference.build()(*reference.inputs())), strict=True):
        assert mine.device.type == torch.device(subject.device).type, "output on another device"
        assert_close(mine, theirs, scale=10.0)


@common_check(*ALL_KINDS, once_per_card=True)
def check_example_repeatable(subject: Subject) -> None:
    """The card's example makes the same arguments from the same generator."""
    for one, other in zip(subject.inputs(), subject.inputs(), strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), "the example ignores the generator it is given"
        elif isinstance(one, np.ndarray):
            assert np.array_equal(one, other), "the example ignores the generator it is given"
