"""Augmentation of audio, on raw waveforms (B, T) or on maps (B, V, C, H, W): time along W, frequency along H.

The classification task calls these in training only. Every random number comes from torch's global generator
of the batch's device, so seeding it makes a step repeatable.
"""

import torch
from torch import Tensor, nn


class WaveformAugment(nn.Module):
    """Random shift, level and noise, drawn for each waveform: ``(B, T) -> (B, T)``.

    Args:
        roll: largest circular shift, as a part of the length (0.1: up to a tenth, either way).
        gain_db: largest change of level in decibels, either way.
        noise_db: level of white noise relative to the waveform's own, in decibels: drawn from
            ``[-60, noise_db]``; ``None`` adds none.
    """

    def __init__(self, roll: float = 0.0, gain_db: float = 0.0, noise_db: float | None = None) -> None:
        super().__init__()
        if not 0 <= roll <= 1 or gain_db < 0 or (noise_db is not None and noise_db < -60):
            raise ValueError(
                "WaveformAugment needs 0 <= roll <= 1, gain_db >= 0 and noise_db >= -60 (or null)"
            )
        self.roll = roll
        self.gain_db = gain_db
        self.noise_db = noise_db

    def forward(self, raw: Tensor) -> Tensor:
        batch, length = raw.shape
        if self.roll:
            raw = roll_each(raw, int(self.roll * length))
        if self.noise_db is not None:
            level = -60 + (self.noise_db + 60) * torch.rand(batch, 1, device=raw.device)
            loudness = raw.square().mean(1, keepdim=True).sqrt()
            raw = raw + torch.randn_like(raw) * loudness * 10 ** (level / 20)
        if self.gain_db:
            gain = self.gain_db * (2 * torch.rand(batch, 1, device=raw.device) - 1)
            raw = raw * 10 ** (gain / 20)
        return raw


class WaveformMixup(nn.Module):
    """Mix waveforms and their targets with another of the batch (between-class learning, arXiv 1711.10282).

    ``raw (B, T), target (B, classes) -> raw, target``; each waveform is mixed with probability ``prob``, its
    own share drawn from Beta(alpha, alpha). The paper's recipe: ``prob=0.6, alpha=10``.
    """

    def __init__(self, prob: float = 0.6, alpha: float = 10.0) -> None:
        super().__init__()
        if not 0 <= prob <= 1 or alpha <= 0:
            raise ValueError("WaveformMixup needs 0 <= prob <= 1 and alpha > 0")
        self.prob = prob
        self.alpha = alpha

    def forward(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        batch = raw.shape[0]
        alpha = torch.full((batch, 2), self.alpha, device=raw.device)
        share = torch.distributions.Dirichlet(alpha, validate_args=False).sample()[:, :1]
        share = torch.where(torch.rand(batch, 1, device=raw.device) < self.prob, share, 1.0)
        other = torch.randperm(batch, device=raw.device)
        return share * raw + (1 - share) * raw[other], share * target + (1 - share) * target[other]


class SpecAugment(nn.Module):
    """Mask a band and a stretch of time, shift in time, add noise; drawn for each map, ``(B, V, C, H, W)``.

    Maps are normalised, so a masked area gets 0, the mean (Park et al. 2019, arXiv 1904.08779). ``noise`` and
    ``roll`` act on frames, as in AST (arXiv 2104.01778): the paper's recipe is ``48, 48, noise=0.1,
    roll=10``.

    Args:
        freq_mask: a mask covers fewer than so many rows (mel bins); 0 masks none.
        time_mask: a mask covers fewer than so many columns (frames); 0 masks none.
        noise: uniform noise of a strength drawn from ``[0, noise)``.
        roll: largest circular shift in columns, either way.
    """

    def __init__(self, freq_mask: int = 0, time_mask: int = 0, noise: float = 0.0, roll: int = 0) -> None:
        super().__init__()
        if min(freq_mask, time_mask, noise, roll) < 0:
            raise ValueError("SpecAugment takes no negative sizes")
        self.freq_mask = freq_mask
        self.time_mask = time_mask
        self.noise = noise
        self.roll = roll

    def forward(self, maps: Tensor) -> Tensor:
        batch, _, _, height, width = maps.shape
        if self.freq_mask:
            maps = maps * _kept(batch, height, self.freq_mask, maps)[:, None, None, :, None]
        if self.time_mask:
            maps = maps * _kept(batch, width, self.time_mask, maps)[:, None, None, None, :]
        if self.noise:
            strength = self.noise * torch.rand(batch, 1, 1, 1, 1, device=maps.device)
            maps = maps + strength * torch.rand_like(maps)
        return roll_each(maps, self.roll) if self.roll else maps


def roll_each(x: Tensor, most: int) -> Tensor:
    """Shift every sample of ``x`` (B, ..., W) circularly along W by its own whole number in [-most, most]."""
    width = x.shape[-1]
    shift_B1 = torch.randint(-most, most + 1, (x.shape[0], 1), device=x.device)
    source_BW = (torch.arange(width, device=x.device) - shift_B1) % width
    source = source_BW.view(x.shape[0], *[1] * (x.ndim - 2), width).expand(x.shape)
    return x.gather(-1, source)


def _kept(batch: int, size: int, most: int, like: Tensor) -> Tensor:
    """1 outside, 0 inside one random mask per sample, (B, size); masks are shorter than ``most`` and
    ``size``."""
    length_B1 = (torch.rand(batch, 1, device=like.device) * min(most, size)).floor()
    start_B1 = (torch.rand(batch, 1, device=like.device) * (size - length_B1 + 1)).floor()
    place = torch.arange(size, device=like.device)
    return ((place < start_B1) | (place >= start_B1 + length_B1)).to(like.dtype)
