"""From scores of every box and class to the detections of a picture.

Shapes: B pictures, N boxes, K classes, D detections.
"""

import torch
from torch import Tensor

from tasks.detectors.boxes import best, picked, survivors
from tasks.detectors.head import TestSettings


def chosen(boxes: Tensor, scores_BNK: Tensor, settings: TestSettings) -> Tensor:
    """The detections of each picture, `(B, D, 6)`: x1, y1, x2, y2, score, class; rows of 0 are none.

    Every pair of box and class counts by itself. Of the best pairs, those below the least score and those that overlap
    a better one of their class go; the best of the others are kept.

    Args:
        boxes: (B, N, 4), or a box for each class, (B, N, K, 4).
        scores_BNK: 0 to 1.
        settings: see `TestSettings`.
    """
    classes = scores_BNK.shape[-1]
    score_BC, pair_BC = best(scores_BNK.flatten(1), settings.candidates)
    label_BC = pair_BC % classes
    if boxes.ndim == 4:
        boxes_BC4 = picked(boxes.flatten(1, 2), pair_BC)
    else:
        boxes_BC4 = picked(boxes, torch.div(pair_BC, classes, rounding_mode="floor"))
    likely_BC = score_BC > settings.score
    left_BC = survivors(boxes_BC4, score_BC, label_BC, settings.overlap) & likely_BC
    score_BD, place_BD = best(score_BC * left_BC, settings.most)
    found_BC5 = torch.cat([boxes_BC4, label_BC[..., None].to(boxes_BC4.dtype)], dim=-1)
    found_BD5 = picked(found_BC5, place_BD) * (score_BD > 0)[..., None]
    return torch.cat([found_BD5[..., :4], score_BD[..., None], found_BD5[..., 4:]], dim=-1)
