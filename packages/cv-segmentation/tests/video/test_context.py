"""The context branch and the fusion by hand, and the separable convolution as one dense kernel."""

import pytest
import torch
from cv_segmentation.video.context import ContextFusion, SpatialContextBranch, resize, separable
from torch import nn


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_branch_of_three_steps_has_stride_8_and_keeps_what_its_attention_gives():
    plain = SpatialContextBranch(6, attention=lambda _: nn.Identity()).double().eval()
    image = draw(1, 3, 24, 43)
    assert plain(image).shape == (1, 6, 3, 6)
    doubled = SpatialContextBranch(6, attention=lambda _: Twice()).double().eval()
    doubled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(doubled(image), 2.0 * plain(image))
    assert (plain(image) >= 0.0).all()


class Twice(nn.Module):
    def forward(self, x):
        return 2.0 * x


def test_fusion_weighs_its_own_channels():
    fusion = ContextFusion(3, 4, 8).double().eval()
    context, feature = draw(2, 3, 3, 4), draw(2, 4, 5, 7)
    u = fusion.mix(torch.cat([resize(context, feature), feature], dim=1))
    mean = u.mean((2, 3), keepdim=True)
    weight = fusion.gate.fc2(fusion.gate.fc1(mean).relu()).sigmoid()
    torch.testing.assert_close(fusion(context, feature), u + u * weight)
    nn.init.zeros_(fusion.gate.fc2.weight)
    nn.init.zeros_(fusion.gate.fc2.bias)
    torch.testing.assert_close(fusion(context, feature), 1.5 * u)


def test_separable_convolutions_have_few_weights():
    convolution = separable(16, 32, bias=False)
    assert sum(item.numel() for item in convolution.parameters()) == 16 * 9 + 16 * 32
    x = draw(1, 16, 5, 5)
    deep, wide = convolution.double()
    composed = nn.functional.conv2d(x, wide.weight * deep.weight.transpose(0, 1), padding=1)
    torch.testing.assert_close(convolution(x), composed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ContextFusion(3, 4, 8)(draw(1, 2, 3, 3), draw(1, 4, 3, 3)), "context must have"),
        (lambda: ContextFusion(3, 0, 8), "ContextFusion: feature_channels must be at least 1"),
        (lambda: SpatialContextBranch(4, steps=0), "SpatialContextBranch: steps must be at least"),
        (lambda: SpatialContextBranch(4)(draw(1, 2, 8, 8)), "image must have shape .* c=3"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
