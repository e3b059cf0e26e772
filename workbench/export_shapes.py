"""Which axes of an exported model are dynamic, at which sizes it is checked, and how `model.json` says them.

A raw batch is a tensor or a tree of tensors; an axis that is dynamic in one of them is dynamic in all that have it.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from modalities.tensor_info import TensorInfo

Free = Mapping[int, int]  # dynamic axis of a raw batch -> what its length is a multiple of
BATCH_ALONE: Free = {0: 1}
AXES = {0: "batch", 2: "height", 3: "width"}  # names of dynamic axes
LONGEST = 4096  # multiples

Shape = list[int | str]


def fitted(raw: Any, free: Free) -> Any:
    """Repeat and crop a raw batch so that each dynamic axis is at least two multiples long: exporters treat a length
    of one as a constant."""

    def cut(value: Tensor) -> Tensor:
        for axis, multiple in free.items():
            if multiple > 1:
                times = -(-2 * multiple // value.shape[axis])
                value = _repeated(value, axis, times)
                value = value.narrow(axis, 0, value.shape[axis] // multiple * multiple)
        return value

    return tree_map(cut, raw)


def resized(raw: Any, axis: int) -> Any:
    """A raw batch with another length of one dynamic axis: a batch of one sample, or twice as long."""

    def other(value: Tensor) -> Tensor:
        if axis >= value.ndim:
            return value
        if axis == 0:
            return value[:1]
        return _repeated(value, axis, 2)

    return tree_map(other, raw)


def _repeated(value: Tensor, axis: int, times: int) -> Tensor:
    return value.repeat([times if place == axis else 1 for place in range(value.ndim)])


def dynamic_shapes(raw: Any, free: Free) -> Any:
    """The `dynamic_shapes` argument of the exporters."""
    dims = {
        axis: torch.export.Dim(
            axis_name(axis) if multiple == 1 else f"{axis_name(axis)}_over_{multiple}",
            min=1 if multiple == 1 else 2,
            max=LONGEST,
        )
        for axis, multiple in free.items()
    }
    lengths = {axis: multiple * dims[axis] if multiple > 1 else dims[axis] for axis, multiple in free.items()}
    return tree_map(
        lambda value: {axis: length for axis, length in lengths.items() if axis < value.ndim}, raw
    )


def axis_name(axis: int) -> str:
    return AXES.get(axis, f"axis{axis}")


def said_limits(free: Free) -> dict[str, dict[str, int]]:
    """The lengths that each dynamic axis may have, by name."""
    return {
        axis_name(axis): {
            **({} if multiple == 1 else {"multiple_of": multiple}),
            "minimum": 1 if multiple == 1 else 2 * multiple,
            "maximum": LONGEST * multiple,
        }
        for axis, multiple in free.items()
    }


def input_shapes(raw: Any, free: Free) -> list[Shape]:
    """The lengths of the axes of each tensor of a raw batch; the name of an axis instead where it is dynamic."""
    return [
        [axis_name(axis) if axis in free else length for axis, length in enumerate(value.shape)]
        for value in tree_leaves(raw)
    ]


def output_shapes(raw: Any, output: Any, others: Mapping[int, tuple[Any, Any]]) -> list[Shape]:
    """The lengths of the axes of each tensor of an output: numbers, or, where they change with the input, what they
    change with (`batch`, `height/4`).

    Args:
        raw: a raw batch.
        output: of `raw`.
        others: dynamic axis -> a raw batch with another length of this axis alone, and its output.
    """
    lengths = {axis: (_length(raw, axis), _length(other, axis)) for axis, (other, _) in others.items()}
    leaves = {axis: tree_leaves(other) for axis, (_, other) in others.items()}
    return [
        [
            _said_length(
                length,
                {axis: (*lengths[axis], leaves[axis][number].shape[place]) for axis in others},
            )
            for place, length in enumerate(value.shape)
        ]
        for number, value in enumerate(tree_leaves(output))
    ]


def _length(raw: Any, axis: int) -> int:
    return next(int(leaf.shape[axis]) for leaf in tree_leaves(raw) if axis < leaf.ndim)


def _said_length(length: int, changes: dict[int, tuple[int, int, int]]) -> int | str:
    """A length of an output's axis, in words.

    Args:
        length: at the first size.
        changes: dynamic axis -> its length at the first size and at another, and the output's length at the other.
    """
    moved = {axis: change for axis, change in changes.items() if change[2] != length}
    if not moved:
        return length
    if len(moved) > 1:
        return "depends on " + " and ".join(map(axis_name, moved))
    ((axis, (before, after, changed)),) = moved.items()
    slope = Fraction(changed - length, after - before)
    rest = length - slope * before
    factor = "" if slope.numerator == 1 else f"{slope.numerator}*"
    divisor = "" if slope.denominator == 1 else f"/{slope.denominator}"
    added = "" if not rest else f"{'+' if rest > 0 else '-'}{abs(rest)}"
    return f"{factor}{axis_name(axis)}{divisor}{added}"


def tensor_names(value: Any, info: Mapping[str, TensorInfo], kind: str) -> list[str]:
    """The name of each tensor of a raw batch or an output: that of its description, the key of a dictionary, or `kind`
    (numbered, of several)."""
    if isinstance(value, dict):
        return [str(name) for name in value]
    leaves = tree_leaves(value)
    if len(info) == len(leaves):
        return list(info)
    return [kind] if len(leaves) == 1 else [f"{kind}_{number}" for number in range(len(leaves))]


def described(
    names: Sequence[str], value: Any, shapes: Sequence[Shape], info: Mapping[str, TensorInfo]
) -> list[dict[str, Any]]:
    """The entries of `model.json` for the tensors of a raw batch or an output.

    Args:
        names: `tensor_names`.
        value: the raw batch or the output.
        shapes: of its tensors.
        info: descriptions by name; a tensor may lack one.
    """
    entries = []
    for name, tensor, shape in zip(names, tree_leaves(value), shapes, strict=True):
        entry: dict[str, Any] = {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": shape,
        }
        one = info.get(name)
        if one is not None and len(one.axes) == tensor.ndim:  # else it is of another network's tensor
            entry |= {"axes": list(one.axes), "meaning": one.meaning, **one.facts}
        entries.append(entry)
    return entries
