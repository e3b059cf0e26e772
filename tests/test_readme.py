"""What the README tells people to type is true."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image
from tests_support import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)[^\n]*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "run.py" in line
]


def words_of(line: str) -> list[str]:
    """The words after `run.py` in a command line of the README."""
    return shlex.split(line.split("run.py", 1)[1], comments=True)


def test_the_two_commands_come_first() -> None:
    assert COMMANDS[0] == "pip install -e . && python run.py modality=audio task=speech_commands"
    assert README.count("```bash runs-in-ci\n") == 2
    assert "pip install -e '.[dev]' && pytest\n" in README


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line: str, composed: Callable[..., DictConfig]) -> None:
    words = [word for word in words_of(line) if not word.startswith("-")]
    if "-m" in words_of(line):
        words = [word.split(",")[0] for word in words]
    cfg = composed(*words)
    assert cfg.action.name


@pytest.mark.slow
def test_sweep_leaves_four_complete_runs(
    new_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (line,) = [line for line in COMMANDS if "-m backbone" in line]
    done = new_command(tmp_path, *words_of(line), "debug=fast", timeout=500)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    runs = sorted(file.parent for file in sweep.glob("*/result.json"))
    assert len(runs) == 4
    for run in runs:
        assert {"config.yaml", "metrics.csv", "run.log"} <= {file.name for file in run.iterdir()}
        assert (run / "checkpoints" / "best.ckpt").is_file()


def test_python_block_runs() -> None:
    (block,) = [block for kind, block in BLOCKS if kind == "python"]
    exec(compile(block, "README.md", "exec"), {})


def test_files_named_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    tree = re.search(r"^```\nrun\.py .*?^```$", README, re.MULTILINE | re.DOTALL)
    assert tree is not None
    for line in tree.group().splitlines()[1:-1]:
        if line[0] != " ":
            assert (ROOT / line.split()[0]).exists(), line


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, run, workbench.command_line; "
        "heavy = {'torch', 'lightning', 'timm', 'matplotlib'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_on_reading_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "READING.md").read_text()
    named = set(re.findall(r"\btest_\w+(?=[`\[])", page)) - {"test_from"}
    source = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 60
    assert {name for name in named if f"def {name}(" not in source} == set()


def test_every_case_has_a_test_beside_it() -> None:
    """A row of a table of outcomes ends with the tests that show it."""
    page = (ROOT / "docs" / "READING.md").read_text()
    rows, tested = 0, False
    for line in page.splitlines():
        if not line.startswith("|"):
            tested = False
        elif " test" in line.split("|")[-2] and not re.search(r"`test_\w+`|::test_", line):
            tested = True
        elif tested and not line.startswith("|---"):
            rows += 1
            assert re.search(r"test_\w+|the same", line.split("|")[-2]), line
    assert rows > 50


def test_pictures_of_drawn_data_say_so() -> None:
    """Those of probes and sweeps are all of embedded samples: below each stands the red line of `say_provenance`."""
    red_RGB = np.array([214, 39, 40])
    pictures = [*(ROOT / "docs" / "probes").glob("*.png"), *(ROOT / "docs" / "sweeps").glob("*.png")]
    assert pictures
    for file in pictures:
        with Image.open(file) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"), dtype=int)
        line_HWC = pixels_HWC[-24:]
        red_HW = np.abs(line_HWC - red_RGB).max(axis=-1) < 40
        assert red_HW.sum() > 50, f"{file.name} does not say that its data are drawn"
