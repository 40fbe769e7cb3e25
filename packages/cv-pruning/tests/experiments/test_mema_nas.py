from __future__ import annotations

import numpy as np
import pytest
import torch
from cv_core.experiment.trial import Settings, SkipTrial, Trial
from cv_pruning._shared.small_images import small_images
from cv_pruning.experiments.mema_nas import (
    EDGES,
    EXPERIMENT,
    NETWORK,
    OPERATIONS,
    TABLES,
    UNIFORM,
    best_draw,
    least_mean_loss,
    loader,
    mixture,
    peak_memory,
    saved_bytes,
    supernet,
)
from cv_pruning.methods.mema_nas import MultiAgentSearch
from cv_pruning.search_space import mixed_ops, set_architecture_


def smoke_trial(case: str = NETWORK, arm: str = "MEMA", **changes: object) -> Trial:
    settings = Settings({**EXPERIMENT.settings["smoke"], **changes})
    return Trial(arm=arm, case=case, seed=0, budget="smoke", source="digits", settings=settings)


def test_choices_of_the_controls_against_loops() -> None:
    rng = np.random.default_rng(0)
    search = MultiAgentSearch([3, 4])
    draws = [
        ((int(rng.integers(3)), int(rng.integers(3))), float(rng.uniform())) for _ in range(30)
    ]
    expected = []
    for place in range(2):
        means = {}
        for k in range(3):
            losses = [loss for actions, loss in draws if actions[place] == k]
            means[k] = sum(losses) / len(losses)
        expected.append(min(means, key=lambda k: means[k]))
    assert least_mean_loss(search, draws) == tuple(expected)  # the fourth was never drawn
    least = min(loss for _, loss in draws)
    assert (best_draw(search, draws), least) in draws


def test_at_the_highest_temperature_all_are_equally_likely() -> None:
    search = MultiAgentSearch([4], temperature=UNIFORM)
    search.update((0,), 1000.0)
    np.testing.assert_allclose(search.probabilities()[0], 0.25, atol=1e-6)


def test_network_is_the_graph_of_its_edges() -> None:
    trial = smoke_trial()
    fitted = small_images(trial)
    model = supernet(trial, fitted, "search").eval()
    set_architecture_(model, (1, 2, 3, 4, 0, 1))
    x = fitted.x[:4]
    nodes = [model.stem(x), 0, 0, 0]
    for edge, (start, end) in zip(model.edges, EDGES, strict=True):
        nodes[end] = nodes[end] + edge(nodes[start])
    torch.testing.assert_close(model(x), model.fc(nodes[3].mean((2, 3))))


def test_mixture_starts_as_the_mean_of_all_candidates() -> None:
    trial = smoke_trial()
    fitted = small_images(trial)
    model, summed = supernet(trial, fitted, "search"), mixture(trial, fitted)
    op = next(iter(mixed_ops(model).values()))
    x = torch.rand(2, trial.settings.channels, 4, 4)
    expected = torch.stack([candidate(x) for candidate in op.candidates]).mean(0)
    torch.testing.assert_close(summed.edges[0](x), expected)


def test_peak_is_the_largest_of_the_drawn_architectures() -> None:
    trial = smoke_trial()
    fitted = small_images(trial)
    model, example = supernet(trial, fitted, "search"), fitted.x[:1]
    skips, convolutions = (0,) * 6, (2,) * 6
    assert peak_memory(model, example, [skips]) == 0
    both = peak_memory(model, example, [skips, convolutions])
    assert 0 < both == peak_memory(model, example, [convolutions]) < 100
    inside = model.stem(example)
    whole = saved_bytes(mixture(trial, fitted).edges[0], inside)
    assert both == pytest.approx(100 * saved_bytes(model.edges[0].candidates[2], inside) / whole)


def test_weights_and_scores_learn_from_different_images() -> None:
    trial = smoke_trial(batch=1)
    fitted = small_images(trial)
    parts = [{tuple(x.flatten().tolist()) for x, _ in loader(trial, fitted, name)}
             for name in ("weights", "scores", "all")]  # fmt: skip
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == parts[2]


@pytest.mark.parametrize("arm", ["MEMA", "uniform sampling", "random search", "printed argmax"])
def test_tables_need_no_network(arm: str) -> None:
    trial = smoke_trial(TABLES, arm, tables=4, draws=(60, 300))
    found = EXPERIMENT.arm(arm).run(trial)
    assert found == EXPERIMENT.arm(arm).run(smoke_trial(TABLES, arm, tables=4, draws=(60, 300)))
    assert found["best candidates found, 300 draws"] > 40  # 20 by chance
    assert 0 <= found["regret, 300 draws"] < 1.5


@pytest.mark.parametrize("arm", ["DARTS", "drawn by lot", "MEMA, lambda 0.5"])
def test_arms_without_a_table_say_so(arm: str) -> None:
    with pytest.raises(SkipTrial):
        EXPERIMENT.arm(arm).run(smoke_trial(TABLES, arm))


@pytest.mark.parametrize("arm", ["DARTS", "MEMA, lambda 0.5", "drawn by lot"])
def test_a_trial_is_repeatable(arm: str) -> None:
    trial, again = smoke_trial(arm=arm), smoke_trial(arm=arm)
    found = EXPERIMENT.arm(arm).run(trial)
    assert found == EXPERIMENT.arm(arm).run(again)
    assert set(found) <= {metric.name for metric in EXPERIMENT.metrics}
    assert 0 <= found["cost of the found network"] <= 3 * len(EDGES)
    assert trial.record.costs["steps"] == 4
    if arm.startswith("MEMA"):
        (picture,) = trial.record.pictures.values()
        assert picture.shape == (24 * len(EDGES), 24 * len(OPERATIONS))
