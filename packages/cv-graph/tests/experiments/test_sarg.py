"""The scenes tell what they should, and each arm is SARG less what its name says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cv_core.experiment.trial import Settings, SkipTrial, Trial, merge_settings
from cv_core.metrics.cost import count_parameters
from cv_graph.experiments._actors import (
    ACTORS,
    GROUPS,
    KEY_CLASSES,
    draw_scene,
    make_scenes,
    place,
)
from cv_graph.experiments.sarg import (
    ARG,
    EXPERIMENT,
    FC,
    GATE,
    GCN,
    LOOKALIKES,
    MAX,
    RANDOM,
    STRANGERS,
    SUM,
    TWICE,
    build,
    key_recall,
)
from torch.nn import functional


def trial(arm=GCN, case=LOOKALIKES, seed=0, **changes) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    settings = Settings({**settings, **changes})
    return Trial(arm=arm, case=case, seed=seed, budget="smoke", source="digits", settings=settings)


def network(arm, case=LOOKALIKES):
    run = trial(arm, case)
    defaults = {"encoder": "gcn", "ratio": 0.5, "scores": None, "related": True, "largest": False}
    options = {**defaults, **getattr(EXPERIMENT.arm(arm).run, "keywords", {})}
    return build(run, make_scenes(run, "train"), **options).eval()


def test_partners_are_within_mu_and_all_others_beyond():
    places = place(np.random.default_rng(0), 40, 0.2)
    assert places.min() >= 0
    assert places.max() <= 1
    for scene in places:
        for i in range(ACTORS):
            for j in range(i):
                partners = i < 6 and i // 2 == j // 2
                assert (np.linalg.norm(scene[i] - scene[j]) <= 0.2) == partners


@pytest.mark.parametrize("case", [LOOKALIKES, STRANGERS])
def test_the_key_actors_are_the_only_close_pair_of_key_classes(case):
    scenes = make_scenes(trial(case=case, test=200), "test")
    assert set(scenes.group.tolist()) == set(range(len(GROUPS)))
    assert scenes.keys.sum(1).eq(2).all()
    near = torch.cdist(scenes.centers, scenes.centers) <= 0.2
    meant = scenes.classes < KEY_CLASSES
    for number in range(200):
        keys = scenes.keys[number].nonzero().flatten().tolist()
        assert near[number, keys[0], keys[1]]
        pair = tuple(sorted(scenes.classes[number, keys].tolist()))
        assert pair == GROUPS[scenes.group[number]]
        among = meant[number].nonzero().flatten().tolist()
        pairs = [(i, j) for i in among for j in among if i < j and near[number, i, j]]
        assert pairs == [tuple(keys)]
        assert len(among) == (5 if case == LOOKALIKES else 2)
        # two more pairs are as close
        assert int(near[number].sum()) == ACTORS + 2 * 3
    # where an actor stands in the list says nothing: 4 standard errors
    share = scenes.keys.double().mean(0)
    assert (share - 1 / 6).abs().max() < 4 * (5 / 36 / 200) ** 0.5


def test_glyphs_are_of_their_class_and_part():
    run = trial()
    for part, images, labels in (
        ("train", run.data.train_x, run.data.train_y), ("test", run.data.test_x, run.data.test_y),
    ):  # fmt: skip
        scenes = make_scenes(run, part)
        small = functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8).flatten(1)
        for glyph, label in zip(
            scenes.glyphs[:4].flatten(0, 1), scenes.classes[:4].flatten(), strict=True
        ):
            assert int(label) in labels[(small == glyph).all(1)].tolist()


def test_all_arms_see_the_same_scenes_and_seeds_differ():
    one, other = make_scenes(trial(GCN), "train"), make_scenes(trial(ARG), "train")
    assert torch.equal(one.glyphs, other.glyphs)
    assert torch.equal(one.centers, other.centers)
    assert not torch.equal(one.centers, make_scenes(trial(seed=1), "train").centers)
    assert len(make_scenes(trial(case=STRANGERS), "train").group) == len(one.group) // 2


def test_all_arms_start_alike_with_equal_parameters():
    paper = network(GCN)
    for arm in (ARG, SUM, MAX, TWICE, RANDOM, GATE):
        model = network(arm)
        assert count_parameters(model) == count_parameters(paper), arm
        for name, value in model.state_dict().items():
            assert torch.equal(value, paper.state_dict()[name]), (arm, name)
    assert count_parameters(network(FC)) > count_parameters(paper)


def test_arms_are_what_their_names_say():
    scenes = make_scenes(trial(), "test")
    paper = network(GCN)
    x = paper.embed(scenes.glyphs)
    (graph,) = paper.head.graphs
    near = torch.cdist(scenes.centers, scenes.centers) <= 0.2
    logits = x @ x.mT / x.shape[2] ** 0.5
    A = logits.masked_fill(~near, float("-inf")).softmax(2)
    H = torch.relu(A @ x @ graph.gcn.weight.T)
    alone = torch.relu(x @ graph.gcn.weight.T)
    S = torch.sigmoid((A + torch.eye(ACTORS)) @ graph.pool.actions(H) @ graph.pool.theta.weight.T)

    def expected(H, kept, *, largest=False):
        Z = torch.relu(graph.fuse(torch.cat([x, H, kept], dim=2)))
        return paper.head.activity(Z.amax(1) if largest else Z.sum(1)), paper.head.action(Z)

    zero = torch.zeros_like(H)
    for arm, logits in {
        ARG: expected(H, zero),
        SUM: expected(alone, zero),
        MAX: expected(alone, zero, largest=True),
        TWICE: expected(H, H),
        GATE: expected(H, S * H),
    }.items():
        for ours, theirs in zip(network(arm)(scenes.glyphs, scenes.centers), logits, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    kept = torch.zeros(len(x), ACTORS, 1).scatter(1, S.topk(6, dim=1).indices, 1.0)
    ours, _ = paper(scenes.glyphs, scenes.centers)
    torch.testing.assert_close(ours, expected(H, kept * S * H)[0], rtol=1e-4, atol=1e-5)


def test_random_scores_are_drawn_anew_and_find_key_actors_by_chance():
    run = trial(RANDOM, test=400)
    scenes, model = make_scenes(run, "test"), network(RANDOM)
    with torch.no_grad():
        x = model.embed(scenes.glyphs)
        first, second = (model.head.key_actor_scores(x, scenes.centers) for _ in range(2))
    assert not torch.equal(first, second)
    assert float(first.min()) >= 0
    # of two keys each is kept with probability 1/2, not quite independently: 5 standard errors
    assert abs(key_recall(first, scenes.keys) - 50) < 5 * 50 / 800**0.5


def test_key_recall_by_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 12, generator=generator)
    keys = torch.zeros(20, 12, dtype=torch.bool)
    keys[:, [3, 8]] = True
    found = 0
    for row in scores.tolist():
        upper = sorted(range(12), key=lambda i: -row[i])[:6]
        found += (3 in upper) + (8 in upper)
    assert key_recall(scores, keys) == pytest.approx(100 * found / 40)
    assert key_recall(keys.float(), keys) == 100.0


def test_the_picture_shows_scores_and_keys():
    scenes = make_scenes(trial(), "test")
    grid = torch.cartesian_prod(torch.linspace(0, 1, 4), torch.linspace(0, 1, 3))
    scenes = replace(scenes, centers=grid.expand_as(scenes.centers))
    picture = draw_scene(scenes, 0, torch.arange(12.0))
    assert picture.shape == (240, 240, 3)
    assert 0 <= picture.min() <= picture.max() <= 1
    yellow = []
    for actor, (across, down) in enumerate(grid.tolist()):
        left, top = int(across * 208), int(down * 208)
        underlined = (picture[top + 24 : top + 28, left : left + 24] == 1).all()
        assert underlined == bool(scenes.keys[0, actor])
        yellow.append(picture[top, left, 0] - picture[top, left, 2])
    assert yellow == sorted(yellow)  # as the scores
    np.testing.assert_allclose(picture[208, 208], [1.0, 0.9, 0.1])


def test_too_few_classes_are_skipped():
    run = trial()

    class Few:
        num_classes = 5

    run.__dict__["data"] = Few()
    with pytest.raises(SkipTrial, match="at least 6 classes"):
        make_scenes(run, "train")


@pytest.mark.parametrize("arm", [arm.name for arm in EXPERIMENT.arms])
def test_arms_report_what_is_declared_and_repeat(arm):
    run = trial(arm)
    found = EXPERIMENT.arm(arm).run(run)
    declared = {metric.name for metric in EXPERIMENT.metrics}
    unscored = {ARG, SUM, MAX, TWICE}
    assert set(found) == (declared - {"key recall"} if arm in unscored else declared)
    assert EXPERIMENT.arm(arm).run(trial(arm)) == found
    assert run.record.costs["steps"] == 4
    assert ("frames by score, keys underlined" in run.record.pictures) == (arm not in unscored)
