from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchvision
from cv_attention.insertion import (
    KNOWN,
    insert_attention,
    insert_attention_,
    list_attention,
    remove_attention,
    remove_attention_,
)
from cv_attention.methods.fd_module import add_feature_difference, feature_difference
from cv_attention.methods.ipe_transformer import IPETransformerBlock
from cv_attention.modules.axial import AxialAttention
from cv_attention.modules.coordinate import CoordinateAttention
from cv_attention.modules.criss_cross import CrissCrossAttention
from cv_core.nn.attention import NonLocalBlock
from cv_core.nn.gates import CBAM, EfficientChannelAttention, SqueezeExcitation
from cv_core.nn.surgery import Wrapper, out_channels
from torch import Tensor, nn

GATES = {
    "axial": AxialAttention,
    "cbam": CBAM,
    "coordinate": CoordinateAttention,
    "criss-cross": CrissCrossAttention,
    "eca": EfficientChannelAttention,
    "ipe-transformer": IPETransformerBlock,
    "non-local": NonLocalBlock,
    "se": SqueezeExcitation,
}
STARTS_AS_IDENTITY = {"ipe-transformer", "non-local"}


def images(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def drawn_anew(model: nn.Module) -> nn.Module:
    """Draw all weights of what was inserted, so that nothing is the identity."""
    generator = torch.Generator().manual_seed(1)
    for part in model.modules():
        if isinstance(part, Wrapper):
            for parameter in part.follower.parameters():
                parameter.data.uniform_(-0.3, 0.3, generator=generator)
    return model


def input_of(layer: nn.Module) -> Tensor:
    """Draw a map with as many channels as the layer's first convolution takes."""
    conv = next(part for part in layer.modules() if isinstance(part, nn.Conv2d))
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, conv.in_channels, 6, 5, generator=generator)


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.mark.parametrize("kind", GATES)
def test_gate_is_applied_behind_every_selected_layer(plain: nn.Module, kind: str) -> None:
    model = drawn_anew(insert_attention(plain, kind, where="layer*.*.bn2")).eval()
    count = 0
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            assert isinstance(block.bn2.follower, GATES[kind])
            hidden = torch.rand(1, out_channels(block.bn2.inner), 4, 4)
            assert torch.equal(block.bn2(hidden), block.bn2.follower(block.bn2.inner(hidden)))
            count += 1
    assert count == 8
    assert not torch.allclose(model(images()), plain(images()))


@pytest.mark.parametrize("kind", ["fd-module", *GATES])
def test_removal_undoes_insertion_exactly(plain: nn.Module, kind: str) -> None:
    before, expected, keys = repr(plain), plain(images()), list(plain.state_dict())
    model = insert_attention(plain, kind, where="layer*.*.conv2")
    starts_as_identity = torch.allclose(model(images()), expected)
    assert starts_as_identity == (kind in STARTS_AS_IDENTITY)
    again = remove_attention(model)
    assert repr(plain) == repr(again) == before
    assert list(again.state_dict()) == keys
    assert all(map(torch.equal, again.state_dict().values(), plain.state_dict().values()))
    assert torch.equal(again(images()), expected)
    assert repr(model) != before
    assert remove_attention_(model) is model
    assert repr(model) == before


def test_fd_module_is_add_feature_difference(plain: nn.Module) -> None:
    x = images()
    model = insert_attention(plain, "fd-module", where="layer*.*.conv2", beta=0.5)
    assert torch.equal(model(x), add_feature_difference(plain, beta=0.5)(x))
    assert torch.equal(insert_attention(plain, "fd-module", "auto", beta=0.5)(x), model(x))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_both_in_one_block_and_out_again(plain: nn.Module) -> None:
    before = repr(plain)
    model = insert_attention(plain, "se", where="layer*.*.bn2", reduction=8)
    insert_attention_(model, "fd-module", where="auto")
    insert_attention_(model, "eca", where="layer1.0.bn2")
    block, x = model.layer1[0], torch.rand(1, 64, 8, 8)
    se = block.bn2.inner.inner  # eca around feature difference around squeeze-excitation
    expected = feature_difference(x, se(block.conv2.inner(x)))
    torch.testing.assert_close(block.bn2(block.conv2(x)), block.bn2.follower(expected))
    assert repr(remove_attention(model)) == before
    assert not any(isinstance(part, Wrapper) for part in remove_attention(model).modules())


def test_checkpoint_of_the_plain_network_loads(plain: nn.Module) -> None:
    model = insert_attention(plain, "se", where="layer4.1.bn2")
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("layer4.1.bn2.after.") for name in missing)


def test_own_class_and_training_mode(plain: nn.Module) -> None:
    class Gain(nn.Module):
        def __init__(self, channels: int, start: float) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((channels, 1, 1), start))

        def forward(self, x: Tensor) -> Tensor:
            return self.gain * x

    model = insert_attention(plain.double(), Gain, where=nn.BatchNorm2d, start=1.0)
    torch.testing.assert_close(model(images().double()), plain(images().double()))
    assert not any(part.training for part in model.modules())
    added = model.bn1.follower.gain
    assert added.shape == (64, 1, 1)
    assert added.dtype == torch.float64


def test_bad_requests_are_refused_and_change_nothing(plain: nn.Module) -> None:
    before = repr(plain)
    with pytest.raises(ValueError, match=r"insert_attention: kind must be one of .* mean 'cbam'"):
        insert_attention_(plain, "cbma", where="layer*.*.bn2")
    with pytest.raises(ValueError, match=r"'layer9.conv2' selects no module"):
        insert_attention_(plain, "se", where="layer9.conv2")
    with pytest.raises(ValueError, match="reduction must be at least 1"):
        insert_attention_(plain, "se", where="layer*.*.bn2", reduction=0)
    with pytest.raises(ValueError, match="ReLU holds no convolution"):
        insert_attention_(plain, "se", where="relu")
    with pytest.raises(TypeError, match=r"kind must be a name of list_attention\(\) or a class"):
        insert_attention_(plain, 3, where="layer1.0.bn2")  # type: ignore[arg-type]
    assert repr(plain) == before


def test_every_name_has_a_line_and_builds_what_it_says() -> None:
    assert set(list_attention()) == {*GATES, "fd-module"}
    assert all(len(line.splitlines()) == 1 for line in list_attention().values())
    for name, kind in GATES.items():
        assert type(KNOWN[name].build(16)) is kind


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shape", [(2, 16, 1, 1), (1, 16, 1, 9), (2, 16, 7, 5)])
def test_any_size_keeps_its_shape_and_wrong_channels_are_refused(
    kind: str, shape: tuple[int, ...]
) -> None:
    module = KNOWN[kind].build(16).eval()
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert module(x).shape == shape
    assert module(x.double().to(torch.bfloat16).float()).isfinite().all()
    with pytest.raises(ValueError, match=r"must have shape \(b, c,.*c=16; got"):
        module(x[:, :8])


@pytest.mark.parametrize("kind", GATES)
def test_mobilenet(kind: str) -> None:
    plain = torchvision.models.mobilenet_v3_small().eval()
    places = ["features.2", "features.5.block.1.0"]  # a whole block, a depthwise convolution
    model = drawn_anew(insert_attention(plain, kind, where=places))
    for place in places:
        layer, old = model.get_submodule(place), plain.get_submodule(place)
        x = input_of(old)
        assert torch.equal(layer(x), layer.follower(old(x)))
        assert not torch.allclose(layer(x), old(x))
    again = remove_attention(model)
    assert torch.equal(again(images(64)), plain(images(64)))
    assert list(again.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("kind", GATES)
def test_gradients_reach_every_layer_behind_and_in_front(plain: nn.Module, kind: str) -> None:
    model = drawn_anew(insert_attention(plain, kind, where="layer2.0.bn2"))
    model(images(64)).square().sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0
    dead = [name for name, p in model.named_parameters() if p.grad is None]
    assert not dead


@pytest.mark.parametrize("kind", ["coordinate", "criss-cross", "axial", "ipe-transformer"])
def test_a_network_with_attention_compiles_in_one_graph(kind: str) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    model = drawn_anew(insert_attention(plain, kind, where="1")).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()))


def test_compiled_networks_are_refused(plain: nn.Module) -> None:
    compiled: Any = torch.compile(plain, backend="eager")
    for change in (insert_attention, insert_attention_):
        with pytest.raises(TypeError, match=r"insert_attention: model must not be compiled"):
            change(compiled, "coordinate", where="layer1.*.bn2")
    for change in (remove_attention, remove_attention_):
        with pytest.raises(TypeError, match=r"remove_attention: model must not be compiled"):
            change(compiled)


def test_a_network_compiled_in_place_follows_the_change() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)).eval()
    model.compile(backend="eager")
    before = model(images())
    insert_attention_(model, "se", where="1")
    torch.testing.assert_close(model(images()), model[1].follower(before))
    remove_attention_(model)
    torch.testing.assert_close(model(images()), before)


def test_scripted_networks_are_refused(plain: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # tracing goes out of use
        traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), images())
    with pytest.raises(TypeError, match=r"insert_attention: model must not be scripted or traced"):
        insert_attention(traced, "se", where="0")
    with pytest.raises(TypeError, match=r"remove_attention: model must not be scripted or traced"):
        remove_attention(traced)


def test_patterns_and_names_that_fit_nothing_list_the_nearest(plain: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'layer1.0.bn3' selects no module.*Nearest:.*layer1"):
        insert_attention(plain, "coordinate", where="layer1.0.bn3")
    with pytest.raises(ValueError, match=r"Did you mean 'coordinate'"):
        insert_attention(plain, "coordinates", where="layer1.0.bn2")
