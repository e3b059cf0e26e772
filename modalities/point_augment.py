"""Augmentation of point clouds (B, N, D) in batched torch; x, y, z are the first of the D columns, z is up.

Random numbers come only from torch's global generator of the batch's device, so seeding it makes a step
repeatable. Padding points are NaN and stay NaN.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from modalities.point_columns import normal_places

TURNS = ("none", "up", "any", "pose")
TINY = 1e-12


class PointAugment(nn.Module):
    """Rotate, mirror, scale, translate, jitter and subsample each cloud: ``(B, N, D) -> (B, N, D)``.

    Lengths are relative to a cloud's radius (RMS distance from its centre), so that one setting
    suits any unit. An embedder that centres and scales each cloud cancels translation and the isotropic part of
    the scaling. Normals turn, mirror and stretch with the points, and keep their length.

    Args:
        turn: rotation: ``none``; ``up`` about the vertical axis; ``any`` uniform over SO(3); ``pose`` about
            the vertical axis and tilted, with angles drawn from ``azimuth`` and ``elevation`` (see `posed`).
        mirror: axes, each flipped with probability ½.
        stretch: ``[low, high]``, scale factor drawn per axis; ``null`` keeps sizes.
        shift: maximum translation along each axis.
        jitter: standard deviation of Gaussian noise on every point, clipped at three standard deviations.
        drop: maximum fraction of points dropped; the fraction is drawn per cloud.
        columns: names of the columns after x, y, z; nx, ny, nz among them are the normals.
        normals: ``False`` leaves the normals as they are; ``True`` without ``columns``: columns 3 to 5 are normals.
        azimuth, elevation: ``[minimum, maximum]`` in degrees, for ``pose``.
        keep_original: append the original positions, ``(B, N, D + 3)``, for an embedder that needs both.

    Raises:
        ValueError: invalid settings, or ``columns`` that name normals in part.
    """

    def __init__(
        self,
        turn: str = "none",
        mirror: Sequence[str] = (),
        stretch: Sequence[float] | None = None,
        shift: float = 0.0,
        jitter: float = 0.0,
        drop: float = 0.0,
        normals: bool | None = None,
        azimuth: Sequence[float] = (0.0, 360.0),
        elevation: Sequence[float] = (0.0, 0.0),
        keep_original: bool = False,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if turn not in TURNS:
            raise ValueError(f"turn must be one of {', '.join(TURNS)}, not {turn!r}")
        if set(mirror) - set("xyz"):
            raise ValueError(f"mirror takes axes out of x, y, z, not {', '.join(mirror)}")
        if stretch is not None and not 0 < stretch[0] <= stretch[1]:
            raise ValueError(f"stretch needs 0 < low <= high, not {list(stretch)}")
        if min(shift, jitter) < 0 or not 0 <= drop < 1:
            raise ValueError("PointAugment needs shift >= 0, jitter >= 0 and 0 <= drop < 1")
        if len(azimuth) != 2 or len(elevation) != 2 or azimuth[0] > azimuth[1] or elevation[0] > elevation[1]:
            raise ValueError("PointAugment takes azimuth and elevation as [lowest, highest] in degrees")
        self.turn = turn
        self.azimuth, self.elevation = tuple(azimuth), tuple(elevation)
        self.keep_original = keep_original
        self.mirror = tuple(axis in tuple(mirror) for axis in "xyz")
        self.stretch = None if stretch is None else (float(stretch[0]), float(stretch[1]))
        self.shift = shift
        self.jitter = jitter
        self.drop = drop
        moves = turn != "none" or any(self.mirror) or stretch is not None
        self.normals = _places(tuple(columns), normals) if moves else ()

    def forward(self, raw: Tensor) -> Tensor:
        batch, points, _ = raw.shape
        xyz, rest = raw[..., :3], raw[..., 3:]
        matrix = self._matrix(batch, raw)
        if matrix is not None:
            xyz, rest = (
                _turned(xyz, matrix),
                self._with_normals(rest, lambda normals: _turned(normals, matrix)),
            )
        radius = _radius(xyz)
        if self.stretch is not None:
            low, high = self.stretch
            factors = low + (high - low) * torch.rand(batch, 1, 3, device=raw.device)
            xyz, rest = xyz * factors, self._with_normals(rest, lambda normals: _stretched(normals, factors))
        if self.shift:
            xyz = xyz + self.shift * radius * (2 * torch.rand(batch, 1, 3, device=raw.device) - 1)
        if self.jitter:
            xyz = xyz + self.jitter * radius * torch.randn_like(xyz).clamp(-3, 3)
        if self.drop:
            share = self.drop * torch.rand(batch, 1, 1, device=raw.device)
            dropped = torch.rand(batch, points, 1, device=raw.device) < share
            xyz = torch.where(dropped, torch.nan, xyz)
        original = raw[..., : 3 if self.keep_original else 0]
        return torch.cat([xyz, rest, original], dim=-1)

    def _with_normals(self, rest: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The F columns after x, y, z, (B, N, F), with their normals changed."""
        return _changed(rest, [place - 3 for place in self.normals], change) if self.normals else rest

    def _matrix(self, batch: int, like: Tensor) -> Tensor | None:
        matrix = None
        if self.turn == "up":
            matrix = about_up(2 * math.pi * torch.rand(batch, device=like.device))
        elif self.turn == "any":
            matrix = in_any_direction(batch, like.device)
        elif self.turn == "pose":
            between = (self.azimuth, self.elevation)
            azimuth, elevation = (
                math.radians(low) + math.radians(high - low) * torch.rand(batch, device=like.device)
                for low, high in between
            )
            matrix = posed(azimuth, elevation)
        if any(self.mirror):
            mirrored = torch.tensor(self.mirror, device=like.device)
            signs = torch.where(mirrored & (torch.rand(batch, 3, device=like.device) < 0.5), -1.0, 1.0)
            matrix = torch.diag_embed(signs) if matrix is None else matrix * signs[:, None]
        return None if matrix is None else matrix.to(like.dtype)


def about_up(angle: Tensor) -> Tensor:
    """Rotation matrices (B, 3, 3) about z by ``angle`` (B,) in radians, for left multiplication."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def posed(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Rotation matrices (B, 3, 3) by angles (B,) in radians, for left multiplication.

    First about z by -azimuth, which rotates that direction to +x; then about y by the elevation, where a negative
    elevation lifts +x.
    """
    cos, sin, zero, one = (
        elevation.cos(),
        elevation.sin(),
        torch.zeros_like(elevation),
        torch.ones_like(elevation),
    )
    about_y = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1).unflatten(-1, (3, 3))
    return about_y @ about_up(-azimuth)


def in_any_direction(count: int, device: torch.device) -> Tensor:
    """Random rotation matrices (B, 3, 3), uniform over SO(3), from uniform unit quaternions."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, device=device), dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def turned_about_up(points: Tensor, columns: Sequence[str] = ()) -> Tensor:
    """K copies ``(K, N, D)`` of a cloud, the k-th rotated about z by 360°·k/K, for test-time voting.

    Normals among ``columns``, the names of the columns after x, y, z, turn too.
    """
    count = points.shape[0]
    matrix = about_up(2 * math.pi * torch.arange(count, device=points.device) / count).to(points.dtype)
    for places in filter(None, [(0, 1, 2), normal_places(columns)]):
        points = _changed(points, places, lambda vectors: _turned(vectors, matrix))
    return points


def _places(columns: tuple[str, ...], normals: bool | None) -> tuple[int, ...]:
    """Where the normals that are turned stand among the values of a point."""
    if normals is False:
        return ()
    named = normal_places(columns)
    if normals and columns and not named:
        raise ValueError(f"normals=true: none of the columns {', '.join(columns)} are normals (nx, ny, nz)")
    return named or ((3, 4, 5) if normals else ())


def _changed(table: Tensor, places: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """``(B, N, D)`` with the three columns at ``places`` changed together, as vectors (B, N, 3)."""
    columns = list(table.unbind(-1))
    vectors = change(torch.stack([columns[place] for place in places], dim=-1))
    for place, column in zip(places, vectors.unbind(-1), strict=True):
        columns[place] = column
    return torch.stack(columns, dim=-1)


def _turned(vectors: Tensor, matrix: Tensor) -> Tensor:
    return vectors @ matrix.transpose(1, 2)


def _stretched(normals: Tensor, factors: Tensor) -> Tensor:
    """Normals (B, N, 3) of a surface whose axes are stretched by ``factors`` (B, 1, 3), with their lengths kept."""
    across = normals / factors
    lengths = across.norm(dim=-1, keepdim=True).clamp(min=TINY)
    return across * (normals.norm(dim=-1, keepdim=True) / lengths)


def _radius(xyz: Tensor) -> Tensor:
    """RMS distance from the centre over the valid points: (B, 1, 1)."""
    centred = xyz - xyz.nanmean(1, keepdim=True)
    return centred.square().sum(-1, keepdim=True).nanmean(1, keepdim=True).sqrt().nan_to_num(0.0)
