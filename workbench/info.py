"""action=info: describes the composed model, without training it."""

import copy
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils._pytree import tree_leaves

from modalities.embedder import Embedder
from tasks.network import Network, example_maps
from workbench.build import build_all_data, build_data, build_network, build_training
from workbench.console import console, print_table
from workbench.cost import count_macs
from workbench.members import is_joint
from workbench.overrides import overrides
from workbench.quoting import command
from workbench.restore import restore


def info(cfg: DictConfig) -> None:
    """Print composition, parameters, MACs, shapes and receptive field; for a joint run its members."""
    if is_joint(cfg) and not cfg.ckpt:
        joint_info(cfg)
        return
    if cfg.ckpt:
        restored = restore(cfg)
        cfg, network, data_info = restored.cfg, restored.task.network, restored.task.data_info
    else:
        data_info = build_data(cfg).info()
        network = build_network(cfg, data_info, pretrained=False)
    merged = copy.deepcopy(network).reparameterize()
    raw = network.embedder.example_raw(1)
    reach = merged.backbone.receptive_fields()
    rows = [
        ("modality", cfg.modality.name),
        ("task", cfg.task.name),
        ("backbone", cfg.backbone.name),
        ("raw sample", " + ".join("×".join(map(str, leaf.shape[1:])) for leaf in tree_leaves(raw))),
        ("maps", map_shape(network.embedder)),
        ("features", ", ".join(feature_shapes(network))),
        ("parameters (train form)", size(network)),
        ("parameters (deploy form)", size(merged)),
        ("MACs of a sample (deploy form)", f"{count_macs(merged, raw) / 1e9:.3f} G"),
    ]
    if reach is not None:
        rows.append(("receptive field by stage", ", ".join(f"{pixels} px" for pixels in reach)))
    for name, value in data_info.items():
        rows.append((name, _short(value)))
    print_table("Composition", rows, ("", "value"))
    if not cfg.ckpt:
        words = [said for said in overrides(cfg) or [] if not said.startswith("action")]
        console.print(f"train it: {command(*words)}", highlight=False, soft_wrap=True)


def joint_info(cfg: DictConfig) -> None:
    """Print a row for each member, and the parameters saved by sharing the backbone."""
    training = build_training(cfg, build_all_data(cfg).info(), pretrained=False)
    rows, alone = [], 0
    for name, task in training.by_task().items():
        network = task.network
        parameters = sum(parameter.numel() for parameter in network.parameters())
        alone += parameters
        macs = count_macs(network, network.embedder.example_raw(1))
        shape = map_shape(network.embedder)
        member = cfg.task.members[name].task.name
        rows.append((name, member, shape, f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.3f} G"))
    together = size(training.trained_module())
    rows.append(("together", "", "", together, ""))
    columns = ("member", "task", "maps", "parameters (train form)", "MACs of a sample (train form)")
    print_table(f"{cfg.task.name}: one {cfg.backbone.name}", rows, columns)
    console.print(
        f"{together} parameters; as {len(rows) - 1} networks it would be {alone / 1e6:.2f} M", highlight=False
    )


def number_of_parameters(module: nn.Module) -> int:
    """Number of parameters of a module; shared ones are counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def size(module: nn.Module) -> str:
    """Number of parameters in millions."""
    return f"{number_of_parameters(module) / 1e6:.2f} M"


def map_shape(embedder: Embedder) -> str:
    """Shape of a sample's maps, `V×C×H×W`."""
    return "×".join(map(str, example_maps(embedder).shape[1:]))


@torch.no_grad()
def feature_shapes(network: Network) -> list[str]:
    """Shapes of the feature maps of one map, `C×H×W`."""
    network.eval()
    maps_BVCHW = example_maps(network.embedder)
    features = network.backbone.forward_features(maps_BVCHW.flatten(0, 1)[:1])
    return ["×".join(map(str, feature.shape[1:])) for feature in features]


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(map(str, value[:6]))
        return f"{len(value)}: {head}{', …' if len(value) > 6 else ''}"
    return str(value)
