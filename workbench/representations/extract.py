"""Extracts the features of samples, batch by batch."""

import logging
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.task import Task
from workbench.representations.features import Features
from workbench.representations.samples import Batch, Place

log = logging.getLogger("widefield")

EVERY = 10  # seconds between progress lines
NOT_FINITE = "its features are not finite (NaN or infinite): the network's weights or this sample are damaged"


@dataclass
class Embedded:
    """Features of consecutive samples.

    Args:
        places: origins of all samples.
        kept: positions of the samples that have features.
        features: their features, (len(kept), …), float32.
        errors: position -> error of a sample without features.
    """

    places: list[Place]
    kept: list[int]
    features: NDArray[np.float32]
    errors: dict[int, str]


def embedded(
    task: Task, batches: Generator[Batch, None, None], wanted: Features, total: int
) -> Generator[Embedded, None, None]:
    """Yield the features of every batch; unreadable samples are logged and recorded as errors."""
    done, said = 0, time.monotonic()
    with closing(batches):  # also ends the worker processes on an error
        for batch in batches:
            yield _one(task, batch, wanted)
            done += len(batch.places)
            if time.monotonic() - said > EVERY:
                log.info("features: %s of %s samples", f"{done:,}", f"{total:,}")
                said = time.monotonic()


def _one(task: Task, batch: Batch, wanted: Features) -> Embedded:
    kept, errors = batch.read, dict(batch.errors)
    features: NDArray[np.float32] = np.zeros((0,), dtype=np.float32)
    if batch.raw is not None:
        raw: Any = task.transfer_batch_to_device(batch.raw, task.device, 0)
        features = wanted.of(task.network, raw).cpu().numpy()
        finite = [bool(np.isfinite(feature).all()) for feature in features]
        errors |= {position: NOT_FINITE for position, fine in zip(kept, finite, strict=True) if not fine}
        kept = [position for position, fine in zip(kept, finite, strict=True) if fine]
        features = features[np.array(finite, dtype=bool)]
    for position, error in errors.items():
        log.warning("broken file: %s: %s", batch.places[position].path, error)
    return Embedded(batch.places, kept, features, errors)
