"""Model card of a published model, generated from its checkpoint and its run's result.json."""

import math
from typing import Any

from workbench.console import printable
from workbench.provenance import Provenance

FRONT = """---
library_name: widefield
tags: [widefield, {modality}, {backbone}]
{license}---
"""
USE = """## Use

```python
import widefield

model = widefield.load("{repo}")
print(model.predict({example}).shown)
```

```bash
widefield action=predict ckpt=hf://{repo} input=FILE
widefield action=test ckpt=hf://{repo} data_dir=PATH
widefield modality={modality} init_from=hf://{repo} freeze=stages.0-2
```
"""


def model_card(repo: str, stored: dict[str, Any], result: dict[str, Any], license_name: str | None) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
        repo: `OWNER/NAME`.
        stored: a checkpoint's description, validated.
        result: content of `result.json`; empty if there is none for these weights.
        license_name: license of the weights; None: omitted.
    """
    groups = stored["composition"]
    modality, task, backbone = (str(groups[group]["name"]) for group in ("modality", "task", "backbone"))
    license_line = f"license: {_plain(license_name)}\n" if license_name else ""
    parts = [
        FRONT.format(modality=modality, backbone=backbone, license=license_line),
        f"# {task} with {backbone}\n",
        f"Made with Widefield: {modality} -> maps -> {backbone} -> {task}.\n",
    ]
    drawn = Provenance(models=list(stored.get("drawn") or [])).note()
    if drawn:
        parts.append(
            f"> **{_plain(drawn)[0].upper()}{_plain(drawn)[1:]}.** The numbers below say nothing of it.\n"
        )
    parts += [_results(result), _training(result), USE.format(repo=repo, modality=modality, example='"FILE"')]
    return "\n".join(part for part in parts if part)


def _results(result: dict[str, Any]) -> str:
    metrics = result.get("metrics")
    numbers = {
        str(name): float(value)
        for name, value in (metrics.items() if isinstance(metrics, dict) else ())
        if type(value) in (int, float) and math.isfinite(value)
    }
    if not numbers:
        return "## Results\n\nNone are recorded for these weights.\n"
    rows = [f"| {_plain(name)} | {value:.4f} |" for name, value in numbers.items()]
    return "\n".join(["## Results\n", "| metric | value |", "|---|---|", *rows, ""])


def _training(result: dict[str, Any]) -> str:
    said = {
        "data": _of(result, "data", "source"),
        "parameters": result.get("params"),
        "epochs": result.get("epochs"),
        "seed": result.get("seed"),
        "device": result.get("device"),
        "precision": result.get("precision"),
        "seconds": result.get("wall_s"),
        "commit of Widefield": result.get("git"),
        "PyTorch": _of(result, "versions", "torch"),
    }
    rows = [f"| {name} | {_plain(value)} |" for name, value in said.items() if value is not None]
    if not rows:
        return ""
    return "\n".join(["## Training\n", "| | |", "|---|---|", *rows, ""]) + "\nAll settings: `config.yaml`.\n"


def _of(result: dict[str, Any], key: str, inner: str) -> Any:
    node = result.get(key)
    return node.get(inner) if isinstance(node, dict) else None


def _plain(value: Any) -> str:
    """A value as text without special meaning in Markdown, HTML or YAML."""
    text = printable(str(value))[:200]
    return "".join(char if char.isalnum() or char in " .,:;+-_/()%" else " " for char in text).strip()
