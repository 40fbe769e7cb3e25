"""Calibration scores against torchmetrics, scikit-learn and by hand."""

import math

import pytest
import torch
from cv_core.metrics.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error


def example(n=300, classes=4, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial((logits / 2).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics(bins):
    logits, target = example()
    theirs = multiclass_calibration_error(logits.softmax(1), target, 4, n_bins=bins, norm="l1")
    assert expected_calibration_error(logits, target, bins=bins) == pytest.approx(
        float(theirs), abs=1e-6
    )


def test_bins_by_hand():
    # confidences 0.5 (right), 0.6 (wrong), 0.6 (right), 1 (right) in bins of width 0.25
    probabilities = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.4, 0.6], [1.0, 0.0]]).double()
    target = torch.tensor([0, 1, 1, 0])
    diagram = reliability(probabilities.log(), target, bins=4)
    assert diagram.count.tolist() == [0, 1, 2, 1]  # 0.5 belongs to the bin that it closes
    torch.testing.assert_close(diagram.confidence, torch.tensor([0.0, 0.5, 0.6, 1.0]).double())
    torch.testing.assert_close(diagram.accuracy, torch.tensor([0.0, 1.0, 0.5, 1.0]).double())
    error = expected_calibration_error(probabilities.log(), target, bins=4)
    assert error == pytest.approx((0.5 * 1 + 0.1 * 2 + 0.0) / 4)


def test_true_probabilities_are_calibrated():
    logits, target = example(n=20_000)
    assert (
        expected_calibration_error(logits / 2, target)
        < 0.02
        < expected_calibration_error(logits, target)
    )


def test_brier_and_likelihood():
    logits, target = example()
    truth = torch.eye(4, dtype=torch.float64)[target]
    expected = ((logits.softmax(1) - truth) ** 2).sum(1).mean()
    assert brier_score(logits, target) == pytest.approx(float(expected))
    expected = log_loss(target.numpy(), logits.softmax(1).numpy())
    assert negative_log_likelihood(logits, target) == pytest.approx(expected)
    uniform = torch.zeros(6, 4)
    assert brier_score(uniform, target[:6]) == pytest.approx(0.75)
    assert negative_log_likelihood(uniform, target[:6]) == pytest.approx(math.log(4))
    sure = torch.eye(4)[target].log()
    assert brier_score(sure, target) == 0.0
    assert negative_log_likelihood(sure, target) == 0.0


def test_refusals():
    logits, target = example(5)
    with pytest.raises(ValueError, match="NaN"):
        brier_score(logits * math.nan, target)
    with pytest.raises(ValueError, match="bins"):
        reliability(logits, target, bins=0)
    with pytest.raises(ValueError, match="target"):
        negative_log_likelihood(logits, target + 4)
