import numpy as np
import pytest
import torch
from cv_core.explain.attribution import Occlusion
from cv_core.explain.faithfulness import deletion_curve
from cv_core.explain.scores import decide, outputs_of, resolve_target, score
from cv_core.random import torch_generator
from torch import nn


def test_targets_name_the_same_numbers_in_every_form():
    outputs = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]])
    for target, expected in (
        (2, [0.3, 0.4]),
        (np.int64(2), [0.3, 0.4]),
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


def test_the_decision_is_made_on_the_images_as_they_are():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(5, 1, 2, 2)
    assert torch.equal(decide(model, x, None, "Explainer"), model(x).argmax(1))
    assert decide(model, x, 2, "Explainer").tolist() == [2] * 5
    with pytest.raises(ValueError, match=r"Explainer: target must lie in \[0, 2\]; got 3"):
        decide(model, x, 3, "Explainer")


def test_no_more_images_than_asked_for_go_through_the_network_at_once():
    largest = []

    class Net(nn.Module):
        def forward(self, x):
            largest.append(len(x))
            return x.flatten(1)[:, :3]

    inputs = torch.rand(10, 3, 4, 4, generator=torch_generator(0, "inputs"))
    outputs = outputs_of(Net(), inputs, 4)
    assert torch.equal(outputs, inputs.flatten(1)[:, :3])
    assert torch.equal(decide(Net(), inputs, None, "test", 4), outputs.argmax(1))
    assert max(largest) == 4
    Occlusion(Net(), window=2, batch_size=4).attribute(inputs)
    deletion_curve(Net(), inputs, inputs.mean(1), batch_size=4, steps=2)
    assert max(largest) == 4
