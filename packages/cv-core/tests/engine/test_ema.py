"""The average of weights follows its recurrence."""

import pytest
import torch
from cv_core.engine.ema import EMA
from torch import nn


def test_recurrence_in_closed_form():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, decay=0.75)
    for step in range(1, 6):
        nn.init.constant_(model.weight, 1.0 + step)
        ema.update()
    # w_t = 1 + t: the average of the increments is t - d (1 - d^t) / (1 - d)
    expected = 1 + 5 - 0.75 * (1 - 0.75**5) / 0.25
    torch.testing.assert_close(ema.average["weight"].item(), expected, rtol=1e-14, atol=0)


def test_buffers_are_copied_and_integers_stay():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.9)
    model(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    ema.update()
    assert torch.equal(ema.average["running_mean"], model.running_mean)
    assert ema.average["num_batches_tracked"].item() == 1


def test_swapped_is_undone_after_an_error():
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.5)
    averaged = ema.average["weight"].clone()
    nn.init.constant_(model.weight, 9.0)

    def fail() -> None:
        with ema.swapped():
            assert torch.equal(model.weight, averaged)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (model.weight == 9.0).all()
    ema.copy_to_module()
    assert torch.equal(model.weight, averaged)


def test_tied_parameters_and_frozen_ones():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    ema = EMA(model, decay=0.5)
    nn.init.constant_(model[0].weight, 4.0)
    start = ema.average["0.weight"].clone()
    ema.update()
    torch.testing.assert_close(ema.average["0.weight"], (start + 4.0) / 2)


def test_state_and_refusals():
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.9)
    nn.init.constant_(model.weight, 9.0)
    ema.update()
    other = EMA(nn.Linear(2, 2), decay=0.9)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.average["weight"], ema.average["weight"])
    with pytest.raises(ValueError, match=r"decay=0\.5; got 0\.9"):
        EMA(model, decay=0.5).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match=r"\['bias', 'weight'\] differ"):
        EMA(nn.Linear(3, 3), decay=0.9).load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
        EMA(model, decay=1.0)
