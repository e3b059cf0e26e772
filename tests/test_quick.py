"""What makes the tests quick shows the same as what it stands for."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import quick_compose
from figures_support import is_drawn
from hydra._internal import config_loader_impl as hydras
from omegaconf import DictConfig, ListConfig, OmegaConf
from tests_support import TINY

from workbench import figures
from workbench.overrides import compose

COMMANDS = [
    ("task=esc50", "backbone=widefield_nano", "trainer=cpu", "paths.run=x", "task.data.limit=7"),
    ("experiment=joint/four_modalities", "~task.members.video", "+callbacks.x={_target_: a.B}"),
    ("modality=video", "callbacks=[ema,default]", "hydra.run.dir=here", "seed=3"),
    ("task=esc50", "backbone=widefield_nano", "trainer=gpu", "task.data.limit=8"),
]


def nodes(cfg: DictConfig | ListConfig) -> list[object]:
    """Every node of a configuration: its value, and what OmegaConf knows of it."""
    found: list[object] = []
    for key in cfg.keys() if isinstance(cfg, DictConfig) else range(len(cfg)):
        node = cfg._get_node(key)
        known = node._metadata  # type: ignore[union-attr]
        found.append((key, type(node), known.ref_type, known.object_type, known.optional, known.flags or {}))
        plain = node._is_none() or node._is_missing() or node._is_interpolation()  # type: ignore[union-attr]
        if isinstance(node, DictConfig | ListConfig) and not plain:
            found += nodes(node)
    return found


def test_a_remembered_composition_is_hydras(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hydras, "create_defaults_list", quick_compose._list)
        patch.setattr(hydras.ConfigLoaderImpl, "_compose_config_from_defaults_list", quick_compose._compose)
        real = [compose(*words) for words in COMMANDS]
    for _ in range(2):  # the second time from memory
        ours = [compose(*words) for words in COMMANDS]
        for made, wanted in zip(ours, real, strict=True):
            assert OmegaConf.to_container(made) == OmegaConf.to_container(wanted)
            assert nodes(made) == nodes(wanted)
        ours[0].task.data.limit = 99  # of this one alone


@pytest.mark.parametrize(
    "drawn", [pytest.param(True, marks=pytest.mark.figures, id="rendered"), pytest.param(False, id="blank")]
)
def test_a_figure_is_rendered_where_it_is_wanted(drawn: bool, tmp_path: Path) -> None:
    figure, panel = plt.subplots(figsize=(3, 2))
    panel.plot([1, 2], [3, 5], color="black")
    figures.save(figure, tmp_path / "a.png", dpi=100)
    assert is_drawn(tmp_path / "a.png") == drawn
    assert plt.imread(tmp_path / "a.png").shape[:2] == (200, 300)


def test_a_warm_process_says_what_a_new_one_says(
    command: Callable[..., subprocess.CompletedProcess[str]],
    new_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_FOLDER", str(tmp_path / "made"))
    for words, code in (
        (("action=info", *TINY, "hydra.run.dir=${oc.env:MY_FOLDER}"), 0),
        (("task.data.batchsize=3",), 1),
    ):
        warm, new = command(tmp_path, *words), new_command(tmp_path, *words)
        assert warm.returncode == new.returncode == code
        assert (warm.stdout, warm.stderr) == (new.stdout, new.stderr)
    assert (tmp_path / "made").is_dir()
