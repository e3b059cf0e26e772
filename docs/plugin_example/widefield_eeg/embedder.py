"""Recordings -> maps: the power in bands of frequency over time, an electrode a channel.

Shapes: B batch, E electrodes, T samples, F frequencies, S time steps.
"""

import torch
from torch import Tensor

from modalities.embedder import Embedder, MapAxes
from modalities.tensor_info import TensorInfo


class BandPower(Embedder):
    """EEG (B, E, T) in microvolts -> log power (B, 1, E, F, S).

    Args:
        electrodes: E.
        rate: samples a second (Hz).
        seconds: length of a recording.
        window_s: length of the window that a spectrum is taken of.
        step_s: from one window to the next.
        highest: frequencies up to so many Hz are kept.
    """

    raw_ndim = 3
    window: Tensor

    def __init__(
        self,
        electrodes: int = 8,
        rate: int = 128,
        seconds: float = 4.0,
        window_s: float = 1.0,
        step_s: float = 0.125,
        highest: float = 48.0,
    ) -> None:
        super().__init__()
        self.out_chans, self.length, self.seconds = electrodes, round(rate * seconds), seconds
        self.rate = rate
        self.size, self.step = round(rate * window_s), round(rate * step_s)
        if not 0 < self.step <= self.size <= self.length:
            raise ValueError("step_s, window_s and seconds must rise in this order")
        self.bins, self.per_bin = int(highest * window_s) + 1, 1 / window_s
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        x_BET = raw - raw.mean(dim=-1, keepdim=True)
        x_BESt = x_BET.unfold(-1, self.size, self.step) * self.window
        # A product with the cosines and sines, rather than an FFT, which ONNX has for real numbers only by detours.
        time_t = torch.arange(self.size, device=raw.device, dtype=raw.dtype)
        frequency_F = torch.arange(self.bins, device=raw.device, dtype=raw.dtype)
        angle_tF = 2 * torch.pi * time_t[:, None] * frequency_F / self.size
        power_BESF = (x_BESt @ angle_tF.cos()).square() + (x_BESt @ angle_tF.sin()).square()
        log_BEFS = (power_BESF.transpose(-1, -2) / self.size**2 + 0.1).log10()
        return ((log_BEFS - 0.5) / 1.0)[:, None]

    def example_raw(self, batch_size: int = 1) -> Tensor:
        return 10 * torch.randn(batch_size, self.out_chans, self.length)

    def raw_info(self) -> dict[str, TensorInfo]:
        facts = {"sample_rate_hz": self.rate}
        return {"eeg": TensorInfo("potentials in microvolts", ("batch", "electrode", "sample"), facts)}

    def map_axes(self) -> MapAxes:
        ticks = tuple((hertz / self.per_bin, f"{hertz}") for hertz in (0, 10, 20, 30, 40))
        return MapAxes(
            x="time (s)",
            y="frequency (Hz)",
            x_range=(0, self.seconds),
            y_ticks=ticks,
            value="log10 power, mean of electrodes",
            origin="lower",
        )
