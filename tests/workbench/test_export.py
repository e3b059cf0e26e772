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
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY, Given, Identity, Pass
from torch import Tensor, nn

from tasks.classification import ClassificationTask
from tasks.detection import DetectionTask
from tasks.forecasting import ForecastingTask
from tasks.network import Network
from workbench import export as exporting
from workbench.errors import TrainingError, UsageError
from workbench.export_shapes import dynamic_shapes, fitted, input_shapes, output_shapes, resized
from workbench.lists import names_of, numbers
from workbench.restore import Restored, restore

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
pytestmark = pytest.mark.filterwarnings(
    "ignore:The given buffer is not writable"
)  # torch reading back its export

SMALL = (*TINY, "task.data.limit=8", "task.data.batch_size=4", "logger=csv", "action.test_after=false")
IMAGES = (*SMALL, "modality=image", "task=image_folder", "task.data.transforms.size=32")
JOINT = (
    "experiment=joint/four_modalities",
    "task@task.members.audio.task=audio_folder",
    "~task.members.point_cloud",
    "~task.members.video",
)
SERIES = (
    *SMALL,
    "modality=time_series",
    "task=csv_forecast",
    "task.data.look_back=28",
    "task.data.horizon=7",
)
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


@pytest.fixture(scope="module")
def run(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    run_action(composed(*SMALL, "task=audio_folder", f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


MEMBERS = {"member": "@audio"}
QUICK = ("image", "ema")


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


# -- checks --------------------------------------------------------------------------------------------------------


class Logits(Given):
    """Logits (B, K), passed through; K is as long as its `example_raw`."""

    def example_raw(self, batch_size: int = 1) -> Tensor:
        return torch.arange(4.0 * batch_size).reshape(batch_size, 4)


class Whole(Identity):
    def reparameterize(self) -> None:
        """Nothing to merge."""


class TwoSizes(ClassificationTask):
    """Its exports are checked at several numbers of logits."""

    @property
    def free_axes(self) -> dict[int, int]:
        return {0: 1, 1: 2}


def settings(folder: Path, formats: Any) -> DictConfig:
    action = {"name": "export", "formats": formats, "tolerance": 1e-3}
    return OmegaConf.create({"action": action, "paths": {"run": str(folder)}, "ckpt": None})


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`answering(read_back)` exports a task into files that answer as given; returns model.json."""

    def export(read_back: Callable[[Tensor], Tensor], formats: Any = "torch_export") -> Any:
        info = {"class_names": list("abcd"), "multilabel": False}
        task = TwoSizes(nn.CrossEntropyLoss(), network=Network(Logits(), Whole(), Pass()), data_info=info)
        restored = Restored(OmegaConf.create({"task": {"name": "x"}}), task.eval(), Path("x.ckpt"), 0)
        monkeypatch.setattr(exporting, "restore", lambda cfg: restored)

        def write(network: object, raw: object, path: Path, *rest: object) -> Callable[[Tensor], Tensor]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("a model")
            return read_back

        monkeypatch.setattr(exporting, "WRITERS", {"torch_export": write, "onnx": write})
        exporting.export(settings(tmp_path, formats))
        return json.loads((tmp_path / "export" / "model.json").read_text())

    return export


def right(raw: Tensor) -> Tensor:
    return raw


def nan_when_long(raw: Tensor) -> Tensor:
    """Right within the tolerance, but not a number where there are more logits than in the first check."""
    return raw * torch.nan if raw.shape[1] > 4 else raw * (1 + 1e-4)


def wrong_alone(raw: Tensor) -> Tensor:
    return raw + 1 if len(raw) == 1 else raw


def refused_when_long(raw: Tensor) -> Tensor:
    if raw.shape[1] > 4:
        raise RuntimeError("Guard failed: raw.size()[1] == 4\nand more lines")
    return raw


def one_too_few(raw: Tensor) -> Tensor:
    return raw[:, :1]


@pytest.mark.parametrize(
    ("read_back", "said"),
    [
        (
            nan_when_long,
            r"cannot be compared with the model on inputs of shape \[3, 8\]: .* not finite; not kept",
        ),
        (wrong_alone, r"differs from the model by .* on inputs of shape \[1, 4\]; not kept"),
        (refused_when_long, r"cannot be run on inputs of shape \[3, 8\]: Guard failed: .* == 4; not kept"),
        (one_too_few, r"with outputs of shape \[\[3, 1\]\], the model with \[\[3, 4\]\]; not kept"),
    ],
)
def test_each_size_is_checked_by_itself(
    read_back: Callable[[Tensor], Tensor], said: str, answering: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=said) as raised:
        answering(read_back)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "export").iterdir()) == []


def test_a_file_whose_check_is_broken_off_is_not_left(answering: Callable[..., Any], tmp_path: Path) -> None:
    def stopped(raw: Tensor) -> Tensor:
        if raw.shape[1] > 4:
            raise KeyboardInterrupt
        return raw

    with pytest.raises(KeyboardInterrupt):
        answering(stopped)
    assert list((tmp_path / "export").iterdir()) == []


def test_a_good_file_is_described(answering: Callable[..., Any], tmp_path: Path) -> None:
    about = answering(right, formats=["onnx"])
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"model.onnx", "model.json"}
    assert about["input"] == about["output"] == ["batch", "axis1"]
    assert about["dynamic"]["axis1"] == {"multiple_of": 2, "minimum": 4, "maximum": 8192}
    (output,) = about["outputs"]
    assert (output["name"], output["dtype"], output["axes"]) == ("logits", "float32", ["batch", "class"])
    assert about["inputs"] == [{"name": "raw", "dtype": "float32", "shape": ["batch", "axis1"]}]


def test_a_file_that_is_right_stays_described_beside_one_that_is_wrong(
    answering: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([right] * 3 + [wrong_alone] * 3)
    with pytest.raises(TrainingError, match="the onnx export differs"):
        answering(lambda raw: next(answers)(raw), formats=["torch_export", "onnx"])
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"model.pt2", "model.json"}
    assert json.loads((tmp_path / "export" / "model.json").read_text())["files"] == ["model.pt2"]


# -- shapes and descriptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda x: x[..., ::4, ::4], ["batch", 3, "height/4", "width/4"]),
        (lambda x: x.repeat(1, 1, 1, 2)[..., 5:], ["batch", 3, "height", "2*width-5"]),
        (lambda x: x.flatten(2), ["batch", 3, "depends on height and width"]),
        (lambda x: x.mean(dim=(2, 3)), ["batch", 3]),
        (lambda x: x.transpose(2, 3), ["batch", 3, "width", "height"]),
        (lambda x: x.new_zeros(len(x), 100, 6), ["batch", 100, 6]),
    ],
)
def test_shapes_of_outputs(outputs: Callable[[Tensor], Tensor], said: list[Any]) -> None:
    free = {0: 1, 2: 32, 3: 32}
    raw = fitted(torch.zeros(3, 3, 50, 100), free)
    assert input_shapes(raw, free) == [["batch", 3, "height", "width"]]
    others = {axis: resized(raw, axis) for axis in free}
    found = output_shapes(
        raw, outputs(raw), {axis: (other, outputs(other)) for axis, other in others.items()}
    )
    assert found == [said]


def test_dims_of_multiples_are_not_called_as_the_axis() -> None:
    """In an ONNX file the axis reads 32*height_over_32, not 32*height."""
    dims = dynamic_shapes(torch.zeros(3, 3, 64, 64), {0: 1, 2: 32})
    assert dims[0].__name__ == "batch"
    assert "height_over_32" in str(dims[2])


def test_detections_that_are_not_numbers_differ(composed: Compose) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0, 0.9, 1.0]]])
    broken = boxes.clone()
    broken[..., 2] = torch.nan
    difference = DetectionTask.difference(None, broken, boxes)  # type: ignore[arg-type]
    assert math.isnan(difference)
    assert DetectionTask.difference(None, boxes, boxes) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("modality", ["audio", "image", "video", "point_cloud", "time_series"])
def test_every_embedder_describes_its_raw_batch(modality: str, composed: Compose) -> None:
    cfg = composed(*TINY, f"modality={modality}")
    names = cfg.modality.embedder
    embedder = instantiate(names)
    raw, info = embedder.example_raw(2), embedder.raw_info()
    tensors = raw if isinstance(raw, dict) else {next(iter(info)): raw}
    assert list(info) == list(tensors)
    assert all(len(info[name].axes) == tensor.ndim for name, tensor in tensors.items())


def test_scaled_series_say_how_their_scale_is_undone() -> None:
    task = object.__new__(ForecastingTask)
    nn.Module.__init__(task)
    task.data_info = {"scaled": True, "frequency": "D", "variates": ["y"], "std": [2.0]}
    said = task.output_info()["forecast"].meaning
    assert "times unit plus level" in said
    assert "the unit facts.std" in said
    task.data_info |= {"series": 3}
    assert "standard deviation of the series" in task.output_info()["forecast"].meaning
    task.data_info = {"frequency": "D", "variates": ["y"]}
    assert "own units" in task.output_info()["forecast"].meaning


# -- lists in the settings of actions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        ("flac", "action.formats: flac is not one of torch_export, onnx"),
        (["onnx", "tflite"], "action.formats: tflite is not one of"),
        ([], "action.formats is empty"),
        (None, "action.formats is empty"),
        (3, "action.formats=3: it must list names"),
    ],
)
def test_wrong_formats_are_one_sentence(formats: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        exporting.export(settings(tmp_path, formats))


@pytest.mark.parametrize(
    ("given", "found"), [("onnx", ["onnx"]), (["a", "b"], ["a", "b"]), ([], []), (None, [])]
)
def test_a_name_is_a_list_of_one(given: Any, found: list[str], tmp_path: Path) -> None:
    assert names_of(settings(tmp_path, given), "formats") == found


@pytest.mark.parametrize("given", [0.1, [0.1]])
def test_a_number_is_a_list_of_one(given: Any) -> None:
    cfg = OmegaConf.create({"action": {"severities": {"noise": given}}})
    assert numbers(cfg, "severities.noise") == [0.1]
    cfg.action.severities.noise = "loud"
    with pytest.raises(UsageError, match=r"action.severities.noise=loud: it must list numbers"):
        numbers(cfg, "severities.noise")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("probe_cka", "action.against=nowhere"), "nowhere"),
        (("probe_erf", "action.compare=nowhere"), "action.compare: nowhere is neither a checkpoint"),
        (("probe_erf", "action.thresholds=many"), "action.thresholds=many: it must list numbers"),
        (("probe_robustness", "action.corruptions=nowhere"), "no corruption nowhere"),
        (("embed", "action.splits=nowhere"), "action.splits: nowhere is none of"),
    ],
)
def test_other_actions_take_a_name_for_a_list(
    words: tuple[str, ...], said: str, run: Path, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    """Letter by letter it would be `n` that is unknown."""
    with pytest.raises(SystemExit):
        act("trainer=cpu", f"ckpt={run}", f"action={words[0]}", *words[1:])
    assert said in caplog.text
