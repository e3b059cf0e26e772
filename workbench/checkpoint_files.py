"""Checkpoint files: written whole or not at all, read without running code."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from workbench.files import write_atomically


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and are read without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        write_atomically(Path(path), lambda draft: torch.save(checkpoint, draft))

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content
