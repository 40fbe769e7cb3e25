import math

import pytest
import torch
from cv_core.models.small import SmallCNN
from cv_core.nn.blocks import adaptive_instance_norm, channel_statistics
from cv_core.nn.hooks import rewrite
from cv_factorization.methods.shape_texture_bias import (
    MultiViewBiasNet,
    contribution_weights,
    discrepancy,
    linear_probe,
    multiview_loss,
    weight_sweep,
)
from cv_factorization.view_codes import AdaINDecoder, ShapeEncoder, TextureEncoder, otsu_mask
from torch import nn

ALL = ("shape", "texture", "background")


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def network(views=ALL, **options):
    options = {"shape_layer": "relu2", "texture_layers": ("relu1", "relu2"), **options}
    return MultiViewBiasNet(
        SmallCNN(1, 4, width=4), 4, views=views, example=torch.zeros(1, 1, 16, 16),
        channels=6, dim=5, n_blocks=2, **options,
    )  # fmt: skip


X, Y = draw(5, 1, 16, 16), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("views", [ALL[:2], ALL])
def test_weights_and_mixture_are_probabilities(views):  # property 1
    model = network(views)
    with torch.no_grad():
        model.weight_logits += draw(len(views))
        out = model(X)
    assert float(out["weights"].min()) >= 0.0
    torch.testing.assert_close(out["weights"].sum(), torch.tensor(1.0))
    torch.testing.assert_close(out["p"].sum(dim=1), torch.ones(5))
    slow = sum(w * out["view_probs"][view] for w, view in zip(out["weights"], views, strict=True))
    torch.testing.assert_close(out["p"], slow)
    assert sum(contribution_weights(model).values()) == pytest.approx(1.0)


def test_rows_do_not_see_each_other_and_two_calls_agree():
    model = network().eval()
    with torch.no_grad():
        whole, again = model(X), model(X)
        for row in range(5):
            alone = model(X[row : row + 1])
            for name in ("p", "recon"):
                torch.testing.assert_close(alone[name][0], whole[name][row])
    assert torch.equal(whole["p"], again["p"])
    assert not model.training


@pytest.mark.parametrize("view", ALL)
def test_all_weight_on_one_view_is_that_head(view):  # property 2
    model = network()
    with torch.no_grad():
        model.weight_logits.fill_(-200.0)
        model.weight_logits[ALL.index(view)] = 200.0
        out = model(X)
    assert torch.equal(out["p"], out["view_probs"][view])


def test_discrepancy_lies_between_its_bounds():  # property 3
    angles = [0.0, 2 * math.pi / 3, 4 * math.pi / 3]
    spread = {str(a): torch.tensor([[math.cos(a), math.sin(a)]]) for a in angles}
    assert float(discrepancy(spread)) == pytest.approx(-1.5, abs=1e-6)
    same = dict.fromkeys(ALL, draw(7, 5))
    assert float(discrepancy({view: (i + 1.0) * draw(7, 5) for i, view in enumerate(ALL)})) > 2.99
    assert float(discrepancy(same)) == pytest.approx(3.0, abs=1e-5)
    two = {"shape": draw(7, 5), "texture": -3.0 * draw(7, 5)}
    assert float(discrepancy(two)) == pytest.approx(-1.0, abs=1e-6)
    assert float(discrepancy(two, kind="abs")) == pytest.approx(1.0, abs=1e-6)
    codes = {view: draw(7, 5, seed=index) - 0.5 for index, view in enumerate(ALL)}
    scaled = {view: (index + 0.5) * code for index, (view, code) in enumerate(codes.items())}
    for kind in ("signed", "abs", "square"):
        torch.testing.assert_close(discrepancy(scaled, kind=kind), discrepancy(codes, kind=kind))
    assert -1.5 <= float(discrepancy(codes)) <= 3.0


def test_shape_code_forgets_gain_and_offset_behind_its_first_convolution():  # property 4
    encoder, s = ShapeEncoder(3, 4, n_blocks=2).double(), draw(2, 3, 8, 8).double()
    encoder.requires_grad_(requires_grad=False)
    gain, offset = draw(4, 1, 1, seed=1).double() + 0.5, draw(4, 1, 1, seed=2).double()
    plain = encoder(s)
    with rewrite(encoder, "blocks.0.conv1.conv", lambda h, _: gain * h + offset):
        changed = encoder(s)
    torch.testing.assert_close(changed, plain, rtol=0, atol=1e-2)
    assert float((changed - plain).abs().max()) < 0.02 * float(plain.abs().max())
    # the shortcut of a block that keeps its channels carries them on
    same = ShapeEncoder(3, 3, n_blocks=1).double().requires_grad_(requires_grad=False)
    assert float((same(2.0 * s + 1.0) - same(s)).abs().max()) > 0.5
    texture = TextureEncoder([3], 5).double()
    assert not torch.allclose(texture([2.0 * s + 1.0]), texture([s]), atol=1e-2)


def test_adain_sets_mean_and_deviation():  # property 5
    h = draw(2, 3, 6, 7).double()
    scale, shift = draw(2, 3, seed=1).double() - 0.5, draw(2, 3, seed=2).double()
    mean, deviation = channel_statistics(adaptive_instance_norm(h, scale, shift, eps=0.0), 0.0)
    torch.testing.assert_close(mean, shift)
    torch.testing.assert_close(deviation, scale.abs())
    own = channel_statistics(h, 0.0)
    torch.testing.assert_close(adaptive_instance_norm(h, own[1], own[0], eps=0.0), h)
    # so that in the decoder the texture changes the image, whatever the shape
    decoder = AdaINDecoder(3, 5, 1, n_up=1)
    one, other = decoder(h.float(), draw(2, 5)), decoder(h.float(), draw(2, 5, seed=9))
    assert one.shape == (2, 1, 12, 14)
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("mode", ["gap", "gram"])
def test_texture_code_does_not_know_places(mode):  # property 6
    encoder = TextureEncoder([3, 4], 5, mode=mode).double()
    layers = [draw(2, c, 6, 7, seed=c).double() for c in (3, 4)]
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
    moved = [layer.flatten(2)[..., order].reshape(layer.shape) for layer in layers]
    torch.testing.assert_close(encoder(moved), encoder(layers))


def test_pooled_texture_is_linear_in_channel_means_and_gram_is_not():
    layers = [draw(2, 3, 8, 8).double()]
    flat = [layer.mean(dim=(2, 3), keepdim=True).expand_as(layer) for layer in layers]
    gap, gram = (TextureEncoder([3], 5, mode=mode).double() for mode in ("gap", "gram"))
    torch.testing.assert_close(gap(flat), gap(layers))
    assert not torch.allclose(gram(flat), gram(layers), atol=1e-4)
    weight, bias = gram.maps[0].weight, gram.maps[0].bias
    for row in range(2):
        f = layers[0][row].flatten(1)
        pairs = torch.stack([(f[i] * f[j]).mean() for i in range(3) for j in range(i, 3)])
        slow = gram.fc(weight @ pairs + bias)
        torch.testing.assert_close(gram(layers)[row], slow)


def test_backbone_stays_as_it_is():  # property 7
    model = network()
    before = {name: value.clone() for name, value in model.backbone.module.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    multiview_loss(model(X), X, Y).backward()
    optimizer.step()
    assert all(item.grad is None for item in model.backbone.module.parameters())
    after = model.backbone.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(name.startswith("backbone") for name in model.state_dict())


def test_loss_is_the_printed_sum():
    with torch.no_grad():
        out = network()(X)
    likelihood = sum(math.log(float(out["p"][i, y])) for i, y in enumerate(Y)) / 5
    gap = float((out["recon"] - X).abs().mean())
    slow = -2.0 * likelihood + 0.5 * gap + 0.25 * float(discrepancy(out["codes"]))
    found = multiview_loss(out, X, Y, eta=2.0, alpha=0.5, beta=0.25)
    assert float(found) == pytest.approx(slow, rel=1e-5)


def planted(cue):
    """Codes of which one tells the label and the other is noise: the answer is known."""
    y = torch.randint(0, 4, (256,), generator=torch.Generator().manual_seed(0))
    told = nn.functional.one_hot(y, 5).float()
    noise = draw(256, 5, seed=3)
    return y, {"shape": told if cue == "shape" else noise,
               "texture": told if cue == "texture" else noise}  # fmt: skip


@pytest.mark.parametrize("cue", ["shape", "texture"])
@pytest.mark.parametrize("start", [0.2, 0.5, 0.8])
def test_weights_recover_a_planted_cue_from_any_start(cue, start):
    model = network(ALL[:2], start={"shape": start, "texture": 1.0 - start})
    assert contribution_weights(model)["shape"] == pytest.approx(start)
    y, codes = planted(cue)
    parameters = [model.weight_logits, *model.heads.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(150):
        probs = [model.heads[view](code).softmax(dim=1) for view, code in codes.items()]
        weights = model.weight_logits.softmax(dim=0)
        p = weights[0] * probs[0] + weights[1] * probs[1]
        loss = -p.gather(1, y[:, None]).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert contribution_weights(model)[cue] > 0.9


def test_sweep_counts_the_votes_and_keeps_the_mode():
    model = network(ALL[:2]).train()
    grid = (0.0, 0.5, 3.0)
    found = weight_sweep(model, [(X[:3], Y[:3]), (X[3:], Y[3:])], "shape", grid)
    assert model.training
    out = model.eval()(X)
    for weight, score in zip(grid, found, strict=True):
        votes = weight * out["view_probs"]["shape"] + 0.5 * out["view_probs"]["texture"]
        assert score == pytest.approx(float((votes.argmax(1) == Y).float().mean()))


def test_probe_reads_what_is_there_and_nothing_else():
    y = torch.randint(0, 4, (600,), generator=torch.Generator().manual_seed(1))
    told = nn.functional.one_hot(y, 4).float() + 0.1 * draw(600, 4)
    assert linear_probe(told[:400], y[:400], told[400:], y[400:]) == 1.0
    noise = draw(600, 4, seed=5)
    chance = linear_probe(noise[:400], y[:400], noise[400:], y[400:])
    assert abs(chance - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 200)


def test_otsu_splits_where_the_variance_between_is_largest():
    x = torch.full((2, 1, 10, 10), 0.2)
    x[0, :, 2:5, 3:9] = 0.9
    x[1, :, :, 5:] = 0.6
    x = x + 0.02 * draw(2, 1, 10, 10)
    torch.testing.assert_close(otsu_mask(x), (x > 0.5).float())
    grey = draw(1, 1, 9, 9).double()
    mask = otsu_mask(grey).bool()

    def between(side):
        share = side.double().mean()
        if share in (0.0, 1.0):
            return 0.0
        return float(share * (1 - share) * (grey[side].mean() - grey[~side].mean()) ** 2)

    best = max(between(grey > float(t)) for t in torch.linspace(0.0, 1.0, 400))
    assert between(mask) > 0.97 * best


def test_mask_decides_what_is_background():
    model = network().eval()
    mask = torch.zeros(5, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1.0
    with torch.no_grad():
        one = model(X, mask)["codes"]
        other = model(X * (1 - mask) + (1 - X) * mask, mask)["codes"]
    torch.testing.assert_close(one["background"], other["background"])
    assert not torch.allclose(one["shape"], other["shape"], atol=1e-4)


def test_foreign_networks_are_taken_apart():
    torchvision = pytest.importorskip("torchvision")
    for name, shape_layer, texture in (
        ("resnet18", "layer2", ("layer1", "layer2", "layer3")),
        ("squeezenet1_1", "features.4", ("features.4", "features.7")),
    ):
        foreign = torchvision.models.get_model(name, weights=None)
        model = MultiViewBiasNet(
            foreign, 3, shape_layer=shape_layer, texture_layers=texture,
            example=torch.zeros(1, 3, 64, 64), n_blocks=1,
        ).eval()  # fmt: skip
        x = draw(2, 3, 64, 64)
        with torch.no_grad():
            out = model(x)
        assert out["recon"].shape == x.shape
        assert not any(module._forward_hooks for module in model.backbone.module.modules())
        assert not any(module._forward_hooks for module in foreign.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ("shape", "colour")}, "views must be one of"),
        ({"views": ("shape",)}, "views must hold shape and texture once"),
        ({"views": ("shape", "texture", "shape")}, "views must hold shape and texture once"),
        ({"mode": "gramm"}, "Did you mean 'gram'"),
        ({"start": {"shape": 1.0}}, "start must give"),
        ({"start": {"shape": 0.0, "texture": 1.0}, "views": ALL[:2]}, "start must lie in"),
        ({"shape_layer": "relu9"}, "relu9"),
        ({"shape_layer": "fc"}, "the activation of 'fc' must have shape"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="codes must be of at least two views"):
        discrepancy({"shape": X[0, 0]})
    with pytest.raises(ValueError, match="y must lie in"):
        multiview_loss(network()(X), X, Y + 4)
    with pytest.raises(ValueError, match="at least one sample"):
        weight_sweep(network(), [], "shape", (0.5,))
    with pytest.raises(ValueError, match="layers must be 2 maps"):
        TextureEncoder([3, 4], 5)([X])
