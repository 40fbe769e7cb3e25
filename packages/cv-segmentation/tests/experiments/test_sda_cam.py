"""The scenes tell what they should, and each arm and control does what its name says."""

from functools import partial

import pytest
import torch
from cv_core.data.sources import load
from cv_core.experiment.trial import Settings, Trial
from cv_segmentation.climbing import adversarial_climb
from cv_segmentation.context_decoupling import ContextDecoupling
from cv_segmentation.experiments._cooccurrence import (
    BRIGHTNESS,
    CLASSES,
    Scenes,
    cooccurring_scenes,
    material_of,
    normalised,
    textures,
)
from cv_segmentation.experiments._sda_classifiers import (
    THRESHOLDS,
    Batches,
    Recipe,
    backgrounds_for,
    best_threshold,
    network,
    objects_of,
    plain_maps,
    sub_labels,
    trained,
)
from cv_segmentation.experiments.sda_cam import (
    BACKGROUND,
    CAM,
    EXPERIMENT,
    FREE,
    RANDOM_SUB,
    RANDOM_WAY,
    climbing,
    context,
    correlation,
    drawn,
    maps_of,
    mean_restraint,
    measured,
    miou,
    random_direction,
    right_off_texture,
)
from cv_segmentation.seeds import seed_miou


def trial(arm=CAM, **changes):
    settings = Settings({**EXPERIMENT.settings["smoke"], **changes})
    return Trial(arm=arm, case="", seed=0, budget="smoke", source="digits", settings=settings)


@pytest.fixture(scope="module")
def material():
    return material_of("digits", 0, tuple(sorted(trial().settings.items())))


def digits():
    data = load("digits")
    known = data.train_y < CLASSES
    return data.train_x[known].mean(1), data.train_y[known]


def test_classes_stand_on_their_own_textures_nine_times_out_of_ten():
    scenes = cooccurring_scenes(*digits(), 150, seed=1, size=16)
    assert scenes.images.shape == (150, 3, 16, 16)
    on_own = scenes.labels[torch.arange(150), scenes.textures] == 1
    assert abs(float(on_own.float().mean()) - 0.9) < 0.1  # four standard errors
    several = scenes.labels.sum(1)
    assert several.unique().tolist() == [1, 2]
    assert abs(float((several == 2).float().mean()) - 0.25) < 0.15
    assert (scenes.labels.sum(0) > 10).all()
    for label in range(CLASSES):
        shown = (scenes.masks == label + 1).flatten(1).any(1)
        assert torch.equal(shown, scenes.labels[:, label] == 1)
    again = cooccurring_scenes(*digits(), 10, seed=1, size=16)
    assert torch.equal(again.images, scenes.images[:10])


def test_the_background_is_the_texture_and_masks_are_exact():
    scenes = cooccurring_scenes(*digits(), 3, seed=2, size=16, pairs=0.0)
    grounds = [torch.from_numpy(texture.copy()) for texture in textures()]
    for image, mask, texture in zip(scenes.images, scenes.masks, scenes.textures, strict=True):
        windows = grounds[int(texture)].unfold(1, 16, 1).unfold(2, 16, 1)
        same = (windows == image[:, None, None]).all(0) | (mask > 0)
        assert same.all(3).all(2).any()
        assert image[:, mask == 0].max() <= BRIGHTNESS
        assert image[:, mask > 0].max() > 0.9


def test_foreign_scenes_are_never_on_their_own_texture(material):
    foreign = material.foreign
    assert not foreign.labels[torch.arange(len(foreign.labels)), foreign.textures].any()
    assert foreign.labels.sum(1).eq(1).all()
    general = cooccurring_scenes(*digits(), 100, seed=3, size=16, own=1 / CLASSES, pairs=0.0)
    share = general.labels[torch.arange(100), general.textures].mean()
    assert abs(float(share) - 0.2) < 0.16  # any texture is as likely; four standard errors


def test_batches_hold_scenes_or_scenes_and_their_changed_copies(material):
    scenes, k = material.train, 2
    y_sub = torch.zeros(len(scenes.labels), CLASSES * k)
    y_sub[:, ::k] = scenes.labels  # the first sub-category of each
    index = torch.arange(6)
    plain = Batches(scenes, y_sub, k, None, labelled=False, seed=0)(index)
    for found, expected in zip(
        plain, (normalised(scenes.images), scenes.labels, y_sub), strict=True
    ):
        assert torch.equal(found, expected[:6])

    objects = {number: [(torch.ones(3, 6, 6), torch.ones(6, 6))] for number in range(CLASSES * k)}
    decouple = ContextDecoupling(objects)
    x, y, sub = Batches(scenes, y_sub, k, decouple, labelled=True, seed=0)(index)
    assert torch.equal(x[:3], normalised(scenes.images[:3]))
    assert torch.equal(y[:3], scenes.labels[:3])
    assert (x[3:] != x[:3]).flatten(1).any(1).all()
    assert (y[3:] - y[:3]).sum(1).tolist() == [1, 1, 1]
    assert (y[3:] >= y[:3]).all()
    # one sub-category for each class, and the others as they were
    assert torch.equal(sub.view(6, CLASSES, k).sum(2), y)
    assert (sub[3:] >= sub[:3]).all()

    x, y, sub = Batches(scenes, y_sub, k, decouple, labelled=False, seed=0)(index)
    assert (x[3:] != x[:3]).flatten(1).any(1).all()
    assert torch.equal(y[3:], y[:3])
    assert torch.equal(sub[3:], sub[:3])


def test_random_groups_have_the_clusters_sizes(material):
    model = network(4, None)
    clusters, dealt = (sub_labels(model, material, sub, 3, 0) for sub in ("clusters", "random"))
    assert torch.equal(clusters.sum(0), dealt.sum(0))
    shown = dealt.view(-1, CLASSES, 3).sum(2)
    assert torch.equal(shown, material.train.labels)
    assert not torch.equal(clusters, dealt)
    assert torch.equal(dealt, sub_labels(model, material, "random", 3, 0))


def test_objects_come_from_scenes_of_one_class_and_backgrounds_hold_none(material):
    class Oracle(torch.nn.Module):
        """Knows the masks, at a quarter of their size."""

        def cam(self, x):
            for part in (material.train, material.validation):
                for row, image in enumerate(normalised(part.images)):
                    self.known[image.sum().item()] = part.masks[row]
            masks = torch.stack([self.known[image.sum().item()] for image in x])
            maps = torch.nn.functional.one_hot(masks, CLASSES + 1).movedim(3, 1)[:, 1:]
            return torch.nn.functional.avg_pool2d(maps.float(), 4)

    model = Oracle()
    model.known = {}
    model.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    objects = objects_of(model, material, material.train.labels, 12)
    alone = (material.train.labels.sum(1) == 1).nonzero()[:12, 0]
    expected = material.train.labels[alone].sum(0)
    counts = [len(objects.get(label, ())) for label in range(CLASSES)]
    assert all(a <= b for a, b in zip(counts, expected.tolist(), strict=True))
    assert sum(counts) >= 6
    bright = [float(rgb[:, mask > 0].mean()) for cuts in objects.values() for rgb, mask in cuts]
    assert sum(bright) / len(bright) > 0.4  # white is 2, textures lie below 0

    crops = backgrounds_for(objects, material, 0)
    for label, cuts in objects.items():
        for (rgb, mask), (ground, same) in zip(cuts, crops[label], strict=True):
            assert torch.equal(mask, same)
            assert ground.shape == rgb.shape
            assert float((ground > 0.2).float().mean()) < 0.2  # at most the rim of an object


def test_the_random_direction_leads_as_far_as_climbing():
    this = trial(RANDOM_WAY)
    model = network(4, None)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cls = torch.tensor([0, 1, 2, 3])
    climbed, _ = climbing(this, model, x, cls)
    moved, cam = random_direction(this, model, x, cls)
    lengths = [(each - x).flatten(1).norm(dim=1) for each in (climbed, moved)]
    torch.testing.assert_close(*lengths)
    assert (lengths[0] > 0).all()
    cosine = torch.nn.functional.cosine_similarity((climbed - x).flatten(1), (moved - x).flatten(1))
    assert cosine.abs().max() < 0.2  # 768 dimensions: five standard deviations are 0.18
    torch.testing.assert_close(cam, model.cam(moved)[torch.arange(4), cls])


def test_climbing_takes_the_published_settings_but_for_the_arm_s():
    model = network(4, None)
    x, cls = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    published = {"steps": 2, "step_size": 0.08, "delta": 7.0, "beta": 0.5}
    expected = adversarial_climb(model, x, cls, **published)[0]
    assert torch.equal(climbing(trial(), model, x, cls)[0], expected)
    free = EXPERIMENT.arm(FREE).run.keywords["climb"]
    expected = adversarial_climb(model, x, cls, **{**published, "delta": 0.0})[0]
    assert torch.equal(free(trial(), model, x, cls)[0], expected)


def test_the_mean_restraint_and_the_way_are_what_they_say():
    model = network(4, None)
    x, cls = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    this = trial(climb=5)
    expected, cam = climbing(this, model, x, cls, delta=7.0 / 16)  # maps of 4 x 4
    found = mean_restraint(this, model, x, cls)
    assert torch.equal(found[0], expected)
    ways = []
    moved, same = measured(ways, partial(mean_restraint, this), model, x, cls)
    assert torch.equal(moved, expected)
    assert torch.equal(same, cam)
    lengths = [float((expected[row] - x[row]).square().sum().sqrt()) for row in range(3)]
    torch.testing.assert_close(ways[0], torch.tensor(lengths))


def test_context_of_maps_that_are_known():
    masks = torch.zeros(2, 8, 8, dtype=torch.int64)
    masks[0, :, :4], masks[1, :4, :4], masks[1, 4:, 4:] = 1, 2, 3
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    scenes = Scenes(torch.zeros(2, 3, 8, 8), labels, masks, torch.zeros(2, dtype=torch.int64))
    perfect = torch.stack([masks == label for label in (1, 2, 3)], dim=1).float()
    found = context(perfect, scenes)
    assert found["energy off the object"] == pytest.approx(0.0, abs=1e-4)
    assert found["correlation with context"] < -0.3
    everywhere = labels[:, :, None, None].expand(-1, -1, 8, 8)
    found = context(everywhere, scenes)
    # off half of the first scene's object, and off three quarters of each of the second's
    assert found["energy off the object"] == pytest.approx(100 * (0.5 + 0.75 + 0.75) / 3)
    assert found["correlation with context"] == 0
    wrong = context((1 - perfect) * labels[:, :, None, None], scenes)
    assert wrong["energy off the object"] == pytest.approx(100.0)


def test_correlation_is_that_of_numpy():
    import numpy as np

    first, second = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(1)).double()
    expected = [
        np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(first, second, strict=True)
    ]
    torch.testing.assert_close(correlation(first, second), torch.tensor(expected))
    assert correlation(first, torch.ones(3, 5, 4).double()).tolist() == [0, 0, 0]


def test_the_threshold_is_the_best_one(material):
    generator = torch.Generator().manual_seed(2)
    scenes = material.test
    maps = torch.rand(8, CLASSES, 6, 6, generator=generator) * scenes.labels[:, :, None, None]
    chosen = best_threshold(maps, scenes.masks)
    scores = seed_miou(maps, scenes.masks, THRESHOLDS).tolist()
    assert scores[THRESHOLDS.index(chosen)] == max(scores)
    assert miou(scenes.masks, scenes.masks) == 1


def test_recipes_and_their_teachers():
    plain, both = Recipe(), Recipe("clusters", "objects")
    assert plain.teacher() is None
    assert both.teacher() == Recipe("clusters")
    assert Recipe("random").teacher() == plain
    assert Recipe(paste="background").teacher() == plain
    assert EXPERIMENT.arm(RANDOM_SUB).run.keywords["recipe"] == Recipe("random")
    assert EXPERIMENT.arm(BACKGROUND).run.keywords["recipe"] == Recipe(paste="background")


def test_classifiers_are_trained_alike_and_count_their_teachers():
    this = trial()
    first, steps = this.settings.first_steps, this.settings.steps
    plain, _ = trained(this, Recipe())
    again, _ = trained(this, Recipe())
    assert again.model is plain.model  # shared within a process
    both, material = trained(this, Recipe("clusters", "objects"))
    assert plain.steps == first + steps
    assert both.steps == first + 3 * steps
    assert plain.model.sub_head is None
    assert both.model.sub_head.out_features == CLASSES * this.settings.clusters
    assert not plain.model.training
    different = [
        not torch.equal(a, b)
        for a, b in zip(plain.model.parameters(), both.model.parameters(), strict=False)
    ]
    assert any(different)
    x = normalised(material.test.images)
    with torch.no_grad():
        logits, _ = both.model(x)
    torch.testing.assert_close(logits, both.model.activations(x)[0].detach())


def test_maps_are_those_of_the_classes_shown(material):
    model, scenes = network(4, None), material.test
    plain = maps_of(model, scenes, None)
    assert torch.equal(plain, plain_maps(model, scenes))
    absent = scenes.labels == 0
    assert not plain[absent].any()
    climbed = maps_of(model, scenes, partial(climbing, trial()))
    assert not climbed[absent].any()
    assert not torch.allclose(climbed, plain)
    unmoved = maps_of(model, scenes, partial(climbing, trial(), steps=0))
    torch.testing.assert_close(unmoved, plain)
    assert 0 <= right_off_texture(model, material) <= 1


def test_pictures_show_truth_seeds_and_refined_seeds(material):
    scenes = material.test
    blank = torch.zeros_like(scenes.masks)
    picture = drawn(scenes, blank, scenes.masks, count=2)
    side = scenes.masks.shape[1]
    assert picture.shape == (2 * side, 3 * side, 3)
    truth, seeds, refined = picture.split(side, dim=1)
    assert torch.equal(truth, refined)
    assert not torch.equal(truth, seeds)
