"""Published weights of complete dense prediction networks on the hub, by `backbone.pretrained` name, with checksums.

The files are mmsegmentation and mmdetection checkpoints: backbone and heads under their official names, and the
optimiser state.
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
CASCADE_COCO: dict[str, dict[str, tuple[str, str]]] = {
    "unireplknet_t": {
        "casc_mask_rcnn_coco": (
            "casc_mask_rcnn_unireplknet_t_in1k_3x_coco_ap51.75.pth",
            "6dabd70955f213c19ea4b8837b811d3e68ff90b05b04a9ddf45e76b56a1be77e",
        )
    },
    "unireplknet_s": {
        "casc_mask_rcnn_coco": (
            "casc_mask_rcnn_unireplknet_s_in1k_3x_coco_ap52.95.pth",
            "364fe729a453aedb11787a7390c2299a05710af9c1ff37f89ba1cf0c5a50e6b3",
        ),
        "casc_mask_rcnn_coco_in22k": (
            "casc_mask_rcnn_unireplknet_s_in22k_3x_coco_ap54.27.pth",
            "ea589d98479e38e1e25f3b1ca68c089f687b2dc8ea686e9ce72422c2bc7f1a91",
        ),
    },
    "unireplknet_b": {
        "casc_mask_rcnn_coco_in22k": (
            "casc_mask_rcnn_unireplknet_b_in22k_3x_coco_ap54.78.pth",
            "38568b8dfaa92601c468fd8c8e9c3d2565bdf38b7838bf68bf83fb518dfd9f7c",
        )
    },
    "unireplknet_l": {
        "casc_mask_rcnn_coco_in22k": (
            "casc_mask_rcnn_unireplknet_l_in22k_3x_coco_ap55.82.pth",
            "970789545b8f826587a1844c33fff4b8b4da1bdaf2762096dc07a95fabb70aee",
        )
    },
}
#: Published without a known checksum: such files are read by path or address only. Keys are prefixes of names.
UNCHECKED = {
    "upernet_": {"unireplknet_t": "upernet_unireplknet_t_512_160k_ade20k_miou48.56.pth"},
    "casc_mask_rcnn_": {"unireplknet_xl": "casc_mask_rcnn_unireplknet_xl_in22k_3x_coco_ap56.39.pth"},
}
#: Keys are prefixes of names.
PUBLISHED = {"upernet_": UPERNET_ADE20K, "casc_mask_rcnn_": CASCADE_COCO}


def dense_address(size: str, name: str) -> str | None:
    """Address, with checksum, of the published weights of a dense network; `None` if the name is not of this kind.

    Args:
        size: name of the backbone, e.g. `unireplknet_s`.
        name: e.g. `upernet_ade20k` or `casc_mask_rcnn_coco`.

    Raises:
        ValueError: no such weights; the message lists the available ones.

    >>> dense_address("unireplknet_t", "in1k") is None
    True
    """
    prefix = next((beginning for beginning in PUBLISHED if name.startswith(beginning)), None)
    if prefix is None or "." in name or "/" in name:
        return None
    there = PUBLISHED[prefix].get(size, {})
    if name in there:
        file, sha256 = there[name]
        return f"hf://{HUB_REPO}/{file}#sha256={sha256}"
    if file := UNCHECKED[prefix].get(size, ""):
        raise ValueError(
            f"the checksum of {file} is not known, so {name} is not fetched by name: say its path, or "
            f"backbone.pretrained=hf://{HUB_REPO}/{file}"
        )
    offered = ", ".join(there) or "none"
    raise ValueError(f"{name} weights are not published for {size}; there are: {offered}")
