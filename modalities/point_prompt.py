"""Point clouds: P2P's geometry-preserving projection, which renders a cloud as colour images for an image network.

Point-to-Pixel Prompting (Wang et al. 2022, arXiv 2208.02812, Section 3.2), in the multi-view form of UniRepLKNet's
official recipe. Shapes: B clouds, N points, J neighbours, V views, G width of a point's first features, C channels of a
point, S side of a map in pixels, E width of a token, T tokens of a view; M = B·V.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as fn

from modalities.embedder import Embedder, MapAxes
from modalities.image import IMAGENET_MEAN, IMAGENET_STD
from modalities.point_augment import posed
from modalities.point_cloud import draw_cloud
from modalities.point_network import nearest
from modalities.tensor_info import TensorInfo

PATCH = 7  # side of a token of the cross-view transformer, in pixels
TINY = 1e-6


class PointPrompt(Embedder):
    """Points ``(B, N, 3)`` -> V images ``(B, V, 3, S, S)`` with the colour statistics of ImageNet.

    * Every point gets C features of its neighbourhood (`EdgeFeatures`), computed in the cloud's original pose.
    * The cloud is posed: rotated about the vertical axis and tilted. Each view rotates it by a further 90° about one
      horizontal axis and projects it orthographically; the projection is centred and scaled to the side of the map.
    * The features of all points in the 3×3 neighbourhood of a pixel are summed (Section 3.2: a sum preserves the
      density), then pass through a residual block, a transformer across the patches of all views and a 1×1 convolution
      to three colours (`Painter`).

    Training clouds come posed from `modalities.point_augment.PointAugment` with ``keep_original``, as
    ``(B, N, 6)``: positions in the posed, scaled cloud, then the original positions. Clouds ``(B, N, 3)`` are
    posed here. Points with a non-finite value are treated as padding.

    Args:
        out_size: S; a multiple of 7.
        num_points: nominal N, for tracing; ``forward`` accepts any number.
        views: V, 1 to 4.
        neighbors: J, including the point itself.
        width: G.
        channels: C, a multiple of 4.
        pose: azimuth and elevation applied to clouds without a pose, in degrees.
        columns: must be empty: only positions are used.

    Raises:
        ValueError: invalid settings.

    Example:
        >>> PointPrompt(out_size=28, neighbors=8)(torch.randn(2, 100, 3)).shape
        torch.Size([2, 4, 3, 28, 28])
    """

    raw_ndim = 3
    draws_raw = True
    raw_projection = "3d"
    out_chans = 3

    quarter_turns: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        out_size: int = 224,
        num_points: int = 4096,
        views: int = 4,
        neighbors: int = 32,
        width: int = 8,
        channels: int = 64,
        pose: Sequence[float] = (108.0, -63.0),
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if out_size < PATCH or out_size % PATCH:
            raise ValueError(f"out_size must be a multiple of {PATCH}, not {out_size}")
        if not 1 <= views <= 4 or min(neighbors, width, channels) < 1 or channels % EdgeFeatures.groups:
            raise ValueError("PointPrompt needs 1 to 4 views, neighbors and width above 0, channels in fours")
        if len(columns):
            raise ValueError(
                f"PointPrompt draws x, y, z alone, not {', '.join(columns)}: task.data.columns=[]"
            )
        self.out_size = out_size
        self.num_points = num_points
        self.views = views
        self.pose = (float(pose[0]), float(pose[1]))
        self.features = EdgeFeatures(width, channels, neighbors)
        self.painter = Painter(channels, views)
        turns = torch.stack([_about_x(90.0 * view) for view in range(views)])
        self.register_buffer("quarter_turns", turns, persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        with torch.autocast(raw.device.type, enabled=False):  # bf16 is too coarse for positions
            points_BND = raw.float()
            there_BN = points_BND.isfinite().all(dim=-1)
            points_BND = torch.where(there_BN[..., None], points_BND, 0.0)
            place_BN3, own_BN3 = self._placed(points_BND)
            pixel_BVN = self.pixels(place_BN3, there_BN)
            own_BN3 = within_sphere(own_BN3, there_BN)
        x_BNC = self.features(own_BN3, there_BN)
        with torch.autocast(raw.device.type, enabled=False):
            sums_BVCSS = self.splat(x_BNC.float(), pixel_BVN)
        picture_M3SS = self.painter(sums_BVCSS.flatten(0, 1)).sigmoid()
        return ((picture_M3SS - self.mean) / self.std).unflatten(0, (-1, self.views))

    def _placed(self, points_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the posed cloud and original positions, (B, N, 3) each."""
        if points_BND.shape[-1] == 6:
            return points_BND[..., :3], points_BND[..., 3:]
        if points_BND.shape[-1] != 3:
            raise ValueError(f"PointPrompt reads x, y, z, not {points_BND.shape[-1]} columns")
        angle_B = points_BND.new_full((points_BND.shape[0],), math.pi / 180)
        matrix_B33 = posed(angle_B * self.pose[0], angle_B * self.pose[1])
        return points_BND @ matrix_B33.transpose(1, 2), points_BND

    def pixels(self, place_BN3: Tensor, there_BN: Tensor) -> Tensor:
        """Flat pixel index of every point in every view, over all views of a cloud, (B, V, N); padding points get one
        past the last pixel.

        Rows come from -y, columns from x, -z, -x and z for the four views. The longer side of the projection
        fills the map except for a margin of one pixel, needed by the 3×3 footprint.
        """
        side = self.out_size
        turned_BVN3 = torch.einsum("vij,bnj->bvni", self.quarter_turns, place_BN3)
        flat_BVN2 = turned_BVN3[..., :2]
        there_B1N1 = there_BN[:, None, :, None]
        low_BV12 = torch.where(there_B1N1, flat_BVN2, torch.inf).amin(dim=2, keepdim=True)
        high_BV12 = torch.where(there_B1N1, flat_BVN2, -torch.inf).amax(dim=2, keepdim=True)
        cell_BV11 = (high_BV12 - low_BV12).amax(dim=-1, keepdim=True).clamp(min=TINY) / (side - 3)
        # A margin of one pixel at both ends: 1 to side - 2 along the longer side.
        steps_BVN2 = ((flat_BVN2 - low_BV12) / cell_BV11).floor().clamp(0, side - 3) + 1
        last_BV12 = torch.where(there_B1N1, steps_BVN2, 1.0).amax(dim=2, keepdim=True)
        shift_BV12 = side // 2 - 1 - ((last_BV12 + 1) / 2).floor()
        index_BVN2 = (steps_BVN2 + shift_BV12).clamp(1, side - 2).long()
        view_V1 = torch.arange(self.views, device=place_BN3.device)[:, None]
        pixel_BVN = (view_V1 * side + index_BVN2[..., 0]) * side + index_BVN2[..., 1]
        return torch.where(there_BN[:, None], pixel_BVN, self.views * side * side)

    def splat(self, x_BNC: Tensor, pixel_BVN: Tensor) -> Tensor:
        """Sum the features of the points in each pixel and its eight neighbours: (B, V, C, S, S)."""
        side, views = self.out_size, self.views
        batch, _, channels = x_BNC.shape
        x_BXC = x_BNC[:, None].expand(-1, views, -1, -1).flatten(1, 2)  # X = V·N
        index_BXC = pixel_BVN.flatten(1)[..., None].expand_as(x_BXC)
        sums_BPC = x_BNC.new_zeros(batch, views * side * side + 1, channels).scatter_add(1, index_BXC, x_BXC)
        sums_MCSS = sums_BPC[:, :-1].unflatten(1, (views, side, side)).permute(0, 1, 4, 2, 3).flatten(0, 1)
        # Adding each point to nine pixels equals summing over each pixel's 3×3 window.
        summed_MCSS = 9 * fn.avg_pool2d(sums_MCSS, 3, stride=1, padding=1)
        return summed_MCSS.unflatten(0, (batch, views))

    def example_raw(self, batch_size: int = 1) -> Tensor:
        return torch.randn(batch_size, self.num_points, 3, device=self.mean.device)

    def raw_info(self) -> dict[str, TensorInfo]:
        return {
            "points": TensorInfo(
                "points, one a row, positions in any unit: each cloud is centred and scaled inside the model; a row "
                "with a value that is not finite is padding",
                ("batch", "point", "column"),
                {"columns": ["x", "y", "z"]},
            )
        }

    def map_axes(self) -> MapAxes:
        return self.view_axes()[0]

    def view_axes(self) -> tuple[MapAxes, ...]:
        return tuple(
            MapAxes(
                x="right (pixels)", y="down (pixels)", value="learnt colour", title=f"turned by {90 * view}°"
            )
            for view in range(self.views)
        )

    def draw_raw(self, panel: Any, raw: Tensor) -> None:
        """Scatter one cloud, coloured by its height."""
        points = raw[raw.isfinite().all(dim=-1), :3]
        draw_cloud(panel, points, points[:, 2])


class EdgeFeatures(nn.Module):
    """Features of each point's neighbourhood, (B, N, 3) -> (B, N, C): the edge convolution of DGCNN (arXiv 1801.07829,
    equation 7) as used in P2P: h_i = W x_i, e_ij = LeakyReLU(GroupNorm(A (h_j - h_i) + B h_i)), the maximum over the J
    nearest points j, and a linear layer.

    Args:
        width: of h.
        channels: C.
        neighbors: J.
    """

    groups = 4

    def __init__(self, width: int, channels: int, neighbors: int) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.width = width
        self.first = nn.Linear(3, width)
        self.edge = nn.Linear(2 * width, channels, bias=False)
        self.norm = nn.GroupNorm(self.groups, channels)
        self.last = nn.Linear(channels, channels)

    def forward(self, xyz_BN3: Tensor, there_BN: Tensor) -> Tensor:
        with torch.autocast(xyz_BN3.device.type, enabled=False):
            index_BNJ = nearest(xyz_BN3, there_BN, min(self.neighbors, xyz_BN3.shape[1]))
        h_BNG = self.first(xyz_BN3)
        a_CG, b_CG = self.edge.weight.split(self.width, dim=1)
        # A (h_j - h_i) + B h_i = A h_j + (B - A) h_i: the wide layer is applied per point instead of per edge.
        to_BNC = fn.linear(h_BNG, a_CG)
        index_BXC = index_BNJ.flatten(1)[..., None].expand(-1, -1, to_BNC.shape[-1])
        edge_BNJC = to_BNC.gather(1, index_BXC).unflatten(1, index_BNJ.shape[1:])
        edge_BNJC = edge_BNJC + fn.linear(h_BNG, b_CG - a_CG)[:, :, None]
        x_BNC = fn.leaky_relu(self._normalised(edge_BNJC.float(), there_BN), 0.2).amax(dim=2)
        return self.last(x_BNC)

    def _normalised(self, edge_BNJC: Tensor, there_BN: Tensor) -> Tensor:
        """Group norm over all edges of a cloud, excluding padding points."""
        x_BNJgK = edge_BNJC.unflatten(-1, (self.groups, -1))
        weight_BN111 = there_BN[:, :, None, None, None].float()
        count = weight_BN111.sum(dim=1, keepdim=True).clamp(min=1) * x_BNJgK.shape[2] * x_BNJgK.shape[4]
        mean = (x_BNJgK * weight_BN111).sum(dim=(1, 2, 4), keepdim=True) / count
        x_BNJgK = x_BNJgK - mean
        variance = (x_BNJgK.square() * weight_BN111).sum(dim=(1, 2, 4), keepdim=True) / count
        x_BNJC = (x_BNJgK * (variance + self.norm.eps).rsqrt()).flatten(-2)
        return x_BNJC * self.norm.weight + self.norm.bias


class Painter(nn.Module):
    """Summed features of all views -> three colours before the sigmoid, (M, C, S, S) -> (M, 3, S, S).

    One path is a ResNet block and a 1×1 convolution. In the other, 7×7 patch tokens of all V views of a cloud pass
    through one transformer layer and are upsampled by repetition and a 3×3 convolution. Both are concatenated and
    projected to three colours.

    Args:
        channels: C.
        views: V.
        width: E.
        heads: number of attention heads, each of width E.
        hidden: width of the transformer's MLP.
    """

    def __init__(
        self, channels: int, views: int, width: int = 128, heads: int = 8, hidden: int = 256
    ) -> None:
        super().__init__()
        self.views = views
        self.heads = heads
        self.block = nn.Sequential(BasicBlock(channels, channels), nn.Conv2d(channels, channels, 1))
        self.token = nn.Conv2d(channels, width, PATCH, stride=PATCH, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * width, bias=False)
        self.out = nn.Linear(heads * width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.back = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.GELU())
        self.join = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.GELU())
        self.colour = nn.Conv2d(channels, 3, 1)

    def forward(self, x_MCSS: Tensor) -> Tensor:
        x_MCSS = self.block(x_MCSS)
        token_MEss = self.token(x_MCSS)
        rows = token_MEss.shape[-1]
        token_MTE = token_MEss.flatten(2).transpose(1, 2)
        token_BXE = token_MTE.unflatten(0, (-1, self.views)).flatten(1, 2)  # X = V·T
        token_BXE = token_BXE + self._attention(self.norm1(token_BXE))
        token_BXE = token_BXE + self.mlp(self.norm2(token_BXE))
        token_MTE = token_BXE.unflatten(1, (self.views, -1)).flatten(0, 1)
        token_MEss = token_MTE.transpose(1, 2).unflatten(2, (rows, rows))
        seen_MCSS = self.back(token_MEss.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1))
        return self.colour(self.join(torch.cat([seen_MCSS, x_MCSS], dim=1)))

    def _attention(self, x_BXE: Tensor) -> Tensor:
        query, key, value = self.qkv(x_BXE).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen_BhXE = fn.scaled_dot_product_attention(query, key, value)
        return self.out(seen_BhXE.transpose(1, 2).flatten(2))


def within_sphere(xyz_BN3: Tensor, there_BN: Tensor) -> Tensor:
    """Centre the valid points on their mean and scale the farthest to distance 1."""
    weight_BN1 = there_BN[..., None].float()
    centre_B13 = (xyz_BN3 * weight_BN1).sum(1, keepdim=True) / weight_BN1.sum(1, keepdim=True).clamp(min=1)
    xyz_BN3 = (xyz_BN3 - centre_B13) * weight_BN1
    return xyz_BN3 / xyz_BN3.square().sum(-1, keepdim=True).sqrt().amax(1, keepdim=True).clamp(min=TINY)


def _about_x(degrees: float) -> Tensor:
    """A view's rotation matrix (3, 3) with integer entries, so that quarter turns are exact."""
    cos, sin = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    # A first quarter turn about z makes -y the first axis; the views rotate about it.
    about_first = torch.tensor([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    return about_first @ quarter
