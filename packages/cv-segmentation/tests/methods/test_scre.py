from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from cv_core.imaging.styles import adjust_gamma
from cv_core.nn.surgery import find
from cv_segmentation.domain_generalization import (
    InstanceSelectiveWhiteningLoss,
    StyleJitter,
    gram_style_variance,
    style_sensitive_channels,
)
from cv_segmentation.methods.scre import SCREHooks, StyleChannelRandomErasing, attach_scre
from torch import Tensor, nn

SSC = torch.tensor([True, False, True, False, False])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(*shape: int) -> Tensor:
    return torch.randn(shape or (4, 5, 6, 7), generator=generator(9))


# --- erasing ----------------------------------------------------------------------------------


def test_identity_cases() -> None:
    x = features()
    assert StyleChannelRandomErasing(SSC, 0.0).eval()(x) is x
    assert StyleChannelRandomErasing(None, 0.0)(x) is x
    assert torch.equal(StyleChannelRandomErasing(SSC, 1.0)(x), x)
    assert torch.equal(StyleChannelRandomErasing(SSC, 1.0, rescale=True)(x), x)
    assert torch.equal(StyleChannelRandomErasing(torch.zeros(5, dtype=torch.bool), 0.0)(x), x)


def test_everything_erased_in_the_chosen_channels_and_nothing_elsewhere() -> None:
    x = features()
    x[0, 0, 0, 0], x[0, 1, 0, 0] = torch.nan, torch.nan  # 0 times NaN would be NaN
    out = StyleChannelRandomErasing(SSC, 0.0)(x)
    assert torch.equal(out[:, SSC], torch.zeros(4, 2, 6, 7))
    assert torch.equal(out[:, ~SSC].view(torch.int32), x[:, ~SSC].view(torch.int32))


def test_share_erased_and_expectation() -> None:
    x, p, count = features(1, 5, 3, 3) + 3, 0.8, 40_000
    erase = StyleChannelRandomErasing(SSC, p, generator=generator())
    out = erase(x.expand(count, -1, -1, -1))
    error = (p * (1 - p) / count) ** 0.5
    # each position has a draw of its own: of any two, both are kept with probability p squared
    kept = (out != 0).double()[:, SSC].flatten(1)
    assert (kept.mean(0) - p).abs().max() < 5 * error
    pairs = kept.T @ kept / count
    off = ~torch.eye(len(pairs), dtype=torch.bool)
    assert (pairs[off] - p * p).abs().max() < 5 * (p * p * (1 - p * p) / count) ** 0.5
    assert (out.mean(0)[SSC] / x[0, SSC] - p).abs().max() < 5 * error
    assert torch.equal(out[:, ~SSC], x.expand(count, -1, -1, -1)[:, ~SSC])
    rescaled = StyleChannelRandomErasing(SSC, p, rescale=True, generator=generator())
    scale = torch.where(SSC, 1 / p, 1.0)[:, None, None]
    torch.testing.assert_close(rescaled(x.expand(count, -1, -1, -1)), out * scale)


def test_gradient_is_that_of_the_mask() -> None:
    x = features().double().requires_grad_()
    out = StyleChannelRandomErasing(SSC, 0.5, generator=generator())(x)
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0).double())
    assert 0.3 < x.grad[:, SSC].mean() < 0.7


def test_draws_come_from_the_given_generator_or_torchs() -> None:
    x = features()
    own = StyleChannelRandomErasing(SSC, 0.5, generator=generator(1))
    state = torch.get_rng_state()
    first = own(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(own(x), first)
    assert torch.equal(StyleChannelRandomErasing(SSC, 0.5, generator=generator(1))(x), first)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = StyleChannelRandomErasing(SSC, 0.5)(x)
        torch.manual_seed(3)
        assert torch.equal(StyleChannelRandomErasing(SSC, 0.5)(x), drawn)


def test_state_takes_the_size_of_what_is_loaded() -> None:
    new = StyleChannelRandomErasing(keep_prob=0.0)
    new.load_state_dict(StyleChannelRandomErasing(SSC).state_dict())
    assert torch.equal(new(features())[:, SSC], torch.zeros(4, 2, 6, 7))


def test_wrong_options_and_inputs() -> None:
    with pytest.raises(ValueError, match="StyleChannelRandomErasing: keep_prob"):
        StyleChannelRandomErasing(SSC, 1.1)
    with pytest.raises(ValueError, match="StyleChannelRandomErasing: keep_prob"):
        StyleChannelRandomErasing(SSC, 0.0, rescale=True)
    with pytest.raises(TypeError, match="ssc must be of type bool"):
        StyleChannelRandomErasing(SSC.float())
    with pytest.raises(ValueError, match="ssc must have shape"):
        StyleChannelRandomErasing(SSC[None])
    with pytest.raises(ValueError, match=r"x must have shape .* with c=5"):
        StyleChannelRandomErasing(SSC)(features(1, 4, 2, 2))


# --- hooks ------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 10, 3), nn.InstanceNorm2d(10), nn.ReLU(inplace=True),
            nn.Conv2d(10, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 2, 1),
        )  # fmt: skip


def pictures(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=generator(3))


def jitter() -> StyleJitter:
    return StyleJitter(generator(5))


def hooks(model: nn.Module) -> list[object]:
    return [
        hook
        for part in model.modules()
        for held in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        for hook in held
    ]


def test_nothing_changes_before_channels_are_found_nor_in_evaluation() -> None:
    model, x = net(), pictures()
    plain = copy.deepcopy(model)
    with attach_scre(model, ["1", "4"], keep_prob=0.0) as scre:
        assert torch.equal(model(x), plain(x))
        assert scre.whitening_loss() == 0
        scre.find_channels(x, jitter())
        assert not torch.equal(model(x), plain(x))
        assert scre.whitening_loss() > 0
        plain.load_state_dict(model.state_dict())  # the running means of the passes
        assert torch.equal(model.eval()(x), plain.eval()(x))
        assert scre.whitening_loss() == 0


def test_channels_are_those_of_the_functions() -> None:
    model, x = net(), pictures()
    with attach_scre(model, ["1", "4"]) as scre:
        found = scre.find_channels(x, jitter(), k=4, m=2, rho=0.5, score="variance", batch_size=4)
    variances = gram_style_variance(model, ["1", "4"], x, jitter(), batch_size=4)
    for name in ("1", "4"):
        options = {"k": 4, "m": 2, "rho": 0.5, "score": "variance"}
        mask, ssc = style_sensitive_channels(variances[name], **options)
        assert torch.equal(found[name].mask, mask)
        assert torch.equal(scre.whiteners[name].mask, mask)
        assert torch.equal(scre.erasers[name].ssc, ssc)
        assert int(ssc.sum()) == 5


def test_training_pass_by_hand() -> None:
    model, x = net(), pictures()
    plain = copy.deepcopy(model)
    with attach_scre(model, ["1", "4"], generator=generator(8)) as scre:
        found = scre.find_channels(x, jitter())
        out, loss = model(x), scre.whitening_loss()
        assert scre.whitening_loss() == 0  # handed out once
        loss.backward()
    erase, whiten = {}, {}
    shared = generator(8)
    for name, (mask, ssc) in found.items():
        erase[name] = StyleChannelRandomErasing(ssc, generator=shared)
        whiten[name] = InstanceSelectiveWhiteningLoss(mask)
    first = plain[1](plain[0](x))
    second = plain[4](plain[3](erase["1"](first).relu()))
    torch.testing.assert_close(out, plain[6](erase["4"](second).relu()))
    expected = (whiten["1"](first) + whiten["4"](second)) / 2
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for one, other in zip(model[:4].parameters(), plain[:4].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def find_and_perhaps_fail(model: nn.Module, *, fails: bool) -> SCREHooks:
    with attach_scre(model, ["1", "4"], keep_prob=0.0) as scre:
        scre.find_channels(pictures(), jitter())
        if fails:
            pytest.fail("as wanted")
    return scre


@pytest.mark.parametrize("fails", [False, True])
def test_detached_network_is_what_it_was(fails: bool) -> None:
    model, x = net(), pictures()
    plain = copy.deepcopy(model)
    modes = [part.training for part in model.modules()]
    if fails:
        with pytest.raises(pytest.fail.Exception):
            find_and_perhaps_fail(model, fails=True)
    else:
        scre = find_and_perhaps_fail(model, fails=False)
        assert scre.whitening_loss() == 0
        scre.detach()  # again, without harm
    assert hooks(model) == []
    assert [type(part) for part in model.modules()] == [type(part) for part in plain.modules()]
    assert [part.training for part in model.modules()] == modes
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    assert torch.equal(model(x), plain(x))


def test_a_layer_follows_its_own_mode() -> None:
    model, x = net(), pictures()
    with attach_scre(model, ["1", "4"], keep_prob=0.0) as scre:
        scre.find_channels(x, jitter())
        model[1].eval()
        model(x)
        assert not scre.erasers["1"].training
        assert scre.erasers["4"].training
        assert list(scre._losses) == ["4"]


def test_a_module_with_two_names_is_erased_once() -> None:
    layer = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(layer, layer)
    with attach_scre(model, "*", keep_prob=0.5) as scre:
        assert list(scre.erasers) == ["0"]
        scre.find_channels(pictures(), jitter(), k=2, rho=0.7)
        share = (model(pictures(40)) == 0).float().mean((0, 2, 3))
        assert sorted(share.round(decimals=1).tolist()) == [0.0, 0.5, 0.5]


def test_its_state_is_kept_without_the_networks() -> None:
    model, x = net(), pictures()
    with attach_scre(model, ["1", "4"]) as scre:
        scre.find_channels(x, jitter())
        state = scre.state_dict()
    assert len(state) == 4
    assert not list(scre.parameters())
    with attach_scre(model, ["1", "4"]) as again:
        again.load_state_dict(state)
        for name in ("1", "4"):
            assert torch.equal(again.erasers[name].ssc, scre.erasers[name].ssc)
            assert torch.equal(again.whiteners[name].mask, scre.whiteners[name].mask)


def test_wrong_layers() -> None:
    with pytest.raises(ValueError, match="selects no module"):
        attach_scre(net(), "layer1")
    with pytest.raises(ValueError, match="keep_prob"):
        attach_scre(net(), "1", keep_prob=2.0)

    class Lists(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x]

    model = nn.Sequential(Lists())
    with attach_scre(model, "0"), pytest.raises(TypeError, match="the output of '0' must be"):
        model(pictures())
    assert hooks(model) == []


def test_style_sensitive_channel_of_a_made_network_is_erased() -> None:
    """Channels 0 and 1 see brightness as curved as gamma bends it; the others see edges in sign."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Tanh())
    kernels = torch.zeros(6, 3, 3, 3)
    kernels[0, :, 1, 1] = 8.0
    kernels[1, :, 1, 1] = -8.0
    for place, (row, column) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2)), start=2):
        kernels[place, :, 1, 1] = 500.0
        kernels[place, :, row, column] = -500.0
    model[0].weight.data = kernels
    with attach_scre(model, "1") as scre:
        scre.find_channels(
            pictures(20), lambda images: adjust_gamma(images, 6.0), k=2, rho=2 / 6, score="variance"
        )
    assert scre.erasers["1"].ssc.tolist() == [True, True, False, False, False, False]


# --- foreign networks -------------------------------------------------------------------------


def check_foreign(model: nn.Module, layers: list[str]) -> None:
    """Find channels, train a step, detach: only weights and statistics of a step have changed."""
    x = torch.rand(2, 3, 64, 64, generator=generator(2))
    model.train()
    plain = copy.deepcopy(model)
    keys = list(model.state_dict())
    with attach_scre(model, layers, generator=generator()) as scre:
        found = scre.find_channels(x, jitter())
        assert list(found) == layers
        assert all(torch.equal(a, b) for a, b in zip_states(model, plain))
        assert all(int(ssc.sum()) == int(0.3 * len(ssc)) > 0 for _, ssc in found.values())
        zeros: dict[str, Tensor] = {}

        def count(name: str, _module: object, _inputs: object, output: Tensor) -> None:
            zeros[name] = (output == 0).float().mean((0, 2, 3))

        for name, module in find(model, layers).items():
            module.register_forward_hook(partial(count, name))
        model(x)
        scre.whitening_loss().backward()
        for name, (_, ssc) in found.items():
            # behind a ReLU there are zeros anyway: a fifth of the others is added
            expected = 0.2 + 0.8 * zeros[name][~ssc].mean()
            assert (zeros[name][ssc].mean() - expected).abs() < 0.12
        first = next(iter(model.parameters()))
        assert first.grad is not None
        assert first.grad.abs().sum() > 0
    for part in model.modules():
        part._forward_hooks.clear()  # the test's own
    assert hooks(model) == []
    assert list(model.state_dict()) == keys
    model.load_state_dict(plain.state_dict())
    assert same(model.eval()(x), plain.eval()(x))


def zip_states(one: nn.Module, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return list(zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def same(one: object, other: object) -> bool:
    ones, others = (torch.utils._pytree.tree_leaves(item) for item in (one, other))
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def test_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    check_foreign(torchvision.models.resnet18(num_classes=5), ["bn1", "layer1", "layer2"])


def test_torchvision_segmentation() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    check_foreign(model, ["backbone.1", "backbone.3"])
