"""Point clouds as other programs write them: the same points and colours, whatever the format, or one sentence."""

import os
import signal
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.datasets.base import DataError, ReadError
from tasks.datasets.point_cloud.choice import sample_surface
from tasks.datasets.point_cloud.files import PointData
from tasks.datasets.point_cloud.folder import PointFolder
from tasks.datasets.point_cloud.formats import h5, las
from tasks.datasets.point_cloud.formats.cloud import ReadOptions
from tasks.datasets.point_cloud.formats.numbers import Lines
from tasks.datasets.point_cloud.formats.pcd import unpacked_lzf
from tasks.datasets.point_cloud.formats.reading import read_cloud, table_of

RGB = ("r", "g", "b")
CUBE = np.array(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=np.float64
)
QUADS = np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
TRIANGLES = np.array([[q[0], q[1 + i], q[2 + i]] for q in QUADS for i in (0, 1)])


def lines(*parts: Any, end: str = "") -> str:
    """Tables as text, a row a line, each with something behind it."""
    rows = [f"{' '.join(f'{value:.10g}' for value in row)}{end}" for table in parts for row in table]
    return "\n".join(rows) + "\n"


def off(kind: str = "OFF", faces: Any = TRIANGLES, vertex: str = "", face: str = "") -> str:
    """The cube as OFF."""
    sized = [[len(polygon), *polygon] for polygon in faces]
    return f"{kind}\n8 {len(faces)} 0\n{lines(CUBE, end=vertex)}{lines(sized, end=face)}"


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# -- meshes


@pytest.mark.parametrize(
    "text",
    [
        off(),
        off().removeprefix("OFF\n"),
        off().replace("OFF\n", "OFF"),
        "\ufeff" + off().replace("\n", "\r\n"),
        "# made by X\n" + off().replace("8 12 0", "8 12 0 # counts"),
        off(faces=QUADS),
        off().replace("\n", " "),
        off(face=" 255 128 0"),
        off(face=" 3 0 0"),
        off(face=" 0 0 0"),
        off(face=" 0.8 0.2 0.1"),
        off(face=" 1 1 1"),
        off(face=" 7"),
        off(faces=QUADS, face="  0 0 0"),
        off("COFF", vertex=" 255 0 0 255"),
        off("COFF", vertex=" 1.0 0.0 0.0"),
        off("NOFF", vertex=" 0 0 1"),
        off("STCNOFF", vertex=" 0 0 1 9 9 9 255 0.5 0.5"),
        off(vertex=" 255 0 0 255"),
    ],
)
def test_off_with_and_without_colours_is_one_cube(tmp_path: Path, text: str) -> None:
    cloud = read_cloud(written(tmp_path / "a.off", text))
    np.testing.assert_array_equal(cloud.points, CUBE)
    assert cloud.triangles is not None
    np.testing.assert_array_equal(cloud.triangles, TRIANGLES)


def ply(vertices: str, body: str, faces: int = 6, face: str = "") -> str:
    properties = "".join(f"property {part}\n" for part in vertices.split(", "))
    return (
        f"ply\nformat ascii 1.0\ncomment x\nelement vertex 8\n{properties}"
        f"element face {faces}\nproperty list uchar int vertex_indices\n{face}end_header\n{body}"
    )


XYZ = "float x, float y, float z"
FACE_LINES = lines([[4, *quad] for quad in QUADS])
OBJ_FACES = "".join(f"f {' '.join(str(corner + 1) for corner in quad)}\n" for quad in QUADS)
OBJ_VERTICES = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in CUBE)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("quads.ply", ply(XYZ, lines(CUBE) + FACE_LINES)),
        ("quads.obj", OBJ_VERTICES + OBJ_FACES),
        ("from_the_end.obj", OBJ_VERTICES
         + "".join(f"f {' '.join(str(corner - 8) for corner in quad)}\n" for quad in QUADS)),
        ("in_between.obj", OBJ_VERTICES + OBJ_FACES.split("\n")[0] + "\nv 9 9 9\n"
         + "".join(f"f {' '.join(str(corner - 9) for corner in quad)}\n" for quad in QUADS[1:])),
        ("texture.obj", "# by X\nmtllib absent.mtl\no cube\n" + OBJ_VERTICES + "vt 0 0\nvn 0 0 1\ns off\nl 1 2\n"
         + "".join(f"f {' '.join(f'{corner + 1}/1/1' for corner in quad)} # a quad\n" for quad in QUADS)),
        ("normals.obj", OBJ_VERTICES + "vn 0 0 1\n"
         + "".join(f"f {' '.join(f'{corner + 1}//1' for corner in quad)}\n" for quad in QUADS)),
        ("goes_on.obj", OBJ_VERTICES + OBJ_FACES.replace(" 2\n", " \\\n 2\n")),
        ("weights.obj", OBJ_VERTICES.replace("\n", " 1.0\n") + OBJ_FACES),
    ],
)  # fmt: skip
def test_polygons_become_triangles(tmp_path: Path, name: str, text: str) -> None:
    cloud = read_cloud(written(tmp_path / name, text))
    assert len(cloud.points) == 8 + ("between" in name)
    assert cloud.triangles is not None
    np.testing.assert_array_equal(cloud.triangles, TRIANGLES)


def test_polygons_of_several_sizes(tmp_path: Path) -> None:
    square = CUBE[:4]
    mixed = "ply\nformat binary_{}_endian 1.0\nelement vertex 4\n" + "".join(
        f"property double {axis}\n" for axis in "xyz"
    )
    mixed += "element face 3\nproperty uchar flags\nproperty list uchar int vertex_index\nend_header\n"
    for name, sign in (("little", "<"), ("big", ">")):
        faces = b"".join(
            struct.pack(f"{sign}BB{len(face)}i", 7, len(face), *face)
            for face in ([0, 1, 2], [0, 1, 2, 3], [1, 2, 3])
        )
        content = mixed.format(name).encode() + square.astype(f"{sign}f8").tobytes() + faces
        cloud = read_cloud(written(tmp_path / f"{name}.ply", content))
        assert cloud.triangles is not None
        np.testing.assert_array_equal(cloud.triangles, [[0, 1, 2], [0, 1, 2], [0, 2, 3], [1, 2, 3]])
        with pytest.raises(ReadError, match="breaks off"):
            read_cloud(written(tmp_path / f"{name}.ply", content[:-3]))
    text = f"OFF\n4 3 0\n{lines(square)}3 0 1 2\n4 0 1 2 3\n3 1 2 3\n"
    again = read_cloud(written(tmp_path / "a.off", text))
    assert again.triangles is not None
    np.testing.assert_array_equal(again.triangles, cloud.triangles)


def slope(axis: int) -> Any:
    """Colours of the cube's corners that rise along an axis, 0 to 255."""
    colors = np.zeros((8, 3))
    colors[:, 0] = CUBE[:, axis] * 255
    return colors


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ply", ply(f"{XYZ}, uchar red, uchar green, uchar blue",
                      lines(np.concatenate([CUBE, slope(2)], 1)) + FACE_LINES)),
        ("b.ply", ply(f"{XYZ}, float red, float green, float blue",
                      lines(np.concatenate([CUBE, slope(2) / 255 * 0.999], 1)) + FACE_LINES)),
        ("c.obj", "".join(f"v {x:g} {y:g} {z:g} {z:g} 0 0\n" for x, y, z in CUBE) + OBJ_FACES),
        ("d.off", "COFF\n8 6 0\n" + lines(np.concatenate([CUBE, slope(2)], 1), end=" 255") + FACE_LINES),
    ],
)  # fmt: skip
def test_colours_of_corners_are_interpolated(tmp_path: Path, name: str, text: str) -> None:
    table = table_of(sample_surface(read_cloud(written(tmp_path / name, text)), 500), RGB)
    np.testing.assert_allclose(table[:, 3], table[:, 2], atol=2e-3)
    assert 0.2 < table[:, 3].mean() < 0.8
    assert (table[:, 4:] == 0).all()


def test_colours_of_faces_stay_on_their_faces(tmp_path: Path) -> None:
    colors = [255 * (quad[:, 2] == 1).all() for quad in CUBE[QUADS]]  # the top
    body = lines(CUBE) + lines([[4, *quad, color, 0, 9] for quad, color in zip(QUADS, colors, strict=True)])
    rgb = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    for name, text in (("a.ply", ply(XYZ, body, face=rgb)), ("a.off", f"OFF\n8 6 0\n{body}")):
        cloud = sample_surface(read_cloud(written(tmp_path / name, text)), 500)
        table = table_of(cloud, RGB)
        np.testing.assert_array_equal(table[:, 3] == 1, table[:, 2] == 1)
        np.testing.assert_allclose(table[:, 5], 9 / 255)
        plain = sample_surface(read_cloud(written(tmp_path / "plain.off", off(faces=QUADS))), 500)
        np.testing.assert_array_equal(cloud.points, plain.points)


# -- clouds

POINTS = np.random.default_rng(3).uniform(-1, 1, (60, 3)).round(6)
COLORS = np.random.default_rng(4).integers(0, 256, (60, 3))
COLORS[:2] = [[0, 0, 0], [255, 255, 255]]
NORMALS = np.random.default_rng(5).normal(size=(60, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)
COLORED = np.concatenate([POINTS, COLORS], 1)
NORMAL = np.concatenate([POINTS, NORMALS], 1)


@pytest.mark.parametrize(
    ("name", "text", "columns", "expected"),
    [
        ("header.txt", "x y z nx ny nz\n" + lines(NORMAL), ("nx", "ny", "nz"), NORMALS),
        ("cc_header.txt", "//X Y Z R G B\n" + lines(COLORED), RGB, COLORS / 255),
        ("both.txt", "//X Y Z R G B\n60\n" + lines(COLORED), RGB, COLORS / 255),
        ("other_way.txt", "60\n//X Y Z R G B\n" + lines(COLORED), RGB, COLORS / 255),
        ("cc_float.asc", "//X Y Z Rf Gf Bf\n" + lines(np.concatenate([POINTS, COLORS / 255], 1)), RGB,
         COLORS / 255),
        ("count.txt", "60\n" + lines(POINTS), (), POINTS[:, :0]),
        ("pts.pts", "60\n" + lines(np.concatenate([POINTS, -COLORS[:, :1], COLORS], 1)), RGB, COLORS / 255),
        ("comma.csv", "x,y,z,Red,Green,Blue\n" + lines(COLORED).replace(" ", ","), RGB, COLORS / 255),
        ("order.csv", "Blue,Green,Red,Z (m),Y (m),X (m)\n" + lines(COLORED[:, ::-1]).replace(" ", ", "), RGB,
         COLORS / 255),
        ("plain.xyz", lines(COLORED), RGB, COLORS / 255),
        ("no_colours.xyz", lines(NORMAL), ("nx", "ny", "nz"), NORMALS),
        ("more.txt", lines(np.concatenate([NORMAL, COLORS[:, :1]], 1)), ("nx", "ny", "nz"), NORMALS),
        ("all.txt", lines(np.concatenate([COLORED, NORMALS], 1)), ("nx", "r"),
         np.stack([NORMALS[:, 0], COLORS[:, 0] / 255], 1)),
        ("intensity.txt", lines(COLORED[:, :4]), ("intensity",), COLORS[:, :1]),
        ("semicolon.txt", lines(POINTS).replace(" ", ";"), (), POINTS[:, :0]),
        ("trailing.txt", lines(COLORED, end=" ").replace(" ", ";"), RGB, COLORS / 255),
        ("tabs.txt", "x\ty\tz\n" + lines(POINTS).replace(" ", "\t"), (), POINTS[:, :0]),
        ("comma_space.txt", lines(POINTS).replace(" ", ", "), (), POINTS[:, :0]),
        ("decimal_comma.txt", lines(POINTS).replace(".", ","), (), POINTS[:, :0]),
        ("decimal_comma_semicolon.txt", "X;Y;Z\n" + lines(POINTS).replace(".", ",").replace(" ", ";"), (),
         POINTS[:, :0]),
        ("aligned.txt", "# x y z\n" + lines(POINTS).replace(" ", "   "), (), POINTS[:, :0]),
        ("windows.txt", ("x y z\n" + lines(POINTS)).replace("\n", "\r\n").encode("utf-16"), (), POINTS[:, :0]),
    ],
)  # fmt: skip
def test_text_of_other_programs(
    tmp_path: Path, name: str, text: str | bytes, columns: tuple[str, ...], expected: Any
) -> None:
    cloud = read_cloud(written(tmp_path / name, text), ReadOptions(wanted=columns))
    table = table_of(cloud, columns)
    np.testing.assert_allclose(table[:, :3], POINTS, atol=1e-6)
    np.testing.assert_allclose(table[:, 3:], expected, atol=1e-6)


def test_an_order_is_stated(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", lines(np.concatenate([COLORS[:, :1], POINTS, COLORS], 1)))
    with pytest.raises(ReadError, match=r"no column r, g, b.*task.data.file_columns=\[x,y,z,…\]"):
        table_of(read_cloud(path), RGB)
    order = ("intensity", "x", "y", "z", "r", "g", "b")
    table = table_of(read_cloud(path, ReadOptions(order=order)), ("b", "intensity"))
    np.testing.assert_allclose(table[:, :3], POINTS, atol=1e-6)
    np.testing.assert_allclose(table[:, 3:], np.stack([COLORS[:, 2] / 255, COLORS[:, 0]], 1), atol=1e-6)
    with pytest.raises(ReadError, match=r"it has 7 columns, task.data.file_columns names 4"):
        read_cloud(path, ReadOptions(order=("x", "y", "z", "r")))
    with pytest.raises(DataError, match="file_columns names every column once, x, y and z among them"):
        PointFolder(name="x", data_dir=str(tmp_path), file_columns=["x", "y"])


def test_colours_are_never_read_as_normals(tmp_path: Path) -> None:
    normals = ("nx", "ny", "nz")
    for name, rows, wanted in (("a.xyz", COLORED, normals), ("b.xyz", NORMAL, RGB)):
        path = written(tmp_path / name, lines(rows))
        with pytest.raises(ReadError, match=f"it has no column {', '.join(wanted)}; it has"):
            table_of(read_cloud(path, ReadOptions(wanted=wanted)), wanted)


@pytest.mark.parametrize(
    ("values", "stated", "outcome"),
    [
        (COLORS, None, COLORS / 255),
        (COLORS * 257, None, COLORS / 255),
        (COLORS / 255, None, COLORS / 255),
        (COLORS % 2, None, "black and white or nearly black: say task.data.color_scale=1 or 255"),
        (COLORS % 2, 1.0, COLORS % 2),
        (COLORS % 2, 255.0, (COLORS % 2) / 255),
        (COLORS, 65535.0, COLORS / 65535),
        (COLORS, 1.0, "its colours reach from 0 to 255, color_scale=1 says 0 to 1"),
        (COLORS - 1, None, "no colours: say task.data.file_columns"),
    ],
)
def test_the_scale_of_colours(tmp_path: Path, values: Any, stated: float | None, outcome: Any) -> None:
    path = written(tmp_path / "a.txt", "x y z r g b\n" + lines(np.concatenate([POINTS, values], 1)))
    if isinstance(outcome, str):
        with pytest.raises(ReadError, match=outcome):
            table_of(read_cloud(path), RGB, stated)
    else:
        np.testing.assert_allclose(table_of(read_cloud(path), RGB, stated)[:, 3:], outcome, atol=1e-6)


def pcd(rows: str | bytes, count: int, form: str, fields: str, kinds: str, sizes: str) -> bytes:
    ones = " ".join("1" for _ in fields.split())
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes}\nTYPE {kinds}\nCOUNT {ones}\nWIDTH {count}\n"
        f"HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {form}\n"
    )
    return header.encode() + (rows.encode() if isinstance(rows, str) else rows)


def test_points_of_depth_cameras_that_saw_nothing(tmp_path: Path) -> None:
    holed = POINTS.copy()
    holed[::10] = np.nan
    text = pcd(lines(holed), 60, "ascii", "x y z", "F F F", "4 4 4")
    files = {"a.pcd": text, "b.xyz": lines(holed).encode()}
    files["c.ply"] = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 60\nproperty double x\nproperty double y\n"
        b"property double z\nend_header\n" + holed.tobytes()
    )
    for name, content in files.items():
        cloud = read_cloud(written(tmp_path / name, content))
        assert cloud.dropped == 6
        np.testing.assert_allclose(cloud.points, np.delete(POINTS, np.s_[::10], axis=0), atol=1e-6)
    with pytest.raises(ReadError, match="not finite"):
        read_cloud(written(tmp_path / "d.xyz", "nan nan nan\n"))


MAP = POINTS * 2 + [500_000, 5_572_094, 120]


def on_a_map(kind: str, path: Path) -> Path:
    text = lines(MAP.round(6)) if kind != "npy" else ""
    exact = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in MAP) + "\n"
    if kind == "npy":
        np.save(path, MAP)
    elif kind == "ply":
        header = "ply\nformat ascii 1.0\nelement vertex 60\n"
        header += "".join(f"property double {axis}\n" for axis in "xyz")
        written(path, f"{header}end_header\n{exact}")
    elif kind == "pcd":
        written(path, pcd(MAP.tobytes(), 60, "binary", "x y z", "F F F", "8 8 8"))
    elif kind == "off":
        written(path, f"OFF\n60 1 0\n{exact}3 0 1 2\n")
    elif kind == "obj":
        written(path, "".join(f"v {line}\n" for line in exact.splitlines()))
    else:
        assert text
        written(path, exact)
    return path


@pytest.mark.parametrize("kind", ["npy", "ply", "pcd", "off", "obj", "xyz"])
def test_coordinates_of_maps_keep_their_digits(tmp_path: Path, kind: str) -> None:
    cloud = read_cloud(on_a_map(kind, tmp_path / f"a.{kind}"))
    size = np.ptp(MAP, axis=0).max()
    assert cloud.points.dtype == np.float32
    np.testing.assert_allclose(cloud.points, MAP - MAP.mean(0), atol=1e-6 * size, rtol=0)
    np.testing.assert_allclose(cloud.origin, MAP.mean(0), atol=1e-6)
    near = read_cloud(written(tmp_path / "near.xyz", lines(POINTS)))
    assert not near.origin.any(), "a cloud that float32 holds stays where it is"


# -- decoders agree


def write_ply(path: Path, xyz: Any, rgb: Any, order: str) -> None:
    form = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    header = f"ply\nformat {form} 1.0\nelement vertex {len(xyz)}\n"
    header += "".join(f"property double {axis}\n" for axis in "xyz")
    header += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
    if order:
        kind = [*((axis, f"{order}f8") for axis in "xyz"), *((name, "u1") for name in RGB)]
        rows = np.zeros(len(xyz), kind)
        for place, name in enumerate(("x", "y", "z", *RGB)):
            rows[name] = np.concatenate([xyz, rgb], 1)[:, place]
        written(path, header.encode() + rows.tobytes())
    else:
        written(path, header + lines(np.concatenate([xyz, rgb], 1)))


def write_pcd(path: Path, xyz: Any, rgb: Any, form: str) -> None:
    packed = rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2]
    fields = ("x y z rgb", "F F F U", "8 8 8 4")
    if form == "ascii":
        return void(
            written(path, pcd(lines(np.concatenate([xyz, packed[:, None]], 1)), len(xyz), form, *fields))
        )
    if form == "binary":
        rows = np.zeros(len(xyz), [("x", "f8"), ("y", "f8"), ("z", "f8"), ("c", "u4")])
        for place, axis in enumerate("xyz"):
            rows[axis] = xyz[:, place]
        rows["c"] = packed
        return void(written(path, pcd(rows.tobytes(), len(xyz), form, *fields)))
    whole = xyz.T.tobytes() + packed.astype(np.uint32).tobytes()
    runs = b"".join(bytes([len(whole[i : i + 32]) - 1]) + whole[i : i + 32] for i in range(0, len(whole), 32))
    body = struct.pack("<II", len(runs), len(whole)) + runs
    return void(written(path, pcd(body, len(xyz), form, *fields)))


def void(_: object) -> None:
    """Nothing."""


def test_an_array_beside_points_that_cannot_be_theirs_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, points=POINTS, normals=np.ones((3, len(POINTS))), colors=np.ones((len(POINTS), 3)))
    cloud = read_cloud(path)
    assert not {"nx", "ny", "nz"} & set(cloud.columns)
    assert {"r", "g", "b"} <= set(cloud.columns)
    (remark,) = cloud.remarks
    assert remark.startswith(f"the array normals is left out: float64 (3, {len(POINTS)}), not")


def write_text(path: Path, xyz: Any, rgb: Any, start: str, separator: str) -> None:
    written(path, start.format(len(xyz)) + lines(np.concatenate([xyz, rgb], 1)).replace(" ", separator))


def write_npz(path: Path, xyz: Any, rgb: Any) -> None:
    np.savez_compressed(path, points=xyz, colors=rgb.astype(np.uint8))


def write_h5(path: Path, xyz: Any, rgb: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["points"], file["rgb"] = xyz, rgb.astype(np.uint8)


def write_structured(path: Path, xyz: Any, rgb: Any) -> None:
    rows = np.zeros(len(xyz), [*((axis, "f8") for axis in "xyz"), *((name, "u2") for name in RGB)])
    for place, name in enumerate(("x", "y", "z", *RGB)):
        rows[name] = np.concatenate([xyz, rgb * 257], 1)[:, place]
    np.save(path, rows)


def write_las(path: Path, xyz: Any, rgb: Any) -> None:
    laspy = pytest.importorskip("laspy")
    if path.suffix == ".laz":
        pytest.importorskip("lazrs")
    las = laspy.create(point_format=2, file_version="1.2")
    las.header.scales, las.header.offsets = [1e-6] * 3, xyz.mean(0).round()
    las.x, las.y, las.z = xyz.T
    las.red, las.green, las.blue = (rgb * 257).astype(np.uint16).T
    las.intensity = rgb[:, 0]
    las.write(path)


WRITERS: dict[str, Callable[[Path, Any, Any], None]] = {
    "text.ply": lambda *cloud: write_ply(*cloud, ""),
    "little.ply": lambda *cloud: write_ply(*cloud, "<"),
    "big.ply": lambda *cloud: write_ply(*cloud, ">"),
    "text.pcd": lambda *cloud: write_pcd(*cloud, "ascii"),
    "binary.pcd": lambda *cloud: write_pcd(*cloud, "binary"),
    "packed.pcd": lambda *cloud: write_pcd(*cloud, "binary_compressed"),
    "a.off": lambda *cloud: write_text(*cloud, "COFF\n{} 0 0\n", " "),
    "a.obj": lambda path, xyz, rgb: void(
        written(path, "".join(f"v {line}\n" for line in lines(np.concatenate([xyz, rgb / 255], 1)).splitlines()))
    ),
    "a.xyz": lambda *cloud: write_text(*cloud, "//X Y Z R G B\n{}\n", " "),
    "a.csv": lambda *cloud: write_text(*cloud, "x;y;z;r;g;b\n", ";"),
    "a.xyzrgb": lambda *cloud: write_text(*cloud, "", " "),
    "a.npz": write_npz,
    "a.h5": write_h5,
    "a.npy": write_structured,
}  # fmt: skip


@given(st.integers(0, 2**31), st.integers(1, 700), st.sampled_from([0.01, 1.0, 1000.0]))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_decoders_agree(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    xyz = (rng.uniform(-size, size, (count, 3))).round(6)
    rgb = rng.integers(0, 256, (count, 3))
    rgb[0] = 255  # what tells the scale
    folder = tmp_path_factory.mktemp("clouds")
    for name, write in WRITERS.items():
        write(folder / name, xyz, rgb)
        cloud = read_cloud(folder / name)
        got = table_of(cloud, RGB)
        np.testing.assert_allclose(got[:, :3], xyz - cloud.origin, atol=2e-7 * size, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(got[:, 3:], rgb / 255, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
@pytest.mark.parametrize(
    ("place", "form", "number"),
    [(96, "<I", 2**32 - 1), (100, "<I", 2**32 - 1), (107, "<I", 2**31), (94, "<H", 65535)],
    ids=["start of points", "records", "points", "length of the header"],
)
def test_numbers_that_no_las_file_holds(
    tmp_path: Path, name: str, place: int, form: str, number: int
) -> None:
    write_las(tmp_path / name, POINTS, COLORS)
    content = bytearray((tmp_path / name).read_bytes())
    struct.pack_into(form, content, place, number)
    (tmp_path / name).write_bytes(content)
    began = time.monotonic()
    with pytest.raises(ReadError, match=r"announces|it breaks off"):
        read_cloud(tmp_path / name)
    assert time.monotonic() - began < 5


def test_unpacking_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_las(tmp_path / "a.laz", POINTS, COLORS)
    monkeypatch.setattr(las, "UNPACK", "while True: pass")
    monkeypatch.setattr(las, "SECONDS", 0.3)
    with pytest.raises(ReadError, match=f"its {len(POINTS):,} points could not be unpacked in 0 seconds"):
        read_cloud(tmp_path / "a.laz")


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
def test_las(tmp_path: Path, name: str) -> None:
    write_las(tmp_path / name, POINTS, COLORS)
    table = table_of(read_cloud(tmp_path / name), (*RGB, "intensity", "classification"))
    np.testing.assert_allclose(table[:, :3], POINTS, atol=1e-6)
    np.testing.assert_allclose(table[:, 3:6], COLORS / 255, atol=1e-6)
    np.testing.assert_array_equal(table[:, 6:], np.stack([COLORS[:, 0], np.zeros(60)], 1))
    write_las(tmp_path / f"map_{name}", MAP, COLORS)
    far = read_cloud(tmp_path / f"map_{name}")
    np.testing.assert_allclose(far.points, MAP - MAP.mean(0), atol=4e-6)
    content = (tmp_path / name).read_bytes()
    huge = content[:107] + struct.pack("<I", 4_000_000) + content[111:-60] + b"\xff" * 60
    for broken in (content[:100], content[: len(content) // 2], content[:230] + bytes(100), huge):
        with pytest.raises(ReadError):
            read_cloud(written(tmp_path / f"broken_{name}", broken))


def test_open3d_reads_the_same(tmp_path: Path) -> None:
    """The library whose readers these take the place of, on what it writes itself."""
    from tasks.datasets.point_cloud.choice import open3d

    o3d = open3d()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(POINTS))
    cloud.colors = o3d.utility.Vector3dVector(COLORS / 255)
    for name, options in (
        ("a.ply", {}), ("b.ply", {"write_ascii": True}), ("a.pcd", {}), ("b.pcd", {"write_ascii": True}),
        ("c.pcd", {"compressed": True}),
    ):  # fmt: skip
        o3d.io.write_point_cloud(str(tmp_path / name), cloud, **options)
        theirs = o3d.io.read_point_cloud(str(tmp_path / name))
        ours = table_of(read_cloud(tmp_path / name), RGB)
        np.testing.assert_allclose(ours[:, :3], np.asarray(theirs.points), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(ours[:, 3:], np.asarray(theirs.colors), atol=1e-6, err_msg=name)
    assert unpacked_lzf(b"\x01ab\x60\x01", 7) == b"abababa", "a reference may reach into what it makes"


# -- files of other people's making


def npy(shape: tuple[int, ...], body: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


def damaged_npz(path: Path) -> None:
    np.savez_compressed(path, points=POINTS)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)


def huge_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", npy((10**9, 3)))


def test_a_process_that_an_h5_file_ends_takes_nothing_along(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5", POINTS, COLORS)
    good = read_cloud(tmp_path / "a.h5").points
    process = h5.SHARED.process
    assert process is not None
    read_cloud(tmp_path / "a.h5")
    assert h5.SHARED.process is process, "kept for the next file"
    os.kill(process.pid, signal.SIGSTOP)
    told = h5.SHARED._told
    h5.SHARED._told = lambda process: (os.kill(process.pid, signal.SIGKILL), told(process))[1]  # type: ignore[method-assign]
    try:
        with pytest.raises(ReadError, match="ended the process that read it: it is damaged"):
            read_cloud(tmp_path / "a.h5")
    finally:
        del h5.SHARED._told
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.h5").points, good)


def test_an_h5_file_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_h5(tmp_path / "a.h5", POINTS, COLORS)
    read_cloud(tmp_path / "a.h5")
    assert h5.SHARED.process is not None
    os.kill(h5.SHARED.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(h5, "SECONDS", 0.2)
    with pytest.raises(ReadError, match="ended the process"):
        read_cloud(tmp_path / "a.h5")


def null_h5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["data"] = h5py.Empty("f4")


def transposed_h5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((3, 2048), np.float32)


def huge_h5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("data", (150_000_000, 3), "f4", chunks=(10**6, 3), compression="gzip")


def h5_of_a_group(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("data")


def h5_of_other_files(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("data", (4, 3), "f4", external=[("/etc/hostname", 0, 48)])


PLY_START = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
BINARY_START = PLY_START.replace("ascii", "binary_little_endian")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ply", PLY_START + "end_header\na b c\nd e f\ng h i\n", "vertex 1 holds 'a', no number"),
        ("a.ply", PLY_START + "end_header\n1 2 3\n1 2\n1 2 3\n", "vertex 2 has 2 values, those before 3"),
        ("a.ply", PLY_START.replace("vertex 3", f"vertex {10**12}") + "end_header\n", "announces 1,000,000,000,000"),
        ("a.ply", BINARY_START.replace("vertex 3", "vertex 9000000") + "end_header\n", "breaks off"),
        ("a.ply", BINARY_START + "element face 9\nproperty list int int vertex_indices\nend_header\n"
         + "\x7f" * 400, "has 2,139,062,143 corners"),
        ("a.ply", PLY_START.replace("float x", "floaty x") + "end_header\n", "header holds 'property floaty x'"),
        ("a.pcd", pcd("a b c\nd e f\n", 2, "ascii", "x y z", "F F F", "4 4 4"), "point 1 holds 'a', no number"),
        ("a.pcd", pcd(b"1234", 10**8, "binary", "x y z", "F F F", "4 4 4"), "announces 100,000,000 points"),
        ("a.pcd", pcd(b"1234", 10**4, "binary", "x y z", "F F F", "4 4 4"), "breaks off"),
        ("a.pcd", pcd(b"\xff" * 20, 10**6, "binary_compressed", "x y z", "F F F", "4 4 4"), "breaks off"),
        ("a.pcd", pcd(struct.pack("<II", 3, 12) + b"\xff\xff\xff", 1, "binary_compressed", "x y z", "F F F",
                      "4 4 4"), "compressed data are damaged"),
        ("a.pcd", pcd("1 2 3\n", 1, "ascii", "x y z", "F F", "4 4 4"), "do not fit"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 99999999999999\n", "names vertex 99,999,999,999,999"),
        ("a.off", f"OFF\n{10**15} 1 0\n0 0 0\n", "announces 1,000,000,000,000,000 points"),
        ("a.off", "OFF BINARY\n", "save it as text"),
        ("a.off", "4OFF\n1 0 0\n0 0 0 1\n", "another number of dimensions"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 0\n", "counted from 1"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -9 2 1\n", "names vertex -6"),
        ("a.obj", "v a b c\n", "vertex 1 holds 'a', no number"),
        ("a.stl", b"\0" * 80 + struct.pack("<I", 7) + b"\0" * 60, "7 triangles are announced, 1 are there"),
        ("a.stl", "solid x\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\n", "breaks off"),
        ("a.npy", npy((10**10, 3)), "announces 10,000,000,000 points"),
        ("a.npy", npy((10, 3), bytes(50)), "breaks off"),
        ("a.npy", npy((10, 3)).replace(b"}", b"("), "its header is damaged"),
        ("a.npy", npy((3, 33), bytes(3 * 33 * 4)), "3 rows of 33 columns without names.* transpose it, else say"),
        ("a.h5", transposed_h5, "3 rows of 2,048 columns without names"),
        ("a.txt", f"{'1 ' * 50}\n" * 6, "6 rows of 50 columns without names"),
        ("a.npz", npy((1, 3), bytes(12)), "rename it"),
        ("a.npy", b"PK\x03\x04", "rename it"),
        ("a.npz", damaged_npz, "cannot be read as a point cloud"),
        ("a.npz", huge_npz, "announces 1,000,000,000 points, more than the 30,000,000 that are read: say "
         "task.data.max_points=N"),
        ("a.h5", huge_h5, "announces 150,000,000 points"),
        ("a.h5", null_h5, "no array of numbers"),
        ("a.h5", h5_of_a_group, "no array of numbers"),
        ("a.h5", h5_of_other_files, "other files"),
        ("a.txt", "1 2 3\n4 five 6\n", "point 2 holds 'five', no number"),
        ("a.txt", "1 2 3\n4 5\n", "point 2 has 2 values, those before 3"),
        ("a.txt", "a b c\n1 2 3\n", "line 1 is 'a b c', neither a point nor the names"),
        ("a.txt", "x y z\n1 2 3 4\n", "names 3 columns .* its points have 4"),
        ("a.txt", "7\n1 2 3\n4 5 6\n", "announces 7 points and holds 2"),
        ("a.txt", "1;2;3\n4;;6\n", "point 2 holds '', no number"),
        ("a.txt", "1" * 10**6, "a line has more than"),
    ],
)  # fmt: skip
def test_what_lies_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | Callable[[Path], None], message: str
) -> None:
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        written(path, content if isinstance(content, bytes) else content.encode("latin-1"))
    with pytest.raises(ReadError, match=message) as caught:
        read_cloud(path)
    assert "\n" not in str(caught.value)


def test_many_columns_with_names(tmp_path: Path) -> None:
    table, names = np.ones((5, 40), np.float32), [f"c{index}" for index in range(37)]
    np.save(tmp_path / "a.npy", table)
    for options in (ReadOptions(wanted=tuple(names)), ReadOptions(order=("x", "y", "z", *names))):
        assert list(read_cloud(tmp_path / "a.npy", options).columns) == names
    np.save(tmp_path / "b.npy", table[:, :32])
    assert len(read_cloud(tmp_path / "b.npy").points) == 5


def test_a_long_header_line_ends_no_process(tmp_path: Path) -> None:
    text = (
        PLY_START.replace("element", f"comment {'word ' * 400}\nelement") + f"end_header\n{lines(CUBE[:3])}"
    )
    np.testing.assert_array_equal(read_cloud(written(tmp_path / "a.ply", text)).points, CUBE[:3])


def test_the_limit_is_an_option(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, POINTS)
    assert issubclass(PointFolder, PointData)
    data = PointFolder(name="x", data_dir=str(tmp_path), samples_dir=str(tmp_path), max_points=59)
    with pytest.raises(ReadError, match="announces 60 points, more than the 59 that are read"):
        data.read_file(path)
    data = PointFolder(name="x", data_dir=str(tmp_path), samples_dir=str(tmp_path), max_points=60)
    assert data.read_file(path).shape == (1024, 3)


# -- what is said


def folder_of(root: Path, rows: Any, header: str = "x y z r g b\n", ending: str = ".txt") -> Path:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            written(root / label / f"{number}{ending}", header + lines(rows))
    return root


def opened(root: Path, **options: Any) -> PointFolder:
    data = PointFolder(
        name="x", data_dir=str(root), samples_dir=str(root / ".samples"), num_points=32, **options
    )
    data.setup()
    return data


def test_what_was_inferred_is_said(tmp_path: Path) -> None:
    holed = np.concatenate([MAP, COLORS], 1)
    holed[:5, 0] = np.nan
    text = folder_of(tmp_path, holed)
    notes = opened(text, columns=RGB).notes
    assert len(notes) == 2
    assert notes[0].endswith(
        ".txt: 55 points, x y z r g b; colours of 8 bits; 5 points without finite coordinates left out; "
        "far from the origin, moved to its own centre; separated by blanks, as its header says"
    )
    assert notes[1] == "z is up in the files (else task.data.up=y)"
    assert opened(text, up="y").notes[1] == "y is up in the files (else task.data.up=z)"


def test_files_of_two_colour_scales_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, COLORED)
    folder_of(tmp_path, np.concatenate([POINTS, COLORS / 255], 1), ending=".xyz")
    with pytest.raises(
        DataError, match=r"0 to 1 in .*xyz and 8 bits in .*txt: say which, task.data.color_scale="
    ):
        opened(tmp_path, columns=RGB)
    opened(tmp_path)  # nothing is wanted of the colours


def test_a_darker_file_has_the_scale_of_the_others(tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path, COLORED), columns=RGB)
    path = written(tmp_path / "dark.txt", "x y z r g b\n" + lines(np.concatenate([POINTS, COLORS % 2], 1)))
    assert data.read_file(path)[:, 3:].max() == np.float32(1 / 255)
    path = written(
        tmp_path / "bright.txt", "x y z r g b\n" + lines(np.concatenate([POINTS, COLORS * 257], 1))
    )
    with pytest.raises(ReadError, match="its colours reach from 0 to 65535, color_scale=255 says 0 to 255"):
        data.read_file(path)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", COLORED)
    (root / "b").rename(root / "caf\udce9")
    (root / "a" / "0.txt").rename(root / "a" / "\udce9.txt")
    data = opened(root, columns=RGB)
    assert data.class_names == ["a", "caf\\udce9"]
    items = [item for split in data.splits.values() for item in split]
    assert len(items) == 40
    assert all(data.read_file(item.path).shape == (32, 6) for item in items)


def test_text_stl_of_any_dress(tmp_path: Path) -> None:
    facet = "  facet normal 0 0 1\n    outer loop\n{}    endloop\n  endfacet\n"
    corners = [f"      vertex {x} {y} {z}\n" for x, y, z in CUBE[TRIANGLES].reshape(-1, 3)]
    body = "".join(facet.format("".join(corners[at : at + 3])) for at in range(0, len(corners), 3))
    text = f"solid my vertex 1 2 3\n{body}endsolid\n"
    dresses = (text, text.upper(), text.replace("\n", "\r\n"), text.replace(" vertex 0", "\tvertex \t0"))
    for number, dress in enumerate(dresses):
        path = tmp_path / f"{number}.stl"
        path.write_bytes(dress.encode())
        cloud = read_cloud(path)
        assert cloud.triangles is not None
        np.testing.assert_array_equal(cloud.points[cloud.triangles], CUBE[TRIANGLES], err_msg=dress[:200])


def test_polygons_of_many_corners_in_binary_ply(tmp_path: Path) -> None:
    """Steps from record to record that fit a byte, that do not, and that stand beside other values."""
    circle = np.array([[np.cos(a), np.sin(a), 0] for a in np.linspace(0, 6, 200)])
    for number, sizes in enumerate(([3, 4, 5], [3, 100, 4], [200], [200, 3])):
        polygons = [list(range(size)) for size in sizes]
        body = b"".join(struct.pack(f"<iB{len(p)}ih", 7, len(p), *p, 1) for p in polygons)
        head = (
            "ply\nformat binary_little_endian 1.0\nelement vertex 200\nproperty double x\nproperty double y\n"
            f"property double z\nelement face {len(sizes)}\nproperty int flag\n"
            "property list uchar int vertex_indices\nproperty short more\nend_header\n"
        )
        path = tmp_path / f"{number}.ply"
        path.write_bytes(head.encode() + circle.tobytes() + body)
        cloud = read_cloud(path)
        expected = [[p[0], p[at], p[at + 1]] for p in polygons for at in range(1, len(p) - 1)]
        np.testing.assert_array_equal(cloud.triangles, expected)
        path.write_bytes(head.encode() + circle.tobytes() + body[:-20])
        with pytest.raises(ReadError, match="breaks off"):
            read_cloud(path)


@pytest.mark.parametrize("corner", ["{0}", "{0}/{0}", "{0}//{0}", "{0}/1/{0}", "{0}/"])
def test_corners_of_obj_in_any_dress(tmp_path: Path, corner: str) -> None:
    faces = [
        [corner.format(index + 1) for index in polygon] for polygon in (*QUADS.tolist(), *TRIANGLES.tolist())
    ]
    text = lines(CUBE).replace("\n", "\nv ")[:-2] + "".join(f"f {' '.join(face)}\n" for face in faces)
    mixed = text + "f 1/2/3 2 3//1\n"
    for name, content, more in (("a.obj", text, []), ("b.obj", mixed, [[0, 1, 2]])):
        (tmp_path / name).write_text("v " + content)
        cloud = read_cloud(tmp_path / name)
        np.testing.assert_array_equal(cloud.points, CUBE)
        np.testing.assert_array_equal(cloud.triangles, [*TRIANGLES.tolist(), *TRIANGLES.tolist(), *more])


def test_compressed_data_of_another_size_are_refused() -> None:
    content = np.random.default_rng(0).bytes(32)
    packed = bytes([31]) + content
    assert unpacked_lzf(packed, 32) == content
    for wrong in (31, 33, 48, 10**6):
        with pytest.raises(ReadError, match="compressed data are damaged"):
            unpacked_lzf(packed, wrong)


@given(st.lists(st.sampled_from(["1 2 3", "-4 5e1 6", "", "  ", "7 8 9 "]), max_size=12), st.booleans())
def test_lines_are_those_that_hold_something(rows: list[str], ended: bool) -> None:
    text = "\n".join(rows) + "\n" * ended
    expected = [row for row in rows if row.strip()]
    found = Lines(text.encode())
    assert list(found) == expected
    assert [found[at] for at in range(len(found))] == expected
    assert list(found[1:3]) == expected[1:3]
    assert found[2:].data == "".join(f"{row}\n" for row in expected[2:]).encode()
