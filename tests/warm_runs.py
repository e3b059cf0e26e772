"""Runs of `python run.py …` without its start: a process that has imported everything forks itself for each of them.

    with WarmRuns(f"paths.samples={samples}", *WORDS) as runs:
        run = runs.start(folder, "task=audio_folder")
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait() == 143

With words it has made a run of them too. As a script it is that process: it reads requests as lines of JSON and answers
each with one.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from workbench.stopping import SIGNALS, STOP, Interrupted  # noqa: E402


@dataclass
class WarmRun:
    """A run in a process group of its own, whose number is `pid`."""

    runs: "WarmRuns"
    pid: int
    output: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it goes on."""
        if self.code is None:
            self.code = self.runs.ask(wait=self.pid)
        return self.code

    def wait(self, timeout: float = 120) -> int:
        """Its exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)
        return code

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")


class WarmRuns:
    """Starts runs.

    Args:
        *words: of every run; the first one, made to have everything ready, has these alone. Without words none is made.
        packages: a folder of packages that the runs find beside the program.
    """

    def __init__(self, *words: str, packages: Path = ROOT / "tests") -> None:
        self.words = words
        self.packages = packages
        self.turn = threading.Lock()  # one request at a time

    def __enter__(self) -> "WarmRuns":
        environ = os.environ | {
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            "PYTHONPATH": f"{ROOT}:{self.packages}",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, *self.words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def start(self, folder: Path, *words: str) -> WarmRun:
        """`python run.py …` in `folder`."""
        handle, output = tempfile.mkstemp(".txt", dir=folder)
        os.close(handle)
        command = [str(ROOT / "run.py"), *self.words, *words]
        return self.paste(folder, command, Path(output))

    def finish(
        self, folder: Path, *words: str, timeout: float, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """`python run.py …` in `folder`, to its end, in the environment of this process and `environ`."""
        command = [str(ROOT / "run.py"), *self.words, *words]
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place) / "out", Path(place) / "err"
            for file in (out, err):
                file.touch()
            run = self.paste(folder, command, out, err, os.environ | {"COLUMNS": "160"} | environ)
            try:
                code = run.wait(timeout)
            except BaseException:
                os.killpg(run.pid, signal.SIGKILL)
                raise
            said = [file.read_text(encoding="utf-8") for file in (out, err)]
        return subprocess.CompletedProcess(command, code, *said)

    def paste(
        self,
        folder: Path,
        command: list[str],
        output: Path,
        errors: Path | None = None,
        environ: dict[str, str] | None = None,
    ) -> WarmRun:
        """A command as a shell splits it, without `python`; its errors go to `output` too unless they have a file."""
        how = {"folder": str(folder), "command": command, "output": str(output)}
        pid = self.ask(start=how | {"errors": str(errors or output), "environ": environ})
        return WarmRun(self, pid, output)

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.turn:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())


def _serve(words: list[str], answers: IO[str]) -> None:
    if words:
        _make_a_run(words)
    else:
        _import_everything()
    assert threading.active_count() == 1, "a fork would lose threads"
    signal.pthread_sigmask(
        signal.SIG_BLOCK, SIGNALS
    )  # a run that has just been forked heeds them in a moment
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: int | None = _fork(**request["start"])
        else:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), file=answers, flush=True)


def _make_a_run(words: list[str]) -> None:
    from hydra import compose, initialize_config_dir

    from workbench.actions import run_action
    from workbench.resolvers import register_resolvers

    register_resolvers()
    with tempfile.TemporaryDirectory() as folder:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            short = ("task.data.num_workers=0", "trainer.max_epochs=1", "trainer.limit_train_batches=2")
            cfg = compose("config", [*words, *short, f"paths.run={folder}/run"])
        run_action(cfg)


def _import_everything() -> None:
    """All modules of the program but kernels, which some machines cannot import, and what is a program itself."""
    import tensorboard.summary.v1  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    for package in ("modalities", "backbone", "tasks", "workbench"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.startswith(("backbone.kernels", "workbench.doctor", "workbench.start")):
                importlib.import_module(module.name)


def _fork(folder: str, command: list[str], output: str, errors: str, environ: dict[str, str] | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for number, path, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, output, os.O_WRONLY | os.O_APPEND),
            (2, errors, os.O_WRONLY | os.O_APPEND),
        ):
            os.dup2(os.open(path, flags), number)
        os.chdir(folder)
        if environ is not None:
            os.environ.clear()
            os.environ.update(environ)
        sys.argv = command
        STOP.heed()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what has come until now is told in its own output
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except Interrupted as stop:
        stop.end()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):  # as the interpreter does
            print(stop.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import atexit
        import logging

        logging.shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    _serve(sys.argv[1:], answers)
