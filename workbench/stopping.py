"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 end what this process does: after a step that can be saved, else at once.

Only standard library: `run.py` heeds signals before it imports anything heavy. The process has one `STOP`, on which
`workbench.callbacks.interrupt` acts while it trains.
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
TOLD = signal.SIGUSR2  # from one process of a distributed run to another: a signal has come
UNHEEDED = b"\0"  # beside the numbers of signals: heed no more
SAME = 0.5  # seconds in which a second signal is the first one, sent to the process and to its group
PATIENCE = 12.0  # seconds that a step or a validation is given to end
LEAVING = 6.0  # seconds that cleaning up is given, before the process ends wherever it is

STARTED_BY = "WIDEFIELD_PARENT"  # process id of who started this one and waits for it
STARTED_FOR_A_RUN = (
    os.environ.get(STARTED_BY) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"
)


class Interrupted(SystemExit):
    """A signal ended the run; no `except Exception` of a library holds it up.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(exit_code(number))
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"

    def end(self) -> NoReturn:
        """Say it, unless that has been done, and end the process, without waiting for what libraries still hold."""
        if not (STOP.said or STARTED_FOR_A_RUN):
            print(self, file=sys.stderr)
        atexit._run_exitfuncs()
        _flush()
        os._exit(exit_code(self.number))


class Stop:
    """What has become of a signal to this process.

    Attributes:
        number: the signal; None: there was none.
        said: whether the user has been told what became of the run.
        waits: whether the run itself looks for a signal, after every step, and saves. Otherwise a signal raises
            `Interrupted` where it arrives.
        patience: seconds that a run which looks for itself is given.
        say: what is said if the process has to be ended from outside its own flow; `""`: nothing.
        tell: lets the other processes of this run know.
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
        """Seconds since the signal came."""
        return 0.0 if self._came is None else time.monotonic() - self._came

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While a checkpoint is written nobody loses patience."""
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed signals, and put back what was there before; where they are heeded already, nothing changes."""
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
        """Heed signals from now on; returns what undoes it. What `nohup` ignores stays ignored."""
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
            with suppress(BlockingIOError):  # full of signals: its end must do
                os.write(
                    told, UNHEEDED
                )  # its end alone never comes while a process started meanwhile holds it, too
            os.close(told)
            watch.join()
            self.heeding = False

        return undo

    def leave(self) -> Interrupted:
        """The exception to raise; from now on the process has `LEAVING` seconds to end.

        Libraries that it breaks into warn of it, PyTorch's differentiation with a traceback: that is not shown.
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
        """Tell the others of a signal, and lose patience with what runs too long: by an exception, then by force."""
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
    """128 + the signal, as in a shell; 0 in a process that the run's first one has started and waits for: that one
    would take another for a crash, and be killed for it while it saves."""
    return 0 if STARTED_FOR_A_RUN else 128 + number


def _let_go_of(terminal: list[int]) -> None:
    """A terminal that is closed takes no more words, which would be an error in the middle of saving."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in terminal:
        os.dup2(nowhere, number)


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


STOP = Stop()
