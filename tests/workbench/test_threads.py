"""How long threads wait is set before PyTorch starts, and only where nobody has said it."""

import os
import sys

import pytest

from workbench.threads import TURNS, wait_briefly


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # restored to what it was at the end, whatever the test sets
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("platform", "name", "value"),
    [("linux", "GOMP_SPINCOUNT", TURNS), ("darwin", "OMP_WAIT_POLICY", "PASSIVE")],
)
def test_threads_wait_briefly(monkeypatch: pytest.MonkeyPatch, platform: str, name: str, value: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    wait_briefly()
    assert os.environ[name] == value


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
