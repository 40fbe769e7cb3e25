"""The specification's properties in float64, a loop, and the explainer of whole networks."""

import pytest
import torch
from cv_attention.methods.dist_cam import DistCAM, cam, dist_cam, dist_cam_weights
from cv_attention.prototypes import class_prototypes
from cv_core.explain.attribution import GradCAM, normalize_maps
from torch import nn
from torch.nn import functional

NORMS = ["sum", "l2", "max", "minmax"]


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def query():
    return draws(3, 6, 4, 5)


@pytest.fixture
def reference():
    return draws(3, 6, seed=1)


def in_loops(query, reference, eps):
    """The definition, number by number, normalised by the sum."""
    images, channels, height, width = query.shape
    maps = torch.zeros(images, height, width, dtype=query.dtype)
    for b in range(images):
        weights = []
        for k in range(channels):
            mean = sum(float(v) for v in query[b, k].flatten()) / (height * width)
            weights.append(1 / (abs(float(reference[b, k]) - mean) + eps))
        for y in range(height):
            for x in range(width):
                parts = (weights[k] * float(query[b, k, y, x]) for k in range(channels))
                maps[b, y, x] = sum(parts) / sum(weights)
    return maps


def test_it_is_the_definition_in_loops(query, reference):
    for eps in (1e-6, 0.1):
        ours = dist_cam(query, reference, eps=eps)
        torch.testing.assert_close(ours, in_loops(query, reference, eps))


def test_property_1_weights_of_sum_1(query, reference):
    pooled = query.mean((2, 3))
    weights = dist_cam_weights(pooled, reference)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    for norm, of in (("l2", lambda W: W.norm(dim=1)), ("max", lambda W: W.amax(1))):
        found = of(dist_cam_weights(pooled, reference, normalize=norm))
        torch.testing.assert_close(found, torch.ones(3, dtype=torch.float64))
    stretched = dist_cam_weights(pooled, reference, normalize="minmax")
    assert stretched.amin(1).eq(0).all()
    assert stretched.amax(1).eq(1).all()


def test_property_2_equal_distances_give_the_mean_of_the_channels(query):
    signs = torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
    for distance in (0.0, 0.7):
        maps = dist_cam(query, query.mean((2, 3)) + distance * signs)
        torch.testing.assert_close(maps, query.mean(1))
    uniform = dist_cam_weights(query.mean((2, 3)), query.mean((2, 3)), normalize="minmax")
    assert uniform.eq(1).all()


def test_property_3_scaling_both_scales_the_map(query, reference):
    pooled = query.mean((2, 3))
    for relative_eps in (0.0, 0.5):
        options = {"eps": 1e-14, "relative_eps": relative_eps}
        weights = dist_cam_weights(pooled, reference, **options)
        for a in (0.01, 30.0):
            scaled = dist_cam_weights(a * pooled, a * reference, **options)
            torch.testing.assert_close(scaled, weights)
            maps = dist_cam(a * query, a * reference, **options)
            torch.testing.assert_close(maps, a * dist_cam(query, reference, **options))
    # with an eps that counts it does not hold
    big = dist_cam_weights(pooled, reference, eps=1.0)
    assert not torch.allclose(dist_cam_weights(30 * pooled, 30 * reference, eps=1.0), big)


def test_property_4_the_order_of_channels_does_not_count(query, reference):
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    maps = dist_cam(query[:, order], reference[:, order])
    torch.testing.assert_close(maps, dist_cam(query, reference))
    assert not torch.allclose(dist_cam(query[:, order], reference), maps)


def test_property_5_the_mean_of_the_map(query, reference):
    pooled = query.mean((2, 3))
    for norm in NORMS:
        weights = dist_cam_weights(pooled, reference, normalize=norm)
        mean = dist_cam(query, reference, normalize=norm).mean((1, 2))
        torch.testing.assert_close(mean, (weights * pooled).sum(1))


def test_property_6_places_of_the_reference_do_not_count_and_those_of_the_query_move_along(query):
    image = draws(1, 6, 3, 3, seed=2)
    plain = dist_cam(query, image[0])
    (prototype,) = class_prototypes(image, torch.tensor([0]), 1)
    torch.testing.assert_close(dist_cam(query, prototype), plain)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = image.flatten(2)[:, :, order].view_as(image)
    torch.testing.assert_close(dist_cam(query, shuffled[0]), plain)
    torch.testing.assert_close(dist_cam(query.flip(3), prototype), plain.flip(2))
    shifted = query.roll((1, 2), (2, 3))
    torch.testing.assert_close(dist_cam(shifted, prototype), plain.roll((1, 2), (1, 2)))


def test_property_7_only_the_size_of_differences_counts_and_norms_differ_by_a_factor(
    query, reference
):
    pooled = query.mean((2, 3))
    mirrored = 2 * pooled - reference
    for norm in NORMS:
        ours = dist_cam(query, mirrored, normalize=norm)
        torch.testing.assert_close(ours, dist_cam(query, reference, normalize=norm))
    by_sum, by_l2, by_max, by_minmax = (
        normalize_maps(dist_cam(query, reference, normalize=norm)) for norm in NORMS
    )
    torch.testing.assert_close(by_l2, by_sum)
    torch.testing.assert_close(by_max, by_sum)
    assert not torch.allclose(by_minmax, by_sum, atol=1e-3)


def test_eps_decides_how_many_channels_count():
    generator = torch.Generator().manual_seed(0)
    distance = torch.randn(400, 512, generator=generator, dtype=torch.float64).abs()
    zero = torch.zeros_like(distance)
    printed = dist_cam_weights(zero, distance)
    robust = dist_cam_weights(zero, distance, relative_eps=0.01)
    # about 25 % and 24 channels, and 5 % and 83; the margins are four standard errors and more
    assert 0.2 < printed.amax(1).mean() < 0.3
    assert 0.045 < robust.amax(1).mean() < 0.055
    channels = [float((1 / W.square().sum(1)).mean()) for W in (printed, robust)]
    assert 19 < channels[0] < 29
    assert 78 < channels[1] < 89


def test_zero_distances_and_extreme_scales_stay_finite():
    query, same = torch.zeros(1, 3), torch.zeros(3)
    torch.testing.assert_close(dist_cam_weights(query, same), torch.full((1, 3), 1 / 3))
    for eps in (1e-6, 1e-300):  # the second is 0 in float32
        for scale in (1e-30, 1.0, 1e30):
            reference = scale * torch.tensor([0.0, 1.0, 2.0])
            for norm in NORMS:
                weights = dist_cam_weights(query, reference, eps=eps, normalize=norm)
                assert weights.isfinite().all()
                assert weights.min() >= 0


def test_half_precision_weighs_in_single_precision():
    query, reference = draws(2, 4, 3, 3).half(), draws(4, seed=1).half()
    maps = dist_cam(query, reference)
    assert maps.dtype == torch.float16
    expected = dist_cam(query.float(), reference.float())
    torch.testing.assert_close(maps.float(), expected, rtol=2e-3, atol=2e-3)
    assert dist_cam_weights(query.mean((2, 3)), reference).dtype == torch.float32


def test_references_of_all_shapes(query):
    maps = draws(3, 6, 7, 2, seed=3)
    expected = dist_cam(query, maps.mean((2, 3)))
    torch.testing.assert_close(dist_cam(query, maps), expected)
    one = dist_cam(query, maps[0])
    torch.testing.assert_close(one, dist_cam(query, maps[:1].mean((2, 3)).expand(3, -1)))
    torch.testing.assert_close(one[0], expected[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.rand(6, 4, 4)}, "dist_cam: query must have shape"),
        ({"reference": torch.rand(5)}, "dist_cam: reference must have shape"),
        ({"reference": torch.rand(3, 6)}, "dist_cam: reference must have shape"),
        ({"reference": torch.full((6,), torch.nan)}, "dist_cam: reference must be finite"),
        ({"query": torch.full((2, 6, 4, 4), torch.inf)}, "dist_cam: query must be finite"),
        ({"normalize": "softmax"}, "dist_cam: normalize must be one of"),
        ({"eps": 0.0}, "dist_cam: eps must lie in"),
        ({"relative_eps": -0.1}, "dist_cam: relative_eps must lie in"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"query": torch.rand(2, 6, 4, 4), "reference": torch.rand(6), **change}
    with pytest.raises(ValueError, match=message):
        dist_cam(arguments.pop("query"), arguments.pop("reference"), **arguments)
    with pytest.raises(TypeError, match="dist_cam: query must be a floating"):
        dist_cam(torch.ones(2, 6, 4, 4, dtype=torch.int64), torch.rand(6))


def test_cam_in_loops(query):
    weight = draws(4, 6, seed=1) - 0.5
    classes = torch.tensor([3, 0, 3])
    maps = cam(query, weight, classes)
    for b, label in enumerate(classes.tolist()):
        expected = sum(weight[label, k] * query[b, k] for k in range(6))
        torch.testing.assert_close(maps[b], expected)
        torch.testing.assert_close(cam(query, weight, label)[b], expected)
    with pytest.raises(ValueError, match="class_index"):
        cam(query, weight, 4)
    with pytest.raises(ValueError, match="fc_weight must have shape"):
        cam(query, weight[:, :5], 0)


class Small(nn.Module):
    """A network that ends in global pooling, and by choice in a linear layer."""

    def __init__(self, classes=None, *, inplace=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8))
        self.act = nn.ReLU(inplace=inplace)
        self.fc = nn.Identity() if classes is None else nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.act(self.body(x)).mean((2, 3)))


@pytest.fixture
def images():
    return torch.rand(4, 3, 15, 17, generator=torch.Generator().manual_seed(5))


def enlarged(maps, like):
    size = like.shape[2:]
    return functional.interpolate(maps[:, None], size=size, mode="bilinear")[:, 0]


def test_grad_cam_of_the_class_is_cam_and_that_of_the_distance_has_the_signs(images):
    model = Small(5).eval()
    target = torch.tensor([0, 3, 4, 1])
    maps = DistCAM(model, "act").features(images)
    places = maps.shape[2] * maps.shape[3]
    ours = GradCAM(model, "act", relu=False).attribute(images, target) * places
    torch.testing.assert_close(ours, enlarged(cam(maps, model.fc.weight, target), images).detach())

    model.fc, prototype = nn.Identity(), torch.rand(8, generator=torch.Generator().manual_seed(6))
    ours = GradCAM(model, "act", relu=False).attribute(
        images, lambda outputs: -(outputs - prototype).abs().sum(1)
    )
    signs = (prototype - maps.mean((2, 3))).sign() / places
    expected = torch.einsum("bk,bkhw->bhw", signs, maps)
    torch.testing.assert_close(ours, enlarged(expected, images))


@pytest.mark.parametrize("layer", ["act", None])
def test_the_explainer_is_its_parts(images, layer):
    model = Small().eval()
    prototypes = torch.rand(6, 8, generator=torch.Generator().manual_seed(6))
    with DistCAM(model, layer or model.act, relative_eps=0.1, normalize="l2") as explainer:
        heat, predicted = explainer(images, prototypes)
    with torch.no_grad():
        maps = model.act(model.body(images))
    distance = (maps.mean((2, 3))[:, None] - prototypes).abs().sum(2)
    assert torch.equal(predicted, distance.argmin(1))
    expected = dist_cam(maps, prototypes[predicted], relative_eps=0.1, normalize="l2")
    torch.testing.assert_close(heat, normalize_maps(enlarged(expected, images)))
    assert heat.amin((1, 2)).eq(0).all()
    assert heat.amax((1, 2)).eq(1).all()


def test_attribute_takes_the_targets_of_other_explainers(images):
    model = Small().eval()
    gallery = torch.rand(6, 8, 2, 2, generator=torch.Generator().manual_seed(6))
    explainer = DistCAM(model, "act", gallery)
    maps, pooled = explainer.features(images), gallery.mean((2, 3))
    nearest = (maps.mean((2, 3))[:, None] - pooled).abs().sum(2).argmin(1)
    for target in (None, 2, torch.tensor([5, 0, 0, 3])):
        chosen = nearest if target is None else torch.as_tensor(target).expand(4)
        expected = enlarged(dist_cam(maps, pooled[chosen]), images)
        torch.testing.assert_close(explainer.attribute(images, target=target), expected)
        heat, predicted = explainer(images, target=target)
        assert torch.equal(predicted, nearest)  # whatever is explained
        torch.testing.assert_close(heat, normalize_maps(expected))


def test_an_image_explained_by_itself_weighs_all_channels_alike(images):
    explainer = DistCAM(Small().eval(), "act")
    maps = explainer.features(images)
    heat, predicted = explainer(images, maps)
    assert torch.equal(predicted, torch.arange(4))
    torch.testing.assert_close(heat, normalize_maps(enlarged(maps.mean(1), images)))


def test_later_layers_that_write_in_place_do_no_harm(images):
    model = Small(inplace=True).eval()
    with torch.no_grad():
        before = model.body(images)
    signed = DistCAM(model, "body.1").features(images)
    torch.testing.assert_close(signed, before)
    rectified = DistCAM(model, "body.1", reshape=torch.relu).features(images)
    torch.testing.assert_close(rectified, before.relu())


def test_modes_hooks_and_gradients_stay_as_they_were(images):
    model = Small(5)
    model.body.eval()
    explainer = DistCAM(model, "act", torch.rand(3, 8))
    with torch.inference_mode():
        inside = explainer.attribute(images)
    torch.testing.assert_close(explainer.attribute(images), inside.clone())
    leaf = images.clone().requires_grad_()
    assert not explainer.attribute(leaf).requires_grad
    with pytest.raises(RuntimeError):
        explainer.attribute(images[:, :2])
    assert leaf.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not model.body.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.is_grad_enabled()


def test_a_foreign_network():
    from torchvision.models import densenet121, resnet18

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    model = resnet18(num_classes=7).eval()
    explainer = DistCAM(model, model.layer4)
    maps = explainer.features(images)
    assert maps.shape == (2, 512, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.fc(maps.mean((2, 3))), model(images))
    heat, predicted = explainer(images, maps.flip(0))
    assert heat.shape == (2, 64, 64)
    assert predicted.tolist() == [1, 0]

    dense = densenet121(num_classes=7).eval()  # applies its last ReLU in place, outside a layer
    maps = DistCAM(dense, "features.norm5", reshape=torch.relu).features(images)
    with torch.no_grad():
        torch.testing.assert_close(dense.classifier(maps.mean((2, 3))), dense(images))


def test_what_cannot_be_explained_is_refused(images):
    model = Small(5)
    with pytest.raises(ValueError, match="DistCAM: layer must be one of the model's"):
        DistCAM(model, nn.ReLU())
    with pytest.raises(ValueError, match="DistCAM: layer must select one layer"):
        DistCAM(model, "body.*")
    with pytest.raises(ValueError, match="DistCAM: eps"):
        DistCAM(model, "act", eps=-1.0)
    with pytest.raises(ValueError, match="DistCAM: prototypes must be given"):
        DistCAM(model, "act").attribute(images)
    with pytest.raises(ValueError, match="DistCAM: the layer's output must have shape"):
        DistCAM(model, "fc").features(images)
    with pytest.raises(ValueError, match="DistCAM: inputs is empty"):
        DistCAM(model, "act").features(images[:0])
    explainer = DistCAM(model, "act", torch.rand(3, 8))
    with pytest.raises(ValueError, match="DistCAM: target must lie in"):
        explainer.attribute(images, 3)
    with pytest.raises(TypeError, match="DistCAM: target must be a prototype"):
        explainer.attribute(images, lambda outputs: outputs[:, 0])
    with pytest.raises(ValueError, match="prototypes must have shape"):
        explainer(images, torch.rand(3, 7))
    twice = nn.Sequential(model.body, model.act, model.act)
    with pytest.raises(ValueError, match="DistCAM: layer must run once in a pass; it ran 2"):
        DistCAM(twice, "1").features(images)


def test_a_compiled_network_is_explained_as_the_plain_one():
    pytest.importorskip("torch", "2.6", "older torch cannot run compiled networks uncompiled")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = DistCAM(plain, "1").features(images)
    compiled = torch.compile(plain, backend="eager")
    compiled(images)  # traced before any hook
    assert torch.equal(DistCAM(compiled, "_orig_mod.1").features(images), expected)
