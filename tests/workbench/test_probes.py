"""The probe actions on tiny runs: the files they leave, the numbers in them, and what they say to wrong input."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import get_method
from omegaconf import DictConfig
from PIL import Image
from tests_support import ROOT, TINY

from modalities.image import Pixels
from workbench.probes.common import to_channels

Act = Callable[..., Path]
IMAGE = ("modality=image", "task.data.transforms.size=64", "task.data.limit=24")


def trained(composed: Callable[..., DictConfig], samples: Path, folder: Path, *overrides: str) -> Path:
    from workbench.actions import run_action

    run_action(composed(*TINY, *overrides, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture(scope="module")
def image_run(
    composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return trained(composed, samples, tmp_path_factory.mktemp("runs") / "image", *IMAGE)


@pytest.fixture(scope="module")
def audio_run(
    composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return trained(composed, samples, tmp_path_factory.mktemp("runs") / "audio", "task.data.limit=70")


def read(folder: Path, name: str) -> dict:  # type: ignore[type-arg]
    content: dict = json.loads((folder / f"{name}.json").read_text())  # type: ignore[type-arg]
    assert (folder / "config.yaml").is_file()
    return content


def is_picture(path: Path, least: int = 300) -> bool:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    return min(pixels.shape) >= least and pixels.std() > 5


@pytest.mark.figures
def test_erf_beside_other_networks(image_run: Path, act: Act) -> None:
    words = ("trainer=cpu", "action=probe_erf", f"ckpt={image_run}", "action.inputs=5", "action.size=96")
    folder = act(*words, "action.stage=2", "action.compare=[untrained,resnet18]")
    found = read(folder, "erf")
    names = [network["network"] for network in found["networks"]]
    assert names == [
        "widefield_nano, trained on image_folder",
        "widefield_nano, untrained",
        "resnet18, untrained",
    ]
    assert found["map"] == [96, 96]
    for network in found["networks"]:
        ratios = [area["area_ratio"] for area in network["areas"]]
        assert ratios == sorted(ratios)
        assert 0 < ratios[0] <= ratios[-1] <= 1
        assert (network["stride"], network["inputs"]) == (8, 5)
    with np.load(folder / "erf.npz") as scores:
        assert scores["drawn"] == found["drawn"] == "drawn sample, not pictures of your own"
        assert {name: scores[name].shape for name in scores if name != "drawn"} == dict.fromkeys(
            names, (96, 96)
        )
        for name in names:
            assert scores[name].min() >= 0
            assert scores[name].max() > scores[name].mean() > 0, "some pixels matter more than others"
    assert len(pd.read_csv(folder / "erf.csv")) == 3 * 4
    assert is_picture(folder / "figures" / "erf.png")


def test_erf_is_the_same_in_train_form(image_run: Path, act: Act) -> None:
    areas = []
    for form in ("train", "deploy"):
        words = (
            "trainer=cpu",
            "action=probe_erf",
            f"ckpt={image_run}",
            "action.inputs=3",
            f"action.form={form}",
        )
        areas.append(read(act(*words, folder=form), "erf")["networks"][0]["areas"])
    assert areas[0] == areas[1]


@pytest.mark.figures
@pytest.mark.parametrize(
    "modality", ["time_series", "point_cloud", pytest.param("video", marks=pytest.mark.slow)]
)
def test_erf_of_any_modality_untrained(modality: str, act: Act) -> None:
    folder = act(*TINY, f"modality={modality}", "action=probe_erf", "action.inputs=2", "action.stage=2",
                 "task.data.limit=4")  # fmt: skip
    (network,) = read(folder, "erf")["networks"]
    assert network["network"] == "widefield_nano, untrained"
    assert is_picture(folder / "figures" / "erf.png")


@pytest.mark.figures
def test_cka_within_and_across_modalities(image_run: Path, audio_run: Path, act: Act) -> None:
    words = ("trainer=cpu", "action=probe_cka", f"ckpt={image_run / 'checkpoints' / 'last.ckpt'}")
    folder = act(*words, f"action.against=[untrained,{audio_run}]", "action.inputs=24", "action.batch_size=8")
    found = read(folder, "cka")
    assert found["inputs"] == 24
    assert len(found["networks"]) == 3
    assert len(found["pairs"]) == 6
    for pair in found["pairs"]:
        values = np.array(pair["cka"])
        assert values.shape == (8, 8)
        assert np.abs(values).max() < 1.05
        if pair["first"] == pair["second"]:
            np.testing.assert_allclose(np.diag(values), 1, atol=1e-9)
            np.testing.assert_allclose(values, values.T, atol=1e-9)
    table = pd.read_csv(folder / "cka.csv")
    assert len(table) == 6 * 64
    assert is_picture(folder / "figures" / "cka.png")
    assert is_picture(folder / "figures" / "cka_networks.png")
    alone = act(*words, "action.layers=stages", "action.pool=true", "action.inputs=8", folder="alone")
    assert read(alone, "cka")["pairs"][0]["rows"] == ["stage 1", "stage 2", "stage 3", "stage 4"]
    assert not (alone / "figures" / "cka_networks.png").exists()


def test_the_same_network_twice_is_the_same(image_run: Path, act: Act) -> None:
    folder = act("trainer=cpu", "action=probe_cka", f"ckpt={image_run}", f"action.against=[{image_run}]",
                 "action.inputs=8", "action.batch_size=8")  # fmt: skip
    own, cross, other = (np.array(pair["cka"]) for pair in read(folder, "cka")["pairs"])
    np.testing.assert_allclose(own, cross)
    np.testing.assert_allclose(own, other)


@pytest.mark.figures
def test_kernels_before_and_after(image_run: Path, act: Act) -> None:
    folder = act("trainer=cpu", "action=probe_kernels", f"ckpt={image_run}", "action.channels=3")
    blocks = read(folder, "kernels")["blocks"]
    assert [(block["stage"], block["kernel_size"]) for block in blocks] == [(1, 3), (2, 13), (3, 13), (4, 13)]
    for block in blocks:
        assert sum(block["energy_by_radius"]) == pytest.approx(1)
        assert len(block["energy_by_radius"]) == block["kernel_size"] // 2 + 1
        assert 1 <= block["reach"] <= block["kernel_size"]
    assert blocks[1]["energy_by_radius"] != blocks[1]["energy_by_radius_untrained"], "training moved it"
    assert list(pd.read_csv(folder / "kernels.csv")["block"]) == [1, 1, 1, 1]
    assert is_picture(folder / "figures" / "kernels.png")
    assert is_picture(folder / "figures" / "kernel_energy.png")


@pytest.mark.figures
def test_shape_bias_on_the_drawn_pictures(image_run: Path, act: Act) -> None:
    folder = act("trainer=cpu", "action=probe_shape_bias", f"ckpt={image_run}")
    found = read(folder, "shape_bias")
    assert found["data"]["source"] == "sample"
    table = pd.read_csv(folder / "shape_bias.csv")
    assert len(table) == 256
    counts = table["cue"].value_counts().to_dict()
    assert {key: counts.get(key, 0) for key in found["decisions"]} == found["decisions"]
    assert counts["no conflict"] == found["without_conflict"]["pictures"] == 32
    shape, texture = found["decisions"]["shape"], found["decisions"]["texture"]
    assert found["shape_bias"] == pytest.approx(shape / (shape + texture))
    assert is_picture(folder / "figures" / "shape_bias.png")
    assert is_picture(folder / "figures" / "shape_bias_examples.png")


def test_shape_bias_of_a_network_that_answers_by_texture(
    image_run: Path, act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published-style folder, a mapping file, and a network that sees only how bright a picture is."""
    from tasks.classification import ClassificationTask

    brightness = {"circle": 40, "star": 200}
    for shape in brightness:
        for texture, value in brightness.items():
            place = tmp_path / "pictures" / f"big {shape}s".replace(" ", "_")
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (value,) * 3).save(place / f"big_{shape}s1-big_{texture}s2.png")
    (tmp_path / "mapping.yaml").write_text("big_circles: circle\nbig_stars: [star, ring]\n")

    def by_brightness(self: ClassificationTask, raw: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(raw), len(self.class_names))
        for row, bright in enumerate(raw.float().mean(dim=(1, 2, 3)) > 100):
            logits[row, self.class_names.index("star" if bright else "circle")] = 9.0
        return logits

    monkeypatch.setattr(ClassificationTask, "forward", by_brightness)
    folder = act("trainer=cpu", "action=probe_shape_bias", f"ckpt={image_run}", f"data_dir={tmp_path / 'pictures'}",
                 f"action.mapping={tmp_path / 'mapping.yaml'}")  # fmt: skip
    found = read(folder, "shape_bias")
    assert found["shape_bias"] == 0
    assert found["decisions"] == {"shape": 0, "texture": 2, "neither": 0}
    assert found["without_conflict"] == {"pictures": 2, "right": 1}
    assert found["classes"] == {"big_circles": 1, "big_stars": 2}
    assert found["data"]["source"] == "full"


def test_shape_bias_of_an_official_classifier(act: Act, tmp_path: Path) -> None:
    from backbone import UniRepLKNet

    model = UniRepLKNet(
        num_classes=1000, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), kernel_sizes=(3, 13, 13, 13)
    )
    torch.save(model.state_dict(), tmp_path / "official.pth")
    for shape, texture in (("cat", "oven"), ("oven", "cat"), ("knife", "dog")):
        (tmp_path / "pictures" / shape).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / shape / f"{shape}1-{texture}1.png")
    folder = act(*TINY, "modality=image", "action=probe_shape_bias", f"data_dir={tmp_path / 'pictures'}",
                 f"backbone.pretrained={tmp_path / 'official.pth'}")  # fmt: skip
    assert read(folder, "shape_bias")["classes"] == {"cat": 6, "dog": 109, "knife": 1, "oven": 1}
    assert pd.read_csv(folder / "shape_bias.csv")["top_class"].str.match(r"n\d{8} .").all()


@pytest.mark.figures
def test_robustness_begins_with_what_test_measures(image_run: Path, act: Act) -> None:
    words = ("trainer=cpu", f"ckpt={image_run / 'checkpoints' / 'best.ckpt'}")
    folder = act(*words, "action=probe_robustness", "action.corruptions=[noise,contrast]",
                 "+action.severities.noise=[0.5]", "+action.severities.contrast=[0.1,0.999]")  # fmt: skip
    found = read(folder, "robustness")
    tested = json.loads((act(*words, "action=test", folder="test") / "result.json").read_text())
    assert found["metric"] == "test/acc"
    assert found["guessing"] == 1 / 8
    for corruption in found["corruptions"].values():
        assert corruption["scores"][0] == tested["metrics"]["test/acc"]
    assert found["corruptions"]["contrast"]["severities"] == [0, 0.1, 0.999]
    grey = found["corruptions"]["contrast"]["scores"][
        -1
    ]  # nothing is left to see: one class for all, or nearly
    assert grey <= 0.25
    assert len(pd.read_csv(folder / "robustness.csv")) == 2 + 3
    assert is_picture(folder / "figures" / "robustness.png")


@pytest.mark.slow
def test_robustness_of_forecasts(
    composed: Callable[..., DictConfig], samples: Path, act: Act, tmp_path: Path
) -> None:
    run = trained(composed, samples, tmp_path / "fit", "modality=time_series", "task.data.limit=16")
    folder = act("trainer=cpu", f"ckpt={run}", "action=probe_robustness", "action.corruptions=[missing_variates]",
                 "+action.severities.missing_variates=[1.0]")  # fmt: skip
    found = read(folder, "robustness")
    assert (found["metric"], found["guessing"]) == ("test/mse", None)
    (curve,) = found["corruptions"].values()
    assert curve["scores"][0] == pytest.approx(
        json.loads((run / "result.json").read_text())["metrics"]["test/mse"], rel=1e-5
    )
    assert curve["scores"][1] != pytest.approx(curve["scores"][0], rel=1e-3)


def test_channels_are_brought_to_the_number_read() -> None:
    maps = torch.arange(6.0).view(1, 6, 1, 1)
    assert to_channels(maps, 1).flatten().tolist() == [2.5]
    assert to_channels(maps, 8).flatten().tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert to_channels(maps, 6) is maps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("action=probe_erf", "action.stage=5"), "stage goes from 1 to 4, not 5"),
        (("action=probe_erf", "action.form=both"), "action.form must be one of deploy, train"),
        (("action=probe_erf", "action.inputs=0"), "must be at least 1"),
        (("action=probe_erf", "action.thresholds=[1.5]"), "threshold must lie between 0 and 1"),
        (
            ("action=probe_erf", "action.compare=[resnet5000]"),
            "neither a checkpoint nor a network that timm knows",
        ),
        (("action=probe_erf", "action.compare=[AUDIO]"), "reads maps of 1 channels, these have 3"),
        (("action=probe_cka", "action.batch_size=3"), "at least 4"),
        (("action=probe_cka", "action.inputs=2"), "fewer than 4 samples"),
        (("action=probe_cka", "action.layers=all"), "blocks, stages"),
        (("action=probe_cka", "action.against=[nowhere.ckpt]"), "there is no file nowhere.ckpt"),
        (("action=probe_kernels", "action.share=2"), "share must lie in (0, 1]"),
        (("action=probe_kernels", "action.channels=0"), "action.channels must be at least 1"),
        (("action=probe_shape_bias", "ckpt=null"), "needs ckpt=PATH"),
        (("action=probe_shape_bias", "ckpt=AUDIO"), "classifier of images"),
        (("action=probe_shape_bias", "data_dir=/does/not/exist"), "/does/not/exist does not exist"),
        (("action=probe_shape_bias", "action.mapping=none.yaml"), "there is no file none.yaml"),
        (
            ("action=probe_robustness", "action.corruptions=[rain]"),
            "image has no corruption rain: take noise",
        ),
        (("action=probe_robustness", "+action.severities.noise=[2,1]"), "severities must rise"),
        (("action=probe_robustness", "ckpt=null"), "needs ckpt=PATH"),
        (("action=probe_robustness", "ckpt=EMPTY"), "there is no checkpoint in the folder"),
    ],
)
def test_wrong_input_gets_one_sentence(
    words: tuple[str, ...],
    said: str,
    image_run: Path,
    audio_run: Path,
    act: Act,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "empty").mkdir()
    known = {"AUDIO": str(audio_run), "EMPTY": str(tmp_path / "empty")}
    own = [word.replace("AUDIO", known["AUDIO"]).replace("EMPTY", known["EMPTY"]) for word in words]
    if not any(word.startswith("ckpt=") for word in own):
        own.append(f"ckpt={image_run}")
    if "ckpt=AUDIO" not in words:
        own.append("modality=image")
    with pytest.raises(SystemExit) as stop:
        act("trainer=cpu", *own)
    assert stop.value.code == 1
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert said in errors[0]
    assert "\n" not in errors[0]


def test_a_modality_without_corruptions_says_so() -> None:
    from workbench.errors import UsageError
    from workbench.probes.robustness import corruptions

    with pytest.raises(UsageError, match=r"defined for smell: add them to modalities/corruption\.py"):
        corruptions("smell", None, None)


@pytest.mark.slow
def test_from_the_command_line(
    command: Callable[..., subprocess.CompletedProcess[str]], image_run: Path, tmp_path: Path
) -> None:
    done = command(tmp_path, "action=probe_kernels", f"ckpt={image_run}", "trainer=cpu")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "probe_kernels").iterdir()
    assert (run / "figures" / "kernels.png").is_file()
    assert "kernels.csv" in done.stdout


def test_the_embedder_stays_the_one_trained(image_run: Path, act: Act) -> None:
    """A probe reads the data through the checkpoint's embedder, not through the command line's."""
    folder = act("trainer=cpu", "action=probe_erf", f"ckpt={image_run}", "action.inputs=1")
    assert read(folder, "erf")["map"] == [Pixels(64).height, 64]


DOCS = (ROOT / "docs" / "PROBES.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"python run\.py [^`\n]+", DOCS))
def test_commands_of_the_docs_compose(line: str, composed: Callable[..., DictConfig]) -> None:
    cfg = composed(*shlex.split(line, comments=True)[2:])
    assert callable(get_method(cfg.action._target_))


def test_python_and_files_of_the_docs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    exec(compile(block, "PROBES.md", "exec"), {})
    for target in re.findall(r"\]\(([^)#]+)\)", DOCS):
        assert (ROOT / "docs" / target).exists(), target
