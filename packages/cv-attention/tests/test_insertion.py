from __future__ import annotations

import pytest
import torch
import torchvision
from cv_attention.insertion import (
    insert_attention,
    insert_attention_,
    remove_attention,
    remove_attention_,
)
from cv_attention.methods.fd_module import add_feature_difference, feature_difference
from cv_core.nn.gates import CBAM, EfficientChannelAttention, SqueezeExcitation
from cv_core.nn.surgery import Wrapper
from torch import Tensor, nn

GATES = {"se": SqueezeExcitation, "eca": EfficientChannelAttention, "cbam": CBAM}


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.mark.parametrize("kind", GATES)
def test_gate_is_applied_behind_every_selected_layer(plain: nn.Module, kind: str) -> None:
    torch.manual_seed(1)
    model = insert_attention(plain, kind, where="layer*.*.bn2").eval()
    count = 0
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            assert isinstance(block.bn2.follower, GATES[kind])
            hidden = torch.rand(1, block.bn2.num_features, 4, 4)
            assert torch.equal(block.bn2(hidden), block.bn2.follower(block.bn2.inner(hidden)))
            count += 1
    assert count == 8
    assert not torch.allclose(model(images()), plain(images()))


@pytest.mark.parametrize("kind", ["fd-module", *GATES])
def test_removal_undoes_insertion_exactly(plain: nn.Module, kind: str) -> None:
    before, expected, keys = repr(plain), plain(images()), list(plain.state_dict())
    model = insert_attention(plain, kind, where="layer*.*.conv2")
    again = remove_attention(model)
    assert repr(plain) == repr(again) == before
    assert list(again.state_dict()) == keys
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
    assert repr(plain) == before
