"""Reading points: every format, broken files, the cache; and each source on its own sample's layout."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import ROOT, TINY

from tasks.datasets.base import SPLITS, DataError, DataModule, ReadError
from tasks.datasets.download import Source
from tasks.datasets.point_cloud import sample as samples
from tasks.datasets.point_cloud.cache import cached
from tasks.datasets.point_cloud.choice import farthest_points, open3d, sample_surface, turned_z_up
from tasks.datasets.point_cloud.files import PointData
from tasks.datasets.point_cloud.folder import PointFolder
from tasks.datasets.point_cloud.formats.cloud import Cloud
from tasks.datasets.point_cloud.formats.reading import read_cloud
from tasks.datasets.point_cloud.modelnet import SOURCES, ModelNet
from tasks.datasets.point_cloud.radhar import RadHAR, window_starts
from tasks.datasets.point_cloud.scanobjectnn import CLASSES, ScanObjectNN

POINTS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
NORMALS = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int32)


def write_with_open3d(path: Path, mesh: bool) -> None:
    o3d = open3d()
    if mesh:
        solid = o3d.geometry.TriangleMesh(
            o3d.utility.Vector3dVector(TETRAHEDRON.astype(float)), o3d.utility.Vector3iVector(FACES)
        )
        solid.compute_triangle_normals()
        o3d.io.write_triangle_mesh(str(path), solid)
    else:
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(POINTS.astype(float)))
        cloud.normals = o3d.utility.Vector3dVector(NORMALS.astype(float))
        o3d.io.write_point_cloud(str(path), cloud)


def write_numbers(path: Path) -> None:
    table = np.concatenate([POINTS, NORMALS], axis=1)
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".npz":
        np.savez(path, points=table, other=np.zeros(3))
    elif path.suffix == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            file["data"] = table[None]
    else:
        np.savetxt(path, table, delimiter="," if path.suffix == ".txt" else " ")


@pytest.mark.parametrize("name", ["a.ply", "a.pcd", "a.xyz", "a.txt", "a.npy", "a.npz", "a.h5"])
def test_clouds_of_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix in (".ply", ".pcd"):
        write_with_open3d(path, mesh=False)
    else:
        write_numbers(path)
    cloud = read_cloud(path)
    assert cloud.triangles is None
    np.testing.assert_allclose(cloud.points, POINTS, atol=1e-5)
    np.testing.assert_allclose(
        np.column_stack([cloud.columns[n] for n in ("nx", "ny", "nz")]), NORMALS, atol=1e-5
    )


@pytest.mark.parametrize("name", ["a.ply", "a.off", "a.obj", "a.stl"])
def test_meshes_of_every_format(tmp_path: Path, name: str) -> None:
    write_with_open3d(tmp_path / name, mesh=True)
    mesh = read_cloud(tmp_path / name)
    assert mesh.triangles is not None
    assert len(mesh.triangles) == 4
    sampled = sample_surface(mesh, 4000)
    assert sampled.points.min() > -1e-6
    assert sampled.points.sum(axis=1).max() < 1 + 1e-5
    on_top = (sampled.points.sum(axis=1) > 1 - 1e-4).mean()
    assert on_top == pytest.approx(np.sqrt(3) / (np.sqrt(3) + 3), abs=0.03), "points lie evenly by area"
    again = sample_surface(mesh, 4000)
    assert (again.points == sampled.points).all(), "the same points each time"


def test_off_as_modelnet_has_it(tmp_path: Path) -> None:
    (tmp_path / "glued.off").write_text("OFF4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n")
    (tmp_path / "square.off").write_text("OFF # a comment\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    glued, square = read_cloud(tmp_path / "glued.off"), read_cloud(tmp_path / "square.off")
    assert glued.triangles is not None
    assert square.triangles is not None
    assert (glued.triangles == square.triangles).all()
    assert (glued.points == square.points).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.off", b"", "empty"),
        ("a.off", b"PLY\n", "does not begin with the word OFF"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n", "breaks off"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1 2\n", "breaks off"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", "names vertex 9"),
        ("a.off", b"OFF\n1 0 0\nnan 0 0\n", "not finite"),
        ("a.off", b"OFF\nx y z\n", "cannot be read"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 5\n", "no points"),
        ("a.ply", b"\x00\xff" * 300, "no points"),
        ("a.pcd", b"# .PCD v.7\nPOINTS 10\n", "no points"),
        ("a.stl", b"\x00" * 50, "no points"),
        ("a.obj", b"hello\n", "no points"),
        ("a.txt", b"hello\n", "cannot be read"),
        ("a.xyz", b"1 2\n3 4\n", "not a row x, y, z"),
        ("a.npy", b"\x93NUMPY", "cannot be read"),
        ("a.npz", b"PK\x03\x04 but no more", "cannot be read"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "cannot be read"),
        ("a.jpg", b"\xff\xd8", "none of"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ReadError, match=message) as caught:
        read_cloud(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_more_files_that_are_no_cloud(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no such file"):
        read_cloud(tmp_path / "absent.ply")
    np.save(tmp_path / "a.npy", np.array(["x", "y"]))
    np.savez(tmp_path / "b.npz", one=POINTS, two=POINTS)
    np.save(tmp_path / "c.npy", np.zeros((7, 10, 3)))
    for name, message in (
        ("a.npy", "not a row"),
        ("b.npz", "call the one to read"),
        ("c.npy", r"\(7, 10, 3\)"),
    ):
        with pytest.raises(ReadError, match=message):
            read_cloud(tmp_path / name)
    with pytest.raises(ReadError, match="no surface"):
        sample_surface(Cloud(np.zeros((3, 3), np.float32), triangles=np.array([[0, 1, 2]], np.int32)), 10)


def test_farthest_points_spread() -> None:
    index = farthest_points(POINTS, 10)
    assert len(set(index.tolist())) == 10
    assert (np.diff(index) > 0).all()
    nearest = np.sqrt(((POINTS[:, None] - POINTS[None]) ** 2).sum(-1))
    chosen = nearest[np.ix_(index, index)] + np.eye(10) * 99
    assert nearest[:, index].min(axis=1).max() <= chosen.min() + 1e-6, (
        "nothing is farther off than the chosen ones"
    )
    assert (farthest_points(POINTS, 80) == np.arange(50)).all()


@given(st.integers(1, 5), st.permutations(["nx", "ny", "nz", "r"]))
@settings(max_examples=6, deadline=None)
def test_turning_up(rows: int, columns: list[str]) -> None:
    table = np.random.default_rng(rows).normal(size=(rows, 7)).astype(np.float32)
    before, turned = (
        dict(zip("xyz", part[:3], strict=True)) | dict(zip(columns, part[3:], strict=True))
        for part in (table.T, turned_z_up(table, columns).T)
    )
    for kind in ("", "n"):
        np.testing.assert_array_equal(turned[f"{kind}x"], before[f"{kind}x"])
        np.testing.assert_array_equal(turned[f"{kind}y"], -before[f"{kind}z"])
        np.testing.assert_array_equal(turned[f"{kind}z"], before[f"{kind}y"])
    np.testing.assert_array_equal(turned["r"], before["r"])
    np.testing.assert_array_equal(turned_z_up(table, ["r", "g", "b", "a"])[:, 3:], table[:, 3:])


def radial_clouds(root: Path) -> Path:
    """Clouds whose normals are the directions of their points, and stand behind the colours in the files."""
    rng = np.random.default_rng(0)
    for name in [f"{kind}/{index}.csv" for kind in "ab" for index in range(8)]:
        points = rng.normal(size=(40, 3))
        rows = [points, rng.integers(0, 256, (40, 3)), points / np.linalg.norm(points, axis=1, keepdims=True)]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(
            root / name, np.concatenate(rows, 1), delimiter=",", header="x,y,z,r,g,b,nx,ny,nz", comments=""
        )
    return root


@pytest.mark.parametrize("columns", ["nx ny nz r g b", "r g b nx ny nz", "nx r nz ny"])
@pytest.mark.parametrize("settings", [{"up": "y"}, {"votes": 3, "vote_turns": True}])
def test_normals_turn_wherever_they_stand(tmp_path: Path, columns: str, settings: dict[str, Any]) -> None:
    root, names = radial_clouds(tmp_path / "clouds"), columns.split()
    data = PointFolder(
        name="x", data_dir=str(root), samples_dir=str(tmp_path), num_points=32, columns=names, **settings
    )
    data.setup()
    for table in (
        data.read_file(root / "a" / "0.csv"),
        data.read_item(data.splits["test"][0], False, np.random.default_rng(0)),
    ):
        normals = table[..., [3 + names.index(name) for name in ("nx", "ny", "nz")]]
        torch.testing.assert_close(
            normals, torch.nn.functional.normalize(table[..., :3], dim=-1), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("settings", [{"up": "y"}, {"vote_turns": True}])
@pytest.mark.parametrize("columns", [["nx", "nz"], ["nx", "ny", "nz", "nx"]])
def test_normals_in_part_cannot_be_turned(columns: list[str], settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"task\.data\.columns name nx, .* of the normals"):
        PointFolder(name="x", columns=columns, **settings)
    assert PointFolder(name="x", columns=columns).columns == tuple(columns), "nothing is turned"


@pytest.mark.parametrize("source", [ModelNet, ScanObjectNN])
def test_normals_in_part_of_sources_with_y_up(source: type[PointData]) -> None:
    with pytest.raises(DataError, match=r"task\.data\.columns name nx of the normals"):
        source(name="x", columns=["nx"])


# -- cache ----------------------------------------------------------------------------------------------


def _fill(path: Path, folder: Path) -> bool:
    for round_ in range(10):
        array = cached(path, folder, {"round": round_}, partial(np.full, (200, 3), round_, np.float32))
        if not (array == round_).all():
            return False
    return True


def test_the_cache_knows_file_and_settings(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.off", tmp_path / "cache"
    path.write_text("one")
    made: list[int] = []

    def make() -> np.ndarray:
        made.append(1)
        return np.arange(6.0)

    for _ in range(3):
        assert (cached(path, folder, {"points": 5}, make) == np.arange(6.0)).all()
    assert len(made) == 1
    cached(path, folder, {"points": 6}, make)
    path.write_text("another")
    cached(path, folder, {"points": 5}, make)
    assert len(made) == 3
    for entry in folder.rglob("*.npy"):
        entry.write_bytes(entry.read_bytes()[:40])
    cached(path, folder, {"points": 5}, make)
    assert len(made) == 4, "a damaged entry is made anew"
    cached(path, tmp_path / "a.off" / "below-a-file", {}, make)
    assert not list(tmp_path.rglob(".*-*.npy")), "no drafts are left"


def test_the_cache_is_safe_under_parallel_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.touch()
    with ThreadPool(6) as pool:  # processes would race for the same files, only slower
        assert all(pool.starmap(_fill, [(path, tmp_path / "cache")] * 6))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 10


def test_a_file_is_sampled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.modelnet(tmp_path / "data", train=2, test=1)
    data = point_data(ModelNet, tmp_path, classes=10, val_fraction=0.4)
    reads: list[Path] = []

    def counted(path: Path, *more: Any) -> Cloud:
        reads.append(path)
        return read_cloud(path, *more)

    monkeypatch.setattr("tasks.datasets.point_cloud.files.read_cloud", counted)
    item = data.splits["train"][0]
    first, second = (data.read_item(item, True, np.random.default_rng(seed)) for seed in (0, 1))
    assert len(reads) == 1
    assert first.shape == (64, 3)
    assert not torch.equal(first, second), "training draws other points each time"
    assert torch.equal(data.read_file(item.path), data.read_item(item, False, np.random.default_rng(7)))
    assert len(reads) == 1


# -- sources --------------------------------------------------------------------------------------------


def point_data(kind: type[Any], tmp_path: Path, **more: Any) -> Any:
    more = ({} if kind is RadHAR else {"num_points": 64}) | more
    data = kind(name="test", data_dir=str(tmp_path / "data"), samples_dir=str(tmp_path), **more)
    data.prepare_data()
    data.setup()
    return data


def check_splits(data: DataModule, sizes: tuple[int, int, int]) -> None:
    """The contract every source keeps: sizes, nothing in two splits, every class in train and test."""
    assert tuple(len(data.splits[split]) for split in SPLITS) == sizes
    keys = {split: {(item.path, json.dumps(item.where)) for item in data.splits[split]} for split in SPLITS}
    assert sum(map(len, keys.values())) == sum(sizes), "nothing is twice in a split"
    assert len(set.union(*keys.values())) == sum(sizes), "nothing is in two splits"
    for split in ("train", "test"):
        assert {item.target for item in data.splits[split]} == set(range(len(data.info()["class_names"])))


def test_modelnet_meshes(tmp_path: Path) -> None:
    samples.modelnet(tmp_path / "data", train=6, test=2)
    data = point_data(ModelNet, tmp_path, classes=10)
    held_out = len(data.splits["val"])
    check_splits(data, (60 - held_out, held_out, 20))
    assert 1 <= held_out <= 15
    assert data.class_names == sorted(samples.SOLIDS) == list(samples.SOLIDS)
    assert all(item.path.parent.name == "test" for item in data.splits["test"])
    assert not data.y_up


def test_modelnet_text_and_hdf5_are_turned_up(tmp_path: Path) -> None:
    import h5py

    text, hdf5 = tmp_path / "text" / "modelnet40_normal_resampled", tmp_path / "hdf5"
    table = np.concatenate([POINTS, NORMALS], axis=1)
    names = [f"{kind}_{index:04d}" for kind in ("chair", "night_stand") for index in range(1, 31)]
    for name in names:
        path = text / name.rpartition("_")[0] / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, table, delimiter=",", fmt="%.6f")
    (text / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\n")
    (text / "modelnet40_train.txt").write_text("\n".join(names[:20] + names[30:50]))
    (text / "modelnet40_test.txt").write_text("\n".join(names[20:30] + names[50:]))
    hdf5.mkdir()
    (hdf5 / "shape_names.txt").write_text("chair\nnight_stand\n")
    for part, count in (("train", 40), ("test", 20)):
        with h5py.File(hdf5 / f"ply_data_{part}0.h5", "w") as file:
            file["data"], file["normal"] = (np.repeat(x[None], count, axis=0) for x in (POINTS, NORMALS))
            file["label"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    for folder in ("text", "hdf5"):
        (tmp_path / "data").unlink(missing_ok=True)
        (tmp_path / "data").symlink_to(tmp_path / folder)
        data = point_data(ModelNet, tmp_path, columns=["nx", "ny", "nz"])
        held_out = len(data.splits["val"])
        assert held_out > 0
        check_splits(data, (40 - held_out, held_out, 20))
        assert data.class_names == ["chair", "night_stand"]
        got = data.read_item(data.splits["test"][0], False, np.random.default_rng(0))
        assert got.shape == (64, 6)
        assert got[50:].isnan().all()
        order = torch.argsort(got[:50, 2])
        np.testing.assert_allclose(got[order][:, 0], POINTS[np.argsort(POINTS[:, 1])][:, 0], atol=1e-5)
        np.testing.assert_allclose(got[order][:, 5], NORMALS[np.argsort(POINTS[:, 1])][:, 1], atol=1e-5)
    (text / "chair" / f"{names[0]}.txt").unlink()
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to(tmp_path / "text")
    with pytest.raises(DataError, match="1 of the 60 models are not there"):
        point_data(ModelNet, tmp_path)


def test_scanobjectnn(tmp_path: Path) -> None:
    samples.scanobjectnn(tmp_path / "data" / "h5_files", len(CLASSES), train=20, test=2)
    data = point_data(ScanObjectNN, tmp_path, val_fraction=0.25)
    check_splits(data, (15 * 15, 15 * 5, 30))
    rows = [item.where["row"] for item in data.splits["val"] if item.target == 0]
    assert rows == list(range(rows[0], rows[0] + 5)), "the copies of an object stay together"
    raw = data.read_item(data.splits["test"][3], False, np.random.default_rng(0))
    assert raw.shape == (64, 3)
    assert raw.isfinite().all()
    assert data.example_file() is None
    with pytest.raises(DataError, match="PB_T25 needs main_split/training_objectdataset_augmented25_norot"):
        point_data(ScanObjectNN, tmp_path, variant="PB_T25")


def test_point_folder(tmp_path: Path) -> None:
    samples.point_folder(tmp_path / "data", per_class=20)
    data = point_data(PointFolder, tmp_path, sampling="farthest", pool_points=128, columns=["nx", "ny", "nz"])
    train, val, test = (len(data.splits[split]) for split in SPLITS)
    assert train + val + test == 200
    check_splits(data, (train, val, test))
    (tmp_path / "data" / "box" / "broken.ply").write_bytes(b"ply\n")
    again = point_data(PointFolder, tmp_path)
    moved = [{item.path for item in data.splits[s]} - {item.path for item in again.splits[s]} for s in SPLITS]
    assert moved == [set(), set(), set()], "a new file moves no other"
    raw = data.read_item(data.splits["train"][0], True, np.random.default_rng(0))
    torch.testing.assert_close(raw[:, 3:].norm(dim=1), torch.ones(64))
    batch = next(iter(again.loader("train", batch_size=len(again.splits["train"]))))
    assert len(batch.failures) <= 1


def test_votes_are_other_points_and_poses(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(500, 3)))
    settings: dict[str, Any] = {"name": "t", "samples_dir": str(tmp_path), "num_points": 100, "votes": 4}
    for turns in (False, True):
        copies = PointData(vote_turns=turns, **settings).read_file(tmp_path / "a.npy")
        assert copies.shape == (4, 100, 3)
        assert len({tuple(sorted(copy[:, 2].tolist())) for copy in copies}) == 4
        torch.testing.assert_close(
            copies, PointData(vote_turns=turns, **settings).read_file(tmp_path / "a.npy")
        )
    assert torch.equal(copies[0], PointData(**(settings | {"votes": 1})).read_file(tmp_path / "a.npy"))


@pytest.fixture(scope="module")
def radar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("radar")
    samples.radhar(folder / "data", train=4, test=1, frames=100)
    return folder


def test_radhar_windows(radar: Path) -> None:
    data = point_data(RadHAR, radar, val_fraction=0.25)
    check_splits(data, (5 * 3 * 5, 5 * 5, 5 * 5))
    assert data.class_names == ["boxing", "jack", "jump", "squats", "walk"]
    recordings = {split: {item.path for item in data.splits[split]} for split in SPLITS}
    assert not recordings["train"] & recordings["val"], (
        "windows of one recording overlap; they are never parted"
    )
    assert all("train" in path.parts for path in recordings["val"])
    item = data.splits["test"][3]
    raw = data.read_item(item, False, np.random.default_rng(0))
    there = raw[raw.isfinite().all(1)]
    assert raw.shape == (1792, 6)
    assert item.where["start"] == 30
    assert (there[0, 5], there[-1, 5]) == (0, 59)
    again = data.read_item(item, False, np.random.default_rng(5))
    torch.testing.assert_close(raw, again, rtol=0, atol=0, equal_nan=True)
    moved = [data.read_item(data.splits["train"][2], True, np.random.default_rng(seed)) for seed in range(6)]
    assert len({int(raw.isfinite().sum()) for raw in moved}) > 1, "training windows move"
    assert data.read_file(item.path).shape == (5, 1792, 6)


@given(st.integers(0, 5), st.integers(0, 200), st.integers(1, 70), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_every_window_that_fits_counts(first: int, length: int, window: int, stride: int) -> None:
    starts = list(window_starts(first, first + length, window, stride))
    assert starts[0] == first
    assert len(starts) == max((length + 1 - window) // stride + 1, 1)
    assert len(starts) == 1 or starts[-1] + window - 1 <= first + length


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"points": np.zeros((4, 5))}, "lacks the arrays"),
        ({"points": np.zeros((4, 3)), "frame": np.zeros(4)}, r"must be \(P, 5\)"),
        ({"points": np.zeros((0, 5)), "frame": np.zeros(0)}, "no points"),
        ({"points": np.full((4, 5), np.nan), "frame": np.zeros(4)}, "not finite"),
    ],
)
def test_recordings_that_are_none(radar: Path, tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ReadError, match=message):
        point_data(RadHAR, radar).read_file(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ModelNet, {"classes": 20}, "classes must be 40 or 10"),
        (ModelNet, {"pool_points": 5}, "pool_points must be at least num_points"),
        (ModelNet, {"sampling": "grid"}, "sampling must be one of"),
        (ScanObjectNN, {"variant": "PB"}, "variant must be one of"),
        (PointFolder, {"up": "x"}, "up must be z or y"),
        (RadHAR, {"window": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(
    kind: type[Any], wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        kind(name="test", samples_dir=str(tmp_path), **wrong)


@pytest.mark.parametrize("kind", [ModelNet, ScanObjectNN, RadHAR, PointFolder])
def test_a_wrong_folder_is_one_sentence(kind: type[Any], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="expects"):
        point_data(kind, tmp_path)


@pytest.mark.figures
def test_from_meshes_to_an_answer(act: Callable[..., Path], tmp_path: Path) -> None:
    samples.modelnet(tmp_path / "data", train=4, test=1)
    run = act(
        *TINY,
        "modality=point_cloud",
        f"data_dir={tmp_path / 'data'}",
        "task.data.num_points=64",
        "task.data.num_workers=0",
        "task.data.val_fraction=0.3",
        "task.data.votes=2",
    )
    result = json.loads((run / "result.json").read_text())
    assert {"test/acc", "test/macc"} <= set(result["metrics"])
    assert (run / "figures" / "samples.png").is_file()
    (tmp_path / "broken.stl").touch()
    answers = act(
        "action=predict",
        "trainer=cpu",
        f"ckpt={run / 'checkpoints' / 'best.ckpt'}",
        f"input={tmp_path / 'data' / 'box'}",
        folder="p",
    )
    rows = (answers / "predictions.csv").read_text().splitlines()
    assert len(rows) == 6


def test_modelnet_is_fetched_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.modelnet(tmp_path / "made" / "ModelNet10", train=4, test=1)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "made"))
    monkeypatch.setitem(
        SOURCES, 10, Source(archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())
    )
    settings = {"name": "modelnet10", "classes": 10, "num_workers": 0, "val_fraction": 0.25}
    data = ModelNet(data_dir=str(tmp_path / "data"), download=True, **settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    assert len(data.splits["test"]) == 10
    archive.unlink()
    data.prepare_data()  # nothing is fetched twice
    lost = ModelNet(data_dir=str(tmp_path / "lost"), download=True, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"packed\.zip"):
        lost.prepare_data()


def test_points_after_a_video_do_not_crash(tmp_path: Path) -> None:
    """In a process of its own: decord's library must not stand in for Open3D's, which is loaded after it."""
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from tasks.datasets.video.sample import write_video\n"
        "from tasks.datasets.video.decoding import open_video\n"
        "from tasks.datasets.point_cloud.files import Cloud, sample_surface\n"
        "path = Path(sys.argv[1]) / 'a.mp4'; write_video(path, np.zeros((8, 64, 64, 3), np.uint8))\n"
        "assert open_video(path).length == 8\n"
        "corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)\n"
        "print(len(sample_surface(Cloud(corners, triangles=np.array([[0, 1, 2]], np.int32)), 50).points))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "50"), done.stderr
