"""Point clouds: points are rendered into maps by cameras or projected onto planes of two of their columns.

Shapes: B clouds, N points, F columns beside x, y and z, D = 3 + F; V views; K channels of a point; H and W of a map.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modalities.embedder import Embedder, MapAxes
from modalities.point_network import PointNetwork
from modalities.point_raster import Rasterizer
from modalities.point_views import AXES, TINY, Cameras, Planes, PointSpace
from modalities.tensor_info import TensorInfo


class ProjectedPoints(Embedder):
    """Points ``(B, N, 3 + F)`` -> V maps ``(B, V, C, H, W)``, one per view, rendered by scattering.

    A view is a camera facing the cloud's centre, or a plane of two columns: ``[time, velocity]`` draws
    a point at its time along W and its velocity along H, which turns a sequence of points into one map. All
    views share the enabled channels:

    * ``depth``: a z-buffer of the nearest point in each pixel; 1 for the point of the unit sphere nearest to the
      camera, 1/3 for the farthest, 0 for empty pixels (on a plane: 1 where there is a point);
    * ``density``: log(1 + points in the pixel);
    * ``values``: the F columns, standardised;
    * ``learned``: features of each point from a small network over all its columns and, if ``neighbors`` > 0,
      over the edges to its nearest neighbours, as in P2P (Wang et al. 2022, arXiv 2208.02812, Section 3.2),
      with the edge function of DGCNN (arXiv 1801.07829).

    Values and learned features are splatted with a cone of ``footprint`` pixels; points occluded by the
    z-buffer are attenuated by exp(-distance / ``occlusion``). The maps are differentiable through features and weights.
    Points with a non-finite value are treated as padding, so clouds of different sizes can share a batch.

    Args:
        out_size: H and W of a map, or one number for both.
        num_points: nominal N, for tracing; ``forward`` accepts any number.
        columns: names of the F columns after x, y, z.
        orthographic, perspective: cameras as ``[azimuth, elevation]`` in degrees; z is up, azimuth 0 looks
            from +x, 90 from +y; elevation 90 looks down.
        planes: pairs of column names ``[along W, along H]``.
        camera_distance: of the perspective cameras from the centre, in radii of the cloud; above 1.
        normalize: ``unit_sphere`` centres each cloud on its mean and scales its farthest point to distance 1;
            ``box`` keeps positions and size, within ``ranges``.
        ranges: column -> ``[minimum, maximum]``, the extents of planes; x, y, z too for ``box``.
        footprint: radius of a point in pixels; 0 fills only the pixel it falls in.
        depth, density, values: which of these channels to draw.
        learned: number of learned channels; 0 for none.
        hidden: width of the point network.
        neighbors: J, number of nearest neighbours; 0 for none.
        reduce: how the points of a pixel are aggregated: weighted ``mean``, ``max`` or ``sum``.
        occlusion: attenuation length behind the z-buffer, in radii of the cloud.
        stack_views: stack all views along the channels of one map: (B, 1, V·C, H, W).

    Raises:
        ValueError: invalid view or channel settings.

    Example:
        >>> ProjectedPoints(orthographic=[[0, 0], [90, 0]], learned=4)(torch.randn(2, 500, 3)).shape
        torch.Size([2, 2, 5, 64, 64])
    """

    raw_ndim = 3
    draws_raw = True
    raw_projection = "3d"

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(
        self,
        out_size: int | Sequence[int] = 64,
        num_points: int = 1024,
        columns: Sequence[str] = (),
        orthographic: Sequence[Sequence[float]] = (),
        perspective: Sequence[Sequence[float]] = (),
        planes: Sequence[Sequence[str]] = (),
        camera_distance: float = 2.5,
        normalize: str = "unit_sphere",
        ranges: Mapping[str, Sequence[float]] | None = None,
        footprint: float = 1.0,
        depth: bool = True,
        density: bool = False,
        values: bool = False,
        learned: int = 0,
        hidden: int = 32,
        neighbors: int = 0,
        reduce: str = "mean",
        occlusion: float = 0.1,
        stack_views: bool = False,
    ) -> None:
        super().__init__()
        self.num_points = num_points
        self.columns = tuple(columns)
        self.space = PointSpace(self.columns, normalize, ranges)
        self.cameras = Cameras(orthographic, perspective, camera_distance)
        self.planes = Planes(planes, self.space)
        if self.views == 0:
            raise ValueError("give at least one view: orthographic, perspective or planes")
        self.rasterizer = Rasterizer(out_size, depth, density, footprint, reduce, occlusion)
        self.values = len(self.columns) if values else 0
        self.stack_views = stack_views
        channels = int(depth) + int(density) + self.values + learned
        if channels == 0:
            raise ValueError("nothing to draw: set depth, density, values (with columns) or learned")
        self.out_chans = channels * self.views if stack_views else channels
        if self.columns:  # exporters do not handle empty buffers
            self.register_buffer("mean", torch.zeros(len(self.columns)))
            self.register_buffer("std", torch.ones(len(self.columns)))
        self.register_buffer("fitted", torch.tensor(not self.columns))
        self.network = PointNetwork(3 + len(self.columns), hidden, learned, neighbors) if learned else None

    @property
    def views(self) -> int:
        """V, before any stacking."""
        return len(self.cameras) + len(self.planes)

    def forward(self, raw: Tensor) -> Tensor:
        with torch.autocast(raw.device.type, enabled=False):  # bf16 is too coarse for positions
            points_BND = raw.float()
            there_BN = points_BND.isfinite().all(dim=-1)
            points_BND = torch.where(there_BN[..., None], points_BND, 0.0)
            xyz_BN3, unit_BN3 = self.space(points_BND[..., :3], there_BN)
            columns_BNF = points_BND[..., 3:]
            place_BVN2, near_BVN = self._places(unit_BN3, torch.cat([xyz_BN3, columns_BNF], dim=-1))
            if self.columns:
                columns_BNF = (columns_BNF - self.mean) / self.std
        features_BNK = columns_BNF if self.values else columns_BNF[..., :0]
        if self.network is not None:
            known_BND = torch.cat([unit_BN3, columns_BNF], dim=-1)
            learned_BNK = self.network(known_BND, unit_BN3, there_BN)
            features_BNK = torch.cat([features_BNK, learned_BNK.float()], dim=-1)
        with torch.autocast(raw.device.type, enabled=False):
            maps_BVCHW = self.rasterizer(place_BVN2, near_BVN, there_BN, features_BNK)
        return maps_BVCHW.flatten(1, 2)[:, None] if self.stack_views else maps_BVCHW

    def _places(self, unit_BN3: Tensor, table_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Position of each point in each view, (right, up) in [-1, 1], and its nearness, from -1 to 1."""
        seen = [self.cameras(unit_BN3)] if len(self.cameras) else []
        seen += [self.planes(table_BND)] if len(self.planes) else []
        places, nears = zip(*seen, strict=True)
        return torch.cat(places, dim=1), torch.cat(nears, dim=1)

    @property
    def needs_statistics(self) -> bool:
        return not bool(self.fitted)

    @torch.no_grad()
    def fit_statistics(self, raws: Iterable[Tensor]) -> None:
        """Measure mean and std of the F columns over ``(..., N, 3 + F)`` batches, ignoring padding points."""
        count = 0
        total = torch.zeros(len(self.columns), dtype=torch.float64)
        squares = torch.zeros_like(total)
        for raw in raws:
            points = raw.cpu().double().flatten(0, -2)
            points = points[points.isfinite().all(dim=-1), 3:]
            count += len(points)
            total += points.sum(0)
            squares += points.square().sum(0)
        if count == 0:
            raise ValueError("no training points to measure mean and std on")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp(min=TINY**2).sqrt().clamp(min=1e-3))
        self.fitted.fill_(True)

    def example_raw(self, batch_size: int = 1) -> Tensor:
        device = self.rasterizer.offsets.device
        raw = torch.randn(batch_size, self.num_points, 3 + len(self.columns), device=device)
        for position, name in enumerate(self.space.names):
            if name in self.space.ranges:
                low, high = self.space.ranges[name]
                raw[..., position] = low + (high - low) * torch.rand_like(raw[..., position])
        return raw

    def raw_info(self) -> dict[str, TensorInfo]:
        free = self.space.normalize == "unit_sphere"
        scale = (
            "positions in any unit: each cloud is centred and scaled to the unit sphere inside the model"
            if free
            else "positions in the units of the training data, within `ranges`"
        )
        drawn = {name: list(limits) for name, limits in self.space.ranges.items()}
        ranges = {name: limits for name, limits in drawn.items() if not free or name in self.columns}
        return {
            "points": TensorInfo(
                f"points, one a row, z upwards; {scale}; further columns in the units of the training data; a row "
                "with a value that is not finite is padding",
                ("batch", "point", "column"),
                {"columns": [*AXES, *self.columns], **({"ranges": ranges} if ranges else {})},
            )
        }

    def map_axes(self) -> MapAxes:
        return self.view_axes()[0]

    def view_axes(self) -> tuple[MapAxes, ...]:
        value = self.rasterizer.value
        on_planes = "a point is there" if self.rasterizer.depth else value
        axes = self.cameras.axes(value) + self.planes.axes(on_planes, self.rasterizer.height)
        step = self.out_chans // self.views if self.stack_views else 0
        return tuple(replace(view, channel=number * step) for number, view in enumerate(axes))

    def draw_raw(self, panel: Any, raw: Tensor) -> None:
        """Scatter one cloud ``(N, 3 + F)``, coloured by its first column or its height."""
        points = raw[raw.isfinite().all(dim=-1)]
        colour = points[:, 3] if self.columns else points[:, 2]
        draw_cloud(panel, points[:, :3], colour, " (m)" if self.space.normalize == "box" else "")


def draw_cloud(panel: Any, xyz_N3: Tensor, colour_N: Tensor, unit: str = "") -> None:
    """Scatter points on a 3-D Matplotlib panel with equal axis scales."""
    panel.scatter(*xyz_N3.T, c=colour_N, s=4, cmap="viridis", linewidths=0)
    low, high = xyz_N3.amin(0), xyz_N3.amax(0)
    middle, half = (low + high) / 2, float((high - low).max()) / 2 + TINY
    for position, axis in enumerate(AXES):
        centre = float(middle[position])
        getattr(panel, f"set_{axis}lim")(centre - half, centre + half)
        getattr(panel, f"set_{axis}label")(axis + unit, fontsize=8, labelpad=-6)
    panel.set_box_aspect((1, 1, 1))
    panel.tick_params(labelsize=6, pad=-3)
    panel.locator_params(nbins=4)
