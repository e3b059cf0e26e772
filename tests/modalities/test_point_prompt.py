"""P2P's prompting against loops, matrices worked out by hand and what must not matter."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modalities.image import IMAGENET_MEAN, IMAGENET_STD
from modalities.point_augment import PointAugment, posed
from modalities.point_prompt import EdgeFeatures, Painter, PointPrompt, within_sphere
from tasks.heads import ClassificationHead


def prompt(**settings: Any) -> PointPrompt:
    torch.manual_seed(0)
    return PointPrompt(**{"out_size": 28, "neighbors": 6, "channels": 8, "width": 4} | settings).eval()


def clouds(batch: int = 2, points: int = 60) -> Tensor:
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("views", [1, 2, 4])
def test_pictures_have_the_colours_of_an_image_network(views: int) -> None:
    embedder = prompt(views=views)
    maps = embedder(clouds())
    assert maps.shape == (2, views, 3, 28, 28)
    assert embedder.out_chans == 3
    assert len(embedder.view_axes()) == views
    picture = maps * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    assert picture.min() > 0
    assert picture.max() < 1


def test_every_parameter_learns() -> None:
    embedder = prompt().train()
    embedder(clouds()).square().mean().backward()
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_features_are_summed_over_a_footprint_of_nine_pixels() -> None:
    """Against a loop over points and pixels."""
    embedder = prompt()
    place = clouds()
    x_BNC = torch.randn(2, 60, 8)
    pixel_BVN = embedder.pixels(place, torch.ones(2, 60, dtype=torch.bool))
    found = embedder.splat(x_BNC, pixel_BVN)
    expected = torch.zeros(2, 4, 8, 28, 28)
    for cloud in range(2):
        for view in range(4):
            for point in range(60):
                row, column = divmod(int(pixel_BVN[cloud, view, point]) - view * 28 * 28, 28)
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        expected[cloud, view, :, row + down, column + right] += x_BNC[cloud, point]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_pixels_are_the_official_ones() -> None:
    """The official index arithmetic, point by point: cells of the longer side / (S - 3), the middle in the middle."""
    embedder = prompt()
    place = clouds(1, 40) * torch.tensor([1.0, 2.0, 0.5])
    found = embedder.pixels(place, torch.ones(1, 40, dtype=torch.bool))[0]
    for view in range(4):
        angle = view * math.pi / 2
        about_x = torch.tensor(
            [
                [1, 0, 0],
                [0, math.cos(angle), -math.sin(angle)],
                [0, math.sin(angle), math.cos(angle)],
            ]
        )
        about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
        seen = place[0] @ (about_x @ about_z).T
        low, high = seen.amin(0)[:2], seen.amax(0)[:2]
        cell = float((high - low).max()) / 25
        corner = [[math.floor(float(value)) for value in point] for point in (seen[:, :2] - low) / cell]
        largest = [max(point[axis] for point in corner) + 2 for axis in (0, 1)]
        shift = [14 - largest[axis] // 2 - 1 for axis in (0, 1)]
        expected = [(view * 28 + point[0] + 1 + shift[0]) * 28 + point[1] + 1 + shift[1] for point in corner]
        close = (found[view] - torch.tensor(expected)).abs()
        # Rounding may put a point on the edge of a cell into the neighbour.
        assert (close == 0).float().mean() > 0.95
        assert set(close.tolist()) <= {0, 1, 28, 29}


def test_views_are_quarter_turns_about_one_axis() -> None:
    embedder = prompt()
    turns = embedder.quarter_turns
    for turn in turns:
        torch.testing.assert_close(turn @ turn.T, torch.eye(3))
        assert torch.linalg.det(turn) == pytest.approx(1)
    step = turns[1] @ turns[0].T
    torch.testing.assert_close(torch.linalg.matrix_power(step, 4), torch.eye(3))
    for before, after in pairwise(turns):
        torch.testing.assert_close(step @ before, after)
    # The row of a map is -y in all views, its column x, -z, -x, z.
    assert turns[:, 0].tolist() == [[0, -1, 0]] * 4
    assert turns[:, 1].tolist() == [[1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 0, 1]]


def test_order_place_and_size_do_not_matter() -> None:
    embedder = prompt()
    raw = clouds()
    maps = embedder(raw)
    order = torch.randperm(60)
    torch.testing.assert_close(embedder(raw[:, order]), maps, rtol=1e-4, atol=1e-4)
    moved = torch.cat([2 * raw + 1, raw], dim=-1)  # the posed place; centring and scaling undo both
    still = torch.cat([raw, raw], dim=-1)
    same = (embedder(moved) - embedder(still)).abs().amax(dim=(1, 2, 3, 4))
    assert same.max() < 0.5, "a point on a cell's edge may change its cell"
    all_there = torch.ones(2, 60, dtype=torch.bool)
    near, far = (
        embedder.features(within_sphere(cloud, all_there), all_there) for cloud in (raw, 3 * raw + 5)
    )
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-4)


def test_points_that_are_not_there_change_nothing() -> None:
    embedder = prompt()
    raw = clouds()
    filled = torch.cat([raw, torch.full((2, 17, 3), torch.nan)], dim=1)
    torch.testing.assert_close(embedder(filled), embedder(raw), rtol=1e-4, atol=1e-4)
    empty = torch.full((1, 10, 3), torch.nan)
    assert embedder(empty).isfinite().all()


def test_edge_features_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    features = EdgeFeatures(width=4, channels=8, neighbors=5)
    nn.init.normal_(features.norm.weight)
    nn.init.normal_(features.norm.bias)
    xyz = clouds(1, 12)
    h_NG = features.first(xyz[0])
    edges = torch.zeros(12, 5, 8)
    for point in range(12):
        order = (xyz[0] - xyz[0, point]).norm(dim=1).argsort()[:5]
        for place, other in enumerate(order):
            both = torch.cat([h_NG[other] - h_NG[point], h_NG[point]])
            edges[point, place] = features.edge(both)
    normalised = features.norm(edges.permute(2, 0, 1)[None])[0]
    expected = features.last(nn.functional.leaky_relu(normalised, 0.2).amax(dim=2).T)
    found = features(xyz, torch.ones(1, 12, dtype=torch.bool))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_patches_of_all_views_see_each_other() -> None:
    torch.manual_seed(0)
    painter = Painter(8, views=4, width=16, heads=2, hidden=32).eval()
    x = torch.randn(8, 8, 14, 14)  # two clouds
    changed = x.clone()
    changed[0] += 1.0
    moved = (painter(changed) - painter(x)).abs().amax(dim=(1, 2, 3))
    assert bool((moved[:4] > 0).all()), "the other views of the cloud see it"
    assert bool((moved[4:] == 0).all()), "the other cloud does not"


def test_the_pose_is_the_official_one() -> None:
    """rotate_theta_phi: R(-θ about z) · R(-φ about (sin θ, -cos θ, 0))."""

    def about(axis: list[float], angle: float) -> Tensor:
        x, y, z = axis
        cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
        return torch.linalg.matrix_exp(angle * cross)

    for theta, phi in ((0.3, -0.8), (4.0, -1.2), (5.9, 0.4)):
        official = about([0, 0, 1], -theta) @ about([math.sin(theta), -math.cos(theta), 0], -phi)
        ours = posed(torch.tensor([theta]).double(), torch.tensor([phi]).double())[0]
        torch.testing.assert_close(ours, official)


def test_a_pose_is_drawn_within_its_angles_and_keeps_the_original() -> None:
    torch.manual_seed(0)
    augment = PointAugment(turn="pose", azimuth=[0, 90], elevation=[-60, -30], keep_original=True)
    raw = torch.tensor([1.0, 0.0, 0.0]).expand(400, 1, 3)
    out = augment(raw)
    assert out.shape == (400, 1, 6)
    assert torch.equal(out[..., 3:], raw)
    turned = out[:, 0, :3]
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(400))
    azimuth = torch.rad2deg(torch.atan2(-turned[:, 1], (1 - turned[:, 1] ** 2).clamp(min=0).sqrt()))
    assert azimuth.min() > -0.1
    assert azimuth.max() < 90.1
    assert azimuth.max() - azimuth.min() > 80
    up = PointAugment(turn="pose", azimuth=[0, 0], elevation=[-60, -30])(raw)[:, 0]
    lifted = torch.rad2deg(torch.atan2(up[:, 2], up[:, 0]))
    assert 29.9 < lifted.min() < 33
    assert 57 < lifted.max() < 60.1


def test_a_cloud_without_a_pose_gets_the_set_one() -> None:
    embedder = prompt(pose=(70.0, -50.0))
    raw = clouds()
    matrix = posed(torch.full((2,), math.radians(70.0)), torch.full((2,), math.radians(-50.0)))
    both = torch.cat([raw @ matrix.transpose(1, 2), raw], dim=-1)
    torch.testing.assert_close(embedder(raw), embedder(both), rtol=1e-4, atol=1e-4)
    other = prompt(pose=(110.0, -50.0))(raw)
    assert (other - embedder(raw)).abs().max() > 0.01


def test_concatenated_views_have_one_norm() -> None:
    torch.manual_seed(0)
    head = ClassificationHead(6, 5, fusion="concat", views=4).eval()
    assert head.norm.weight.shape == (24,)
    features = [torch.randn(8, 6, 3, 3)]
    pooled = features[0].mean(dim=(2, 3)).reshape(2, 24)
    expected = head.linear(nn.functional.layer_norm(pooled, (24,), head.norm.weight, head.norm.bias, 1e-6))
    torch.testing.assert_close(head(features, 4), expected)
    assert not head.load_official({"norm.weight": torch.ones(6), "norm.bias": torch.ones(6)})
    assert bool((head.norm.bias == 0).all()), "a norm of one view does not fit and is left out"
    with pytest.raises(ValueError, match=r"task\.head\.views"):
        ClassificationHead(6, 5, fusion="concat")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"out_size": 30}, "multiple of 7"),
        ({"views": 5}, "1 to 4 views"),
        ({"channels": 6}, "channels in fours"),
        ({"columns": ["nx"]}, "draws x, y, z alone"),
    ],
)
def test_settings_that_describe_no_picture(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prompt(**settings)
    with pytest.raises(ValueError, match="not 4 columns"):
        prompt()(torch.zeros(1, 9, 4))


def test_one_program_for_any_batch() -> None:
    embedder = prompt(num_points=50)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(embedder, (embedder.example_raw(3),), dynamic_shapes=({0: batch},))
    raw = embedder.example_raw(5)
    torch.testing.assert_close(program.module()(raw), embedder(raw), rtol=1e-4, atol=1e-4)
