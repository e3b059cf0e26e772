"""Shape bias: the fraction of cue-conflict decisions that follow shape rather than texture.

Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture" (arXiv 1811.12231), Section 3: an image
shows the shape of one category with the texture of another. The caller chooses the categories and the classes
of each.

Shapes: N images, K classes, G categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShapeBias:
    """Result of :func:`shape_bias`.

    Args:
        value: shape decisions / (shape + texture decisions), over all images; NaN if there are none.
        per_category: the same over the images of each shape category; NaN if it has no such decision.
        shape, texture, neither: numbers of decisions.
        left_out: number of images without a cue conflict (shape and texture agree), which are excluded.
        correct_congruent: accuracy on those images; NaN if there are none.
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
        """Mean over the categories with a value, drawn as a line in published figures."""
        values = [value for value in self.per_category.values() if value == value]
        return sum(values) / len(values) if values else float("nan")

    @property
    def cue_share(self) -> float:
        """Fraction of images decided for either cue; if it is low, the shape bias is not meaningful."""
        counted = self.shape + self.texture + self.neither
        return (self.shape + self.texture) / counted if counted else float("nan")


def decide(probabilities_NK: Tensor, categories: Mapping[str, Sequence[int]]) -> Tensor:
    """The category of each image, ``(N,)``: the one with the highest mean probability over its classes.

    The mean, not the sum, so that categories with many classes have no advantage (the published rule). Ties go to the
    first category.

    Args:
        probabilities_NK: softmax over *all* classes, also those in no category.
        categories: name -> indices of its classes, at least one; categories are numbered in this order.

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
    """Shape bias of decisions on cue-conflict images.

    Args:
        decisions, shapes, textures: the category of each image.
        names: the categories, in report order.

    Raises:
        ValueError: lists of different lengths, or an unknown category.
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
