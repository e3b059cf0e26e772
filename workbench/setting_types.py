"""Whether a value of the configuration suits the annotation of an argument, and what the annotation asks for in words.

Checked are numbers, bools, text, paths, `Literal`, lists and mappings of these, unions of them, and places for a
component. Any other annotation suits every value. So does a value that is no plain one, and a component (`_target_`),
which is known only once it is built.

Some values of another type are accepted, too, and converted: a whole number written as a float (`1e3`), a number as
text (a column called 2024), null as false. 0 and 1 are accepted as bools, and bools as numbers.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import nn

from workbench.quoting import value_text

LONGEST = 80  # characters of a value that are shown
PACKAGES = ("modalities", "backbone", "tasks", "workbench")  # their classes are components
LISTS = (list, tuple, Sequence, Collection, Iterable)
MAPPINGS = (dict, Mapping)
PLAIN = (bool, int, float, str, list, dict, NoneType)


def suits(value: Any, kind: Any) -> bool:
    """Whether a plain value suits an annotation.

    >>> suits([96, 160], int), suits([96, 160], tuple[int, int]), suits(1, float | None), suits("1", float)
    (False, True, True, False)
    """
    if not isinstance(value, PLAIN) or (isinstance(value, dict) and "_target_" in value):
        return True
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return suits(value, inner[0])
    if origin in (Union, UnionType):
        return any(suits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if kind in (None, NoneType):
        return value is None
    if kind is bool:
        return value is None or isinstance(value, bool) or value in (0, 1)
    if kind is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if kind is float:
        return isinstance(value, int | float)
    if kind in (str, Path):
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if origin in LISTS:
        return isinstance(value, list) and _items_suit(value, origin, inner)
    if origin in MAPPINGS:
        return isinstance(value, dict) and all(suits(one, inner[1]) for one in value.values() if inner)
    return isinstance(value, dict) or not _is_component(kind)


def _items_suit(value: list[Any], origin: Any, inner: tuple[Any, ...]) -> bool:
    if not inner:
        return True
    if origin is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(suits, value, inner))
    return all(suits(one, inner[0]) for one in value)


def _is_component(kind: Any) -> bool:
    if (get_origin(kind) or kind) is Callable:
        return True
    if not isinstance(kind, type):
        return False
    ours = kind.__module__.partition(".")[0] in PACKAGES
    return ours or issubclass(kind, nn.Module) or is_dataclass(kind)


def converted(value: Any, kind: Any) -> Any:
    """A plain value that suits an annotation, as the annotation's type; the value itself if it has this type.

    >>> converted(1e3, int), converted(1e3, int | float), converted([2024, "a"], str | Sequence[str])
    (1000, 1000.0, ['2024', 'a'])
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        ways = [converted(value, one) for one in inner if suits(value, one)]
        return next((way for way in ways if way is value), ways[0] if ways else value)
    if kind is int and isinstance(value, float):
        return int(value)
    if kind is bool and value is None:
        return False
    if kind is str and isinstance(value, int | float):
        return str(value)
    if origin in LISTS and isinstance(value, list) and inner:
        kinds = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        ways = list(map(converted, value, kinds))
        return value if all(way is one for way, one in zip(ways, value, strict=True)) else ways
    return value


def said(kind: Any) -> str:
    """What an annotation asks for.

    >>> said(int), said(float | None), said(int | Sequence[int])
    ('a whole number', 'a number or null', 'a whole number or a list of whole numbers')
    >>> said(bool), said(tuple[float, float]), said(Literal["whole", "slide"] | None)
    ('true or false', 'a list of 2 numbers', 'whole, slide or null')
    """
    return _joined(_alternatives(kind, several=False))


def shown(value: Any) -> str:
    """A value as it is typed, shortened.

    >>> shown([96, None, True]), shown("16"), shown({"a": "b c"})
    ('[96, null, true]', '"16"', '{a: b c}')
    """
    text = _text(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return value_text(value)


def _joined(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _alternatives(kind: Any, several: bool) -> list[str]:
    """What an annotation asks for, one name an alternative.

    Args:
        several: of a list's items.
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return _alternatives(inner[0], several)
    if origin in (Union, UnionType):
        names = [name for one in inner for name in _alternatives(one, several)]
        if float in inner:
            names = [name for name in names if "whole number" not in name or "list" in name]
        return [*dict.fromkeys(name for name in names if name != "null"), *["null"][: names.count("null")]]
    if origin is Literal:
        return [_text(one) for one in inner]
    if origin in LISTS:
        return [_list(origin, inner, several)]
    if origin in MAPPINGS:
        of = f" of names to {_joined(_alternatives(inner[1], True))}" if inner and inner[1] is not Any else ""
        return [f"mappings{of}" if several else f"a mapping{of}"]
    if kind is bool:
        return ["true", "false"]
    names_of: dict[Any, tuple[str, str]] = {
        None: ("null", "null"),
        NoneType: ("null", "null"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("text", "texts"),
        Path: ("a path", "paths"),
    }
    return [names_of.get(kind, ("a component with a _target_", "components with a _target_"))[several]]


def _list(origin: Any, inner: tuple[Any, ...], several: bool) -> str:
    count = f"{len(inner)} " if origin is tuple and inner and inner[-1] is not Ellipsis else ""
    name = "lists" if several else "a list"
    kinds = [one for one in inner if one is not Ellipsis]
    names = dict.fromkeys(one for kind in kinds for one in _alternatives(kind, True))
    return f"{name} of {count}{_joined(list(names))}" if inner else name
