"""Counting values on their device."""

import torch
from torch import Tensor


def histogram(values: Tensor, bins: int) -> Tensor:
    """How often each of 0, 1, …, `bins` - 1 occurs, (bins,) int64; does not wait for a GPU, as `torch.bincount` does.

    Args:
        values: integers in [0, bins), any shape.
        bins: number of values.
    """
    flat = values.flatten()
    if not flat.is_cuda:
        return torch.bincount(flat, minlength=bins)
    if torch.are_deterministic_algorithms_enabled():  # which histc is not
        return torch.zeros(bins, dtype=torch.long, device=flat.device).scatter_add_(
            0, flat.long(), torch.ones_like(flat, dtype=torch.long)
        )
    return torch.histc(flat.int(), bins=bins, min=0, max=bins).long()
