"""The experiments that are official recipes are the official scripts', value for value, or say where they are not.

`tests/fixtures/recipes/MODALITY.yaml` holds what the official scripts set, for each experiment::

    audio/speech_commands_s:
      source: Audio/src/run.py         # files of the official release
      equal:                           # configuration key -> official value, which the experiment composes to
        optimizer.betas: [0.95, 0.999]
      departs:                         # configuration key -> official value, in words; ours, as composed; the reason
        trainer.precision: {official: "fp16", ours: bf16-mixed, why: "…"}
      notes:                           # what is no key: equal (the test that shows it), or a departure (why)
        - {what: "mixup partner", official: "of the data set", ours: "the same", test: "tests/…/test_audio.py::test_…"}
        - {what: "roll", official: "-10 to 9", ours: "-10 to 10", why: "…"}

What entries of a file share (YAML anchors) may stand below a name that begins with a dot.

The header of an experiment, the comment on top of its file, has one of two lines:

* ``# Official recipe: `` and the official files. Such an experiment has an entry in the table. Where the entry has
  departures, the header goes on with ``# Departs from the official script:`` and a list, up to the header's end, that
  names each of them: the last part of the key (``precision``), or `what` of the note.
* ``# Recipe: ours``. Such an experiment has no entry.

`docs/RECIPES.md` shows the table. This writes it anew::

    WIDEFIELD_WRITE_RECIPES=1 pytest tests/workbench/test_recipes.py
"""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from tests_support import ROOT

EXPERIMENTS = ROOT / "conf" / "experiment"
TABLES = ROOT / "tests" / "fixtures" / "recipes"
PAGE = ROOT / "docs" / "RECIPES.md"
OFFICIAL, OURS, DEPARTS = "Official recipe: ", "Recipe: ours", "Departs from the official script:"
ABSENT = "no such key"

Compose = Callable[..., DictConfig]
Entry = dict[str, Any]


def read_tables() -> dict[str, Entry]:
    """Entry of each experiment, by name."""
    entries: dict[str, Entry] = {}
    for file in sorted(TABLES.glob("*.yaml")):
        for name, entry in yaml.safe_load(file.read_text()).items():
            if name.startswith("."):
                continue
            assert name not in entries, f"{name} has two entries"
            assert name.startswith(f"{file.stem}/"), f"{file.name} is not the place of {name}"
            entries[name] = entry
    return entries


TABLE = read_tables()
COVERED = {name.partition("/")[0] for name in TABLE}
NAMES = sorted(
    str(file.relative_to(EXPERIMENTS).with_suffix(""))
    for file in EXPERIMENTS.rglob("*.yaml")
    if file.name[0] != "_"
)


def header(name: str) -> list[str]:
    """The comment on top of an experiment's file, line by line, without its marks."""
    lines = (EXPERIMENTS / f"{name}.yaml").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:end] if line != "# @package _global_"]


def departures(name: str) -> str:
    """What a header says of departures, in one line."""
    lines = header(name)
    if DEPARTS not in lines:
        return ""
    return " ".join(" ".join(lines[lines.index(DEPARTS) + 1 :]).split())


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def same(ours: Any, official: Any) -> bool:
    """Equality in which 0 is not false, and the last digit of a float is free."""
    if isinstance(official, list):
        return isinstance(ours, list) and len(ours) == len(official) and all(map(same, ours, official))
    if isinstance(official, bool) or isinstance(ours, bool) or not isinstance(official, int | float):
        return type(ours) is type(official) and bool(ours == official)
    return isinstance(ours, int | float) and ours == pytest.approx(official, rel=1e-12, abs=0)


# -- the entries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_an_entry_is_complete(name: str) -> None:
    entry = TABLE[name]
    assert set(entry) <= {"source", "equal", "departs", "notes"}
    assert entry["source"]
    assert not set(entry.get("equal") or {}) & set(entry.get("departs") or {}), "a key stands in one place"
    for departure in (entry.get("departs") or {}).values():
        assert set(departure) == {"official", "ours", "why"}
        assert departure["why"].strip()
    for note in entry.get("notes") or []:
        assert {"what", "official", "ours"} <= set(note) <= {"what", "official", "ours", "test", "why"}
        assert note.get("test") or note.get("why"), "equal, as a test shows, or a departure with a reason"
        if "test" in note:
            file, _, test = note["test"].partition("[")[0].partition("::")
            assert re.search(rf"^def {re.escape(test)}\(", (ROOT / file).read_text(), re.MULTILINE), note[
                "test"
            ]


@pytest.mark.parametrize("name", TABLE)
def test_an_experiment_composes_to_its_entry(composed: Compose, name: str) -> None:
    assert name in NAMES, "the entry of an experiment that is not there"
    cfg, entry = composed(f"experiment={name}", "paths.run=run"), TABLE[name]
    wanted = dict(entry.get("equal") or {})
    wanted |= {key: departure["ours"] for key, departure in (entry.get("departs") or {}).items()}
    wrong = []
    for key, value in wanted.items():
        # No such callback is as good as one that is switched off; any other key is there, else it is misspelt.
        absent = None if key.startswith("callbacks.") and value is None else ABSENT
        ours = plain(OmegaConf.select(cfg, key, default=absent))
        if not same(ours, value):
            wrong.append(f"{key} is {ours!r}, its entry says {value!r}")
    assert not wrong, "\n".join(wrong)


# -- the headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_whose_recipe_it_is(name: str) -> None:
    official = [line for line in header(name) if line.startswith(OFFICIAL)]
    ours = [line for line in header(name) if line == OURS]
    if not official and not ours and name.partition("/")[0] not in COVERED:
        pytest.skip("no table of this modality")
    assert len(official) + len(ours) == 1, f"one line, '# {OFFICIAL}…' or '# {OURS}'"
    assert (name in TABLE) == bool(official), "official recipes have an entry in the table, others do not"


@pytest.mark.parametrize("name", TABLE)
def test_a_header_names_every_departure(name: str) -> None:
    entry, said = TABLE[name], departures(name).lower()
    named = [key.removesuffix("._target_").rpartition(".")[2] for key in entry.get("departs") or {}]
    named += [note["what"] for note in entry.get("notes") or [] if "why" in note]
    assert [what for what in named if what.lower() not in said] == [], f"missing below '# {DEPARTS}'"
    assert bool(said) == bool(named), "a header lists departures where there are any"


# -- images a step -------------------------------------------------------------------------------------------

STEPS = {
    **{f"image/imagenet_{size}": (4, 128, 8, 4096) for size in "afpnt"},
    "image/imagenet_s": (8, 64, 8, 4096),
    "image/imagenet22k_s": (16, 32, 8, 4096),
    "image/imagenet22k_b": (16, 32, 8, 4096),
    "image/imagenet22k_l": (16, 64, 4, 4096),
    "image/imagenet22k_xl": (32, 32, 4, 4096),
    **{f"image/imagenet_{size}_384": (4, 64, 2, 512) for size in "sbl"},
    "image/imagenet_xl_384": (8, 32, 2, 512),
}  # official: GPUs, images of each, accumulated steps, images a step


def header_command(name: str) -> list[str]:
    """The words of the command in a header, without placeholders."""
    text = "\n".join(header(name)).replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if f"experiment={name} " in f"{line} " and "run.py" in line]
    return [word for word in shlex.split(line.partition("run.py")[2]) if word != "data_dir=PATH"]


@pytest.mark.parametrize("name", STEPS)
def test_images_a_step(composed: Compose, name: str) -> None:
    """The header's command has the official number of GPUs, images and accumulated steps; the file alone their product.

    What the experiment says of the trainer survives `trainer=ddp` on the command line.
    """
    gpus, batch, accumulated, images = STEPS[name]
    assert gpus * batch * accumulated == images
    for cfg, processes in (
        (composed(f"experiment={name}"), 1),
        (composed(*header_command(name)), gpus),
    ):
        assert cfg.task.data.batch_size == batch, "what a batch norm sees"
        assert cfg.task.data.batch_size * processes * cfg.trainer.accumulate_grad_batches == images
        assert cfg.trainer.sync_batchnorm is False
        assert cfg.trainer.gradient_clip_val is None
        assert cfg.trainer.max_epochs == TABLE[name]["equal"]["trainer.max_epochs"]
    assert cfg.trainer.strategy == "ddp"
    assert cfg.trainer.accumulate_grad_batches == accumulated
    text = " ".join(header(name))
    if cfg.trainer.num_nodes == 1:
        assert f"{gpus} GPUs of {batch} images each" in text
    else:
        assert cfg.trainer.num_nodes * cfg.trainer.devices == gpus
        assert f"{cfg.trainer.num_nodes} nodes of {cfg.trainer.devices} GPUs, {batch} images each" in text


# -- the page ------------------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(cell, value))}]"
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return text.replace("|", "\\|")


def page() -> str:
    """`docs/RECIPES.md`."""
    parts = [
        "# Recipes beside the official scripts",
        "What each experiment that is an official recipe sets, beside what the official release sets "
        "(AILab-CVC/UniRepLKNet). Every value under *ours* is compared with the composed experiment by "
        "`tests/workbench/test_recipes.py`, which also writes this page; a test named in the last column shows what is "
        "no single setting. Rows with a reason depart from the official script.",
        "\n".join(f"- [{name}](#{re.sub(r'[^a-z0-9_-]', '', name)})" for name in TABLE),
    ]
    for name, entry in TABLE.items():
        rows = [
            (f"`{key}`", departure["official"], cell(departure["ours"]), departure["why"])
            for key, departure in (entry.get("departs") or {}).items()
        ]
        notes = entry.get("notes") or []
        rows += [
            (note["what"], note["official"], note["ours"], note["why"]) for note in notes if "why" in note
        ]
        rows += [
            (note["what"], note["official"], note["ours"], f"`{note['test'].rpartition('::')[2]}`")
            for note in notes
            if "why" not in note
        ]
        rows += [
            (f"`{key}`", cell(value), "the same", "") for key, value in (entry.get("equal") or {}).items()
        ]
        lines = ["| setting | official | ours | why, or the test that shows it |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(str(part).replace(chr(10), ' ') for part in row)} |" for row in rows]
        parts += [f"## {name}", f"Official files: {entry['source']}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def test_the_page_shows_the_table() -> None:
    if os.environ.get("WIDEFIELD_WRITE_RECIPES"):
        Path(PAGE).write_text(page())
    assert PAGE.read_text() == page(), (
        "docs/RECIPES.md is not up to date: WIDEFIELD_WRITE_RECIPES=1 pytest tests/workbench/test_recipes.py"
    )


def test_same_tells_values_apart() -> None:
    assert same([0.9, 0.999], [0.9, 0.999])
    assert same(0.1 + 0.2, 0.3)
    for ours, official in ((0, False), (None, 0), ("1e-3", 1e-3), ([1], [1, 2]), (5e-5, 5.1e-5), (True, 1)):
        assert not same(ours, official)
