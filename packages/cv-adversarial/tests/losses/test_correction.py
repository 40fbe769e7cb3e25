"""Forward correction: known cases, its minimiser, and the common checks of losses."""

import math

import pytest
import torch
from cv_adversarial.losses.correction import ForwardCorrectionLoss, forward_correction_loss
from cv_core.registry import Card, Example, Reference
from cv_core.testing.checks import cases
from torch.nn.functional import cross_entropy

# some labels of class 0 are given as 1, of class 1 as 2; class 2 is never mistaken
NOISE = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 3, generator=generator, dtype=torch.float64)
    return logits, torch.randint(3, (8,), generator=generator)


def test_by_loops():
    logits, target = batch()
    expected = [
        -math.log(sum(float(NOISE[i, label]) * p for i, p in enumerate(row)))
        for row, label in zip(logits.softmax(1).tolist(), target.tolist(), strict=True)
    ]
    got = forward_correction_loss(logits, target, NOISE, reduction="none")
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_without_noise_it_is_cross_entropy_with_its_gradient():
    logits, target = batch()
    logits.requires_grad_()
    ours = ForwardCorrectionLoss(torch.eye(3))(logits, target)
    theirs = cross_entropy(logits, target)
    torch.testing.assert_close(ours, theirs)
    (mine,), (other,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    torch.testing.assert_close(mine, other)


def test_minimiser_of_the_noisy_risk_is_the_clean_posterior():
    """Theorem 2 on one input: the expectation over noisy labels, minimised over the logits."""
    clean = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    noisy = clean @ NOISE
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(3)

    def risk(loss):
        return (noisy * loss(logits.expand(3, 3), labels)).sum()

    def minimise(loss):
        optimiser = torch.optim.LBFGS(
            [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15
        )

        def closure():
            optimiser.zero_grad()
            value = risk(loss)
            value.backward()
            return value

        optimiser.step(closure)
        return logits.detach().softmax(1)[0]

    found = minimise(ForwardCorrectionLoss(NOISE, reduction="none"))
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=0)
    with torch.no_grad():
        logits.zero_()
    uncorrected = minimise(lambda z, y: cross_entropy(z, y, reduction="none"))
    torch.testing.assert_close(uncorrected, noisy, atol=1e-5, rtol=0)


def test_pixels_and_ignored_labels():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (2, 4, 5), generator=generator)
    target[0, 0] = 255
    flat, kept = logits.movedim(1, -1).reshape(-1, 3), target.flatten() != 255
    expected = forward_correction_loss(flat[kept], target.flatten()[kept], NOISE)
    got = ForwardCorrectionLoss(NOISE, ignore_index=255)(logits, target)
    torch.testing.assert_close(got, expected)


def test_impossible_classes_leave_the_loss_finite():
    logits = torch.tensor([[0.0, 900.0, -900.0]], dtype=torch.float64, requires_grad=True)
    loss = ForwardCorrectionLoss(NOISE)(logits, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(900 - math.log(0.7), dtype=torch.float64))
    loss.backward()
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize(
    ("T", "message"),
    [
        (NOISE.T, "rows sum to 1"),
        (2 * NOISE, "rows sum to 1"),
        (NOISE[:2], r"T must have shape \(k, k\)"),
        (NOISE * torch.nan, "T must be finite"),
        (torch.tensor([[1.5, -0.5], [0.0, 1.0]]), "T must hold probabilities"),
        (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "every column of T"),
    ],
)
def test_what_is_no_matrix_of_noise_is_refused(T, message):
    with pytest.raises(ValueError, match=message):
        ForwardCorrectionLoss(T)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="ForwardCorrectionLoss: T must have shape"):
        ForwardCorrectionLoss(NOISE)(torch.zeros(2, 4), torch.tensor([0, 1]))


def _inputs(generator):
    logits = torch.randn(2, 3, 4, generator=generator)
    return logits, torch.randint(3, (2, 4), generator=generator)


CARD = Card(
    slug="forward-correction",
    title="Forward correction",
    reference=Reference(
        title=("Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach"),
        authors="G. Patrini, A. Rozza, A. K. Menon, R. Nock, L. Qu",
        venue="CVPR",
        year=2017,
    ),
    kind="loss",
    objects=(
        "cv_adversarial.losses.correction.ForwardCorrectionLoss",
        "cv_adversarial.losses.correction.forward_correction_loss",
    ),
    examples=lambda: [
        Example(
            build=lambda: ForwardCorrectionLoss(NOISE.float()),
            inputs=_inputs,
            output_shapes=((),),
        )
    ],
    properties=("deterministic", "non-negative", "twice-differentiable"),
)


@pytest.mark.parametrize(
    ("check", "subject"), [pytest.param(*case, id=case[0].name) for case in cases(CARD)]
)
def test_common_checks_of_losses(check, subject):
    check.run(subject)
    assert check.applies_to(CARD)
