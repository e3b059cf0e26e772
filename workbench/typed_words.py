"""Quotes the values of a command line for Hydra, whose grammar gives `=`, `(`, `,` and others in a path a meaning.

Before Hydra reads the command line, a value that it would refuse or misinterpret is quoted in Hydra's grammar. Values
that are quoted already, valid lists, references (`${…}`) and sweeps are not changed.
"""

import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator

from hydra.errors import HydraException

from workbench.quoting import PARSER, quoted, reads_as

# Settings that take a path; more of them in `task.` and `paths.`, see `is_path`.
PATHS = ("data_dir", "ckpt", "input", "init_from", "resume", "sweep.resume", "action.out", "hydra.run.dir")
TASK_PATHS = ("data_dir", "samples_dir", "cache_dir", "csv")
REFERENCE = re.compile(r"\$\{[\w.:/]+(:.*)?\}", re.DOTALL)
FOLDERS = ("--config-path", "-cp", "--config-dir", "-cd")  # flags that take a configuration folder
ABOUT_FOLDERS = (*FOLDERS, "--config-name", "-cn")  # flags that take a value


def quote_arguments() -> None:
    """Quote the values in `sys.argv`, and prepare the line that a shell asks to complete."""
    sys.argv[1:] = quoted_words(sys.argv[1:])
    if "COMP_LINE" in os.environ:
        sys.argv[1:1] = named_folders(os.environ["COMP_LINE"])  # their files are completed, too
        os.environ["COMP_LINE"] = completable(os.environ["COMP_LINE"])


def quoted_words(arguments: list[str]) -> list[str]:
    """Quote the arguments of a command for Hydra; idempotent.

    >>> quoted_words(["-m", "ckpt=epoch=3-step=36.ckpt", "seed=0,1"])
    ['-m', 'ckpt="epoch=3-step=36.ckpt"', 'seed=0,1']
    """
    sweeps = is_sweep(arguments)
    found: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        key, equals, value = word.partition("=")
        if word.startswith("-") or before in ABOUT_FOLDERS or not equals or not value:
            found.append(word)
        elif is_path(key.lstrip("+").partition("@")[0]):
            found.append(f"{key}={_path(value, sweeps)}")
        else:
            found.append(f"{key}={_other(value, sweeps)}")
    return found


def is_sweep(arguments: list[str]) -> bool:
    """Whether a command is a sweep.

    >>> is_sweep(["--multi"]), is_sweep(["sweep=seeds"]), is_sweep(["sweep=seeds", "hydra.mode=RUN"])
    (True, True, False)
    """
    modes = [word.partition("=")[2] for word in arguments if word.startswith("hydra.mode=")]
    if any(word == "-m" or (len(word) > 2 and "--multirun".startswith(word)) for word in arguments):
        return True
    if modes:
        return modes[-1].upper().endswith("MULTIRUN")
    return any(re.match(r"\+?sweep=(?!null$)|hydra/sweeper=", word) for word in arguments)


def is_path(key: str) -> bool:
    """Whether a setting takes a path."""
    parts = key.split(".")
    return (
        key in PATHS
        or (parts[0] == "paths" and len(parts) > 1)
        or (parts[0] == "task" and parts[-1] in TASK_PATHS)
    )


def named_folders(line: str) -> list[str]:
    """The flag `--config-dir` in a command line that is being completed.

    >>> named_folders("python run.py --config-dir 'my conf' modality=au")
    ['--config-dir=my conf']
    """
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        return []
    for before, word in itertools.pairwise(words):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd") and equals:
            return [f"--config-dir={value}"]
        if before in ("--config-dir", "-cd"):
            return [f"--config-dir={word}"]
    return []


def completable(line: str) -> str:
    """A command line that is being completed, without words that Hydra's completion cannot parse.

    >>> completable("python run.py 'data_dir=my sounds (2)' modality=au")
    'python run.py modality=au'
    """
    words = re.findall(r"""(?:\\.|'[^']*'|"(?:\\.|[^"])*"|[^\s'"\\])+(?:['"\\].*)?|['"\\].*""", line)
    finished, last = (words, []) if line[-1:].isspace() else (words[:-1], words[-1:])
    kept = [word for word in finished if "=" not in word or _readable(word)]
    # Quoted text is left to the shell, which completes files.
    last = [
        word if not re.search(r"[\s'\"\\]", word) else word.lstrip("'\"").partition("=")[0] for word in last
    ]
    return " ".join([*kept, *(last or [""])])


def _readable(word: str) -> bool:
    if re.search(r"[\s'\"\\]", word):
        return False
    try:
        PARSER.parse_override(word)
    except HydraException:
        return False
    return True


def _path(value: str, sweeps: bool) -> str:
    """Quote a value that is a path, or in a sweep several comma-separated paths."""
    if _exists(value) or not sweeps or "," not in value or _is_meant(value):
        return _one_path(value)
    return ",".join(map(_one_path, _apart(value)))


def _one_path(value: str) -> str:
    if value == "null" or (_is_meant(value) and not _exists(value)):
        return value
    return value if reads_as(value) == value and "${" not in value else quoted(value)


def _is_meant(value: str) -> bool:
    """Whether a value is Hydra's syntax: a reference, quoted text, or a sweep written as a call."""
    if REFERENCE.search(value):
        return True
    return re.match(r"['\"]|\w+\(", value) is not None and reads_as(value) is not NotImplemented


def _apart(value: str) -> Iterator[str]:
    """Split a comma-separated list of paths; an existing path that contains commas is kept whole."""
    parts = value.split(",")
    start = 0
    while start < len(parts):
        ends = range(len(parts), start + 1, -1)
        end = next((end for end in ends if _exists(",".join(parts[start:end]))), start + 1)
        yield ",".join(parts[start:end])
        start = end


def _exists(value: str) -> bool:
    places = {value, value.rpartition("@")[0] or value}
    return any(os.path.exists(os.path.expanduser(place)) for place in places)


def _other(value: str, sweeps: bool) -> str:
    """Quote a value that is not a path, if Hydra cannot parse it and it is one piece of text."""
    if reads_as(value) is not NotImplemented:
        return value
    if value.startswith("[") and value.endswith("]"):
        parts = [part.strip() for part in value[1:-1].split(",")]
        listed = "[" + ",".join(part if _in_list(part) else quoted(part) for part in parts) + "]"
        return value if reads_as(listed) is NotImplemented else listed
    unsure = value[0] in "[{'\"" or (sweeps and "," in value)
    return value if unsure else quoted(value)


def _in_list(part: str) -> bool:
    return reads_as(f"[{part}]") is not NotImplemented
