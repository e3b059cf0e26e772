"""`trainer=fsdp`: what is cast, what a failed step says. Whole runs need GPUs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

from modalities.audio import LogMel
from workbench.sharding import SyncBatchNorms, fsdp


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A distributed run of this one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_buffers_keep_their_precision() -> None:
    class Sounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedder = LogMel(sample_rate=8000, num_mel_bins=16, num_frames=20)
            self.norm = nn.BatchNorm2d(1)

        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            return self.norm(self.embedder(raw)[:, 0])

    def maps(precision: MixedPrecision | None) -> torch.Tensor:
        torch.manual_seed(0)
        network = FullyShardedDataParallel(
            Sounds(), mixed_precision=precision, use_orig_params=True, device_id=torch.device("cpu")
        )
        return network(0.1 * torch.randn(2, 2400, generator=torch.Generator().manual_seed(1)))

    ours = fsdp().mixed_precision_config
    torch.testing.assert_close(maps(ours), maps(None))
    half = torch.bfloat16  # what the trainer takes of itself
    with pytest.raises(RuntimeError, match="same dtype"):
        maps(MixedPrecision(param_dtype=half, reduce_dtype=half, buffer_dtype=half))


def test_a_step_that_broke_off_stays_the_error() -> None:
    network = nn.Sequential(nn.SyncBatchNorm(2))
    weight = network[0].weight
    del network[0].weight
    network[0].weight = weight.detach()  # as between the gathering and the freeing of sharded weights
    assert SyncBatchNorms().revert(network) is network


def test_batch_norms_are_put_back() -> None:
    synced = SyncBatchNorms().apply(nn.Sequential(nn.BatchNorm2d(2)))
    assert isinstance(synced[0], nn.SyncBatchNorm)  # type: ignore[index]
    assert not isinstance(SyncBatchNorms().revert(synced)[0], nn.SyncBatchNorm)  # type: ignore[index]
