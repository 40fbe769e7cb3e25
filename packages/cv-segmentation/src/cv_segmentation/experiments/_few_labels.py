"""Segmentation with few labelled images and many others: data, training steps and judging."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from cv_core.data.kinds import Segmentation
from cv_core.data.scenes.backgrounds import sample_photographs
from cv_core.data.scenes.dataset import SceneDataset, segmentation_batch
from cv_core.data.scenes.spec import SceneSpec
from cv_core.data.sources import load
from cv_core.engine.evaluation import modes_kept
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import fit
from cv_core.engine.task import FunctionTask
from cv_core.experiment.trial import Trial
from cv_core.metrics.segmentation import ConfusionMeter
from cv_core.random import derive_seed
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.experiments._camvid import IGNORED, camvid
from cv_segmentation.overlays import overlay_mask

Step = Callable[[nn.Module, tuple[Tensor, Tensor]], Mapping[str, Tensor]]
"""Computes the loss of what is trained on labelled images and their masks."""

CONFIDENT = 0.97  # CutMix-Seg's threshold


@dataclass(frozen=True)
class Parts:
    """Images with masks, to be cut into labelled and unlabelled ones, and test images."""

    x: Float32[Tensor, "n 3 h w"]
    y: Int64[Tensor, "n h w"]
    test_x: Float32[Tensor, "m 3 h w"]
    test_y: Int64[Tensor, "m h w"]
    classes: int


@dataclass(frozen=True)
class Problem:
    """What one seed has to learn from and is judged on, on the trial's device.

    Args:
        x: Labelled images.
        y: Their masks.
        u: Unlabelled images.
        hidden: Their masks, which only the judge sees.
        test_x: Test images.
        test_y: Their masks.
        classes: Number of classes.
    """

    x: Float32[Tensor, "n 3 h w"]
    y: Int64[Tensor, "n h w"]
    u: Float32[Tensor, "u 3 h w"]
    hidden: Int64[Tensor, "u h w"]
    test_x: Float32[Tensor, "m 3 h w"]
    test_y: Int64[Tensor, "m h w"]
    classes: int

    def judged(self, count: int) -> tuple[Tensor, Tensor]:
        """Return a number of unlabelled images, evenly spaced, with their masks."""
        chosen = torch.linspace(0, len(self.u) - 1, min(count, len(self.u))).long()
        return self.u[chosen], self.hidden[chosen]


def problem_of(trial: Trial) -> Problem:
    """Draw the labelled images; those of a smaller share are among those of a larger one."""
    settings = trial.settings
    parts = parts_of(trial.source, tuple(settings.size), settings.scenes)
    order = torch.randperm(len(parts.x), generator=trial.generator("labelled"))
    cut = max(1, round(len(order) * settings.share))
    mine, others = order[:cut].sort().values, order[cut:].sort().values
    tensors = (parts.x[mine], parts.y[mine], parts.x[others], parts.y[others])
    x, y, u, hidden = (tensor.to(trial.device) for tensor in tensors)
    test_x, test_y = parts.test_x.to(trial.device), parts.test_y.to(trial.device)
    return Problem(x, y, u, hidden, test_x, test_y, parts.classes)


@lru_cache(maxsize=1)
def parts_of(source: str, size: tuple[int, int], scenes: int) -> Parts:
    """Load a segmentation set, or compose scenes of glyphs on photographs; the same for all seeds.

    Args:
        source: A set of segmented images, which is reduced to ``size``, or of glyphs.
        size: Height and width.
        scenes: How many scenes are composed for training, and half as many for the test.
    """
    data = load(source)
    if isinstance(data, Segmentation):
        found = camvid(size, source)
        return Parts(
            found.train_images, found.train_masks, found.test_images, found.test_masks,
            found.num_classes,
        )  # fmt: skip
    spec = SceneSpec(height=size[0], width=size[1], scale=(0.4, 0.7), colours=("white",))
    photographs = sample_photographs()

    def part(name: str, glyphs: Tensor, labels: Tensor, length: int) -> tuple[Tensor, Tensor]:
        made = SceneDataset(
            spec, glyphs.numpy(), labels.numpy(), photographs,
            length=length, seed=derive_seed(0, "few labels", name),
        )  # fmt: skip
        return segmentation_batch([made[index] for index in range(length)])

    train = part("train", data.train_x, data.train_y, scenes)
    test = part("test", data.test_x, data.test_y, scenes // 2)
    return Parts(*train, *test, data.num_classes + 1)  # and the background


def augment(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Mirror, scale by 0.7 to 1.4, move, change brightness and contrast; edges are reflected.

    Args:
        batch: Images ``(B, 3, H, W)`` and, if there are any, masks ``(B, H, W)``.
        generator: Of all draws.
    """
    x, *masks = batch

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(len(x), *shape, generator=generator, device=x.device)
        return low + (high - low) * drawn

    share = uniform(0.7, 1.4)  # of the sides, that is seen
    mirror = uniform(-1.0, 1.0).sign()
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * share, share
    theta[:, :, 2] = uniform(-1.0, 1.0, 2) * (1 - share).abs()[:, None]
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    seen = functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    seen = (seen - 0.5) * uniform(0.8, 1.25, 1, 1, 1) + 0.5 + uniform(-0.1, 0.1, 1, 1, 1)
    moved = (
        functional.grid_sample(
            mask[:, None].to(x.dtype), grid, mode="nearest",
            padding_mode="reflection", align_corners=False,
        )[:, 0].long()
        for mask in masks
    )  # fmt: skip
    return seen.clamp(0.0, 1.0), *moved


def loader(trial: Trial, name: str, *tensors: Tensor, share: float = 1.0) -> TensorLoader:
    """Return augmented batches, or shares of batches; the order is the same for every arm."""
    size = min(round(share * trial.settings.batch), len(tensors[0]))
    seed = trial.generator(name)
    return TensorLoader(
        *tensors, batch_size=size, shuffle=True, drop_last=True, seed=seed, transform=augment
    )


def endless(batches: TensorLoader) -> Iterator[Tensor]:
    """Yield the images of one epoch after the other."""
    while True:
        for (x,) in batches:
            yield x


def train(
    trial: Trial,
    model: nn.Module,
    step: Step,
    batches: TensorLoader,
    steps: int,
    *,
    rate: float,
    curve: str = "",
) -> None:
    """Train with the paper's optimiser and schedule: SGD, rate times (1 - t / T)^0.9.

    Args:
        trial: Where the curve is left.
        model: What is trained.
        step: Computes the loss.
        batches: Labelled images and masks.
        steps: Number of steps T.
        rate: The learning rate of the first step.
        curve: Name of the curve of losses; none by default.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, fused=True
    )
    every = max(1, steps // len(batches) // 8)  # points of the curve: few, to keep reports small

    def record(row: Mapping[str, float]) -> None:
        if curve and row["epoch"] % every == 0:
            trial.curve(curve, row["step"], row["loss"])

    fit(
        FunctionTask(model, step),
        batches,
        optimizer,
        max_steps=steps,
        scheduler=torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9),
        on_epoch=record,
        fabric=trial.fabric,
    )


def cross_entropy(
    logits: Float[Tensor, "b k h w"], target: Int64[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Return the mean over the pixels that count."""
    return functional.cross_entropy(logits, target, ignore_index=IGNORED)


def rectangles(
    count: int, size: tuple[int, int], generator: torch.Generator
) -> Bool[Tensor, "count 1 h w"]:
    """Draw rectangles of half the area, of random shape and place (CutMix-Seg).

    With u uniform in [0, 1] the rectangle covers 2^-u of the height and 2^(u - 1) of the width.
    """
    u = torch.rand(count, generator=generator)
    inside = []
    for side, share in zip(size, (0.5**u, 0.5 ** (1 - u)), strict=True):
        length = (share * side).round()
        start = ((side - length) * torch.rand(count, generator=generator)).round()
        place = torch.arange(side)
        inside.append((place >= start[:, None]) & (place < (start + length)[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def cutmix_loss(
    student: nn.Module,
    told: Float[Tensor, "b k h w"],
    u: Float[Tensor, "b c h w"],
    inside: Bool[Tensor, "b 1 h w"],
) -> Float[Tensor, ""]:
    """Return the consistency of CutMix-Seg: French et al., BMVC 2020.

    The student sees each image with a rectangle of the image before it in the batch, and should say
    what the teacher says of both, mixed alike: the squared difference of the probabilities, summed
    over classes, times the share of pixels of which the teacher is confident.

    Args:
        student: The network that learns.
        told: The teacher's probabilities of the images as they are.
        u: The images.
        inside: Where the rectangles are.
    """
    told = torch.where(inside, told.roll(1, 0), told)
    confident = (told.amax(1) >= CONFIDENT).to(u.dtype).mean()
    said = student(torch.where(inside, u.roll(1, 0), u)).softmax(1)
    return confident * (said - told).square().sum(1).mean()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float = 0.99) -> None:
    """Move the mean teacher's parameters towards the student's."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)


@torch.no_grad()
def scores(model: nn.Module, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k h w"]:
    """Return a network's logits in evaluation mode; its mode is put back."""
    with modes_kept(model):
        model.eval()
        return torch.cat([model(part) for part in images.split(64)])


def miou(
    model: nn.Module, images: Float[Tensor, "n 3 h w"], truth: Int64[Tensor, "n h w"], classes: int
) -> float:
    """Return the mean IoU in per cent: of all images together, over the classes that occur."""
    meter = ConfusionMeter(classes, ignore_index=IGNORED)
    meter.update(scores(model, images).argmax(1), truth)
    return 100 * meter.compute().iou


def side_by_side(
    images: Float[Tensor, "n 3 h w"], masks: Mapping[str, Int64[Tensor, "n h w"]], classes: int
) -> Float[Tensor, "rows columns 3"]:
    """Draw each image in a row with its masks beside it, enlarged twofold."""
    palette = [colorsys.hsv_to_rgb(number / classes, 0.8, 0.95) for number in range(classes)]
    rows = []
    for place, image in enumerate(images.cpu()):
        drawn = [
            overlay_mask(image, mask[place].cpu(), palette, ignore_index=IGNORED)
            for mask in masks.values()
        ]
        whole = [image.permute(1, 2, 0), *(torch.from_numpy(one) for one in drawn)]
        rows.append(torch.cat(whole, dim=1))
    picture = (16 * torch.cat(rows)).round() / 16  # few colours make a small file
    return picture.repeat_interleave(2, 0).repeat_interleave(2, 1)
