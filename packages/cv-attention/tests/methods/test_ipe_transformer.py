from __future__ import annotations

import math

import pytest
import torch
from cv_attention.insertion import insert_attention, remove_attention
from cv_attention.methods.ipe_transformer import (
    AxialTransformerBlock,
    IPEAxialAttention2d,
    IPETransformerBlock,
    insert_bottleneck,
    masked_rmse_mae_loss,
)
from cv_attention.modules.axial import AxialAttention2d
from cv_core.metrics.cost import count_parameters
from cv_core.models.unet import UNet
from torch import Tensor, nn
from torch.nn import functional

POSITIONS = {"none": None, "learned": (3, 5), "sinusoidal": None, "ipe": None}


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def attention(position: str, *channels: int, **options) -> AxialAttention2d:
    size = options.pop("size", POSITIONS[position])
    made = AxialAttention2d(*channels, position=position, size=size, **options).double()
    if position == "learned":
        nn.init.normal_(made.position.table)
    return made


def block(channels: int = 6, **options) -> IPETransformerBlock:
    """Build a block that is not the identity, with statistics that are not 0 and 1."""
    made = IPETransformerBlock(channels, **options).double().eval()
    generator = torch.Generator().manual_seed(1)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return made


def weights(layer: nn.Module) -> Tensor:
    """Return the 1x1 convolution's matrices W_Q, W_K and W_V."""
    return layer.conv.weight.detach()[:, :, 0, 0].split(layer.sizes)


# --- Eq. 5 to 8 ---------------------------------------------------------------------------------


def step_along_rows(qkv: list[Tensor], embedded: list[Tensor], heads: int, factor: float) -> Tensor:
    """Compute one step of Eq. 7 by loops; all maps are (C, H, W)."""
    (query, key, value), (query_e, key_e, value_e) = qkv, embedded
    out = torch.zeros_like(value)
    _, height, width = value.shape
    for head in range(heads):
        c = slice(head * len(query) // heads, (head + 1) * len(query) // heads)
        d = slice(head * len(value) // heads, (head + 1) * len(value) // heads)
        for row in range(height):
            for i in range(width):
                logits = []
                for j in range(width):
                    theta = key[c, row, i] @ key_e[c, row, j]
                    theta = theta + query[c, row, i] @ query_e[c, row, j]
                    theta = theta + key[c, row, i] @ query[c, row, j]
                    logits.append(factor * float(theta))
                total = sum(math.exp(logit) for logit in logits)
                for j, logit in enumerate(logits):
                    share = math.exp(logit) / total
                    out[d, row, i] += share * (value[d, row, j] + value_e[d, row, j])
    return out


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("heads", "scale"), [(1, False), (2, True)])
def test_slow_reference(position: str, heads: int, scale: bool) -> None:
    module = attention(position, 6, 4, 8, heads, scale=scale)
    x, factor = draw(2, 6, 3, 5), (heads / 4) ** 0.5 if scale else 1.0
    got = module(x)
    for number, image in enumerate(x):
        embedded = [torch.zeros(size, 3, 5, dtype=torch.float64) for size in (4, 4, 8)]
        if module.position is not None:
            maps = module.position(image[None])
            embedded = [part.detach()[0] for part in maps]
        z = image
        for layer, turned in zip(module.steps, (False, True), strict=True):
            qkv = [torch.einsum("dc,chw->dhw", W, z) for W in weights(layer)]
            operands = [[m.mT for m in maps] if turned else maps for maps in (qkv, embedded)]
            z = step_along_rows(*operands, heads, factor)
            z = z.mT if turned else z
        torch.testing.assert_close(got[number], z)


def test_property_1_first_logits_are_one_bilinear_form_of_rank_2c() -> None:
    C, x = 2, draw(1, 8, 1, 6)
    module = attention("ipe", 8, C)
    (W_Q, W_K, _), (W_Qe, W_Ke, _) = weights(module.steps[0]), weights(module.position)
    M = W_K.T @ W_Ke + W_Q.T @ W_Qe + W_K.T @ W_Q
    X = x[0, :, 0]
    torch.testing.assert_close(module.maps(x)[0][0, 0, 0], (X.T @ M @ X).softmax(1))
    assert torch.linalg.matrix_rank(M) == 2 * C  # not 3 C, as three terms suggest


def test_plain_attention_with_2c_channels_is_the_same_first_step_with_as_many_parameters() -> None:
    ipe, x = attention("ipe", 8, 4), draw(2, 8, 3, 5)
    plain = attention("none", 8, 8)
    (W_Q, W_K, W_V), (W_Qe, W_Ke, W_Ve) = weights(ipe.steps[0]), weights(ipe.position)
    joined = torch.cat([W_Q + W_Ke, W_Qe, W_K, W_Q, W_V + W_Ve])  # queries, keys, values
    plain.steps[0].conv.weight.data = joined[:, :, None, None]
    torch.testing.assert_close(plain.maps(x)[0], ipe.maps(x)[0])
    for module in (plain, ipe):  # a second step of one position passes its value
        module.steps[1].conv.weight.data[-8:] = torch.eye(8, dtype=torch.float64)[:, :, None, None]
    row = x[:, :, :1]
    torch.testing.assert_close(ipe(row) - ipe.position(row)[2], plain(row))
    assert count_parameters(plain) == count_parameters(ipe)


def test_property_2_without_maps_it_is_plain_axial_attention() -> None:
    ipe, plain, x = attention("ipe", 6), attention("none", 6), draw(2, 6, 3, 5)
    nn.init.zeros_(ipe.position.conv.weight)
    plain.load_state_dict({k: v for k, v in ipe.state_dict().items() if "position" not in k})
    torch.testing.assert_close(ipe(x), plain(x))


def test_property_3_no_place_is_known_by_number() -> None:
    made, x = block(), draw(2, 6, 4, 5)
    columns, rows = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([2, 3, 1, 0])
    torch.testing.assert_close(made(x[..., columns]), made(x)[..., columns])
    torch.testing.assert_close(made(x[:, :, rows]), made(x)[:, :, rows])
    flat = made(x[:, :, :1, :1].expand(-1, -1, 4, 5))
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))
    for position in ("learned", "sinusoidal"):
        other = attention(position, 6, size=(4, 5) if position == "learned" else None)
        assert not torch.allclose(other(x[..., columns]), other(x)[..., columns])


@pytest.mark.parametrize("position", POSITIONS)
def test_property_4_rows_sum_to_one_at_any_size(position: str) -> None:
    module = attention(position, 6, heads=1)
    count = count_parameters(module)
    for height, width in ((1, 1), (3, 5), (7, 2), (1, 9)):
        across, down = module.maps(draw(2, 6, height, width))
        assert across.shape == (2, 1, height, width, width)
        assert down.shape == (2, 1, width, height, height)
        for maps in (across, down):
            torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
        assert module(draw(2, 6, height, width)).shape == (2, 6, height, width)
    assert count_parameters(module) == count


def test_property_5_two_steps_connect_everything_and_one_its_axis() -> None:
    x = draw(1, 6, 3, 4).requires_grad_()
    for row in range(3):
        for column in range(4):
            (slope,) = torch.autograd.grad(block()(x)[0, :, row, column].sum(), x)
            assert (slope[0].abs().sum(0) > 0).all()
    for axis in ("width", "height"):
        along = attention("ipe", 6, order=(axis, axis))
        (slope,) = torch.autograd.grad(along(x)[0, :, 1, 2].sum(), x)
        expected = torch.zeros(3, 4, dtype=torch.bool)
        expected[1 if axis == "width" else slice(None), 2 if axis == "height" else slice(None)] = 1
        assert torch.equal(slope[0].abs().sum(0) > 0, expected)


def test_property_6_turning_the_image_swaps_the_order() -> None:
    x = draw(2, 6, 3, 5)
    one, other = attention("ipe", 6), attention("ipe", 6, order=("height", "width"))
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(x.mT), one(x).mT)
    assert not torch.allclose(one(x.mT), one(x).mT)


def test_maps_and_output_belong_together() -> None:
    module, x = attention("ipe", 6, heads=2, qk_channels=4), draw(2, 6, 3, 5)
    _, _, value = module.steps[0](x)
    first = torch.einsum(
        "bnhij,bnchj->bnchi",
        module.maps(x)[0],
        (value + module.position(x)[2]).unflatten(1, (2, -1)),
    ).flatten(1, 2)
    _, _, value = module.steps[1](first)
    second = torch.einsum(
        "bnwij,bncjw->bnciw",
        module.maps(x)[1],
        (value + module.position(x)[2]).unflatten(1, (2, -1)),
    ).flatten(1, 2)
    torch.testing.assert_close(module(x), second)


# --- other sources of position ------------------------------------------------------------------


def test_table_is_as_learned_at_its_size_and_resized_elsewhere() -> None:
    position = attention("learned", 6, size=(4, 6)).position
    table = position.table.detach()
    assert torch.equal(torch.cat(position(draw(2, 6, 4, 6)), dim=1), table)
    larger = torch.cat(position(draw(2, 6, 8, 9)), dim=1)
    torch.testing.assert_close(larger, functional.interpolate(table, (8, 9), mode="bilinear"))


def test_waves_by_loops() -> None:
    waves = attention("sinusoidal", 6).position.waves(3, 4)
    assert waves.shape == (1, 8, 3, 4)
    for wave in range(2):
        frequency = 10_000 ** -(wave / 2)
        for row in range(3):
            for column in range(4):
                expected = [
                    math.sin(frequency * row), math.cos(frequency * row),
                    math.sin(frequency * column), math.cos(frequency * column),
                ]  # fmt: skip
                got = waves[0, wave::2, row, column]
                torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


# --- block and U-Net ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_block_by_hand_and_as_the_identity(norm: str) -> None:
    x, made = draw(2, 6, 3, 5), block(norm=norm, zero_init=False)
    y = x + made.proj[1](made.proj[0](made.attention(made.norm(x))))
    hidden = made.ffn[1](made.ffn[0](y)).relu()
    torch.testing.assert_close(made(x), y + made.ffn[4](made.ffn[3](hidden)))
    assert not torch.allclose(made(x), x)
    assert made.ffn[1].out_channels == 12
    for mode in (True, False):
        assert torch.equal(IPETransformerBlock(6, norm=norm).double().train(mode)(x), x)


def test_bottleneck_goes_in_and_out() -> None:
    plain = UNet(4, 1, widths=(4, 8)).double().eval()
    x, expected = draw(2, 4, 12, 20), plain(draw(2, 4, 12, 20))
    inserted = IPETransformerBlock(8)
    model = insert_bottleneck(plain, inserted)
    assert model.encoder.stages[1].follower is inserted
    torch.testing.assert_close(model(x), expected)  # it starts as the identity
    nn.init.normal_(inserted.proj[1].weight)
    assert not torch.allclose(model(x), expected)
    assert torch.equal(plain(x), expected)
    again = remove_attention(model)
    assert list(again.state_dict()) == list(plain.state_dict())
    assert torch.equal(again(x), expected)
    named = insert_attention(plain, "ipe-transformer", where="encoder.stages.1", scale=True)
    assert repr(named.encoder.stages[1]).count("IPEAxialAttention2d") == 1
    with pytest.raises(ValueError, match="insert_bottleneck: block must take the 8 channels"):
        insert_bottleneck(plain, IPETransformerBlock(6))


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads must divide qk_channels=3; got heads=2"):
        IPEAxialAttention2d(6, heads=2)
    with pytest.raises(ValueError, match=r"position must be one of .* Did you mean 'learned'"):
        AxialAttention2d(6, position="learnt")
    with pytest.raises(ValueError, match=r'size, .*belongs to position="learned"; got size=None'):
        AxialAttention2d(6, position="learned")
    with pytest.raises(ValueError, match=r'belongs to position="learned"; got size=\(3, 3\)'):
        AxialAttention2d(6, size=(3, 3))
    with pytest.raises(ValueError, match="order must be one of"):
        AxialAttention2d(6, order=("width", "depth"))
    with pytest.raises(ValueError, match="norm must be one of"):
        IPETransformerBlock(6, norm="instance")
    with pytest.raises(ValueError, match=r"ffn_ratio must lie in \(0, inf\)"):
        AxialTransformerBlock(AxialAttention2d(6), ffn_ratio=0.0)
    with pytest.raises(ValueError, match=r"IPETransformerBlock: x must have shape .*c=6; got"):
        block()(draw(2, 4, 3, 3))


# --- loss ---------------------------------------------------------------------------------------


def test_loss_by_loops_and_whatever_stands_where_nothing_is_known() -> None:
    pred, gt = draw(3, 1, 4, 5, seed=1).requires_grad_(), draw(3, 1, 4, 5, seed=2)
    valid = draw(3, 1, 4, 5, seed=3) > 0
    valid[1] = False
    gt = gt.masked_fill(~valid, float("nan"))
    expected = []
    for image in range(3):
        errors = [
            float(pred[image, 0, i, j].detach() - gt[image, 0, i, j])
            for i in range(4)
            for j in range(5)
            if valid[image, 0, i, j]
        ]
        root = math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else 0.0
        mean = sum(map(abs, errors)) / len(errors) if errors else 0.0
        expected.append(2.0 * root + 0.5 * mean)
    options = {"rmse_weight": 2.0, "mae_weight": 0.5}
    got = masked_rmse_mae_loss(pred, gt, valid, **options, reduction="none")
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    mean = masked_rmse_mae_loss(pred, gt, valid, **options)
    torch.testing.assert_close(mean, got.sum() / 2)  # of the images with a known depth
    total = masked_rmse_mae_loss(pred, gt, valid, **options, reduction="sum")
    torch.testing.assert_close(total, got.sum())
    mean.backward()
    assert pred.grad.isfinite().all()
    assert not pred.grad[~valid].any()
    assert pred.grad[valid].all()


def test_loss_of_a_perfect_prediction_has_no_slope() -> None:
    pred = draw(2, 1, 3, 3).requires_grad_()
    loss = masked_rmse_mae_loss(pred, pred.detach().clone(), torch.ones(2, 1, 3, 3).bool())
    loss.backward()
    assert loss == 0
    assert not pred.grad.any()
    nothing = masked_rmse_mae_loss(pred, pred * 2, torch.zeros(2, 1, 3, 3).bool())
    assert nothing == 0


def test_bad_losses_are_refused() -> None:
    x = draw(2, 1, 3, 3)
    with pytest.raises(TypeError, match=r"masked_rmse_mae_loss: valid must be a boolean tensor"):
        masked_rmse_mae_loss(x, x, x)
    with pytest.raises(ValueError, match=r"pred and gt and valid must have the same shape"):
        masked_rmse_mae_loss(x, x[:, 0], x > 0)
    with pytest.raises(ValueError, match="rmse_weight must lie in"):
        masked_rmse_mae_loss(x, x, x > 0, rmse_weight=-1.0)
