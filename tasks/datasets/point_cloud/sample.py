"""The embedded point cloud samples: ten solids as meshes, and simulated radar recordings of five activities."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.point_cloud.choice import open3d, sample_surface
from tasks.datasets.point_cloud.formats.cloud import Cloud
from tasks.datasets.reading import require

Floats = NDArray[np.float64]

SOLIDS = (
    "arrow", "box", "cone", "cylinder", "icosahedron", "moebius", "octahedron", "sphere", "tetrahedron",
    "torus",
)  # fmt: skip


def draw_solid(name: str, rng: np.random.Generator) -> Any:
    """An Open3D mesh of a solid with random proportions, size and rotation."""
    o3d = open3d()
    make: dict[str, Callable[[], Any]] = {
        "arrow": lambda: o3d.geometry.TriangleMesh.create_arrow(
            cylinder_radius=rng.uniform(0.15, 0.3), cone_radius=rng.uniform(0.5, 0.8),
            cylinder_height=rng.uniform(1.6, 2.4), cone_height=rng.uniform(0.8, 1.2), resolution=24,
        ),
        "box": lambda: o3d.geometry.TriangleMesh.create_box(*rng.uniform(0.7, 1.2, 3)),
        "cone": lambda: o3d.geometry.TriangleMesh.create_cone(
            radius=1.0, height=rng.uniform(1.4, 2.2), resolution=32
        ),
        "cylinder": lambda: o3d.geometry.TriangleMesh.create_cylinder(
            radius=1.0, height=rng.uniform(2.0, 3.2), resolution=32
        ),
        "icosahedron": o3d.geometry.TriangleMesh.create_icosahedron,
        "moebius": lambda: o3d.geometry.TriangleMesh.create_mobius(
            twists=1, raidus=1.0, flatness=1.0, width=rng.uniform(0.5, 0.8), length_split=60, width_split=8
        ),
        "octahedron": o3d.geometry.TriangleMesh.create_octahedron,
        "sphere": lambda: o3d.geometry.TriangleMesh.create_sphere(radius=1.0, resolution=16),
        "tetrahedron": o3d.geometry.TriangleMesh.create_tetrahedron,
        "torus": lambda: o3d.geometry.TriangleMesh.create_torus(
            torus_radius=1.0, tube_radius=rng.uniform(0.2, 0.4), radial_resolution=32, tubular_resolution=16
        ),
    }  # fmt: skip
    mesh = make[name]()
    stretch = rng.uniform(0.9, 1.1, 3)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))  # a rotation, not a reflection
    vertices = np.asarray(mesh.vertices)
    vertices = (vertices - vertices.mean(axis=0)) * stretch @ turn.T * rng.uniform(5, 50) + rng.uniform(
        -20, 20, 3
    )
    mesh.vertices = o3d.utility.Vector3dVector(vertices)
    return mesh


def write_off(path: Path, mesh: Any) -> None:
    """Write a mesh as OFF, like ModelNet's files."""
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
    lines = ["OFF", f"{len(vertices)} {len(faces)} 0"]
    lines += [f"{x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices]
    lines += [f"3 {a} {b} {c}" for a, b, c in faces]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def _solids(per_class: int, seed: int) -> Iterator[tuple[str, int, Any]]:
    for number, name in enumerate(SOLIDS):
        for index in range(per_class):
            yield name, index, draw_solid(name, np.random.default_rng((seed, number, index)))


def modelnet(root: Path, train: int = 64, test: int = 20) -> None:
    """ModelNet's layout: ``class/train/class_0001.off``, ``class/test/…``, ten solids."""
    for name, index, mesh in _solids(train + test, 40):
        part = "train" if index < train else "test"
        write_off(root / name / part / f"{name}_{index + 1:04d}.off", mesh)


def point_folder(root: Path, per_class: int = 40) -> None:
    """A folder of PLY meshes per solid."""
    o3d = open3d()
    for name, index, mesh in _solids(per_class, 7):
        (root / name).mkdir(parents=True, exist_ok=True)
        o3d.io.write_triangle_mesh(
            str(root / name / f"{name}_{index:03d}.ply"), mesh, write_vertex_normals=False
        )


def scanobjectnn(root: Path, classes: int, train: int = 24, test: int = 8) -> None:
    """ScanObjectNN's ``main_split`` with its hardest variant, PB_T50_RS: 2,048 points, partly missing.

    Fifteen classes: ten solids, and five of them flattened to a third of their height.
    """
    h5py = require("h5py", "HDF5 files")
    folder = root / "main_split"
    folder.mkdir(parents=True)
    for part, count in (("training", train), ("test", test)):
        clouds, labels = [], []
        for label in range(classes):
            for index in range(count):
                rng = np.random.default_rng((75, label, index, part == "test"))
                mesh = draw_solid(SOLIDS[label % len(SOLIDS)], rng)
                surface = Cloud(
                    np.asarray(mesh.vertices, dtype=np.float32), triangles=np.asarray(mesh.triangles)
                )
                points = sample_surface(surface, 3000).points
                points = (points - points.mean(axis=0)) / points.std() / 2
                if label >= len(SOLIDS):
                    points[:, 1] /= 3
                # As in a one-sided scan, the points farthest from the scanner are missing.
                scanner = rng.normal(size=3)
                seen = np.argsort(
                    points @ scanner / np.linalg.norm(scanner) + rng.normal(0, 0.3, len(points))
                )
                clouds.append(points[rng.permutation(seen[-2048:])])
                labels.append(label)
        with h5py.File(folder / f"{part}_objectdataset_augmentedrot_scale75.h5", "w") as file:
            file.create_dataset("data", data=np.stack(clouds).astype(np.float32))
            file.create_dataset("label", data=np.array(labels, dtype=np.int32))


# -- radar ----------------------------------------------------------------------------------------------


def activity(name: str, phase: Floats, rng: np.random.Generator) -> Floats:
    """Offsets (frames, parts, 3) in metres of a body's parts (head, chest, hips, two hands, two knees), x
    away from
    the radar, y to the left, z up; ``phase`` (frames,) in radians, one turn a repetition."""
    rest = np.array(
        [
            [0, 0, 0.7],
            [0, 0, 0.3],
            [0, 0, -0.1],
            [0, 0.35, 0.1],
            [0, -0.35, 0.1],
            [0, 0.1, -0.6],
            [0, -0.1, -0.6],
        ]
    )
    body = np.repeat(rest[None], len(phase), axis=0)
    swing, lift = np.sin(phase), (1 - np.cos(phase)) / 2
    if name == "boxing":  # the hands alternate
        body[:, 3, 0] -= 0.6 * np.maximum(swing, 0)
        body[:, 4, 0] -= 0.6 * np.maximum(-swing, 0)
        body[:, 3:5, 2] += 0.3
    elif name == "jack":  # hands and feet move apart together
        body[:, 3, 1] += 0.3 * np.sin(np.pi * lift)
        body[:, 4, 1] -= 0.3 * np.sin(np.pi * lift)
        body[:, 3:5, 2] += 0.9 * lift[:, None]
        body[:, 5, 1] += 0.3 * lift
        body[:, 6, 1] -= 0.3 * lift
    elif name == "jump":  # everything moves up and down
        body[:, :, 2] += 0.3 * np.maximum(swing, 0)[:, None]
    elif name == "squats":  # all but the feet move down, the hips back
        body[:, :5, 2] -= 0.5 * lift[:, None]
        body[:, 2, 0] += 0.25 * lift
    else:  # walking back and forth
        body[:, :, 0] += 1.2 * np.sin(phase / 3)[:, None]
        body[:, 5, 0] += 0.25 * swing
        body[:, 6, 0] -= 0.25 * swing
    return body + rng.normal(0, 0.02, body.shape)


def radhar(root: Path, train: int = 6, test: int = 2, frames: int = 240) -> None:
    """RadHAR's recordings: ``train/<activity>/*.npz`` at 30 frames a second."""
    for number, name in enumerate(("boxing", "jack", "jump", "squats", "walk")):
        for index in range(train + test):
            rng = np.random.default_rng((30, number, index))
            pace = rng.uniform(0.7, 1.1)  # repetitions a second
            phase = 2 * np.pi * (pace * np.arange(frames + 1) / 30 + rng.uniform())
            where = np.array([rng.uniform(1.8, 2.6), rng.uniform(-0.3, 0.3), 0.0])
            parts = where + activity(name, phase, rng) * rng.uniform(0.9, 1.1)
            distance = np.linalg.norm(parts, axis=-1)
            velocity = np.diff(distance, axis=0) * 30  # of each part, away from the radar
            points, frame = [], []
            for now in range(frames):
                seen = rng.integers(0, parts.shape[1], rng.integers(10, 18))
                place = parts[now, seen] + rng.normal(0, 0.06, (len(seen), 3))
                speed = velocity[now, seen] + rng.normal(0, 0.1, len(seen))
                echo = rng.normal(28, 4, len(seen))
                clutter = np.column_stack([rng.uniform(0, 4, 4), rng.normal(0, 0.8, 4), rng.normal(0, 0.8, 4),
                                           np.zeros(4), rng.normal(32, 2, 4)])  # fmt: skip
                points.append(np.concatenate([np.column_stack([place, speed, echo]), clutter]))
                frame.append(np.full(len(points[-1]), now))
            folder = root / ("train" if index < train else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(
                folder / f"{name}_20_{index + 1}.npz",
                points=np.concatenate(points).astype(np.float32),
                frame=np.concatenate(frame).astype(np.int32),
            )
