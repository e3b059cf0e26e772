"""PASCAL VOC annotations: one XML file per image, as defined by VOC 2007 and written by most labelling tools.

Pixel coordinates are 1-based and a box includes its corner pixels: in continuous coordinates, x extends from xmin - 1
to xmax.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tasks.datasets.errors import DataError
from tasks.datasets.image.box_formats.labels import LARGEST_OF_A_PICTURE, Described, number, read_text

ENDINGS = (".xml",)
DEEPEST = 20  # levels of elements; a valid file has four
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocPicture:
    """Content of a file: objects as (class name, box, difficult), and the image's width and height if stated."""

    objects: tuple[tuple[str, tuple[float, float, float, float], bool], ...]
    size: tuple[int, int] | None


def read(file: Path) -> VocPicture:
    """Read an XML file.

    Raises:
        DataError: not XML, not an annotation, or an object without a name or corners; the message names the file.
    """
    text = read_text(file, LARGEST_OF_A_PICTURE)
    # Entities can expand a small file or read other files; a valid file has no DOCTYPE.
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise DataError(
            f"{file} declares a document type (DOCTYPE), which no annotation needs; it is not read"
        )
    root = _parsed(file, text)
    if root.tag != "annotation":
        raise DataError(f"{file} is no annotation of PASCAL VOC: it begins with <{root.tag[:40]}>")
    objects = []
    for place, element in enumerate(root.findall("object"), start=1):
        where = f"object {place} of {file}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{where} has no name")
        box = element.find("bndbox")
        if box is None:
            raise DataError(f"{where} ({name[:80]}) has no bndbox")
        try:
            x1, y1, x2, y2 = (number((box.findtext(corner) or "").strip()) for corner in CORNERS)
        except ValueError as error:
            raise DataError(f"{where} ({name[:80]}) has no four numbers in its bndbox") from error
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise DataError(f"{where} ({name[:80]}) is difficult={difficult[:20]!r}, not 0 or 1")
        # A box of a single pixel is a mis-click, and treated as degenerate.
        thin = x2 <= x1 or y2 <= y1
        objects.append((name, (x1, y1, x2, y2) if thin else (x1 - 1, y1 - 1, x2, y2), difficult == "1"))
    return VocPicture(tuple(objects), _size(root))


def described(picture: VocPicture, places: Mapping[str, int | None]) -> list[Described]:
    """The objects of an image, with `difficult` ones as crowd, which are ignored in evaluation.

    Args:
        picture: content of its file.
        places: class name -> class index; None: its objects are dropped.
    """
    return [
        Described(box, label, difficult)
        for name, box, difficult in picture.objects
        if (label := places[name]) is not None
    ]


def _parsed(file: Path, text: str) -> ElementTree.Element:
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    depth = 0
    root: ElementTree.Element | None = None
    try:
        for start in range(0, len(text), 1 << 16):
            parser.feed(text[start : start + (1 << 16)])
            for event, element in parser.read_events():
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                if depth > DEEPEST:
                    raise DataError(f"{file} is nested too deeply for an annotation of PASCAL VOC")
        parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"{file} is no XML ({error})") from error
    if root is None:
        raise DataError(f"{file} is empty")
    return root


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    said = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    if not all(re.fullmatch(r"\d{1,7}", side) and int(side) > 0 for side in said):
        return None
    return int(said[0]), int(said[1])
