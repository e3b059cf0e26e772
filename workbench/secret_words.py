"""Secrets on the command line: moved to the environment before Hydra sees them, resolved where they are used.

A secret in an override (`storage.secret=abc`, `data_dir=s3://KEY:SECRET@bucket`) moves to an environment variable of
this process and its children, and the override becomes `storage.secret=${secret:storage.secret}`. Hydra, sweeps and
cluster launchers record only this reference. `hide` of `tasks.secrets` removes the value from files with resolved
references, and `Hiding` from what is printed.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from tasks.secrets import HIDDEN, hide, is_secret, learn, learn_value, mask, secrets_in
from workbench.errors import UsageError
from workbench.yaml_targets import read_yaml

VARIABLE = "WIDEFIELD_SECRET_"
_ASKED = re.compile(r"\$\{secret:([^${}]*)\}")


def variable(key: str) -> str:
    """The environment variable that holds a setting's secret.

    >>> variable("task.data.shards.storage.secret")
    'WIDEFIELD_SECRET_TASK_DATA_SHARDS_STORAGE_SECRET'
    """
    return VARIABLE + re.sub(r"\W+", "_", key.lstrip("+~")).upper()


def secret_of(key: str) -> str:
    """The value of `${secret:KEY}`.

    Raises:
        UsageError: it is not in the environment.
    """
    value = os.environ.get(variable(key))
    if value is None:
        raise UsageError(lacking(key))
    return value


def lacking(key: str) -> str:
    """The error message for a missing secret."""
    return f"{key} holds a secret, which is never kept: say it again, or set the environment variable {variable(key)}"


OmegaConf.register_new_resolver("secret", secret_of, replace=True)


def take_secrets() -> None:
    """Move the secrets in `sys.argv` to the environment; from now on secrets in stdout and stderr are masked."""
    sys.argv[1:] = [_without_secrets(word) for word in sys.argv[1:]]
    for name, value in os.environ.items():
        if name.startswith(VARIABLE):
            user, colon, password = value.partition(":")
            for known in (value, password if colon else user):
                learn_value(known)
    sys.stdout, sys.stderr = _hiding(sys.stdout), _hiding(sys.stderr)


def check_secrets() -> None:
    """Exit with an error if the command refers to a secret that is not in the environment."""
    for key in (key for word in sys.argv[1:] for key in _ASKED.findall(word)):
        if variable(key) not in os.environ:
            sys.exit(f"error: {lacking(key)}")


def is_reference(word: str) -> bool:
    """Whether the value of an override is just a reference to a secret in the environment."""
    return _ASKED.fullmatch(word.partition("=")[2]) is not None


def _without_secrets(word: str) -> str:
    """Replace the secrets in an override by references, and store their values in the environment."""
    key, equals, value = word.partition("=")
    plain = key.lstrip("+~").partition("@")[0]
    whole = is_secret(plain) and not value.startswith(("{", "["))
    if not equals or word.startswith("-") or not (whole or _may_hold(value)):
        return word
    override = _parsed(word)
    if override is not None and override.is_delete():
        return word
    if override is None or override.is_sweep_override():
        if whole:
            return f"{key}={_kept(plain, value)}"  # a secret with commas or brackets in it
        if "{" in value and _names_secrets(value):
            sys.exit(
                f"error: {key}: it holds a secret and is no single value: set each of its keys by itself"
            )
        content: Any = value
    else:
        content = _plain(override.value())
    found = list(secrets_in({plain: content}))
    if whole:
        return f"{key}={_kept(plain, found[0][1])}" if found else word
    for number, (at, secret) in enumerate(dict.fromkeys(found)):
        reference = _kept(f"{at}.{number}" if number and at == plain else at, secret)
        parts = re.split(rf"(?:^|(?<=[:=/,'\"\[ ])){re.escape(secret)}(?![\w:])", value)
        value = reference.join(parts)
    return f"{key}={value}"


def _may_hold(value: str) -> bool:
    """Whether a value may hold a secret (a quick check)."""
    return "://" in value or _names_secrets(value)


def _names_secrets(text: str) -> bool:
    return any(is_secret(f"storage.{name}") for name in re.findall(r"([\w-]+)['\"]?\s*:", text))


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _kept(key: str, value: str) -> str:
    """Store a secret in the environment; returns the reference to it."""
    os.environ[variable(key)] = value
    return f"${{secret:{key}}}"


def _plain(value: Any) -> Any:
    """A value of Hydra's parser as plain containers."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.text if isinstance(value, QuotedString) else value


# -- what is composed ----------------------------------------------------------------------------------------------


def words_of(node: ListConfig | list[str]) -> list[str]:
    """The overrides that Hydra recorded, references unresolved."""
    return list(OmegaConf.to_container(node, resolve=False)) if isinstance(node, ListConfig) else list(node)  # type: ignore[arg-type]


def hidden(cfg: DictConfig) -> DictConfig:
    """A resolved configuration with every secret hidden; the secrets are masked in later output, too."""
    content = OmegaConf.to_container(cfg, resolve=False)
    learn(content)
    without = hide(content)
    return cfg if without == content else OmegaConf.create(without)


def give_back(cfg: DictConfig) -> None:
    """Replace hidden secrets in a configuration from a file by references.

    Raises:
        UsageError: the secret is not in the environment.
    """
    for key, value in list(_leaves(OmegaConf.to_container(cfg, resolve=False), "")):
        if isinstance(value, str) and HIDDEN in value and (value == HIDDEN or f"://{HIDDEN}@" in value):
            secret_of(key)
            OmegaConf.update(cfg, key, value.replace(HIDDEN, f"${{secret:{key}}}"))


def _leaves(content: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(value, f"{place}.{key}".lstrip("."))
    else:
        yield place, content


class HideLiterals(Callback):
    """Moves secrets written in YAML out of the composition before Hydra records it.

    A sweep also copies its YAML, and refuses such secrets: see `refuse_literals`.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        for key, value in config.items_ex(resolve=False):
            if key != "hydra":
                for at, secret in secrets_in(_raw(value), str(key)):
                    _move(config, at, secret)


def _raw(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _move(config: DictConfig, place: str, secret: str) -> None:
    *parents, last = place.split(".")
    node: Any = OmegaConf.select(config, ".".join(parents)) if parents else config
    before = node._get_node(last)._value()
    if isinstance(before, list):
        sys.exit(f"error: {place} holds a secret in a list: write ${{oc.env:NAME}} there")
    OmegaConf.update(config, place, str(before).replace(secret, _kept(place, secret)))
    learn({place: secret})


def refuse_literals(file: Path) -> None:
    """Raise a `UsageError` if a YAML file that will be copied holds a literal secret."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if "://" not in text and not _may_hold(text):  # true for nearly all files; parsing YAML is slow
        return
    for place, _ in secrets_in(_yaml(text)):
        raise UsageError(
            f"{file} holds a secret in {place}, and a sweep keeps its YAML: write ${{oc.env:NAME}} there, with the "
            "name of an environment variable"
        )


def _yaml(text: str) -> Any:
    try:
        return read_yaml(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        return None  # Hydra reports the error when it loads the file


# -- what is printed ---------------------------------------------------------------------------------------------------


class Hiding(io.TextIOWrapper):
    """A text stream that masks secrets."""

    def write(self, text: str) -> int:
        super().write(mask(text))
        return len(text)


def _hiding(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, Hiding):
        return stream
    stream.flush()
    return Hiding(
        stream.buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
