"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) in timm's form, for a whole batch on its device."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from modalities import batched_colours as colours
from modalities.batched_geometry import chance, rotations, shears_and_shifts, warped

LEVELS = 10  # timm's scale of magnitudes
NEUTRAL = {"Posterize": 8.0, "Solarize": 256.0, "SolarizeAdd": 0.0}  # of the other colour changes: 1


class BatchedRandAugment(nn.Module):
    """RandAugment: ``(B, 3, H, W)`` on the scale 0..255 -> float, each image with operations of its own.

    The operations, their probabilities and strengths are those of timm's policy. Of the operations drawn for an image
    all colour changes come before all warps, which are made in one bilinear interpolation (timm draws bilinear or
    bicubic); what comes from outside the image has the mean colour.

    Args:
        policy: timm's, such as ``rand-m9-mstd0.5-inc1``.
        mean: of each channel on the scale 0..1.

    Raises:
        ValueError: a policy that timm does not know, or with operations that have no batched form.
    """

    mean: Tensor

    def __init__(self, policy: str, mean: tuple[float, float, float]) -> None:
        super().__init__()
        from timm.data.auto_augment import rand_augment_transform

        if not policy.startswith("rand-"):
            raise ValueError(
                f"of timm's policies, those that begin with rand- have a batched form, not {policy}"
            )
        try:
            parsed = rand_augment_transform(policy, {"translate_pct": 0.45})
        except (AssertionError, KeyError, ValueError) as error:
            raise ValueError(f"timm knows no such augmentation: {policy} ({error})") from error
        first: Any = parsed.ops[0]
        self.layers = int(parsed.num_layers)
        self.prob = float(first.prob)
        self.magnitude, self.spread = float(first.magnitude), float(first.magnitude_std)
        self.most = float(first.magnitude_max or LEVELS)
        self.names = [str(op.name) for op in parsed.ops]
        unknown = [name for name in self.names if name.removesuffix("Increasing") not in OPERATIONS]
        if unknown or parsed.choice_weights is not None or self.spread == float("inf"):
            raise ValueError(f"{policy} has no batched form: say task.data.transforms.batched=false")
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = x_B3HW.float()
        batch, size = len(x), (x.shape[-2], x.shape[-1])
        matrix_B33 = torch.eye(3, device=x.device).expand(batch, 3, 3)
        moved_B = torch.zeros(batch, dtype=torch.bool, device=x.device)
        for _ in range(self.layers):
            drawn_B = torch.randint(len(self.names), (batch,), device=x.device)
            drawn_B = torch.where(chance(self.prob, batch, x.device), drawn_B, -1)
            level_B = (self.magnitude + self.spread * torch.randn(batch, device=x.device)).clamp(0, self.most)
            part_B = level_B / LEVELS
            signed_B = torch.where(chance(0.5, batch, x.device), part_B, -part_B)
            is_ = {name: drawn_B == place for place, name in enumerate(self.names)}
            x = self._coloured(x, is_, part_B, signed_B)
            turn_B = torch.where(is_["Rotate"], 30 * signed_B, 0)
            shear_B2 = torch.stack([torch.where(is_[f"Shear{a}"], 0.3 * signed_B, 0) for a in "XY"], dim=1)
            sides = (("X", size[1]), ("Y", size[0]))
            shift_B2 = torch.stack(
                [torch.where(is_[f"Translate{a}Rel"], 0.45 * side * signed_B, 0) for a, side in sides], dim=1
            )
            matrix_B33 = matrix_B33 @ rotations(turn_B, size) @ shears_and_shifts(shear_B2, shift_B2)
            for name in WARPS:
                moved_B = moved_B | is_[name]
        warped_B3HW = warped(x - self.mean, matrix_B33, size, "bilinear", "zeros") + self.mean
        return torch.where(colours.per_image(moved_B), warped_B3HW, x)

    def _coloured(self, x: Tensor, is_: dict[str, Tensor], part_B: Tensor, signed_B: Tensor) -> Tensor:
        """Each image with the colour change that was drawn for it, if any; `is_` maps names to who has drawn them."""
        for name, is_B in is_.items():
            kind = name.removesuffix("Increasing")
            if kind in WARPS:
                continue
            if kind in ("AutoContrast", "Equalize", "Invert"):
                changed = OPERATIONS[kind](x.round().to(torch.uint8)).float()
                x = torch.where(colours.per_image(is_B), changed, x)
                continue
            strength_B = _strength(name, part_B, signed_B)
            x = OPERATIONS[kind](x, torch.where(is_B, strength_B, NEUTRAL.get(kind, 1.0)))
        return x


def _strength(name: str, part_B: Tensor, signed_B: Tensor) -> Tensor:
    """Argument of a colour change, as in timm; `part_B` is the magnitude on 0..1, `signed_B` with a random sign."""
    if name == "PosterizeIncreasing":
        return 4 - (4 * part_B).floor()
    if name == "Posterize":
        return (4 * part_B).floor()
    if name == "SolarizeIncreasing":
        return 256 - (256 * part_B).floor().clamp(max=256)
    if name == "Solarize":
        return (256 * part_B).floor().clamp(max=256)
    if name == "SolarizeAdd":
        return (110 * part_B).floor().clamp(max=128)
    if name.endswith("Increasing"):
        return (1 + 0.9 * signed_B).clamp(min=0.1)
    return 1.8 * part_B + 0.1


WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
#: Operations by timm's name; warps are composed to one matrix instead.
OPERATIONS: dict[str, Any] = {
    "AutoContrast": V.autocontrast,
    "Equalize": V.equalize,
    "Invert": V.invert,
    "Posterize": colours.posterize,
    "Solarize": colours.solarize,
    "SolarizeAdd": colours.solarize_add,
    "Color": colours.saturation,
    "Contrast": colours.contrast,
    "Brightness": colours.brightness,
    "Sharpness": colours.sharpness,
    **dict.fromkeys(WARPS),
}
