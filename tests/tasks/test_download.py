"""Downloads from a real https server on this machine: whole, cut, stalled, altered and hostile."""

import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads_support import CERTIFICATE, Reply, Server, serving, tar, zipped
from tests_support import ROOT

from tasks.datasets.audio.esc50 import SOURCE as ESC_50
from tasks.datasets.audio.speech_commands import SOURCE as SPEECH_COMMANDS
from tasks.datasets.base import DataError
from tasks.datasets.download import CHUNK, Source, download
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.image.cifar import Cifar10, Cifar100
from tasks.datasets.image.tiny_imagenet import SOURCE as TINY_IMAGENET
from tasks.datasets.point_cloud.modelnet import SOURCES as MODELNET
from tasks.datasets.time_series import ett

BODY = os.urandom(3 * CHUNK + 17)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.datasets.download.PAUSE", 0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An https server, whose certificate is trusted, with the file `/set.bin`."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with serving() as running:
        running.files["/set.bin"] = BODY
        yield running


@pytest.fixture
def plain() -> Iterator[Server]:
    """The same without encryption."""
    with serving(secure=False) as running:
        running.files["/set.bin"] = BODY
        yield running


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "write"), [("a.tar.gz", tar), ("a.zip", zipped)])
def test_download_and_unpack(server: Server, tmp_path: Path, name: str, write) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / name, {"yes/1.wav": b"one", "list.txt": b"yes/1.wav\n"})
    server.files[f"/{name}"] = (tmp_path / name).read_bytes()
    digest = hashlib.sha256(server.files[f"/{name}"]).hexdigest()
    target = tmp_path / "data" / "set"
    download_and_unpack(Source(f"{server.address}/{name}", digest), target)
    assert (target / "yes" / "1.wav").read_bytes() == b"one"
    assert names(target.parent) == ["set"], "nothing else is left behind"


def test_an_existing_folder_is_added_to(server: Server, tmp_path: Path) -> None:
    zipped(tmp_path / "made", {"new/1": b"1", "old": b"theirs"})
    server.files["/a.zip"] = (tmp_path / "made").read_bytes()
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").write_bytes(b"mine")
    (target / ".unpack-killed").mkdir()
    download_and_unpack(Source(f"{server.address}/a.zip"), target)
    assert (target / "new" / "1").read_bytes() == b"1"
    assert (target / "old").read_bytes() == b"mine"
    assert names(target) == ["a.zip.sha256", "new", "old"]


def test_an_archive_that_somebody_put_there_is_taken(server: Server, tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"1": b"1"})
    digest = hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    download_and_unpack(Source(f"{server.address}/a.zip", digest), tmp_path)
    assert names(tmp_path) == ["1", "a.zip"]
    assert server.asked == []
    with pytest.raises(
        DataError, match=r"a.zip, the file of https.* has checksum .*; delete it to download it again"
    ):
        download_and_unpack(Source(f"{server.address}/a.zip", "0" * 64), tmp_path)
    assert names(tmp_path) == ["1", "a.zip"], "what is not ours is not deleted"


# -- cut, stalled, refused -----------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.replies = [Reply(cut=CHUNK + 5), Reply(cut=7)]
    download(Source(f"{server.address}/set.bin", SHA256), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == BODY
    assert server.sent == [CHUNK + 5, 7, len(BODY) - CHUNK - 12], "nothing is sent twice"
    assert [asked.get("Range") for asked in server.asked] == [
        None,
        f"bytes={CHUNK + 5}-",
        f"bytes={CHUNK + 12}-",
    ]
    assert names(tmp_path) == ["set.bin"]


def test_a_later_command_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.replies = [Reply(cut=CHUNK), *[Reply(cut=0)] * 4]
    path = tmp_path / "set.bin"
    said = re.escape(
        f"broke off after {CHUNK:,} of {len(BODY):,} bytes (5 attempts; the same command goes on after"
    )
    with pytest.raises(DataError, match=rf"{said} .*; or put the file set.bin yourself at {path}"):
        download(Source(f"{server.address}/set.bin"), path)
    assert names(tmp_path) == ["set.bin.part", "set.bin.part.json"]
    download(Source(f"{server.address}/set.bin"), path)
    assert path.read_bytes() == BODY
    assert sum(server.sent) == len(BODY)
    assert names(tmp_path) == ["set.bin", "set.bin.sha256"]


def test_a_file_that_has_changed_meanwhile_begins_anew(server: Server, tmp_path: Path) -> None:
    server.replies = [Reply(cut=CHUNK), *[Reply(cut=0)] * 4]
    source = Source(f"{server.address}/set.bin")
    with pytest.raises(DataError, match="broke off"):
        download(source, tmp_path / "set.bin")
    server.files["/set.bin"] = other = BODY[::-1]
    download(source, tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == other
    assert server.asked[-1]["If-Range"].startswith('"')


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(Reply(ranges=False), id="sends all of it"),
        pytest.param(Reply(status=416), id="knows no such range"),
        pytest.param(Reply(headers={"Content-Range": "bytes 0-9/10"}), id="sends another part"),
    ],
)
def test_a_server_that_ignores_ranges(server: Server, tmp_path: Path, second: Reply) -> None:
    server.replies = [Reply(cut=CHUNK), second]
    download(Source(f"{server.address}/set.bin", SHA256), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_without_a_tag_a_part_is_only_used_where_a_checksum_tells(server: Server, tmp_path: Path) -> None:
    for sha256, ranges in ((None, [None, None]), (SHA256, [None, f"bytes={CHUNK}-"])):
        server.replies = [Reply(cut=CHUNK, headers={"ETag": 'W/"weak"'}), Reply(headers={"ETag": None})]
        server.asked.clear()
        download(Source(f"{server.address}/set.bin", sha256), tmp_path / f"{sha256}")
        assert (tmp_path / f"{sha256}").read_bytes() == BODY
        assert [asked.get("Range") for asked in server.asked] == ranges


def test_a_part_of_another_address_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * 100)
    (tmp_path / "set.bin.part.json").write_text(
        '{"url": "https://elsewhere/set.bin", "tag": "", "length": 100}'
    )
    download(Source(f"{server.address}/set.bin", SHA256), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == BODY


def test_a_stalled_connection_is_given_up_and_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.replies = [Reply(stall=CHUNK)]
    download(Source(f"{server.address}/set.bin", SHA256), tmp_path / "set.bin", timeout=0.3)
    assert (tmp_path / "set.bin").read_bytes() == BODY
    assert server.sent == [CHUNK, len(BODY) - CHUNK]
    server.replies = [Reply(stall=0)] * 5
    with pytest.raises(DataError, match=r"sent nothing for 0.05 s after 0 bytes \(5 attempts\)"):
        download(Source(f"{server.address}/set.bin"), tmp_path / "other", timeout=0.05)


def test_busy_servers_are_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    server.replies = [Reply(status=503, headers={"Retry-After": "7"}), Reply(status=502), Reply(status=429)]
    download(Source(f"{server.address}/set.bin", SHA256), tmp_path / "set.bin")
    assert pauses == [7.0, 0.02, 0.04]
    server.asked.clear()
    with pytest.raises(DataError, match=r"answered 404 \(Not Found\); or put the file absent yourself at"):
        download(Source(f"{server.address}/absent"), tmp_path / "absent")
    assert len(server.asked) == 1, "that is an answer"
    assert names(tmp_path) == ["set.bin"]


def test_no_connection_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        download(Source("https://127.0.0.1:9/a.zip"), tmp_path / "a.zip", timeout=5)
    assert names(tmp_path) == []


# -- hostile or wrong --------------------------------------------------------------------------------------------------


def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    with serving() as running, pytest.raises(DataError, match=r"cannot be reached .*certificate"):
        download(Source(f"{running.address}/set.bin"), tmp_path / "set.bin")


def test_http_only_with_a_checksum(plain: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not https, and without a checksum"):
        download(Source(f"{plain.address}/set.bin"), tmp_path / "set.bin")
    assert plain.asked == []
    download(Source(f"{plain.address}/set.bin", SHA256), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == BODY


@pytest.mark.parametrize("sha256", [None, SHA256], ids=["unpinned", "pinned"])
def test_no_redirect_leads_from_https_to_less(
    server: Server, plain: Server, tmp_path: Path, sha256: str | None
) -> None:
    for target in (f"{plain.address}/set.bin", "ftp://127.0.0.1/set.bin"):
        server.replies = [Reply(status=302, headers={"Location": target})]
        with pytest.raises(DataError, match=r"sends on to .*, which is not https; it was not followed"):
            download(Source(f"{server.address}/set.bin", sha256), tmp_path / "set.bin")
    assert plain.asked == []
    server.replies = [Reply(status=302, headers={"Location": f"{server.address}/set.bin?again"})]
    download(Source(f"{server.address}/set.bin", sha256), tmp_path / "set.bin")


def test_another_file_than_the_right_one_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"has checksum {SHA256}, not {'0' * 64}; try again; or put"):
        download(Source(f"{server.address}/set.bin", "0" * 64), tmp_path / "set.bin")
    assert names(tmp_path) == []


def test_a_page_instead_of_an_archive_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = b"<html>sorry</html>"
    with pytest.raises(DataError, match="neither a tar nor a zip"):
        download_and_unpack(Source(f"{server.address}/a.zip"), tmp_path / "data" / "set")
    assert names(tmp_path / "data") == ["a.zip.sha256"]


def test_a_file_is_no_larger_than_it_may_be(server: Server, tmp_path: Path) -> None:
    for how in (Reply(), Reply(extra=1)):  # said at once, and found out while it arrives
        server.replies = [how]
        with pytest.raises(DataError, match=f"is larger than {len(BODY) - 1:,} bytes"):
            download(Source(f"{server.address}/set.bin", most_gb=(len(BODY) - 1) / 1e9), tmp_path / "set.bin")
        assert names(tmp_path) == []


def test_the_disk_is_asked_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"set.bin needs 0.00315 GB, and .* has 1e-06 GB free"):
        download(Source(f"{server.address}/set.bin"), tmp_path / "set.bin")
    assert names(tmp_path) == []


def test_a_password_goes_to_its_host_only(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = server.address.replace("://", "://me:open%20sesame@")
    server.replies = [Reply(status=302, headers={"Location": f"{server.address}/set.bin?token=abc"})]
    with caplog.at_level(logging.INFO, "widefield"):
        download(Source(f"{address}/set.bin"), tmp_path / "set.bin")
    assert server.asked[0]["Authorization"] == "Basic bWU6b3BlbiBzZXNhbWU="
    assert "Authorization" not in server.asked[1]
    server.replies = [Reply(status=403)]
    with pytest.raises(DataError) as refused:
        download(Source(f"{address}/set.bin"), tmp_path / "other.bin")
    assert "https://***@127.0.0.1" in str(refused.value)
    assert "sesame" not in f"{refused.value} {caplog.text}"


# -- without a published checksum ----------------------------------------------------------------------------------


def test_a_file_that_changes_later_is_noticed(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, path = Source(f"{server.address}/set.bin"), tmp_path / "set.bin"
    with caplog.at_level(logging.INFO, "widefield"):
        download(source, path)
        download(source, path)
    assert len(server.asked) == 1
    assert caplog.text.count("no checksum is published for") == 1
    done = subprocess.run(
        ["sha256sum", "--check", "set.bin.sha256"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "set.bin: OK\n"
    path.unlink()
    server.files["/set.bin"] = BODY[::-1]
    with pytest.raises(
        DataError, match=f"had {SHA256} when it was first downloaded: if the change is meant, delete"
    ):
        download(source, path)
    assert names(tmp_path) == ["set.bin.sha256"]
    path.write_bytes(b"altered")
    with pytest.raises(DataError, match=r"set.bin, the file of https.* has checksum"):
        download(source, path)


# -- several at once, and kills ------------------------------------------------------------------------------------


def test_of_two_that_ask_at_once_one_downloads(server: Server, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            download(Source(f"{server.address}/set.bin"), tmp_path / "set.bin")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert server.sent == [len(BODY)]
    assert names(tmp_path) == ["set.bin", "set.bin.sha256"]


def test_a_kill_leaves_a_part_to_go_on_with(server: Server, tmp_path: Path) -> None:
    server.replies = [Reply(stall=2 * CHUNK)]
    url, path = f"{server.address}/set.bin", tmp_path / "set.bin"
    script = (
        "from pathlib import Path; from tasks.datasets.download import Source, download; "
        f"download(Source({url!r}), Path({str(path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    part = path.with_name("set.bin.part")
    until = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size == 2 * CHUNK) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path) == [".set.bin.lock", "set.bin.part", "set.bin.part.json"]
    download(Source(url), path)
    assert path.read_bytes() == BODY
    assert server.sent == [2 * CHUNK, len(BODY) - 2 * CHUNK]
    assert names(tmp_path) == ["set.bin", "set.bin.sha256"]


# -- what we download ------------------------------------------------------------------------------------------------


def test_official_addresses_are_https_with_a_checksum() -> None:
    sources = {
        SPEECH_COMMANDS,
        ESC_50,
        TINY_IMAGENET,
        Cifar10.archive,
        Cifar100.archive,
        *MODELNET.values(),
        *(Source(ett.ADDRESS.format(name=name), sha256) for name, sha256 in ett.SHA256.items()),
    }
    assert len(sources) == 11
    assert all(source.url.startswith("https://") for source in sources)
    without = {source for source in sources if not re.fullmatch("[0-9a-f]{64}", source.sha256 or "")}
    assert without == {ESC_50}, "the archive of a branch, made anew by its host"
