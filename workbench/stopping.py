"""Handles SIGINT, SIGTERM, SIGHUP and SIGUSR1: ends the process, after a step that can be saved or else at once.

Standard library only: `run.py` installs the handlers before it imports anything heavy. The process has one `STOP`,
which `workbench.callbacks.interrupt` acts on during training.
"""

import atexit
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
TOLD = signal.SIGUSR2  # tells other processes of a distributed run of a signal
UNHEEDED = b"\0"  # written among signal numbers: stop watching
SAME = 0.5  # seconds within which a second signal is the same one, sent to the process and its group
PATIENCE = 12.0  # seconds that a step or a validation has to finish
LEAVING = 6.0  # seconds for cleaning up, before the process is ended by force

STARTED_BY = "WIDEFIELD_PARENT"  # process id of the parent that waits for this process
STARTED_FOR_A_RUN = (
    os.environ.get(STARTED_BY) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"
)


class Interrupted(SystemExit):
    """A signal ended the run; not caught by `except Exception` in libraries.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(exit_code(number))
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"

    def end(self) -> NoReturn:
        """Print the message, unless that has been done, and exit without waiting for what libraries still hold."""
        if not (STOP.said or STARTED_FOR_A_RUN):
            print(self, file=sys.stderr)
        atexit._run_exitfuncs()
        _flush()
        os._exit(exit_code(self.number))


class Stop:
    """State of signal handling in this process.

    Attributes:
        number: the signal; None if there was none.
        said: whether the final message has been printed.
        waits: whether the run itself checks for a signal after every step, and saves. Otherwise a signal raises
            `Interrupted` at once.
        patience: returns the seconds that a run with `waits` has to react.
        say: returns the message for a process that is ended by force; `""`: none.
        tell: notifies the other processes of this run.
    """

    def __init__(self) -> None:
        self.heeding = False
        self._quiet: warnings.catch_warnings[None] | None = None
        self._forget()

    def _forget(self) -> None:
        self.number: int | None = None
        self.said = False
        self.waits = False
        self.patience: Callable[[], float] = lambda: PATIENCE
        self.say: Callable[[], str] = lambda: ""
        self.tell: Callable[[], None] = lambda: None
        self._came: float | None = None
        self._left: float | None = None
        self._hurried = False
        self._writing = 0
        if self._quiet is not None:
            self._quiet.__exit__(None, None, None)
            self._quiet = None

    @property
    def waited(self) -> float:
        """Seconds since the signal arrived; 0 without a signal."""
        return 0.0 if self._came is None else time.monotonic() - self._came

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Suspend the timeouts while a checkpoint is written."""
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Handle signals in this context and restore the previous handlers; no effect if they are handled already."""
        if self.heeding or threading.current_thread() is not threading.main_thread():
            yield
            return
        undo = self.heed()
        try:
            yield
        finally:
            undo()
            self._forget()

    def heed(self) -> Callable[[], None]:
        """Install the signal handlers; returns a function that removes them. A SIGHUP ignored by `nohup` stays
        ignored."""
        self.heeding = True
        terminal = [number for number in (0, 1, 2) if _is_terminal(number)]
        heard, told = os.pipe()
        os.set_blocking(told, False)
        former = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        wanted = [number for number in (*SIGNALS, TOLD) if not (number == signal.SIGHUP and ignored)]
        before = {number: signal.signal(number, self._arrived) for number in wanted}
        # In a thread, because no handler runs while the main thread waits inside a library.
        watch = threading.Thread(target=self._watch, args=(heard, terminal), daemon=True)
        watch.start()

        def undo() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(former)
            with suppress(BlockingIOError):  # the pipe is full: closing it must do
                os.write(
                    told, UNHEEDED
                )  # closing alone has no effect while a child process holds the pipe, too
            os.close(told)
            watch.join()
            self.heeding = False

        return undo

    def leave(self) -> Interrupted:
        """Return the exception to raise; from now on the process has `LEAVING` seconds to end.

        Warnings of the libraries it interrupts (e.g. of autograd, with a traceback) are suppressed.
        """
        self.waits = False
        if self._quiet is None:
            self._quiet = warnings.catch_warnings(action="ignore")
            self._quiet.__enter__()
        self._left = time.monotonic()
        return Interrupted(self.number or signal.SIGTERM)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self._note(number)
            if not self.waits:
                raise self.leave()
        elif self._left is None and (self._hurried or (number != TOLD and self.waited > SAME)):
            raise self.leave()
        elif self._left is not None and number != TOLD and time.monotonic() - self._left > SAME:
            self._end()  # it is cleaning up already

    def _note(self, number: int) -> None:
        self._came = self._came or time.monotonic()
        self.number = signal.SIGTERM if number == TOLD else number

    def _watch(self, heard: int, terminal: list[int]) -> None:
        """Notify the other processes of a signal, and end what exceeds its time: by an exception, then by force."""
        first: int | None = None
        while True:
            ready, _, _ = select.select([heard], [], [], None if first is None else 0.1)
            if ready:
                numbers = os.read(heard, 64)
                if not numbers:
                    os.close(heard)
                    return
                if first is None and (
                    first := next((one for one in numbers if one in (*SIGNALS, TOLD)), None)
                ):
                    self._came = self._came or time.monotonic()
                    if first == signal.SIGHUP:
                        _let_go_of(terminal)
                    self.tell()
                if UNHEEDED[0] in numbers:
                    os.close(heard)
                    return
            if first is not None and not self._writing:
                self._hurry(first)

    def _hurry(self, number: int) -> None:
        late = self.waited - self.patience()
        if self._left is not None:
            late = time.monotonic() - self._left
        elif late > 0 and not self._hurried:
            self._hurried = True
            ident = threading.main_thread().ident
            assert ident is not None
            signal.pthread_kill(ident, TOLD)  # also ends a wait inside a system call
        if late > LEAVING:
            self.number = self.number or (signal.SIGTERM if number == TOLD else number)
            self._end()

    def _end(self) -> None:
        if not self.said and (said := self.say()):
            with suppress(OSError, ValueError):
                print(said, file=sys.stderr)
        _flush()
        os._exit(exit_code(self.number or signal.SIGTERM))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def exit_code(number: int) -> int:
    """128 + the signal, as in a shell; 0 in a process started by the run's first one, which would take another code
    for a crash and kill this process while it saves."""
    return 0 if STARTED_FOR_A_RUN else 128 + number


def _let_go_of(terminal: list[int]) -> None:
    """Redirect the streams of a closed terminal to the null device: writing to them would fail while saving."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in terminal:
        os.dup2(nowhere, number)


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


STOP = Stop()
