"""Validates model descriptions from files, before anything is resolved or built from them.

Compositions and data info in checkpoints and run folders are untrusted (docs/SECURITY.md). Allowed are plain values,
classes registered for their slot (`workbench.targets`), and references such as `${task.data.seconds}` to values of the
same file or to this command's paths. No resolver runs, nothing is read from the environment, and this command decides
where files are written.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from torch import Tensor

from backbone import CheckpointError
from tasks.datasets.errors import DataError
from workbench.console import printable
from workbench.errors import SettingError, TrainingError, UsageError
from workbench.members import REPLACED
from workbench.old_names import with_current_names
from workbench.resolvers import mode_of
from workbench.targets import BASES, is_class_of, stands_at
from workbench.yaml_targets import read_yaml, targets_in

log = logging.getLogger("widefield")

FORMATS = (1,)
GROUPS = ("modality", "task", "backbone")
OUTER = ("paths", "data_dir", "download", "seed")  # values of this command that a file may refer to
MODE = "${mode_of:${task.monitor}}"  # `mode` in conf/task; the only resolver call that is accepted
DEPTH, VALUES, TEXT = 24, 200_000, 100_000  # maximum nesting, number of values, string length

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[\w-]+)*)\}")
_SPECIAL = re.compile(r"_[a-z]+_")  # Hydra's keys: _partial_, _args_, …
_NAME = re.compile(r"[^\W_][\w+-]*(\.[\w+-]+)*")
_KEY = re.compile(r"[^\x00-\x1f\x7f${}\[\]\\.]{1,200}")
_METRIC = re.compile(r"[\w.+-]+(/[\w.+-]+)*")
_REQUIRED = ("modality.embedder", "task.model", "task.head", "task.data", "backbone.model")


def check_content(content: Mapping[str, Any], path: Path, cfg: DictConfig) -> dict[str, Any]:
    """Validate the content of a checkpoint read from `path`; paths in it are replaced by this command's.

    Raises:
        CheckpointError: any content that does not describe a model; the message names the key.
    """
    with _of_file(path):
        stored = _node(content.get("widefield"), "widefield")
        if stored.get("format") not in FORMATS or isinstance(stored.get("format"), bool):
            raise _Refused(
                f"is of format {_shown(stored.get('format'))}, this version reads {', '.join(map(str, FORMATS))}"
            )
        composition = check_composition_of_file(stored.get("composition"), path, cfg)
        data_info = _node(stored.get("facts"), "facts")
        check_plain(data_info, "facts", interpolations=True, text=None)
        members = composition["task"].get("members")
        for name in members or ():
            _node(data_info.get(name), f"data_info.{name}")
        _checked_record(stored)
        state = content.get("state_dict")
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        ):
            raise _Refused("holds no weights")
        drawn = stored.get("drawn", [])
        if not isinstance(drawn, list) or not all(
            isinstance(title, str) and title.isprintable() and len(title) <= 200 for title in drawn
        ):
            raise _Refused(f"says {_shown(drawn)} of drawn data, which is no list of names")
        epoch = content.get("epoch", 0)
        if type(epoch) is not int or epoch < 0:
            raise _Refused(f"has no epoch {_shown(epoch)}")
    return {
        **content,
        "widefield": {**stored, "composition": composition, "facts": data_info, "drawn": drawn},
    }


def check_record(stored: Any, path: Path) -> None:
    """Validate what a checkpoint records of its run, before the run is resumed.

    Raises:
        CheckpointError: not as written by this project.
    """
    with _of_file(path):
        stored = _node(stored, "widefield")
        check_plain(_node(stored.get("facts"), "facts"), "facts", interpolations=True, text=None)
        _checked_record(stored)


def _checked_record(stored: dict[str, Any]) -> None:
    """Validate the record of the training data, the validation metrics and the number of epochs."""
    check_plain(_node(stored.get("trained_on", {}), "trained_on"), "trained_on", interpolations=False)
    members = _node(_node(stored.get("composition", {}), "composition").get("task", {}), "task").get(
        "members"
    )
    known = _node(stored.get("trained_on") or {}, "trained_on")
    for record in known.values() if members else [known]:
        samples = _node(_node(record, "trained_on").get("samples", {}), "trained_on.samples")
        if not all(type(count) is int for count in samples.values()):
            raise _Refused("says trained_on.samples that are no numbers")
    validated = _node(stored.get("validated") or {}, "validated")
    if not all(type(name) is str and type(value) in (int, float) for name, value in validated.items()):
        raise _Refused(f"says validated={_shown(validated)}, which are no metrics")
    step = stored.get("validated_step")
    if step is not None and (type(step) is not int or step < 0):
        raise _Refused(f"says validated_step={_shown(step)}, which is no number of steps")
    epochs = stored.get("max_epochs")
    if epochs is not None and (type(epochs) is not int or epochs < 1):
        raise _Refused(f"says max_epochs={_shown(epochs)}, which is no number of epochs")


def check_composition_of_file(composition: Any, path: Path, cfg: DictConfig) -> dict[str, Any]:
    """Validate modality, task and backbone from a file; see `check_content`."""
    with _of_file(path):
        check_plain(composition, "composition", interpolations=True)
        composition = with_current_names(composition)
        whole = {group: _node(_node(composition, "composition").get(group), group) for group in GROUPS}
        members = whole["task"].get("members")
        if members is None:
            return _checked(whole, "", path, cfg)
        whole = dict(whole, task={key: value for key, value in whole["task"].items() if key != "members"})
        checked = _checked(whole, "", path, cfg, joint=True)
        if not _node(members, "task.members"):
            raise _Refused("has no members")
        checked["task"]["members"] = {
            name: _member(name, member, whole, path, cfg) for name, member in members.items()
        }
        return checked


def _member(name: str, member: Any, whole: dict[str, Any], path: Path, cfg: DictConfig) -> dict[str, Any]:
    place = f"task.members.{name}."
    member = _node(member, place.rstrip("."))
    if not _NAME.fullmatch(name) or "." in name:
        raise _Refused(f"has a member {_shown(name)}, which is no plain name")
    parts = {group: _node(member.get(group), place + group) for group in ("modality", "task")}
    own = _checked({**parts, "backbone": whole["backbone"]}, place, path, cfg)
    weight, data_dir = member.get("weight"), member.get("data_dir")
    if type(weight) not in (int, float):
        raise _Refused(f"says {place}weight={_shown(weight)}, which is no number")
    if data_dir is not None and not isinstance(data_dir, str):
        raise _Refused(f"says {place}data_dir={_shown(data_dir)}, which is no path")
    data_dir = _without_address(data_dir, f"{place}data_dir", path)
    return {"modality": own["modality"], "task": own["task"], "data_dir": data_dir, "weight": weight}


def _checked(
    whole: dict[str, Any], place: str, path: Path, cfg: DictConfig, joint: bool = False
) -> dict[str, Any]:
    """Validate one composition as it will be resolved; returns it unresolved, with its paths replaced."""
    task = dict(whole["task"])
    if task.get("mode") == MODE:
        monitor = task.get("monitor")
        task["mode"] = mode_of(monitor) if isinstance(monitor, str) and "$" not in monitor else "max"
    expansion = _Expansion({**whole, "task": task})
    expanded = expansion.whole()
    for slot, node in targets_in(expanded, ""):
        name, origin = node["_target_"], expansion.origins[id(node)]
        if not (
            is_class_of(name, BASES.get(slot)) or stands_at(name, slot, cfg) or stands_at(name, origin, cfg)
        ):
            raise _Refused(
                f"names {_shown(node['_target_'])} as {place}{slot}, which is no class for that: taken are our own and "
                "those in the configuration (for a class of a plug-in install it, or give its YAML with --config-dir)"
            )
    for group in GROUPS:
        _plain_name(expanded[group].get("name"), f"{place}{group}.name")
    _plain_name(expanded["task"].get("modality"), f"{place}task.modality")
    monitor = expanded["task"].get("monitor")
    if monitor is not None and not (isinstance(monitor, str) and _METRIC.fullmatch(monitor)):
        raise _Refused(f"says {place}task.monitor={_shown(monitor)}, which is no metric's name")
    if expanded["task"].get("mode") not in ("max", "min"):
        raise _Refused(f"says {place}task.mode={_shown(expanded['task'].get('mode'))}, not max or min")
    checked = {group: dict(whole[group]) for group in GROUPS}
    if task.get("monitor") is not None:  # else the task chooses the metric, which decides later
        checked["task"]["mode"] = task["mode"]
    data = _node(expanded["task"].get("data"), f"{place}task.data")
    if joint:
        for key in REPLACED:
            if key not in data:
                raise _Refused(f"lacks task.data.{key}")
        return checked
    for slot in _REQUIRED:
        group, key = slot.split(".")
        if "_target_" not in _node(expanded[group].get(key), place + slot):
            raise _Refused(f"lacks {place}{slot}")
    _node(expanded["modality"].get("augment"), f"{place}modality.augment")
    if "name" in data:
        _plain_name(data["name"], f"{place}task.data.name")
    if isinstance(whole["task"]["data"], dict):
        checked["task"]["data"] = _own_paths(whole["task"]["data"], place, path)
    return checked


# -- plain values ------------------------------------------------------------------------------------------------------


def check_plain(value: Any, place: str, interpolations: bool, text: int | None = TEXT) -> None:
    """Raise unless a value is plain: a dict with string keys, list, string, number, bool or None.

    Hydra's own keys (`_partial_`, …) are refused in a composition, which will be instantiated, but not in values that
    are only compared.

    Args:
        place: name of the value in error messages.
        interpolations: whether strings may contain `${…}` (each is checked later).
        text: maximum length of a string; None: no limit, and tuples are accepted, too (data_info).
    """
    _Plain(interpolations, text).check(value, place, 0)


class _Plain:
    def __init__(self, interpolations: bool, text: int | None) -> None:
        self.interpolations, self.text, self.seen = interpolations, text, 0
        self.composition = interpolations and text is not None  # will be instantiated

    def check(self, value: Any, place: str, depth: int) -> None:
        self.seen += 1
        if depth > DEPTH or self.seen > VALUES:
            raise _Refused(f"is nested too deeply or too large at {place[:80]}")
        kind = type(value)
        if kind is dict:
            for key, inner in value.items():
                if type(key) is not str or (self.text is not None and not _KEY.fullmatch(key)):
                    raise _Refused(f"has a key {_shown(key)} in {place[:80]}")
                if self.composition and _SPECIAL.fullmatch(key) and key != "_target_":
                    raise _Refused(f"says {key} in {place[:80]}, which only a configuration of your own may")
                self.check(inner, f"{place}.{key}", depth + 1)
        elif kind is list or (kind is tuple and self.text is None):
            for inner in value:
                self.check(inner, f"{place}.*", depth + 1)
        elif kind is str:
            if self.text is not None and len(value) > self.text:
                raise _Refused(f"has a text of {len(value):,} characters at {place[:80]}")
            if not self.interpolations and "${" in value:
                raise _Refused(f"says {_shown(value)} at {place[:80]}, which is not a plain value")
        elif value is not None and kind not in (int, float, bool):
            raise _Refused(f"has a {kind.__name__} at {place[:80]}, which is not a plain value")


def is_plain_reference(text: str) -> bool:
    """Whether every interpolation in a string is allowed in a file.

    >>> is_plain_reference("${paths.data}/shards"), is_plain_reference("${oc.env:HOME}")
    (True, False)
    """
    roots = [name.partition(".")[0] for name in _REFERENCE.findall(text)]
    rest = _REFERENCE.sub("|", text)
    return "${" not in rest and "\\" not in text and all(root in (*GROUPS, *OUTER) for root in roots)


class _Expansion:
    """Expands a composition's references to itself, as they will be once it is resolved.

    References to the command's values are kept. Dangling, circular and exponentially growing references are refused,
    and so is every other interpolation.
    """

    def __init__(self, groups: dict[str, Any]) -> None:
        self.groups, self.seen = groups, 0
        self.origins: dict[int, str] = {}  # id of a node with a `_target_` -> the slot where it is written

    def whole(self) -> dict[str, Any]:
        return {group: self.value(self.groups[group], group, (group,)) for group in GROUPS}

    def value(self, value: Any, place: str, active: tuple[str, ...]) -> Any:
        self.seen += 1
        if self.seen > VALUES or len(active) > 3 * DEPTH:
            raise _Refused(f"refers to ever more values at {place[:80]}")
        if isinstance(value, dict):
            expanded = {
                key: self.value(inner, f"{place}.{key}", (*active, f"{place}.{key}"))
                for key, inner in value.items()
            }
            self.origins[id(expanded)] = place
            return expanded
        if isinstance(value, list):
            return [self.value(inner, f"{place}.*", active) for inner in value]
        if isinstance(value, str):
            return self.text(value, place, active)
        return value

    def text(self, text: str, place: str, active: tuple[str, ...]) -> Any:
        if text == "???":
            raise _Refused(f"lacks a value for {place[:80]}")
        if "${" not in text:
            return text
        if not is_plain_reference(text):
            raise _Refused(
                f"says {_shown(text)} at {place[:80]}: a file may refer to other values, not compute any"
            )
        if whole := _REFERENCE.fullmatch(text):
            return self.target(whole[1], text, place, active)
        parts = _REFERENCE.sub(lambda found: self._inside(found, text, place, active), text)
        if len(parts) > TEXT:
            raise _Refused(f"has a text of {len(parts):,} characters at {place[:80]}")
        return parts

    def _inside(self, found: re.Match[str], text: str, place: str, active: tuple[str, ...]) -> str:
        value = self.target(found[1], text, place, active)
        if isinstance(value, (dict, list)):
            raise _Refused(f"says {_shown(text)} at {place[:80]}, which is no text")
        return str(value)

    def target(self, name: str, text: str, place: str, active: tuple[str, ...]) -> Any:
        root, *way = name.split(".")
        if root in OUTER:
            return f"${{{name}}}"
        value: Any = self.groups
        for key in (root, *way):
            value = value.get(key, _NOTHING) if isinstance(value, dict) else _NOTHING
        if value is _NOTHING:
            raise _Refused(f"refers to {_shown(name)} at {place[:80]}, which it does not say")
        if name in active:
            raise _Refused(f"refers to {_shown(name)} at {place[:80]}, in a circle")
        return self.value(value, name, (*active, name))


_NOTHING = object()


# -- paths, names, texts -----------------------------------------------------------------------------------------------


def _own_paths(data: dict[str, Any], place: str, path: Path) -> dict[str, Any]:
    """A copy of a data node with output paths, download and storage set by this command, without addresses."""
    own = dict(data)
    for key, ours in (("samples_dir", "${paths.samples}"), ("download", "${download}")):
        if key in own:
            own[key] = ours
    if not _is_ours(own.get("cache_dir")):
        own["cache_dir"] = None
    if "data_dir" in own:
        own["data_dir"] = _without_address(own["data_dir"], f"{place}task.data.data_dir", path)
    if isinstance(own.get("shards"), dict):
        shards = own["shards"] = dict(own["shards"])
        if not _is_ours(shards.get("cache_dir")):
            shards["cache_dir"] = "${paths.data}/shards"
        if shards.get("storage"):
            shards["storage"] = {}
    return own


def _is_ours(value: Any) -> bool:
    """Whether an output path is None or below this command's paths."""
    if value is None:
        return True
    return isinstance(value, str) and value.startswith("${paths.") and ".." not in value.split("/")


def _without_address(value: Any, place: str, path: Path) -> Any:
    if not isinstance(value, str) or "://" not in value:
        return value
    log.warning(
        "%s was trained on data at %s; a checkpoint does not choose addresses: say %s=ADDRESS to read from there",
        path,
        _shown(value),
        "data_dir" if place.startswith("task.data") else place,
    )
    return None


def _plain_name(value: Any, place: str) -> None:
    if not isinstance(value, str) or len(value) > 200 or not _NAME.fullmatch(value):
        raise _Refused(f"says {place}={_shown(value)}, which is no plain name")


def _node(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"lacks {printable(place[:80])}")
    return value


def _shown(value: Any) -> str:
    """A value from a file, shortened and without control characters."""
    text = printable(value if isinstance(value, str) else repr(value)[:200])
    return text if len(text) <= 80 else f"{text[:77]}…"


# -- run folders -------------------------------------------------------------------------------------------------------


def read_run_config(path: Path) -> dict[str, Any]:
    """Read a run folder's `config.yaml` as plain values without interpolations.

    Raises:
        CheckpointError: unreadable, or with any other content.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({_shown(str(error).splitlines()[0])})") from error
    with _of_file(path):
        check_plain(content, "config", interpolations=False, text=10 * TEXT)
        return _node(content, "config")


# -- errors ------------------------------------------------------------------------------------------------------------


class _Refused(ValueError):
    """Why a file is refused; the message continues a sentence that begins with the file's name."""


@contextmanager
def _of_file(path: Path) -> Iterator[None]:
    try:
        yield
    except _Refused as error:
        raise CheckpointError(f"{path} is refused: it {printable(str(error))}") from None


@contextmanager
def built_from(path: Path) -> Iterator[None]:
    """Convert unexpected errors while a model is built from `path` to a `CheckpointError` of one sentence."""
    try:
        yield
    except SettingError as error:
        raise CheckpointError(
            f"{path}: no model can be built from what it says, or from this command's settings beside it ({error})"
        ) from error
    except (UsageError, TrainingError, DataError, CheckpointError):
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if isinstance(cause, (UsageError, DataError, CheckpointError)):
            raise cause from error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: no model can be built from what it says ({_shown(reason)})"
        ) from error
