"""Rendering points into maps by scattering: z-buffer, density, and splatted features.

Shapes: B clouds, N points; V views; P pixels of a point's footprint, X = V·N·P; K channels of a point; H and W of a
map, S = V·H·W + 1 pixels of a cloud (the last one collects everything outside the maps).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

REDUCTIONS = ("mean", "max", "sum")
TINY = 1e-6


class Rasterizer(nn.Module):
    """Renders points at their positions in every view; differentiable through their features.

    Args:
        out_size: H and W of a map, or one number for both.
        depth: draw a z-buffer: 1 for the point nearest to the camera, 1/3 for the farthest, 0 for empty pixels.
        density: draw log(1 + points in the pixel).
        footprint: radius of a point in pixels, weighted as a cone; 0 fills only the pixel it falls in.
        reduce: how the points of a pixel are aggregated: weighted ``mean``, ``max`` or ``sum``.
        occlusion: points behind the z-buffer are attenuated by exp(-3 · distance in the z-buffer's units / occlusion),
            which is exp(-distance / occlusion) in radii of the cloud.
    """

    offsets: Tensor

    def __init__(
        self,
        out_size: int | Sequence[int],
        depth: bool,
        density: bool,
        footprint: float,
        reduce: str,
        occlusion: float,
    ) -> None:
        super().__init__()
        self.height, self.width = (out_size, out_size) if isinstance(out_size, int) else out_size
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, not {reduce!r}")
        if footprint < 0 or occlusion <= 0 or min(self.height, self.width) < 1:
            raise ValueError("needs footprint >= 0, occlusion > 0 and out_size >= 1")
        self.depth, self.density = depth, density
        self.footprint, self.occlusion = footprint, occlusion
        self.reduce = reduce
        # Offsets of the pixels in the footprint from the floor of a point's position (or from its nearest pixel).
        reach = math.ceil(footprint)
        steps = torch.arange(1 - reach, reach + 1) if reach else torch.zeros(1, dtype=torch.long)
        self.register_buffer("offsets", torch.cartesian_prod(steps, steps).view(-1, 2), persistent=False)

    @property
    def value(self) -> str:
        """Meaning of the first channel of a map."""
        if self.depth:
            return "nearness to the camera"
        return "density, log(1 + points)" if self.density else "feature"

    def forward(self, place_BVN2: Tensor, near_BVN: Tensor, there_BN: Tensor, features_BNK: Tensor) -> Tensor:
        """Render maps (B, V, C, H, W): depth and density, where enabled, then the K features.

        Args:
            place_BVN2: (right, up) in [-1, 1].
            near_BVN: nearness, from -1 to 1.
            there_BN: whether a point is valid (not padding).
            features_BNK: features of each point; K may be 0.
        """
        batch, views, _ = near_BVN.shape
        pixels = views * self.height * self.width + 1
        pixel_BX, weight_BX = self._footprints(place_BVN2, there_BN)
        patch = self.offsets.shape[0]
        near_BX = ((near_BVN + 2) / 3)[..., None].expand(-1, -1, -1, patch).reshape(batch, -1)
        near_BX = near_BX * (weight_BX > 0)
        depth_BS = near_BX.new_zeros(batch, pixels).scatter_reduce(1, pixel_BX, near_BX, "amax")
        parts = [depth_BS[..., None]] if self.depth else []
        if features_BNK.shape[-1] or self.density:
            hidden_BX = (depth_BS.gather(1, pixel_BX) - near_BX).clamp(min=0)
            weight_BX = (weight_BX * torch.exp(-3 * hidden_BX / self.occlusion)).detach()
            parts += self._splat(pixel_BX, weight_BX, features_BNK, views, pixels)
        maps_BSC = torch.cat(parts, dim=-1)[:, :-1]
        return maps_BSC.unflatten(1, (views, self.height, self.width)).permute(0, 1, 4, 2, 3)

    def _splat(
        self, pixel_BX: Tensor, weight_BX: Tensor, features_BNK: Tensor, views: int, pixels: int
    ) -> list[Tensor]:
        """Density (B, S, 1) and features (B, S, K) of every pixel, each only where enabled."""
        batch, count = features_BNK.shape[0], features_BNK.shape[-1]
        # One scatter for everything: the features, and a column of ones that counts the points.
        drawn_BNK = torch.cat([features_BNK, features_BNK.new_ones(*features_BNK.shape[:2], 1)], dim=-1)
        patch = self.offsets.shape[0]
        drawn_BXK = drawn_BNK[:, None, :, None].expand(-1, views, -1, patch, -1).reshape(batch, -1, count + 1)
        drawn_BXK = drawn_BXK * weight_BX[..., None]
        sums_BSK = _scatter(pixel_BX, drawn_BXK, pixels, "sum")
        features_BSK, total_BS1 = sums_BSK[..., :-1], sums_BSK[..., -1:]
        if self.reduce == "max" and count:
            features_BSK = _scatter(pixel_BX, drawn_BXK[..., :-1], pixels, "amax")
        elif self.reduce == "mean":
            features_BSK = features_BSK / total_BS1.clamp(min=TINY)
        return [total_BS1.log1p()] * self.density + [features_BSK] * bool(count)

    def _footprints(self, place_BVN2: Tensor, there_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel index (over all views of a cloud) and weight of every pixel in each point's footprint, (B, X)."""
        views = place_BVN2.shape[1]
        column_BVN = (place_BVN2[..., 0] + 1) / 2 * self.width - 0.5
        row_BVN = (1 - place_BVN2[..., 1]) / 2 * self.height - 0.5
        start = torch.floor if self.footprint else torch.round
        # Positions far outside would overflow the integer conversion.
        rows_BVNP = start(row_BVN).clamp(-9, self.height + 9)[..., None] + self.offsets[:, 0]
        columns_BVNP = start(column_BVN).clamp(-9, self.width + 9)[..., None] + self.offsets[:, 1]
        down_BVNP, right_BVNP = rows_BVNP - row_BVN[..., None], columns_BVNP - column_BVN[..., None]
        away_BVNP = down_BVNP.square() + right_BVNP.square()
        if self.footprint:
            weight_BVNP = (1 - (away_BVNP + TINY**2).sqrt() / self.footprint).clamp(min=0)
        else:
            weight_BVNP = torch.ones_like(away_BVNP)
        inside_BVNP = (rows_BVNP >= 0) & (rows_BVNP < self.height) & (columns_BVNP >= 0)
        inside_BVNP = inside_BVNP & (columns_BVNP < self.width) & there_BN[:, None, :, None]
        view_V11 = torch.arange(views, device=place_BVN2.device)[:, None, None]
        pixel_BVNP = (view_V11 * self.height + rows_BVNP.long()) * self.width + columns_BVNP.long()
        pixel_BVNP = torch.where(inside_BVNP, pixel_BVNP, views * self.height * self.width)
        return pixel_BVNP.flatten(1), (weight_BVNP * inside_BVNP).flatten(1)


def _scatter(pixel_BX: Tensor, values_BXK: Tensor, pixels: int, reduce: str) -> Tensor:
    """Reduce the ``values_BXK`` of each pixel: (B, S, K), 0 for empty pixels."""
    empty_BSK = values_BXK.new_zeros(values_BXK.shape[0], pixels, values_BXK.shape[-1])
    index_BXK = pixel_BX[..., None].expand_as(values_BXK)
    return empty_BSK.scatter_reduce(1, index_BXK, values_BXK, reduce)
