"""`python run.py sweep.resume=DIR`: rerun the command of an earlier sweep, composed from its snapshot."""

import os
import shutil
import sys
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from tasks.disk import WriteError, writing
from workbench.conf_folders import CONF
from workbench.errors import UsageError
from workbench.quoting import plain, quoted
from workbench.secret_words import is_reference
from workbench.sweeps.folder import SWEEP, SweepFolder
from workbench.sweeps.frozen import HYDRAS_OWN, check_frozen
from workbench.words import refused_word

KEY = "sweep.resume"
CONFIG_DIR = ("--config-dir", "-cd")
MAY_CHANGE = (
    "hydra/launcher",
    "hydra.launcher.",
    "hydra.sweeper.n_trials",
    "hydra.sweeper.n_jobs",
    "sweep.report",
)


def expand_resume(words: list[str]) -> list[str]:
    """The command line with `sweep.resume=DIR` replaced by the original command of the sweep in DIR.

    Raises:
        UsageError: there is no sweep in DIR, or another override would change its runs.
    """
    asked = [word.partition("=")[2] for word in words if word.startswith(f"{KEY}=")]
    if not asked or asked[-1] in ("", "null"):
        return words
    path = Path(plain(asked[-1])).expanduser()
    if not (path / SWEEP).is_file():
        raise UsageError(f"{KEY}={path}: there is no {SWEEP} in it, so it is no sweep's folder")
    new, folders = _without_folders(words)
    new = [word for word in new if word not in ("-m", "--multirun") and not word.startswith(f"{KEY}=")]
    others = [word for word in new if not word.startswith(MAY_CHANGE) and not is_reference(word)]
    if others:
        raise UsageError(
            f"{KEY} repeats the sweep's own command, so {' '.join(others)} cannot be said beside it; "
            f"what can: {', '.join(MAY_CHANGE)}, and --config-dir"
        )
    sweep = SweepFolder.load(path)
    if not sweep.snapshot.is_dir():
        raise UsageError(f"{KEY}={path}: its snapshot {sweep.snapshot} is gone")
    check_frozen(sweep)
    _take_hydras_own(sweep)
    if unknown := [word for word in new if is_reference(word) and word not in sweep.words]:
        raise UsageError(f"{KEY}={path}: the sweep was not made with {unknown[0].partition('=')[0]}")
    path = path.resolve()
    if Path(sweep.cwd).is_dir():
        os.chdir(sweep.cwd)  # relative paths in the overrides refer to it
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    old = sweep.hydra_words
    if any(word.startswith("hydra/launcher=") for word in new):
        old = [word for word in old if not word.startswith(("hydra/launcher", "hydra.launcher."))]
    said = {word.partition("=")[0] for word in new}
    old = [word for word in (*old, *sweep.words) if word.partition("=")[0] not in said]
    return [
        *("--multirun", "--config-path", str((path / "conf").resolve()), "--config-name", sweep.config_name),
        *folders,
        *(*old, *new, f"hydra.sweep.dir={quoted(path)}", f"{KEY}={quoted(path)}"),
    ]


def _without_folders(words: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--config-dir DIR`, and those flags: the user decides which other YAML to trust."""
    rest, folders = [], []
    for before, word in zip(["", *words], words, strict=False):
        if before in CONFIG_DIR:
            folders.append(f"--config-dir={Path(word).absolute()}")
        elif word.partition("=")[0] in CONFIG_DIR:
            folders += [f"--config-dir={Path(value).absolute()}"] if (value := word.partition("=")[2]) else []
        else:
            rest.append(word)
    return rest, folders


def _take_hydras_own(sweep: SweepFolder) -> None:
    """Replace the snapshot's Hydra settings by those of the installed version."""
    file = sweep.snapshot / HYDRAS_OWN
    with writing(file, ""):
        file.parent.mkdir(exist_ok=True)
        shutil.copyfile(CONF / HYDRAS_OWN, file)


def take_arguments() -> None:
    """Expand `sweep.resume=DIR` in this process's own command line."""
    try:
        sys.argv[1:] = expand_resume(sys.argv[1:])
    except (UsageError, WriteError, OSError, RuntimeError, OmegaConfBaseException) as error:
        sys.exit(f"error: {refused_word(error, KEY, sys.argv[1:])}")
