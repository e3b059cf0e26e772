"""Typing errors: one sentence with the nearest name, nothing heavy imported, nothing trained on."""

import inspect
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig
from tests_support import ROOT

from workbench.errors import UsageError
from workbench.signatures import optimizers, signature_of
from workbench.words import OURS, check_words, plain_words

Compose = Callable[..., DictConfig]
STOP = "workbench.callbacks.early_stopping.EarlyStopping"
MIXUP = "modalities.audio_augment.WaveformMixup"


def checked(composed: Compose, *words: str) -> None:
    check_words(composed(*words), list(words))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+optimiser.lr=1", "optimiser is no group; did you mean optimizer?"),
        ("+epochs=3", "epochs is no setting; did you mean trainer.max_epochs?"),
        ("+trainer.max_epoch=3", "lightning.Trainer takes no max_epoch: did you mean max_epochs?"),
        ("+optimizer.weigth_decay=0", "takes no weigth_decay: did you mean weight_decay?"),
        ("+task.seconds=3", "task has no seconds"),
        ("+task.data.shards.cach_gb=3", "takes no cach_gb: did you mean cache_gb?"),
        ("+action.foo=1", "action has no foo"),
        ("+callbacks.x={a:1}", "callbacks.x needs a _target_"),
        ("+callbacks.default.patience=1", "callbacks.default needs a _target_"),
        ("+mine._target_=os.mkdir", "mine is no group"),
        ("+modality.augment.mixup.prob=0.5", "modality.augment.mixup needs a _target_"),
        (f"+modality.augment.mixup={{_target_:{MIXUP},probb:0.5}}", "takes no probb: did you mean prob?"),
        ("+task.data.mixup.prob=0.5", "task.data.mixup needs a _target_"),
        ("+modality.augment.maps2=null", "augment has no maps2: did you mean maps?"),
        ("seed=abc", "seed=abc: it must be a number, such as 0"),
        ("seed=1.5", "it must be a whole number"),
        ("optimizer.lr=fast", "optimizer.lr=fast: it must be a number, such as 0.002"),
        ("download=yess", "it must be true or false, such as false"),
        ("task.data.batch_size=many", "it must be a number"),
        ("optimizer.opt=sdg", "none of timm's optimisers: did you mean sgd?"),
        ("init_from=typo", "init_from=typo: there is no such run folder or checkpoint"),
        ("ckpt=typo@audio", "ckpt=typo@audio: there is no such run folder or checkpoint"),
    ],
)
def test_a_typo_is_one_sentence(
    composed: Compose, word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        checked(composed, word)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "words",
    [
        ("+trainer.val_check_interval=0.5",),
        (f"+callbacks.x._target_={STOP}", "+callbacks.x.monitor=val/loss"),
        (f"+callbacks.x={{_target_:{STOP},monitor:val/loss}}",),
        (f"+modality.augment.mixup._target_={MIXUP}", "+modality.augment.mixup.prob=0.5"),
        (f"++modality.augment.mixup={{_target_:{MIXUP},prob:0.5}}",),
        ("+optimizer.eps=1e-9",),
        ("+task.data.shards.storage.anon=true",),
        ("action=probe_robustness", "+action.severities.noise=[0.1,0.2]"),
        ("experiment=joint/four_modalities", "+modality.augment.mixup=null"),
        ("experiment=joint/four_modalities", "task@task.members.audio.task=esc50", "~task.members.video"),
        (
            "trainer.devices=auto",
            "compile=graphs",
            "trainer.deterministic=warn",
            "trainer.precision=bf16-mixed",
        ),
        ("optimizer.opt=lookahead_sgd", "task.data.seconds=2", "data_dir=/tmp", "freeze=stages.0-2"),
        ("callbacks.best=null", "logger=csv", "seed=3"),
    ],
)
def test_what_is_meant_passes(composed: Compose, words: tuple[str, ...]) -> None:
    checked(composed, *words)


def test_the_nearest_run_is_named(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "esc50" / "monday" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"did you mean .*esc50/monday"):
        checked(composed, f"init_from={tmp_path}/esc50/mondy", f"paths.runs={tmp_path}")
    checked(composed, f"init_from={tmp_path}/esc50/monday@audio", f"paths.runs={tmp_path}")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimiser.lr=1", "optimiser is no group; did you mean optimizer?"),
        ("trainer.max_epoch=1", "trainer has no max_epoch: did you mean max_epochs?"),
        ("epochs=1", "epochs is no setting; did you mean trainer.max_epochs?"),
        ("optimiser=sgd", "optimiser is no setting; did you mean optimizer?"),
        ("experiment=speech_comands_s", "did you mean audio/speech_commands_s?"),
        ("modality=adio", "did you mean audio? there are audio, image, point_cloud, time_series, video"),
        ("+optimiser.lr=1", "optimiser is no group; did you mean optimizer?"),
        ("optimizer.lr=fast", "it must be a number"),
        ("optimizer.opt=sdg", "did you mean sgd?"),
        ("init_from=typo", "there are no runs in runs"),
        ("trainer=gpuu", "did you mean gpu?"),
        ("action=tset", "did you mean test?"),
        ("debug=null", "debug= takes a name; for none leave it out: there are fast, overfit, profile"),
        ("modality=3", "modality= takes a name: there are audio, image"),
    ],
)
def test_answered_before_anything_heavy_is_imported(word: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), word],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "160"},
    )
    assert done.returncode == 1
    imports = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert not imports & {"torch", "lightning", "timm", "numpy"}
    words = [line for line in done.stderr.splitlines() if "import time:" not in line]
    lines = [line for line in (*done.stdout.splitlines(), *words) if line.strip()]
    assert len(lines) == 1, lines
    assert "error: " in lines[0]
    assert said in lines[0]
    assert "use +" not in lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=abc", "task.data.batch_size=2,4"], "seed=abc: it must be a number, such as 0"),
        (["seed=0,1", "+epochs=3"], "epochs is no setting; did you mean trainer.max_epochs?"),
    ],
)
def test_a_sweep_that_is_nothing_but_a_typo_is_one_sentence(
    words: list[str], said: str, tmp_path: Path
) -> None:
    before = cpu_seconds()
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-m", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.endswith(said)
    assert cpu_seconds() - before < 3
    assert not list(tmp_path.glob("runs/sweeps/*"))


def cpu_seconds() -> float:
    """Of all child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "target",
    [
        "lightning.Trainer",
        STOP,
        "tasks.optimizers.create_optimizer",
        "tasks.datasets.shards.data.ShardOptions",
        "workbench.callbacks.best.BestCheckpoint",
    ],
)
def test_signatures_are_those_of_the_classes(target: str) -> None:
    from hydra.utils import get_object

    real = inspect.signature(get_object(target)).parameters
    read = signature_of(target)
    assert read is not None
    named = [name for name, part in real.items() if part.kind is not inspect.Parameter.VAR_KEYWORD]
    assert list(read.arguments) == named
    assert read.any_keyword == (len(named) < len(real))


def test_names_of_optimisers_are_timms() -> None:
    from timm.optim import list_optimizers

    assert set(optimizers()) >= set(list_optimizers())


def test_full_errors_are_the_users_own_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with plain_words(), pytest.raises(SystemExit, match=r"^error: x$"), plain_words():
        raise HydraException("x")  # as in a process that the first one has started
    assert not {"HYDRA_FULL_ERROR", OURS} & set(os.environ)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException), plain_words():
        raise HydraException("x")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
