"""Settings of a wrong type are refused in one sentence that names them; none is in what is shipped."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import DictConfig, OmegaConf

from workbench.errors import UsageError
from workbench.instantiation import arguments_of, check_settings, instantiate
from workbench.setting_types import converted, said, suits

Compose = Callable[..., DictConfig]

AUDIO, IMAGE, VIDEO = ("modality=audio",), ("modality=image",), ("modality=video",)
CLOUD, PROMPT = ("modality=point_cloud",), ("modality=point_cloud", "modality/embedder=point_prompt")
FOLD, TOKENS = ("modality=time_series",), ("modality=time_series", "modality/embedder=token_map")
BOXES, MASKS = (*IMAGE, "task=box_folder"), (*IMAGE, "task=mask_folder")
CASCADE, FCOS = (*BOXES, "task/head=cascade_mask_rcnn"), (*BOXES, "task/head=fcos")
EVENTS, CSV = (*AUDIO, "task=sound_events"), (*FOLD, "task=csv_forecast")
JOINT = ("experiment=joint/four_modalities",)
STOP, EMA = ("callbacks=[default,early_stopping]",), ("callbacks=[default,ema]",)


@pytest.mark.parametrize(
    ("words", "setting", "value", "wanted"),
    [
        (AUDIO, "modality.embedder.num_mel_bins", "[64]", "a whole number, not [64]"),
        (AUDIO, "modality.embedder.num_frames", "{a: 1}", "a whole number or null, not {a: 1}"),
        (AUDIO, "modality.embedder.low_freq", "null", "a number, not null"),
        (AUDIO, "modality.augment.raw.gain_db", "[1,2]", "a number, not [1, 2]"),
        (AUDIO, "modality.augment.maps.freq_mask", "1.5", "a whole number, not 1.5"),
        (
            AUDIO,
            "modality.augment.maps.roll",
            "[1.5,2]",
            "a whole number or a list of whole numbers, not [1.5, 2]",
        ),
        (AUDIO, "task.data.batch_size", "[4]", "a whole number, not [4]"),
        (AUDIO, "task.data.limit", "2.5", "a whole number or null, not 2.5"),
        (AUDIO, "task.data.train_fraction", "[0.5]", "a number, not [0.5]"),
        (AUDIO, "task.data.shards", "5", "a component with a _target_ or null, not 5"),
        (AUDIO, "task.data.mixup", "5", "a component with a _target_ or null, not 5"),
        (AUDIO, "task.data.shards.buffer", "[10]", "a whole number, not [10]"),
        (AUDIO, "task.loss.label_smoothing", "[0.1]", "a number, not [0.1]"),
        (AUDIO, "task.model.loss", "[1]", "a component with a _target_, not [1]"),
        (AUDIO, "task.head.dropout", "[0.1]", "a number, not [0.1]"),
        (EVENTS, "task.model.segment", "[1]", "a number, not [1]"),
        (EVENTS, "task.model.decoding.median", "[1]", "a number, not [1]"),
        (EVENTS, "task.model.psds.e_max", "[1]", "a number, not [1]"),
        (IMAGE, "task.data.transforms.size", "[96,160]", "a whole number, not [96, 160]"),
        (IMAGE, "task.data.transforms.scale", "0.5", "a list of numbers, not 0.5"),
        (IMAGE, "task.data.transforms.interpolation", "[bicubic]", "text, not [bicubic]"),
        (IMAGE, "modality.embedder.mean", "[a,b,c]", "a list of numbers, not [a, b, c]"),
        (BOXES, "task.data.transforms.size", "[96,160]", "a whole number, not [96, 160]"),
        (BOXES, "task.data.transforms.shorts", "96", "a list of whole numbers or null, not 96"),
        (BOXES, "task.data.classes", "cat", "a list of texts or null, not cat"),
        (BOXES, "task.head.rpn.samples", "[1]", "a whole number, not [1]"),
        (BOXES, "task.head.test.most", "1.5", "a whole number, not 1.5"),
        (BOXES, "task.model.inference.resize", "600", "a list of whole numbers or null, not 600"),
        (CASCADE, "task.head.stages", "[{iou: [0.5]}]", "a number, not [0.5]"),
        (CASCADE, "task.head.mask.convs", "[4]", "a whole number, not [4]"),
        (FCOS, "task.head.radius", "[1.5]", "a number, not [1.5]"),
        (MASKS, "task.data.transforms.resize", "512", "a list of whole numbers or null, not 512"),
        (MASKS, "task.data.transforms.cat_max_ratio", "[1]", "a number, not [1]"),
        (MASKS, "task.data.transforms.photometric", "[true]", "true or false, not [true]"),
        (MASKS, "task.model.inference.multiple", "[32]", "a whole number, not [32]"),
        (MASKS, "task.model.auxiliary_weight", "[0.4]", "a number, not [0.4]"),
        (MASKS, "task.head.channels", "[64]", "a whole number, not [64]"),
        (
            MASKS,
            "task.loss.weight",
            "true",
            "a list of numbers, a mapping of names to numbers, text or null, not true",
        ),
        (MASKS, "task.loss.factors", "[1,1]", "a mapping of names to numbers or null, not [1, 1]"),
        (CLOUD, "modality.embedder.footprint", "[2]", "a number, not [2]"),
        (CLOUD, "modality.embedder.perspective", "[1,2]", "a list of lists of numbers, not [1, 2]"),
        (CLOUD, "modality.augment.raw.mirror", "x", "a list of texts, not x"),
        (CLOUD, "task.data.num_points", "[64]", "a whole number, not [64]"),
        (PROMPT, "modality.embedder.views", "[4]", "a whole number, not [4]"),
        (FOLD, "modality.embedder.periods", "24", "a list of whole numbers or null, not 24"),
        (FOLD, "modality.embedder.calendar", "[hour]", "true or false, not [hour]"),
        (FOLD, "task.data.horizon", "[96,192]", "a whole number, not [96, 192]"),
        (TOKENS, "modality.embedder.width", "[768]", "a whole number, not [768]"),
        (CSV, "task.data.max_missing", "[0.1]", "a number, not [0.1]"),
        (VIDEO, "modality.embedder.frames", "[16]", "a whole number, not [16]"),
        (VIDEO, "modality.augment.raw.flip", "[0.5]", "a number, not [0.5]"),
        (
            (),
            "backbone.model.kernel_sizes",
            "13",
            "a list of whole numbers or lists of whole numbers or null, not 13",
        ),
        ((), "backbone.model.drop_path_rate", "[0,0.1]", "a number, not [0, 0.1]"),
        ((), "optimizer.lr", "[1e-3]", "a number, not [0.001]"),
        ((), "optimizer.decay_all", "[1]", "true or false, not [1]"),
        ((), "scheduler.warmup_epochs", "[1]", "a number, not [1]"),
        (("scheduler=milestones",), "scheduler.epochs", "27", "a list of whole numbers, not 27"),
        (("scheduler=exponential",), "scheduler.every", "1.5", "a whole number, not 1.5"),
        (STOP, "callbacks.early_stopping.patience", "[3]", "a whole number, not [3]"),
        (EMA, "callbacks.ema.decay", "[0.9]", "a number, not [0.9]"),
        ((), "callbacks.best.path", "[a]", "text, not [a]"),
        ((), "callbacks.pictures", "5", "a component with a _target_ or null, not 5"),
        ((), "modality.augment.raw", "[1]", "a component with a _target_ or null, not [1]"),
        ((), "callbacks.pictures", "{folder: a}", "a component with a _target_ or null, not {folder: a}"),
        ((), "modality.augment.maps", "rotate", "a component with a _target_ or null, not rotate"),
        ((), "logger.csv.path", "[a]", "text, not [a]"),
        ((), "trainer.log_every_n_steps", "[1]", "a whole number or null, not [1]"),
        ((), "trainer.precision", "[16]", "64, 32, 16, transformer-engine"),
        ((), "data_dir", "[a,b]", "text or null, not [a, b]"),
        (JOINT, "task.data.temperature", "[1]", "a number, not [1]"),
    ],
)
def test_a_wrong_type_is_refused(
    composed: Compose, words: tuple[str, ...], setting: str, value: str, wanted: str
) -> None:
    cfg = composed(*words)
    OmegaConf.update(cfg, setting, OmegaConf.create(f"v: {value}").v, merge=False)
    with pytest.raises(UsageError) as refused:
        check_settings(cfg)
    said = str(refused.value)
    assert said.startswith(f"{setting} must be {wanted}") or said == f"{setting}[0].iou must be {wanted}"
    assert "\n" not in said


@pytest.mark.parametrize(
    ("words", "setting", "value", "now"),
    [
        (IMAGE, "task.data.transforms.size", 96.0, 96),
        (IMAGE, "task.data.transforms.hflip", 1, 1),
        (IMAGE, "task.data.transforms.color_jitter", None, None),
        (IMAGE, "task.data.transforms.batched", None, False),
        (IMAGE, "task.data.transforms.batched", 1, 1),
        (IMAGE, "task.data.label_from", 7, "7"),
        (MASKS, "task.data.transforms.size", [96, 160], [96, 160]),
        (MASKS, "task.model.inference.crop", 64.0, 64),
        (MASKS, "task.data.val_part", None, None),
        (CSV, "task.data.target", [2024, "a"], ["2024", "a"]),
        (("scheduler=poly",), "scheduler.warmup_steps", 1e3, 1000),
        ((), "modality.augment.raw", None, None),
        ((), "trainer.precision", 16, 16),
        ((), "trainer.limit_val_batches", 2, 2),
        ((), "trainer.max_time", {"hours": 1}, {"hours": 1}),
        ((), "trainer.devices", [0, 1], [0, 1]),
        ((), "optimizer.betas", [0.9, 0.95], [0.9, 0.95]),
        ((), "task.data.shards.storage", {"anon": True}, {"anon": True}),
    ],
)
def test_what_worked_is_accepted(
    composed: Compose, words: tuple[str, ...], setting: str, value: Any, now: Any
) -> None:
    cfg = composed(*words)
    OmegaConf.update(cfg, setting, value, merge=False, force_add=True)
    check_settings(cfg)
    found = OmegaConf.select(cfg, setting)
    found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    assert found == now
    assert type(found) is type(now)


def test_a_members_setting_has_its_full_name(composed: Compose) -> None:
    cfg = composed(*JOINT, "task.members.video.task.data.batch_size=[4]")
    with pytest.raises(
        UsageError, match=r"^task\.members\.video\.task\.data\.batch_size must be a whole number"
    ):
        check_settings(cfg)


def test_the_setting_that_is_referred_to_is_named() -> None:
    cfg = OmegaConf.create(
        {"a": {"b": "x"}, "c": "${a.b}", "d": {"_target_": f"{__name__}.Given", "size": "${c}"}}
    )
    with pytest.raises(UsageError, match=r"^a\.b must be a whole number, not x$"):
        instantiate(cfg.d)


def test_secrets_are_not_shown() -> None:
    node = OmegaConf.create({"_target_": f"{__name__}.Given", "api_key": ["hunter2"], "size": 1})
    with pytest.raises(UsageError, match=r"^api_key must be text, not \S+$") as refused:
        instantiate(node)
    assert "hunter2" not in str(refused.value)


class Base:
    def __init__(self, width: int = 1) -> None:
        self.width = width


class Given(Base):
    def __init__(
        self,
        size: int,
        api_key: str = "",
        inner: "Given | None" = None,
        known: "Unknown" = None,  # type: ignore[name-defined]  # noqa: F821
        any_of: Any = None,
        make: Callable[..., Any] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.size, self.inner, self.known = size, inner, known


def test_only_annotations_that_are_understood_are_checked() -> None:
    name = f"{__name__}.Given"
    node = OmegaConf.create({"_target_": name, "size": 1, "known": [1], "any_of": "x"})
    assert instantiate(node).known == [1]
    assert "known" not in arguments_of(Given)


def test_nested_components_and_inherited_arguments_are_checked() -> None:
    name = f"{__name__}.Given"
    nested = {"_target_": name, "size": 1, "inner": {"_target_": name, "size": [2]}}
    with pytest.raises(UsageError, match=r"^inner\.size must be a whole number, not \[2\]$"):
        instantiate(OmegaConf.create(nested))
    with pytest.raises(UsageError, match=r"^width must be a whole number, not \[2\]$"):
        instantiate(OmegaConf.create({"_target_": name, "size": 1, "width": [2]}))
    partial = instantiate(OmegaConf.create({"_target_": name, "_partial_": True, "width": 2}))
    assert partial(size=3).width == 2


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (int, [1, 2.0, True], [1.5, "1", None, [1]], "a whole number"),
        (float | None, [1, 0.5, None], ["1", [1.0]], "a number or null"),
        (bool, [True, 0, None], ["yes", 2, [True]], "true or false"),
        (str | Path, ["a", 1], [True, None, ["a"]], "text or a path"),
        (Literal["a", "b"] | None, ["a", None], ["c", 1, ["a"]], "a, b or null"),
        (
            tuple[int, float],
            [[1, 0.5]],
            [[1], [1, 2, 3], [0.5, 1], 1],
            "a list of 2 whole numbers or numbers",
        ),
        (tuple[int, ...], [[], [1, 2, 3]], [["a"], 1], "a list of whole numbers"),
        (list, [[], ["a", 1]], ["a", 1, {}], "a list"),
        (int | Sequence[int], [1, [1, 2]], ["a", ["a"]], "a whole number or a list of whole numbers"),
        (Mapping[str, float], [{}, {"a": 1}], [{"a": "b"}, [1]], "a mapping of names to numbers"),
        (Base, [1, "a", [1]], [], ""),
        (
            Callable[..., int] | None,
            [None, {"_target_": "a.b"}],
            [1, "a", [1]],
            "a component with a _target_ or null",
        ),
    ],
)
def test_annotations(kind: Any, good: list[Any], bad: list[Any], words: str) -> None:
    assert [value for value in good if not suits(value, kind)] == []
    assert [value for value in bad if suits(value, kind)] == []
    assert not bad or said(kind) == words
    assert [value for value in good if not suits(converted(value, kind), kind)] == []
