"""AudioSet's tables and the layouts its clips are found in."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig

from tasks.datasets.audio.audioset import AudioSet, clip_files, read_segments
from tasks.datasets.audio.sample import audioset
from tasks.datasets.base import DataError
from tasks.datasets.targets import labels_in

HEAD = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3\n# YTID, start_seconds, end_seconds, labels\n"
LABELS = (
    'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/m/04rlf,Music\n'
)
VIDEOS = {
    "balanced": ("--PJHxphWEs", "Yabcdefghij", "0_1_2_3_4_5"),
    "unbalanced": ("bbbbbbbbbbb", "ccccccccccc", "ddddddddddd", "eeeeeeeeeee"),
    "eval": ("fffffffffff", "ggggggggggg"),
}
FOLDERS = {
    "balanced": "balanced_train_segments",
    "unbalanced": "unbalanced_train_segments",
    "eval": "eval_segments",
}


def written(root: Path, folders: dict[str, str] | None = None, name: str = "Y{}.wav") -> Path:
    """Three tables, and a short clip for each row: all are Speech and, in the balanced table, man speaking."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "class_labels_indices.csv").write_text(LABELS)
    for part, videos in VIDEOS.items():
        ids = "/m/09x0r,/m/05zppz" if part == "balanced" else "/m/04rlf,/m/09x0r"
        rows = [f'{video}, 30.000, 40.000, "{ids}"\n' for video in videos]
        (root / f"{FOLDERS[part]}.csv").write_text(HEAD + "".join(rows))
        folder = root / (folders or FOLDERS)[part]
        folder.mkdir(parents=True)
        for number, video in enumerate(videos):
            soundfile.write(folder / name.format(video), np.full(8000, 0.1 * number), 16000)
    return root


def opened(root: Path, **options: Any) -> AudioSet:
    data = AudioSet(name="audioset", data_dir=str(root), num_workers=0, **{"val_fraction": 0.4, **options})
    data.setup()
    return data


def videos(data: AudioSet, *splits: str) -> set[str]:
    return {item.path.stem[-11:] for split in splits for item in data.splits[split]}


@pytest.mark.parametrize("name", ["{}.wav", "Y{}.wav", "{}_30000_40000.flac", "Y{}_30.000_40.000.flac"])
@pytest.mark.parametrize(
    "folders",
    [
        FOLDERS,
        {"balanced": "bal_train", "unbalanced": "unbal_train", "eval": "eval"},
        {
            "balanced": "audios/balanced_train_segments",
            "unbalanced": "audios/unbalanced_train_segments/unbalanced_train_segments_part07",
            "eval": "audios/eval_segments",
        },
    ],
    ids=["official", "short", "in parts"],
)
def test_clips_are_found_by_their_videos(tmp_path: Path, folders: dict[str, str], name: str) -> None:
    data = opened(written(tmp_path, folders, name))
    assert data.class_names == ["Speech", "Male speech, man speaking", "Music"]
    assert len(data.splits["train"]) + len(data.splits["val"]) == 7
    assert len(data.splits["test"]) == 2
    for item in data.splits["train"]:
        part = "balanced" if "unbal" not in str(item.path) else "unbalanced"
        assert any(video in item.path.name for video in VIDEOS[part])
        assert item.path.is_file()
        assert item.target.tolist() == ([1, 1, 0] if part == "balanced" else [1, 0, 1])
    assert data.multilabel
    assert "9 of 9 clips are there" in data.describe()


def test_file_names_are_told_apart(tmp_path: Path) -> None:
    for name in (
        "Yabcdefghij.wav",
        "YYabcdefghik.wav",
        "-_-_-_-_-_-.flac",
        "Y_12_34_56_7_0_10.wav",
        "notes.txt",
        "x.wav",
    ):
        (tmp_path / name).write_text("")
    assert clip_files(tmp_path) == {
        "Yabcdefghij": "Yabcdefghij.wav",
        "Yabcdefghik": "YYabcdefghik.wav",
        "-_-_-_-_-_-": "-_-_-_-_-_-.flac",
        "_12_34_56_7": "Y_12_34_56_7_0_10.wav",
    }


def test_train_chooses_the_tables(tmp_path: Path) -> None:
    written(tmp_path)
    balanced, unbalanced = set(VIDEOS["balanced"]), set(VIDEOS["unbalanced"])
    for train, wanted in (
        ("balanced", balanced),
        ("unbalanced", unbalanced),
        ("full", balanced | unbalanced),
    ):
        data = opened(tmp_path, train=train)
        assert videos(data, "train", "val") == wanted
        assert videos(data, "test") == set(VIDEOS["eval"])


def test_the_held_out_clips_are_the_same_whatever_the_files_are_called(tmp_path: Path) -> None:
    one = opened(written(tmp_path / "a", name="{}.wav"))
    other = opened(written(tmp_path / "b", name="Y{}_30000_40000.flac"))

    def held(data: AudioSet) -> set[str]:
        return {
            video
            for item in data.splits["val"]
            for part in VIDEOS.values()
            for video in part
            if video in item.path.name
        }

    assert held(one) == held(other) != set()
    fewest = held(opened(tmp_path / "a", val_fraction=0.001))
    assert len(fewest) == 1, "there is always something to choose by"
    assert fewest < held(one)


def test_missing_clips_are_counted_and_left_out(tmp_path: Path) -> None:
    written(tmp_path)
    for part, video in (("unbalanced", "ccccccccccc"), ("eval", "ggggggggggg")):
        (tmp_path / FOLDERS[part] / f"Y{video}.wav").unlink()
    data = opened(tmp_path)
    assert "7 of 9 clips are there" in data.describe()
    assert "\n" not in data.describe()
    assert "ccccccccccc" not in videos(data, "train", "val")
    assert len(next(iter(data.test_dataloader())).raw) == 1


def test_none_at_all_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    for file in (tmp_path / FOLDERS["eval"]).iterdir():
        file.unlink()
    with pytest.raises(
        DataError, match=r"none of the 2 clips in .*eval_segments.csv is in .*eval_segments; audioset expects"
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("class_labels_indices.csv", None, "no class_labels_indices.csv"),
        ("class_labels_indices.csv", "index,name\n0,a\n", r"lacks the column\(s\) mid, display_name"),
        (
            "class_labels_indices.csv",
            LABELS.replace("2,/m", "3,/m"),
            "must number at least two labels as 0, 1, 2",
        ),
        ("class_labels_indices.csv", LABELS.replace("Music", "Speech"), "a label is twice"),
        ("eval_segments.csv", None, "no eval_segments.csv"),
        (
            "eval_segments.csv",
            HEAD + "fffffffffff, 0, 10, /m/09x0r,/m/04rlf\n",
            "line 4 .*is not: video, start, end",
        ),
        ("eval_segments.csv", HEAD + 'fffffffffff, 0, 10, "/m/0"\n', "line 4 .* has the label /m/0, which"),
        ("eval_segments.csv", HEAD + 'fffffffffff, 0, 10, "/m/09x0r"\n' * 2, "line 5 .* for the second time"),
    ],
)
def test_wrong_tables_get_one_sentence(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    path = written(tmp_path) / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "all"}, "train must be one of full, balanced, unbalanced, not 'all'"),
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1"),
    ],
)
def test_wrong_options_get_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AudioSet(name="audioset", **options)


def test_the_official_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        HEAD + '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"\n'
    )
    numbers = {"/m/0jbk": 0, "/m/068hy": 1, "/m/07q6cd_": 2, "/m/0bt9lr": 3}
    (row,) = read_segments(tmp_path / "a.csv", numbers)
    assert (row.video, row.labels) == ("--4gqARaEJE", (0, 1, 2, 3))


def test_millions_of_clips_stay_small(tmp_path: Path) -> None:
    data = opened(written(tmp_path))
    train = data.splits["train"]
    arrays = (train.folder, train.names, train.labels, train.ends)  # type: ignore[attr-defined]
    assert sum(array.nbytes for array in arrays) / len(train) < 40, "bytes a clip"
    assert [item.path for item in train[1:3]] == [train[1].path, train[2].path]
    assert train[-1].path == train[len(train) - 1].path
    with pytest.raises(IndexError):
        train[len(train)]


def test_labels_are_those_of_the_targets(tmp_path: Path) -> None:
    written(tmp_path)
    for data in (opened(tmp_path), opened(tmp_path, limit=2)):
        for items in data.splits.values():
            labels = [own.tolist() for own in labels_in(items)]
            assert labels == [np.flatnonzero(item.target).tolist() for item in items]


def test_the_sample_is_skewed_in_the_unbalanced_part_only(tmp_path: Path) -> None:
    audioset(tmp_path)
    counts = {}
    for train in ("balanced", "unbalanced"):
        data = opened(tmp_path, train=train, val_fraction=0.01)
        counts[train] = sum(item.target for split in ("train", "val") for item in data.splits[split])
    assert counts["balanced"].max() < 3 * counts["balanced"].min()
    assert counts["unbalanced"].max() > 10 * counts["unbalanced"].min()
    assert "152 of 160 clips are there" in opened(tmp_path).describe()


def test_the_task_learns_what_is_in_a_clip(
    composed: Callable[..., DictConfig], samples: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some steps on the sample, drawn by rarity and mixed: the loss falls."""
    from tests_support import TINY

    from workbench.build import build_data, build_task

    cfg = composed(
        *TINY,
        *("task=audioset", f"paths.samples={samples}", "paths.run=nowhere", "task.data.balance=labels"),
        "task.data.mixup={_target_: tasks.datasets.mixing.Mixup, prob: 0.5}",
        *(
            "modality.embedder.num_mel_bins=32",
            "modality.embedder.frame_shift_ms=64",
            "modality.embedder.sample_rate=8000",
        ),
        "backbone.model.layer_scale_init_value=0.1",
        "modality.embedder.mean=-10",
        "modality.embedder.std=4",
    )
    with caplog.at_level(logging.INFO, "widefield"):
        data = build_data(cfg)
    assert "clips are there" in caplog.text
    torch.manual_seed(0)
    task = build_task(cfg, data.info())
    optimizer = torch.optim.AdamW(task.network.parameters(), 3e-3)
    task.train()
    losses: list[float] = []
    loader = data.train_dataloader()
    for epoch in range(10):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            loss = task.step(batch, "train")["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
