"""Shape bias: of the decisions for one of two conflicting cues, the part that follows the shape.

Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture" (arXiv 1811.12231), Section 3: a picture
shows the shape of one category with the texture of another. Which decisions a network may give, and which classes
belong to which, is the caller's.

Shapes: N pictures, K classes, G categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShapeBias:
    """What :func:`shape_bias` found.

    Args:
        value: shape decisions / (shape + texture decisions), over all pictures; NaN without any of either.
        per_category: the same over the pictures of each shape; NaN for one without such a decision.
        shape, texture, neither: numbers of decisions.
        left_out: pictures whose shape and texture agree; they show no conflict and do not count.
        correct_congruent: of those, the part decided right; NaN without any.
    """

    value: float
    per_category: dict[str, float]
    shape: int
    texture: int
    neither: int
    left_out: int
    correct_congruent: float

    @property
    def mean_over_categories(self) -> float:
        """Mean of the categories that have a value: what published figures draw as a line."""
        values = [value for value in self.per_category.values() if value == value]
        return sum(values) / len(values) if values else float("nan")

    @property
    def cue_share(self) -> float:
        """The part of the pictures decided for either cue: a bias that rests on few of them says little."""
        counted = self.shape + self.texture + self.neither
        return (self.shape + self.texture) / counted if counted else float("nan")


def decide(probabilities_NK: Tensor, categories: Mapping[str, Sequence[int]]) -> Tensor:
    """The category of each picture, ``(N,)``: that with the highest mean probability of its classes.

    The mean, not the sum, so that a category of a hundred classes has no head start over one with a single class
    (the published rule). Of equal ones the first counts.

    Args:
        probabilities_NK: softmax over *all* classes, also those in no category.
        categories: name -> indices of its classes, at least one; the order numbers the categories.

    Raises:
        ValueError: a category without classes, or an index beyond K.

    >>> decide(torch.tensor([[0.5, 0.3, 0.2]]), {"few": [1], "many": [0, 2]}).tolist()
    [1]
    """
    classes = probabilities_NK.shape[1]
    for name, indices in categories.items():
        if not indices or min(indices) < 0 or max(indices) >= classes:
            raise ValueError(
                f"category {name} needs classes between 0 and {classes - 1}, not {list(indices)}"
            )
    means = [probabilities_NK[:, list(indices)].mean(dim=1) for indices in categories.values()]
    return torch.stack(means, dim=1).argmax(dim=1)


def shape_bias(
    decisions: Sequence[str], shapes: Sequence[str], textures: Sequence[str], names: Sequence[str]
) -> ShapeBias:
    """Shape bias of decisions on cue-conflict pictures.

    Args:
        decisions, shapes, textures: a category for each picture.
        names: the categories, in the order of the report.

    Raises:
        ValueError: lists of different lengths, or a name that is no category.
    """
    if not len(decisions) == len(shapes) == len(textures):
        raise ValueError("decisions, shapes and textures must be of one length")
    if strange := sorted({*decisions, *shapes, *textures} - set(names)):
        raise ValueError(f"{', '.join(strange)}: no category of {', '.join(names)}")
    counts = {name: [0, 0, 0] for name in names}  # shape, texture, neither
    congruent = right = 0
    for decision, shape, texture in zip(decisions, shapes, textures, strict=True):
        if shape == texture:
            congruent += 1
            right += decision == shape
            continue
        counts[shape][0 if decision == shape else 1 if decision == texture else 2] += 1
    by_shape, by_texture, neither = (sum(column) for column in zip(*counts.values(), strict=True))
    return ShapeBias(
        value=_share(by_shape, by_texture),
        per_category={name: _share(*counts[name][:2]) for name in names},
        shape=by_shape,
        texture=by_texture,
        neither=neither,
        left_out=congruent,
        correct_congruent=right / congruent if congruent else float("nan"),
    )


def _share(part: int, other: int) -> float:
    return part / (part + other) if part + other else float("nan")
