"""Point clouds: points become maps, photographed by cameras or laid out on planes of two of their columns.

Shapes: B clouds, N points, F columns beside x, y and z, D = 3 + F; V views; P pixels of a point's footprint;
K channels of a point; H and W of a map, S = V·H·W + 1 pixels of a cloud (the last one takes what lies
outside); M hidden width; J neighbours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from modalities.embedder import Embedder, MapAxes

NORMALIZATIONS = ("unit_sphere", "box")
REDUCTIONS = ("mean", "max", "sum")
AXES = ("x", "y", "z")
UNITS = {"time": "time (frames)", "velocity": "velocity (m/s)", "intensity": "intensity (dB)"}
TINY = 1e-6


class ProjectedPoints(Embedder):
    """Points ``(B, N, 3 + F)`` -> V maps ``(B, V, C, H, W)``, one a view, drawn by scattering.

    A view is a camera that looks at the cloud's centre, or a plane of two columns: ``[time, velocity]`` draws
    a point at its time along W and its velocity along H, which turns a sequence of points into one map. All
    views show, as asked:

    * ``depth``: a z-buffer, the nearest point of each pixel; 1 for a point of the unit sphere nearest to the
      camera, 1/3 for the farthest, 0 where there is none (on a plane: 1 where there is a point);
    * ``density``: log(1 + points in the pixel);
    * ``values``: the F columns, standardised;
    * ``learned``: features of each point from a small network over all its columns and, if ``neighbors`` > 0,
      over the edges to its nearest neighbours, as in P2P (Wang et al. 2022, arXiv 2208.02812, Section 3.2),
      with the edge function of DGCNN (arXiv 1801.07829).

    Values and learned features are splatted with a cone of ``footprint`` pixels; points hidden behind the
    z-buffer fade by exp(-distance / ``occlusion``). The maps are differentiable through features and weights.
    A point with a number that is not finite is not there: so clouds of different sizes share a batch.

    Args:
        out_size: H and W of a map, or one number for both.
        num_points: usual N, for tracing; ``forward`` takes any.
        columns: names of the F columns after x, y, z.
        orthographic, perspective: cameras as ``[azimuth, elevation]`` in degrees; z is up, azimuth 0 looks
            from +x, 90 from +y; elevation 90 looks down.
        planes: pairs of column names ``[along W, along H]``.
        camera_distance: of the perspective cameras from the centre, in radii of the cloud; above 1.
        normalize: ``unit_sphere`` moves each cloud's mean to the origin and its farthest point to distance 1;
            ``box`` leaves positions and size as they are, within ``ranges``.
        ranges: column -> ``[lowest, highest]``, the edges of planes; x, y, z too for ``box``.
        footprint: radius of a point in pixels; 0 fills just the pixel it falls in.
        depth, density, values: which of these channels to draw.
        learned: number of learned channels; 0 for none.
        hidden: width of the point network.
        neighbors: J, edges to so many nearest neighbours; 0 for none.
        reduce: how a pixel's points are joined: their weighted ``mean``, ``max`` or ``sum``.
        occlusion: how far behind the z-buffer a point still counts, in radii of the cloud.
        stack_views: lay all views into the channels of one map: (B, 1, V·C, H, W).

    Raises:
        ValueError: settings that describe no view.

    Example:
        >>> ProjectedPoints(orthographic=[[0, 0], [90, 0]], learned=4)(torch.randn(2, 500, 3)).shape
        torch.Size([2, 2, 5, 64, 64])
    """

    raw_ndim = 3
    draws_raw = True
    raw_projection = "3d"

    turns: Tensor
    has_perspective: Tensor
    plane_columns: Tensor
    plane_low: Tensor
    plane_high: Tensor
    box_centre: Tensor
    offsets: Tensor
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
        self.height, self.width = (out_size, out_size) if isinstance(out_size, int) else out_size
        self.num_points = num_points
        self.columns = tuple(columns)
        self.orthographic = [_camera(angles) for angles in orthographic]
        self.perspective = [_camera(angles) for angles in perspective]
        self.planes = [(str(across), str(along)) for across, along in planes]
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in dict(ranges or {}).items()}
        if normalize == "unit_sphere":
            self.ranges = {axis: (-1.0, 1.0) for axis in AXES} | self.ranges
        self._check(camera_distance, normalize, reduce, footprint, occlusion)
        self.normalize = normalize
        self.camera_distance = camera_distance
        self.depth, self.density = depth, density
        self.values = len(self.columns) if values else 0
        self.learned = learned
        self.reduce = reduce
        self.footprint = footprint
        self.occlusion = occlusion
        self.stack_views = stack_views
        channels = int(depth) + int(density) + self.values + learned
        if channels == 0:
            raise ValueError("nothing to draw: set depth, density, values (with columns) or learned")
        self.out_chans = channels * self.views if stack_views else channels

        cameras = self.orthographic + self.perspective
        flags = [False] * len(self.orthographic) + [True] * len(self.perspective)
        if cameras:  # buffers without elements trouble the exporters
            turns = torch.stack([_turn(*angles) for angles in cameras])
            self.register_buffer("turns", turns, persistent=False)
            self.register_buffer("has_perspective", torch.tensor(flags)[:, None], persistent=False)
        names = [*AXES, *self.columns]
        index = [[names.index(name) for name in plane] for plane in self.planes]
        low = [[self.ranges[name][0] for name in plane] for plane in self.planes]
        high = [[self.ranges[name][1] for name in plane] for plane in self.planes]
        if self.planes:
            self.register_buffer("plane_columns", torch.tensor(index), persistent=False)
            self.register_buffer("plane_low", torch.tensor(low), persistent=False)
            self.register_buffer("plane_high", torch.tensor(high), persistent=False)
        centre = [sum(self.ranges.get(axis, (0.0, 0.0))) / 2 for axis in AXES]
        self.box_half = max(high - low for low, high in map(self._range, AXES)) / 2
        self.register_buffer("box_centre", torch.tensor(centre), persistent=False)
        # Pixels that the footprint can touch, counted from the one below a point's place (or from its own).
        reach = math.ceil(footprint)
        steps = torch.arange(1 - reach, reach + 1) if reach else torch.zeros(1, dtype=torch.long)
        self.register_buffer("offsets", torch.cartesian_prod(steps, steps).view(-1, 2), persistent=False)
        if self.columns:
            self.register_buffer("mean", torch.zeros(len(self.columns)))
            self.register_buffer("std", torch.ones(len(self.columns)))
        self.register_buffer("fitted", torch.tensor(not self.columns))
        self.network = PointNetwork(3 + len(self.columns), hidden, learned, neighbors) if learned else None

    @property
    def views(self) -> int:
        """V, before any stacking."""
        return len(self.orthographic) + len(self.perspective) + len(self.planes)

    def forward(self, raw: Tensor) -> Tensor:
        with torch.autocast(raw.device.type, enabled=False):  # bf16 has too few digits for places
            points_BND = raw.float()
            there_BN = points_BND.isfinite().all(dim=-1)
            points_BND = torch.where(there_BN[..., None], points_BND, 0.0)
            xyz_BN3, unit_BN3 = self._positions(points_BND[..., :3], there_BN)
            place_BVN2, near_BVN = self._views(xyz_BN3, unit_BN3, points_BND[..., 3:])
            columns_BNF = points_BND[..., 3:]
            if self.columns:
                columns_BNF = (columns_BNF - self.mean) / self.std
        known_BND = torch.cat([unit_BN3, columns_BNF], dim=-1)
        features_BNK = columns_BNF if self.values else columns_BNF[..., :0]
        if self.network is not None:
            learned_BNK = self.network(known_BND, unit_BN3, there_BN)
            features_BNK = torch.cat([features_BNK, learned_BNK.float()], dim=-1)
        with torch.autocast(raw.device.type, enabled=False):
            maps_BVCHW = self._draw(place_BVN2, near_BVN, there_BN, features_BNK)
        return maps_BVCHW.flatten(1, 2)[:, None] if self.stack_views else maps_BVCHW

    def _positions(self, xyz_BN3: Tensor, there_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the units of ``ranges``, and within (about) the unit sphere."""
        if self.normalize == "box":
            return xyz_BN3, (xyz_BN3 - self.box_centre) / self.box_half
        weight_BN1 = there_BN[..., None].float()
        centre_B13 = (xyz_BN3 * weight_BN1).sum(1, keepdim=True) / weight_BN1.sum(1, keepdim=True).clamp(
            min=1
        )
        xyz_BN3 = (xyz_BN3 - centre_B13) * weight_BN1
        radius_B11 = xyz_BN3.square().sum(-1, keepdim=True).sqrt().amax(1, keepdim=True)
        xyz_BN3 = xyz_BN3 / radius_B11.clamp(min=TINY)
        return xyz_BN3, xyz_BN3

    def _views(self, xyz_BN3: Tensor, unit_BN3: Tensor, columns_BNF: Tensor) -> tuple[Tensor, Tensor]:
        """Where each view sees each point, (right, up) in [-1, 1], and how near, from -1 to 1."""
        places, nears = [], []
        if self.orthographic or self.perspective:
            turned_BVN3 = torch.einsum("vij,bnj->bvni", self.turns, unit_BN3)
            place_BVN2, near_BVN = turned_BVN3[..., :2], turned_BVN3[..., 2]
            if self.perspective:
                # The tangent to the unit sphere meets the edge of the map.
                focal = math.sqrt(self.camera_distance**2 - 1)
                scale_BVN = focal / (self.camera_distance - near_BVN).clamp(min=0.1)
                place_BVN2 = place_BVN2 * torch.where(self.has_perspective, scale_BVN, 1.0)[..., None]
            places.append(place_BVN2)
            nears.append(near_BVN)
        if self.planes:
            table_BND = torch.cat([xyz_BN3, columns_BNF], dim=-1)
            chosen_BNV2 = table_BND[..., self.plane_columns.flatten()].unflatten(-1, (len(self.planes), 2))
            chosen_BNV2 = 2 * (chosen_BNV2 - self.plane_low) / (self.plane_high - self.plane_low) - 1
            places.append(chosen_BNV2.transpose(1, 2))
            nears.append(torch.ones_like(places[-1][..., 0]))  # nothing hides anything on a plane
        return torch.cat(places, dim=1), torch.cat(nears, dim=1)

    def _draw(self, place_BVN2: Tensor, near_BVN: Tensor, there_BN: Tensor, features_BNK: Tensor) -> Tensor:
        """Scatter the points into the pixels of all maps."""
        batch, views, _ = near_BVN.shape
        pixels = views * self.height * self.width + 1
        pixel_BX, weight_BX = self._footprints(place_BVN2, there_BN)  # X = V·N·P
        patch = self.offsets.shape[0]
        near_BX = ((near_BVN + 2) / 3)[..., None].expand(-1, -1, -1, patch).reshape(batch, -1)
        near_BX = near_BX * (weight_BX > 0)
        depth_BS = near_BX.new_zeros(batch, pixels).scatter_reduce(1, pixel_BX, near_BX, "amax")
        hidden_BX = (depth_BS.gather(1, pixel_BX) - near_BX).clamp(min=0)
        weight_BX = (weight_BX * torch.exp(-3 * hidden_BX / self.occlusion)).detach()
        parts = [depth_BS[..., None]] if self.depth else []
        count = features_BNK.shape[-1]
        if count or self.density:
            # One scatter for everything: the features, and a one that counts the points.
            ones_BN1 = (
                torch.ones_like(features_BNK[..., :1]) if count else torch.ones_like(place_BVN2[:, 0, :, :1])
            )
            drawn_BNK = torch.cat([features_BNK, ones_BN1], dim=-1)
            drawn_BXK = (
                drawn_BNK[:, None, :, None].expand(-1, views, -1, patch, -1).reshape(batch, -1, count + 1)
            )
            sums_BSK = _scatter(pixel_BX, drawn_BXK * weight_BX[..., None], pixels, "sum")
            features_BSK, total_BS1 = sums_BSK[..., :-1], sums_BSK[..., -1:]
            if self.reduce == "max" and count:
                drawn_BXK = drawn_BXK[..., :-1] * weight_BX[..., None]
                features_BSK = _scatter(pixel_BX, drawn_BXK, pixels, "amax")
            elif self.reduce == "mean":
                features_BSK = features_BSK / total_BS1.clamp(min=TINY)
            parts += [total_BS1.log1p()] if self.density else []
            parts += [features_BSK] if count else []
        maps_BSC = torch.cat(parts, dim=-1)[:, :-1]
        return maps_BSC.unflatten(1, (views, self.height, self.width)).permute(0, 1, 4, 2, 3)

    def _footprints(self, place_BVN2: Tensor, there_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel (counted over all views of a cloud) and weight of everything a point touches, (B, V·N·P)."""
        column_BVN = (place_BVN2[..., 0] + 1) / 2 * self.width - 0.5
        row_BVN = (1 - place_BVN2[..., 1]) / 2 * self.height - 0.5
        start = torch.floor if self.footprint else torch.round
        # A place far outside would overflow as a whole number.
        rows_BVNP = start(row_BVN).clamp(-9, self.height + 9)[..., None] + self.offsets[:, 0]
        columns_BVNP = start(column_BVN).clamp(-9, self.width + 9)[..., None] + self.offsets[:, 1]
        away_BVNP = (rows_BVNP - row_BVN[..., None]).square() + (
            columns_BVNP - column_BVN[..., None]
        ).square()
        if self.footprint:
            weight_BVNP = (1 - (away_BVNP + TINY**2).sqrt() / self.footprint).clamp(min=0)
        else:
            weight_BVNP = torch.ones_like(away_BVNP)
        inside_BVNP = (rows_BVNP >= 0) & (rows_BVNP < self.height) & (columns_BVNP >= 0)
        inside_BVNP = inside_BVNP & (columns_BVNP < self.width) & there_BN[:, None, :, None]
        view_V11 = torch.arange(self.views, device=place_BVN2.device)[:, None, None]
        pixel_BVNP = (view_V11 * self.height + rows_BVNP.long()) * self.width + columns_BVNP.long()
        pixel_BVNP = torch.where(inside_BVNP, pixel_BVNP, self.views * self.height * self.width)
        return pixel_BVNP.flatten(1), (weight_BVNP * inside_BVNP).flatten(1)

    @property
    def needs_statistics(self) -> bool:
        return not bool(self.fitted)

    @torch.no_grad()
    def fit_statistics(self, raws: Iterable[Tensor]) -> None:
        """Measure mean and std of the F columns over ``(..., N, 3 + F)`` batches, absent points left out."""
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
        raw = torch.randn(batch_size, self.num_points, 3 + len(self.columns), device=self.offsets.device)
        for position, name in enumerate([*AXES, *self.columns]):
            if name in self.ranges:
                low, high = self.ranges[name]
                raw[..., position] = low + (high - low) * torch.rand_like(raw[..., position])
        return raw

    def map_axes(self) -> MapAxes:
        return self.view_axes()[0]

    def view_axes(self) -> tuple[MapAxes, ...]:
        value = (
            "nearness to the camera"
            if self.depth
            else "density, log(1 + points)"
            if self.density
            else "feature"
        )
        axes = []
        for kind, cameras in (("orthographic", self.orthographic), ("perspective", self.perspective)):
            for azimuth, elevation in cameras:
                title = f"{kind}, azimuth {azimuth:g}°, elevation {elevation:g}°"
                axes.append(MapAxes(x="right (pixels)", y="down (pixels)", value=value, title=title))
        for across, along in self.planes:
            axes.append(
                MapAxes(
                    x=self._label(across),
                    y=self._label(along),
                    x_range=self.ranges[across],
                    y_ticks=self._ticks(along),
                    value="a point is there" if self.depth else value,
                    title=f"{along} over {across}",
                )
            )
        step = self.out_chans // self.views if self.stack_views else 0
        return tuple(replace(view, channel=number * step) for number, view in enumerate(axes))

    def draw_raw(self, panel: Any, raw: Tensor) -> None:
        """Scatter one cloud ``(N, 3 + F)``, coloured by its first column or its height."""
        points = raw[raw.isfinite().all(dim=-1)]
        colour = points[:, 3] if self.columns else points[:, 2]
        draw_cloud(panel, points[:, :3], colour, " (m)" if self.normalize == "box" else "")

    def _label(self, name: str) -> str:
        if name in AXES:
            return f"{name} (m)" if self.normalize == "box" else f"{name} (radii)"
        return UNITS.get(name, name)

    def _ticks(self, name: str) -> tuple[tuple[float, str], ...]:
        low, high = self.ranges[name]
        shares = (0.0, 0.25, 0.5, 0.75, 1.0)
        return tuple((self.height * (1 - share), f"{low + share * (high - low):g}") for share in shares)

    def _range(self, axis: str) -> tuple[float, float]:
        return self.ranges.get(axis, (-1.0, 1.0))

    def _check(
        self, camera_distance: float, normalize: str, reduce: str, footprint: float, occlusion: float
    ) -> None:
        if self.views == 0:
            raise ValueError("give at least one view: orthographic, perspective or planes")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, not {normalize!r}")
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, not {reduce!r}")
        if camera_distance <= 1 or footprint < 0 or occlusion <= 0 or min(self.height, self.width) < 1:
            raise ValueError("needs camera_distance > 1, footprint >= 0, occlusion > 0 and out_size >= 1")
        wanted = set(AXES) if normalize == "box" else set()
        for name in sorted(wanted | {name for plane in self.planes for name in plane}):
            if name not in AXES + self.columns:
                raise ValueError(f"planes: {name!r} is no column; there are {', '.join(AXES + self.columns)}")
            low, high = self.ranges.get(name, (0.0, 0.0))
            if not low < high:
                raise ValueError(f"ranges needs [lowest, highest] of {name}")


class PointNetwork(nn.Module):
    """Features of each point from its columns and perhaps its neighbourhood: (B, N, D) -> (B, N, K), >= 0.

    Args:
        in_features: D.
        hidden: M.
        out_features: K.
        neighbors: J; 0 looks at each point alone.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, neighbors: int = 0) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.first = nn.Sequential(nn.Linear(in_features, hidden), nn.LayerNorm(hidden), nn.GELU())
        # An edge sees its point and the way to the neighbour: A h_i + B (h_j - h_i) = (A - B) h_i + B h_j.
        self.centre = nn.Linear(hidden, hidden) if neighbors else None
        self.neighbor = nn.Linear(hidden, hidden, bias=False) if neighbors else None
        self.edge_norm = nn.LayerNorm(hidden) if neighbors else None
        self.last = nn.Sequential(nn.Linear(hidden, out_features), nn.ReLU())

    def forward(self, known_BND: Tensor, xyz_BN3: Tensor, there_BN: Tensor) -> Tensor:
        x_BNM = self.first(known_BND)
        if self.centre is not None and self.neighbor is not None and self.edge_norm is not None:
            index_BNJ = nearest(xyz_BN3, there_BN, self.neighbors)
            b_BNM = self.neighbor(x_BNM)
            index_BXM = index_BNJ.flatten(1)[..., None].expand(-1, -1, b_BNM.shape[-1])
            edge_BNJM = b_BNM.gather(1, index_BXM).unflatten(1, index_BNJ.shape[1:])
            x_BNM = x_BNM + self.edge_norm((self.centre(x_BNM) - b_BNM)[:, :, None] + edge_BNJM).relu().amax(
                2
            )
        return self.last(x_BNM)


def draw_cloud(panel: Any, xyz_N3: Tensor, colour_N: Tensor, unit: str = "") -> None:
    """Scatter points on a Matplotlib panel in space, all axes on one scale."""
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


@torch.no_grad()
def nearest(xyz_BN3: Tensor, there_BN: Tensor, count: int) -> Tensor:
    """Index of each point's ``count`` nearest points, itself among them: (B, N, J).

    Where fewer are there, the point itself takes the places left. Memory grows with N².
    """
    square_BN = xyz_BN3.square().sum(-1)
    distance_BNN = square_BN[:, :, None] + square_BN[:, None] - 2 * xyz_BN3 @ xyz_BN3.transpose(1, 2)
    distance_BNN = torch.where(there_BN[:, None], distance_BNN, torch.inf)
    distance_BNJ, index_BNJ = distance_BNN.topk(count, dim=-1, largest=False)
    itself_N1 = torch.arange(xyz_BN3.shape[1], device=xyz_BN3.device)[:, None]
    return torch.where(distance_BNJ.isfinite(), index_BNJ, itself_N1)


def _scatter(pixel_BX: Tensor, values_BXK: Tensor, pixels: int, reduce: str) -> Tensor:
    """Join ``values_BXK`` that fall in one pixel: (B, S, K), 0 where nothing falls."""
    empty_BSK = values_BXK.new_zeros(values_BXK.shape[0], pixels, values_BXK.shape[-1])
    index_BXK = pixel_BX[..., None].expand_as(values_BXK)
    return empty_BSK.scatter_reduce(1, index_BXK, values_BXK, reduce)


def _camera(angles: Sequence[float]) -> tuple[float, float]:
    azimuth, elevation = angles
    return float(azimuth), float(elevation)


def _turn(azimuth: float, elevation: float) -> Tensor:
    """Rows: where right, up and towards the camera lie in the cloud's coordinates (3, 3)."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return torch.tensor(
        [
            [-math.sin(a), math.cos(a), 0.0],
            [-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e)],
            [math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)],
        ]
    )
