"""Callbacks that tests add to a run: `+callbacks.NAME._target_=callbacks_support.CLASS`."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class StopAt(Callback):
    """The run's first process gets SIGTERM at a batch: before its step, or after the run's own callbacks."""

    def __init__(self, epoch: int, batch: int, hook: str = "on_train_batch_start") -> None:
        self.moment = (hook, epoch, batch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._reached("on_train_batch_start", trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reached("on_train_batch_end", trainer, batch_idx)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reached("on_validation_batch_end", trainer, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reached("on_test_batch_end", trainer, batch_idx)

    def _reached(self, hook: str, trainer: Trainer, batch_idx: int) -> None:
        if trainer.is_global_zero and (hook, trainer.current_epoch, batch_idx) == self.moment:
            os.kill(os.getpid(), signal.SIGTERM)


class Writers(Callback):
    """Notes which files below `folder` each process opens for writing, in `<notes>/<rank>.txt`."""

    def __init__(self, folder: str, notes: str) -> None:
        self.folder = str(Path(folder).absolute())
        self.notes = Path(notes)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        notes = self.notes / f"{trainer.global_rank}.txt"
        if notes.exists():  # of an earlier stage of this process
            return
        log = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
                path = os.path.abspath(arguments[0])
                if path.startswith(self.folder):
                    os.write(log, f"{path}\n".encode())

        sys.addaudithook(note)


class Empties(Callback):
    """Takes every file below a folder away when the second epoch begins."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            for file in self.folder.rglob("*.wav"):
                file.unlink()


class Rates(Callback):
    """Appends the learning rate of every optimiser step to a file."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        with self.file.open("a") as file:
            file.write(f"{optimizer.param_groups[0]['lr']!r}\n")


class Pause(Callback):
    """Says `paused` and waits at a batch of the first epoch it sees, or before there is any (`hook: setup`)."""

    def __init__(self, hook: str, batch: int, seconds: float = 60) -> None:
        self.moment = (hook, batch)
        self.seconds = seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._reached("setup", 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._reached("on_train_batch_start", batch_idx)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._reached("on_validation_batch_start", batch_idx)

    def _reached(self, hook: str, batch: int) -> None:
        if (hook, batch) == self.moment:
            print("paused", flush=True)
            time.sleep(self.seconds)
