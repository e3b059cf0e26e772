"""Fixtures for all tests: composing a configuration, running an action, small models and small samples."""

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# Two test processes on two cores: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Triton decides when a kernel is first imported. Only tests that ask for it run kernels in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from figures_support import leave_figures_blank, rendered
from omegaconf import DictConfig
from quick_compose import remember_compositions
from tests_support import ROOT
from warm_runs import WarmRuns

from workbench.overrides import compose
from workbench.resolvers import register_resolvers

torch.set_num_threads(1)
register_resolvers()
remember_compositions()
leave_figures_blank()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fixtures and test of `@pytest.mark.figures` render their figures."""
    with rendered(item.get_closest_marker("figures") is not None):
        return (yield)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for embedded samples, drawn once a session, by whichever of its processes needs one first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("samples")
    folder = tmp_path_factory.getbasetemp().parent / "samples"  # the processes' folders lie beside it
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """`composed("task=esc50", …)` -> the configuration of that command line."""

    def make(*overrides: str, config: str = "config") -> DictConfig:
        return compose(*overrides, config_name=config)

    return make


@pytest.fixture
def act(composed: Callable[..., DictConfig], samples: Path, tmp_path: Path) -> Callable[..., Path]:
    """`act("task=esc50", …)` runs that command line in this process and returns its run folder."""
    from workbench.actions import run_action

    def run(*overrides: str, folder: str = "run") -> Path:
        cfg = composed(*overrides, f"paths.samples={samples}", f"paths.run={tmp_path / folder}")
        run_action(cfg)
        return tmp_path / folder

    return run


@pytest.fixture(scope="session")
def warm_program() -> Iterator[WarmRuns]:
    """A process that has imported everything and forks itself for each command."""
    with WarmRuns() as runs:
        yield runs


@pytest.fixture
def command(samples: Path, warm_program: WarmRuns) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command(folder, "task=esc50", …)` runs `python run.py …` as a user does, in `folder`.

    In a process of its own, with the environment of this moment, but without the start of the interpreter and the
    imports, which `new_command` has too.
    """

    def run(cwd: Path, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return warm_program.finish(cwd, *words, f"paths.samples={samples}", timeout=timeout)

    return run


@pytest.fixture
def new_command(samples: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `command`, in a new interpreter."""

    def run(cwd: Path, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words, f"paths.samples={samples}"],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"COLUMNS": "160"},
        )

    return run
