"""Names from data are text: no formula of a spreadsheet, no markup of the terminal."""

import csv
import os
from pathlib import Path

import pytest

from workbench.console import console, print_table
from workbench.errors import UsageError
from workbench.files import write_table
from workbench.predict import find_files

FORMULAS = ("=1+1", "+1+cmd", "-x", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1")


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    numbers = (-0.5, 1e-3, -1, "-0.5", "+3e-4", "-inf", "text", "a=b", "")
    rows = [{"=path": value, "other": 0} for value in (*FORMULAS, *numbers)]
    write_table(tmp_path / "t.csv", rows, ["=path", "other"])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        head, *cells = [row[0] for row in csv.reader(file)]
    assert head == "'=path"
    assert cells == [*(f"'{formula}" for formula in FORMULAS), *map(str, numbers)]


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.width = 100
    print_table("task [/x]", [("[/x]", "[bold]a[/bold] :smile:"), ("a\x1b[2Jb", "1")], ("[red]", "value"))
    said = capsys.readouterr().out
    for text in ("task [/x]", "[bold]a[/bold] :smile:", "[red]", r"a\x1b[2Jb"):
        assert text in said


def test_only_files_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    os.mkfifo(tmp_path / "b.wav")
    assert find_files(str(tmp_path), (".wav",)) == [tmp_path / "a.wav"]
    assert find_files(str(tmp_path / "*.wav"), (".wav",)) == [tmp_path / "a.wav"]
    with pytest.raises(UsageError, match=r"b.wav is a pipe or a device"):
        find_files(str(tmp_path / "b.wav"), (".wav",))
