"""How long until a network trains? From the start of the process to the end of its first and its fifth step.

    python benchmarks/start.py                                   # on a GPU: UniRepLKNet-T at 224 x 224, bf16
    python benchmarks/start.py --models unireplknet_a --batch 64 --resolution 64
    python benchmarks/start.py --device cpu --models unireplknet_a --batch 1 --resolution 32 --forms eager   # to try it

Each form (`benchmarks/model.py`) starts twice, in processes of their own: `cold`, with nothing compiled on disk, and
`warm`, with what the first one left there (Triton's and the compiler's caches). A form is at its speed after the fifth
step: graphs are recorded in the third. The last column is the time of a step after that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

STARTED = "WIDEFIELD_BENCHMARK_STARTED"  # when the process was started, by the clock
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
SETTLED, MEASURED = 5, 10  # steps until a form is at its speed, and measured after that


@dataclass(frozen=True)
class Row:
    """One start; seconds since the process began, and milliseconds of a later step."""

    model: str
    form: str
    caches: str
    imports_s: float
    first_step_s: float
    fifth_step_s: float
    ms: float


def train(asked: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: the times of one start."""
    started = float(os.environ[STARTED])
    import torch
    from model import LAYOUTS, build, training_step

    imported = time.time()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    layout = LAYOUTS["last"]
    model = build(asked.models[0], asked.resolution).to(asked.device, memory_format=layout)
    x = torch.randn(asked.batch, 3, asked.resolution, asked.resolution, device=asked.device)
    step = training_step(model, x.contiguous(memory_format=layout), asked.forms[0], asked.dtype)
    ends = []
    for _ in range(SETTLED + MEASURED):
        step()
        if x.is_cuda:
            torch.cuda.synchronize()
        ends.append(time.time())
    return {
        "imports_s": imported - started,
        "first_step_s": ends[0] - started,
        "fifth_step_s": ends[SETTLED - 1] - started,
        "ms": 1e3 * (ends[-1] - ends[SETTLED - 1]) / MEASURED,
    }


def start(asked: argparse.Namespace, model: str, form: str, folder: str) -> dict[str, float]:
    """Start a process whose caches lie in a folder.

    Raises:
        RuntimeError: it failed; with the last line of what it said.
    """
    words = ["--models", model, "--forms", form, "--batch", str(asked.batch), "--dtype", asked.dtype]
    words += ["--resolution", str(asked.resolution), "--device", asked.device, "--train"]
    environment = {**os.environ, STARTED: str(time.time())} | {
        name: str(Path(folder, name.lower())) for name in CACHES
    }
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main(words: list[str] | None = None) -> list[Row]:
    """Measure, print, and write start.csv."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["unireplknet_t"], help="ours or timm's names")
    parser.add_argument("--forms", nargs="+", default=["eager", "recorded", "blocks", "graphed"])
    parser.add_argument("--dtype", choices=["bf16", "tf32"], default="bf16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the CSV")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)  # this process is one start
    asked = parser.parse_args(words)
    if asked.train:
        print(json.dumps(train(asked)))
        return []
    rows = []
    print(f" {'':34s} imports  first step  fifth step  ms a step")
    for model in asked.models:
        for form in asked.forms:
            with tempfile.TemporaryDirectory() as folder:
                for caches in ("cold", "warm"):
                    try:
                        row = Row(model, form, caches, **start(asked, model, form, folder))
                    except RuntimeError as error:
                        print(f" {model}, {form}, {caches} failed: {error}")
                        break
                    rows.append(row)
                    print(
                        f" {f'{model}, {form}, {caches}':34s} {row.imports_s:6.1f}s {row.first_step_s:10.1f}s"
                        f" {row.fifth_step_s:10.1f}s {row.ms:10.1f}",
                        flush=True,
                    )
    from workbench.files import write_table

    write_table(asked.out / "start.csv", [asdict(row) for row in rows], [field.name for field in fields(Row)])
    print(f"written to {asked.out}/start.csv")
    return rows


if __name__ == "__main__":
    main()
