"""Reading a picture, whatever its format, as 8-bit RGB."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.datasets.base import ReadError, check_file, spread

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".j2k", ".avif"),
)
# What these hold, whatever a file's name says.
# JPEG stands for MPO, too. Of Pillow's other formats one starts an interpreter (PostScript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 178_956_970  # what Pillow takes for an attack
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values of pictures that lie on a side
LOOKED_AT = 8  # pictures, for how much of their 16 bits they use


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are to be read.

    Args:
        max_pixels: a picture of more is refused before it is read.
        bits: of pictures with 16 bits a channel, how many count.
        scaled: pixels that a picture of this width and height will have once it is scaled.
    """

    max_pixels: int = MAX_PIXELS
    bits: int = 16
    scaled: Callable[[int, int], int] | None = None

    def check(self, size: tuple[int, int]) -> None:
        """Raise a `ReadError` for a picture that is too large, or grows too large."""
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
    """Read a picture as 8-bit RGB, upright.

    Turned as its EXIF orientation says; palettes, grey, CMYK and 16-bit pictures converted; transparent parts
    laid on white; of an animation the first frame.

    Raises:
        ReadError: the file is missing, empty, no picture, cut off, broken or absurdly large, or its pixels
            are floating-point numbers, whose range nothing states.
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
    except Exception as error:  # Pillow's decoders raise whatever their format's code comes across
        raise ReadError(_why_unreadable(path, error)) from error


def open_unchanged(path: Path, options: PictureOptions | None = None) -> "Image.Image":
    """Read a picture in the mode that its file has: a palette's indices stay indices.

    Raises:
        ReadError: the file is missing, empty, no picture, cut off, broken or absurdly large.
    """
    options = options or PictureOptions()
    check_file(path)
    try:
        with _opened(path, options) as file:
            options.check(file.size)
            file.load()
            return file.copy()
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(_why_unreadable(path, error)) from error


def size_of(path: Path, options: PictureOptions | None = None) -> tuple[int, int]:
    """Width and height of a picture, upright, from its header; raises `ReadError`."""
    check_file(path)
    try:
        with _opened(path, options or PictureOptions()) as file:
            width, height = file.size
            turned = file.getexif().get(ORIENTATION) in TURNED
            return (height, width) if turned else (width, height)
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(_why_unreadable(path, error)) from error


@contextmanager
def _opened(path: Path, options: PictureOptions) -> "Iterator[Image.Image]":
    """An open picture, its size known; Pillow's own limit stands behind ours."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = options.max_pixels  # it warns from here on, and raises from twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # odd metadata is no reason to talk about a picture that reads well
            with Image.open(path, formats=_formats()) as file:
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
    """Those of `FORMATS` that this Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: "Image.Image", bits: int = 16) -> "Image.Image":
    """Any mode of Pillow -> RGB; 16-bit pixels scaled by the ``bits`` that count.

    Raises:
        ReadError: floating-point pixels, or larger ones than ``bits`` say.
    """
    from PIL import Image

    if image.mode == "F":
        raise ReadError("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255 instead of scaling
        pixels = np.asarray(image).astype(np.float64)
        white = 2**bits - 1
        if bits < 16 and pixels.max() > white:
            raise ReadError(
                f"its pixels reach {pixels.max():,.0f}, more than the {white:,} of task.data.transforms.bits={bits}"
            )
        image = Image.fromarray((pixels.clip(0, white) * (255 / white)).round().astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def depth_notes(paths: Sequence[Path], options: PictureOptions) -> list[str]:
    """What is to be said of pictures with 16 bits: a sentence, or none; a few are looked at."""
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
        except Exception:  # it is counted and named when its turn comes
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
    """Raise a `ReadError` where Pillow would take the upper 8 of 16 bits, though others count."""
    deep = any("16" in str(tile[3]) for tile in getattr(file, "tile", ()))
    if bits < 16 and deep and not file.mode.startswith("I"):
        raise ReadError(
            f"it has 16 bits in each of several channels, of which the upper 8 are read: transforms.bits={bits} is "
            "for grey pictures"
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    lines = str(error).replace(repr(str(path)), "").replace(str(path), "").strip().splitlines()
    reason: Any = lines[0] if lines else type(error).__name__
    return f"it cannot be read as an image ({reason})"
