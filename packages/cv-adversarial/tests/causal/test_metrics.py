"""Scores of effects: the paper's property of each, and the policy risk by a loop."""

import numpy as np
import pytest
from cv_adversarial.causal.metrics import ate_error, policy_risk, sqrt_pehe


def test_pehe_is_never_below_the_error_of_the_mean_and_zero_for_the_truth():  # property 1
    rng = np.random.default_rng(0)
    for _ in range(50):
        true, estimated = rng.normal(size=(2, 9))
        assert sqrt_pehe(true, estimated) >= ate_error(true, estimated)
    assert sqrt_pehe(true, true) == ate_error(true, true) == 0.0
    shifted = true - 0.25  # equality holds where the error is the same for all
    assert sqrt_pehe(true, shifted) == pytest.approx(0.25)
    assert ate_error(true, shifted) == pytest.approx(0.25)


def by_loop(ite, t, y, randomized):
    cells = {0: [], 1: []}
    policies = []
    for effect, treatment, outcome, counts in zip(ite, t, y, randomized, strict=True):
        if not counts:
            continue
        policies.append(int(effect > 0))
        if policies[-1] == treatment:
            cells[treatment].append(outcome)
    value = 0.0
    for group, outcomes in cells.items():
        if outcomes:
            value += sum(outcomes) / len(outcomes) * policies.count(group) / len(policies)
    return 1 - value


def test_policy_risk_equals_the_loop():
    rng = np.random.default_rng(1)
    for _ in range(30):
        ite, y = rng.normal(size=12), rng.random(12)
        t, randomized = rng.integers(2, size=12), rng.random(12) < 0.7
        randomized[0] = True
        expected = by_loop(ite, t, y, randomized)
        assert policy_risk(ite, t, y, randomized=randomized) == pytest.approx(expected)
        everyone = by_loop(ite, t, y, np.ones(12))
        assert policy_risk(ite, t, y) == pytest.approx(everyone)


def test_policy_risk_sees_factual_outcomes_and_signs_only():  # property 7
    rng = np.random.default_rng(2)
    t, y, ite = rng.integers(2, size=40), rng.random(40), rng.normal(size=40)
    assert policy_risk(np.ones(40), t, y) == pytest.approx(1 - y[t == 1].mean())
    assert policy_risk(np.zeros(40), t, y) == pytest.approx(1 - y[t == 0].mean())  # 0 is control
    assert policy_risk(ite, t, y) == policy_risk(np.sign(ite) * rng.random(40), t, y)


def test_the_best_policy_has_least_risk_where_both_outcomes_are_known():  # property 7
    rng = np.random.default_rng(3)
    outcomes = rng.random((200, 2))

    def risk(policy):
        return 1 - outcomes[np.arange(200), policy.astype(int)].mean()

    best = risk(outcomes[:, 1] > outcomes[:, 0])
    assert best == pytest.approx(1 - outcomes.max(axis=1).mean())
    for _ in range(20):
        assert best <= risk(rng.random(200) < rng.random())
    # on factual outcomes alone a chance policy can beat it: no unit of a cell may show its worth
    both, t = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1])
    y = both[np.arange(2), t]
    oracle, opposite = policy_risk(both[:, 1] - both[:, 0], t, y), policy_risk([-1.0, 1.0], t, y)
    assert oracle == opposite == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sqrt_pehe([1.0], [1.0, 2.0]), r"sqrt_pehe: estimated must have shape \(n\)"),
        (lambda: sqrt_pehe([], []), "sqrt_pehe: true is empty"),
        (lambda: ate_error([np.nan], [1.0]), "ate_error: true must be finite"),
        (lambda: policy_risk([1.0], [2], [1.0]), r"policy_risk: t must hold 0 \(control\) and 1"),
        (lambda: policy_risk([1.0], [np.nan], [1.0]), "t must hold 0"),
        (lambda: policy_risk([1.0], ["1"], [1.0]), "t must hold 0"),
        (lambda: policy_risk([1.0], [1, 0], [1.0]), r"t must have shape \(n\) with n=1"),
        (
            lambda: policy_risk([1.0], [1], [1.0], randomized=[False]),
            "randomized must be a mask that holds at least one unit",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
