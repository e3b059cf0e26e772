"""Checks the command line for typing errors: one sentence with the nearest name, before heavy imports.

With `+` Hydra accepts any key, and a setting that nothing uses would be ignored silently: here only arguments of the
node's class are accepted.
"""

import difflib
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.disk import WriteError, refusal
from workbench.conf_folders import CONF, conf_folders, typed_folders
from workbench.errors import UsageError
from workbench.files import ELSEWHERE
from workbench.quoting import quoted, value_text
from workbench.signatures import optimizers, signature_of

FREE = ("callbacks", "logger")  # groups whose entries may have any name
MEMBERS = "task.members"
PLACES = {"modality.augment": ("raw", "mixup", "maps")}
HYDRAS = ("_partial_", "_recursive_", "_convert_", "_args_")
MIXED = ("compile",)  # true, or a string
OPTIONAL = ("experiment", "sweep", "debug")  # groups without a default option
MOST_NAMES = 12
HUB = "hf://"  # a Hub repository, checked later
OURS = "WIDEFIELD_FULL_ERROR"  # HYDRA_FULL_ERROR was set here, not by the user; processes started by this one see both


@contextmanager
def plain_words() -> Iterator[None]:
    """Turn Hydra's errors about the command line into one sentence and exit code 1."""
    asked = None if OURS in os.environ else os.environ.get("HYDRA_FULL_ERROR")
    if asked is None:
        os.environ["HYDRA_FULL_ERROR"] = os.environ[OURS] = "1"  # else Hydra prints and exits by itself
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if asked:
            raise
        sys.exit(f"error: {explained(error, [word for word in sys.argv[1:] if not word.startswith('-')])}")
    except (
        OSError,
        ValueError,
    ) as error:  # Hydra makes the run's folder, its log and its record of the command
        if not asked and (said := _nameless_option(error, sys.argv[1:])):
            sys.exit(f"error: {said}")
        refused = _refused(error)
        if asked or refused is None:
            raise
        sys.exit(f"error: {refused}")
    finally:
        if asked is None:
            for name in ("HYDRA_FULL_ERROR", OURS):
                os.environ.pop(name, None)


def _refused(error: Exception) -> WriteError | None:
    """The disk error that Hydra itself met, or None; its logging setup hides it in a `ValueError`."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError) or not isinstance(cause.filename, str):
        return None
    path = Path(cause.filename)
    refused = refusal(cause, path)
    return WriteError(path, *refused, ELSEWHERE) if refused else None


def _nameless_option(error: Exception, words: list[str]) -> str | None:
    """The error message for a group set to something other than a name, such as `debug=null`, or None."""
    if "Config group override must be a string or a list" not in str(error):
        return None
    for word in words:
        group, _, value = word.partition("=")
        if (names := options(group)) and value not in names:
            left_out = "; for none leave it out" if value == "null" and group in OPTIONAL else ""
            return f"{word}: {group}= takes a name{left_out}: {choices(value, names)}"
    return None


def explained(error: BaseException, words: list[str]) -> str:
    """One sentence for a Hydra error about the overrides of a command."""
    said = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).removesuffix(".yaml").partition("/")
        if names := options(group):
            return f"{group}={name} is not there: {choices(name, names)}"
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override))
    found = re.search(r"Could not (?:override|append to config\. No match for) '([^']+)'\.", said)
    if found and isinstance(error, ConfigCompositionException) and "To append" in said:
        base = composed([word for word in words if _is_group(word)])
        if base is not None:
            return unknown(found[1], base)
    return " ".join(re.sub(r"To append to your config use \S+", "", said).split())


def refused_word(error: Exception, key: str, words: list[str]) -> str:
    """One sentence for an error in reading the folder that a setting names."""
    if isinstance(error, (UsageError, WriteError)):
        return str(error)
    value = next((word.partition("=")[2] for word in reversed(words) if word.startswith(f"{key}=")), "")
    why = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    shown = value if len(value) <= 100 else f"{value[:97]}..."
    return f"{key}={shown}: {' '.join(why.split()).rstrip('.')}"


def unreadable(word: str) -> str:
    """The error message for a word that is not `KEY=VALUE`, or whose value Hydra cannot parse."""
    key, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@:-]+", key):
        return (
            f"{word} is no setting: settings are KEY=VALUE, group.key=VALUE or group=NAME; what holds spaces is "
            f"quoted, as in {shlex.quote('data_dir=my sounds')}"
        )
    return f"{word} cannot be read; if this very text is meant, type {shlex.quote(f'{key}={quoted(value)}')}"


def unknown(key: str, base: DictConfig) -> str:
    """The error message for an unknown key, with the nearest known ones."""
    parts = key.split(".")
    node, place = _walk(base, parts)
    name = parts[len(place)]
    names = [str(other) for other in node] if isinstance(node, DictConfig) else []
    if not place:
        names = sorted({*names, *_groups()})
        what = "group" if len(parts) > 1 else "setting"
        # `epochs`, say, is part of the name of a nested setting.
        below = sorted(
            {leaf for leaf in _leaves(base) if name in leaf.rpartition(".")[2].split("_")}, key=len
        )
        near = difflib.get_close_matches(name, names, 1) or (below[:1] if what == "setting" else [])
        return f"{name} is no {what}; " + (
            f"did you mean {near[0]}?" if near else f"there are {listed(names)}"
        )
    # An empty node takes what its class passes on.
    return f"{'.'.join(place)} has no {name}: {choices(name, names) if names else f'say +{key}=…'}"


def choices(name: str, names: Iterable[str]) -> str:
    """`did you mean …? there are …` for a name that is not among `names`.

    >>> choices("sdg", ["sgd", "adam"])
    'did you mean sgd? there are adam, sgd'
    """
    names = sorted(set(names))
    by_end = {other.rpartition("/")[2]: other for other in names}
    near = [by_end.get(match, match) for match in difflib.get_close_matches(name, [*names, *by_end], 3)]
    first = f"did you mean {near[0]}? " if near else ""
    return f"{first}there are {listed(list(dict.fromkeys([*near, *names])) if len(names) > MOST_NAMES else names)}"


def listed(names: list[str]) -> str:
    """The names as text, cut after `MOST_NAMES`."""
    more = f", … ({len(names)} in all)" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def check_words(cfg: DictConfig, words: list[str]) -> None:
    """Raise a `UsageError` for added settings that nothing uses, and for values of the wrong type.

    Args:
        cfg: the configuration composed from them.
        words: `key=value`, as typed.
    """
    parsed = OverridesParser.create().parse_overrides(words)
    added = [word for word in parsed if word.is_add() or word.is_force_add()]
    added = [word for word in added if not _is_group(word.input_line or "")]
    texts = [word for word in parsed if word not in added and isinstance(_value(cfg, word), str)]
    texts = [word for word in texts if not _is_group(word.input_line or "")]
    if added or texts:
        keep = [
            line for word in parsed if (line := word.input_line) and word not in added and word not in texts
        ]
        base = composed(keep)
        if base is not None:
            for word in added:
                _check_added(word, base, cfg)
            for word in texts:
                _check_kind(word, base, cfg)
    _check_values(cfg)


def _check_added(word: Override, base: DictConfig, cfg: DictConfig) -> None:
    parts = word.key_or_group.split(".")
    node, place = _walk(base, parts)
    where, rest = ".".join(place), parts[len(place) :]
    off = node is not None and node._is_none() and where not in PLACES  # a place for a component that is off
    if off and isinstance(OmegaConf.select(cfg, where), DictConfig):
        _check_made(word, cfg, where)
        return
    if not rest or rest[0] in HYDRAS:
        return
    if not place:
        raise UsageError(f"{word.input_line}: {unknown(word.key_or_group, base)}")
    if where in FREE:
        _check_made(word, cfg, f"{where}.{rest[0]}")
    elif where != MEMBERS and rest[0] not in PLACES.get(where, ()):
        owner = next((size for size in range(len(place), 0, -1) if _target(base, place[:size])), None)
        if owner is None or place[:owner] == ["action"] == place:
            raise UsageError(f"{word.input_line}: {unknown(word.key_or_group, base)}")
        if owner == len(place):
            _takes(str(_target(base, place)), rest[0], word, [str(key) for key in node])


def _check_made(word: Override, cfg: DictConfig, where: str) -> None:
    """Raise a `UsageError` unless what was added at a place is a class to make and arguments that it takes."""
    own = OmegaConf.select(cfg, where)
    if own is None:
        return
    target = own.get("_target_") if isinstance(own, DictConfig) else None
    if target is None:
        raise UsageError(f"{word.input_line}: {where} needs a _target_, the class to make")
    for key in own:
        _takes(str(target), str(key), word)


def _takes(target: str, name: str, word: Override, known: Iterable[str] = ()) -> None:
    """Raise a `UsageError` unless a class takes an argument; if its source does not show it, instantiation will."""
    signature = signature_of(target)
    if name in ("_target_", *HYDRAS) or signature is None or name in signature.arguments:
        return
    # Keywords passed on are checked by their receiver; a name close to a known argument is a typo.
    if not signature.any_keyword or difflib.get_close_matches(name, signature.arguments, 1, cutoff=0.8):
        names = {*signature.arguments, *known} - {"_target_"}
        raise UsageError(f"{word.input_line}: {target} takes no {name}: {choices(name, names)}")


def _check_kind(word: Override, base: DictConfig, cfg: DictConfig) -> None:
    """Raise a `UsageError` for a string where the configuration has a number or a bool."""
    before, now = OmegaConf.select(base, word.key_or_group), str(_value(cfg, word))
    if not isinstance(before, bool | int | float) or "${" in now or word.key_or_group in MIXED:
        return
    place = word.key_or_group.split(".")
    target = _target(base, place[:-1]) if len(place) > 1 else None
    signature = signature_of(str(target)) if target else None
    kind = signature.arguments.get(place[-1], "") if signature else ""
    if re.search(r"str|Literal|LITERAL|Any|Path|INPUT|Callable", kind):
        return
    wanted = "true or false" if isinstance(before, bool) else "a number"
    raise UsageError(f"{word.key_or_group}={now}: it must be {wanted}, such as {str(before).lower()}")


def _check_values(cfg: DictConfig) -> None:
    """Check single values, as far as possible without building anything."""
    if type(cfg.get("seed")) is not int or cfg.seed < 0:
        raise UsageError(f"seed={cfg.get('seed')}: it must be a whole number from 0 on")
    optimizer = cfg.get("optimizer") or {}
    if optimizer.get("_target_") == "tasks.optimizers.create_optimizer" and (names := optimizers()):
        opt = str(optimizer.get("opt"))
        if opt.lower().removeprefix("lookahead_") not in names:
            raise UsageError(f"optimizer.opt={opt} is none of timm's optimisers: {choices(opt, names)}")
    for key in ("init_from", "ckpt"):
        name = cfg.get(key)
        if (
            name
            and not str(name).startswith(HUB)
            and not any(
                Path(path).expanduser().exists() for path in (name, str(name).rpartition("@")[0] or name)
            )
        ):
            runs = [
                str(path)
                for path in sorted(Path(cfg.paths.runs).glob("*/*"))
                if (path / "checkpoints").is_dir()
            ]
            found = choices(str(name), runs) if runs else f"there are no runs in {cfg.paths.runs}"
            raise UsageError(f"{key}={name}: there is no such run folder or checkpoint: {found}")


def _value(cfg: DictConfig, word: Override) -> Any:
    """The value of the key of an override, interpolations unresolved."""
    if word.is_delete():
        return None
    *parents, last = word.key_or_group.split(".")
    node: Any = OmegaConf.select(cfg, ".".join(parents), throw_on_missing=False) if parents else cfg
    if not isinstance(node, DictConfig) or last not in node:
        return None
    return node._get_node(last)._value()  # type: ignore[union-attr]


def _walk(node: Any, parts: list[str]) -> tuple[Any, list[str]]:
    """The deepest existing node along a path, and the path to it."""
    place: list[str] = []
    for part in parts:
        if not isinstance(node, DictConfig) or part not in node or node._is_missing():
            break
        node = node._get_node(part)
        place.append(part)
    return node, place


def _target(cfg: DictConfig, place: list[str]) -> str | None:
    node = OmegaConf.select(cfg, ".".join(place))
    return node.get("_target_") if isinstance(node, DictConfig) else None


def _leaves(node: Mapping[Any, Any], path: str = "") -> Iterator[str]:
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    for key, value in plain.items():  # type: ignore[union-attr]
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key!s}.")
        else:
            yield f"{path}{key!s}"


def composed(words: list[str]) -> DictConfig | None:
    """The configuration composed from these overrides; None if they cannot be composed."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folder, name = str(CONF), "config"
    more = [str(path.absolute()) for path in typed_folders()]
    if HydraConfig.initialized():
        runtime = HydraConfig.get().runtime
        folder = next((source.path for source in runtime.config_sources if source.provider == "main"), folder)
        name = str(HydraConfig.get().job.config_name)
        more = [
            f"{source.schema}://{source.path}"
            for source in runtime.config_sources
            if source.provider.startswith(("command-line", "hydra.searchpath"))
        ]
    words = [*words, *([f"hydra.searchpath={value_text(more)}"] if more else [])]
    before = GlobalHydra.instance().hydra
    config, GlobalHydra.instance().hydra = HydraConfig.instance().cfg, None
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            return compose(name, overrides=words)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None
    finally:
        GlobalHydra.instance().hydra = before
        HydraConfig.instance().cfg = config


def _groups() -> list[str]:
    return sorted({entry.name for folder in conf_folders() for entry in folder.glob("*") if entry.is_dir()})


def options(group: str) -> list[str]:
    """The options of a group: its YAML files, or those in subfolders if it has no others; none that begin with `_`."""
    names: set[str] = set()
    for pattern in ("*.yaml", "*/*.yaml"):
        for top in (folder / group for folder in conf_folders()):
            files = [file for file in top.glob(pattern) if file.name[0] != "_"]
            names |= {file.relative_to(top).with_suffix("").as_posix() for file in files}
        if names:
            break
    return sorted(names)


def _is_group(word: str) -> bool:
    """Whether an override selects an option of a group, also for a package (`task@task.members.audio.task=…`)."""
    key = word.lstrip("+~").partition("=")[0]
    return "@" in key or any((folder / key).is_dir() for folder in conf_folders())
