"""Metrics of sound events over a split, from summed counts of events, segments, frames and PSDS.

Shapes: K classes, M thresholds.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from tasks.event_metrics import PSDCounts, PSDSettings, f1_of, micro_f1_of, psds_of


class FrameTotals(Metric):
    """Frame-level F1, averaged over classes.

    Args:
        classes: K.
    """

    full_state_update = False
    higher_is_better = True
    frames: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("frames", torch.zeros(3, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, said_PK: Tensor, target_PK: Tensor) -> None:
        """Adds binary predictions and targets per frame and class, both (P, K)."""
        said_PK, target_PK = said_PK.double(), target_PK.double()
        self.frames += torch.stack([(said_PK * target_PK).sum(0), target_PK.sum(0), said_PK.sum(0)])

    def compute(self) -> Tensor:
        """The mean over classes that are present or predicted; NaN if there is none."""
        return torch.tensor(mean_of_defined(f1_of(self.frames.cpu().numpy())))


class EventTotals(Metric):
    """Event F1, segment F1 and PSDS.

    Args:
        classes: K.
        psds: settings of PSDS.

    Attributes:
        of_split: after `compute`, the counts by name: `events` and `segments` (3, K), and `psd`.
    """

    full_state_update = False
    higher_is_better = True
    events: Tensor
    segments: Tensor

    def __init__(self, classes: int, psds: PSDSettings) -> None:
        super().__init__()
        self.psds = psds
        self.of_split: tuple[NDArray[np.float64], NDArray[np.float64], PSDCounts] | None = None
        size, crossing = len(psds.thresholds), classes if psds.alpha_ct else 0
        shapes = {
            "events": (3, classes),
            "segments": (3, classes),
            "found": (size, classes),
            "false": (size, classes),
            "cross": (size, crossing, crossing),
            "true": (classes,),
            "sounding": (classes,),
            "seconds": (),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, events: NDArray[np.float64], segments: NDArray[np.float64], psd: PSDCounts) -> None:
        """Adds the counts of one recording."""
        added = {
            "events": events,
            "segments": segments,
            "found": psd.found,
            "false": psd.false,
            "cross": psd.cross,
            "true": psd.events,
            "sounding": psd.sounding,
            "seconds": psd.seconds,
        }
        for name, value in added.items():
            state = getattr(self, name)
            setattr(self, name, state + torch.as_tensor(value, dtype=torch.float64, device=state.device))

    def compute(self) -> dict[str, Tensor]:
        """Class-averaged F1, micro-averaged F1 (`…_micro`), and PSDS."""
        events, segments, found, false, cross, true, sounding, seconds = (
            getattr(self, name).cpu().numpy()
            for name in ("events", "segments", "found", "false", "cross", "true", "sounding", "seconds")
        )
        psd = PSDCounts(found, false, cross, true, sounding, float(seconds))
        self.of_split = events, segments, psd
        values = {
            "event_f1": mean_of_defined(f1_of(events)),
            "event_f1_micro": micro_f1_of(events),
            "segment_f1": mean_of_defined(f1_of(segments)),
            "segment_f1_micro": micro_f1_of(segments),
            "psds": psds_of(psd, self.psds),
        }
        return {name: torch.tensor(value) for name, value in values.items()}


def mean_of_defined(values_K: NDArray[np.float64]) -> float:
    """The mean ignoring NaN; NaN if all values are NaN."""
    defined = values_K[~np.isnan(values_K)]
    return float(defined.mean()) if len(defined) else float("nan")
