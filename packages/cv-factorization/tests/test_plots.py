"""The pictures show the numbers they were given, and leave matplotlib as it was."""

import io
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from cv_factorization.plots import (
    codes_figure,
    components_figure,
    objective_figure,
    reconstructions_figure,
)

rng = np.random.default_rng(0)
ATOMS = rng.standard_normal((7, 12))


def shown(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_components_are_drawn_in_order_with_zero_at_grey(convert):
    figure = components_figure(convert(ATOMS), (3, 4), columns=3)
    assert len(figure.axes) == 9
    images = shown(figure)
    assert len(images) == 7
    for atom, image in zip(ATOMS, images, strict=True):
        np.testing.assert_allclose((image - 0.5) * 2, atom.reshape(3, 4) / np.abs(atom).max())


def test_components_without_signs_use_all_greys_and_constant_ones_are_grey():
    atoms = np.array([[1.0, 2.0, 3.0, 5.0], [2.0, 2.0, 2.0, 2.0]])
    first, second = shown(components_figure(atoms, (2, 2)))
    np.testing.assert_allclose(first, [[0, 0.25], [0.5, 1]])
    np.testing.assert_allclose(second, 0.5)
    assert shown(components_figure(ATOMS, (2, 2, 3)))[0].shape == (2, 2, 3)
    assert len(shown(components_figure(np.stack([ATOMS, ATOMS]), (3, 4)))) == 14


def test_objective_holds_every_history():
    figure = objective_figure({"a": [3.0, 2.0, 1.0], "b": torch.tensor([4.0, 1.0])}, log=True)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_xydata(), [[0, 3], [1, 2], [2, 1]])
    np.testing.assert_array_equal(second.get_ydata(), [4, 1])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    (alone,) = objective_figure(np.array([2.0, 1.0])).axes
    assert alone.get_legend() is None
    assert alone.get_yscale() == "linear"


def test_codes_are_counted():
    codes = np.array([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    left, middle, right = codes_figure(codes).axes
    np.testing.assert_allclose([bar.get_height() for bar in left.patches], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(middle.lines[0].get_ydata(), [0.75, 0.25, 0.0])
    assert sum(bar.get_height() for bar in right.patches) == 4
    codes_figure(np.zeros((2, 3)))


def test_reconstructions_stand_below_their_originals():
    back = ATOMS.copy()
    back[:, 0] += 0.5
    figure = reconstructions_figure(ATOMS, back, (3, 4), titles=list("abcdefg"))
    images = shown(figure)
    assert len(images) == 21
    assert figure.axes[2].get_title() == "c"
    for x, r, top, below, last in zip(ATOMS, back, images, images[7:], images[14:], strict=False):
        low, high = x.min(), x.max()
        np.testing.assert_allclose(top.ravel(), (x - low) / (high - low))
        np.testing.assert_allclose(below.ravel(), np.clip((r - low) / (high - low), 0, 1))
        np.testing.assert_allclose(last.ravel(), [0.0] + [0.5] * 11, atol=1e-12)


def test_figures_are_the_callers_alone():
    before = dict(mpl.rcParams)
    figure = reconstructions_figure(ATOMS, ATOMS, (3, 4))
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: components_figure(ATOMS, (3, 5)), r"shape must have 12 pixels .* got \(3, 5\)"),
        (lambda: components_figure(ATOMS, (12,)), r"shape must be \(h, w\) or \(h, w, 3\)"),
        (lambda: components_figure(ATOMS * np.nan, (3, 4)), "components must be finite"),
        (lambda: components_figure(ATOMS, (3, 4), columns=0), "columns must be at least 1"),
        (lambda: objective_figure([[1.0]]), r"histories must have shape \(n\)"),
        (lambda: codes_figure(ATOMS[0]), r"codes must have shape \(n, m\)"),
        (lambda: reconstructions_figure(ATOMS, ATOMS[:3], (3, 4)), "must have the same shape"),
        (lambda: reconstructions_figure(ATOMS, ATOMS, (3, 4), titles="ab"), "titles must be 7"),
    ],
)
def test_bad_input_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
