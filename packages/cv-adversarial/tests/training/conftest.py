"""A few digits and two small networks, one of them with batch normalisation."""

import pytest
import torch
from cv_core.models.small import MLP, SmallCNN
from sklearn.datasets import load_digits


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    images = torch.tensor(bunch.images[:6] / 16.0).double()
    return images[:, None], torch.tensor(bunch.target[:6])


@pytest.fixture
def mlp() -> MLP:
    return MLP(64, [16], 10).double()


@pytest.fixture
def cnn() -> SmallCNN:
    """A network with batch normalisation, in training mode."""
    return SmallCNN(1, 10, width=4).double().train()
