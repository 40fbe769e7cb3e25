"""MEMA-NAS: the agents' rules against loops, the search, the resource term."""

import math

import numpy as np
import pytest
import torch
from cv_core.engine.loader import TensorLoader
from cv_core.random import seeded, torch_generator
from cv_pruning.methods.mema_nas import MultiAgentSearch, ResourceRegulariser, mema_search
from cv_pruning.search_cost import resource_cost
from cv_pruning.search_space import MixedOp, candidate, mixed_ops
from torch import nn
from torch.nn import functional

# --- the agents ---


@pytest.mark.parametrize("mu", [0.0, 0.1, 0.7, 1.0])
def test_scores_against_a_loop(mu):
    rng = np.random.default_rng(0)
    search = MultiAgentSearch([2, 4, 1], mu=mu, init=0.3)
    scores, draws = [[0.3] * 2, [0.3] * 4, [0.3]], [[0] * 2, [0] * 4, [0]]
    for _ in range(40):
        actions, loss = search.sample(), float(rng.uniform(0, 3))
        search.update(actions, loss)
        for agent, k in enumerate(actions):
            scores[agent][k] = (1 - mu) * scores[agent][k] - mu * loss
            draws[agent][k] += 1
    for mine, expected in zip(search.scores, scores, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-12)
    assert [row.tolist() for row in search.draws] == draws


def test_1_constant_loss_has_a_closed_form():
    search = MultiAgentSearch([3], mu=0.2, init=0.5)
    for t in range(1, 30):
        search.update((1,), 2.0)
        expected = -2.0 + (1 - 0.2) ** t * (0.5 + 2.0)
        assert search.scores[0][1] == pytest.approx(expected, abs=1e-12)


def test_2_unsampled_scores_stay_and_the_policy_ignores_a_common_shift():
    search = MultiAgentSearch([3, 2], mu=0.3)
    shifted = MultiAgentSearch([3, 2], mu=0.3, init=7.0)
    for table in (search, shifted):
        before = table.scores
        table.update((2, 0), 1.0)
        after = table.scores
        assert after[0][:2].tolist() == before[0][:2].tolist()
        assert after[1][1] == before[1][1]
    for row in search.probabilities():
        assert row.sum() == pytest.approx(1)
    moved = MultiAgentSearch([3, 2], mu=0.3, init=5.0)
    moved.update((2, 0), 1.0 - 5.0)  # the same step, with all scores five higher
    for one, other in zip(search.probabilities(), moved.probabilities(), strict=True):
        np.testing.assert_allclose(one, other)


def test_policy_is_the_softmax_of_the_scores_over_the_temperature():
    search = MultiAgentSearch([3, 2], mu=1.0, temperature=0.5)
    for actions, loss in (((0, 0), 1.0), ((1, 1), 0.2), ((2, 1), 0.6)):
        search.update(actions, loss)
    for scores, row in zip(([-1.0, -0.2, -0.6], [-1.0, -0.6]), search.probabilities(), strict=True):
        weights = [math.exp(score / 0.5) for score in scores]
        np.testing.assert_allclose(row, [weight / sum(weights) for weight in weights])


def test_samples_follow_the_policy_of_each_agent_independently():
    search = MultiAgentSearch([3, 2], mu=1.0, seed=1)
    for actions, loss in (((0, 0), 1.0), ((1, 1), 0.0), ((2, 1), -0.5)):
        search.update(actions, loss)
    drawn = np.array([search.sample() for _ in range(20_000)])
    first, second = search.probabilities()
    joint = np.zeros((3, 2))
    np.add.at(joint, (drawn[:, 0], drawn[:, 1]), 1 / len(drawn))
    np.testing.assert_allclose(joint, np.outer(first, second), atol=0.015)


def test_5_one_keeps_the_last_loss_and_zero_never_learns():
    forgetful, stubborn = MultiAgentSearch([2], mu=1.0), MultiAgentSearch([2], mu=0.0, init=0.4)
    for loss in (3.0, 1.0, 2.0):
        forgetful.update((0,), loss)
        stubborn.update((0,), loss)
    assert forgetful.scores[0].tolist() == [-2.0, 0.0]
    assert stubborn.scores[0].tolist() == [0.4, 0.4]
    assert stubborn.best() == (0,)


@pytest.mark.parametrize("init", [0.0, 0.8])
def test_6_the_debiased_score_of_a_constant_loss_is_its_negative(init):
    # two candidates with constant losses, one drawn once and one often: the better one has to win
    for draws in (1, 2, 7, 50):
        search = MultiAgentSearch([3], mu=0.1, init=init)
        for _ in range(draws):
            search.update((0,), 0.5)
        search.update((1,), 0.501)
        assert search.best() == (0,)
        search = MultiAgentSearch([3], mu=0.1, init=init)
        for _ in range(draws):
            search.update((0,), 0.5)
        search.update((1,), 0.499)
        assert search.best() == (1,)


def test_the_printed_argmax_takes_what_it_does_not_know():
    search = MultiAgentSearch([3], mu=0.1)
    for _ in range(50):
        search.update((0,), 0.5)
    search.update((1,), 2.0)
    assert search.best(debias=False) == (2,)  # never drawn: 0
    search.update((2,), 2.0)
    assert search.best(debias=False) == (1,)  # drawn once: -0.2 against about -0.5
    assert search.best() == (0,)


def test_the_same_seed_draws_the_same_and_no_global_state_is_touched():
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - looked at
    draws = [
        [MultiAgentSearch([5] * 6, seed=seed).sample() for _ in range(3)] for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002 - looked at


def test_debiasing_finds_more_when_draws_are_few():
    right = {True: 0, False: 0}
    for number in range(60):
        rng = np.random.default_rng(number)
        table = rng.uniform(size=(6, 5))
        search = MultiAgentSearch([5] * 6, seed=rng)
        for _ in range(60):
            actions = search.sample()
            loss = table[np.arange(6), actions].sum() + 0.1 * rng.standard_normal()
            search.update(actions, loss)
        for debias in right:
            right[debias] += int((np.array(search.best(debias=debias)) == table.argmin(1)).sum())
    assert right[True] > 1.2 * right[False]


def test_agents_refuse_what_they_cannot_use():
    with pytest.raises(ValueError, match="choices must name at least one agent"):
        MultiAgentSearch([])
    with pytest.raises(ValueError, match="choices must be at least 1; got 0"):
        MultiAgentSearch([2, 0])
    with pytest.raises(ValueError, match=r"mu must lie in \[0, 1\]; got 1.5"):
        MultiAgentSearch([2], mu=1.5)
    with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\)"):
        MultiAgentSearch([2], temperature=0.0)
    search = MultiAgentSearch([2, 3])
    with pytest.raises(ValueError, match="nothing has been scored yet"):
        search.best()
    for actions in ((0,), (0, 3), (-1, 0), (0.0, 1.0)):
        with pytest.raises(ValueError, match=r"MultiAgentSearch.update: actions must"):
            search.update(actions, 1.0)
    with pytest.raises(ValueError, match=r"loss must lie in .*got nan"):
        search.update((0, 0), math.nan)
    assert not any(row.any() for row in search.draws)


# --- the resource term ---


def supernet(names=("skip", "conv3", "sep3"), edges=2, classes=4):
    with seeded(0, "init"):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            *(MixedOp([candidate(name, 4) for name in names]) for _ in range(edges)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, classes),
        )


def test_7_the_term_adds_up_over_agents_and_is_normalised_by_the_group():
    model = supernet(edges=2)
    example = torch.rand(3, 1, 6, 6)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model[2].active = 1
    term = ResourceRegulariser(model, example, 0.5)
    costs = [resource_cost(op, (1, 4, 6, 6)) for op in model[1].candidates]
    for place, one in enumerate(costs):
        expected = sum(
            getattr(one, part) / max(getattr(other, part) for other in costs)
            for part in ("parameters", "macs", "memory_access")
        )
        assert term.table[0][place] == pytest.approx(expected)
    for a in range(3):
        for b in range(3):
            assert term.cost((a, b)) == pytest.approx(term.table[0][a] + term.table[1][b])
            assert term((a, b)) == pytest.approx(0.5 * term.cost((a, b)))
    assert term.cost((0, 0)) == 0
    assert model.training
    assert model[2].active == 1
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_groups_have_their_own_largest():
    model = nn.Sequential(
        MixedOp([candidate("conv3", 1), candidate("conv5", 1)]),
        MixedOp([candidate("skip", 1), candidate("conv3", 1)]),
    )
    apart = ResourceRegulariser(model, torch.rand(1, 1, 8, 8), 1.0, group=lambda name: name)
    together = ResourceRegulariser(model, torch.rand(1, 1, 8, 8), 1.0)
    assert apart.table[1][1] == pytest.approx(3)
    assert together.table[1][1] == pytest.approx(together.table[0][0])
    assert together.table[0][1] == pytest.approx(3)
    with pytest.raises(ValueError, match=r"lam must lie in \[0, inf\)"):
        ResourceRegulariser(model, torch.rand(1, 1, 8, 8), -1.0)
    with pytest.raises(ValueError, match="ResourceRegulariser: actions must hold one whole number"):
        apart.cost((0,))


def test_the_term_alone_leads_to_the_cheapest_operations():
    term = ResourceRegulariser(supernet(), torch.rand(1, 1, 6, 6), 0.5)
    search = MultiAgentSearch([3, 3])
    for _ in range(400):
        actions = search.sample()
        search.update(actions, 2.0 + term(actions))
    assert search.best() == (0, 0)


# --- the search ---


def loaders(count=40):
    generator = torch_generator(0, "data")
    x, y = torch.rand(count, 1, 6, 6, generator=generator), torch.arange(count) % 4
    return (
        TensorLoader(x[: count // 2], y[: count // 2], batch_size=5, shuffle=True, seed=1),
        TensorLoader(x[count // 2 :], y[count // 2 :], batch_size=5, shuffle=True, seed=2),
    )


def search_with(lam=None, steps=12, mu=0.1):
    model = supernet()
    search = MultiAgentSearch([3, 3], mu=mu, seed=3)
    term = None if lam is None else ResourceRegulariser(model, torch.rand(1, 1, 6, 6), lam)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train, validation = loaders()
    records = list(
        mema_search(
            model, functional.cross_entropy, train, validation, optimizer, search, term, steps=steps
        )
    )
    return model, search, records


def test_search_does_what_a_loop_by_hand_does():
    model, search, records = search_with(lam=0.3)
    slow, hand = supernet(), MultiAgentSearch([3, 3], seed=3)
    term = ResourceRegulariser(slow, torch.rand(1, 1, 6, 6), 0.3)
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.05, momentum=0.9)
    train, validation = (batch for batch in ([], []))
    for part, loader in zip((train, validation), loaders(), strict=True):
        for _ in range(4):
            part.extend(loader)
    for step in range(12):
        for op, active in zip(mixed_ops(slow).values(), hand.sample(), strict=True):
            op.active = active
        x, y = train[step]
        optimizer.zero_grad()
        loss = functional.cross_entropy(slow(x), y)
        loss.backward()
        optimizer.step()
        actions = hand.sample()
        for op, active in zip(mixed_ops(slow).values(), actions, strict=True):
            op.active = active
        x, y = validation[step]
        with torch.no_grad():
            scored = float(functional.cross_entropy(slow(x), y))
        hand.update(actions, scored + 0.3 * term.cost(actions))
        assert records[step].actions == actions
        assert records[step].train_loss == float(loss.detach())
        assert records[step].validation_loss == scored
        assert records[step].penalty == term(actions)
    for mine, expected in zip(search.scores, hand.scores, strict=True):
        np.testing.assert_array_equal(mine, expected)
    for mine, expected in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_7_without_weight_the_term_changes_nothing():
    _, plain, first = search_with()
    _, weightless, second = search_with(lam=0.0)
    assert first == second
    for mine, expected in zip(plain.scores, weightless.scores, strict=True):
        np.testing.assert_array_equal(mine, expected)
    _, weighted, _ = search_with(lam=0.5)
    assert any((a != b).any() for a, b in zip(plain.scores, weighted.scores, strict=True))


def test_weights_that_were_not_sampled_are_left_alone():
    model = supernet()
    search = MultiAgentSearch([3, 3], mu=1.0, seed=0)
    for _ in range(2):
        search.update((2, 2), -1e6)  # the third candidate, for certain
    before = [p.clone() for p in model[1].candidates[1].parameters()]
    train, validation = loaders()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model[1].candidates[1](torch.rand(1, 4, 6, 6)).sum().backward()  # a stale gradient
    (record,) = mema_search(
        model, functional.cross_entropy, train, validation, optimizer, search, steps=1
    )
    assert record.actions == (2, 2)
    after = model[1].candidates[1].parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_search_refuses_what_does_not_fit():
    model, (train, validation) = supernet(), loaders()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def start(choices, first=train, steps=3):
        search = MultiAgentSearch(choices)
        loss = functional.cross_entropy
        return list(mema_search(model, loss, first, validation, optimizer, search, steps=steps))

    with pytest.raises(ValueError, match=r"choices of model, \(3, 3\); got \(3,\)"):
        start([3])
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        start([3, 3], steps=0)
    with pytest.raises(ValueError, match="train_loader must yield a batch"):
        start([3, 3], first=[])
    with pytest.raises(ValueError, match="train_loader must yield a batch"):
        start([3, 3], first=iter([next(iter(train))]))
