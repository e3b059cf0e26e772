"""The video embedder is a true grid of frames; augmentation treats a clip as one; a head can see time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalities.video import CHANNELS, Clip, in_rows, tile
from modalities.video_augment import ClipAugment, ClipMix
from tasks.heads import ClassificationHead, ViewFusion


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 5), data=st.data())
def test_a_marked_frame_lies_where_one_reads_it(rows: int, columns: int, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    marked = data.draw(st.integers(0, rows * columns - 1))
    raw = torch.zeros(2, rows * columns, 3, height, width, dtype=torch.uint8)
    picture = torch.randint(1, 256, (3, height, width), dtype=torch.uint8)
    raw[1, marked] = picture
    embedder = Clip(rows * columns, columns=columns, channels="rgb", mean=(0, 0, 0), std=(1, 1, 1))
    maps = embedder(raw)
    assert maps.shape == (2, 1, 3, rows * height, columns * width)
    row, column = divmod(marked, columns)
    part = maps[1, 0, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
    torch.testing.assert_close(part, picture / 255)
    assert maps.count_nonzero() == part.count_nonzero(), "and nowhere else"


@pytest.mark.parametrize(
    ("frames", "grid"), [(16, (4, 4)), (8, (2, 4)), (12, (3, 4)), (1, (1, 1)), (7, (1, 7))]
)
def test_the_squarest_grid(frames: int, grid: tuple[int, int]) -> None:
    maps = Clip(frames, size=5)(torch.zeros(1, frames, 3, 5, 5, dtype=torch.uint8))
    assert maps.shape[-2:] == (5 * grid[0], 5 * grid[1])


@pytest.mark.parametrize("channels", list(CHANNELS))
@pytest.mark.parametrize("layout", ["grid", "frames", "rows"])
def test_layouts_hold_the_same_frames(channels: str, layout: str) -> None:
    embedder = Clip(6, size=8, layout=layout, channels=channels)
    raw = embedder.example_raw(2)
    maps = embedder(raw)
    frames = Clip(6, layout="frames", channels=channels)(raw)
    assert frames.shape == (2, 6, CHANNELS[channels], 8, 8)
    assert embedder.out_chans == maps.shape[2]
    expected = {"frames": frames, "grid": tile(frames, 3)[:, None], "rows": in_rows(frames, 3)[:, None]}[
        layout
    ]
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(embedder(raw.float()), maps)
    views = embedder.view_axes()
    assert len(views) in (1, 2, 6)
    assert embedder.map_axes() == views[0]


def test_in_rows_a_frame_is_a_strip_of_several_rows_each() -> None:
    """As (B, C, T, H, W).reshape(B, C, 4H, 4W) of 16 frames: row y of frame t is a quarter of row (8t + y) // 4."""
    raw = torch.randint(0, 256, (2, 16, 3, 8, 6), dtype=torch.uint8)
    maps = Clip(16, layout="rows", mean=(0, 0, 0), std=(1, 1, 1))(raw)
    assert maps.shape == (2, 1, 3, 32, 24)
    torch.testing.assert_close(maps[:, 0], raw.transpose(1, 2).reshape(2, 3, 32, 24) / 255)
    for frame, row in ((0, 0), (3, 5), (15, 7)):
        down, right = divmod(8 * frame + row, 4)
        part = maps[:, 0, :, down, 6 * right : 6 * right + 6]
        torch.testing.assert_close(part, raw[:, frame, :, row] / 255)


def test_change_is_that_of_the_normalised_frames() -> None:
    raw = torch.randint(0, 256, (1, 4, 3, 5, 5), dtype=torch.uint8)
    both = Clip(4, layout="frames", channels="rgb_difference")(raw)[0]
    colours, change = both[:, :3], both[:, 3:]
    assert change[0].abs().max() == 0
    torch.testing.assert_close(change[1:], colours[1:] - colours[:-1])
    still = raw[:, :1].expand(1, 4, 3, 5, 5)
    assert Clip(4, channels="difference")(still).abs().max() == 0, "nothing moves where nothing moves"


def test_statistics_are_measured_per_colour() -> None:
    embedder = Clip(4, layout="frames", mean=None, std=None)
    assert embedder.needs_statistics
    torch.manual_seed(0)
    # One batch of clips, and one with several clips per file.
    raws = [torch.randint(0, 256, (5, 4, 3, 6, 6)), torch.randint(0, 100, (2, 3, 4, 3, 6, 6))]
    embedder.fit_statistics(raw.to(torch.uint8) for raw in raws)
    assert not embedder.needs_statistics
    values = torch.cat([raw.movedim(-3, 0).flatten(1) for raw in raws], dim=1).double() / 255
    torch.testing.assert_close(embedder.mean.double(), values.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(embedder.std.double(), values.std(1, correction=0), atol=1e-6, rtol=0)
    assert {"mean", "std", "fitted"} <= set(embedder.state_dict())
    with pytest.raises(ValueError, match="no training clips"):
        Clip(4, mean=None, std=None).fit_statistics([])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": 0}, "at least one frame"),
        ({"layout": "cube"}, "layout must be one of grid, frames"),
        ({"channels": "flow"}, "channels must be one of rgb"),
        ({"columns": 5}, "16 frames do not fill rows of 5"),
        ({"mean": None}, "both mean and std"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (0.5,)}, "three numbers"),
    ],
)
def test_settings_that_describe_no_map(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Clip(**{"frames": 16, **wrong})  # type: ignore[arg-type]


def test_the_embedder_exports() -> None:
    for layout in ("grid", "frames"):
        embedder = Clip(4, size=8, layout=layout, channels="rgb_difference").eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(embedder, (embedder.example_raw(3),), dynamic_shapes=({0: batch},))
        raw = embedder.example_raw(5)
        torch.testing.assert_close(program.module()(raw), embedder(raw))


def test_augmentation_treats_a_clip_as_one() -> None:
    torch.manual_seed(1)
    raw = torch.randint(0, 256, (32, 4, 3, 6, 6), dtype=torch.uint8)
    out = ClipAugment(flip=0.5, reverse=0.5)(raw)
    kinds = [raw.float(), raw.flip(-1).float(), raw.flip(1).float(), raw.flip(-1).flip(1).float()]
    same = torch.stack([(out == kind).flatten(1).all(1) for kind in kinds])
    assert (same.sum(0) == 1).all(), "all frames of a clip are mirrored, and reversed, together"
    assert (same.sum(1) > 0).all()

    still = raw[:, :1].expand_as(raw)
    full = ClipAugment(brightness=0.3, contrast=0.5, grey=0.5)
    out = full(still)
    assert out.min() >= 0
    assert out.max() <= 255
    torch.testing.assert_close(out, out[:, :1].expand_as(out))  # a still clip stays still
    torch.manual_seed(5)
    first = full(raw)
    torch.manual_seed(5)
    torch.testing.assert_close(full(raw), first)
    assert torch.equal(ClipAugment()(raw), raw.float())
    with pytest.raises(ValueError, match="between 0 and 1"):
        ClipAugment(flip=2.0)


def test_a_clip_loses_the_same_box_in_all_frames() -> None:
    torch.manual_seed(0)
    raw = torch.full((64, 4, 3, 24, 24), 128, dtype=torch.uint8)
    out = ClipAugment(erase=0.5)(raw)
    erased = out != 128
    assert torch.equal(erased, erased[:, :1, :1].expand_as(erased)), "one box for all frames and channels"
    hit = erased.flatten(1).any(1)
    assert 0.3 < hit.float().mean() < 0.7
    area = erased[hit].float().mean(dim=(1, 2, 3, 4))
    assert 0.01 < area.min() < 0.1
    assert 0.2 < area.max() < 0.4
    first, second = out[hit][0, 0], out[hit][0, 1]
    assert not torch.equal(first, second), "but noise of its own in each frame"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), batch=st.integers(1, 5))
def test_a_batch_is_mixed_with_itself_in_reverse(seed: int, batch: int) -> None:
    """As timm's mode `batch`: one share and one window for all clips, the partner is the mirrored place."""
    torch.manual_seed(seed)
    raw = torch.arange(float(batch))[:, None, None, None, None].expand(batch, 2, 3, 16, 16)
    mixed, target = ClipMix(mode="batch")(raw, torch.eye(batch))
    torch.testing.assert_close(
        mixed.mean(dim=(1, 2, 3, 4)), target @ torch.arange(float(batch)), atol=1e-4, rtol=0
    )
    share = target.diagonal()[0]
    official = share * torch.eye(batch) + (1 - share) * torch.eye(batch).flip(0)
    if batch > 1:
        torch.testing.assert_close(target, official)
    window = mixed[0, 0, 0] != mixed[0, 0, 0, 0, 0]
    for clip in mixed[1:]:
        seen = clip[0, 0] != clip[0, 0, 0, 0]
        assert torch.equal(seen, window) or not seen.any() or not window.any() or batch % 2 == 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), mixup=st.sampled_from([0.0, 0.8]), cutmix=st.sampled_from([0.5, 1.0]))
def test_mixed_targets_are_shares_of_what_is_seen(seed: int, mixup: float, cutmix: float) -> None:
    torch.manual_seed(seed)
    # Clip k is all of value k, with class k: what is seen of each can be counted.
    raw = torch.arange(4.0)[:, None, None, None, None].expand(4, 2, 3, 16, 16)
    mixed, target = ClipMix(prob=0.9, mixup_alpha=mixup, cutmix_alpha=cutmix)(raw, torch.eye(4))
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3, 4)), target @ torch.arange(4.0), atol=1e-4, rtol=0)


def test_mixing_can_be_switched_off() -> None:
    raw = torch.rand(4, 2, 3, 8, 8)
    same, target = ClipMix(prob=0.0)(raw, torch.eye(4))
    torch.testing.assert_close(same, raw)
    torch.testing.assert_close(target, torch.eye(4))
    with pytest.raises(ValueError, match="mixup=null"):
        ClipMix(mixup_alpha=0, cutmix_alpha=0)


def test_only_temporal_fusion_sees_order() -> None:
    torch.manual_seed(0)
    x_BVD = torch.randn(3, 8, 16)
    for how in ("mean", "max", "attention", "temporal"):
        fusion = ViewFusion(16, how).eval()
        out = fusion(x_BVD)
        assert out.shape == (3, 16)
        differs = not torch.allclose(out, fusion(x_BVD.flip(1)), atol=1e-5)
        assert differs == (how == "temporal"), how
    head = ClassificationHead(16, 5, fusion="temporal")
    logits = head([torch.randn(24, 16, 2, 2)], views=8)
    assert logits.shape == (3, 5)
    logits.sum().backward()
