"""The terminal as a person sees it: whole lines in order, bars below them that vanish, plain lines elsewhere."""

import re
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from terminal_support import BAR, command_in_terminal, screens, unfolded
from tests_support import ROOT, TINY

from workbench.callbacks.progress import Progress
from workbench.console import WholeConsole

WIDTHS = (80, 110, 160)
SCRIPT = Path(__file__).parent / "short_training.py"
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `short_training.py` wrote: `80.raw`, …, and `piped`."""
    folder = tmp_path_factory.mktemp("terminal")
    with (folder / "piped").open("wb") as file:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), *map(str, WIDTHS)],
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
    assert done.returncode == 0, (folder / "piped").read_text()
    return folder


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def frames(trained: Path, width: int) -> list[list[str]]:
    return list(screens((trained / f"{width}.raw").read_bytes(), width))


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"\(\d+ s\)$", "(s)", line) for line in lines]


def spaced(text: str) -> str:
    """Folding may put one space or two between words."""
    return " ".join(text.split())


def test_lines_are_whole_and_in_order_and_the_bars_are_gone(trained: Path, width: int) -> None:
    plain = (trained / "piped").read_text(encoding="utf-8").splitlines()
    last = frames(trained, width)[-1]
    assert not [row for row in last if BAR in row]
    assert all(last)
    seen = [spaced(line) for line in without_times(unfolded(last))]
    said = [spaced(line.replace("\x1b[31m", "")) for line in without_times(plain)]
    # A warning is the one thing that is folded by the display and not by us.
    assert " ".join(seen) == " ".join(said)
    epochs = [line for line in seen if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == [f"{number}/9" for number in range(1, 10)]
    assert all(line.endswith("(s)") and "val/other" in line for line in epochs)


def test_lines_are_whole_while_it_goes_on(trained: Path, width: int) -> None:
    *before, last = frames(trained, width)
    assert len(before) > 50
    bars = validating = 0
    for rows in before:
        lines = [row for row in rows if BAR not in row]
        assert lines == last[: len(lines)]
        below = rows[len(lines) :]
        assert len(below) <= 2
        assert all(BAR in row for row in below)  # the bars are the last rows, so none is stale
        bars += bool(below)
        validating += any(row.startswith("validation") for row in below)
    assert bars > 50
    assert 0 < validating < bars


def test_no_line_is_wider_than_the_terminal(trained: Path, width: int) -> None:
    said = CONTROL.sub(b"", (trained / f"{width}.raw").read_bytes()).decode("utf-8")
    assert max(len(line) for line in re.split(r"[\r\n]+", said)) <= width


def test_a_pipe_gets_plain_lines(trained: Path) -> None:
    said = (trained / "piped").read_text(encoding="utf-8")
    assert "\r" not in said
    assert BAR not in said
    assert said.count("\x1b") == 1  # what a library itself printed
    lines = said.splitlines()
    assert sum(line.startswith("epoch ") and line.endswith(" s)") for line in lines) == 9
    assert not [line for line in lines if line.startswith("  ") and "warnings.warn" not in line]


class Slow(StringIO):
    """A terminal that takes a moment for every piece, so that threads meet in the middle of one."""

    def write(self, text: str) -> int:
        time.sleep(0.0005)
        return super().write(text)


def test_threads_print_beside_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    said = WholeConsole(file=Slow(), force_terminal=True, force_interactive=True, width=80, height=24)
    monkeypatch.setattr("workbench.callbacks.progress.console", said)
    monkeypatch.setattr("workbench.callbacks.progress.DRAWN_EVERY", 0.0)
    bars = Progress()
    done = threading.Event()
    spoken = {"one": 0, "two": 0}

    def speak(name: str) -> None:
        while not done.is_set():
            said.print(f"{name} {spoken[name]}")
            spoken[name] += 1
            time.sleep(0.001)

    speakers = [threading.Thread(target=speak, args=(name,)) for name in spoken]
    for speaker in speakers:
        speaker.start()
    for step in range(40):
        bars._show("train", "epoch", step, 40)
        bars._show("val", "validation", step, 40)
        bars._hide("val")
    done.set()
    for speaker in speakers:
        speaker.join()
    bars._close()
    assert isinstance(said.file, Slow)
    last = list(screens(said.file.getvalue().replace("\n", "\r\n").encode(), 80))[-1]
    for name, number in spoken.items():
        assert [row for row in last if row.startswith(name)] == [f"{name} {turn}" for turn in range(number)]
    assert len(last) == sum(spoken.values()) > 2


@pytest.mark.slow
@pytest.mark.parametrize("columns", WIDTHS)
def test_a_run_in_a_terminal(columns: int, samples: Path, tmp_path: Path) -> None:
    words = [
        *TINY,
        "modality=audio",
        "trainer.max_epochs=3",
        "task.data.limit=64",
        f"paths.samples={samples}",
    ]
    code, said = command_in_terminal([sys.executable, str(ROOT / "run.py"), *words], columns, tmp_path)
    *before, last = list(screens(said, columns))
    assert code == 0, "\n".join(last)
    lines = unfolded(last)
    at = [number for number, line in enumerate(lines) if re.match(r"epoch \d/3 .*val/loss.*\(\d+ s\)$", line)]
    assert [lines[number][6] for number in at] == ["1", "2", "3"]
    assert not [row for row in last if re.search(r"━+ +\d+/\d+", row)]
    assert any(BAR in row and "epoch" in row for rows in before for row in rows)
    rows = CONTROL.sub(b"", said).decode().splitlines()
    commands = [row.split() for row in rows if f"python {ROOT / 'run.py'} " in row]
    # Whole, however long, so that they can be copied.
    assert [words[2] for words in commands] == ["action=predict", "action=export"]
    assert all(words[-1].startswith(("input=", "ckpt=")) for words in commands)
