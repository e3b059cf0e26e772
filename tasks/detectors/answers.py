"""Post-processing: from per-class box scores to the final detections of an image.

Shapes: B images, N boxes, K classes, D detections.
"""

import torch
from torch import Tensor

from tasks.detectors.boxes import best, picked, survivors
from tasks.detectors.head import TestSettings


def chosen(boxes: Tensor, scores_BNK: Tensor, settings: TestSettings) -> Tensor:
    """The detections of each image, `(B, D, 6)`: x1, y1, x2, y2, score, class; padded with rows of 0.

    Each (box, class) pair is a separate candidate. The highest-scoring candidates are filtered by the score threshold
    and by class-wise NMS; the best of the remaining ones are kept.

    Args:
        boxes: (B, N, 4), or class-specific boxes, (B, N, K, 4).
        scores_BNK: in [0, 1].
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
