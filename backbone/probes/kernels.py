"""The learnt large kernels: each block's branches and batch norms merged into one convolution.

Shapes: C channels, K kernel size, R = K // 2 + 1 rings.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from backbone.protocol import Backbone


@dataclass(frozen=True)
class MergedKernel:
    """One block's depthwise convolution in deploy form.

    Args:
        stage, block: counted from 1.
        weight_CKK: float32, on the CPU.
    """

    stage: int
    block: int
    weight_CKK: Tensor

    @property
    def size(self) -> int:
        """K."""
        return self.weight_CKK.shape[-1]


def merged_kernels(backbone: Backbone) -> list[MergedKernel]:
    """Every square depthwise kernel in deploy form, from input to output; the network itself is not modified.

    Blocks without a convolution (K = 0) are skipped.
    """
    merged = copy.deepcopy(backbone).reparameterize()
    return [
        MergedKernel(stage, block, conv.weight.detach()[:, 0].float().cpu())
        for stage, block, conv in merged.depthwise_convs()
    ]


def energy_by_radius(weight_CKK: Tensor) -> Tensor:
    """Fraction of a kernel's energy (sum of squares) in each square ring around its centre, ``(R,)``.

    Ring r holds the 8r taps at Chebyshev distance r from the centre. Each channel is normalised to unit energy before
    averaging; all-zero channels are ignored.

    Raises:
        ValueError: kernels that are not square and odd.

    >>> energy_by_radius(torch.ones(1, 3, 3))
    tensor([0.1111, 0.8889], dtype=torch.float64)
    """
    size = weight_CKK.shape[-1]
    if weight_CKK.ndim != 3 or weight_CKK.shape[-2] != size or size % 2 == 0:
        raise ValueError(f"kernels (C, K, K) with an odd K are needed, not {list(weight_CKK.shape)}")
    radius = size // 2
    away_K = (torch.arange(size, device=weight_CKK.device) - radius).abs()
    ring_KK = torch.maximum(away_K[:, None], away_K)
    energy_CKK = weight_CKK.detach().double().square()
    total_C = energy_CKK.sum(dim=(1, 2))
    share_CKK = energy_CKK[total_C > 0] / total_C[total_C > 0, None, None]
    if len(share_CKK) == 0:
        return torch.zeros(radius + 1, dtype=torch.float64)
    return torch.stack([share_CKK[:, ring_KK == ring].sum(dim=1).mean() for ring in range(radius + 1)])


def mean_radius(energy_R: Tensor) -> float:
    """Energy-weighted mean ring index (Chebyshev distance from the centre, in pixels): 0 to K // 2.

    >>> mean_radius(torch.tensor([0.5, 0.0, 0.5]))
    1.0
    """
    radius_R = torch.arange(len(energy_R), dtype=torch.float64)
    return float((energy_R.double().cpu() * radius_R).sum() / energy_R.double().cpu().sum())


def reach(energy_R: Tensor, share: float = 0.9) -> int:
    """Side in pixels of the smallest centred square with at least ``share`` of the energy.

    >>> reach(torch.tensor([0.5, 0.3, 0.2]), 0.8)
    3
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], not {share}")
    held_R = energy_R.double().cumsum(dim=0)
    enough_R = held_R >= share * held_R[-1] - 1e-7
    return 2 * int(enough_R.nonzero()[0]) + 1
