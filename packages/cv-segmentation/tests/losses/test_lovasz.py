import pytest
import torch
from cv_segmentation.losses.lovasz import lovasz_loss


def algorithm_one(truth):
    """The gradient of the Lovasz extension by Algorithm 1 of the paper, on a sorted list."""
    positives = sum(truth)
    gradient, before = [], 0.0
    for i in range(len(truth)):
        intersection = positives - sum(truth[: i + 1])
        union = positives + sum(1 - real for real in truth[: i + 1])
        jaccard = 1.0 - intersection / union
        gradient.append(jaccard - before)
        before = jaccard
    return gradient


def by_set_function(errors, truth):
    """The Lovasz extension from its definition: sum of errors times growth of the set function."""
    order = sorted(range(len(errors)), key=lambda i: -float(errors[i].detach()))
    slopes = algorithm_one([int(truth[i]) for i in order])
    return sum(errors[i] * slope for i, slope in zip(order, slopes, strict=True))


def draw(channels, high, shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, channels, *shape, generator=rng, dtype=torch.float64)
    return logits, torch.randint(0, high, (2, *shape), generator=rng)


def reference(logits, target, mode, per_image, ignored):
    """Class by class, pixel by pixel; the mean over the classes that are present."""
    values = []
    groups = [[0], [1]] if per_image else [[0, 1]]
    for images in groups:
        for c in range(logits.shape[1]):
            errors, truth = [], []
            for n in images:
                z = logits[n].flatten(1)
                plane = target[n, c] if target.ndim == logits.ndim else target[n]
                for i, label in enumerate(plane.flatten().tolist()):
                    if label == ignored:
                        continue
                    real = label == (c if mode == "multiclass" else 1)
                    if mode == "multiclass":
                        p = z[:, i].softmax(0)[c]
                        errors.append(1 - p if real else p)
                    else:
                        errors.append((1 - z[c, i] if real else 1 + z[c, i]).relu())
                    truth.append(real)
            if any(truth):
                values.append(by_set_function(errors, truth))
    return torch.stack(values).mean()


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_value_and_gradient_are_algorithm_ones(mode, shape, per_image):
    channels = 1 if mode == "binary" else 3
    logits, target = draw(channels, 3 if mode == "multiclass" else 2, shape)
    if mode == "multilabel":
        target = torch.stack([target, 1 - target, target.flip(0)], 1)
    target.view(-1)[::7] = 255
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = lovasz_loss(mine, target, mode, per_image=per_image, ignore_index=255)
    expected = reference(theirs, target, mode, per_image, 255)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_at_certain_predictions_it_is_the_loss_of_iou():
    rng = torch.Generator().manual_seed(3)
    target = torch.randint(0, 3, (2, 6, 6), generator=rng)
    said = torch.randint(0, 3, (2, 6, 6), generator=rng)
    logits = 1e3 * torch.nn.functional.one_hot(said, 3).movedim(-1, 1).double()
    found = lovasz_loss(logits, target, "multiclass", reduction="none")
    for c in range(3):
        both = int(((said == c) & (target == c)).sum())
        either = int(((said == c) | (target == c)).sum())
        assert float(found[c]) == pytest.approx(1 - both / either)


def test_it_is_convex_in_the_errors_and_right_is_zero():
    logits, target = draw(1, 2, (5, 5))
    other = logits.flip(2) * 2.0
    ends = [lovasz_loss(z, target, "binary") for z in (logits, other)]
    middle = lovasz_loss((logits + other) / 2, target, "binary")
    assert float(middle) <= float(ends[0] + ends[1]) / 2 + 1e-12
    sure = 20.0 * (2.0 * target.double() - 1.0).unsqueeze(1)
    assert float(lovasz_loss(sure, target, "binary")) == 0.0


def test_equal_errors_share_one_value_in_any_order():
    target = torch.tensor([[[1, 0, 1, 0, 0, 1]]])
    value = lovasz_loss(torch.zeros(1, 1, 1, 6), target, "binary")
    for turn in range(1, 6):
        found = lovasz_loss(torch.zeros(1, 1, 1, 6), target.roll(turn, 2), "binary")
        torch.testing.assert_close(found, value)


def test_single_precision_keeps_small_slopes():
    # Two true pixels in 300 x 300: neighbours in Algorithm 1 differ in their last digits only. The
    # logits are different multiples of a power of two, so that both types sort them alike.
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randperm(90000, generator=rng) - 45000).view(1, 1, 300, 300) / 2.0**14
    target = torch.zeros(1, 300, 300, dtype=torch.int64)
    target[0, 7, 9] = target[0, 70, 90] = 1
    grads = []
    for dtype in (torch.float32, torch.float64):
        z = logits.to(dtype).detach().clone().requires_grad_()
        lovasz_loss(z, target, "binary").backward()
        grads.append(z.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-12)
