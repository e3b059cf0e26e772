"""Loads weights into a network of the same architecture, adapting its first convolution to the input channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from backbone.checkpoints import CheckpointError, LoadReport, adapt_first_conv


def take_weights(
    model: nn.Module, state: Mapping[str, Any], label: str, what: str, first_convs: Sequence[str]
) -> LoadReport:
    """Load `state` into `model`, in place; tensors that are not part of the model (e.g. a classifier) are skipped.

    Everything is checked before the first tensor is written.

    Args:
        state: tensors by parameter name.
        label: name of the weights in messages.
        what: description of the model in messages.
        first_convs: names of the input convolutions; their number of input channels may differ.

    Raises:
        CheckpointError: a tensor of the model is missing or of another shape.
    """
    report = LoadReport(label)
    own = model.state_dict()
    fitted: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        wanted = own.get(name)
        if name.removesuffix(".weight") in first_convs and _differs_in_channels(value, wanted):
            assert wanted is not None
            report.adapted.append(f"{name} ({value.shape[1]} -> {wanted.shape[1]} input channels)")
            value = adapt_first_conv(value, wanted.shape[1])
        if wanted is not None and wanted.shape == value.shape:
            fitted[name] = value
        elif wanted is None:
            # Not under its plain name, from which our heads load UniRepLKNet's norm and classifier.
            report.left_out[f"its {name}"] = value
    missing = [name for name in own if name not in fitted and not name.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{label} does not fit {what}: {some(missing)} {'is' if len(missing) == 1 else 'are'} "
            "missing or of another shape"
        )
    model.load_state_dict(fitted, strict=False)
    report.loaded = len(fitted)
    return report


def _differs_in_channels(value: Tensor, wanted: Tensor | None) -> bool:
    if wanted is None or value.ndim != 4 or wanted.ndim != 4:
        return False
    same = value.shape[0] == wanted.shape[0] and value.shape[2:] == wanted.shape[2:]
    return same and value.shape[1] != wanted.shape[1]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
