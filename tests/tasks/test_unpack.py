"""Archives of all kinds, whole, damaged and hostile."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from downloads_support import tar, zipped

from tasks.datasets.base import DataError
from tasks.datasets.unpack import unpack


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil"])
@pytest.mark.parametrize("write", [tar, zipped])
def test_members_cannot_leave_the_folder(tmp_path: Path, name: str, write) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / "archive", {"fine": b"1", name: b"2"})
    with pytest.raises(DataError, match="would land outside"):
        unpack(tmp_path / "archive", tmp_path / "out" / "in")
    assert not (tmp_path / "out" / "in").exists()
    assert not (tmp_path / "out" / "evil").exists()


def test_links_are_not_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    unpack(tmp_path / "archive", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_truncated_archive_is_damaged(tmp_path: Path) -> None:
    tar(tmp_path / "whole", {"a": bytes(range(256)) * 4000})
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "archive").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = {"a": bytes(10**6), "b": bytes(10**6)}
    for name, write in (("a.zip", deflated), ("a.tar.gz", tar)):
        write(tmp_path / name, zeros)
        assert (tmp_path / name).stat().st_size < 10**5
        with pytest.raises(DataError, match=rf"{name} holds more than 1,500,000 bytes"):
            unpack(tmp_path / name, tmp_path / "set", 1_500_000)
    free = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"what a.zip holds needs 0.002 GB, and .* has 0.001 GB free"):
        unpack(tmp_path / "a.zip", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("write", [tar, zipped])
def test_an_archive_has_so_many_members_at_most(tmp_path: Path, monkeypatch, write) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tasks.datasets.unpack.MOST_MEMBERS", 3)
    write(tmp_path / "few", {name: b"" for name in "abc"})
    write(tmp_path / "many", {name: b"" for name in "abcd"})
    unpack(tmp_path / "few", tmp_path / "set")
    with pytest.raises(DataError, match="many holds more than 3 members"):
        unpack(tmp_path / "many", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def deflated(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_file_with_holes_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w", format=tarfile.PAX_FORMAT) as archive:
        hole = tarfile.TarInfo("hole")
        hole.size = 512
        hole.pax_headers = {
            "GNU.sparse.map": "0,1",
            "GNU.sparse.size": str(10**13),
            "GNU.sparse.numblocks": "1",
        }
        archive.addfile(hole, io.BytesIO(bytes(512)))
    with pytest.raises(DataError, match="a file with holes"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a\0b", "C:/evil", "a"])
def test_names_that_are_no_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    """Also a folder where a file is already."""
    with tarfile.open(tmp_path / "archive", "w", format=tarfile.PAX_FORMAT) as archive:
        for member in (tarfile.TarInfo("a"), tarfile.TarInfo("a/b")):
            if member.name == "a" and name != "a":
                member.pax_headers = {"path": name}
            archive.addfile(member)
    with pytest.raises(DataError, match=r"outside|damaged"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.LNKTYPE])
def test_devices_are_not_unpacked(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        member = tarfile.TarInfo("device")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    unpack(tmp_path / "archive", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
