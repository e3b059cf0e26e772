"""`python run.py resume=RUN`: restores a run's command from the overrides that Hydra recorded in its folder.

Overrides on the command line replace those of the run; changes that are not allowed are refused later
(`workbench.resume`). A run folder is untrusted data (docs/SECURITY.md): its overrides may name classes of the installed
configuration only, no output path, and no reference; downloads, network loggers and storage options must be given
again.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf.errors import OmegaConfBaseException

from workbench.errors import UsageError
from workbench.quoting import PARSER, plain, quoted
from workbench.resolvers import can_go_on
from workbench.sweeps.frozen import check_word, is_installed
from workbench.typed_words import ABOUT_FOLDERS, is_sweep, quoted_words
from workbench.words import choices, composed, refused_word
from workbench.yaml_targets import read_yaml

KEY = "resume"
RECORD = Path(".hydra") / "overrides.yaml"
TAKEN = (
    *("modality", "task", "backbone", "optimizer", "scheduler", "trainer", "callbacks", "logger"),
    *("experiment", "debug", "seed", "data_dir", "init_from", "freeze", "compile", "action"),
)
# Output paths and network access: never taken from a record. They do not affect training.
OWN = ("samples_dir", "download", "shards.cache_dir", "shards.cache_gb", "shards.storage")
WRITES = (
    *("cache_dir", "dirpath", "path", "save_dir", "default_root_dir", "checkpoint_dir", "tracking_uri"),
    *("root_dir", "filename", "log_dir", "out", "folder"),
)
LOGGERS = {"csv", "tensorboard"}  # they write into the run folder only
OBJECTS = ("callbacks", "logger", "trainer")  # groups that could write anywhere
_METRIC = re.compile(r"(train|val|test)(/[\w.-]+)+")


def expand_run(words: list[str]) -> list[str]:
    """Complete a command line with `resume=RUN` or `resume=auto` by the run's recorded overrides.

    Raises:
        UsageError: there is no such run; a recorded override is allowed on the command line only.
    """
    places = [place for place, word in enumerate(words) if _is_word(word) and not _is_value(words, place)]
    typed = [words[place] for place in places]
    asked = [word for word in typed if word.startswith(f"{KEY}=")]
    value = _value(asked[-1]) if asked else None
    if not value or value == "null" or is_sweep(words) or _other_action(typed):
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
    """The recorded overrides of a run, without those that `said` replaces.

    Raises:
        UsageError: an override that is allowed on the command line only, or an unreadable record.
    """
    record = folder / RECORD
    if not record.is_file():
        return []  # made from Python; the command is compared with its config.yaml
    try:
        content = read_yaml(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{record} cannot be read as YAML") from error
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise UsageError(f"{record} is no list of words")
    keys = {_key(word) for word in said}
    words = [word for word in content if _key(word) not in keys and _is_taken(word)]
    for word in words:
        check_word(word, record)
        _check_places(PARSER.parse_override(word), folder)
    return words


def newest(said: list[str]) -> Path | None:
    """The newest unfinished run with the given modality, task and backbone; None if there is none."""
    cfg = composed(quoted_words(said))
    if cfg is None:  # Hydra will report the error
        return None
    groups = {_key(word) for word in said}
    chosen = {"task": ("task", "modality", "experiment"), "backbone": ("backbone", "experiment")}
    wanted = {group: str(cfg[group].name) for group, by in chosen.items() if groups & set(by)}
    found = [folder for folder in Path(str(cfg.paths.runs)).glob("*/*") if can_go_on(folder, wanted)]
    return max(found, key=lambda folder: folder.name, default=None)


def take_run_words() -> None:
    """Expand `resume=` in `sys.argv`."""
    try:
        sys.argv[1:] = expand_run(sys.argv[1:])
    except (UsageError, OSError, RuntimeError, OmegaConfBaseException) as error:
        sys.exit(f"error: {refused_word(error, KEY, sys.argv[1:])}")


def _check_places(override: Override, folder: Path) -> None:
    """Raise a `UsageError` if a recorded override sets an output path, an address or a reference."""
    key = _key(str(override.input_line))
    if override.is_sweep_override():
        raise UsageError(f"{KEY}={folder}: this run's own {key} is no single value")
    for at, value in _leaves(key, None if override.is_delete() else override.value()):
        text = str(value) if isinstance(value, str) else ""
        name = at.rpartition(".")[2]
        place = "/" in text or "\\" in text or text.startswith((".", "~"))
        anywhere = key.split(".")[0] in OBJECTS and "." in at and place and not _METRIC.fullmatch(text)
        address = "://" in text or text.startswith(("//", "\\\\"))
        if (name in WRITES and value is not None) or (at != key and _is_own(at)) or anywhere or address:
            raise UsageError(
                f"{KEY}={folder}: this run's own {key} names a place to write to or an address, which a folder does "
                f"not decide (docs/SECURITY.md): say {key}=… yourself"
            )
        if "${" in text and text != f"${{secret:{at}}}" and not is_installed(name, text):
            raise UsageError(
                f"{KEY}={folder}: this run's own {key} refers to another value, which a folder may not "
                f"(docs/SECURITY.md): say {key}=… yourself"
            )


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value with its full dotted key; an empty dictionary is a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{place}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(place, inner)
    else:
        yield place, value


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
    return any(_key(word) == "action" and _value(word) != "fit" for word in words)


def _is_taken(word: str) -> bool:
    """Whether a recorded override is reused; only such overrides are checked."""
    key, _, package = _key(word).partition("@")
    group = re.split(r"[./]", key)[0]
    if group not in TAKEN or key in ("action", "action._target_") or _is_own(key):
        return False
    if package and package.split(".")[0] != group and not package.startswith("task.members."):
        return False
    if group == "logger" and not word.startswith("~"):
        return key == "logger" and set(re.findall(r"[\w./-]+", _value(word))) <= LOGGERS
    return True


def _is_own(place: str) -> bool:
    return any(f".{name}." in f".{place}." for name in OWN)


def _value(word: str) -> str:
    return plain(word.partition("=")[2])


def _is_word(word: str) -> bool:
    return ("=" in word and not word.startswith("-")) or word.startswith("~")


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _is_value(words: list[str], place: int) -> bool:
    return place > 0 and words[place - 1] in ABOUT_FOLDERS
