"""Weights at an address: downloaded as data are, once, and read as tensors only."""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from downloads_support import CERTIFICATE, Reply, Server, serving
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY

from backbone import CheckpointError
from tasks.datasets.base import DataError
from workbench.build import build_network, take_pretrained
from workbench.errors import UsageError
from workbench.pretrained import weights_file


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def asking(pretrained: str, data: Path) -> DictConfig:
    return OmegaConf.create({"backbone": {"pretrained": pretrained}, "paths": {"data": str(data)}})


def test_weights_come_from_an_address(
    server: Server, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = composed("modality=image", *TINY, f"paths.data={tmp_path}")
    network = build_network(cfg, {"class_names": ["a", "b"], "multilabel": False})
    state = {name: torch.full_like(value, 0.5) for name, value in network.backbone.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    server.files["/me/nets/resolve/main/sizes/small.pth"] = buffer.getvalue()
    server.replies = [Reply(cut=1000)]
    checksum = hashlib.sha256(buffer.getvalue()).hexdigest()
    cfg.backbone.pretrained = f"hf://me/nets/sizes/small.pth#sha256={checksum}"
    for _ in range(2):
        take_pretrained(cfg, network)
    assert next(network.backbone.parameters()).eq(0.5).all()
    assert sum(server.sent) == len(buffer.getvalue()), "cut and gone on with, and not asked for twice"
    assert (tmp_path / "weights/127.0.0.1/me/nets/resolve/main/sizes/small.pth").is_file()


def test_weights_from_elsewhere_run_nothing(
    server: Server, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "owned",))

    buffer = io.BytesIO()
    torch.save({"downsample_layers.0.0.weight": Evil()}, buffer)
    server.files["/evil.pth"] = buffer.getvalue()
    cfg = composed("modality=image", *TINY, f"paths.data={tmp_path}")
    cfg.backbone.pretrained = f"{server.address}/evil.pth"
    with pytest.raises(CheckpointError, match="would run code"):
        build_network(cfg, {"class_names": ["a", "b"], "multilabel": False})
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("http://127.0.0.1/small.pth", DataError, "is not https"),
        (
            "s3://me:secret@bucket/small.pth",
            UsageError,
            r"pretrained=s3://\*\*\*@bucket/small.pth: an address is",
        ),
        ("https://127.0.0.1/small.zip", UsageError, "a file that ends in .pth"),
        ("https://127.0.0.1/small.pth#abc", UsageError, "behind # stands sha256="),
        ("https://127.0.0.1/../small.pth", DataError, "is no plain name"),
        ("https://127.0.0.1/%2e%2e/small.pth", DataError, "is no plain name"),
        ("https://../small.pth", DataError, "is no plain name"),
    ],
)
def test_other_addresses_get_one_sentence(
    tmp_path: Path, said: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        weights_file(asking(said, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_altered_later_are_noticed(server: Server, tmp_path: Path) -> None:
    server.files["/small.pth"] = b"weights"
    cfg = asking(f"{server.address}/small.pth", tmp_path)
    path = Path(weights_file(cfg))
    path.write_bytes(b"others!")
    with pytest.raises(DataError, match="when it was first downloaded"):
        weights_file(cfg)


@pytest.mark.parametrize(
    ("size", "name", "file"),
    [
        ("unireplknet_s", "upernet_ade20k", "upernet_unireplknet_s_512_160k_ade20k_miou50.46.pth"),
        (
            "unireplknet_xl",
            "upernet_ade20k_in22k_640",
            "upernet_unireplknet_xl_in22k_640_160k_ade20k_miou55.18.pth",
        ),
        (
            "unireplknet_t",
            "casc_mask_rcnn_coco",
            "casc_mask_rcnn_unireplknet_t_in1k_3x_coco_ap51.75.pth",
        ),
        (
            "unireplknet_b",
            "casc_mask_rcnn_coco_in22k",
            "casc_mask_rcnn_unireplknet_b_in22k_3x_coco_ap54.78.pth",
        ),
    ],
)
def test_dense_networks_come_by_name_and_their_checksum_is_held(
    server: Server, tmp_path: Path, size: str, name: str, file: str
) -> None:
    server.files[f"/DingXiaoH/UniRepLKNet/resolve/main/{file}"] = b"something else"
    cfg = asking(name, tmp_path)
    cfg.backbone.name = size
    with pytest.raises(DataError, match=r"checksum|SHA-256"):
        weights_file(cfg)


@pytest.mark.parametrize(
    ("size", "name", "message"),
    [
        ("unireplknet_t", "upernet_ade20k", r"the checksum of upernet_unireplknet_t_512\S* is not known"),
        (
            "unireplknet_b",
            "upernet_ade20k",
            "not published for unireplknet_b; there are: upernet_ade20k_in22k_640",
        ),
        ("widefield_nano", "upernet_x", "not published for widefield_nano; there are: none"),
        (
            "unireplknet_xl",
            "casc_mask_rcnn_coco_in22k",
            r"the checksum of casc_mask_rcnn_unireplknet_xl_in22k\S* is not known",
        ),
        ("unireplknet_b", "casc_mask_rcnn_coco", "there are: casc_mask_rcnn_coco_in22k"),
    ],
)
def test_dense_networks_that_are_not_published(tmp_path: Path, size: str, name: str, message: str) -> None:
    cfg = asking(name, tmp_path)
    cfg.backbone.name = size
    with pytest.raises(UsageError, match=message):
        weights_file(cfg)
