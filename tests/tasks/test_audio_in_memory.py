"""Clips kept in memory are cropped as those that are read from files in every epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tasks.datasets.audio import files as audio_files
from tasks.datasets.audio.folder import AudioFolder

RATE = 8000


def clips(root: Path, rate: int) -> Path:
    """Noise of half a second to two seconds, and a file that is no sound."""
    rng = np.random.default_rng(0)
    for label in ("high", "low"):
        (root / label).mkdir(parents=True)
        for number in range(10):
            wave = rng.uniform(-0.5, 0.5, round(rate * (0.5 + 0.15 * number)))
            soundfile.write(root / label / f"{number}.wav", wave, rate)
    (root / "low" / "3.wav").write_bytes(b"no sound")
    return root


def epochs(root: Path, in_memory: bool, **settings: Any) -> list[dict[int, torch.Tensor]]:
    """The training clips of two epochs, by index."""
    data = AudioFolder(
        name="audio_folder",
        data_dir=str(root),
        in_memory=in_memory,
        sample_rate=RATE,
        num_workers=0,
        **settings,
    )
    data.setup()
    loader: Any = data.train_dataloader()
    read: list[dict[int, torch.Tensor]] = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        read.append(
            {i: raw for batch in loader for i, raw in zip(batch.index.tolist(), batch.raw, strict=True)}
        )
    return read


def test_crops_are_the_same_as_from_files(tmp_path: Path) -> None:
    root = clips(tmp_path / "clips", RATE)
    kept, read = (epochs(root, in_memory, seconds=1.0) for in_memory in (True, False))
    assert [epoch.keys() for epoch in kept] == [epoch.keys() for epoch in read]
    for ours, theirs in zip(kept, read, strict=True):
        assert all(ours[index].equal(theirs[index]) for index in ours)
    assert any(not kept[0][index].equal(kept[1][index]) for index in kept[0]), "drawn anew in each epoch"


def test_crops_at_another_rate_are_those_from_files_but_for_rounding(tmp_path: Path) -> None:
    """Only the position is compared: resampled before it is cut out, a crop has no edges that ring."""
    root = clips(tmp_path / "clips", 2 * RATE)
    kept, read = (epochs(root, in_memory, seconds=1.0) for in_memory in (True, False))
    for index, ours in kept[0].items():
        spectra = torch.fft.rfft(ours).conj() * torch.fft.rfft(read[0][index])
        assert torch.fft.irfft(spectra).argmax().item() in (0, 1, RATE - 1)


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = clips(tmp_path / "clips", RATE)
    read: list[Path] = []
    samples = audio_files.read_samples

    def counted(path: Path, *rest: Any) -> torch.Tensor:
        read.append(path)
        return samples(path, *rest)

    monkeypatch.setattr(audio_files, "read_samples", counted)
    kept = epochs(root, True, seconds=1.0)
    assert max(read.count(path) for path in read) <= 2  # the first one also to measure what all will take
    assert len(set(read)) >= len(kept[0])
