"""Equality with captum, pytorch-grad-cam and timm where they are installed."""

import copy

import numpy as np
import pytest
import torch
from cv_core.explain.attribution import (
    GradCAM,
    InputGradients,
    IntegratedGradients,
    Occlusion,
    normalize_maps,
)
from cv_core.explain.cams import GradCAMPlusPlus, LayerCAM, ScoreCAM
from cv_core.explain.robustness import linear_imputation
from cv_core.explain.smoothing import InputXGradient
from cv_core.explain.transformers import (
    AttentionRollout,
    GradientRollout,
    TokenGrid,
    attention_maps,
    rollout,
    token_grid,
)
from cv_core.random import seeded
from torch import nn

CLASSES = [1, 0, 3, 2]


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def network():
    """The layer called 1 has maps of the images' own size: libraries enlarge in different ways."""
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 4),
        )
    with torch.no_grad():
        model[4].weight.mul_(100.0)  # grad-cam adds 1e-6 to squares of gradients
    return model.eval()


# -------------------------------------------------------------------------------- pytorch-grad-cam


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GradCAM, "GradCAM"),
        (LayerCAM, "LayerCAM"),
        (GradCAMPlusPlus, "GradCAMPlusPlus"),
        (ScoreCAM, "ScoreCAM"),
    ],
)
def test_cams_equal_grad_cams(ours, theirs):
    library = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = network(), draw(4, 2, 8, 8)
    maps = ours(model, "1").attribute(x, torch.tensor(CLASSES))
    other = copy.deepcopy(model)
    with getattr(library, theirs)(other, [other[1]]) as cam:
        wanted = cam(x, [targets.ClassifierOutputTarget(label) for label in CLASSES])
    torch.testing.assert_close(normalize_maps(maps), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_imputation_equals_roads():
    module = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="needs grad-cam")
    x = draw(3, 2, 9, 7)
    missing = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(2)) < 0.6
    impute = module.NoisyLinearImputer(noise=0.0)
    wanted = torch.stack([impute(x[b], (~missing[b]).float()) for b in range(3)])
    torch.testing.assert_close(linear_imputation(x, missing), wanted, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ captum


def test_gradients_equal_captums():
    captum = pytest.importorskip("captum.attr", reason="needs captum")
    model, x, classes = network(), draw(4, 2, 8, 8), torch.tensor(CLASSES)
    cam = captum.LayerGradCam(model, model[1]).attribute(x, classes, relu_attributions=True)
    torch.testing.assert_close(GradCAM(model, "1").attribute(x, classes), cam[:, 0].detach())
    saliency = captum.Saliency(model).attribute(x.clone().requires_grad_(), classes)
    torch.testing.assert_close(InputGradients(model).attribute(x, classes), saliency.amax(1))
    product = captum.InputXGradient(model).attribute(x.clone().requires_grad_(), classes)
    torch.testing.assert_close(
        InputXGradient(model).attribute(x, classes), product.sum(1).detach(), rtol=1e-4, atol=1e-4
    )
    path = captum.IntegratedGradients(model).attribute(
        x, target=classes, n_steps=16, method="gausslegendre"
    )
    torch.testing.assert_close(
        IntegratedGradients(model, steps=16).attribute(x, classes),
        path.sum(1).detach().float(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_occlusion_equals_captums():
    captum = pytest.importorskip("captum.attr", reason="needs captum")
    model, x, classes = network(), draw(4, 2, 8, 8), torch.tensor(CLASSES)
    options = {"sliding_window_shapes": (2, 4, 4), "strides": (2, 4, 4)}
    wanted = captum.Occlusion(model).attribute(x, target=classes, **options)
    found = Occlusion(model, window=4, stride=4).attribute(x, classes)
    torch.testing.assert_close(found, wanted[:, 0], rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------- timm


VITS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "norms of queries and keys": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "averaged": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "rotary": ("eva02_tiny_patch14_224", {}),
    "relative positions": ("beit_base_patch16_224", {"embed_dim": 48, "num_heads": 3}),
}


def timms(name, size=None, **options):
    timm = pytest.importorskip("timm", reason="needs timm")
    patch = 14 if "patch14" in name else 16
    with seeded(0):
        model = timm.create_model(
            name, depth=2, num_classes=5, img_size=size or 3 * patch, **options
        )
        nn.init.normal_(model.head.weight)
        for module in model.modules():
            if hasattr(module, "qkv") and module.qkv is not None:
                nn.init.normal_(module.qkv.weight, std=0.1)  # attention that is not flat
    return model.eval(), patch


def set_fused(model, *, fused):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


@pytest.mark.parametrize(("name", "options"), VITS.values(), ids=VITS)
def test_maps_equal_those_of_timms_unfused_path(name, options):
    model, patch = timms(name, **options)
    set_fused(model, fused=True)
    x = draw(2, 3, 3 * patch, 3 * patch)
    with torch.no_grad():
        logits = model(x)
    seen = []
    hook = model.register_forward_hook(lambda _module, _args, output: seen.append(output))
    found = attention_maps(model, x)
    hook.remove()
    assert torch.equal(seen[0], logits)
    assert list(found) == ["blocks.0.attn", "blocks.1.attn"]

    set_fused(model, fused=False)
    kept = {}
    for key in found:
        drop = model.get_submodule(f"{key}.attn_drop")  # is given the maps where nothing is fused
        drop.register_forward_pre_hook(lambda _m, args, key=key: kept.update({key: args[0]}))
    with torch.no_grad():
        model(x)
    assert list(kept) == list(found)
    for key, maps in found.items():
        torch.testing.assert_close(maps, kept[key], rtol=1e-5, atol=1e-5)
        spread = maps.amax(-1) - maps.amin(-1)
        assert float(spread.mean()) > 0.01  # not flat, where anything would be equal
    unfused = attention_maps(model, x)
    for key, maps in found.items():
        torch.testing.assert_close(unfused[key], maps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), VITS.values(), ids=VITS)
def test_rollouts_of_timms_transformers(name, options):
    model, patch = timms(name, **options)
    x = draw(2, 3, 3 * patch, 3 * patch)
    prefix = model.num_prefix_tokens
    maps = [item.mean(1) for item in attention_maps(model, x).values()]
    assert token_grid(model, maps[0].shape[1], x.shape[2:]) == TokenGrid(prefix, 3, 3)
    full = rollout(maps)
    row = full[:, prefix:].mean(1) if model.global_pool == "avg" else full[:, 0]
    found = AttentionRollout(model).attribute(x)
    wanted = nn.functional.interpolate(
        row[:, prefix:].unflatten(1, (1, 3, 3)), x.shape[2:], mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(found, wanted[:, 0])

    fused = GradientRollout(model).attribute(x, 2)
    set_fused(model, fused=False)  # autograd's own derivative by the maps
    torch.testing.assert_close(GradientRollout(model).attribute(x, 2), fused, rtol=1e-3, atol=1e-6)
    assert float(fused.amax()) > 0.0


def test_images_that_are_not_square():
    model, _ = timms("vit_tiny_patch16_224", size=(32, 64))
    x = draw(1, 3, 32, 64)
    (maps, _) = attention_maps(model, x).values()
    assert token_grid(model, maps.shape[-1], (32, 64)) == TokenGrid(1, 2, 4)
    assert AttentionRollout(model).attribute(x).shape == (1, 32, 64)
    moving, _ = timms("vit_tiny_patch16_224", size=(32, 64), dynamic_img_size=True)
    assert GradientRollout(moving).attribute(draw(1, 3, 64, 48), 0).shape == (1, 64, 48)


def test_timms_windows_are_refused():
    timm = pytest.importorskip("timm", reason="needs timm")
    with seeded(0):
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1, 1, 1, 1)
        )
    with pytest.raises(ValueError, match="attends inside windows, as Swin does"):
        AttentionRollout(model.eval()).attribute(draw(1, 3, 56, 56))


def test_grad_cam_on_tokens_equals_grad_cams():
    from cv_core.explain.transformers import reshape_tokens

    library = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, patch = timms("vit_tiny_patch16_224", reg_tokens=2)
    x = draw(2, 3, 3 * patch, 3 * patch)
    reshape = reshape_tokens(model, (3 * patch, 3 * patch))
    explainer = GradCAM(model, "blocks.1.norm1", reshape=reshape)
    found = explainer.attribute(x, 2)
    with library.GradCAM(
        model,
        [model.blocks[1].norm1],
        reshape_transform=lambda t: t[:, 3:].mT.unflatten(2, (3, 3)),
    ) as cam:
        cam.get_target_width_height = lambda _x: (3, 3)  # enlarging is each library's own
        wanted = cam(x, [targets.ClassifierOutputTarget(2)] * 2)
    small = nn.functional.interpolate(
        torch.from_numpy(wanted)[:, None], x.shape[2:], mode="bilinear", align_corners=False
    )[:, 0]
    ratio = found.amax((1, 2)) / small.amax((1, 2))
    lowest = np.array([float(one.amin()) for one in found])
    assert (lowest == 0.0).all()  # so that their scaling only divides
    torch.testing.assert_close(found / ratio[:, None, None], small, rtol=1e-3, atol=1e-4)
