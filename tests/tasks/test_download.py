"""Downloads from a real HTTP server on this machine, whole, cut, altered and hostile."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.datasets.base import DataError
from tasks.datasets.download import Source, download, download_and_unpack, unpack


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; a name that holds `cut` loses its last byte after its length was announced."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        content = source.read()
        outputfile.write(content[:-1] if "cut" in self.path else content)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(("name", "write"), [("a.tar.gz", tar), ("a.zip", zipped)])
def test_download_and_unpack(server: tuple[Path, str], tmp_path: Path, name: str, write) -> None:  # type: ignore[no-untyped-def]
    folder, address = server
    write(folder / name, {"yes/1.wav": b"one", "list.txt": b"yes/1.wav\n"})
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    target = tmp_path / "data" / "set"
    download_and_unpack(Source(f"{address}/{name}", digest), target)
    assert (target / "yes" / "1.wav").read_bytes() == b"one"
    assert sorted(path.name for path in target.parent.iterdir()) == ["set"], "nothing else is left behind"


def test_an_existing_folder_is_added_to(server: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = server
    zipped(folder / "a.zip", {"new/1": b"1", "old": b"theirs"})
    (tmp_path / "old").write_bytes(b"mine")
    download_and_unpack(Source(f"{address}/a.zip"), tmp_path)
    assert (tmp_path / "new" / "1").read_bytes() == b"1"
    assert (tmp_path / "old").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "checksum", "message"),
    [
        ("absent.zip", None, "answered 404"),
        ("cut.zip", None, "broke off after"),
        ("fine.zip", "0" * 64, "has checksum"),
        ("page.html", None, "neither a tar nor a zip"),
    ],
)
def test_a_bad_download_leaves_nothing(
    server: tuple[Path, str], tmp_path: Path, name: str, checksum: str | None, message: str
) -> None:
    folder, address = server
    for good in ("cut.zip", "fine.zip"):
        zipped(folder / good, {"a": b"a"})
    (folder / "page.html").write_text("<html>sorry</html>")
    target = tmp_path / "data" / "set"
    with pytest.raises(DataError, match=message):
        download_and_unpack(Source(f"{address}/{name}", checksum), target)
    assert list(target.parent.iterdir()) == []


def test_no_connection_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        download(Source("http://127.0.0.1:9/a.zip"), tmp_path / "a.zip", timeout=5)
    assert list(tmp_path.iterdir()) == []


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


def test_an_archive_cannot_fill_the_disk(server: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = server
    zeros = {"a": bytes(10**6), "b": bytes(10**6)}
    for name, write in (("a.zip", deflated), ("a.tar.gz", tar)):
        write(folder / name, zeros)
        assert (folder / name).stat().st_size < 10**5
        with pytest.raises(DataError, match=r"archive holds more than 1,500,000 bytes"):
            download_and_unpack(Source(f"{address}/{name}", most_gb=1.5e-3), tmp_path / "set")
    with pytest.raises(DataError, match=r"a.zip is larger than 100 bytes"):
        download_and_unpack(Source(f"{address}/a.zip", most_gb=1e-7), tmp_path / "set")
    assert not (tmp_path / "set").exists()


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
