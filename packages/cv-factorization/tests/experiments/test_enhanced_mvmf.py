import numpy as np
import pytest
from cv_core.experiment.trial import Settings, Trial
from cv_factorization.experiments.enhanced_mvmf import EXPERIMENT, cosines, samples, scaled
from scipy.spatial.distance import pdist


def trial(arm="SVD", seed=0, **settings):
    return Trial(
        arm=arm,
        case="chosen data",
        seed=seed,
        budget="smoke",
        source="digits-views",
        settings=Settings({**EXPERIMENT.settings["smoke"], **settings}),
    )


def test_scaling_keeps_what_distances_say():
    rng = np.random.default_rng(0)
    wide = np.hstack([rng.random((12, 40)) * 1000, np.full((12, 1), 3.0)])  # and a constant
    result = scaled(wide)
    assert result.dtype == np.float32
    assert result.shape == (12, 12)
    assert np.square(result).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-5)
    unit = (wide - wide.min(axis=0)) / np.where(np.ptp(wide, axis=0) > 0, np.ptp(wide, axis=0), 1)
    ratio = pdist(result) / pdist(unit)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_samples_come_from_every_class_and_are_the_same_for_all_arms():
    views, y = samples(trial(classes=3, per_class=5))
    assert np.bincount(y).tolist() == [5, 5, 5]
    again, _ = samples(trial("SharedDeepMF", classes=3, per_class=5))
    other, _ = samples(trial(seed=1, classes=3, per_class=5))
    np.testing.assert_array_equal(views[0], again[0])
    assert not np.array_equal(views[0], other[0])


def test_arms_report_what_is_declared_and_share_their_start():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    starts = {}
    for arm in EXPERIMENT.arms:
        run = trial(arm.name, per_class=5, iterations=6)
        numbers = arm.run(run)
        assert {"ACC", "NMI", "ARI"} <= set(numbers) <= declared
        assert all(np.isfinite(value) for value in numbers.values())
        assert 0 < numbers["ACC"] <= 1
        if "L_R" in run.record.curves:
            starts[arm.name] = run.record.curves["L_R"][0]
            assert run.record.costs["steps"] == (3 if arm.name == "weight decay" else 6)
            assert {"parameters", "macs"} <= set(run.record.costs)
    assert len(starts) == 4
    assert len(set(starts.values())) == 1


def test_cosines_are_those_of_centred_codes():
    H = np.random.default_rng(0).normal(size=(9, 3)) + 5
    rows = [h / np.linalg.norm(h) for h in H - H.mean(axis=0)]
    expected = [[a @ b for b in rows] for a in rows]
    np.testing.assert_allclose(2 * cosines(H, 9) - 1, expected)
    assert cosines(np.zeros((300, 2))).shape == (128, 128)
