"""A loss that is not finite stops a run: at once on a CPU, one step later on a GPU, always before a checkpoint."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.callbacks import finite_loss
from workbench.callbacks.finite_loss import FiniteLoss, SentLoss
from workbench.errors import TrainingError

GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


class Late(SentLoss):
    """A loss that has not arrived while the next step begins."""

    def arrived(self) -> bool:
        return False


@pytest.fixture(params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gpu":
        monkeypatch.setattr(finite_loss, "SentLoss", Late)
    return str(request.param)


def train(check: FiniteLoss, *losses: Tensor, first: int = 0) -> None:
    """Train on these losses, one per step; an error is noted with the step that raised it."""
    for number, loss in enumerate(losses, start=first):
        trainer: Any = SimpleNamespace(global_step=number, current_epoch=number // 10)
        try:
            check.on_before_backward(trainer, None, loss)  # type: ignore[arg-type]
        except TrainingError as error:
            error.add_note(str(number))
            raise


def test_a_step_is_named(device: str, tmp_path: Path) -> None:
    check = FiniteLoss(str(tmp_path))
    train(check, *[GOOD] * 12)
    said = r"the loss became nan in epoch 1 at step 12; no checkpoint was made yet"
    with pytest.raises(TrainingError, match=said) as caught:
        train(check, BAD, GOOD, GOOD, first=12)
    assert caught.value.__notes__ == ["12" if device == "cpu" else "13"]


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_start", "on_save_checkpoint"])
def test_every_loss_is_checked_before_what_uses_the_weights(
    hook: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(finite_loss, "SentLoss", Late)
    (tmp_path / "last.ckpt").touch()
    check = FiniteLoss(str(tmp_path))
    train(check, GOOD, BAD)
    arguments: list[Any] = [None, None, *([{}] if hook == "on_save_checkpoint" else [])]
    with pytest.raises(
        TrainingError, match=r"nan in epoch 0 at step 1; the last good checkpoint is .*last\.ckpt"
    ):
        getattr(check, hook)(*arguments)
    getattr(check, hook)(*arguments)  # said once


def test_only_some_steps_are_checked(device: str, tmp_path: Path) -> None:
    check = FiniteLoss(str(tmp_path), every_n_steps=5)
    train(check, BAD, BAD, BAD, BAD, first=1)
    check.on_train_epoch_end(None, None)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="at step 5"):
        train(check, *[BAD] * 6, first=5)


@pytest.mark.gpu
def test_no_step_waits_for_its_own_loss(tmp_path: Path) -> None:
    check = FiniteLoss(str(tmp_path))
    x = torch.zeros(4096, 4096, device="cuda")
    train(check, x.mean())  # pinned memory is allocated once, and that waits
    check._check_all()
    torch.cuda.synchronize()
    for _ in range(50):
        x = x @ x
    train(check, x.mean())
    assert not check._sent[0].arrived()
    with pytest.raises(TrainingError, match="at step 1"):
        train(check, x.mean() * float("nan"), x.mean(), first=1)
