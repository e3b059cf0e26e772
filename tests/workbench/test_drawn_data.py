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
from workbench.build import build_data

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
        found[str(draft.parent / name)] = " ".join(
            text.get_text() for text in self.findobj(lambda part: hasattr(part, "get_text"))
        ).replace("\n", " ")
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


@pytest.mark.slow
@pytest.mark.parametrize("modality", OF_EACH)
def test_a_run_of_each_modality(modality: str, act: Act, pictures: dict[str, str], capsys: Any) -> None:
    title, words = OF_EACH[modality]
    note = f"drawn sample, not {title}"
    run = act(*TINY, *words, *QUICK)
    assert_says_so(run, pictures, title)
    assert note in capsys.readouterr().out


def assert_says_so(run: Path, pictures: dict[str, str], title: str) -> None:
    said = of_drawn_data(run, pictures, f"drawn sample, not {title}")
    assert {"result.json", "metrics.csv", "test_report.json", "figures/inputs.png"} <= set(said)
    assert said == dict.fromkeys(said, True)
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["widefield"]["drawn"] == [title]


@pytest.fixture(scope="module")
def real_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class with sounds that were not drawn by the program."""
    root = tmp_path_factory.mktemp("real")
    for label, pitch in (("high", 0.5), ("low", 0.05)):
        for split in ("train", "val", "test"):
            (root / split / label).mkdir(parents=True)
            for index in range(4):
                wave = np.sin(np.arange(4000) * pitch * (1 + index / 9)) * 0.3
                soundfile.write(root / split / label / f"{index}.wav", wave, 16000)
    return root


def clips(root: Path) -> tuple[str, ...]:
    return (*TINY, "task=audio_folder", f"data_dir={root}", "task.data.seconds=0.25", *QUICK)


@pytest.fixture(scope="module")
def drawn_run(
    composed: Callable[..., DictConfig],
    samples: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pictures: dict[str, str],
) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "run"
    words = (*TINY, "task=audio_folder", *QUICK)
    run_action(composed(*words, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture(scope="module")
def real_run(
    composed: Callable[..., DictConfig],
    samples: Path,
    real_clips: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pictures: dict[str, str],
) -> Path:
    folder = tmp_path_factory.mktemp("real") / "run"
    run_action(composed(*clips(real_clips), f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


def test_a_run_on_a_drawn_sample(drawn_run: Path, pictures: dict[str, str]) -> None:
    assert_says_so(drawn_run, pictures, "recordings of your own")


def test_a_run_on_real_data_has_none_of_it(
    real_run: Path, pictures: dict[str, str], act: Act, real_clips: Path
) -> None:
    asked = act("trainer=cpu", "action=predict", f"ckpt={real_run}", f"input={real_clips / 'test'}")
    texts = [text for name, text in pictures.items() if name.startswith(str(real_run))]
    for folder in (real_run, asked):
        files = [file for file in folder.rglob("*") if file.suffix in (".csv", ".json")]
        texts += [file.read_text() for file in files]
    assert len(texts) > 6
    assert not [text for text in texts if "drawn" in text]
    content = torch.load(real_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["widefield"]["drawn"] == []


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (("action=predict", "input=INPUT"), {"predictions.csv"}),
        pytest.param(
            ("action=probe_kernels",),
            {"kernels.json", "kernels.csv", "figures/kernels.png"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("action=export", "action.formats=[torch_export]"),
            {"export/model.json"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_trained_on_a_drawn_sample(
    words: tuple[str, ...],
    files: set[str],
    act: Act,
    drawn_run: Path,
    real_clips: Path,
    pictures: dict[str, str],
) -> None:
    words = tuple(word.replace("INPUT", str(real_clips / "test")) for word in words)
    folder = act("trainer=cpu", *words, f"ckpt={drawn_run}")
    said = of_drawn_data(folder, pictures, "model trained on a drawn sample, not recordings of your own")
    assert files <= set(said)
    assert said == dict.fromkeys(said, True)
    if "action=export" in words:
        entries = {"drawn": ""}
        torch.export.load(folder / "export" / "model.pt2", extra_files=entries)
        assert entries["drawn"] == "model trained on a drawn sample, not recordings of your own"


@pytest.mark.parametrize(
    "words",
    [
        ("action=test",),
        ("action=embed",),
        ("action=evaluate", "action.protocol=all"),
        ("action=probe_erf", "action.inputs=2", "action.batch_size=2"),
        pytest.param(
            ("action=probe_cka", "action.inputs=4", "action.batch_size=4", "action.against=[untrained]"),
            marks=pytest.mark.slow,
        ),
        (
            "action=probe_robustness",
            "action.corruptions=[noise]",
            "+action.severities.noise=[0.1]",
            "trainer.limit_test_batches=1",
        ),
    ],
)
def test_a_drawn_sample_measured_again(
    words: tuple[str, ...], act: Act, drawn_run: Path, pictures: dict[str, str]
) -> None:
    folder = act("trainer=cpu", *words, f"ckpt={drawn_run}", "logger=csv")
    said = of_drawn_data(folder, pictures, "drawn sample, not recordings of your own")
    assert len(said) >= 2
    assert said == dict.fromkeys(said, True)


def test_begun_from_a_model_of_a_drawn_sample(
    act: Act, drawn_run: Path, real_clips: Path, pictures: dict[str, str]
) -> None:
    """The data are real; what was learnt before is not, and the next run that begins here says so, too."""
    run = act(*clips(real_clips), f"init_from={drawn_run}")
    note = "model trained on a drawn sample, not recordings of your own"
    said = of_drawn_data(run, pictures, note)
    assert "init_from.json" in said
    assert said == dict.fromkeys(said, True)
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["widefield"]["drawn"] == ["recordings of your own"]


def test_a_folder_of_samples_named_as_data_is_no_real_data(
    act: Act,
    composed: Callable[..., DictConfig],
    drawn_run: Path,
    samples: Path,
    real_run: Path,
    tmp_path: Path,
) -> None:
    """A copy, too, and files of it that a model is asked about."""
    copy = shutil.copytree(samples / "audio_folder", tmp_path / "copy")
    data = build_data(composed(*clips(copy), f"paths.samples={samples}"))
    assert (data.source, data.drawn) == ("full", ["recordings of your own"])
    clip = next(copy.rglob("*.wav"))
    folder = act("trainer=cpu", "action=predict", f"ckpt={real_run}", f"input={clip}")
    said = of_drawn_data(folder, {}, "drawn sample, not recordings of your own")
    assert said == {"predictions.csv": True}


def test_shards_of_a_drawn_sample(
    act: Act, composed: Callable[..., DictConfig], samples: Path, tmp_path: Path
) -> None:
    act("task=audio_folder", "action=shard", f"action.out={tmp_path / 'shards'}")
    words = ("task=audio_folder", "task.data.format=webdataset", f"data_dir={tmp_path / 'shards'}")
    assert build_data(composed(*words, f"paths.samples={samples}")).drawn == ["recordings of your own"]


@pytest.mark.slow
def test_members_of_a_joint_run_each_say_their_own(
    act: Act, real_clips: Path, pictures: dict[str, str]
) -> None:
    words = (*TINY, "experiment=joint/four_modalities", "task@task.members.audio.task=audio_folder", *QUICK)
    words = (
        *words,
        "~task.members.point_cloud",
        "~task.members.video",
        "task.members.audio.task.data.seconds=0.25",
    )
    run = act(*words, f"task.members.audio.data_dir={real_clips}")
    of_series = {name: text for name, text in pictures.items() if f"{run}/figures/time_series/" in name}
    of_audio = {name: text for name, text in pictures.items() if f"{run}/figures/audio/" in name}
    assert of_series
    assert of_audio
    assert all("drawn sample, not ETTh1" in text for text in of_series.values())
    assert all("model trained on a drawn sample, not ETTh1" in text for text in of_audio.values())
    assert json.loads((run / "result.json").read_text())["drawn"] == "drawn sample, not ETTh1"


def test_every_task_has_a_title() -> None:
    """A note names the data set as people know it, not by a word of the command line."""
    from hydra.utils import get_class
    from omegaconf import OmegaConf
    from tests_support import ROOT

    from tasks.datasets.base import DataModule

    for file in sorted((ROOT / "conf" / "task").glob("[a-z]*.yaml")):
        node: Any = OmegaConf.load(file)
        if "name" in node:
            assert get_class(node.data._target_).title is not DataModule.title, file.name


@pytest.mark.parametrize("drawn", ["ETTh1", ["a\x1b[31m"], ["x" * 300]])
def test_what_a_checkpoint_says_of_drawn_data_is_checked(
    drawn: Any, drawn_run: Path, tmp_path: Path, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    content = torch.load(drawn_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["widefield"]["drawn"] = drawn
    torch.save(content, tmp_path / "crafted.ckpt")
    with pytest.raises(SystemExit):
        act("trainer=cpu", "action=info", f"ckpt={tmp_path / 'crafted.ckpt'}")
    assert "is refused: it says" in caplog.text


def test_a_title_is_no_formula_for_a_picture(tmp_path: Path) -> None:
    from workbench import figures
    from workbench.provenance import data_read, provenance

    with provenance():
        data_read(["$\\frac"])
        figures.save(Figure(), tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
