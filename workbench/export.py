"""action=export: one file that takes raw input, with the embedder inside and the backbone merged."""

import copy
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._pytree import tree_map

from tasks.network import Network
from workbench.build import restore
from workbench.console import print_table
from workbench.errors import TrainingError, UsageError
from workbench.extras import need
from workbench.files import write_atomically, write_findings
from workbench.provenance import FIELD, note

log = logging.getLogger("widefield")


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
    raw = network.embedder.example_raw(3)
    with torch.inference_mode():
        wanted = network(raw)
    folder = Path(cfg.paths.run) / "export"
    rows = []
    for name in cfg.action.formats:
        path = folder / FILES[name]
        got = WRITERS[name](merged, raw, path)
        scale = float(wanted.abs().max())
        difference = float((got.detach() - wanted).abs().max()) / max(scale, 1e-12)
        if not difference <= cfg.action.tolerance:
            path.unlink()
            raise TrainingError(
                f"the {name} export differs from the model by {difference:.1e} (relative); not kept"
            )
        rows.append((str(path), f"{path.stat().st_size / 2**20:.1f} MiB", f"{difference:.1e}"))
    about = {
        "task": restored.cfg.task.name,
        "checkpoint": str(restored.checkpoint),
        "input": tree_map(lambda value: ["batch", *value.shape[1:]], raw),
        "output": ["batch", *wanted.shape[1:]],
        "facts": restored.task.facts,
    }
    write_findings(folder / "model.json", about)
    print_table("Exported (raw input, merged form)", rows, ("file", "size", "largest relative difference"))


def write_torch_export(network: Network, raw: Any, path: Path) -> Tensor:
    """Write a `torch.export` program with a free batch size; returns what the file read back answers."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tree_map(lambda value: {0: batch}, raw)
    with torch.no_grad():
        program = torch.export.export(network, (raw,), dynamic_shapes=(shapes,))

    def write(draft: Path) -> None:
        # Into memory first: where a disk is full, PyTorch's writer of these archives ends the whole process.
        archive = io.BytesIO()
        torch.export.save(program, archive, extra_files=provenance_entries())
        draft.write_bytes(archive.getbuffer())

    write_atomically(path, write)
    return torch.export.load(path).module()(raw)


def provenance_entries() -> dict[str, str]:
    """What an exported file says of drawn data that its model was trained on."""
    said = note()
    return {FIELD: said} if said else {}


def write_onnx(network: Network, raw: Any, path: Path) -> Tensor:
    """Write an ONNX model with a free batch size; returns what onnxruntime answers."""
    import onnxruntime

    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tree_map(lambda value: {0: batch}, raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecations are not the user's
        # By name: the exporter takes a dict at the end of the positional arguments for keyword arguments.
        program = torch.onnx.export(
            network, kwargs={"raw": raw}, dynamo=True, dynamic_shapes={"raw": shapes}, verbose=False
        )
    assert program is not None
    program.model.metadata_props.update(provenance_entries())
    write_atomically(path, lambda draft: program.save(str(draft), external_data=False))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    leaves = torch.utils._pytree.tree_leaves(raw)
    names = [wanted.name for wanted in session.get_inputs()]
    answer = session.run(None, {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)})[0]
    return torch.as_tensor(answer)


FILES = {"torch_export": "model.pt2", "onnx": "model.onnx"}
WRITERS = {"torch_export": write_torch_export, "onnx": write_onnx}
