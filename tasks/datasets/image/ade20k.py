"""ADE20K (Zhou et al. 2017, arXiv 1608.05442): 150 classes of things and stuff, as in the scene parsing challenge."""

from collections.abc import Sequence
from pathlib import Path

from tasks.datasets.image.imagenet import pictures
from tasks.datasets.image.mask_data import MaskData, Pair, paired
from tasks.datasets.image.masks import MaskCoding, numbered
from tasks.datasets.listing import usual_place

FOLDERS = (".", "ADEChallengeData2016", "ade/ADEChallengeData2016")
#: In the order of the mask values, from 1.
CLASSES = tuple(
    """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
    door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
    field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
    signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
    stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee
    table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
    boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
    buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool,
    barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave,
    pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
    ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
    """.replace("\n", " ")
    .strip()
    .split(",")
)
CLASSES = tuple(" ".join(name.split()) for name in CLASSES)


class ADE20K(MaskData):
    """ADE20K: 20,210 training and 2,000 validation images; mask value 0 is void.

    The test split is `validation`, as in all published results; a part of `training` is held out for model selection.

    Args:
        **settings: see `MaskData` and `DataModule`.
    """

    title = "ADE20K"
    layout = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png (ADEChallengeData2016)"
    homepage = "http://sceneparsing.csail.mit.edu"
    usual_val_part = 0.01

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.scenes import ade20k

        ade20k(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def read_pairs(self, root: Path) -> tuple[MaskCoding, Sequence[Pair]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no images/training and annotations/training in {root}")
        pairs: list[Pair] = []
        for name, split in (("training", "train"), ("validation", "test")):
            images, masks = (
                [(Path(file).stem, folder / name / file) for file in pictures(folder / name)]
                for folder in (found / "images", found / "annotations")
            )
            pairs += paired(images, masks, split, str(found / "annotations" / name))
        return numbered(CLASSES, (0, 255), first=1), pairs


def _find(root: Path) -> Path | None:
    wanted = ("images/training", "annotations/training")
    return usual_place(root, FOLDERS, lambda place: all((place / name).is_dir() for name in wanted))
