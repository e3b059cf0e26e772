"""action=evaluate: evaluates frozen features by k-NN, logistic regression, few-shot classification or retrieval."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, open_dict

from tasks.datasets.items import SPLITS
from tasks.datasets.targets import ClassTargets
from workbench import figures
from workbench.build import refused_settings
from workbench.console import console, print_table
from workbench.errors import UsageError
from workbench.files import write_findings
from workbench.lists import numbers, whole_numbers
from workbench.probes.common import device_of
from workbench.representations import drawing, protocols
from workbench.representations.extract import embedded
from workbench.representations.features import Features
from workbench.representations.protocols import Found, Labelled, Splits
from workbench.representations.samples import split_batches
from workbench.representations.source import Source, check_reading, source_of_splits
from workbench.results import write_config, write_result

log = logging.getLogger("widefield")

# Settings are validated before the features are extracted.
PROTOCOLS: dict[str, Callable[[DictConfig], Callable[[Splits], Found]]] = {
    "knn": lambda cfg: partial(protocols.knn, ks=whole_numbers(cfg, "k")),
    "linear": lambda cfg: partial(
        protocols.linear, cs=numbers(cfg, "c"), max_iter=whole_number(cfg, "max_iter")
    ),
    "few_shot": lambda cfg: partial(
        protocols.few_shot,
        shots=whole_numbers(cfg, "shots"),
        draws=whole_number(cfg, "draws"),
        max_iter=whole_number(cfg, "max_iter"),
        seed=cfg.seed,
    ),
    "retrieval": lambda cfg: partial(
        protocols.retrieval, gallery=str(cfg.action.gallery), at=whole_numbers(cfg, "at")
    ),
}
ALL = "all"


def evaluate(cfg: DictConfig) -> float | None:
    """Write `result.json`, `evaluate.json` and `figures/`; returns the validation metric of the (first) protocol."""
    started = time.monotonic()
    action = cfg.action
    if action.protocol not in (*PROTOCOLS, ALL):
        raise UsageError(f"action.protocol={action.protocol} is none of {', '.join((*PROTOCOLS, ALL))}")
    names = list(PROTOCOLS) if action.protocol == ALL else [str(action.protocol)]
    asked = {name: PROTOCOLS[name](cfg) for name in names}
    wanted = Features.asked(action)
    check_reading(action)
    source = source_of_splits(cfg)
    splits, failures = _features(source, wanted, cfg, names)
    found: dict[str, Found] = {}
    with refused_settings():
        protocols.check(splits)
        for name, protocol in asked.items():
            log.info("%s: %s", name, wanted.said())
            found[name] = protocol(splits)
    return _report(cfg, source, wanted, splits, found, failures, time.monotonic() - started)


def whole_number(cfg: DictConfig, name: str) -> int:
    """A setting of the action that is an integer of at least 1; raises `UsageError` otherwise."""
    value = cfg.action[name]
    if type(value) is not int or value < 1:
        raise UsageError(f"action.{name} must be a whole number of at least 1, not {value}")
    return value


def _features(
    source: Source, wanted: Features, cfg: DictConfig, names: list[str]
) -> tuple[Splits, list[dict[str, Any]]]:
    """The features of all splits, and the samples that failed."""
    class_names = list(getattr(source.data, "class_names", []))
    if not class_names:
        raise UsageError(
            f"action.protocol={names[0]} tells classes apart, and {source.cfg.task.name} has none: embed its "
            "samples with action=embed"
        )
    if not isinstance(source.data.targets, ClassTargets):
        raise UsageError(
            f"action.protocol={names[0]} asks for the class of a whole sample, which those of {source.cfg.task.name} "
            "do not have: measure the run with action=test, or write its features with action=embed"
        )
    several = bool(getattr(source.data, "multilabel", False))
    task = source.task.to(device_of(cfg))
    if cfg.action.form == "deploy":
        task.network.reparameterize()
    found: dict[str, Labelled] = {}
    failures: list[dict[str, Any]] = []
    for split in SPLITS:
        total = len(source.data.splits[split])
        batches = split_batches(source.data, [split], cfg.action.batch_size)
        x_ND: NDArray[np.float32] = np.zeros((0, 1), dtype=np.float32)
        y: NDArray[np.int64] = np.zeros((total, len(class_names)) if several else total, dtype=np.int64)
        count = 0
        with closing(embedded(task, batches, wanted, total)) as parts:
            for part in parts:
                failures += [
                    {"split": split, "path": part.places[position].path, "error": error}
                    for position, error in part.errors.items()
                ]
                if not part.kept:
                    continue
                rows = part.features.reshape(len(part.kept), -1)
                if not count:
                    x_ND = np.empty((total, rows.shape[1]), dtype=np.float32)
                x_ND[count : count + len(rows)] = rows
                y[count : count + len(rows)] = [part.places[position].target for position in part.kept]
                count += len(rows)
        found[split] = Labelled(x_ND[:count], y[:count])
    return Splits(found["train"], found["val"], found["test"], class_names), failures


def _report(
    cfg: DictConfig,
    source: Source,
    wanted: Features,
    splits: Splits,
    found: dict[str, Found],
    failures: list[dict[str, Any]],
    wall_s: float,
) -> float | None:
    """Write the results and figures and print a table."""
    own, first = source.cfg, next(iter(found.values()))
    metrics = {name: value for one in found.values() for name, value in one.metrics.items()}
    own.logger = {}
    with open_dict(own):
        own.task.monitor = first.monitor
        own.task.mode = "max"
        own.trainer.precision = "32-true"  # regardless of the training precision
    write_config(own)
    folder = Path(cfg.paths.run)
    device = device_of(cfg)
    best = metrics[first.monitor]
    result = write_result(
        own,
        source=source.data.source,
        data_dir=source.data.place,
        params=source.params(),
        epochs=0,
        metrics=metrics,
        best=best,
        best_epoch=None,
        wall_s=wall_s,
        device=device,
        checkpoint=source.checkpoint,
    )
    floor = protocols.chance(splits)
    findings = {
        "network": source.name,
        "checkpoint": str(source.checkpoint) if source.checkpoint else None,
        "features": wanted.said(),
        "width": splits.train.x_ND.shape[1],
        "samples": {split: len(getattr(splits, split).x_ND) for split in SPLITS},
        "classes": len(splits.class_names),
        "most_frequent_class": floor,
        "protocols": {name: {**one.metrics, **one.details} for name, one in found.items()},
        "failures": failures,
    }
    write_findings(folder / "evaluate.json", findings)
    pictures = _draw(folder / "figures", source, splits, found, floor)
    rows = [(name, f"{value:.4f}") for name, value in result["metrics"].items()]
    if floor is not None:
        rows.append(("(most frequent class, test)", f"{floor:.4f}"))
    print_table(f"{own.task.name}: {wanted.said()} of {source.name}", rows, ("metric", "value"))
    for file in (folder / "result.json", folder / "evaluate.json", *pictures):
        console.print(f"  {file}", highlight=False, markup=False, soft_wrap=True)
    return best


def _draw(
    folder: Path, source: Source, splits: Splits, found: dict[str, Found], floor: float | None
) -> list[Path]:
    title = f"{source.cfg.task.name}: {source.name}"
    count = len(splits.test.x_ND)
    shown = np.unique(np.linspace(0, count - 1, min(count, drawing.MOST_POINTS)).astype(int))
    targets = np.full(len(shown), -1) if splits.test.multilabel else splits.test.y[shown]
    pictures = {
        "embedding": drawing.scatter(
            splits.train.x_ND, splits.test.x_ND[shown], targets, splits.class_names, f"{title}, test split"
        )
    }
    for name, one in found.items():
        if name in ("knn", "linear"):
            metric = one.monitor.removeprefix("val/")
            chosen = float(one.details["k" if name == "knn" else "c"])
            pictures[name] = drawing.chosen_by_validation(
                one.details, chosen, one.metrics[f"test/{metric}"], floor, metric, title
            )
        elif name == "few_shot":
            pictures[name] = drawing.over_shots(one.details, floor, title)
    files = []
    for name, figure in pictures.items():
        files.append(folder / f"{name}.png")
        figures.save(figure, files[-1])
    return files
