"""Recordings in `.npz` files, a folder a class, and the embedded sample of them."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.base import Item, ReadError
from tasks.datasets.labelled_files import FromLabelledFiles, LabelledFiles
from tasks.datasets.shards.data import ShardableData, ShardableSettings

STATES = ("eyes_closed", "eyes_open", "jaw_clenched")
#: How much of the alpha rhythm each of the eight electrodes of the sample sees, from the forehead to the back.
BACK = np.array([0.1, 0.1, 0.2, 0.2, 0.5, 0.5, 1.0, 1.0])


class EegData(ShardableData):
    """Recordings of E electrodes: arrays `signal` (E, T) in microvolts and `rate` in Hz, in an `.npz` file.

    Args:
        electrodes, rate, seconds: what a recording must have; longer ones are cut, at random in training.
        **common: see `ShardableData` and `DataModule`.
    """

    modality = "eeg"
    extensions = (".npz",)
    unit = "recordings"

    def __init__(
        self,
        *,
        electrodes: int = 8,
        rate: int = 128,
        seconds: float = 4.0,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(**common)
        self.electrodes, self.rate, self.length = electrodes, rate, round(rate * seconds)

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        signal_ET = self._signal(item.path)
        spare = signal_ET.shape[1] - self.length
        start = int(rng.integers(spare + 1)) if train else spare // 2
        return torch.from_numpy(signal_ET[:, start : start + self.length])

    def read_file(self, path: Path) -> Tensor:
        signal_ET = self._signal(path)
        start = (signal_ET.shape[1] - self.length) // 2
        return torch.from_numpy(signal_ET[:, start : start + self.length])

    def _signal(self, path: Path) -> NDArray[np.float32]:
        try:
            with np.load(path, allow_pickle=False) as file:
                signal_ET = np.array(file["signal"], dtype=np.float32)
                rate = float(file["rate"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise ReadError("not an .npz file with the arrays signal and rate") from error
        if signal_ET.ndim != 2 or len(signal_ET) != self.electrodes:
            raise ReadError(f"signal must be ({self.electrodes}, T), not {signal_ET.shape}")
        if rate != self.rate or signal_ET.shape[1] < self.length:
            raise ReadError(f"at least {self.length} samples at {self.rate} Hz are needed")
        if not np.isfinite(signal_ET).all():
            raise ReadError("the signal is not finite")
        return signal_ET


class EegFolder(FromLabelledFiles, EegData):
    """A folder of recordings per class.

    Args:
        electrodes, rate, seconds: see `EegData`.
        **common: see `ShardableData` and `DataModule`.
    """

    title = "EEG recordings"
    layout = "a folder of .npz files (arrays signal (E, T) in µV, rate in Hz) per class"

    def __init__(
        self,
        *,
        electrodes: int = 8,
        rate: int = 128,
        seconds: float = 4.0,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(electrodes=electrodes, rate=rate, seconds=seconds, **common)
        self.files = LabelledFiles(self.extensions, test_fraction=0.2, val_fraction=0.2)

    def write_sample(self, root: Path) -> None:
        for number, state in enumerate(STATES):
            (root / state).mkdir(parents=True)
            for index in range(60):
                signal = draw(state, np.random.default_rng((number, index)))
                np.savez(root / state / f"{index:03d}.npz", signal=signal, rate=128)


def draw(state: str, rng: np.random.Generator, rate: int = 128, seconds: float = 5.0) -> NDArray[np.float32]:
    """A synthetic recording (8, T) in microvolts: 1/f background, alpha rhythm, muscle noise."""
    count = round(rate * seconds)
    time = np.arange(count) / rate
    spectrum = rng.normal(size=(8, count // 2 + 1)) + 1j * rng.normal(size=(8, count // 2 + 1))
    spectrum /= np.sqrt(np.maximum(np.arange(count // 2 + 1), 1))
    background = np.fft.irfft(spectrum, count)
    background *= 8 / background.std()
    envelope = 1 + 0.5 * np.sin(2 * np.pi * (0.3 * time + rng.uniform()))
    alpha = np.sin(2 * np.pi * (rng.uniform(9, 11) * time + rng.uniform())) * envelope
    height = 12.0 if state == "eyes_closed" else 1.5
    signal = background + height * rng.uniform(0.7, 1.3) * BACK[:, None] * alpha
    if state == "jaw_clenched":
        signal += rng.normal(0, rng.uniform(10, 20), signal.shape) * (1 - BACK[:, None] / 2)
    return signal.astype(np.float32)
