"""Common checks of attacks: ``attack(model, x, y) -> x_adv`` with pixels in [0, 1]."""

from __future__ import annotations

import torch

from cv_core.testing.checks import Subject, common_check


@common_check("attack")
def check_pixels_stay_valid(subject: Subject) -> None:
    """The result has the images' shape and type, is finite and lies in [0, 1]."""
    inputs = subject.inputs()
    adversarial = subject.build()(*inputs)
    images = next(item for item in inputs if isinstance(item, torch.Tensor))
    assert adversarial.shape == images.shape, "the result has another shape"
    assert adversarial.dtype == images.dtype, "the result has another type"
    inside = (adversarial >= 0) & (adversarial <= 1)
    assert bool(inside.all()), "pixels leave [0, 1] or are NaN"
    assert not adversarial.requires_grad, "the result still hangs on the graph"


@common_check("attack")
def check_model_untouched(subject: Subject) -> None:
    """Weights, buffers, gradients, gradient flags and training mode are as before."""
    inputs = subject.inputs()
    model = next(item for item in inputs if isinstance(item, torch.nn.Module))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(part.training) for part in model.modules()]
    asks = [item.requires_grad for item in model.parameters()]
    subject.build()(*inputs)
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert same, "weights or buffers changed"
    assert flags == [part.training for part in model.modules()], "training mode changed"
    assert asks == [item.requires_grad for item in model.parameters()], "requires_grad changed"
    assert all(item.grad is None for item in model.parameters()), "gradients were left behind"
