"""The point cloud embedder and its augmentation: where points land, and what changes nothing."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modalities.point_augment import PointAugment, in_any_direction, turned_about_up
from modalities.point_cloud import ProjectedPoints
from modalities.point_network import nearest

NAN = float("nan")
RANGES = {"time": (0.0, 10.0), "x": (0.0, 4.0), "y": (-1.0, 1.0), "z": (-1.0, 1.0)}


def cameras(**settings: Any) -> ProjectedPoints:
    """Front, side and top at 32², positions as they are in [-1, 1]."""
    box = {"normalize": "box", "ranges": {axis: (-1, 1) for axis in "xyz"}}
    views: dict[str, Any] = {"orthographic": [[0, 0], [90, 0], [0, 90]]}
    return ProjectedPoints(**({"out_size": 32, "footprint": 0.0} | views | box | settings))


def clouds(batch: int = 2, points: int = 200, columns: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, points, 3 + columns, generator=generator)


def lit(map_HW: Tensor) -> list[tuple[int, int]]:
    """Pixels (row, column) that are not empty."""
    return [(int(row), int(column)) for row, column in map_HW.nonzero()]


def test_a_point_lands_where_each_camera_sees_it() -> None:
    point = torch.tensor([[[0.8, 0.5, -0.3]]])  # x towards the front camera, y to its right, z up
    front, side, top = cameras()(point)[0, :, 0]
    pixel = lambda value: int((value + 1) / 2 * 32)  # noqa: E731
    assert lit(front) == [(pixel(0.3), pixel(0.5))], "from the front: right is +y, down is -z"
    assert lit(side) == [(pixel(0.3), pixel(-0.8))], "from the side: right is -x"
    assert lit(top) == [(pixel(0.8), pixel(0.5))], "from above, down is +x"
    assert front.max() == pytest.approx((0.8 + 2) / 3)
    assert top.max() == pytest.approx((-0.3 + 2) / 3)


def test_the_z_buffer_keeps_the_nearest_point() -> None:
    points = torch.tensor([[[-0.5, 0.1, 0.1], [0.7, 0.1, 0.1], [0.2, 0.1, 0.1]]])
    front = cameras()(points)[0, 0, 0]
    assert front.max() == pytest.approx((0.7 + 2) / 3)
    assert len(lit(front)) == 1


def test_perspective_shows_near_things_larger() -> None:
    near, far = torch.tensor([[[0.6, 0.4, 0.0]]]), torch.tensor([[[-0.6, 0.4, 0.0]]])
    embedder = cameras(orthographic=[], perspective=[[0, 0]])
    (near_column,), (far_column,) = ([column for _, column in lit(embedder(x)[0, 0, 0])] for x in (near, far))
    assert near_column > far_column > 16


def test_the_unit_sphere_just_fits_a_perspective_map() -> None:
    angles = torch.linspace(0, 2 * math.pi, 4000)
    # The circle in which a camera's rays touch the unit sphere.
    depth = 1 / 2.5
    half = math.sqrt(1 - depth**2)
    rim = 0.999 * torch.stack(
        [torch.full_like(angles, depth), half * angles.cos(), half * angles.sin()], dim=-1
    )
    rows = [row for row, _ in lit(cameras(orthographic=[], perspective=[[0, 0]])(rim[None])[0, 0, 0])]
    assert (min(rows), max(rows)) == (0, 31)


def test_planes_lay_a_sequence_out_in_time() -> None:
    embedder = ProjectedPoints(
        out_size=(8, 10),
        columns=["time"],
        planes=[["time", "x"]],
        normalize="box",
        ranges=RANGES,
        footprint=0.0,
    )
    points = torch.tensor([[[0.25, 0, 0, 0.5], [3.75, 0, 0, 9.5], [3.75, 9, 9, 4.5], [5.0, 0, 0, 4.5]]])
    assert sorted(lit(embedder(points)[0, 0, 0])) == [(0, 4), (0, 9), (7, 0)], "x = 5 lies outside the range"


def test_density_counts_and_values_average() -> None:
    embedder = ProjectedPoints(
        out_size=(4, 10),
        columns=["time", "echo"],
        planes=[["time", "x"]],
        normalize="box",
        ranges=RANGES,
        footprint=0.0,
        depth=False,
        density=True,
        values=True,
    )
    points = torch.tensor([[[0.1, 0, 0, 2.5, 4.0], [0.2, 0, 0, 2.5, 8.0], [0.2, 0, 0, 7.5, -1.0]]])
    density, _, echo = embedder(points)[0, 0]
    assert density[3, 2] == pytest.approx(math.log(3))
    assert density[3, 7] == pytest.approx(math.log(2))
    assert density.count_nonzero() == 2
    assert (echo[3, 2], echo[3, 7]) == (6.0, -1.0)


@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_hidden_points_do_not_show_through(reduce: str) -> None:
    settings: dict[str, Any] = {"columns": ["echo"], "values": True, "reduce": reduce, "occlusion": 0.05}
    near, far = [0.5, 0.1, 0.1, 1.0], [-0.5, 0.1, 0.1, 7.0]
    front, behind = cameras(**settings, orthographic=[[0, 0], [180, 0]])(torch.tensor([[near, far]]))[0, :, 1]
    assert front.amax() == pytest.approx(1.0, abs=1e-3)
    assert behind.amax() == pytest.approx(7.0, abs=1e-3)


@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_place_size_and_order_do_not_matter(scale: float, shift: float, seed: int) -> None:
    embedder = ProjectedPoints(out_size=24, orthographic=[[20, 10]], perspective=[[70, 30]], density=True)
    points = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    wanted, got = embedder(points), embedder((points * scale + shift)[:, order])
    # A point on the border of two pixels may fall to either side.
    assert (wanted - got).abs().gt(0.01).float().mean() < 0.01


def test_points_that_are_not_there_change_nothing() -> None:
    torch.manual_seed(0)
    embedder = ProjectedPoints(
        orthographic=[[0, 0]], density=True, learned=3, neighbors=4, columns=["echo"]
    ).eval()
    points = clouds(columns=1)
    padded = torch.cat([points, torch.full((2, 50, 4), NAN)], dim=1)
    torch.testing.assert_close(embedder(padded), embedder(points))
    assert embedder(torch.full((1, 10, 4), NAN)).count_nonzero() == 0, "an empty cloud is an empty map"


@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
@pytest.mark.parametrize("neighbors", [0, 5])
def test_maps_are_differentiable_through_the_features(reduce: str, neighbors: int) -> None:
    torch.manual_seed(0)
    embedder = cameras(learned=4, neighbors=neighbors, reduce=reduce, footprint=1.5)
    maps = embedder(clouds().clamp(-1, 1))
    assert maps.shape == (2, 3, 5, 32, 32)
    maps[:, :, 1:].square().sum().backward()
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(float(p.grad.abs().sum()) for p in embedder.parameters() if p.grad is not None) > 0


def test_views_can_be_stacked_into_channels() -> None:
    apart, stacked = cameras(density=True), cameras(density=True, stack_views=True)
    points = clouds().clamp(-1, 1)
    assert stacked.out_chans == 6
    torch.testing.assert_close(stacked(points)[:, 0], apart(points).flatten(1, 2))
    assert [axes.channel for axes in stacked.view_axes()] == [0, 2, 4]
    assert [axes.channel for axes in apart.view_axes()] == [0, 0, 0]


def test_nearest_neighbours() -> None:
    points = clouds(points=30)
    there = torch.ones(2, 30, dtype=torch.bool)
    there[1, 3:] = False
    index = nearest(points, there, 5)
    wanted = torch.cdist(points[:1], points[:1]).topk(5, largest=False).indices
    assert (index[:1].sort().values == wanted.sort().values).all()
    assert set(index[1, 0].tolist()) == {0, 1, 2}, "three are there; the point itself takes the places left"


def test_statistics_leave_out_points_that_are_not_there() -> None:
    embedder = ProjectedPoints(columns=["echo"], orthographic=[[0, 0]])
    assert embedder.needs_statistics
    raw = torch.zeros(1, 4, 4)
    raw[0, :, 3] = torch.tensor([1.0, 3.0, NAN, 1000.0])
    raw[0, 3, 0] = NAN
    embedder.fit_statistics([raw])
    assert not embedder.needs_statistics
    assert (float(embedder.mean), float(embedder.std)) == (2.0, 1.0)
    assert not ProjectedPoints(orthographic=[[0, 0]]).needs_statistics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "at least one view"),
        ({"planes": [["time", "x"]]}, "'time' is no column"),
        ({"planes": [["echo", "x"]], "columns": ["echo"]}, "ranges needs .* of echo"),
        ({"orthographic": [[0, 0]], "normalize": "box"}, "ranges needs .* of x"),
        ({"orthographic": [[0, 0]], "depth": False}, "nothing to draw"),
        ({"perspective": [[0, 0]], "camera_distance": 1.0}, "camera_distance > 1"),
        ({"orthographic": [[0, 0]], "reduce": "median"}, "reduce must be one of"),
        ({"orthographic": [[0, 0]], "normalize": "cube"}, "normalize must be one of"),
    ],
)
def test_settings_that_describe_no_map(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectedPoints(**settings)


def test_one_program_for_any_batch() -> None:
    torch.manual_seed(0)
    embedder = ProjectedPoints(
        out_size=16, num_points=40, orthographic=[[0, 0]], perspective=[[30, 20]], learned=2, neighbors=3
    ).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(embedder, (embedder.example_raw(3),), dynamic_shapes=({0: batch},)).module()
    raw = embedder.example_raw(5)
    raw[0, 30:] = NAN
    torch.testing.assert_close(program(raw), embedder(raw))


@pytest.mark.figures
def test_a_cloud_can_be_drawn_beside_its_maps(tmp_path: Any) -> None:
    from workbench.figures import draw_samples

    embedder = ProjectedPoints(
        columns=["time"], orthographic=[[0, 0]], planes=[["time", "z"]], ranges=RANGES, num_points=50
    )
    raw = embedder.example_raw(5)
    raw[:, 40:] = NAN
    draw_samples(raw, embedder(raw), embedder, list("abcde"), tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 10_000


# -- augmentation ---------------------------------------------------------------------------------------


def test_rotations_are_rotations() -> None:
    torch.manual_seed(0)
    matrix = in_any_direction(2000, torch.device("cpu"))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).expand_as(matrix), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(2000), atol=1e-5, rtol=0)
    assert matrix.mean(0).abs().max() < 0.05, "no direction is preferred"


@pytest.mark.parametrize("turn", ["up", "any"])
@pytest.mark.parametrize("settings", [{"columns": ["nx", "ny", "nz", "r"]}, {"normals": True}])
def test_turning_keeps_distances_and_takes_normals_along(turn: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    points = clouds(columns=4)
    turned = PointAugment(turn=turn, mirror=["x"], **settings)(points)
    before, after = (torch.pdist(x[0, :, :3].double()) for x in (points, turned))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    wanted = (points[..., :3] * points[..., 3:6]).sum(-1)
    torch.testing.assert_close((turned[..., :3] * turned[..., 3:6]).sum(-1), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned[..., 6], points[..., 6])
    assert (turned[..., :2] - points[..., :2]).abs().max() > 0.1
    if turn == "up":
        torch.testing.assert_close(turned[..., 2], points[..., 2])


@pytest.mark.parametrize("columns", ["nx ny nz", "r g b nx ny nz", "nz r nx i ny"])
def test_normals_are_found_by_name(columns: str) -> None:
    torch.manual_seed(0)
    names = columns.split()
    points = clouds(columns=len(names))
    places = [3 + names.index(name) for name in ("nx", "ny", "nz")]
    points[..., places] = points[..., :3]
    turned = PointAugment(turn="any", mirror=["x", "z"], columns=names)(points)
    torch.testing.assert_close(turned[..., places], turned[..., :3])
    assert (turned[..., :3] - points[..., :3]).abs().max() > 0.1
    others = [place for place in range(3, points.shape[-1]) if place not in places]
    torch.testing.assert_close(turned[..., others], points[..., others])
    left = PointAugment(turn="any", columns=names, normals=False)(points)
    torch.testing.assert_close(left[..., 3:], points[..., 3:])


def test_normals_stay_normal_to_a_stretched_surface() -> None:
    torch.manual_seed(0)
    corners = clouds(batch=8)[:, :3]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = 2 * torch.nn.functional.normalize(normal, dim=-1)[:, None].expand(-1, 3, -1)
    raw = torch.cat([corners, normals], dim=-1)
    raw[0, 0, 3:] = 0
    moved = PointAugment(turn="any", stretch=[0.5, 2], columns=["nx", "ny", "nz"])(raw)
    edges = moved[:, 1:, :3] - moved[:, :1, :3]
    torch.testing.assert_close((edges * moved[:, 1:, 3:]).sum(-1), torch.zeros(8, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[..., 3:].norm(dim=-1), raw[..., 3:].norm(dim=-1))


def test_normals_in_part_are_refused_where_they_would_turn() -> None:
    for moves in ({"turn": "up"}, {"mirror": ["x"]}, {"stretch": [0.5, 2]}):
        with pytest.raises(ValueError, match="columns name nx, nz of the normals"):
            PointAugment(columns=["nx", "nz"], **moves)  # type: ignore[arg-type]
    assert PointAugment(columns=["nx", "nz"], jitter=0.1).normals == ()
    with pytest.raises(ValueError, match="none of the columns r are normals"):
        PointAugment(turn="up", columns=["r"], normals=True)


def test_lengths_are_relative_to_the_cloud() -> None:
    points = clouds(batch=64)
    for scale in (0.01, 100.0):
        torch.manual_seed(0)
        moved = PointAugment(shift=0.2, jitter=0.01)(points * scale) / scale
        torch.manual_seed(0)
        torch.testing.assert_close(moved, PointAugment(shift=0.2, jitter=0.01)(points), atol=1e-4, rtol=1e-4)


def test_dropping_leaves_points_out() -> None:
    torch.manual_seed(0)
    dropped = PointAugment(drop=0.5)(clouds(batch=64, columns=1))
    share = dropped[..., 0].isnan().float().mean(1)
    assert share.max() < 0.65
    assert 0.2 < share.mean() < 0.3
    assert dropped[..., 3].isfinite().all()
    again = PointAugment(turn="any", stretch=[0.8, 1.2], shift=0.1, jitter=0.01)(dropped)
    assert (again[..., 0].isnan() == dropped[..., 0].isnan()).all()


def test_augmentation_repeats_with_the_seed() -> None:
    augment = PointAugment("any", ["y"], [0.8, 1.2], 0.1, 0.01, 0.3)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(augment(clouds()))
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def test_vote_copies_turn_evenly() -> None:
    copies = turned_about_up(torch.tensor([1.0, 0.0, 2.0]).expand(4, 1, 3))
    wanted = torch.tensor([[1, 0, 2], [0, 1, 2], [-1, 0, 2], [0, -1, 2]]).float()
    torch.testing.assert_close(copies[:, 0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings", [{"turn": "left"}, {"mirror": ["w"]}, {"stretch": [0, 1]}, {"drop": 1.0}]
)
def test_bad_augmentation(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|takes|needs"):
        PointAugment(**settings)
