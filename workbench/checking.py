"""Checks that modality, task and backbone of a composition are compatible, before anything is built."""

from omegaconf import DictConfig, OmegaConf

from workbench.conf_folders import conf_folders
from workbench.errors import UsageError
from workbench.extras import need
from workbench.members import check_members, is_joint

COUNTS = ("max_epochs", "accumulate_grad_batches", "check_val_every_n_epoch")  # of the trainer


def tasks_of(modality: str) -> list[str]:
    """Names of the tasks for a modality."""
    names = set()
    for file in sorted(file for folder in conf_folders() for file in (folder / "task").glob("*.yaml")):
        node = OmegaConf.load(file)
        if file.stem[0] != "_" and isinstance(node, DictConfig) and node.get("modality") == modality:
            names.add(str(node.get("name")))
    return sorted(names)


def check_composition(cfg: DictConfig) -> None:
    """Raise a `UsageError` if the parts of the composition are incompatible."""
    if OmegaConf.is_missing(cfg.backbone, "name"):
        raise UsageError("which of timm's networks? Say backbone.name=NAME, e.g. backbone.name=convnext_atto")
    if is_joint(cfg):
        check_members(cfg)
    # With `ckpt=`, `task=` only selects a member; the modality comes from the checkpoint.
    if cfg.ckpt is None and cfg.task.modality != cfg.modality.name:
        raise UsageError(
            f"task {cfg.task.name} reads {cfg.task.modality}, not {cfg.modality.name}: "
            f"say modality={cfg.task.modality}, or take one of {cfg.modality.name}'s tasks "
            f"({', '.join(tasks_of(cfg.modality.name))})"
        )
    if cfg.resume and cfg.action.name != "fit":
        raise UsageError(
            f"resume= goes on with a run's training: for action={cfg.action.name} say ckpt=RUN, or leave it out"
        )
    for key in COUNTS:
        value = cfg.trainer.get(key, 1)
        # With val_check_interval, validations may go across epochs.
        across = value is None and key == "check_val_every_n_epoch"
        if not across and (not isinstance(value, int) or value < 1):
            raise UsageError(f"trainer.{key} must be a whole number of at least 1, not {value}")
    clip = cfg.trainer.get("gradient_clip_val")
    if clip is not None and not (isinstance(clip, int | float) and clip >= 0):
        # With a negative one, gradients would be turned round.
        raise UsageError(f"trainer.gradient_clip_val must be at least 0, or null, not {clip}")
    if cfg.action.name == "fit" and cfg.trainer.get("limit_train_batches") == 0:
        raise UsageError("trainer.limit_train_batches=0: there would be nothing to train on")
    for extra in ("wandb", "mlflow"):
        if extra in (cfg.get("logger") or {}):
            need(extra, f"logger={extra}")
