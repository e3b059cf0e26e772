"""Detection labels of one image as a JSON file beside it in a shard.

`size` is the width and height that the labels refer to, `objects` a list of x1, y1, x2, y2, class name and crowd (0/1),
`outlines` COCO's `segmentation` of each object, `fault` why the labels cannot be used, `id` the image's number in the
annotations.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.image.box_formats.labels import MOST_OBJECTS
from tasks.datasets.image.box_formats.outlines import Outline, read_outline


def packed(objects_n6: NDArray[np.float64], class_names: Sequence[str], where: Mapping[str, Any]) -> bytes:
    """Encodes labels to the content of the file.

    Args:
        objects_n6: box, label and crowd of each object.
        class_names: names of the labels.
        where: `size`, `outlines`, `fault` and `id`, if any.
    """
    rows = [[*row[:4], class_names[int(row[4])], int(row[5])] for row in objects_n6.tolist()]
    said = {"size": list(where["size"]) if "size" in where else None, "objects": rows}
    if "outlines" in where:
        said["outlines"] = [_segmentation(outline, where.get("size")) for outline in where["outlines"]]
    if "fault" in where:
        said["fault"] = where["fault"]
    if "id" in where:
        said["id"] = where["id"]
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")


def unpacked(content: bytes, class_names: Sequence[str]) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Decodes objects and `where`, with labels as indices of `class_names`.

    Raises:
        ReadError: not a valid file.
    """
    place = {name: label for label, name in enumerate(class_names)}
    try:
        said = json.loads(content)
        rows = [(*map(float, row[:4]), place[row[4]], float(bool(row[5]))) for row in said["objects"]]
        where: dict[str, Any] = {}
        if said["size"] is not None:
            width, height = (int(side) for side in said["size"])
            where["size"] = (width, height)
        if "outlines" in said:
            where["outlines"] = [read_outline(each, where.get("size")) for each in said["outlines"]]
            if len(where["outlines"]) != len(rows):
                raise ValueError("as many outlines as objects are needed")
        if "fault" in said:
            where["fault"] = str(said["fault"])[:2000]
        if "id" in said:
            where["id"] = int(said["id"])
            if abs(where["id"]) >= 2**63:
                raise ValueError("an id that is none")
        objects_n6 = np.array(rows, dtype=np.float64).reshape(-1, 6)
        if len(rows) > MOST_OBJECTS or not np.isfinite(objects_n6).all():
            raise ValueError("boxes that are none")
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise ReadError(f"its boxes cannot be read ({reason})") from error
    return objects_n6, where


def _segmentation(outline: Outline | None, size: tuple[int, int] | None) -> Any:
    if outline is None:
        return None
    if outline.runs is None:
        return [polygon.tolist() for polygon in outline.polygons]
    width, height = size or (1, int(outline.runs.sum()))  # without a size the image cannot be read
    return {"size": [height, width], "counts": outline.runs.tolist()}
