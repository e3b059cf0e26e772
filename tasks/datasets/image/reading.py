"""Reads images of any format as 8-bit RGB."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.datasets.errors import ReadError
from tasks.datasets.items import spread
from tasks.datasets.reading import check_file

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".j2k", ".avif"),
)
# Formats by content, whatever the file's extension.
# JPEG includes MPO. Other Pillow formats are excluded, since one runs an interpreter (PostScript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 178_956_970  # Pillow's limit for decompression bombs
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values for rotations by 90 degrees
WIDTH, HEIGHT = 0x0100, 0x0101  # TIFF tags, of the image as stored
LOOKED_AT = 8  # images inspected for their significant bits


@dataclass(frozen=True)
class PictureOptions:
    """Options for reading images.

    Args:
        max_pixels: images with more pixels are refused before decoding.
        bits: significant bits of 16-bit images.
        scaled: (width, height) -> number of pixels after scaling.
    """

    max_pixels: int = MAX_PIXELS
    bits: int = 16
    scaled: Callable[[int, int], int] | None = None

    def check(self, size: tuple[int, int]) -> None:
        """Raise a `ReadError` for an image that is, or becomes, too large."""
        width, height = size
        cure = "say task.data.transforms.max_pixels=N if this is meant"
        if width * height > self.max_pixels:
            raise ReadError(
                f"it has {width:,}×{height:,} pixels, more than can be read safely ({self.max_pixels:,}): {cure}"
            )
        scaled = self.scaled(width, height) if self.scaled and min(size) > 0 else 0
        if scaled > self.max_pixels:
            raise ReadError(
                f"it is so thin, {width:,}×{height:,} pixels, that scaled it would have {scaled:,}, more than "
                f"{self.max_pixels:,}: {cure}"
            )


def open_image(path: Path, options: PictureOptions | None = None) -> "Image.Image":
    """Read an image as 8-bit RGB.

    EXIF orientation is applied; palette, grey, CMYK and 16-bit images are converted; transparency is blended with
    white; of an animation, the first frame is read.

    Raises:
        ReadError: the file is missing, empty, not an image, truncated, broken or too large, or has floating-point
            pixels, whose range is unknown.
    """
    from PIL import ImageOps

    options = options or PictureOptions()
    check_file(path)
    try:
        with _opened(path, options) as file:
            options.check(file.size)
            _check_depth(file, options.bits)
            file.load()
            return to_rgb(ImageOps.exif_transpose(file), options.bits)
    except ReadError:
        raise
    except Exception as error:  # Pillow's decoders may raise anything
        raise ReadError(_why_unreadable(path, error)) from error


def open_unchanged(path: Path, options: PictureOptions | None = None) -> "Image.Image":
    """Read an image in its original mode, turned by its EXIF orientation: palette indices stay indices.

    Raises:
        ReadError: the file is missing, empty, not an image, truncated, broken or too large, or has several channels of
            16 bits, whose lower 8 Pillow drops.
    """
    from PIL import ImageOps

    options = options or PictureOptions()
    check_file(path)
    try:
        with _opened(path, options) as file:
            options.check(file.size)
            if _has_deep_channels(file):
                raise ReadError("it has 16 bits in each of several channels: save it with 8, or as grey")
            file.load()
            return ImageOps.exif_transpose(file)
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(_why_unreadable(path, error)) from error


def size_of(path: Path, options: PictureOptions | None = None) -> tuple[int, int]:
    """Width and height of an image from its header, after EXIF rotation; raises `ReadError`."""
    check_file(path)
    try:
        with _opened(path, options or PictureOptions()) as file:
            return _size_shown(file)
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(_why_unreadable(path, error)) from error


def orientation_of(path: Path, options: PictureOptions | None = None) -> tuple[int, tuple[int, int]]:
    """EXIF orientation of an image (1: as stored), and its width and height after rotation, from its header alone.

    Raises:
        ReadError: the file is missing, empty or not an image.
    """
    check_file(path)
    try:
        with _opened(path, options or PictureOptions()) as file:
            if (
                file.format == "PNG" and "exif" not in file.info
            ):  # otherwise Pillow decodes it to look behind it
                return 1, file.size
            return int(file.getexif().get(ORIENTATION) or 1), _size_shown(file)
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(_why_unreadable(path, error)) from error


def _size_shown(file: "Image.Image") -> tuple[int, int]:
    """Width and height after EXIF rotation."""
    exif = file.getexif()
    width, height = file.size
    if file.format == "TIFF":  # some versions of Pillow have exchanged them already
        width, height = int(exif[WIDTH]), int(exif[HEIGHT])
    return (height, width) if exif.get(ORIENTATION) in TURNED else (width, height)


@contextmanager
def _opened(path: Path, options: PictureOptions) -> "Iterator[Image.Image]":
    """Opens an image without decoding it; sets Pillow's own pixel limit to ours."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = (
        options.max_pixels
    )  # Pillow warns above this limit, and raises above twice the limit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no warnings about odd metadata in readable images
            with Image.open(path, formats=_formats()) as file:
                if file.format == "TIFF":
                    file.filename = ""  # mapped into memory, Pillow reads turned ones with exchanged sides
                yield file
    except Image.DecompressionBombError as error:
        raise ReadError(
            f"it has more pixels than can be read safely ({options.max_pixels:,}): say "
            "task.data.transforms.max_pixels=N if this is meant"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow supports."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: "Image.Image", bits: int = 16) -> "Image.Image":
    """Converts any Pillow mode to RGB; 16-bit pixels are scaled by the significant ``bits``.

    Raises:
        ReadError: floating-point pixels, or values that are negative or beyond ``bits``.
    """
    from PIL import Image

    if image.mode == "F":
        raise ReadError("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 255 instead of scaling
        pixels = np.asarray(image).astype(np.float64)
        white = 2**bits - 1
        if pixels.min() < 0:
            raise ReadError(f"its pixels go down to {pixels.min():,.0f}, and black is 0")
        if pixels.max() > white:
            raise ReadError(
                f"its pixels reach {pixels.max():,.0f}, more than the {white:,} of task.data.transforms.bits={bits}"
            )
        image = Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def depth_notes(paths: Sequence[Path], options: PictureOptions) -> list[str]:
    """Notes about 16-bit images (at most one sentence), from inspecting a few of them."""
    highest, found = -1, 0
    for path in spread(
        [path for path in paths if path.suffix.lower() in (".png", ".tif", ".tiff", ".pgm")], LOOKED_AT
    ):
        try:
            check_file(path)
            with _opened(path, options) as file:
                options.check(file.size)
                if file.mode.startswith("I"):
                    found += 1
                    highest = max(highest, int(np.asarray(file).max()))
        except Exception:  # counted and reported when it is loaded
            continue
    if not found:
        return []
    said = f"grey pictures with 16 bits, of which {options.bits} count (task.data.transforms.bits)"
    used = max(8, int(highest).bit_length())
    if used < min(options.bits, 15):
        said += (
            f"; those looked at reach {highest:,} only, and come out dark: if they hold {used} bits, say "
            f"task.data.transforms.bits={used}"
        )
    return [said]


def _check_depth(file: "Image.Image", bits: int) -> None:
    """Raise a `ReadError` if Pillow would keep the upper 8 of 16 bits although fewer bits are significant."""
    if bits < 16 and _has_deep_channels(file):
        raise ReadError(
            f"it has 16 bits in each of several channels, of which the upper 8 are read: transforms.bits={bits} is "
            "for grey pictures"
        )


def _has_deep_channels(file: "Image.Image") -> bool:
    """Whether several channels have 16 bits each; BGR;16 has 16 bits in all."""
    said = [tile[3] for tile in getattr(file, "tile", ())]
    raw_modes = [str(args[0] if isinstance(args, tuple) and args else args) for args in said]
    deep = any("16" in mode and not mode.startswith("BGR") for mode in raw_modes)
    return deep and not file.mode.startswith("I")


def _why_unreadable(path: Path, error: Exception) -> str:
    lines = str(error).replace(repr(str(path)), "").replace(str(path), "").strip().splitlines()
    reason: Any = lines[0] if lines else type(error).__name__
    return f"it cannot be read as an image ({reason})"
