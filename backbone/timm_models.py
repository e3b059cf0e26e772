"""Registers the sizes with timm: after ``import backbone``, ``timm.create_model("unireplknet_t")`` works.

timm hands its own arguments (``pretrained_cfg``, ``features_only``, ...) to entry points, so these take
``**kwargs``. They end in the constructor of :class:`UniRepLKNet`, which takes none: a wrong one raises.
Tags are the names of published weights: ``timm.create_model("unireplknet_s.in22k", pretrained=True)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from backbone.checkpoints import HUB_REPO, PUBLISHED
from backbone.unireplknet import SIZES, UniRepLKNet


def _pretrained_cfg(tag: str, file: str) -> dict[str, Any]:
    side = 384 if "_384_" in file else 224
    return {
        "hf_hub_id": HUB_REPO,
        "hf_hub_filename": file,
        "custom_load": "hf",  # through UniRepLKNet.load_pretrained
        "num_classes": 21841 if tag == "in22k" else 1000,
        "input_size": (3, side, side),
        "crop_pct": 1.0 if side == 384 else 0.875,
        "interpolation": "bicubic",
        "first_conv": "downsample_layers.0.0",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2410.08049",
        "origin_url": "https://github.com/AILab-CVC/UniRepLKNet",
    }


default_cfgs = generate_default_cfgs(
    {
        f"{size}.{tag}": _pretrained_cfg(tag, file)
        for size, files in PUBLISHED.items()
        for tag, file in files.items()
    }
)


def _entry_point(size: str) -> Callable[..., nn.Module]:
    depths, dims = SIZES[size]

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        kwargs.setdefault("num_classes", 1000)
        model: nn.Module = build_model_with_cfg(
            partial(UniRepLKNet, depths=depths, dims=dims),
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
