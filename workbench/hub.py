"""Published models: a folder or a Hugging Face Hub repository with weights, description and model card.

    model.safetensors   the weights, and nothing else
    widefield.json      the description of the model (modality, task, backbone, data info)
    config.yaml         the whole configuration, without local paths
    README.md           the model card, made from result.json

Such a folder is untrusted data, validated like a checkpoint (`workbench.composition`); nothing in it is executed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backbone import CheckpointError, read_safely
from workbench.errors import UsageError
from workbench.files import write_atomically, write_json, write_text
from workbench.typed_words import TASK_PATHS

SCHEME = "hf://"
WEIGHTS, DESCRIPTION, CONFIG, CARD = "model.safetensors", "widefield.json", "config.yaml", "README.md"
READ = (DESCRIPTION, WEIGHTS)
MOST_MB = 64  # maximum size of a description
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def repository(name: str) -> str:
    """Extract `OWNER/NAME` from `hf://OWNER/NAME`.

    Raises:
        UsageError: the name is invalid.

    >>> repository("hf://me/words")
    'me/words'
    """
    owner_and_name = name.removeprefix(SCHEME)
    if not is_repository(owner_and_name):
        raise UsageError(f"{name[:200]} is no repository of a hub: they are called hf://OWNER/NAME")
    return owner_and_name


def is_repository(name: str) -> bool:
    """Whether a string is a valid Hub repository name, `OWNER/NAME`."""
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def fetch(name: str) -> Path:
    """Download `hf://OWNER/NAME` unless the cache is up to date; returns the path of the description.

    The weights are beside it. If the Hub does not answer, the cached version is used.

    Raises:
        CheckpointError: there is no such repository, or it lacks a file.
    """
    import huggingface_hub

    owner_and_name = repository(name)
    try:
        folder = huggingface_hub.snapshot_download(repo_id=owner_and_name, allow_patterns=list(READ))
    except Exception as error:  # network, Hub and cache errors have no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{SCHEME}{owner_and_name} cannot be fetched: {reason[:300]}") from error
    for file in READ:
        if not Path(folder, file).is_file():
            raise CheckpointError(f"{SCHEME}{owner_and_name} is no model of this workbench: it has no {file}")
    return Path(folder, DESCRIPTION)


def read_description(path: Path) -> dict[str, Any]:
    """Read a description and the weights beside it, as a checkpoint's content; not yet validated.

    Raises:
        CheckpointError: unreadable, too large, or weights in another format.
    """
    try:
        if path.stat().st_size > MOST_MB * 1e6:
            raise CheckpointError(f"{path} is refused: a description has at most {MOST_MB} MB")
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or no description of a model") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} is damaged or no description of a model")
    weights = path.with_name(WEIGHTS)
    if not weights.is_file():
        raise CheckpointError(f"{path} has no {WEIGHTS} beside it")
    return {
        "widefield": stored,
        "state_dict": read_safely(weights),
        "epoch": stored.pop("epoch", 0),
    }


def write_model(folder: Path, content: dict[str, Any], config: str, card: str) -> None:
    """Write the four files of a published model.

    Args:
        folder: output folder.
        content: content of a checkpoint, as read.
        config: the text of `config.yaml`.
        card: the text of the model card.
    """
    from safetensors.torch import save_file

    weights: Mapping[str, Tensor] = content["state_dict"]
    state = {
        name: value.detach().clone().contiguous() for name, value in weights.items()
    }  # some share memory
    write_atomically(folder / WEIGHTS, lambda draft: save_file(state, draft, metadata={"format": "pt"}))
    stored = {key: value for key, value in content["widefield"].items() if key in KEPT}
    stored["composition"] = without_places(stored["composition"])
    write_json(folder / DESCRIPTION, {**stored, "epoch": int(content.get("epoch", 0))})
    write_text(folder / CONFIG, config)
    write_text(folder / CARD, card)


def without_places(node: Any) -> Any:
    """Plain values without local paths: path settings become None, other absolute paths their last component."""
    if isinstance(node, dict):
        return {
            key: None if key in TASK_PATHS and _is_place(value) else without_places(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [without_places(value) for value in node]
    if isinstance(node, str) and node.startswith(("/", "~", "\\\\")):
        return Path(node).name
    return node


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith("${")


#: Keys of a checkpoint's description that are published; the training state is not.
KEPT = ("format", "composition", "facts", "drawn", "trained_on")
