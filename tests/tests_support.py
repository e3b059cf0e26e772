"""What tests import: where the project lies and the options of a model small enough for a second's training."""

from pathlib import Path

from torch import Tensor

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
