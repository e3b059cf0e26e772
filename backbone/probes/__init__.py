"""Probes: analyses of trained networks as pure functions, independent of modality and task.

``erf``: effective receptive field. ``kernels``: spatial extent of the merged kernels. ``similarity``: CKA between
layers of one or two networks. ``shape_bias``: shape versus texture decisions. ``robustness``: metric under
corruption. Reading and corrupting data, plotting and `action=probe_…` are implemented elsewhere.
"""

from backbone.probes.erf import (
    THRESHOLDS,
    ReceptiveField,
    contribution_scores,
    effective_receptive_field,
    high_contribution_area,
    log_scaled,
)
from backbone.probes.kernels import MergedKernel, energy_by_radius, mean_radius, merged_kernels, reach
from backbone.probes.layers import block_features, centre_offset, deepest_first_match, stage_features, strides
from backbone.probes.robustness import Curve, robustness_curve
from backbone.probes.shape_bias import ShapeBias, decide, shape_bias
from backbone.probes.similarity import MinibatchCKA, linear_cka, unbiased_hsic

__all__ = [
    "THRESHOLDS",
    "Curve",
    "MergedKernel",
    "MinibatchCKA",
    "ReceptiveField",
    "ShapeBias",
    "block_features",
    "centre_offset",
    "contribution_scores",
    "decide",
    "deepest_first_match",
    "effective_receptive_field",
    "energy_by_radius",
    "high_contribution_area",
    "linear_cka",
    "log_scaled",
    "mean_radius",
    "merged_kernels",
    "reach",
    "robustness_curve",
    "shape_bias",
    "stage_features",
    "strides",
    "unbiased_hsic",
]
