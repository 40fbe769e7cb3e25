import numpy as np
import pytest
from cv_core.experiment.trial import Settings, Trial
from cv_factorization.experiments.anmmf import EXPERIMENT, PENALTIES, choose, grid, samples, tiles


def trial(arm, seed=0):
    settings = Settings(EXPERIMENT.settings["smoke"])
    return Trial(
        arm=arm, case="", seed=seed, budget="smoke", source="digits-matrix", settings=settings
    )


@pytest.mark.parametrize("side", [2, 3])
def test_every_search_has_the_same_size_and_range(side):
    searches = [grid(["lam_graph"], side), grid(["lam_hsic"], side), grid(PENALTIES, side)]
    for search in searches:
        assert len({tuple(setting.items()) for setting in search}) == side**2
        used = {value for setting in search for value in setting.values()} - {0.0}
        assert min(used) == pytest.approx(1.0)
        assert max(used) == pytest.approx(1000.0)
    assert all(setting["lam_hsic"] == 0 for setting in searches[0])
    assert grid([], side) == [{"lam_hsic": 0.0, "lam_graph": 0.0}]


def test_weights_are_chosen_without_the_judged_classes():
    one = trial("ANMMF")
    chosen = choose(one, np.arange(5), 3, PENALTIES)
    other = trial("ANMMF")
    data = other.data
    spoiled = np.where(data.y[:, None] >= 5, 1 - data.X, data.X)
    other.__dict__["data"] = type(data)(
        X=spoiled, y=data.y, origin=data.origin, image_shape=data.image_shape
    )
    assert choose(other, np.arange(5), 3, PENALTIES) == chosen


def test_samples_are_the_first_of_each_class():
    X, y = samples(trial("NMF"), np.array([7, 2]))
    data = trial("NMF").data
    expected = [row for label in (2, 7) for row in np.flatnonzero(data.y == label)[:15]]
    np.testing.assert_array_equal(X, 255 * data.X[expected])
    np.testing.assert_array_equal(y, data.y[expected])


def test_arms_report_what_is_declared_and_share_their_start():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    starts = {}
    for arm in EXPERIMENT.arms:
        run = trial(arm.name)
        numbers = arm.run(run)
        assert set(numbers) <= declared
        assert all(np.isfinite(value) for value in numbers.values())
        assert 0 < numbers["ACC"] <= 1
        if arm.name == "k-means":
            continue
        course = run.record.curves["objective"]
        assert (course[0][0], course[-1][0]) == (0, 30)
        assert "CKA" in numbers or arm.name in ("NMF", "GNMF")
        assert run.record.pictures["atoms"].max() == 255
        starts[arm.name] = course[0][1]
        assert arm.run(trial(arm.name)) == numbers
    # one view of three starts where the single NMF starts; penalties only add
    assert starts["NMF"] < starts["3 NMFs"] < starts["MCNMF"] < starts["ANMMF"]


def test_tiles_stand_a_view_per_row():
    components = np.arange(2 * 3 * 4, dtype=float).reshape(2, 3, 4)
    picture = tiles(components, (2, 2))
    assert picture.shape == (2 * 32, 3 * 32)
    last = np.kron(components[1, 2].reshape(2, 2) / 23, np.ones((16, 16)))
    np.testing.assert_array_equal(picture[32:, 64:], last)
