import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import torch
from cv_core.data.origin import Origin
from cv_core.data.readers import images
from cv_core.data.root import CorruptData

ORIGIN = Origin("made", "Made for the test")


def write_idx(path, array, magic=b"\0\0\x08"):
    header = magic + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
    return path


def test_idx_round_trip(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(images.read_idx(write_idx(tmp_path / "a.gz", array)), array)


def test_mnist_in_its_own_format(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (5, 3)]
    labels = [rng.integers(0, 10, n, dtype=np.uint8) for n in (5, 3)]
    parts = (arrays[0], labels[0], arrays[1], labels[1])
    paths = [write_idx(tmp_path / f"{k}.gz", part) for k, part in enumerate(parts)]
    data = images.fashion_mnist(ORIGIN, paths)
    np.testing.assert_array_equal(data.train_x[:, 0].numpy(), arrays[0].astype(np.float32) / 255)
    assert data.test_y.tolist() == labels[1].tolist()
    assert data.class_names[9] == "ankle boot"
    with pytest.raises(CorruptData, match="do not fit"):
        images.mnist(ORIGIN, [paths[0], paths[3], paths[2], paths[3]])


@pytest.mark.parametrize(
    "content",
    [
        b"not gzip",
        gzip.compress(b"\0\0\x08"),
        gzip.compress(b"\0\0\x0d\x01" + struct.pack(">I", 1) + bytes(4)),  # floats
        gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(4)),  # one byte short
        gzip.compress(b"\0\0\x08\x03" + struct.pack(">I", 5)),  # header cut off
        gzip.compress(bytes(100))[:20],
    ],
    ids=["not gzip", "short header", "floats", "byte missing", "sizes missing", "cut off"],
)
def test_broken_idx_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "broken.gz").write_bytes(content)
    with pytest.raises(CorruptData, match=r"broken\.gz"):
        images.read_idx(tmp_path / "broken.gz")


def cifar_archive(path, records):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in records.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_cifar10_binary_format(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_CIFAR_RECORDS", 20)  # of 10,000: the format is the same
    # each record: label, then the red, green and blue plane, row by row
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    record = np.zeros((20, 3073), dtype=np.uint8)
    record[:, 0] = np.arange(20) % 10
    record[:, 1] = 255  # upper left, red
    record[:, 1 + 1024 + 33] = 51  # row 1, column 1, green
    path = cifar_archive(tmp_path / "c.tar.gz", {name: record.tobytes() for name in names})
    data = images.cifar10_full(ORIGIN, [path])
    assert data.train_x.shape == (100, 3, 32, 32)
    assert data.test_y[:12].tolist() == [*range(10), 0, 1]
    assert data.train_x[7].nonzero().tolist() == [[0, 0, 0], [1, 1, 1]]
    assert data.train_x[7, 1, 1, 1] == torch.tensor(0.2)
    cifar_archive(path, {name: record.tobytes()[:-1] for name in names})
    with pytest.raises(CorruptData, match="data_batch_1"):
        images.cifar10_full(ORIGIN, [path])
