"""Sharing a machine's GPUs and CPU cores among the runs that go on at the same time."""

import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, by index or UUID, found without starting CUDA."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [name.strip() for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()]


@contextmanager
def one_gpu(gpus: list[str], locks: Path) -> Iterator[str | None]:
    """Hold one of `gpus`, of those with the fewest runs, until the block is left; `None` where there are none.

    A place on a GPU is a locked file below `locks`. The system frees the lock when its process ends, however it ends,
    so a killed run leaves no place taken.
    """
    import fcntl  # not on Windows

    if not gpus:
        yield None
        return
    locks.mkdir(parents=True, exist_ok=True)
    for place, gpu in ((place, gpu) for place in itertools.count() for gpu in gpus):
        with (locks / f"{gpus.index(gpu)}.{place}").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield gpu
            return


def threads_each(runs_at_a_time: int) -> int:
    """CPU threads for one of several runs."""
    return max(1, cpu_cores() // max(runs_at_a_time, 1))


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
