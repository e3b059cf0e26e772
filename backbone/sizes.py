"""The official sizes of UniRepLKNet and the names of their published weights."""

from __future__ import annotations

Four = tuple[int, int, int, int]

#: name -> (depths, dims).
SIZES: dict[str, tuple[Four, Four]] = {
    "unireplknet_a": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "unireplknet_f": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "unireplknet_p": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "unireplknet_n": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "unireplknet_t": ((3, 3, 18, 3), (80, 160, 320, 640)),
    "unireplknet_s": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "unireplknet_b": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "unireplknet_l": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "unireplknet_xl": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}

HUB_REPO = "DingXiaoH/UniRepLKNet"

#: Published weights on the hub: ``{size: {name: file}}``.
PUBLISHED: dict[str, dict[str, str]] = {
    "unireplknet_a": {"in1k": "unireplknet_a_in1k_224_acc77.03.pth"},
    "unireplknet_f": {"in1k": "unireplknet_f_in1k_224_acc78.58.pth"},
    "unireplknet_p": {"in1k": "unireplknet_p_in1k_224_acc80.23.pth"},
    "unireplknet_n": {"in1k": "unireplknet_n_in1k_224_acc81.64.pth"},
    "unireplknet_t": {"in1k": "unireplknet_t_in1k_224_acc83.21.pth"},
    "unireplknet_s": {
        "in1k": "unireplknet_s_in1k_224_acc83.91.pth",
        "in22k_to_in1k": "unireplknet_s_in22k_to_in1k_384_acc86.44.pth",
        "in22k": "unireplknet_s_in22k_pretrain.pth",
    },
    "unireplknet_b": {
        "in22k_to_in1k": "unireplknet_b_in22k_to_in1k_384_acc87.40.pth",
        "in22k": "unireplknet_b_in22k_pretrain.pth",
    },
    "unireplknet_l": {
        "in22k_to_in1k": "unireplknet_l_in22k_to_in1k_384_acc87.88.pth",
        "in22k": "unireplknet_l_in22k_pretrain.pth",
    },
    "unireplknet_xl": {
        "in22k_to_in1k": "unireplknet_xl_in22k_to_in1k_384_acc87.96.pth",
        "in22k": "unireplknet_xl_in22k_pretrain.pth",
    },
}
NAMES = ("in1k", "in22k", "in22k_to_in1k")
