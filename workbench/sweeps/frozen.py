"""Validation of an untrusted sweep folder: its YAML and overrides determine what is run.

`sweep.resume=DIR` starts runs from it, so its record and its snapshot may only name classes that the installed
configuration also names (or public ones of our own packages), use only harmless resolvers, and not change any setting
by which Hydra or a cluster runs commands. They still determine where files are written: do not resume a sweep that you
do not trust that far.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from workbench.conf_folders import conf_folders
from workbench.errors import UsageError
from workbench.old_names import current_name
from workbench.sweeps.folder import SWEEP, SweepFolder
from workbench.typed_words import is_path
from workbench.yaml_targets import package_of, read_yaml, slots_below, targets_in

# Keys of Hydra and its launchers that run commands, load code or change the environment.
RUNS_CODE = (
    *("env_set", "env_copy", "callbacks", "searchpath", "job_logging", "hydra_logging"),
    *("setup", "python", "srun_args", "additional_parameters"),
)
FREE = ("callbacks", "logger")  # groups whose entries may have any name
HYDRAS_OWN = Path("hydra") / "default.yaml"  # Hydra's own settings: never read from a sweep's folder
HARMLESS = ("mode_of", "direction_of", "run_folder", "folder_name", "now", "hydra", "secret")  # resolvers

_OUTSIDE = re.compile(r"\.\.|://|\\")
_NAME = re.compile(r"[^\W_][\w.+-]*")
_HYDRA = re.compile(
    r"hydra(/(launcher|sweeper)=\w+|\.(launcher|sweeper|sweep|run|mode)\b[\w.]*=.*)", re.DOTALL
)
_REFERENCE = re.compile(r"\$\{[\w.\[\]-]+\}|\$\{(?:" + "|".join(HARMLESS) + r"):[^${}]*\}")


def check_frozen(sweep: SweepFolder) -> None:
    """Raise a `UsageError` if a sweep's record or snapshot contains settings allowed only in trusted configuration."""
    record = sweep.path / SWEEP
    for name in (sweep.config_name, *(job.folder for job in sweep.jobs)):
        if not _NAME.fullmatch(name):
            raise _refusal(record, name, "is no plain name")
    for word in (*sweep.hydra_words, *sweep.words, *(word for job in sweep.jobs for word in job.overrides)):
        check_word(word, record)
    if not sweep.snapshot.is_dir():
        return
    for file in sorted(sweep.snapshot.rglob("*")):
        if file.is_symlink():
            raise _refusal(file, file.name, "is a link")
        below = file.relative_to(sweep.snapshot)
        if below != HYDRAS_OWN and file.suffix == ".yaml" and file.is_file():
            _check_file(file, below)


def check_word(word: str, record: Path) -> None:
    """Raise a `UsageError` for a recorded override that is only allowed on the actual command line."""
    plain = word.lstrip("+~")
    if not plain or plain[0] == "-":
        raise _refusal(record, word, "is no setting")
    if plain.startswith("hydra") and not _HYDRA.fullmatch(plain):
        raise _refusal(record, word, "changes how Hydra itself runs")
    _check_text(word, record)
    key = plain.partition("=")[0]
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        raise _refusal(record, word, "cannot be parsed") from None
    setting = key.partition("@")[0]
    if "." not in setting and not is_path(setting) and ".." in word.partition("=")[2]:
        raise _refusal(record, word, "chooses a file outside the configuration")
    if override.is_sweep_override():
        if "_target_" in word or "_args_" in word or key.startswith("hydra.launcher"):
            raise _refusal(record, word, "chooses among classes")
        return
    value = None if override.is_delete() else override.value()
    *above, last = key.partition("@")[0].split(".")
    place = ".".join(above)
    if key.startswith("hydra") and any(
        at.split(".")[-1] in RUNS_CODE for at, _ in _nodes({last: value}, place)
    ):
        raise _refusal(record, word, "runs commands: say it yourself, beside sweep.resume")
    _check_targets({last: value}, place, record)


def _check_file(file: Path, below: Path) -> None:
    try:
        raw = file.read_bytes()
        same = (folder / below for folder in conf_folders())
        if any(other.is_file() and other.read_bytes() == raw for other in same):
            return
        text = raw.decode()
        content = read_yaml(text)
        place = package_of(text[:2000], below.parent)
        _check_targets(content, place, file)
        for at, value in _nodes(content, place):
            last = at.rpartition(".")[2]
            if "defaults" in at.split(".") and _OUTSIDE.search(
                f"{last} {value}" if isinstance(value, str) else last
            ):
                raise _refusal(file, at, "chooses a file outside the configuration")
            if isinstance(value, str):
                _check_text(value, file)
            if at.startswith("hydra.") and last in RUNS_CODE and (last, repr(value)) not in _installed()[1]:
                raise _refusal(file, at, "changes how Hydra itself runs")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file} cannot be read as YAML") from error


def _check_targets(content: Any, place: str, file: Path) -> None:
    """Check that every `_target_` of a node is named there by the installed configuration or a class of ours for it."""
    for slot, node in targets_in(content, place):
        name = current_name(node["_target_"])
        if not isinstance(name, str) or not (name in _installed_at(slot) or _is_ours(name, slot)):
            raise _refusal(file, name, f"is no class of the installed configuration ({slot or 'top'})")
    for at, _ in _nodes(content, place):
        if at.rpartition(".")[2] == "_args_":
            raise _refusal(file, at, "hands values to a class without their names")


def _installed_at(slot: str) -> set[str]:
    """Class names of the installed configuration at a slot; keys of callbacks and loggers are arbitrary."""
    group = slot.partition(".")[0]
    anywhere = group in FREE and slot.count(".") == 1
    return {
        name
        for folder in conf_folders()
        for other, names in slots_below(folder).items()
        if other == slot or (anywhere and other.startswith(f"{group}."))
        for name in names
    }


def _is_ours(name: str, slot: str) -> bool:
    from workbench.targets import BASES, is_class_of  # slow to import and rarely needed

    return slot in BASES and is_class_of(name, BASES[slot])


def _check_text(text: str, file: Path) -> None:
    if "${" not in text or text in _installed()[0]:
        return
    before, left = "", text
    while left != before:
        before, left = left, _REFERENCE.sub("|", left)
    if "${" in left:
        raise _refusal(file, text, "computes a value with more than the installed configuration does")


def is_installed(name: str, text: str) -> bool:
    """Whether the installed configuration has a setting of this name with exactly this text."""
    return (name, repr(text)) in _installed()[1]


def _installed() -> tuple[set[str], set[tuple[str, str]]]:
    """Texts with interpolations in the trusted configuration, and its (key, value) pairs."""
    return _said_in(tuple(conf_folders()))


@cache
def _said_in(folders: tuple[Path, ...]) -> tuple[set[str], set[tuple[str, str]]]:
    nodes: list[tuple[str, Any]] = []
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        try:
            content = read_yaml(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue  # a plug-in's file that is not a configuration; Hydra reports it if it is used
        nodes += _nodes(content, "")
    texts = {value for _, value in nodes if isinstance(value, str) and "${" in value}
    return texts, {(at.rpartition(".")[2], repr(value)) for at, value in nodes}


def _nodes(content: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All (path, value) pairs in a node, recursively."""
    if isinstance(content, (dict, list)):
        items = content.items() if isinstance(content, dict) else (("*", value) for value in content)
        for key, value in items:
            at = f"{place}.{key}".lstrip(".")
            yield at, value
            yield from _nodes(value, at)


def _refusal(file: Path, said: Any, why: str) -> UsageError:
    text = ascii(said)
    text = text if len(text) <= 100 else f"{text[:97]}..."
    return UsageError(f"{file} is refused: {text} {why}; a folder of runs is data (docs/SECURITY.md)")
