"""Corruptions of raw batches (microphone, sensor and camera faults), applied by the robustness probe.

Each corruption has a severity in its own unit; 0 leaves the batch unchanged. Random numbers come from a generator
on the CPU, so that results are the same on every device.

Shapes: B batch, T samples of a waveform or frames of a clip, L steps, N variates or points, D columns of a point,
H and W of an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn
from torch.utils._pytree import tree_map

from modalities.audio_augment import rms
from modalities.embedder import Embedder

Apply = Callable[[Any, float, torch.Generator, Embedder], Any]


@dataclass(frozen=True)
class Corruption:
    """One corruption of a raw batch.

    Args:
        label: quantity and unit of the severity, for axis labels.
        severities: increasing, above 0, from barely noticeable to destructive.
        apply: (raw batch, severity, generator, embedder) -> raw batch of the same shape and type.
        moves: whether it changes where or when things are, so that targets with places or times no longer fit.
    """

    label: str
    severities: tuple[float, ...]
    apply: Apply
    moves: bool = False

    def __call__(self, raw: Any, severity: float, generator: torch.Generator, embedder: Embedder) -> Any:
        """Corrupt a batch; a batch of crops, (B, crops, …), is corrupted per crop, samples of several sizes each
        without its padding."""
        if severity == 0:
            return raw
        if embedder.unpadded(raw) is not None:
            copied = tree_map(torch.clone, raw)
            for sample in embedder.unpadded(copied) or ():  # views of the copy
                sample.copy_(self.apply(sample[None], severity, generator, embedder)[0])
            return copied
        if isinstance(raw, Tensor) and raw.ndim == embedder.raw_ndim + 1:
            spoilt = self.apply(raw.flatten(0, 1), severity, generator, embedder)
            return spoilt.unflatten(0, raw.shape[:2])
        return self.apply(raw, severity, generator, embedder)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device)


def _chosen(shape: tuple[int, ...], share: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Independent Bernoulli mask, true with probability ``share``."""
    return (torch.rand(shape, generator=generator) < share).to(device)


def _signs(count: int, generator: torch.Generator) -> list[int]:
    return (2 * torch.randint(2, (count,), generator=generator) - 1).tolist()


def _as_pixels(x: Tensor, like: Tensor) -> Tensor:
    """Clamp to 0..255 and cast to the dtype of ``like``."""
    x = x.clamp(0, 255)
    return x if like.is_floating_point() else x.round().to(like.dtype)


# -- audio (B, T) --------------------------------------------------------------------------------------------


def _audio_noise(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    return raw + severity * rms(raw) * _normal(raw, generator)


def _audio_shift(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    steps = min(round(severity * raw.shape[1]), raw.shape[1])
    shifted = [fn.pad(wave, (steps, 0))[: len(wave)] if sign > 0 else fn.pad(wave, (0, steps))[steps:]
               for wave, sign in zip(raw, _signs(len(raw), generator), strict=True)]  # fmt: skip
    return torch.stack(shifted)


# -- time series: a dict with values (B, L, N) ---------------------------------------------------------------


def _series_noise(
    raw: dict[str, Tensor], severity: float, generator: torch.Generator, _: Embedder
) -> dict[str, Tensor]:
    values_BLN = raw["values"]
    spread_B1N = values_BLN.std(dim=1, keepdim=True, correction=0)
    return raw | {"values": values_BLN + severity * spread_B1N * _normal(values_BLN, generator)}


def _missing_variates(
    raw: dict[str, Tensor], severity: float, generator: torch.Generator, embedder: Embedder
) -> dict[str, Tensor]:
    """Drop whole variates: imputed with their training mean."""
    values_BLN = raw["values"]
    batch, _, variates = values_BLN.shape
    gone_B1N = _chosen((batch, 1, variates), severity, generator, values_BLN.device)
    mean_N = embedder.get_buffer("mean").to(values_BLN)
    return raw | {"values": torch.where(gone_B1N, mean_N, values_BLN)}


def _missing_steps(
    raw: dict[str, Tensor], severity: float, generator: torch.Generator, _: Embedder
) -> dict[str, Tensor]:
    """Drop single steps of all variates: imputed with the last known value (forward fill)."""
    values_BLN = raw["values"]
    gone_BL = _chosen(tuple(values_BLN.shape[:2]), severity, generator, values_BLN.device)
    index_BLN = _last_kept(gone_BL)[:, :, None].expand_as(values_BLN)
    return raw | {"values": values_BLN.gather(1, index_BLN)}


def _last_kept(gone_BL: Tensor) -> Tensor:
    """Index of the latest kept position up to and including each one; position 0 is always kept."""
    place_L = torch.arange(gone_BL.shape[1], device=gone_BL.device)
    return torch.where(gone_BL, 0, place_L).cummax(dim=1).values


# -- point clouds (B, N, D), x y z first; padding points are NaN ---------------------------------------------


def _point_noise(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    xyz_BN3 = raw[..., :3]
    centre_B13 = xyz_BN3.nanmean(dim=1, keepdim=True)
    radius_B11 = (xyz_BN3 - centre_B13).square().sum(-1, keepdim=True).nanmean(dim=1, keepdim=True).sqrt()
    spoilt = raw.clone()
    spoilt[..., :3] = xyz_BN3 + severity * radius_B11 * _normal(xyz_BN3, generator)
    return spoilt


def _point_dropout(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    gone_BN = _chosen(tuple(raw.shape[:2]), severity, generator, raw.device)
    there_BN = raw.isfinite().all(dim=-1)
    first_B = there_BN.int().argmax(dim=1)
    gone_BN[torch.arange(len(raw), device=raw.device), first_B] = False  # a cloud keeps at least one point
    return raw.masked_fill(gone_BN[..., None], torch.nan)


def _point_turn(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    angle = math.radians(severity)
    sign_B = torch.tensor(_signs(len(raw), generator), device=raw.device, dtype=raw.dtype)
    x_BN, y_BN = raw[..., 0], raw[..., 1]
    cosine, sine_B1 = math.cos(angle), sign_B[:, None] * math.sin(angle)
    spoilt = raw.clone()
    spoilt[..., 0], spoilt[..., 1] = cosine * x_BN - sine_B1 * y_BN, sine_B1 * x_BN + cosine * y_BN
    return spoilt


# -- video (B, T, 3, H, W) and images (B, 3, H, W), 0..255 ---------------------------------------------------


def _pixel_noise(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    return _as_pixels(raw.float() + 255 * severity * _normal(raw, generator), raw)


def _frame_drop(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    """Drop frames: each is replaced by the last kept frame."""
    gone_BT = _chosen(tuple(raw.shape[:2]), severity, generator, raw.device)
    index_BT = _last_kept(gone_BT)
    return torch.stack([clip[index] for clip, index in zip(raw, index_BT, strict=True)])


def _clip_late(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    """Delay the clip: the first frame is repeated, the last frames are cut off."""
    frames = raw.shape[1]
    place_T = torch.arange(frames, device=raw.device) - round(severity * frames)
    return raw[:, place_T.clamp(min=0)]


def _blur(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    most = min(raw.shape[-2:])
    size = min(2 * math.ceil(3 * severity) + 1, most - 1 + most % 2)  # the kernel must not exceed the image
    return _as_pixels(gaussian_blur(raw.float(), [size, size], [severity, severity]), raw)


def _low_contrast(raw: Tensor, severity: float, generator: torch.Generator, _: Embedder) -> Tensor:
    mean = raw.float().mean(dim=(-3, -2, -1), keepdim=True)
    return _as_pixels(mean + (1 - severity) * (raw.float() - mean), raw)


_PIXEL_NOISE = Corruption(
    "noise, standard deviation (parts of full scale)", (0.05, 0.1, 0.2, 0.4), _pixel_noise
)

#: Modality -> name -> corruption.
CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "audio": {
        "noise": Corruption(
            "white noise, level relative to the signal (1 = 0 dB)", (0.1, 0.3, 1.0, 3.0), _audio_noise
        ),
        "time_shift": Corruption(
            "time shift (parts of the clip)", (0.05, 0.1, 0.2, 0.4), _audio_shift, moves=True
        ),
    },
    "time_series": {
        "noise": Corruption("noise (standard deviations of the window)", (0.1, 0.3, 1.0, 2.0), _series_noise),
        "missing_variates": Corruption("missing variates (share)", (0.1, 0.25, 0.5, 1.0), _missing_variates),
        "missing_steps": Corruption("missing steps (share)", (0.1, 0.25, 0.5, 0.9), _missing_steps),
    },
    "point_cloud": {
        "noise": Corruption("noise, standard deviation (radii, RMS)", (0.02, 0.05, 0.1, 0.2), _point_noise),
        "point_dropout": Corruption("dropped points (share)", (0.25, 0.5, 0.75, 0.95), _point_dropout),
        "turn": Corruption(
            "turn about the vertical (degrees)", (15.0, 45.0, 90.0, 180.0), _point_turn, moves=True
        ),
    },
    "video": {
        "noise": _PIXEL_NOISE,
        "frame_drop": Corruption("dropped frames (share)", (0.25, 0.5, 0.75, 0.95), _frame_drop),
        "time_shift": Corruption(
            "time shift (parts of the clip)", (0.125, 0.25, 0.5, 0.75), _clip_late, moves=True
        ),
    },
    "image": {
        "noise": _PIXEL_NOISE,
        "blur": Corruption("Gaussian blur, standard deviation (pixels)", (1.0, 2.0, 4.0, 8.0), _blur),
        "contrast": Corruption("contrast lost (share)", (0.25, 0.5, 0.75, 0.9), _low_contrast),
    },
}
