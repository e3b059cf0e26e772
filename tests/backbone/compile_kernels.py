"""Compile the kernels for GPUs that are not here: `python compile_kernels.py`; prints registers and spilled bytes.

Run by test_kernels_compile.py in a process of its own, because Triton decides once a process whether it interprets.
"""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backbone.kernels import activation, gram, launch, linear, pointwise, taps, toeplitz
from backbone.kernels.sizes import power_of_two
from backbone.kernels.tilings import forward_tilings, weight_grad_tilings

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSORS = {
    "x": "*bf16",
    "y": "*bf16",
    "grad": "*bf16",
    "weight": "*fp32",
    "bias": "*fp32",
    "partial": "*fp32",
    "weight_grad": "*fp32",
    "sums": "*fp32",
    "sums_of_squares": "*fp32",
    "first": "*fp32",
    "second": "*fp32",
    "energy": "*fp32",
    "gamma": "*fp32",
    "dot": "*fp32",
    "scale": "*fp32",
    "slope": "*fp32",
    "other": "*fp32",
    "gamma_grad": "*fp32",
    "beta": "*fp32",
    "strip": "*bf16",
    "folded": "*fp32",
    "taps": "*fp32",
    "line": "*fp32",
    "kernels": "*fp32",
    "products": "*fp32",
    "parts": "*fp32",
    "slots": "*i32",
    "residual": "*bf16",
    "out": "*bf16",
}


def resources(
    kernel: Any, constants: dict[str, Any], options: int | dict[str, int], capability: int
) -> tuple[int, int]:
    """Registers a thread and bytes spilled. ``options``: of Triton, or the number of warps."""
    signature = {
        name: "constexpr" if name in constants else TENSORS.get(name, "i32") for name in kernel.arg_names
    }
    if kernel in (linear.expand, linear.project):
        types = descriptors(constants)
        signature |= {name: types[name] for name in types.keys() & signature.keys()}
    if kernel is toeplitz.conv_by_box:
        box = [
            constants["NB"],
            power_of_two(constants["TI"]) * constants["PH"],
            constants["PW"],
            constants["CB"],
        ]
        signature["x"] = f"tensordesc<bf16{box}>"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name == "C"
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    if isinstance(options, int):
        options = {"num_warps": options, "num_stages": 1}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
    report = printed.stdout + printed.stderr
    registers, stack = re.search(r"REG:(\d+)", report), re.search(r"STACK:(\d+)", report)
    assert registers is not None
    assert stack is not None
    return int(registers[1]), int(stack[1])


def forward(
    k: int, dilation: int, height: int, width: int, sums: bool, boxes: bool = False
) -> tuple[Any, dict[str, Any], int]:
    tiling = forward_tilings(dilation * (k // 2), height, width, boxes)[0]
    constants = launch._convolution(tiling, k, dilation, (height, width), 320, True, True, sums)
    return launch._kernel(tiling), *without_options(constants)


def weight_grad(k: int, height: int, width: int) -> tuple[Any, dict[str, Any], int]:
    constants = launch._cut(weight_grad_tilings(k // 2, height, width)[0], k, 1, 320, True)
    return toeplitz.weight_grad, *without_options(constants)


def descriptors(constants: dict[str, Any]) -> dict[str, str]:
    """What the linear layers read and write in boxes."""
    rows, columns, depth = constants["BM"], constants["BN"], constants["BK"]
    boxes = {"weight": [columns, depth]}
    if "BR" in constants:
        boxes |= {"h": [rows, depth]} | ({"rest": [constants["BR"], depth]} if constants["BR"] else {})
    else:
        boxes |= {"x": [rows, depth], "h": [rows, columns]}
    return {"scale": "*bf16"} | {name: f"tensordesc<bf16{box}>" for name, box in boxes.items()}


def linear_layer(name: str, side: int, channels: int) -> tuple[Any, dict[str, Any], dict[str, int]]:
    expand, _, project = pointwise.tiles(side**2, channels).constants(side**2, channels, 4 * channels)
    if name == "expand":
        constants = expand | {"FP32": False}
    else:
        constants = project | {"maxnreg": pointwise.REGISTERS} | ({} if project["BR"] else {"rest": None})
    own = {name: value for name, value in constants.items() if name.isupper() or value is None}
    return getattr(linear, name), own, {name: constants[name] for name in constants.keys() - own.keys()}


def without_options(constants: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The kernel's own, and how many warps."""
    own = {name: value for name, value in constants.items() if name.isupper()}
    return own, constants["num_warps"]


KERNELS: dict[str, tuple[Any, dict[str, Any], int | dict[str, int]]] = {
    "14x14 K13": forward(13, 1, 14, 14, sums=True),
    "14x14 K13 boxes": forward(13, 1, 14, 14, sums=True, boxes=True),
    "14x14 K31 boxes": forward(31, 1, 14, 14, sums=False, boxes=True),
    "7x7 K13 boxes": forward(13, 1, 7, 7, sums=False, boxes=True),
    "7x7 K13": forward(13, 1, 7, 7, sums=False),
    "14x14 K3 D5": forward(3, 5, 14, 14, sums=True),
    "56x56 K13": forward(13, 1, 56, 56, sums=False),
    "56x56 K31": forward(31, 1, 56, 56, sums=False),
    "14x14 K13 weight": weight_grad(13, 14, 14),
    "fold": (toeplitz.fold, {"K": 13, "D": 1, "PH": 2, "PW": 8, "DI": 3, "DJ": 1, "TAPS": 64}, 4),
    "taps K3": (
        taps.conv_by_tap,
        {"K": 3, "D": 1, "PIXELS": 32, "CB": 64, "BIAS": False, "UNROLL": True},
        4,
    ),
    "taps K3 weight": (
        taps.weight_grad_by_tap,
        {"K": 3, "D": 1, "ROWS": 3, "PIXELS": 16, "CB": 64},
        4,
    ),
    "gelu": (
        activation.scaled_gelu,
        {"D": 1280, "BM": 16, "BD": 128, "BETA": False, "GRAD": True},
        4,
    ),
    "gelu sums": (
        activation.sums_over_pixels,
        {"D": 1280, "BP": 32, "BD": 128, "BETA": True, "GRAD": True},
        4,
    ),
    "grn": (activation.factors, {"D": 1280, "BD": 2048, "PARTS": 2, "GRAD": True}, 4),
    "28x28 K13 gram": (gram.fold, {"L": 728, "W": 28, "K": 13, "BW": 32, "BD": 32, "MORE": True}, 1),
    "28x28 K13 mixing": (gram.unfold, {"L": 728, "W": 28, "K": 13, "BK": 16, "BD": 64}, 1),
    "56x56 expand": linear_layer("expand", 56, 80),
    "28x28 expand": linear_layer("expand", 28, 160),
    "14x14 expand": linear_layer("expand", 14, 320),
    "7x7 expand": linear_layer("expand", 7, 640),
    "56x56 project": linear_layer("project", 56, 80),
    "14x14 project": linear_layer("project", 14, 320),
    "7x7 project": linear_layer("project", 7, 640),
    "grn scales": (linear.scales, {"D": 1280, "BD": 2048, "BM": 128, "BB": 4, "SLOTS": 2}, 8),
    "K13 kernels": (gram.apply, {"C": 320, "B": 6, "K": 13, "BK": 16, "BU": 64, "BB": 16}, 1),
}

if __name__ == "__main__":
    for capability in (int(word) for word in sys.argv[1:] or ["80", "90"]):
        for name, (kernel, constants, options) in KERNELS.items():
            if kernel in (toeplitz.conv_by_box, linear.expand, linear.project) and capability < 90:
                continue
            registers, spilled = resources(kernel, constants, options, capability)
            print(f"sm_{capability} {name}: {registers} registers, {spilled} bytes spilled", flush=True)
