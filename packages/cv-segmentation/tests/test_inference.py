import math

import pytest
import torch
from cv_core.random import seeded
from cv_segmentation import inference
from cv_segmentation.inference import FLIPS, QUARTER_TURNS, View, sliding_window
from cv_segmentation.padding import Padded
from torch import nn


def draw(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def network():
    with seeded(0, "network"):
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5),
                             nn.Conv2d(4, 2, 3, padding=1)).double()  # fmt: skip


def blended(model, x, window, stride, sigma):
    """Windows one by one, weights pixel by pixel."""
    height, width = x.shape[2:]
    total = torch.zeros(len(x), 2, height, width, dtype=x.dtype)
    share = torch.zeros(height, width, dtype=x.dtype)
    tops = [*range(0, height - window[0], stride[0]), height - window[0]]
    lefts = [*range(0, width - window[1], stride[1]), width - window[1]]
    for top in tops:
        for left in lefts:
            out = model(x[:, :, top : top + window[0], left : left + window[1]])
            for i in range(window[0]):
                for j in range(window[1]):
                    y = (i - (window[0] - 1) / 2) / (sigma * window[0])
                    z = (j - (window[1] - 1) / 2) / (sigma * window[1])
                    weight = max(1e-3, math.exp(-(y * y + z * z) / 2))
                    total[:, :, top + i, left + j] += weight * out[:, :, i, j]
                    share[top + i, left + j] += weight
    return total / share


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_windows_blend_as_one_by_one(batch_size):
    model, x = network().eval(), draw(2, 3, 13, 18)
    with torch.no_grad():
        expected = blended(model, x, (6, 8), (4, 6), 0.2)
    found = sliding_window(model, x, (6, 8), 0.25, sigma=0.2, batch_size=batch_size)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("window", [(13, 18), 64, (13, 40)])
def test_a_window_that_covers_the_image_is_one_pass(window):
    model, x = network().eval(), draw(2, 3, 13, 18)
    with torch.no_grad():
        assert torch.equal(sliding_window(model, x, window), model(x))


@pytest.mark.parametrize("size", [(5, 31), (16, 16), (17, 33), (1, 1)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_a_model_of_single_pixels_does_not_see_the_windows(size, overlap):
    x = draw(1, 3, *size)
    found = sliding_window(lambda part: part.square(), x, 16, overlap)
    torch.testing.assert_close(found, x.square())


def test_a_network_of_fixed_size_takes_smaller_images_when_padded():
    sizes = []
    model = nn.Identity()
    model.register_forward_hook(lambda *called: sizes.append(tuple(called[2].shape[2:])))
    x = draw(1, 2, 5, 20)
    torch.testing.assert_close(sliding_window(Padded(model, 8), x, 8), x)
    assert set(sizes) == {(8, 8)}


def test_half_precision_is_blended_in_single():
    x = draw(1, 3, 20, 20, dtype=torch.float32).half()
    found = sliding_window(lambda part: part, x, 8, 0.75)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("call", ["window", "views"])
def test_flags_are_put_back_and_no_gradient_is_kept(call):
    model, x = network(), draw(1, 3, 8, 8)
    model[1].eval()
    run = {
        "window": lambda m, z: sliding_window(m, z, 5),
        "views": inference.test_time_augmentation,
    }[call]
    before = [module.training for module in model.modules()]
    first = run(model, x)
    assert not first.requires_grad
    assert torch.equal(run(model, x), first)  # no dropout
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError):
        run(model, x[:, :2])
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_what_does_not_fit_is_refused():
    x = draw(1, 3, 8, 8)
    same = nn.Identity()
    with pytest.raises(ValueError, match="sliding_window: overlap"):
        sliding_window(same, x, 4, 1.0)
    with pytest.raises(ValueError, match="sliding_window: window"):
        sliding_window(same, x, 0)
    with pytest.raises(ValueError, match="sliding_window: sigma"):
        sliding_window(same, x, 4, sigma=0.0)
    with pytest.raises(TypeError, match="sliding_window: image must be a floating"):
        sliding_window(same, x.long(), 4)
    with pytest.raises(ValueError, match="the model's output must have shape"):
        sliding_window(nn.AvgPool2d(2), x, 4)
    with pytest.raises(ValueError, match="model must return a tensor; got dict"):
        sliding_window(lambda part: {"out": part}, x, 4)
    with pytest.raises(ValueError, match="transforms must hold at least one view"):
        inference.test_time_augmentation(same, x, [])
    with pytest.raises(ValueError, match="View: turns"):
        View(turns=4)
    with pytest.raises(ValueError, match="View: scale"):
        View(scale=0.0)


def test_views_show_what_they_say():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert View(flip=True).apply(x).flatten().tolist() == [2, 1, 0, 5, 4, 3]
    assert View(turns=1).apply(x)[0, 0].tolist() == [[2, 5], [1, 4], [0, 3]]
    upside_down = [3, 4, 5, 0, 1, 2]
    assert View(turns=2, flip=True).apply(x).flatten().tolist() == upside_down
    assert View(scale=2.0).apply(x).shape == (1, 1, 4, 6)


def test_the_eight_views_differ_and_are_undone():
    x = draw(1, 2, 4, 5)
    for view in QUARTER_TURNS:
        assert torch.equal(view.undo(view.apply(x), (4, 5)), x)
    shown = {tuple(view.apply(x).flatten().tolist()) for view in QUARTER_TURNS}
    assert len(shown) == 8
    flipped = {tuple(view.apply(x).flatten().tolist()) for view in FLIPS}
    assert flipped == {tuple(y.flatten().tolist()) for y in (x, x.flip(2), x.flip(3), x.flip(2, 3))}


@pytest.mark.parametrize("scale", [0.5, 1.5])
@pytest.mark.parametrize("size", [(7, 10), (1, 3)])
def test_scaled_views_come_back_in_the_images_size(scale, size):
    x = torch.full((1, 2, *size), 0.25)
    for view in (View(scale=scale), View(turns=1, flip=True, scale=scale)):
        torch.testing.assert_close(view.undo(view.apply(x), size), x)


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_mean_of_probabilities_view_by_view(mode):
    model, x = network().eval(), draw(2, 3, 6, 9)
    views = [View(), View(turns=1), View(turns=3, flip=True), View(scale=1.5)]
    total = torch.zeros(2, 2, 6, 9, dtype=x.dtype)
    with torch.no_grad():
        for view in views:
            scores = model(view.apply(x))
            p = scores.softmax(1) if mode == "multiclass" else scores.sigmoid()
            total += view.undo(p, (6, 9)) / 4
    found = inference.test_time_augmentation(model, x, views, mode=mode)
    torch.testing.assert_close(found, total)
    already = inference.test_time_augmentation(
        lambda z: model(z).softmax(1), x, [View()], from_logits=False
    )
    with torch.no_grad():
        torch.testing.assert_close(already, model(x).softmax(1))


def test_averaged_over_a_group_the_model_becomes_equivariant():
    model, x = network().eval(), draw(1, 3, 6, 6)
    for group in (FLIPS, QUARTER_TURNS):
        straight = inference.test_time_augmentation(model, x, group)
        for view in group:
            seen = inference.test_time_augmentation(model, view.apply(x), group)
            torch.testing.assert_close(view.undo(seen, (6, 6)), straight)
    with torch.no_grad():
        plain = model(x).softmax(1)
    assert float((plain - straight).abs().max()) > 1e-3  # it was not before
