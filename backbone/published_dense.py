"""Published weights of whole dense networks on the hub, by the name that `backbone.pretrained` takes, with checksums.

The files are mmsegmentation's: backbone and heads under their official names, beside them the optimiser's state.
"""

from backbone.checkpoints import HUB_REPO

#: Size of the backbone -> name -> (file, its SHA-256).
UPERNET_ADE20K: dict[str, dict[str, tuple[str, str]]] = {
    "unireplknet_s": {
        "upernet_ade20k": (
            "upernet_unireplknet_s_512_160k_ade20k_miou50.46.pth",
            "f1be06daf2ebfa8ae68bc41687f65a970b313ba13bedcf14d4f70c35b7a03be2",
        ),
        "upernet_ade20k_in22k": (
            "upernet_unireplknet_s_in22k_512_160k_ade20k_miou51.86.pth",
            "67efb2494f12e2bccaa19282b8d2eb0d466fe5755584e5fb9903cd188ebc0e64",
        ),
        "upernet_ade20k_in22k_640": (
            "upernet_unireplknet_s_in22k_640_160k_ade20k_miou52.28.pth",
            "93486ecaf92e54187883545b5e1d9f72ede20b68f242ebff4da27cad7d6b94c6",
        ),
    },
    "unireplknet_b": {
        "upernet_ade20k_in22k_640": (
            "upernet_unireplknet_b_in22k_640_160k_ade20k_miou53.52.pth",
            "fbcc46446ca96420675f9f26af5a10d673ce96aac50afda8b1d4de714644bb34",
        )
    },
    "unireplknet_l": {
        "upernet_ade20k_in22k_640": (
            "upernet_unireplknet_l_in22k_640_160k_ade20k_miou54.70.pth",
            "bc945a469c67812b2ffcc71cfa600afc484b47a8d53ac713cc8779aa6d489e94",
        )
    },
    "unireplknet_xl": {
        "upernet_ade20k_in22k_640": (
            "upernet_unireplknet_xl_in22k_640_160k_ade20k_miou55.18.pth",
            "c69d8f9791a44b7d8aa1c95faf6439e3dcedbd7f347c2534a933d2771e83c41f",
        )
    },
}
#: Published, but no checksum is known: such a file is read by its path or address only.
UNCHECKED = {"unireplknet_t": "upernet_unireplknet_t_512_160k_ade20k_miou48.56.pth"}
PREFIX = "upernet_"


def dense_address(size: str, name: str) -> str | None:
    """Address, with its checksum, of the published weights of a dense network; `None`: the name is of another kind.

    Args:
        size: name of the backbone, e.g. `unireplknet_s`.
        name: e.g. `upernet_ade20k`.

    Raises:
        ValueError: no such weights, in one sentence that says which there are.

    >>> dense_address("unireplknet_t", "in1k") is None
    True
    """
    if not name.startswith(PREFIX) or "." in name or "/" in name:
        return None
    there = UPERNET_ADE20K.get(size, {})
    if name in there:
        file, sha256 = there[name]
        return f"hf://{HUB_REPO}/{file}#sha256={sha256}"
    if size in UNCHECKED:
        raise ValueError(
            f"the checksum of {UNCHECKED[size]} is not known, so {name} is not fetched by name: say its path, or "
            f"backbone.pretrained=hf://{HUB_REPO}/{UNCHECKED[size]}"
        )
    offered = ", ".join(there) or "none"
    raise ValueError(f"{name} weights are not published for {size}; there are: {offered}")
