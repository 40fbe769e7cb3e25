from __future__ import annotations

import pytest
import torch
from cv_core.engine.loader import TensorLoader
from cv_core.experiment.trial import SkipTrial, Trial, merge_settings
from cv_core.metrics.cost import count_parameters
from cv_segmentation.experiments import residual_correction as experiment
from cv_segmentation.experiments._camvid import IGNORED
from cv_segmentation.experiments._corrections import (
    Concatenation,
    Corrected,
    attention,
    direct,
    matched_base,
)
from cv_segmentation.experiments._few_labels import (
    CONFIDENT,
    augment,
    cutmix_loss,
    follow,
    parts_of,
    problem_of,
    rectangles,
)
from cv_segmentation.experiments.residual_correction import (
    EIGHTH,
    EXPERIMENT,
    FULL,
    LABELS,
    NO_U,
    QUARTER,
    SELF,
    trained_s,
)
from cv_segmentation.methods.residual_correction import small_unet_pair
from torch import Tensor, nn


def trial_of(arm: str, case: str = EIGHTH, seed: int = 0, **changed: object) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    settings.update(changed)
    return Trial(arm=arm, case=case, seed=seed, budget="smoke", source="digits", settings=settings)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- data ---------------------------------------------------------------------------------------


def test_few_labelled_images_are_among_those_of_a_larger_share() -> None:
    few, more = problem_of(trial_of(FULL)), problem_of(trial_of(FULL, QUARTER))
    parts = parts_of("digits", (16, 24), 32)
    assert [len(few.x), len(few.u), len(more.x), len(more.u)] == [4, 28, 8, 24]

    def places(images: Tensor) -> list[int]:
        return [
            next(i for i, other in enumerate(parts.x) if torch.equal(image, other))
            for image in images
        ]

    labelled = places(few.x)
    assert set(labelled) < set(places(more.x))
    assert sorted(labelled + places(few.u)) == list(range(32))
    assert torch.equal(few.y, parts.y[labelled])
    assert torch.equal(few.hidden, parts.y[places(few.u)])
    assert places(problem_of(trial_of(FULL, seed=1)).x) != labelled
    chosen, masks = few.judged(3)
    assert torch.equal(chosen, few.u[[0, 13, 27]])
    assert torch.equal(masks, few.hidden[[0, 13, 27]])


@pytest.mark.parametrize("axis", [1, 2])
def test_masks_move_with_their_images(axis: int) -> None:
    shape = [1, 1, 1]
    shape[axis] = 60
    stripes = (torch.arange(60) // 9 % 2).view(shape).expand(40, 60, 60)
    images = (0.25 + 0.5 * stripes)[:, None].expand(-1, 3, -1, -1).contiguous()
    x, y = augment((images, stripes.clone()), torch.Generator().manual_seed(0))
    # brighter than the middle where the mask says so, apart from pixels that both stripes share
    agree = (x[:, 0] > 0.5) == (y == 1)
    assert agree.float().mean() > 0.98
    assert len({tuple(mask.flatten().tolist()) for mask in y}) > 30
    assert x.min() >= 0
    assert x.max() <= 1
    (alone,) = augment((images,), torch.Generator().manual_seed(0))
    assert torch.equal(alone, x)


def test_masks_keep_their_values_and_may_be_mirrored() -> None:
    masks = torch.tensor([3, IGNORED, 7, 0]).repeat_interleave(10).expand(50, 20, 40)
    _, moved = augment((draws(50, 3, 20, 40), masks.clone()), torch.Generator().manual_seed(0))
    assert set(moved.unique().tolist()) == {0, 3, 7, IGNORED}
    mirrored = (moved[:, 10, 5] == 0).float().mean()
    assert 0.2 < mirrored < 0.8


# --- CutMix-Seg ---------------------------------------------------------------------------------


def test_rectangles_cover_half_and_are_whole() -> None:
    inside = rectangles(200, (36, 48), torch.Generator().manual_seed(0))
    shapes = set()
    for mask in inside[:, 0]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        height, width = len(rows), len(columns)
        assert torch.equal(rows, torch.arange(rows[0], rows[0] + height))
        assert torch.equal(columns, torch.arange(columns[0], columns[0] + width))
        assert mask.sum() == height * width
        assert abs(height * width / (36 * 48) - 0.5) < 0.04  # rounding of the sides
        shapes.add((height, width))
    assert len(shapes) > 15


def test_cutmix_loss_by_loops() -> None:
    student = nn.Conv2d(3, 4, 1).requires_grad_(requires_grad=False)
    u, told = draws(3, 3, 4, 5), (30 * draws(3, 4, 4, 5, seed=1)).softmax(1)
    inside = rectangles(3, (4, 5), torch.Generator().manual_seed(1))
    total, confident = 0.0, 0
    for n in range(3):
        image, target = u[n].clone(), told[n].clone()
        for i in range(4):
            for j in range(5):
                if inside[n, 0, i, j]:
                    image[:, i, j], target[:, i, j] = u[n - 1, :, i, j], told[n - 1, :, i, j]
        said = student(image[None])[0].softmax(0)
        total += float((said - target).square().sum())
        confident += int((target.max(0).values >= CONFIDENT).sum())
    expected = confident / 60 * total / 60
    assert 0 < confident < 60
    assert float(cutmix_loss(student, told, u, inside)) == pytest.approx(expected, rel=1e-5)
    unsure = torch.full_like(told, 0.25)
    assert float(cutmix_loss(student, unsure, u, inside)) == 0.0


def test_teacher_averages_the_students_weights() -> None:
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.99 * teacher.weight.detach() + 0.01 * student.weight.detach()
    follow(teacher, student)
    torch.testing.assert_close(teacher.weight.detach(), expected)


# --- what C is compared with --------------------------------------------------------------------


@pytest.mark.parametrize(("base", "rel"), [(4, 0.1), (8, 0.02), (32, 0.02)])
def test_wide_network_has_the_parameters_of_the_pair(base: int, rel: float) -> None:
    state = torch.get_rng_state()
    wide = matched_base(11, base)
    assert torch.equal(torch.get_rng_state(), state)
    pair = sum(count_parameters(net) for net in small_unet_pair(11, base))
    assert count_parameters(small_unet_pair(11, wide)[0]) == pytest.approx(pair, rel=rel)


def test_half_blind_networks_see_one_input() -> None:
    x, other, s, more = draws(2, 3, 16, 16), draws(2, 3, 16, 16, seed=1), *draws(2, 2, 5, 16, 16)
    for sees, same, changed in (
        ("image", (x, more), (other, s)),
        ("segmentation", (other, s), (x, more)),
        ("both", (x, s), (other, s)),
    ):
        net = attention(5, 2, sees=sees).eval()
        getattr(net, "net", net).head.reset_parameters()
        expected = net(x, s)
        assert torch.equal(net(*same), expected)
        assert not torch.equal(net(*changed), expected)


def test_concatenation_takes_both_and_starts_from_zero() -> None:
    net, x, s = Concatenation(5, 2), draws(2, 3, 16, 16), draws(2, 5, 16, 16, seed=1)
    assert not net(x, s).any()
    net.net.head.reset_parameters()
    net.eval()
    expected = net.net(torch.cat([x, s.softmax(1)], dim=1))
    assert torch.equal(net(x, s), expected)


def test_direct_target_is_the_answer() -> None:
    seg, cor = small_unet_pair(5, 2)
    cor.head.reset_parameters()
    x = draws(2, 3, 16, 16)
    pair = Corrected(seg, cor, direct).eval()
    assert torch.equal(pair(x), cor(x, seg(x)))


# --- arms ---------------------------------------------------------------------------------------


def test_arms_begin_with_one_network_and_do_not_share_it() -> None:
    first, second = trained_s(trial_of(LABELS)), trained_s(trial_of(FULL))
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    next(first.parameters()).data.add_(1)
    again = trained_s(trial_of(SELF))
    assert torch.equal(next(again.parameters()), next(second.parameters()))
    other = trained_s(trial_of(LABELS, QUARTER))
    assert not torch.equal(next(other.parameters()), next(second.parameters()))


def test_without_unlabelled_images_s_is_that_of_the_baseline() -> None:
    """C takes nothing from S and gives nothing to it: S alone is the baseline's, bit for bit."""
    alone = EXPERIMENT.arm(LABELS).run(trial_of(LABELS, joint=4))
    pair = EXPERIMENT.arm(NO_U).run(trial_of(NO_U, joint=4))
    assert pair["mIoU of S"] == alone["mIoU"]
    assert pair["pseudo labels of S"] == alone["pseudo labels"]


def test_ablations_are_left_out_of_the_other_case() -> None:
    with pytest.raises(SkipTrial, match="1/8"):
        EXPERIMENT.arm(NO_U).run(trial_of(NO_U, QUARTER))


def test_arms_make_the_same_steps_of_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[int, float, int]]] = {}

    def counted(trial: Trial, model: nn.Module, step: object, batches: TensorLoader, steps: int, *,
                rate: float, curve: str = "") -> None:  # fmt: skip
        del model, step, curve
        seen.setdefault(trial.arm, []).append((steps, rate, batches.seed))

    monkeypatch.setattr(experiment, "train", counted)
    for arm in EXPERIMENT.arms:
        arm.run(trial_of(arm.name, first=3, correction=5, joint=7))
    seen.pop("")  # the first stage, which the arms share
    assert len(seen) == len(EXPERIMENT.arms)
    joint = {runs[-1] for runs in seen.values()}
    assert len(joint) == 1
    assert {steps for steps, *_ in joint} == {7}
