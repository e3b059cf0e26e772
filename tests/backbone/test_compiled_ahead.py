"""Kernels are compiled ahead of their first launch: for an H100, without one."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import ROOT

pytest.importorskip("triton")

H100 = """
import threading
import torch
import triton
from triton.backends.compiler import GPUTarget

class H100:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

triton.runtime.driver.set_active(H100())
"""

AHEAD = """
from backbone.kernels import kernels_compiled_ahead
from backbone.kernels.launch import _bands
from backbone.kernels.start import ahead, start
from backbone.kernels.tilings import weight_grad_tilings
from backbone.kernels.toeplitz import fold

def fold_three():  # launched, it would fail: these tensors lie on a CPU
    for size in (3, 5, 7):
        tiling = weight_grad_tilings(size // 2, 16, 16)[0]
        (di, dj), pixels = tiling.reach, tiling.patch[0] * tiling.patch[1]
        partial = torch.zeros(1, 8, 2 * dj + 1, 2 * di + 1, pixels, pixels)
        out = torch.zeros(8, 1, size, size)
        start(fold, (8, 1, 1), (partial, out), (8, 1), {**_bands(tiling, size, 1), "TAPS": 64})

with kernels_compiled_ahead():
    assert ahead()
    other = threading.Thread(target=fold_three)  # as a backward pass
    other.start()
    other.join()
assert not ahead()
print(sorted(kernel.name for kernel in fold.device_caches[0][0].values()))
"""


BOXES = """
import backbone.kernels.pointwise
from backbone.kernels import kernels_compiled_ahead, linear

def half(*shape): return torch.zeros(shape, dtype=torch.bfloat16)

with kernels_compiled_ahead():
    maps = half(2, 49, 32), half(2, 49, 32)
    torch.ops.widefield.pointwise(*maps, half(128, 32), half(128), half(128), half(32, 128), half(32))
kernels = linear.expand, linear.scales, linear.project
print(sorted(kernel.name for jit in kernels for kernel in jit.device_caches[0][0].values()))
"""


@pytest.mark.parametrize(
    ("script", "names"),
    [(AHEAD, ["fold"] * 3), (BOXES, ["expand", "project", "scales"])],
    ids=["tensors", "descriptors"],
)
def test_every_kernel_is_compiled_and_none_is_launched(script: str, names: list[str], tmp_path: Path) -> None:
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", H100 + script], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(names)
    for name in names:
        assert len(list(tmp_path.glob(f"*/{name}.cubin"))) == names.count(name)
