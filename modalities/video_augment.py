"""Augmentation of video, on raw clips (B, T, 3, H, W) in 0..255.

The classification task calls these in training only. Every random number comes from torch's global generator
of the batch's device, so seeding it makes a step repeatable. All frames of a clip share one draw: changes
between frames would look like motion.
"""

import torch
from torch import Tensor, nn

from modalities.image_augment import RandomErasing

MIX_MODES = ("elem", "batch")


class ClipAugment(nn.Module):
    """Flip, time reversal, colour jitter and erasing, drawn per clip: (B, T, 3, H, W) -> same shape, float.

    Args:
        flip: probability of a horizontal flip; use 0 if a class depends on the side.
        reverse: probability of reversing time; use 0 if a class depends on the direction of time.
        brightness: maximum brightness change, as a fraction of the full scale.
        contrast: maximum relative contrast change.
        grey: probability of conversion to greyscale.
        erase: probability of filling a rectangle, the same in all frames, with noise (`RandomErasing`).
    """

    def __init__(
        self,
        flip: float = 0.0,
        reverse: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        grey: float = 0.0,
        erase: float = 0.0,
    ) -> None:
        super().__init__()
        if not all(0 <= value <= 1 for value in (flip, reverse, brightness, contrast, grey, erase)):
            raise ValueError("ClipAugment takes numbers between 0 and 1")
        self.flip = flip
        self.reverse = reverse
        self.brightness = brightness
        self.contrast = contrast
        self.grey = grey
        self.erasing = RandomErasing(prob=erase) if erase else None

    def forward(self, raw: Tensor) -> Tensor:
        if self.flip:
            raw = torch.where(_chosen(raw, self.flip), raw.flip(-1), raw)
        if self.reverse:
            raw = torch.where(_chosen(raw, self.reverse), raw.flip(1), raw)
        raw = raw.float()
        if self.grey:
            raw = torch.where(_chosen(raw, self.grey), raw.mean(2, keepdim=True).expand_as(raw), raw)
        if self.contrast:
            gain = 1 + self.contrast * (2 * _uniform(raw) - 1)
            mean = raw.mean(dim=(1, 2, 3, 4), keepdim=True)
            raw = mean + gain * (raw - mean)
        if self.brightness:
            raw = raw + 255 * self.brightness * (2 * _uniform(raw) - 1)
        raw = raw.clamp(0, 255)
        return raw if self.erasing is None else self.erasing(raw)


class ClipMix(nn.Module):
    """Mixup or CutMix of clips and their targets.

    ``raw (B, T, 3, H, W), target (B, classes) -> raw, target``. Mixup (arXiv 1710.09412) blends two clips
    frame by frame; CutMix (arXiv 1905.04899) pastes a window of another clip, the same in all frames.

    Args:
        prob: probability of mixing.
        mixup_alpha: mixup weights are drawn from Beta(alpha, alpha); 0 disables mixup.
        cutmix_alpha: the same for CutMix.
        switch_prob: probability of CutMix when both are enabled.
        mode: `elem` draws per clip, with a random partner; `batch` draws once per batch, and mixes the batch
            with itself in reverse order (timm's default).
    """

    def __init__(
        self,
        prob: float = 1.0,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "elem",
    ) -> None:
        super().__init__()
        if mode not in MIX_MODES:
            raise ValueError(f"ClipMix takes mode {' or '.join(MIX_MODES)}, not {mode!r}")
        if not (0 <= prob <= 1 and 0 <= switch_prob <= 1) or min(mixup_alpha, cutmix_alpha) < 0:
            raise ValueError("ClipMix needs probabilities between 0 and 1 and no negative alpha")
        if mixup_alpha == cutmix_alpha == 0:
            raise ValueError("ClipMix needs mixup_alpha or cutmix_alpha above 0 (or augment.mixup=null)")
        self.prob = prob
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.mode = mode
        self.switch_prob = 0.0 if cutmix_alpha == 0 else 1.0 if mixup_alpha == 0 else switch_prob

    def forward(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        batch, device = raw.shape[0], raw.device
        draws = 1 if self.mode == "batch" else batch  # leading size of the tensors below, B or 1
        mixed_B = torch.rand(draws, device=device) < self.prob
        cut_B = torch.rand(draws, device=device) < self.switch_prob
        blend_B = _beta(self.mixup_alpha, draws, device)
        window_BHW, kept_B = self._windows(raw, draws)
        # Weight of the original clip, per clip and pixel.
        weight_BHW = torch.where(cut_B[:, None, None], 1 - window_BHW, blend_B[:, None, None])
        share_B = torch.where(cut_B, kept_B, blend_B)
        weight_BHW = torch.where(mixed_B[:, None, None], weight_BHW, 1.0)
        share_B1 = torch.where(mixed_B, share_B, 1.0)[:, None]
        if self.mode == "batch":
            other = torch.arange(batch - 1, -1, -1, device=device)
        else:
            other = torch.randperm(batch, device=device)
        weight_B11HW = weight_BHW[:, None, None]
        raw = raw.float()
        return (
            weight_B11HW * raw + (1 - weight_B11HW) * raw[other],
            share_B1 * target + (1 - share_B1) * target[other],
        )

    def _windows(self, raw: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Mask of a random window, (draws, H, W), and the fraction of the frame outside it, (draws,)."""
        height, width, device = raw.shape[-2], raw.shape[-1], raw.device
        side_B1 = (1 - _beta(self.cutmix_alpha, draws, device)).sqrt()[:, None]
        inside = []
        for size in (height, width):
            centre_B1 = torch.rand(draws, 1, device=device) * size
            place = torch.arange(size, device=device) + 0.5
            inside.append(((place - centre_B1).abs() < side_B1 * size / 2).float())
        window_BHW = inside[0][:, :, None] * inside[1][:, None, :]
        return window_BHW, 1 - window_BHW.mean(dim=(1, 2))


def _beta(alpha: float, batch: int, device: torch.device) -> Tensor:
    """Samples of Beta(alpha, alpha), (B,); 1 for alpha = 0."""
    if alpha == 0:
        return torch.ones(batch, device=device)
    both = torch.full((batch, 2), alpha, device=device)
    return torch.distributions.Dirichlet(both, validate_args=False).sample()[:, 0]


def _uniform(raw: Tensor) -> Tensor:
    return torch.rand(raw.shape[0], 1, 1, 1, 1, device=raw.device)


def _chosen(raw: Tensor, prob: float) -> Tensor:
    return _uniform(raw) < prob
