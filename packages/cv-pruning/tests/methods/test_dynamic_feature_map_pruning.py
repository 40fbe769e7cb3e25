"""dynamic-feature-map-pruning: the nine properties, slow references, counting, errors."""

from __future__ import annotations

import math

import pytest
import torch
from cv_pruning.methods.dynamic_feature_map_pruning import (
    DynamicFeatureMapPruner,
    bandwidth_reduction,
    conv2d_skip,
    map_statistics,
    prunable_maps,
)
from torch import Tensor, nn
from torch.nn import functional


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), activation(),
            nn.Conv2d(6, 6, 3, padding=1), activation(), nn.Conv2d(6, 3, 3),
        )  # fmt: skip
        with torch.no_grad():  # a part of the channels hardly ever fires
            for place in (0, 2):
                model[place].bias.copy_(torch.linspace(-2.5, 0.5, 6))
    return model.eval()


def test_property_1_the_papers_example() -> None:
    maps = [[1, 0, 0, 4], [0, 0, 0, 0], [0, 7, 2, 8], [0, 0, 0, 0], [9, 5, 3, 7]]
    x = torch.tensor(maps, dtype=torch.float64).view(1, 5, 2, 2)
    assert map_statistics(x, eps=0.0) == {"element_sparsity": 0.55, "map_sparsity": 0.4}


def test_marks_against_loops() -> None:
    x = functional.relu(draw(3, 5, 11, 12)) * (draw(3, 5, 1, 1, seed=1) > 0)
    x[0, 1, 2, 3] = float("nan")
    for eps in (0.0, 0.3):
        for density in (0.3, 0.9, 1.0):
            marks = prunable_maps(x, eps, density)
            for b in range(3):
                for c in range(5):
                    count = sum(bool(abs(v) <= eps) for v in x[b, c].flatten().tolist())
                    assert bool(marks[b, c]) == (count >= density * 132)


def test_relative_threshold_is_in_deviations_of_each_image() -> None:
    x = draw(2, 4, 5, 5) * torch.tensor([1.0, 100.0]).view(2, 1, 1, 1)
    x[:, 1] *= 1e-3
    found = prunable_maps(x, 0.1, relative=True)
    assert found.tolist() == [[False, True, False, False]] * 2
    for image, marks in zip(x, found, strict=True):
        expected = prunable_maps(image[None], 0.1 * float(image.std(correction=0)))
        assert torch.equal(expected[0], marks)
    assert prunable_maps(x, 0.1).tolist()[1] == [False] * 4


def test_property_2_maps_of_zeros_may_be_skipped() -> None:
    model, x = network().float(), draw(4, 2, 16, 16, dtype=torch.float32)
    plain = model(x)
    with DynamicFeatureMapPruner(model, 0.0, density=1.0) as pruner:
        pruned = model(x)
    assert torch.equal(pruned, plain)
    assert pruner.report().map_fraction > 0.1
    for image, expected in zip(x, plain, strict=True):  # the channels are really left out
        maps, skipped = image[None], 0
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                keep = ~prunable_maps(maps, 0.0, 1.0)[0]
                skipped += int((~keep).sum())
                maps = conv2d_skip(maps, layer.weight, layer.bias, keep, padding=layer.padding)
            else:
                maps = layer(maps)
        assert skipped > 0
        assert (maps[0] - expected).norm() <= 1e-5 * expected.norm()


def test_property_3_monotone_for_a_given_tensor() -> None:
    x = draw(8, 16, 14, 14).abs() * torch.linspace(0.01, 2, 16).view(1, -1, 1, 1)
    for grow, values in (
        ("eps", (0.0, 0.01, 0.1, 0.5, 1.0, 3.0)),
        ("density", (1, 0.99, 0.8, 0.2)),
    ):
        before = torch.zeros(8, 16, dtype=torch.bool)
        sizes = set()
        for value in values:
            marks = prunable_maps(x, **{"eps": 0.3, grow: value})
            assert bool((before <= marks).all())
            before = marks
            sizes.add(int(marks.sum()))
        assert len(sizes) > 2


def test_property_3_not_monotone_for_a_network() -> None:
    # The second layer's map is 1 - a, and a falls to 0 under the larger threshold.
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), nn.ReLU())
    with torch.no_grad():
        model[1].weight.fill_(-1.0)
        model[1].bias.fill_(1.0)
    x = torch.full((1, 1, 4, 4), 0.95)
    skipped = []
    for eps in (0.1, 0.96):
        with DynamicFeatureMapPruner(model, eps) as pruner:
            model(x)
        skipped.append(pruner.report().layers["2"].skipped)
    assert skipped == [1, 0]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2)}])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_property_4_skipping_equals_zeroing(
    groups: int, bias: bool, options: dict, dtype: torch.dtype, bound: float
) -> None:
    x, weight = draw(2, 6, 9, 8, dtype=dtype), draw(12, 6 // groups, 3, 3, seed=1, dtype=dtype)
    offset = draw(12, seed=2, dtype=dtype) if bias else None
    for keep in ([1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0] * 6, [1] * 6):
        kept = torch.tensor(keep, dtype=torch.bool)
        zeroed = x * kept.view(1, -1, 1, 1)
        expected = functional.conv2d(zeroed, weight, offset, groups=groups, **options)
        x_or_nan = x.masked_fill(~kept.view(1, -1, 1, 1), math.nan)  # skipped ones are not read
        found = conv2d_skip(x_or_nan, weight, offset, kept, groups=groups, **options)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def test_property_5_one_calibration_per_frame_is_the_image_mode() -> None:
    model, x = network().double(), draw(3, 2, 14, 14)
    maps, skipped = x, 0
    for layer in model:
        maps = layer(maps)
        if isinstance(layer, nn.ReLU):
            skipped += int(prunable_maps(maps, 0.1).sum())
            maps = maps * (maps.abs() > 0.1) * ~prunable_maps(maps, 0.1)[:, :, None, None]
    with DynamicFeatureMapPruner(model, 0.1, recalibrate_every=1) as pruner:
        torch.testing.assert_close(model(x), maps, rtol=0, atol=0)
    assert sum(layer.skipped for layer in pruner.report().layers.values()) == skipped > 0


def test_property_5_a_constant_video_gives_one_answer_for_all_intervals() -> None:
    model, x = network(), draw(1, 2, 14, 14, dtype=torch.float32)
    answers = []
    for interval in (1, 2, 3, 7):
        with DynamicFeatureMapPruner(model, 0.1, recalibrate_every=interval):
            answers += [model(x) for _ in range(7)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_property_6_the_papers_saving() -> None:
    per_frame, saved = 3435, 395  # in units of 0.01 MB
    share = bandwidth_reduction([saved], [1], 30, 30) / (30 * per_frame)
    assert round(100 * share, 2) == 11.12
    assert bandwidth_reduction([saved, 7], [1, 9], 30, 1) == 0


def test_saving_against_a_loop_over_frames() -> None:
    k, n = [[3, 1, 4, 2], [0, 5, 2, 6]], [7, 3]
    expected = 0
    for frame in range(10):
        stage, place = divmod(frame, 3)
        expected += sum(k[i][stage] * n[i] ** 2 for i in range(2)) if place else 0
    assert bandwidth_reduction(k, n, frame_rate=10, interval=3) == expected
    assert bandwidth_reduction([2], [3], 10, 3) == bandwidth_reduction([[2, 2, 2, 2]], [3], 10, 3)


@pytest.mark.parametrize(("side", "needed"), [((7, 7), 49), ((10, 10), 99), ((14, 14), 195)])
def test_property_7_rounding_up(side: tuple[int, int], needed: int) -> None:
    elements = side[0] * side[1]
    for small, expected in ((needed - 1, False), (needed, True)):
        x = torch.ones(elements)
        x[:small] = 0.0
        assert bool(prunable_maps(x.view(1, 1, *side), 0.0, 0.99)) is expected


def test_marks_of_a_video_are_those_of_its_calibration_frame() -> None:
    model = nn.Sequential(nn.ReLU())
    first, second = torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
    first[:, 1] = 1.0
    with DynamicFeatureMapPruner(model, 0.0, recalibrate_every=2) as pruner:
        outs = [model(x) for x in (first, second, second, second)]
        assert [out.mean((0, 2, 3)).tolist() for out in outs] == [[0, 1], [0, 1], [1, 1], [1, 1]]
        assert pruner.report().layers["0"].skipped == 1  # the calibration frame is loaded whole
        pruner.reset()
        assert model(second).min() == 1
        assert pruner.report().frames == 1


def test_one_module_at_two_places_has_marks_for_each() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(1.0 - self.relu(x))

    model, x = Twice(), torch.zeros(1, 1, 2, 2)
    with DynamicFeatureMapPruner(model, 0.0, recalibrate_every=3) as pruner:
        assert [model(x).max().item() for _ in range(3)] == [1.0] * 3
    assert (pruner.report().layers["relu"].maps, pruner.report().layers["relu"].skipped) == (6, 2)


def test_small_elements_of_kept_maps_become_zero_unless_told_otherwise() -> None:
    model, x = nn.Sequential(nn.LeakyReLU(0.1)), torch.tensor([[[[0.05, 2.0, -0.5, -3.0]]]])
    with DynamicFeatureMapPruner(model, 0.1):
        assert model(x).flatten().tolist() == pytest.approx([0.0, 2.0, 0.0, -0.3])
    with DynamicFeatureMapPruner(model, 0.1, threshold_elements=False):
        assert torch.equal(model(x), functional.leaky_relu(x, 0.1))


def test_every_reader_of_a_map_counts() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.drop, self.pool = nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(self.relu(x))  # in eval mode the same tensor, not a read
            y = self.conv(x) + x  # two reads
            z = torch.cat([x, y], 1)  # a third
            return self.pool(z) if x.shape[0] else z  # its shape is not its content

    model, x = Branches().eval(), torch.ones(2, 3, 4, 4)
    x[:, 0] = -1.0
    with DynamicFeatureMapPruner(model) as pruner:
        model(x)
    layer = pruner.report().layers["relu"]
    assert (layer.maps, layer.skipped) == (6, 2)
    assert (layer.bytes_loaded, layer.bytes_saved) == (3 * 4 * 16 * 4, 3 * 2 * 16 * 4)
    assert pruner.report().byte_fraction == pytest.approx(1 / 3)
    assert "33.33 % of the bytes in image mode over 1 calls" in str(pruner.report())


def test_views_are_read_once_and_in_place_changes_count() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.fc = nn.ReLU(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.relu(x).mul_(2.0).flatten(1))

    with DynamicFeatureMapPruner(model := Head()) as pruner, torch.no_grad():
        model(torch.ones(1, 2, 2, 2))
    assert pruner.report().layers["relu"].bytes_loaded == 2 * 2 * 4 * 4


def test_a_chosen_set_is_skipped_instead() -> None:
    model, x = network(), draw(3, 2, 14, 14, dtype=torch.float32)
    seen = []

    def shifted(maps: Tensor, marks: Tensor) -> Tensor:
        seen.append(torch.equal(marks, prunable_maps(maps, 0.1)))
        return marks.roll(1, dims=1)

    with DynamicFeatureMapPruner(model, 0.1, layers="1", choose=shifted) as pruner:
        model(x)
    assert seen == [True]
    assert pruner.report().layers["1"].skipped == int(prunable_maps(model[:2](x)).sum()) > 0


def test_foreign_networks() -> None:
    torchvision = pytest.importorskip("torchvision")
    x = draw(2, 3, 64, 64, dtype=torch.float32)
    for name, activations in (("resnet18", 9), ("mobilenet_v2", 35)):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = torchvision.models.get_model(name, weights=None).eval()
            plain = model(x)
            with DynamicFeatureMapPruner(model, 0.0, density=1.0) as pruner:
                assert torch.equal(model(x), plain)
            assert len(pruner.report().layers) == activations
            assert all(layer.bytes_loaded > 0 for layer in pruner.report().layers.values())
            bottlenecks = ["**.relu", "layer*.?.bn2"] if name == "resnet18" else "features.*.conv.2"
            with DynamicFeatureMapPruner(model, 0.1, layers=bottlenecks) as pruner:
                assert not torch.equal(model(x), plain)


def test_hooks_and_counting_end_with_the_block() -> None:
    model, x = network(), draw(1, 2, 8, 8, dtype=torch.float32)
    plain = model(x)
    pruner = DynamicFeatureMapPruner(model, 0.5)
    with pruner:
        assert not torch.equal(model(x), plain)
        with pytest.raises(RuntimeError, match="to have 2 channels"):
            model(x[:, :1])
    assert torch.equal(model(x), plain)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    frames = pruner.report().frames
    model(x)
    assert pruner.report().frames == frames
    with pruner, pytest.raises(RuntimeError, match="open already"):
        pruner.__enter__()
    assert torch.equal(model(x), plain)


def test_gradients_pass_through_what_is_kept() -> None:
    model, x = nn.Sequential(nn.ReLU()), torch.tensor([[[[0.05, 2.0]], [[0.0, 0.01]]]])
    x.requires_grad_()
    with DynamicFeatureMapPruner(model, 0.1):
        model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


def test_errors() -> None:
    x, weight = torch.zeros(1, 4, 3, 3), torch.zeros(4, 4, 1, 1)
    keep = torch.ones(4, dtype=torch.bool)
    model = nn.Sequential(nn.ReLU())
    for options in ({"eps": -0.1}, {"density": 0.0}, {"density": 1.1}):
        with pytest.raises(ValueError, match=r"eps|density"):
            prunable_maps(x, **options)
        with pytest.raises(ValueError, match=r"eps|density"):
            DynamicFeatureMapPruner(model, **options)
    with pytest.raises(TypeError, match="floating"):
        map_statistics(x.long())
    with pytest.raises(ValueError, match="recalibrate_every"):
        DynamicFeatureMapPruner(model, recalibrate_every=0)
    with pytest.raises(ValueError, match="no activation module"):
        DynamicFeatureMapPruner(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="boolean"):
        conv2d_skip(x, weight, None, keep.float())
    with pytest.raises(ValueError, match="keep must have shape"):
        conv2d_skip(x, weight, None, keep[:2])
    with pytest.raises(ValueError, match="groups must divide"):
        conv2d_skip(x, torch.zeros(3, 2, 1, 1), None, keep, groups=2)
    with pytest.raises(ValueError, match="interval must be at least 1 and at most 30"):
        bandwidth_reduction([1], [1], 30, 31)
    with pytest.raises(ValueError, match="the same layers"):
        bandwidth_reduction([1], [1, 2], 30, 2)
    with pytest.raises(ValueError, match="3 stages"):
        bandwidth_reduction([[1, 2]], [1], 30, 10)
    with DynamicFeatureMapPruner(model, recalibrate_every=2):
        model(x)
        with pytest.raises(ValueError, match=r"calibrated for \(B, C\) = \(1, 4\)"):
            model(x.repeat(2, 1, 1, 1))
