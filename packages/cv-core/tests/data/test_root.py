import gzip
import hashlib
import os
from pathlib import Path

import pytest
from cv_core.data import root
from cv_core.data.origin import DataFile


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CV_DATA", str(tmp_path))
    return tmp_path


def declared(content):
    return DataFile("set/file.bin", len(content), hashlib.sha256(content).hexdigest())


def test_root_is_named_by_the_environment(folder):
    assert root.data_root() == folder
    assert root.locate("set/file.bin") == folder / "set" / "file.bin"


def test_root_is_a_cache_folder_otherwise(monkeypatch):
    monkeypatch.delenv("CV_DATA", raising=False)
    assert root.data_root().is_relative_to(Path.home())
    assert "cv-core" in root.data_root().parts


@pytest.mark.parametrize("path", ["../file", "/etc/passwd", "a/../../b", "", "."])
def test_paths_stay_below_the_root(folder, path):
    with pytest.raises(ValueError, match="must lie below"):
        root.locate(path)


def test_missing_file_is_named(folder):
    with pytest.raises(root.MissingData, match=r"file\.bin.*CV_DATA"):
        root.find("set/file.bin")


def test_intact_file_passes(folder):
    (folder / "set").mkdir()
    (folder / "set" / "file.bin").write_bytes(b"content")
    assert root.verified(declared(b"content")) == folder / "set" / "file.bin"


@pytest.mark.parametrize("content", [b"conten", b"contenT", b""])
def test_truncated_or_altered_file_is_refused(folder, content):
    (folder / "set").mkdir()
    (folder / "set" / "file.bin").write_bytes(content)
    file = declared(b"content")
    with pytest.raises(root.CorruptData) as caught:
        root.verified(file)
    message = str(caught.value)
    assert str(folder / "set" / "file.bin") in message
    assert file.sha256 in message
    assert hashlib.sha256(content).hexdigest() in message


def test_file_altered_after_the_first_check_is_refused(folder):
    (folder / "set").mkdir()
    path = folder / "set" / "file.bin"
    path.write_bytes(b"content")
    file = declared(b"content")
    root.verified(file)
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(1, 1))  # another time, whatever the clock's resolution
    with pytest.raises(root.CorruptData):
        root.verified(file)


def test_another_gzip_wrapper_of_the_same_content_passes(folder):
    (folder / "set").mkdir()
    content = b"content" * 100
    path = folder / "set" / "file.gz"
    packed = gzip.compress(content, 9, mtime=0)
    file = DataFile(
        "set/file.gz",
        len(packed),
        hashlib.sha256(packed).hexdigest(),
        hashlib.sha256(content).hexdigest(),
    )
    path.write_bytes(gzip.compress(content, 1, mtime=5))
    root.check_file(path, file)
    path.write_bytes(gzip.compress(content + b"!", 1))
    with pytest.raises(root.CorruptData):
        root.check_file(path, file)
    path.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(root.CorruptData):
        root.check_file(path, file)
