import copy
import pickle

import pytest
import torch
from cv_core.nn.frozen import Frozen
from torch import nn


class Student(nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.teacher = Frozen(teacher)


@pytest.fixture
def teacher():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_the_holder_keeps_its_state_to_itself(teacher):
    student = Student(teacher)
    assert list(student.state_dict()) == ["layer.weight", "layer.bias"]
    assert [name for name, _ in student.named_parameters()] == ["layer.weight", "layer.bias"]
    student.load_state_dict(student.state_dict())


def test_the_snapshot_stays_as_it_was_and_so_does_the_original(teacher):
    student = Student(teacher).train()
    states = copy.deepcopy(student.teacher.module.state_dict())
    x = torch.randn(8, 3)
    first = student.teacher(x)
    assert torch.equal(student.teacher(x), first)  # neither dropout nor moving statistics
    assert all(torch.equal(states[k], v) for k, v in student.teacher.module.state_dict().items())
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    with torch.no_grad():
        teacher[0].weight.zero_()
    assert torch.equal(student.teacher(x), first)
    teacher.eval()
    assert not torch.equal(teacher(x), first)


def test_gradients_reach_the_input_but_not_the_weights(teacher):
    frozen = Frozen(teacher)
    assert not frozen(torch.randn(2, 3)).requires_grad  # nothing is recorded for a teacher
    x = torch.randn(2, 3, requires_grad=True)
    frozen(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in frozen.module.parameters())


def test_it_moves_with_its_holder_and_may_be_copied(teacher):
    student = Student(teacher).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    expected = student.teacher(x)
    assert expected.dtype == torch.float64
    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):  # noqa: S301
        assert torch.equal(twin.teacher(x), expected)
        assert twin.teacher.module is not student.teacher.module
    with pytest.raises(TypeError, match="must be a torch module; got function"):
        Frozen(lambda x: x)
