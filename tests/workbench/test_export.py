"""action=export: the files answer as the checkpoint's network does, and model.json says what goes in and comes out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from tests_support import TINY, given_task
from torch import Tensor

from workbench import export as exporting
from workbench.errors import TrainingError, UsageError
from workbench.export_shapes import dynamic_shapes, fitted, input_shapes, output_shapes, resized
from workbench.restore import restore

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch reading back its export

SMALL = (*TINY, "task.data.limit=8", "task.data.batch_size=4", "logger=csv", "action.test_after=false")
IMAGES = (*SMALL, "modality=image", "task=image_folder", "task.data.transforms.size=32")
JOINT = (
    "experiment=joint/four_modalities",
    "task@task.members.audio.task=audio_folder",
    "~task.members.point_cloud",
    "~task.members.video",
)
SERIES = (*SMALL, "modality=time_series", "task=csv_forecast", "task.data.look_back=28", "task.data.horizon=7")
TINY_TIMM = ("trainer=cpu", "trainer.max_epochs=1", *SMALL[len(TINY) :])


def tables(folder: Path, kinds: str) -> Path:
    """Series with covariates, with gaps, or several of them."""
    rng = np.random.default_rng(0)
    count = 3 if "several" in kinds else 1
    parts = []
    for number in range(count):
        dates = pd.date_range("2020-01-01", periods=200)
        frame = pd.DataFrame({"date": dates, "event": rng.random(200), "noise": rng.normal(size=200)})
        frame["y"] = 50 * number + frame["event"] + rng.normal(size=200)
        frame["z"] = rng.normal(size=200)
        frame["area"] = 3.5 + number
        if count > 1:
            frame["series_id"] = f"s{number}"
        if "gaps" in kinds:
            frame.loc[rng.choice(150, 20, replace=False), "y"] = np.nan
        parts.append(frame)
    path = folder / "tables.csv"
    pd.concat(parts).to_csv(path, index=False)
    return path


COVARIATES = (
    "task.data.target=[y,z]",
    "task.data.known=[event]",
    "task.data.past=[noise]",
    "task.data.static=[area]",
)
CASES: dict[str, tuple[str, ...]] = {
    "image": IMAGES,
    "radhar": (*SMALL, "modality=point_cloud", "task=radhar", "modality.embedder.num_points=64"),
    "points": (*SMALL, "modality=point_cloud", "task=modelnet10", "modality.embedder.num_points=64"),
    "video": (
        *(*SMALL, "modality=video", "task=video_folder"),
        *("modality.embedder.frames=4", "modality.embedder.size=16"),
    ),
    "segmentation": (
        *(*SMALL, "modality=image", "task=mask_folder", "task.data.transforms.size=64"),
        "task.head.channels=8",
    ),
    "sound_events": (*SMALL, "task=sound_events", "task.head.channels=8"),
    "covariates": (*SERIES, "data_dir=COVARIATES", *COVARIATES),
    "covariates_tokens": (
        *(*SERIES, "data_dir=COVARIATES", *COVARIATES),
        *("modality/embedder=token_map", "modality.embedder.width=16"),
    ),
    "gaps": (*SERIES, "data_dir=GAPS", "task.data.target=[y,z]"),
    "several_series": (*SERIES, "data_dir=SEVERAL", "task.data.target=[y,z]"),
    "timm": (
        *(*TINY_TIMM, "modality=image", "task=image_folder", "task.data.transforms.size=32"),
        *("backbone=timm", "backbone.name=resnet10t"),
    ),
    "ema": (*SMALL, "task=audio_folder", "callbacks=ema", "optimizer.lr=0.05"),
    "member": (*SMALL, *JOINT),
}
MEMBERS = {"member": "@audio"}
QUICK = ("image", "several_series", "ema")


def prepared(words: tuple[str, ...], folder: Path) -> list[str]:
    made = {kinds: str(folder / "tables.csv") for kinds in ("COVARIATES", "GAPS", "SEVERAL")}
    for word in words:
        kinds = word.removeprefix("data_dir=")
        if kinds in made:
            tables(folder, kinds.lower())
    return [word if word[9:] not in made else f"data_dir={made[word[9:]]}" for word in words]


def drawn(task: Any, size: int = 2) -> Any:
    """A raw batch that the export has not seen, with values missing where some may be."""
    torch.manual_seed(7)
    raw = task.network.embedder.example_raw(size)
    if isinstance(raw, dict) and "observed" in raw:
        raw["observed"] = (torch.rand_like(raw["observed"]) > 0.3).float()
    return raw


def answers(folder: Path, raw: Any, about: dict[str, Any]) -> dict[str, Tensor]:
    """What both files answer, the ONNX file with the names of model.json."""
    import onnxruntime

    program = torch.export.load(folder / "model.pt2").module()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry["name"] for entry in about["inputs"]]
    assert [node.name for node in session.get_inputs()] == names
    assert [node.name for node in session.get_outputs()] == [entry["name"] for entry in about["outputs"]]
    given = {name: (raw[name] if isinstance(raw, dict) else raw).numpy() for name in names}
    (onnx,) = session.run(None, given)
    with torch.no_grad():
        return {"torch_export": program(raw), "onnx": torch.from_numpy(onnx)}


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_both_files_answer_as_the_restored_network(
    case: str, act: Act, composed: Compose, samples: Path, tmp_path: Path
) -> None:
    run = act(*prepared(CASES[case], tmp_path), folder="fit")
    checkpoint = f"ckpt={run}{MEMBERS.get(case, '')}"
    folder = act("trainer=cpu", "action=export", checkpoint, folder="exported") / "export"
    about = json.loads((folder / "model.json").read_text())
    assert about["files"] == ["model.pt2", "model.onnx"]
    task = restore(composed("trainer=cpu", "action=export", checkpoint, f"paths.samples={samples}")).task
    raw = drawn(task)
    with torch.inference_mode():
        wanted = task.network(raw)
    assert wanted.std() > 0
    for name, given in answers(folder, raw, about).items():
        assert task.difference(given, wanted) < 1e-4, name
    for kind in ("inputs", "outputs"):
        for entry in about[kind]:
            assert len(entry["axes"]) == len(entry["shape"]), entry
            assert entry["axes"][0] == entry["shape"][0] == "batch"
            assert entry["meaning"]
    if case == "ema":
        content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        task.load_state_dict(content["training_state_dict"])
        with torch.inference_mode():
            assert task.difference(wanted, task.network(raw)) > 1e-2, "the average is of other weights"
