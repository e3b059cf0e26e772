"""A training of a second, shown as a run shows it, in terminals of the widths asked for; `test_terminal.py` reads it.

python short_training.py FOLDER 80 110 160
"""

import logging
import sys
import time
import warnings
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.utils import configure_log
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from omegaconf import open_dict
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from terminal_support import written_in_terminals  # noqa: E402

EPOCHS, STEPS = 9, 4
LONG = "a sentence of many words that is longer than a row of any of the terminals here, " * 2
log = logging.getLogger("widefield")


class Slow(LightningModule):
    """Says something in the middle of a step, of a validation and of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], number: int) -> STEP_OUTPUT:
        time.sleep(0.03)
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss, prog_bar=True)
        if number == 1:
            log.info("step %d of epoch %d", number, self.current_epoch + 1)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict({"train/accuracy": 0.25, "train/loss": 3.5625, "train/balanced_accuracy": 0.125})

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        time.sleep(0.03)
        self.log_dict({f"val/{name}": float(self.current_epoch) for name in ("accuracy", "loss", "other")})
        self.log("val/accuracy_bar", 0.5, prog_bar=True)
        if number == 1 and self.current_epoch == 2:
            warnings.warn("a warning in the middle of a validation", stacklevel=1)
            log.warning("%s", LONG)
        if number == 1 and self.current_epoch == 3:
            print("words of a library\x1b[31m")

    def test_step(self, batch: list[Tensor], number: int) -> None:
        time.sleep(0.06)
        if number == 1:
            log.info("a sentence in the middle of the test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(folder: Path) -> None:
    # Not earlier: what is written to a terminal is decided when these are imported.
    from workbench.callbacks.progress import Progress
    from workbench.console import console, quiet_libraries
    from workbench.resolvers import register_resolvers

    folder.mkdir()
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[f"paths.runs={folder}"], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
    configure_log(cfg.hydra.job_logging)
    quiet_libraries()
    loader = DataLoader(TensorDataset(torch.ones(STEPS, 1)))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        callbacks=[Progress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Slow(), loader, loader)
    trainer.test(Slow(), loader, verbose=False)
    console.print("done")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, *words = sys.argv[1:]
    said = written_in_terminals(
        [int(word) for word in words], lambda columns: train(Path(out) / str(columns))
    )
    for columns, written in said.items():
        (Path(out) / f"{columns}.raw").write_bytes(written)
    train(Path(out) / "pipe")  # and into this process's own output, which is a pipe
