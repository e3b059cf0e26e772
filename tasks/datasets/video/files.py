"""Reads video files as clips of fixed shape; base class of the video data modules.

Shapes: L frames of a file, T frames of a clip, K clips of a file at test time, H and W of a frame.

Frames are sampled on a uniform clock of L ticks from a file's first to its last frame, which corrects for variable
frame rates. At a constant frame rate, ticks are frames.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.batch import Copies
from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.shards.data import ShardableData, ShardableSettings
from tasks.datasets.targets import ClassTargets, Kind
from tasks.datasets.video.crops import (
    Frames,
    crop,
    largest_box,
    rand_augment_of,
    random_box,
    random_resized_box,
    same_draw,
)
from tasks.datasets.video.decoding import Video, open_cached, open_video, read_ticks
from tasks.datasets.video.ticks import dense, spread_out, uniform

EXTENSIONS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
SAMPLINGS = ("dense", "uniform")
VIEWS = ("square", "whole")
AREAS = ("view", "frame")


class VideoSettings(ShardableSettings, total=False):
    """Arguments of every video data module, passed to `VideoData`."""

    frames: int
    size: int
    sampling: str
    stride: int
    test_segments: int
    test_crops: int
    view: str
    scale: Sequence[float]
    ratio: Sequence[float]
    scale_of: str
    rand_augment: str | None
    repeats: int
    cache_dir: str | None
    cache_side: int | None


class VideoData(ShardableData):
    """Base class of data modules for video files; a raw sample is a clip ``(T, 3, S, S)``, uint8 RGB.

    Frame sampling: ``dense`` takes T frames ``stride`` ticks apart, at a random start in training and centred
    otherwise; shorter files are looped. ``uniform`` divides the file into T equal segments and takes one frame of
    each, a random one in training and the middle one otherwise (temporal segments, arXiv 1608.00859); in a file of
    fewer than T frames, some are repeated.

    Testing reads K = ``test_segments`` × ``test_crops`` clips in one decoding, ``(K, T, 3, S, S)``, whose
    predictions are averaged; validation, and testing with K = 1, read one, ``(T, 3, S, S)``. Segments are evenly
    spaced in time, crops along the longer side.

    Args:
        frames: number of frames per clip, T.
        size: S, side of a frame in pixels.
        sampling: ``dense`` or ``uniform``.
        stride: ticks between frames; only with ``dense``.
        test_segments, test_crops: see above.
        view: ``square`` is the largest square of a frame, ``whole`` the whole frame squashed to a square.
        scale: range of a training crop's area relative to the view.
        ratio: range of a training crop's aspect ratio relative to the view.
        scale_of: reference of ``scale`` and ``ratio``: the ``view``, or the area of the whole ``frame`` and a
            square (torchvision's ``RandomResizedCrop``).
        rand_augment: a timm policy, such as ``rand-m7-n4-mstd0.5-inc1`` (RandAugment, arXiv 1909.13719), applied to
            whole frames before the training crop, with the same parameters for all frames of a clip.
        repeats: number of differently augmented copies of a clip (the same frames) in a training batch (repeated
            augmentation, arXiv 1901.09335), which then has ``batch_size`` · ``repeats`` samples.
        cache_dir: cache folder for the decoded frames of every file (uint8, shorter side at most ``cache_side``), for
            small data sets that are read many times. ``None`` decodes each time.
        cache_side: in pixels; ``None`` keeps the frames' own size.
        **common: see `ShardableData` and `DataModule`.
    """

    kind: ClassVar[Kind] = ClassTargets
    modality = "video"
    sample_version = 2
    extensions = EXTENSIONS
    unit = "clips"

    def __init__(
        self,
        *,
        frames: int = 16,
        size: int = 224,
        sampling: str = "dense",
        stride: int = 1,
        test_segments: int = 1,
        test_crops: int = 1,
        view: str = "square",
        scale: Sequence[float] = (1.0, 1.0),
        ratio: Sequence[float] = (1.0, 1.0),
        scale_of: str = "view",
        rand_augment: str | None = None,
        repeats: int = 1,
        cache_dir: str | None = None,
        cache_side: int | None = None,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(**common)
        if cache_dir is not None and self.format != "files":
            raise DataError("cache_dir keeps decoded frames of files: leave it out with format=webdataset")
        if min(frames, size, stride, test_segments, test_crops, repeats, cache_side or 1) < 1:
            raise DataError(
                "frames, size, stride, test_segments, test_crops, repeats and cache_side must be at least 1"
            )
        if sampling not in SAMPLINGS:
            raise DataError(f"sampling must be one of {', '.join(SAMPLINGS)}, not {sampling!r}")
        if view not in VIEWS:
            raise DataError(f"view must be one of {', '.join(VIEWS)}, not {view!r}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise DataError(f"scale must be two rising numbers above 0 and at most 1, not {list(scale)}")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise DataError(f"ratio must be two rising numbers above 0, not {list(ratio)}")
        if scale_of not in AREAS:
            raise DataError(f"scale_of must be one of {', '.join(AREAS)}, not {scale_of!r}")
        self.frames = frames
        self.size = size
        self.sampling = sampling
        self.stride = stride
        self.test_segments = test_segments
        self.test_crops = test_crops
        self.view = view
        self.scale = (float(scale[0]), float(scale[1]))
        self.ratio = (float(ratio[0]), float(ratio[1]))
        self.scale_of = scale_of
        self.rand_augment = None if rand_augment is None else rand_augment_of(rand_augment, size)
        self.repeats = repeats
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.cache_side = cache_side

    def setup(self, stage: str | None = None) -> None:
        fresh = not self.splits
        super().setup(stage)
        if fresh:  # validation reads one clip of a file; only testing reads several
            self.splits["val"] = [
                replace(item, where={**item.where, "clips": 1}) for item in self.splits["val"]
            ]

    def find_class_folders(self, root: Path, places: Sequence[str]) -> Path:
        """The first of ``places`` below ``root`` that contains a class folder."""
        for place in places:
            if any((root / place / name).is_dir() for name in self.class_names):
                return root / place
        raise self.bad_layout(f"there are no class folders such as {self.class_names[0]} in {root}")

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor | Copies:
        if not train:
            return (
                self._read_clips(item.path, 1, 1)
                if item.where.get("clips") == 1
                else self.read_file(item.path)
            )
        video = self._open(item.path)
        if self.sampling == "dense":
            ticks = dense(video.length, self.frames, self.stride, rng.random())
        else:
            ticks = uniform(video.length, self.frames, rng.random(self.frames))
        frames = read_ticks(video, ticks)
        if self.repeats == 1:
            return self._augmented(frames, rng)
        return Copies(self._augmented(frames, rng) for _ in range(self.repeats))

    def _augmented(self, frames: Frames, rng: np.random.Generator) -> Tensor:
        """Whole frames -> a training clip (T, 3, S, S)."""
        if self.rand_augment is not None:
            frames = same_draw(self.rand_augment, frames, rng)
        if self.scale_of == "frame":
            box = random_resized_box(frames.shape[1:3], self.scale, self.ratio, rng)
        else:
            box = random_box(frames.shape[1:3], self.view, self.scale, self.ratio, rng)
        return crop(frames, box, self.size)

    def read_file(self, path: Path) -> Tensor:
        return self._read_clips(path, self.test_segments, self.test_crops)

    def _read_clips(self, path: Path, segments: int, crops: int) -> Tensor:
        video = self._open(path)
        if self.sampling == "dense":
            ticks = [dense(video.length, self.frames, self.stride, place) for place in spread_out(segments)]
        else:
            places = (np.arange(segments) + 0.5) / segments
            ticks = [uniform(video.length, self.frames, place) for place in places]
        frames = read_ticks(video, np.concatenate(ticks))
        boxes = [largest_box(frames.shape[1:3], self.view, place) for place in spread_out(crops)]
        clips = [crop(part, box, self.size) for part in np.split(frames, segments) for box in boxes]
        return clips[0] if len(clips) == 1 else torch.stack(clips)

    def _open(self, path: Path) -> Video:
        return (
            open_video(path) if self.cache_dir is None else open_cached(path, self.cache_dir, self.cache_side)
        )
