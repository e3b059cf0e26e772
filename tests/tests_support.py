"""What tests import: where the project lies, the options of a model small enough for a second's training, and a task
whose answers are given."""

from pathlib import Path

import torch
from torch import Tensor, nn

from modalities.embedder import Embedder
from tasks.classification import ClassificationTask
from tasks.datasets.batch import Batch
from tasks.network import Network

ROOT = Path(__file__).parent.parent

TINY = (
    "backbone=widefield_nano",
    "backbone.model.depths=[1,1,1,1]",
    "backbone.model.dims=[8,8,16,16]",
    "trainer=cpu",
    "trainer.max_epochs=1",
)


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """In the norm over all elements."""
    ours, reference = ours.detach().double(), reference.detach().double()
    return ((ours - reference).norm() / reference.norm().clamp_min(1e-30)).item()


class Given(Embedder):
    """Passes given logits through as a map (B, 1, K, 1, 1)."""

    out_chans = 1
    raw_ndim = 2

    def forward(self, raw: Tensor) -> Tensor:
        return raw[:, None, :, None, None]


class Identity(nn.Module):
    def forward_features(self, x: Tensor) -> list[Tensor]:
        return [x]


class Pass(nn.Module):
    def forward(self, features: list[Tensor], views: int, context: object = None) -> Tensor:
        return features[-1].flatten(1)


def given_task(
    classes: int, multilabel: bool = False, average: str = "logits", loss: nn.Module | None = None
) -> ClassificationTask:
    loss = loss or (nn.BCEWithLogitsLoss() if multilabel else nn.CrossEntropyLoss())
    data_info = {"class_names": [f"c{i}" for i in range(classes)], "multilabel": multilabel}
    return ClassificationTask(
        loss, average, network=Network(Given(), Identity(), Pass()), data_info=data_info
    )


def logits_batch(logits: Tensor, target: Tensor) -> Batch:
    return Batch(logits, target, torch.arange(len(target)))


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's last checkpoint, by name."""
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return state


def only_run(folder: Path) -> Path:
    """The one run of `task=audio_folder` that was made in a folder."""
    (run,) = (folder / "runs" / "audio_folder").iterdir()
    return run
