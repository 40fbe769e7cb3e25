"""Two small networks that read scikit-learn's digits, trained once."""

import pytest
import torch
from cv_core.models.small import MLP, SmallCNN
from cv_core.random import seeded, torch_generator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images / 16.0).float()[:, None], torch.tensor(bunch.target)


def trained(model, digits, *, steps, lr):
    x, y = digits
    generator = torch_generator(0, "batches")
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(1200, (128,), generator=generator)
        optimiser.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture(scope="session")
def mlp(digits):
    with seeded(0, "mlp"):
        model = MLP(64, [64], 10)
    return trained(model, digits, steps=250, lr=3e-3)


@pytest.fixture(scope="session")
def cnn(digits):
    with seeded(0, "cnn"):
        model = SmallCNN(1, 10, width=8)
    return trained(model, digits, steps=120, lr=1e-2)


@pytest.fixture(scope="session")
def batch(digits, mlp, cnn):
    """Forty unseen digits that both networks read correctly."""
    x, y = digits[0][1200:], digits[1][1200:]
    with torch.no_grad():
        right = (mlp(x).argmax(1) == y) & (cnn(x).argmax(1) == y)
    return x[right][:40], y[right][:40]
