"""Sharing a machine's GPUs and CPU cores among concurrent runs."""

import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Indices or UUIDs of the GPUs available to this process, found without initialising CUDA."""
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
    """Reserve one of `gpus`, with the fewest runs, while the context is active; yields `None` if there are none.

    A slot on a GPU is a locked file below `locks`. The system releases the lock when its process ends for any reason,
    so a killed run leaves no slot occupied.
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
    """Number of CPU threads for each of several concurrent runs."""
    return max(1, cpu_cores() // max(runs_at_a_time, 1))


def cpu_cores() -> int:
    """Number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
