"""Training as timm's own script does it: its steps one by one, and the script itself where there is one."""

import argparse
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.models import load_checkpoint, model_parameters, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, accuracy, dispatch_clip_grad
from torch import nn

from backbone.timm_models import TimmUniRepLKNet

MODEL = "unireplknet_a"
SCRIPT = os.environ.get("WIDEFIELD_TIMM_TRAIN")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of 32 x 32 noise, warm and cold: 8 pictures to train on, 4 to validate."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2)):
        for name, channel in (("cold", 2), ("warm", 0)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 127
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


def build(**overrides: object) -> TimmUniRepLKNet:
    """The model, from every argument that the script hands over."""
    arguments: dict[str, object] = {
        "pretrained": False,
        "in_chans": 3,
        "num_classes": 2,
        "drop_rate": 0.1,
        "drop_path_rate": 0.1,
        "drop_block_rate": None,
        "global_pool": "avg",
        "bn_momentum": None,
        "bn_eps": None,
        "scriptable": False,
        "checkpoint_path": "",
        "img_size": 32,
        "head_init_scale": 0.5,
    }
    model = timm.create_model(MODEL, **(arguments | overrides))
    assert isinstance(model, TimmUniRepLKNet)
    return model


@torch.no_grad()
def validate(model: nn.Module, loader: torch.utils.data.DataLoader) -> tuple[float, float]:
    """Loss and accuracy in percent."""
    model.eval()
    outputs, targets = zip(*((model(x), target) for x, target in loader), strict=True)
    output, target = torch.cat(outputs), torch.cat(targets)
    (top1,) = accuracy(output, target, topk=(1,))
    return nn.functional.cross_entropy(output, target).item(), top1.item()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm's reader leaves pictures open
def test_two_steps_as_timm_takes_them(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  timm's mixup draws from the global generator
    model = build()
    model.set_grad_checkpointing(enable=True)
    model.to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    config = resolve_data_config({"img_size": 32}, model=model)
    assert (config["input_size"], config["crop_mode"]) == ((3, 32, 32), "center")
    data = {"input_size": config["input_size"], "batch_size": 4, "use_prefetcher": False, "num_workers": 0}
    data |= {"mean": config["mean"], "std": config["std"], "pin_memory": False, "device": torch.device("cpu")}
    train, held_out = (
        create_loader(
            create_dataset("", root=str(pictures), split=split, is_training=training, batch_size=4),
            is_training=training,
            interpolation="random" if training else config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            **data,
        )
        for split, training in (("train", True), ("validation", False))
    )
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=model.num_classes)

    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    average = ModelEmaV3(model, decay=0.5)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=1,
        warmup_epochs=0,
        min_lr=1e-6,
        step_on_epochs=False,
        updates_per_epoch=len(train),
    )
    assert (epochs, len(train), len(held_out)) == (1, 2, 1)
    args = argparse.Namespace(model=MODEL)
    saver = CheckpointSaver(
        model, optimizer, args, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )

    losses, rates = [], []
    model.train()
    for update, batch in enumerate(train, start=1):
        x, target = mix(*batch)
        rates.append({id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]})
        loss = SoftTargetCrossEntropy()(model(x.contiguous(memory_format=torch.channels_last)), target)
        loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        clipped = list(model_parameters(model, exclude_head=True))
        assert {id(p) for p in model.parameters()} - {id(p) for p in clipped} == {
            id(p) for p in model.get_classifier().parameters()
        }
        dispatch_clip_grad(clipped, value=0.02, mode="agc")
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step=update)
        scheduler.step_update(num_updates=update, metric=loss.item())
        losses.append(loss.item())

    assert all(math.isfinite(loss) for loss in losses)
    unchanged = [n for n, v in model.state_dict().items() if torch.equal(v, before[n])]
    assert unchanged == []
    # From the input to the classifier each layer learns faster, by the same factor, whatever the schedule says.
    first, last = id(model.downsample_layers[0][0].weight), id(model.head.weight)
    blocks = [id(block.pwconv1[1].weight) for block in model.blocks()]
    for rate in rates:
        layers = [rate[name] for name in (first, *blocks, last)]
        ratios = [slow / fast for slow, fast in itertools.pairwise(layers)]
        assert ratios == pytest.approx([0.7] * len(ratios), rel=1e-3)
    assert rates[1][last] < rates[0][last] == pytest.approx(1e-3)

    for evaluated in (model, average.module):
        loss_value, top1 = validate(evaluated, held_out)
        assert math.isfinite(loss_value)
        assert 0 <= top1 <= 100
    saver.save_checkpoint(0, metric=top1)

    (path,) = tmp_path.glob("checkpoint-*.pth.tar")
    x = torch.randn(2, 3, 32, 32)
    for use_ema, trained in ((True, average.module), (False, model)):
        again = build(drop_rate=0.0)
        load_checkpoint(again, str(path), use_ema=use_ema)
        torch.testing.assert_close(again.eval()(x), trained.eval()(x))
    differing = [
        n for n, v in average.module.state_dict().items() if not torch.equal(v, model.state_dict()[n])
    ]
    assert "head.weight" in differing
    assert torch.equal(
        build(checkpoint_path=str(path)).head.weight, average.module.head.weight
    )  # --initial-checkpoint
    resumed = build()
    new = create_optimizer_v2(resumed, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    assert resume_checkpoint(resumed, str(path), new, log_info=False) == 1
    assert torch.equal(resumed.head.weight, model.head.weight)
    assert new.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


@pytest.mark.slow
@pytest.mark.skipif(
    not SCRIPT, reason="WIDEFIELD_TIMM_TRAIN does not name timm's train.py, which is not part of its package"
)
def test_the_script_of_timm(pictures: Path, tmp_path: Path) -> None:
    assert SCRIPT
    options = f"""--data-dir {pictures} --model {MODEL} --num-classes 2 --img-size 32 --batch-size 4 --epochs 1
        --opt adamw --lr 1e-3 --layer-decay 0.7 --warmup-epochs 0 --sched-on-updates --drop 0.1 --drop-path 0.1
        --gp avg --mixup 0.8 --cutmix 1.0 --model-ema --grad-checkpointing --clip-grad 1.0 --log-interval 1
        --device cpu --workers 0 --output {tmp_path} --experiment two_steps"""
    start = "import runpy, sys, backbone; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import sys; sys.argv = sys.argv[1:]; {start}"
    done = subprocess.run(
        [sys.executable, "-c", code, SCRIPT, *options.split()], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "two_steps"
    header, line = (folder / "summary.csv").read_text().strip().splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert math.isfinite(float(row["train_loss"]))
    assert math.isfinite(float(row["eval_loss"]))
    model = timm.create_model(MODEL, num_classes=2, checkpoint_path=folder / "last.pth.tar")
    assert isinstance(model, TimmUniRepLKNet)
