"""A progress bar with loss and accuracy on a terminal, and one log line per epoch in any case."""

import logging
import math
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display
from rich.table import Column

from tasks.task import Training
from workbench.console import console

log = logging.getLogger("widefield")

METRICS_EVERY = 0.25  # seconds: reading a metric synchronises with the GPU
DRAWN_EVERY = 0.1  # seconds


class Progress(ProgressBar):
    """One bar for the epoch or test, a second one for validation, and one log line after each epoch.

    The bars stay below all output printed through `console` and disappear when their phase ends. They are not shown
    if the output is not a terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._display: Display | None = None
        self._rows: dict[str, TaskID] = {}
        self._enabled = True
        self._started = 0.0
        self._shown = -math.inf
        self._drawn = -math.inf
        self._first = 0
        self._validated = False  # whether the epoch of the next log line was validated

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._first = trainer.current_epoch

    # Tasks log their training metrics after the epoch's callbacks, so the line is printed at the next epoch's start.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch > self._first:
            self._say(trainer, pl_module)
        self._hide("train")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        self._say(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._visible():
            return
        said = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        now = time.monotonic()
        metrics = None
        if now - self._shown > METRICS_EVERY:
            self._shown, metrics = now, self._in_words(trainer, pl_module)
        self._show("train", said, batch_idx + 1, self.total_train_batches, metrics)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self._hide("val")
        if not trainer.sanity_checking:
            self._show("val", "validation", batch_idx + 1, self.total_val_batches_current_dataloader)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = self._validated or not trainer.sanity_checking
        self._hide("val")
        self.reset_dataloader_idx_tracker()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self._hide("test")
        self._show("test", "test", batch_idx + 1, self.total_test_batches_current_dataloader)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reset_dataloader_idx_tracker()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _visible(self) -> bool:
        return self._enabled and console.is_interactive

    # All that touches the display holds the console: what another thread prints comes before or after, never between.

    def _show(self, row: str, said: str, done: int, total: float, metrics: str | None = None) -> None:
        if not self._visible():
            return
        with console:
            if self._display is None:
                self._display = _display()
                self._display.start()
            if row not in self._rows:
                most = total if math.isfinite(total) else None
                self._rows[row] = self._display.add_task(said, total=most, metrics="")
            self._display.update(self._rows[row], description=said, completed=done)
            if metrics is not None:
                self._display.update(self._rows[row], metrics=metrics)
            if (now := time.monotonic()) - self._drawn > DRAWN_EVERY:
                self._drawn = now
                self._display.refresh()

    def _hide(self, row: str) -> None:
        if self._display is not None and row in self._rows:
            with console:
                self._display.remove_task(self._rows.pop(row))
                self._display.refresh()

    def _close(self) -> None:
        display, self._display = self._display, None
        self._rows.clear()
        if display is not None:
            with console:
                display.stop()

    def _in_words(self, trainer: Trainer, pl_module: LightningModule) -> str:
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return "  ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in metrics.items()
        )

    def _say(self, trainer: Trainer, pl_module: LightningModule) -> None:
        in_short = pl_module.in_short if isinstance(pl_module, Training) else str
        splits = (
            ("train/", "val/") if self._validated else ("train/",)
        )  # the trainer keeps the metrics of older validations
        self._validated = False
        shown = {
            name: float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith(splits) and in_short(name)
        }
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info(
            "epoch %d/%s  %s  (%.0f s)",
            trainer.current_epoch,
            trainer.max_epochs,
            text,
            time.monotonic() - self._started,
        )


def _display() -> Display:
    """A progress display for any terminal width: metrics are truncated first, then the bar shrinks."""
    whole = Column(no_wrap=True)
    return Display(
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8, max_width=40)),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
        TextColumn("{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True, ratio=2)),
        console=console,
        auto_refresh=False,  # a thread that draws would take the display's lock before the console's
        transient=True,
        expand=True,
    )
