import math

import pytest
import torch
from cv_segmentation import crf
from cv_segmentation.crf import dense_crf

OPTIONS = {
    "steps": 3, "bilateral_weight": 4.0, "position_scale": 3.0, "colour_scale": 0.3,
    "gaussian_weight": 2.0, "gaussian_scale": 1.5,
}  # fmt: skip

UNSURE = {"bilateral_weight": 2.0, "position_scale": 6.0, "gaussian_weight": 1.0}
"""Weights that leave the pixels of ``noisy`` undecided."""


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noisy(side=24, dtype=torch.float64):
    """A two-colour image, its mask (a disc), and logits that are right in four of five pixels."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.arange(side, dtype=dtype) - side / 2 + 0.3
    mask = (rows[:, None].square() + rows.square() < (side / 3) ** 2).long()
    colours = torch.tensor([[0.2, 0.3, 0.6], [0.7, 0.5, 0.3]], dtype=dtype)
    image = colours[mask].permute(2, 0, 1)
    image = (image + 0.03 * torch.randn(3, side, side, generator=rng, dtype=dtype)).clamp(0, 1)
    wrong = torch.rand(side, side, generator=rng) < 0.2
    said = torch.where(wrong, 1 - mask, mask)
    logits = 2.0 * torch.nn.functional.one_hot(said, 2).permute(2, 0, 1).to(dtype)
    return logits[None], image[None], mask


def loops(z, image, options):
    """The update of the paper, pair by pair and label by label."""
    labels, height, width = z.shape
    places = [(i, j) for i in range(height) for j in range(width)]

    def bilateral(a, b):
        apart = math.dist(a, b) ** 2 / (2 * options["position_scale"] ** 2)
        colour = float((image[:, a[0], a[1]] - image[:, b[0], b[1]]).square().sum())
        return math.exp(-apart - colour / (2 * options["colour_scale"] ** 2))

    def gaussian(a, b):
        return math.exp(-(math.dist(a, b) ** 2) / (2 * options["gaussian_scale"] ** 2))

    q = z.softmax(0)
    weights = [(options["bilateral_weight"], bilateral), (options["gaussian_weight"], gaussian)]
    for _ in range(options["steps"]):
        energy = -z.clone()
        for weight, kernel in weights:
            sums = {a: sum(kernel(a, b) for b in places if b != a) for a in places}
            for a in places:
                for label in range(labels):
                    for b in places:
                        if b == a:
                            continue
                        k = kernel(a, b) / math.sqrt(sums[a] * sums[b])
                        # Potts: every label but the same one costs
                        other = 1.0 - float(q[label, b[0], b[1]])
                        energy[label, a[0], a[1]] += weight * k * other
        q = (-energy).softmax(0)
    return q


def test_mean_field_pair_by_pair():
    logits, image = 2 * draw(2, 3, 3, 4), draw(2, 3, 3, 4).flip(0)
    found = dense_crf(logits, image, **OPTIONS)
    for n in range(2):
        torch.testing.assert_close(found[n], loops(logits[n], image[n], OPTIONS))


def test_blocks_of_the_kernel_do_not_show(monkeypatch):
    logits, image = draw(1, 2, 7, 9), draw(1, 3, 7, 9)
    whole = dense_crf(logits, image, **OPTIONS)
    monkeypatch.setattr(crf, "_ENTRIES", 100)
    torch.testing.assert_close(dense_crf(logits, image, **OPTIONS), whole)


def test_without_neighbours_it_is_the_softmax():
    logits, image = draw(1, 3, 4, 5), draw(1, 3, 4, 5)
    for options in ({"steps": 0}, {"bilateral_weight": 0.0, "gaussian_weight": 0.0}):
        assert torch.equal(dense_crf(logits, image, **options), logits.softmax(1))
    single = dense_crf(logits[..., :1, :1], image[..., :1, :1])
    torch.testing.assert_close(single, logits[..., :1, :1].softmax(1))


def test_labels_have_no_order_and_probabilities_sum_to_one():
    logits, image = draw(1, 4, 5, 6), draw(1, 3, 5, 6)
    found = dense_crf(logits, image)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 5, 6, dtype=torch.float64))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(dense_crf(logits[:, order], image), found[:, order])
    # A constant added to all of a pixel's logits says nothing.
    torch.testing.assert_close(dense_crf(logits + draw(1, 1, 5, 6), image), found)


def test_it_follows_the_image_where_the_labels_are_noisy():
    logits, image, mask = noisy()
    before = (logits.argmax(1)[0] != mask).double().mean()
    after = (dense_crf(logits, image).argmax(1)[0] != mask).double().mean()
    assert float(before) > 0.1
    assert float(after) < 0.01
    # Without colours, corners are lost.
    blurred = dense_crf(logits, image, bilateral_weight=0.0, gaussian_weight=13.0)
    assert float((blurred.argmax(1)[0] != mask).double().mean()) > float(after)


@pytest.mark.parametrize(("stride", "share", "mean"), [(2, 0.08, 0.008), (3, 0.14, 0.016)])
def test_senders_in_blocks_come_close_to_all_pixels(stride, share, mean):
    logits, image, _ = noisy()
    q = logits[0].softmax(0)
    exact, found = (
        crf._normalised(*crf._bilateral(image[0] / 0.05, 6.0, side))(q) for side in (1, stride)
    )
    assert 0.01 < float((found - exact).norm() / exact.norm()) < share
    exact, found = (dense_crf(logits, image, **UNSURE, stride=side) for side in (1, stride))
    assert float(exact.amax(1).mean()) < 0.95  # nothing is hidden by certainty
    apart = (found - exact).abs()
    assert 0.0 < float(apart.mean()) < mean
    assert float(apart.max()) < 0.10


def test_in_a_plain_image_blocks_cost_little():
    # One colour: all that is lost is where inside a block a vote comes from.
    logits, image, _ = noisy()
    plain = torch.full_like(image, 0.5)
    exact = dense_crf(logits, plain, **UNSURE)
    for stride, most in ((2, 0.007), (3, 0.012)):
        found = dense_crf(logits, plain, **UNSURE, stride=stride)
        assert 0.0 < float((found - exact).abs().max()) < most


def test_a_block_sends_the_mean_times_the_count_but_for_oneself():
    # 5 x 7 in blocks of 3: those at the far borders are smaller.
    colours, values = 3 * draw(2, 5, 7), draw(3, 5, 7).flip(1)
    kernel, (rows, columns) = crf._bilateral(colours, 4.0, 3)
    found = kernel(values)
    matrix = kernel(torch.eye(35, dtype=torch.float64).view(35, 5, 7)).flatten(1)  # sender first
    torch.testing.assert_close(rows.flatten(), matrix.sum(0))
    torch.testing.assert_close(columns.flatten(), matrix.sum(1))
    assert not matrix.diagonal().any()
    places = [(i, j) for i in range(5) for j in range(7)]
    blocks = {}
    for i, j in places:
        blocks.setdefault((i // 3, j // 3), []).append((i, j))

    def feature(i, j):
        return torch.tensor([i / 4, j / 4, *colours[:, i, j].tolist()], dtype=torch.float64)

    for i, j in places:
        total = torch.zeros(3, dtype=torch.float64)
        for key, members in blocks.items():
            centre = torch.stack([feature(*m) for m in members]).mean(0)
            k = torch.exp(-0.5 * (feature(i, j) - centre).square().sum())
            total += k * torch.stack([values[:, a, b] for a, b in members]).sum(0)
            if key == (i // 3, j // 3):
                total -= k * values[:, i, j]
        torch.testing.assert_close(found[:, i, j], total)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_one_odd_pixel_does_not_decide_for_all(stride):
    """It has no like, so that its row sum is 0; its block has many."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., 5, 7] = 1.0
    logits = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 16, 16)
    logits[0, :, 5, 7] = torch.tensor([-1.0, 1.0])
    for dtype in (torch.float32, torch.float64):
        found = dense_crf(logits.to(dtype), image.to(dtype), stride=stride)
        assert not found.argmax(1).any()
        alone = dense_crf(logits.to(dtype), image.to(dtype), stride=stride, gaussian_weight=0.0)
        assert int(alone.argmax(1).sum()) == int(alone[0, :, 5, 7].argmax()) == 1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("position", "colour"), [(60.0, 0.05), (3.0, 0.01)])
def test_pixels_without_their_like_are_as_in_double_precision(stride, position, colour):
    """Rounding errors of the self-message must not be divided by their own size."""
    image, logits = draw(1, 3, 16, 16), 3 * draw(1, 3, 16, 16).flip(1)
    options = {"position_scale": position, "colour_scale": colour, "stride": stride}
    exact = dense_crf(logits, image, gaussian_weight=0.0, **options)
    single = dense_crf(logits.float(), image.float(), gaussian_weight=0.0, **options)
    torch.testing.assert_close(single.double(), exact, rtol=0.0, atol=0.02)


def test_single_and_half_precision():
    logits, image, _ = noisy(12)
    exact = dense_crf(logits, image, **UNSURE)
    single = dense_crf(logits.float(), image.float(), **UNSURE)
    torch.testing.assert_close(single, exact.float(), rtol=0.0, atol=1e-4)
    half = dense_crf(logits.half(), image.half(), **UNSURE)
    assert half.dtype == torch.float32
    assert float((half - exact).abs().mean()) < 0.01


def test_no_gradient_and_no_change_of_the_inputs():
    logits, image = draw(1, 2, 4, 5).requires_grad_(), draw(1, 3, 4, 5)
    before = logits.detach().clone(), image.clone()
    assert not dense_crf(logits, image).requires_grad
    assert torch.equal(logits.detach(), before[0])
    assert torch.equal(image, before[1])


def test_what_does_not_fit_is_refused():
    logits, image = draw(1, 2, 4, 5), draw(1, 3, 4, 5)
    with pytest.raises(ValueError, match="dense_crf: image must have shape"):
        dense_crf(logits, image[..., 1:])
    with pytest.raises(TypeError, match="dense_crf: image must be a floating"):
        dense_crf(logits, image.long())
    with pytest.raises(ValueError, match="dense_crf: logits must be finite"):
        dense_crf(logits / 0.0, image)
    for name in ("position_scale", "colour_scale", "gaussian_scale"):
        with pytest.raises(ValueError, match=f"dense_crf: {name}"):
            dense_crf(logits, image, **{name: 0.0})
    for name in ("bilateral_weight", "gaussian_weight", "steps"):
        with pytest.raises(ValueError, match=f"dense_crf: {name}"):
            dense_crf(logits, image, **{name: -1})
    with pytest.raises(ValueError, match="dense_crf: stride"):
        dense_crf(logits, image, stride=0)
