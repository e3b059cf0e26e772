"""Quoting of printed commands, so that they can be pasted into a shell unchanged.

Both the shell and Hydra remove quotes. Every command that the program prints is built here.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from tasks.program import called

PARSER = OverridesParser.create()


def command(*words: str, **options: Any) -> str:
    """A command line of literal words and of options (plain values or paths).

    >>> command("-m", task="esc50", data_dir=Path("my sounds (2)"))
    'python run.py -m task=esc50 \\'data_dir="my sounds (2)"\\''
    """
    said = [*_config_dir(words), *words, *(word(key, value) for key, value in options.items())]
    return " ".join([called(), *map(shlex.quote, said)])


def _config_dir(words: Sequence[str]) -> list[str]:
    """The `--config-dir` of this command, which the printed command needs as well, unless `words` have one."""
    flags = ("--config-dir", "-cd")
    if any(said.partition("=")[0] in flags for said in words):
        return []
    for before, said in zip(sys.argv, sys.argv[1:], strict=False):
        flag, equals, value = said.partition("=")
        if before in flags or (flag in flags and equals):
            return [f"--config-dir={said if before in flags else value}"]
    return []


def typed(key: str, value: Any) -> str:
    """`KEY=VALUE`, quoted for a shell."""
    return shlex.quote(word(key, value))


def word(key: str, value: Any) -> str:
    """`KEY=VALUE` in Hydra's grammar, without quotes for a shell."""
    return f"{key}={value_text(value)}"


def value_text(value: Any) -> str:
    """A value in Hydra's grammar, which parses to the same value.

    >>> value_text([1e-3, None, "a=b", True])
    '[0.001,null,"a=b",true]'
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{value_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(value_text, value)) + "]"
    text = str(value)
    # A backslash at its end would escape what follows in a list.
    unchanged = text and reads_as(text) == text and "${" not in text and "\\" not in text
    return text if unchanged else quoted(text)


def quoted(text: str | Path) -> str:
    """Text quoted in Hydra's grammar; `${` is escaped."""
    text = str(text).replace("${", "\\${")
    return QuotedString(text, Quote.single if '"' in text else Quote.double).with_quotes()


def plain(text: str) -> str:
    """The text of a value on the command line, without Hydra's quotes, if any.

    >>> plain('"a b"'), plain("a=b"), plain("1e3")
    ('a b', 'a=b', '1e3')
    """
    read = reads_as(text)
    return read.replace("\\${", "${") if isinstance(read, str) else text


def reads_as(text: str) -> Any:
    """Parse the text of a value as Hydra does; `NotImplemented` if it cannot be parsed.

    >>> reads_as("1e3"), reads_as("a=b")
    (1000.0, NotImplemented)
    """
    try:
        return PARSER.parse_override(f"key={text}").value()
    except HydraException:
        return NotImplemented
