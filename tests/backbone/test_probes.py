"""The probes against cases with a known answer."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from backbone import UniRepLKNet
from backbone.probes import (
    Curve,
    MinibatchCKA,
    block_features,
    centre_offset,
    decide,
    deepest_first_match,
    effective_receptive_field,
    energy_by_radius,
    high_contribution_area,
    linear_cka,
    log_scaled,
    mean_radius,
    merged_kernels,
    reach,
    robustness_curve,
    shape_bias,
    stage_features,
    strides,
    unbiased_hsic,
)
from backbone.reparam import DilatedReparamBlock


def conv(size: int, dilation: int = 1, stride: int = 1) -> nn.Conv2d:
    """A convolution whose every tap is 1."""
    layer = nn.Conv2d(1, 1, size, stride, dilation * (size // 2), dilation, bias=False)
    nn.init.ones_(layer.weight)
    return layer


# -- effective receptive field -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7, 13])
def test_field_of_one_convolution_is_its_kernel(size: int) -> None:
    field = effective_receptive_field(conv(size), [torch.rand(2, 1, 33, 33)])
    assert field.support == (size, size)
    assert field.areas[-1].side == size
    assert field.areas[-1].ratio == pytest.approx((size / 33) ** 2)
    half = size // 2
    expected_HW = torch.zeros(33, 33, dtype=torch.float64)
    expected_HW[16 - half : 17 + half, 16 - half : 17 + half] = 1
    torch.testing.assert_close(field.scores_HW, expected_HW)
    assert (field.inputs, field.left_out, field.centre) == (2, 0, (16, 16))


def test_stacked_dilated_and_strided_convolutions() -> None:
    maps = [torch.rand(1, 1, 40, 40)]
    assert effective_receptive_field(nn.Sequential(conv(5), conv(7)), maps).support == (11, 11)
    assert effective_receptive_field(conv(5, dilation=3), maps).support == (13, 13)
    assert int((effective_receptive_field(conv(5, dilation=3), maps).scores_HW > 0).sum()) == 25
    strided = effective_receptive_field(nn.Sequential(conv(3, stride=2), conv(3)), maps, stride=2)
    assert (strided.support, strided.centre) == ((7, 7), (20, 20))


def test_what_lowers_a_feature_or_lies_below_zero_does_not_count() -> None:
    layer = conv(3)
    with torch.no_grad():
        layer.weight[0, 0, 0] = -1  # a row of taps that lowers
    field = effective_receptive_field(layer, [torch.ones(1, 1, 9, 9)])
    assert field.support == (2, 3)
    with pytest.raises(ValueError, match="depends on no pixel"):
        effective_receptive_field(layer, [-torch.ones(1, 1, 9, 9)])  # the feature is negative: ReLU stops all


def test_channels_add_up_and_inputs_are_averaged() -> None:
    class Scaled(nn.Module):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            return x_NCHW.square() / 2  # the gradient is the input

    maps_NCHW = torch.tensor([2.0, 4.0]).view(2, 1, 1, 1).expand(2, 3, 5, 5)
    one = effective_receptive_field(Scaled(), [maps_NCHW])
    assert one.scores_HW[2, 2] == pytest.approx(3 * (2 + 4) / 2)
    two = effective_receptive_field(Scaled(), [maps_NCHW[:1], maps_NCHW[1:]])
    torch.testing.assert_close(one.scores_HW, two.scores_HW)


def test_maps_without_a_finite_gradient_are_left_out() -> None:
    maps_NCHW = torch.rand(3, 1, 9, 9)
    maps_NCHW[1, 0, 4, 4] = torch.nan
    field = effective_receptive_field(lambda x: x * x, [maps_NCHW])
    assert (field.inputs, field.left_out) == (2, 1)
    with pytest.raises(ValueError, match="no map gave a finite gradient"):
        effective_receptive_field(lambda x: x * x, [maps_NCHW[1:2]])


def test_areas_of_even_scores() -> None:
    scores_HW = torch.ones(21, 21)
    for threshold in (0.2, 0.3, 0.5, 0.99):
        area = high_contribution_area(scores_HW, threshold)
        smaller = (area.side - 2) ** 2 / 441
        assert smaller <= threshold < area.ratio == area.side**2 / 441
    wide = high_contribution_area(torch.ones(5, 41), 0.5)
    assert (wide.side, wide.ratio) == (21, 21 / 41)  # cut off above and below


def test_log_scaling_is_the_published_one() -> None:
    scaled = log_scaled(torch.tensor([[0.0, 9.0], [99.0, 0.0]]))
    torch.testing.assert_close(scaled, torch.tensor([[0.0, 0.5], [1.0, 0.0]]))


def test_field_is_the_same_in_deploy_form(
    tiny: Callable[..., UniRepLKNet], shake: Callable[[nn.Module], None]
) -> None:
    model = tiny(num_classes=0).eval()
    shake(model)
    maps = [torch.randn(2, 2, 64, 64)]
    before = effective_receptive_field(stage_features(model, 2), maps, stride=8)
    after = effective_receptive_field(stage_features(model.reparameterize(), 2), maps, stride=8)
    torch.testing.assert_close(before.scores_HW, after.scores_HW, rtol=1e-3, atol=1e-5)
    assert before.areas == after.areas


def test_stages_are_compared_by_stride() -> None:
    resnet = timm.create_model("resnet18", features_only=True, in_chans=1).eval()
    convnext = timm.create_model("convnext_atto", features_only=True, in_chans=1).eval()
    assert strides(resnet) == [2, 4, 8, 16, 32]
    assert deepest_first_match(resnet, 8) == 3
    assert deepest_first_match(convnext, 8) == 2
    assert centre_offset(resnet, 32) == 0
    assert centre_offset(convnext, 32) == 15.5  # the middle of a patch of 32
    # An untrained ConvNeXt is its patches alone (layer scale 1e-6): the rectangles must grow from their middle.
    field = effective_receptive_field(stage_features(convnext, 4), [torch.randn(1, 1, 96, 96)], 32, 15.5)
    assert field.areas[-1].side <= 33
    with pytest.raises(ValueError, match="from 1 to 5, not 6"):
        stage_features(resnet, 6)


# -- kernels -------------------------------------------------------------------------------------------------


def test_energy_of_even_single_and_empty_kernels() -> None:
    even_R = energy_by_radius(torch.ones(4, 13, 13))
    expected_R = torch.tensor([1.0, *(8.0 * ring for ring in range(1, 7))], dtype=torch.float64) / 169
    torch.testing.assert_close(even_R, expected_R)
    assert reach(even_R, 0.9) == 13
    assert reach(even_R, 0.5) == 11  # 9² / 169 = 0.48
    delta = torch.zeros(2, 13, 13)
    delta[0, 6, 6] = -5.0
    delta[1, 6, 2] = 0.1  # four pixels away; each channel counts alike
    torch.testing.assert_close(energy_by_radius(delta)[[0, 4]], torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert mean_radius(energy_by_radius(delta)) == 2
    assert reach(energy_by_radius(delta), 0.5) == 1
    assert reach(energy_by_radius(delta), 0.51) == 9
    assert energy_by_radius(torch.zeros(2, 5, 5)).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="odd K"):
        energy_by_radius(torch.ones(1, 4, 4))


def test_merged_kernels_are_those_of_the_deploy_form(
    tiny: Callable[..., UniRepLKNet], shake: Callable[[nn.Module], None]
) -> None:
    model = tiny(kernel_sizes=(3, 0, 7, 13)).eval()
    shake(model)
    found = merged_kernels(model)
    assert [(kernel.stage, kernel.block, kernel.size) for kernel in found] == [
        (1, 1, 3),
        (3, 1, 7),
        (4, 1, 13),
    ]
    assert not model.deploy, "the network stays as it is"
    block = model.stages[3][0]
    x_NCHW = torch.randn(1, 16, 20, 20)
    with torch.no_grad():
        before = block.norm(block.dwconv(x_NCHW)) - block.norm(block.dwconv(torch.zeros_like(x_NCHW)))
        after = nn.functional.conv2d(x_NCHW, found[2].weight_CKK[:, None], padding=6, groups=16)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_a_lone_dilated_branch_lies_on_its_rings() -> None:
    block = DilatedReparamBlock(3, 13).eval()
    with torch.no_grad():
        for layer, _, dilation in block.branches():
            nn.init.constant_(layer.weight, float(dilation == 5))
    energy_R = energy_by_radius(block.merged()[0][:, 0])
    assert energy_R.nonzero().flatten().tolist() == [0, 5]
    assert energy_R[0] == pytest.approx(1 / 9)  # 3 × 3 taps, one in the centre


# -- similarity ----------------------------------------------------------------------------------------------


def test_rotation_and_scale_change_nothing_other_features_do() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 12)
    rotation = torch.linalg.qr(torch.randn(12, 12)).Q
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-9)
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, x @ torch.diag(torch.tensor([30.0] + [0.1] * 11))) < 0.6
    y = torch.randn(40, 7)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)


def test_unrelated_features_score_zero_in_the_mean_whatever_the_batch() -> None:
    torch.manual_seed(1)
    for batch in (8, 64):  # a biased estimate is near 1 for 8 inputs of 100 features
        cka = MinibatchCKA()
        for _ in range(200):
            cka.update({"x": torch.randn(batch, 100)}, {"y": torch.randn(batch, 100)})
        assert abs(float(cka.compute())) < 0.05


def test_half_of_the_features_in_common() -> None:
    """Two equal independent features against one of them: HSIC 1, 1 and 2, so 1 / sqrt(2)."""
    torch.manual_seed(2)
    cka = MinibatchCKA()
    for _ in range(100):
        y = torch.randn(64, 2)
        cka.update({"x": y[:, :1]}, {"y": y})
    assert float(cka.compute()) == pytest.approx(2**-0.5, abs=0.02)


def test_hsic_is_the_estimate_of_song_et_al() -> None:
    """Against the definition: the mean over all quadruples of different inputs."""
    torch.manual_seed(3)
    n = 6
    k, l = (torch.randn(n, 4).double() for _ in range(2))  # noqa: E741
    k, l = k @ k.T, l @ l.T  # noqa: E741
    total, count = 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
                        count += 1
    found = unbiased_hsic(k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0))
    assert float(found) == pytest.approx(total / count, rel=1e-9)


def test_wrong_batches_are_refused() -> None:
    cka = MinibatchCKA()
    with pytest.raises(ValueError, match="no batch"):
        cka.compute()
    with pytest.raises(ValueError, match="at least 4"):
        cka.update({"x": torch.randn(3, 2)}, {"x": torch.randn(3, 2)})
    with pytest.raises(ValueError, match="same inputs"):
        cka.update({"x": torch.randn(5, 2)}, {"x": torch.randn(4, 2)})
    cka.update({"x": torch.randn(5, 2), "still": torch.ones(5, 2)}, {"x": torch.randn(5, 2)})
    with pytest.raises(ValueError, match="same layers"):
        cka.update({"y": torch.randn(5, 2)}, {"x": torch.randn(5, 2)})
    assert cka.compute()[1].isnan().all(), "features that never change resemble nothing"


def test_block_features_end_where_the_stages_do(tiny: Callable[..., UniRepLKNet]) -> None:
    model = tiny(depths=(1, 1, 2, 1)).eval()
    x_NCHW = torch.randn(1, 2, 64, 64)
    found = block_features(model, x_NCHW)
    assert list(found) == ["stem", "1.1", "down 2", "2.1", "down 3", "3.1", "3.2", "down 4", "4.1"]
    for name, feature in zip(("1.1", "2.1", "3.2", "4.1"), model.forward_features(x_NCHW), strict=True):
        torch.testing.assert_close(found[name], feature)


# -- shape bias ----------------------------------------------------------------------------------------------

NAMES = ["bear", "cat", "dog"]
PAIRS = [(shape, texture) for shape in NAMES for texture in NAMES]
SHAPES, TEXTURES = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]


def test_an_oracle_of_texture_has_bias_0_one_of_shape_1() -> None:
    texture = shape_bias(TEXTURES, SHAPES, TEXTURES, NAMES)
    assert (texture.value, texture.mean_over_categories, texture.cue_share) == (0, 0, 1)
    shape = shape_bias(SHAPES, SHAPES, TEXTURES, NAMES)
    assert (shape.value, shape.mean_over_categories) == (1, 1)
    for found in (texture, shape):
        assert (found.left_out, found.correct_congruent) == (3, 1)
        assert found.shape + found.texture + found.neither == 6


def test_only_decisions_for_a_cue_count() -> None:
    decisions = ["bear" if pair != ("cat", "dog") else "cat" for pair in PAIRS]
    found = shape_bias(decisions, SHAPES, TEXTURES, NAMES)
    # bear of cat, bear of dog, cat of dog by shape; cat of bear, dog of bear by texture; dog of cat by neither
    assert (found.shape, found.texture, found.neither) == (3, 2, 1)
    assert found.value == 3 / 5
    assert found.per_category == {"bear": 1.0, "cat": 0.5, "dog": 0.0}
    assert found.correct_congruent == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="mouse: no category"):
        shape_bias(["mouse"], ["cat"], ["dog"], NAMES)


def test_nothing_decided_for_a_cue_is_no_number() -> None:
    found = shape_bias(["dog"], ["cat"], ["bear"], NAMES)
    assert found.value != found.value
    assert found.mean_over_categories != found.mean_over_categories


def test_decisions_take_the_mean_over_a_categorys_classes() -> None:
    probabilities_NK = torch.tensor([[0.1, 0.3, 0.3, 0.3], [0.4, 0.0, 0.6, 0.0]])
    categories = {"one": [0], "three": [1, 2, 3]}
    assert decide(probabilities_NK, categories).tolist() == [1, 0]  # means 0.1 < 0.3; 0.4 > 0.2
    with pytest.raises(ValueError, match="needs classes between 0 and 3"):
        decide(probabilities_NK, {"one": [4]})
    with pytest.raises(ValueError, match="category none"):
        decide(probabilities_NK, {"none": []})


# -- robustness ----------------------------------------------------------------------------------------------


def test_curve_of_a_known_decline() -> None:
    asked: list[float] = []

    def score(severity: float) -> float:
        asked.append(severity)
        return 0.9 - 0.2 * severity

    curve = robustness_curve(score, [1, 2, 4])
    assert asked == [0, 1, 2, 4], "the clean input comes first"
    assert curve.clean == 0.9
    assert curve.mean_corrupted == pytest.approx((0.7 + 0.5 + 0.1) / 3)
    assert curve.half_point() == pytest.approx(2.25)
    assert curve.half_point(floor=0.1) == pytest.approx(2.0)  # from 0.9 to 0.5
    assert curve.relative[-1] == pytest.approx(1 / 9)


def test_errors_rise() -> None:
    assert Curve((0, 1, 3), (0.5, 0.5, 2.5), higher_is_better=False).half_point() == pytest.approx(1.5)
    assert Curve((0, 1), (0.5, 0.6), higher_is_better=False).half_point() is None
    assert Curve((0, 1), (0.0, 0.0)).half_point() is None, "there is nothing to lose"
    assert Curve((0, 1), (0.1, 0.1)).half_point(floor=0.125) is None
    assert Curve((0, 1), (0.0, 0.0), higher_is_better=False).half_point() is None
    for severities in ([], [0.0, 1.0], [2.0, 1.0]):
        with pytest.raises(ValueError, match="must rise from above 0"):
            robustness_curve(lambda _: 1.0, severities)
