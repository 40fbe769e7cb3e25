"""Symmetric cross entropy: its limits, a slow reference, and the common checks of losses."""

import math

import pytest
import torch
from cv_adversarial.losses.symmetric import SCELoss, sce_loss
from cv_core.losses.classification import mae_loss
from cv_core.registry import Card, Example, Reference
from cv_core.testing.checks import cases
from torch.nn.functional import cross_entropy


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(5, (7,), generator=generator)


def test_both_terms_by_loops():
    """The reverse term as the paper writes it: the one-hot label's logarithms, A for ln 0."""
    logits, target = batch()
    expected = []
    for row, label in zip(logits.softmax(1).tolist(), target.tolist(), strict=True):
        reverse = -sum(p * (0.0 if k == label else -6.0) for k, p in enumerate(row))
        expected.append(-0.3 * math.log(row[label]) + 0.8 * reverse)
    got = sce_loss(logits, target, alpha=0.3, beta=0.8, A=-6.0, reduction="none")
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_without_the_reverse_term_it_is_cross_entropy():
    logits, target = batch()
    torch.testing.assert_close(
        SCELoss(alpha=1.0, beta=0.0)(logits, target), cross_entropy(logits, target)
    )


@pytest.mark.parametrize("A", [-4.0, math.log(1e-4)])
def test_without_cross_entropy_it_is_a_multiple_of_the_absolute_error(A):
    logits, target = batch()
    expected = -A / 2 * mae_loss(logits, target)
    torch.testing.assert_close(SCELoss(alpha=0.0, beta=1.0, A=A)(logits, target), expected)


def test_reverse_term_is_symmetric():
    """Its sum over all labels is constant, which is what makes it robust to uniform noise."""
    logits, _ = batch()
    labels = torch.arange(5).expand(7, 5).T
    total = sum(sce_loss(logits, y, alpha=0.0, reduction="none") for y in labels)
    torch.testing.assert_close(total, torch.full((7,), 4.0 * 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "SCELoss: alpha must lie in"),
        ({"beta": float("nan")}, "SCELoss: beta must lie in"),
        ({"A": 0.0}, "SCELoss: A must lie in"),
        ({"reduction": "average"}, "SCELoss: reduction must be one of"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SCELoss(**options)


def _inputs(generator):
    logits = torch.randn(2, 3, 4, generator=generator)
    return logits, torch.randint(3, (2, 4), generator=generator)


CARD = Card(
    slug="sce",
    title="Symmetric cross entropy",
    reference=Reference(
        title="Symmetric Cross Entropy for Robust Learning with Noisy Labels",
        authors="Y. Wang, X. Ma, Z. Chen, Y. Luo, J. Yi, J. Bailey",
        venue="ICCV",
        year=2019,
    ),
    kind="loss",
    objects=(
        "cv_adversarial.losses.symmetric.SCELoss",
        "cv_adversarial.losses.symmetric.sce_loss",
    ),
    examples=lambda: [Example(build=SCELoss, inputs=_inputs, output_shapes=((),))],
    properties=("deterministic", "non-negative", "parameter-free", "twice-differentiable"),
)


@pytest.mark.parametrize(
    ("check", "subject"), [pytest.param(*case, id=case[0].name) for case in cases(CARD)]
)
def test_common_checks_of_losses(check, subject):
    check.run(subject)
    assert check.applies_to(CARD)
