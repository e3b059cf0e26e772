"""What every source of data promises, checked on the embedded sample of every task below conf/task."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from tests_support import ROOT
from torch.utils._pytree import tree_leaves

from tasks.datasets.base import SPLITS, DataModule, Item
from tasks.datasets.batch import Sample, collate, usable
from tasks.datasets.targets import ClassTargets
from workbench.checking import tasks_of

MODALITIES = sorted(file.stem for file in (ROOT / "conf" / "modality").glob("*.yaml") if file.stem[0] != "_")
TASKS = [(modality, task) for modality in MODALITIES for task in tasks_of(modality)]


def built(cfg: DictConfig) -> DataModule:
    data: DataModule = instantiate(cfg.task.data)
    data.prepare_data()
    data.setup()
    return data


def identity(item: Item) -> str:
    """What tells an item from any other: its file and the place in it."""
    return json.dumps([str(item.path), item.where], sort_keys=True, default=str)


@pytest.fixture(scope="module", params=TASKS, ids=[task for _, task in TASKS])
def cfg(request: pytest.FixtureRequest, composed: Callable[..., DictConfig], samples: Path) -> DictConfig:
    modality, task = request.param
    return composed(f"modality={modality}", f"task={task}", f"paths.samples={samples}", "paths.run=nowhere")


@pytest.fixture(scope="module")
def data(cfg: DictConfig) -> DataModule:
    return built(cfg)


def test_every_task_is_here() -> None:
    files = {file.stem for file in (ROOT / "conf" / "task").glob("[!_]*.yaml")} - set(MODALITIES)
    assert {task for _, task in TASKS} == files


def test_splits_are_there_and_apart(data: DataModule) -> None:
    assert set(data.splits) == set(SPLITS)
    seen: dict[str, str] = {}
    for split in SPLITS:
        names = [identity(item) for item in data.splits[split]]
        assert names, f"{split} is empty"
        assert len(set(names)) == len(names), f"an item is twice in {split}"
        for name in names:
            assert name not in seen, f"{name} is in {split} and in {seen[name]}"
        seen.update(dict.fromkeys(names, split))
    assert "embedded sample of" in data.describe()
    assert data.source == "sample"


def test_classes_are_numbered_without_gaps(data: DataModule) -> None:
    if not isinstance(data.targets, ClassTargets):
        pytest.skip("no classes")
    names = data.class_names
    assert len(set(names)) == len(names) >= 2
    trained = {
        int(k) for item in data.splits["train"] for k in np.flatnonzero(multi_hot(item.target, len(names)))
    }
    assert trained == set(range(len(names))), "every class can be learnt"
    for split in SPLITS:
        assert all(multi_hot(item.target, len(names)).any() for item in data.splits[split])


def multi_hot(target: Any, classes: int) -> np.ndarray:
    return np.asarray(target) > 0 if np.ndim(target) else np.arange(classes) == target


class Backwards:
    """`os.scandir`'s answer in reverse."""

    def __init__(self, entries: Any) -> None:
        with entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __enter__(self) -> Iterator[Any]:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.entries)

    def close(self) -> None:
        pass


def test_nothing_depends_on_the_order_a_disk_lists_files_in(
    cfg: DictConfig, data: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir, scandir = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda *folder: sorted(listdir(*folder), reverse=True))
    monkeypatch.setattr(os, "scandir", lambda *folder: Backwards(scandir(*folder)))
    again = built(cfg)
    monkeypatch.undo()
    assert again.info() == data.info()
    for split in SPLITS:
        ours, theirs = data.splits[split], again.splits[split]
        assert [identity(item) for item in ours] == [identity(item) for item in theirs]
        pairs = [(a.target, b.target) for a, b in zip(ours, theirs, strict=True)]
        assert all(np.array_equal(*pair) or np.array_equal(*pair, equal_nan=True) for pair in pairs)


def test_facts_are_plain_values(data: DataModule) -> None:
    data_info = data.info()
    assert data_info
    assert json.loads(json.dumps(data_info, allow_nan=False)) == data_info


def test_items_read_alike_twice_and_fit_the_embedder(cfg: DictConfig, data: DataModule) -> None:
    embedder_class: Any = get_class(cfg.modality.embedder._target_)
    embedder: Any = instantiate(cfg.modality.embedder, _partial_=True)(
        **embedder_class.data_arguments(data.info())
    )
    for split in SPLITS:
        items, samples = data.splits[split], []
        for index in (0, len(items) - 1):
            state = torch.random.get_rng_state()
            read = [
                data.read_item(items[index], split == "train", np.random.default_rng((0, index)))
                for _ in range(2)
            ]
            assert torch.equal(state, torch.random.get_rng_state()), (
                "a reader leaves the trainer's generator alone"
            )
            for one, other in zip(tree_leaves(read[0]), tree_leaves(read[1]), strict=True):
                assert np.array_equal(one, other, equal_nan=True), "the generator given decides"
            samples.append(Sample(read[0], None, index))
        raw = usable(collate(samples, join_raws=data.join_raws)).raw
        if split == "train":
            with torch.no_grad():
                maps = embedder.eval()(raw)
            assert maps.ndim == 5
            assert maps.shape[0] == 2
            assert maps.shape[2] == embedder.out_chans
            assert maps.isfinite().all()


def test_a_file_reads_for_prediction(data: DataModule) -> None:
    file = data.example_file()
    if file is None:
        pytest.skip("its files hold many samples")
    assert file.exists()
    data.recall(data.info())
    assert tree_leaves(data.read_file(file))


def contents(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_sample_is_drawn_the_same_again(data: DataModule, tmp_path: Path) -> None:
    data.write_sample(tmp_path)
    drawn = contents(data.root)
    drawn.pop("SAMPLE.json")
    assert contents(tmp_path) == {name: drawn.get(name, "absent") for name in contents(tmp_path)}
