"""Training a segmentation network on a data set, scored on its held-out part, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cv_core.checks import check_integer, check_range, check_shape
from cv_core.data.kinds import Segmentation, SegmentationSample
from cv_core.engine.early_stopping import EarlyStopping
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import fit
from cv_core.engine.schedule import cosine_with_warmup
from cv_core.engine.task import Outputs, Task
from cv_core.files import write_atomically
from cv_core.metrics.segmentation import (
    ConfusionMeter,
    class_scores,
    confusion_matrix,
    mean_scores,
)
from cv_core.random import seeded
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.inference import sliding_window
from cv_segmentation.losses.overlap import DiceLoss
from cv_segmentation.losses.pixelwise import CrossEntropyLoss
from cv_segmentation.model import DecoderName, SegmentationModel, build_model, save_model

CONVENTION = (
    "mean IoU and Dice over the classes that occur in truth or prediction, from one confusion "
    "matrix of all labelled pixels of the held-out images"
)
SETTINGS, CHECKPOINT, METRICS = "training.json", "checkpoint", "metrics.json"
_IGNORED = -100  # what padding is labelled where the data ignore nothing
_THREADS = 4
_SAVE_EVERY = 100  # steps
_WARM_UP = 0.1

Tick = Callable[[], object]


@dataclass(frozen=True)
class TrainingOptions:
    """What a training is, apart from the data.

    Args:
        encoder: As for ``build_encoder``.
        decoder: ``"unet"``, ``"fpn"`` or ``"deeplab"``.
        weights: Pretrained weights of the encoder, or None.
        depth: Halvings of the encoder.
        epochs: Passes over the training part.
        batch_size: Images per step.
        crop: Side of the random crops in pixels; smaller images are taken whole.
        learning_rate: The highest one of AdamW; it rises over the first tenth of the steps and
            falls along half a cosine.
        window: Larger images are predicted in overlapping windows of this side.
        seed: Of weights, order, crops and flips.
    """

    encoder: str = "small"
    decoder: DecoderName = "unet"
    weights: str | None = None
    depth: int = 5
    epochs: int = 30
    batch_size: int = 8
    crop: int = 256
    learning_rate: float = 1e-3
    window: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "crop", "window"):
            check_integer("TrainingOptions", name, getattr(self, name), low=1)
        check_range("TrainingOptions", "learning_rate", self.learning_rate, low=0, low_open=True)


class SegmentationTask(Task):
    """Cross entropy plus Dice loss in training; mean IoU and pixel accuracy in evaluation.

    Args:
        model: Maps images (B, C, H, W) to logits (B, K, H, W).
        classes: The K.
        ignore_index: The label that does not count, or None.
        window: Larger images are evaluated in overlapping windows of this side.
    """

    def __init__(
        self, model: nn.Module, classes: int, *, ignore_index: int | None = None, window: int = 1024
    ) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.ignore_index = ignore_index
        self.window = window
        self.losses = nn.ModuleList(
            loss("multiclass", ignore_index=ignore_index) for loss in (CrossEntropyLoss, DiceLoss)
        )

    def step(self, batch: tuple[Tensor, Tensor]) -> Outputs:
        """Return the batch's loss; 0 where no pixel is labelled."""
        images, masks = batch
        logits = self.model(images)
        return {"loss": torch.stack([loss(logits, masks) for loss in self.losses]).sum()}

    def evaluate_step(self, batch: tuple[Tensor, Tensor]) -> Outputs:
        """Return the confusion matrix and the number of images."""
        images, masks = batch
        said = sliding_window(self.model, images, self.window).argmax(1)
        counts = confusion_matrix(said, masks, self.classes, ignore_index=self.ignore_index)
        return {"confusion": counts.sum(0), "count": len(images)}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Score the joint confusion matrix; see ``CONVENTION``."""
        scores = mean_scores(sums["confusion"].unsqueeze(0))
        return {"mIoU": scores.iou, "accuracy": scores.accuracy}


class RandomCrops:
    """Makes a batch of numbers of samples a batch of images and masks: cropped, some mirrored.

    Args:
        samples: Images (C, H, W) and masks (H, W), of any sizes.
        crop: Side of the crops; in a batch of smaller images, the largest of them. A smaller image
            is padded by its border, and what is padded is not labelled.
        ignored: The label of pixels that do not count.
        tick: Called for every batch.
    """

    def __init__(
        self,
        samples: Sequence[SegmentationSample],
        crop: int,
        *,
        ignored: int,
        tick: Tick | None = None,
    ) -> None:
        check_integer("RandomCrops", "crop", crop, low=1)
        self.samples, self.crop, self.ignored, self.tick = samples, crop, ignored, tick

    def __call__(
        self, batch: tuple[Tensor, ...], generator: torch.Generator
    ) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, "b h w"]]:
        """Draw the crops; a ``Transform`` of ``TensorLoader``."""
        numbers = batch[0].tolist()
        with ThreadPoolExecutor(_THREADS) as pool:  # decoding is most of the work
            found = list(pool.map(self.samples.__getitem__, numbers))
        sizes = torch.tensor([mask.shape for _, mask in found])
        height, width = sizes.amax(0).clamp(max=self.crop).tolist()
        pairs = [self._cropped(*pair, (height, width), generator) for pair in found]
        if self.tick is not None:
            self.tick()
        return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])

    def _cropped(
        self, image: Tensor, mask: Tensor, size: tuple[int, int], generator: torch.Generator
    ) -> SegmentationSample:
        bottom, right = (max(0, side - own) for side, own in zip(size, mask.shape, strict=True))
        if bottom or right:
            image = functional.pad(image[None], (0, right, 0, bottom), mode="replicate")[0]
            mask = functional.pad(mask, (0, right, 0, bottom), value=self.ignored)
        top, left = (
            int(torch.randint(own - side + 1, (), generator=generator))
            for side, own in zip(size, mask.shape, strict=True)
        )
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        image, mask = image[:, rows, columns], mask[rows, columns]
        if torch.rand((), generator=generator) < 0.5:
            return image.flip(-1), mask.flip(-1)
        return image, mask


class Singly:
    """Batches of one whole image each, for images of any sizes.

    Args:
        samples: Images (C, H, W) and masks (H, W).
        tick: Called for every image.
    """

    def __init__(self, samples: Sequence[SegmentationSample], tick: Tick | None = None) -> None:
        self.samples, self.tick = samples, tick

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self.samples)):
            image, mask = self.samples[number]
            if self.tick is not None:
                self.tick()
            yield image[None], mask[None]


def train(
    data: Segmentation,
    options: TrainingOptions,
    folder: Path | str,
    *,
    checksum: str = "",
    device: torch.device | str = "cpu",
    tick: Tick | None = None,
    on_epoch: Callable[[Mapping[str, float]], object] | None = None,
) -> SegmentationModel:
    """Train a network; killed at any moment, the same call goes on where it stood.

    The epoch with the best mean IoU on the validation part is kept, or the last one where there is
    no validation part. The folder then holds the network (``load_model``) and ``metrics.json``.

    Args:
        data: The data set.
        options: What to train, and how.
        folder: Takes checkpoints, the network and its scores; made if needed.
        checksum: Of the data, so that a training does not go on with other data.
        device: Where to train.
        tick: Called for every batch, and every image that is evaluated.
        on_epoch: Called with every epoch's row.

    Returns:
        The network, in evaluation mode.

    Raises:
        ImportError: If the library that has the encoder is not installed.
        ValueError: If an option does not fit, or the folder holds another training.
    """
    ignored = _IGNORED if data.ignore_index is None else data.ignore_index
    channels = len(data.train[0][0])
    folder = Path(folder)
    with seeded(options.seed, "model"):
        model = build_model(
            options.encoder,
            options.decoder,
            classes=data.num_classes,
            weights=options.weights,
            in_channels=channels,
            depth=options.depth,
        ).to(device)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, _settings(data, options, checksum))
    loader = TensorLoader(
        torch.arange(len(data.train)),
        batch_size=options.batch_size,
        shuffle=True,
        seed=options.seed,
        drop_last=len(data.train) >= options.batch_size,
        transform=RandomCrops(data.train, options.crop, ignored=ignored, tick=tick),
    )
    steps = options.epochs * len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    fit(
        SegmentationTask(model, data.num_classes, ignore_index=ignored, window=options.window),
        loader,
        optimizer,
        epochs=options.epochs,
        scheduler=cosine_with_warmup(optimizer, steps, warmup=int(_WARM_UP * steps)),
        validate=Singly(data.val, tick) if len(data.val) else None,
        early_stopping=EarlyStopping("validation mIoU", better="higher") if len(data.val) else None,
        checkpoint=folder / CHECKPOINT,
        checkpoint_every=min(len(loader), _SAVE_EVERY),
        on_epoch=on_epoch,
        seed=options.seed,
    )
    model.eval()
    meter = ConfusionMeter(data.num_classes, ignore_index=ignored)
    for image, mask in Singly(data.test, tick):
        said = sliding_window(model, image.to(device), options.window).argmax(1)
        meter.update(said.cpu(), mask)
    scores = summary(meter.confusion, data.class_names)
    write_atomically(folder / METRICS, json.dumps(scores, indent=1).encode())
    save_model(model, folder, notes={"classes": data.class_names, "window": options.window})
    return model


def summary(confusion: Int[Tensor, "n c c"], names: Sequence[str]) -> dict[str, Any]:
    """Return the scores of a data set with the name of their convention, as JSON can hold them.

    Args:
        confusion: Counts of each image, from ``ConfusionMeter``.
        names: Of the classes.

    Returns:
        ``convention``, ``images``, ``mIoU``, ``mean Dice``, ``pixel accuracy``, and for each of
        ``classes`` its ``IoU`` and ``Dice``: None where it occurs neither in truth nor prediction.

    Raises:
        ValueError: If no pixel was counted.
    """
    check_shape("summary", "confusion", confusion, "n c c", c=len(names))
    if int(confusion.sum()) == 0:
        raise ValueError("summary: confusion must count at least one labelled pixel; got none.")
    means, each = mean_scores(confusion), class_scores(confusion.sum(0))
    occurs = ~each.iou.isnan()
    classes = {
        name: {
            "IoU": float(each.iou[index]) if occurs[index] else None,
            "Dice": float(each.dice[index]) if occurs[index] else None,
        }
        for index, name in enumerate(names)
    }
    return {
        "convention": CONVENTION,
        "images": len(confusion),
        "mIoU": means.iou,
        "mean Dice": means.dice,
        "pixel accuracy": means.accuracy,
        "classes": classes,
    }


def _settings(data: Segmentation, options: TrainingOptions, checksum: str) -> dict[str, Any]:
    facts = {
        "checksum": checksum,
        "classes": list(data.class_names),
        "ignore": data.ignore_index,
    }
    return {**facts, **asdict(options)}


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Take a folder for a training; refuse one that holds another."""
    path = folder / SETTINGS
    if path.is_file():
        try:
            held = json.loads(path.read_bytes())
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise ValueError(f"train: {path} is damaged; delete the folder or choose another.")
        for name, value in settings.items():
            if held.get(name) != value:
                raise ValueError(
                    f"train: {folder} holds another training: its {name} is {held.get(name)!r} "
                    f"instead of {value!r}. Choose another folder, or delete that one."
                )
    write_atomically(path, json.dumps(settings, indent=1).encode())
