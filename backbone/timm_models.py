"""Registers the sizes with timm: after ``import backbone``, ``timm.create_model("unireplknet_t")`` works.

timm builds a :class:`TimmUniRepLKNet`: the same network with the methods and arguments that timm's
scripts and users expect. timm passes its own arguments (``pretrained_cfg``, ``features_only``, ...) to entry
points, so these take ``**kwargs``; unknown ones are rejected by the constructor of the
network. Tags are the names of published weights: ``timm.create_model("unireplknet_s.in22k", pretrained=True)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from backbone.sizes import HUB_REPO, PUBLISHED, SIZES
from backbone.unireplknet import UniRepLKNet, feature_indices

#: Values of ``global_pool``. ``fast`` is timm's alias for the same pooling; empty means no pooling.
POOLINGS = ("avg", "max", "avgmax", "fast", "fastavg", "fastmax", "fastavgmax", "")


class TimmUniRepLKNet(UniRepLKNet):
    """UniRepLKNet with timm's ConvNet interface. Parameter names are the same, so state dicts are interchangeable.

    Shapes: an ``(N, in_chans, H, W)`` map of any size; :meth:`forward_features` returns its last feature map,
    ``(N, num_features, H/32, W/32)`` (sides rounded up), and :meth:`forward` ``(N, num_classes)`` logits. Unlike
    the base class, a network without classifier (``num_classes=0``) keeps its final norm, so that its output equals
    ``forward_head(..., pre_logits=True)``.

    Args:
        drop_rate: dropout before the classifier, in [0, 1).
        global_pool: ``avg``, ``max``, ``avgmax`` (the mean of both), or empty for no pooling, in which case the output
            is a map, ``(N, num_classes, H/32, W/32)``.
        img_size: nominal H = W, or (H, W). Informational only: any size is supported.
        device: device on which the network is built.
        dtype: dtype of parameters and statistics.
        network: arguments of :class:`~backbone.unireplknet.UniRepLKNet`.

    Raises:
        ValueError: an argument out of range; the message states the range.
        TypeError: an unknown argument.
    """

    def __init__(
        self,
        *,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        img_size: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **network: Any,
    ) -> None:
        if not 0.0 <= drop_rate < 1.0:
            raise ValueError(f"drop_rate must lie in [0, 1), not {drop_rate}")
        if img_size is not None:
            _check_img_size(img_size)
        pooling = _pooling(global_pool)
        with contextlib.nullcontext() if device is None else torch.device(device):
            super().__init__(**network)
        self.drop_rate = drop_rate
        self.global_pool = pooling
        self.head_drop = nn.Dropout(drop_rate)
        self.to(dtype=dtype)

    @property
    def head_hidden_size(self) -> int:
        """Number of input features of the classifier."""
        return self.num_features

    def forward_features(self, x_NCHW: Tensor) -> Tensor:  # type: ignore[override]  # one map, as in all of timm
        """The last feature map, ``(N, num_features, H/32, W/32)``."""
        return self._run_stages(x_NCHW)[-1]

    def forward_head(self, features: Tensor | Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Pooling, norm, dropout and classifier.

        Args:
            features: the map from :meth:`forward_features`.
            pre_logits: stop before the classifier.

        Returns:
            ``(N, num_classes)``, or ``(N, num_features)`` with ``pre_logits`` or without classifier. Without pooling,
            maps with the same number of channels.
        """
        x = features if isinstance(features, Tensor) else features[-1]
        pooled = cast(Tensor, self.global_pool(x))
        unpooled = pooled.ndim == 4
        if unpooled:
            pooled = pooled.permute(0, 2, 3, 1)
        y = self.head_drop(self.norm(pooled))
        if not pre_logits:
            y = self.head(y)
        return cast(Tensor, y.permute(0, 3, 1, 2) if unpooled else y)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Selected feature maps; used by ``timm.create_model(..., features_only=True)``.

        Args:
            x: ``(N, C, H, W)``.
            indices: indices of the features; an integer n means the last n, None all.
            norm: has no effect, as for timm's ConvNeXt: the final norm comes after pooling.
            stop_early: skip the stages after the last requested feature.
            output_fmt: must be ``"NCHW"``.
            intermediates_only: do not return the last map.

        Returns:
            The last computed map and the list of requested ones, or only this list.

        Raises:
            ValueError: an index out of range, or an unsupported format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"features have the format NCHW, not {output_fmt}")
        taken = feature_indices(indices, len(self.stages))
        features = self._run_stages(x, max(taken) + 1 if stop_early else None)
        chosen = [features[i] for i in taken]
        return chosen if intermediates_only else (features[-1], chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features ``indices`` do not need: later stages, norms of other features, the classifier.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: has no effect: the final norm goes with the classifier.
            prune_head: remove the classifier even if the last stage is kept.

        Returns:
            The indices, counted from 0.
        """
        taken = feature_indices(indices, len(self.stages))
        count = max(taken) + 1
        shorter = count < len(self.stages)
        if self.feature_norms:
            for i in range(len(self.stages)):
                if i >= count:
                    delattr(self, f"norm{i}")
                elif i not in taken:
                    setattr(self, f"norm{i}", nn.Identity().train(self.training))
        del self.stages[count:], self.downsample_layers[count:]
        self.num_features = self.dims[count - 1]
        if prune_head or shorter:
            super()._build_classifier(0)
        return taken

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes for none) and, if given, the pooling. The final norm is kept.

        Raises:
            ValueError: an unknown pooling, or a classifier for a network with ``feature_norms``.
        """
        pooling = None if global_pool is None else _pooling(global_pool).train(self.training)
        super().reset_classifier(num_classes)
        if pooling is not None:
            self.global_pool = pooling

    def _build_classifier(self, num_classes: int) -> None:
        if num_classes > 0 or self.feature_norms:
            super()._build_classifier(num_classes)
            return
        self.num_classes = 0
        if not hasattr(self, "norm"):  # a pruned network has no norm and stays without
            self._build_norm()
        self.head = nn.Identity().train(self.training)


def _pooling(name: str) -> SelectAdaptivePool2d:
    if name not in POOLINGS:
        raise ValueError(
            f"global_pool must be one of {', '.join(map(repr, POOLINGS))}, not {name!r} "
            "(pooling that widens the features does not fit the final norm)"
        )
    return SelectAdaptivePool2d(pool_type=name, flatten=bool(name))


def _check_img_size(img_size: int | Sequence[int]) -> None:
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    whole = isinstance(sides, Sequence) and all(isinstance(s, int) and not isinstance(s, bool) for s in sides)
    if not whole or len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"img_size must be a positive integer or a pair (H, W) of them, not {img_size!r}")


def _pretrained_cfg(size: str, tag: str, file: str) -> dict[str, Any]:
    """timm's configuration of published weights: their location and preprocessing.

    The official evaluation at 384² resizes the whole image; at 224² it takes a centre crop of an image resized to 256.
    The large sizes were pre-trained on ImageNet-22K at 192².
    """
    side = 384 if "_384_" in file else 224
    if tag == "in22k" and size in ("unireplknet_l", "unireplknet_xl"):
        side = 192
    return {
        "hf_hub_id": HUB_REPO,
        "hf_hub_filename": file,
        "custom_load": "hf",  # through UniRepLKNet.load_pretrained
        "num_classes": 21841 if tag == "in22k" else 1000,
        "input_size": (3, side, side),
        "pool_size": (side // 32, side // 32),
        "crop_pct": 1.0 if side == 384 else 0.875,
        "crop_mode": "squash" if side == 384 else "center",
        "interpolation": "bicubic",
        "first_conv": "downsample_layers.0.0",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2410.08049",
        "origin_url": "https://github.com/AILab-CVC/UniRepLKNet",
    }


default_cfgs = generate_default_cfgs(
    {
        f"{size}.{tag}": _pretrained_cfg(size, tag, file)
        for size, files in PUBLISHED.items()
        for tag, file in files.items()
    }
)


def _entry_point(size: str) -> Callable[..., nn.Module]:
    depths, dims = SIZES[size]

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            partial(TimmUniRepLKNet, depths=depths, dims=dims),
            size,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **kwargs,
        )
        return model

    build.__name__ = build.__qualname__ = size
    return build


for _size in SIZES:
    register_model(_entry_point(_size))
