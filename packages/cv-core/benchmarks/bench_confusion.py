"""Mean IoU of 16 label maps of 512 x 512 with 21 classes, beside torchmetrics and smp."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

import torch
from cv_core.metrics.segmentation import class_scores, confusion_matrix, mean_scores
from cv_core.random import torch_generator
from cv_core.testing.race import Peer, race, write
from torch.nn import functional

CLASSES = 21


def label_maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of 16 pixels, of which a fifth of the pixels is predicted wrongly."""
    generator = torch_generator(0, "label maps")
    coarse = torch.randint(0, CLASSES, (16, 1, 32, 32), generator=generator)
    target = functional.interpolate(coarse.float(), size=(512, 512))[:, 0].long()
    noise = torch.randint(0, CLASSES, target.shape, generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < 0.2
    return torch.where(wrong, noise, target), target


def main() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex
    from torchmetrics.segmentation import MeanIoU

    prediction, target = label_maps()

    def ours() -> float:
        return mean_scores(confusion_matrix(prediction, target, CLASSES)).iou

    def by_image() -> float:
        confusion = confusion_matrix(prediction, target, CLASSES)
        return mean_scores(confusion, average="image").iou

    def mean_iou() -> torch.Tensor:
        metric = MeanIoU(num_classes=CLASSES, input_format="index")
        metric.update(prediction, target)
        return metric.compute()

    def jaccard() -> torch.Tensor:
        metric = MulticlassJaccardIndex(CLASSES, validate_args=False)
        metric.update(prediction, target)
        return metric.compute()

    torch.testing.assert_close(torch.tensor(ours()), jaccard(), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(by_image()), mean_iou(), rtol=1e-5, atol=0)
    peers = {
        "torchmetrics MeanIoU": Peer(mean_iou, version("torchmetrics"), bar=15.0),
        "torchmetrics Jaccard": Peer(jaccard, version("torchmetrics"), bar=4.0),
    }
    peers |= smp_peer(prediction, target)
    write(
        race("confusion", "mean IoU", "16 x 512 x 512, 21 classes", ours=ours, peers=peers),
        __file__,
    )


def smp_peer(prediction: torch.Tensor, target: torch.Tensor) -> dict[str, Peer]:
    """The peer segmentation-models-pytorch, where it is installed."""
    try:
        smp = import_module("segmentation_models_pytorch")
    except ImportError:
        print("segmentation-models-pytorch is not installed: left out")
        return {}

    def stats() -> torch.Tensor:
        counts = smp.metrics.get_stats(prediction, target, mode="multiclass", num_classes=CLASSES)
        return smp.metrics.iou_score(*counts, reduction="none")

    torch.testing.assert_close(
        class_scores(confusion_matrix(prediction, target, CLASSES)).iou.float(), stats()
    )
    return {"smp get_stats": Peer(stats, smp.__version__, bar=1.1)}


if __name__ == "__main__":
    main()
