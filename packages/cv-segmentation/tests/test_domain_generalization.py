from __future__ import annotations

import numpy as np
import pytest
import torch
from cv_core.imaging.filtering import gaussian_blur
from cv_core.imaging.styles import adjust_brightness, rotate_hue
from cv_segmentation.domain_generalization import (
    InstanceSelectiveWhiteningLoss,
    StyleJitter,
    channel_correlation,
    gram_style_variance,
    style_sensitive_channels,
)
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- correlation ------------------------------------------------------------------------------


def test_correlation_by_loops() -> None:
    features = maps(2, 3, 4, 5) + torch.arange(3.0)[:, None, None]
    got = channel_correlation(features)
    for image, gram in zip(features, got, strict=True):
        rows = image.flatten(1).tolist()
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                mean_i, mean_j = sum(one) / 20, sum(other) / 20
                top = sum((a - mean_i) * (b - mean_j) for a, b in zip(one, other, strict=True))
                below = sum((a - mean_i) ** 2 for a in one) * sum((b - mean_j) ** 2 for b in other)
                assert gram[i, j].item() == pytest.approx(top / below**0.5, abs=1e-12)


def test_correlation_is_numpys() -> None:
    features = maps(1, 6, 7, 8)
    np.testing.assert_allclose(
        channel_correlation(features)[0], np.corrcoef(features[0].flatten(1))
    )


def test_correlation_is_a_correlation_matrix_and_ignores_gain_and_offset() -> None:
    features = maps(3, 8, 3, 4).relu()  # 12 positions
    gram = channel_correlation(features)
    torch.testing.assert_close(gram, gram.mT)
    assert torch.equal(gram.diagonal(dim1=1, dim2=2), torch.ones(3, 8, dtype=torch.float64))
    assert torch.linalg.eigvalsh(gram).min() > -1e-12
    assert gram.abs().max() <= 1 + 1e-12
    gain, offset = torch.rand(2, 1, 8, 1, 1, generator=generator(1), dtype=torch.float64) * 5 + 0.1
    torch.testing.assert_close(channel_correlation(gain * features - offset), gram)
    flipped = channel_correlation(features * torch.tensor([-1.0] + [1.0] * 7)[:, None, None])
    torch.testing.assert_close(flipped[:, 0, 1:], -gram[:, 0, 1:])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_channel_has_no_correlation_and_a_finite_gradient(value, dtype) -> None:
    features = maps(2, 3, 30, 40).to(dtype)
    features[:, 1] = value
    features.requires_grad_()
    gram = channel_correlation(features)
    expected = channel_correlation(features[:, [0, 2]])
    torch.testing.assert_close(gram[:, [0, 2]][:, :, [0, 2]], expected)
    torch.testing.assert_close(gram[:, 1], torch.eye(3, dtype=dtype)[[1, 1]])
    gram.abs().sum().backward()
    assert features.grad.isfinite().all()
    assert not features.grad[:, 1].any()


def test_correlation_type_gradient_and_refusals() -> None:
    features = maps(2, 3, 4, 5)
    assert channel_correlation(features.half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(channel_correlation(features), channel_correlation(features))
        under = channel_correlation(features.float())
    torch.testing.assert_close(under, channel_correlation(features).float())
    assert torch.autograd.gradcheck(channel_correlation, features.requires_grad_())
    with pytest.raises(ValueError, match="channel_correlation: features"):
        channel_correlation(features[0])
    with pytest.raises(TypeError, match="channel_correlation: features"):
        channel_correlation(features.detach().long())


# --- variance under style ---------------------------------------------------------------------


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 2, 1))
        return nn.Sequential(*layers).double()


def pictures(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 9, 8, generator=generator(3), dtype=torch.float64)


def darker(images: Tensor) -> Tensor:
    return images**2


def test_variance_is_the_papers_in_two_steps() -> None:
    model, x = net(), pictures()
    with torch.no_grad():
        model.eval()
        plain, styled = (channel_correlation(model[:2](batch)) for batch in (x, darker(x)))
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for g, g2 in zip(plain, styled, strict=True):
        middle = (g + g2) / 2
        expected += ((g - middle) ** 2 + (g2 - middle) ** 2) / 2 / len(x)
    model.train()
    for images in (x, x.split(2), [(part, "label") for part in x.split(3)]):
        found = gram_style_variance(model, ["1", "3"], images, darker, batch_size=4)
        assert list(found) == ["1", "3"]
        torch.testing.assert_close(found["1"], expected)  # which the ReLU behind does not change
        assert not found["1"].diagonal().any()
        torch.testing.assert_close(found["1"], found["1"].T)
        assert found["1"].max() > 1e-4


def test_no_change_of_style_no_variance() -> None:
    found = gram_style_variance(net(), "*", pictures(), lambda images: images)
    assert set(found) == {"0", "1", "2", "3"}
    assert not any(variance.any() for variance in found.values())


def test_a_change_of_style_in_place_is_seen() -> None:
    images = torch.rand(3, 3, 6, 6, generator=generator(2))
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    expected = gram_style_variance(model, "0", images, lambda x: x**4)["0"]
    assert expected.max() > 0
    found = gram_style_variance(model, "0", images.clone(), lambda x: x.pow_(4))["0"]
    torch.testing.assert_close(found, expected)


def test_gain_and_offset_of_channels_are_no_change_of_style() -> None:
    model = nn.Sequential(nn.Identity())
    found = gram_style_variance(model, "0", maps(3, 4, 6, 6), lambda x: 3 * x + 1)
    assert found["0"].max() < 1e-28
    assert not style_sensitive_channels(found["0"]).ssc.any()


def test_network_is_left_as_it_was_even_by_an_error() -> None:
    model = net().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gram_style_variance(model, "1", pictures(), darker)
    with pytest.raises(ValueError, match="must have the same shape"):
        gram_style_variance(model, "1", pictures(), lambda images: images[:, :, 1:])
    with pytest.raises(ZeroDivisionError):
        gram_style_variance(model, "1", pictures(), lambda images: images * (1 / 0))
    assert [part.training for part in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.is_grad_enabled()


def test_what_cannot_be_measured_is_refused() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.other = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x).flatten(1)

    images = pictures().float()
    with pytest.raises(ValueError, match=r"layers must be called.*'other'"):
        gram_style_variance(Unused(), "*", images, darker)
    with pytest.raises(ValueError, match="'' must have shape"):
        gram_style_variance(Unused(), "", images, darker)
    with pytest.raises(ValueError, match="selects no module"):
        gram_style_variance(Unused(), "layer*", images, darker)
    with pytest.raises(ValueError, match="at least one batch"):
        gram_style_variance(Unused(), "used", [], darker)
    with pytest.raises(ValueError, match="batch_size"):
        gram_style_variance(Unused(), "used", images, darker, batch_size=0)


# --- choice of channels -----------------------------------------------------------------------

CHANNELS, PLANTED = 20, (3, 4, 8, 13, 15, 19)
RHO = len(PLANTED) / CHANNELS


def planted(seed: int) -> Tensor:
    """Channels of a common factor and parts of their own; a field multiplies the planted ones."""
    draws = generator(seed)
    shape = (24, CHANNELS, 16, 16)
    common = torch.randn(24, 1, 16, 16, generator=draws)
    features = common + 0.5 * torch.randn(shape, generator=draws)
    field = torch.rand(24, len(PLANTED), 16, 16, generator=draws) * 4 - 1

    def change(images: Tensor) -> Tensor:
        images = images.clone()
        images[:, PLANTED] *= field
        return images

    found = gram_style_variance(nn.Sequential(nn.Identity()), "0", features, change, batch_size=24)
    return found["0"]


@pytest.mark.parametrize("seed", range(5))
def test_planted_channels_are_found(seed: int) -> None:
    variance = planted(seed)
    expected = torch.zeros(CHANNELS, dtype=torch.bool)
    expected[list(PLANTED)] = True
    for options in ({"k": 2}, {"k": 3, "m": 2}, {"score": "variance"}):
        assert torch.equal(style_sensitive_channels(variance, rho=RHO, **options).ssc, expected)
    mask, _ = style_sensitive_channels(variance, rho=RHO)  # as printed, less is certain
    assert not mask[~expected][:, ~expected].any()
    counts = mask.sum(1)
    assert bool((counts[expected].max() == counts.max()) and (counts.max() > 0))
    assert variance.sum(1)[expected].min() > variance.sum(1)[~expected].max()


def test_mask_and_counts_by_loops() -> None:
    upper = maps(9, 9, seed=2).square().triu(1)
    variance = upper + upper.T
    mask, ssc = style_sensitive_channels(variance, k=2, rho=0.35)
    line = sorted(upper[upper > 0].tolist())

    def inner(cut: int) -> float:
        return sum(float(np.var(part)) * len(part) for part in (line[:cut], line[cut:]))

    least = line[min(range(1, len(line)), key=inner)]
    counts = [0] * 9
    for i in range(9):
        for j in range(9):
            inside = i != j and variance[i, j].item() >= least
            assert bool(mask[i, j]) == inside
            counts[i] += inside
    sums = variance.sum(1).tolist()
    best = sorted(range(9), key=lambda i: (-counts[i], -sums[i], i))[:3]
    assert ssc.nonzero().flatten().tolist() == sorted(best)
    by_sum = style_sensitive_channels(variance, k=2, rho=0.35, score="variance").ssc
    assert by_sum.nonzero().flatten().tolist() == sorted(np.argsort(sums)[-3:].tolist())
    assert torch.equal(style_sensitive_channels(variance + torch.eye(9) * 100, k=2).mask, mask)


@pytest.mark.parametrize(("rho", "channels"), [(0.0, 10), (0.29, 100), (0.3, 10), (1.0, 7)])
def test_number_of_channels(rho: float, channels: int) -> None:
    variance = maps(channels, channels).square()
    _, ssc = style_sensitive_channels(variance, rho=rho)
    assert int(ssc.sum()) == {0.0: 0, 0.29: 29, 0.3: 3, 1.0: 7}[rho]


def test_ties_go_to_the_larger_sum_then_to_the_first() -> None:
    variance = torch.zeros(5, 5)
    for i, j, value in ((0, 1, 1.0), (2, 3, 1.01), (0, 4, 0.02), (1, 4, 0.02)):
        variance[i, j] = variance[j, i] = value
    mask, ssc = style_sensitive_channels(variance, k=2, rho=0.4)
    assert mask.sum(1).tolist() == [1, 1, 1, 1, 0]
    assert ssc.tolist() == [True, True, False, False, False]  # 1.02, 1.02 before 1.01, 1.01
    assert style_sensitive_channels(variance, k=2, rho=0.2).ssc.tolist() == [True] + [False] * 4


@pytest.mark.parametrize("size", [1, 6])
def test_no_variance_no_channels(size: int) -> None:
    mask, ssc = style_sensitive_channels(torch.full((size, size), 1e-13))
    assert not mask.any()
    assert not ssc.any()
    assert (mask.shape, ssc.shape) == ((size, size), (size,))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"k": 1}, "k"),
        ({"m": 3}, "m"),
        ({"m": 0}, "m"),
        ({"rho": 1.1}, "rho"),
        ({"score": "x"}, "score"),
    ],
)
def test_options_of_the_choice(options, name) -> None:
    with pytest.raises(ValueError, match=f"style_sensitive_channels: {name} must"):
        style_sensitive_channels(torch.ones(4, 4), **options)
    with pytest.raises(ValueError, match="must have shape"):
        style_sensitive_channels(torch.ones(4, 3))
    with pytest.raises(ValueError, match="must be finite"):
        style_sensitive_channels(torch.full((4, 4), torch.nan))


# --- whitening --------------------------------------------------------------------------------


def some_pairs(channels: int = 5) -> Tensor:
    upper = torch.rand(channels, channels, generator=generator(7)).triu(1) > 0.5
    assert upper.sum() > 2
    return upper | upper.T


def test_whitening_by_loops() -> None:
    features, mask = maps(3, 5, 4, 4), some_pairs()
    total, pairs = 0.0, 0
    for image in features:
        for i in range(5):
            for j in range(i + 1, 5):
                if mask[i, j]:
                    pairs += 1
                    correlation = np.corrcoef(image[i].flatten(), image[j].flatten())[0, 1]
                    total += abs(float(correlation))
    mean = InstanceSelectiveWhiteningLoss(mask)(features)
    assert mean.item() == pytest.approx(total / pairs)
    summed = InstanceSelectiveWhiteningLoss(mask, reduction="sum")(features)
    assert summed.item() == pytest.approx(total / 3)
    diagonal = InstanceSelectiveWhiteningLoss(mask | torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(diagonal(features), mean)


def test_whitening_vanishes_just_when_the_masked_correlations_do() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(16, 1, dtype=torch.float64), maps(16, 4)], 1)).Q
    white = basis[:, 1:].T.reshape(1, 4, 4, 4)  # uncorrelated channels of mean zero
    every = ~torch.eye(4, dtype=torch.bool)
    assert InstanceSelectiveWhiteningLoss(every)(white) < 1e-14
    mixed = white.clone()
    mixed[:, 0] += 0.5 * white[:, 1]
    others = every.clone()
    others[0, 1] = others[1, 0] = False
    assert InstanceSelectiveWhiteningLoss(others)(mixed) < 1e-14
    assert InstanceSelectiveWhiteningLoss(every)(mixed) > 0.05
    assert InstanceSelectiveWhiteningLoss(every)(white[:, [0, 0, 1, 1]]) == pytest.approx(1 / 3)


def test_whitening_permuted_with_its_mask() -> None:
    features, mask = maps(2, 5, 6, 6), some_pairs()
    order = torch.tensor([4, 2, 0, 1, 3])
    permuted = InstanceSelectiveWhiteningLoss(mask[order][:, order])(features[:, order])
    torch.testing.assert_close(permuted, InstanceSelectiveWhiteningLoss(mask)(features))


def test_whitening_is_robustnets_on_instance_normalised_features() -> None:
    features, mask = maps(2, 5, 8, 8) * 3, some_pairs()
    normal = nn.functional.instance_norm(features, eps=0.0).flatten(2)
    covariance = normal @ normal.mT / 63  # theirs divides by HW - 1
    theirs = (covariance * mask.triu(1)).abs().sum((1, 2)).mean() / mask.triu(1).sum()
    torch.testing.assert_close(InstanceSelectiveWhiteningLoss(mask)(features), theirs * 63 / 64)


def test_whitening_without_pairs_and_its_state() -> None:
    features = maps(2, 5, 4, 4)
    empty = InstanceSelectiveWhiteningLoss()
    assert empty(features) == 0
    assert InstanceSelectiveWhiteningLoss(torch.zeros(5, 5, dtype=torch.bool))(features) == 0
    chosen = InstanceSelectiveWhiteningLoss(some_pairs())
    empty.load_state_dict(chosen.state_dict())
    assert torch.equal(empty(features), chosen(features))
    with pytest.raises(ValueError, match="features must have shape"):
        empty(features[:, :4])
    with pytest.raises(ValueError, match="must be symmetric"):
        empty.set_mask(some_pairs().triu())
    with pytest.raises(TypeError, match="must be of type bool"):
        empty.set_mask(some_pairs().float())
    with pytest.raises(ValueError, match="reduction"):
        InstanceSelectiveWhiteningLoss(reduction="none")


# --- jitter -----------------------------------------------------------------------------------


def test_jitter_repeats_and_differs_from_image_to_image() -> None:
    image = torch.rand(1, 3, 12, 12, generator=generator())
    batch = image.expand(6, -1, -1, -1)
    styled = StyleJitter(generator(1))(batch)
    assert torch.equal(StyleJitter(generator(1))(batch), styled)
    assert not torch.equal(StyleJitter(generator(2))(batch), styled)
    distances = torch.cdist(styled.flatten(1), styled.flatten(1))
    assert distances[~torch.eye(6, dtype=torch.bool)].min() > 0.1
    assert torch.equal(batch, image.expand(6, -1, -1, -1))
    assert styled.min() >= 0
    assert styled.max() <= 1


def test_jitter_is_made_of_its_parts() -> None:
    images = torch.rand(3, 3, 12, 12, generator=generator())
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "blur": None}
    torch.testing.assert_close(StyleJitter(generator(), **none)(images), images)
    drawn = generator(4)
    factors = 0.5 + torch.rand(3, generator=drawn)
    torch.rand(2, 3, generator=drawn)  # contrast and saturation
    turns = -0.2 + 0.4 * torch.rand(3, generator=drawn)
    coloured = StyleJitter(generator(4), **{**none, "brightness": 0.5, "hue": 0.2})(images)
    torch.testing.assert_close(coloured, rotate_hue(adjust_brightness(images, factors), turns))
    blurred = StyleJitter(generator(), **{**none, "blur": (0.7, 0.7)})(images)
    torch.testing.assert_close(blurred, gaussian_blur(images, 0.7))


@pytest.mark.parametrize(
    "options",
    [
        {"brightness": 1.2},
        {"contrast": -0.1},
        {"hue": 0.6},
        {"blur": (0.0, 1.0)},
        {"blur": (1.0, 0.5)},
    ],
)
def test_jitter_options(options) -> None:
    with pytest.raises(ValueError, match=f"StyleJitter: {next(iter(options))}"):
        StyleJitter(generator(), **options)
