"""What the checks refuse, and that every message names owner, argument and what came."""

import math

import numpy as np
import pytest
import torch
from cv_core import checks


def test_choice_names_the_nearest():
    checks.check_choice("f", "mode", "mean", ("mean", "sum"))
    with pytest.raises(ValueError, match="f: mode") as caught:
        checks.check_choice("f", "mode", "maen", ("mean", "sum"))
    assert str(caught.value) == (
        "f: mode must be one of 'mean', 'sum'; got 'maen'. Did you mean 'mean'?"
    )
    with pytest.raises(ValueError, match=r"got 'zzz'\.$"):
        checks.check_choice("f", "mode", "zzz", ("mean", "sum"))


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_range_takes_numbers_of_every_kind(value):
    checks.check_range("f", "x", value, low=0, high=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, -math.inf])
def test_range_refuses_what_lies_outside(value):
    with pytest.raises(ValueError, match=r"f: x must lie in \[0, 1\]; got"):
        checks.check_range("f", "x", value, low=0, high=1)


def test_range_may_leave_out_its_ends():
    checks.check_range("f", "x", 1e-300, low=0, low_open=True)
    with pytest.raises(ValueError, match=r"must lie in \(0, inf\); got 0"):
        checks.check_range("f", "x", 0, low=0, low_open=True)
    with pytest.raises(ValueError, match=r"must lie in \(-inf, 1\); got 1"):
        checks.check_range("f", "x", 1, high=1, high_open=True)
    with pytest.raises(ValueError, match="must lie in"):
        checks.check_range("f", "x", math.inf)


NO_NUMBERS = [True, np.True_, "1", None, [1.0], 1j, torch.ones(2), np.ones(2)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_range_refuses_what_is_no_number(value):
    with pytest.raises(TypeError, match="f: x must be a number; got"):
        checks.check_range("f", "x", value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0, np.float64(1), torch.tensor(1.5)], ids=repr)
def test_integer_refuses_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match="f: n must be a whole number; got"):
        checks.check_integer("f", "n", value)


def test_integer_has_both_ends():
    for value in (1, 3, np.int8(2), torch.tensor(2)):
        checks.check_integer("f", "n", value, low=1, high=3)
    with pytest.raises(ValueError, match=r"n must be at least 1 and at most 3; got 4\."):
        checks.check_integer("f", "n", 4, low=1, high=3)
    with pytest.raises(ValueError, match=r"n must be at least 1; got 0\."):
        checks.check_integer("f", "n", 0, low=1)
    with pytest.raises(ValueError, match=r"n must be at most 3; got 4\."):
        checks.check_integer("f", "n", 4, high=3)


def test_shape_returns_the_named_sizes():
    found = checks.check_shape("f", "x", torch.zeros(2, 3, 4, 4), "b c s s")
    assert found == {"b": 2, "c": 3, "s": 4}
    assert checks.check_shape("f", "x", np.zeros((5, 6, 2, 3)), "... 3") == {}
    assert checks.check_shape("f", "x", np.zeros(3), "... n") == {"n": 3}
    assert checks.check_shape("f", "x", np.zeros((2, 9, 9, 3)), "b ... c") == {"b": 2, "c": 3}


@pytest.mark.parametrize(
    ("shape", "pattern", "sizes"),
    [
        ((2, 3), "b c h", {}),
        ((2, 3), "n n", {}),
        ((2, 3), "b 4", {}),
        ((2, 3), "b c", {"c": 4}),
        ((2,), "b ... c", {}),
    ],
)
def test_shape_refuses_what_does_not_fit(shape, pattern, sizes):
    with pytest.raises(ValueError, match="f: x must have shape"):
        checks.check_shape("f", "x", torch.zeros(shape), pattern, **sizes)


def test_shape_refuses_an_empty_axis_and_what_has_no_shape():
    with pytest.raises(ValueError, match="f: x is empty along axis 'b'"):
        checks.check_shape("f", "x", torch.zeros(0, 3), "b c")
    with pytest.raises(TypeError, match="f: x must be a tensor or array; got list"):
        checks.check_shape("f", "x", [1.0], "b")


def test_same_shape_shows_all():
    checks.check_same_shape("f", a=torch.zeros(2), b=np.zeros(2))
    with pytest.raises(ValueError, match=r"f: a and b .*got a \(2,\), b \(1, 2\)"):
        checks.check_same_shape("f", a=torch.zeros(2), b=torch.zeros(1, 2))


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_finite_counts_what_is_not(make):
    checks.check_finite("f", "x", make([1.0, 2.0]))
    checks.check_finite("f", "x", make([1, 2]))
    with pytest.raises(ValueError, match="f: x must be finite; 2 of 3 entries"):
        checks.check_finite("f", "x", make([math.nan, 1.0, -math.inf]))


def test_floating_says_how_to_convert():
    checks.check_floating("f", "x", torch.zeros(1, dtype=torch.float16))
    for wrong in (torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"f: x must be a floating.*x\.float\(\)"):
            checks.check_floating("f", "x", wrong)
    with pytest.raises(TypeError, match="f: x must be a tensor; got ndarray"):
        checks.check_floating("f", "x", np.zeros(1))


def test_indices_lie_among_the_classes():
    checks.check_indices("f", "t", torch.tensor([0, 2, -100]), high=3, ignore=-100)
    checks.check_indices("f", "t", torch.tensor([], dtype=torch.long), high=3, ignore=None)
    for wrong in (3, -1, -100):
        with pytest.raises(ValueError, match=rf"f: t must lie in \[0, 2\]; got {wrong}\."):
            checks.check_indices("f", "t", torch.tensor([0, wrong]), high=3, ignore=None)


def test_indices_of_few_bits_do_not_wrap():
    """-100 in uint8 is 156, which is a wrong class and not an ignored one."""
    with pytest.raises(ValueError, match="got 156"):
        checks.check_indices("f", "t", torch.tensor([156], dtype=torch.uint8), high=3, ignore=-100)
    checks.check_indices("f", "t", torch.tensor([5], dtype=torch.int8), high=1000, ignore=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_indices_are_whole_numbers(dtype):
    with pytest.raises(TypeError, match=r"f: t must hold class indices.*t\.long\(\)"):
        checks.check_indices("f", "t", torch.zeros(2, dtype=dtype), high=3, ignore=None)


def test_odd():
    checks.check_odd("f", "size", 3)
    with pytest.raises(ValueError, match=r"f: size must be odd; got 4\."):
        checks.check_odd("f", "size", 4)
    with pytest.raises(ValueError, match="at least 3"):
        checks.check_odd("f", "size", 1, low=3)
    with pytest.raises(TypeError, match="whole number"):
        checks.check_odd("f", "size", 3.0)
