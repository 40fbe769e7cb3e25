"""Do pseudo labels of a segmentation and its learned correction teach more than its own do?

Every arm begins with one and the same network S, trained on the labelled images, and then makes as
many further steps of S with the same labelled batches, rates and order. What else could explain a
gain than the correction of a segmentation has its control:

- the unlabelled images, with the network's own pseudo labels (self-training), or with consistency
  under mixing, the usual strong method (CutMix-Seg);
- twice the parameters: one network with as many as S and C have together, with and without
  self-training;
- the second network at test time: S and C without unlabelled images; S alone is judged in all arms;
- any second network's answer: C predicts the labels themselves, or a residual from the image alone
  or from the segmentation alone;
- attention: image and segmentation enter C's encoder side by side;
- logits: C's residual is added to probabilities.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.trial import Settings, Trial
from torch import Tensor, nn

from cv_segmentation.experiments._camvid import IGNORED
from cv_segmentation.experiments._corrections import (
    Concatenation,
    Corrected,
    attention,
    direct,
    matched_base,
)
from cv_segmentation.experiments._few_labels import (
    Problem,
    cross_entropy,
    cutmix_loss,
    endless,
    follow,
    loader,
    miou,
    problem_of,
    rectangles,
    scores,
    side_by_side,
    train,
)
from cv_segmentation.methods.residual_correction import (
    Correct,
    add_logits,
    add_probabilities,
    correction_loss,
    residual_correction_losses,
    small_unet_pair,
)

MakeC = Callable[[int, int], nn.Module]
"""Makes a C from the number of classes and the base width."""

EIGHTH, QUARTER = "1/8 labelled", "1/4 labelled"
LABELS, SELF, CUTMIX, FULL = "labels only", "self-training", "CutMix-Seg", "residual correction"
NO_U, WIDE, WIDE_SELF = "S + C, labels only", "wide, labels only", "wide, self-training"
SUM, DIRECT, JOINED = "sum of probabilities", "direct target", "concatenation"
IMAGE, MASK = "C sees image only", "C sees S only"
PICTURED = (LABELS, SELF, CUTMIX, FULL)


def trained_s(trial: Trial, *, wide: bool = False) -> nn.Module:
    """Return S after its training on labelled images; the arms of a seed share it in a process."""
    items = tuple(sorted((name, value) for name, value in trial.settings.items()))
    return copy.deepcopy(_trained_s(trial.source, trial.seed, trial.device, items, wide=wide))


@lru_cache(maxsize=4)
def _trained_s(
    source: str,
    seed: int,
    device: str,
    items: tuple[tuple[str, Any], ...],
    *,
    wide: bool,
) -> nn.Module:
    trial = Trial("", "", seed, "default", source, Settings(items), device)
    problem = problem_of(trial)
    base = trial.settings.base
    base = matched_base(problem.classes, base) if wide else base
    with trial.seeded("init"):
        seg = small_unet_pair(problem.classes, base)[0].to(device)
    batches = loader(trial, "first batches", problem.x, problem.y)
    settings = trial.settings
    train(trial, seg, labelled_loss, batches, settings.first, rate=settings.rate)
    return seg


def first_case_only(trial: Trial) -> None:
    """Leave an ablation out of the other case."""
    if trial.case != EIGHTH:
        trial.skip(f"ablations are run with {EIGHTH} only, for the sake of time.")


def train_jointly(
    trial: Trial,
    problem: Problem,
    model: nn.Module,
    step: Callable[[nn.Module, tuple[Tensor, Tensor]], dict[str, Tensor]],
) -> None:
    """Make the further steps that all arms make, with the same labelled batches."""
    batches = loader(trial, "labelled", problem.x, problem.y, share=0.5)
    settings, name = trial.settings, "joint training loss"
    train(trial, model, step, batches, settings.joint, rate=settings.joint_rate, curve=name)


def judged(trial: Trial, problem: Problem, seg: nn.Module, answer: nn.Module) -> dict[str, float]:
    """Judge S and what the arm would be used as, on test images and on unlabelled ones."""
    settings, classes = trial.settings, problem.classes
    trial.model_cost(answer, problem.test_x[:1])
    trial.cost(steps=settings.first + settings.joint)
    tests, unseen = (problem.test_x, problem.test_y), problem.judged(settings.judged)
    found = {"mIoU": miou(answer, *tests, classes), "pseudo labels": miou(answer, *unseen, classes)}
    alone = answer is seg
    found["mIoU of S"] = found["mIoU"] if alone else miou(seg, *tests, classes)
    found["pseudo labels of S"] = found["pseudo labels"] if alone else miou(seg, *unseen, classes)
    if trial.seed == 0 and trial.case == EIGHTH and trial.arm in PICTURED:
        few = problem.test_x[:: max(1, len(problem.test_x) // 2)][:2]
        truth = problem.test_y[:: max(1, len(problem.test_y) // 2)][:2]
        masks = {"truth": truth, "S": scores(seg, few).argmax(1)}
        masks["answer"] = scores(answer, few).argmax(1)
        trial.picture("image, truth, S, answer", side_by_side(few, masks, classes))
    return found


def labelled_loss(seg: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the loss of labelled images."""
    x, y = batch
    return {"loss": cross_entropy(seg(x), y)}


def labels_only(trial: Trial, *, wide: bool = False) -> dict[str, float]:
    """Go on with labelled images."""
    problem = problem_of(trial)
    seg = trained_s(trial, wide=wide)
    train_jointly(trial, problem, seg, labelled_loss)
    return judged(trial, problem, seg, seg)


def own_labels(trial: Trial, *, wide: bool = False) -> dict[str, float]:
    """Self-training: the network's own pseudo labels take C's part."""
    if wide:
        first_case_only(trial)
    problem = problem_of(trial)
    seg = trained_s(trial, wide=wide)
    unlabelled = endless(loader(trial, "unlabelled", problem.u, share=0.5))

    def step(seg: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        u = next(unlabelled)
        labels = scores(seg, u).argmax(1)
        return {"loss": labelled_loss(seg, batch)["loss"] + cross_entropy(seg(u), labels)}

    train_jointly(trial, problem, seg, step)
    return judged(trial, problem, seg, seg)


def mixed(trial: Trial) -> dict[str, float]:
    """CutMix-Seg: consistency with an average of the network's own weights, which is judged."""
    problem = problem_of(trial)
    seg = trained_s(trial)
    teacher = copy.deepcopy(seg).train()  # with running statistics of its own, as its authors do
    unlabelled = endless(loader(trial, "unlabelled", problem.u, share=0.5))
    generator = trial.generator("rectangles")

    def step(seg: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        follow(teacher, seg)
        u = next(unlabelled)
        with torch.no_grad():
            told = teacher(u).softmax(1)
        inside = rectangles(len(u), (u.shape[2], u.shape[3]), generator).to(u.device)
        consistency = cutmix_loss(seg, told, u, inside)
        return {"loss": labelled_loss(seg, batch)["loss"] + consistency}

    train_jointly(trial, problem, seg, step)
    follow(teacher, seg)
    return judged(trial, problem, seg, teacher)


def corrected(
    trial: Trial,
    *,
    make: MakeC = attention,
    correct: Correct = add_logits,
    unlabelled: bool = True,
    ablation: bool = False,
) -> dict[str, float]:
    """Train a correction network, then both, with or without unlabelled images."""
    if ablation:
        first_case_only(trial)
    problem, settings = problem_of(trial), trial.settings
    seg = trained_s(trial)
    with trial.seeded("init of C"):
        cor = make(problem.classes, settings.base).to(trial.device)
    pair = Corrected(seg, cor, correct)

    def correct_only(cor: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        fixed = scores(seg, x)
        return {"loss": correction_loss(cor, x, fixed, y, ignore_index=IGNORED, correct=correct)}

    batches = loader(trial, "batches of C", problem.x, problem.y)
    train(trial, cor, correct_only, batches, settings.correction, rate=settings.rate)
    unseen = problem.judged(settings.judged)
    found = {
        "first pseudo labels": miou(pair, *unseen, problem.classes),
        "first pseudo labels of S": miou(seg, *unseen, problem.classes),
    }
    others = endless(loader(trial, "unlabelled", problem.u, share=0.5))

    def step(pair: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        u = next(others) if unlabelled else None
        losses = residual_correction_losses(
            pair.get_submodule("seg"), pair.get_submodule("cor"), *batch, u,
            ignore_index=IGNORED, correct=correct,
        )  # fmt: skip
        return {"loss": losses["total"], **losses}

    train_jointly(trial, problem, pair, step)
    trial.cost(**{"steps of C": settings.correction + settings.joint})
    return found | judged(trial, problem, seg, pair)


_COMMON: dict[str, Any] = {
    "share": 1 / 8,
    "scenes": 400,
    "base": 8,
    "batch": 8,
    "rate": 0.1,
    "joint_rate": 0.01,
}

EXPERIMENT = Experiment(
    slug="residual-correction",
    question=(
        "Do pseudo labels of a segmentation and its learned correction teach more than its own?"
    ),
    data={"smoke": "digits", "default": "digits", "full": "camvid"},
    arms=(
        Arm(LABELS, labels_only, "baseline", "S, without unlabelled images."),
        Arm(SELF, own_labels, "baseline", "S learns from its own pseudo labels: C is zero."),
        Arm(CUTMIX, mixed, "baseline", "French et al., BMVC 2020; the mean teacher answers."),
        Arm(FULL, corrected, "paper", "Pseudo labels of S + C, which answers too."),
        Arm(
            NO_U, partial(corrected, unlabelled=False, ablation=True), "control",
            "S and C on labelled images: the second network without new pseudo labels.",
        ),
        Arm(
            WIDE, partial(labels_only, wide=True), "control",
            "One network with the parameters of S and C.",
        ),
        Arm(WIDE_SELF, partial(own_labels, wide=True), "control", "The same, self-trained."),
        Arm(
            SUM, partial(corrected, correct=add_probabilities, ablation=True), "control",
            "C adds to probabilities, not to logits.",
        ),
        Arm(
            DIRECT, partial(corrected, correct=direct, ablation=True), "control",
            "C predicts the labels; nothing is added.",
        ),
        Arm(
            JOINED, partial(corrected, make=Concatenation, ablation=True), "control",
            "Image and probabilities are concatenated at C's input, without attention.",
        ),
        Arm(
            IMAGE, partial(corrected, make=partial(attention, sees="image"), ablation=True),
            "control", "C is given the same segmentation for every image.",
        ),
        Arm(
            MASK, partial(corrected, make=partial(attention, sees="segmentation"), ablation=True),
            "control", "C is given a grey image.",
        ),
    ),
    cases=(Case(EIGHTH), Case(QUARTER, {"share": 1 / 4})),
    metrics=(
        Metric(
            "mIoU", "%",
            note="Test images; all in one confusion matrix, mean over the classes that occur. Of "
            "S + C where there is a C, and of the mean teacher in CutMix-Seg.",
        ),
        Metric("mIoU of S", "%", note="The same of S alone, the student in CutMix-Seg."),
        Metric(
            "pseudo labels", "%", note="mIoU on unlabelled images after the last step, as mIoU."
        ),
        Metric("pseudo labels of S", "%", note="The same of S alone."),
        Metric(
            "first pseudo labels", "%",
            note="mIoU of S + C on unlabelled images before they are first used.",
        ),
        Metric("first pseudo labels of S", "%", note="The same of S alone."),
    ),
    claims=(
        Claim(
            arm=FULL, above=LABELS, metric="mIoU", cases=(EIGHTH,), paper=(71.76, 65.69),
            source="VOC, 1/8; Cityscapes: 67.40 and 62.88",
        ),
        Claim(
            arm=FULL, above=LABELS, metric="mIoU", cases=(QUARTER,), paper=(74.48, 69.54),
            source="VOC, 1/4; Cityscapes: 71.92 and 67.38",
        ),
        Claim(
            arm=FULL, above=SELF, metric="mIoU", source="Implied: better than its own labels.",
        ),
        Claim(
            arm=FULL, above=SELF, metric="mIoU of S",
            source="Implied: it is the pseudo labels, not only the second network at test time.",
        ),
        Claim(
            arm=FULL, above=FULL, metric="first pseudo labels",
            other_metric="first pseudo labels of S",
            source="The method's premise: the correction makes better pseudo labels.",
        ),
        Claim(
            arm=FULL, above=FULL, metric="pseudo labels", other_metric="pseudo labels of S",
            source="The same after the last step.",
        ),
        Claim(
            arm=FULL, above=CUTMIX, metric="mIoU",
            source="Implied by its comparison with other methods, ECS and CCT among them.",
        ),
        Claim(
            arm=NO_U, above=LABELS, metric="mIoU", cases=(EIGHTH,), paper=(72.81, 68.99),
            source="Ablation, VOC with 1464 labelled images",
        ),
        Claim(
            arm=NO_U, above=WIDE, metric="mIoU", cases=(EIGHTH,),
            source="Implied: the step is due to correction, not to twice the parameters.",
        ),
        Claim(
            arm=FULL, above=WIDE, metric="mIoU",
            source="Implied: the same of the whole method.",
        ),
        Claim(
            arm=FULL, above=WIDE_SELF, metric="mIoU", cases=(EIGHTH,),
            source="Implied: the same where both learn from pseudo labels.",
        ),
        Claim(
            arm=FULL, above=NO_U, metric="mIoU", cases=(EIGHTH,), paper=(75.13, 72.81),
            source="Ablation, VOC with 1464 labelled images",
        ),
        Claim(
            arm=FULL, above=JOINED, metric="mIoU", cases=(EIGHTH,), paper=(75.13, 73.04),
            source="Ablation, VOC with 1464 labelled images",
        ),
        Claim(
            arm=FULL, above=DIRECT, metric="mIoU", cases=(EIGHTH,),
            source="Text: a direct target brings no significant improvement.",
        ),
        Claim(
            arm=FULL, above=SUM, metric="mIoU", cases=(EIGHTH,),
            source="Not said what is added; the cross entropy of Eq. 2 asks for logits.",
        ),
        *(
            Claim(
                arm=FULL, above=control, metric="mIoU", cases=(EIGHTH,),
                source="Implied: the relation of image and segmentation tells what is wrong.",
            )
            for control in (IMAGE, MASK)
        ),
    ),
    settings={
        "smoke": {
            **_COMMON, "size": (16, 24), "scenes": 32, "base": 2, "batch": 2, "first": 2,
            "correction": 2, "joint": 2, "judged": 8,
        },
        "default": {
            **_COMMON, "size": (36, 48), "first": 250, "correction": 50, "joint": 80, "judged": 120,
        },
        "full": {
            **_COMMON, "size": (180, 240), "base": 32, "first": 4000, "correction": 4000,
            "joint": 8000, "judged": 400,
        },
    },
    evidence=Evidence(data="camvid"),
    selection=(
        "The weight of the unlabelled images is 1 and the schedule (1 - t / T)^0.9, as in the "
        "paper; that half of a batch is unlabelled, momentum 0.9 and weight decay 1e-4 are usual. "
        "The rates are the best for the baseline without unlabelled images, on CamVid's validation "
        "images and seed 100: 0.1 of 0.03, 0.1 and 0.3 at first, 0.01 of 0.01, 0.03 and 0.1 for "
        "the joint steps. CutMix-Seg has its authors' numbers: threshold 0.97, weight 1, average "
        "0.99. Sizes and numbers of steps are what the time allows. A first trial of four arms on "
        "that seed was scored on the test images; it led to the search for rates, and to running "
        "statistics of its own for CutMix-Seg's teacher."
    ),
    notes=(
        (
            "By default CamVid's frames are reduced to 36 x 48 pixels and small networks make 330 "
            "steps from random weights; the paper's are pretrained, see 9118 unlabelled images of "
            "VOC and make 45,000 steps."
        ),
        (
            "Labelled images are drawn at random from all training frames of a few drives, so that "
            "unlabelled frames resemble labelled ones."
        ),
        (
            "All arms make the same number of steps of S; C makes its own besides. The arms of a "
            "seed share the first stage within a process: its time counts in one of them only."
        ),
        (
            "By default C is trained for a fifth of the steps of S, in the paper and in the full "
            "budget for as many. A C that must learn the classes themselves (direct target) has "
            "too few of them, while one that corrects starts from S: that claim is no fair test "
            "by default."
        ),
        (
            "Concatenation has 20 % fewer parameters in C, which lacks the ancillary encoders. "
            "CutMix-Seg's threshold of 0.97 leaves few pixels so early in training: it is hardly "
            "more than labels only here."
        ),
    ),
)  # fmt: skip
