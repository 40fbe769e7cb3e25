import numpy as np
import pytest
import torch
from cv_core.data.kinds import ImageClassification, Origin
from cv_core.experiment.trial import Settings, SkipTrial, Trial
from cv_core.experiments.fdea import (
    EXPERIMENT,
    RATIOS,
    _apportion,
    _batches,
    _draw,
    _rank_correlation,
    equal_weights,
    inverse_weights,
)


def _trial(arm, seed=0, **settings):
    declared = {**EXPERIMENT.settings["smoke"], **settings}
    return Trial(arm, "", seed, "smoke", "digits", Settings(declared))


@pytest.mark.parametrize("ratios", RATIOS.values(), ids=RATIOS)
@pytest.mark.parametrize("total", [1, 7, 134, 1500])
def test_apportioning_is_exact_and_off_by_less_than_one(ratios, total):
    shares = np.array(ratios, dtype=float)
    counts = _apportion(total, shares)
    assert counts.sum() == total
    assert (np.abs(counts - total * shares / shares.sum()) < 1).all()


def test_ratios_are_those_that_the_paper_prints():
    printed = {
        "LFWA-like": (88.5, 7.6, 3.9),
        "UTKFace-like": (56.8, 15.6, 27.6),
        "FairFace-like": (30.4, 44.5, 25.1),
        "FDEA-like": (34.5, 39.0, 26.5),
    }
    for name, shares in printed.items():
        counts = np.array(RATIOS[name])
        assert (100 * counts / counts.sum()).tolist() == pytest.approx(shares, abs=0.051)


def test_weights_make_classes_weigh_alike():
    counts = np.array([90, 7, 3])
    weighted = counts * inverse_weights(counts)
    assert weighted.tolist() == pytest.approx([100 / 3] * 3)
    assert equal_weights(counts).tolist() == [1, 1, 1]


def test_rank_correlation():
    assert _rank_correlation([0.1, 0.2, 0.3], np.array([5, 6, 9])) == pytest.approx(1.0)
    assert _rank_correlation([0.3, 0.2, 0.1], np.array([5, 6, 9])) == pytest.approx(-1.0)
    assert _rank_correlation([1.0, 1.0, 1.0], np.array([5, 6, 9])) == 0.0


def test_a_trial_repeats_and_arms_of_equal_shares_agree():
    run = EXPERIMENT.arm("FDEA-like").run
    first, second = _trial("FDEA-like", steps=5), _trial("FDEA-like", steps=5)
    assert run(first) == run(second)
    assert first.record.curves == second.record.curves
    # with equal counts the weights are 1, so that re-weighting changes nothing
    run = EXPERIMENT.arm("balanced").run
    plain = run(_trial("balanced", steps=5, total=132))
    assert run(_trial("balanced", steps=5, total=132), weighting=inverse_weights) == plain


def test_arms_get_equal_totals_and_steps():
    costs = []
    for name in ("balanced", "LFWA-like", "LFWA-like, re-weighted"):
        trial = _trial(name, steps=3)
        EXPERIMENT.arm(name).run(trial)
        costs.append(trial.record.costs)
    assert costs[0] == costs[1] == costs[2]
    assert costs[0]["steps"] == 6 * 3  # six assignments


def test_every_class_gets_its_count_and_arms_share_their_images():
    trial = _trial("balanced")
    classes = [9, 4, 7]  # counts and new labels go by ascending class
    x, y = _draw(trial, trial.data, classes, np.array([5, 30, 12]), number=2)
    assert torch.bincount(y).tolist() == [5, 30, 12]
    start = 0
    for label, count in zip((4, 7, 9), (5, 30, 12), strict=True):
        own = trial.data.train_x[trial.data.train_y == label]
        drawn = x[start : start + count]
        matches = (drawn[:, None] == own[None]).flatten(2).all(2)
        assert matches.any(1).all()  # images of this class ...
        assert matches.any(0).sum() == count  # ... and no one twice
        start += count
    other = _trial("LFWA-like")
    fewer, _ = _draw(other, other.data, classes, np.array([3, 8, 12]), number=2)
    assert torch.equal(fewer, torch.cat([x[:3], x[5:13], x[35:]]))


def test_batches_are_whole_passes_in_random_order():
    settings = Settings(steps=5, batch_size=4)
    batches = _batches(10, settings, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [4] * 5
    order = torch.cat(batches)
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()


def test_other_classes_are_skipped_with_a_reason():
    x, y = torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1])
    trial = _trial("balanced")
    trial.__dict__["data"] = ImageClassification(x, y, x, y, ("cat", "dog"), Origin("pets", "Pets"))
    with pytest.raises(SkipTrial, match="neither the digits"):
        EXPERIMENT.arm("balanced").run(trial)
