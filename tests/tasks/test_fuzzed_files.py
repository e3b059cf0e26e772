"""Damaged files end in a sentence: no crash of the process, no other error, no hanging, no memory without bounds."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing_support import SEEDS, mutant
from PIL import Image

from tasks.datasets.base import DataError

SECONDS = 20  # one file at most, on a busy machine
MOST_MEMORY = 4 * 2**30  # bytes
ALL = 2000
TESTS = Path(__file__).parents[1]


def readers(folder: Path) -> dict[str, Callable[[Path], Any]]:
    """How each modality reads a file of the user's."""
    from tasks.datasets.audio.folder import AudioFolder
    from tasks.datasets.batch import Failure
    from tasks.datasets.image.box_folder import BoxFolder
    from tasks.datasets.image.folder import ImageFolder
    from tasks.datasets.point_cloud.folder import PointFolder
    from tasks.datasets.time_series.csv_forecast import CsvForecast
    from tasks.datasets.video.folder import VideoFolder

    where = {"data_dir": str(folder), "num_workers": 0}

    def series(path: Path) -> None:
        data = CsvForecast(name="csv_forecast", data_dir=str(path), look_back=12, horizon=4, num_workers=0)
        data.setup()

    def boxes(path: Path) -> None:
        """Its labels and the pictures that they are of, as a folder of one's own."""
        root = folder / "labelled"
        shutil.rmtree(root, ignore_errors=True)
        (root / "images").mkdir(parents=True)
        for n in range(3):
            Image.new("RGB", (30, 24)).save(root / "images" / f"p{n}.png")
        places = {
            ".json": "annotations/instances.json",
            ".xml": "Annotations/p0.xml",
            ".txt": "labels/p0.txt",
        }
        place = places.get(path.suffix, "data.yaml")
        (root / place).parent.mkdir(exist_ok=True)
        shutil.copy(path, root / place)
        beside = folder / "good" / "boxes" / f"a{path.suffix if path.suffix != '.yaml' else '.txt'}"
        if path.suffix != ".json":
            others = root / ("Annotations" if path.suffix == ".xml" else "labels")
            others.mkdir(exist_ok=True)
            for n in range(1, 3):
                shutil.copy(beside, others / f"p{n}{beside.suffix}")
        data = BoxFolder(name="box_folder", num_workers=0, data_dir=str(root))
        data.setup()
        for split, items in data.splits.items():
            dataset = data.loader(split, train=False).dataset
            for index in range(len(items)):
                read = dataset[index, 0]
                # A fault that the reader did not foresee would be named by its type; good files have none.
                said = read.said if isinstance(read, Failure) else ""
                assert "it cannot be read (" not in said, said
                assert not said or path.stem != "a", said

    return {
        "boxes": boxes,
        "audio": AudioFolder(name="audio_folder", seconds=0.2, **where).read_file,  # type: ignore[arg-type]
        "image": ImageFolder(name="image_folder", **where).read_file,  # type: ignore[arg-type]
        "video": VideoFolder(name="video_folder", frames=4, size=32, **where).read_file,  # type: ignore[arg-type]
        "point_cloud": PointFolder(name="point_folder", num_points=32, **where).read_file,  # type: ignore[arg-type]
        "time_series": series,
    }


def read_all(folder: Path) -> None:
    """Read the files of a folder, in order; a line of JSON for each: before and after."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    read = readers(folder)
    for line in (folder / "files.txt").read_text().splitlines():
        modality, name = line.split()
        print(json.dumps({"begins": name}), flush=True)
        signal.alarm(SECONDS)
        fault = ""
        try:
            read[modality](folder / name)
        except DataError as error:
            fault = f"two lines: {error}" if "\n" in str(error) else ""
        except BaseException:
            fault = traceback.format_exc()
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"ends": name, "fault": fault, "peak": peak}), flush=True)


def run(folder: Path, files: Sequence[str]) -> list[str]:
    """What went wrong, a text each; a process that dies is started again behind the file that killed it."""
    faults: list[str] = []
    left = list(files)
    while left:
        (folder / "files.txt").write_text("\n".join(left))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        )
        said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
        ended = [line for line in said if "ends" in line]
        faults += [f"{line['ends']}: {line['fault']}" for line in ended if line["fault"]]
        if ended and ended[-1]["peak"] > MOST_MEMORY:
            faults.append(f"{ended[-1]['ends']} or one before: {ended[-1]['peak'] / 2**30:.1f} GiB of memory")
        if done.returncode == 0:
            return faults
        if len(said) == len(ended) * 2 + 1:
            faults.append(f"{said[-1]['begins']}: the process died ({done.returncode}): {done.stderr[-400:]}")
        else:
            return [*faults, done.stderr[-2000:]]
        left = left[len(ended) + 1 :]
    return faults


def mutants(folder: Path, count: int, seed: int) -> list[str]:
    """Write `count` mutants, as many of each kind of file; their names with their modality."""
    rng = np.random.default_rng(seed)
    good: list[tuple[str, Path]] = []
    for modality, write in SEEDS.items():
        place = folder / "good" / modality
        place.mkdir(parents=True)
        good += [(modality, path) for path in write(place)]
    contents = [path.read_bytes() for _, path in good]
    names = [f"{modality} good/{modality}/{path.name}" for modality, path in good]
    for number in range(count):
        modality, path = good[number % len(good)]
        name = f"{number}{path.suffix}"
        (folder / name).write_bytes(mutant(path.read_bytes(), contents, rng))
        names.append(f"{modality} {name}")
    (folder / "empty.csv").touch()
    return [*names, "time_series empty.csv"]


def check(folder: Path, count: int, seed: int) -> None:
    began = time.monotonic()
    files = mutants(folder, count, seed)
    faults = run(folder, files)
    print(f"{len(files)} files in {time.monotonic() - began:.0f} s")
    assert not faults, f"{len(faults)} of {len(files)}:\n" + "\n".join(faults)


def test_some_damaged_files(tmp_path: Path) -> None:
    check(tmp_path, 200, seed=0)


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    check(
        tmp_path, int(os.environ.get("WIDEFIELD_MUTANTS", ALL)), seed=int(os.environ.get("WIDEFIELD_SEED", 1))
    )


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
