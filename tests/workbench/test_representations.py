"""action=embed and action=evaluate on tiny runs: the right features, with labels and paths, of every modality."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from tests_support import TINY
from torch import Tensor, nn

from modalities.embedder import Embedder
from tasks.datasets.image.mask_folder import MaskFolder
from tasks.network import Network
from workbench import provenance
from workbench.actions import run_action
from workbench.build import build_data
from workbench.errors import UsageError
from workbench.report.gather import gather
from workbench.representations import files
from workbench.representations.extract import Embedded, embedded
from workbench.representations.features import Features
from workbench.representations.samples import Batch, Place, file_batches
from workbench.resolvers import mode_of
from workbench.restore import restore

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
QUICK = ("debug=fast", "logger=csv")
NOTE = "drawn sample, not recordings of your own"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a split and of a class with sounds that were not drawn by the program."""
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for label, pitch in (("high", 0.6), ("low", 0.05)):
        for split, count in (("train", 12), ("val", 4), ("test", 4)):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                wave = np.sin(np.arange(4000) * pitch * (1 + index / 40)) * 0.3
                wave += 0.01 * rng.standard_normal(4000)
                soundfile.write(root / split / label / f"{index}.wav", wave, 16000)
    return root


@pytest.fixture(scope="module")
def broken_clips(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same and a file that is no sound, which a training would refuse: it is one of 41."""
    root = shutil.copytree(clips, tmp_path_factory.mktemp("broken") / "clips")
    (root / "train" / "low" / "broken.wav").write_bytes(b"RIFF no sound")
    return root


def of(root: Path) -> tuple[str, ...]:
    return ("task=audio_folder", f"data_dir={root}", "task.data.seconds=0.25")


def run_in(composed: Compose, samples: Path, folder: Path, *words: str) -> Path:
    run_action(composed(*words, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture(scope="module")
def run(composed: Compose, samples: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "fit"
    return run_in(composed, samples, folder, *TINY, *of(clips), "logger=csv")


def asked(run: Path, clips: Path, *words: str) -> tuple[str, ...]:
    return ("trainer=cpu", f"ckpt={run}", f"data_dir={clips}", *words)


def read(folder: Path) -> tuple[dict[str, NDArray[Any]], pd.DataFrame, dict[str, Any]]:
    """Arrays, rows and summary of an embedding; the two files say the same."""
    with np.load(folder / "embeddings.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays}
    rows = pd.read_parquet(folder / "embeddings.parquet")
    said = json.loads((folder / "embed.json").read_text())
    whole = rows[rows["features"].notna()]
    shape = (len(whole), *said["shape"])
    assert found["features"].shape == shape
    assert found["features"].dtype == np.float32
    np.testing.assert_array_equal(found["features"], np.stack(list(whole["features"])).reshape(shape))
    for name in ("path", "split", "index"):
        assert found[name].tolist() == whole[name].tolist()
    assert [label or None for label in found["label"]] == [
        label or None for label in whole["label"].fillna("")
    ]
    assert sum(said["rows"].values()) == len(whole)
    assert len(said["failures"]) == len(rows) - len(whole) == len(found["failed_path"])
    return found, rows, said


def by_hand(composed: Compose, run: Path, clips: Path, split: str, form: str) -> NDArray[np.float32]:
    """Embedder, backbone, mean over places: one file at a time."""
    restored = restore(
        composed("trainer=cpu", f"ckpt={run}", "action=embed", f"data_dir={clips}", "paths.run=x")
    )
    data = build_data(restored.cfg)
    network = restored.task.network.reparameterize() if form == "deploy" else restored.task.network
    found = []
    for item in data.splits[split]:
        raw = data.read_item(item, False, np.random.default_rng(0))[None]
        with torch.no_grad():
            maps_1VCHW: Any = network.embedder(raw)
            (feature,) = network.backbone.forward_features(maps_1VCHW[:, 0])[-1].mean(dim=(2, 3))  # type: ignore[operator]
        found.append(feature.numpy())
    return np.stack(found)


@pytest.mark.figures
@pytest.mark.parametrize("form", ["deploy", "train"])
def test_a_checkpoints_features_are_those_computed_by_hand(
    form: str, act: Act, composed: Compose, run: Path, clips: Path
) -> None:
    folder = act(*asked(run, clips, "action=embed", f"action.form={form}", "action.batch_size=5"))
    arrays, rows, said = read(folder)
    assert said["rows"] == {"train": 24, "val": 8, "test": 8}
    for split in ("train", "val", "test"):
        mine = arrays["features"][arrays["split"] == split]
        np.testing.assert_allclose(mine, by_hand(composed, run, clips, split, form), rtol=2e-4, atol=2e-5)
    assert arrays["class_names"].tolist() == ["high", "low"]
    for path, label, target in zip(arrays["path"], arrays["label"], arrays["target"], strict=True):
        assert Path(path).is_file()
        assert Path(path).parent.name == label == arrays["class_names"][target]
    assert (folder / "figures" / "embedding.png").stat().st_size > 10_000
    assert "drawn" not in rows
    assert "drawn" not in arrays
    assert "drawn" not in said


def test_what_cannot_be_read_is_a_row_with_its_error(
    act: Act, run: Path, broken_clips: Path, capsys: Any
) -> None:
    clips = broken_clips
    folder = act(*asked(run, clips, "action=embed", "action.splits=[train]"))
    arrays, rows, said = read(folder)
    (broken,) = rows[rows["features"].isna()].to_dict("records")
    assert Path(broken["path"]).name == "broken.wav"
    assert (broken["split"], broken["label"]) == ("train", "low")
    assert broken["error"]
    assert str(clips) not in broken["error"], "the path has a column of its own"
    assert (
        [failure["path"] for failure in said["failures"]]
        == [broken["path"]]
        == arrays["failed_path"].tolist()
    )
    assert said["rows"] == {"train": 24}
    assert "broken.wav" in capsys.readouterr().out
    evaluated = act(*asked(run, clips, "action=evaluate", "action.k=[1]"), folder="evaluated")
    assert json.loads((evaluated / "evaluate.json").read_text())["failures"] == [
        {"split": "train", "path": broken["path"], "error": broken["error"]}
    ]


def test_files_of_ones_own(act: Act, composed: Compose, run: Path, clips: Path, broken_clips: Path) -> None:
    words = ("trainer=cpu", f"ckpt={run}", "action=embed")
    whole = by_hand(composed, run, clips, "test", "deploy")
    for number, (given, count) in enumerate(
        ((clips / "test", 8), (clips / "test" / "high" / "2.wav", 1), (f"'{clips}/test/*/[01].wav'", 4))
    ):
        arrays, rows, said = read(act(*words, f"input={given}", folder=str(number)))
        assert said["rows"] == {"input": count}
        assert set(arrays["split"]) == {"input"}
        assert set(arrays["target"]) == {-1}
        assert rows["label"].isna().all()
        if number == 0:
            np.testing.assert_allclose(arrays["features"], whole, rtol=2e-4, atol=2e-5)
    _, rows, said = read(act(*words, f"input={broken_clips}/train/low", folder="broken"))
    assert said["rows"] == {"input": 12}
    assert [Path(failure["path"]).name for failure in said["failures"]] == ["broken.wav"]


def test_maps_stages_and_views(act: Act, run: Path, clips: Path) -> None:
    words = asked(run, clips, "action=embed", "action.splits=test")
    pooled, _, _ = read(act(*words, "action.stage=1", folder="pooled"))
    assert pooled["features"].shape == (8, 8)
    maps, _, said = read(act(*words, "action.stage=1", "action.pool=false", folder="maps"))
    assert len(said["shape"]) == 3
    np.testing.assert_allclose(maps["features"].mean(axis=(2, 3)), pooled["features"], rtol=1e-4, atol=1e-5)
    apart, _, _ = read(act(*words, "action.stage=1", "action.views=apart", folder="apart"))
    assert apart["features"].shape == (8, 1, 8)
    np.testing.assert_allclose(apart["features"][:, 0], pooled["features"], rtol=1e-5, atol=1e-6)
    last, _, _ = read(act(*words, "action.stage=3", folder="last"))
    same, _, _ = read(act(*words, folder="same"))
    np.testing.assert_array_equal(last["features"], same["features"])


OF_EACH = {
    "audio": ("task=audio_folder",),
    "time_series": ("modality=time_series",),
    "point_cloud": ("modality=point_cloud", "modality.embedder.out_size=32"),
    "video": ("modality=video", "task=video_folder", "task.data.size=48"),
    "image": ("modality=image", "task.data.transforms.size=64"),
}


@pytest.mark.parametrize(
    "modality",
    [pytest.param(name, marks=pytest.mark.slow) if name == "video" else name for name in OF_EACH],
)
def test_the_sample_of_every_modality_embeds_untrained(modality: str, act: Act, composed: Compose) -> None:
    words = (*TINY, *OF_EACH[modality], "task.data.limit=6", "action=embed", "action.views=apart")
    folder = act(*words)
    arrays, rows, said = read(folder)
    assert said["rows"] == {"train": 6, "val": 6, "test": 6}
    assert arrays["features"].shape == (18, arrays["features"].shape[1], 16), (
        "views, channels of the last stage"
    )
    assert np.isfinite(arrays["features"]).all()
    assert arrays["features"].std(axis=0).max() > 0, "samples differ"
    classes = modality != "time_series"
    assert (arrays["target"] >= 0).all() == classes
    assert [name for name, target in zip(arrays["label"], arrays["target"], strict=True) if target >= 0] == [
        arrays["class_names"][target] for target in arrays["target"] if target >= 0
    ]
    for path in set(arrays["path"]):
        assert Path(path).exists()
    note = said["drawn"]
    assert note.startswith("drawn sample, not ")
    assert str(arrays["drawn"]) == note
    assert set(rows["drawn"]) == {note}
    about = json.loads(pq.read_schema(folder / "embeddings.parquet").metadata[files.ABOUT])
    assert (about["drawn"], about["shape"]) == (note, said["shape"])


def test_windows_of_a_file_say_where_they_lie(act: Act) -> None:
    words = (*TINY, *OF_EACH["time_series"], "task.data.limit=6", "action=embed", "action.splits=[test]")
    _, rows, _ = read(act(*words))
    assert rows["path"].nunique() == 1
    starts = [json.loads(where)["row"] for where in rows["where"]]
    assert len(set(starts)) == 6
    assert rows["index"].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_untrained_network_repeats_under_its_seed(act: Act, clips: Path) -> None:
    words = (*TINY, *of(clips), "action=embed", "action.splits=[test]")
    first, again, other = (
        read(act(*words, f"seed={seed}", folder=str(number)))[0]["features"]
        for number, seed in enumerate((0, 0, 1))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_published_weights_of_a_file(
    act: Act, composed: Compose, run: Path, clips: Path, tmp_path: Path
) -> None:
    """The backbone of a trained run, as a file of weights beside an embedder that is made here."""
    restored = restore(composed("trainer=cpu", f"ckpt={run}", "action=embed", "paths.run=x"))
    torch.save(restored.task.network.backbone.state_dict(), tmp_path / "weights.pth")
    words = (*TINY, *of(clips), "action=embed", "action.splits=[test]", "action.form=train")
    folder = act(*words, f"backbone.pretrained={tmp_path / 'weights.pth'}")
    arrays, _, said = read(folder)
    assert said["checkpoint"] is None
    assert "pretrained" in said["network"]
    np.testing.assert_allclose(
        arrays["features"], by_hand(composed, run, clips, "test", "train"), rtol=2e-4, atol=2e-5
    )


def test_shards_hold_what_files_hold(act: Act, clips: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    act(*of(clips), "action=shard", f"action.out={shards}", folder="shard")
    words = (*TINY, "task=audio_folder", "task.data.seconds=0.25", "action=embed", "action.splits=[test]")
    from_files, _, _ = read(act(*words, f"data_dir={clips}", folder="files"))
    given = ("task.data.format=webdataset", f"data_dir={shards}")
    from_shards, rows, _ = read(act(*words, *given, folder="shards"))
    assert sorted(from_shards["label"]) == sorted(from_files["label"])
    assert rows["path"].nunique() == 8
    for label in ("high", "low"):  # shards are mixed
        mine, theirs = (one["features"][one["label"] == label] for one in (from_shards, from_files))
        order, other = np.lexsort(mine.T), np.lexsort(theirs.T)
        np.testing.assert_allclose(mine[order], theirs[other], rtol=1e-3, atol=1e-4)


def test_a_model_of_a_drawn_sample_marks_real_files(act: Act, clips: Path) -> None:
    drawn = act(*TINY, "task=audio_folder", *QUICK, folder="drawn")
    _, rows, said = read(
        act("trainer=cpu", f"ckpt={drawn}", "action=embed", f"input={clips}/test", folder="one")
    )
    assert said["drawn"] == rows["drawn"][0] == "model trained on a drawn sample, not recordings of your own"
    (clip,) = {row.path for row in rows[:1].itertuples()}
    alone = act(*TINY, "task=audio_folder", "action=embed", f"input={clip}", folder="two")
    said = json.loads((alone / "embed.json").read_text())
    assert said["drawn"].startswith("model trained on"), "the embedder's statistics are of the drawn sample"
    fixed = act(*TINY, "task=audio_folder", "modality.embedder.mean=0.0", "modality.embedder.std=1.0", "action=embed",
                f"input={clip}", folder="three")  # fmt: skip
    assert "drawn" not in json.loads((fixed / "embed.json").read_text())


def test_a_member_of_a_joint_run(act: Act, clips: Path) -> None:
    words = (*TINY, "experiment=joint/four_modalities", "task@task.members.audio.task=audio_folder",
             "~task.members.point_cloud", "~task.members.video", "task.data.limit=12", *QUICK)  # fmt: skip
    joint = act(*words, folder="joint")
    for number, (member, width) in enumerate((("audio", "audio_folder"), ("time_series", "etth1"))):
        folder = act("trainer=cpu", f"ckpt={joint}@{member}", "action=embed", "action.splits=[test]",
                     folder=str(number))  # fmt: skip
        _, _, said = read(folder)
        assert said["network"].endswith(f"trained on {width} within four_modalities")
        assert said["rows"] == {"test": 12}


# -- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.figures
def test_all_protocols_of_a_checkpoint(
    act: Act, composed: Compose, run: Path, clips: Path, tmp_path: Path
) -> None:
    words = asked(run, clips, "action=evaluate", "action.protocol=all", "action.shots=[1,3]", "action.draws=3",
                  f"paths.run={tmp_path / 'all'}")  # fmt: skip
    value = run_action(composed(*words))
    result = json.loads((tmp_path / "all" / "result.json").read_text())
    named = {"knn_acc", "linear_acc", "map_retrieval", *(f"recall_at_{rank}" for rank in (1, 5, 10))}
    named |= {f"few_shot_{k}_acc{end}" for k in (1, 3) for end in ("", "_sd")}
    assert set(result["metrics"]) == {f"{split}/{name}" for split in ("val", "test") for name in named}
    assert (result["monitor"], result["best"]) == ("val/knn_acc", value)
    assert result["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert (result["epochs"], result["precision"]) == (0, "32-true")
    assert result["metrics"]["test/knn_acc"] == 1.0, "two pitches far apart"
    assert "drawn" not in result
    said = json.loads((tmp_path / "all" / "evaluate.json").read_text())
    assert set(said["protocols"]) == {"knn", "linear", "few_shot", "retrieval"}
    assert (said["width"], said["classes"], said["most_frequent_class"]) == (16, 2, 0.5)
    pictures = {file.name for file in (tmp_path / "all" / "figures").iterdir()}
    assert pictures == {"embedding.png", "knn.png", "linear.png", "few_shot.png"}
    for number, protocol in enumerate(("knn", "linear", "few_shot", "retrieval")):
        alone = act(*words[:-1], f"action.protocol={protocol}", folder=str(number))
        metrics = json.loads((alone / "result.json").read_text())["metrics"]
        assert metrics
        assert metrics == {name: result["metrics"][name] for name in metrics}, "the same alone and repeated"


def test_other_data_with_other_classes(act: Act, run: Path, clips: Path, tmp_path: Path) -> None:
    """Features know no classes: what a network learnt on one data set is asked about another."""
    other = tmp_path / "other"
    for split in ("train", "val", "test"):
        for old, new in (("high", "whistle"), ("low", "hum")):
            shutil.copytree(clips / split / old, other / split / new)
    metrics = []
    for number, data in enumerate((clips, other)):
        folder = act(*asked(run, data, "action=evaluate", "action.protocol=linear"), folder=str(number))
        metrics.append(json.loads((folder / "result.json").read_text())["metrics"])
    assert metrics[0] == metrics[1]


def test_views_side_by_side(act: Act) -> None:
    words = (*TINY, *OF_EACH["point_cloud"], "task.data.limit=40", "action=evaluate", "action.k=[1]")
    folder = act(*words, "action.views=apart")
    said = json.loads((folder / "evaluate.json").read_text())
    assert said["width"] % 16 == 0
    assert said["width"] > 16
    assert said["drawn"] == json.loads((folder / "result.json").read_text())["drawn"]


def test_several_labels(act: Act, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(48):
        on = [index // 4 % 2, index // 8 % 2] if index % 3 else [1, 1]
        wave = 0.01 * rng.standard_normal(4000)
        wave += sum(0.3 * on[tone] * np.sin(np.arange(4000) * (0.1 + 0.5 * tone)) for tone in range(2))
        soundfile.write(tmp_path / f"{index}.wav", wave, 16000)
        if names := ";".join(name for name, there in zip(("low", "high"), on, strict=True) if there):
            rows.append(
                {
                    "path": f"{index}.wav",
                    "label": names,
                    "split": ("train", "train", "val", "test")[index % 4],
                }
            )
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    words = (*TINY, "task=audio_folder", "task/loss=bce", "task.data.multilabel=true", "task.data.seconds=0.25",
             f"data_dir={tmp_path}", f"task.data.csv={tmp_path / 'labels.csv'}")  # fmt: skip
    for protocol in ("knn", "linear"):
        folder = act(*words, "action=evaluate", f"action.protocol={protocol}", folder=protocol)
        result = json.loads((folder / "result.json").read_text())
        assert set(result["metrics"]) == {f"val/{protocol}_map", f"test/{protocol}_map"}
        assert result["metrics"][f"test/{protocol}_map"] > 0.6
    arrays, table, _ = read(act(*words, "action=embed", folder="embed"))
    assert set(arrays["label"]) == {"low", "high", "high;low"}
    assert set(arrays["target"]) == {-1}
    assert table["target"].isna().all()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("action=embed", "action.stage=4"), "this backbone has 4 stages, take last or 0 to 3"),
        (("action=embed", "action.stage=first"), "action.stage=first: it must be last, or the number"),
        (("action=embed", "action.stage=-1"), "action.stage=-1: it must be last"),
        (("action=embed", "action.views=max"), "action.views=max is none of mean, apart"),
        (("action=embed", "action.form=fast"), "action.form must be one of deploy, train"),
        (("action=embed", "action.splits=[train,dev]"), "action.splits: dev is none of train, val, test"),
        (("action=embed", "action.splits=[]"), "action.splits is empty"),
        (("action=embed", "action.batch_size=0"), "action.batch_size must be at least 1"),
        (("action=embed", "input=nowhere.wav"), "nothing matches nowhere.wav"),
        (
            ("action=embed", "input=BROKEN"),
            "none of the samples could be embedded; the first, .*broken.wav: ",
        ),
        (("action=evaluate", "action.protocol=svm"), "svm is none of knn, linear, few_shot, retrieval, all"),
        (("action=evaluate", "action.batch_size=0"), "action.batch_size must be at least 1"),
        (("action=evaluate", "action.protocol=few_shot"), "has only 12 training samples"),
        (("action=evaluate", "action.k=[0]"), "none lies between 1 and the 24 training samples"),
        (("action=evaluate", "action.k=three"), "action.k=three: it must list numbers"),
        (("action=evaluate", "action.c=[a]", "action.protocol=linear"), "action.c=.*: it must list numbers"),
        (("action=evaluate", "action.stage=9"), "this backbone has 4 stages"),
        (("action=evaluate", "ckpt=nowhere.ckpt"), "nowhere.ckpt"),
    ],
)
def test_wrong_input_is_one_sentence(
    words: tuple[str, ...],
    sentence: str,
    act: Act,
    run: Path,
    clips: Path,
    broken_clips: Path,
    caplog: Any,
) -> None:
    given = [word.replace("BROKEN", str(broken_clips / "train" / "low" / "broken.wav")) for word in words]
    with pytest.raises(SystemExit):
        act(*asked(run, clips), "action.shots=[50]" if "few_shot" in str(words) else "seed=0", *given)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "\n" not in said
    assert re.search(sentence, said), said


def test_a_task_without_classes_has_no_protocol(act: Act, caplog: Any) -> None:
    with pytest.raises(SystemExit):
        act(*TINY, "modality=time_series", "task.data.limit=4", "action=evaluate")
    assert "action.protocol=knn tells classes apart, and etth1 has none" in caplog.text


def test_a_report_tells_protocols_apart(act: Act, run: Path, clips: Path, tmp_path: Path) -> None:
    for protocol in ("knn", "linear"):
        words = asked(run, clips, "action=evaluate", f"action.protocol={protocol}")
        folder = act(*words, folder=f"sweep/{protocol}")
        record = {"status": "done", "error": None, "value": 1.0, "overrides": list(words)}
        (folder / "job.json").write_text(json.dumps(record))
    runs = gather(tmp_path / "sweep")
    assert runs.axes == ["protocol"]
    assert set(runs.table["metric"]) == {"test/knn_acc", "test/linear_acc"}
    assert runs.table["score"].notna().all()
    assert mode_of("test/few_shot_5_acc_sd") == "min"
    assert mode_of("test/few_shot_5_acc") == "max"


@pytest.mark.slow
def test_a_sweep_over_protocols(command: Callable[..., Any], clips: Path, tmp_path: Path) -> None:
    done = command(tmp_path, "-m", *TINY, *of(clips), "action=evaluate", "action.protocol=knn,retrieval")
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    text = (sweep / "report" / "report.md").read_text()
    assert "test/knn_acc" in text
    assert "test/map_retrieval" in text
    assert "| protocol |" in text


# -- parts -----------------------------------------------------------------------------------------------------------


class Views(Embedder):
    """Raw (B, F) -> maps (B, V, 1, F, 2): each view another multiple."""

    out_chans, raw_ndim = 1, 2

    def forward(self, raw: Tensor) -> Tensor:
        views = torch.stack([raw, 3 * raw, 5 * raw], dim=1)
        return views[:, :, None, :, None].expand(-1, -1, -1, -1, 2)


class Stages(nn.Module):
    """Any backbone: two stages of other widths, and nothing but `forward_features`."""

    def forward_features(self, x_NCHW: Tensor) -> list[Tensor]:
        assert x_NCHW.ndim == 4
        return [torch.cat([x_NCHW, 2 * x_NCHW], dim=1), x_NCHW.amax(dim=(2, 3), keepdim=True)]


def test_features_of_any_backbone_by_hand() -> None:
    network = Network(Views(), Stages(), nn.Identity())
    raw = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    last = Features().of(network, raw)
    assert last.tolist() == [[9.0], [0.0]], "the mean of 3, 9 and 15"
    apart = Features(views="apart").of(network, raw)
    assert apart.tolist() == [[[3.0], [9.0], [15.0]], [[0.0], [0.0], [0.0]]]
    first = Features(stage=0).of(network, raw)
    assert first.tolist() == [[6.0, 12.0], [-3.0, -6.0]], "the mean over places and views"
    maps = Features(stage=0, pool=False).of(network, raw)
    assert maps.shape == (2, 2, 2, 2)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), first)
    crops = Features().of(network, torch.stack([raw, raw + 1], dim=1))
    assert crops.tolist() == [[10.5], [1.5]], "the mean over two crops"
    with pytest.raises(UsageError, match="has 2 stages, take last or 0 to 1"):
        Features(stage=2).of(network, raw)


def part(first: int, features: NDArray[np.float32], broken: int = 0) -> Embedded:
    count = len(features) + broken
    places = [Place("train", first + n, f"file {first + n}", target=(first + n) % 2) for n in range(count)]
    return Embedded(
        places, list(range(len(features))), features, {len(features) + n: "lost" for n in range(broken)}
    )


def test_rows_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than a group of rows waits, and the first parts may hold nothing but failures."""
    monkeypatch.setattr(files, "GROUP_ROWS", 4)
    waiting: list[int] = []
    add = files._Group.add

    def spied(self: files._Group, one: Embedded) -> None:
        add(self, one)
        waiting.append(len(self.rows))

    monkeypatch.setattr(files._Group, "add", spied)
    rng = np.random.default_rng(0)
    none = np.zeros((0,), dtype=np.float32)
    parts = [
        part(0, none, 2),
        *(part(2 + 3 * n, rng.random((2, 3, 2), dtype=np.float32), 1) for n in range(7)),
    ]
    table, arrays = tmp_path / "e.parquet", tmp_path / "e.npz"
    written = files.write_parquet(table, iter(parts), ["even", "odd"], {})
    files.write_npz(arrays, table, written, ["even", "odd"])
    assert max(waiting) <= 4
    assert pq.ParquetFile(table).num_row_groups > 3
    assert (written.shape, written.kept, len(written.errors)) == ((3, 2), 14, 9)
    with np.load(arrays, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["features"], np.concatenate([one.features for one in parts[1:]]))
        kept = [place for one in parts for place in (one.places[n] for n in one.kept)]
        assert found["path"].tolist() == [place.path for place in kept]
        assert found["target"].tolist() == [place.target for place in kept]
        assert found["label"].tolist() == [("even", "odd")[place.target] for place in kept]
        assert found["failed_error"].tolist() == ["lost"] * 9
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.npz", "e.parquet"], "no drafts are left"


def test_maps_of_two_sizes_are_refused(tmp_path: Path) -> None:
    parts = [part(0, np.zeros((1, 2, 3), dtype=np.float32)), part(1, np.zeros((1, 2, 4), dtype=np.float32))]
    with pytest.raises(UsageError, match=r"file 1: features of shape \(2, 4\) after others of \(2, 3\)"):
        files.write_parquet(tmp_path / "e.parquet", iter(parts), [], {})
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_an_error(caplog: Any) -> None:
    class Whole(nn.Module):
        device = torch.device("cpu")
        network = Network(Views(), Stages(), nn.Identity())

        def transfer_batch_to_device(self, batch: Any, device: Any, number: int) -> Any:
            return batch

    raw = torch.tensor([[1.0, 1.0], [float("nan"), 1.0], [2.0, 2.0]])
    places = [Place("test", n, f"file {n}") for n in range(4)]
    batch = Batch(places, [0, 1, 3], raw, {2: "gone"})
    batches = (one for one in [batch])
    (found,) = embedded(Whole(), batches, Features(), 4)  # type: ignore[arg-type]
    assert found.kept == [0, 3]
    assert found.features.tolist() == [[3.0], [6.0]]
    assert found.errors[2] == "gone"
    assert "not finite" in found.errors[1]
    assert caplog.text.count("broken file") == 2


def test_drawn_data_are_said_in_both_files(tmp_path: Path) -> None:
    with provenance.provenance():
        provenance.data_read(["ESC-50"])
        written = files.write_parquet(
            tmp_path / "e.parquet", [part(0, np.ones((2, 3), dtype=np.float32))], [], {}
        )
        files.write_npz(tmp_path / "e.npz", tmp_path / "e.parquet", written, [])
    assert set(pd.read_parquet(tmp_path / "e.parquet")["drawn"]) == {"drawn sample, not ESC-50"}
    with np.load(tmp_path / "e.npz") as found:
        assert str(found["drawn"]) == "drawn sample, not ESC-50"


def test_files_are_joined_as_their_source_wants(tmp_path: Path) -> None:
    """Pictures of a source with masks have sizes of their own, which stacking alone would refuse."""
    for name, size in (("a", (40, 30)), ("b", (20, 50))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    files = sorted(tmp_path.glob("*.png"))
    (batch,) = file_batches(MaskFolder(name="mask_folder", data_dir=str(tmp_path)), files, 2)
    assert batch.read == [0, 1]
    assert batch.raw["size"].tolist() == [[30, 40], [50, 20]]
