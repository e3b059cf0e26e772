"""Splits that depend on names alone: adding or removing files never moves another file to another split."""

import hashlib
from collections.abc import Iterable

import numpy as np

FOLDS_BY = ("number", "block")


def stable_fraction(name: str) -> float:
    """A number in [0, 1) that looks random but is the same on every machine, for one name."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="backslashreplace")).digest()[:6], "big") / 2**48


def held_out_groups(groups: Iterable[tuple[str, str]], fraction: float) -> set[str]:
    """Groups to hold out so that about ``fraction`` of every class goes, always leaving a group of each
    class.

    Args:
        groups: for every item its class and its group (recordings of one source, of one speaker, …).
        fraction: part of the items to hold out.
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
        files: for every file its class and its name.
        fraction: part of the files to hold out.
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
        count: files of one class.
        fold: the fold to test on, from 0.
        folds: how many.
        folds_by: ``number`` deals the files out in turn, ``block`` cuts their order into stretches.
        val_fraction: what is held out for validation of the files that are not tested.
    """
    places = np.arange(count)
    dealt = folds_by == "number"
    tested = (places % folds if dealt else places * folds // count) == fold
    rest = places[~tested]
    held = round(val_fraction * len(rest))
    if dealt:  # spread over the rest, as the fold is
        chosen = rest[(2 * np.arange(held) + 1) * len(rest) // max(2 * held, 1)]
    else:  # the stretch behind the tested one, or the first one
        behind = rest[rest > places[tested].max(initial=-1)]
        chosen = np.concatenate([behind, rest])[:held]
    return ["test" if tested[place] else "val" if place in chosen else "train" for place in places]
