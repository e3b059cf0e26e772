"""The backbone: maps ``(N, C, H, W)`` -> feature maps. Importing it registers every size with timm."""

from typing import TYPE_CHECKING

from backbone import timm_models as _timm_models
from backbone.checkpoints import (
    CheckpointError,
    DamagedCheckpoint,
    LoadReport,
    load_pretrained,
    load_weights,
    read_safely,
)
from backbone.factories import (
    unireplknet_a,
    unireplknet_b,
    unireplknet_f,
    unireplknet_l,
    unireplknet_n,
    unireplknet_p,
    unireplknet_s,
    unireplknet_t,
    unireplknet_xl,
)
from backbone.protocol import Backbone
from backbone.replknet import RepLKNet
from backbone.sizes import SIZES
from backbone.timm_backbone import TimmBackbone, backbone_of_timm
from backbone.unireplknet import UniRepLKNet

__all__ = [
    "SIZES",
    "Backbone",
    "CheckpointError",
    "DamagedCheckpoint",
    "LoadReport",
    "RepLKNet",
    "TimmBackbone",
    "UniRepLKNet",
    "backbone_of_timm",
    "load_pretrained",
    "load_weights",
    "read_safely",
    "unireplknet_a",
    "unireplknet_b",
    "unireplknet_f",
    "unireplknet_l",
    "unireplknet_n",
    "unireplknet_p",
    "unireplknet_s",
    "unireplknet_t",
    "unireplknet_xl",
]

del _timm_models

if TYPE_CHECKING:  # lets the type checker verify that each class implements the protocol

    def _are_backbones(a: UniRepLKNet, b: RepLKNet, c: TimmBackbone) -> tuple[Backbone, Backbone, Backbone]:
        return a, b, c
