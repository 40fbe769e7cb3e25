"""FGSMPR: the six properties of the paper's algebra, a slow reference, batch normalisation."""

import copy
import math

import pytest
import torch
from cv_adversarial.methods.fgsmpr import FGSMPRLoss, logit_gap
from cv_adversarial.training.single_step import FGSMATLoss
from cv_core.models.small import MLP, SmallCNN
from torch.nn.functional import cross_entropy

EPS = 0.2


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images with black and white pixels, so that clipping counts."""
    generator = torch.Generator().manual_seed(0)
    x = (1.4 * torch.rand(5, 1, 8, 8, generator=generator, dtype=torch.float64) - 0.2).clamp(0, 1)
    return x, torch.tensor([3, 0, 1, 3, 2])


@pytest.fixture
def mlp() -> MLP:
    return MLP(64, [16], 4).double()


@pytest.fixture
def cnn() -> SmallCNN:
    return SmallCNN(1, 4, width=4).double().train()


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return [item.grad.clone() for item in model.parameters()]


@pytest.mark.parametrize("options", [{"lam": 0.0, "m": 3}, {"lam": 0.5, "m": 0}])
def test_1_without_pairing_it_is_fgsm_at_to_the_last_bit(options, cnn, batch):
    twin = copy.deepcopy(cnn)
    loss, parts = FGSMPRLoss(EPS, **options)(cnn, *batch)
    expected, _ = FGSMATLoss(EPS)(twin, *batch)
    assert torch.equal(loss, expected)
    assert float(parts["reg"]) == 0.0
    assert math.isnan(parts["logit_gap"])
    ours, theirs = gradients(loss, cnn), gradients(expected, twin)
    assert all(map(torch.equal, ours, theirs))
    assert all(map(torch.equal, cnn.buffers(), twin.buffers()))


@pytest.mark.parametrize("training", [False, True])
def test_2_one_step_as_long_as_the_ball_leaves_nothing_to_pair(training, cnn, batch):
    """In training mode too: both examples come from evaluation mode and share one pass."""
    cnn.train(training)
    objective = FGSMPRLoss(EPS, steps=1, m=3)
    single = objective.examples(cnn, *batch)
    assert torch.equal(objective.partners(cnn, *batch), single)
    loss, parts = objective(cnn, *batch)
    torch.testing.assert_close(parts["reg"], torch.zeros_like(loss.detach()))
    torch.testing.assert_close(loss.detach(), parts["fgsm_loss"])


@pytest.mark.parametrize("fgsm_alpha", [None, EPS / 3])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_3_examples_stay_in_the_ball_and_in_the_pixel_range(steps, fgsm_alpha, mlp, batch):
    x, y = batch
    objective = FGSMPRLoss(EPS, steps=steps, alpha=0.15, fgsm_alpha=fgsm_alpha)
    for adv in (objective.examples(mlp, x, y), objective.partners(mlp, x, y)):
        assert float((adv - x).abs().max()) <= EPS
        assert float(adv.min()) >= 0.0
        assert float(adv.max()) <= 1.0


def test_4_two_classes_of_a_linear_model_need_no_second_step(batch):
    """The gradient's sign is the same everywhere, also with the clipping of pixels."""
    x, y = batch
    model = MLP(64, [], 2).double()
    objective = FGSMPRLoss(EPS, steps=4, m=5)
    single = objective.examples(model, x, y % 2)
    torch.testing.assert_close(objective.partners(model, x, y % 2), single, atol=1e-7, rtol=0)
    assert float(objective(model, x, y % 2)[1]["reg"]) < 1e-6


def test_4_a_shorter_fgsm_step_leaves_a_gap_of_known_size():
    r"""reg = lam ||W (eps - eps / K) s|| for a linear model, away from the pixels' ends."""
    model, K = MLP(64, [], 2).double(), 4
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    s = (model.fc.weight[1] - model.fc.weight[0]).sign()  # raises the loss of class 0
    expected = 0.7 * (model.fc.weight @ ((EPS - EPS / K) * s)).norm()
    objective = FGSMPRLoss(EPS, 0.7, steps=K, fgsm_alpha=EPS / K)
    _, parts = objective(model, x, torch.tensor([0]))
    torch.testing.assert_close(parts["reg"], expected.detach())


class Table(torch.nn.Module):
    """Logits that are parameters: a row for the FGSM and a row for the PGD examples."""

    def __init__(self, single: torch.Tensor, several: torch.Tensor) -> None:
        super().__init__()
        self.single = torch.nn.Parameter(single)
        self.several = torch.nn.Parameter(several)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([self.single, self.several])[: len(x)]
        return rows + 0.0 * x.flatten(1).sum(1, keepdim=True)  # so that it can be attacked


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_5_reg_is_symmetric_and_invariant_to_a_common_shift(rows, batch):
    objective = FGSMPRLoss(EPS, m=5)
    shift = torch.linspace(-1, 1, 4, dtype=torch.float64)
    a, b = rows

    def reg(first, second):
        return objective(Table(first, second), *batch)[1]["reg"]

    assert float(reg(a, b)) > 0.1
    torch.testing.assert_close(reg(b, a), reg(a, b))
    torch.testing.assert_close(reg(a + shift, b + shift), reg(a, b))


def test_6_gradient_pulls_the_logits_of_a_pair_together(rows, batch):
    x, y = batch
    a, b = rows
    model = Table(a, b)
    objective = FGSMPRLoss(EPS, 0.7, m=5)
    loss, parts = objective(model, x, y)
    loss.backward()
    pull = 0.7 / 5 * (a - b) / (a - b).norm(dim=1, keepdim=True)
    alone = a.clone().requires_grad_()
    cross_entropy(alone, y).backward()
    torch.testing.assert_close(model.single.grad - alone.grad, pull)
    torch.testing.assert_close(model.several.grad, -pull)
    torch.testing.assert_close(parts["logit_gap"], (a - b).norm(dim=1).mean())


def by_loops(model, x, y, *, lam, K, m):
    """Algorithm 1 image by image, with eps for FGSM and eps / K for PGD."""

    def ascend(image, z, label, step):
        z = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(z[None]), label[None]), z)
        delta = (z.detach() + step * gradient.sign() - image).clamp(-EPS, EPS)
        return (image + delta).clamp(0, 1)

    entropy, reg = 0.0, 0.0
    for i in range(len(x)):
        single = model(ascend(x[i], x[i], y[i], EPS)[None])
        entropy = entropy + cross_entropy(single, y[i : i + 1]) / len(x)
        if i < m:
            z = x[i]
            for _ in range(K):
                z = ascend(x[i], z, y[i], EPS / K)
            reg = reg + lam / m * (single - model(z[None])).square().sum().sqrt()
    return entropy, reg


@pytest.mark.parametrize("m", [1, 3, 5])
def test_slow_algorithm_by_loops(m, mlp, batch):
    loss, parts = FGSMPRLoss(EPS, 0.7, steps=3, m=m)(mlp, *batch)
    entropy, reg = by_loops(mlp, *batch, lam=0.7, K=3, m=m)
    torch.testing.assert_close(parts["fgsm_loss"], entropy.detach())
    torch.testing.assert_close(parts["reg"], reg.detach())
    assert float(reg.detach()) > 1e-3
    for one, other in zip(gradients(loss, mlp), gradients(entropy + reg, mlp), strict=True):
        torch.testing.assert_close(one, other)


def test_squared_distance(mlp, batch):
    x, y = batch
    objective = FGSMPRLoss(EPS, 0.7, m=2, distance="l2sq")
    gap = mlp(objective.examples(mlp, x, y)) - mlp(objective.partners(mlp, x, y))
    expected = 0.7 * gap[:2].square().sum(1).mean()
    torch.testing.assert_close(objective(mlp, x, y)[1]["reg"], expected.detach())


def test_more_images_than_the_batch_has_are_all_of_them(mlp, batch):
    assert torch.equal(FGSMPRLoss(EPS, m=50)(mlp, *batch)[0], FGSMPRLoss(EPS, m=5)(mlp, *batch)[0])


def test_fgsm_and_pgd_examples_share_one_pass_of_training(cnn, batch):
    """Running statistics see B + m adversarial images once, and nothing of the attacks."""
    twin = copy.deepcopy(cnn)
    objective = FGSMPRLoss(EPS, m=2)
    x, y = batch
    seen = torch.cat([objective.examples(cnn, x, y), objective.partners(cnn, x[:2], y[:2])])
    objective(cnn, x, y)
    twin(seen)
    assert int(cnn.bn1.num_batches_tracked) == 1
    assert all(map(torch.equal, cnn.buffers(), twin.buffers()))


def test_gap_probe_by_loops(cnn, batch):
    """In evaluation mode, though the network comes in training mode and leaves in it."""
    x, y = batch
    before = [value.clone() for value in cnn.buffers()]
    found = logit_gap(cnn, x, y, eps=EPS, steps=3)
    assert all(part.training for part in cnn.modules())
    assert all(map(torch.equal, cnn.buffers(), before))
    assert not found.requires_grad
    cnn.eval()
    regs = [by_loops(cnn, x[i : i + 1], y[i : i + 1], lam=1.0, K=3, m=1)[1] for i in range(len(x))]
    torch.testing.assert_close(found, torch.stack(regs).detach())


def test_gap_of_a_network_that_hides_its_gradient():
    """What a collapse looks like: FGSM points away from the boundary, PGD comes back to it."""

    class Hiding(torch.nn.Module):
        def forward(self, x):
            a = x.flatten(1).sum(1)
            # the margin falls with a up to 0.55, where the sign changes and FGSM overshoots
            margin = torch.where(a < 0.55, 1.0 - 2.0 * (a - 0.5), 0.9 + 8.0 * (a - 0.55))
            return torch.stack([margin, -margin], dim=1)

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    model = Hiding()
    objective = FGSMPRLoss(EPS, steps=4)
    single = objective.examples(model, x, y)
    assert float(model(single)[0, 0]) > float(model(x)[0, 0])  # FGSM made it easier
    assert float(logit_gap(model, x, y, eps=EPS, steps=4)) > 1.0
