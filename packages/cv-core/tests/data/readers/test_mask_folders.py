import numpy as np
import pytest
import torch
from cv_core.data import sources
from cv_core.data.origin import Origin
from cv_core.data.readers.mask_folders import decode_labels, read_mask_folder
from cv_core.data.root import CorruptData
from PIL import Image

ORIGIN = Origin("folder:x", "x")
SIZE = (6, 8)  # height and width


def save_image(path, value, mode="RGB", size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], value).save(path, **options)


def save_mask(path, labels, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, dtype=dtype)).save(path)


def labels_of(number, other=1):
    """Class 0, but for as many pixels of another class as the number says."""
    mask = np.zeros(SIZE, dtype=np.int64)
    mask.flat[:number] = other
    return mask


@pytest.fixture
def folder(tmp_path):
    """Ten pictures whose red says how many pixels are of class 1."""
    for number in range(1, 11):
        save_image(tmp_path / "images" / f"{number}.png", (number, 0, 0))
        save_mask(tmp_path / "masks" / f"{number}.png", labels_of(number))
    return tmp_path


def read(folder, **options):
    return read_mask_folder(folder, ORIGIN, **options)


def everything(data):
    return [sample for part in (data.train, data.val, data.test) for sample in part]


def test_pictures_keep_their_masks(folder):
    data = sources.load(f"folder:{folder}")
    assert sources.kind_of(f"folder:{folder}") == type(data).__name__ == "Segmentation"
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2)
    assert data.class_names == ("class 0", "class 1")
    assert data.ignore_index == 255
    numbers = []
    for image, mask in everything(data):
        assert image.shape == (3, *SIZE)
        assert mask.dtype == torch.int64
        numbers.append(int(mask.sum()))
        assert float(image[0, 0, 0] * 255) == pytest.approx(numbers[-1])
    assert sorted(numbers) == list(range(1, 11))
    again = sources.load(f"folder:{folder}?ignore=auto")
    assert [int(mask.sum()) for _, mask in everything(again)] == numbers


def test_below_folders(tmp_path):
    for place in ("a", "b"):
        for number in (1, 2):
            save_image(tmp_path / "images" / place / f"{number}.JPG", (9, 9, 9))
            save_mask(tmp_path / "masks" / place / f"{number}.png", labels_of(number))
    save_image(tmp_path / "images" / ".thumbnails" / "1.png", 0)
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    assert sorted(int(mask.sum()) for _, mask in everything(read(tmp_path))) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [(("train", "test"), (2, 0, 1)), (("train", "val"), (2, 0, 1)),
     (("train", "val", "test"), (2, 1, 1))],
)  # fmt: skip
def test_given_parts(tmp_path, parts, sizes):
    for part in parts:
        for number in (1, 2) if part == "train" else (5,):
            save_image(tmp_path / part / "images" / f"{number}.png", 0)
            save_mask(tmp_path / part / "masks" / f"{number}.png", labels_of(number))
    data = sources.load(f"folder:{tmp_path}")
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert [int(mask.sum()) for _, mask in data.train] == [1, 2]
    assert [int(mask.sum()) for _, mask in data.test] == [5]


def test_train_needs_a_test(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(CorruptData, match="beside train there must be test or val"):
        read(tmp_path)
    (tmp_path / "test" / "images").mkdir(parents=True)
    save_image(tmp_path / "train" / "images" / "1.png", 0)
    save_mask(tmp_path / "train" / "masks" / "1.png", labels_of(1))
    with pytest.raises(CorruptData, match=r"test: expected the folders images and masks; no masks"):
        read(tmp_path)


# ------------------------------------------------------------------------------------- the labels


def test_palettes_and_depths_keep_the_numbers(tmp_path):
    labels = labels_of(7, other=200)
    Image.fromarray(labels.astype(np.uint8)).convert("L").save(tmp_path / "grey.png")
    painted = Image.new("P", SIZE[::-1])
    painted.putdata(labels.flatten().tolist())
    painted.putpalette([value for index in range(256) for value in (255 - index, 3, 9)])
    painted.save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png"):
        assert torch.equal(decode_labels(tmp_path / name), torch.from_numpy(labels))
    deep = labels_of(7, other=40000)
    save_mask(tmp_path / "deep.png", deep, dtype=np.uint16)
    assert torch.equal(decode_labels(tmp_path / "deep.png"), torch.from_numpy(deep))
    Image.fromarray(labels > 0).save(tmp_path / "bits.png")
    assert torch.equal(decode_labels(tmp_path / "bits.png"), torch.from_numpy(labels > 0).long())


def test_sixteen_bits(folder):
    for number in range(1, 11):
        save_mask(folder / "masks" / f"{number}.png", labels_of(number, 300), dtype=np.uint16)
    names = [f"c{index}" for index in range(301)]
    data = read(folder, classes=names)
    assert data.num_classes == 301
    assert {int(mask.max()) for _, mask in everything(data)} == {300}
    (folder / "masks" / "2.png").unlink()
    save_mask(folder / "masks" / "2.tif", labels_of(2, 70000), dtype=np.int32)
    with pytest.raises(
        CorruptData, match=r"2\.tif: label 70000 is no class: there are 301, 0 to 300"
    ):
        read(folder, classes=names)
    with pytest.raises(CorruptData, match=r"1\.png: label 300 is no class: without names .* 256"):
        read(folder)


def test_binary_masks(folder):
    for number in range(1, 11):
        save_mask(folder / "masks" / f"{number}.png", labels_of(number, 255))
    data = read(folder)
    assert data.class_names == ("background", "foreground")
    assert data.ignore_index is None
    assert sorted(int(mask.sum()) for _, mask in everything(data)) == list(range(1, 11))
    assert read(folder, classes=("road", "crack")).class_names == ("road", "crack")
    with pytest.raises(CorruptData, match="two classes; got label 0 only, and the ignored 255"):
        read(folder, ignore=255)
    with pytest.raises(CorruptData, match=r"label 0 only, and the ignored 255"):
        read(folder, classes=("a", "b", "c"))
    assert read(folder, ignore="none", classes=[f"c{i}" for i in range(256)]).num_classes == 256


def test_names_from_a_file_and_from_the_option(folder):
    (folder / "classes.txt").write_text("\ufeffroad\ncrack \nmarking\n\n", encoding="utf-8")
    assert read(folder).class_names == ("road", "crack", "marking")
    named = sources.load(f"folder:{folder}?classes=sky, tree&ignore=none")
    assert named.class_names == ("sky", "tree")
    assert named.ignore_index is None
    for text in ("road\n\ncrack\n", "road\nroad\n"):
        (folder / "classes.txt").write_text(text)
        with pytest.raises(CorruptData, match=r"classes\.txt: expected one name per line"):
            read(folder)


def test_another_ignored_label(folder):
    save_mask(folder / "masks" / "3.png", labels_of(3, 11))
    with pytest.raises(
        CorruptData, match=r"3\.png: label 11 is no class: there are 2, 0 to 1, nor"
    ):
        read(folder, classes=("a", "b"))
    data = sources.load(f"folder:{folder}?classes=a,b&ignore=11")
    assert data.ignore_index == 11


def test_unknown_labels_are_named(folder):
    save_mask(folder / "masks" / "4.png", labels_of(4, 7))
    with pytest.raises(CorruptData, match=r"4\.png: label 7, but no mask holds 2.*the 8 classes"):
        read(folder)
    with pytest.raises(CorruptData, match=r"4\.png: label 7 is no class: there are 3, 0 to 2"):
        read(folder, classes=("a", "b", "c"))
    assert read(folder, classes=[f"c{index}" for index in range(8)]).num_classes == 8


def test_one_class_is_no_segmentation(folder):
    for number in range(1, 11):
        save_mask(folder / "masks" / f"{number}.png", labels_of(0))
    with pytest.raises(CorruptData, match="at least two classes; got label 0 only"):
        read(folder)


def test_images_that_are_ignored_whole_are_kept(folder):
    for number in range(1, 6):
        save_mask(folder / "masks" / f"{number}.png", np.full(SIZE, 255))
    data = read(folder)
    for part, most in ((data.train, 3), (data.val, 1), (data.test, 1)):
        assert sum(bool((mask == 255).all()) for _, mask in part) == most  # in equal shares


def test_a_part_without_a_label_is_refused(tmp_path):
    for part in ("train", "test"):
        save_image(tmp_path / part / "images" / "1.png", 0)
        save_mask(tmp_path / part / "masks" / "1.png", labels_of(3))
    read(tmp_path)
    save_mask(tmp_path / "test" / "masks" / "1.png", np.full(SIZE, 255))
    with pytest.raises(CorruptData, match="no pixel of the test part is labelled"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("mode", "ending", "message"),
    [
        ("RGB", "png", "must have one channel of class indices.*mode RGB"),
        ("LA", "png", "must have one channel.*mode LA"),
        ("F", "tif", "must have one channel.*mode F"),
        ("L", "jpg", "must not be a JPEG, which changes labels"),
    ],
)
def test_masks_that_are_none(folder, mode, ending, message):
    (folder / "masks" / "5.png").unlink()
    save_image(folder / "masks" / f"5.{ending}", 0, mode)
    with pytest.raises(CorruptData, match=rf"5\.{ending}: a mask {message}"):
        read(folder)


def test_a_mask_is_one_picture(folder):
    first = Image.new("L", SIZE[::-1])
    (folder / "masks" / "5.png").unlink()
    first.save(folder / "masks" / "5.tif", save_all=True, append_images=[first, first])
    with pytest.raises(CorruptData, match=r"5\.tif: a mask must be one picture; got 3"):
        read(folder)


# ----------------------------------------------------------------------------- pictures and masks


def test_missing_partners(folder):
    (folder / "masks" / "2.png").unlink()
    (folder / "masks" / "3.png").unlink()
    with pytest.raises(CorruptData, match=r"images/2\.png: masks holds no mask.*1 more like it"):
        read(folder)
    for number in (2, 3):
        (folder / "images" / f"{number}.png").unlink()
    (folder / "images" / "7.png").unlink()
    with pytest.raises(CorruptData, match=r"masks/7\.png: images holds no picture of that name\."):
        read(folder)


def test_one_picture_of_a_name(folder):
    save_image(folder / "images" / "2.jpg", (0, 0, 0))
    with pytest.raises(CorruptData, match=r"2\.png: 2\.jpg has the same name"):
        read(folder)


def test_different_sizes(folder):
    save_mask(folder / "masks" / "6.png", np.zeros((8, 6)))
    with pytest.raises(
        CorruptData, match=r"masks/6\.png: the mask is \(8, 6\).*6\.png is \(6, 8\)"
    ):
        read(folder)


def test_pictures_of_different_sizes_are_fine(folder):
    save_image(folder / "images" / "6.png", (6, 0, 0), size=(3, 2))
    save_mask(folder / "masks" / "6.png", [[1, 1], [1, 1], [1, 1]])
    shapes = {tuple(image.shape[1:]) for image, mask in everything(read(folder))}
    assert shapes == {SIZE, (3, 2)}


def test_exif_turns_the_picture(folder):
    """The mask fits the upright picture, not the stored one."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    stored = np.zeros((8, 6, 3), dtype=np.uint8)
    stored[:, :3] = 200
    Image.fromarray(stored).save(folder / "images" / "6.png", exif=exif)
    upright = np.zeros(SIZE)
    upright[:3] = 1
    save_mask(folder / "masks" / "6.png", upright)
    (image, mask) = next(s for s in everything(read(folder)) if s[0].max() > 0.5)
    assert torch.equal(image[0] > 0.5, mask == 1)
    save_mask(folder / "masks" / "6.png", np.zeros((8, 6)))
    with pytest.raises(CorruptData, match=r"\(8, 6\).*upright by its EXIF data\) is \(6, 8\)"):
        read(folder)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2)),
        ("RGBA", (51, 102, 153, 0), (0.2, 0.4, 0.6)),
        ("LA", (51, 0), (0.2, 0.2, 0.2)),
        ("1", 1, (1.0, 1.0, 1.0)),
        ("I;16", 13107, (0.2, 0.2, 0.2)),
    ],
)
def test_every_picture_has_three_channels(folder, mode, value, expected):
    for number in range(1, 11):
        save_image(folder / "images" / f"{number}.png", value, mode)
    for image, _ in everything(read(folder)):
        assert image.shape == (3, *SIZE)
        assert image[:, 2, 3].tolist() == pytest.approx(expected)


def test_damaged_files(folder):
    content = (folder / "masks" / "8.png").read_bytes()
    for damaged in (b"no picture", content[: len(content) // 2]):
        (folder / "masks" / "8.png").write_bytes(damaged)
        with pytest.raises(CorruptData, match=r"masks/8\.png: not a readable mask"):
            read(folder)
    (folder / "masks" / "8.png").write_bytes(content)
    (folder / "images" / "8.png").write_bytes(b"no picture")
    with pytest.raises(CorruptData, match=r"images/8\.png: not a readable picture"):
        read(folder)


def test_too_few(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(CorruptData, match="the folder holds no picture"):
        read(tmp_path)
    for number in range(1, 5):
        if number == 4:
            with pytest.raises(CorruptData, match=r"at least 4 pictures are needed.*got 3"):
                read(tmp_path)
        save_image(tmp_path / "images" / f"{number}.png", 0)
        save_mask(tmp_path / "masks" / f"{number}.png", labels_of(number))
    data = read(tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 1, 1]


def test_options_that_do_not_fit(folder, tmp_path):
    for option, message in [
        ("size=8", "size is for pictures in one sub-folder per class"),
        ("classes=a,,b", "classes must be names"),
        ("classes=a,a", "classes must be names"),
        ("ignore=-1", "ignore must be a label, none or auto; got '-1'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sources.load(f"folder:{folder}?{option}")
    with pytest.raises(ValueError, match="classes and ignore are for images with masks"):
        sources.load(f"folder:{folder / 'images'}?classes=a,b")


def test_the_checksum_is_of_what_is_read(folder):
    name = f"folder:{folder}"
    before = sources.checksum(name)
    save_image(folder / "results" / "1.png", (1, 2, 3))
    assert sources.checksum(name) == before
    (folder / "classes.txt").write_text("ground\nobject\n", encoding="utf-8")
    named = sources.checksum(name)
    assert named != before
    save_mask(folder / "masks" / "4.png", labels_of(5))
    assert sources.checksum(name) not in (before, named)
