"""Flags that need no composition: `--version`, `--help`, and unknown ones."""

import difflib
import re
import shutil
import sys
import textwrap
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from tasks.program import called
from workbench.conf_folders import CONF, conf_folders

# In display order, with descriptions; groups of plug-ins follow.
GROUPS = {
    "modality": "what is read, and how it becomes maps; brings the first task of its own",
    "task": "what is asked of which data",
    "experiment": "a whole recipe: task, backbone, augmentation, schedule",
    "backbone": "the network that reads the maps",
    "action": "what is done; training if nothing is said",
    "trainer": "where it runs",
    "optimizer": "how weights follow gradients",
    "scheduler": "how the learning rate goes",
    "callbacks": "what else happens during training; several: 'callbacks=[default,ema]'",
    "logger": "where numbers go; several: 'logger=[csv,wandb]'",
    "sweep": "many runs with one command",
    "debug": "quick trials of a composition",
}
HIDDEN = ("hydra", "paths", "local")

EXAMPLES = (
    ("python run.py modality=audio", "train on an embedded sample"),
    ("python run.py task=audio_folder data_dir=PATH", "train on sounds of your own"),
    ("python run.py experiment=audio/speech_commands_s data_dir=PATH", "a published recipe"),
    ("python run.py action=predict ckpt=RUN input=FILE", "ask a trained model"),
    ("python run.py action=embed ckpt=RUN", "features of a data set, with labels and paths"),
    ("python run.py action=evaluate action.protocol=knn ckpt=RUN", "what frozen features are worth"),
    ("python run.py action=info backbone=unireplknet_s", "parameters, MACs, shapes"),
    ("python run.py resume=auto", "go on with the newest run that was stopped"),
    ("python run.py -m backbone=unireplknet_a,unireplknet_f seed=0,1", "a sweep: four runs"),
    ("python run.py action=report input=runs", "tables and figures of all runs"),
    ("python run.py action=doctor", "is everything installed?"),
)
FLAGS = (
    ("-m", "sweep over values with commas between them"),
    ("--cfg job", "print the composition, run nothing"),
    ("--config-dir DIR", "a folder with YAML of your own beside conf/"),
    ("--help GROUP", "only one group"),
    ("--version", "versions of Widefield, Python, PyTorch, CUDA"),
    ("--hydra-help", "flags of Hydra, shell completion"),
)


def answer_flags() -> None:
    """Handle `--help` and `--version` and exit; exit with an error for an unknown flag."""
    arguments = sys.argv[1:]
    if {"--version", "-V"} & set(arguments):
        print(versions(), flush=True)
    elif {"--help", "-h"} & set(arguments):
        names = [word for word in arguments if not word.startswith("-") and word in groups()]
        print(help_text(shutil.get_terminal_size().columns, names), flush=True)
    else:
        _check(arguments)
        return
    sys.exit(0)


def versions() -> str:
    """`widefield 0.1.0 (Python 3.11.7, PyTorch 2.11.0, CUDA 12.8)`, without importing any of them."""
    found = [f"Python {sys.version.split()[0]}"]
    for name, package in (("PyTorch", "torch"), ("Lightning", "lightning")):
        try:
            found.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    found.append(f"CUDA {cuda}" if (cuda := _cuda()) else "no CUDA")
    return f"widefield {_own_version()} ({', '.join(found)})"


def help_text(width: int, only: list[str] | None = None) -> str:
    """The text of `--help`, at most `width` characters wide; of the groups in `only`, if given."""
    width = max(min(width, 120), 60)
    shown = [line for group in only or groups() for line in _group(group, width)]
    if only:
        return "\n".join(shown).strip("\n")
    return "\n".join(
        [
            f"{called()} GROUP=NAME … KEY=VALUE …",
            "",
            *textwrap.wrap(
                "One ConvNet with very large kernels for audio, time series, point clouds, video and images: "
                "compose a modality, a task and a backbone, then train, test or ask.",
                width,
            ),
            "",
            "Examples",
            *_columns([(line.replace("python run.py", called()), said) for line, said in EXAMPLES], width),
            "",
            "Flags",
            *_columns(FLAGS, width),
            "",
            "Settings: KEY=VALUE for every value that --cfg job prints, for instance",
            *_columns(_settings(), width),
            "",
            "Groups: GROUP=NAME",
            *shown,
        ]
    )


def groups() -> list[str]:
    """The configuration groups for users, most important first."""
    there = {entry.name for folder in conf_folders() for entry in folder.glob("*") if entry.is_dir()}
    return [*(name for name in GROUPS if name in there), *sorted(there - set(GROUPS) - set(HIDDEN))]


def header(file: Path) -> str:
    """The first sentence of the comment at the top of a YAML file.

    >>> header(CONF / "trainer" / "gpu.yaml")
    'One GPU, bf16 mixed precision'
    """
    said: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("#").strip()
        if not line.startswith("#") or (said and not text):
            break
        if not text.startswith("@package"):
            said.append(text)
    # The end of a sentence, or the beginning of a command.
    end = r"(?<!\bal)\.(?: |$)|(?<=\?) |:? (?=[\[']?\w+=|python )|[:,;]$"
    return re.split(end, " ".join(said), maxsplit=1)[0].strip()


def _group(group: str, width: int) -> list[str]:
    tops = [folder / group for folder in conf_folders()]
    files = {
        file.relative_to(top).with_suffix("").as_posix(): file
        for top in tops
        for file in sorted(top.glob("**/*.yaml"))
        if not any(part.startswith("_") for part in file.relative_to(top).parts)
    }
    beside = {top.name for folder in conf_folders() for top in folder.glob("*") if top.is_dir()}
    # In a group with files, subfolders are groups of their own (modality/embedder, task/loss).
    nested = {name for name in files if "/" in name and any("/" not in other for other in files)}
    names = [
        name
        for name in files
        if name not in nested and not (group == "task" and name in beside | _defaults())
    ]
    return [
        "",
        *textwrap.wrap(f"{group}: {GROUPS.get(group, 'of a plug-in')}", width, subsequent_indent="  "),
        *_columns([(f"{group}={name}", header(files[name])) for name in names], width),
    ]


def _defaults() -> set[str]:
    """Names of modalities; a task file of this name only selects the default task of the modality."""
    return {file.stem for folder in conf_folders() for file in (folder / "modality").glob("*.yaml")}


def _columns(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Names and descriptions in two columns; a description too long for its row is truncated."""
    usual = [len(name) for name, _ in rows if len(name) <= width // 2]
    first = max(usual, default=0)
    lines = []
    for name, said in rows:
        text = f"  {name:{first}}  "
        room = width - len(text)
        if room >= 20 or len(said) <= room:
            lines.append(f"{text}{_cut(said, room)}".rstrip())
        else:
            lines += [f"  {name}", " " * (first + 4) + _cut(said, width - first - 4)]
    return lines


def _cut(text: str, width: int) -> str:
    return textwrap.shorten(text, max(width, 2), placeholder=" …", break_on_hyphens=False)


def _settings() -> list[tuple[str, str]]:
    """Top-level settings with the comments beside them."""
    found = re.findall(
        r"^(\w+: .*?)\s+# (.*)$", (CONF / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE
    )
    said = [(setting.replace(": ", "="), comment) for setting, comment in found]
    return [*said, ("trainer.max_epochs=20", "epochs"), ("optimizer.lr=0.001", "learning rate")]


def _own_version() -> str:
    project = CONF.parent / "pyproject.toml"
    if project.is_file():
        found = re.search(r'^version = "(.+)"$', project.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    return version("widefield")


def _cuda() -> str | None:
    """The CUDA version that PyTorch was built for, without importing it."""
    spec = find_spec("torch")
    file = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    if file is None or not file.is_file():
        return None
    found = re.search(r"^cuda[^=]*= ['\"](.+)['\"]$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


class _Strict(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _check(arguments: list[str]) -> None:
    parser = get_args_parser()
    parser.__class__ = _Strict
    try:
        _, unknown = parser.parse_known_args(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}; {called()} --help shows what can be typed")
    flags = [word for word in unknown if word.startswith("-")]
    if not flags:
        return
    name = flags[0].partition("=")[0]
    known = [flag for action in parser._actions for flag in action.option_strings]
    near = difflib.get_close_matches(name, [*known, "--help", "--version"], 1, cutoff=0.75)
    plain = flags[0].lstrip("-")
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"settings have no dashes: {plain if '=' in plain else f'{plain}=…'}"
    )
    sys.exit(f"error: {flags[0]} is no flag: {hint} {called()} --help shows what can be typed")
