"""action=info: what is composed, without training anything."""

import copy
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tasks.network import Network
from workbench.build import build_all_data, build_data, build_network, build_training, restore
from workbench.console import console, print_table
from workbench.members import is_joint
from workbench.quoting import command


def info(cfg: DictConfig) -> None:
    """Print composition, parameters, MACs, shapes and receptive field; of a joint run its members."""
    if is_joint(cfg) and not cfg.ckpt:
        joint_info(cfg)
        return
    if cfg.ckpt:
        restored = restore(cfg)
        cfg, network, facts = restored.cfg, restored.task.network, restored.task.facts
    else:
        facts = build_data(cfg).facts()
        network = build_network(cfg, facts, pretrained=False)
    merged = copy.deepcopy(network).reparameterize()
    raw = network.embedder.example_raw(1)  # type: ignore[operator]
    reach = receptive_field(merged.backbone)
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
        ("receptive field by stage", ", ".join(f"{pixels} px" for pixels in reach)),
    ]
    for name, value in facts.items():
        rows.append((name, _short(value)))
    print_table("Composition", rows, ("", "value"))
    if not cfg.ckpt:
        line = command(modality=cfg.modality.name, task=cfg.task.name, backbone=cfg.backbone.name)
        console.print(f"train it: {line}", highlight=False, soft_wrap=True)


def joint_info(cfg: DictConfig) -> None:
    """Print a row for each member, and what sharing the backbone saves."""
    training = build_training(cfg, build_all_data(cfg).facts(), pretrained=False)
    rows, alone = [], 0
    for name, task in training.by_task().items():
        network = task.network
        parameters = sum(parameter.numel() for parameter in network.parameters())
        alone += parameters
        macs = count_macs(network, network.embedder.example_raw(1))  # type: ignore[operator]
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
    """Numbers that a module learns, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def size(module: nn.Module) -> str:
    """Number of parameters in millions."""
    return f"{number_of_parameters(module) / 1e6:.2f} M"


@torch.no_grad()
def map_shape(embedder: nn.Module) -> str:
    """Shape of a sample's maps, `V×C×H×W`."""
    training = embedder.training
    shape = embedder.eval()(embedder.example_raw(1)).shape[1:]  # type: ignore[operator]
    embedder.train(training)
    return "×".join(map(str, shape))


@torch.no_grad()
def feature_shapes(network: Network) -> list[str]:
    """Shapes of the four feature maps of one map, `C×H×W`."""
    network.eval()
    maps_BVCHW = network.embedder(network.embedder.example_raw(1))  # type: ignore[operator]
    features: Any = network.backbone.forward_features(maps_BVCHW.flatten(0, 1)[:1])  # type: ignore[operator]
    return ["×".join(map(str, feature.shape[1:])) for feature in features]


@torch.no_grad()
def count_macs(network: nn.Module, raw: Any) -> float:
    """Multiply-accumulates of one forward pass (convolutions and matrix products, as torch counts them)."""
    network.eval()
    with FlopCounterMode(display=False) as counter:
        network(raw)
    return counter.get_total_flops() / 2


def receptive_field(backbone: nn.Module) -> list[int]:
    """Side of the region, in map pixels, that convolutions let a feature of each stage see.

    The backbone must be in deploy form, where its convolutions follow one another. Squeeze-and-excitation and
    global response normalisation also carry information from the whole map; they are not counted.
    """
    fields, field, jump = [], 1, 1
    for downsample, stage in zip(backbone.downsample_layers, backbone.stages, strict=True):  # type: ignore[arg-type]
        for module in [*downsample.modules(), *stage.modules()]:
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                field += (module.kernel_size[0] - 1) * module.dilation[0] * jump
                jump *= module.stride[0]
        fields.append(field)
    return fields


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(map(str, value[:6]))
        return f"{len(value)}: {head}{', …' if len(value) > 6 else ''}"
    return str(value)
