"""The scenes tell what they should, and each arm weighs the channels as its name says."""

from dataclasses import replace

import pytest
import torch
from cv_attention.experiments._embedding import (
    LAYER,
    _prepared,
    nearest_mean_loss,
    network,
    prepared,
    train,
    view,
)
from cv_attention.experiments._located import (
    FRAGMENT,
    SIDE,
    absent_classes,
    clutter,
    few_shots,
    glyph_scenes,
    material_of,
    retrieval,
    tile_scenes,
)
from cv_attention.experiments.dist_cam import (
    CAM,
    DEALT,
    DIST,
    EXPERIMENT,
    GRAD,
    GRAD_METRIC,
    OF_SOFTMAX,
    RETRIEVAL,
    REVERSED,
    ROBUST,
    SCENES,
    SHOTS,
    UNIFORM,
    WRONG,
    drawn,
    filled,
    heat,
    locate,
    tell_apart,
)
from cv_attention.methods.dist_cam import DistCAM, cam, dist_cam, dist_cam_weights
from cv_attention.prototypes import pooled
from cv_core.data.kinds import Characters, ImageClassification
from cv_core.data.origin import Origin
from cv_core.data.sources import load
from cv_core.experiment.trial import Settings, SkipTrial, Trial, merge_settings
from cv_core.explain.attribution import normalize_maps
from torch.nn import functional

ORIGIN = Origin("made", "made for a test", "", "", "", "")


def trial(arm=DIST, case=SCENES, seed=0, **changes) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    settings = Settings({**settings, **changes})
    return Trial(arm=arm, case=case, seed=seed, budget="smoke", source="digits", settings=settings)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def of(arm):
    return EXPERIMENT.arm(arm).run.keywords["weigh"]


def test_clutter_is_made_of_fragments_at_their_share():
    images = torch.rand(5, 2, 12, 11, generator=generator())
    canvases = clutter(images, 3, 0.5, generator(1))
    assert canvases.shape == (3, 2, SIDE, SIDE)
    known = {
        tuple(image[:, top : top + FRAGMENT, left : left + FRAGMENT].flatten().tolist())
        for image in images
        for top in range(12 - FRAGMENT + 1)
        for left in range(11 - FRAGMENT + 1)
    }
    seen, empty = set(), 0
    for canvas in canvases:
        for top in range(0, SIDE, FRAGMENT):
            for left in range(0, SIDE, FRAGMENT):
                cell = canvas[:, top : top + FRAGMENT, left : left + FRAGMENT]
                if cell.any():
                    seen.add(tuple(cell.flatten().tolist()))
                else:
                    empty += 1
    assert seen <= known
    assert len(seen) > 40  # of 5 * 5 * 4 fragments in some 96 draws
    assert abs(empty - 96) < 5 * 48**0.5


def test_glyphs_stand_in_their_boxes_and_repeat():
    digits = load("digits")
    arguments = (digits.train_x, digits.train_y, 12, 2, 10, 3)
    scenes = glyph_scenes(*arguments, share=0.0)
    assert torch.equal(scenes.images, glyph_scenes(*arguments, share=0.0).images)
    assert scenes.images.shape == (12, 1, SIDE, SIDE)
    assert (scenes.labels[:, 0] != scenes.labels[:, 1]).all()
    for image, boxes in zip(scenes.images[:, 0], scenes.boxes.int().tolist(), strict=True):
        outside = image.clone()
        for left, top, right, bottom in boxes:
            assert image[top:bottom, left:right].max() > 0.9
            assert 24 <= max(right - left, bottom - top) <= 35  # resampling adds a rim
            outside[top:bottom, left:right] = 0.0
        assert outside.eq(0).all()
    assert glyph_scenes(*arguments, share=0.5).images.mean() > scenes.images.mean()


def test_tiles_are_whole_images_in_different_quadrants():
    x = torch.rand(6, 3, 32, 32, generator=generator())
    y = torch.tensor([0, 0, 0, 1, 2, 2])
    scenes = tile_scenes(x, y, 30, 2, 3, 5, share=0.3)
    rows = {}
    for number in range(30):
        for label, box in zip(scenes.labels[number], scenes.boxes[number], strict=True):
            left, top, right, bottom = box.int().tolist()
            part = scenes.images[number, :, top:bottom, left:right]
            (row,) = [row for row in range(6) if torch.equal(x[row], part)]
            rows[row] = rows.get(row, 0) + 1
            assert y[row] == label
        assert scenes.labels[number, 0] != scenes.labels[number, 1]
        assert not torch.equal(scenes.boxes[number, 0], scenes.boxes[number, 1])
    assert set(rows) == set(range(6))


def test_absent_classes_are_absent_and_all_others_occur():
    labels = torch.tensor([[0, 2], [3, 1]]).repeat(100, 1)
    absent = absent_classes(labels, 5, generator())
    assert {int(found) for found in absent[::2].flatten()} == {1, 3, 4}
    assert {int(found) for found in absent[1::2].flatten()} == {0, 2, 4}


def bars(classes, drawings):
    """Characters whose class is the width of a bar, so that a scene's picture tells it."""
    images = []
    for kind in range(classes):
        for _ in range(drawings):
            image = torch.zeros(1, 28, 28)
            image[:, 2:26, 4 : 6 + 2 * kind] = 1.0
            images.append(image)
    number = torch.arange(classes * drawings)
    return Characters(
        images, number * 0, number // drawings, number % drawings, ("bars",), (), ORIGIN
    )


def width_of(image):
    """The number of a bar: its width for a height of 24, less 2, halved."""
    rows, columns = image[0].nonzero().unbind(1)
    height = int(rows.max() - rows.min()) + 1
    return round(((int(columns.max() - columns.min()) + 1) * 24 / height - 2) / 2)


def test_every_class_of_an_episode_has_its_support_and_none_was_trained_on():
    settings = trial(
        clutter=0.0, novel=3, test_ways=3, supports=2, train=40, validation=3, test=8, base=4
    ).settings
    material = few_shots(bars(10, 6), settings, seed=1)
    trained = {width_of(image) for image in material.x}
    assert len(trained) == 4
    shown = {}
    for name in ("validation", "test"):
        scenes = getattr(material, name)
        for number in range(len(scenes.labels)):
            kinds = [width_of(image) for image in scenes.support[number]]
            assert len(set(kinds)) == 3
            assert kinds[int(scenes.labels[number, 0])] == width_of(scenes.images[number])
            assert scenes.absent[number, 0] != scenes.labels[number, 0]
            shown.setdefault(name, set()).update(kinds)
    assert not shown["validation"] & shown["test"]
    assert not trained & (shown["validation"] | shown["test"])
    pairs = material.pairs
    assert pairs.support.shape == (8, 3, 1, SIDE, SIDE)
    for number in range(8):
        labels = pairs.labels[number].tolist()
        assert len({*labels, *pairs.absent[number].tolist()}) == 3
        for label, (left, top, right, bottom) in zip(
            labels, pairs.boxes[number].int().tolist(), strict=True
        ):
            part = pairs.images[number, :, top:bottom, left:right]
            assert width_of(part) == width_of(pairs.support[number, label])


def test_classes_stand_for_what_is_nearest_or_for_their_means():
    x = torch.rand(40, 3, 32, 32, generator=generator())
    y = torch.arange(40) % 4
    data = ImageClassification(x, y, x[:8], y[:8], tuple("abcd"), ORIGIN)
    settings = trial(train=20, validation=3, test=5).settings
    material = retrieval(data, settings, seed=0)
    model = network(3, None, 4).eval()
    means = view(model, replace(material, nearest=False), material.test, "cpu")
    nearest = view(model, material, material.test, "cpu")
    with torch.no_grad():
        gallery = model(material.x)
        query = model(material.test.images)
    torch.testing.assert_close(pooled(nearest.maps), query)
    for number in range(5):
        for label in range(4):
            own = gallery[material.y == label]
            torch.testing.assert_close(means.references[number, label], own.mean(0))
            closest = own[(own - query[number]).abs().sum(1).argmin()]
            torch.testing.assert_close(nearest.references[number, label], closest)


def test_the_loss_leaves_each_sample_out_of_its_own_mean():
    features = torch.rand(3, 4, 5, generator=generator(), dtype=torch.float64)
    losses = []
    for way in range(3):
        for shot in range(4):
            logits = []
            for other in range(3):
                rows = [k for k in range(4) if (other, k) != (way, shot)]
                mean = sum(features[other, k] for k in rows) / len(rows)
                logits.append(-(features[way, shot] - mean).abs().sum())
            losses.append(-torch.stack(logits).log_softmax(0)[way])
    torch.testing.assert_close(nearest_mean_loss(features), torch.stack(losses).mean())


def test_both_networks_start_alike_and_learn():
    x = torch.rand(60, 1, SIDE, SIDE, generator=generator())
    y = torch.arange(60) % 3
    x[torch.arange(60), :, 20:40, 20:40] *= y[:, None, None, None] / 2
    settings = trial(steps=12, ways=3, shots=6, rate=1e-2).settings
    for net, classes in (("softmax", 3), ("metric", None)):
        torch.manual_seed(0)
        model = network(1, classes, 4)
        first = model.get_submodule(LAYER)[1].conv.weight.detach().clone()
        torch.manual_seed(0)
        assert torch.equal(network(1, None, 4).get_submodule(LAYER)[1].conv.weight, first)

        def loss(model=model, net=net):
            model.train()
            with torch.no_grad():
                outputs = model(x[y.argsort(stable=True)])
            if net == "metric":
                return float(nearest_mean_loss(outputs.unflatten(0, (3, 20))))
            return float(functional.cross_entropy(outputs, y.sort().values))

        before = loss()
        train(model, net, x, y, settings, seed=0)
        assert not model.training
        assert loss() < 0.8 * before


def test_arms_are_what_their_names_say():
    run = trial()
    metric, softmax = prepared(run, "metric"), prepared(run, "softmax")
    assert prepared(trial(WRONG), "metric") is metric  # shared by the arms of a seed

    def large(maps, scenes):
        size = scenes.images.shape[2:]
        return normalize_maps(functional.interpolate(maps[:, None], size, mode="bilinear")[:, 0])

    for number, part in ((0, "test"), (1, "pairs")):
        seen, classified = getattr(metric, part), getattr(softmax, part)
        scenes = seen.scenes
        own = torch.stack(
            [refs[c] for refs, c in zip(seen.references, scenes.labels[:, number], strict=True)]
        )
        other = torch.stack(
            [refs[c] for refs, c in zip(seen.references, scenes.absent[:, number], strict=True)]
        )
        distance = (own - pooled(seen.maps)).abs()
        expected = {
            DIST: dist_cam(seen.maps, own),
            ROBUST: dist_cam(seen.maps, own, relative_eps=0.01),
            UNIFORM: seen.maps.mean(1),
            REVERSED: torch.einsum("bk,bkhw->bhw", distance, seen.maps),
            WRONG: dist_cam(seen.maps, other),
        }
        for arm, maps in expected.items():
            found = heat(metric, seen, number, of(arm))
            torch.testing.assert_close(found, large(maps, scenes), atol=1e-4, rtol=1e-4)
        weights = dist_cam_weights(pooled(seen.maps), own)
        dealt = of(DEALT)(metric, seen, number)
        assert torch.equal(dealt.sort(1).values, weights.sort(1).values)
        assert not torch.equal(dealt, weights)

        labels = scenes.labels[:, number]
        weight = softmax.model.get_parameter("fc.weight").detach()
        maps = cam(classified.maps, weight, labels)
        found = heat(softmax, classified, number, of(CAM))
        torch.testing.assert_close(found, large(maps, scenes), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            heat(softmax, classified, number, of(GRAD)),
            large(maps.relu(), scenes),
            atol=1e-3,
            rtol=1e-3,
        )
        signs = (own - pooled(seen.maps)).sign()
        maps = torch.einsum("bk,bkhw->bhw", signs, seen.maps).relu()
        torch.testing.assert_close(
            heat(metric, seen, number, of(GRAD_METRIC)),
            large(maps, scenes),
            atol=1e-3,
            rtol=1e-3,
        )
    assert of(OF_SOFTMAX) is of(DIST)


def test_the_papers_arm_is_the_explainer_of_the_network():
    bench = prepared(trial(), "metric")
    scenes = bench.test.scenes
    prototypes = bench.test.references[0]  # in this case those of all scenes
    assert torch.equal(bench.test.references[-1], prototypes)
    found, _ = DistCAM(bench.model, LAYER)(scenes.images, prototypes, scenes.labels[:, 0])
    torch.testing.assert_close(heat(bench, bench.test, 0, of(DIST)), found, atol=1e-4, rtol=1e-4)


def test_thresholds_are_chosen_on_other_scenes():
    bench = prepared(trial(), "metric")
    found, threshold = locate(bench, of(UNIFORM))
    moved = replace(bench.test.scenes, boxes=bench.test.scenes.boxes / 2)
    again, same = locate(replace(bench, test=replace(bench.test, scenes=moved)), of(UNIFORM))
    assert same == threshold
    assert again["IoU"] != found["IoU"]
    maps = heat(bench, bench.test, 0, of(UNIFORM))
    truth = filled(bench.test.scenes.boxes[:, 0], maps)
    share = (maps * truth).sum((1, 2)) / maps.sum((1, 2))
    assert found["energy in box"] == pytest.approx(100 * float(share.mean()), rel=1e-5)


def test_telling_two_objects_apart():
    boxes = torch.tensor([[[0.0, 0, 2, 2], [3, 3, 5, 5]]]).expand(3, -1, -1)
    first, second = torch.zeros(2, 3, 6, 6)
    first[:, 1, 1] = 1.0  # always right
    second[0, 4, 4] = 1.0  # right
    second[1, 0, 0] = 1.0  # on the wrong one
    second[2, 0, 5], second[2, 3, 3] = 1.0, 0.5  # beside both, yet nearer to the right one
    found = tell_apart(first, second, boxes)
    assert found["pointing game"] == pytest.approx(100 * 4 / 6)
    assert found["right one of two"] == pytest.approx(100 * 5 / 6)
    same = torch.rand(3, 6, 6, generator=generator())
    assert tell_apart(same, same, boxes)["right one of two"] == 50.0


def test_the_picture_shows_the_boxes():
    bench = prepared(trial(), "metric")
    maps = heat(bench, bench.test, 0, of(DIST))
    picture = drawn(bench.test, maps, 0.5)
    assert picture.shape == (2 * SIDE, 4 * SIDE, 3)
    left, top, right, bottom = (2 * bench.test.scenes.boxes[0, 0].int()).tolist()
    outline = torch.cat([picture[top, left:right], picture[bottom - 1, left:right]])
    white = (outline == 255).all(1)
    green = (outline == torch.tensor([51, 229, 51])).all(1)
    assert (white | green).all()
    assert white.any()


def test_cases_and_data_without_what_an_arm_needs_are_skipped():
    for case in (RETRIEVAL, SHOTS):
        for arm in (CAM, GRAD, OF_SOFTMAX):
            with pytest.raises(SkipTrial, match="no network with a layer FC"):
                EXPERIMENT.arm(arm).run(trial(arm, case))
    run = trial()

    class Few:
        num_classes = 2

    run.__dict__["data"] = Few()
    with pytest.raises(SkipTrial, match="a class besides two"):
        EXPERIMENT.arm(DIST).run(run)


@pytest.mark.parametrize("arm", [arm.name for arm in EXPERIMENT.arms])
def test_arms_report_what_is_declared_and_repeat(arm):
    run = trial(arm)
    found = EXPERIMENT.arm(arm).run(run)
    declared = {metric.name for metric in EXPERIMENT.metrics}
    unweighted = {CAM, GRAD, GRAD_METRIC}
    weighted_only = {"effective channels", "activity"} if arm in unweighted else set()
    assert set(found) == declared - weighted_only
    assert EXPERIMENT.arm(arm).run(trial(arm)) == found
    assert run.record.costs["steps"] == 3
    assert len(run.record.pictures) == 1
    if arm == UNIFORM:
        assert found["right one of two"] == 50.0
        assert found["activity"] == pytest.approx(1.0)
        assert found["effective channels"] == pytest.approx(8.0)


def test_a_network_trained_again_gives_the_same_maps():
    run = trial()
    bench = prepared(run, "metric")
    _prepared.cache_clear()
    material_of.cache_clear()
    again = prepared(run, "metric")
    assert again is not bench
    assert torch.equal(again.test.maps, bench.test.maps)
