"""What a tensor at the edge of a network holds, in words: the raw batch of an embedder, the output of a task."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TensorInfo:
    """The description of one tensor, written beside exported models (docs/EXPORT.md).

    Args:
        meaning: what the values are, with their unit or range.
        axes: the name of every axis, the batch first.
        facts: plain values that a program needs to fill or to read the tensor, such as a sample rate.
    """

    meaning: str
    axes: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
