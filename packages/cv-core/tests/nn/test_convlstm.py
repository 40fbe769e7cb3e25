import pytest
import torch
from cv_core.nn.convlstm import ConvLSTM, ConvLSTMCell
from torch import nn


def _copied_from(lstm, model):
    """Copy an LSTM's weights into kernels of size 1; the two biases become one."""
    with torch.no_grad():
        for layer, cell in enumerate(model.cells):
            cell.conv_x.weight.copy_(getattr(lstm, f"weight_ih_l{layer}")[:, :, None, None])
            cell.conv_h.weight.copy_(getattr(lstm, f"weight_hh_l{layer}")[:, :, None, None])
            biases = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
            cell.conv_x.bias.copy_(biases)


@pytest.mark.parametrize("given_state", [False, True])
def test_on_single_pixels_it_is_an_lstm(given_state):
    lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True, dtype=torch.float64)
    model = ConvLSTM(3, 4, kernel_size=1, num_layers=2).double()
    _copied_from(lstm, model)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    state = torch.randn(2, 2, 2, 4, dtype=torch.float64) if given_state else None
    flat = None if state is None else tuple(state)
    maps = None if state is None else tuple(state[..., None, None])
    expected, (h, c) = lstm(x, flat)
    out, (hidden, cell) = model(x[..., None, None], maps)
    torch.testing.assert_close(out[..., 0, 0], expected)
    torch.testing.assert_close(hidden[..., 0, 0], h)
    torch.testing.assert_close(cell[..., 0, 0], c)


def test_one_step_by_the_equations():
    cell = ConvLSTMCell(2, 3).double()
    x, h, c = (torch.randn(2, n, 4, 5, dtype=torch.float64) for n in (2, 3, 3))
    joined = torch.cat([x, h], dim=1)
    kernel = torch.cat([cell.conv_x.weight, cell.conv_h.weight], dim=1)
    gates = nn.functional.conv2d(joined, kernel, cell.conv_x.bias, padding=1)
    i, f, g, o = gates.unflatten(1, (4, 3)).unbind(1)
    new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    hidden, state = cell(x, (h, c))
    torch.testing.assert_close(state, new_c)
    torch.testing.assert_close(hidden, o.sigmoid() * new_c.tanh())


def test_a_clip_may_be_read_in_two_parts():
    model = ConvLSTM(2, 3, num_layers=2)
    x = torch.randn(1, 6, 2, 4, 4)
    whole, end = model(x)
    first, state = model(x[:, :2])
    second, last = model(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for part, expected in zip(last, end, strict=True):
        torch.testing.assert_close(part, expected)
    torch.testing.assert_close(whole[:, -1], end[0][-1])


def test_size_and_refusals():
    # 160 to 512 channels, 3x3: (160 + 512) * 9 * 2048 weights and 2048 biases
    assert sum(p.numel() for p in ConvLSTM(160, 512).parameters()) == 12_388_352
    with pytest.raises(ValueError, match="kernel_size must be odd; got 2"):
        ConvLSTM(1, 1, kernel_size=2)
    with pytest.raises(ValueError, match="c=2"):
        ConvLSTM(2, 3)(torch.zeros(1, 2, 3, 4, 4))
    state = (torch.zeros(1, 1, 3, 4, 4), torch.zeros(1, 1, 2, 4, 4))
    with pytest.raises(ValueError, match="state c must have shape"):
        ConvLSTM(2, 3)(torch.zeros(1, 2, 2, 4, 4), state)
    one = (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))  # would be broadcast to the batch
    with pytest.raises(ValueError, match="state h must have shape"):
        ConvLSTMCell(2, 3)(torch.zeros(5, 2, 4, 4), one)
