"""The constructed scenes and the arms: relations as named, meanings as declared, equal sizes."""

import numpy as np
import pytest
import torch
from cv_core.data.sources import load
from cv_core.experiment.trial import Settings, Trial, merge_settings
from cv_core.metrics.cost import count_parameters
from cv_core.random import numpy_generator
from cv_graph.experiments._interactions import (
    RELATIONS,
    SHARED,
    SIDE,
    compose_scenes,
    groups_of,
    make_world,
    prepare,
)
from cv_graph.experiments.multi_branch_hoi_graph import (
    EXPERIMENT,
    SEVERAL,
    clustered,
    drawn,
    equal_width,
    metrics,
    network,
)
from cv_graph.hgat import HGATConv
from cv_graph.label_merging import merge_label_matrix

GROUPS = groups_of("digits", 10)
WORLDS = {
    meaning: make_world(meaning, GROUPS, numpy_generator(0, "world"))
    for meaning in ("group", "none", "object")
}


def smoke_trial(arm="k=3", seed=0):
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.cases[0].settings)
    return Trial(
        arm=arm, case=EXPERIMENT.cases[0].name, seed=seed, budget="smoke", source="digits",
        settings=Settings(settings),
    )  # fmt: skip


def bench_of(trial):
    items = tuple((name, trial.settings[name]) for name in SHARED)
    return prepare(trial.source, trial.seed, trial.settings.meaning, items)


def meanings(world):
    """What each predicate means, by predicate and object."""
    table = {}
    for (p, o), relation in zip(world.triplets.tolist(), world.relation.tolist(), strict=True):
        table[p, o] = relation
    return table


def test_meaning_depends_on_what_the_case_says():
    triplets = [world.triplets for world in WORLDS.values()]
    assert all(torch.equal(item, triplets[0]) for item in triplets)
    assert len(triplets[0]) == 50
    for meaning, of in (("none", [0] * 10), ("group", GROUPS), ("object", list(range(10)))):
        table, seen = meanings(WORLDS[meaning]), {}
        for (p, o), relation in table.items():
            seen.setdefault((p, of[o]), set()).add(relation)
            if meaning != "none":  # one object's predicates have different meanings
                mine = [table[key] for key in table if key[1] == o]
                assert len(set(mine)) == len(mine) == 5
        assert all(len(found) == 1 for found in seen.values())
    in_groups = [[meanings(WORLDS["group"])[p, o] for o in (0, 1, 2)] for p in (1, 3, 5)]
    assert all(len(set(row)) == 3 for row in in_groups), "each group has a meaning of its own"
    by_object = meanings(WORLDS["object"])
    assert len({by_object[1, o] for o in (0, 6, 8, 9)}) > 1, "within a group meanings differ"


def test_frequencies_follow_zipfs_law():
    share = np.sort(WORLDS["group"].frequency)[::-1]
    np.testing.assert_allclose(share * np.arange(1, 51), share[0])
    assert share.sum() == pytest.approx(1.0)


def test_scenes_show_the_relation_and_boxes_are_tight():
    data = load("digits")
    relations = np.repeat(np.arange(6), 40)
    objects = np.tile(np.arange(10), 24)
    scenes = compose_scenes(
        data.train_x, data.train_y, objects.tolist(), relations.tolist(),
        torch.zeros(240, dtype=torch.long), numpy_generator(0), garments=False,
    )  # fmt: skip
    assert scenes.classes[:, 1].tolist() == objects.tolist()
    assert scenes.boxes.min() >= 0
    assert scenes.boxes.max() <= SIDE
    inside = torch.zeros_like(scenes.images, dtype=torch.bool)
    for index, boxes in enumerate(scenes.boxes.long().tolist()):
        for left, top, right, bottom in boxes:
            inside[index, 0, top:bottom, left:right] = True
            part = scenes.images[index, 0, top:bottom, left:right]
            for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
                assert edge.any()
    assert not scenes.images[~inside].any()
    centre = (scenes.boxes[..., :2] + scenes.boxes[..., 2:]) / 2
    right, down = (centre[:, 0] - centre[:, 1]).T
    size = (scenes.boxes[..., 2:] - scenes.boxes[..., :2]).amax(-1)
    away = torch.hypot(right, down)
    angle = {"above": -down, "below": down, "left of": -right, "right of": right}
    for number, name in enumerate(RELATIONS):
        mine = torch.from_numpy(relations == number)
        if name in angle:
            # with a standard deviation of 25 degrees, beyond 60 lie 1.6 %
            assert (angle[name] / away > 0.5)[mine].float().mean() > 0.85
        else:
            assert (away[mine] < 0.45 * size[mine].mean(1)).all()
            ratio = float((size[mine, 0] / size[mine, 1]).mean())
            assert ratio < 0.5 if name == "inside" else ratio > 0.7


def test_groups_are_those_of_the_glyphs():
    assert GROUPS == [0, 1, 2, 2, 1, 2, 0, 1, 0, 0]
    assert groups_of("fashion-mnist", 10) == [0, 2, 0, 2, 0, 1, 0, 1, 2, 1]
    assert groups_of("folder:here", 4) == [0, 1, 2, 0]


def test_arms_of_a_seed_share_everything_but_the_labels():
    trial = smoke_trial()
    bench = bench_of(trial)
    assert bench_of(smoke_trial("k=10")) is bench
    test = bench.test.scenes.label.bincount()
    assert test.tolist() == [trial.settings.per_triplet] * 50
    assert int(bench.counts.min()) >= 1
    clusters, drawn_clusters = (clustered(trial, bench, 3, at_random=r) for r in (False, True))
    assert torch.equal(clusters.sort().values, drawn_clusters.sort().values), "of equal sizes"
    assert not torch.equal(clusters, drawn_clusters)


def test_the_wide_branch_has_the_parameters_of_three():
    trial = smoke_trial()
    trial.settings["hidden"], trial.settings["edge"] = 64, 32
    bench = bench_of(trial)
    merged = {
        k: merge_label_matrix(bench.world.triplets, clustered(trial, bench, k)) for k in SEVERAL
    }
    width = equal_width(trial, bench, [merged[3]], list(merged.values()))
    sizes = [
        count_parameters(network(trial, bench, matrices, hidden, HGATConv))
        for matrices, hidden in (([merged[3]], width), (list(merged.values()), 64))
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_perfect_scores_are_perfect_and_pictures_can_be_drawn():
    bench = bench_of(smoke_trial())
    label = bench.test.scenes.label
    found = metrics(bench, torch.eye(50)[label], frequent_from=20)
    assert {found[name] for name in found if "mAP" in name or "recall" in name} == {100.0}
    assert found["rare triplets"] == float((bench.counts < 10).sum())
    wrong = metrics(bench, torch.eye(50)[(label + 1) % 50], frequent_from=20)
    assert wrong["mAP"] == wrong["recall, frequent"] == 0.0
    picture = drawn(bench, torch.eye(50)[label])
    assert picture.shape == (176, 512, 3)


def test_without_graph_attention_other_nodes_do_not_count():
    arm = next(arm for arm in EXPERIMENT.arms if arm.name == "k=2+3+5, no HGAT")
    assert arm.run.keywords == {"granularities": SEVERAL, "attention": False}
    found = arm.run(smoke_trial(arm.name))
    assert 0.0 <= found["mAP"] <= 100.0
