"""Words as typed and commands as printed: a path is a path, a printed command can be pasted, flags are answered."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from tests_support import ROOT, TINY

from workbench.actions import run_action
from workbench.flags import GROUPS, groups, header, help_text, versions
from workbench.quoting import command, typed, value_text, word
from workbench.sweeps.folder import SweepFolder
from workbench.sweeps.words import expand_resume
from workbench.typed_words import completable, quoted_words
from workbench.words import unreadable

Compose = Callable[..., DictConfig]
HOSTILE = (
    "Téléchargements/日本",
    "epoch=3-step=36.ckpt",
    "my pictures/IMG (2).png",
    "[x]",
    "{a: b}",
    "a,b",
    "a,b/(c), d=e",
    "it's",
    'say "x"',
    """both ' and ".png""",
    "$HOME and $(ls) and `ls`",
    "${data_dir}",
    "100%; & | < > ! # ~ * ? ^",
    "~/x",
    "back\\slash",
    "ends\\",
    "2024",
    "1e3",
    "true",
    "NULL",
    " leading and trailing ",
    "a:b@c",
    "-dash",
    "choice(a,b)",
    "tab\tand\nline",
)


def read_by_hydra(words: list[str]) -> dict[str, object]:
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.key_or_group: override.value() for override in parsed}


def pasted(*lines: str) -> list[list[str]]:
    """What programs would be given if the lines were pasted into bash."""
    found = []
    for line in lines:
        script = f"printf '%s\\0' {line}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        found.append(done.stdout.split("\0")[:-1])
    return found


# -- typed words ----------------------------------------------------------------------------------------------


def test_a_path_arrives_as_typed(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "${data_dir}").mkdir()
    (tmp_path / "choice(a,b)").mkdir()
    keys = ("data_dir", "ckpt", "input", "init_from", "resume", "task.data.csv", "task.data.shards.cache_dir")
    for start in range(0, len(HOSTILE), len(keys)):
        texts = dict(zip(keys, HOSTILE[start:], strict=False))
        words = quoted_words(["task=audio_folder", *(f"{key}={text}" for key, text in texts.items())])
        assert quoted_words(words) == words
        cfg = composed(*words)
        assert {key: OmegaConf.select(cfg, key) for key in texts} == texts
        assert cfg.task.data.data_dir == cfg.data_dir


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data_dir=null", None),
        ("data_dir='a b'", "a b"),
        ('data_dir="a=b"', "a=b"),
        ("data_dir=${paths.data}/x", "data/x"),
        ("seed=3", 3),
        ("freeze=[embedder,stem]", ["embedder", "stem"]),
        ("task.data.label_from=^(?P<label>[a-z]+)_", "^(?P<label>[a-z]+)_"),
        ("freeze=[a=b,(c)]", ["a=b", "(c)"]),
    ],
)
def test_what_hydra_reads_stays(composed: Compose, typed: str, meant: object) -> None:
    cfg = composed(*quoted_words(["task=audio_folder", typed]))
    found = OmegaConf.select(cfg, typed.partition("=")[0])
    assert (list(found) if isinstance(meant, list) else found) == meant


def test_commas_of_a_sweep_are_between_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "c (1)", "d,e,f"):
        (tmp_path / name).mkdir()

    def values(*words: str) -> list[object]:
        (swept,) = OverridesParser.create().parse_overrides(quoted_words([*words])[-1:])
        return [
            part.strip("\"'")
            for part in (swept.sweep_string_iterator() if swept.is_sweep_override() else [str(swept.value())])
        ]

    assert values("data_dir=a,b") == ["a,b"]
    assert values("data_dir=x,y") == ["x,y"]
    assert values("-m", "data_dir=a,b") == ["a,b"]
    assert values("-m", "data_dir=x,y") == ["x", "y"]
    assert values("-m", "data_dir=c (1),a,b,null,d,e,f,2024") == ["c (1)", "a,b", "null", "d,e,f", "2024"]
    assert values("sweep=seeds", "data_dir=x=1,c (1)") == ["x=1", "c (1)"]
    assert values("-m", "data_dir=choice(x,y)") == ["x", "y"]
    assert values("-m", "seed=0,1") == ["0", "1"]
    assert quoted_words(["--config-dir", "a (1)", "-m", "seed=range(1,3)"]) == [
        "--config-dir",
        "a (1)",
        "-m",
        "seed=range(1,3)",
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("typo", "typo is no setting: settings are KEY=VALUE"),
        ("sounds (2)", "sounds (2) is no setting"),
        ("freeze=[a,b", """freeze=[a,b cannot be read; if this very text is meant, type 'freeze="[a,b"'"""),
    ],
)
def test_where_it_cannot_be_known_the_quoting_is_shown(word: str, said: str) -> None:
    assert quoted_words([word]) == [word]
    assert unreadable(word).startswith(said)


# -- printed commands -----------------------------------------------------------------------------------------


def test_printed_commands_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    lines = [command("-m", action="predict", ckpt=Path(text), input=text, seed=3) for text in HOSTILE]
    for text, words in zip(HOSTILE, pasted(*lines), strict=True):
        assert words[:4] == ["python", "run.py", "-m", "action=predict"]
        cfg = OmegaConf.create(read_by_hydra(words[3:]))
        assert cfg.ckpt == str(Path(text))
        assert (cfg.input, cfg.seed) == (text, 3)
        assert quoted_words(words[3:]) == words[3:]  # and our own reading of typed words leaves it alone


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-9, 9)
        | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=9),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )
)
@settings(max_examples=200, deadline=None)
@example(["\\", None])
@example("C:\\clips\\")
def test_values_are_read_back(value: object) -> None:
    (override,) = OverridesParser.create().parse_overrides([word("key", value)])
    assert OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True) == {"key": value}


def test_mappings_are_read_back() -> None:
    value = {"a": 1, "b": ["x=y", None], "c": {"d": 0.5}}
    assert read_by_hydra([f"key={value_text(value)}"]) == {"key": value}


def test_a_sweep_elsewhere_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's (1), [a]=é"
    (folder / "conf").mkdir(parents=True)
    SweepFolder(folder, "config", [], ["seed=0,1"], str(tmp_path)).save()
    monkeypatch.chdir(tmp_path)
    ((_, _, resume),) = pasted(command(**{"sweep.resume": folder}))
    for said in (resume, f"sweep.resume={folder}"):
        words = quoted_words(expand_resume([said]))
        settings = read_by_hydra(
            [word for word in words[1:] if "=" in word and not word.startswith(str(tmp_path))]
        )
        assert settings["sweep.resume"] == settings["hydra.sweep.dir"] == folder.name


def test_the_program_is_called_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for called, printed in (
        ("run.py", "run.py"),
        (tmp_path / "x y/run.py", "'x y/run.py'"),
        ("/a/run.py", "/a/run.py"),
    ):
        monkeypatch.setattr(sys, "argv", [str(called)])
        assert command(seed=1) == f"python {printed} seed=1"
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    assert command(seed=1) == "python run.py seed=1"
    assert typed("resume", "a b") == """'resume=a b'"""


def test_a_hostile_folder_prints_commands_that_work(
    composed: Compose, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / """runs (2), é=[x] 'b' $HOME"""
    sounds = tmp_path / "my sounds (2)"
    for number in range(40):
        file = sounds / "ab"[number % 2] / f"{number}, é=[x].wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, np.full(1600, 0.1), 16000)
    words = [
        "task=audio_folder",
        word("data_dir", sounds),
        "task.data.seconds=0.1",
        "task.data.num_workers=0",
    ]
    run_action(composed(*TINY, *words, "callbacks=[]", "logger=[]", word("paths.run", run)))
    lines = [
        line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("python")
    ]
    assert len(lines) == 2
    for action, words in zip(("predict", "export"), pasted(*lines), strict=True):
        cfg = composed(*words[2:])
        assert cfg.action.name == action
        assert Path(cfg.ckpt) == run / "checkpoints" / "best.ckpt"
        assert cfg.input is None or Path(cfg.input).is_file()


def test_every_command_is_made_in_one_place() -> None:
    """Nothing but `workbench/quoting.py` puts a value into a command line."""
    tops = ("workbench", "hydra_plugins", "tasks", "modalities", "backbone")
    sources = {file: file.read_text(encoding="utf-8") for top in tops for file in (ROOT / top).rglob("*.py")}
    texts = [text for source in sources.values() if "run.py" in source for text in _texts(source)]
    commands = [text for text in texts if re.search(r"run\.py \S|python \0", text)]
    assert "python run.py action=doctor" in commands
    assert len(commands) > 8
    assert not [text for text in commands if re.search(r"run\.py.*(\0|%s|\{)|python \0", text)]


def _texts(source: str) -> Iterator[str]:
    """The texts of a program, but for its docstrings; in place of values put into them they have `\\0`."""
    tree = ast.parse(source)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone | inside
        ):
            yield node.value


# -- flags ----------------------------------------------------------------------------------------------------


def run(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "100"} | (env or {}),
    )


def test_versions_are_ours() -> None:
    import torch

    assert versions().startswith("widefield 0.")
    assert f"PyTorch {torch.__version__.partition('+')[0]}" in versions()
    assert (f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA") in versions()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_help_names_every_choice(width: int) -> None:
    said = help_text(width)
    assert max(map(len, said.splitlines())) <= min(width, 120)
    assert "  modality=audio        Audio: a waveform becomes one log-mel map (time" in said
    for group in GROUPS:
        assert group in groups()
        files = sorted((ROOT / "conf" / group).glob("*.yaml"))
        for file in files:
            shown = not file.name.startswith("_") and not (
                group == "task" and file.stem in ("audio", "image", "video", "point_cloud", "time_series")
            )
            assert (f"  {group}={file.stem} " in said) == shown, file
    assert "experiment=audio/speech_commands_s " in said
    for internal in ("hydra/", "Powered by", "_target_", "$", "_self_", "hydra_"):
        assert internal not in said
    assert re.search(r"--version .*\n.*--hydra-help", said)


def test_help_of_one_group() -> None:
    said = help_text(100, ["trainer"])
    assert "trainer=gpu    One GPU, bf16 mixed precision" in said
    assert "modality" not in said


def test_every_header_is_a_line_of_its_own() -> None:
    for group in GROUPS:
        for file in (ROOT / "conf" / group).glob("**/*.yaml"):
            assert len(header(file)) >= 10, file


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, r"widefield [\d.]+ \(Python .*, PyTorch .*\)"),
        (["--help", "modality", "seed=1"], 0, r"modality: what is read[^\n]*\n( .*\n)* +modality=video .*"),
        (["--multirnu", "seed=1"], 1, "error: --multirnu is no flag: did you mean --multirun.*"),
        (["--seed=1"], 1, "error: --seed=1 is no flag: settings have no dashes: seed=1.*"),
        (["--cfg"], 1, "error: argument --cfg/-c: expected one argument.*"),
        (["seed"], 1, "error: seed is no setting: .*"),
    ],
)
def test_flags_are_answered(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == code
    assert re.fullmatch(said, (done.stdout + done.stderr).strip()), done
    assert not list(tmp_path.iterdir())


# -- completion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("python run.py modality=au", "python run.py modality=au"),
        ("python run.py 'data_dir=my sounds (2)' modality=au", "python run.py modality=au"),
        (r"python run.py data_dir=my\ sounds seed=1 modality=au", "python run.py seed=1 modality=au"),
        ("python run.py ckpt=epoch=3.ckpt data_dir='a", "python run.py data_dir"),
        ("python run.py seed=1 ", "python run.py seed=1 "),
    ],
)
def test_words_that_hydra_cannot_read_do_not_stop_completion(line: str, left: str) -> None:
    assert completable(line) == left


def test_a_run_in_this_process_leaves_other_commands_alone(act: Callable[..., Path]) -> None:
    """As in a notebook: what is started there later is no part of that run."""
    before = dict(os.environ)
    act(*TINY, "task=audio_folder", "trainer.limit_train_batches=1")
    assert {key for key in os.environ if key.startswith("WIDEFIELD_")} <= set(before)


def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text((ROOT / "run.py").read_text().replace('"conf"', f'"{ROOT / "conf"}"'))
    script = f"""
        export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}
        eval "$(python run.py -sc install=bash)"
        for line in 'python run.py modality=au' 'python run.py "data_dir=a (2)" trainer=g'; do
            COMP_LINE=$line COMP_POINT=${{#line}} COMP_CWORD=$(($(wc -w <<< "$line") - 1))
            COMPREPLY=()
            hydra_bash_completion
            echo "${{COMPREPLY[@]}}"
        done
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["modality=audio", "trainer=gpu"], done
    assert "trace" not in done.stderr.lower()


# -- as a whole -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_run_prints_is_pasted_and_runs(tmp_path: Path) -> None:
    data = tmp_path / "my sounds (2), é=[x]"
    from tasks.datasets.audio.sample import audio_folder

    audio_folder(data)
    words = [
        *TINY,
        "task=audio_folder",
        f"data_dir={data}",
        "paths.runs=runs = (1), [a]",
        "task.data.num_workers=0",
    ]
    words += ["task.data.limit=16"]
    done = run(*words, cwd=tmp_path, env={"COLUMNS": "400"})
    assert done.returncode == 0, done.stderr + done.stdout
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("python ")]
    assert len(lines) == 2
    for line in lines:
        line = line.replace("python ", f"{sys.executable} ", 1)
        again = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert again.returncode == 0, again.stdout + again.stderr
