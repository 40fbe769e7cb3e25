"""Cell networks: the published counts, a slow reference, operations against loops."""

import copy

import pytest
import torch
from cv_core.models.cell_operations import (
    FactorizedReduce,
    ZeroEdge,
    cell_operation,
    drop_path,
    relu_conv_norm,
)
from cv_core.models.cells import AuxiliaryHead, Cell, CellNetwork
from cv_core.models.genotypes import (
    DARTS_V1,
    DARTS_V2,
    OPERATION_NAMES,
    P_DARTS,
    PC_DARTS,
    PC_DARTS_IMAGENET,
    Genotype,
)
from cv_core.random import seeded, torch_generator
from torch import nn

PUBLISHED = (DARTS_V1, DARTS_V2, P_DARTS, PC_DARTS)


@pytest.fixture(scope="module")
def on_meta():
    """Build networks of the published sizes without drawing millions of weights."""

    def build(*args, **options):
        with torch.device("meta"):
            return CellNetwork(*args, **options)

    return build


def images(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=torch_generator(0, "images"), dtype=dtype)


def randomised(model):
    """Give all norms statistics and gains other than 0 and 1; in float64 and eval mode."""
    generator = torch_generator(1, "norms")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def count(model, *kinds):
    return sum(isinstance(part, kinds) for part in model.modules())


# --- the genotypes ---


@pytest.mark.parametrize(
    ("genotype", "edges", "convolutions", "pools"),
    [
        (DARTS_V1, 100, 403, 10),
        (DARTS_V2, 118, 439, 10),
        (P_DARTS, 124, 435, 4),
        (PC_DARTS, 142, 459, 20),
    ],
)
def test_the_published_counts_on_cifar(on_meta, genotype, edges, convolutions, pools):
    model = on_meta(genotype, 20, 36, 10)
    places = model.edges()
    assert len(places) == 160
    assert sum(edge.operation != "skip_connect" for edge in places.values()) == edges
    assert count(model, nn.Conv2d) == convolutions
    assert count(model, nn.MaxPool2d, nn.AvgPool2d) == pools


def test_the_published_counts_on_imagenet(on_meta):
    model = on_meta(DARTS_V2, 14, 48, 1000, stem="imagenet")
    assert sum(edge.operation != "skip_connect" for edge in model.edges().values()) == 82
    assert count(model, nn.Conv2d) == 298
    assert count(model, nn.MaxPool2d, nn.AvgPool2d) == 10
    assert round(parameters(model) / 1e6, 1) == 4.7


def test_the_published_parameters(on_meta):
    sizes = [parameters(on_meta(genotype, 20, 36, 10)) for genotype in PUBLISHED]
    assert sizes[1:] == [3_349_342, 3_433_798, 3_634_678]
    assert parameters(on_meta(P_DARTS, 20, 36, 10, auxiliary=True)) == 3_910_224
    published = parameters(on_meta(PC_DARTS_IMAGENET, 14, 48, 1000, stem="imagenet"))
    assert round(published / 1e6, 1) == 5.3


def test_genotypes_refuse_what_is_no_cell():
    good = DARTS_V1.normal
    with pytest.raises(ValueError, match=r"normal must have two edges for every node; got 3"):
        Genotype(good[:3], good)
    with pytest.raises(ValueError, match=r"reduce\[1\] must be one of .*Did you mean 'sep_conv_3"):
        Genotype(good, (good[0], ("sep_conv_3", 0)))
    with pytest.raises(ValueError, match=r"normal\[2\] must be at least 0 and at most 2; got 3"):
        Genotype((*good[:2], ("skip_connect", 3), good[3]), good)


# --- the operations ---


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_every_operation_divides_the_sides_and_rounds_up(name, stride):
    made = cell_operation(name, 4, stride)
    for height, width in ((8, 8), (7, 6), (1, 3)):
        out = made(torch.rand(2, 4, height, width))
        assert out.shape == (2, 4, -(-height // stride), -(-width // stride))


def test_operations_of_convolutions_are_their_layers_in_order():
    x = images(2, 4, 6, 6)
    for name, size, dilation in (("sep_conv_3x3", 3, 1), ("sep_conv_5x5", 5, 1),
                                 ("dil_conv_3x3", 3, 2), ("dil_conv_5x5", 5, 2)):  # fmt: skip
        made = randomised(cell_operation(name, 4, 2))
        layers = list(made)
        expected = x
        for start in range(0, len(layers), 4):
            _, depthwise, pointwise, norm = layers[start : start + 4]
            assert depthwise.weight.shape == (4, 1, size, size)
            rectified = expected.clamp_min(0)
            deep = torch.nn.functional.conv2d(
                rectified,
                depthwise.weight,
                stride=2 if start == 0 else 1,
                padding=dilation * (size // 2),
                dilation=dilation,
                groups=4,
            )
            expected = norm(torch.einsum("oi,bihw->bohw", pointwise.weight[:, :, 0, 0], deep))
        assert len(layers) == (8 if name.startswith("sep") else 4)
        torch.testing.assert_close(made(x), expected)


def test_the_average_leaves_the_padding_out():
    assert torch.equal(
        cell_operation("avg_pool_3x3", 1)(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4)
    )


def test_the_skip_keeps_or_reduces():
    x = images(1, 4, 6, 6)
    assert cell_operation("skip_connect", 4)(x) is x
    assert isinstance(cell_operation("skip_connect", 4, 2), FactorizedReduce)


@pytest.mark.parametrize("sides", [(6, 8), (5, 7), (1, 1)])
def test_factorised_reduce_against_a_loop(sides):
    layer = randomised(FactorizedReduce(3, 4))
    x = images(2, 3, *sides) - 0.5
    height, width = (-(-side // 2) for side in sides)
    expected = torch.zeros(2, 4, height, width, dtype=torch.float64)
    for b in range(2):
        for i in range(height):
            for j in range(width):
                for half, (conv, shift) in enumerate(((layer.conv1, 0), (layer.conv2, 1))):
                    row, column = 2 * i + shift, 2 * j + shift
                    seen = torch.zeros(3, dtype=torch.float64)
                    if row < sides[0] and column < sides[1]:
                        seen = x[b, :, row, column].clamp_min(0)
                    expected[b, 2 * half : 2 * half + 2, i, j] = conv.weight[:, :, 0, 0] @ seen
    torch.testing.assert_close(layer(x), layer.norm(expected))


@pytest.mark.parametrize(
    "operation",
    [
        *(cell_operation(name, 6, stride) for name in OPERATION_NAMES for stride in (1, 2)),
        nn.Conv2d(3, 5, 3, stride=3, padding=1),
        relu_conv_norm(6, 4),
        FactorizedReduce(6, 4),
    ],
)
def test_a_zero_edge_has_the_shape_of_what_it_replaces(operation):
    before = copy.deepcopy(operation.state_dict())
    zero = ZeroEdge.like(operation)
    after = operation.state_dict()
    assert operation.training
    assert all(torch.equal(before[name], value) for name, value in after.items())
    x = torch.rand(2, 3 if isinstance(operation, nn.Conv2d) else 6, 9, 13)
    out = zero(x)
    assert out.shape == operation(x).shape
    assert not out.any()
    in_double = ZeroEdge.like(copy.deepcopy(operation).double())
    assert (in_double.stride, in_double.channels) == (zero.stride, zero.channels)


def test_a_zero_edge_refuses_other_changes_of_size():
    with pytest.raises(ValueError, match=r"ZeroEdge.like: operation must divide the sides"):
        ZeroEdge.like(nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match=r"AdaptiveAvgPool2d makes \(1, 1\)"):
        ZeroEdge.like(nn.AdaptiveAvgPool2d(1))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    with seeded(0, "drop"):
        out = drop_path(torch.ones(4000, 2, 3), 0.25)
    values = out.flatten(1)
    assert torch.equal(values, values[:, :1].expand(-1, 6))
    torch.testing.assert_close(values.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs(float(out.mean()) - 1) < 0.03
    with seeded(0, "drop"):
        assert torch.equal(drop_path(images(5, 2), 0.0), images(5, 2))


# --- cells and networks ---


@pytest.mark.parametrize("reduction", [False, True])
def test_a_cell_is_the_graph_of_its_genotype(reduction):
    edges = PC_DARTS.reduce if reduction else PC_DARTS.normal
    cell = randomised(Cell(edges, (6, 8), 4, reduction=reduction, after_reduction=True))
    older, newer = images(2, 6, 16, 16), images(2, 8, 8, 8)
    nodes = [cell.preprocess0(older), cell.preprocess1(newer)]
    for node in range(2, 6):
        total = 0
        for k, (name, source) in enumerate(edges):
            if k // 2 + 2 == node:
                fresh = cell_operation(name, 4, 2 if reduction and source < 2 else 1)
                fresh.double().eval().load_state_dict(cell.edges[k].state_dict())
                total = total + fresh(nodes[source])
        nodes.append(total)
    out = cell(older, newer)
    torch.testing.assert_close(out, torch.cat(nodes[2:], 1))
    assert cell.out_channels == out.shape[1] == 16
    assert out.shape[2] == (4 if reduction else 8)


def test_zero_edges_add_nothing_and_a_node_of_zeros_stays():
    cell = randomised(Cell(DARTS_V2.reduce, (4, 4), 4, reduction=True))
    older, newer = images(2, 2, 4, 8, 8)
    full = cell(older, newer).chunk(4, 1)
    first = cell.edges[0](cell.preprocess0(older))
    cell.edges[1] = ZeroEdge(2)
    torch.testing.assert_close(cell(older, newer).chunk(4, 1)[0], first)
    cell.edges[0] = ZeroEdge(2)
    got = cell(older, newer).chunk(4, 1)
    assert got[0].shape == full[0].shape
    assert not got[0].any()
    torch.testing.assert_close(got[3], full[0] * 0 + cell.edges[7](cell.preprocess1(newer)))


def test_a_network_is_stem_cells_and_classifier():
    model = randomised(CellNetwork(DARTS_V2, 4, 4, 10, in_channels=1, auxiliary=True))
    x = images(2, 1, 12, 12)
    outputs = [model.stem.layers0(x)] * 2
    for cell in model.cells:
        outputs.append(cell(*outputs[-2:]))
    expected = outputs[-1].mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(x), expected)
    logits, auxiliary = model.logits_and_auxiliary(x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(auxiliary, model.auxiliary(outputs[2 + 8 // 3]))
    assert [tuple(out.shape[1:3]) for out in outputs] == [
        (12, 12), (12, 12), (16, 12), (32, 6), (64, 3), (64, 3),
    ]  # fmt: skip


def test_edges_name_the_places_and_tell_the_strides():
    model = CellNetwork(DARTS_V1, 3, 4, 10, reductions=[1])
    for place, edge in model.edges().items():
        genotype = DARTS_V1.reduce if edge.cell == 1 else DARTS_V1.normal
        k = int(place.rpartition(".")[2])
        assert place == f"cells.{edge.cell}.edges.{k}"
        assert (edge.operation, edge.source) == genotype[k]
        assert edge.node == k // 2 + 2
        assert edge.stride == (2 if edge.cell == 1 and edge.source < 2 else 1)
        made = cell_operation(edge.operation, 4, edge.stride)
        assert type(model.get_submodule(place)) is type(made)


def test_the_imagenet_stem_divides_by_eight():
    model = CellNetwork(DARTS_V2, 3, 4, 7, stem="imagenet", reductions=())
    older, newer = model.stem(torch.rand(1, 3, 64, 64))
    assert older.shape == (1, 4, 16, 16)
    assert newer.shape == (1, 4, 8, 8)
    assert model(torch.rand(2, 3, 50, 33)).shape == (2, 7)


def test_drop_path_spares_identities_and_evaluation():
    with seeded(0, "init"):
        model = CellNetwork(DARTS_V2, 3, 4, 10, drop=0.5).double()
    x = images(6, 3, 8, 8)
    identities = DARTS_V2.normal.index(("skip_connect", 0))
    cell = model.cells[0]
    nodes = {source: images(6, 4, 8, 8) for source in range(5)}
    assert cell._edge(identities, nodes[0], 0.5) is nodes[0]
    with seeded(1, "drop"):
        dropped = cell._edge(0, nodes[0], 0.5).flatten(1).eq(0).all(1)
    assert dropped.any()
    assert not dropped.all()
    with seeded(1, "drop"):
        first = model(x)
    with seeded(2, "drop"):
        assert not torch.equal(model(x), first)
    model.eval()
    state = torch.get_rng_state()
    assert torch.equal(model(x), model(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_parameter_gets_a_gradient():
    with seeded(0, "init"):
        model = CellNetwork(PC_DARTS, 4, 4, 10, auxiliary=True)
    logits, auxiliary = model.logits_and_auxiliary(torch.rand(4, 3, 12, 12))
    (logits.square().sum() + auxiliary.square().sum()).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not dead


def test_copies_answer_alike():
    model = CellNetwork(P_DARTS, 3, 4, 10).eval()
    x = images(2, 3, 8, 8, dtype=torch.float32)
    fresh = CellNetwork(P_DARTS, 3, 4, 10).eval()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_the_auxiliary_head_takes_any_size():
    head = AuxiliaryHead(8, 3).eval()
    for side in (1, 2, 5, 8):
        assert head(torch.rand(2, 8, side, side)).shape == (2, 3)


def test_bad_options_and_input_are_refused():
    with pytest.raises(ValueError, match=r"stem must be one of .* Did you mean 'cifar'"):
        CellNetwork(DARTS_V2, 3, 4, 10, stem="cifa")
    with pytest.raises(ValueError, match="reductions must be at least 0 and at most 2; got 3"):
        CellNetwork(DARTS_V2, 3, 4, 10, reductions=[3])
    with pytest.raises(ValueError, match=r"drop must lie in \[0, 1\)"):
        CellNetwork(DARTS_V2, 3, 4, 10, drop=1.0)
    with pytest.raises(ValueError, match="out_channels must be even; got 3"):
        CellNetwork(DARTS_V2, 3, 3, 10, stem="imagenet")
    model = CellNetwork(DARTS_V2, 3, 4, 10)
    with pytest.raises(ValueError, match=r"CellNetwork: x must have shape \(b, c, h, w\) with c=3"):
        model(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="no auxiliary head; build the network with auxiliary"):
        model.logits_and_auxiliary(torch.rand(2, 3, 8, 8))
