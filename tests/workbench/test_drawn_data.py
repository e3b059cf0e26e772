"""What is made from a drawn sample says so, in every picture, table and file; what is made from real data does not."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from tests_support import TINY

from workbench.actions import run_action

Act = Callable[..., Path]
STATE = {"composition.json", "error.json"}  # of the run itself, not of its data
QUICK = ("debug=fast", "logger=csv")
OF_EACH = {
    "audio": ("recordings of your own", ("task=audio_folder",)),
    "time_series": ("ETTh1", ("modality=time_series",)),
    "point_cloud": ("ModelNet10", ("modality=point_cloud", "modality.embedder.out_size=32")),
    "video": ("videos of your own", ("modality=video", "task=video_folder", "task.data.size=48")),
    "image": ("pictures of your own", ("modality=image", "task.data.transforms.size=64")),
}


@pytest.fixture(scope="module")
def pictures() -> Iterator[dict[str, str]]:
    """Final name of every picture written -> all the texts in it."""
    found: dict[str, str] = {}
    save = Figure.savefig

    def spied(self: Figure, target: Any, *args: Any, **kwargs: Any) -> None:
        draft = Path(target)
        name = draft.name.removeprefix(".").rpartition("-")[0]
        found[str(draft.parent / name)] = " ".join(text.get_text() for text in self.findobj(lambda part: hasattr(part, "get_text"))).replace("\n", " ")
        save(self, target, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", spied)
        yield found


def of_drawn_data(folder: Path, pictures: dict[str, str], note: str) -> dict[str, bool]:
    """Every picture, table and JSON file of a run -> whether it carries the note."""
    said: dict[str, bool] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".png":
            said[name] = note in pictures[str(file)]
        elif file.suffix == ".csv":
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines))
            said[name] = bool(rows) and all(row.get("drawn") == note for row in rows)
        elif file.suffix == ".json" and file.name not in STATE:
            said[name] = json.loads(file.read_text()).get("drawn") == note
    return said


@pytest.mark.parametrize("modality", OF_EACH)
def test_a_run_of_each_modality(modality: str, act: Act, pictures: dict[str, str], capsys: Any) -> None:
    title, words = OF_EACH[modality]
    note = f"drawn sample, not {title}"
    run = act(*TINY, *words, *QUICK)
    said = of_drawn_data(run, pictures, note)
    assert {"result.json", "metrics.csv", "test_report.json", "figures/inputs.png"} <= set(said)
    assert said == dict.fromkeys(said, True)
    assert note in capsys.readouterr().out
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["widefield"]["drawn"] == [title]
