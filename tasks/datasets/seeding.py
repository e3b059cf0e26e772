"""Random transforms of libraries, which draw from global generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded_by(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU) from ``rng``; their states are restored on exit.

    timm and torchvision use all three. Without worker processes they are shared with training.
    """
    seed = int(rng.integers(2**32))
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])
