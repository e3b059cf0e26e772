"""action=probe_robustness: the test metric under increasing corruption of the raw data."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, open_dict

from backbone.probes import Curve, robustness_curve
from modalities.corruption import CORRUPTIONS, Corruption
from tasks.datasets.base import DataModule
from tasks.task import Task
from workbench import figures
from workbench.build import refused_settings
from workbench.console import print_table
from workbench.errors import UsageError
from workbench.files import write_findings, write_table
from workbench.fit import metrics_of
from workbench.lists import names_of, numbers
from workbench.probes import drawing
from workbench.probes.common import plain, show_files
from workbench.results import write_config
from workbench.test import trained
from workbench.trainer import build_trainer

log = logging.getLogger("widefield")


class Spoil(Callback):
    """Corrupts every test batch before the task sees it, deterministically."""

    def __init__(self, corruption: Corruption, severity: float, seed: int) -> None:
        self.corruption = corruption
        self.severity = severity
        self.seed = seed

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.severity == 0:
            for error in batch.failures:
                log.warning("broken file: %s", error)
        if not len(batch):
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + batch_idx)
        task: Any = pl_module
        batch.raw = self.corruption(batch.raw, self.severity, generator, task.network.embedder)


def probe(cfg: DictConfig) -> float | None:
    """Write `robustness.json`, `robustness.csv` and `figures/robustness.png`; returns the relative metric, averaged
    over severities and corruptions."""
    options = cfg.action
    asked = None if options.corruptions is None else names_of(cfg, "corruptions")
    at = {name: numbers(cfg, f"severities.{name}") for name in options.severities or {}}
    own, data, task, _ = trained(cfg)
    chosen = corruptions(own.modality.name, asked, at, task.located)
    metric = own.task.monitor.replace("val/", "test/")
    better_up = own.task.mode == "max"
    own.logger, own.callbacks = {}, {}  # dozens of tests: one log line each is enough
    with open_dict(own.trainer):
        own.trainer.enable_progress_bar = False

    def score(corruption: Corruption, severity: float) -> float:
        trainer = build_trainer(own)
        trainer.callbacks.append(Spoil(corruption, severity, cfg.seed))  # type: ignore[attr-defined]
        trainer.test(task, datamodule=data, verbose=False)
        value = metrics_of(trainer, "test")[metric]
        log.info("%s %g: %s %.4f", corruption.label, severity, metric, value)
        return value

    found: dict[str, Curve] = {}
    clean: list[float] = []  # the same for every corruption: measured once
    with refused_settings():
        for name, (corruption, severities) in chosen.items():

            def measured(severity: float, corruption: Corruption = corruption) -> float:
                if severity > 0:
                    return score(corruption, severity)
                if not clean:
                    clean.append(score(corruption, 0.0))
                return clean[0]

            found[name] = robustness_curve(measured, severities, better_up)
    return report(cfg, own, data, task, {name: part[0].label for name, part in chosen.items()}, found, metric)


def corruptions(
    modality: str,
    names: list[str] | None,
    severities: dict[str, list[float]] | None,
    located: bool = False,
) -> dict[str, tuple[Corruption, list[float]]]:
    """The requested corruptions, each with its severities; by default all of the modality.

    If targets say where or when something is (`located`), corruptions that move it are left out or refused.
    """
    known = CORRUPTIONS.get(modality, {})
    if not known:
        raise UsageError(f"no corruptions are defined for {modality}: add them to modalities/corruption.py")
    unfit = [name for name, corruption in known.items() if corruption.moves and located]
    if names is None and unfit:
        log.info("left out, since the targets say where or when something is: %s", ", ".join(unfit))
    names = [name for name in known if name not in unfit] if names is None else list(names)
    severities = dict(severities or {})
    if moved := [name for name in names if name in unfit]:
        raise UsageError(
            f"action.corruptions: {moved[0]} moves what the targets say the place or time of: leave it out"
        )
    if strange := [name for name in [*names, *severities] if name not in known]:
        raise UsageError(f"{modality} has no corruption {strange[0]}: take {', '.join(known)}")
    return {name: (known[name], list(severities.get(name, known[name].severities))) for name in names}


def report(
    cfg: DictConfig,
    own: DictConfig,
    data: DataModule,
    task: Task,
    labels: dict[str, str],
    found: dict[str, Curve],
    metric: str,
) -> float | None:
    """Write and print the results; returns the mean relative metric."""
    # Chance level of K equally likely classes; unknown for other metrics.
    floor = 1 / len(task.data_info["class_names"]) if metric == "test/acc" else 0.0
    rows = [
        {"corruption": name, "severity": severity, metric: value, "relative": relative}
        for name, curve in found.items()
        for severity, value, relative in zip(curve.severities, curve.scores, curve.relative, strict=True)
    ]
    content = {
        "network": f"{own.backbone.name}, trained on {own.task.name}",
        "data": {"source": data.source, "data_dir": data.place},
        "metric": metric,
        "guessing": floor or None,
        "corruptions": {
            name: {
                "severity": labels[name],
                "severities": curve.severities,
                "scores": curve.scores,
                "relative": curve.relative,
                "mean_corrupted": curve.mean_corrupted,
                "half_point": curve.half_point(floor),
            }
            for name, curve in found.items()
        },
    }
    write_config(own)
    folder = Path(cfg.paths.run)
    write_findings(folder / "robustness.json", plain(content))
    write_table(folder / "robustness.csv", rows, list(rows[0]))
    picture = folder / "figures" / "robustness.png"
    about = f"{content['network']} ({data.source} data, {len(data.splits['test']):,} test {data.unit})"
    figures.save(drawing.robustness(found, labels, metric, floor, about), picture)
    shown = []
    for name, curve in found.items():
        half = curve.half_point(floor)
        shown.append(
            (
                name,
                f"{curve.clean:.4f}",
                f"{curve.mean_corrupted:.4f}",
                "–" if half is None else f"{half:.3g}",
            )
        )
    lost = "half lost at" if own.task.mode == "max" else "doubled at"
    print_table(f"Robustness of {metric}: {about}", shown, ("corruption", "clean", "mean spoilt", lost))
    show_files(folder / "robustness.json", folder / "robustness.csv", picture)
    kept = [sum(curve.relative[1:]) / len(curve.relative[1:]) for curve in found.values()]
    return sum(kept) / len(kept)
