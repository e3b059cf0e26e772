"""Box operations: delta coding relative to a reference box, clipping, non-maximum suppression, top-k.

Shapes: N boxes, each x1 y1 x2 y2 in pixels, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

MOST_GROWTH = math.log(1000 / 16)  # clamp of log size ratios, reached only by an untrained network
LEAST_SIDE = 1e-3


@dataclass(frozen=True)
class BoxCoding:
    """Box deltas: the centre's offset relative to the reference box's size, and the log of the size ratios
    (Girshick et al. 2014, arXiv 1311.2524, appendix C), each divided by a standard deviation.

    Args:
        stds: the four standard deviations (dx, dy, dw, dh).
    """

    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.stds) != 4 or min(self.stds) <= 0:
            raise ValueError(f"task.head: stds takes four numbers above 0, not {list(self.stds)}")

    def encode(self, boxes_N4: Tensor, references_N4: Tensor) -> Tensor:
        """`(N, 4)` boxes -> their deltas."""
        centre_N2, sides_N2 = _centre_and_sides(boxes_N4)
        at_N2, scale_N2 = _centre_and_sides(references_N4)
        deltas_N4 = torch.cat([(centre_N2 - at_N2) / scale_N2, (sides_N2 / scale_N2).log()], dim=-1)
        return deltas_N4 / deltas_N4.new_tensor(list(self.stds))

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Deltas `(…, 4)` and references `(…, 4)` -> boxes in float32; sides change by a factor of at most 1000/16."""
        deltas = deltas.float() * torch.tensor(list(self.stds), device=deltas.device)
        at, scale = _centre_and_sides(references.float())
        centre = at + deltas[..., :2] * scale
        half = scale * deltas[..., 2:].clamp(-MOST_GROWTH, MOST_GROWTH).exp() / 2
        return torch.cat([centre - half, centre + half], dim=-1)


def _centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=LEAST_SIDE)
    return (boxes[..., :2] + boxes[..., 2:]) / 2, sides


def clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes clipped to their images.

    Args:
        boxes: (…, 4).
        sizes: height and width of each box's image, broadcastable to (…, 2).
    """
    most = sizes.to(boxes.dtype).flip(-1)  # x before y
    return torch.cat(
        [
            torch.minimum(boxes[..., :2].clamp(min=0), most),
            torch.minimum(boxes[..., 2:].clamp(min=0), most),
        ],
        dim=-1,
    )


def has_area(boxes: Tensor) -> Tensor:
    """Whether each box, (…, 4), has sides above 0."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def survivors(boxes_BN4: Tensor, scores_BN: Tensor, groups_BN: Tensor, most_overlap: float) -> Tensor:
    """Non-maximum suppression within each group (e.g. class) of each image: which boxes are kept, `(B, N)` bool.

    If two boxes of a group overlap by an IoU above `most_overlap`, the one with the lower score is removed.
    """
    if not torch.compiler.is_exporting():
        kept_BN = torch.zeros_like(scores_BN, dtype=torch.bool)
        for kept, boxes, scores, groups in zip(kept_BN, boxes_BN4, scores_BN, groups_BN, strict=True):
            kept[batched_nms(boxes, scores, groups, most_overlap)] = True
        return kept_BN
    # An exported program has a dynamic batch size: boxes are offset by image and group, so that one NMS call suffices.
    batch, number = scores_BN.shape
    picture_B1 = torch.arange(batch, device=boxes_BN4.device)[:, None]
    apart_BN = (picture_B1 * (groups_BN.max() + 1) + groups_BN).to(boxes_BN4.dtype)
    moved_BN4 = boxes_BN4 + (apart_BN * (boxes_BN4.max() + 1))[..., None]
    kept = nms(moved_BN4.reshape(-1, 4), scores_BN.reshape(-1), most_overlap)
    flat = torch.zeros(batch * number, dtype=torch.bool, device=boxes_BN4.device)
    return flat.index_fill(0, kept, True).view(batch, number)


def best(scores_BN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The top-`most` scores of each image and their indices, `(B, ≤ most)` each, in descending order."""
    scores, places = scores_BN.topk(min(most, scores_BN.shape[1]), dim=1)
    return scores, places


def picked(values_BNC: Tensor, places_BP: Tensor) -> Tensor:
    """Gathers `(B, N, C)` at indices `(B, P)` -> `(B, P, C)`."""
    return values_BNC.gather(1, places_BP[..., None].expand(-1, -1, values_BNC.shape[-1]))
