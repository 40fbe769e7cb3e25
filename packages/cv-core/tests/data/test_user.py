import json
import shutil

import numpy as np
import pytest
import torch
from cv_core.data import sources, user
from cv_core.data.root import CorruptData, MissingData
from PIL import Image


def save_picture(path, value, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def folder(tmp_path):
    """Ten red and ten blue pictures; the shade tells them apart."""
    for shade in range(10):
        save_picture(tmp_path / "photos" / "red" / f"{shade}.png", (100 + shade, 0, 0))
        save_picture(tmp_path / "photos" / "blue" / f"{shade}.png", (0, 0, 100 + shade))
    return tmp_path / "photos"


def test_folder(folder):
    data = sources.load(f"folder:{folder}")
    assert data.class_names == ("blue", "red")
    assert data.train_x.shape == (16, 3, 5, 6)
    assert data.train_y.bincount().tolist() == [8, 8]
    assert data.test_y.bincount().tolist() == [2, 2]
    images, labels = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    shades = (images.amax((1, 2, 3)) * 255).round().long()
    assert torch.equal(images[:, 0].amax((1, 2)) > 0, labels == 1)  # pictures keep their labels
    assert sorted(shades.tolist()) == sorted(2 * list(range(100, 110)))
    assert sources.kind_of(f"folder:{folder}") == "ImageClassification"


def test_folder_with_parts(folder, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(folder, tmp_path / "split" / part)
    (tmp_path / "split" / "val" / "red" / "0.png").unlink()
    data = sources.load(f"folder:{tmp_path / 'split'}")
    assert (len(data.train_y), len(data.test_y)) == (20, 19)
    save_picture(tmp_path / "split" / "val" / "green" / "0.png", (0, 9, 0))
    with pytest.raises(CorruptData, match=r"val: its classes differ"):
        sources.load(f"folder:{tmp_path / 'split'}")


def test_folder_of_grey_pictures_has_one_channel(tmp_path):
    for name in ("a", "b"):
        for shade in range(5):
            save_picture(tmp_path / name / f"{shade}.png", 10 * shade, mode="L")
    assert sources.load(f"folder:{tmp_path}").train_x.shape == (8, 1, 5, 6)
    save_picture(tmp_path / "b" / "colour.png", (0, 0, 200))
    assert sources.load(f"folder:{tmp_path}").in_channels == 3


def test_folder_with_different_sizes(folder):
    save_picture(folder / "red" / "large.png", (255, 0, 0), size=(20, 30))
    with pytest.raises(CorruptData, match=r"large\.png.*size=64"):
        sources.load(f"folder:{folder}")
    data = sources.load(f"folder:{folder}?size=8")
    assert data.image_size == (8, 8)
    red = data.train_x[data.train_y == 1]
    assert torch.equal(red[:, 1:], torch.zeros_like(red[:, 1:]))  # constant pictures stay constant
    assert (red[:, 0].flatten(1).std(1) < 1e-6).all()


def test_folder_with_a_broken_picture(folder):
    (folder / "red" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CorruptData, match=r"broken\.png"):
        sources.load(f"folder:{folder}")


def test_folder_without_classes(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(CorruptData, match="at least two; got only"):
        sources.load(f"folder:{tmp_path}")
    (tmp_path / "more").mkdir()
    with pytest.raises(CorruptData, match="holds no picture"):
        sources.load(f"folder:{tmp_path}")


def test_folder_of_pictures_without_classes(folder):
    name = f"folder:{folder / 'red'}"
    save_picture(folder / "red" / "large.png", (255, 0, 0), size=(20, 30))
    (folder / "red" / "notes.txt").write_text("no picture")
    data = sources.load(name)
    assert sources.kind_of(name) == type(data).__name__ == "ImageSet"
    assert data.names == (*map(str, range(10)), "large")
    assert data.images[3].shape == (3, 5, 6)
    assert data.images[10].shape == (3, 30, 20)
    assert float(data.images[3].amax() * 255) == pytest.approx(103)
    with pytest.raises(ValueError, match="size is for pictures in one sub-folder per class"):
        sources.load(f"{name}?size=8")


def test_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(CorruptData, match="expected pictures, or one sub-folder"):
        sources.load(f"folder:{tmp_path}")


def test_changed_files_are_read_again_and_have_another_fingerprint(folder):
    name = f"folder:{folder}"
    before, data = sources.checksum(name), sources.load(name)
    assert sources.load(name) is data
    (folder / "red" / ".hidden").write_text("does not count")
    assert sources.checksum(name) == before
    save_picture(folder / "red" / "10.png", (200, 0, 0))
    assert sources.checksum(name) != before
    assert len(sources.load(name).train_y) + len(sources.load(name).test_y) == 21


def test_fingerprint_is_of_the_content_not_of_the_place(folder, tmp_path):
    before = sources.checksum(f"folder:{folder}")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert sources.checksum(f"folder:{tmp_path / 'elsewhere'}") == before


@pytest.fixture
def npz(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return f"npz:{tmp_path / 'data.npz'}"

    return save


LABELS = np.tile(np.arange(2), 10)


@pytest.mark.parametrize("shape", [(20, 4, 5), (20, 1, 4, 5), (20, 3, 4, 5), (20, 4, 5, 3)])
def test_npz_images(npz, shape):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    data = sources.load(npz(x=x, y=LABELS))
    images = torch.cat([data.train_x, data.test_x])
    channels = {3: 1}.get(len(shape), 3 if 3 in shape else 1)
    assert images.shape == (20, channels, 4, 5)
    assert float(images.double().sum()) == pytest.approx(x.sum() / 255)
    assert data.train_y.bincount().tolist() == [8, 8]
    again = sources.load(npz(x=(x / 255).astype(np.float32), y=LABELS, class_names=["a", "b"]))
    torch.testing.assert_close(again.train_x, data.train_x)
    assert again.class_names == ("a", "b")


def test_npz_images_channels_last_are_moved(npz):
    x = np.zeros((4, 5, 6, 3), dtype=np.uint8)
    x[..., 1] = 255
    data = sources.load(npz(train_x=x, train_y=[0, 1, 0, 1], test_x=x[:2], test_y=[0, 1]))
    assert torch.equal(data.train_x[:, 1], torch.ones(4, 5, 6))
    assert not data.train_x[:, [0, 2]].any()
    assert len(data.test_y) == 2


def test_npz_matrix_and_views(npz):
    X = np.arange(60.0).reshape(20, 3)
    data = sources.load(npz(x=X, y=LABELS))
    assert np.array_equal(data.X, X)
    assert sources.kind_of(npz(x=X)) == "FeatureMatrix"
    assert sources.load(npz(x=X)).y is None
    views = sources.load(npz(view0=X, view1=X[:, :2], y=LABELS))
    assert [view.shape for view in views.views] == [(20, 3), (20, 2)]


def test_npz_graphs(npz):
    X = np.eye(20)
    edges = np.array([[0, 1, 2], [1, 2, 19]])
    graph = sources.load(npz(x=X, y=LABELS, edge_index=edges))
    assert graph.edge_index.tolist() == edges.tolist()
    masks = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert masks.sum(0).tolist() == [1] * 20
    assert masks.sum(1).tolist() == [12, 4, 4]
    hyper = sources.load(npz(x=X, y=LABELS, hyperedge_index=np.array([[0, 5, 19], [0, 0, 40]])))
    assert hyper.num_hyperedges == 41
    assert all(len(train) == len(test) == 10 for train, test in hyper.splits)
    with pytest.raises(CorruptData, match="edge_index names a node"):
        sources.load(npz(x=X, y=LABELS, edge_index=edges + 1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": LABELS}, "expected the keys x and y"),
        ({"x": np.zeros((20, 4, 4), np.uint8)}, "key y is missing"),
        ({"x": np.zeros((20, 4, 4), np.uint8), "y": LABELS[:5]}, "y must hold 20 whole numbers"),
        ({"x": np.full((20, 4, 4), 2.0), "y": LABELS}, r"floating-point numbers in \[0, 1\]"),
        ({"x": np.full((20, 4, 4), np.nan), "y": LABELS}, r"floating-point numbers in \[0, 1\]"),
        ({"x": np.zeros((20, 4, 4, 7), np.uint8), "y": LABELS}, "1 or 3 channels"),
        ({"x": np.zeros((20, 4, 4), np.uint8), "y": LABELS - 1}, "count classes from 0"),
        ({"x": np.full((20, 3), np.inf)}, "must be finite"),
        ({"x": np.array([{}, {}])}, "not a readable npz"),
    ],
)
def test_npz_with_wrong_content(npz, arrays, message):
    name = npz(**arrays)
    with pytest.raises(CorruptData, match=message) as caught:
        sources.load(name)
    assert "data.npz" in str(caught.value)


def test_npz_that_is_none(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"PK but not really")
    with pytest.raises(CorruptData, match=r"data\.npz"):
        sources.load(f"npz:{tmp_path / 'data.npz'}")


@pytest.fixture
def coco(tmp_path):
    """Eight pictures; picture i has i boxes, and one crowd."""
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png"} for i in range(8)],
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
        "annotations": [
            {"id": 100 * i + k, "image_id": 10 + i, "category_id": 7, "bbox": [k, 1, 2, 3]}
            for i in range(8)
            for k in range(i)
        ],
    }
    crowd = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1}
    content["annotations"].append(crowd)
    for i in range(8):
        save_picture(tmp_path / "pictures" / f"{i}.png", (i, 0, 0), size=(20, 10))

    def save(change=lambda _: None):
        change(content)
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        return f"coco:{tmp_path / 'boxes.json'}?images={tmp_path / 'pictures'}"

    return save


def test_coco(coco):
    data = sources.load(coco())
    parts = (data.train, data.val, data.test)
    assert data.class_names == ("three", "seven")  # by number
    assert sum(len(part) for part in parts) == 8
    assert all(len(part) for part in parts)
    for part in parts:
        for image, target in part:
            number = round(float(image.max()) * 255)
            assert image.shape == (3, 10, 20)
            expected = [[k, 1, k + 2, 4] for k in range(number)]
            assert target["boxes"].shape == (number, 4)
            assert target["boxes"].tolist() == expected
            assert target["labels"].tolist() == [1] * number


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "not a COCO annotation"),
        (lambda c: c["annotations"][0].update(image_id=99), "unknown image or category"),
        (lambda c: c["annotations"][0].update(category_id=99), "unknown image or category"),
        (
            lambda c: c["annotations"][0].update(bbox=[0, 0, -1, 2]),
            "100 has an impossible",
        ),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, 2]), "impossible box"),
        (lambda c: c["images"][0].update(file_name="none.png"), r"none\.png does not exist"),
        (lambda c: c["images"][0].update(file_name="../boxes.json"), "lies outside"),
    ],
)
def test_coco_with_wrong_content(coco, change, message):
    with pytest.raises(CorruptData, match=message) as caught:
        sources.load(coco(change))
    assert "boxes.json" in str(caught.value)


def voc_annotation(name, box):
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<annotation><object><name>{name}</name><bndbox>{sides}</bndbox></object></annotation>"


@pytest.fixture
def voc(tmp_path):
    for i in range(10):
        save_picture(tmp_path / "JPEGImages" / f"p{i}.png", (i, 0, 0), size=(20, 10))
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        text = voc_annotation("cat" if i % 2 else "dog", [1, 2, 3 + i, 4])
        (tmp_path / "Annotations" / f"p{i}.xml").write_text(text)
    return tmp_path


def test_voc(voc):
    data = sources.load(f"voc:{voc}")
    assert data.class_names == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [7, 2, 1]
    for part in (data.train, data.val, data.test):
        for image, target in part:
            number = round(float(image.max()) * 255)
            assert target["boxes"].tolist() == [[0, 1, 3 + number, 4]]
            assert target["labels"].tolist() == [1 - number % 2]


def test_voc_with_lists(voc):
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p0\np3\n")
    (lists / "test.txt").write_text("p1\n")
    data = sources.load(f"voc:{voc}")
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 0, 1]
    (lists / "val.txt").write_text("p77\n")
    with pytest.raises(CorruptData, match=r"val\.txt: p77 has no annotation"):
        sources.load(f"voc:{voc}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "not a Pascal VOC annotation"),
        ("<annotation><object><name>cat</name></object></annotation>", "no bndbox/xmin"),
        (voc_annotation("cat", [5, 1, 4, 4]), "inverted"),
        (voc_annotation("cat", [5, 1, "nan", 4]), "not finite"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "must not declare entities"),
    ],
)
def test_voc_with_wrong_content(voc, text, message):
    (voc / "Annotations" / "p4.xml").write_text(text)
    with pytest.raises(CorruptData, match=message) as caught:
        sources.load(f"voc:{voc}")
    assert "p4.xml" in str(caught.value)


def test_names_are_checked(tmp_path):
    with pytest.raises(MissingData, match="there is no folder"):
        sources.resolve(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(MissingData, match="there is no file"):
        sources.resolve(f"npz:{tmp_path}")
    with pytest.raises(ValueError, match="takes size, classes, ignore; got 'sise'"):
        user.parse("folder:x?sise=3")
    with pytest.raises(ValueError, match="needs a path"):
        user.parse("npz:")
    with pytest.raises(ValueError, match="size must be a whole number"):
        user.load(f"folder:{tmp_path}?size=-3")
