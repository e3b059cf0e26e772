"""Detections in COCO's formats (cocodataset.org/#format-results).

`detections.json` describes images, categories and detections; `coco_results.json` is the list that COCO's server and
`COCO.loadRes` take, written only if the data number images and categories.

Shapes: D detections of an image of H × W pixels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.datasets.base import DataModule
from tasks.datasets.image.box_data import BoxData
from tasks.task import Shared

Files = list[tuple[str, Any]]


def in_cocos_files(
    size: tuple[int, int], found: dict[str, Tensor], image_id: int | None = None
) -> dict[str, Shared]:
    """The entries of one image in both files.

    Args:
        size: height and width of the image.
        found: `boxes` (D, 4), `labels`, `scores` (D,), and `masks` (D, H, W) if there are any.
        image_id: the image's number in the annotations, where it is read together with its labels.
    """
    content = {"size": [int(side) for side in size], "image_id": image_id, "detections": detections(found)}
    return {"detections.json": Shared(content, described), "coco_results.json": Shared(content, results)}


def detections(found: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Detections with their class index: `bbox` is x, y, width and height; masks are run-length encoded."""
    entries = []
    for place, (label, score, (x1, y1, x2, y2)) in enumerate(
        zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    ):
        entry: dict[str, Any] = {
            "label": label,
            "bbox": [round(part, 3) for part in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 6),
        }
        if "masks" in found:
            entry["segmentation"] = run_lengths(found["masks"][place])
        entries.append(entry)
    return entries


def described(files: Files, data: DataModule) -> dict[str, Any]:
    """`images`, `categories` and `annotations`, the last with `score`; `info` says where the ids come from.

    Image ids are those of the annotations if they are known of all images and differ, else places from 0; category ids
    are those of the annotations, else places from 1.
    """
    own, categories = _image_ids(files, data), _category_ids(data)
    ids = list(range(len(files))) if own is None else own
    images = [
        {"id": number, "file_name": file, "height": content["size"][0], "width": content["size"][1]}
        for number, (file, content) in zip(ids, files, strict=True)
    ]
    numbers = range(1, len(data.class_names) + 1) if categories is None else categories
    return {
        "info": {
            "image_ids": "places in this file" if own is None else "of the annotations",
            "category_ids": "places of the classes" if categories is None else "of the annotations",
        },
        "images": images,
        "categories": [
            {"id": number, "name": name} for number, name in zip(numbers, data.class_names, strict=True)
        ],
        "annotations": [
            {"id": place, **entry} for place, entry in enumerate(_entries(files, ids, list(numbers)), start=1)
        ],
    }


def results(files: Files, data: DataModule) -> list[dict[str, Any]] | None:
    """The detections alone, as COCO's server takes them; None if the ids of the annotations are not known."""
    ids, categories = _image_ids(files, data), _category_ids(data)
    return None if ids is None or categories is None else _entries(files, ids, categories)


def _entries(files: Files, ids: list[int], categories: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number,
            "category_id": categories[entry["label"]],
            **{key: value for key, value in entry.items() if key != "label"},
        }
        for number, (_, content) in zip(ids, files, strict=True)
        for entry in content["detections"]
    ]


def _image_ids(files: Files, data: DataModule) -> list[int] | None:
    ids = []
    for file, content in files:
        number = content["image_id"]
        if number is None and isinstance(data, BoxData):
            number = data.image_id(Path(file))
        if number is None:
            return None
        ids.append(number)
    return ids if len(set(ids)) == len(ids) else None  # several annotation files may use the same ids


def _category_ids(data: DataModule) -> list[int] | None:
    return data.category_ids if isinstance(data, BoxData) else None


def run_lengths(mask_HW: Tensor) -> dict[str, Any]:
    """Encodes a mask as COCO's compressed RLE: `size` (height, width) and `counts`."""
    from pycocotools import mask as coco

    coded = coco.encode(mask_HW.to("cpu", torch.uint8).t().contiguous().t().numpy())
    return {"size": [int(side) for side in coded["size"]], "counts": coded["counts"].decode("ascii")}
