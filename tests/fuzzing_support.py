"""Damaged files for the fuzz test: small good files of every kind, and what can happen to their bytes."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import laspy
import numpy as np
import soundfile
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from tasks.datasets.video.sample import write_video

RATE = 8000


def sounds(folder: Path) -> list[Path]:
    wave = 0.3 * np.sin(np.arange(RATE // 4) * 0.3)
    for name, form, subtype in (
        ("a.wav", "WAV", "PCM_16"), ("b.wav", "WAV", "FLOAT"), ("a.flac", "FLAC", None), ("a.mp3", "MP3", None),
        ("a.ogg", "OGG", "VORBIS"), ("a.opus", "OGG", "OPUS"), ("a.aiff", "AIFF", None), ("a.caf", "CAF", None),
    ):  # fmt: skip
        soundfile.write(folder / name, wave, RATE, format=form, subtype=subtype)
    with av.open(str(folder / "a.m4a"), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return sorted(folder.iterdir())


def pictures(folder: Path) -> list[Path]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8))
    for ending in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm"):
        picture.save(folder / f"a.{ending}")
    picture.convert("L").save(folder / "grey.png")
    return sorted(folder.iterdir())


def videos(folder: Path) -> list[Path]:
    frames = np.random.default_rng(0).integers(0, 255, (12, 32, 64, 3), dtype=np.uint8)
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"),
                        ("a.mpg", "mpeg2video")):  # fmt: skip
        write_video(folder / name, frames, codec)
    return sorted(folder.iterdir())


def clouds(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 3)).round(4)
    faces = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    rows = "\n".join(" ".join(map(str, row)) for row in points)
    triangles = "\n".join(f"3 {a} {b} {c}" for a, b, c in faces)
    names = "property float x\nproperty float y\nproperty float z\n"
    (folder / "a.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 40\n{names}end_header\n{rows}\n")
    (folder / "b.ply").write_bytes(
        f"ply\nformat binary_little_endian 1.0\nelement vertex 40\n{names}element face 3\n"
        "property list uchar int vertex_indices\nend_header\n".encode()
        + points.astype("<f4").tobytes()
        + b"".join(struct.pack("<B3i", 3, *face) for face in faces)
    )
    head = (
        "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
        "WIDTH 40\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 40\n"
    )
    (folder / "a.pcd").write_text(f"{head}DATA ascii\n{rows}\n")
    (folder / "b.pcd").write_bytes(f"{head}DATA binary\n".encode() + points.astype("<f4").tobytes())
    (folder / "a.off").write_text(f"OFF\n40 3 0\n{rows}\n{triangles}\n")
    (folder / "a.obj").write_text(
        "\n".join(f"v {x} {y} {z}" for x, y, z in points) + "\nf 1 2 3\nf 4 5 6\nf -1 -2 -3\n"
    )
    corners = points.astype("<f4")
    (folder / "a.stl").write_bytes(
        b"\0" * 80
        + struct.pack("<I", 3)
        + b"".join(b"\0" * 12 + corners[face].tobytes() + b"\0\0" for face in faces)
    )
    (folder / "a.xyz").write_text(rows)
    (folder / "a.txt").write_text("\n".join(",".join(map(str, row)) for row in points))
    np.save(folder / "a.npy", points.astype(np.float32))
    np.savez_compressed(folder / "a.npz", points=points.astype(np.float32))
    chunks = np.ascontiguousarray(points.astype("<f4").T)
    literal = b"".join(  # compression that found nothing twice
        bytes([len(part) - 1]) + part
        for part in (chunks.tobytes()[start : start + 32] for start in range(0, chunks.nbytes, 32))
    )
    (folder / "c.pcd").write_bytes(
        f"{head}DATA binary_compressed\n".encode() + struct.pack("<II", len(literal), chunks.nbytes) + literal
    )
    scans(folder, points)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("data", data=points.astype(np.float32), compression="gzip")
    return sorted(folder.iterdir())


def scans(folder: Path, points: NDArray[np.float64]) -> None:
    las = laspy.create(point_format=3, file_version="1.4")
    las.header.scales = [1e-4] * 3
    las.x, las.y, las.z = points.T
    for ending in ("las", "laz"):
        las.write(str(folder / f"a.{ending}"))


def tables(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    lines = [f"2020-01-{1 + hour // 24:02d} {hour % 24:02d}:00:00" for hour in range(300)]
    (folder / "a.csv").write_text(
        "date,load,OT\n" + "\n".join(f"{line},{rng.normal():.3f},{rng.normal():.3f}" for line in lines)
    )
    (folder / "b.csv").write_text(
        "date;OT\n" + "\n".join(f"{line};{rng.normal():.3f}".replace(".", ",") for line in lines)
    )
    return sorted(folder.iterdir())


def labels(folder: Path) -> list[Path]:
    """Labels of three pictures p0.png to p2.png of 30 × 24 pixels: COCO's, VOC's and YOLO's, and names for YOLO's."""
    images = [{"id": n, "file_name": f"p{n}.png", "width": 30, "height": 24} for n in range(3)]
    square = np.zeros((24, 30), dtype=np.uint8, order="F")
    square[3:15, 2:12] = 1
    outlines = [
        [[2, 3, 12, 3, 12, 15, 2, 15], [20.5, 3, 25, 3.25, 22, 9]],
        {"size": [24, 30], "counts": [100, 20, 10, 5, 585]},
        {"size": [24, 30], "counts": coco.encode(square)["counts"].decode()},
    ]
    rows = [
        {
            "id": n,
            "image_id": n,
            "category_id": 1 + n % 2,
            "bbox": [2, 3, 10.5, 12],
            "iscrowd": n % 2,
            "area": 120,
        }
        | {"segmentation": outline}
        for n, outline in enumerate(outlines)
    ]
    named = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"info": {}, "images": images, "annotations": rows, "categories": named}
    (folder / "a.json").write_text(json.dumps(content, indent=1))
    boxes = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>4</ymin><xmax>{x + 9}</xmax>"
        "<ymax>20</ymax></bndbox></object>\n"
        for x, name in ((2, "cat"), (12, "dog"))
    )
    size = "<size><width>30</width><height>24</height><depth>3</depth></size>"
    (folder / "a.xml").write_text(f"<?xml version='1.0'?>\n<annotation>{size}\n{boxes}</annotation>\n")
    (folder / "a.txt").write_text("0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.5 0.1 0.5 0.75\n")
    (folder / "a.yaml").write_text("train: images\nnames:\n  0: cat\n  1: dog\n")
    return sorted(folder.iterdir())


SEEDS: dict[str, Callable[[Path], list[Path]]] = {
    "audio": sounds,
    "image": pictures,
    "video": videos,
    "point_cloud": clouds,
    "time_series": tables,
    "boxes": labels,
}
NUMBERS = (
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0",
    b"\x80\0\0\0",
    b"9999999999",
    b"nan ",
    b"1e39",
)


def mutant(content: bytes, others: list[bytes], rng: Generator) -> bytes:
    """A file that is cut off, or has flipped bits, other numbers, pieces lost, doubled or of another file."""
    kind = rng.integers(9)
    data = bytearray(content)
    size = len(data)
    if kind == 0:
        return content[: rng.integers(size)]
    if kind == 1:
        for place in rng.integers(0, size, rng.integers(1, 12)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 2:
        for place in rng.integers(0, min(size, 200), rng.integers(1, 4)):
            data[place] = rng.integers(256)
    elif kind in (3, 4):
        number = NUMBERS[rng.integers(len(NUMBERS))]
        place = int(rng.integers(0, size if kind == 4 else min(size, 300)))
        data[place : place + len(number)] = number
    elif kind == 5:
        start = int(rng.integers(size))
        del data[start : start + int(rng.integers(1, 64))]
    elif kind == 6:
        start = int(rng.integers(size))
        data[start:start] = bytes(rng.integers(0, 256, rng.integers(1, 3000), dtype=np.uint8))
    elif kind == 7:
        return others[rng.integers(len(others))]  # the content of another kind of file
    else:
        start = int(rng.integers(size))
        data[start:start] = data[: rng.integers(1, size + 1)]
    return bytes(data)
