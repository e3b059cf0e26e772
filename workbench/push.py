"""action=push: publishes a checkpoint as a Hugging Face Hub repository, with configuration and model card."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from backbone import CheckpointError
from workbench.checkpoint_files import find_checkpoint, read_checkpoint
from workbench.composition import read_run_config
from workbench.console import console
from workbench.errors import UsageError
from workbench.hub import SCHEME, repository, without_places, write_model
from workbench.members import member_content, members_of
from workbench.model_card import model_card
from workbench.quoting import command
from workbench.restore import restore_all

#: Keys of a run's configuration that are not published: paths and options that do not describe the model.
LEFT_OUT = (
    "paths",
    "data_dir",
    "download",
    "ckpt",
    "input",
    "init_from",
    "resume",
    "action",
    "logger",
    "sweep",
)


def push(cfg: DictConfig) -> None:
    """Write the folder `model` into the run folder, verify it by building the model from it, and upload it."""
    if not cfg.action.repo:
        raise UsageError("action=push needs action.repo=OWNER/NAME, the repository to write to")
    if cfg.ckpt is None:
        raise UsageError("action=push needs ckpt=PATH, a checkpoint of an earlier run")
    repo = repository(str(cfg.action.repo))
    path, part = find_checkpoint(str(cfg.ckpt))
    content = read_checkpoint(path, cfg)
    if part is not None:
        if part not in (members_of(content) or {}):
            raise UsageError(f"{path} has no part {part}")
        content = member_content(content, part)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    result = read_result(run / "result.json") if path.name == "best.ckpt" and part is None else {}
    folder = Path(cfg.paths.run) / "model"
    card = model_card(repo, content["widefield"], result, cfg.action.license)
    write_model(folder, content, config_of(run, content), card)
    check(cfg, folder)
    console.print(f"written: {folder}", highlight=False, soft_wrap=True)
    if not cfg.action.upload:
        return
    address = upload(folder, repo, private=bool(cfg.action.private))
    console.print(f"published: {address}", highlight=False, soft_wrap=True)
    line = command(action="info", ckpt=f"{SCHEME}{repo}")
    console.print(f"next:\n  {line}", highlight=False, soft_wrap=True)


def read_result(path: Path) -> dict[str, Any]:
    """Read a run's `result.json`; empty if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: test the run again, or delete it") from error
    return content if isinstance(content, dict) else {}


def config_of(run: Path, content: dict[str, Any]) -> str:
    """The run's configuration without local paths, as YAML; if it was not kept, that of the model alone."""
    try:
        whole = read_run_config(run / "config.yaml")
    except CheckpointError:
        whole = content["widefield"]["composition"]
    kept = {key: value for key, value in whole.items() if key not in LEFT_OUT}
    text: str = OmegaConf.to_yaml(OmegaConf.create(without_places(kept)))
    return text


def check(cfg: DictConfig, folder: Path) -> None:
    """Check that the model can be built from the folder."""
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    own.ckpt = str(folder)
    restore_all(own)


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder; returns the repository's address.

    Raises:
        UsageError: the Hub refuses, or does not answer.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        address = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Widefield: action=push")
    except Exception as error:  # network, Hub and token errors have no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{repo} was not published: {reason[:300]}; what would be uploaded lies in {folder}"
        ) from error
    return str(address)
