"""Audio: a waveform becomes one log-mel map, time along W and mel frequency along H.

Shapes: B batch, T samples, N frames, L samples per frame, K frequencies of the Fourier transform, F mel bins.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn

from modalities.embedder import Embedder, MapAxes, Normalize
from modalities.tensor_info import TensorInfo

PREEMPHASIS = 0.97
LOG_FLOOR = torch.finfo(torch.float32).eps
WINDOWS = ("hanning", "hamming", "povey")


class LogMel(Embedder):
    """Log-mel filter bank energies as Kaldi computes them, batched and on the batch's device.

    ``(B, T)`` waveforms in [-1, 1] -> ``(B, 1, 1, F, N)`` maps, ``(x - mean) / (2 std)``; row 0 is the lowest
    frequency. Recordings of different lengths come as ``{"waveform": (B, T), "length": (B,)}``, zero-padded at the end.
    Equal to ``torchaudio.compliance.kaldi.fbank(htk_compat=True, use_energy=False, dither=0)``:
    no padding at the edges, per-frame mean removal, pre-emphasis 0.97, power spectrum, natural
    logarithm. The recipe of AST (Gong et al. 2021, arXiv 2104.01778), which UniRepLKNet follows, also
    subtracts the mean of the whole waveform first; because the mean of every frame is removed anyway, this has no
    effect and is omitted.

    Args:
        sample_rate: of the waveforms, in Hz.
        seconds: nominal length of a waveform, for tracing and axis labels; ``forward`` accepts any length.
        num_mel_bins: F.
        num_frames: N. Shorter inputs are padded at the end with log energy 0 *before* normalisation, as in AST;
            longer ones are truncated. ``None`` keeps all frames (at least one).
        frame_length_ms, frame_shift_ms: in milliseconds.
        low_freq, high_freq: edges of the filter bank in Hz; ``high_freq=None`` means half the sample rate.
        window: ``hanning``, ``hamming`` or ``povey``.
        mean, std: of the log energies; ``None`` for both measures them on the training split.

    Raises:
        ValueError: invalid filter bank settings.

    Example:
        >>> LogMel(num_mel_bins=64)(torch.randn(2, 16000)).shape
        torch.Size([2, 1, 1, 64, 128])
    """

    out_chans = 1
    raw_ndim = 2

    fourier: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        seconds: float = 1.0,
        num_mel_bins: int = 128,
        num_frames: int | None = 128,
        frame_length_ms: float = 25.0,
        frame_shift_ms: float = 10.0,
        low_freq: float = 20.0,
        high_freq: float | None = None,
        window: str = "hanning",
        mean: float | None = -6.845978,
        std: float | None = 5.5654526,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.seconds = seconds
        self.num_mel_bins = num_mel_bins
        self.num_frames = num_frames
        self.frame_length = int(sample_rate * frame_length_ms * 0.001)
        self.frame_shift = int(sample_rate * frame_shift_ms * 0.001)
        self.low_freq = low_freq
        self.high_freq = sample_rate / 2 if high_freq is None else high_freq
        if self.frame_length < 2 or self.frame_shift < 1:
            raise ValueError(
                f"frames of {frame_length_ms} ms every {frame_shift_ms} ms are too short at {sample_rate} Hz"
            )
        if num_mel_bins < 1 or (num_frames is not None and num_frames < 1):
            raise ValueError("num_mel_bins and num_frames must be at least 1")
        if not 0 <= self.low_freq < self.high_freq <= sample_rate / 2:
            raise ValueError(
                f"the filter bank needs 0 <= low_freq < high_freq <= {sample_rate / 2:g} Hz, half the sample "
                f"rate, not {self.low_freq:g} and {self.high_freq:g}"
            )
        # The transform is a product with a fixed matrix (window included), not an FFT: its cost is small beside
        # a backbone's, and torch.compile, ONNX and some devices do not support complex numbers.
        fft_length = 2 ** math.ceil(math.log2(self.frame_length))
        filters_KF = mel_filters(num_mel_bins, fft_length, sample_rate, self.low_freq, self.high_freq)
        self.register_buffer(
            "fourier", windowed_fourier(window, self.frame_length, fft_length), persistent=False
        )
        self.register_buffer("filters", filters_KF, persistent=False)
        self.normalize = Normalize(mean, None if std is None else 2 * std)

    @classmethod
    def data_arguments(cls, data_info: dict[str, Any]) -> dict[str, Any]:
        return super().data_arguments(data_info) | (
            {"seconds": data_info["seconds"]} if "seconds" in data_info else {}
        )

    def forward(self, raw: Tensor | Mapping[str, Tensor]) -> Tensor:
        raw_BT = raw if isinstance(raw, Tensor) else raw["waveform"]
        with torch.autocast(
            raw_BT.device.type, enabled=False
        ):  # the logarithm of small sums needs more precision than bf16
            x_BNF = self.log_energies(raw_BT)
            if self.num_frames is not None:
                x_BNF = fn.pad(
                    x_BNF[:, : self.num_frames], (0, 0, 0, max(self.num_frames - x_BNF.shape[1], 0))
                )
            return self.normalize(x_BNF).transpose(1, 2)[:, None, None]

    def log_energies(self, raw: Tensor) -> Tensor:
        """Log-mel energies ``(B, T)`` -> ``(B, N, F)``, before normalisation and padding to ``num_frames``."""
        x_BT = raw.float()
        if x_BT.shape[-1] < self.frame_length:  # shorter than one frame: pad with silence
            x_BT = fn.pad(x_BT, (0, self.frame_length - x_BT.shape[-1]))
        x_BNL = x_BT.unfold(-1, self.frame_length, self.frame_shift)
        x_BNL = x_BNL - x_BNL.mean(-1, keepdim=True)
        before_BNL = torch.cat([x_BNL[..., :1], x_BNL[..., :-1]], dim=-1)
        cosine_BNK, sine_BNK = ((x_BNL - PREEMPHASIS * before_BNL) @ self.fourier).chunk(2, dim=-1)
        power_BNK = cosine_BNK.square() + sine_BNK.square()
        return (power_BNK @ self.filters).clamp(min=LOG_FLOOR).log()

    @property
    def needs_statistics(self) -> bool:
        return not bool(self.normalize.fitted)

    @torch.no_grad()
    def fit_statistics(self, raws: Iterable[Tensor | Mapping[str, Tensor]]) -> None:
        """Measure mean and std of the log energies of ``(..., T)`` batches, excluding padding."""
        parts = (part for raw in raws for part in unfilled(raw))
        self.normalize.fit(self.log_energies(part.to(self.fourier.device)) for part in parts)
        self.normalize.std.mul_(2)

    def unpadded(self, raw: Tensor | Mapping[str, Tensor]) -> list[Tensor] | None:
        return None if isinstance(raw, Tensor) else list(unfilled(raw))

    def example_raw(self, batch_size: int = 1) -> Tensor:
        length = max(round(self.seconds * self.sample_rate), 1)
        return 0.1 * torch.randn(batch_size, length, device=self.fourier.device)

    def raw_info(self) -> dict[str, TensorInfo]:
        return {
            "waveform": TensorInfo(
                "mono sound, amplitudes in [-1, 1]",
                ("batch", "sample"),
                {"sample_rate_hz": self.sample_rate, "range": [-1, 1]},
            )
        }

    def map_axes(self) -> MapAxes:
        ticks = []
        for hertz in (125, 250, 500, 1000, 2000, 4000, 8000, 16000):
            if self.low_freq <= hertz <= self.high_freq:
                low, high = hertz_to_mel(self.low_freq), hertz_to_mel(self.high_freq)
                row = (hertz_to_mel(hertz) - low) / (high - low) * (self.num_mel_bins + 1) - 1
                if 0 <= row <= self.num_mel_bins - 1:
                    ticks.append((row, str(hertz)))
        frames = self.num_frames or max(
            1 + (self.seconds * self.sample_rate - self.frame_length) // self.frame_shift, 1
        )
        return MapAxes(
            x="time (s)",
            y="mel frequency (Hz)",
            x_range=(0.0, frames * self.frame_shift / self.sample_rate),
            y_ticks=tuple(ticks),
            value="log energy, (x − mean) / 2 std",
            origin="lower",
        )


def unfilled(raw: Tensor | Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The waveforms of a raw batch, (..., T), without padding."""
    if isinstance(raw, Tensor):
        yield raw
    else:
        yield from (
            wave[:length] for wave, length in zip(raw["waveform"], raw["length"].tolist(), strict=True)
        )


def hertz_to_mel(hertz: float) -> float:
    """Kaldi's (and HTK's) mel scale."""
    return 1127.0 * math.log(1.0 + hertz / 700.0)


def mel_filters(
    num_mel_bins: int, fft_length: int, sample_rate: int, low_freq: float, high_freq: float
) -> Tensor:
    """Triangular filters with 50 % overlap on the mel scale, ``(K, F)`` with ``K = fft_length / 2``: as in Kaldi, the
    Nyquist bin is omitted."""
    hertz = torch.arange(fft_length // 2, dtype=torch.float64) * sample_rate / fft_length
    mel_K1 = 1127.0 * torch.log1p(hertz / 700.0)[:, None]
    corners = torch.linspace(
        hertz_to_mel(low_freq), hertz_to_mel(high_freq), num_mel_bins + 2, dtype=torch.float64
    )
    left_F, centre_F, right_F = corners[:-2], corners[1:-1], corners[2:]
    rise_KF = (mel_K1 - left_F) / (centre_F - left_F)
    fall_KF = (right_F - mel_K1) / (right_F - centre_F)
    return torch.minimum(rise_KF, fall_KF).clamp(min=0).float()


def windowed_fourier(window: str, frame_length: int, fft_length: int) -> Tensor:
    """Windowed DFT basis ``(L, 2K)``: cosines, then sines, of the first half of the ``fft_length`` bins."""
    if window not in WINDOWS:
        raise ValueError(f"window must be one of {', '.join(WINDOWS)}, not {window!r}")
    sample_L = torch.arange(frame_length, dtype=torch.float64)
    cosine_L = torch.cos(2 * torch.pi * sample_L / (frame_length - 1))
    window_L = 0.54 - 0.46 * cosine_L if window == "hamming" else 0.5 - 0.5 * cosine_L
    if window == "povey":
        window_L = window_L**0.85
    angle_LK = 2 * torch.pi * torch.outer(sample_L, torch.arange(fft_length // 2)) / fft_length
    return (window_L[:, None] * torch.cat([angle_LK.cos(), angle_LK.sin()], dim=1)).float()
