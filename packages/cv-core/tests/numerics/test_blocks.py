"""Block descent on problems with a known minimum, multiplicative steps beside scikit-learn's."""

import numpy as np
import pytest
import torch
from cv_core.numerics.blocks import block_coordinate_descent, multiplicative_update, split_signs
from sklearn.decomposition import NMF


def quadratic(seed=0):
    """½ zᵀAz − bᵀz over z = (x, y) of two blocks of three."""
    generator = torch.Generator().manual_seed(seed)
    M = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A = M @ M.T + torch.eye(6, dtype=torch.float64)
    b = torch.randn(6, generator=generator, dtype=torch.float64)

    def objective(state):
        z = torch.cat([state["x"], state["y"]])
        return 0.5 * z @ A @ z - b @ z

    updates = {
        "x": lambda state: torch.linalg.solve(A[:3, :3], b[:3] - A[:3, 3:] @ state["y"]),
        "y": lambda state: torch.linalg.solve(A[3:, 3:], b[3:] - A[3:, :3] @ state["x"]),
    }
    start = {"x": torch.zeros(3, dtype=torch.float64), "y": torch.zeros(3, dtype=torch.float64)}
    return A, b, start, updates, objective


def test_exact_blocks_reach_the_joint_minimum():
    A, b, start, updates, objective = quadratic()
    result = block_coordinate_descent(
        start, updates, objective, max_sweeps=5000, tol=1e-15, watch="block"
    )
    z = torch.cat([result.blocks["x"], result.blocks["y"]])
    torch.testing.assert_close(z, torch.linalg.solve(A, b), atol=1e-5, rtol=0)
    assert result.converged
    assert result.monotone
    assert len(result.objective) == result.sweeps + 1
    assert torch.equal(start["x"], torch.zeros(3, dtype=torch.float64))


def test_a_sweep_uses_the_newest_values():
    _, _, start, updates, objective = quadratic()
    result = block_coordinate_descent(start, updates, objective, max_sweeps=1)
    x = updates["x"](start)
    torch.testing.assert_close(result.blocks["y"], updates["y"]({"x": x, "y": start["y"]}))
    assert result.objective == pytest.approx([0.0, float(objective(result.blocks))])


def test_the_update_that_is_wrong_is_named():
    _, _, start, updates, objective = quadratic()
    wrong = {**updates, "y": lambda state: -5.0 * updates["y"](state)}
    result = block_coordinate_descent(start, wrong, objective, max_sweeps=2, tol=0.0, watch="block")
    assert not result.monotone
    assert {rise.block for rise in result.rises} == {"y"}
    assert result.rises[0].sweep == 1
    before = float(objective({**start, "x": updates["x"](start)}))
    x = updates["x"](start)
    after = float(objective({"x": x, "y": wrong["y"]({"x": x, "y": start["y"]})}))
    assert result.rises[0].amount == pytest.approx(after - before)


def test_blocks_without_update_stay_and_nan_is_refused():
    result = block_coordinate_descent(
        {"x": 4.0, "c": 3.0}, {"x": lambda s: s["c"]}, lambda s: (s["x"] - s["c"]) ** 2
    )
    assert result.blocks == {"x": 3.0, "c": 3.0}
    assert result.objective[:2] == [1.0, 0.0]
    with pytest.raises(FloatingPointError, match="sweep 1, block 'x'"):
        block_coordinate_descent({"x": 1.0}, {"x": lambda _: float("nan")}, lambda s: s["x"])


def test_refusals():
    with pytest.raises(ValueError, match="'z'"):
        block_coordinate_descent({"x": 1.0}, {"z": lambda _: 1.0}, lambda _: 0.0)
    with pytest.raises(ValueError, match="empty"):
        block_coordinate_descent({"x": 1.0}, {}, lambda _: 0.0)
    with pytest.raises(ValueError, match="watch"):
        block_coordinate_descent({"x": 1.0}, {"x": lambda _: 1.0}, lambda _: 0.0, watch="never")


def test_multiplicative_steps_equal_scikit_learns():
    rng = np.random.default_rng(0)
    X, W0, H0 = rng.random((12, 8)), rng.random((12, 3)), rng.random((3, 8))
    peer = NMF(3, solver="mu", init="custom", max_iter=5, tol=0.0)
    expected = peer.fit_transform(X, W=W0.copy(), H=H0.copy())
    X, W, H = (torch.tensor(part) for part in (X, W0, H0))
    for _ in range(5):
        W = multiplicative_update(W, X @ H.T, W @ H @ H.T)
        H = multiplicative_update(H, W.T @ X, W.T @ W @ H)
    torch.testing.assert_close(W, torch.tensor(expected))
    torch.testing.assert_close(H, torch.tensor(peer.components_))


def test_square_root_steps_descend_where_signs_are_mixed():
    """Semi-NMF (Ding, Li and Jordan 2010): X ≈ F Gᵀ with G >= 0 and X, F of mixed sign."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(10, 15, generator=generator, dtype=torch.float64)
    G = torch.rand(15, 3, generator=generator, dtype=torch.float64)

    def update_g(state):
        F, G = state["F"], state["G"]
        cross_up, cross_down = split_signs(X.T @ F)
        gram_up, gram_down = split_signs(F.T @ F)
        return multiplicative_update(
            G, cross_up + G @ gram_down, cross_down + G @ gram_up, power=0.5
        )

    result = block_coordinate_descent(
        {"F": X @ torch.linalg.pinv(G.T), "G": G},
        {"G": update_g, "F": lambda s: X @ torch.linalg.pinv(s["G"].T)},
        lambda s: ((X - s["F"] @ s["G"].T) ** 2).sum(),
        max_sweeps=50,
        tol=0.0,
        watch="block",
    )
    assert result.monotone
    assert result.objective[-1] < 0.9 * result.objective[0]
    assert (result.blocks["G"] >= 0.0).all()


def test_stationary_entries_stay_and_negative_parts_are_refused():
    factor = torch.tensor([0.0, 2.0])
    kept = multiplicative_update(factor, torch.tensor([5.0, 3.0]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(kept, factor)
    with pytest.raises(ValueError, match="numerator"):
        multiplicative_update(factor, -factor, factor)
    up, down = split_signs(torch.tensor([1.5, -2.0, 0.0]))
    assert torch.equal(up - down, torch.tensor([1.5, -2.0, 0.0]))
    assert torch.equal(up * down, torch.zeros(3))
