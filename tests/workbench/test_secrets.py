"""Secrets: given to whoever needs their value, in no file and on no terminal."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from tests_support import ROOT, TINY

from tasks import secrets
from tasks.datasets.shards.storage import Storage
from tasks.secrets import hide, is_secret, learn, mask
from workbench.console import FileFormatter
from workbench.errors import UsageError
from workbench.files import write_json, write_table, write_text
from workbench.resolvers import register_resolvers
from workbench.secret_words import (
    VARIABLE,
    HideLiterals,
    _parsed,
    _without_secrets,
    give_back,
    refuse_literals,
    variable,
)
from workbench.yaml_targets import read_yaml

STORAGE = "task.data.shards.storage"
SECRETS = ("hunter2SECRETone", "hunter2SECRETtwo", "hunter2SECRETthree")
ASKED = (
    "task=audio_folder",
    "task.data.limit=8",
    "action.test_after=false",
)
GIVEN = (
    f"+{STORAGE}.secret={SECRETS[0]}",
    f'+{STORAGE}.client_kwargs={{password:{SECRETS[1]},endpoint_url:"https://me:{SECRETS[2]}@host/"}}',
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(secrets, "_known", set())
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        if name.startswith(VARIABLE):
            del os.environ[name]


def leaks(folder: Path, *texts: str) -> list[str]:
    """The files below a folder that hold a secret, and the texts that do."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".wav", ".tar")]
    assert files
    found = [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)]
    found += [str(path) for path in folder.rglob("*") if any(secret in path.name for secret in SECRETS)]
    return found + [text for text in texts if any(secret in text for secret in SECRETS)]


# -- what is one ---------------------------------------------------------------------------------------------------


def test_none_of_our_settings_looks_like_a_secret(composed: Callable[..., DictConfig]) -> None:
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        assert list(secrets.secrets_in(read_yaml(file.read_text(encoding="utf-8")))) == [], file
    cfg = composed("logger=[csv,tensorboard,wandb,mlflow]")
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    assert hide(content) == content


@pytest.mark.parametrize(
    "key",
    [
        *(
            "api_key",
            "apiKey",
            "aws_access_key_id",
            "key_id",
            "HF_TOKEN",
            "client-secret",
            "sas_token",
            "Password",
        ),
        *(
            "connection_string",
            "action.storage.key",
            "storage_options.key",
            "headers.Authorization",
            "credentials",
        ),
    ],
)
def test_names_of_secrets(key: str) -> None:
    assert is_secret(key)


def test_below_a_secret_key_everything_is_hidden_but_switches() -> None:
    content = {"credentials": {"user": "me", "pin": 1234, "cached": True, "none": None, "empty": ""}}
    assert hide(content)["credentials"] == {
        "user": "***",
        "pin": "***",
        "cached": True,
        "none": None,
        "empty": "",
    }


# -- words of a command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "without", "kept"),
    [
        (
            f"{STORAGE}.secret=abc",
            f"{STORAGE}.secret=${{secret:{STORAGE}.secret}}",
            {f"{STORAGE}.secret": "abc"},
        ),
        (f"+{STORAGE}.key=12345", f"+{STORAGE}.key=${{secret:{STORAGE}.key}}", {f"{STORAGE}.key": "12345"}),
        (
            f"{STORAGE}={{key:key, anon:false, secret:'a b'}}",
            f"{STORAGE}={{key:${{secret:{STORAGE}.key}}, anon:false, secret:'${{secret:{STORAGE}.secret}}'}}",
            {f"{STORAGE}.key": "key", f"{STORAGE}.secret": "a b"},
        ),
        (
            "data_dir=s3://k:s/x@b/set",
            "data_dir=s3://k:s/x@b/set",  # no address: a slash in a password is written %2F
            {},
        ),
        ("data_dir=s3://k:s%2Fx@b/set", "data_dir=s3://${secret:data_dir}@b/set", {"data_dir": "k:s%2Fx"}),
        (
            "data_dir=https://h/set?size=3&sig=a%3D&x=1",
            "data_dir=https://h/set?size=3&sig=${secret:data_dir}&x=1",
            {"data_dir": "a%3D"},
        ),
        (
            "data_dir=s3://a:b@x/1,s3://c:d@x/2",
            "data_dir=s3://${secret:data_dir}@x/1,s3://${secret:data_dir.1}@x/2",
            {"data_dir": "a:b", "data_dir.1": "c:d"},
        ),
        (
            "logger.wandb.api_key=a,b",
            "logger.wandb.api_key=${secret:logger.wandb.api_key}",
            {"logger.wandb.api_key": "a,b"},
        ),
        ("x.password=a=b(c", "x.password=${secret:x.password}", {"x.password": "a=b(c"}),
        *(
            (word, word, {})
            for word in (
                f"{STORAGE}.secret=${{oc.env:MINE}}",
                f"{STORAGE}.secret=${{secret:{STORAGE}.secret}}",
                f"{STORAGE}.secret=null",
                f"{STORAGE}.token=false",
                f"{STORAGE}={{anon:true}}",
                f"~{STORAGE}.secret",
                "data_dir=s3://bucket/key:set",
                "modality=audio",
                "--config-dir=https://a:b@c",
            )
        ),
    ],
)
def test_secrets_leave_the_command(word: str, without: str, kept: dict[str, str]) -> None:
    before = set(os.environ)
    assert _without_secrets(word) == without
    new = {name: os.environ[name] for name in set(os.environ) - before}
    assert new == {variable(key): value for key, value in kept.items()}
    asked = _parsed(without)
    plain = _parsed(word)
    if kept and asked and plain and not (asked.is_sweep_override() or plain.is_sweep_override()):
        assert OmegaConf.create({"x": asked.value()}).x == _text(plain.value())


def _text(value: Any) -> Any:
    """Numbers as text: a secret is one."""
    return (
        {key: _text(inner) for key, inner in value.items()}
        if isinstance(value, dict)
        else (value if isinstance(value, bool) else str(value))
    )


def test_a_secret_that_cannot_be_parsed_is_not_repeated() -> None:
    for said in (f"{{secret:{SECRETS[0]}", f"{{secret:{SECRETS[0]}}},{{secret:{SECRETS[1]}}}"):
        with pytest.raises(SystemExit) as stop:
            _without_secrets(f"{STORAGE}={said}")
        assert "holds a secret and is no single value" in str(stop.value)
        assert "hunter2" not in str(stop.value)


# -- what is written and shown -------------------------------------------------------------------------------------


def test_a_run_keeps_no_secret(
    act: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [_without_secrets(word) for word in GIVEN]
    run = act(*TINY, *ASKED, *words)
    shown = capfd.readouterr()
    assert leaks(run, shown.out, shown.err, caplog.text) == []
    config: Any = OmegaConf.load(run / "config.yaml")
    assert config.task.data.shards.storage.secret == "***"
    assert config.task.data.shards.storage.client_kwargs.endpoint_url == "https://***@host/"
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_an_error_shows_no_secret(command: Callable[..., Any], tmp_path: Path) -> None:
    done = command(
        tmp_path, "action=test", f"ckpt=https://me:{SECRETS[0]}@host/x", f"+{STORAGE}.token={SECRETS[1]}"
    )
    assert done.returncode == 1
    assert "ckpt=https://***@host/x: there is no such run folder" in done.stdout + done.stderr
    assert leaks(tmp_path, done.stdout, done.stderr) == []
    assert (tmp_path / "runs").rglob("error.json")


def test_what_a_library_says_is_hidden_too(tmp_path: Path) -> None:
    storage = Storage(
        f"https://me:{SECRETS[0]}@host/set", {"headers": {"Authorization": f"Bearer {SECRETS[1]}"}}
    )
    said = f"403 for {SECRETS[0]}, Bearer {SECRETS[1]}"
    assert str(storage) == "https://***@host/set"
    assert mask(said) == "403 for ***, ***"
    record = logging.makeLogRecord({"msg": "%s", "args": (said,)})
    assert FileFormatter(fmt="%(message)s").format(record) == "403 for ***, ***"
    write_text(tmp_path / "a", said)
    write_json(tmp_path / "b", {"x": [said]})
    write_table(tmp_path / "c", [{"x": said}], ["x"])
    assert leaks(tmp_path) == []


def test_a_word_that_is_also_a_password_is_left_alone() -> None:
    learn({"password": "acc"})
    assert mask("val/acc") == "val/acc"


# -- what was hidden is asked for again ---------------------------------------------------------------------------


def test_a_hidden_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    register_resolvers()

    def read() -> DictConfig:
        return OmegaConf.create({"storage": {"secret": "***", "url": "https://***@host/x", "anon": True}})

    said = (
        "storage.secret holds a secret, which is never kept: say it again, or set the environment variable "
    )
    with pytest.raises(UsageError, match=f"{said}WIDEFIELD_SECRET_STORAGE_SECRET"):
        give_back(read())
    monkeypatch.setenv("WIDEFIELD_SECRET_STORAGE_SECRET", "abc")
    monkeypatch.setenv("WIDEFIELD_SECRET_STORAGE_URL", "me:pass")
    cfg = read()
    give_back(cfg)
    assert cfg.storage == {"secret": "abc", "url": "https://me:pass@host/x", "anon": True}


def test_secrets_in_yaml_are_moved_or_refused(tmp_path: Path) -> None:
    register_resolvers()
    cfg = OmegaConf.create({"storage": {"password": 12345678}, "url": f"s3://me:{SECRETS[0]}@x", "hydra": {}})
    HideLiterals().on_run_start(cfg)
    assert OmegaConf.to_container(cfg, resolve=False) == {
        "storage": {"password": "${secret:storage.password}"},
        "url": "s3://${secret:url}@x",
        "hydra": {},
    }
    assert cfg.url == f"s3://me:{SECRETS[0]}@x"
    (tmp_path / "mine.yaml").write_text("storage:\n  secret: abc\n")
    with pytest.raises(
        UsageError, match=r"mine.yaml holds a secret in storage.secret, and a sweep keeps its YAML"
    ):
        refuse_literals(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("storage:\n  secret: ${oc.env:NAME}\n")
    refuse_literals(tmp_path / "mine.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("sweeper", ["grid", "optuna"])
def test_fit_sweep_resume_and_report_keep_no_secret(samples: Path, tmp_path: Path, sweeper: str) -> None:
    """As typed: a fit, a sweep with a run that fails, going on with it with and without the secret, a report."""
    words = [*TINY, *ASKED, "task.data.format=webdataset", f"paths.samples={samples}", *GIVEN]
    said: list[str] = []

    def run(*more: str, code: int = 0) -> str:
        program = [sys.executable, str(ROOT / "run.py"), *more]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        said.extend((done.stdout, done.stderr))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    if sweeper == "grid":
        run(*words)
    study = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"] if sweeper == "optuna" else []
    # Of two runs one fails, in the study as in the grid.
    run("-m", *words, *study, "seed=0,-1", "hydra.sweep.dir=runs/sweeps/mine", code=1)
    assert "holds a secret, which is never kept" in run("sweep.resume=runs/sweeps/mine", code=1)
    run("sweep.resume=runs/sweeps/mine", *GIVEN, code=1)
    run("action=report", "input=runs")
    assert leaks(tmp_path, *said) == []
