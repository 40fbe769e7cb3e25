"""A file is there whole or not at all."""

import subprocess
import sys

import pytest
from cv_core.files import write_atomically


def test_content_replaces_what_was_there(tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(b"old and longer")
    assert write_atomically(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails half-way."""
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    script = f"""
import resource, signal
from pathlib import Path
from cv_core.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_atomically(Path({str(path)!r}), bytes(1000))
except OSError as error:
    print("refused:", error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "refused: 27\n", done.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "result.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "result.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
