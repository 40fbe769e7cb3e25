"""Tasks and batches."""

from collections import namedtuple

import pytest
import torch
from cv_core.engine.task import FunctionTask, SupervisedTask, batch_length, move
from torch import nn

Pair = namedtuple("Pair", ["x", "y"])


def test_forward_is_a_step_while_training_and_an_evaluation_otherwise():
    task = FunctionTask(nn.Identity(), lambda _, b: {"loss": b.mean()}, lambda *_: {"count": 2})
    assert task(torch.tensor([1.0, 3.0])) == {"loss": 2.0}
    assert task.eval()(torch.tensor([1.0, 3.0])) == {"count": 2}


def test_a_loss_with_weights_is_trained_and_saved_with_the_task():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, logits, labels):
            return self.scale * nn.functional.cross_entropy(logits, labels)

    task = SupervisedTask(nn.Linear(2, 3), Scaled())
    assert "loss.scale" in task.state_dict()
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    plain = SupervisedTask(task.model)
    torch.testing.assert_close(task.step((x, y))["loss"], 2 * plain.step((x, y))["loss"])


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3, 2),
        (torch.zeros(3), torch.zeros(5)),
        {"image": [torch.zeros(3)], "name": "x"},
        ["name", (torch.zeros(3),)],
    ],
)
def test_batch_length(batch):
    assert batch_length(batch) == 3


def test_batch_length_refuses_what_has_no_tensor():
    with pytest.raises(TypeError, match=r"must hold a tensor.*got list"):
        batch_length(["a", 1])


def test_move_keeps_the_structure():
    meta = torch.device("meta")
    batch = {"a": [torch.zeros(2), "x"], "b": Pair(torch.ones(1), (torch.ones(1), 3))}
    moved = move(batch, meta)
    assert isinstance(moved["b"], Pair)
    assert moved["a"][1] == "x"
    assert moved["b"].y[1] == 3
    tensors = (moved["a"][0], moved["b"].x, moved["b"].y[0])
    assert all(tensor.device == meta for tensor in tensors)
