"""Resumable downloads with checksums.

A file is downloaded as `NAME.part`, with its metadata in `NAME.part.json`. A later attempt requests the remaining bytes
only, and restarts if the file on the server has changed. The file is renamed once it is complete and its checksum
matches.
"""

import base64
import hashlib
import http.client
import json
import logging
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tasks.datasets.errors import DataError
from tasks.datasets.locks import locked
from tasks.datasets.transfer_bar import shown_progress
from tasks.datasets.unpack import CHUNK, MOST_GB, need_room
from tasks.secrets import mask

log = logging.getLogger("widefield")

ATTEMPTS = 5  # consecutive attempts that each receive less than CHUNK bytes
PAUSE = 1.0  # seconds before the second attempt; doubled after each
LONGEST_PAUSE = 60.0  # seconds; caps Retry-After
TIMEOUT = 60.0  # seconds without a byte
PASSING = (408, 425, 429, 500, 502, 503, 504)  # transient status codes
BEYOND = 416  # range not satisfiable: the file on the server is shorter
LASTING = (  # permanent: not retried
    *(socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError),
    *(FileNotFoundError, PermissionError, IsADirectoryError),
)


@dataclass(frozen=True)
class Source:
    """A file to download.

    Args:
        url: https or file; http only with a checksum. `https://USER:PASSWORD@…` uses basic authentication.
        sha256: checksum in hexadecimal; `None` if the publisher's file may change: then its length and the archive's
            integrity are checked, and the checksum of the first download is saved beside it and compared.
        most_gb: maximum size of the file, and of its unpacked contents, in gigabytes (10^9 bytes).
    """

    url: str
    sha256: str | None = None
    most_gb: float = MOST_GB

    @property
    def most(self) -> int:
        """``most_gb`` in bytes."""
        return round(self.most_gb * 1e9)

    @property
    def file(self) -> str:
        """File name in the URL."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2] or "file"

    def __str__(self) -> str:
        return mask(self.url)


def download(source: Source, path: Path, timeout: float = TIMEOUT) -> None:
    """Download to ``path``, which is created only when complete and verified; an existing file is verified and kept.

    Of several concurrent processes one downloads and the others wait.

    Raises:
        DataError: any failure; the message explains how to place the file by hand.
    """
    if not _trustworthy(source):
        raise DataError(
            f"{source} is not https, and without a checksum nobody can tell whether the file is the right one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        log.info("download: another process is downloading %s; waiting for it", path.name)

    with locked(path.with_name(f".{path.name}.lock"), keep=False, waiting=waiting):
        if path.is_file():
            _check(source, path, path)
            return
        try:
            _Transfer(source, path, timeout).run()
        except DataError as error:
            raise DataError(f"{error}; or put the file {source.file} yourself at {path}") from error


def _trustworthy(source: Source) -> bool:
    scheme = urlsplit(source.url).scheme.lower()
    return scheme in ("https", "file") or (scheme == "http" and source.sha256 is not None)


class _Again(Exception):
    """A transient failure of an attempt; the message is the reason."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds, from Retry-After


class _Transfer:
    """The transfer of one file.

    Args:
        source, path: source and destination.
        timeout: seconds without data after which a connection is considered lost.
    """

    def __init__(self, source: Source, path: Path, timeout: float) -> None:
        self.source, self.path, self.timeout = source, path, timeout
        self.part = path.with_name(f"{path.name}.part")
        self.about = path.with_name(f"{path.name}.part.json")

    def run(self) -> None:
        """Download, resuming from the partial file, with retries."""
        failed, pause = 0, PAUSE
        with shown_progress(f"download: {self.source} to {self.path}") as progress:
            while True:
                before = self._have()
                try:
                    self._attempt(progress)
                    break
                except _Again as error:
                    if self._have() - before >= CHUNK:
                        failed, pause = 0, PAUSE
                    failed += 1
                    if failed == ATTEMPTS:
                        kept = (
                            f"; the same command goes on after {self._have():,} bytes" if self._have() else ""
                        )
                        raise DataError(f"{self.source} {error} ({ATTEMPTS} attempts{kept})") from error
                    log.info("download: %s %s; trying again", self.source.file, error)
                    time.sleep(min(max(pause, error.pause), LONGEST_PAUSE))
                    pause *= 2
        self._finish()

    def _finish(self) -> None:
        try:
            _check(self.source, self.part, self.path)
        except DataError:
            self._forget()
            raise
        os.replace(self.part, self.path)
        self._forget()

    def _attempt(self, progress: Callable[[int, int | None], None]) -> None:
        known = self._known()
        have = self._have()
        if have and have == known.get("length"):
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "widefield"}
        if have and (known.get("tag") or self.source.sha256):
            headers["Range"] = f"bytes={have}-"
            if known.get("tag"):
                headers["If-Range"] = str(known["tag"])
        with self._said(), self._open(headers) as reply:
            start, length = self._place(reply, have)
            if start and length != known.get("length", length):
                self._forget()
                raise _Again("sends a file of another length than before")
            self._check_length(length, start)
            if start == 0:
                self._begin(reply, length)
            progress(start, length)
            received = self._receive(reply, start, length, progress)
        if length is not None and received < length:
            raise _Again(f"broke off after {received:,} of {length:,} bytes")

    def _place(self, reply: Any, have: int) -> tuple[int, int | None]:
        """Returns the offset at which the response begins, and the length of the file."""
        stated = reply.headers.get("Content-Length")
        if stated is not None and not stated.isdecimal():
            raise DataError(f"{self.source} answered without a length that can be read; try again")
        if getattr(reply, "status", None) != http.HTTPStatus.PARTIAL_CONTENT:
            return 0, int(
                stated
            ) if stated is not None else None  # from the start: the file changed, or ranges are not supported
        unit, _, place = str(reply.headers.get("Content-Range", "")).partition(" ")
        span, _, whole = place.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or first != str(have) or not whole.isdecimal():
            self._forget()
            raise _Again("sent another part of the file than was asked for")
        return have, int(whole)

    def _check_length(self, length: int | None, start: int) -> None:
        if length is None:
            return
        if length > self.source.most:
            self._forget()
            raise self._too_much()
        need_room(self.part.parent, length - start, f"{self.source}")

    def _receive(
        self, reply: Any, start: int, length: int | None, progress: Callable[[int, int | None], None]
    ) -> int:
        """Append the received bytes to the partial file; returns its size."""
        received = start
        read = getattr(reply, "read1", reply.read)  # what is available, not only full chunks: nothing is lost
        with self.part.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            while chunk := read(CHUNK):
                received += len(chunk)
                if received > self.source.most or (length is not None and received > length):
                    self._forget()
                    raise self._too_much()
                file.write(chunk)
                file.flush()
                progress(received, length)
        return received

    def _too_much(self) -> DataError:
        return DataError(f"{self.source} is larger than {self.source.most:,} bytes, the most it may have")

    def _begin(self, reply: Any, length: int | None) -> None:
        """Start a new partial file, and save the tag that identifies the server's version of the file."""
        tag = reply.headers.get("ETag") or ""
        if not tag.startswith('"'):  # a weak ETag does not guarantee identical bytes
            tag = reply.headers.get("Last-Modified") or ""
        self._forget()
        known = {"url": str(self.source), "tag": tag, "length": length}
        self.about.write_text(json.dumps(known), encoding="utf-8")
        self.part.touch()

    def _have(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def _known(self) -> dict[str, Any]:
        """Returns the metadata of the partial file; discards both if they belong to another URL."""
        try:
            known = json.loads(self.about.read_bytes())
        except (OSError, ValueError):
            known = None
        if isinstance(known, dict) and known.get("url") == str(self.source):
            return known
        self._forget()
        return {}

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def _open(self, headers: dict[str, str]) -> Any:
        url, signed = _signed_in(self.source.url)
        request = urllib.request.Request(url, headers=headers)
        if signed:
            request.add_unredirected_header("Authorization", signed)  # for this host only, not for redirects
        opener = urllib.request.build_opener(_Redirects(self.source))
        return opener.open(request, timeout=self.timeout)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Converts connection errors to `DataError`, or to `_Again` if they are transient."""
        try:
            yield
        except urllib.error.HTTPError as error:
            error.close()
            self._answered(error.code, error.reason, error.headers)
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Again(f"did not answer within {self.timeout:g} s") from error
            said = f"cannot be reached ({error.reason})"
            if isinstance(error.reason, OSError) and not isinstance(error.reason, LASTING):
                raise _Again(said) from error
            raise DataError(f"{self.source} {said}") from error
        except TimeoutError as error:
            raise _Again(f"sent nothing for {self.timeout:g} s after {self._have():,} bytes") from error
        except (ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            raise _Again(f"broke off after {self._have():,} bytes") from error

    def _answered(self, code: int, reason: str, headers: Message) -> None:
        if code == BEYOND:
            self._forget()
            raise _Again("has no more than what is here, and it is not whole")
        if code not in PASSING:
            raise DataError(f"{self.source} answered {code} ({reason})")
        asked = str(headers.get("Retry-After", ""))
        raise _Again(f"answered {code} ({reason})", float(asked) if asked.isdecimal() else 0.0)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to another scheme."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        safe = urlsplit(newurl).scheme.lower() == "https"
        if not safe and (req.type == "https" or self.source.sha256 is None):
            raise DataError(
                f"{self.source} sends on to {mask(newurl)}, which is not https; it was not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _signed_in(url: str) -> tuple[str, str | None]:
    """Returns the URL without `USER:PASSWORD@`, and the equivalent Authorization header."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None
    user, _, host = parts.netloc.rpartition("@")
    code = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {code}"


# -- checksums -----------------------------------------------------------------------------------------------------


def record_of(path: Path) -> Path:
    """The file with the checksum of a download for which none is published, in the format of `sha256sum --check`."""
    return path.with_name(f"{path.name}.sha256")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check(source: Source, file: Path, path: Path) -> None:
    """Raise a `DataError` if a file is not the one specified by `source`.

    Without a published checksum, that of the first download is recorded beside ``path`` and compared later.
    """
    found = sha256_of(file)
    if source.sha256 is not None:
        if found != source.sha256:
            advice = "try again" if file != path else "delete it to download it again"
            raise DataError(
                f"{_named(source, file, path)} has checksum {found}, not {source.sha256}; {advice}"
            )
        return
    record = record_of(path)
    if not record.is_file():
        log.info(
            "download: no checksum is published for %s; its own is kept in %s, so that a change is noticed",
            source,
            record,
        )
        draft = record.with_name(f".{record.name}-{os.getpid()}")
        draft.write_text(f"{found}  {path.name}\n", encoding="utf-8")
        os.replace(draft, record)
        return
    before = ""
    with suppress(OSError, ValueError):
        before = record.read_text(encoding="utf-8").partition(" ")[0].strip()
    if found != before:
        raise DataError(
            f"{_named(source, file, path)} has checksum {found}, and had {before[:64]} when it was first downloaded: "
            f"if the change is meant, delete {record}"
        )


def _named(source: Source, file: Path, path: Path) -> str:
    return f"{path}, the file of {source}," if file == path else str(source)
