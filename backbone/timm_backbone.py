"""Any timm network as a backbone: ``backbone=timm backbone.name=convnext_atto``.

Hierarchical networks (ResNet, ConvNeXt, Swin, …) return the feature maps of their stages with a stride of at least 4.
Plain transformers (ViT, DeiT, mixers: all blocks at one stride) return their tokens as a map after each quarter of
their blocks, without class and register tokens. If increasing strides are required, a simple
pyramid (Li et al. 2022, arXiv 2203.16527, Section 3) is learnt from their last map.

Shapes: N maps, C channels, H height and W width in map pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import group_parameters
from timm.utils import reparameterize_model
from torch import Tensor, nn

from backbone.checkpoints import CheckpointError, LoadReport, read_safely, weights_in
from backbone.fitting import take_weights
from backbone.network_parts import depthwise_convs_in, parts_of
from backbone.protocol import Backbone
from backbone.pyramid import SimplePyramid

#: Arguments that enable variable input sizes; the first set that the network accepts is used.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
FINEST = 4  # minimum stride of the maps of a hierarchical network, if it has such maps
QUARTERS = 4  # number of maps of a plain transformer
OURS = ("num_classes", "in_chans", "drop_path_rate", *ANY_SIZE[0], *ANY_SIZE[1])
PREFIXES = ("", "model.", "module.", "backbone.", "backbone.model.", "network.backbone.model.")
FORBIDDEN = ("checkpoint_path", "cache_dir", "features_only", "scriptable", "exportable", "no_jit")


class TimmBackbone(nn.Module):
    """A timm network with the interface of :class:`backbone.protocol.Backbone`.

    Shapes: ``(N, in_chans, H, W)`` of any size -> feature maps ``(N, num_chs, H / reduction, W / reduction)``, sides
    rounded up. :meth:`fit_input` decides how maps are adapted to a size the network supports: unchanged,
    zero-padded at the bottom and right (the features are cropped accordingly), or resized to the network's
    default size (and the features resized back).

    Args:
        name: timm model name, with or without the tag of its weights, e.g. ``resnet18`` or ``resnet18.a1_in1k``.
        in_chans: channels of the maps.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1); for networks that support it.
        grad_checkpointing: recompute blocks in the backward pass to save memory.
        options: further arguments of the network, e.g. ``{"patch_size": 8}`` for a ViT.

    Raises:
        ValueError: an unknown name, unsupported options, or a network without feature maps.

    >>> net = TimmBackbone("resnet18", in_chans=1)
    >>> [tuple(f.shape) for f in net.forward_features(torch.zeros(2, 1, 64, 40))]
    [(2, 64, 16, 10), (2, 128, 8, 5), (2, 256, 4, 3), (2, 512, 2, 2)]
    """

    def __init__(
        self,
        name: str,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.in_chans = in_chans
        self.settings = {"drop_path_rate": drop_path_rate or None, **_checked_options(options or {})}
        self.model = _built(name, in_chans, self.settings)
        strides = [int(entry["reduction"]) for entry in self.model.feature_info]
        self.plain = len(strides) > 1 and len(set(strides)) == 1
        self.indices: list[int] = self.model.prune_intermediate_layers(
            _chosen(strides), prune_norm=not self.plain, prune_head=True
        )
        self.feature_info: list[dict[str, Any]] = [
            {key: self.model.feature_info[index][key] for key in ("num_chs", "reduction", "module")}
            for index in self.indices
        ]
        self.num_features = int(self.feature_info[-1]["num_chs"])
        self.pyramid: SimplePyramid | None = None
        self.merged = False
        self.fit: Literal["as it is", "padded", "resized"] = "padded"
        config = self.model.pretrained_cfg
        first_conv = config.get("first_conv") or ()
        self.first_convs = [first_conv] if isinstance(first_conv, str) else list(first_conv)
        self.first_conv = f"model.{self.first_convs[0]}" if len(self.first_convs) == 1 else None
        self.own_size: tuple[int, ...] = tuple(config["input_size"][1:])
        if grad_checkpointing:
            _checkpoint(self.model, name)

    # -- forward -------------------------------------------------------------------------------------------

    def forward_features(self, x_NCHW: Tensor) -> list[Tensor]:
        """The feature maps, from fine to coarse."""
        height, width = x_NCHW.shape[-2:]
        features = self._intermediates(self._fitted(x_NCHW), self.indices)
        if self.pyramid is not None:
            features = self.pyramid(features[-1])
        strides = [int(entry["reduction"]) for entry in self.feature_info]
        return [
            self._cut(feature, height, width, stride)
            for feature, stride in zip(features, strides, strict=True)
        ]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The pooled last feature map, ``(N, num_features)``."""
        return self.forward_features(x_NCHW)[-1].mean(dim=(-2, -1))

    def _intermediates(self, x_NCHW: Tensor, indices: Sequence[int] | None) -> list[Tensor]:
        found: list[Tensor] = self.model.forward_intermediates(
            x_NCHW, indices=indices, norm=self.plain, intermediates_only=True
        )
        return found

    def _fitted(self, x_NCHW: Tensor) -> Tensor:
        height, width = x_NCHW.shape[-2:]
        if self.fit == "resized":
            return nn.functional.interpolate(x_NCHW, self.own_size, mode="bilinear", antialias=False)
        if self.fit == "padded":
            wanted = self._padded(height, width)
            if wanted != (height, width):
                return nn.functional.pad(x_NCHW, (0, wanted[1] - width, 0, wanted[0] - height))
        return x_NCHW

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        coarsest = max(int(entry["reduction"]) for entry in self.feature_info)
        return -(-height // coarsest) * coarsest, -(-width // coarsest) * coarsest

    def _cut(self, feature_NCHW: Tensor, height: int, width: int, stride: int) -> Tensor:
        """Crop a feature map to the size that corresponds to an input map of this size."""
        size = (-(-height // stride), -(-width // stride))
        if tuple(feature_NCHW.shape[-2:]) == size:
            return feature_NCHW
        if self.fit == "resized":
            return nn.functional.interpolate(feature_NCHW, size, mode="bilinear")
        return feature_NCHW[..., : size[0], : size[1]]

    @torch.no_grad()
    def fit_input(self, height: int, width: int) -> str | None:
        """Determine by a trial forward pass how maps of this size are adapted; see the class."""
        reason = ""
        training = self.training
        self.eval()
        try:
            for fit in self._ways(height, width):
                self.fit = fit
                try:
                    self._try(height, width)
                except Exception as error:  # networks raise various exceptions for unsupported sizes
                    reason = reason or (str(error).strip() or type(error).__name__).splitlines()[0]
                else:
                    return self._said(height, width)
        finally:
            self.train(training)
        raise ValueError(f"timm's {self.name} cannot read maps of {height}×{width} pixels: {reason}")

    def _ways(self, height: int, width: int) -> list[Literal["as it is", "padded", "resized"]]:
        if self._padded(height, width) == (height, width):
            return ["padded", "resized"]  # other sizes may follow
        return ["as it is", "padded", "resized"]

    def _try(self, height: int, width: int) -> None:
        weight = next(self.parameters())
        x_NCHW = weight.new_zeros(1, self.in_chans, height, width)
        features = self._intermediates(self._fitted(x_NCHW), self.indices)
        if self.pyramid is not None:
            features = self.pyramid(features[-1])
        for feature, entry in zip(features, self.feature_info, strict=True):
            stride = int(entry["reduction"])
            size = (-(-height // stride), -(-width // stride))
            found = tuple(feature.shape[-2:])
            if self.fit == "as it is" and found != size:
                raise ValueError(f"its features of stride {stride} have {found[0]}×{found[1]} pixels")

    def _said(self, height: int, width: int) -> str | None:
        if self.fit == "resized":
            return f"are resized to {self.own_size[0]}×{self.own_size[1]}, the size that {self.name} was made for"
        padded = self._padded(height, width)
        if self.fit == "padded" and padded != (height, width):
            return f"are padded with zeros to {padded[0]}×{padded[1]}, sizes that {self.name} reads"
        return None

    def make_pyramid(self) -> None:
        """Add a simple pyramid to a plain transformer: maps at 1/4, 1/2, 1 and 2 times its token stride."""
        if not self.plain or self.pyramid is not None:
            return
        entry = self.feature_info[-1]
        self.pyramid = SimplePyramid(int(entry["num_chs"]), int(entry["reduction"]))
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": f"pyramid.{number}"}
            for number, (width, stride) in enumerate(
                zip(self.pyramid.widths, self.pyramid.strides, strict=True)
            )
        ]

    # -- parts ---------------------------------------------------------------------------------------------

    def _owners(self) -> dict[str, int]:
        """Maps each parameter of the network to its stage, counted from 0; -1 for the stem.

        Assumes that modules are defined in execution order.
        """
        names = [name for name, _ in self.model.named_parameters()]
        modules = [str(self.model.feature_info[index]["module"]) for index in self.indices]
        ends = [
            max((place for place, name in enumerate(names) if name.startswith(f"{module}.")), default=-1)
            for module in modules
        ]
        stem = self._stem_names(names, modules[0])
        last = len(ends) - 1
        return {
            name: -1
            if name in stem
            else next((stage for stage, end in enumerate(ends) if place <= end), last)
            for place, name in enumerate(names)
        }

    def _stem_names(self, names: Sequence[str], first: str) -> set[str]:
        if hasattr(self.model, "group_matcher"):
            layers = group_parameters(self.model, self.model.group_matcher(), reverse=True)
            return {name for name, layer in layers.items() if layer == 0}
        start = next((place for place, name in enumerate(names) if name.startswith(f"{first}.")), 0)
        return set(names[:start])

    def stem_parts(self) -> list[str]:
        """The stem according to timm's parameter groups: patch embedding or first convolutions, class token, position
        embedding."""
        return [f"model.{part}" for part in parts_of(self.model, self._owners(), -1)]

    def stage_parts(self) -> list[list[str]]:
        """The modules of each stage; in a plain transformer, a quarter of the blocks is a stage."""
        owners = self._owners()
        stages = [
            [f"model.{part}" for part in parts_of(self.model, owners, stage)]
            for stage in range(len(self.indices))
        ]
        if self.pyramid is not None:
            stages[-1].append("pyramid")
        return stages

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """timm's parameter groups: the stem and one layer per block, regardless of `per_block`."""
        if hasattr(self.model, "group_matcher"):
            layers = dict(group_parameters(self.model, self.model.group_matcher(), reverse=True))
        else:
            layers = {name: stage + 1 for name, stage in self._owners().items()}
        found = {f"model.{name}": int(layer) for name, layer in layers.items()}
        top = max(found.values()) + 1
        if self.pyramid is not None:
            found |= {f"pyramid.{name}": top for name, _ in self.pyramid.named_parameters()}
        return found

    def layer_count(self, per_block: bool = False) -> int:
        """Number of layers before the head."""
        return 1 + max(layer for name, layer in self.parameter_layers().items() if name.startswith("model."))

    # -- weights -------------------------------------------------------------------------------------------

    def load_pretrained(self, source: str | Path | Literal[True]) -> LoadReport:
        """Load weights published through timm (True, or a tag) or a file of this architecture.

        Args:
            source: True, a tag such as ``a1_in1k``, or the path of a ``.pth``, ``.ckpt`` or ``.safetensors`` file.
        """
        if source is not True and (Path(source).is_file() or Path(source).suffix or "/" in str(source)):
            path = Path(source).expanduser()
            if not path.is_file():
                raise CheckpointError(f"there is no checkpoint file {path}")
            return self._load_file(path)
        architecture, _, own_tag = self.name.partition(".")
        tag = own_tag if source is True else str(source)
        name = f"{architecture}.{tag}" if tag else architecture
        if not timm.is_model_pretrained(name):
            known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
            raise CheckpointError(
                f"timm has no weights {name}: "
                + (f"it has {', '.join(known)}" if known else f"none are published for {architecture}")
            )
        try:
            twin = _built(name, self.in_chans, self.settings, pretrained=True)
        except Exception as error:  # hub, network, disk: timm passes on any exception
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"timm could not fetch the weights {name} ({reason}): download them by hand and give the path of the "
                "file, backbone.pretrained=PATH"
            ) from error
        report = self._take(twin.state_dict(), name)
        channels = int(twin.pretrained_cfg["input_size"][0])
        if channels != self.in_chans:
            for conv in self.first_convs:
                report.adapted.append(f"{conv}.weight ({channels} -> {self.in_chans} input channels)")
        return report

    def _load_file(self, path: Path) -> LoadReport:
        state = weights_in(read_safely(path), path)
        own = set(self.model.state_dict())
        inside = max((_below(state, prefix) for prefix in PREFIXES), key=lambda found: len(own & set(found)))
        try:
            return self._take(inside, path.name)
        except CheckpointError as error:
            # Original checkpoints use other parameter names; timm can convert them.
            rename = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
            if rename is None:
                raise
            try:
                renamed = rename(dict(state), self.model)
            except Exception:  # not a checkpoint of this network
                raise error from None
            return self._take(renamed, path.name)

    def load_weights(self, state: Mapping[str, Any], label: str) -> LoadReport:
        """Load weights of the same network, adapting the first convolution to the number of input channels.

        The pyramid is loaded if the checkpoint has one of the same shapes, else newly initialised.
        """
        report = self._take(_below(state, "model."), label)
        if self.pyramid is not None:
            wanted, found = self.pyramid.state_dict(), _below(state, "pyramid.")
            if {name: value.shape for name, value in found.items()} == {
                name: value.shape for name, value in wanted.items()
            }:
                self.pyramid.load_state_dict(found)
                report.loaded += len(found)
            else:
                report.initial = [f"pyramid.{name}" for name in wanted]
        return report

    def _take(self, state: Mapping[str, Any], label: str) -> LoadReport:
        return take_weights(self.model, state, label, f"timm's {self.name}", self.first_convs)

    def reparameterize(self) -> TimmBackbone:
        """Merge parallel branches, if any (FastViT, RepVGG, MobileOne, …), in place. Idempotent."""
        if not self.merged:  # timm's own merge is not idempotent
            reparameterize_model(self.model, inplace=True)
            self.train(self.training)
            self.merged = True
        return self

    # -- for probes ----------------------------------------------------------------------------------------

    def layer_outputs(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        """All of timm's intermediate feature maps (stages, or blocks of a plain transformer)."""
        found = self._intermediates(self._fitted(x_NCHW), None)
        names = [str(entry["module"]) for entry in self.model.feature_info][: len(found)]
        return dict(zip(names, found, strict=True))

    def depthwise_convs(self) -> Iterator[tuple[int, int, nn.Conv2d]]:
        """Square depthwise convolutions, numbered within each stage."""
        for stage, parts in enumerate(self.stage_parts(), start=1):
            convs = (conv for part in parts for conv in depthwise_convs_in(self, part))
            for number, conv in enumerate(convs, start=1):
                yield stage, number, conv

    def receptive_fields(self) -> None:
        """None: not computed for arbitrary networks."""
        return


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names start with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Validate network arguments: none may load or download files or override settings made elsewhere."""
    for key in options:
        if key in OURS or key in FORBIDDEN or str(key).startswith("pretrained"):
            raise ValueError(f"backbone.model.options: {key} is not for the network to say")
    return {
        key: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in options.items()
    }


def backbone_of_timm(name: str, in_chans: int = 3, pretrained: bool = False) -> Backbone:
    """A timm network as a backbone, with its published weights if ``pretrained``.

    Raises:
        ValueError: see :class:`TimmBackbone`.
        CheckpointError: no weights are published.
    """
    network = TimmBackbone(name, in_chans)
    if pretrained:
        network.load_pretrained(True)
    return network


def _built(name: str, in_chans: int, settings: Mapping[str, Any], pretrained: bool = False) -> Any:
    """Build a timm network without classifier, with variable input size if supported."""
    if ":" in name or not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0].partition(':')[0]}*")[:5]
        raise ValueError(f"timm knows no network {name}" + (f": it knows {', '.join(near)}" if near else ""))
    for size in ANY_SIZE:
        try:
            model = timm.create_model(
                name, pretrained=pretrained, in_chans=in_chans, num_classes=0, **settings, **size
            )
            break
        except TypeError as error:
            if not any(key in str(error) for key in size):
                raise ValueError(f"timm could not build {name}: {error}") from error
        except Exception as error:  # timm passes on any exception
            if pretrained:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"timm could not build {name}: {reason}") from error
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise ValueError(f"timm's {name} gives no feature maps")
    return model


def _chosen(strides: Sequence[int]) -> list[int]:
    """Indices of the features to use: the last of each stride >= 4, or one after each quarter of equal strides."""
    if len(strides) > 1 and len(set(strides)) == 1:
        count = min(QUARTERS, len(strides))
        return [round(len(strides) * (number + 1) / count) - 1 for number in range(count)]
    last = {stride: index for index, stride in enumerate(strides)}
    coarse = [index for stride, index in last.items() if stride >= FINEST]
    return sorted(coarse or last.values())


def _checkpoint(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"timm's {name} knows no grad_checkpointing") from error
