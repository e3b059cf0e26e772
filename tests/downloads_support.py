"""Archives, and an https server on this machine that cuts, stalls and lies as it is told."""

import io
import re
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests_support import ROOT

CERTIFICATE = ROOT / "tests" / "fixtures" / "localhost.pem"  # signed by itself, with its key, until 2126


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


@dataclass
class Reply:
    """How one request is answered.

    Args:
        status: other than 200 or 206: nothing but this is sent.
        headers: beside the usual ones; None leaves a usual one out.
        cut: bytes of the body after which the connection ends.
        stall: bytes of the body after which nothing comes until the server ends.
        ranges: whether a part is sent where one is asked for.
        extra: bytes sent without having been announced; then no length is stated.
    """

    status: int = 200
    headers: dict[str, str | None] = field(default_factory=dict)
    cut: int | None = None
    stall: int | None = None
    ranges: bool = True
    extra: int = 0


@dataclass
class Server:
    """What is served, how the next requests are answered, and what was asked and sent."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)  # headers of every request
    sent: list[int] = field(default_factory=list)  # bytes of every body
    ending: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(secure: bool = True) -> Iterator[Server]:
    """A server, of https with the certificate in `CERTIFICATE`, or of http."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            how = server.replies.pop(0) if server.replies else Reply()
            server.asked.append(dict(self.headers))
            content = server.files.get(self.path.partition("?")[0])
            if content is None or how.status != 200:
                self.answer(404 if content is None else how.status, how.headers, 0)
                server.sent.append(0)
                return
            tag = f'"{md5(content).hexdigest()}"'
            start, span = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if span and how.ranges and self.headers.get("If-Range", tag) == tag:
                start = int(span[1])
            usual: dict[str, str | None] = {"ETag": tag, "Content-Length": str(len(content) - start)}
            if start:
                usual["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if how.extra:
                usual["Content-Length"] = None
            self.answer(206 if start else 200, usual | how.headers, None)
            body = content[start:] + bytes(how.extra)
            stop = how.cut if how.cut is not None else how.stall
            body = body if stop is None else body[:stop]
            server.sent.append(len(body))
            with suppress(OSError):  # whoever asked has gone
                self.wfile.write(body)
                self.wfile.flush()
            if how.stall is not None:
                server.ending.wait()

        def answer(self, status: int, headers: dict[str, Any], length: int | None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value is not None:
                    self.send_header(name, value)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a certificate that is not trusted ends in one

    with Quiet(("127.0.0.1", 0), Handler) as running:
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            running.socket = context.wrap_socket(
                running.socket, server_side=True, do_handshake_on_connect=False
            )
        server = Server(f"http{'s' if secure else ''}://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            running.shutdown()
            thread.join()
