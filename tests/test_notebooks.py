"""The notebooks as they are committed: all there, executed from top to bottom, fit to be read anywhere.

That they run is tested by executing them: `pytest --nbmake notebooks`, see `.ci/run`.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests_support import ROOT

NAMES = (
    "01_quickstart",
    "02_one_backbone_four_modalities",
    "03_effective_receptive_field",
    "04_shape_bias",
    "05_reparameterisation_and_speed",
    "06_reading_a_sweep",
    "07_add_your_own_modality",
    "08_segment_and_detect",
)
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|work|Users|mnt|opt|usr|var|private)/\w|\b[A-Z]:\\\w")
WARNING = re.compile(r"\b\w*Warning\b|\bWARNING\b")
LARGEST = 1_500_000  # bytes
WITHOUT_DATA = {"03_effective_receptive_field": 1, "05_reparameterisation_and_speed": 2}  # pictures


def notebook(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return content


def code_cells(name: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]


def texts(output: dict[str, Any]) -> str:
    """All that a reader sees of an output, pictures aside."""
    parts = [output.get("text", "")]
    parts += [part for kind, part in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(part) for part in parts)


def test_all_are_there_and_no_other() -> None:
    assert sorted(file.stem for file in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_executed_from_top_to_bottom_without_errors(name: str) -> None:
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [found for output in outputs if (found := WARNING.search(texts(output)))]
    assert [output for output in outputs if "image/png" in output.get("data", {})], "no picture"


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_drawn_data_say_so(name: str) -> None:
    """All pictures but those of random numbers (and of times) have the line of `say_provenance`."""
    cells = code_cells(name)
    says = r"\bsay_provenance\("
    for cell in cells:  # functions that draw, and say it
        source = "".join(cell["source"])
        if re.search(says, source):
            says = "|".join([says, *(rf"\b{found}\(" for found in re.findall(r"def (\w+)\(", source))])
    drawn = [
        "".join(cell["source"])
        for cell in cells
        if any("image/png" in output.get("data", {}) for output in cell["outputs"])
    ]
    silent = [source for source in drawn if not re.search(says, source)]
    assert len(silent) == WITHOUT_DATA.get(name, 0), silent


@pytest.mark.parametrize("name", NAMES)
def test_says_nothing_of_the_machine(name: str) -> None:
    file = ROOT / "notebooks" / f"{name}.ipynb"
    assert file.stat().st_size < LARGEST
    for cell in notebook(name)["cells"]:
        shown = ["".join(cell["source"]), *map(texts, cell.get("outputs", []))]
        assert not [found for text in shown if (found := MACHINE_PATH.search(text))]
    assert set(notebook(name)["metadata"]) == {"kernelspec", "language_info"}
    assert notebook(name)["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_uses_nothing_private(name: str) -> None:
    for cell in code_cells(name):
        source = "".join(cell["source"])
        assert not re.search(r"(?:import|\.)\s*_[a-z]\w*", source), source


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    words = "".join("".join(cell["source"]) for cell in notebook(name)["cells"])
    for target in re.findall(r"\]\(([^)#]+)\)", words):
        assert target.startswith("http") or (ROOT / "notebooks" / target).exists(), target


def test_readme_names_them() -> None:
    readme = Path(ROOT / "README.md").read_text(encoding="utf-8")
    assert "notebooks/" in readme
    assert [name for name in NAMES if f"notebooks/{name}.ipynb" not in readme] == []
