"""The actor relation graph: Eqs. 1 and 2 by loops, its limits, padding."""

import math

import pytest
import torch
from cv_graph.relations import actor_relation_graph
from torch import nn


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(batch=2, actors=6, dim=5):
    return draws(batch, actors, dim), draws(batch, actors, 2, seed=1)


@torch.no_grad()
def by_loops(x, centers, mu, theta=lambda v: v, phi=lambda v: v):
    n = len(x)
    out = torch.zeros(n, n, dtype=x.dtype)
    for i in range(n):
        for j in range(n):
            if math.dist(centers[i].tolist(), centers[j].tolist()) <= mu:
                query, key = theta(x[i]), phi(x[j])
                out[i, j] = math.exp(float(query @ key) / math.sqrt(len(query)))
        out[i] /= out[i].sum()
    return out


def test_by_loops():
    x, centers = scene()
    A = actor_relation_graph(x, centers, 1.5)
    for b in range(2):
        torch.testing.assert_close(A[b], by_loops(x[b], centers[b], 1.5))
    theta, phi = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    A = actor_relation_graph(x, centers, 1.5, theta=theta, phi=phi)
    for b in range(2):
        torch.testing.assert_close(A[b], by_loops(x[b], centers[b], 1.5, theta, phi))
    # a bias of phi adds the same to all of a row
    nn.init.zeros_(phi.bias)
    torch.testing.assert_close(actor_relation_graph(x, centers, 1.5, theta=theta, phi=phi), A)


def test_rows_sum_to_one_and_end_at_mu():  # property 1
    x, centers = scene(actors=9)
    A = actor_relation_graph(x, centers, 1.0)
    torch.testing.assert_close(A.sum(2), torch.ones_like(A[..., 0]))
    far = torch.cdist(centers, centers) > 1.0
    assert 0 < int(far.sum()) < far.numel() - 2 * 9  # the case is not trivial
    assert torch.equal(A == 0, far)


def test_large_features_underflow_but_no_row_is_empty():  # property 1, its limit
    x = 3 * draws(1, 8, 1024).float()
    A = actor_relation_graph(x, torch.zeros(1, 8, 2), 0.0)
    assert int((A == 0).sum()) > 0
    torch.testing.assert_close(A.sum(2), torch.ones(1, 8))


def test_wide_mu_is_plain_attention_and_narrow_mu_the_identity():  # property 5
    x, centers = scene()
    apart = torch.cdist(centers, centers)
    A = actor_relation_graph(x, centers, float(apart.max()) + 1e-9)
    torch.testing.assert_close(A, (x @ x.mT / math.sqrt(5)).softmax(2))
    least = float(apart[apart > 0].min())
    eye = torch.eye(6, dtype=x.dtype).expand(2, 6, 6)
    assert torch.equal(actor_relation_graph(x, centers, 0.99 * least), eye)
    # single precision and large coordinates: an actor stays its own neighbour
    many = 1e4 + torch.rand(1, 40, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        actor_relation_graph(torch.ones(1, 40, 3), many, 0.0).diagonal(dim1=1, dim2=2) > 0,
        torch.ones(1, 40, dtype=torch.bool),
    )


def test_padding_does_not_matter_whatever_it_holds():  # property 6
    x, centers = scene()
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    A = actor_relation_graph(x, centers, 1.5, mask=mask)
    torch.testing.assert_close(
        A[1, :4, :4], actor_relation_graph(x[1:, :4], centers[1:, :4], 1.5)[0]
    )
    assert not A[1, 4:].any()
    assert not A[1, :, 4:].any()
    for value in (math.nan, math.inf):
        garbage = x.masked_fill(~mask.unsqueeze(2), value)
        places = centers.masked_fill(~mask.unsqueeze(2), value)
        assert torch.equal(actor_relation_graph(garbage, places, 1.5, mask=mask), A)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, c: actor_relation_graph(x, c, -1.0), ValueError, "mu must lie in"),
        (lambda x, c: actor_relation_graph(x, c[:1], 1.0), ValueError, "centers must have shape"),
        (lambda x, c: actor_relation_graph(x.long(), c, 1.0), TypeError, "x must be a floating"),
        (
            lambda x, c: actor_relation_graph(x, c, 1.0, theta=nn.Identity()),
            ValueError,
            "theta and phi must be given together",
        ),
        (
            lambda x, c: actor_relation_graph(
                x, c, 1.0, mask=torch.tensor([[True] * 6, [False] * 6])
            ),
            ValueError,
            "graph 1 of the batch has none",
        ),
        (
            lambda x, c: actor_relation_graph(x, c, 1.0, mask=torch.ones(2, 6)),
            TypeError,
            "mask must be boolean",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=f"actor_relation_graph: .*{message}"):
        call(*scene())
