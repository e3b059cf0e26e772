"""What the settings of the audio recipes do, against the official script's way of doing it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig
from tests_support import TINY
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from modalities.audio import LogMel
from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.batch import Batch
from tasks.datasets.mixing import Mixup
from tasks.network import Network
from workbench.build import build_network, build_task
from workbench.trainer import build_trainer

Compose = Callable[..., DictConfig]
FACTS = {"class_names": ["a", "b", "c"], "multilabel": False}
SMALL = (*TINY[:4], "backbone.pretrained=null", "paths.run=nowhere")
RECIPES = ("speech_commands_s", "audioset_s")


def recipe(composed: Compose, name: str, *overrides: str) -> DictConfig:
    return composed(f"experiment=audio/{name}", *SMALL, *overrides)


def stepped(network: Network, optimizer: torch.optim.Optimizer, gradient: float) -> list[Tensor]:
    """The parameters after three steps on the same made-up gradients."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = gradient * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize(("name", "lr"), [("speech_commands_s", 2.5e-4), ("audioset_s", 1e-5)])
@pytest.mark.parametrize("gradient", [0.0, 1e-6, 1.0])
def test_steps_are_those_of_the_official_adam(
    composed: Compose, name: str, lr: float, gradient: float
) -> None:
    """Without a gradient every parameter, norms and biases too, moves by its decay alone: an L2 penalty in Adam."""
    cfg = recipe(composed, name)
    ours = build_network(cfg, FACTS)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs, decoupled = deepcopy(ours), deepcopy(ours)
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    after = stepped(ours, instantiate(cfg.optimizer)(ours), gradient)
    official = torch.optim.Adam(theirs.parameters(), lr, weight_decay=5e-7, betas=(0.95, 0.999))
    for one, other in zip(after, stepped(theirs, official, gradient), strict=True):
        torch.testing.assert_close(one, other, rtol=3e-7, atol=1e-7)  # a rounding or two
    usual = torch.optim.AdamW(decoupled.parameters(), lr, weight_decay=0.05, betas=(0.9, 0.999))
    others = stepped(decoupled, usual, gradient)
    assert not all(
        torch.allclose(one, other, rtol=0, atol=lr / 20) for one, other in zip(after, others, strict=True)
    )
    assert all((one != start).any() for one, start in zip(after, before, strict=True)), "all of them decay"


def test_learning_rate_is_the_official_one(composed: Compose) -> None:
    cfg = recipe(composed, "speech_commands_s")
    weight = nn.Parameter(torch.zeros(1))
    optimizer, reference = (torch.optim.SGD([weight], 2.5e-4) for _ in range(2))
    schedule = instantiate(cfg.scheduler)(optimizer, total_steps=400, steps_per_epoch=4)
    official = torch.optim.lr_scheduler.MultiStepLR(reference, list(range(5, 1000)), gamma=0.85)
    for epoch in range(100):
        for _ in range(4):
            assert schedule.get_last_lr() == pytest.approx(official.get_last_lr()), f"epoch {epoch}"
            optimizer.step()
            schedule.step()
        reference.step()
        official.step()


@pytest.mark.parametrize(
    ("overrides", "milestones"),
    [((), [2, 3, 4]), (("scheduler.start_epoch=10", "scheduler.every=5"), [10, 15, 20])],
)
def test_audioset_learning_rate_is_that_of_ast(
    composed: Compose, overrides: tuple[str, ...], milestones: list[int]
) -> None:
    cfg = recipe(composed, "audioset_s", *overrides)
    weight = nn.Parameter(torch.zeros(1))
    optimizer, reference = (torch.optim.SGD([weight], 1.0) for _ in range(2))
    schedule = instantiate(cfg.scheduler)(optimizer, total_steps=60_000, steps_per_epoch=1500)
    ast = torch.optim.lr_scheduler.MultiStepLR(reference, milestones, gamma=0.5)
    for epoch in range(milestones[-1] + 1):
        for step in range(1500):
            if (epoch == 0 and step == 1000) or step == 1499:
                assert schedule.get_last_lr() == pytest.approx(ast.get_last_lr()), f"epoch {epoch}"
            if epoch == 0 and step < 1000:
                assert schedule.get_last_lr()[0] == pytest.approx(step / 1000, abs=2e-3)
            optimizer.step()
            schedule.step()
        reference.step()
        ast.step()


class Steep(LightningModule):
    """One weight with a gradient of 1,000; plain descent at rate 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return 1000 * self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1.0)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.filterwarnings("ignore:The .train_dataloader. does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning of PyTorch
def test_gradients_are_not_clipped(composed: Compose, name: str, tmp_path: Path) -> None:
    cfg = recipe(composed, name, "trainer=cpu", f"paths.run={tmp_path}")
    cfg.callbacks, cfg.logger, cfg.trainer.max_epochs, cfg.trainer.log_every_n_steps = {}, {}, 1, 1
    module = Steep()
    build_trainer(cfg).fit(module, torch.utils.data.DataLoader([0]))
    assert module.weight.item() == -1000


@pytest.mark.parametrize("name", RECIPES)
def test_loss_is_binary_cross_entropy_of_mixed_targets(composed: Compose, name: str) -> None:
    cfg = recipe(composed, name, "modality.embedder.num_frames=64")
    torch.manual_seed(0)
    task = build_task(cfg, FACTS).train()
    batch = Batch(0.1 * torch.randn(4, 16000), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    mixed = torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    torch.manual_seed(5)
    out = task.step(replace(batch, mixed_target=mixed), "train")
    logits = out["output"].double()
    expected = -(mixed * logits.sigmoid().log() + (1 - mixed) * (-logits).sigmoid().log()).mean()
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    values = task.epoch_metrics("train")
    right = (logits.argmax(1) == batch.target).float().mean()
    assert values["train/acc"] == pytest.approx(right.item()), "accuracy counts a sample's own class"
    torch.manual_seed(5)
    hard = task.step(batch, "train")
    assert hard["loss"].item() != pytest.approx(out["loss"].item(), rel=1e-3)


def official_map(one: Tensor, other: Tensor, share: float, frames: int, mean: float, std: float) -> Tensor:
    """Two waveforms (1, T), mixed, as the official reader makes a map of them, before augmentation: (F, N)."""
    wave = share * (one - one.mean()) + (1 - share) * (other - other.mean())
    bank = kaldi.fbank(
        wave - wave.mean(),
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    bank = nn.functional.pad(bank, (0, 0, 0, frames - len(bank)))
    return ((bank - mean) / (2 * std)).T


def test_a_mixed_clip_becomes_the_official_map(composed: Compose, tmp_path: Path) -> None:
    """Clips with an offset each: the official reader takes means off before mixing, which maps do not see."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for split in ("train", "val", "test"):
            for number in range(4 if split == "train" else 1):
                path = tmp_path / split / label / f"{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                wave = rng.uniform(-0.3, 0.3) + 0.05 * rng.standard_normal(16000)
                soundfile.write(path, wave, 16000, subtype="FLOAT")
    cfg = recipe(composed, "speech_commands_s")
    mixup: Mixup = instantiate(cfg.task.data.mixup)
    assert (mixup.prob, mixup.alpha) == (0.6, 10.0)
    data = AudioFolder(
        name="audio_folder", data_dir=str(tmp_path), batch_size=8, num_workers=0, mixup=Mixup(prob=1.0)
    )
    data.setup()
    waves = [
        torch.from_numpy(soundfile.read(item.path, dtype="float32")[0])[None] for item in data.splits["train"]
    ]
    targets = [item.target for item in data.splits["train"]]
    embedder: LogMel = instantiate(cfg.modality.embedder)
    batch: dict[str, Any] = next(iter(data.train_dataloader()))
    checked = 0
    for index, raw, mixed in zip(batch.index.tolist(), batch.raw, batch.mixed_target, strict=True):
        share = mixed[targets[index]].item()
        if share == 1.0:
            continue  # of its own class: the share cannot be read off
        fitting = [
            official_map(waves[index], wave, share, 128, -6.845978, 5.5654526)
            for wave, target in zip(waves, targets, strict=True)
            if target != targets[index]
        ]
        ours = embedder(raw[None])[0, 0, 0]
        assert min((ours - official).abs().max().item() for official in fitting) < 2e-3
        checked += 1
    assert checked >= 2


def test_a_training_step_masks_then_adds_noise_then_rolls(composed: Compose) -> None:
    """Behind the roll, a masked area has 0.615 with noise on it; what filled a short map up has it, too."""
    cfg = recipe(composed, "speech_commands_s")
    task = build_task(cfg, FACTS)
    torch.manual_seed(0)
    raw = 0.1 * torch.randn(32, 16000)
    plain = task.embed(raw, train=False)
    filled = (0 + 6.845978) / (2 * 5.5654526)
    torch.testing.assert_close(plain[..., 98:], torch.full_like(plain[..., 98:], filled))
    maps = task.embed(raw, train=True)
    above = (maps >= filled - 1e-6) & (maps < filled + 0.1 + 1e-6)
    columns = above.all(dim=3).flatten(1).sum(1)
    assert (columns >= 30).all(), "the 30 frames behind the clip, and masked ones"
    assert columns.max() > 40
    first = above.all(dim=3)[:, 0, 0, 0]
    assert first.any(), "some maps are rolled to the right: the filled frames come round to the front"
    assert not first.all()


def test_audioset_draws_rare_labels_and_averages_epochs(composed: Compose) -> None:
    from workbench.callbacks.averaging import EpochAverage

    cfg = recipe(composed, "audioset_s")
    average = instantiate(cfg.callbacks.weight_average)
    assert isinstance(average, EpochAverage)

    class Run:
        is_last_batch = True
        current_epoch = 0

    mean, run = 0.0, Run()
    for run.current_epoch, weights in enumerate((3.0, 5.0, 10.0, 2.0, 1.0)):
        mean += average.share(run) * (weights - mean)
    assert mean == pytest.approx(21 / 5), "all five epochs count alike"
    assert instantiate(cfg.task.data).targets.balance == "labels"
