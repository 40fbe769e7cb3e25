import pytest
import torch
from cv_core.losses.reduction import reduce, target_log_probabilities
from torch.nn import functional


def test_log_probabilities_are_those_of_each_label():
    logits = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    target = torch.randint(0, 4, (3, 2, 5))
    target[1, 0, 3] = -1
    log_p, valid = target_log_probabilities(logits, target, ignore_index=-1, owner="Loss")
    for b in range(3):
        for i in range(2):
            for j in range(5):
                label = int(target[b, i, j])
                assert bool(valid[b, i, j]) == (label != -1)
                p = logits[b, :, i, j].softmax(0)[label].log() if label != -1 else 0.0
                assert float(log_p[b, i, j]) == pytest.approx(float(p), abs=1e-12)


def test_extreme_logits_stay_finite_with_their_gradients():
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4]], requires_grad=True)
    log_p, _ = target_log_probabilities(logits, torch.tensor([1, 2]), -100, "Loss")
    assert log_p.tolist() == [-2e4, 0.0]
    log_p.sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reduction_agrees_with_cross_entropy(reduction):
    logits, target = torch.randn(6, 3, 4), torch.randint(0, 3, (6, 4))
    target[0], target[2, 1] = 255, 255
    log_p, valid = target_log_probabilities(logits, target, 255, "Loss")
    expected = functional.cross_entropy(logits, target, ignore_index=255, reduction=reduction)
    torch.testing.assert_close(reduce(-log_p, valid, reduction), expected)


def test_a_label_that_does_not_count_may_be_a_class():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    log_p, valid = target_log_probabilities(logits, target, 0, "Loss")
    assert valid.tolist() == [False, True, True, False, True]
    expected = functional.cross_entropy(logits, target, ignore_index=0)
    torch.testing.assert_close(reduce(-log_p, valid, "mean"), expected)


def test_nothing_that_counts_gives_zero_with_a_zero_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    log_p, valid = target_log_probabilities(logits, torch.tensor([-100, -100]), -100, "Loss")
    loss = reduce(-log_p, valid, "mean")
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.tensor([0, 3]),
            ValueError,
            r"lie in \[0, 2\]; got 3",
        ),
        (torch.zeros(2, 3), torch.tensor([0, -1]), ValueError, "got -1"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, r"class indices .* target\.long\(\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), ValueError, r"shape \(2,\) .*\(3,\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), ValueError, r"shape \(2, 4\)"),
        (torch.zeros(2, 3).long(), torch.zeros(2).long(), TypeError, r"logits\.float\(\)"),
        (torch.zeros(0, 3), torch.zeros(0).long(), ValueError, "empty along axis 'b'"),
        (torch.zeros(2, 3, 0), torch.zeros(2, 0).long(), ValueError, "target is empty"),
        (torch.zeros(3), torch.zeros(3).long(), ValueError, r"shape \(b, k, \.\.\.\)"),
    ],
)
def test_bad_input_is_refused(logits, target, error, message):
    with pytest.raises(error, match=message):
        target_log_probabilities(logits, target, -100, "Loss")


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match=r"reduction must be one of .* Did you mean 'mean'"):
        reduce(torch.zeros(2), torch.ones(2, dtype=torch.bool), "means")
