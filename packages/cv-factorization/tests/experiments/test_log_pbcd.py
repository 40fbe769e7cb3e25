import numpy as np
import torch
from cv_core.experiment.trial import Settings, Trial
from cv_factorization.experiments import log_pbcd
from cv_factorization.experiments.log_pbcd import EXPERIMENT, LOG, classifier, parts, same_start


def trial(arm="LOG-PBCD", seed=0, **over):
    settings = Settings({**EXPERIMENT.settings["smoke"], **over})
    return Trial(
        arm=arm, case="", seed=seed, budget="smoke", source="digits", settings=settings
    )  # fmt: skip


def test_all_arms_start_from_one_network():
    one = trial()
    found = parts(one)
    network = same_start(one, found)
    # delta holds everything: what fit returns is the start
    model = classifier(one, LOG, safeguard=True).set_params(delta=1e9, max_iter=1)
    model.fit(found.x, found.y.numpy())
    for W, layer in zip(model.weights_, [network[0], network[2], network[4]], strict=True):
        torch.testing.assert_close(W, layer.weight.detach(), rtol=0, atol=1e-6)
        assert not layer.bias.any()


def test_parts_are_disjoint_and_the_same_for_every_arm():
    first, second = parts(trial("PBCD")), parts(trial("LOG-PBCD"))
    assert all(map(torch.equal, first, second))
    assert (len(first.x), len(first.validation_x), len(first.test_x)) == (160, 40, 100)
    rows = torch.cat([first.x, first.validation_x])
    assert len(torch.unique(rows, dim=0)) == 200
    assert not torch.equal(parts(trial(seed=1)).x, first.x)


def test_the_l1_weight_is_the_one_with_the_nearest_share_of_zeros():
    one = trial(sweeps=20, l1_weights=(1e-4, 2e-3, 1.0))
    found = parts(one)
    x, y = found.x, found.y.numpy()
    wanted = classifier(one, LOG, safeguard=True).fit(x, y).sparsity_
    shares = {}
    for weight in one.settings.l1_weights:
        penalty = log_pbcd.Penalty(weight * log_pbcd.L1_EPS, log_pbcd.L1_EPS)
        shares[weight] = classifier(one, penalty, safeguard=True).fit(x, y).sparsity_
    expected = min(shares, key=lambda weight: abs(shares[weight] - wanted))
    assert log_pbcd.with_l1(one)["L1 weight"] == expected
    assert len(set(shares.values())) > 1


def test_arms_report_what_is_declared():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    for arm in EXPERIMENT.arms:
        run = trial(arm.name)
        numbers = arm.run(run)
        assert set(numbers) <= declared
        assert all(np.isfinite(value) for value in numbers.values())
        assert [step for step, _ in run.record.curves["test accuracy"]] == list(range(1, 11))
        assert run.record.pictures["first layer's weights"].shape == (64, 256)
