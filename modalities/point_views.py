"""Projection of point clouds into views: normalisation of positions, cameras, and planes of two columns.

Shapes: B clouds, N points, F columns beside x, y and z, D = 3 + F; V views. Positions in a view are (right, up) in
[-1, 1]; nearness is from -1 (far) to 1 (near) for points of the unit sphere.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modalities.embedder import MapAxes

NORMALIZATIONS = ("unit_sphere", "box")
AXES = ("x", "y", "z")
UNITS = {"time": "time (frames)", "velocity": "velocity (m/s)", "intensity": "intensity (dB)"}
TINY = 1e-6


class PointSpace(nn.Module):
    """Normalises point positions before projection.

    Args:
        columns: names of the F columns after x, y, z.
        normalize: ``unit_sphere`` centres each cloud on its mean and scales its farthest point to distance 1; ``box``
            keeps positions and size, within ``ranges``.
        ranges: column -> ``[minimum, maximum]``; x, y, z are required for ``box``.

    Raises:
        ValueError: an unknown normalisation, or a missing or empty range.
    """

    box_centre: Tensor

    def __init__(
        self, columns: Sequence[str], normalize: str, ranges: Mapping[str, Sequence[float]] | None
    ) -> None:
        super().__init__()
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, not {normalize!r}")
        self.names = (*AXES, *columns)
        self.normalize = normalize
        own = {name: (float(low), float(high)) for name, (low, high) in dict(ranges or {}).items()}
        sphere = {axis: (-1.0, 1.0) for axis in AXES}
        self.ranges = own if normalize == "box" else sphere | own
        if normalize == "box":
            self.check(AXES)
        sides = [self.ranges.get(axis, (-1.0, 1.0)) for axis in AXES]
        self.box_half = max(high - low for low, high in sides) / 2
        centre = [(low + high) / 2 for low, high in sides]
        self.register_buffer("box_centre", torch.tensor(centre), persistent=False)

    def check(self, names: Sequence[str]) -> None:
        """Raise a `ValueError` if one of these columns does not exist or has no range."""
        for name in sorted(set(names)):
            if name not in self.names:
                raise ValueError(f"planes: {name!r} is no column; there are {', '.join(self.names)}")
            low, high = self.ranges.get(name, (0.0, 0.0))
            if not low < high:
                raise ValueError(f"ranges needs [lowest, highest] of {name}")

    def forward(self, xyz_BN3: Tensor, there_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Returns positions in the units of ``ranges``, and positions scaled to (about) the unit sphere."""
        if self.normalize == "box":
            return xyz_BN3, (xyz_BN3 - self.box_centre) / self.box_half
        weight_BN1 = there_BN[..., None].float()
        count_B11 = weight_BN1.sum(1, keepdim=True).clamp(min=1)
        centre_B13 = (xyz_BN3 * weight_BN1).sum(1, keepdim=True) / count_B11
        xyz_BN3 = (xyz_BN3 - centre_B13) * weight_BN1
        radius_B11 = xyz_BN3.square().sum(-1, keepdim=True).sqrt().amax(1, keepdim=True)
        xyz_BN3 = xyz_BN3 / radius_B11.clamp(min=TINY)
        return xyz_BN3, xyz_BN3

    @property
    def unit(self) -> str:
        """Unit of x, y and z."""
        return "m" if self.normalize == "box" else "radii"

    def label(self, name: str) -> str:
        """Axis label of a column, with its unit."""
        return f"{name} ({self.unit})" if name in AXES else UNITS.get(name, name)


class Cameras(nn.Module):
    """Cameras facing the origin: points in the unit sphere (B, N, 3) -> positions (B, V, N, 2), nearness (B, V, N).

    Args:
        orthographic, perspective: cameras as ``[azimuth, elevation]`` in degrees; z is up, azimuth 0 looks from +x, 90
            from +y; elevation 90 looks down. The orthographic ones come first.
        distance: of the perspective cameras from the centre, in radii of the cloud; above 1.
    """

    turns: Tensor
    has_perspective: Tensor

    def __init__(
        self,
        orthographic: Sequence[Sequence[float]],
        perspective: Sequence[Sequence[float]],
        distance: float,
    ) -> None:
        super().__init__()
        if distance <= 1:
            raise ValueError(f"needs camera_distance > 1, not {distance}")
        self.angles = [
            (kind, float(azimuth), float(elevation))
            for kind, cameras in (("orthographic", orthographic), ("perspective", perspective))
            for azimuth, elevation in cameras
        ]
        self.perspective = len(perspective) > 0
        self.distance = distance
        if self.angles:  # exporters do not handle empty buffers
            turns = torch.stack([_turn(azimuth, elevation) for _, azimuth, elevation in self.angles])
            flags = torch.tensor([kind == "perspective" for kind, *_ in self.angles])
            self.register_buffer("turns", turns, persistent=False)
            self.register_buffer("has_perspective", flags[:, None], persistent=False)

    def __len__(self) -> int:
        return len(self.angles)

    def forward(self, unit_BN3: Tensor) -> tuple[Tensor, Tensor]:
        turned_BVN3 = torch.einsum("vij,bnj->bvni", self.turns, unit_BN3)
        place_BVN2, near_BVN = turned_BVN3[..., :2], turned_BVN3[..., 2]
        if self.perspective:
            # The field of view is tangent to the unit sphere.
            focal = math.sqrt(self.distance**2 - 1)
            scale_BVN = focal / (self.distance - near_BVN).clamp(min=0.1)
            place_BVN2 = place_BVN2 * torch.where(self.has_perspective, scale_BVN, 1.0)[..., None]
        return place_BVN2, near_BVN

    def axes(self, value: str) -> list[MapAxes]:
        """Axis labels of each camera's map; ``value``: label of the colour scale."""
        return [
            MapAxes(
                x="right (pixels)",
                y="down (pixels)",
                value=value,
                title=f"{kind}, azimuth {azimuth:g}°, elevation {elevation:g}°",
            )
            for kind, azimuth, elevation in self.angles
        ]


class Planes(nn.Module):
    """Planes of two columns: a table (B, N, D) -> positions (B, V, N, 2) and nearness (B, V, N), 1 everywhere.

    Args:
        planes: pairs of column names ``[along W, along H]``.
        space: defines the columns and their ranges, which are the extents of the planes.

    Raises:
        ValueError: a column that does not exist or has no range.
    """

    columns: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, planes: Sequence[Sequence[str]], space: PointSpace) -> None:
        super().__init__()
        self.pairs = [(str(across), str(along)) for across, along in planes]
        space.check([name for pair in self.pairs for name in pair])
        self.ranges = {name: space.ranges[name] for pair in self.pairs for name in pair}
        self.labels = {name: space.label(name) for name in self.ranges}
        if self.pairs:
            index = [[space.names.index(name) for name in pair] for pair in self.pairs]
            edges = torch.tensor([[self.ranges[name] for name in pair] for pair in self.pairs])
            self.register_buffer("columns", torch.tensor(index), persistent=False)
            self.register_buffer("low", edges[..., 0], persistent=False)
            self.register_buffer("high", edges[..., 1], persistent=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def forward(self, table_BND: Tensor) -> tuple[Tensor, Tensor]:
        chosen_BNV2 = table_BND[..., self.columns.flatten()].unflatten(-1, (len(self.pairs), 2))
        chosen_BNV2 = 2 * (chosen_BNV2 - self.low) / (self.high - self.low) - 1
        place_BVN2 = chosen_BNV2.transpose(1, 2)
        return place_BVN2, torch.ones_like(place_BVN2[..., 0])  # no occlusion on a plane

    def axes(self, value: str, height: int) -> list[MapAxes]:
        """Axis labels of each plane's map; ``value``: label of the colour scale."""
        return [
            MapAxes(
                x=self.labels[across],
                y=self.labels[along],
                x_range=self.ranges[across],
                y_ticks=self._ticks(along, height),
                value=value,
                title=f"{along} over {across}",
            )
            for across, along in self.pairs
        ]

    def _ticks(self, name: str, height: int) -> tuple[tuple[float, str], ...]:
        low, high = self.ranges[name]
        shares = (0.0, 0.25, 0.5, 0.75, 1.0)
        return tuple((height * (1 - share), f"{low + share * (high - low):g}") for share in shares)


def _turn(azimuth: float, elevation: float) -> Tensor:
    """Rotation matrix (3, 3); its rows are the right, up and towards-camera directions in the cloud's coordinates."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return torch.tensor(
        [
            [-math.sin(a), math.cos(a), 0.0],
            [-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e)],
            [math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)],
        ]
    )
