"""Commands as they are printed: pasted into a shell, they say the very values that were meant.

Two readers take quotes away, the shell and Hydra. Every command that the program prints is made here.
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
    """A command line to type next, of words as they are and of options (a value of any plain kind, or a path).

    >>> command("-m", task="esc50", data_dir=Path("my sounds (2)"))
    'python run.py -m task=esc50 \\'data_dir="my sounds (2)"\\''
    """
    said = [*_config_dir(words), *words, *(word(key, value) for key, value in options.items())]
    return " ".join([called(), *map(shlex.quote, said)])


def _config_dir(words: Sequence[str]) -> list[str]:
    """The folder of YAML that this command has named: the next one, of these words, needs it too."""
    flags = ("--config-dir", "-cd")
    if any(said.partition("=")[0] in flags for said in words):
        return []
    for before, said in zip(sys.argv, sys.argv[1:], strict=False):
        flag, equals, value = said.partition("=")
        if before in flags or (flag in flags and equals):
            return [f"--config-dir={said if before in flags else value}"]
    return []


def typed(key: str, value: Any) -> str:
    """`KEY=VALUE` as a person types it in a shell."""
    return shlex.quote(word(key, value))


def word(key: str, value: Any) -> str:
    """`KEY=VALUE` as Hydra reads it, behind the shell."""
    return f"{key}={value_text(value)}"


def value_text(value: Any) -> str:
    """A value as Hydra's grammar reads it back.

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
    return text if reads_as(text) == text and "${" not in text and text else quoted(text)


def quoted(text: str | Path) -> str:
    """Text in quotes of Hydra's grammar; `${` in it is no reference."""
    text = str(text).replace("${", "\\${")
    return QuotedString(text, Quote.single if '"' in text else Quote.double).with_quotes()


def plain(text: str) -> str:
    """The text that a value on the command line stands for: without Hydra's quotes, where it has some.

    >>> plain('"a b"'), plain("a=b"), plain("1e3")
    ('a b', 'a=b', '1e3')
    """
    read = reads_as(text)
    return read.replace("\\${", "${") if isinstance(read, str) else text


def reads_as(text: str) -> Any:
    """What Hydra makes of the text of a value; `NotImplemented` where it is none.

    >>> reads_as("1e3"), reads_as("a=b")
    (1000.0, NotImplemented)
    """
    try:
        return PARSER.parse_override(f"key={text}").value()
    except HydraException:
        return NotImplemented
