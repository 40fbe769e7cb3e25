"""Self-attention pooling: Eqs. 5 to 10 by loops, gradients, sizes, padding, frames."""

import math

import pytest
import torch
from cv_graph.pooling import SubgraphAttentionPool

ENCODERS = ["gcn", "fc"]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graphs(batch=2, nodes=7, dim=5):
    return draws(batch, nodes, dim), draws(batch, nodes, nodes, seed=1).softmax(2)


def pool(dim=5, ratio=0.5, **options):
    return SubgraphAttentionPool(dim, ratio, **options).double()


def score_by_loops(module, H, A):
    n = len(H)
    actions = [module.actions(row) for row in H]
    scores = []
    for i in range(n):
        if module.encoder == "gcn":
            mixed = actions[i] + sum(A[i, j] * actions[j] for j in range(n))
            scores.append(torch.sigmoid(mixed @ module.theta.weight[0]))
        else:
            first, _, second = module.theta
            score = second.weight[0] @ torch.relu(first(actions[i])) + second.bias[0]
            scores.append(score.sigmoid() if module.gate == "sigmoid" else score)
    return torch.stack(scores)


@pytest.mark.parametrize("gate", ["printed", "sigmoid"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_by_loops(encoder, gate):
    module, (H, A) = pool(encoder=encoder, gate=gate), graphs()
    out = module(H, A)
    assert out.nodes.shape == (2, 4)
    for b in range(2):
        S = score_by_loops(module, H[b], A[b])
        torch.testing.assert_close(out.scores[b], S)
        best = sorted(range(7), key=lambda i: -S[i].detach())[:4]
        assert out.nodes[b].tolist() == best
        expected = torch.zeros(7, 5, dtype=H.dtype)
        for place, i in enumerate(best):
            expected[i] = S[i] * H[b, i]
            for other, j in enumerate(best):
                assert out.adjacency[b, place, other] == A[b, i, j]
        torch.testing.assert_close(out.features[b], expected)


def test_the_perceptrons_scores_are_unbounded_as_printed():
    H, A = graphs()
    module = pool(encoder="fc")
    free = module(100 * H, A).scores.detach()
    assert float(free.min()) < 0
    assert float(free.abs().max()) > 1
    module.gate = "sigmoid"
    torch.testing.assert_close(module(100 * H, A).scores, free.sigmoid())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rows_that_are_not_kept_are_zero_and_without_gradient(encoder):  # property 4
    module, (H, A) = pool(encoder=encoder), graphs()
    H.requires_grad_()
    out = module(H, A)
    kept = torch.zeros(2, 7, dtype=torch.bool).scatter(1, out.nodes, value=True)
    assert torch.equal(out.features.ne(0).any(2), kept)
    (gradient,) = torch.autograd.grad(out.features.sum(), H)
    assert gradient[kept].ne(0).all()
    if encoder == "fc":
        assert not gradient[~kept].any()
    else:  # through the scores of kept neighbours, and only through those
        assert gradient[~kept].any()
        alone = module(H, torch.eye(7, dtype=H.dtype).expand(2, 7, 7))
        (gradient,) = torch.autograd.grad(alone.features.sum(), H)
        kept = torch.zeros(2, 7, dtype=torch.bool).scatter(1, alone.nodes, value=True)
        assert not gradient[~kept].any()


def test_theta_learns_through_the_kept_rows_only():  # property 4
    module, (H, A) = pool(), graphs(batch=1)
    out = module(H, A)
    weights = draws(1, 7, 5, seed=2)
    (gradient,) = torch.autograd.grad((weights * out.features).sum(), module.theta.weight)
    mixed = (A + torch.eye(7, dtype=A.dtype)) @ module.actions(H)
    expected = torch.zeros(5, dtype=H.dtype)
    for i in out.nodes[0].tolist():  # dL/dS_i times S_i' times the row that Theta multiplies
        S = out.scores[0, i]
        expected += (weights[0, i] @ H[0, i]) * S * (1 - S) * mixed[0, i]
    torch.testing.assert_close(gradient[0], expected)


def test_sizes_are_rounded_up_without_rounding_errors():  # property 6, its guard
    for ratio, nodes, kept in ((0.5, 7, 4), (0.5, 12, 6), (0.28, 25, 7), (0.01, 5, 1), (1.0, 9, 9)):
        assert math.ceil(0.28 * 25) == 8  # what the guard is for
        assert pool(ratio=ratio).size(nodes) == kept
        H, A = graphs(1, nodes)
        assert pool(ratio=ratio)(H, A).nodes.shape == (1, kept)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_is_never_kept_and_changes_nothing(encoder):  # property 6
    module, (H, A) = pool(encoder=encoder), graphs(batch=3)
    sizes = (7, 4, 1)
    mask = torch.arange(7) < torch.tensor(sizes)[:, None]
    H = H.masked_fill(~mask.unsqueeze(2), math.nan)
    A = A.masked_fill(~(mask.unsqueeze(1) & mask.unsqueeze(2)), 0.0)
    out = module(H, A, mask)
    for b, n in enumerate(sizes):
        alone = module(H[b : b + 1, :n], A[b : b + 1, :n, :n])
        k = math.ceil(n / 2)
        assert torch.equal(out.nodes[b, :k], alone.nodes[0])
        assert (out.nodes[b, k:] == -1).all()
        torch.testing.assert_close(out.scores[b, :n], alone.scores[0])
        torch.testing.assert_close(out.features[b, :n], alone.features[0])
        torch.testing.assert_close(out.adjacency[b, :k, :k], alone.adjacency[0])
        for rest in (out.scores[b, n:], out.features[b, n:], out.adjacency[b, k:]):
            assert not rest.any()
        assert not out.adjacency[b, :, k:].any()


@pytest.mark.parametrize("masked", [False, True])
def test_frames_select_within_each(masked):
    module, (H, A) = pool(frames=2), graphs(nodes=10)
    mask = torch.ones(2, 10, dtype=torch.bool)
    if masked:
        mask[1, 2:5] = False  # two of the second scene's first frame are left
        A = A * (mask.unsqueeze(1) & mask.unsqueeze(2))
    out = module(H, A, mask if masked else None)
    assert out.nodes.shape == (2, 6)
    for b in range(2):
        for frame in range(2):
            S = out.scores[b].tolist()
            there = [i for i in range(5 * frame, 5 * frame + 5) if mask[b, i]]
            best = sorted(there, key=lambda i: -S[i])[: math.ceil(len(there) / 2)]
            got = out.nodes[b, 3 * frame : 3 * frame + 3]
            assert got.tolist() == best + [-1] * (3 - len(best))
    joint = pool(frames=1)
    joint.load_state_dict(module.state_dict())
    torch.testing.assert_close(joint(H, A, mask).scores, out.scores)


def test_of_equal_scores_the_first_are_kept():
    module, (H, A) = pool(), graphs()
    torch.nn.init.zeros_(module.theta.weight)
    out = module(H, A)
    assert torch.equal(out.nodes, torch.arange(4).expand(2, 4))
    assert torch.equal(out.scores, torch.full((2, 7), 0.5, dtype=H.dtype))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SubgraphAttentionPool(0), ValueError, "dim must be at least 1"),
        (lambda: SubgraphAttentionPool(3, 0.0), ValueError, "ratio must lie in"),
        (lambda: SubgraphAttentionPool(3, encoder="gnn"), ValueError, "encoder must be one of"),
        (lambda: SubgraphAttentionPool(3, gate="tanh"), ValueError, "gate must be one of"),
        (lambda: pool()(*graphs(dim=4)), ValueError, r"H must have shape \(b, n, d\) with d=5"),
        (lambda: pool()(graphs()[0], graphs(nodes=6)[1]), ValueError, "A must have shape"),
        (lambda: pool(frames=3)(*graphs()), ValueError, "frames=3 must divide"),
        (lambda: pool()(*graphs(), torch.ones(2, 7)), TypeError, "mask must be boolean"),
        (
            lambda: pool()(*graphs(), torch.zeros(2, 7, dtype=torch.bool)),
            ValueError,
            "mask must leave every graph a node; graph 0",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=f"SubgraphAttentionPool: {message}"):
        call()
