"""Standardised covariates of a series: known in the future, known in the past only, and static.

Shapes: B batch, L look-back and T horizon in steps, K covariates (of one kind, or of all).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("known", "past", "static")


class Covariates(nn.Module):
    """Standardises the covariates of a raw batch with statistics of the training split.

    Args:
        kinds: maps each available kind (`known`, `past`, `static`) to the `mean` and `std` of its covariates.
    """

    def __init__(self, kinds: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        unknown = set(kinds) - set(KINDS)
        if unknown:
            raise ValueError(f"covariates are {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        self.sizes: dict[str, int] = {}
        for kind in KINDS:
            mean, std = (tuple(kinds.get(kind, {}).get(name, ())) for name in ("mean", "std"))
            self._take(kind, mean, std)

    def _take(self, kind: str, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or min(std, default=1) <= 0:
            raise ValueError(f"{kind} covariates need a mean and a positive std each")
        if mean:
            self.sizes[kind] = len(mean)
            self.register_buffer(f"{kind}_mean", torch.tensor(mean, dtype=torch.float32))
            self.register_buffer(f"{kind}_std", torch.tensor(std, dtype=torch.float32))

    @property
    def count(self) -> int:
        """K, summed over all kinds."""
        return sum(self.sizes.values())

    def standardised(self, raw: dict[str, Tensor], kind: str) -> Tensor:
        """Covariates of one kind, standardised with training statistics."""
        return (raw[kind].float() - self.get_buffer(f"{kind}_mean")) / self.get_buffer(f"{kind}_std")

    def in_time(self, raw: dict[str, Tensor]) -> list[Tensor]:
        """Every kind along time: known and static (B, L + T, K), past (B, L, K)."""
        parts = [self.standardised(raw, kind) for kind in ("known", "past") if kind in self.sizes]
        if "static" in self.sizes:
            steps = raw["calendar"].shape[1]
            parts.append(self.standardised(raw, "static")[:, None].expand(-1, steps, -1))
        return parts

    def context(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        """Covariates for the head: `known` (B, L + T, K) and `static` (B, K)."""
        return {kind: self.standardised(raw, kind) for kind in ("known", "static") if kind in self.sizes}

    def example_raw(self, batch_size: int, look_back: int, horizon: int) -> dict[str, Tensor]:
        """Random covariates of the configured shapes."""
        steps = {"known": (look_back + horizon,), "past": (look_back,), "static": ()}
        return {
            kind: self.get_buffer(f"{kind}_mean")
            + self.get_buffer(f"{kind}_std")
            * torch.randn(batch_size, *steps[kind], size, device=self.get_buffer(f"{kind}_mean").device)
            for kind, size in self.sizes.items()
        }
