"""The embedded video samples: small imitations of the real benchmarks, generated from a seed and encoded.

A clip shows a moving dark plane with bright spots of random colour, size and position. The class is the motion. Single
frames have the same distribution for all classes, so that they carry no class information, and a clip played backwards
belongs to the opposite class.

Shapes: T frames, H and W (= side) of a frame.
"""

import csv
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.reading import require

RATE = 25  # frames per second

# Motion: direction of a translation in (right, down), or of a rotation (1: clockwise on the screen).
SHIFTS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TURNS = {"clockwise": 1, "counterclockwise": -1}
MOTIONS = (*SHIFTS, *TURNS)
OPPOSITE = {
    "left": "right", "right": "left", "up": "down", "down": "up",
    "clockwise": "counterclockwise", "counterclockwise": "clockwise",
}  # fmt: skip


def clip(motion: str, rng: np.random.Generator, frames: int = 24, side: int = 64) -> NDArray[np.uint8]:
    """Generate one clip of a motion, (T, H, W, 3)."""
    time_T = np.arange(frames) - (frames - 1) / 2  # 0 in the middle: symmetric in time
    speed = rng.uniform(0.05, 0.09)  # sides per frame
    # The camera looks at a plane: position of each pixel on it, in sides from its centre.
    pixel = (np.arange(side) + 0.5) / side - 0.5
    y_1HW, x_1HW = (axis[None] for axis in np.meshgrid(pixel, pixel, indexing="ij"))
    # Half the height and width of the plane that is seen: half a frame, plus its corners or the longest path.
    y_reach = x_reach = 0.75
    if motion in TURNS:
        angle_T11 = (
            -TURNS[motion] * speed * 1.8 * time_T[:, None, None]
        )  # radians; halfway out, the speed is similar
        x_THW = np.cos(angle_T11) * x_1HW - np.sin(angle_T11) * y_1HW
        y_THW = np.sin(angle_T11) * x_1HW + np.cos(angle_T11) * y_1HW
    else:
        right, down = SHIFTS[motion]
        x_THW = x_1HW - right * speed * time_T[:, None, None]
        y_THW = y_1HW - down * speed * time_T[:, None, None]
        longest = 0.5 + max(0.25, 0.09 * frames / 2)
        y_reach, x_reach = (longest, y_reach) if down else (x_reach, longest)
    plane = spotted_plane(y_reach, x_reach, 2 * side, rng)  # twice the resolution, for smooth motion
    row_THW = ((y_THW + y_reach) * 2 * side).astype(int)
    column_THW = ((x_THW + x_reach) * 2 * side).astype(int)
    return plane[row_THW, column_THW]


def spotted_plane(y_reach: float, x_reach: float, scale: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A noisy plane of ``2·y_reach`` × ``2·x_reach`` sides of ``scale`` pixels, with about 8 spots per square side."""
    height, width = (int(np.ceil(2 * reach * scale)) + 1 for reach in (y_reach, x_reach))
    plane = np.empty((height, width, 3), dtype=np.float32)
    plane[:] = rng.uniform(10, 90, 3)
    count = rng.poisson(8 * (2 * y_reach) * (2 * x_reach))
    for _ in range(count):
        y, x = rng.uniform(0, (height, width))
        radius = rng.uniform(0.06, 0.14) * scale
        top, left = (max(int(centre - radius) - 2, 0) for centre in (y, x))
        part = plane[top : int(y + radius) + 3, left : int(x + radius) + 3]
        rows = (np.arange(top, top + part.shape[0]) + 0.5 - y).astype(np.float32)[:, None]
        columns = (np.arange(left, left + part.shape[1]) + 0.5 - x).astype(np.float32)
        distance = np.sqrt(rows * rows + columns * columns)
        cover = np.minimum(np.maximum((np.float32(radius) - distance) / 2 + np.float32(0.5), 0), 1)[..., None]
        part += cover * (rng.uniform(130, 255, 3).astype(np.float32) - part)
    plane += 6 * rng.standard_normal(plane.shape, dtype=np.float32)
    return np.minimum(np.maximum(plane.round(), 0), 255).astype(np.uint8)


def write_video(
    path: Path, frames: NDArray[np.uint8], codec: str = "libx264", ticks: NDArray[np.int64] | None = None
) -> None:
    """Encode ``(T, H, W, 3)`` frames at 25 per second, or each at its own tick of a 25th of a second.

    The format is that of the extension. The output is deterministic: one thread, and no vector instructions (with
    them, x264's results vary from call to call).
    """
    av = require("av", "video files")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {}
    if codec == "libx264":
        options = {"crf": "20", "preset": "ultrafast", "x264-params": "threads=1:asm=0"}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if codec != "libx264":
            stream.codec_context.bit_rate = 2_000_000
        stream.codec_context.time_base = Fraction(1, RATE)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = int(number if ticks is None else ticks[number])
            frame.time_base = Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def kinetics400(root: Path, counts: tuple[int, int, int] = (100, 12, 20)) -> None:
    """Kinetics-400 in the list format of VideoMAE: MP4 files, and lines ``path label`` in three CSV files."""
    lines: dict[str, list[str]] = {}
    for number, (split, label, index) in enumerate(_plan(counts, len(MOTIONS))):
        rng = np.random.default_rng((400, label, index))
        # Hash-like names, like the video ids of the real clips, which do not reveal the class.
        name = f"videos/{split}/{(number * 2654435761) % 2**32:08x}_000000_000010.mp4"
        write_video(root / name, clip(MOTIONS[label], rng))
        lines.setdefault(split, []).append(f"{name} {label}\n")
    for split, listed in lines.items():
        (root / f"{split}.csv").write_text("".join(listed), encoding="utf-8")
    with (root / "kinetics_400_labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("id", "name"))
        table.writerows(enumerate(MOTIONS))


def _plan(counts: tuple[int, int, int], classes: int) -> Iterator[tuple[str, int, int]]:
    """(split, label, index within the label) of all clips."""
    first = 0
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for index in range(first, first + count):
            for label in range(classes):
                yield split, label, index
        first += count


# The first classes of each benchmark are used for the motions, in this order.
UCF101_CLASSES = (
    "ApplyEyeMakeup", "ApplyLipstick", "Archery", "BabyCrawling", "BalanceBeam", "BandMarching",
)  # fmt: skip
HMDB51_CLASSES = ("brush_hair", "cartwheel", "catch", "chew", "clap", "climb")


def ucf101(root: Path, groups: int = 25, clips: int = 2) -> None:
    """UCF101: AVI files (MPEG-4), 25 groups per class, three splits by groups; groups 1 to 7 are test split 1."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    lines = [f"{number} {name}\n" for number, name in enumerate(UCF101_CLASSES, start=1)]
    (lists / "classInd.txt").write_text("".join(lines), encoding="utf-8")
    for label, name in enumerate(UCF101_CLASSES):
        for group in range(1, groups + 1):
            for take in range(1, clips + 1):
                rng = np.random.default_rng((101, label, group, take))
                path = root / "UCF-101" / name / f"v_{name}_g{group:02d}_c{take:02d}.avi"
                write_video(path, clip(MOTIONS[label], rng), codec="mpeg4")
    for split in (1, 2, 3):
        train: list[str] = []
        test: list[str] = []
        for label, name in enumerate(UCF101_CLASSES, start=1):
            for group in range(1, groups + 1):
                tested = 7 * (split - 1) < group <= 7 * split
                for take in range(1, clips + 1):
                    listed = f"{name}/v_{name}_g{group:02d}_c{take:02d}.avi"
                    (test if tested else train).append(listed if tested else f"{listed} {label}")
        (lists / f"trainlist0{split}.txt").write_text("\n".join(train) + "\n", encoding="utf-8")
        (lists / f"testlist0{split}.txt").write_text("\n".join(test) + "\n", encoding="utf-8")


def hmdb51(root: Path, films: int = 25, clips: int = 2) -> None:
    """HMDB51: AVI files named by film and class, and a list of ``file part`` per class and split."""
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    for label, name in enumerate(HMDB51_CLASSES):
        files = []
        for film in range(films):
            for take in range(clips):
                rng = np.random.default_rng((51, label, film, take))
                file = f"Film_{film:02d}_{name}_u_nm_np1_fr_med_{take}.avi"
                write_video(root / "hmdb51_org" / name / file, clip(MOTIONS[label], rng), codec="mpeg4")
                files.append((file, film))
        for split in (1, 2, 3):
            lines = []
            for file, film in files:
                tested = film % 10 in {1: (0, 1, 2), 2: (3, 4, 5), 3: (6, 7, 8)}[split]
                lines.append(f"{file} {2 if tested else 0 if film % 10 == 9 else 1} \n")
            (lists / f"{name}_test_split{split}.txt").write_text("".join(lines), encoding="utf-8")


def video_folder(root: Path, per_class: int = 60) -> None:
    """A folder of MP4 files per motion."""
    for label, motion in enumerate(MOTIONS):
        for index in range(per_class):
            rng = np.random.default_rng((8, label, index))
            write_video(root / motion / f"{motion}_{index:03d}.mp4", clip(motion, rng))
