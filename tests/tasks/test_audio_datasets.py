"""Audio sources: reading, splits, samples. Tests write small files; each sample is drawn once."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from modalities.audio import LogMel
from tasks.datasets.audio import files as audio_files
from tasks.datasets.audio.esc50 import ESC50
from tasks.datasets.audio.files import read_crop
from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.audio.sample import audio_folder, esc50, speech_commands
from tasks.datasets.audio.speech_commands import SpeechCommands
from tasks.datasets.audio.speech_words import WORDS, split_by_hash
from tasks.datasets.base import ClassificationData, DataError, ReadError
from tasks.datasets.download import Source
from tasks.datasets.splits import held_out_groups, stable_fraction


def tone(seconds: float = 1.0, rate: int = 16000, hertz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, wave: NDArray[np.float64] | None = None, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(0.1) if wave is None else wave, rate)
    return path


def names(data: ClassificationData, split: str) -> list[str]:
    return [item.path.relative_to(data.root).as_posix() for item in data.splits[split]]


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha1(path.read_bytes()).hexdigest() for path in files}


# -- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_every_format_reads_as_the_same_tone(tmp_path: Path, suffix: str, rate: int) -> None:
    path = write(tmp_path / f"a.{suffix}", tone(1.0, rate), rate)
    waveform = read_crop(path, 16000, 1.0)
    assert waveform.shape == (16000,)
    assert waveform.dtype == torch.float32
    spectrum = torch.fft.rfft(waveform).abs()
    assert abs(spectrum.argmax().item() - 440) <= 1
    assert waveform[4000:12000].abs().max() == pytest.approx(0.5, abs=0.05)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone()
    path = write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], axis=1))
    torch.testing.assert_close(
        read_crop(path, 16000, 1.0), torch.from_numpy(left / 2).float(), atol=1e-4, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 40_000),
    rate=st.sampled_from([8000, 11025, 16000, 44100, 44101]),
    seconds=st.sampled_from([0.1, 0.5, 1.0]),
    place=st.floats(0, 1),
)
def test_length_is_fixed_whatever_the_file(
    tmp_path_factory: pytest.TempPathFactory, samples: int, rate: int, seconds: float, place: float
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.wav", tone(1.0)[:1].repeat(samples) + 0.25, rate)
    waveform = read_crop(path, 16000, seconds, place)
    assert waveform.shape == (round(seconds * 16000),)
    assert waveform.isfinite().all()
    assert waveform.abs().max() > 0


def test_crops_lie_where_they_should(tmp_path: Path) -> None:
    path = write(tmp_path / "ramp.wav", np.linspace(0, 0.9, 48000))
    third = [read_crop(path, 16000, 1.0, place).mean().item() for place in (0.0, 0.5, 1.0)]
    assert third == pytest.approx([0.15, 0.45, 0.75], abs=0.01)
    short = read_crop(write(tmp_path / "short.wav", np.full(8000, 0.5)), 16000, 1.0, 1.0)
    assert short[:8000].abs().max() == 0
    assert short[8000:].min() > 0.4


def test_a_stream_of_unstated_length_is_read_from_its_start(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", tone(2.0))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36-bit number of samples in STREAMINFO
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert read_crop(path, 16000, 1.0).abs().max() > 0.4


def broken_files(folder: Path) -> Iterator[tuple[Path, str]]:
    (folder / "empty.wav").write_bytes(b"")
    yield folder / "empty.wav", "is empty"
    (folder / "text.mp3").write_text("this is no music\n" * 50)
    yield folder / "text.mp3", "cannot be read as audio|no sound"
    yield write(folder / "silent.wav", np.zeros(0)), "0 samples"
    header = write(folder / "cut.wav").read_bytes()[:30]
    (folder / "cut.wav").write_bytes(header)
    yield folder / "cut.wav", "cannot be read as audio"
    soundfile.write(folder / "nan.wav", np.full(1000, np.nan), 16000, subtype="FLOAT")
    yield folder / "nan.wav", "not finite"
    soundfile.write(folder / "slow.wav", tone(), 3)
    yield folder / "slow.wav", "3 Hz is out of range"
    (folder / "folder.wav").mkdir()
    yield folder / "folder.wav", "no such file"
    yield folder / "absent.wav", "no such file"
    (folder / "bytes.raw").write_bytes(bytes(100))
    yield folder / "bytes.raw", "cannot be read as audio"


def test_a_broken_file_is_one_sentence(tmp_path: Path) -> None:
    for path, message in broken_files(tmp_path):
        with pytest.raises(ReadError, match=message) as caught:
            read_crop(path, 16000, 1.0)
        assert "\n" not in str(caught.value), path
        assert str(tmp_path) not in str(caught.value), "the caller adds the name"


def test_damage_anywhere_never_crashes(tmp_path: Path) -> None:
    whole = {
        suffix: write(tmp_path / f"a.{suffix}", tone(0.3)).read_bytes() for suffix in ("wav", "flac", "ogg")
    }
    rng = np.random.default_rng(0)
    for _ in range(40):
        for suffix, content in whole.items():
            damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
            for place in rng.integers(0, len(damaged), 8):
                damaged[place] = rng.integers(256)
            (tmp_path / f"b.{suffix}").write_bytes(damaged)
            try:
                waveform = read_crop(tmp_path / f"b.{suffix}", 16000, 0.2)
            except ReadError:
                continue
            assert waveform.shape == (3200,)
            assert waveform.isfinite().all()


def test_test_crops_have_a_dimension_of_their_own(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for split in ("train", "val", "test"):
            write(tmp_path / split / label / "1.wav", np.linspace(0, 0.9, 32000))
    data = AudioFolder(name="audio_folder", data_dir=str(tmp_path), test_crops=3, batch_size=2, num_workers=0)
    data.setup()
    assert next(iter(data.train_dataloader())).raw.shape == (2, 16000)
    batch = next(iter(data.test_dataloader()))
    assert batch.raw.shape == (2, 3, 16000)
    levels = batch.raw.mean(2)[0]
    assert levels[0] < levels[1] < levels[2]
    assert data.read_file(data.splits["test"][0].path).shape == (3, 16000)
    embedder = LogMel(mean=None, std=None)
    embedder.fit_statistics(data.training_raws())
    assert not embedder.needs_statistics


# -- Speech Commands ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def speech_root(samples: Path) -> Path:
    data = SpeechCommands(name="speech_commands", samples_dir=str(samples))
    data.prepare_data()
    return data.root


def speech(root: Path) -> SpeechCommands:
    data = SpeechCommands(name="speech_commands", data_dir=str(root), num_workers=0)
    data.setup()
    return data


def speakers(data: SpeechCommands, split: str) -> set[str]:
    return {item.path.name.split("_")[0] for item in data.splits[split]}


def test_speech_sample_has_the_real_layout(speech_root: Path) -> None:
    data = speech(speech_root)
    assert data.class_names == sorted(WORDS)
    assert len(WORDS) == 35
    assert {split: len(items) for split, items in data.splits.items()} == {
        "train": 700,
        "val": 105,
        "test": 175,
    }
    assert (speech_root / "_background_noise_").is_dir()
    info = soundfile.info(data.splits["train"][0].path)
    assert (info.samplerate, info.frames, info.subtype) == (16000, 16000, "PCM_16")
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not speakers(data, one) & speakers(data, other)


def test_without_lists_the_hash_rule_gives_the_same_split(speech_root: Path, tmp_path: Path) -> None:
    shutil.copytree(speech_root, tmp_path / "bare", ignore=shutil.ignore_patterns("*_list.txt"))
    listed, hashed = speech(speech_root), speech(tmp_path / "bare")
    for split in listed.splits:
        assert names(listed, split) == names(hashed, split)


def test_hash_rule_is_the_official_one() -> None:
    # Speakers of the official testing_list.txt of version 0.02.
    for speaker in (
        "bb05582b",
        "97f4c236",
        "f2e59fea",
        "dc75148d",
        "893705bb",
        "c7dc7278",
        "d962e5ac",
        "2aa787cf",
    ):
        assert split_by_hash(f"{speaker}_nohash_3.wav") == "test"
    counts = [split_by_hash(f"{number:08x}_nohash_{number % 5}.wav") for number in range(4000)]
    assert counts.count("val") == pytest.approx(400, abs=60)
    assert counts.count("test") == pytest.approx(400, abs=60)
    assert split_by_hash("abc_nohash_0.wav") == split_by_hash("abc_nohash_7.wav")


@pytest.mark.parametrize("below", [".", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02"])
def test_speech_is_found_below_data_dir(tmp_path: Path, below: str) -> None:
    speech_commands(tmp_path / below, speakers=(2, 1, 1), words=3)
    data = speech(tmp_path)
    assert data.class_names == ["backward", "bed", "bird"]
    assert len(data.splits["train"]) == 6
    assert data.looks_complete(tmp_path)


def test_speech_with_half_its_lists_or_files_is_refused(tmp_path: Path) -> None:
    speech_commands(tmp_path, speakers=(2, 1, 1), words=3)
    first = (tmp_path / "testing_list.txt").read_text().split()[0]
    (tmp_path / first).unlink()
    with pytest.raises(
        DataError, match=f"1 of the 3 clips in .*testing_list.txt are not there .first: {first}"
    ):
        speech(tmp_path)
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(DataError, match=r"only one of the two lists: testing_list\.txt is missing"):
        speech(tmp_path)


@pytest.mark.parametrize("source", [SpeechCommands, ESC50, AudioFolder])
def test_an_empty_or_absent_folder_says_what_was_expected(
    source: type[ClassificationData], tmp_path: Path
) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"; task expects .*"):
            source(name="task", data_dir=str(folder)).setup()


def test_speech_download_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech_commands(tmp_path / "made", speakers=(2, 1, 1), words=2)
    archive = shutil.make_archive(str(tmp_path / "speech"), "gztar", tmp_path / "made")
    checksum = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    monkeypatch.setattr(
        "tasks.datasets.audio.speech_commands.SOURCE", Source(Path(archive).as_uri(), checksum)
    )
    data = SpeechCommands(
        name="speech_commands", data_dir=str(tmp_path / "data"), download=True, num_workers=0
    )
    data.prepare_data()
    data.setup()
    assert len(data.splits["train"]) == 4
    Path(archive).unlink()
    data.prepare_data()  # nothing is fetched twice


def linear_accuracy(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Test accuracy of a logistic regression on standardised features."""
    (x, y), (x_test, y_test) = train, test
    mean, std = x.mean(0), x.std(0) + 1e-3
    torch.manual_seed(0)
    model = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model((x - mean) / std), y).backward()
        optimizer.step()
    return (model((x_test - mean) / std).argmax(1) == y_test).float().mean().item()


@pytest.mark.parametrize("task", ["speech_commands", "audio_folder"])
def test_neither_spectrum_nor_loudness_alone_tells_the_classes(samples: Path, task: str) -> None:
    data = {"speech_commands": SpeechCommands, "audio_folder": AudioFolder}[task](
        name=task, samples_dir=str(samples)
    )
    data.prepare_data()
    data.setup()
    embedder = LogMel(num_mel_bins=64, num_frames=None, frame_shift_ms=16.0)
    maps: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for split in ("train", "test"):
        batches = list(data.loader(split, train=False))
        raws = [embedder(batch.raw)[:, 0, 0] for batch in batches]
        maps[split] = torch.cat(raws), torch.cat([batch.target for batch in batches])
    for axis in (2, 1):  # over time: the spectrum; over frequency: the loudness
        train, test = ((x.mean(axis), y) for x, y in (maps["train"], maps["test"]))
        assert linear_accuracy(train, test) < 0.45


# -- ESC-50 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def esc_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("esc50")
    esc50(root, categories=6)
    return root


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_esc50_tests_on_its_fold_and_nothing_else(esc_root: Path, fold: int) -> None:
    data = ESC50(name="esc50", data_dir=str(esc_root), fold=fold)
    data.setup()
    assert data.class_names[:2] == ["dog", "rooster"]
    assert all(item.path.name.startswith(f"{fold}-") for item in data.splits["test"])
    assert not any(
        item.path.name.startswith(f"{fold}-") for split in ("train", "val") for item in data.splits[split]
    )
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 42, "val": 6, "test": 12}
    assert {item.target for item in data.splits["val"]} == set(range(6))
    assert f"tested on fold {fold}" in data.describe()


def test_esc50_sources_are_never_parted(tmp_path: Path) -> None:
    esc50(tmp_path, per_fold=4, categories=3)
    meta = tmp_path / "meta" / "esc50.csv"
    header, *rows = meta.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    for cell in cells:
        cell[5] = str(int(cell[5]) // 2)  # two clips from each source
    meta.write_text("\n".join([header, *(",".join(cell) for cell in cells)]))
    source = {cell[0]: cell[5] for cell in cells}
    data = ESC50(name="esc50", data_dir=str(tmp_path), fold=2)
    data.setup()
    parts = {split: {source[item.path.name] for item in items} for split, items in data.splits.items()}
    assert not parts["train"] & parts["val"]


@pytest.mark.parametrize("fold", [0, 6, -1])
def test_esc50_has_five_folds(fold: int) -> None:
    with pytest.raises(DataError, match=f"fold must be 1, 2, 3, 4 or 5, not {fold}"):
        ESC50(name="esc50", fold=fold)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("src_file", "source", "lacks the column.*src_file"),
        (",1,0,dog", ",7,0,dog", "line 2 .* needs a fold of 1 to 5"),
        (",1,0,dog", ",1,x,dog", "whole number as target"),
        (",1,rooster", ",9,rooster", "number at least two classes as 0, 1, 2"),
        (".wav", ".ogg", "60 of the 60 clips"),
    ],
)
def test_esc50_with_a_wrong_table_is_refused(
    esc_root: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    shutil.copytree(esc_root, tmp_path / "ESC-50-master")
    meta = tmp_path / "ESC-50-master" / "meta" / "esc50.csv"
    meta.write_text(meta.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        ESC50(name="esc50", data_dir=str(tmp_path)).setup()


# -- a folder of one's own ----------------------------------------------------------------------------------


def folder(root: Path, **options: object) -> AudioFolder:
    data = AudioFolder(name="audio_folder", data_dir=str(root), num_workers=0, **options)  # type: ignore[arg-type]
    data.setup()
    return data


def test_folder_per_class_never_moves_a_file(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(60):
            write(tmp_path / label / "deep" / f"{number}.wav", tone(0.01))
    before = folder(tmp_path, test_fraction=0.2)
    assert before.class_names == ["cat", "dog"]
    assert len(before.splits["test"]) == pytest.approx(24, abs=10)
    for number in range(60, 90):
        write(tmp_path / "cat" / f"{number}.wav", tone(0.01))
    after = folder(tmp_path, test_fraction=0.2)
    for split in before.splits:
        assert set(names(before, split)) <= set(names(after, split))


def test_given_parts_stay_and_the_missing_one_is_taken_from_training(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(40):
            write(tmp_path / "train" / label / f"{number}.wav", tone(0.01))
        write(tmp_path / "test" / label / "1.wav", tone(0.01))
    data = folder(tmp_path)
    assert names(data, "test") == ["test/cat/1.wav", "test/dog/1.wav"]
    assert len(data.splits["train"]) + len(data.splits["val"]) == 80
    assert data.splits["val"]


WHO = ("ann", "bob", "eve", "joe", "kim", "lea", "max", "ned")


def digits(root: Path) -> Path:
    for digit in "012":
        for who in WHO:
            for index in range(4):
                write(root / f"{digit}_{who}_{index}.wav", tone(0.01))
    return root


def test_labels_in_names(tmp_path: Path) -> None:
    data = folder(digits(tmp_path), label_from=r"^(?P<label>\d)_", test_from=r"_[01]\.wav$", val_from="_2")
    assert data.class_names == ["0", "1", "2"]
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 24, "val": 24, "test": 48}
    assert all(item.target == int(item.path.name[0]) for items in data.splits.values() for item in items)


def test_groups_are_never_parted(tmp_path: Path) -> None:
    pattern = r"^(?P<label>\d)_(?P<group>[a-z]+)"
    data = folder(digits(tmp_path), label_from=pattern, test_fraction=0.3, val_fraction=0.3)
    assert all(data.splits.values())
    parts = [{name.split("_")[1] for name in names(data, split)} for split in data.splits]
    assert sum(map(len, parts)) == len(WHO)


def esc(root: Path) -> Path:
    """Folders of classes, files named by fold, source and take."""
    for label in ("cat", "dog"):
        for fold in "123":
            for source in range(10):
                for take in "AB":
                    write(root / label / f"{fold}-{fold}{source}{label[0]}-{take}.wav", tone(0.01))
    return root


def test_folds_and_groups_in_the_names_of_files_in_folders_of_classes(tmp_path: Path) -> None:
    expressions = {
        "fold_from": r"^(?P<fold>\d)-",
        "group_from": r"^\d-(?P<group>[^-]+)-",
        "val_fraction": 0.2,
    }
    for fold in (1, 3):
        data = folder(esc(tmp_path), fold=fold, **expressions)
        assert len(data.splits["test"]) == 40
        assert {name.split("/")[1][0] for name in names(data, "test")} == {str(fold)}
        sources = [{name.split("-")[1] for name in names(data, split)} for split in data.splits]
        assert all(sources)
        assert sum(map(len, sources)) == 60, "no source is in two splits"


def test_a_group_beside_a_label_in_names_is_held_out_as_a_fold(tmp_path: Path) -> None:
    data = folder(
        digits(tmp_path), label_from=r"^(?P<label>\d)_", group_from="_(?P<group>[a-z]+)_",
        folds=8, fold=2, val_fraction=0.2,
    )  # fmt: skip
    parts = {split: {name.split("_")[1] for name in names(data, split)} for split in data.splits}
    assert parts["test"] == {"bob"}
    assert len(parts["val"]) == 1
    assert parts["train"] == set(WHO) - parts["test"] - parts["val"]


def test_a_table_of_several_labels(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for number, (labels, split) in enumerate(
        [("dog;cat", "train"), ("dog", "train"), ("cat", "validation"), ("", "test")]
    ):
        write(tmp_path / f"{number}.wav")
        rows.append(f"{number}.wav,{labels},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = folder(tmp_path, csv="labels.csv", multilabel=True, batch_size=2)
    assert data.class_names == ["cat", "dog"]
    assert [item.target.tolist() for item in data.splits["train"]] == [[1.0, 1.0], [0.0, 1.0]]
    assert data.splits["test"][0].target.tolist() == [0.0, 0.0]
    batch = next(iter(data.loader("train", train=False)))
    torch.testing.assert_close(batch.target, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("kind,label\n", "lacks a column for the path"),
        ("path,label\n1.wav,\n", "line 2 .* lacks a path or a label"),
        ("path,label\nabsent.wav,dog\n", "line 2 .* which does not exist"),
        ("path,label,split\n1.wav,dog,holdout\n", "takes train, val or test"),
        ("path,label\n1.wav,dog\n", "belong to one class"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, table: str | None, message: str) -> None:
    write(tmp_path / "1.wav")
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        folder(tmp_path, csv="labels.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_from": "(?P<label>"}, "is not a regular expression"),
        ({"label_from": "[a-z]+"}, "needs a group named label"),
        ({"label_from": "^(?P<label>x)"}, "does not match the file name 0_ann_0.wav"),
        ({"label_from": r"^(?P<label>\d)", "test_from": "xyz"}, "test_from=xyz matches no file"),
        ({"label_from": r"^\d_(?P<label>[a-z]+)", "test_from": "joe"}, "no training file of the class.* joe"),
        ({"csv": "a.csv", "label_from": "x"}, "not from both"),
        ({"csv": "a.csv", "fold_from": "(?P<fold>x)"}, "columns of the csv, or come from names, not both"),
        (
            {"label_from": r"^(?P<label>\d)", "group_from": "[a-z]+"},
            "group_from=.* needs a group named group",
        ),
        (
            {"label_from": r"^(?P<label>\d)", "fold_from": r"(?P<fold>\d)\.mp3"},
            "fold_from=.* does not match the file name 0_ann_0.wav",
        ),
        (
            {"label_from": r"^(?P<label>\d)", "fold_from": r"(?P<fold>\d)\.wav", "fold": 7},
            "fold=7 is none of at least two folds that are stated: 0, 1, 2, 3",
        ),
        ({"multilabel": True}, "needs csv=FILE"),
        ({"test_fraction": 0.6, "val_fraction": 0.4}, "leave something to train on"),
        ({"seconds": 0.0}, "must be positive"),
        ({"test_crops": 0}, "must be positive"),
        ({}, "expects a folder of audio files per class"),
    ],
)
def test_wrong_options_get_one_sentence(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        folder(digits(tmp_path), **options)
    assert "\n" not in str(caught.value)


# -- samples and splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda root: speech_commands(root, speakers=(1, 1, 1), words=3),
        lambda root: esc50(root, per_fold=1, categories=3),
        lambda root: audio_folder(root, per_class=2),
    ],
    ids=["speech_commands", "esc50", "audio_folder"],
)
def test_samples_are_drawn_byte_for_byte_alike(tmp_path: Path, draw) -> None:  # type: ignore[no-untyped-def]
    draw(tmp_path / "one")
    draw(tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_stable_fraction_is_stable() -> None:
    assert stable_fraction("cat/1.wav") == pytest.approx(0.21685495319582, abs=1e-12)
    values = [stable_fraction(str(number)) for number in range(2000)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)
    assert 0 <= min(values) <= max(values) < 1


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), min_size=1, max_size=60),
    st.floats(0.05, 0.5),
)
def test_held_out_groups_leave_every_class_something(items: list[tuple[str, int]], fraction: float) -> None:
    pairs = [(label, f"{label}{group}") for label, group in items]
    held = held_out_groups(pairs, fraction)
    assert {label for label, group in pairs if group not in held} == {label for label, _ in pairs}
    assert held == held_out_groups(reversed(pairs), fraction)


# -- longer clips -------------------------------------------------------------------------------------------


def test_longer_clips_say_how_much_is_read(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(20):
            write(tmp_path / label / f"{number}.wav", tone(3.0 if number else 0.5, rate=8000), rate=8000)
    (hint,) = folder(tmp_path, seconds=1.0).notes
    assert "clips last 0.5 / 3 / 3 s (min / median / max), 95 % longer than the 1 s that are read" in hint
    assert "training a random crop" in hint
    assert "test the middle; task.data.seconds=3 reads all, task.data.test_crops=K" in hint
    (hint,) = folder(tmp_path, seconds=1.0, test_crops=3).notes
    assert "3 crops from start to end" in hint
    assert "test_crops=K" not in hint
    assert folder(tmp_path, seconds=3.0).notes == []
    assert folder(tmp_path, seconds=2.99).notes == []


def test_of_many_clips_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_files, "LOOKED_AT", 5)
    for number in range(40):
        write(tmp_path / "ab"[number % 2] / f"{number}.wav", tone(0.2))
    (tmp_path / "a" / "0.wav").write_bytes(b"no sound")
    (hint,) = folder(tmp_path, seconds=0.1234).notes
    assert re.search(r"max of (9|1\d) clips\), 100 % longer", hint)
    assert "task.data.seconds=0.2 reads all" in hint


def test_sources_without_crops_offer_none(speech_root: Path) -> None:
    data = SpeechCommands(name="speech_commands", data_dir=str(speech_root), seconds=0.5)
    data.setup()
    (hint,) = data.notes
    assert hint.endswith("task.data.seconds=1 reads all")


def test_crops_cover_the_longest_clip(tmp_path: Path) -> None:
    for label in ("bell", "horn"):
        for number in range(20):
            write(tmp_path / label / f"{number}.wav", tone(0.5 + 0.1 * number))
    data = folder(tmp_path, seconds=0.5, test_crops="full", test_fraction=0.5, batch_size=2)
    longest = max(
        soundfile.info(item.path).duration for split in ("val", "test") for item in data.splits[split]
    )
    assert longest > 1.5
    assert data.test_crops == data.info()["test_crops"] == int(np.ceil(longest / 0.5))
    raw = next(iter(data.loader("test"))).raw
    assert raw.shape[:2] == (2, data.test_crops)
    other = AudioFolder(name="audio_folder", data_dir=str(tmp_path), seconds=0.5, test_crops="full")
    other.recall(data.info())
    assert other.read_file(data.splits["test"][0].path).shape[0] == data.test_crops
    with pytest.raises(DataError, match="a number or full, not 'all'"):
        folder(tmp_path, test_crops="all")
    with pytest.raises(DataError, match=r"crops of 0.001 s: say task.data.test_crops=K"):
        folder(tmp_path, seconds=0.001, test_crops="full")
