"""Crops, flips and affine warps of a batch of images, drawn per image, as batched torch code.

torchvision's transforms draw one crop per call, so that all images of a batch would be cropped alike. Nothing here
waits for a value from a GPU, or copies one to it, so that a CUDA graph can record it.

Shapes: B images of H × W pixels, output S_h × S_w. Coordinates in pixels, (0, 0) is the corner of the first pixel.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 10  # candidate boxes per image; the first that fits is used


def uniform(low: float, high: float, *size: int, device: torch.device) -> Tensor:
    """Uniform random numbers."""
    return torch.empty(size, device=device).uniform_(low, high)


def chance(probability: float, batch: int, device: torch.device) -> Tensor:
    """True with the given probability, (B,)."""
    return torch.rand(batch, device=device) < probability


def flipped(x_BCHW: Tensor, flip_B: Tensor, axis: int) -> Tensor:
    """Mirror the images for which ``flip_B`` is true along an axis."""
    return torch.where(flip_B.view(-1, *[1] * (x_BCHW.ndim - 1)), x_BCHW.flip(axis), x_BCHW)


def shifted_crops(x_BCHW: Tensor, padding: int) -> Tensor:
    """Pad with zeros on all sides, and cut a random window of the original size, at whole pixels."""
    batch, _, height, width = x_BCHW.shape
    device = x_BCHW.device
    rows_BH, columns_BW = (
        torch.randint(2 * padding + 1, (batch, 1), device=device) + torch.arange(side, device=device)
        for side in (height, width)
    )
    wide = F.pad(x_BCHW, [padding] * 4)
    place_BHW = rows_BH[:, :, None] * wide.shape[-1] + columns_BW[:, None, :]
    place_BCP = place_BHW.flatten(1)[:, None].expand(-1, x_BCHW.shape[1], -1)
    return wide.flatten(2).gather(2, place_BCP).view_as(x_BCHW)


def random_boxes(
    batch: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    device: torch.device,
) -> Tensor:
    """Boxes of random area and aspect ratio (torchvision's RandomResizedCrop): left, top, right, bottom, ``(B, 4)``.

    Of ``ATTEMPTS`` candidates the first that fits; if none does, the largest central box within ``ratio``.

    Args:
        batch: B.
        size: height and width of the images.
        scale: minimum and maximum fraction of the area.
        ratio: minimum and maximum of width / height.
        device: of the result.
    """
    height, width = size
    area_Ba = height * width * uniform(*scale, batch, ATTEMPTS, device=device)
    ratio_Ba = uniform(math.log(ratio[0]), math.log(ratio[1]), batch, ATTEMPTS, device=device).exp()
    w_Ba, h_Ba = (area_Ba * ratio_Ba).sqrt().round(), (area_Ba / ratio_Ba).sqrt().round()
    fits_Ba = (w_Ba >= 1) & (w_Ba <= width) & (h_Ba >= 1) & (h_Ba <= height)
    first_B1 = fits_Ba.int().argmax(dim=1, keepdim=True)
    any_B = fits_Ba.any(dim=1)
    w_B, h_B = w_Ba.gather(1, first_B1)[:, 0], h_Ba.gather(1, first_B1)[:, 0]
    inside = min(max(width / height, ratio[0]), ratio[1])
    w_B = torch.where(any_B, w_B, float(min(width, round(height * inside))))
    h_B = torch.where(any_B, h_B, float(min(height, round(width / inside))))
    left_B = (torch.rand(batch, device=device) * (width - w_B + 1)).floor()
    top_B = (torch.rand(batch, device=device) * (height - h_B + 1)).floor()
    left_B = torch.where(any_B, left_B, ((width - w_B) / 2).round())
    top_B = torch.where(any_B, top_B, ((height - h_B) / 2).round())
    return torch.stack([left_B, top_B, left_B + w_B, top_B + h_B], dim=1)


def box_matrices(box_B4: Tensor, size: tuple[int, int]) -> Tensor:
    """Affine maps from output pixels to the pixels of a box, ``(B, 3, 3)``; `size` is the output's height and width."""
    left_B, top_B, right_B, bottom_B = box_B4.unbind(dim=1)
    matrix_B33 = _identities(len(box_B4), box_B4)
    matrix_B33[:, 0, 0], matrix_B33[:, 0, 2] = (right_B - left_B) / size[1], left_B
    matrix_B33[:, 1, 1], matrix_B33[:, 1, 2] = (bottom_B - top_B) / size[0], top_B
    return matrix_B33


def rotations(degrees_B: Tensor, size: tuple[int, int]) -> Tensor:
    """Rotations about the centre, counter-clockwise as seen, ``(B, 3, 3)``."""
    angle_B = torch.deg2rad(degrees_B)
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    centre_x, centre_y = size[1] / 2, size[0] / 2
    matrix_B33 = _identities(len(degrees_B), degrees_B)
    matrix_B33[:, 0, 0], matrix_B33[:, 0, 1] = cos_B, -sin_B
    matrix_B33[:, 1, 0], matrix_B33[:, 1, 1] = sin_B, cos_B
    matrix_B33[:, 0, 2] = centre_x - cos_B * centre_x + sin_B * centre_y
    matrix_B33[:, 1, 2] = centre_y - sin_B * centre_x - cos_B * centre_y
    return matrix_B33


def shears_and_shifts(shear_B2: Tensor, shift_B2: Tensor) -> Tensor:
    """Shears along x and y, then shifts in pixels, as Pillow's affine transform takes them, ``(B, 3, 3)``."""
    matrix_B33 = _identities(len(shear_B2), shear_B2)
    matrix_B33[:, 0, 1], matrix_B33[:, 1, 0] = shear_B2[:, 0], shear_B2[:, 1]
    matrix_B33[:, :2, 2] = shift_B2
    return matrix_B33


def _identities(batch: int, like: Tensor) -> Tensor:
    return torch.eye(3, device=like.device, dtype=like.dtype).expand(batch, 3, 3).clone()


def warped(
    x_BCHW: Tensor, matrix_B33: Tensor, size: tuple[int, int], mode: str, edge: str = "border"
) -> Tensor:
    """Sample images at affinely mapped positions.

    Args:
        x_BCHW: float.
        matrix_B33: maps an output position (x, y, 1) to the position in the image that is read.
        size: height and width of the output.
        mode: interpolation, ``bilinear``, ``bicubic`` or ``nearest``.
        edge: ``border`` repeats the outermost pixels, ``zeros`` reads 0 outside.
    """
    height, width = x_BCHW.shape[-2:]
    row_H1, column_W = (torch.arange(side, device=x_BCHW.device) + 0.5 for side in size)
    row_H1 = row_H1[:, None]
    x_BHW, y_BHW = (
        x_B3[:, 0, None, None] * column_W + x_B3[:, 1, None, None] * row_H1 + x_B3[:, 2, None, None]
        for x_B3 in matrix_B33[:, :2].unbind(dim=1)
    )
    grid_BHW2 = torch.stack([2 * x_BHW / width - 1, 2 * y_BHW / height - 1], dim=-1)
    return F.grid_sample(x_BCHW, grid_BHW2.to(x_BCHW.dtype), mode, edge, align_corners=False)
