"""Dense inference on images of any size: resizing, padding, sliding windows, multi-scale and flip testing.

Shapes: B images of one size, K classes, H and W of the image in pixels, h and w of the network's input.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.bilinear import resized, scaled_by

MODES = ("whole", "slide")
FITS = ("pad", "resize")

Scores = Callable[[Tensor, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class DenseInference:
    """Per-pixel scores of a whole image from a network with variable input size.

    Args:
        resize: (longer, shorter) side into which the image is scaled to fit, keeping its aspect ratio; `None`: its own
            size.
        mode: `whole`: the whole image in one pass; `slide`: overlapping windows, whose scores are averaged.
        multiple: the sides of the network's input are multiples of this.
        fit: how to make them so: `pad` (right and below, with the mean colour) or `resize` (slightly larger, as in the
            official recipe).
        crop: side of a window, or height and width.
        stride: stride of the windows; `None`: two thirds of the window.
        ratios: scale factors for multi-scale testing.
        flip: also predict on the mirrored image at each scale; probabilities are averaged at the image's own size.

    Raises:
        ValueError: invalid settings.
    """

    resize: Sequence[int] | None = None
    mode: str = "whole"
    multiple: int = 32
    fit: str = "pad"
    crop: int | Sequence[int] = 512
    stride: int | Sequence[int] | None = None
    ratios: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.fit not in FITS:
            raise ValueError(
                f"task.inference.mode takes {' or '.join(MODES)} and fit {' or '.join(FITS)}, not {self.mode} and "
                f"{self.fit}"
            )
        sides = [*pair(self.crop), *self.strides, self.multiple, *(self.resize or (1, 1))]
        if min(sides) < 1 or any(s > c for s, c in zip(self.strides, pair(self.crop), strict=True)):
            raise ValueError("task.inference: sides are at least 1, and a stride is no larger than the crop")
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"task.inference.ratios takes factors above 0, not {list(self.ratios)}")

    @property
    def strides(self) -> tuple[int, int]:
        """Vertical and horizontal stride of the windows."""
        if self.stride is not None:
            return pair(self.stride)
        height, width = pair(self.crop)
        return max(height * 2 // 3, 1), max(width * 2 // 3, 1)

    def __call__(self, scores: Scores, pixels_B3HW: Tensor) -> Tensor:
        """Scores (logits, or logarithms of averaged probabilities) of every pixel, `(B, K, H, W)`.

        Args:
            scores: (images (B, 3, h', w'), their height and width without padding) -> scores at any stride.
            pixels_B3HW: images, uint8 or float on the scale 0..255.
        """
        size: tuple[int, int] = (pixels_B3HW.shape[-2], pixels_B3HW.shape[-1])
        views = list(self._views(pixels_B3HW))
        if len(views) == 1:
            return resized(self._scores(scores, views[0][0]), size)
        mean: Tensor | None = None
        for picture_B3hw, mirrored in views:
            found_BKhw = self._scores(scores, picture_B3hw)
            found_BKhw = found_BKhw.flip(-1) if mirrored else found_BKhw
            probs_BKHW = resized(found_BKhw, size).float().softmax(dim=1) / len(views)
            mean = probs_BKHW if mean is None else mean + probs_BKHW
        assert mean is not None
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()

    def _views(self, pixels_B3HW: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """The network's inputs, and whether each is mirrored."""
        height, width = pixels_B3HW.shape[-2:]
        for ratio in self.ratios:
            size = scaled_by(height, width, self.resize or None, ratio)
            if self.fit == "resize":
                size = (up_to(size[0], self.multiple), up_to(size[1], self.multiple))
            picture_B3hw = resized(pixels_B3HW.float(), size)
            yield picture_B3hw, False
            if self.flip:
                yield picture_B3hw.flip(-1), True

    def _scores(self, scores: Scores, picture_B3hw: Tensor) -> Tensor:
        """Scores at the size of the network's input."""
        if self.mode == "whole":
            return read_padded(scores, picture_B3hw, self.multiple)
        return slide(
            lambda window: read_padded(scores, window, self.multiple),
            picture_B3hw,
            pair(self.crop),
            self.strides,
        )


def read_padded(scores: Scores, picture_B3hw: Tensor, multiple: int) -> Tensor:
    """Pads an image on the right and below to multiples of `multiple`; returns the scores cropped to its size."""
    height, width = picture_B3hw.shape[-2:]
    whole = (up_to(height, multiple), up_to(width, multiple))
    filled = F.pad(picture_B3hw, (0, whole[1] - width, 0, whole[0] - height))
    return resized(scores(filled, (height, width)), whole)[..., :height, :width]


def slide(
    read: Callable[[Tensor], Tensor], picture_B3hw: Tensor, crop: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Sliding-window scores, averaged where windows overlap; the last window of a row or column is shifted inside.

    Args:
        read: window -> scores of its size.
        picture_B3hw: the image; if it is smaller than a window, it is a single window.
        crop, stride: height and width.
    """
    height, width = picture_B3hw.shape[-2:]
    total: Tensor | None = None
    count = picture_B3hw.new_zeros(height, width)
    for top in starts(height, crop[0], stride[0]):
        for left in starts(width, crop[1], stride[1]):
            place = (..., slice(top, min(top + crop[0], height)), slice(left, min(left + crop[1], width)))
            found = read(picture_B3hw[place])
            if total is None:
                total = found.new_zeros(*found.shape[:-2], height, width)
            total[place] += found
            count[place] += 1
    assert total is not None
    return total / count


def starts(length: int, crop: int, stride: int) -> list[int]:
    """Start positions of the windows along one side.

    >>> starts(10, 4, 3), starts(11, 4, 3), starts(3, 4, 3)
    ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(number * stride, length - crop), 0) for number in range(count)]


def up_to(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


def pair(side: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (side, side) if isinstance(side, int) else side
    return height, width
