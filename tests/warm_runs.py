"""Runs of `python run.py …` without its start: a process that has imported everything, and made a run, forks itself.

    with WarmRuns(samples, *WORDS) as runs:
        run = runs.start(folder, "task=audio_folder")
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait() == 143

As a script it is that process: it reads requests as lines of JSON and answers each with one.
"""

import json
import os
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
        samples: folder of the embedded samples.
        *words: of every run; the first one, made to import everything, has these alone.
    """

    def __init__(self, samples: Path, *words: str) -> None:
        self.words = [f"paths.samples={samples}", *words]
        self.turn = threading.Lock()  # one request at a time

    def __enter__(self) -> "WarmRuns":
        environ = os.environ | {
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
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

    def paste(self, folder: Path, command: list[str], output: Path) -> WarmRun:
        """A command as a shell splits it, without `python`."""
        pid = self.ask(start={"folder": str(folder), "command": command, "output": str(output)})
        return WarmRun(self, pid, output)

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.turn:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())


def _serve(words: list[str], answers: IO[str]) -> None:
    _make_a_run(words)
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


def _fork(folder: str, command: list[str], output: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for number, flags in (
            (0, os.O_RDONLY),
            (1, os.O_WRONLY | os.O_APPEND),
            (2, os.O_WRONLY | os.O_APPEND),
        ):
            os.dup2(os.open(output if number else os.devnull, flags), number)
        os.chdir(folder)
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
