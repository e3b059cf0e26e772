"""The recipes for little data train what they say, on the embedded samples at toy size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

Act = Callable[..., Path]

TOY = ("backbone.model.depths=[1,1,1,1]", "backbone.model.dims=[8,8,8,8]", "task.data.limit=24")
SHORT = ("trainer.max_epochs=1", "task.data.num_workers=0", "callbacks.pictures=null", "logger=[csv]")
RECIPES = {
    "audio": ("task.data.batch_size=8", "task.data.train_passes=2", "modality.embedder.frame_shift_ms=32"),
    "image": ("task.data.batch_size=8", "task.data.transforms.size=32", "scheduler.warmup_epochs=0.5"),
    "point_cloud": ("task.data.batch_size=8", "modality.embedder.out_size=32"),
    "time_series": ("task.data.batch_size=8",),
    "video": (
        "task.data.batch_size=8",
        "modality.embedder.size=24",
        "task.data.test_segments=1",
        "scheduler.warmup_epochs=0.5",
    ),
}


@pytest.mark.parametrize("modality", RECIPES)
def test_a_recipe_for_little_data_trains_what_it_says(act: Act, modality: str) -> None:
    words = (f"experiment={modality}/small_data", *TOY, *SHORT, *RECIPES[modality])
    run = act(*words)
    result = json.loads((run / "result.json").read_text())
    assert result["epochs"] == 1
    assert all(torch.tensor(value).isfinite() for value in result["metrics"].values())
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    between = "network.backbone.downsample_layers.1.1.running_mean"
    assert (between in state) == (modality != "time_series")
    if modality == "time_series":
        config = OmegaConf.load(run / "config.yaml")
        assert config.modality.embedder.centre == "season"
        return
    again = act(*words, "action=test", f"ckpt={run}/checkpoints/best.ckpt", folder="tested")
    assert json.loads((again / "result.json").read_text())["metrics"]["test/loss"] == pytest.approx(
        result["metrics"]["test/loss"], rel=1e-4
    )
