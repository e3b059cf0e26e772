"""action=export: writes one file that takes raw input and holds the embedder and the merged backbone."""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._pytree import tree_map

from tasks.network import Network
from workbench.console import print_table
from workbench.errors import TrainingError, UsageError
from workbench.extras import need
from workbench.files import write_atomically, write_findings
from workbench.provenance import FIELD, note
from workbench.restore import restore

log = logging.getLogger("widefield")

Free = Mapping[int, int]  # dynamic axis of a raw batch -> what its length is a multiple of
BATCH_ALONE: Free = {0: 1}
AXES = {0: "batch", 2: "height", 3: "width"}  # names of dynamic axes


def export(cfg: DictConfig) -> None:
    """Write `export/model.pt2` and/or `export/model.onnx`, each checked against the model it came from."""
    unknown = set(cfg.action.formats) - set(WRITERS)
    if unknown:
        raise UsageError(f"action.formats: {', '.join(sorted(unknown))} is not one of {', '.join(WRITERS)}")
    if "onnx" in cfg.action.formats:
        need("onnx", "formats=[onnx]")
    restored = restore(cfg)
    network = restored.task.network
    merged = copy.deepcopy(network).reparameterize().eval()
    torch.manual_seed(0)
    free = restored.task.free_axes
    raw = _fitted(network.embedder.example_raw(3), free)
    checked = [raw, *([_longer(raw, free)] if len(free) > 1 else [])]
    with torch.inference_mode():
        wanted = [network(each) for each in checked]
    folder = Path(cfg.paths.run) / "export"
    rows = []
    for name in cfg.action.formats:
        path = folder / FILES[name]
        read_back = WRITERS[name](merged, raw, path, free)
        difference = max(
            restored.task.difference(read_back(each), right)
            for each, right in zip(checked, wanted, strict=True)
        )
        if not difference <= cfg.action.tolerance:
            path.unlink()
            raise TrainingError(
                f"the {name} export differs from the model by {difference:.1e} (relative); not kept"
            )
        rows.append((str(path), f"{path.stat().st_size / 2**20:.1f} MiB", f"{difference:.1e}"))
    about = {
        "task": restored.cfg.task.name,
        "checkpoint": str(restored.checkpoint),
        "input": tree_map(lambda value: _said_shape(value, free), raw),
        "output": tree_map(lambda value: _said_shape(value, free), wanted[0]),
        "facts": restored.task.data_info,
    }
    write_findings(folder / "model.json", about)
    print_table("Exported (raw input, merged form)", rows, ("file", "size", "largest relative difference"))


def _fitted(raw: Any, free: Free) -> Any:
    """Repeat and crop a raw batch so that each dynamic axis is at least two multiples long: exporters treat a length
    of one as a constant."""

    def cut(value: Tensor) -> Tensor:
        for axis, multiple in free.items():
            if multiple > 1:
                times = -(-2 * multiple // value.shape[axis])
                value = value.repeat([times if place == axis else 1 for place in range(value.ndim)])
                value = value.narrow(axis, 0, value.shape[axis] // multiple * multiple)
        return value

    return tree_map(cut, raw)


def _longer(raw: Any, free: Free) -> Any:
    """Repeat a raw batch so that each dynamic axis is twice as long."""

    def repeated(value: Tensor) -> Tensor:
        return value.repeat([2 if axis in free else 1 for axis in range(value.ndim)])

    return tree_map(repeated, raw)


def _said_shape(value: Tensor, free: Free) -> list[int | str]:
    return [
        AXES.get(axis, f"axis {axis}") if axis in free else length for axis, length in enumerate(value.shape)
    ]


def _dynamic_shapes(raw: Any, free: Free) -> Any:
    """The `dynamic_shapes` argument of the exporters."""
    dims = {
        axis: torch.export.Dim(AXES.get(axis, f"axis{axis}"), min=1 if multiple == 1 else 2, max=4096)
        for axis, multiple in free.items()
    }
    lengths = {axis: multiple * dims[axis] if multiple > 1 else dims[axis] for axis, multiple in free.items()}
    return tree_map(
        lambda value: {axis: length for axis, length in lengths.items() if axis < value.ndim}, raw
    )


def write_torch_export(
    network: Network, raw: Any, path: Path, free: Free = BATCH_ALONE
) -> Callable[[Any], Any]:
    """Write a `torch.export` program with dynamic axes; returns the model as read back from the file."""
    with torch.no_grad(), warnings.catch_warnings():
        # torchvision declares the output length of non-maximum suppression in a deprecated way.
        warnings.filterwarnings("ignore", message=".*create_unbacked_symint", category=FutureWarning)
        program = torch.export.export(network, (raw,), dynamic_shapes=(_dynamic_shapes(raw, free),))

    def write(draft: Path) -> None:
        # Into memory first: on a full disk PyTorch's archive writer ends the whole process.
        archive = io.BytesIO()
        torch.export.save(program, archive, extra_files=provenance_entries())
        draft.write_bytes(archive.getbuffer())

    write_atomically(path, write)
    read_back: Callable[[Any], Any] = torch.export.load(path).module()
    return read_back


def provenance_entries() -> dict[str, str]:
    """The provenance note of a model trained on synthetic data, as metadata of an exported file."""
    said = note()
    return {FIELD: said} if said else {}


def write_onnx(network: Network, raw: Any, path: Path, free: Free = BATCH_ALONE) -> Callable[[Any], Any]:
    """Write an ONNX model with dynamic axes; returns a function that runs it in onnxruntime."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecation warnings
        # By name: the exporter treats a dict as last positional argument as keyword arguments.
        program = torch.onnx.export(
            network,
            kwargs={"raw": raw},
            dynamo=True,
            dynamic_shapes={"raw": _dynamic_shapes(raw, free)},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(provenance_entries())
    write_atomically(path, lambda draft: program.save(str(draft), external_data=False))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]

    def read_back(raw: Any) -> Any:
        leaves = torch.utils._pytree.tree_leaves(raw)
        given = {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}
        answers = tuple(torch.as_tensor(answer) for answer in session.run(None, given))
        return answers[0] if len(answers) == 1 else answers

    return read_back


FILES = {"torch_export": "model.pt2", "onnx": "model.onnx"}
WRITERS = {"torch_export": write_torch_export, "onnx": write_onnx}
