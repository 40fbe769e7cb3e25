"""The cell against core's ConvLSTM and by hand; what the decoder's levels, objects, frames read."""

import pytest
import torch
from cv_core.nn.convlstm import ConvLSTMCell
from cv_segmentation.video.decoder import BiRecurrentConvLSTMCell, HierarchicalConvLSTMDecoder
from torch import nn


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(convolution):
    """The one 3x3 kernel that a convolution separable by depth stands for."""
    deep, wide = convolution
    return wide.weight * deep.weight.transpose(0, 1)


def test_the_cell_is_a_convlstm_over_objects_that_also_reads_the_past():
    cell, x, past = BiRecurrentConvLSTMCell(3, 4).double(), draw(2, 3, 3, 5, 6), draw(2, 3, 4, 5, 6)
    plain = ConvLSTMCell(3 + 4, 4).double()
    plain.conv_x.load_state_dict({"weight": dense(cell.conv_x), "bias": cell.conv_x[1].bias})
    plain.conv_h.load_state_dict({"weight": dense(cell.conv_h)})
    hidden, cells = cell(x, past)
    alone, alone_cells = cell(x, past, over_objects=False)
    state = None
    for number in range(3):
        given = torch.cat([x[:, number], past[:, number]], dim=1)
        state = plain(given, state)
        torch.testing.assert_close(hidden[:, number], state[0])
        torch.testing.assert_close(cells[:, number], state[1])
        fresh = plain(given)
        torch.testing.assert_close(alone[:, number], fresh[0])
        torch.testing.assert_close(alone_cells[:, number], fresh[1])


def test_a_cell_without_a_past_reads_zeros():
    cell, x = BiRecurrentConvLSTMCell(3, 4).double(), draw(1, 2, 3, 4, 4)
    zeros = torch.zeros(1, 2, 4, 4, 4, dtype=torch.float64)
    for mine, other in zip(cell(x), cell(x, zeros), strict=True):
        assert torch.equal(mine, other)


def decoder(**options):
    return HierarchicalConvLSTMDecoder((6, 5, 4), 8, **options).double()


def maps(seed=0):
    sizes = ((6, 2, 3), (5, 4, 5), (4, 7, 9))
    return [draw(2, *size, seed=seed + i) for i, size in enumerate(sizes)]


def test_a_frame_by_hand():
    """Eqs. 5, 6 and 8, level by level and object by object."""
    model, features, masks = decoder(), maps(), draw(2, 2, 14, 18, seed=9).sigmoid()
    memory = [draw(2, 2, width, *item.shape[2:], seed=width) for width, item in
              zip((8, 4, 2), features, strict=True)]  # fmt: skip
    logits, hiddens = model(features, masks, memory)
    assert [tuple(h.shape) for h in hiddens] == [tuple(m.shape) for m in memory]
    below = [None, None]
    for level, cell in enumerate(model.cells):
        size, before = features[level].shape[2:], None
        for number in range(2):
            small = nn.functional.adaptive_avg_pool2d(masks[:, number : number + 1], tuple(size))
            parts = [features[level], small, memory[level][:, number]]
            if level:
                up = nn.functional.interpolate(below[number], size=size, mode="bilinear")
                parts.insert(0, up)
            z = cell.conv_x(torch.cat(parts, dim=1))
            c = 0.0
            if before is not None:
                z, c = z + cell.conv_h(before[0]), before[1]
            i, f, g, o = z.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            before = o.sigmoid() * c.tanh(), c
            below[number] = before[0]
            torch.testing.assert_close(hiddens[level][:, number], before[0])
    for number in range(2):
        torch.testing.assert_close(logits[:, number], model.head(below[number])[:, 0])


def test_an_object_reads_those_before_it_and_not_those_after():
    model, features, masks = decoder(), maps(), draw(2, 3, 14, 18, seed=9).sigmoid()
    changed = masks.clone()
    changed[:, 1] = 1.0 - changed[:, 1]
    old, new = model(features, masks)[0], model(features, changed)[0]
    assert torch.equal(old[:, 0], new[:, 0])
    assert not torch.equal(old[:, 2], new[:, 2])
    model.over_objects = False
    old, new = model(features, masks)[0], model(features, changed)[0]
    assert torch.equal(old[:, 2], new[:, 2])
    assert not torch.equal(old[:, 1], new[:, 1])


def test_memory_is_read_only_over_time():
    features, masks = maps(), draw(2, 2, 14, 18, seed=9).sigmoid()
    for over_time in (True, False):
        model = decoder(over_time=over_time)
        first, memory = model(features, masks)
        again, _ = model(features, masks, memory)
        assert torch.equal(first, again) != over_time


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BiRecurrentConvLSTMCell(0, 4), "Cell: in_channels must be at least 1"),
        (
            lambda: BiRecurrentConvLSTMCell(3, 4).double()(
                draw(1, 2, 3, 4, 4), draw(1, 1, 4, 4, 4)
            ),
            r"BiRecurrentConvLSTMCell: past must have shape .* n=2",
        ),
        (lambda: HierarchicalConvLSTMDecoder((), 4), "must name at least one level"),
        (lambda: decoder()(maps()[:2], draw(2, 1, 4, 4)), "features must hold 3 levels; got 2"),
        (lambda: decoder()(maps(), draw(3, 1, 4, 4)), r"features\[0\] must have shape .* b=3"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
