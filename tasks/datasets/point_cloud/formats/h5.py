"""Reads HDF5 files in a separate process, which is reused for the next file (`h5_process`)."""

import atexit
import contextlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.reading import require

MEMORY = 8 << 30  # bytes of address space
SECONDS = 60.0  # for one file
PIPE = 1 << 20  # pipe capacity in bytes
F_SETPIPE_SZ = 1031  # of Linux

Check = Callable[[Sequence[int]], None]


class H5Process:
    """The subprocess, started with the first file and restarted after a file that crashed it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.started_by = 0
        self.lock = threading.Lock()

    def arrays(
        self, path: Path, points: Sequence[str], beside: Sequence[str], check: Check
    ) -> tuple[list[str], dict[str, NDArray[Any]]]:
        """The names in a file, and the first existing array of ``points`` (or the only array) with those of ``beside``.

        Args:
            check: raises for a shape that must not be read.

        Raises:
            ReadError: the file is damaged, or contains something other than numeric arrays.
        """
        require("h5py", "HDF5 files")
        with self.lock:
            process = self._running()
            late = threading.Timer(SECONDS, process.kill)
            late.start()
            try:
                return self._ask(process, path, points, beside, check)
            except ReadError:
                raise
            except (EOFError, OSError, ValueError) as error:
                self.end()
                raise ReadError(
                    "it cannot be read as a point cloud (its content ended the process that read it: it is damaged)"
                ) from error
            finally:
                late.cancel()

    def _ask(
        self,
        process: "subprocess.Popen[bytes]",
        path: Path,
        points: Sequence[str],
        beside: Sequence[str],
        check: Check,
    ) -> tuple[list[str], dict[str, NDArray[Any]]]:
        assert process.stdin is not None
        assert process.stdout is not None

        def say(what: Any) -> None:
            process.stdin.write(json.dumps(what).encode() + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

        say({"path": str(path.resolve()), "points": list(points), "beside": list(beside)})
        told = self._told(process)
        problems = [
            f"{array['name']} in it {array['problem']}" for array in told["arrays"] if array["problem"]
        ]
        try:
            if problems:
                raise ReadError(problems[0])
            for array in told["arrays"]:
                check(array["shape"])
        except ReadError:
            say(False)
            raise
        say(True)
        self._told(process)
        found = {}
        for array in told["arrays"]:
            kind = array["kind"]
            if isinstance(kind, list):  # structured dtype; JSON has turned its fields into lists
                kind = [(name, form, *map(tuple, more)) for name, form, *more in kind]
            content = np.empty(math.prod(array["shape"]) * np.dtype(kind).itemsize, np.uint8)
            if process.stdout.readinto(content.data) != len(content):  # type: ignore[attr-defined]
                raise EOFError
            values = content.view(kind).reshape(array["shape"])
            found[array["name"]] = values
        return told["names"], found

    def _told(self, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise EOFError
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise ReadError(f"it cannot be read as a point cloud ({told['error']})")
        return told

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.started_by != os.getpid():  # a forked process must not share its parent's subprocess
            self.process = None
        if self.process is None or self.process.poll() is not None:
            self.end()
            script = Path(__file__).with_name("h5_process.py")
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(script), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is left to the parent
            )
            self.started_by = os.getpid()
            assert self.process.stdout is not None
            if sys.platform == "linux":
                import fcntl

                with contextlib.suppress(OSError):
                    fcntl.fcntl(self.process.stdout, F_SETPIPE_SZ, PIPE)
        return self.process

    def end(self) -> None:
        """End the subprocess, if it was started by this process."""
        if self.process is None or self.started_by != os.getpid():
            return
        process, self.process = self.process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


SHARED = H5Process()
atexit.register(SHARED.end)
