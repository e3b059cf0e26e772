"""Losses against PyTorch's own, and class weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.heads import one_hot
from tasks.losses import BinaryCrossEntropy, CrossEntropy

NAMES = ["a", "b", "c"]


def drawn(seed: int, samples: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, generator=generator), torch.randint(0, 3, (samples,), generator=generator)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 999), st.floats(0, 0.9), st.lists(st.floats(0.1, 9), min_size=3, max_size=3) | st.none()
)
def test_hard_targets_give_what_pytorch_gives(
    seed: int, smoothing: float, weight: list[float] | None
) -> None:
    logits, target = drawn(seed)
    loss = CrossEntropy(smoothing, weight=weight)
    loss.set_classes(NAMES)
    reference = nn.CrossEntropyLoss(
        None if weight is None else torch.tensor(weight), label_smoothing=smoothing
    )
    torch.testing.assert_close(loss(logits, one_hot(target, 3)), reference(logits, target))


def test_mixed_targets_give_what_pytorch_gives() -> None:
    logits, target = drawn(0)
    mixed = 0.7 * one_hot(target, 3) + 0.3 * one_hot(target.flip(0), 3)
    reference = nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(CrossEntropy(0.1)(logits, mixed), reference(logits, mixed))


def test_smoothing_over_the_others_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    target = torch.tensor([[1.0, 0.0, 0.0]])
    expected = -(torch.tensor([0.8, 0.1, 0.1]) * logits[0].log_softmax(0)).sum()
    torch.testing.assert_close(CrossEntropy(0.2, "others")(logits, target), expected)
    assert not torch.isclose(CrossEntropy(0.2)(logits, target), expected)


def test_weights_by_name_and_balanced() -> None:
    loss = CrossEntropy(weight={"c": 3.0})
    loss.set_classes(NAMES)
    assert loss.class_weight.tolist() == [1, 1, 3]
    balanced = CrossEntropy(weight="balanced")
    balanced.set_classes(NAMES)
    assert balanced.needs_balance
    balanced.fit_balance(torch.tensor([6, 3, 3]), 12)
    assert not balanced.needs_balance
    torch.testing.assert_close(balanced.class_weight, torch.tensor([2 / 3, 4 / 3, 4 / 3]))
    assert "class_weight" in balanced.state_dict(), "a test of the checkpoint has the same loss"


def test_binary_loss() -> None:
    logits, target = drawn(1)
    weights = torch.tensor([1.0, 2.0, 5.0])
    loss = BinaryCrossEntropy(weight=weights.tolist())
    loss.set_classes(NAMES)
    many_hot = one_hot(target, 3)
    torch.testing.assert_close(
        loss(logits, many_hot), nn.BCEWithLogitsLoss(pos_weight=weights)(logits, many_hot)
    )
    torch.testing.assert_close(
        BinaryCrossEntropy()(logits, many_hot), nn.BCEWithLogitsLoss()(logits, many_hot)
    )
    balanced = BinaryCrossEntropy(weight="balanced")
    balanced.set_classes(NAMES)
    balanced.fit_balance(torch.tensor([2, 5, 0]), 10)
    assert balanced.class_weight.tolist() == [4, 1, 10]


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ([1.0, 2.0], "2 class weights were given for 3 classes"),
        ({"d": 2.0}, "name 'd', which is none of the 3 classes"),
        ([1.0, -1.0, 1.0], "at least 0"),
        ([0.0, 0.0, 0.0], "not all 0"),
    ],
)
def test_weights_of_other_classes_are_refused(weight: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CrossEntropy(weight=weight).set_classes(NAMES)  # type: ignore[arg-type]


def test_settings_out_of_range_are_refused() -> None:
    for make in (
        lambda: CrossEntropy(1.0),
        lambda: CrossEntropy(0.1, "none"),
        lambda: CrossEntropy(weight="even"),
    ):
        with pytest.raises(ValueError, match=r"label_smoothing|smoothing_over|class weights"):
            make()
