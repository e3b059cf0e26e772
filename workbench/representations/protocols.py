"""Evaluation protocols of frozen features: k-NN, logistic regression (linear probe), few-shot, retrieval.

Shapes: N samples, D features, K classes, Q queries, G gallery. Targets are class indices (N,), or multi-hot (N, K)
for multi-label data. Statistics and classifiers are fitted on the training split, hyperparameters are
chosen on the validation split, and the test split is evaluated once.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

log = logging.getLogger("widefield")

Floats = NDArray[np.float32]
CHUNK = 1 << 24  # maximum number of similarities in memory
GALLERIES = ("train", "queries")


class ProtocolError(ValueError):
    """A protocol that is not applicable to these data or settings; the message is one sentence."""


@dataclass(frozen=True)
class Labelled:
    """Features of a split and their targets."""

    x_ND: Floats
    y: NDArray[np.int64]

    @property
    def multilabel(self) -> bool:
        return self.y.ndim == 2


@dataclass(frozen=True)
class Splits:
    """The features of all splits, and the names of the classes."""

    train: Labelled
    val: Labelled
    test: Labelled
    class_names: Sequence[str]


@dataclass
class Found:
    """Result of a protocol.

    Args:
        metrics: full name (`test/knn_acc`) -> value.
        monitor: the protocol's main validation metric.
        details: the chosen hyperparameters and validation scores, as plain values.
    """

    metrics: dict[str, float]
    monitor: str
    details: dict[str, Any] = field(default_factory=dict)


# -- k nearest neighbours ----------------------------------------------------------------------------------------------


def knn(splits: Splits, ks: Sequence[int]) -> Found:
    """k-NN classification by cosine similarity, with majority vote.

    k is chosen by validation accuracy, ties by the smallest k; ties between classes go to the lowest
    index. For multi-label data each class is scored by its number of neighbours (mean average precision).

    Args:
        splits: the features.
        ks: candidate numbers of neighbours; those above the number of training samples are ignored.
    """
    usable = sorted({k for k in ks if 1 <= k <= len(splits.train.x_ND)})
    if not usable:
        raise ProtocolError(
            f"action.k={list(ks)}: none lies between 1 and the {len(splits.train.x_ND)} training samples"
        )
    index = NearestNeighbors(algorithm="brute", metric="euclidean").fit(normalize(splits.train.x_ND))
    name = "knn_map" if splits.train.multilabel else "knn_acc"
    over_k = _scores_over_k(index, splits.train, splits.val, usable, len(splits.class_names))
    chosen = max(usable, key=lambda k: (over_k[k], -k))
    if len(usable) > 1 and chosen == usable[-1]:
        log.info("k = %d, the choice of validation, is the largest of action.k: more may do better", chosen)
    tested = _scores_over_k(index, splits.train, splits.test, [chosen], len(splits.class_names))
    return Found(
        {f"val/{name}": over_k[chosen], f"test/{name}": tested[chosen]},
        f"val/{name}",
        {"k": chosen, "over": "k", "val": {str(k): value for k, value in over_k.items()}},
    )


def _scores_over_k(
    index: NearestNeighbors, train: Labelled, asked: Labelled, ks: Sequence[int], classes: int
) -> dict[int, float]:
    several, count = train.multilabel, len(asked.x_ND)
    # For single-label data only the predicted class is kept: scores of all classes for every k could exhaust memory.
    answers = {
        k: np.zeros((count, classes) if several else count, dtype=np.int32 if several else np.int64)
        for k in ks
    }
    for part in _parts(count, max(1, CHUNK // max([*ks, classes]))):
        near_Qk = index.kneighbors(normalize(asked.x_ND[part]), n_neighbors=max(ks), return_distance=False)
        votes_QK = np.zeros((len(near_Qk), classes), dtype=np.int32)
        for place in range(max(ks)):
            if several:
                votes_QK += train.y[near_Qk[:, place]].astype(np.int32)
            else:
                votes_QK[np.arange(len(near_Qk)), train.y[near_Qk[:, place]]] += 1
            if place + 1 in answers:
                answers[place + 1][part] = votes_QK if several else votes_QK.argmax(axis=1)
    if several:
        return {k: _score(votes_NK, asked) for k, votes_NK in answers.items()}
    return {k: float((answer_N == asked.y).mean()) for k, answer_N in answers.items()}


# -- logistic regression -----------------------------------------------------------------------------------------------


def linear(splits: Splits, cs: Sequence[float], max_iter: int) -> Found:
    """Logistic regression on features standardised by the training split; one-vs-rest for multi-label data.

    C, the inverse strength of the L2 penalty, is chosen by validation accuracy (mean average precision), ties by the
    smallest C.
    """
    if not cs or min(cs) <= 0:
        raise ProtocolError(f"action.c={list(cs)}: it must list numbers above 0")
    scaler = StandardScaler().fit(splits.train.x_ND.astype(np.float64))
    train, val, test = (
        Labelled(scaler.transform(part.x_ND.astype(np.float64)), part.y)
        for part in (splits.train, splits.val, splits.test)
    )
    classes = len(splits.class_names)
    name = "linear_map" if train.multilabel else "linear_acc"
    over_c: dict[float, float] = {}
    best: tuple[float, float, Any] | None = None
    model: Any = None
    unfinished: list[float] = []
    for c in sorted(set(cs)):
        model = _fitted(model, train, c, max_iter, unfinished)
        over_c[c] = _score(_decisions(model, val.x_ND, train, classes), val)
        if best is None or over_c[c] > best[0]:
            best = over_c[c], c, _decisions(model, test.x_ND, train, classes)
    assert best is not None
    if unfinished:
        log.warning(
            "logistic regression: not converged after %d iterations for C = %s (action.max_iter)",
            max_iter,
            ", ".join(f"{c:g}" for c in unfinished),
        )
    score, chosen, decisions_NK = best
    if len(over_c) > 1 and chosen in (min(over_c), max(over_c)):
        log.info(
            "C = %g, the choice of validation, lies at the end of action.c: others may do better", chosen
        )
    details = {"c": chosen, "over": "C", "val": {f"{c:g}": value for c, value in over_c.items()}}
    details |= {"not_converged": unfinished}
    return Found({f"val/{name}": score, f"test/{name}": _score(decisions_NK, test)}, f"val/{name}", details)


def _fitted(before: Any, train: Labelled, c: float, max_iter: int, unfinished: list[float]) -> Any:
    """A classifier fitted with this C, warm-started from that of the previous C if given."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        if train.multilabel:
            there = train.y.any(axis=0) & ~train.y.all(axis=0)
            if not there.any():
                raise ProtocolError("no class has training samples with and without it")
            model = OneVsRestClassifier(LogisticRegression(C=c, max_iter=max_iter)).fit(
                train.x_ND, train.y[:, there]
            )
        else:
            model = LogisticRegression(max_iter=max_iter, warm_start=True) if before is None else before
            model.set_params(C=c).fit(train.x_ND, train.y)
    for one in caught:
        if not issubclass(one.category, ConvergenceWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        elif c not in unfinished:
            unfinished.append(c)
    return model


def _decisions(model: Any, x_ND: NDArray[Any], train: Labelled, classes: int) -> NDArray[np.float64]:
    """Scores of all classes, (N, K); minimal for classes without training samples."""
    scores = np.asarray(model.decision_function(x_ND), dtype=np.float64)
    if train.multilabel:
        places = np.flatnonzero(train.y.any(axis=0) & ~train.y.all(axis=0))
        scores = scores.reshape(len(x_ND), len(places))
    else:
        places = model.classes_
        if scores.ndim == 1:  # binary case: the score of the second class
            scores = np.stack([-scores, scores], axis=1)
    found_NK = np.full((len(x_ND), classes), -np.inf)
    found_NK[:, places] = scores
    return np.nan_to_num(found_NK, neginf=np.finfo(np.float64).min)


# -- few shots ---------------------------------------------------------------------------------------------------------


def few_shot(splits: Splits, shots: Sequence[int], draws: int, max_iter: int, seed: int) -> Found:
    """Few-shot accuracy with k training samples per class, for each k: mean and standard deviation over draws.

    The classifier is a logistic regression (C = 1) on features that are centred with the mean of the whole training
    split (which needs no labels) and L2-normalised, as in arXiv 1911.04623. It distinguishes all classes. The same
    draws are evaluated on validation and test; no hyperparameter is chosen.

    Args:
        splits: the features.
        shots: values of k.
        draws: number of random draws per k.
        max_iter: maximum number of iterations of the logistic regression.
        seed: seed of the draws.
    """
    train = splits.train
    if train.multilabel:
        raise ProtocolError(
            "action.protocol=few_shot counts samples of each class, which has no meaning where a sample has several "
            "labels: take knn or linear"
        )
    if draws < 1 or not shots or min(shots) < 1:
        raise ProtocolError(f"action.shots={list(shots)} and action.draws={draws}: both must be at least 1")
    of_class = {int(k): np.flatnonzero(train.y == k) for k in np.unique(train.y)}
    rarest = min(of_class, key=lambda k: len(of_class[k]))
    if len(of_class[rarest]) < max(shots):
        raise ProtocolError(
            f"action.shots={list(shots)}: {splits.class_names[rarest]} has only {len(of_class[rarest])} training "
            "samples"
        )
    mean_D = train.x_ND.mean(axis=0, dtype=np.float64)

    def scaled(part: Labelled) -> NDArray[np.float64]:
        found: NDArray[np.float64] = normalize(part.x_ND - mean_D)
        return found

    train_ND, asked = scaled(train), {"val": splits.val, "test": splits.test}
    features = {split: scaled(part) for split, part in asked.items()}
    metrics: dict[str, float] = {}
    over_shots: dict[str, Any] = {}
    unfinished: list[float] = []
    for k in sorted(set(shots)):
        rng = np.random.default_rng((seed, k))
        found: dict[str, list[float]] = {split: [] for split in asked}
        for _ in range(draws):
            chosen = np.concatenate([rng.choice(own, k, replace=False) for own in of_class.values()])
            model = _fitted(None, Labelled(train_ND[chosen], train.y[chosen]), 1.0, max_iter, unfinished)
            for split, part in asked.items():
                scores_NK = _decisions(model, features[split], train, len(splits.class_names))
                found[split].append(_score(scores_NK, part))
        for split, values in found.items():
            metrics[f"{split}/few_shot_{k}_acc"] = float(np.mean(values))
            if draws > 1:
                metrics[f"{split}/few_shot_{k}_acc_sd"] = float(np.std(values, ddof=1))
        over_shots[str(k)] = {split: values for split, values in found.items()}
    if unfinished:
        log.warning("few shots: some logistic regressions have not converged after %d iterations", max_iter)
    details = {"draws": draws, "over": "shots", "accuracies": over_shots}
    return Found(metrics, f"val/few_shot_{max(shots)}_acc", details)


# -- retrieval ---------------------------------------------------------------------------------------------------------


def retrieval(splits: Splits, gallery: str, at: Sequence[int]) -> Found:
    """Retrieval: rank the gallery by cosine similarity to each query; recall at r and mAP.

    Recall at r: fraction of queries with a sample of their class among the first r. mAP: average precision
    of the ranking, averaged over queries. Queries whose class is absent from the gallery are excluded and counted.

    Args:
        splits: the features; validation and test samples are the queries.
        gallery: `train`, or `queries` for the other queries of the split.
        at: values of r.
    """
    if splits.train.multilabel:
        raise ProtocolError(
            "action.protocol=retrieval asks for samples of a query's class, which has no meaning where a sample has "
            "several labels: take knn or linear"
        )
    if gallery not in GALLERIES:
        raise ProtocolError(f"action.gallery={gallery} is none of {', '.join(GALLERIES)}")
    if not at or min(at) < 1:
        raise ProtocolError(f"action.at={list(at)}: ranks are at least 1")
    metrics: dict[str, float] = {}
    left_out: dict[str, int] = {}
    for split, queries in (("val", splits.val), ("test", splits.test)):
        searched = splits.train if gallery == "train" else queries
        recalls, precisions = _ranked(queries, searched, at, own=gallery == "queries")
        left_out[split] = len(queries.y) - len(precisions)
        if not len(precisions):
            raise ProtocolError(f"no sample of the {split} split has another of its class in the gallery")
        metrics |= {f"{split}/recall_at_{rank}": float(recalls[rank].mean()) for rank in recalls}
        metrics[f"{split}/map_retrieval"] = float(precisions.mean())
    if any(left_out.values()):
        log.warning("retrieval: queries left out, whose class the gallery lacks: %s", left_out)
    return Found(metrics, "val/map_retrieval", {"gallery": gallery, "left_out": left_out})


def _ranked(
    queries: Labelled, gallery: Labelled, at: Sequence[int], own: bool
) -> tuple[dict[int, NDArray[np.bool_]], NDArray[np.float64]]:
    """For every query, whether there is a hit within each rank, and its average precision.

    Args:
        own: whether the queries are the gallery, in which case each query itself is excluded.
    """
    gallery_GD = normalize(gallery.x_ND)
    hits: dict[int, list[NDArray[np.bool_]]] = {rank: [] for rank in sorted(set(at))}
    precisions: list[NDArray[np.float64]] = []
    for part in _parts(len(queries.x_ND), max(1, CHUNK // max(1, len(gallery.y)))):
        cosine_QG = normalize(queries.x_ND[part]) @ gallery_GD.T
        if own:
            cosine_QG[np.arange(len(cosine_QG)), np.arange(part.start, part.start + len(cosine_QG))] = -np.inf
        order_QG = np.argsort(-cosine_QG, axis=1, kind="stable")
        right_QG = gallery.y[order_QG] == queries.y[part][:, None]
        if own:
            right_QG = right_QG[:, :-1]  # the query itself is the last
        right_QG = right_QG[right_QG.any(axis=1)]
        for rank, found in hits.items():
            found.append(right_QG[:, :rank].any(axis=1))
        rank_G = np.arange(1, right_QG.shape[1] + 1)
        precision_QG = np.cumsum(right_QG, axis=1) / rank_G
        precisions.append((precision_QG * right_QG).sum(axis=1) / right_QG.sum(axis=1))
    return {rank: np.concatenate(found) for rank, found in hits.items()}, np.concatenate(precisions)


# -- helpers -----------------------------------------------------------------------------------------------------------


def check(splits: Splits) -> None:
    """Raise a `ProtocolError` for features that no protocol can evaluate."""
    for split, part in (("training", splits.train), ("validation", splits.val), ("test", splits.test)):
        if not len(part.x_ND):
            raise ProtocolError(f"no sample of the {split} split has features")
    if not splits.train.multilabel and len(np.unique(splits.train.y)) < 2:
        raise ProtocolError(
            "the training split has samples of one class only: there is nothing to tell apart"
        )


def chance(splits: Splits) -> float | None:
    """Test accuracy of always predicting the most frequent training class; None for multi-label data."""
    if splits.train.multilabel:
        return None
    most = np.bincount(splits.train.y).argmax()
    return float((splits.test.y == most).mean())


def _score(scores_NK: NDArray[Any], truth: Labelled) -> float:
    """Top-1 accuracy, or for multi-label data the mean average precision over the classes that occur."""
    if not truth.multilabel:
        return float((scores_NK.argmax(axis=1) == truth.y).mean())
    there = truth.y.any(axis=0)
    if not there.any():
        raise ProtocolError("no sample to be tested has a label")
    return float(average_precision_score(truth.y[:, there], scores_NK[:, there], average="macro"))


def _parts(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
