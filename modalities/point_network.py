"""Learned features of points, from their columns and their nearest neighbours.

Shapes: B clouds, N points, D columns; K features; M hidden width; J neighbours.
"""

import torch
from torch import Tensor, nn


class PointNetwork(nn.Module):
    """Features of each point from its columns and, optionally, its neighbours: (B, N, D) -> (B, N, K), >= 0.

    Args:
        in_features: D.
        hidden: M.
        out_features: K.
        neighbors: J; 0 uses each point alone.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, neighbors: int = 0) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.first = nn.Sequential(nn.Linear(in_features, hidden), nn.LayerNorm(hidden), nn.GELU())
        # Edge features combine the point and the offset to the neighbour: A h_i + B (h_j - h_i) = (A - B) h_i + B h_j.
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


@torch.no_grad()
def nearest(xyz_BN3: Tensor, there_BN: Tensor, count: int) -> Tensor:
    """Indices of each point's ``count`` nearest points, including itself: (B, N, J).

    If there are fewer valid points, the point's own index fills the rest. Memory grows with N².
    """
    square_BN = xyz_BN3.square().sum(-1)
    distance_BNN = square_BN[:, :, None] + square_BN[:, None] - 2 * xyz_BN3 @ xyz_BN3.transpose(1, 2)
    distance_BNN = torch.where(there_BN[:, None], distance_BNN, torch.inf)
    distance_BNJ, index_BNJ = distance_BNN.topk(count, dim=-1, largest=False)
    itself_N1 = torch.arange(xyz_BN3.shape[1], device=xyz_BN3.device)[:, None]
    return torch.where(distance_BNJ.isfinite(), index_BNJ, itself_N1)
