"""action=probe_erf: the effective receptive field as numbers and a figure, optionally compared with other networks."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from backbone import Backbone, backbone_of_timm
from backbone.probes import (
    ReceptiveField,
    centre_offset,
    deepest_first_match,
    effective_receptive_field,
    stage_features,
    strides,
)
from workbench import figures
from workbench.build import refused_settings
from workbench.checkpoint_files import find_checkpoint
from workbench.console import print_table
from workbench.errors import UsageError
from workbench.files import write_atomically, write_findings, write_table
from workbench.lists import names_of, numbers
from workbench.probes import drawing
from workbench.probes.common import (
    UNTRAINED,
    Probed,
    asked_about,
    composed_network,
    from_checkpoint,
    maps_of,
    middles,
    plain,
    show_files,
    test_raws,
)
from workbench.provenance import FIELD, note
from workbench.results import write_config

FORMS = ("deploy", "train")


def probe(cfg: DictConfig) -> float:
    """Write `erf.json`, `erf.csv`, `erf.npz` and `figures/erf.png`; returns the largest threshold's area ratio."""
    options = cfg.action
    if options.form not in FORMS:
        raise UsageError(f"action.form must be one of {', '.join(FORMS)}, not {options.form}")
    others, thresholds = names_of(cfg, "compare"), numbers(cfg, "thresholds")
    probed, data = asked_about(cfg)
    with refused_settings():
        stage_features(probed.backbone, options.stage)  # fails early for a stage that does not exist
        stride = strides(probed.backbone)[options.stage - 1]
        networks: dict[str, Backbone] = {probed.name: in_form(probed.backbone, options.form)}
        networks |= dict(compared(cfg, probed, name, options.form) for name in others)
        maps = middles(list(input_maps(cfg, probed, data)))
        found: dict[str, ReceptiveField] = {}
        steps: dict[str, int] = {}
        for name, network in networks.items():
            stage = deepest_first_match(network, stride)
            steps[name] = strides(network)[stage - 1]
            found[name] = effective_receptive_field(
                stage_features(network, stage),
                maps,
                steps[name],
                centre_offset(network, steps[name]),
                tuple(thresholds),
            )
    write_config(probed.cfg)
    folder = Path(cfg.paths.run)
    rows = table_of(found)
    about = f"{cfg_words(probed)}, stage {options.stage}, {options.form} form"
    write_findings(folder / "erf.json", plain(summary(found, steps, about)))
    write_table(folder / "erf.csv", rows, list(rows[0]))
    scores = {name: field.scores_HW.numpy() for name, field in found.items()}
    keep_scores(folder / "erf.npz", scores)
    embedder: Any = probed.task.network.embedder
    picture = folder / "figures" / "erf.png"
    figures.save(drawing.receptive_fields(found, steps, embedder.map_axes(), about), picture)
    shown = [tuple(_word(value) for value in row.values()) for row in rows]
    print_table(f"Effective receptive field: {about}", shown, tuple(rows[0]))
    show_files(folder / "erf.json", folder / "erf.csv", folder / "erf.npz", picture)
    return found[probed.name].areas[-1].ratio


def in_form(backbone: Backbone, form: str) -> Backbone:
    """A copy of the network in train or deploy form."""
    own = copy.deepcopy(backbone).eval()
    return own.reparameterize() if form == "deploy" else own


def compared(cfg: DictConfig, probed: Probed, name: str, form: str) -> tuple[str, Backbone]:
    """A network to compare with, and its label; `name` is `untrained`, a checkpoint, or one of timm's models."""
    if name == UNTRAINED:
        fresh = probed.cfg.copy()
        fresh.backbone.pretrained = None
        twin = composed_network(fresh, probed.task.data_info)
        return twin.name, in_form(twin.backbone, form)
    if find_checkpoint(name)[0].is_file():
        other = from_checkpoint(cfg, name)
        if other.backbone.in_chans != probed.backbone.in_chans:
            raise UsageError(
                f"{name} reads maps of {other.backbone.in_chans} channels, these have {probed.backbone.in_chans}"
            )
        label = other.name if other.name != probed.name else f"{other.name} ({Path(name).name})"
        return label, in_form(other.backbone, form)
    return timm_network(name, probed.backbone.in_chans, cfg.action.compare_pretrained, probed.task.device)


def timm_network(name: str, in_chans: int, pretrained: bool, device: torch.device) -> tuple[str, Backbone]:
    """A timm model as a feature extractor, with random weights unless `pretrained`."""
    import timm

    if not timm.is_model(name):
        raise UsageError(f"action.compare: {name} is neither a checkpoint nor a network that timm knows")
    network = backbone_of_timm(name, in_chans, pretrained)
    label = f"{name}, {'pretrained (timm)' if pretrained else UNTRAINED}"
    return label, network.to(device).eval()


def input_maps(cfg: DictConfig, probed: Probed, data: Any) -> Iterator[Tensor]:
    """Batches of `action.inputs` single maps (N, C, H, W), resized to `action.size` if given."""
    wanted, size = cfg.action.inputs, cfg.action.size
    # One map per sample: the views of a sample are not independent inputs.
    for count, raw in enumerate(test_raws(data, probed.task, wanted, cfg.action.batch_size)):
        maps_BVCHW = maps_of(probed.task, raw)
        views = maps_BVCHW.shape[1]
        rows = torch.arange(len(maps_BVCHW), device=maps_BVCHW.device)
        maps_NCHW = maps_BVCHW[rows, (rows + count * cfg.action.batch_size) % views]
        if size is not None:
            maps_NCHW = nn.functional.interpolate(maps_NCHW, (size, size), mode="bicubic", antialias=True)
        yield maps_NCHW


def cfg_words(probed: Probed) -> str:
    """Description of the data for titles."""
    return f"maps of {probed.cfg.task.name} ({probed.cfg.modality.name})"


def table_of(found: dict[str, ReceptiveField]) -> list[dict[str, Any]]:
    """One row per network and threshold."""
    return [
        {
            "network": name,
            "threshold": area.threshold,
            "side": area.side,
            "area_ratio": area.ratio,
            "inputs": field.inputs,
        }
        for name, field in found.items()
        for area in field.areas
    ]


def summary(found: dict[str, ReceptiveField], steps: dict[str, int], about: str) -> dict[str, Any]:
    """Content of `erf.json`."""
    networks = [
        {
            "network": name,
            "stride": steps[name],
            "inputs": field.inputs,
            "inputs_left_out": field.left_out,
            "centre": list(field.centre),
            "support": list(field.support),
            "areas": [
                {"threshold": area.threshold, "side": area.side, "area_ratio": area.ratio}
                for area in field.areas
            ],
        }
        for name, field in found.items()
    ]
    size = list(next(iter(found.values())).scores_HW.shape)
    return {"about": about, "map": size, "scaling": "log10(x + 1) / max", "networks": networks}


def keep_scores(path: Path, scores: dict[str, np.ndarray]) -> None:
    """Write the scores (H, W) of each network as one archive, with a provenance note `drawn` for synthetic data."""
    said = note()

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            np.savez_compressed(file, **({FIELD: np.array(said), **scores} if said else scores))  # type: ignore[arg-type]

    write_atomically(path, write)


def _word(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
