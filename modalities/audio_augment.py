"""Augmentation of audio, on raw waveforms (B, T) or on maps (B, V, C, H, W): time along W, frequency along H.

The classification task calls these in training only. Every random number comes from torch's global generator
of the batch's device, so seeding it makes a step repeatable.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WaveformAugment(nn.Module):
    """Random speed, shift, gain and noise, drawn per waveform: ``(B, T) -> (B, T)``.

    Args:
        speed: maximum change of speed, and with it of pitch, as a fraction: 0.2 draws factors between 1/1.2 and 1.2,
            their logarithm uniform (Ko et al. 2015, "Audio augmentation for speech recognition"). The middle stays
            where it is; silence fills the ends of what became shorter, the ends of what became longer are cut off.
        roll: maximum circular shift, as a fraction of the length (0.1: up to a tenth, in either direction).
        gain_db: maximum gain change in decibels, up or down.
        noise_db: maximum level of white noise relative to the waveform's RMS, in decibels: drawn from
            ``[-60, noise_db]``; ``None`` adds no noise.
        noise_prob: part of the waveforms that get noise. Below 1, training sees recordings as clean as the tested ones.
    """

    def __init__(
        self,
        roll: float = 0.0,
        gain_db: float = 0.0,
        noise_db: float | None = None,
        speed: float = 0.0,
        noise_prob: float = 1.0,
    ) -> None:
        super().__init__()
        if (
            not 0 <= roll <= 1
            or gain_db < 0
            or (noise_db is not None and noise_db < -60)
            or not 0 <= speed <= 1
            or not 0 <= noise_prob <= 1
        ):
            raise ValueError(
                "WaveformAugment needs 0 <= speed <= 1, 0 <= roll <= 1, gain_db >= 0, noise_db >= -60 (or null) and "
                "0 <= noise_prob <= 1"
            )
        self.speed = speed
        self.roll = roll
        self.gain_db = gain_db
        self.noise_db = noise_db
        self.noise_prob = noise_prob

    def forward(self, raw: Tensor) -> Tensor:
        batch, length = raw.shape
        if self.speed:
            exponent_B1 = 2 * torch.rand(batch, 1, device=raw.device) - 1
            raw = at_speed(raw, (1 + self.speed) ** exponent_B1)
        if self.roll:
            most = int(self.roll * length)
            raw = roll_each(raw, -most, most)
        if self.noise_db is not None:
            level = -60 + (self.noise_db + 60) * torch.rand(batch, 1, device=raw.device)
            loudness = rms(raw) * 10 ** (level / 20)
            if self.noise_prob < 1:
                loudness = loudness * (torch.rand(batch, 1, device=raw.device) < self.noise_prob)
            raw = raw + torch.randn_like(raw) * loudness
        if self.gain_db:
            gain = self.gain_db * (2 * torch.rand(batch, 1, device=raw.device) - 1)
            raw = raw * 10 ** (gain / 20)
        return raw


class WaveformMixup(nn.Module):
    """Mix waveforms and targets with others of the batch (between-class learning, arXiv 1711.10282).

    ``raw (B, T), target (B, classes) -> raw, target``; each waveform is mixed with probability ``prob``, with a
    weight drawn from Beta(alpha, alpha). For partners from the whole training split (the paper's recipe) see
    `tasks.datasets.mixing.Mixup`.

    Args:
        prob, alpha: as above.
        level: ``asis`` adds the weighted waveforms. ``equal`` weights them so that their RMS amplitudes are in the
            proportion of their shares of the target, whatever their levels, and divides by the norm of the two weights,
            as that paper does (with A-weighted levels). An RMS below -60 dB of full scale counts as that.
    """

    def __init__(self, prob: float = 0.6, alpha: float = 10.0, level: str = "asis") -> None:
        super().__init__()
        if not 0 <= prob <= 1 or alpha <= 0 or level not in ("asis", "equal"):
            raise ValueError("WaveformMixup needs 0 <= prob <= 1, alpha > 0 and level=asis or equal")
        self.prob = prob
        self.alpha = alpha
        self.level = level

    def forward(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        batch = raw.shape[0]
        alpha = torch.full((batch, 2), self.alpha, device=raw.device)
        share = torch.distributions.Dirichlet(alpha, validate_args=False).sample()[:, :1]
        share = torch.where(torch.rand(batch, 1, device=raw.device) < self.prob, share, 1.0)
        other = torch.randperm(batch, device=raw.device)
        own, its = share, 1 - share
        if self.level == "equal":
            level = rms(raw).clamp(min=1e-3)
            own, its = own * level[other], its * level
            norm = torch.hypot(own, its)
            own, its = own / norm, its / norm
        return own * raw + its * raw[other], share * target + (1 - share) * target[other]


class SpecAugment(nn.Module):
    """Frequency and time masking, additive noise and time shift, drawn per sample, ``(B, V, C, H, W)``.

    Masks as torchaudio draws them (Park et al. 2019, arXiv 1904.08779); ``noise`` and ``roll`` act on frames, as in AST
    (arXiv 2104.01778). The paper's recipe is ``48, 48, noise=0.1, roll=[-10, 9], fill=0`` with the embedder's mean and
    std.

    Args:
        freq_mask: exclusive upper bound on the mask's number of rows (mel bins); 0 disables it.
        time_mask: exclusive upper bound on the mask's number of columns (frames); 0 disables it.
        noise: uniform noise with an amplitude drawn from ``[0, noise)``.
        roll: circular shift in columns: the maximum in either direction, or ``[minimum, maximum]``, both inclusive.
        fill: log energy of a masked area before normalisation; ``None`` fills with the mean (0 after normalisation).
        mean, std: statistics used by `modalities.audio.LogMel`; required with ``fill``.

    Raises:
        ValueError: negative sizes, or a ``fill`` without statistics.
    """

    def __init__(
        self,
        freq_mask: int = 0,
        time_mask: int = 0,
        noise: float = 0.0,
        roll: int | Sequence[int] = 0,
        fill: float | None = None,
        mean: float | None = None,
        std: float | None = None,
    ) -> None:
        super().__init__()
        ends = (-roll, roll) if isinstance(roll, int) else tuple(roll)
        if min(freq_mask, time_mask, noise) < 0 or len(ends) != 2 or ends[0] > ends[1]:
            raise ValueError(
                "SpecAugment takes no negative sizes, and roll as a number or [smallest, largest]"
            )
        if fill is not None and (mean is None or std is None):
            raise ValueError(
                "SpecAugment needs the mean and std of the embedder to fill with a log energy: give both "
                "(modality.embedder.mean and std), or fill=null for the mean"
            )
        self.freq_mask = freq_mask
        self.time_mask = time_mask
        self.noise = noise
        self.roll = (int(ends[0]), int(ends[1]))
        self.fill = 0.0
        if fill is not None and mean is not None and std is not None:
            self.fill = (fill - mean) / (2 * std)

    def forward(self, maps: Tensor) -> Tensor:
        batch, _, _, height, width = maps.shape
        if self.freq_mask:
            masked_BH = _masked(batch, height, self.freq_mask, maps.device)
            maps = maps.masked_fill(masked_BH[:, None, None, :, None], self.fill)
        if self.time_mask:
            masked_BW = _masked(batch, width, self.time_mask, maps.device)
            maps = maps.masked_fill(masked_BW[:, None, None, None, :], self.fill)
        if self.noise:
            strength = self.noise * torch.rand(batch, 1, 1, 1, 1, device=maps.device)
            maps = maps + strength * torch.rand_like(maps)
        return maps if self.roll == (0, 0) else roll_each(maps, *self.roll)


def at_speed(raw_BT: Tensor, factor_B1: Tensor) -> Tensor:
    """Play every waveform ``factor`` times as fast about its middle: ``(B, T)``, silent beyond its ends.

    Cubic interpolation (Catmull-Rom) between samples, without a low-pass filter: played faster, what lies above the
    Nyquist frequency divided by ``factor`` is folded back.
    """
    length = raw_BT.shape[1]
    middle = (length - 1) / 2
    # In single precision, places in a recording of a minute would be rounded to a quarter of a sample.
    exact = torch.float32 if raw_BT.device.type == "mps" else torch.float64
    place_BT = (torch.arange(length, device=raw_BT.device) - middle) * factor_B1.to(exact) + middle
    before_BT = place_BT.floor()
    t_BT = (place_BT - before_BT).to(raw_BT.dtype)
    index_BT = before_BT.long()
    a, b, c, d = (_samples(raw_BT, index_BT + tap) for tap in (-1, 0, 1, 2))
    slope, other_slope = (c - a) / 2, (d - b) / 2
    bend = 3 * (c - b) - 2 * slope - other_slope
    twist = slope + other_slope - 2 * (c - b)
    return ((twist * t_BT + bend) * t_BT + slope) * t_BT + b


def rms(raw_BT: Tensor) -> Tensor:
    """Root mean square of every waveform, (B, 1)."""
    return raw_BT.square().mean(1, keepdim=True).sqrt()


def _samples(raw_BT: Tensor, index_BT: Tensor) -> Tensor:
    """The samples at these places, 0 outside."""
    length = raw_BT.shape[1]
    inside = (index_BT >= 0) & (index_BT < length)
    return raw_BT.gather(1, index_BT.clamp(0, length - 1)).where(inside, 0.0)


def roll_each(x: Tensor, low: int, high: int) -> Tensor:
    """Roll every sample of ``x`` (B, ..., W) along W by its own random integer in [low, high]."""
    width = x.shape[-1]
    shift_B1 = torch.randint(low, high + 1, (x.shape[0], 1), device=x.device)
    source_BW = (torch.arange(width, device=x.device) - shift_B1) % width
    source = source_BW.view(x.shape[0], *[1] * (x.ndim - 2), width).expand(x.shape)
    return x.gather(-1, source)


def _masked(batch: int, size: int, most: int, device: torch.device) -> Tensor:
    """True inside one random mask per sample, (B, size); masks are shorter than ``most`` and ``size``.

    A mask has length `floor(v)` and starts at `floor(u)`, with v ~ U(0, ``most``) and u ~ U(0, `size - v`).
    """
    length_B1 = torch.rand(batch, 1, device=device) * min(most, size)
    start_B1 = (torch.rand(batch, 1, device=device) * (size - length_B1)).floor()
    place = torch.arange(size, device=device)
    return (place >= start_B1) & (place < start_B1 + length_B1.floor())
