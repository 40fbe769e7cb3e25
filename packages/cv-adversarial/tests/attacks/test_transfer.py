"""Transfer attacks: each equals I-FGSM where its own part is switched off, and a slow loop."""

import pytest
import torch
from cv_adversarial.attacks.gradient import PGD
from cv_adversarial.attacks.transfer import (
    DIFGSM,
    MIFGSM,
    NIFGSM,
    SIFGSM,
    TIFGSM,
    TransferAttack,
)
from cv_core.imaging.kernels import gaussian_kernel1d
from torch.nn.functional import conv2d, cross_entropy

SHARED = {"eps": 0.1, "alpha": 0.02, "steps": 6}


@pytest.mark.parametrize(
    "attack",
    [
        lambda model: MIFGSM(model, decay=0.0, **SHARED),
        lambda model: NIFGSM(model, decay=0.0, **SHARED),
        lambda model: SIFGSM(model, decay=0.0, scales=1, **SHARED),
        lambda model: DIFGSM(model, diversity=0.0, **SHARED),
        lambda model: TIFGSM(model, kernel_size=1, **SHARED),
    ],
    ids=["mi", "ni", "si", "di", "ti"],
)
def test_degenerate_attacks_are_ifgsm_to_the_bit(attack, cnn, batch):
    x, y = batch
    plain = PGD(cnn, random_start=False, **SHARED)
    assert torch.equal(attack(cnn)(x, y), plain(x, y))
    assert torch.equal(attack(cnn)(x, y, target=(y + 1) % 10), plain(x, y, target=(y + 1) % 10))


def slow(model, x, y, *, decay, nesterov, scales, kernel):
    """One image after the other, written from the papers' equations."""
    results = []
    for image, label in zip(x, y, strict=True):
        z, momentum = image[None], torch.zeros_like(image[None])
        for _ in range(SHARED["steps"]):
            ahead = z + SHARED["alpha"] * decay * momentum if nesterov else z
            total = torch.zeros_like(z)
            for i in range(scales):
                point = ahead.clone().requires_grad_()
                loss = cross_entropy(model(point / 2**i), label[None])
                total += torch.autograd.grad(loss, point)[0] / scales
            total = conv2d(total, kernel[None, None], padding=len(kernel) // 2)
            momentum = decay * momentum + total / total.abs().mean()
            z = z + SHARED["alpha"] * momentum.sign()
            z = z.clamp(image - SHARED["eps"], image + SHARED["eps"]).clamp(0, 1)
        results.append(z)
    return torch.cat(results)


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 1.0, "nesterov": False, "scales": 1, "kernel_size": 1},
        {"decay": 0.7, "nesterov": True, "scales": 1, "kernel_size": 1},
        {"decay": 0.0, "nesterov": False, "scales": 3, "kernel_size": 1},
        {"decay": 0.0, "nesterov": False, "scales": 1, "kernel_size": 5},
        {"decay": 1.0, "nesterov": True, "scales": 2, "kernel_size": 3},
    ],
)
def test_against_a_slow_loop(options, cnn, batch):
    model, x, y = cnn.double(), batch[0][:4].double(), batch[1][:4]
    try:
        got = TransferAttack(model, **SHARED, **options)(x, y)
        given = dict(options)
        size = given.pop("kernel_size")
        line = torch.ones(1).double()
        if size > 1:
            line = gaussian_kernel1d(size // 2 / 3, size, dtype=torch.float64)
        expected = slow(model, x, y, kernel=torch.outer(line, line), **given)
    finally:
        model.float()
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_classes_are_the_combination_with_their_options(cnn, batch):
    x, y = batch[0][:6], batch[1][:6]
    for attack, options in [
        (MIFGSM(cnn, **SHARED), {}),
        (NIFGSM(cnn, **SHARED), {"nesterov": True}),
        (SIFGSM(cnn, **SHARED), {"nesterov": True, "scales": 5}),
        (TIFGSM(cnn, **SHARED), {"decay": 0.0, "kernel_size": 15}),
    ]:
        assert torch.equal(attack(x, y), TransferAttack(cnn, **SHARED, **options)(x, y))


def test_diverse_inputs_are_shrunk_and_padded(batch):
    """The model sees an image whose pixels are the given ones, moved, and zeros around them."""
    seen = []

    def model(images):
        seen.append(images.detach().clone())
        return images.flatten(1)[:, :10]

    x = batch[0][:3].clamp(min=0.5)
    DIFGSM(model, eps=1e-9, alpha=1e-12, steps=30, diversity=1.0, resize_rate=0.5)(x, batch[1][:3])
    sides = set()
    for images in seen:
        assert images.shape == x.shape
        inside = images[0, 0] > 0
        rows, columns = inside.any(1), inside.any(0)
        assert bool(inside[rows][:, columns].all()), "one rectangle"
        sides.add((int(rows.sum()), int(columns.sum())))
    assert all(4 <= side[0] == side[1] <= 7 for side in sides)
    assert len(sides) > 2


def test_probability_of_diverse_inputs(batch):
    changed = []
    x = batch[0][:1].clamp(min=0.5)

    def model(images):
        changed.append(bool((images == 0).any()))
        return images.flatten(1)[:, :10]

    DIFGSM(model, eps=1e-9, alpha=1e-12, steps=300, diversity=0.3)(x, batch[1][:1])
    assert 0.2 < sum(changed) / 300 < 0.4


def test_more_steps_raise_the_loss(cnn, batch):
    x, y = batch

    def loss(steps):
        with torch.no_grad():
            adv = MIFGSM(cnn, eps=0.12, alpha=0.02, steps=steps)(x, y)
            return float(cross_entropy(cnn(adv), y))

    assert loss(1) < loss(3) < loss(10)


def test_examples_transfer_to_another_network(cnn, mlp, batch):
    """What the attacks are for: made on one network they fool another, beyond noise as strong."""
    x, y = batch
    noise = (x + 0.25 * torch.randn_like(x).sign()).clamp(0, 1)
    adv = MIFGSM(cnn, eps=0.25, alpha=0.025, steps=10)(x, y)
    with torch.no_grad():
        by_noise, by_attack = (int((mlp(z).argmax(1) != y).sum()) for z in (noise, adv))
    assert by_attack > by_noise + 3
