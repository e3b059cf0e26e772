"""Spin time of the threads of CPU kernels, before they sleep."""

import os
import sys

#: Spin iterations, some ten microseconds: longer than most gaps between parallel parts of a small network's step.
TURNS = "2000"


def wait_briefly() -> None:
    """Set the spin time, before PyTorch is imported, unless the environment sets a policy.

    With long spinning, OpenMP's default, a step can take ten times as long on a busy machine, where threads wait for
    others that are not scheduled. With immediate sleep two threads are slower than one on an idle machine.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    if sys.platform == "linux":  # PyTorch's OpenMP is GNU's there
        os.environ.setdefault("GOMP_SPINCOUNT", TURNS)
    else:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
