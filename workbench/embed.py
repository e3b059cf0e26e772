"""action=embed: writes features of files or of a dataset's splits, with labels and paths, as .npz and Parquet."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from tasks.datasets.items import SPLITS
from workbench import figures
from workbench.console import console, print_table, printable
from workbench.errors import UsageError
from workbench.files import write_findings
from workbench.lists import names_of
from workbench.predict import input_files
from workbench.probes.common import device_of
from workbench.representations import drawing
from workbench.representations.extract import Embedded, embedded
from workbench.representations.features import Features
from workbench.representations.files import Written, write_npz, write_parquet
from workbench.representations.samples import FILES, file_batches, split_batches
from workbench.representations.source import (
    Source,
    check_reading,
    say_drawn,
    source_of_files,
    source_of_splits,
)
from workbench.results import write_config

log = logging.getLogger("widefield")

SHOWN = 10  # maximum number of failed files listed in the terminal


def embed(cfg: DictConfig) -> None:
    """Write `embeddings.parquet`, `embeddings.npz`, `embed.json` and, for pooled features, `figures/embedding.png`."""
    action = cfg.action
    wanted = Features.asked(action)
    check_reading(action)
    splits = _asked_splits(names_of(cfg, "splits"))
    if cfg.input is not None:
        source = source_of_files(cfg)
        files = input_files(str(cfg.input), source.data)
        say_drawn(source.data, files)
        total, place = len(files), str(cfg.input)
        batches = file_batches(source.data, files, action.batch_size or source.data.eval_batch_size)
        class_names: list[str] = []
    else:
        source = source_of_splits(cfg)
        total, place = sum(len(source.data.splits[split]) for split in splits), source.data.place
        batches = split_batches(source.data, splits, action.batch_size)
        class_names = list(getattr(source.data, "class_names", []))
    task = source.task.to(device_of(cfg))
    if action.form == "deploy":
        task.network.reparameterize()
    write_config(source.cfg)
    folder = Path(cfg.paths.run)
    table, arrays = folder / "embeddings.parquet", folder / "embeddings.npz"
    about = {
        "network": source.name,
        "checkpoint": str(source.checkpoint) if source.checkpoint else None,
        "features": wanted.said(),
        "task": source.cfg.task.name,
        "data": place,
    }
    some = _Some(total)
    with closing(embedded(task, batches, wanted, total)) as parts:
        written = write_parquet(table, some.watched(parts), class_names, about)
    write_npz(arrays, table, written, class_names)
    findings = {
        **about,
        "shape": list(written.shape),
        "rows": written.rows,
        "class_names": class_names,
        "failures": written.errors,
    }
    write_findings(folder / "embed.json", findings)
    shown = [table, arrays, folder / "embed.json"]
    if wanted.pool and (picture := some.draw(class_names, f"{source.name}\n{wanted.said()}", folder)):
        shown.append(picture)
    _show(source, wanted, written, shown)


def _asked_splits(asked: list[str]) -> list[str]:
    if strange := [split for split in asked if split not in SPLITS]:
        raise UsageError(f"action.splits: {strange[0]} is none of {', '.join(SPLITS)}")
    if not asked:
        raise UsageError(f"action.splits is empty: take some of {', '.join(SPLITS)}")
    return list(dict.fromkeys(asked))


class _Some:
    """Keeps an evenly spaced subset of rows for the figure.

    Args:
        total: number of samples.
    """

    def __init__(self, total: int) -> None:
        self.step = max(1, -(-total // drawing.MOST_POINTS))
        self.seen = 0
        self.features: list[NDArray[np.float32]] = []
        self.targets: list[int] = []
        self.splits: list[str] = []

    def watched(self, parts: Iterator[Embedded]) -> Iterator[Embedded]:
        for part in parts:
            for position, feature in zip(part.kept, part.features, strict=True):
                if self.seen % self.step == 0:
                    place = part.places[position]
                    self.features.append(feature.reshape(-1))
                    one = place.target is not None and np.ndim(place.target) == 0
                    self.targets.append(int(place.target) if one else -1)
                    self.splits.append(place.split)
                self.seen += 1
            yield part

    def draw(self, class_names: list[str], title: str, folder: Path) -> Path | None:
        """Draw the rows over principal components, fitted on the training split if it is included."""
        if len(self.features) < 3:
            return None
        x_ND = np.stack(self.features)
        train = np.array([split == "train" for split in self.splits])
        basis_ND = x_ND[train] if train.sum() >= 3 else x_ND
        targets = np.array(self.targets) if class_names else None
        picture = folder / "figures" / "embedding.png"
        figures.save(drawing.scatter(basis_ND, x_ND, targets, class_names, title), picture)
        return picture


def _show(source: Source, wanted: Features, written: Written, files: list[Path]) -> None:
    failed = {split: sum(error["split"] == split for error in written.errors) for split in (*SPLITS, FILES)}
    rows = [
        (split, f"{written.rows.get(split, 0):,}", f"{failed[split]:,}")
        for split in (*SPLITS, FILES)
        if written.rows.get(split) or failed[split]
    ]
    shape = " × ".join(str(size) for size in written.shape)
    print_table(
        f"{wanted.said()} ({shape}) of {source.name}", rows, ("split", "with features", "without features")
    )
    for error in written.errors[:SHOWN]:
        console.print(
            printable(f"  {error['path']}: {error['error']}"), highlight=False, markup=False, soft_wrap=True
        )
    if len(written.errors) > SHOWN:
        console.print(f"  … and {len(written.errors) - SHOWN} more, see embed.json", highlight=False)
    for file in files:
        console.print(f"  {file}", highlight=False, markup=False, soft_wrap=True)
