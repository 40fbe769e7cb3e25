import io
import stat
import tarfile
import zipfile

import pytest
from cv_core.data.archives import read_members, safe_extract
from cv_core.data.root import CorruptData

CONTENT = {"a.txt": b"first", "folder/b.bin": bytes(range(256))}


def make_zip(path, members, mode=0):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def make_tar(path, members, kind=tarfile.REGTYPE, compression="gz"):
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(params=["zip", "tar"])
def make(request):
    return {"zip": make_zip, "tar": make_tar}[request.param]


def test_members_are_read_in_order(make, tmp_path):
    archive = make(tmp_path / "archive", CONTENT)
    assert read_members(archive) == CONTENT
    assert list(read_members(archive)) == list(CONTENT)
    assert read_members(archive, suffixes=(".bin",)) == {"folder/b.bin": bytes(range(256))}


def test_extraction_writes_the_same(make, tmp_path):
    written = safe_extract(make(tmp_path / "archive", CONTENT), tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == list(CONTENT)
    assert [path.read_bytes() for path in written] == list(CONTENT.values())


@pytest.mark.parametrize(
    "name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "C:/out.txt", "..\\out.txt", "\\out"]
)
def test_members_that_leave_the_folder_are_refused(make, tmp_path, name):
    archive = make(tmp_path / "archive", {"good.txt": b"good", name: b"evil"})
    with pytest.raises(CorruptData, match="would leave"):
        read_members(archive)
    with pytest.raises(CorruptData, match="would leave"):
        safe_extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing at all was written


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_tar_are_refused(tmp_path, kind):
    with pytest.raises(CorruptData, match="link or device"):
        read_members(make_tar(tmp_path / "archive", {"link": b""}, kind))


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o600])
def test_links_and_devices_in_zip_are_refused(tmp_path, mode):
    with pytest.raises(CorruptData, match="link or device"):
        read_members(make_zip(tmp_path / "archive", {"link": b"/etc/passwd"}, mode))


def test_large_members_are_refused_before_they_are_read(make, tmp_path):
    archive = make(tmp_path / "archive", {"zeros": bytes(100_000)})
    assert archive.stat().st_size < 1000  # a small bomb
    with pytest.raises(CorruptData, match="limit of 99999"):
        read_members(archive, member_limit=99_999)
    with pytest.raises(CorruptData, match="99999 in all"):
        read_members(archive, total_limit=99_999)
    assert len(read_members(archive, member_limit=100_000)["zeros"]) == 100_000


def test_existing_link_inside_the_target_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "out"
    target.mkdir()
    (target / "folder").symlink_to(outside)
    with pytest.raises(CorruptData, match="would leave"):
        safe_extract(make_zip(tmp_path / "archive", {"folder/b.bin": b"evil"}), target)
    assert not list(outside.iterdir())


def test_damaged_archives_are_refused_by_name(make, tmp_path):
    archive = make(tmp_path / "archive", CONTENT)
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptData, match="archive"):
        read_members(archive)
    archive.write_bytes(b"neither zip nor tar")
    with pytest.raises(CorruptData, match="not a readable zip or tar"):
        read_members(archive)


def test_altered_member_is_refused(tmp_path):
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        opened.writestr("a.txt", "unique content")
    archive.write_bytes(archive.read_bytes().replace(b"unique", b"UNIQUE"))
    with pytest.raises(CorruptData, match=r"'a\.txt' is damaged"):
        read_members(archive)
