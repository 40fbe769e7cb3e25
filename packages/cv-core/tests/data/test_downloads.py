import functools
import gzip
import hashlib
import http.server
import threading
import zipfile

import pytest
from cv_core.data import downloads, sources
from cv_core.data.archives import read_members
from cv_core.data.origin import DataFile, Origin
from cv_core.data.root import CorruptData

ADDRESS = "https://example.org/place"


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """A catalogue of two small sets, and a root of its own."""
    monkeypatch.setenv("CV_DATA", str(tmp_path / "root"))
    plain, packed = b"a,b\n1,2\n", b"content" * 50

    def file(path, content, url, inside=b""):
        digest = hashlib.sha256(content).hexdigest()
        held = hashlib.sha256(inside).hexdigest() if inside else ""
        return DataFile(path, len(content), digest, held, url)

    files = (
        file("small/table.csv", plain, f"{ADDRESS}/table.csv"),
        file("small/data.gz", gzip.compress(packed, mtime=0), f"{ADDRESS}/data.gz", packed),
    )
    entries = {
        "small": sources.Entry(
            Origin("small", "Small", licence="MIT", files=files), "Votes", "x:y"
        ),
        "local": sources.Entry(
            Origin("local", "Local", files=(file("local/only.bin", plain, ""),)), "Votes", "x:y"
        ),
    }
    monkeypatch.setattr(sources, "catalogue", lambda: entries)
    return {"table.csv": plain, "data.gz": gzip.compress(packed, 1, mtime=7), "only.bin": plain}


@pytest.fixture
def mirror(tmp_path, catalogue, monkeypatch):
    """A server on this machine that stands in for example.org."""
    served = tmp_path / "served"
    (served / "example.org" / "place").mkdir(parents=True)
    for name, content in catalogue.items():
        (served / "example.org" / "place" / name).write_bytes(content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    handler.log_message = lambda *_: None
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("CV_DATA_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served / "example.org" / "place"
    server.shutdown()
    thread.join()
    server.server_close()


def test_plan_lists_before_anything_is_fetched(catalogue, tmp_path):
    steps = downloads.plan("small")
    assert [step.file.url for step in steps] == [f"{ADDRESS}/table.csv", f"{ADDRESS}/data.gz"]
    assert steps[0].target == tmp_path / "root" / "small" / "table.csv"
    assert steps[0].file.size == 8
    assert {step.licence for step in steps} == {"MIT"}
    assert not any(step.present for step in steps)
    assert not (tmp_path / "root").exists()


def test_files_come_from_the_server(mirror, catalogue, tmp_path, capfd):
    paths = downloads.get("small")
    assert [path.read_bytes() for path in paths] == [catalogue["table.csv"], catalogue["data.gz"]]
    assert all(step.present for step in downloads.plan("small"))
    assert sorted(path.name for path in (tmp_path / "root" / "small").iterdir()) == [
        "data.gz",
        "table.csv",
    ]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_one_folder_of_a_repository_is_repacked(mirror, catalogue, tmp_path, monkeypatch):
    def pack(path, members):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    wanted = {"Set/b.xml": b"<b/>", "Set/a.jpg": b"picture"}
    declared = pack(tmp_path / "declared.zip", wanted)
    digest = hashlib.sha256(b"Set/a.jpg 7\npictureSet/b.xml 4\n<b/>").hexdigest()
    file = DataFile(
        "repo/set.zip",
        declared.stat().st_size,
        hashlib.sha256(declared.read_bytes()).hexdigest(),
        digest,
        f"{ADDRESS}/repo.zip#Set/",
    )
    entry = sources.Entry(Origin("repo", "Repository", files=(file,)), "Detection", "x:y")
    monkeypatch.setattr(sources, "catalogue", lambda: {"repo": entry})
    whole = {f"repo-1.0/{name}": content for name, content in wanted.items()}
    pack(mirror / "repo.zip", {"repo-1.0/README.md": b"text", **whole})
    (path,) = downloads.get("repo")
    assert read_members(path) == dict(sorted(wanted.items()))
    pack(mirror / "repo.zip", {**whole, "repo-1.0/Set/c.xml": b"<c/>"})
    path.unlink()
    with pytest.raises(CorruptData, match=r"repo\.zip#Set/"):
        downloads.get("repo")


def test_files_that_are_there_are_kept(mirror):
    first = downloads.get("small")
    times = [path.stat().st_mtime_ns for path in first]
    for served in mirror.iterdir():
        served.unlink()
    assert [path.stat().st_mtime_ns for path in downloads.get("small")] == times


def test_altered_files_do_not_arrive(mirror, tmp_path):
    (mirror / "table.csv").write_bytes(b"a,b\n1,3\n")
    with pytest.raises(CorruptData, match=r"example\.org/place/table\.csv"):
        downloads.get("small")
    assert not list((tmp_path / "root" / "small").iterdir())


def test_missing_files_raise(mirror, tmp_path):
    (mirror / "data.gz").unlink()
    with pytest.raises(OSError, match="404"):
        downloads.get("small")
    assert [path.name for path in (tmp_path / "root" / "small").iterdir()] == ["table.csv"]


@pytest.mark.parametrize("nested", [True, False])
def test_files_come_from_a_folder(catalogue, tmp_path, nested):
    source = tmp_path / "disk"
    for name in ("table.csv", "data.gz"):
        place = source / "small" / name if nested else source / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(catalogue[name])
    paths = downloads.get("small", path=source)
    assert [path.read_bytes() for path in paths] == [catalogue["table.csv"], catalogue["data.gz"]]
    with pytest.raises(FileNotFoundError, match=r"holds neither local/only\.bin"):
        downloads.get("local", path=source)


def test_sets_without_address_are_refused(catalogue):
    with pytest.raises(ValueError, match=r"local has no stable address for local/only\.bin"):
        downloads.get("local")


def test_altered_files_in_the_root_are_named(catalogue, tmp_path):
    (tmp_path / "root" / "local").mkdir(parents=True)
    (tmp_path / "root" / "local" / "only.bin").write_bytes(b"altered")
    with pytest.raises(CorruptData, match=r"only\.bin"):
        downloads.get("local")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'mnist'"):
        downloads.get("mnits")


def test_addresses_of_the_real_catalogue_are_pinned():
    for file in sources.data_files().values():
        if "githubusercontent" in file.url:
            commit = file.url.split("/")[5]
            assert len(commit) == 40  # a commit, not a branch that moves
            assert set(commit) <= set("0123456789abcdef")
        assert len(file.sha256) == 64
