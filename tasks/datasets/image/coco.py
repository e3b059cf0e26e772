"""COCO 2017 (Lin et al. 2014, arXiv 1405.0312): 80 classes of things with boxes and masks."""

from pathlib import Path

from tasks.datasets.base import DataError
from tasks.datasets.download import Source
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.image.box_data import BoxData, Found
from tasks.datasets.image.box_formats import coco_json
from tasks.datasets.image.box_formats.labels import Labelled, Tidied

#: In the order of the ids, of which ten between 1 and 90 are unused.
CLASSES = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, , stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, , backpack, umbrella, , ,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, , wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, , dining table, , , toilet, , tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, , book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush
    """.replace("\n", " ").split(",")
)
#: Class -> category id.
CATEGORIES = {" ".join(name.split()): number for number, name in enumerate(CLASSES, start=1) if name.strip()}
SITE = "http://images.cocodataset.org"
SPLITS = {"train2017": "train", "val2017": "test"}


class COCO(BoxData):
    """COCO 2017 detection: 118,287 training and 5,000 validation images.

    The test split is `val2017`, as in most published results (the labels of the official test set are not released); a
    part of `train2017` is held out for model selection.

    Args:
        **settings: see `BoxData` and `DataModule`.
    """

    title = "COCO"
    layout = "annotations/instances_{train,val}2017.json, train2017/*.jpg and val2017/*.jpg"
    homepage = "https://cocodataset.org"
    usual_val_part = 0.01

    archives = (
        Source(
            f"{SITE}/annotations/annotations_trainval2017.zip",
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ),
        Source(
            f"{SITE}/zips/val2017.zip", "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
        ),
        Source(
            f"{SITE}/zips/train2017.zip", "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"
        ),
    )

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.box_scenes import coco

        coco(root)

    def looks_complete(self, root: Path) -> bool:
        return all((root / name).is_dir() and _instances(root, name).is_file() for name in SPLITS)

    def fetch(self, root: Path) -> None:
        for archive, folder in zip(self.archives, ("annotations", "val2017", "train2017"), strict=True):
            if not (root / folder).is_dir():
                download_and_unpack(archive, root)

    def read_pictures(self, root: Path) -> Found:
        tidied, pictures = Tidied(), list[Labelled]()
        labels: dict[int, int | None] = {number: place for place, number in enumerate(CATEGORIES.values())}
        for name, split in SPLITS.items():
            file = _instances(root, name)
            if not file.is_file() or not (root / name).is_dir():
                raise self.bad_layout(f"no {file.relative_to(root)} or no {name}/ in {root}")
            content = coco_json.read_instances(file)
            own = coco_json.categories(content, file)
            if own != {number: name for name, number in CATEGORIES.items()}:
                raise DataError(
                    f"{file} has other categories than COCO's 80: read your own with modality=image task=box_folder"
                )
            pictures += coco_json.read(file, content, [root / name], labels, split, tidied)
        return Found(list(CATEGORIES), pictures, tidied.has_masks, tidied.notes(), list(CATEGORIES.values()))


def _instances(root: Path, name: str) -> Path:
    return root / "annotations" / f"instances_{name}.json"
