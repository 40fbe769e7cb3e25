import json

import pytest
import torch
from cv_core.data.kinds import Segmentation
from cv_core.data.origin import Origin
from cv_core.engine.loop import evaluate
from cv_segmentation.model import load_model
from cv_segmentation.training import (
    RandomCrops,
    SegmentationTask,
    Singly,
    TrainingOptions,
    summary,
    train,
)
from torch import nn
from torch.nn import functional

NAMES = ("background", "bright")


def sample(number, size=(20, 24), ignored=None):
    """Noise with a bright square, and where it is."""
    rng = torch.Generator().manual_seed(number)
    image, mask = 0.4 * torch.rand(3, *size, generator=rng), torch.zeros(size, dtype=torch.int64)
    top, left = (int(torch.randint(side - 8, (), generator=rng)) for side in size)
    image[:, top : top + 8, left : left + 8] += 0.6
    mask[top : top + 8, left : left + 8] = 1
    if ignored is not None:
        mask[:, :4] = ignored
    return image, mask


def squares(train=8, val=2, test=3, ignored=None, size=(20, 24)):
    parts = iter(range(100))

    def part(count):
        return [sample(next(parts), size, ignored) for _ in range(count)]

    return Segmentation(
        part(train), part(val), part(test), NAMES, ignored, Origin("folder:x", "squares")
    )


OPTIONS = TrainingOptions(epochs=3, batch_size=3, crop=16, depth=2, learning_rate=3e-3)


# -------------------------------------------------------------------------------------- the crops


def numbered(height, width):
    """An image whose pixels tell where they are, and the same as labels."""
    places = torch.arange(height * width).view(height, width)
    return places[None].float(), places


@pytest.mark.parametrize("crop", [5, 9, 40])
def test_crops_are_parts_of_their_images(crop):
    sizes = [(9, 12), (7, 20), (9, 9)]
    samples = [numbered(*size) for size in sizes]
    rng = torch.Generator().manual_seed(0)
    crops = RandomCrops(samples, crop, ignored=-100)
    mirrored = 0
    for _ in range(20):
        images, masks = crops((torch.tensor([2, 0, 1]),), rng)
        height, width = min(crop, 9), min(crop, 20)
        assert images.shape == (3, 1, height, width)
        assert masks.shape == (3, height, width)
        for image, mask, place in zip(images[:, 0], masks, (2, 0, 1), strict=True):
            own = mask != -100
            assert torch.equal(image[own], mask[own].float())  # image and mask stay together
            rows, columns = sizes[place]
            assert int(own.sum()) == min(height, rows) * min(width, columns)
            kept = mask[own].view(min(height, rows), -1)
            step = int(kept[0, 1] - kept[0, 0])
            mirrored += step < 0
            assert (kept.diff(dim=1) == step).all()
            assert (kept.diff(dim=0) == columns).all()
            assert set(image.flatten().long().tolist()) <= set(range(rows * columns))
    assert 12 < mirrored < 48  # 60 coins; 4.6 standard errors


def test_crops_are_drawn_from_the_generator_alone():
    crops = RandomCrops([numbered(30, 30)], 4, ignored=-100)
    first, again, other = (
        crops((torch.tensor([0]),), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_every_corner_is_reached():
    crops = RandomCrops([numbered(3, 4)], 2, ignored=-100)
    rng = torch.Generator().manual_seed(0)
    seen = {int(crops((torch.tensor([0]),), rng)[1].min()) for _ in range(200)}
    assert seen == {0, 1, 2, 4, 5, 6}


# --------------------------------------------------------------------------------------- the task


class Threshold(nn.Module):
    """Class 1 where the first channel is above one half."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        score = self.slope * (x[:, :1] - 0.5)
        return torch.cat([-score, score], dim=1)


def test_the_loss_is_cross_entropy_plus_dice():
    images, masks = (torch.stack(part) for part in zip(*(sample(i) for i in range(3)), strict=True))
    masks[0, :, :5] = 9
    task = SegmentationTask(Threshold(), 2, ignore_index=9)
    logits = task.model(images)
    p, counts = logits.softmax(1), masks != 9
    entropy = functional.cross_entropy(logits, masks, ignore_index=9)
    dice = []
    for index in (0, 1):
        y, q = (masks == index)[counts].float(), p[:, index][counts]
        dice.append(1 - 2 * (y * q).sum() / (y.sum() + q.sum()))
    torch.testing.assert_close(task.step((images, masks))["loss"], entropy + sum(dice) / 2)


def test_evaluation_joins_all_images():
    """One matrix for all: not the mean of what each image has."""
    pairs = [sample(0), sample(1, (30, 17))]
    pairs[1][1][:] = 0  # false alarms only
    task = SegmentationTask(Threshold(), 2, window=10)
    found = evaluate(task, Singly(pairs))
    said = [(image[0] > 0.5).long() for image, _ in pairs]
    counts = torch.zeros(2, 2)
    for prediction, (_, mask) in zip(said, pairs, strict=True):
        for real, guess in zip(mask.flatten(), prediction.flatten(), strict=True):
            counts[real, guess] += 1
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    assert found["mIoU"] == pytest.approx(float(iou.mean()))
    assert found["accuracy"] == pytest.approx(float(counts.trace() / counts.sum()))


# ----------------------------------------------------------------------------------- the training


def test_it_learns_and_keeps_what_it_learned(tmp_path):
    data = squares(train=12, ignored=7)
    ticks, rows = [], []
    options = TrainingOptions(epochs=12, batch_size=4, crop=16, depth=2, learning_rate=1e-2)
    state = torch.get_rng_state()
    model = train(
        data, options, tmp_path / "run", tick=lambda: ticks.append(1), on_epoch=rows.append
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert len(rows) == 12
    assert len(ticks) == 12 * (3 + 2) + 3
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores["mIoU"] > 0.8
    assert scores["images"] == 3
    assert "from one confusion matrix" in scores["convention"]
    assert list(scores["classes"]) == list(NAMES)
    again = load_model(tmp_path / "run")
    with torch.no_grad():
        image = data.test[0][0][None]
        assert torch.equal(again(image), model(image))
    best = max(row["validation mIoU"] for row in rows)  # of the epoch that is kept
    task = SegmentationTask(model, 2, ignore_index=7)
    assert evaluate(task, Singly(data.val))["mIoU"] == pytest.approx(best)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("batches", [2, 7, 13])
def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path, batches):
    data = squares()
    whole = train(data, OPTIONS, tmp_path / "whole", checksum="a")
    left = [batches]

    def tick():
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    with pytest.raises(Killed):
        train(data, OPTIONS, tmp_path / "cut", checksum="a", tick=tick)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    again = train(data, OPTIONS, tmp_path / "cut", checksum="a")
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for name in ("metrics.json", "model.safetensors", "config.json"):
        first, second = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert first == second


def test_another_training_is_not_continued(tmp_path):
    train(squares(), OPTIONS, tmp_path, checksum="a")
    before = (tmp_path / "model.safetensors").read_bytes()
    other = TrainingOptions(**{**vars(OPTIONS), "epochs": 4})
    with pytest.raises(ValueError, match="its epochs is 3 instead of 4"):
        train(squares(), other, tmp_path, checksum="a")
    with pytest.raises(ValueError, match="its checksum is 'a' instead of 'b'"):
        train(squares(), OPTIONS, tmp_path, checksum="b")
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(ValueError, match=r"training\.json is damaged"):
        train(squares(), OPTIONS, tmp_path, checksum="a")
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_without_a_validation_part_the_last_epoch_is_kept(tmp_path):
    rows = []
    model = train(squares(val=0), OPTIONS, tmp_path, on_epoch=rows.append)
    assert all("validation mIoU" not in row for row in rows)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_images_that_are_ignored_whole_are_no_trouble(tmp_path):
    data = squares(train=6, ignored=7)
    for place in (0, 1, 2):
        data.train[place][1][:] = 7
    data.test[0][1][:] = 7
    data.val[0][1][:] = 7
    rows = []
    options = TrainingOptions(**{**vars(OPTIONS), "batch_size": 1})
    train(data, options, tmp_path, on_epoch=rows.append)
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 3


def test_grey_images(tmp_path):
    data = squares()
    grey = Segmentation(
        *(
            [(image[:1], mask) for image, mask in part]
            for part in (data.train, data.val, data.test)
        ),
        NAMES,
        None,
        data.origin,
    )
    assert train(grey, OPTIONS, tmp_path).in_channels == 1


def test_a_summary_says_which_classes_do_not_occur():
    confusion = torch.zeros(2, 3, 3, dtype=torch.int64)
    confusion[0, 0, 0], confusion[0, 0, 1], confusion[1, 1, 1] = 3, 1, 4
    found = summary(confusion, ("a", "b", "c"))
    assert found["classes"]["c"] == {"IoU": None, "Dice": None}
    assert found["classes"]["a"]["IoU"] == pytest.approx(3 / 4)
    assert found["classes"]["b"]["IoU"] == pytest.approx(4 / 5)
    assert found["mIoU"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert found["pixel accuracy"] == pytest.approx(7 / 8)
    assert "NaN" not in json.dumps(found)
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        summary(torch.zeros(2, 3, 3, dtype=torch.int64), ("a", "b", "c"))


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        TrainingOptions(epochs=0)
    with pytest.raises(ValueError, match="learning_rate must lie in"):
        TrainingOptions(learning_rate=0.0)
    with pytest.raises(ValueError, match="Did you mean 'unet'"):
        train(squares(), TrainingOptions(decoder="unett"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
