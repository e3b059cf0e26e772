"""How long does reading one file take, of every kind, and did it become slower?

    python benchmarks/files.py                                   # every kind
    python benchmarks/files.py --only ply npy "video"            # kinds whose name holds one of these words
    python benchmarks/files.py --against PATH                    # an older checkout beside this one, by turns

Files are drawn into a folder of their own: clouds of 100,000 points, meshes of as many corners, tables of numbers,
ten seconds of sound, pictures of 640 x 480, clips of 90 frames. Each is read from the cache of the operating system
by one process for each checkout, and the least of many repeats counts: what disturbs a measurement only makes it
longer. With ``--against`` the checkouts take turns, so that both meet the same machine; a time of the older one is left
out where it does not read the file, or not all of it.
"""

import argparse
import csv
import importlib.util
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent

if "--serve" not in sys.argv:  # there the checkout that is measured comes first
    sys.path.insert(0, str(ROOT))

POINTS = 100_000
RATE = 16_000  # Hz
SECONDS = 10  # of sound
SIDES = (480, 640)
FRAMES = 90
ENOUGH = 0.15  # seconds of repeats in a turn
LEAST_REPEATS = 3

Draw = Callable[[Path], None]
Read = Callable[[Path], Any]
Answer = tuple[float, str] | None  # milliseconds and the amount read; `None`: it is not read


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, ``before`` of the other checkout."""

    modality: str
    kind: str
    size_kb: float
    before_ms: float | None
    now_ms: float

    @property
    def ratio(self) -> float | None:
        return None if self.before_ms is None else self.now_ms / self.before_ms


# -- files ----------------------------------------------------------------------------------------------


def points() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(POINTS, 3)).round(5)


def triangles() -> NDArray[np.int64]:
    corners = np.random.default_rng(1).permutation(POINTS)[: POINTS - POINTS % 3].reshape(-1, 3)
    return np.concatenate([corners, np.roll(corners, 1, axis=0)])


def lines(rows: NDArray[Any], sign: str = " ", before: str = "") -> str:
    return "\n".join(before + sign.join(map(str, row)) for row in rows.tolist()) + "\n"


def draw_ply(path: Path, text: bool, mesh: bool) -> None:
    form = "ascii" if text else "binary_little_endian"
    head = f"ply\nformat {form} 1.0\nelement vertex {POINTS}\n" + "".join(
        f"property float {axis}\n" for axis in "xyz"
    )
    faces = triangles()
    if mesh:
        head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
    head += "end_header\n"
    if text:
        path.write_text(head + lines(points()) + (lines(faces, before="3 ") if mesh else ""))
        return
    records = np.zeros(len(faces), [("n", "u1"), ("corners", "<i4", 3)])
    records["n"], records["corners"] = 3, faces
    body = points().astype("<f4").tobytes() + (records.tobytes() if mesh else b"")
    path.write_bytes(head.encode() + body)


def draw_pcd(path: Path, text: bool) -> None:
    head = (
        "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
        f"WIDTH {POINTS}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {POINTS}\nDATA {'ascii' if text else 'binary'}\n"
    )
    path.write_bytes(head.encode() + (lines(points()).encode() if text else points().astype("<f4").tobytes()))


def draw_off(path: Path) -> None:
    faces = triangles()
    path.write_text(f"OFF\n{POINTS} {len(faces)} 0\n{lines(points())}{lines(faces, before='3 ')}")


def draw_obj(path: Path) -> None:
    path.write_text(lines(points(), before="v ") + lines(triangles() + 1, before="f "))


def draw_stl(path: Path) -> None:
    corners = points()[triangles()].astype("<f4")
    records = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    records["corners"] = corners
    path.write_bytes(bytes(80) + struct.pack("<I", len(corners)) + records.tobytes())


def polygons(start: int = 0) -> list[str]:
    """Triangles and quads in turn, as lines of indices."""
    numbers = (triangles() + start).tolist()
    return [" ".join(map(str, face if place % 2 else (*face, face[0]))) for place, face in enumerate(numbers)]


def draw_ply_polygons(path: Path) -> None:
    faces = polygons()
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {POINTS}\n" + "".join(
        f"property float {axis}\n" for axis in "xyz"
    )
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    sized = [[int(word) for word in face.split()] for face in faces]
    body = b"".join(struct.pack(f"<B{len(face)}i", len(face), *face) for face in sized)
    path.write_bytes(head.encode() + points().astype("<f4").tobytes() + body)


def draw_ply_colors(path: Path) -> None:
    names = "".join(f"property float {axis}\n" for axis in ("x", "y", "z", "nx", "ny", "nz"))
    names += "".join(f"property uchar {color}\n" for color in ("red", "green", "blue"))
    whole = np.arange(3 * POINTS).reshape(-1, 3) % 256
    rows = [
        f"{' '.join(map(str, point))} 0.0 0.6 0.8 {' '.join(map(str, color))}"
        for point, color in zip(points().tolist(), whole.tolist(), strict=True)
    ]
    head = f"ply\nformat ascii 1.0\nelement vertex {POINTS}\n{names}end_header\n"
    path.write_text(head + "\n".join(rows) + "\n")


def draw_obj_corners(path: Path) -> None:
    faces = "\n".join("f " + " ".join(f"{word}/1/1" for word in face.split()) for face in polygons(1))
    path.write_text(f"{lines(points(), before='v ')}vt 0 0\nvn 0 0 1\n{faces}\n")


def draw_off_polygons(path: Path) -> None:
    faces = [f"{face.count(' ') + 1} {face}" for face in polygons()]
    path.write_text(f"OFF\n{POINTS} {len(faces)} 0\n{lines(points())}" + "\n".join(faces) + "\n")


def draw_stl_text(path: Path) -> None:
    corners = lines(points()[triangles()].reshape(-1, 3), before="vertex ").splitlines()
    facets = [
        "facet normal 0 0 1\nouter loop\n" + "\n".join(corners[place : place + 3]) + "\nendloop\nendfacet"
        for place in range(0, len(corners), 3)
    ]
    path.write_text("solid a\n" + "\n".join(facets) + "\nendsolid a\n")


def draw_pcd_packed(path: Path) -> None:
    from tasks.datasets.point_cloud.choice import open3d

    o3d = open3d()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.sort(points(), axis=0)))
    o3d.io.write_point_cloud(str(path), cloud, compressed=True)


def draw_h5(path: Path, packed: bool) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=points().astype(np.float32), compression="gzip" if packed else None)


def draw_series(path: Path, rows: int, columns: int, step: str) -> None:
    import pandas as pd

    values = np.random.default_rng(0).normal(20, 5, size=(rows, columns)).round(3)
    frame = pd.DataFrame(values, columns=[f"v{number}" for number in range(columns)])
    frame.insert(
        0, "date", pd.date_range("2020-01-01", periods=rows, freq=step).strftime("%Y-%m-%d %H:%M:%S")
    )
    frame.to_csv(path, index=False)


def draw_sound(path: Path, form: str, subtype: str) -> None:
    import soundfile

    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.normal(size=RATE * SECONDS), RATE, format=form, subtype=subtype)


def picture() -> NDArray[np.uint8]:
    """Smooth with some noise, as photographs are."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIDES[0], : SIDES[1]] / 40
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1)
    return (127 + 90 * waves + rng.normal(0, 6, (*SIDES, 3))).clip(0, 255).astype(np.uint8)


def draw_picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture()).save(path)


def draw_clip(path: Path, codec: str) -> None:
    from tasks.datasets.video.sample import write_video

    small = picture()[:240, :320]
    write_video(path, np.stack([np.roll(small, 2 * frame, axis=1) for frame in range(FRAMES)]), codec)


def kinds() -> dict[tuple[str, str], tuple[str, Draw]]:
    """Every kind that is measured: (modality, name) -> file name and how it is drawn."""
    clouds: dict[str, tuple[str, Draw]] = {
        "ply, text": ("a.ply", lambda path: draw_ply(path, text=True, mesh=False)),
        "ply, text, mesh": ("b.ply", lambda path: draw_ply(path, text=True, mesh=True)),
        "ply, binary": ("c.ply", lambda path: draw_ply(path, text=False, mesh=False)),
        "ply, binary, mesh": ("d.ply", lambda path: draw_ply(path, text=False, mesh=True)),
        "ply, binary, mixed polygons": ("e.ply", draw_ply_polygons),
        "ply, text, normals and colours": ("f.ply", draw_ply_colors),
        "pcd, compressed": ("c.pcd", draw_pcd_packed),
        "off, mixed polygons": ("b.off", draw_off_polygons),
        "obj, mixed polygons a/b/c": ("b.obj", draw_obj_corners),
        "stl, text": ("b.stl", draw_stl_text),
        "pcd, text": ("a.pcd", lambda path: draw_pcd(path, text=True)),
        "pcd, binary": ("b.pcd", lambda path: draw_pcd(path, text=False)),
        "off, mesh": ("a.off", draw_off),
        "obj, mesh": ("a.obj", draw_obj),
        "stl, binary": ("a.stl", draw_stl),
        "xyz": ("a.xyz", lambda path: path.write_text(lines(points())) and None),
        "txt, commas": ("a.txt", lambda path: path.write_text(lines(points(), ",")) and None),
        "npy": ("a.npy", lambda path: np.save(path, points().astype(np.float32))),
        "npy, six columns": (
            "b.npy", lambda path: np.save(path, np.tile(points(), 2).astype(np.float32))
        ),
        "npz": ("a.npz", lambda path: np.savez(path, points=points().astype(np.float32))),
        "npz, compressed": (
            "b.npz", lambda path: np.savez_compressed(path, points=points().astype(np.float32))
        ),
        "h5": ("a.h5", lambda path: draw_h5(path, packed=False)),
        "h5, compressed": ("b.h5", lambda path: draw_h5(path, packed=True)),
    }  # fmt: skip
    series: dict[str, tuple[str, Draw]] = {
        "csv, 17,420 hours, 7 columns": ("hours.csv", lambda path: draw_series(path, 17_420, 7, "h")),
        "csv, 52,696 x 10 min, 21 columns": (
            "weather.csv",
            lambda path: draw_series(path, 52_696, 21, "10min"),
        ),
        "csv, 2,000 days, 300 columns": ("wide.csv", lambda path: draw_series(path, 2_000, 300, "D")),
    }
    forms = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"),
             "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"), "opus": ("OGG", "OPUS")}  # fmt: skip
    codecs = {"mp4": "libx264", "avi": "mpeg4", "mkv": "libx264", "webm": "libvpx-vp9"}
    return (
        {("point_cloud", kind): how for kind, how in clouds.items()}
        | {("time_series", kind): how for kind, how in series.items()}
        | {
            ("audio", f"{ending}, 1 of {SECONDS} s"): (
                f"a.{ending}",
                lambda path, form=form: draw_sound(path, *form),  # type: ignore[misc]
            )
            for ending, form in forms.items()
        }
        | {
            ("image", ending): (f"a.{ending}", draw_picture)
            for ending in ("jpg", "png", "webp", "bmp", "tif")
        }
        | {
            ("video", f"{ending}, 16 of {FRAMES} frames"): (
                f"a.{ending}",
                lambda path, codec=codec: draw_clip(path, codec),  # type: ignore[misc]
            )
            for ending, codec in codecs.items()
        }
    )


# -- reading --------------------------------------------------------------------------------------------


def reader(modality: str) -> Read:
    """How a file of the modality is read, by functions that every checkout has."""
    if modality == "point_cloud":
        read: Read = found_in("read_cloud", "point_cloud.files", "point_files")
        return read
    if modality == "time_series":
        return found_in("read_csv", "time_series.table", "series_table")
    kind = {"audio": "AudioFolder", "image": "ImageFolder", "video": "VideoFolder"}[modality]
    source = found_in(kind, f"{modality}.folder", f"{modality}_folder")
    return source(name=f"{modality}_folder", data_dir=".", num_workers=0).read_file


def found_in(name: str, *modules: str) -> Any:
    """A name from the first of these modules of `tasks.datasets` that the checkout has."""
    for module in modules:
        if importlib.util.find_spec(f"tasks.datasets.{module.partition('.')[0]}"):
            return getattr(importlib.import_module(f"tasks.datasets.{module}"), name)
    raise ModuleNotFoundError(f"no {' or '.join(modules)} in tasks.datasets")


def amount(found: Any) -> str:
    """How much was read; another amount is another answer, whose time compares with nothing."""
    if hasattr(found, "triangles"):
        return f"{len(found.points)},{0 if found.triangles is None else len(found.triangles)}"
    return str(tuple(getattr(found, "values_TN", found).shape)).replace(" ", "")


def serve(root: str) -> None:
    """Answer lines ``modality path`` with the least milliseconds of some repeats, by the code of a checkout."""
    sys.path.insert(0, root)
    readers: dict[str, Read] = {}
    for line in sys.stdin:
        modality, path = line.rstrip("\n").split("\t")
        read = readers.setdefault(modality, reader(modality))
        least, began, repeats = float("inf"), time.perf_counter(), 0
        while repeats < LEAST_REPEATS or time.perf_counter() - began < ENOUGH:
            start = time.perf_counter()
            try:
                found = read(Path(path))
            except Exception as error:
                print(f"fails {error}".replace("\n", " "), flush=True)
                break
            least = min(least, time.perf_counter() - start)
            repeats += 1
        else:
            print(f"least {1000 * least} {amount(found)}", flush=True)


@contextmanager
def served(root: Path) -> Iterator[Callable[[str, Path], Answer]]:
    """A process that reads with the code of a checkout: (modality, path) -> answer."""
    words = [sys.executable, "-W", "ignore", __file__, "--serve", str(root)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as said,  # some libraries write a line about each file
        subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=said, text=True, cwd=root) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(modality: str, path: Path) -> Answer:
            process.stdin.write(f"{modality}\t{path}\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            for line in process.stdout:  # type: ignore[union-attr]
                if line.startswith("least "):
                    return float(line.split()[1]), line.split()[2]
                if line.startswith("fails "):
                    return None
            said.seek(0)
            raise SystemExit(f"the code in {root} does not read {path.name}: {said.read()[-2000:].decode()}")

        yield ask
        process.stdin.close()


def measure(only: Sequence[str], against: Path | None, turns: int) -> Iterator[Row]:
    """A row for each kind whose name, or modality, holds one of the words."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="files-")))
        now = stack.enter_context(served(ROOT))
        before = stack.enter_context(served(against)) if against else None
        for (modality, kind), (name, draw) in kinds().items():
            if only and not any(word in f"{modality} {kind}" for word in only):
                continue
            path = folder / name
            draw(path)
            own: list[Answer] = []
            old: list[Answer] = []
            for turn in range(turns):
                asked = [(now, own), *([(before, old)] if before else [])]
                for ask, times in asked if turn % 2 else reversed(asked):
                    times.append(ask(modality, path))
            if own[0] is None:
                raise SystemExit(f"{kind} is not read")
            comparable = bool(old) and old[0] is not None and old[0][1] == own[0][1]
            before_ms = _least(old) if comparable else None
            yield Row(modality, kind, path.stat().st_size / 1000, before_ms, _least(own))
            path.unlink()


def _least(answers: Sequence[Answer]) -> float:
    return min(answer[0] for answer in answers if answer is not None)


def show(rows: Sequence[Row]) -> None:
    """Print the table as Markdown."""
    print("| modality | file | kB | before, ms | now, ms | now / before |\n|---|---|---|---|---|---|")
    for row in rows:
        before = "" if row.before_ms is None else f"{row.before_ms:.2f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"| {row.modality} | {row.kind} | {row.size_kb:,.0f} | {before} | {row.now_ms:.2f} | {ratio} |")


def main(words: Sequence[str] | None = None) -> list[Row]:
    """Measure what the command line asks for, print it and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="words of modalities or kinds (default: all)")
    parser.add_argument("--against", type=Path, help="an older checkout")
    parser.add_argument("--turns", type=int, default=6, help="of measuring every file")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks/files.csv"), help="where the CSV goes"
    )
    asked = parser.parse_args(words)
    if asked.serve:
        serve(asked.serve)
        return []
    if asked.against is not None and not (asked.against / "tasks" / "datasets").is_dir():
        parser.error(f"{asked.against} is no checkout of this project (there is no tasks/datasets in it)")
    rows = []
    for row in measure(asked.only, asked.against and asked.against.resolve(), asked.turns):
        rows.append(row)
        before = "" if row.before_ms is None else f" (before: {row.before_ms:.2f}, x {row.ratio:.2f})"
        print(f"{row.modality}, {row.kind}: {row.now_ms:.2f} ms{before}", file=sys.stderr, flush=True)
    show(rows)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in fields(Row))
        table.writerows(astuple(row) for row in rows)
    return rows


if __name__ == "__main__":
    main()
