"""FAB: projections onto a hyperplane within the range, known distances, shorter than DeepFool."""

import numpy as np
import pytest
import torch
from cv_adversarial.attacks.base import Goal, Oracle
from cv_adversarial.attacks.deepfool import DeepFool
from cv_adversarial.attacks.fab import FAB, to_hyperplane
from cv_adversarial.attacks.gradient import PGD
from cv_core.models.small import MLP
from scipy.optimize import linprog, minimize

NORMS = ["linf", "l2"]


def planes(entries=7, count=8):
    """Points of which some pixels are at their ends, and planes that all can reach."""
    x = torch.rand(count, entries, dtype=torch.float64)
    x[:, 0], x[:, 1] = 0.0, 1.0
    slope = torch.randn(count, entries, dtype=torch.float64)
    slope[:, 2] = 0.0
    goal = torch.rand(count, entries, dtype=torch.float64)
    return x, (slope * (x - goal)).sum(1), slope


def shortest(x, gap, slope, norm):
    """The same problem by a solver: a linear or a quadratic program."""
    size = len(x)
    if norm == "linf":
        eye, one = np.eye(size), np.ones((size, 1))
        found = linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=np.block([[eye, -one], [-eye, -one]]),
            b_ub=np.zeros(2 * size),
            A_eq=np.append(slope, 0.0)[None],
            b_eq=[-gap],
            bounds=[*zip(-x, 1.0 - x, strict=True), (0.0, None)],
        )
        return found.fun
    found = minimize(
        lambda change: change @ change,
        np.zeros(size),
        jac=lambda change: 2 * change,
        bounds=list(zip(-x, 1.0 - x, strict=True)),
        constraints={"type": "eq", "fun": lambda change: gap + slope @ change},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.sqrt(found.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_shortest_way_to_the_plane(norm):
    x, gap, slope = planes()
    change = to_hyperplane(x, gap, slope, norm)
    torch.testing.assert_close((slope * change).sum(1), -gap, atol=1e-12, rtol=0)
    assert bool(((x + change >= -1e-15) & (x + change <= 1 + 1e-15)).all())
    order = float("inf") if norm == "linf" else 2
    for row, length in enumerate(change.norm(order, dim=1).tolist()):
        given = x[row].numpy(), float(gap[row]), slope[row].numpy()
        assert length == pytest.approx(shortest(*given, norm), abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_planes_out_of_reach_are_approached_as_far_as_the_range_goes(norm):
    x = torch.tensor([[0.2, 0.7, 0.5]], dtype=torch.float64)
    slope = torch.tensor([[1.0, -2.0, 0.0]], dtype=torch.float64)
    change = to_hyperplane(x, torch.tensor([-9.0], dtype=torch.float64), slope, norm)
    expected = torch.tensor([[0.8, -0.7, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(change, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_distance_to_the_boundary_of_an_affine_model(norm):
    model = MLP(30, [], 4).double()
    x = torch.rand(10, 30, dtype=torch.float64) * 0.2 + 0.4
    logits, weight = model(x).detach(), model.fc.weight.detach()
    y = logits.argmax(1)
    dual = 1 if norm == "linf" else 2
    exact = []
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        exact.append(
            min(
                (row[label] - row[k]) / float((weight[label] - weight[k]).norm(dual))
                for k in range(4)
                if k != label
            )
        )
    result = FAB(model, steps=20, norm=norm).run(x, y)
    assert bool(result.success.all())
    nearest = torch.tensor(exact, dtype=torch.float64)
    assert bool((result.norm >= nearest - 1e-12).all())
    torch.testing.assert_close(result.norm, nearest, rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_is_the_papers_formula(norm):
    """Both projections onto one plane, the point's and the image's, weighed by their lengths."""
    model = MLP(30, [], 2).double()
    x, z = (torch.rand(2, 5, 30, dtype=torch.float64) * 0.02 + 0.49).unbind()
    goal = Goal(torch.zeros(5, dtype=torch.int64))
    slope = (model.fc.weight[1] - model.fc.weight[0]).detach().expand(5, -1)
    gaps = [(model(point)[:, 1] - model(point)[:, 0]).detach() for point in (z, x)]
    near, far = (
        to_hyperplane(point, gap, slope, norm) for point, gap in zip((z, x), gaps, strict=True)
    )
    order = float("inf") if norm == "linf" else 2
    lengths = [change.norm(order, dim=1, keepdim=True) for change in (near, far)]
    for most in (0.1, 0.9):
        lean = (lengths[0] / (lengths[0] + lengths[1])).clamp(max=most)
        expected = (1 - lean) * (z + 1.05 * near) + lean * (x + 1.05 * far)
        oracle = Oracle("FAB", model, goal)
        classes = torch.ones(5, 1, dtype=torch.int64)
        got = FAB(model, norm=norm, lean=most)._step(x, z, goal, classes, oracle)
        torch.testing.assert_close(got, expected.clamp(0, 1))


def test_shorter_than_deepfool(mlp, cnn, batch):
    x, y = batch[0][:20], batch[1][:20]
    for model in (mlp, cnn):
        ours, deepfool = FAB(model, steps=30, norm="l2").run(x, y), DeepFool(model).run(x, y)
        assert bool(ours.success.all())
        assert float(ours.norm.mean()) < float(deepfool.norm.mean())


def test_pgd_in_a_ball_that_fab_fits_into_finds_no_less(mlp, batch):
    """FAB's radius is near the least one: half of it is too small even for many steps of PGD."""
    x, y = batch[0][:20], batch[1][:20]
    median = float(FAB(mlp, steps=30).run(x, y).norm.median())
    half = PGD(mlp, eps=0.5 * median, alpha=0.1 * median, steps=40).run(x, y)
    whole = PGD(mlp, eps=1.1 * median, alpha=0.1 * median, steps=40).run(x, y)
    assert int(whole.success.sum()) >= 10 > int(half.success.sum())


def test_more_steps_are_not_worse_and_a_target_is_reached(mlp, batch):
    x, y = batch[0][:20], batch[1][:20]
    means = [float(FAB(mlp, steps=steps).run(x, y).norm.mean()) for steps in (5, 15, 45)]
    assert means[0] >= means[1] - 1e-4
    assert means[1] >= means[2] - 1e-4
    aimed = FAB(mlp, steps=20).run(x, y, target=(y + 1) % 10)
    assert float(aimed.success.double().mean()) > 0.9
