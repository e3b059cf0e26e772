"""Early stopping."""

import logging
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from workbench.errors import UsageError

log = logging.getLogger("widefield")


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, with the reason in the log, and in a resumed run with the patience of this command.

    Lightning's takes the patience from the checkpoint, whatever the command says. The count of validations without
    improvement goes on. It has the name of Lightning's, under which the checkpoints of earlier runs keep its state.

    Args:
        monitor: full name of the metric, e.g. `val/acc`.
        mode: `max` or `min`.
        patience: number of validations without improvement after which training stops.
        min_delta: smallest change that counts as an improvement.
        stopping_threshold, divergence_threshold: values that stop training at once.
        check_finite: stop if the metric is not finite.
        check_on_train_epoch_end, strict, verbose, log_rank_zero_only: see `lightning.pytorch.callbacks.EarlyStopping`.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
        check_on_train_epoch_end: bool | None = None,
        strict: bool = True,
        verbose: bool = False,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__(
            monitor,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_finite=check_finite,
            check_on_train_epoch_end=check_on_train_epoch_end,
            strict=strict,
            verbose=verbose,
            log_rank_zero_only=log_rank_zero_only,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's looks for the metric after each epoch, and ends with a traceback.
        if self.strict and self._check_on_train_epoch_end and self.monitor not in trainer.callback_metrics:
            raise UsageError(
                f"callbacks.early_stopping.monitor={self.monitor} was not measured: it needs validations "
                f"(trainer.limit_val_batches), or another metric"
            )
        super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})
        self.stopping_reason_message = None  # of the run before

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if reason := self.stopping_reason_message:
            log.info("early stopping: %s", reason.removesuffix(" Signaling Trainer to stop."))
