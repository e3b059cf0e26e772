"""action=export: writes one file that takes raw input and holds the embedder and the merged backbone."""

import copy
import io
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from tasks.network import Network
from tasks.task import Task
from workbench.console import print_table
from workbench.errors import TrainingError, UsageError
from workbench.export_shapes import (
    BATCH_ALONE,
    Free,
    described,
    dynamic_shapes,
    fitted,
    input_shapes,
    output_shapes,
    resized,
    said_limits,
    tensor_names,
)
from workbench.extras import need
from workbench.files import write_atomically, write_findings
from workbench.lists import names_of
from workbench.provenance import FIELD, note
from workbench.restore import Restored, restore

log = logging.getLogger("widefield")


def export(cfg: DictConfig) -> None:
    """Write `export/model.pt2` and/or `export/model.onnx`, each checked against the model it came from, and
    `export/model.json`, which says what goes in and what comes out (docs/EXPORT.md).

    A file is checked at the nominal size of the input, with a batch of one sample, and at twice the length of each
    further dynamic axis; one that fails is removed.
    """
    formats = _asked_formats(cfg)
    restored = restore(cfg)
    task = restored.task
    merged = copy.deepcopy(task.network).reparameterize().eval()
    torch.manual_seed(0)
    free = task.free_axes
    raw = fitted(task.network.embedder.example_raw(3), free)
    raws = [raw, *(resized(raw, axis) for axis in free)]
    with torch.inference_mode():
        checked = [(each, task.network(each)) for each in raws]
    about = _description(restored, free, checked)
    inputs, outputs = ([entry["name"] for entry in about[kind]] for kind in ("inputs", "outputs"))
    folder = Path(cfg.paths.run) / "export"
    rows = []
    for name in formats:
        path = folder / FILES[name]
        try:
            read_back = WRITERS[name](merged, raw, path, free, inputs, outputs)
            difference = _difference(name, task, read_back, checked, cfg.action.tolerance)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        about["files"].append(path.name)
        write_findings(folder / "model.json", about)
        rows.append((str(path), f"{path.stat().st_size / 2**20:.1f} MiB", f"{difference:.1e}"))
    print_table("Exported (raw input, merged form)", rows, ("file", "size", "largest relative difference"))


def _asked_formats(cfg: DictConfig) -> list[str]:
    formats = list(dict.fromkeys(names_of(cfg, "formats")))
    if unknown := sorted(set(formats) - set(WRITERS)):
        raise UsageError(f"action.formats: {', '.join(unknown)} is not one of {', '.join(WRITERS)}")
    if not formats:
        raise UsageError(f"action.formats is empty: take some of {', '.join(WRITERS)}")
    if "onnx" in formats:
        need("onnx", "formats=[onnx]")
    return formats


def _difference(
    name: str,
    task: Task,
    read_back: Callable[[Any], Any],
    checked: Sequence[tuple[Any, Any]],
    tolerance: float,
) -> float:
    """The largest relative difference between an exported file and the model.

    Args:
        name: of the format.
        read_back: the model in the file.
        checked: raw batches, and the model's outputs.
        tolerance: the largest difference allowed.

    Raises:
        TrainingError: the file cannot be run at one of the sizes, or answers otherwise than the model.
    """
    largest = 0.0
    for raw, wanted in checked:
        size = " and ".join(str(list(leaf.shape)) for leaf in tree_leaves(raw))
        try:
            with torch.no_grad():
                given = read_back(raw)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TrainingError(
                f"the {name} export cannot be run on inputs of shape {size}: {said}; not kept"
            ) from error
        ours, theirs = ([list(leaf.shape) for leaf in tree_leaves(each)] for each in (given, wanted))
        if ours != theirs:
            raise TrainingError(
                f"the {name} export answers inputs of shape {size} with outputs of shape {ours}, the model with "
                f"{theirs}; not kept"
            )
        difference = task.difference(given, wanted)
        if math.isnan(difference):
            raise TrainingError(
                f"the {name} export cannot be compared with the model on inputs of shape {size}: there are values "
                "that are not finite; not kept"
            )
        if not difference <= tolerance:
            raise TrainingError(
                f"the {name} export differs from the model by {difference:.1e} (relative) on inputs of shape "
                f"{size}; not kept"
            )
        largest = max(largest, difference)
    return largest


def _description(restored: Restored[Task], free: Free, checked: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """The content of `model.json`, as yet without files."""
    raw, wanted = checked[0]
    shapes_in = input_shapes(raw, free)
    shapes_out = output_shapes(raw, wanted, dict(zip(free, checked[1:], strict=True)))
    info_in, info_out = restored.task.input_info(), restored.task.output_info()
    return {
        "task": restored.cfg.task.name,
        "checkpoint": str(restored.checkpoint),
        "files": [],
        "input": tree_unflatten(shapes_in, tree_structure(raw)),
        "output": tree_unflatten(shapes_out, tree_structure(wanted)),
        "inputs": described(tensor_names(raw, info_in, "raw"), raw, shapes_in, info_in),
        "outputs": described(tensor_names(wanted, info_out, "output"), wanted, shapes_out, info_out),
        "dynamic": said_limits(free),
        "facts": restored.task.data_info,
    }


def write_torch_export(
    network: Network,
    raw: Any,
    path: Path,
    free: Free = BATCH_ALONE,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Callable[[Any], Any]:
    """Write a `torch.export` program with dynamic axes; returns the model as read back from the file.

    It takes the raw batch as the network does, so that names of tensors do not matter.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # torchvision declares the output length of non-maximum suppression in a deprecated way.
        warnings.filterwarnings("ignore", message=".*create_unbacked_symint", category=FutureWarning)
        program = torch.export.export(network, (raw,), dynamic_shapes=(dynamic_shapes(raw, free),))

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


def write_onnx(
    network: Network,
    raw: Any,
    path: Path,
    free: Free = BATCH_ALONE,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Callable[[Any], Any]:
    """Write an ONNX model with dynamic axes; returns a function that runs it in onnxruntime.

    Args:
        network, raw, path: the module, an input of it, and the file.
        free: dynamic axes.
        inputs, outputs: names of the tensors of the raw batch and of the output; the exporter's if empty.
    """
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecation warnings
        # By name: the exporter treats a dict as last positional argument as keyword arguments.
        program = torch.onnx.export(
            network,
            kwargs={"raw": raw},
            dynamo=True,
            dynamic_shapes={"raw": dynamic_shapes(raw, free)},
            input_names=list(inputs) or None,
            output_names=list(outputs) or None,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(provenance_entries())
    write_atomically(path, lambda draft: program.save(str(draft), external_data=False))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]

    def read_back(raw: Any) -> Any:
        leaves = tree_leaves(raw)
        given = {name: leaf.contiguous().numpy() for name, leaf in zip(names, leaves, strict=True)}
        answers = tuple(torch.as_tensor(answer) for answer in session.run(None, given))
        return answers[0] if len(answers) == 1 else answers

    return read_back


FILES = {"torch_export": "model.pt2", "onnx": "model.onnx"}
WRITERS = {"torch_export": write_torch_export, "onnx": write_onnx}
