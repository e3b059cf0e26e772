"""Deterministic splits from hashes of names, and cross-validation folds."""

import hashlib
from collections.abc import Iterable

import numpy as np

FOLDS_BY = ("number", "block")


def stable_fraction(name: str) -> float:
    """Hash of a name as a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="backslashreplace")).digest()[:6], "big") / 2**48


def held_out_groups(groups: Iterable[tuple[str, str]], fraction: float) -> set[str]:
    """Groups to hold out: about ``fraction`` of every class, leaving at least one group of each class.

    Args:
        groups: class and group (recordings of one source, of one speaker, …) of every item.
        fraction: fraction of the items to hold out.
    """
    sizes: dict[str, dict[str, int]] = {}
    for label, group in groups:
        members = sizes.setdefault(label, {})
        members[group] = members.get(group, 0) + 1
    held: set[str] = set()
    for label in sorted(sizes):
        members = sizes[label]
        wanted = fraction * sum(members.values())
        taken = sum(size for group, size in members.items() if group in held)
        for group in sorted(members, key=stable_fraction):
            if group in held:
                continue
            if taken + members[group] / 2 > wanted or len(set(members) - held) == 1:
                continue
            held.add(group)
            taken += members[group]
    return held


def held_out_files(files: Iterable[tuple[str, str]], fraction: float) -> set[str]:
    """Names to hold out: about ``fraction`` of every class, at least one and never all of a class.

    Args:
        files: class and name of every file.
        fraction: fraction of the files to hold out.
    """
    names: dict[str, list[str]] = {}
    for label, name in files:
        names.setdefault(label, []).append(name)
    held: set[str] = set()
    for members in names.values():
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held.update(sorted(members, key=stable_fraction)[:count])
    return held


def fold_parts(count: int, fold: int, folds: int, folds_by: str, val_fraction: float) -> list[str]:
    """The splits of ``count`` files in the order of their numbers, for cross-validation.

    Args:
        count: number of files of one class.
        fold: the fold to test on, from 0.
        folds: number of folds.
        folds_by: ``number`` assigns the files round-robin, ``block`` in contiguous blocks.
        val_fraction: fraction of the files outside the test fold to hold out for validation.
    """
    places = np.arange(count)
    dealt = folds_by == "number"
    tested = (places % folds if dealt else places * folds // count) == fold
    rest = places[~tested]
    held = round(val_fraction * len(rest))
    if dealt:  # evenly spaced in the rest, like the fold
        chosen = rest[(2 * np.arange(held) + 1) * len(rest) // max(2 * held, 1)]
    else:  # the block after the test fold, continued at the start
        behind = rest[rest > places[tested].max(initial=-1)]
        chosen = np.concatenate([behind, rest])[:held]
    return ["test" if tested[place] else "val" if place in chosen else "train" for place in places]
