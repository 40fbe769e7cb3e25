import math

import pytest
import torch
from cv_core.explain.attribution import GradCAM
from cv_core.explain.transformers import (
    AttentionRollout,
    GradientRollout,
    TokenGrid,
    attention_maps,
    reshape_tokens,
    rollout,
    token_grid,
)
from cv_core.random import seeded
from torch import nn
from torch.nn import functional

DIM, HEADS, PATCH = 8, 2, 4


class Attention(nn.Module):
    """As in most libraries: one projection for queries, keys and values; fused or spelt out."""

    def __init__(self, *, fused):
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fused = fused

    def split(self, x):
        return self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x):
        q, k, v = self.split(x)
        if self.fused:
            out = functional.scaled_dot_product_attention(q, k, v)
        else:
            out = (q * (DIM // HEADS) ** -0.5 @ k.mT).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))


class Torchs(nn.Module):
    """The same around ``nn.MultiheadAttention``, whose layout of the weights is the same."""

    def __init__(self, *, batch_first=True):
        super().__init__()
        self.inner = nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x):
        if self.batch_first:
            return self.inner(x, x, x, need_weights=False)[0]
        x = x.transpose(0, 1)
        return self.inner(x, x, value=x, need_weights=False)[0].transpose(0, 1)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM), attention
        self.norm2, self.mlp = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x)).relu()


class ViT(nn.Module):
    """Three blocks on patches of 4 x 4 pixels; tokens of ``prefix`` come first."""

    def __init__(self, make, *, prefix=1, pool="token"):
        super().__init__()
        self.num_prefix_tokens, self.global_pool = prefix, pool
        self.patch_embed = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, prefix, DIM))
        self.position = nn.Parameter(torch.randn(1, 64, DIM))
        self.blocks = nn.Sequential(*(Block(make()) for _ in range(3)))
        self.head = nn.Linear(DIM, 5)
        self.patch_embed.patch_size = (PATCH, PATCH)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        x = self.blocks(x + self.position[:, : x.shape[1]])
        if self.global_pool == "token":
            return self.head(x[:, 0])
        return self.head(x[:, self.num_prefix_tokens :].mean(1))


MAKERS = {
    "fused": lambda: Attention(fused=True),
    "plain": lambda: Attention(fused=False),
    "torch": Torchs,
    "torch, batch second": lambda: Torchs(batch_first=False),
}


def build(kind="fused", **options):
    """The same network whichever module computes its attention."""
    with seeded(0):
        model = ViT(MAKERS["fused"], **options)
    with torch.no_grad():  # attention that is neither flat nor saturated
        for block in model.blocks:
            block.attn.qkv.weight.mul_(3.0)
    if kind == "plain":
        for block in model.blocks:
            block.attn.fused = False
    elif kind != "fused":
        for block in model.blocks:
            other = MAKERS[kind]()
            other.inner.in_proj_weight, other.inner.in_proj_bias = block.attn.qkv.parameters()
            other.inner.out_proj.weight, other.inner.out_proj.bias = block.attn.proj.parameters()
            block.attn = other
    return model.eval()


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def reference_maps(model, x):
    """Every block's attention, with loops over images, heads and tokens."""
    x = model.patch_embed(x).flatten(2).mT
    x = torch.cat([model.first.expand(len(x), -1, -1), x], 1)
    x = x + model.position[:, : x.shape[1]]
    found = []
    for block in model.blocks:
        q, k, _ = block.attn.split(block.norm1(x))
        maps = torch.zeros(len(x), HEADS, x.shape[1], x.shape[1])
        for b in range(len(x)):
            for h in range(HEADS):
                for i in range(x.shape[1]):
                    logits = [
                        float((q[b, h, i] @ k[b, h, j]).detach()) / math.sqrt(DIM // HEADS)
                        for j in range(x.shape[1])
                    ]
                    total = sum(math.exp(value) for value in logits)
                    maps[b, h, i] = torch.tensor([math.exp(value) / total for value in logits])
        found.append(maps)
        x = block(x)
    return found


@pytest.mark.parametrize("kind", MAKERS)
def test_maps_by_loops(kind):
    x = draw(2, 3, 8, 12)
    expected = reference_maps(build(), x)
    model = build(kind)
    with torch.no_grad():
        plain = model(x)
    seen = []
    model.register_forward_hook(lambda _module, _args, output: seen.append(output))
    found = attention_maps(model, x)
    assert torch.equal(seen[0], plain)  # the network runs as it always does
    assert len(found) == 3
    for maps, wanted in zip(found.values(), expected, strict=True):
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


def test_only_the_chosen_blocks_are_looked_at():
    model, x = build(), draw(2, 3, 8, 8)
    every = attention_maps(model, x)
    assert list(every) == [f"blocks.{index}.attn" for index in range(3)]
    for where, name in (("blocks.2.attn", "blocks.2.attn"), ("blocks.2", "blocks.2")):
        one = attention_maps(model, x, where)
        assert list(one) == [name]
        assert torch.equal(one[name], every["blocks.2.attn"])
    (torchs,) = attention_maps(build("torch"), x, "blocks.1").values()
    torch.testing.assert_close(torchs, every["blocks.1.attn"])


def test_masks_scales_and_grouped_heads():
    """Whatever ``scaled_dot_product_attention`` takes, A V is what it returns."""

    class Odd(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.options = options

        def forward(self, x):
            q, k, v = x.unflatten(1, (-1, 3)).unbind(2)
            if self.options.get("enable_gqa"):
                k, v = k[:, :1], v[:, :1]
            return functional.scaled_dot_product_attention(q, k, v, **self.options)

    x = draw(2, 6, 5, 4)
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(5, 5, generator=generator)
    options = [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": bias}]
    options += [{"attn_mask": bias > -1.0}, {"enable_gqa": True}]
    for chosen in options:
        model = Odd(**chosen)
        (maps,) = attention_maps(nn.Sequential(model), x, "0").values()
        value = x.unflatten(1, (-1, 3))[:, :, 2]
        value = value[:, :1] if chosen.get("enable_gqa") else value
        torch.testing.assert_close(maps @ value, model(x), msg=str(chosen))


def test_an_adapter_speaks_for_a_module_that_torch_cannot_see():
    class OwnAttention(Attention):
        def forward(self, x):
            q, k, v = self.split(x)
            exps = (q * (DIM // HEADS) ** -0.5 @ k.mT).exp()
            out = exps / exps.sum(-1, keepdim=True) @ v
            return self.proj(out.transpose(1, 2).flatten(2))

    model, x = build(), draw(2, 3, 8, 8)
    expected = attention_maps(model, x)
    rolled = AttentionRollout(model).attribute(x)
    for block in model.blocks:
        block.attn.__class__ = OwnAttention
    with pytest.raises(ValueError, match=r"'blocks.0.attn' must compute attention once .* 0 times"):
        attention_maps(model, x)

    def adapter(module, tokens):
        q, k, _ = module.split(tokens)
        return (q @ k.mT * (DIM // HEADS) ** -0.5).softmax(-1)

    found = attention_maps(model, x, adapter=adapter)
    for name, maps in expected.items():
        torch.testing.assert_close(found[name], maps)
    adapted = AttentionRollout(model, adapter=adapter)
    torch.testing.assert_close(adapted.attribute(x), rolled)


def test_rollout_of_identity_is_identity_and_rows_add_up_to_one():
    eye = torch.eye(5).expand(2, 5, 5)
    assert torch.equal(rollout([eye, eye, eye]), eye)
    maps = [draw(2, 5, 5).softmax(-1) for _ in range(4)]
    full = rollout(maps)
    torch.testing.assert_close(full.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(rollout(maps, eye[:, 1:3]), full[:, 1:3])


def test_rollout_multiplies_from_the_last_block_to_the_first():
    maps = [torch.rand(2, 4, 4, dtype=torch.float64).softmax(-1) for _ in range(3)]
    for b in range(2):
        product = torch.eye(4, dtype=torch.float64)
        for attention in maps:
            product = (attention[b] / 2 + torch.eye(4, dtype=torch.float64) / 2) @ product
        torch.testing.assert_close(rollout(maps)[b], product)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("prefix", "pool"), [(1, "token"), (3, "token"), (0, "avg"), (2, "avg")])
def test_attention_rollout_by_hand(kind, prefix, pool):
    x = draw(2, 3, 8, 12)
    model = build(kind, prefix=prefix, pool=pool)
    maps = [item.mean(1) for item in attention_maps(model, x).values()]
    full = rollout(maps)
    row = full[:, 0] if pool == "token" else full[:, prefix:].mean(1)
    low = row[:, prefix:].unflatten(1, (1, 2, 3))
    expected = functional.interpolate(low, size=(8, 12), mode="bilinear", align_corners=False)
    found = AttentionRollout(model).attribute(x)
    torch.testing.assert_close(found, expected[:, 0])
    assert found.dtype == torch.float32


def test_rollout_of_one_block_is_half_its_attention():
    model, x = build(), draw(2, 3, 4 * 3, 4 * 3)
    maps = attention_maps(model, x, "blocks.2.attn")["blocks.2.attn"].mean(1)
    found = AttentionRollout(model, "blocks.2.attn").attribute(x)
    low = functional.interpolate(
        maps[:, 0, 1:].unflatten(1, (1, 3, 3)), (12, 12), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(found, low[:, 0] / 2)


@pytest.mark.parametrize("kind", MAKERS)
def test_gradient_rollout_by_hand(kind):
    """Against autograd's derivative by maps that are spelt out."""
    x, classes = draw(2, 3, 8, 12), torch.tensor([3, 1])
    plain, kept = build("plain"), []
    for block in plain.blocks:

        def forward(tokens, attention=block.attn):
            q, k, v = attention.split(tokens)
            kept.append((q * (DIM // HEADS) ** -0.5 @ k.mT).softmax(-1))
            return attention.proj((kept[-1] @ v).transpose(1, 2).flatten(2))

        block.attn.forward = forward
    total = plain(x)[torch.arange(2), classes].sum()
    gradients = torch.autograd.grad(total, kept)
    expected = []
    for b in range(2):
        relevance = torch.eye(7)
        for maps, gradient in zip(kept, gradients, strict=True):
            one = sum((maps[b, h] * gradient[b, h]).relu() for h in range(HEADS)) / HEADS
            relevance = relevance + one @ relevance
        expected.append(relevance[0, 1:].detach())
    low = torch.stack(expected).unflatten(1, (1, 2, 3))
    expected = functional.interpolate(low, size=(8, 12), mode="bilinear", align_corners=False)
    found = GradientRollout(build(kind)).attribute(x, classes)
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-4, atol=1e-6)
    assert float(found.amax()) > 0.0


def test_gradient_rollout_of_a_frozen_network_and_of_pooled_patches():
    x = draw(2, 3, 8, 8)
    model = build(prefix=2, pool="avg")
    expected = GradientRollout(model).attribute(x, 1)
    assert float(expected.amin()) > 0.0  # every patch is a row of its own
    model.requires_grad_(requires_grad=False)
    assert torch.equal(GradientRollout(model).attribute(x, 1), expected)


def torchvisions():
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    with seeded(0):
        model = models.VisionTransformer(16, 4, 2, HEADS, DIM, 16, num_classes=5)
        nn.init.normal_(model.heads.head.weight)
    return model.eval()


def test_torchvisions_transformer():
    """The maps equal those that the module itself returns when it does not fuse."""
    model, x = torchvisions(), draw(2, 3, 16, 16)
    found = attention_maps(model, x)
    assert list(found) == [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)]
    for name, maps in found.items():
        tokens = []
        module = model.get_submodule(name)
        hook = module.register_forward_hook(
            lambda _module, args, _output, tokens=tokens: tokens.append(args[0])
        )
        with torch.no_grad():
            model(x)
            hook.remove()
            x1 = tokens[0]
            _, wanted = module(x1, x1, x1, need_weights=True, average_attn_weights=False)
        torch.testing.assert_close(maps, wanted, rtol=1e-5, atol=1e-5)
    assert AttentionRollout(model).attribute(x).shape == (2, 16, 16)
    assert GradientRollout(model).attribute(x, 2).shape == (2, 16, 16)
    cam = GradCAM(
        model, "encoder.layers.encoder_layer_1.ln_1", reshape=reshape_tokens(model, (16, 16))
    )
    assert float(cam.attribute(x, 1).amax()) > 0.0


def test_windows_are_refused():
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    model = models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4]).eval()
    x = draw(1, 3, 32, 32)
    for explain in (
        lambda: attention_maps(model, x, "features.1.0.attn"),
        lambda: AttentionRollout(model).attribute(x),
        lambda: GradientRollout(model).attribute(x),
    ):
        with pytest.raises(ValueError, match="attends inside windows, as Swin does"):
            explain()


@pytest.mark.parametrize(
    ("tokens", "size", "options", "expected"),
    [
        (197, (224, 224), {}, TokenGrid(1, 14, 14)),
        (196, (224, 224), {}, TokenGrid(0, 14, 14)),
        (9, (10, 20), {"grid": (2, 4)}, TokenGrid(1, 2, 4)),
        (12, (10, 20), {"grid": (2, 4)}, TokenGrid(4, 2, 4)),
        (13, (9, 9), {"prefix": 4}, TokenGrid(4, 3, 3)),
    ],
)
def test_grids_of_an_unknown_network(tokens, size, options, expected):
    assert token_grid(nn.Identity(), tokens, size, **options) == expected


def test_grids_of_a_network_that_tells():
    model = nn.Sequential(nn.Identity(), build(prefix=3))
    assert token_grid(model, 3 + 2 * 8, (8, 32)) == TokenGrid(3, 2, 8)
    assert token_grid(model, 3 + 16, (32, 8)) == TokenGrid(3, 8, 2)
    model[1].patch_embed.patch_size, model[1].patch_embed.grid_size = (16, 16), (4, 5)
    assert token_grid(model, 3 + 20, (99, 99)) == TokenGrid(3, 4, 5)
    tokens = torch.arange(2 * 23 * 4.0).view(2, 23, 4)
    maps = reshape_tokens(model, (99, 99))(tokens)
    assert maps.shape == (2, 4, 4, 5)
    assert torch.equal(maps[1, :, 2, 3], tokens[1, 3 + 2 * 5 + 3])


@pytest.mark.parametrize(
    "arguments",
    [
        (nn.Identity(), 7, (8, 8), {}),
        (nn.Identity(), 10, (8, 8), {"prefix": 2}),
        (nn.Identity(), 10, (8, 8), {"grid": (5, 4)}),
        (nn.Identity(), 10, (8, 8), {"grid": (3, 3), "prefix": 2}),
    ],
)
def test_grids_that_do_not_fit_are_refused(arguments):
    *positional, options = arguments
    with pytest.raises(ValueError, match="hand in prefix= and grid="):
        token_grid(*positional, **options)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_network_stays_as_it_was(kind):
    model, x = build(kind).train(), draw(2, 3, 8, 8)
    classes = torch.tensor([1, 4])
    for explainer in (AttentionRollout(model), GradientRollout(model)):
        expected = explainer.attribute(x, classes)
        assert not expected.requires_grad
        one = explainer.attribute(x[1:], target=4)
        torch.testing.assert_close(one[0], expected[1], rtol=1e-4, atol=1e-6)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                found = explainer.attribute(x.clone(), classes.clone())
                torch.testing.assert_close(found, expected)
                assert not torch.is_grad_enabled()
        with pytest.raises(ValueError, match=r"Rollout: target must lie in \[0, 4\]; got 5"):
            explainer.attribute(x, 5)
        with pytest.raises(ValueError, match="Rollout: inputs must have shape"):
            explainer.attribute(x[0])
    model.head.register_forward_pre_hook(lambda _module, _args: 1 / 0)
    for explain in (
        lambda: attention_maps(model, x),
        lambda: AttentionRollout(model).attribute(x),
        lambda: GradientRollout(model).attribute(x),
    ):
        with pytest.raises(ZeroDivisionError):
            explain()
    assert torch.is_grad_enabled()
    assert torch.overrides._len_torch_function_stack() == 0
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == [model.head]


@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_compiled_transformers(kind):
    pytest.importorskip("torch", "2.6", "older torch cannot run compiled networks uncompiled")
    x = draw(2, 3, 8, 8)
    expected = [kind_(build(kind)).attribute(x, 1) for kind_ in (AttentionRollout, GradientRollout)]
    model = torch.compile(build(kind), backend="eager")
    with torch.no_grad():
        model(x)
    for explainer, wanted in zip((AttentionRollout, GradientRollout), expected, strict=True):
        torch.testing.assert_close(explainer(model).attribute(x, 1), wanted)


def test_what_has_no_map_is_refused():
    with pytest.raises(ValueError, match="Sequential has no module that is called attention"):
        AttentionRollout(nn.Sequential(nn.Conv2d(3, 4, 1)))

    class Cross(nn.Module):
        def forward(self, x):
            return functional.scaled_dot_product_attention(x[:, :, :1], x, x)

    with pytest.raises(ValueError, match="from all tokens to all tokens; it attends from 1 to 5"):
        attention_maps(nn.Sequential(Cross()), draw(2, 2, 5, 4), "0")
    masked = nn.MultiheadAttention(DIM, HEADS, batch_first=True, add_bias_kv=True)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = masked

        def forward(self, x):
            x = x.flatten(2)
            return self.attn(x, x, x)[0].mean(1)

    with pytest.raises(ValueError, match="extra keys"):
        attention_maps(Masked(), draw(2, 5, 2, 4))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Attention(fused=True), Attention(fused=True)

        def forward(self, x):
            pooled = functional.avg_pool1d(self.first(x.flatten(2)).mT, 2).mT
            return self.second(pooled).mean(1)

    with pytest.raises(ValueError, match="all blocks must have the same tokens; some have 2 and"):
        AttentionRollout(Two()).attribute(draw(2, 4, 2, 4))
