"""Parts of a network by name: the largest submodules whose parameters belong to one group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import nn

Group = TypeVar("Group")


def parts_of(model: nn.Module, owners: Mapping[str, Group], group: Group, prefix: str = "") -> list[str]:
    """The smallest set of submodules and parameters that covers exactly the parameters of a group.

    Args:
        owners: maps each parameter's full name to its group.
        group: the requested group.
        prefix: name prefix of `model`, for recursion.

    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))
    >>> names = [name for name, _ in net.named_parameters()]
    >>> parts_of(net, {name: name.startswith("1.1") for name in names}, False)
    ['0', '1.0']
    """
    found: list[str] = []
    for name, _ in model.named_parameters(recurse=False):
        if owners.get(prefix + name) == group:
            found.append(prefix + name)
    for name, child in model.named_children():
        full = [f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()]
        inside = {owners[inner] for inner in full if inner in owners}
        if inside == {group}:
            found.append(prefix + name)
        elif group in inside:
            found += parts_of(child, owners, group, f"{prefix}{name}.")
    return found


def depthwise_convs_in(model: nn.Module, part: str) -> Iterator[nn.Conv2d]:
    """Square depthwise convolutions of at least 3 × 3 in a part of a network."""
    place, _, last = part.rpartition(".")
    found = getattr(model.get_submodule(place), last)
    for module in found.modules() if isinstance(found, nn.Module) else ():
        if isinstance(module, nn.Conv2d) and 1 < module.in_channels == module.groups == module.out_channels:
            height, width = module.kernel_size
            if height == width and height % 2 == 1 and height >= 3:
                yield module
