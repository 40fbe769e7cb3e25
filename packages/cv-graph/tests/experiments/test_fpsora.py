import numpy as np
import pytest
from cv_core.experiment.trial import Trial, merge_settings
from cv_graph.experiments.fpsora import (
    DIMS,
    EXPERIMENT,
    agreement,
    first_graph,
    fit,
    fpsora,
    linear,
    samples,
    scatter,
    spectral,
)
from cv_graph.methods.fpsora import FPSORA
from sklearn.datasets import load_digits

CASE = "chosen data, k=5"


def trial(arm="FPSORA", seed=0, case=CASE, budget="smoke"):
    settings = merge_settings(EXPERIMENT.settings[budget], EXPERIMENT.case(case).settings)
    return Trial(
        arm=arm, case=case, seed=seed, budget=budget, source="digits-matrix", settings=settings
    )


@pytest.fixture
def drawn():
    return samples(trial())


def test_samples_are_as_many_of_each_class_drawn_by_the_seed(drawn):
    X, y = drawn
    np.testing.assert_array_equal(np.bincount(y), 8)
    digits = load_digits()
    pixels = digits.data / 16
    for row, label in zip(X, y, strict=True):
        assert label in digits.target[(pixels == row).all(axis=1)]
    np.testing.assert_array_equal(samples(trial("PCA"))[0], X)
    assert not np.array_equal(samples(trial(seed=1))[0], X)


def test_search_starts_where_the_linear_arm_ends(drawn):
    run = trial()
    run.settings["steps"] = 0
    for kind in ("PCA", "LPP"):
        starts = linear(run, drawn[0], kind=kind)
        found = fpsora(run, drawn[0], start=kind)
        assert list(starts) == list(found) == list(DIMS)
        for d in DIMS:
            centred = starts[d] - starts[d].mean(axis=0)
            np.testing.assert_allclose(found[d], centred, atol=1e-12)


def test_spectral_arm_has_the_first_graph_of_the_search(drawn):
    run, (X, _) = trial(), drawn
    A = first_graph(run, X).toarray()
    np.testing.assert_allclose(A, A.T)
    model = FPSORA(3, 5, max_iter=0).fit(X)
    ratio = fit(run, X, model.embedding_, first_graph(run, X))["J / variance"]
    centred = model.embedding_ - model.embedding_.mean(axis=0)
    assert ratio == pytest.approx(model.objective_[0] / np.square(centred).sum(), rel=1e-10)
    L = np.diag(A.sum(axis=1)) - A
    quotients = []
    for u in spectral(run, X)[5].T:
        quotient = u @ L @ u / (u @ (A.sum(axis=1) * u))
        np.testing.assert_allclose(L @ u, quotient * A.sum(axis=1) * u, atol=1e-10)
        quotients.append(quotient)
    assert len(quotients) == 6
    assert quotients[0] == pytest.approx(0, abs=1e-10)
    assert (np.diff(quotients) >= -1e-12).all()


def test_neighbours_kept_are_a_share(drawn):
    run, (X, _) = trial(), drawn
    A = first_graph(run, X)
    assert fit(run, X, 3 * X + 1, A)["neighbours kept"] == 1
    shuffled = np.random.default_rng(0).permutation(X)
    # of 79 others, 5 are chosen: 5 / 79 by chance
    assert fit(run, X, shuffled, A)["neighbours kept"] < 0.15


def test_agreement_is_full_for_clusters_apart():
    y = np.repeat(range(4), 10)
    Y = 100 * np.eye(4)[y][:, :3] + np.random.default_rng(0).normal(size=(40, 3))
    run = trial()
    run.settings["repeats"] = 20
    numbers = agreement(run, Y, y)
    assert 0.75 < numbers["ACC"] <= 1  # single starts may merge two
    run.settings["repeats"] = 1
    assert agreement(run, 1e-3 * y[:, None].astype(float), y)["NMI"] > 0.7


def test_arms_report_what_is_declared():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    seen = set()
    for arm in EXPERIMENT.arms:
        run = trial(arm.name)
        numbers = arm.run(run)
        assert set(numbers) <= declared
        assert all(np.isfinite(value) for value in numbers.values())
        assert 0 < numbers["ACC"] <= numbers["ACC, best d"] <= 1
        grid = [value for _, value in run.record.curves["ACC over d"]]
        assert numbers["ACC"] == pytest.approx(np.mean(grid))
        assert run.record.pictures["coordinates"].shape == (192, 192, 3)
        if len(grid) > 1:
            assert [numbers[f"ACC, d={d}"] for d in DIMS] == grid
        if "FPSORA" in arm.name:
            course = [value for _, value in run.record.curves["J / its start"]]
            assert course[0] == 1
            assert (np.diff(course) < 0).all()
            assert run.record.costs["steps"] == 3
        seen |= set(numbers)
    assert seen == declared


def test_cases_leave_room_for_their_dimensions():
    classes = {"Yale": 15, "ORL": 40, "COIL-20": 20}
    for case in EXPERIMENT.cases:
        settings = merge_settings(EXPERIMENT.settings["default"], case.settings)
        n = settings.per_class * classes.get(case.name, 10)
        assert set(DIMS) <= set(settings.dims)
        assert max(settings.dims) < settings.pca < n


def test_scatter_draws_the_main_axes():
    Y = np.array([[-1.0, 0, 0], [1.0, 0, 0], [0, 0, 0.5], [0, 0, -0.5]])
    picture = scatter(Y, np.array([0, 0, 1, 1]), side=21)
    assert picture.shape == (21, 21, 3)
    dots = {tuple(pixel): np.argwhere((picture == pixel).all(axis=2)) for pixel in colours(picture)}
    assert len(dots) == 2
    spans = sorted(np.ptp(places, axis=0).tolist() for places in dots.values())
    assert spans[0][1] > 10 > spans[0][0]  # the longer axis lies across
    assert spans[1][0] > 10 > spans[1][1]


def colours(picture):
    found = np.unique(picture.reshape(-1, 3), axis=0)
    return [colour for colour in found if not (colour == 1).all()]
