"""Graph attention with edges: a slow reference, empty rows, permutations, padding."""

import pytest
import torch
from cv_core.random import seeded, torch_generator
from cv_graph.hgat import HGATConv


def graph(b=2, n=4, d=5, e=3):
    generator = torch_generator(0, "graph", n)
    x = torch.randn(b, n, d, generator=generator, dtype=torch.float64)
    return x, torch.randn(b, n, n, e, generator=generator, dtype=torch.float64)


def built(bias=0.3, **options):
    with seeded(0, "layer"):
        layer = HGATConv(5, 6, 3, **options).double()
    layer.bias.data = bias * torch.linspace(-1, 1, 6, dtype=torch.float64)
    return layer


def slow(layer, v, e):
    """One graph, by the paper's equations."""
    w1, w2, b2 = layer.message.weight, layer.score.weight[0], layer.score.bias[0]
    nodes, new = range(len(v)), []
    for i in nodes:
        a = {}
        for j in nodes:
            if j != i:
                value = w2 @ torch.cat([w1 @ v[i], w1 @ v[j], e[i, j]]) + b2
                a[j] = value if value > 0 else layer.negative_slope * value
        total = sum(item.exp() for item in a.values())
        out = torch.relu(layer.own.weight @ v[i] + layer.own.bias)
        for j, value in a.items():
            out = out + torch.relu(value.exp() / total * (w1 @ v[j]) + layer.bias)
        new.append(out)
    return torch.stack(new)


@pytest.mark.parametrize("slope", [0.2, 0.01])
def test_layer_against_a_slow_loop(slope):
    layer, (x, edge) = built(negative_slope=slope), graph()
    expected = torch.stack([slow(layer, *one) for one in zip(x, edge, strict=True)])
    torch.testing.assert_close(layer(x, edge), expected)


def test_attention_sums_to_one_off_the_diagonal():
    """Property 3."""
    weight = built().attention(*graph())
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(weight[..., 0]))
    assert not weight.diagonal(dim1=1, dim2=2).any()
    assert float(weight.detach().std()) > 0.05


def test_a_node_alone_keeps_what_is_its_own():
    """Property 3: the softmax over nobody is no NaN, forward and backward."""
    layer, (x, edge) = built(bias=1.0), graph(n=1)
    out = layer(x.requires_grad_(), edge)
    torch.testing.assert_close(out, torch.relu(layer.own(x)))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert bool(gradient.isfinite().all())


def test_without_a_score_attention_is_uniform():
    """Property 3."""
    layer = built()
    torch.nn.init.zeros_(layer.score.weight)
    weight = layer.attention(*graph())
    torch.testing.assert_close(weight, (1 - torch.eye(4, dtype=torch.float64)).expand(2, 4, 4) / 3)


def test_nodes_may_come_in_any_order():
    """Property 4."""
    layer, (x, edge) = built(), graph()
    order = torch.tensor([2, 0, 3, 1])
    moved = layer(x[:, order], edge[:, order][:, :, order])
    torch.testing.assert_close(moved, layer(x, edge)[:, order])
    only_nodes = layer(x[:, order], edge)
    assert not torch.allclose(only_nodes, layer(x, edge)[:, order]), "edges count"


@pytest.mark.parametrize("filling", [0.0, 7.0, torch.nan, torch.inf])
def test_padding_changes_nothing(filling):
    """Property 4, with b1 above 0: without the mask of the sum each padded node would add b1."""
    layer, (x, edge) = built(bias=0.0), graph()
    layer.bias.data.fill_(0.5)
    wide, edges = x.new_full((2, 6, 5), filling), edge.new_full((2, 6, 6, 3), filling)
    wide[:, :4], edges[:, :4, :4] = x, edge
    mask = torch.arange(6).expand(2, 6) < 4
    out = layer(wide.requires_grad_(), edges.requires_grad_(), mask)
    torch.testing.assert_close(out[:, :4], layer(x, edge))
    assert not out[:, 4:].any()
    out.sum().backward()
    assert all(bool(item.grad.isfinite().all()) for item in layer.parameters())
    assert not wide.grad[:, 4:].any()


def test_output_grows_with_the_number_of_nodes_by_the_bias():
    """Nodes that send nothing add ReLU(b1) each: the ReLU is inside the sum."""
    layer, (x, edge) = built(), graph()
    torch.nn.init.zeros_(layer.message.weight)
    torch.testing.assert_close(
        layer(x, edge) - torch.relu(layer.own(x)),
        (3 * torch.relu(layer.bias)).expand(2, 4, 6).detach(),
        check_dtype=False,
    )


def test_parameters_are_the_papers():
    counts = [
        sum(item.numel() for item in HGATConv(size, 1024, 512).parameters())
        for size in (2048, 1024)
    ]
    assert counts == [4_198_913, 2_101_761]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: HGATConv(0, 1, 1), ValueError, "in_dim must be at least 1"),
        (lambda: HGATConv(1, 1, 1, negative_slope=-0.1), ValueError, "negative_slope"),
        (lambda: HGATConv(5, 6, 3)(torch.rand(2, 4, 4), torch.rand(2, 4, 4, 3)), ValueError, "x"),
        (
            lambda: HGATConv(5, 6, 3)(torch.rand(2, 4, 5), torch.rand(2, 3, 4, 3)),
            ValueError,
            "edge",
        ),
        (
            lambda: HGATConv(5, 6, 3)(
                torch.rand(2, 4, 5), torch.rand(2, 4, 4, 3), torch.ones(2, 4, dtype=torch.long)
            ),
            TypeError,
            "mask must hold booleans",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=f"HGATConv: .*{message}"):
        call()


def test_what_the_diagonal_holds_does_not_reach_the_gradients():
    layer = HGATConv(3, 4, edge_dim=2)
    generator = torch.Generator().manual_seed(0)
    x, edge = (
        torch.randn(1, 4, 3, generator=generator),
        torch.randn(1, 4, 4, 2, generator=generator),
    )
    gradients = []
    for held in (0.0, torch.nan):
        edge[:, range(4), range(4)] = held
        layer.zero_grad()
        layer(x, edge).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    assert all(map(torch.equal, *gradients))
