import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer", reason="the command line is the extra lab")

from cv_core.cli import app
from cv_core.data import sources
from cv_segmentation.inference import sliding_window, test_time_augmentation
from cv_segmentation.model import build_model, load_model, save_model
from cv_segmentation.overlays import overlay_mask
from cv_segmentation.palettes import class_palette
from PIL import Image

SMALL = ["--depth", "2", "--crop", "16", "--batch-size", "4", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The command as the package announces it, whatever was announced when it was installed."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    announced = tomllib.loads(text)["project"]["entry-points"]["cvlab.commands"]
    points = [EntryPoint(name, value, app.COMMANDS) for name, value in announced.items()]
    monkeypatch.setattr(app, "_added", lambda: points)


@pytest.fixture
def photos(tmp_path):
    """Ten pictures of a bright square, whose masks say where it is; some pixels are void."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for number in range(10):
        pixels = rng.integers(0, 100, (18, 22 + number % 2, 3), dtype=np.uint8)
        mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
        top, left = rng.integers(0, 10, 2)
        pixels[top : top + 8, left : left + 8] += 150
        mask[top : top + 8, left : left + 8] = 1
        mask[0] = 255
        Image.fromarray(pixels).save(tmp_path / "photos" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "photos" / "masks" / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def network(tmp_path):
    """A folder with a network that was not trained."""
    model = build_model(classes=3, depth=2)
    notes = {"classes": ["background", "cat", "dog"], "window": 20}
    return save_model(model, tmp_path / "net", notes=notes)


def read(path):
    with Image.open(path) as picture:
        return np.array(picture)


# --------------------------------------------------------------------------------------- training


def test_train(capsys, tmp_path, photos):
    out = tmp_path / "runs" / "a"
    words = ["segment", "train", str(photos), "--classes", "background,square", *SMALL]
    assert app.run_app([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 held-out pictures: mean IoU" in said
    scores = json.loads((out / "metrics.json").read_text())
    assert f"mIoU: {scores['mIoU']:.3f}" in said
    assert f"square: IoU {scores['classes']['square']['IoU']:.3f}" in said

    data = sources.load(f"folder:{photos}?classes=background,square")
    model, right, counted = load_model(out), 0, 0
    for number, (image, mask) in enumerate(data.test, start=1):
        with torch.no_grad():
            prediction = model(image[None]).argmax(1)[0]
        right += int(((prediction == mask) & (mask != 255)).sum())
        counted += int((mask != 255).sum())
        example = read(out / "examples" / f"{number}.png")
        height, width = mask.shape
        assert example.shape == (height, 3 * width, 3)
        palette = class_palette(2)
        parts = [image.permute(1, 2, 0).numpy()] + [
            overlay_mask(image, labels, palette, ignore_index=255) for labels in (mask, prediction)
        ]
        assert np.array_equal(example, np.round(np.concatenate(parts, 1) * 255).astype(np.uint8))
    assert scores["pixel accuracy"] == pytest.approx(right / counted)

    first = (out / "model.safetensors").read_bytes()
    assert app.run_app([*words, "--out", str(out)]) == 0  # it is finished already
    assert (out / "model.safetensors").read_bytes() == first
    assert app.run_app([*words, "--out", str(out), "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "holds another training: its seed is 0 instead of 1" in said
    assert said.count("\n") == 1


def test_a_changed_mask_is_another_training(capsys, tmp_path, photos):
    words = ["segment", "train", f"folder:{photos}", *SMALL, "--out", str(tmp_path / "a")]
    assert app.run_app(words) == 0
    assert "class 1: IoU" in capsys.readouterr().out
    mask = read(photos / "masks" / "0.png")
    mask[5, 5] = 1 - mask[5, 5]
    Image.fromarray(mask).save(photos / "masks" / "0.png")
    assert app.run_app(words) == 2
    assert "its checksum is" in capsys.readouterr().err


def test_results_among_the_data_are_no_part_of_them(capsys, monkeypatch, photos):
    monkeypatch.chdir(photos)
    for _ in range(2):
        assert app.run_app(["segment", "train", ".", *SMALL]) == 0, capsys.readouterr().err


def test_names_of_classes_may_hold_any_sign(tmp_path, photos):
    out = tmp_path / "a"
    words = ["segment", "train", str(photos), "--classes", "a + b & c,100%", *SMALL]
    assert app.run_app([*words, "--out", str(out)]) == 0
    assert list(json.loads((out / "metrics.json").read_text())["classes"]) == ["a + b & c", "100%"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["photos", "--decoder", "unett"], "Did you mean 'unet'"),
        (["photos", "--encoder", "small", "--weights", "imagenet"], "weights must be None"),
        (["photos", "--epochs", "0"], "epochs must be at least 1"),
        (["photos", "--learning-rate", "-1"], "learning_rate must lie in"),
        (["photos", "--device", "gpu"], "--device must be one of"),
        (["photos", "--classes", "one,"], "classes must be names with commas between"),
        (["photos", "--classes", "a"], "0.png: label 1 is no class: there are 1, 0 to 0"),
        (["photos", "--out", "notes.txt"], "notes.txt is no folder"),
        (["photos/images"], "DATA folder:photos/images is no set of pictures with masks. It needs"),
        (["./nowhere"], "there is no folder nowhere"),
        (["digits"], "DATA digits is no set of pictures with masks."),
        (["digitz"], "Did you mean 'digits'"),
        (["digits", "--classes", "a,b"], "--classes names those of a folder"),
        ([], "Missing argument"),
    ],
)
def test_bad_trainings_are_one_line(capsys, tmp_path, monkeypatch, photos, words, wanted):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no folder", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert app.run_app(["segment", "train", *words]) == 2
    said = capsys.readouterr()
    assert wanted in said.err
    assert said.err.count("\n") == 1
    assert not said.out
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("flips", [False, True])
def test_predict(capsys, tmp_path, photos, network, flips):
    out = tmp_path / "masks"
    words = ["segment", "predict", str(network), str(photos / "images"), "--out", str(out)]
    assert app.run_app([*words, "--device", "cpu", *["--flips"] * flips]) == 0
    assert f"10 masks and overlays in {out}" in capsys.readouterr().out
    assert len(list(out.iterdir())) == 20
    model = load_model(network)
    for number in range(10):
        pixels = torch.from_numpy(read(photos / "images" / f"{number}.png"))
        image = pixels.permute(2, 0, 1).float() / 255
        scores = sliding_window(model, image[None], 20)
        if flips:
            scores = test_time_augmentation(lambda x: sliding_window(model, x, 20), image[None])
        labels = scores[0].argmax(0)
        with Image.open(out / f"{number}.png") as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), labels.numpy())
        drawn = overlay_mask(image, labels, class_palette(3))
        assert np.array_equal(
            read(out / f"{number}-overlay.png"), np.round(drawn * 255).astype(np.uint8)
        )


def test_pictures_of_every_kind_are_segmented_upright(tmp_path, network):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.rotate(-90, expand=True).save(tmp_path / "upright.png")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("L").convert("RGB").save(tmp_path / "grey3.png")
    picture.convert("RGBA").save(tmp_path / "clear.png")
    picture.save(tmp_path / "plain.png")
    names = ["turned", "upright", "grey", "grey3", "clear", "plain"]
    files = [str(tmp_path / f"{name}.png") for name in names]
    out = tmp_path / "masks"
    assert app.run_app(["segment", "predict", str(network), *files, "--out", str(out)]) == 0
    masks = [read(out / f"{name}.png") for name in names]
    assert masks[0].shape == (15, 12)
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert np.array_equal(masks[first], masks[second])


def test_a_network_for_grey_pictures(tmp_path, photos):
    folder = save_model(build_model(classes=2, depth=2, in_channels=1), tmp_path / "grey")
    words = ["segment", "predict", str(folder), str(photos / "images" / "0.png")]
    assert app.run_app([*words, "--out", str(tmp_path / "masks")]) == 0
    assert read(tmp_path / "masks" / "0.png").shape == (18, 22)


def test_a_damaged_picture_does_not_stop_the_others(capsys, tmp_path, photos, network):
    (photos / "images" / "3.png").write_bytes(b"no picture")
    out = tmp_path / "masks"
    words = ["segment", "predict", str(network), str(photos / "images"), "--out", str(out)]
    assert app.run_app(words) == 1
    said = capsys.readouterr()
    assert "left out:" in said.err
    assert "3.png: not a readable picture" in said.err
    assert "9 masks and overlays" in said.out
    assert not (out / "3.png").exists()


def test_masks_and_overlays_do_not_overwrite_each_other(capsys, tmp_path, photos, network):
    folder = photos / "images"
    (folder / "1.png").rename(folder / "0-overlay.png")
    words = ["segment", "predict", str(network), str(folder), "--out", str(tmp_path / "masks")]
    assert app.run_app(words) == 2
    assert "would both write 0-overlay.png" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_hidden_files_are_no_pictures(tmp_path, photos, network):
    (photos / "images" / "._0.png").write_bytes(b"of another system")
    words = ["segment", "predict", str(network), str(photos / "images")]
    assert app.run_app([*words, "--out", str(tmp_path / "masks")]) == 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["nowhere", "photos/images"], "nowhere holds no model (config.json)"),
        (["net", "none.png"], "IMAGES none.png: no such file or folder"),
        (["net", "photos"], "IMAGES photos: no picture"),
        (["net", "photos/images", "photos/masks"], "would have one mask 0.png"),
        (["net", "photos/images", "--out", "photos/images"], "0.png would be overwritten"),
        (["net", "photos/images", "--window", "0"], "--window must be at least 1"),
        (["net", "photos/images", "--out", "notes.txt"], "notes.txt is no folder"),
        (["odd", "photos/images"], "MODEL odd takes pictures of 2 channels"),
        (["one", "photos/images"], "MODEL one must have at least two classes"),
        (["net"], "Missing argument"),
    ],
)
def test_bad_predictions_are_one_line(
    capsys, tmp_path, monkeypatch, photos, network, words, wanted
):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no folder", encoding="utf-8")
    save_model(build_model(classes=2, depth=1, in_channels=2), tmp_path / "odd")
    save_model(build_model(classes=1, depth=1), tmp_path / "one")
    assert app.run_app(["segment", "predict", *words]) == 2
    said = capsys.readouterr()
    assert wanted in said.err
    assert said.err.count("\n") == 1
    assert not said.out
    assert not (tmp_path / "masks").exists()


def test_help_teaches(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert app.run_app(["segment", "--help"]) == 0
    said = capsys.readouterr().out
    assert "cvlab segment train photos" in said
    assert "cvlab segment predict runs/segment new.jpg" in said
    assert app.run_app(["segment", "train", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("images/a.jpg, masks/a.png", "timm/NAME", "An interrupted training goes on"):
        assert words in said
