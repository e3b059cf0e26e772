"""task.data.transforms.batched and in_memory in whole runs: their effect, exact resumption, refused combinations."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests_support import TINY, weights

Act = Callable[..., Path]
CLASSES = (
    *TINY,
    "modality=image",
    "task=cifar10",
    "backbone.model.stem_stride=1",
    "task.data.limit=32",
    "task.data.batch_size=8",
    "trainer.max_epochs=2",
    "logger=csv",
)
MASKS = (
    *TINY,
    "modality=image",
    "task=mask_folder",
    "task.data.limit=8",
    "task.data.batch_size=4",
    "task.data.transforms.size=64",
    "task.head.channels=8",
    "trainer.max_epochs=2",
    "logger=csv",
)
ON_DEVICE = ("task.data.transforms.batched=true", "task.data.in_memory=true")
READ = ("task.data.transforms.batched=true", "task.data.in_memory=false")
PLAIN = ("task.data.transforms.batched=false", "task.data.in_memory=false")


def differ(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("words", [CLASSES, MASKS], ids=["classes", "masks"])
def test_effect_and_exact_resumption(words: tuple[str, ...], act: Act, tmp_path: Path) -> None:
    whole = act(*words, *ON_DEVICE, folder="whole")
    assert json.loads((whole / "result.json").read_text())["metrics"]
    assert (whole / "figures" / "inputs.png").is_file()
    assert not differ(whole, act(*words, *READ, folder="read")), "kept in memory: the same samples"
    assert differ(whole, act(*words, *PLAIN, folder="plain")), "transformed elsewhere: other draws"
    stop = (
        "+callbacks.stop={_target_: callbacks_support.StopAt, epoch: 1, batch: 0, hook: on_train_batch_end}"
    )
    with pytest.raises(SystemExit):
        act(*words, *ON_DEVICE, stop, folder="stopped")
    act(*words, *ON_DEVICE, f"resume={tmp_path / 'stopped'}", folder="stopped")
    assert not differ(whole, tmp_path / "stopped")


def test_draws_change_from_epoch_to_epoch(act: Act) -> None:
    """With one batch an epoch the transforms are all that changes between them."""
    words = (*CLASSES, *ON_DEVICE, "optimizer.lr=0", "trainer.max_epochs=3", "task.data.batch_size=32")
    still = (*words, "task.data.transforms.crop=whole", "task.data.transforms.hflip=0")

    def losses(run: Path) -> set[str]:
        lines = (run / "metrics.csv").read_text().splitlines()
        place = lines[0].split(",").index("train/loss")
        return {line.split(",")[place][:7] for line in lines[1:]} - {""}

    assert len(losses(act(*words, folder="moved"))) == 3
    assert len(losses(act(*still, folder="still"))) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*CLASSES, "task.data.in_memory=true"), "task.data.transforms.batched=true"),
        (
            (*MASKS, "task.data.in_memory=true", "task.data.transforms.batched=false"),
            "task.data.transforms.batched=true",
        ),
        (
            (*CLASSES, *ON_DEVICE, "task.data.transforms.auto_augment=original-mstd0.5"),
            "begin with rand- have a batched form",
        ),
        ((*CLASSES, *ON_DEVICE, "task.data.format=webdataset"), "task.data.format=files"),
    ],
)
def test_refused(words: tuple[str, ...], said: str, act: Act, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        act(*words)
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said in error
    assert "\n" not in error
