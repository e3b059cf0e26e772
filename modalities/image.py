"""Images: already a map, so pixels are only normalised.

Shapes: B batch, H and W in pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modalities.embedder import Embedder, MapAxes
from modalities.tensor_info import TensorInfo

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Pixels(Embedder):
    """RGB pixels, normalised channel by channel: ``(B, 3, H, W)`` in 0..255 -> ``(B, 1, 3, H, W)``.

    Pixels are transferred to the device as uint8, a quarter of float32's size; augmentation may pass floats on the
    same scale. ``forward`` accepts any size. Images of different sizes are batched as ``{"pixels": (B, 3, H, W),
    "size": (B, 2)}`` with the height and width of each; padding is set to 0 (the mean colour) after normalisation.

    Args:
        size: nominal side (or height and width) in pixels, for tracing, MAC counting and export.
        mean, std: of each channel, on the scale 0..1. ImageNet's are the convention for RGB
            data sets and what pretrained weights expect.

    Raises:
        ValueError: statistics that are not three numbers, or a std that is not positive.

    Example:
        >>> Pixels()(torch.zeros(2, 3, 64, 48, dtype=torch.uint8)).shape
        torch.Size([2, 1, 3, 64, 48])
    """

    out_chans = 3
    raw_ndim = 4

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int | Sequence[int] = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.height, self.width = (size, size) if isinstance(size, int) else size
        if min(self.height, self.width) < 1:
            raise ValueError(f"an image needs at least one pixel, not {self.height} × {self.width}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("mean and std take three numbers each, one a channel, and std positive ones")
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1))

    def forward(self, raw: Tensor | Mapping[str, Tensor]) -> Tensor:
        pixels = raw if isinstance(raw, Tensor) else raw["pixels"]
        x_B3HW = (pixels.to(self.mean.dtype) - self.mean) / self.std
        if not isinstance(raw, Tensor):
            x_B3HW = x_B3HW * inside(raw["size"], *x_B3HW.shape[-2:])[:, None].to(x_B3HW.dtype)
        return x_B3HW[:, None]

    def context(self, raw: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """`size`, (B, 2): height and width of each image of a padded batch."""
        return None if isinstance(raw, Tensor) else {"size": raw["size"]}

    def unpadded(self, raw: Tensor | Mapping[str, Tensor]) -> list[Tensor] | None:
        if isinstance(raw, Tensor):
            return None
        sizes: list[list[int]] = raw["size"].tolist()
        return [
            image[:, :height, :width] for image, (height, width) in zip(raw["pixels"], sizes, strict=True)
        ]

    def example_raw(self, batch_size: int = 1) -> Tensor:
        shape = (batch_size, 3, self.height, self.width)
        return torch.randint(256, shape, dtype=torch.uint8, device=self.mean.device)

    def raw_info(self) -> dict[str, TensorInfo]:
        return {
            "pixels": TensorInfo(
                "RGB images, uint8 from 0 to 255; they are normalised inside the model",
                ("batch", "channel", "row", "column"),
                {"channels": ["red", "green", "blue"], "range": [0, 255]},
            )
        }

    def map_axes(self) -> MapAxes:
        return MapAxes(x="x (pixels)", y="y (pixels)", value="(pixel − mean) / std", square=True)


def inside(size_B2: Tensor, height: int, width: int) -> Tensor:
    """Validity mask of a padded batch: ``(B, height, width)``, true inside each image."""
    row_H1 = torch.arange(height, device=size_B2.device)[:, None]
    column_W = torch.arange(width, device=size_B2.device)
    return (row_H1 < size_B2[:, 0, None, None]) & (column_W < size_B2[:, 1, None, None])
