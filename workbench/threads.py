"""How long the CPU kernels' threads wait for each other before they sleep."""

import os
import sys

#: Turns of a loop, some ten microseconds: most parallel parts of a small network's step follow each other sooner.
TURNS = "2000"


def wait_briefly() -> None:
    """Set it, before PyTorch is imported, unless the environment says what to do.

    Threads that spin for long, OpenMP's default, let a step take ten times as long on a busy machine, where one waits
    for another that does not run. Threads that sleep at once make two slower than one on a quiet machine.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    if sys.platform == "linux":  # PyTorch's OpenMP is GNU's there
        os.environ.setdefault("GOMP_SPINCOUNT", TURNS)
    else:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
