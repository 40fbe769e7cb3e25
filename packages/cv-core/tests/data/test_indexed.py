import numpy as np
import pytest
import torch
from cv_core.data.indexed import IndexedImageDataset
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 5, 7, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "images" / "grey.png")
    rows = ["path,kind,person", "2.png,cat,p1", "0.png,dog,p2", "grey.png,cat,p2"]
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path, pixels


def test_images_and_labels_are_those_of_the_file(folder):
    root, pixels = folder
    data = IndexedImageDataset(root / "index.csv", root / "images", ["kind", "person"])
    assert len(data) == 3
    image, labels = data[0]
    np.testing.assert_array_equal((image * 255).round().numpy(), pixels[2].transpose(2, 0, 1))
    assert labels == {"kind": 0, "person": 0}
    assert data[1][1] == {"kind": 1, "person": 1}
    grey, _ = data[2]
    assert torch.equal(grey[0], grey[2])
    assert data.classes == {"kind": ["cat", "dog"], "person": ["p1", "p2"]}
    assert data.labels("kind").tolist() == [0, 1, 0]


def test_transform_sees_the_unit_interval(folder):
    root, _ = folder
    data = IndexedImageDataset(root / "index.csv", root / "images", ["kind"], lambda x: x.amax())
    assert 0.5 < float(data[0][0]) <= 1.0


def test_refusals(folder):
    root, _ = folder
    with pytest.raises(ValueError, match=r"must have the columns \['age'\]"):
        IndexedImageDataset(root / "index.csv", root, ["age"])
    data = IndexedImageDataset(root / "index.csv", root / "images", ["kind"])
    with pytest.raises(ValueError, match="column must be one of 'kind'"):
        data.labels("person")
    (root / "empty.csv").write_text("path,kind\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lists no image"):
        IndexedImageDataset(root / "empty.csv", root, ["kind"])
    (root / "hole.csv").write_text("path,kind\n0.png,cat\n1.png,\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3: 'kind' is empty"):
        IndexedImageDataset(root / "hole.csv", root, ["kind"])
