import pytest
import torch
from cv_core.losses.adversarial import (
    HINGE,
    RELATIVISTIC_LEAST_SQUARES,
    WASSERSTEIN,
    Objective,
    clip_weights_,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from cv_core.nn.discriminators import PatchGAN
from cv_core.random import seeded, torch_generator
from torch import nn


def _mean(values):
    return sum(values) / len(values)


def test_objectives_by_loops():
    real, fake = torch.randn(5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    r, f = real.tolist(), fake.tolist()
    hinge = _mean([max(0, 1 - x) for x in r]) + _mean([max(0, 1 + x) for x in f])
    above = _mean([(x - _mean(f) - 1) ** 2 for x in r])
    below = _mean([(x - _mean(r) + 1) ** 2 for x in f])
    mirrored = _mean([(x - _mean(r) - 1) ** 2 for x in f])
    mirrored += _mean([(x - _mean(f) + 1) ** 2 for x in r])
    for objective, discriminator, generator in (
        (HINGE, hinge, -_mean(f)),
        (WASSERSTEIN, _mean(f) - _mean(r), -_mean(f)),
        (RELATIVISTIC_LEAST_SQUARES, (above + below) / 2, mirrored / 2),
    ):
        assert objective.discriminator(real, fake).item() == pytest.approx(discriminator)
        assert objective.generator(real, fake).item() == pytest.approx(generator)


def test_wasserstein_and_relativistic_ignore_a_constant_in_the_critic():
    real, fake = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for objective in (WASSERSTEIN, RELATIVISTIC_LEAST_SQUARES):
        torch.testing.assert_close(
            objective.discriminator(real + 3, fake + 3), objective.discriminator(real, fake)
        )
    assert WASSERSTEIN.discriminator(real, real).item() == 0.0
    torch.testing.assert_close(
        WASSERSTEIN.discriminator(real, fake), -WASSERSTEIN.discriminator(fake, real)
    )


@pytest.mark.parametrize("objective", [HINGE, WASSERSTEIN, RELATIVISTIC_LEAST_SQUARES])
def test_each_side_gets_its_own_gradients_only(objective):
    with seeded(0):
        make, judge = nn.Linear(3, 6), nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    judge[0].bias.requires_grad_(requires_grad=False)  # a flag that has to survive
    z, real = torch.randn(5, 3), torch.randn(5, 6)
    flags = [parameter.requires_grad for parameter in judge.parameters()]

    loss = discriminator_loss(judge, real, make(z), objective)
    torch.testing.assert_close(loss, objective.discriminator(judge(real), judge(make(z))))
    loss.backward()
    assert all(parameter.grad is None for parameter in make.parameters())
    assert judge[0].weight.grad.abs().sum() > 0

    judge.zero_grad()
    loss = generator_loss(judge, real, make(z), objective)
    torch.testing.assert_close(loss, objective.generator(judge(real), judge(make(z))))
    loss.backward()
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in make.parameters())
    assert [parameter.requires_grad for parameter in judge.parameters()] == flags


def test_flags_come_back_when_the_discriminator_fails():
    judge = nn.Linear(2, 1)
    with pytest.raises(RuntimeError):
        generator_loss(judge, torch.zeros(1, 3), torch.zeros(1, 3))
    assert all(parameter.requires_grad for parameter in judge.parameters())


def test_the_penalty_of_a_linear_critic_is_its_slope():
    critic = nn.Linear(6, 1).double()
    real, fake = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    norm = critic.weight.detach().norm()
    for slope in (0.0, 1.0):
        found = gradient_penalty(
            critic, real, fake, generator=torch_generator(0, "penalty"), slope=slope
        )
        torch.testing.assert_close(found.detach(), (norm - slope) ** 2)
    found.backward()
    expected = 2 * (norm - 1) * critic.weight.detach() / norm
    torch.testing.assert_close(critic.weight.grad, expected)


def test_the_penalty_is_taken_between_the_samples():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.square().sum((1, 2, 3)) / 2  # the gradient is x itself

    real, fake = torch.randn(6, 1, 2, 2), torch.randn(6, 1, 2, 2, requires_grad=True)
    found = gradient_penalty(critic, real, fake, generator=torch_generator(0, "penalty"))
    again = gradient_penalty(critic, real, fake, generator=torch_generator(0, "penalty"))
    norms = seen[0].flatten(1).norm(dim=1)
    torch.testing.assert_close(found.detach(), (norms - 1).square().mean())
    assert torch.equal(found, again)
    t = ((seen[0] - fake.detach()) / (real - fake.detach())).flatten(1)
    torch.testing.assert_close(t, t[:, :1].expand_as(t), rtol=1e-3, atol=1e-4)  # one t per sample
    assert ((t > 0) & (t < 1)).all()
    assert t[:, 0].unique().numel() == 6
    with pytest.raises(ValueError, match="real and fake must have the same shape"):
        gradient_penalty(critic, real, fake[:2], generator=torch_generator(0))
    with pytest.raises(ValueError, match="real is empty along axis 'b'"):
        gradient_penalty(critic, real[:0], fake[:0], generator=torch_generator(0))


def test_clipping():
    critic = nn.Linear(8, 8)
    before = critic.weight.detach().clone()
    clip_weights_(critic, 0.1)
    assert torch.equal(critic.weight.detach(), before.clamp(-0.1, 0.1))
    with pytest.raises(ValueError, match="limit must lie in"):
        clip_weights_(critic, 0.0)


def test_a_generator_learns_the_mean_of_its_data():
    """The parts together: a shift is trained against a patch discriminator until it fits."""
    with seeded(0):
        judge = PatchGAN(1, 8, layers=1)
    shift = nn.Parameter(torch.zeros(1))
    steps = [torch.optim.Adam(p, lr=0.02, betas=(0.5, 0.9)) for p in (judge.parameters(), [shift])]
    noise = torch_generator(0, "noise")
    for _ in range(150):
        real = 1.0 + 0.2 * torch.randn(8, 1, 8, 8, generator=noise)
        fake = shift + 0.2 * torch.randn(8, 1, 8, 8, generator=noise)
        for optimizer, side in zip(steps, (discriminator_loss, generator_loss), strict=True):
            optimizer.zero_grad()
            side(judge, real, fake, RELATIVISTIC_LEAST_SQUARES).backward()
            optimizer.step()
    assert shift.item() == pytest.approx(1.0, abs=0.25)


def test_an_objective_of_ones_own():
    squares = Objective(
        lambda real, fake: (real - 1).square().mean() + fake.square().mean(),
        lambda _, fake: (fake - 1).square().mean(),
    )
    judge = nn.Linear(2, 1)
    x, y = torch.randn(3, 2), torch.randn(3, 2)
    expected = (judge(x) - 1).square().mean() + judge(y).square().mean()
    torch.testing.assert_close(discriminator_loss(judge, x, y, squares), expected)


@pytest.mark.parametrize(
    ("objective", "samples"), [(HINGE, 2), (WASSERSTEIN, 2), (RELATIVISTIC_LEAST_SQUARES, 5)]
)
def test_the_generator_pays_for_the_passes_that_it_needs(objective, samples):
    class Counting(nn.Linear):
        seen = 0

        def forward(self, x):
            self.seen += len(x)
            return super().forward(x)

    judge = Counting(4, 1)
    generator_loss(judge, torch.randn(3, 4), torch.randn(2, 4), objective)
    assert judge.seen == samples
