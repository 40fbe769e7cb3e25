from __future__ import annotations

import pytest
import torch
from cv_core.experiment.trial import Settings, Trial
from cv_core.models.cell_operations import ZeroEdge
from cv_pruning._shared.small_images import small_images
from cv_pruning.experiments.eog_pruning import (
    EXPERIMENT,
    by_lot,
    crop_flip_and_cut,
    deployed,
    largest,
    network,
    smallest,
    smallest_of_each_cell,
)
from cv_pruning.methods.eog_pruning import (
    attach_edge_factors,
    non_skip_edges,
    remove_edges_,
)


def smoke_trial(arm: str = "EOG", **changes: object) -> Trial:
    settings = Settings({**EXPERIMENT.settings["smoke"], **changes})
    return Trial(arm=arm, case="", seed=0, budget="smoke", source="digits", settings=settings)


def factors() -> dict[str, float]:
    values = torch.rand(23, generator=torch.Generator().manual_seed(0)).tolist()
    names = [
        f"cells.{cell}.edges.{k}" for cell, edges in ((0, 6), (1, 5), (2, 12)) for k in range(edges)
    ]
    return dict(zip(names, values, strict=True))


def test_choices_against_sorting() -> None:
    trial, alphas = smoke_trial(), factors()
    ranked = sorted(alphas, key=lambda name: alphas[name])
    assert list(smallest(trial, alphas, 0.5)) == ranked[:12]
    assert list(largest(trial, alphas, 0.5)) == ranked[::-1][:12]
    drawn = by_lot(trial, alphas, 0.5)
    assert len(set(drawn)) == 12
    assert drawn == by_lot(smoke_trial("dense"), alphas, 0.5)
    assert set(drawn) != set(ranked[:12])


def test_choice_of_each_cell_takes_its_share_of_the_smallest() -> None:
    alphas = factors()
    chosen = smallest_of_each_cell(smoke_trial(), alphas, 0.5)
    assert len(set(chosen)) == len(chosen) == 12
    for cell, sizes in ((0, {3, 4}), (1, {2, 3}), (2, {6, 7})):
        mine = {name: value for name, value in alphas.items() if name.startswith(f"cells.{cell}.")}
        taken = [name for name in chosen if name in mine]
        assert len(taken) in sizes
        assert max(mine[name] for name in taken) < min(mine[n] for n in mine.keys() - set(taken))


def test_arms_share_weights_batches_and_images() -> None:
    one, other = smoke_trial("dense"), smoke_trial("EOG")
    first, second = small_images(one), small_images(other)
    assert torch.equal(first.x, second.x)
    state, again = network(one, first).state_dict(), network(other, second).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(network(one, first, "fresh").fc.weight, network(one, first).fc.weight)


def test_a_deployed_network_answers_as_the_gated_one() -> None:
    trial = smoke_trial()
    fitted = small_images(trial)
    model = network(trial, fitted)
    gates = attach_edge_factors(model, non_skip_edges(model), 0.7)
    remove_edges_(model, list(gates)[::2])
    final = deployed(model)
    torch.testing.assert_close(final(fitted.x[:8]), model.eval()(fitted.x[:8]))
    assert sum(isinstance(part, ZeroEdge) for part in final.modules()) == len(list(gates)[::2])


def test_crop_flip_and_cut_against_a_loop() -> None:
    x = 1 + torch.rand(60, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    changed, _ = crop_flip_and_cut((x, torch.arange(60)), torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    mirrored, sizes = set(), set()
    for image, out in zip(padded, changed, strict=True):
        fits = []
        for top in range(9):
            for left in range(9):
                for flip in (False, True):
                    crop = image[:, top : top + 32, left : left + 32]
                    crop = crop.flip(2) if flip else crop
                    cut = (out != crop).any(0)
                    rows, columns = cut.any(1).nonzero(), cut.any(0).nonzero()
                    whole = len(rows) and cut.sum() == cut.any(1).sum() * cut.any(0).sum()
                    if whole and len(rows) <= 16 and len(columns) <= 16 and not out[:, cut].any():
                        fits.append((flip, len(rows), len(columns)))
        assert fits
        mirrored |= {fit[0] for fit in fits}
        sizes |= {max(fit[1:]) for fit in fits}
    assert mirrored == {False, True}
    assert max(sizes) == 16


@pytest.mark.parametrize("arm", ["EOG", "fresh weights"])
def test_a_trial_is_repeatable_and_leaves_what_the_report_shows(arm: str) -> None:
    trial, again = smoke_trial(arm), smoke_trial(arm)
    found, repeated = EXPERIMENT.arm(arm).run(trial), EXPERIMENT.arm(arm).run(again)
    assert set(found) == {metric.name for metric in EXPERIMENT.metrics}
    assert {**found, "latency": 0} == {**repeated, "latency": 0}
    assert found["edges"] == len(trial.record.curves["factors, sorted"]) // 2
    assert found["latency"] > 0
    assert trial.record.costs["steps"] == (9 if arm == "fresh weights" else 6)
    assert trial.record.costs["parameters"] > 0
    (picture,) = trial.record.pictures.values()
    assert picture.shape == (3 * 24, 8 * 24, 3)


def test_the_auxiliary_head_and_drop_path_are_trained_with() -> None:
    trial = smoke_trial("dense", auxiliary=0.4, drop=0.3, augment=True)
    found = EXPERIMENT.arm("dense").run(trial)
    assert 0 <= found["test accuracy"] <= 100
