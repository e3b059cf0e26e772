"""Every call of the library that writes to a disk is one whose refusal is known to end in a sentence."""

import ast
from pathlib import Path

from tests_support import ROOT

CALLS = {
    *("mkdir", "makedirs", "replace", "rename", "touch", "write_text", "write_bytes", "copyfile", "copytree"),
    *("copyfileobj", "move", "link", "symlink", "savefig", "to_csv", "to_parquet", "to_json", "to_pickle"),
    *("savez", "savez_compressed", "write_table", "extractall", "save", "TemporaryDirectory", "mkdtemp"),
    *("NamedTemporaryFile", "TemporaryFile", "h5py.File", "ZipFile", "create_study", "write_triangle_mesh"),
}
# Of workbench/files.py and workbench/figures.py, and a sweep's own record: all of them write_atomically.
OURS = {
    *(("", "write_text"), ("", "write_table"), ("", "save"), ("figures", "save")),
    *(("self.folder", "save"), ("folder", "save")),
}
# Where refusals are told; see workbench/files.py and tasks/disk.py. Files, or functions of a file.
KNOWN = {
    "tasks/disk.py": "itself",
    "tasks/datasets/audio/sample.py": "draw_once",
    "tasks/datasets/audio/event_sample.py": "draw_once",
    "tasks/datasets/image/sample.py": "draw_once",
    "tasks/datasets/image/scenes.py": "draw_once",
    "tasks/datasets/image/box_scenes.py": "draw_once",
    "tasks/datasets/image/mask_data.py": "into memory",
    "tasks/datasets/image/cue_conflict_sample.py": "draw_once",
    "tasks/segmentation_drawing.py": "write_atomically, in workbench/predict.py",
    "tasks/datasets/point_cloud/sample.py": "draw_once",
    "tasks/datasets/time_series/sample.py": "draw_once",
    "tasks/datasets/video/sample.py": "draw_once",
    "tasks/datasets/image/cifar.py": "into memory",
    "tasks/datasets/base.py": "prepare_data",
    "tasks/datasets/drawn.py": "itself; in prepare_data",
    "tasks/datasets/image/cue_conflict.py": "filling",
    "tasks/datasets/array_cache.py": "a cache, done without",
    "tasks/datasets/download.py": "prepare_data, weights_file",
    "tasks/datasets/fetch.py": "prepare_data",
    "tasks/datasets/unpack.py": "prepare_data",
    "tasks/datasets/locks.py": "prepare_data, ShardCache",
    "tasks/datasets/point_cloud/formats/las.py": "filling",
    "tasks/datasets/shards/cache.py": "writing",
    "tasks/datasets/shards/storage.py": "writing, in both who call it",
    "tasks/datasets/shards/layout.py": "write_shards",
    "tasks/datasets/shards/write.py": "workbench/shard.py, draw_once",
    "tasks/datasets/shards/data.py": "a file in memory",
    "backbone/kernels/autotune.py": "a cache, done without",
    "workbench/files.py": "writing",
    "workbench/representations/files.py": "write_atomically, in both who are called",
    "workbench/resolvers.py": "run_folder: Hydra makes it again, and plain_words tells",
    "workbench/doctor.py": "the places it tells of",
    "workbench/sweeps/folder.py": "writing",
    "workbench/sweeps/words.py": "writing",
    "workbench/sweeps/job.py": "run_job",
    "workbench/sweeps/devices.py": "run_job",
    "hydra_plugins/widefield/study.py": "study_errors",
}
ATOMIC = "write_atomically"


def name_of(call: ast.Call) -> str:
    """`path.open` -> `open`."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def writes(call: ast.Call) -> bool:
    name = name_of(call)
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if (owner, name) in OURS:
        return False
    if name == "open":
        modes = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        texts = [str(mode.value) for mode in modes if isinstance(mode, ast.Constant)]
        return any(len(text) <= 3 and set(text) & set("wax+") for text in texts)
    if name in ("replace", "rename"):  # of a text two arguments, of a dataclass or a table words
        return owner == "os" or (len(call.args) == 1 and not call.keywords)
    if name == "ZipFile":
        return len(call.args) > 1
    return name in CALLS


def strangers(file: Path) -> list[str]:
    """Writing calls of a file outside what is handed to `write_atomically`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    handed: set[ast.AST] = set()
    names: set[str] = set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if name_of(call) == ATOMIC:
            handed |= {inner for argument in call.args for inner in ast.walk(argument)}
            names |= {
                name_of(inner)
                for argument in call.args
                for inner in ast.walk(argument)
                if isinstance(inner, ast.Call)
            }
            names |= {argument.id for argument in call.args if isinstance(argument, ast.Name)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if function.name in names:
            handed |= set(ast.walk(function))
    return [
        f"{file.relative_to(ROOT)}:{call.lineno} {name_of(call)}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and call not in handed and writes(call)
    ]


def test_no_file_is_written_elsewhere() -> None:
    found = []
    for package in ("modalities", "backbone", "tasks", "workbench", "hydra_plugins"):
        for file in sorted((ROOT / package).rglob("*.py")):
            place = file.relative_to(ROOT).as_posix()
            if not any(place.startswith(known) for known in KNOWN):
                found += strangers(file)
    assert found == [], "write it by workbench.files.write_atomically or within tasks.disk.writing"


def test_a_stranger_is_found() -> None:
    code = (
        "def f(path, figure, frame):\n"
        "    with path.open('w') as file: file.write('x')\n"
        "    figure.savefig(path)\n"
        "    path.write_text('x'.replace('a', 'b'))\n"
        "    write_atomically(path, lambda draft: frame.to_csv(draft))\n"
        "    open(path).read()\n"
    )
    file = ROOT / "tests" / "workbench" / "fixture_of_writing.py"
    try:
        file.write_text(code)
        calls = [said.rpartition(" ")[2] for said in strangers(file)]
    finally:
        file.unlink()
    assert sorted(calls) == ["open", "savefig", "write_text"]
    assert all((ROOT / known).exists() for known in KNOWN), "KNOWN names a file that is gone"
