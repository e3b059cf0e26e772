"""What lies in a folder is data: it starts nothing, blocks nothing, and what the user put there stays."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import DataError, ReadError, draw_once
from tasks.datasets.image.folder import ImageFolder
from tasks.datasets.image.imagenet import pictures
from tasks.datasets.image.reading import open_image
from tasks.datasets.point_cloud.folder import PointFolder
from tasks.datasets.point_cloud.radhar import RadHAR
from tasks.datasets.time_series.csv_forecast import CsvForecast
from tasks.datasets.video.folder import VideoFolder

STAMP = {"task": "x", "version": 2}


def write(root: Path) -> None:
    (root / "drawn").write_text("new")


# -- where the embedded sample goes


def mine(root: Path) -> None:
    root.mkdir()
    (root / "thesis.txt").write_text("mine")


def mine_with_a_file_of_that_name(root: Path) -> None:
    mine(root)
    (root / "SAMPLE.json").write_text("[1]")


def a_file(root: Path) -> None:
    root.write_text("mine")


@pytest.mark.parametrize("put", [mine, mine_with_a_file_of_that_name, a_file])
def test_a_folder_of_the_users_stays(tmp_path: Path, put: Any) -> None:
    root = tmp_path / "x"
    put(root)
    before = sorted((path, path.read_text()) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(
        DataError, match=r"/x is where the embedded sample goes, but holds .* paths.samples=FOLDER"
    ):
        draw_once(root, STAMP, write)
    assert sorted((path, path.read_text()) for path in tmp_path.rglob("*") if path.is_file()) == before


def test_what_was_drawn_gives_way(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()  # empty
    draw_once(tmp_path / "x", STAMP | {"version": 1}, write)
    (tmp_path / "x" / "drawn").write_text("old")
    draw_once(tmp_path / "x", STAMP, write)
    assert (tmp_path / "x" / "drawn").read_text() == "new"
    assert json.loads((tmp_path / "x" / "SAMPLE.json").read_text()) == STAMP
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# -- what is opened


@pytest.mark.parametrize(
    ("source", "ending", "options"),
    [
        (AudioFolder, ".wav", {}),
        (ImageFolder, ".png", {}),
        (PointFolder, ".ply", {}),
        (VideoFolder, ".mp4", {}),
        (RadHAR, ".npz", {}),
    ],
)
def test_a_pipe_is_no_file(tmp_path: Path, source: Any, ending: str, options: dict[str, Any]) -> None:
    pipe = tmp_path / f"x{ending}"
    os.mkfifo(pipe)
    data = source(name="x", data_dir=str(tmp_path), **options)
    with pytest.raises(ReadError, match="no such file"):
        data.read_file(pipe)


def test_pipes_are_not_listed(tmp_path: Path) -> None:
    for name in ("x.png", "x.csv"):
        os.mkfifo(tmp_path / name)
    assert pictures(tmp_path) == []
    with pytest.raises(DataError, match=r"there are 0 .csv files"):
        CsvForecast(name="x", data_dir=str(tmp_path)).setup()


def test_postscript_starts_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("gs") == str(program)
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    picture = tmp_path / "a.png"
    picture.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ReadError, match="cannot be read as an image"):
        open_image(picture)
    assert not ran.exists()


def test_usual_formats_are_read_whatever_their_ending(tmp_path: Path) -> None:
    from PIL import Image

    for kind in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM"):
        path = tmp_path / f"{kind}.jpg"
        Image.new("RGB", (8, 8), "white").save(path, format=kind)
        assert np.asarray(open_image(path)).shape == (8, 8, 3)
