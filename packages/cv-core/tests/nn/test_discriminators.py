import copy

import pytest
import torch
from cv_core.nn.discriminators import PatchGAN
from cv_core.random import seeded
from torch import nn


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_nothing_else(layers, field):
    with seeded(0):
        model = PatchGAN(2, 4, layers=layers).eval()
    x = torch.rand(1, 2, 128, 128, requires_grad=True)
    logits = model(x)
    assert logits.shape == (1, 1, 128 // 2**layers - 2, 128 // 2**layers - 2)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    seen = gradient.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [field, field]


def test_every_kernel_has_spectral_norm_one():
    with seeded(0):
        model = PatchGAN(3, 8, layers=2)
    for _ in range(100):  # the power iteration takes a step in each pass
        model(torch.rand(1, 3, 16, 16))
    model.eval()
    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convs) == 4
    for conv in convs:
        largest = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), ord=2)
        assert float(largest) == pytest.approx(1.0, abs=1e-2)


def test_copies_and_checkpoints_agree():
    model = PatchGAN(1, 4, layers=1)
    x = torch.rand(2, 1, 12, 12)
    model(x)
    model.eval()
    fresh = PatchGAN(1, 4, layers=1).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_the_smallest_image_gives_one_logit():
    model = PatchGAN(1, 4, layers=2)
    assert model(torch.rand(1, 1, 12, 12)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="at least 12 pixels"):
        model(torch.rand(1, 1, 11, 12))
    with pytest.raises(ValueError, match="c=1"):
        model(torch.rand(1, 3, 16, 16))
