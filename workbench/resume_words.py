"""`python run.py resume=RUN`: the command of a run again, from the words that Hydra recorded in its folder.

Words that are given replace those of the run; what they may not change is refused later (`workbench.resume`). A run's
folder is data (docs/SECURITY.md): its words may name classes of the installed configuration only, and no place to write
to; places of data, downloads and storage options on the network are said again by who goes on.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from workbench.errors import UsageError
from workbench.resolvers import can_go_on
from workbench.sweeps.frozen import check_word
from workbench.sweeps.job import quoted
from workbench.words import choices, composed
from workbench.yaml_targets import read_yaml

KEY = "resume"
RECORD = Path(".hydra") / "overrides.yaml"
TAKEN = (
    *("modality", "task", "backbone", "optimizer", "scheduler", "trainer", "callbacks", "logger"),
    *("experiment", "debug", "seed", "data_dir", "init_from", "freeze", "compile", "action"),
)
# Where this command writes or what it asks on the network: never from a record. They decide nothing that is learnt.
OWN = ("samples_dir", "download", "shards.cache_dir", "shards.cache_gb", "shards.storage")
WRITES = (
    *("cache_dir", "dirpath", "path", "save_dir", "default_root_dir", "checkpoint_dir", "tracking_uri"),
    *("root_dir", "filename", "log_dir"),
)
OBJECTS = ("callbacks", "logger", "trainer")  # what could write anywhere
_METRIC = re.compile(r"(train|val|test)(/[\w.-]+)+")


def expand_run(words: list[str]) -> list[str]:
    """The command line with `resume=RUN` or `resume=auto` completed by the run's own words.

    Raises:
        UsageError: there is no such run; a recorded word is one that only the command itself may say.
    """
    places = [place for place, word in enumerate(words) if _is_word(word) and not _is_value(words, place)]
    typed = [words[place] for place in places]
    asked = [word for word in typed if word.startswith(f"{KEY}=")]
    value = plain_value(asked[-1]) if asked else None
    if not value or any(word in words for word in ("-m", "--multirun")) or _other_action(typed):
        return words
    others = [word for word in typed if not word.startswith(f"{KEY}=")]
    folder = newest(others) if value == "auto" else Path(value).expanduser()
    if folder is None:
        return words  # `auto`: a new run
    if not (folder / "checkpoints" / "last.ckpt").exists():
        raise UsageError(f"{KEY}={value}: {_why(folder)}{_nearest(value, others)}")
    before, rest = words[: places[0]], [word for word in words[places[0] :] if word not in asked]
    return [*before, *own_words(folder, others), f"{KEY}={quoted(folder)}", *rest]


def own_words(folder: Path, said: list[str]) -> list[str]:
    """The words that a run was made by, without those that are said anew.

    Raises:
        UsageError: a word that only the command itself may say, or a record that cannot be read.
    """
    record = folder / RECORD
    if not record.is_file():
        return []  # made from Python; what is said is compared with its config.yaml
    try:
        content = read_yaml(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{record} cannot be read as YAML") from error
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise UsageError(f"{record} is no list of words")
    keys = {_key(word) for word in said}
    words = [word for word in content if _key(word) not in keys and _is_taken(_key(word))]
    for word in words:
        check_word(word, record)
        _check_places(word, folder)
    return words


def newest(said: list[str]) -> Path | None:
    """The newest run without a result, of the modality, task and backbone that are said."""
    cfg = composed(said)
    runs = str(cfg.paths.runs) if cfg is not None else "runs"
    groups = {_key(word) for word in said}
    wanted = {}
    for group, by in (
        ("task", ("task", "modality", "experiment")),
        ("backbone", ("backbone", "experiment")),
    ):
        if cfg is not None and groups & set(by):
            wanted[group] = str(cfg[group].name)
    found = [folder for folder in Path(runs).glob("*/*") if can_go_on(folder, wanted)]
    return max(found, key=lambda folder: folder.name, default=None)


def plain_value(word: str) -> str:
    """The text behind `KEY=`, without the quotes that Hydra takes off.

    >>> plain_value("resume='runs/a b'"), plain_value("resume=runs/x=1"), plain_value("resume=null")
    ('runs/a b', 'runs/x=1', '')
    """
    text = word.partition("=")[2]
    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return text
    return "" if value is None else str(value) if isinstance(value, str) else text


def take_run_words() -> None:
    """Expand `resume=` in this process's own command line."""
    try:
        sys.argv[1:] = expand_run(sys.argv[1:])
    except UsageError as error:
        sys.exit(f"error: {error}")


def _check_places(word: str, folder: Path) -> None:
    """Raise a `UsageError` for a word of a run that says where to write or names an address."""
    override = OverridesParser.create().parse_override(word)
    key = _key(word)
    for name, value in _leaves(key.rpartition(".")[2], None if override.is_delete() else override.value()):
        place = isinstance(value, str) and ("/" in value or "\\" in value or value.startswith((".", "~")))
        metric = isinstance(value, str) and _METRIC.fullmatch(value)
        anywhere = key.split(".")[0] in OBJECTS and "." in key and place and not metric
        if (name in WRITES and value is not None) or anywhere or (isinstance(value, str) and "://" in value):
            raise UsageError(
                f"{KEY}={folder}: this run's own {key} names a place to write to or an address, which a folder does "
                f"not decide (docs/SECURITY.md): say {key}=… yourself"
            )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner)
    else:
        yield name, value


def _why(folder: Path) -> str:
    if folder.is_file():
        return "it is a file, a run's folder is needed"
    return (
        "this folder has no checkpoints/last.ckpt to go on from"
        if folder.is_dir()
        else "there is no such folder"
    )


def _nearest(name: str, said: list[str]) -> str:
    cfg = composed([word for word in said if _key(word).startswith("paths.")])
    parent = Path(str(cfg.paths.runs) if cfg is not None else "runs")
    runs = [
        str(folder)
        for folder in sorted(parent.glob("*/*"))
        if (folder / "checkpoints" / "last.ckpt").exists()
    ]
    return f": {choices(name, runs)}" if runs else f", and no run in {parent} can be gone on with"


def _other_action(words: list[str]) -> bool:
    return any(_key(word) == "action" and plain_value(word) != "fit" for word in words)


def _is_taken(key: str) -> bool:
    group = re.split(r"[./@]", key)[0]
    return (
        group in TAKEN
        and key != "action"
        and not any(key.endswith(f".{name}") or f".{name}." in key for name in OWN)
    )


def _is_word(word: str) -> bool:
    return ("=" in word and not word.startswith("-")) or word.startswith("~")


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _is_value(words: list[str], place: int) -> bool:
    return place > 0 and words[place - 1] in (
        "--config-dir",
        "-cd",
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
    )
