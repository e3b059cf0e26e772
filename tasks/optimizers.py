"""Optimisers with parameter groups for weight decay and layer-wise learning-rate decay.

The optimiser is created by timm, by name. The groups are built here, each with its own learning rate, so that
layer-wise decay works with any learning-rate schedule (timm's own groups carry a factor that only timm's schedulers
apply).
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

LAYER_GROUPS = ("official", "official_14", "blocks")
#: One pass over all parameters: on a CPU a step over 170 small ones takes a fifth of the time.
FUSED = ("adamw", "adam", "sgd")


def create_optimizer(
    module: nn.Module,
    *,
    opt: str = "adamw",
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    layer_groups: str = "official",
    decay_all: bool = False,
    **options: Any,
) -> Optimizer:
    """Creates an optimiser of the trainable parameters of `module`.

    With layer-wise decay (Clark et al. 2020, arXiv 2003.10555) the learning rate of layer `i` is
    `lr · layer_decay ** (last - i)`: `lr` for the head, which is the last layer, and lowest for the stem. Every
    parameter group has the keys `lr`, `weight_decay` and, with layer-wise decay, `layer`.

    Args:
        module: with layer-wise decay, it must have `parameter_layers`, such as `tasks.network.Network`.
        opt: timm's name of the optimiser: adamw, adam, sgd, lamb, …
        lr: learning rate of the last layer.
        weight_decay: of the optimiser (decoupled in adamw, an L2 penalty in adam).
        layer_decay: ratio of the learning rates of a layer and the next one; None or 1: `lr` for all layers.
        layer_groups: definition of a layer: `official`, the groups of the backbone's official release (twelve and two
            others for the sizes S to XL); `official_14`, the same, but with the last two numbered 12 and 13 if there
            are fewer, as in the official detection recipe for size T; or `blocks`, one per block.
        decay_all: apply weight decay to biases and one-dimensional parameters (norms, layer scales) as well.
        **options: optimiser-specific options, e.g. `betas`, `momentum`.

    Raises:
        ValueError: an option out of its range or an unknown optimiser.
    """
    if layer_groups not in LAYER_GROUPS:
        raise ValueError(f"layer_groups must be one of {', '.join(LAYER_GROUPS)}, not {layer_groups!r}")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], or be null, not {layer_decay}")
    layers: dict[str, int] | None = None
    if layer_decay is not None:
        layered: Any = module
        layers = layered.parameter_layers(per_block=layer_groups == "blocks")
        if layer_groups == "official_14":
            layers = as_of_14(layers)
    last = max(layers.values()) if layers else 0

    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = decay_all or not (parameter.ndim <= 1 or name.endswith(".bias"))
        layer = layers[name] if layers else last
        group = groups.setdefault((layer, decays), {"params": []})
        group["params"].append(parameter)
        group["weight_decay"] = weight_decay if decays else 0.0
        group["lr"] = lr * (layer_decay or 1.0) ** (last - layer)
        if layers:
            group["layer"] = layer
    if not groups:
        raise ValueError("nothing is left to train: every parameter is frozen")
    # Plain tuples: Hydra's containers would end up in every checkpoint.
    options = {
        key: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in options.items()
    }
    betas: Any = options.get("betas")
    if betas is not None and not (isinstance(betas, tuple) and len(betas) > 1 and _are_numbers(*betas)):
        raise ValueError(f"optimizer.betas takes two numbers, such as [0.9, 0.999], not {betas}")
    momentum = options.get("momentum")
    if momentum is not None and not _are_numbers(momentum):
        raise ValueError(f"optimizer.momentum must be a number, not {momentum}")
    if opt == "sgd" and options.get("momentum") == 0:
        options.setdefault("nesterov", False)  # which PyTorch refuses without momentum
    if opt in FUSED and {parameter.device.type for parameter in module.parameters()} in ({"cpu"}, {"cuda"}):
        options.setdefault("fused", True)
    ordered = [groups[key] for key in sorted(groups)]
    optimizer: Any = create_optimizer_v2(ordered, opt=opt, lr=lr, weight_decay=weight_decay, **options)
    # A gradient scaler (precision=16-mixed) unscales before the step, since clipping needs it; Lightning refuses to
    # clip the gradients of a fused optimiser that says it does this itself, even without a scaler.
    optimizer._step_supports_amp_scaling = False
    return cast(Optimizer, optimizer)


def as_of_14(layers: dict[str, int]) -> dict[str, int]:
    """Renumbers the last two layers as the last two of 14; unchanged if there are 14 or more.

    >>> as_of_14({"stem": 0, "block": 7, "stage 4": 9, "head": 10})
    {'stem': 0, 'block': 7, 'stage 4': 12, 'head': 13}
    """
    last = max(layers.values())
    more = max(13 - last, 0)
    return {name: layer + more if layer >= last - 1 else layer for name, layer in layers.items()}


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The learning rates to log: `lr`, the maximum, and with layer-wise decay one per layer (`lr/layer_00` is the
    stem's)."""
    rates = {"lr": max(float(group["lr"]) for group in optimizer.param_groups)}
    for group in optimizer.param_groups:
        if "layer" in group:
            rates[f"lr/layer_{group['layer']:02d}"] = float(group["lr"])
    return rates


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, Real) for value in values)
