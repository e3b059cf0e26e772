"""The words of the runs' commands as columns, and which of them may be axes."""

from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

import pandas as pd
import yaml

from tasks.secrets import is_secret
from workbench.conf_folders import CONF, conf_folders
from workbench.signatures import signature_of

GROUPS = ("modality", "task", "backbone", "seed")  # words that a result says, too
# Where objects of any name may stand.
FREE = ("callbacks.", "task.members.", "modality.augment.")
# Words of a command that do not change what is learnt …
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
# … but for those that say which features are measured, and how (action=evaluate).
OF_ACTIONS = ("action.protocol", "action.stage", "action.views", "action.gallery")


def settings_of(commands: Sequence[Sequence[str]], results: Sequence[bool]) -> pd.DataFrame:
    """A column for each key that not all commands share; `default` where a command says nothing.

    Args:
        commands: the words of each run.
        results: whether a run has a result. A column is of numbers where all of theirs are; another run's word that
            is none is left out.
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
    """Key and value of every word that may change what is learnt."""
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if (
            (key in OF_ACTIONS or not key.startswith(NO_AXES))
            and not is_secret(key)
            and "${secret:" not in value
        ):
            yield key, value.strip("'\"")


def debug_of(words: Sequence[str]) -> str | None:
    """The `debug=` of a command, if it has one."""
    found = [word.partition("=")[2].strip("'\"") for word in words if word.lstrip("+").startswith("debug=")]
    return found[-1] if found and found[-1] not in ("", "null") else None


def is_fold(key: str) -> bool:
    """Whether a key chooses the fold of a cross-validation: a repetition, like a seed, and no setting."""
    return key == "task.data.fold" or key.endswith(".task.data.fold")


def _typed(values: pd.Series, with_result: pd.Series, default: bool) -> pd.Series:
    """Numbers where all values that came to a result are numbers, otherwise text."""
    deciding = values[with_result] if with_result.any() else values
    given = deciding[deciding.notna()]
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().all() and len(given) and (len(given) == len(deciding) or not default):
        return pd.to_numeric(values, errors="coerce")
    return values.where(values.notna(), "default") if default else values


def short_names(keys: Sequence[str], taken: Set[str]) -> dict[str, str]:
    """`backbone.kernel_size` -> `kernel_size`, where that says it all; `+score`, where a column has that name.

    >>> short_names(["backbone.kernel_size", "a.lr", "b.lr", "score"], {"score"})
    {'backbone.kernel_size': 'kernel_size', 'a.lr': 'a.lr', 'b.lr': 'b.lr', 'score': '+score'}
    """
    last = [key.rpartition(".")[2] for key in keys]
    names = {
        key: name if last.count(name) == 1 and name not in taken and "/" not in name else key
        for key, name in zip(keys, last, strict=True)
    }
    return {key: f"+{name}" if name in taken or "/" in name else name for key, name in names.items()}


# -- keys that were added ----------------------------------------------------------------------------------------


def is_read(key: str, words: Sequence[str], config: Mapping[str, Any]) -> bool:
    """Whether anybody reads a key that a command added with `+`: a typo changes nothing and is no axis.

    Args:
        key: e.g. `optimizer.lr`.
        words: the command.
        config: what it composed; empty where that is not known.
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
    """Whether a node has a value that the command did not give: then somebody's YAML made it."""
    if isinstance(node, Mapping):
        return any(_holds_more(value, f"{place}.{key}", said) for key, value in node.items())
    return node is not None and not any(place == key or place.startswith(f"{key}.") for key in said)


@lru_cache(maxsize=1)
def modalities() -> Mapping[str, str]:
    """Task -> what it reads, for our tasks and those of plug-ins."""
    found = {}
    for file in (file for folder in conf_folders() for file in (folder / "task").glob("[a-z]*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        said = dict(line.partition(": ")[::2] for line in lines if line.startswith(("name: ", "modality: ")))
        if len(said) == 2:
            found[said["name"].strip()] = said["modality"].strip()
    return found
