"""action=probe_shape_bias: whether an image classifier follows shape or texture when the two conflict."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from backbone.probes import ShapeBias, decide, shape_bias
from tasks.classification import ClassificationTask
from tasks.datasets.drawn import is_drawn
from tasks.datasets.errors import ReadError
from tasks.datasets.image.cue_conflict import (
    CueConflict,
    classes_of,
    drawn_sample,
    read_cue_conflict,
    read_mapping,
)
from tasks.datasets.image.files import ImageData
from tasks.datasets.image.imagenet import describe_synset
from workbench import figures
from workbench.build import build_task, refused_settings, take_pretrained
from workbench.composition import built_from
from workbench.console import print_table
from workbench.errors import UsageError
from workbench.files import write_findings, write_table
from workbench.instantiation import instantiate
from workbench.probes import drawing
from workbench.probes.common import Probed, device_of, from_checkpoint, plain, show_files
from workbench.provenance import data_read
from workbench.results import write_config

log = logging.getLogger("widefield")

PUBLISHED = "the published cue-conflict pictures"


def probe(cfg: DictConfig) -> float | None:
    """Write `shape_bias.json`, `shape_bias.csv` (one row per image) and two figures; returns the shape bias."""
    probed = classifier(cfg)
    with built_from(Path(str(cfg.ckpt or cfg.backbone.pretrained))):
        data: ImageData = instantiate(probed.cfg.task.data)
    source = "full" if cfg.data_dir is not None else "sample"
    root = (
        Path(cfg.data_dir).expanduser() if cfg.data_dir is not None else drawn_sample(Path(cfg.paths.samples))
    )
    if source == "sample" or is_drawn(root):
        data_read([PUBLISHED])
    pictures = read_cue_conflict(root)
    mapping = read_mapping(Path(cfg.action.mapping).expanduser()) if cfg.action.mapping else None
    names = sorted({picture.shape for picture in pictures} | {picture.texture for picture in pictures})
    categories = classes_of(names, probed.task.data_info["class_names"], mapping)
    log.info(
        "data: %d cue-conflict pictures of %d categories in %s (%s)", len(pictures), len(names), root, source
    )
    with refused_settings():
        rows = decide_all(probed, data, pictures, categories, cfg.action.batch_size)
        cues = {key: [row[key] for row in rows] for key in ("decision", "shape", "texture")}
        found = shape_bias(cues["decision"], cues["shape"], cues["texture"], names)
    if found.cue_share < 0.5:
        log.warning(
            "only %.0f %% of the decisions are for either cue: the network hardly knows these categories, and its "
            "shape bias says little",
            100 * found.cue_share,
        )
    write_config(probed.cfg)
    folder = Path(cfg.paths.run)
    write_table(folder / "shape_bias.csv", rows, ["path", "shape", "texture", "decision", "cue", "top_class"])
    content = summary(found, probed.name, source, root, categories)
    write_findings(folder / "shape_bias.json", plain(content))
    about = f"{probed.name}; {'published' if source == 'full' else 'drawn'} cue-conflict pictures"
    drawn = [folder / "figures" / name for name in ("shape_bias.png", "shape_bias_examples.png")]
    figures.save(drawing.shape_biases(found, rows, about), drawn[0])
    figures.save(drawing.cue_examples(rows, about), drawn[1])
    shown = [(name, _part(value)) for name, value in found.per_category.items()]
    shown += [("all", _part(found.value)), ("mean over categories", _part(found.mean_over_categories)),
              ("decided for either cue", _part(found.cue_share))]  # fmt: skip
    print_table(f"Shape bias: {about}", shown, ("shape", "shape / (shape + texture)"))
    show_files(folder / "shape_bias.json", folder / "shape_bias.csv", *drawn)
    return found.value if found.value == found.value else None


def classifier(cfg: DictConfig) -> Probed:
    """The image classifier of `ckpt`, or official weights with their 1,000 classes."""
    if cfg.ckpt is not None:
        probed = from_checkpoint(cfg, cfg.ckpt)
    elif cfg.backbone.pretrained is not None:
        from timm.data import ImageNetInfo

        names = [describe_synset(synset) for synset in ImageNetInfo("imagenet-1k").label_names()]
        task = build_task(cfg, {"class_names": names, "multilabel": False}, pretrained=False)
        if not take_pretrained(cfg, task.network):
            raise UsageError(
                f"backbone.pretrained={cfg.backbone.pretrained} holds no classifier of ImageNet's 1,000 classes"
            )
        name = f"{cfg.backbone.name}, pretrained ({cfg.backbone.pretrained})"
        probed = Probed(cfg, task.to(device_of(cfg)).eval(), name, True)
    else:
        raise UsageError(
            "action=probe_shape_bias needs ckpt=PATH, a trained classifier, or backbone.pretrained=in1k"
        )
    right = isinstance(probed.task, ClassificationTask) and not probed.task.data_info["multilabel"]
    if probed.cfg.modality.name != "image" or not right:
        raise UsageError(
            f"shape bias is that of a classifier of images with one class each, not of "
            f"{probed.cfg.task.name} ({probed.cfg.modality.name})"
        )
    return probed


@torch.inference_mode()
def decide_all(
    probed: Probed,
    data: ImageData,
    pictures: list[CueConflict],
    categories: dict[str, list[int]],
    batch_size: int,
) -> list[dict[str, Any]]:
    """One row per readable image: its cues, the predicted category, the cue it follows, and the top-1 class."""
    if batch_size < 1:
        raise UsageError(f"action.batch_size must be at least 1, not {batch_size}")
    names, task = list(categories), probed.task
    rows: list[dict[str, Any]] = []
    for start in range(0, len(pictures), batch_size):
        read: list[tuple[CueConflict, torch.Tensor]] = []
        for picture in pictures[start : start + batch_size]:
            try:
                read.append((picture, data.read_file(picture.path)))
            except ReadError as error:
                log.warning("broken file: %s: %s", picture.path, error)
        if not read:
            continue
        raw = torch.stack([pixels for _, pixels in read]).to(task.device)
        probabilities_NK = task(raw).float().softmax(dim=-1).cpu()
        decisions = decide(probabilities_NK, categories).tolist()
        best = probabilities_NK.argmax(dim=1).tolist()
        for (picture, _), decision, top in zip(read, decisions, best, strict=True):
            rows.append(
                {
                    "path": str(picture.path),
                    "shape": picture.shape,
                    "texture": picture.texture,
                    "decision": names[decision],
                    "cue": cue(names[decision], picture),
                    "top_class": task.data_info["class_names"][top],
                }
            )
    if not rows:
        raise UsageError("none of the cue-conflict pictures could be read")
    return rows


def cue(decision: str, picture: CueConflict) -> str:
    """Which cue a decision follows."""
    if picture.shape == picture.texture:
        return "no conflict"
    return "shape" if decision == picture.shape else "texture" if decision == picture.texture else "neither"


def summary(
    found: ShapeBias, name: str, source: str, root: Path, categories: dict[str, list[int]]
) -> dict[str, Any]:
    """Content of `shape_bias.json`."""
    return {
        "network": name,
        "data": {"source": source, "data_dir": str(root)},
        "shape_bias": found.value,
        "mean_over_categories": found.mean_over_categories,
        "per_category": found.per_category,
        "decisions": {"shape": found.shape, "texture": found.texture, "neither": found.neither},
        "cue_share": found.cue_share,
        "without_conflict": {"pictures": found.left_out, "right": found.correct_congruent},
        "classes": {name: len(indices) for name, indices in categories.items()},
    }


def _part(value: float) -> str:
    return f"{value:.3f}" if value == value else "–"
