"""The protocols on features with known answers: k-NN, logistic regression, few shots, retrieval."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from workbench.representations import protocols
from workbench.representations.protocols import Labelled, ProtocolError, Splits

NAMES = ["ant", "bee", "cat"]


def labelled(rng: np.random.Generator, count: int, spread: float, classes: int = 3) -> Labelled:
    """Classes around the corners of a simplex, in turn, so that each is there."""
    y = np.arange(count) % classes
    x = 2 * np.eye(classes, 5)[y] + spread * rng.standard_normal((count, 5)) + 0.5
    return Labelled(x.astype(np.float32), y)


def splits(seed: int = 0, spread: float = 0.6, sizes: tuple[int, int, int] = (60, 24, 30)) -> Splits:
    rng = np.random.default_rng(seed)
    return Splits(*(labelled(rng, size, spread) for size in sizes), NAMES)


def several(seed: int = 0) -> Splits:
    """Each of three labels is the sign of one feature."""
    rng = np.random.default_rng(seed)

    def part(count: int) -> Labelled:
        x = rng.standard_normal((count, 5)).astype(np.float32)
        return Labelled(x, (x[:, :3] > 0).astype(np.int64))

    return Splits(part(200), part(50), part(60), NAMES)


def measure(name: str, found: Splits, seed: int = 0) -> protocols.Found:
    if name == "knn":
        return protocols.knn(found, [1, 3, 10])
    if name == "linear":
        return protocols.linear(found, [0.01, 1.0], 500)
    if name == "few_shot":
        return protocols.few_shot(found, [1, 5], 4, 500, seed)
    return protocols.retrieval(found, "train", [1, 5])


ALL = ("knn", "linear", "few_shot", "retrieval")


@pytest.mark.parametrize("name", ALL)
def test_classes_far_apart_are_found_by_all(name: str) -> None:
    found = measure(name, splits(spread=0.01))
    values = {key: value for key, value in found.metrics.items() if not key.endswith("_sd")}
    assert values == pytest.approx(dict.fromkeys(values, 1.0))
    assert found.monitor in found.metrics
    assert found.monitor.startswith("val/")


@pytest.mark.parametrize("name", ALL)
def test_features_that_say_nothing_reach_chance(name: str) -> None:
    rng = np.random.default_rng(3)
    parts = [
        Labelled(rng.standard_normal((900, 5)).astype(np.float32), rng.integers(0, 3, 900)) for _ in range(3)
    ]
    found = measure(name, Splits(*parts, NAMES))
    for key, value in found.metrics.items():
        if not key.endswith("_sd") and "recall_at_5" not in key:
            assert value == pytest.approx(1 / 3, abs=0.06), key


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), spread=st.floats(0.1, 3))
def test_knn_is_scikit_learns(seed: int, k: int, spread: float) -> None:
    one = splits(seed, spread)
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(one.train.x_ND, one.train.y)
    ours = protocols.knn(one, [k])
    for split, part in (("val", one.val), ("test", one.test)):
        assert ours.metrics[f"{split}/knn_acc"] == pytest.approx(theirs.score(part.x_ND, part.y))


def test_k_is_chosen_by_validation_and_the_smallest_of_several() -> None:
    one = splits(5, spread=1.5)
    found = protocols.knn(one, [20, 1, 5, 999])
    over_k = found.details["val"]
    assert list(over_k) == ["1", "5", "20"], "there are not 999 training samples"
    assert found.metrics["val/knn_acc"] == max(over_k.values()) == over_k[str(found.details["k"])]
    alike = protocols.knn(splits(0, 0.01), [5, 1, 3])
    assert (alike.details["k"], set(alike.details["val"].values())) == (1, {1.0})


def test_a_known_neighbourhood() -> None:
    """Directions in the plane; lengths do not count."""

    def at(*degrees: float, length: float = 1.0) -> NDArray[np.float32]:
        angle = np.radians(degrees)
        return (length * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)

    train = Labelled(np.concatenate([at(0, 10, 20), at(90, 100, length=50.0)]), np.array([0, 0, 1, 1, 1]))
    asked = Labelled(at(2, 21, 60, length=9.0), np.array([0, 0, 1]))
    found = protocols.knn(Splits(train, asked, asked, NAMES), [1, 3])
    # 1: 0 right, 1 (at 20) wrong, 1 (90, not 20) right. 3: 0, 0 right (20, 10, 0), 1 (90, 100 and 20) right.
    assert found.details["val"] == {"1": pytest.approx(2 / 3), "3": 1.0}
    ranked = protocols.retrieval(Splits(train, asked, asked, NAMES), "train", [1, 2, 3])
    # Ranks of the right ones: (1, 2), (2, 3), (1, 2, 3): the query at 60 sees 90 (30), 20 and 100 (40 both).
    assert [ranked.metrics[f"test/recall_at_{r}"] for r in (1, 2, 3)] == pytest.approx([2 / 3, 1, 1])
    assert ranked.metrics["test/map_retrieval"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2 + 1) / 3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.2, 2))
def test_linear_is_scikit_learns_for_each_c(seed: int, spread: float) -> None:
    one = splits(seed, spread)
    cs = [0.01, 0.3, 5.0]
    found = protocols.linear(one, cs, 2000)
    scores = {}
    for c in cs:
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        theirs.fit(one.train.x_ND.astype(np.float64), one.train.y)
        scores[c] = theirs.score(one.val.x_ND, one.val.y)
        if c == found.details["c"]:
            # A sample on the border may fall to either side: the search begins elsewhere.
            near = 1.5 / len(one.test.y)
            assert found.metrics["test/linear_acc"] == pytest.approx(
                theirs.score(one.test.x_ND, one.test.y), abs=near
            )
    assert list(found.details["val"].values()) == pytest.approx(
        list(scores.values()), abs=1.5 / len(one.val.y)
    )


def test_linear_minds_no_scale_of_a_feature() -> None:
    one, scale = splits(2), np.array([1, 1000, 0.001, 1, 7], dtype=np.float32)
    other = Splits(*(Labelled(part.x_ND * scale, part.y) for part in (one.train, one.val, one.test)), NAMES)
    assert protocols.linear(one, [0.1], 500).metrics == protocols.linear(other, [0.1], 500).metrics


def test_a_search_that_does_not_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    found = protocols.linear(splits(), [10.0], 1)
    assert found.details["not_converged"] == [10.0]
    assert "not converged after 1 iterations for C = 10" in caplog.text


@pytest.mark.parametrize("name", ALL)
def test_the_test_split_decides_nothing(name: str) -> None:
    one = splits(4, spread=1.2)
    wild = Labelled(one.test.x_ND * 100 - 7, (one.test.y + 1) % 3)
    first, second = measure(name, one), measure(name, Splits(one.train, one.val, wild, NAMES))
    for key in first.metrics:
        if key.startswith("val/"):
            assert first.metrics[key] == second.metrics[key]
    for key in ("k", "c"):
        assert first.details.get(key) == second.details.get(key)
    assert first.metrics != second.metrics


def test_few_shots_repeat_under_a_seed() -> None:
    one = splits(1, spread=1.5)
    first, again, other = (measure("few_shot", one, seed) for seed in (0, 0, 1))
    assert first.metrics == again.metrics
    assert first.metrics != other.metrics
    draws = first.details["accuracies"]["5"]["test"]
    assert len(draws) == 4
    assert first.metrics["test/few_shot_5_acc"] == pytest.approx(np.mean(draws))
    assert first.metrics["test/few_shot_5_acc_sd"] == pytest.approx(np.std(draws, ddof=1))
    assert first.metrics["test/few_shot_5_acc"] > first.metrics["test/few_shot_1_acc"]
    assert first.monitor == "val/few_shot_5_acc"
    alone = protocols.few_shot(one, [5], 4, 500, 0)
    assert alone.metrics["test/few_shot_5_acc"] == first.metrics["test/few_shot_5_acc"], (
        "whatever else is asked"
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), own=st.booleans(), chunk=st.sampled_from([1, 100, 1 << 24]))
def test_retrieval_by_hand(seed: int, own: bool, chunk: int) -> None:
    one = splits(seed, spread=2.0, sizes=(40, 12, 15))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "CHUNK", chunk)
        found = protocols.retrieval(one, "queries" if own else "train", [1, 5])
    gallery = one.test if own else one.train
    precisions, hits = [], {1: [], 5: []}  # type: ignore[var-annotated]
    for place, (x_D, label) in enumerate(zip(one.test.x_ND, one.test.y, strict=True)):
        others = np.arange(len(gallery.y)) != place if own else np.ones(len(gallery.y), dtype=bool)
        g_GD, right = gallery.x_ND[others], gallery.y[others] == label
        cosine = g_GD @ x_D / np.linalg.norm(g_GD, axis=1)
        precisions.append(average_precision_score(right, cosine))
        for rank, values in hits.items():
            values.append(right[np.argsort(-cosine)[:rank]].any())
    assert found.metrics["test/map_retrieval"] == pytest.approx(np.mean(precisions), abs=1e-6)
    for rank, values in hits.items():
        assert found.metrics[f"test/recall_at_{rank}"] == pytest.approx(np.mean(values))


def test_queries_without_an_answer_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    one = splits(spread=0.01)
    train = Labelled(one.train.x_ND[one.train.y < 2], one.train.y[one.train.y < 2])
    found = protocols.retrieval(Splits(train, one.val, one.test, NAMES), "train", [1])
    assert found.details["left_out"] == {"val": 8, "test": 10}
    assert found.metrics["test/recall_at_1"] == 1.0
    assert "queries left out" in caplog.text
    # A classifier answers wrongly there: nobody leaves those samples out.
    for name in ("knn", "linear"):
        lacking = measure(name, Splits(train, one.val, one.test, NAMES))
        assert lacking.metrics[f"test/{name}_acc"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_several_labels_are_scored_by_average_precision(name: str) -> None:
    one = several()
    found = measure(name, one)
    assert set(found.metrics) == {f"val/{name}_map", f"test/{name}_map"}
    assert 0.75 < found.metrics[f"test/{name}_map"] <= 1.0
    rng = np.random.default_rng(0)
    mixed = Labelled(one.test.x_ND, one.test.y[rng.permutation(len(one.test.y))])
    worse = measure(name, Splits(one.train, one.val, mixed, NAMES)).metrics[f"test/{name}_map"]
    assert worse < 0.7


def with_one_class() -> Splits:
    one = splits()
    return Splits(Labelled(one.train.x_ND, np.zeros_like(one.train.y)), one.val, one.test, NAMES)


def without(split: str) -> Splits:
    parts: dict[str, Any] = {key: getattr(splits(), key) for key in ("train", "val", "test")}
    parts[split] = Labelled(parts[split].x_ND[:0], parts[split].y[:0])
    return Splits(**parts, class_names=NAMES)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: protocols.knn(splits(), [0, 1000]), "none lies between 1 and the 60 training samples"),
        (lambda: protocols.linear(splits(), [], 10), "action.c="),
        (lambda: protocols.linear(splits(), [0.0], 10), "numbers above 0"),
        (lambda: protocols.few_shot(splits(), [30], 2, 10, 0), "ant has only 20 training samples"),
        (lambda: protocols.few_shot(splits(), [1], 0, 10, 0), "must be at least 1"),
        (lambda: protocols.few_shot(several(), [1], 2, 10, 0), "several labels: take knn or linear"),
        (lambda: protocols.retrieval(several(), "train", [1]), "several labels: take knn or linear"),
        (lambda: protocols.retrieval(splits(), "all", [1]), "action.gallery=all is none of train, queries"),
        (lambda: protocols.retrieval(splits(), "train", [0]), "ranks are at least 1"),
        (lambda: protocols.check(with_one_class()), "one class only"),
        (lambda: protocols.check(without("val")), "no sample of the validation split has features"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_chance_names_the_most_frequent_class() -> None:
    one = splits()
    train = Labelled(one.train.x_ND, np.full_like(one.train.y, 2))
    assert protocols.chance(Splits(train, one.val, one.test, NAMES)) == pytest.approx(1 / 3)
    assert protocols.chance(several()) is None
