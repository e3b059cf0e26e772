"""Sound event detection: classes of sounds in a recording, with onset and offset.

Shapes: B batch, T samples, N frames, K classes, E events, P frames of all recordings of a batch.
"""

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backbone.protocol import Backbone, strides_of, widths_of
from modalities.embedder import Embedder
from modalities.tensor_info import TensorInfo
from tasks.datasets.batch import Batch
from tasks.dense_inference import starts
from tasks.event_decoding import NOTHING, Decoding, FrameGrid, frame_targets, scores_of
from tasks.event_drawing import Heard, draw_f1, draw_heard, draw_psd_curve
from tasks.event_metrics import (
    Collars,
    Events,
    PSDSettings,
    event_counts,
    f1_of,
    micro_f1_of,
    psd_counts,
    psd_curve,
    segment_counts,
)
from tasks.event_totals import EventTotals, FrameTotals
from tasks.losses import BALANCED, BinaryCrossEntropy
from tasks.task import Prediction, Shared, Task, below_each_other

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("widefield")

PICTURES = 4  # number of test recordings shown in the report
AT_ONCE = 16  # batch size of windows in evaluation


class SoundEventTask(Task):
    """Polyphonic sound event detection: multi-label classification of each frame of a log-mel map.

    Raw batches are `{"waveform": (B, T), "length": (B,)}`, targets `(B, E, 3)`: onset and offset in seconds, class
    index, padded with class index -1. Training uses windows of fixed length. In evaluation, recordings of any length
    are split into overlapping windows of that length, and the probabilities of a frame are averaged; shorter recordings
    are padded with silence at the end.

    Data info: `class_names` (list of K names), `seconds` of a window.

    Args:
        loss: `tasks.losses.BinaryCrossEntropy`, over all frames and classes.
        decoding: settings of `tasks.event_decoding.Decoding`, from scores to events.
        collars: settings of `tasks.event_metrics.Collars`, the tolerances of event F1.
        segment: length of the segments of segment F1 in seconds.
        psds: settings of `tasks.event_metrics.PSDSettings`.
        overlap: overlap of consecutive windows as a fraction of a window, in [0, 1).
        **settings: see `Task`.

    Raises:
        ValueError: invalid settings, or augmentations that cannot be applied to events.
    """

    shown_metric = "event_f1"
    located = True

    def __init__(
        self,
        loss: nn.Module,
        decoding: Annotated[Mapping[str, Any], Decoding] | None = None,
        collars: Annotated[Mapping[str, Any], Collars] | None = None,
        segment: float = 1.0,
        psds: Annotated[Mapping[str, Any], PSDSettings] | None = None,
        overlap: float = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._refuse_shifts()
        if not isinstance(loss, BinaryCrossEntropy):
            raise ValueError("several sounds at once need a binary loss: task/loss=bce")
        if loss.weight == BALANCED:
            raise ValueError("class weights of sound events are a list of numbers or class name: number")
        if segment <= 0 or not 0 <= overlap < 1:
            raise ValueError(
                f"task.model.segment must be above 0 and overlap in [0, 1), not {segment} and {overlap}"
            )
        self.loss = loss
        self.decoding = Decoding(**dict(decoding or {}))
        self.collars = Collars(**dict(collars or {}))
        self.psds = PSDSettings(**dict(psds or {}))
        self.segment = segment
        self.overlap = overlap
        self.class_names: list[str] = list(self.data_info["class_names"])
        loss.set_classes(self.class_names)
        self.thresholds = self.decoding.thresholds(self.class_names)
        self.grid = grid_of(self.network.embedder)
        classes = len(self.class_names)
        self.frames = nn.ModuleDict(
            {f"{split}_frames": FrameTotals(classes) for split in ("train", "val", "test")}
        )
        self.totals = nn.ModuleDict(
            {f"{split}_totals": EventTotals(classes, self.psds) for split in ("val", "test")}
        )
        self.told: set[str] = set()  # splits whose classes without events have been reported
        self.pictured: set[int] = set()  # indices of the test recordings to show
        self.heard: list[Heard] = []

    def _refuse_shifts(self) -> None:
        """Raises a `ValueError` for augmentations that shift or mix waveforms without their events."""
        shifts = [
            getattr(part, name, 0)
            for part in (self.augment.raw, self.augment.maps)
            for name in ("roll", "speed")
        ]
        if self.augment.mixup is not None or any(shift not in (0, (0, 0)) for shift in shifts):
            raise ValueError(
                "events would not follow modality.augment.mixup, speed and roll: say modality.augment.mixup=null "
                "modality.augment.raw.speed=0 modality.augment.raw.roll=0 modality.augment.maps.roll=0; "
                "task.data.move moves events, too"
            )

    @classmethod
    def metric_names(cls, data_info: dict[str, Any]) -> tuple[str, ...]:
        return ("event_f1", "psds", "segment_f1", "frame_f1", "event_f1_micro", "segment_f1_micro", "loss")

    @classmethod
    def head_sizes(cls, data_info: dict[str, Any], embedder: nn.Module, backbone: Backbone) -> dict[str, Any]:
        grid_of(embedder)
        backbone.make_pyramid()
        return {
            "in_channels": list(widths_of(backbone)),
            "strides": strides_of(backbone),
            "num_classes": len(data_info["class_names"]),
        }

    def output_info(self) -> dict[str, TensorInfo]:
        samples = round(self.data_info["seconds"] * self.grid.sample_rate)
        return {
            "logits": TensorInfo(
                "logits of every frame, in the order of facts.class_names; their sigmoid is the probability of each "
                "class by itself; what follows the first `frames` frames lies after the end of the sound",
                ("batch", "frame", "class"),
                {
                    "activation": "sigmoid",
                    "frames": self.grid.count(samples),
                    "frame_length_s": self.grid.length / self.grid.sample_rate,
                    "frame_shift_s": self.grid.step,
                },
            )
        }

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        """One batch -> `loss` and `output`, the probability of each class in each frame, (B, N, K), NaN after the end
        of a recording."""
        return self._train_step(batch) if split == "train" else self._whole_step(batch, split)

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        raw = self._augmented(batch.raw)
        frames = self.grid.count(raw["waveform"].shape[1])
        logits_BNK = self.network(raw, self.augment.maps)[:, :frames].float()
        target_BNK = frame_targets(batch.target, self.grid, frames, len(self.class_names))
        counts_B = ((raw["length"] - self.grid.length).div(self.grid.shift, rounding_mode="floor") + 1).clamp(
            min=1
        )
        there_BN = torch.arange(frames, device=counts_B.device) < counts_B[:, None]
        logits_PK, target_PK = logits_BNK[there_BN], target_BNK[there_BN]
        self._frames("train").update(logits_PK.detach() >= 0, target_PK)
        probs_BNK = logits_BNK.detach().sigmoid().masked_fill(~there_BN[..., None], math.nan)
        return {"loss": self.loss(logits_PK, target_PK), "output": probs_BNK}

    def _augmented(self, raw: Any) -> Any:
        return raw if self.augment.raw is None else {**raw, "waveform": self.augment.raw(raw["waveform"])}

    def _whole_step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        each = self.frame_scores(batch.raw)
        seconds = (batch.raw["length"] / self.grid.sample_rate).tolist()
        targets = [
            frame_targets(target_E3[None], self.grid, len(probs_NK), len(self.class_names))[0]
            for target_E3, probs_NK in zip(batch.target, each, strict=True)
        ]
        probs_PK, target_PK = torch.cat(each), torch.cat(targets)
        self._frames(split).update(probs_PK >= 0.5, target_PK)
        for position, probs_NK in enumerate(each):
            truth = events_of(batch.target[position])
            found = self._measure(probs_NK, truth, seconds[position], split)
            if split == "test" and int(batch.index[position]) in self.pictured:
                self.heard.append(
                    self._heard(batch.raw, position, found, truth, f"recording {int(batch.index[position])}")
                )
        loss = self.loss(torch.logit(probs_PK, eps=1e-6), target_PK)
        return {
            "loss": loss,
            "output": nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=math.nan),
            "weight": torch.tensor(len(probs_PK)),  # frames of the recordings
        }

    def frame_scores(self, raw: Any) -> list[Tensor]:
        """The probability of each class in each frame of recordings of any length, (N, K) each."""
        wide = self.grid.count(round(self.data_info["seconds"] * self.grid.sample_rate))
        hop = max(round(wide * (1 - self.overlap)), 1)
        totals = [self.grid.count(length) for length in raw["length"].tolist()]
        places = [
            (number, first) for number, total in enumerate(totals) for first in starts(total, wide, hop)
        ]
        like = raw["waveform"]
        sums = [like.new_zeros(total, len(self.class_names)) for total in totals]
        counts = [like.new_zeros(total, 1) for total in totals]
        for begin in range(0, len(places), AT_ONCE):
            part = places[begin : begin + AT_ONCE]
            windows_BT = torch.stack([self._window(raw, number, first, wide) for number, first in part])
            probs_BNK = self.network(windows_BT)[:, :wide].float().sigmoid()
            for (number, first), probs_NK in zip(part, probs_BNK, strict=True):
                there = slice(first, min(first + wide, totals[number]))
                sums[number][there] += probs_NK[: there.stop - first]
                counts[number][there] += 1
        return [total / count for total, count in zip(sums, counts, strict=True)]

    def _window(self, raw: Any, number: int, first: int, wide: int) -> Tensor:
        """The samples of `wide` frames of a recording from frame `first` on, zero-padded at its end."""
        begin, length = first * self.grid.shift, self.grid.samples(wide)
        wave = raw["waveform"][number, begin : min(begin + length, int(raw["length"][number]))]
        return nn.functional.pad(wave, (0, length - len(wave)))

    def decoded(self, probs_NK: Tensor, seconds: float) -> Events:
        """Decodes the events of a recording of the given length."""
        smoothed = self.decoding.smoothed(as_array(probs_NK), self.grid)
        return self.decoding.events(smoothed, self.thresholds, self.grid, seconds)

    # -- metrics ---------------------------------------------------------------------------------------------------

    def _measure(self, probs_NK: Tensor, truth: Events, seconds: float, split: str) -> Events:
        """Decodes the events of a recording, updates the metrics, and returns the events."""
        classes = len(self.class_names)
        smoothed = self.decoding.smoothed(as_array(probs_NK), self.grid)
        found = self.decoding.events(smoothed, self.thresholds, self.grid, seconds)
        at_each = [
            self.decoding.events(smoothed, np.full(classes, threshold), self.grid, seconds)
            for threshold in self.psds.thresholds
        ]
        self._totals(split).update(
            event_counts(truth, found, classes, self.collars)[0],
            segment_counts(truth, found, classes, self.segment),
            psd_counts(truth, at_each, seconds, classes, self.psds),
        )
        return found

    def _frames(self, split: str) -> FrameTotals:
        metric = self.frames[f"{split}_frames"]
        assert isinstance(metric, FrameTotals)
        return metric

    def _totals(self, split: str) -> EventTotals:
        metric = self.totals[f"{split}_totals"]
        assert isinstance(metric, EventTotals)
        return metric

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        frames = self._frames(split)
        values: dict[str, Tensor] = {}
        if frames.update_called:
            values[f"{split}/frame_f1"] = frames.compute()
            frames.reset()
        if split != "train" and (totals := self._totals(split)).update_called:
            values |= {f"{split}/{name}": value for name, value in totals.compute().items()}
            totals.reset()
            self._tell_missing(split, totals)
        return values

    def _tell_missing(self, split: str, totals: EventTotals) -> None:
        assert totals.of_split is not None
        true_K = totals.of_split[0][1]
        missing = [name for name, count in zip(self.class_names, true_K.tolist(), strict=True) if not count]
        if missing and split not in self.told:
            self.told.add(split)
            log.warning(
                "%s: no event of %s: PSDS leaves them out, and the means of F1 unless they are found",
                split,
                ", ".join(missing[:5])
                + (f" and {len(missing) - 5} more classes" if len(missing) > 5 else ""),
            )

    # -- tests -----------------------------------------------------------------------------------------------------

    def begin_test(self, samples: int) -> None:
        self._totals("test").of_split = None
        self.heard = []
        most = min(PICTURES, samples)
        self.pictured = {position * samples // most for position in range(most)} if most else set()

    def _heard(self, raw: Any, position: int, found: Events, truth: Events | None, title: str) -> Heard:
        """The data for the figure of a recording."""
        wave = raw["waveform"][position, : int(raw["length"][position])]
        with torch.no_grad():
            map_FN = self.network.embedder(wave[None])[0, 0].mean(dim=0)
        return Heard(title, as_array(map_FN), len(wave) / self.grid.sample_rate, found, truth)

    def test_rows(self, batch: Batch, output: Tensor) -> list[list[dict[str, Any]]]:
        """One row per predicted event, right or wrong, and one per missed event."""
        rows = []
        for position, length in enumerate(batch.raw["length"].tolist()):
            probs_NK = output[position, : self.grid.count(length)]
            truth, found = (
                events_of(batch.target[position]),
                self.decoded(probs_NK, length / self.grid.sample_rate),
            )
            _, pairs = event_counts(truth, found, len(self.class_names), self.collars)
            hits, right = {row for row, _ in pairs}, {column for _, column in pairs}
            own = [
                self._row(event, "right" if number in right else "wrong") | {"score": round(score, 6)}
                for number, (event, score) in enumerate(
                    zip(found.tolist(), scores_of(found, as_array(probs_NK), self.grid), strict=True)
                )
            ]
            own += [
                self._row(event, "missed")
                for number, event in enumerate(truth.tolist())
                if number not in hits
            ]
            rows.append(sorted(own, key=lambda row: (row["onset"], row["label"])))
        return rows

    def _row(self, event: list[float], kind: str) -> dict[str, Any]:
        onset, offset, label = event
        return {
            "onset": round(onset, 4),
            "offset": round(offset, 4),
            "label": self.class_names[int(label)],
            "is": kind,
        }

    def test_report(self) -> dict[str, Any]:
        """After a test: event F1, segment F1 and the number of true, predicted and correct events per class, and the
        PSD-ROC curve (true positive rates over effective false positives per hour)."""
        of_split = self._totals("test").of_split
        if of_split is None:
            return {}
        events, segments, psd = of_split
        points, rates, effective = psd_curve(psd, self.psds)
        return {
            "per_class": self._by_name(f1_of(events)),
            "segment_f1": self._by_name(f1_of(segments)),
            "counts": {
                name: {"right": int(hits), "there": int(true), "found": int(said)}
                for name, (hits, true, said) in zip(self.class_names, events.T.tolist(), strict=True)
            },
            "micro": {"event_f1": _plain(micro_f1_of(events)), "segment_f1": _plain(micro_f1_of(segments))},
            "psd_curve": {
                "false_positives_an_hour": points.tolist(),
                "effective": [_plain(value) for value in effective.tolist()],
                "by_class": {
                    name: [_plain(value) for value in column]
                    for name, column in zip(self.class_names, rates.T.tolist(), strict=True)
                },
            },
        }

    def _by_name(self, values_K: NDArray[np.float64]) -> dict[str, float | None]:
        return {name: _plain(value) for name, value in zip(self.class_names, values_K.tolist(), strict=True)}

    def draw_report(self, report: dict[str, Any]) -> "dict[str, Figure]":
        if not report:
            return {}
        figures = {
            "f1": draw_f1(report["per_class"], report["segment_f1"]),
            "psd_curve": draw_psd_curve(report["psd_curve"]),
        }
        if self.heard:
            figures["events"] = draw_heard(self.heard, self.class_names, self.network.embedder.map_axes())
        return figures

    # -- predictions -----------------------------------------------------------------------------------------------

    def predict(self, raw: Any, top_k: int = 5) -> list[Prediction]:
        return [
            self._prediction(raw, position, probs_NK, top_k)
            for position, probs_NK in enumerate(self.frame_scores(raw))
        ]

    def _prediction(self, raw: Any, position: int, probs_NK: Tensor, top_k: int) -> Prediction:
        found = self.decoded(probs_NK, int(raw["length"][position]) / self.grid.sample_rate)
        scores = scores_of(found, as_array(probs_NK), self.grid)
        labels = [self.class_names[int(label)] for label in found[:, 2]]
        times = found[:, :2].round(4).tolist()
        heard = self._heard(raw, position, found, None, "")
        axes = self.network.embedder.map_axes()
        first = [
            f"{label} {onset:.2f}–{offset:.2f} s"
            for label, (onset, offset) in zip(labels[:top_k], times[:top_k], strict=True)
        ]
        more = f" and {len(labels) - top_k} more" if len(labels) > top_k else ""
        return Prediction(
            {
                "events": len(found),
                "labels": ";".join(sorted(set(labels))),
                "highest_score": round(float(probs_NK.max()), 6),
            },
            f"{'  '.join(first)}{more}" or "no event",
            shared={
                "events.csv": Shared(
                    {
                        "onset": [onset for onset, _ in times],
                        "offset": [offset for _, offset in times],
                        "label": labels,
                        "score": [round(score, 6) for score in scores],
                    },
                    below_each_other,
                )
            },
            figures={"figures/{name}.png": lambda: draw_heard([heard], self.class_names, axes)},
        )

    # -- captions and previews -------------------------------------------------------------------------------------

    def caption(self, batch: Batch, position: int) -> str:
        """The classes present in a sample."""
        present = sorted({int(label) for label in batch.target[position, :, 2].tolist() if label != NOTHING})
        return ", ".join(self.class_names[label] for label in present[:3]) or "nothing"

    def preview(self, batch: Batch, most: int) -> tuple[Any, list[str]]:
        count = min(most, len(batch.index))
        raw = self._augmented({name: value[:count] for name, value in batch.raw.items()})
        return raw, [self.caption(batch, position) for position in range(count)]


def grid_of(embedder: nn.Module | Embedder) -> FrameGrid:
    """The frame grid of an embedder's maps.

    Raises:
        ValueError: the embedder's maps have no time frames, or a fixed number of them (`num_frames`).
    """
    sizes = [getattr(embedder, name, None) for name in ("sample_rate", "frame_length", "frame_shift")]
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"sound events need maps with frames in time, as modality=audio makes, not {type(embedder).__name__}'s"
        )
    if getattr(embedder, "num_frames", None) is not None:
        raise ValueError(
            "sound events need every frame of a recording: say modality.embedder.num_frames=null"
        )
    rate, length, shift = (int(size) for size in sizes if size is not None)
    return FrameGrid(rate, length, shift)


def events_of(target_E3: Tensor) -> Events:
    """The events of one sample of a batch, without padding."""
    events: Events = target_E3[target_E3[:, 2] != NOTHING].to("cpu", torch.float64).numpy()
    return events


def as_array(value: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = value.detach().to("cpu", torch.float32).numpy()
    return array


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
