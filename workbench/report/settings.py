"""The overrides of the runs' commands as columns, and which of them may be axes."""

from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

import pandas as pd
import yaml

from tasks.secrets import is_secret
from workbench.conf_folders import CONF, conf_folders
from workbench.signatures import signature_of

GROUPS = ("modality", "task", "backbone", "seed")  # overrides that are also recorded in results
# Nodes whose entries may have any name.
FREE = ("callbacks.", "task.members.", "modality.augment.")
# Overrides that do not affect a result …
NO_AXES = (
    "paths.",
    "hydra",
    "sweep",
    "resume",
    "input",
    "download",
    "logger",
    "action",
    "debug",
    "task.data.num_workers",
)
# … except the action itself and its settings that decide what is measured: on which samples (action=test), on which
# features and how (action=evaluate).
OF_ACTIONS = (
    *("action", "action.split", "action.protocol", "action.stage", "action.views", "action.k", "action.c"),
    *("action.max_iter", "action.shots", "action.draws", "action.gallery", "action.at"),
)
THE_DEFAULT = ("action", "fit")  # said or not, the same run


def settings_of(commands: Sequence[Sequence[str]], results: Sequence[bool]) -> pd.DataFrame:
    """One column for each key whose value differs between commands; `default` where a command does not set it.

    Args:
        commands: the overrides of each run.
        results: whether each run has a result. A column is numeric if all values of runs with results are numbers;
            non-numeric values of other runs are then dropped.
    """
    said = [dict(pairs(words)) for words in commands]
    with_result = pd.Series(list(results), dtype=bool)
    columns = {}
    for key in dict.fromkeys(key for words in said for key in words):
        values = [words.get(key) for words in said]
        if len(set(values)) > 1 or key in GROUPS:
            columns[key] = _typed(pd.Series(values, dtype=object), with_result, default=key not in GROUPS)
    return pd.DataFrame(columns, index=range(len(said)))


def pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Key and value of every override that may affect a result."""
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if (
            (key in OF_ACTIONS or not key.startswith(NO_AXES))
            and not is_secret(key)
            and "${secret:" not in value
            and (key, value) != THE_DEFAULT
        ):
            yield key, value.strip("'\"")


def debug_of(words: Sequence[str]) -> str | None:
    """The `debug=` option of a command, if set."""
    found = [word.partition("=")[2].strip("'\"") for word in words if word.lstrip("+").startswith("debug=")]
    return found[-1] if found and found[-1] not in ("", "null") else None


def is_fold(key: str) -> bool:
    """Whether a key chooses the fold of a cross-validation, which is a repetition like a seed."""
    return key == "task.data.fold" or key.endswith(".task.data.fold")


def _typed(values: pd.Series, with_result: pd.Series, default: bool) -> pd.Series:
    """Convert to numbers if all values of runs with a result are numbers, else keep text."""
    deciding = values[with_result] if with_result.any() else values
    given = deciding[deciding.notna()]
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().all() and len(given) and (len(given) == len(deciding) or not default):
        return pd.to_numeric(values, errors="coerce")
    return values.where(values.notna(), "default") if default else values


def short_names(keys: Sequence[str], taken: Set[str]) -> dict[str, str]:
    """Short column names: `backbone.kernel_size` -> `kernel_size` if unique; `+score` if a column has that name.

    >>> short_names(["backbone.kernel_size", "a.lr", "b.lr", "score"], {"score"})
    {'backbone.kernel_size': 'kernel_size', 'a.lr': 'a.lr', 'b.lr': 'b.lr', 'score': '+score'}
    """
    last = [key.rpartition(".")[2] for key in keys]
    names = {
        key: name if last.count(name) == 1 and name not in taken and "/" not in name else key
        for key, name in zip(keys, last, strict=True)
    }
    return {key: f"+{name}" if name in taken or "/" in name else name for key, name in names.items()}


# -- keys added with `+` -----------------------------------------------------------------------------------------


def is_read(key: str, words: Sequence[str], config: Mapping[str, Any]) -> bool:
    """Whether a component reads a key added with `+`; a misspelt key has no effect and is not an axis.

    Args:
        key: e.g. `optimizer.lr`.
        words: the overrides of the command.
        config: the composed configuration; empty if unknown.
    """
    top, *below = key.split(".")
    if top not in _top_level() and not _holds_more(config.get(top), top, dict(pairs(words))):
        return False
    if not config or not below or key.startswith(FREE):
        return True
    node, owned = config.get(top), False
    for part in below:
        if not isinstance(node, Mapping):
            break
        if isinstance(target := node.get("_target_"), str):
            owned, signature = True, signature_of(target)
            if part == below[-1] and signature is not None:
                return part in signature.arguments or signature.any_keyword
        node = node.get(part)
    return owned or top not in _top_level()


@lru_cache(maxsize=1)
def _top_level() -> frozenset[str]:
    content = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    folders = (path.name for folder in conf_folders() for path in folder.glob("*") if path.is_dir())
    return frozenset({*content, *folders})


def _holds_more(node: Any, place: str, said: Mapping[str, str]) -> bool:
    """Whether a node has a value not set by the command, i.e. one that comes from a YAML file."""
    if isinstance(node, Mapping):
        return any(_holds_more(value, f"{place}.{key}", said) for key, value in node.items())
    return node is not None and not any(place == key or place.startswith(f"{key}.") for key in said)


@lru_cache(maxsize=1)
def modalities() -> Mapping[str, str]:
    """Maps each task, including those of plug-ins, to its modality."""
    found = {}
    for file in (file for folder in conf_folders() for file in (folder / "task").glob("[a-z]*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        said = dict(line.partition(": ")[::2] for line in lines if line.startswith(("name: ", "modality: ")))
        if len(said) == 2:
            found[said["name"].strip()] = said["modality"].strip()
    return found
