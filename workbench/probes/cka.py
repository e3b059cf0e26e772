"""action=probe_cka: similarity (CKA) of layers within a network or across networks and modalities."""

import itertools
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from backbone.probes import MinibatchCKA, block_features
from tasks.datasets.base import DataModule
from workbench import figures
from workbench.build import refused_settings
from workbench.console import print_table
from workbench.errors import UsageError
from workbench.files import write_findings, write_table
from workbench.lists import names_of
from workbench.probes import drawing
from workbench.probes.common import (
    UNTRAINED,
    Probed,
    asked_about,
    composed_network,
    from_checkpoint,
    maps_of,
    plain,
    show_files,
    test_raws,
    to_channels,
)
from workbench.results import write_config

LAYERS = ("blocks", "stages")
Pair = tuple[str, str]


def probe(cfg: DictConfig) -> None:
    """Write `cka.json`, `cka.csv`, `figures/cka.png` and, for several networks, `figures/cka_networks.png`."""
    options = cfg.action
    if options.layers not in LAYERS:
        raise UsageError(f"action.layers must be one of {', '.join(LAYERS)}, not {options.layers}")
    if options.batch_size < 4:
        raise UsageError(
            f"action.batch_size must be at least 4 for the unbiased estimate, not {options.batch_size}"
        )
    against = names_of(cfg, "against")
    probed, data = asked_about(cfg)
    networks = {probed.name: probed}
    for name in against:
        other = _untrained(probed) if name == UNTRAINED else from_checkpoint(cfg, name)
        label = other.name if other.name not in networks else f"{other.name} ({_short(name)})"
        networks[label] = other
    with refused_settings():
        found, inputs = measure(networks, data, cfg)
    write_config(probed.cfg)
    folder = Path(cfg.paths.run)
    rows = [
        {"first": first, "second": second, "first_layer": row, "second_layer": column, "cka": value}
        for (first, second), cka in found.items()
        for row, values in zip(cka.rows, cka.compute().tolist(), strict=True)
        for column, value in zip(cka.columns, values, strict=True)
    ]
    about = f"{inputs} samples of {probed.cfg.task.name} ({probed.cfg.modality.name})"
    write_table(folder / "cka.csv", rows, list(rows[0]))
    last = last_layers(found, list(networks))
    content = {
        "about": about,
        "inputs": inputs,
        "batch_size": options.batch_size,
        "networks": list(networks),
        "last_layers": last,
        "pairs": [
            {"first": a, "second": b, "rows": cka.rows, "columns": cka.columns, "cka": cka.compute().tolist()}
            for (a, b), cka in found.items()
        ],
    }
    write_findings(folder / "cka.json", plain(content))
    picture = folder / "figures" / "cka.png"
    own = {pair: cka for pair, cka in found.items() if pair[0] == probed.name}
    figures.save(drawing.similarities(own, about), picture)
    written = [folder / "cka.json", folder / "cka.csv", picture]
    if len(networks) > 1:
        written.append(folder / "figures" / "cka_networks.png")
        figures.save(drawing.between_networks(last, list(networks), about), written[-1])
    shown = [(a, b, f"{last[a][b]:.3f}") for a, b in itertools.combinations_with_replacement(networks, 2)]
    print_table(f"Linear CKA of the last layers: {about}", shown, ("network", "network", "CKA"))
    show_files(*written)


def _untrained(probed: Probed) -> Probed:
    fresh = probed.cfg.copy()
    fresh.backbone.pretrained = None
    twin = composed_network(fresh, probed.task.data_info)
    twin.task.network.embedder = probed.task.network.embedder  # the same maps: only the backbone differs
    return twin


def _short(name: str) -> str:
    path = Path(name)
    return (
        path.parent.parent.name if path.suffix == ".ckpt" and path.parent.name == "checkpoints" else path.name
    )


@torch.no_grad()
def measure(
    networks: dict[str, Probed], data: DataModule, cfg: DictConfig
) -> tuple[dict[Pair, MinibatchCKA], int]:
    """CKA of every pair of networks (including each with itself) on the first one's samples, and the number of samples.

    Networks of the same modality use their own embedder. Networks of another modality get the first one's maps,
    adapted to their number of channels.
    """
    pairs = list(itertools.combinations_with_replacement(networks, 2))
    found = {pair: MinibatchCKA() for pair in pairs}
    first = next(iter(networks.values()))
    inputs = 0
    for raw in test_raws(data, first.task, cfg.action.inputs, cfg.action.batch_size):
        maps_BVCHW = maps_of(first.task, raw)
        if len(maps_BVCHW) < 4:  # a last batch too small for the estimate
            continue
        inputs += len(maps_BVCHW)
        layers = {}
        for name, probed in networks.items():
            same = probed.cfg.modality.name == first.cfg.modality.name
            own_BVCHW = maps_of(probed.task, raw) if same else maps_BVCHW
            layers[name] = features_of(probed, own_BVCHW, cfg.action.layers, cfg.action.pool)
        for (one, other), cka in found.items():
            cka.update(layers[one], layers[other])
    if inputs == 0:
        raise UsageError("fewer than 4 samples could be read: action.inputs must be at least 4")
    return found, inputs


def features_of(probed: Probed, maps_BVCHW: Tensor, layers: str, pool: bool) -> dict[str, Tensor]:
    """Layer -> features of each sample (B, …), concatenated over its maps."""
    views = maps_BVCHW.shape[1]
    maps_NCHW = to_channels(maps_BVCHW.flatten(0, 1), probed.backbone.in_chans)
    if layers == "stages":
        features = probed.backbone.forward_features(maps_NCHW)
        found = {f"stage {number}": feature for number, feature in enumerate(features, start=1)}
    else:
        found = block_features(probed.backbone, maps_NCHW)
    return {
        name: (value.mean(dim=(2, 3)) if pool else value).unflatten(0, (-1, views)).flatten(1)
        for name, value in found.items()
    }


def last_layers(found: dict[Pair, MinibatchCKA], names: list[str]) -> dict[str, dict[str, float]]:
    """CKA between the last layers of all networks."""
    values: dict[str, dict[str, Any]] = {name: {} for name in names}
    for (one, other), cka in found.items():
        values[one][other] = values[other][one] = float(cka.compute()[-1, -1])
    return values
