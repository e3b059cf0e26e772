"""Trained models from Python: `load` finds and loads one, `Model.predict` runs it."""

from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from tasks.datasets.base import DataModule
from tasks.datasets.errors import DataError
from tasks.task import Prediction, Task
from workbench.composition import built_from
from workbench.errors import UsageError
from workbench.hub import SCHEME, is_repository
from workbench.instantiation import instantiate
from workbench.overrides import compose
from workbench.predict import NOT_FINITE, is_finite
from workbench.quoting import word
from workbench.restore import Restored, restore

#: One sample: a file, or what the modality's files hold, as `DataModule.read_file` returns it.
Input: TypeAlias = str | Path | NDArray[Any] | Tensor | dict[str, Any]
OneInput = TypeVar("OneInput", bound=Input)


class Model:
    """A trained model with its file reader, returned by :func:`load`.

    Args:
        restored: the model and its composition.
        data: reads files as in training.
    """

    def __init__(self, restored: Restored[Task], data: DataModule) -> None:
        self.restored, self.data = restored, data

    @property
    def task(self) -> Task:
        """The `LightningModule`, in evaluation mode; `task.network` is embedder, backbone and head."""
        return self.restored.task

    @property
    def cfg(self) -> DictConfig:
        """The composition it was trained in."""
        return self.restored.cfg

    @property
    def data_info(self) -> dict[str, Any]:
        """What the model stores about its data: class names, names and statistics of variates."""
        return self.task.data_info

    @overload
    def predict(self, x: Input, *, top_k: int = 5, batch_size: int = 16) -> Prediction: ...

    @overload
    def predict(self, x: list[OneInput], *, top_k: int = 5, batch_size: int = 16) -> list[Prediction]: ...

    def predict(
        self, x: Input | list[OneInput], *, top_k: int = 5, batch_size: int = 16
    ) -> Prediction | list[Prediction]:
        """Predict one sample, or each of a list of samples.

        Args:
            x: a file; an array as the embedder reads it, without the batch dimension (a waveform `(T,)` at the task's
                sample rate, an image `(3, S, S)` uint8, …), or a dictionary where the embedder reads several
                arrays (a window of a series: `values` (T, variates), `calendar`, `date`); or a list of these.
            top_k: maximum number of classes to list.
            batch_size: samples per forward pass.

        Returns:
            For each sample its `columns` (label, probabilities, values) and the same as text, `shown`.

        Raises:
            UsageError: an array with the wrong number of dimensions, or a prediction that is not finite.
            DataError: a file that cannot be read.
        """
        if isinstance(x, str | Path | np.ndarray | Tensor | dict):
            return self.predict([x], top_k=top_k, batch_size=batch_size)[0]
        predictions: list[Prediction] = []
        for start in range(0, len(x), batch_size):
            raws = [self._raw(one) for one in x[start : start + batch_size]]
            batch = self.task.transfer_batch_to_device(self.data.join_raws(raws), self.task.device, 0)
            try:
                with torch.inference_mode():
                    predictions += self.task.predict(batch, top_k)
            except KeyError as error:  # a key missing in a dictionary
                raise UsageError(f"a sample of {self.cfg.task.name} lacks {error.args[0]}") from error
        if not all(map(is_finite, predictions)):
            raise UsageError(NOT_FINITE)
        return predictions

    def _raw(self, x: Input) -> Any:
        if isinstance(x, str | Path):
            file = Path(x).expanduser()
            try:
                return self.data.read_file(file)
            except DataError as error:
                raise type(error)(f"{file}: {error}") from error
        like = self.task.network.embedder.example_raw(1)
        keys = sorted(like) if isinstance(like, dict) else []
        if isinstance(x, dict) != bool(keys) or not set(keys) <= set(x if isinstance(x, dict) else ()):
            kind = f"a dictionary with {', '.join(keys)}" if keys else "an array"
            raise UsageError(f"a sample of {self.cfg.task.name} is {kind}, or a file")
        if isinstance(x, dict):
            return x
        raw = torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x)
        raw = raw.float() if raw.dtype == torch.float64 else raw
        wanted = int(self.task.network.embedder.raw_ndim) - 1
        if raw.ndim != wanted:
            raise UsageError(
                f"a sample of {self.cfg.task.name} has {wanted} dimensions, this array {raw.ndim}: "
                f"{tuple(raw.shape)}; several samples are given as a list"
            )
        return raw

    def __repr__(self) -> str:
        names = " + ".join(str(self.cfg[group].name) for group in ("modality", "task", "backbone"))
        return f"Model({names}, {self.restored.checkpoint})"


def load(
    name: str | Path, *, device: str | torch.device = "cpu", config_dir: str | Path | None = None
) -> Model:
    """Load a trained model.

    Args:
        name: a run folder, a checkpoint file, or a Hugging Face Hub repository, `OWNER/NAME` or `hf://OWNER/NAME`;
            `NAME@PART` is one member of a joint run. The description of the model is validated before it is
            built (docs/SECURITY.md): it may name registered classes only.
        device: device of the model.
        config_dir: a configuration folder that names further classes, e.g. of a plug-in that is not installed.

    Raises:
        UsageError: there is no such model, or no member of a joint run is named.
        CheckpointError: it cannot be read, or is refused.

    Example:
        >>> model = load("runs/speech_commands/RUN")  # doctest: +SKIP
        >>> model.predict("clip.wav").shown  # doctest: +SKIP
        'yes 98.2%  yet 0.9%  left 0.4%'
    """
    words = ("action=predict", word("ckpt", _located(str(name))))
    restored = restore(compose(*words, config_dir=config_dir))
    with built_from(restored.checkpoint):
        data: DataModule = instantiate(restored.cfg.task.data)
        data.recall(restored.task.data_info)
    restored.task.to(device)
    return Model(restored, data)


def _located(name: str) -> str:
    """The name in the form that `ckpt=` takes."""
    place = Path(name.rpartition("@")[0] or name).expanduser()
    if name.startswith(SCHEME) or Path(name).expanduser().exists() or place.exists():
        return name
    if is_repository(name.partition("@")[0]):
        return f"{SCHEME}{name}"
    raise UsageError(f"there is no run, checkpoint or repository of a hub (OWNER/NAME) called {name[:200]}")
