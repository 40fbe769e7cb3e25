import pytest
import torch
from cv_core.explain.scores import resolve_target, score


def test_targets_name_the_same_numbers_in_every_form():
    outputs = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]])
    for target, expected in (
        (2, [0.3, 0.4]),
        (torch.tensor(1), [0.9, 0.2]),
        (torch.tensor([0, 2]), [0.1, 0.4]),
        (None, [0.9, 0.5]),
        (lambda logits: logits[:, 0] - logits[:, 1], [-0.8, 0.3]),
    ):
        resolved = resolve_target(outputs, target, "Explainer")
        torch.testing.assert_close(score(outputs, resolved, "Explainer"), torch.tensor(expected))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (3, ValueError, r"target must lie in \[0, 2\]; got 3"),
        (torch.tensor([0, -1]), ValueError, "got -1"),
        (torch.tensor([0.0, 1.0]), TypeError, "class indices"),
        (torch.tensor([0, 1, 2]), ValueError, "b=2"),
        ("cat", TypeError, "target must be a class"),
        (True, TypeError, "target must be a class"),
    ],
)
def test_bad_targets_are_refused(target, error, message):
    with pytest.raises(error, match=message):
        resolve_target(torch.zeros(2, 3), target, "Explainer")


def test_bad_outputs_are_refused():
    with pytest.raises(ValueError, match="the model's output must have shape"):
        resolve_target(torch.zeros(2, 3, 4), 0, "Explainer")
    with pytest.raises(ValueError, match="what target returns must have shape"):
        score(torch.zeros(2, 3), lambda logits: logits, "Explainer")
