"""Batch norm across processes computes what one process with all the samples does."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from backbone import unireplknet
from backbone.cross_process_norm import CrossProcessBatchNorm2d, across_processes, within_process

SHAPE = (6, 3, 4, 5)  # B, C, H, W; the first two or three for a norm of vectors and sequences


def inputs(dtype: torch.dtype, mean: float, dims: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = mean + 3 * torch.randn(SHAPE[:dims], generator=generator, dtype=torch.float64)
    weight = torch.randn(SHAPE[:dims], generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype)


def normed(norm: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics for the loss (output × weight).sum()."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * weight).sum().backward()
    found = {"y": y.detach(), "x_grad": x.grad}
    found |= {f"{name}_grad": parameter.grad for name, parameter in norm.named_parameters()}
    return {**found, **{name: buffer for name, buffer in norm.named_buffers()}}


def plain_norm(dtype: torch.dtype, dims: int) -> nn.Module:
    kind = nn.BatchNorm2d if dims == 4 else nn.BatchNorm1d
    return kind(3, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)  # as mixed precision has it


def one_process(rank: int, folder: str, dtype: torch.dtype, mean: float, dims: int) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    part = slice(0, 4) if rank == 0 else slice(4, 6)  # not the same number of samples
    x, weight = inputs(dtype, mean, dims)
    norm = across_processes(plain_norm(dtype, dims))
    torch.save(normed(norm, x[part], weight[part]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # spawned processes would import for long
@pytest.mark.parametrize(
    ("dtype", "mean", "dims"),
    [
        (torch.float64, 2.0, 4),
        (torch.float64, 2.0, 3),
        (torch.float64, 2.0, 2),
        (torch.float32, 3000.0, 4),  # where a variance from sums in fp32 would be noise
        (torch.bfloat16, 2.0, 4),
    ],
)
def test_two_processes_compute_what_one_does(
    tmp_path: Path, dtype: torch.dtype, mean: float, dims: int
) -> None:
    x, weight = inputs(dtype, mean, dims)
    expected = normed(plain_norm(torch.float64, dims), x.double(), weight.double())
    mp.start_processes(one_process, (str(tmp_path), dtype, mean, dims), nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    found = {name: torch.cat([one[name], two[name]]) for name in ("y", "x_grad")}
    assert {value.dtype for value in found.values()} == {dtype}
    found |= {
        name: one[name] + two[name] for name in ("weight_grad", "bias_grad")
    }  # what the trainer adds up
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].to(value.dtype))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(one[name], expected[name].to(one[name].dtype))
        torch.testing.assert_close(two[name], one[name])


def test_alone_it_is_the_plain_norm() -> None:
    plain, ours = nn.BatchNorm2d(3), across_processes(nn.BatchNorm2d(3))
    assert type(ours) is CrossProcessBatchNorm2d
    x_BCHW = torch.randn(SHAPE)
    assert torch.equal(plain(x_BCHW), ours(x_BCHW))
    assert torch.equal(plain.eval()(x_BCHW), ours.eval()(x_BCHW))


@pytest.mark.parametrize("there_and_back", [False, True])
def test_a_network_keeps_its_weights_and_merges(there_and_back: bool) -> None:
    model = unireplknet.UniRepLKNet(in_chans=1, num_classes=2, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    names = list(model.state_dict())
    x_BCHW = torch.randn(1, 1, 64, 64)
    expected = model.eval()(x_BCHW)
    across_processes(model)
    assert any(type(module) is CrossProcessBatchNorm2d for module in model.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    if there_and_back:
        within_process(model)
        assert not any(type(module) is CrossProcessBatchNorm2d for module in model.modules())
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model.reparameterize()(x_BCHW), expected, rtol=1e-3, atol=1e-4)


def compiled_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
    model = across_processes(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)))
    copied = copy.deepcopy(model)
    x, weight = inputs(torch.float32, 2.0, 4)
    # With a cut at any of the norms this would raise.
    whole = torch.compile(model, backend="eager", fullgraph=True)
    (whole(x) * weight).sum().backward()
    (copied(x) * weight).sum().backward()
    for ours, theirs in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_it_is_part_of_a_compiled_graph(tmp_path: Path) -> None:
    mp.start_processes(compiled_process, (str(tmp_path),), nprocs=1, start_method="fork")
