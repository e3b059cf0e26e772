"""`backbone.pretrained=https://…` or `hf://OWNER/REPOSITORY/FILE`: downloads weights once; also those of dense
networks, by name."""

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from omegaconf import DictConfig

from backbone.published_dense import dense_address
from tasks.datasets.download import Source, download
from tasks.datasets.names import plain_name
from tasks.disk import writing
from tasks.secrets import mask
from workbench.errors import UsageError

MOST_GB = 20.0
ENDINGS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
HUB = "https://huggingface.co"


def weights_file(cfg: DictConfig) -> str | Literal[True]:
    """Resolve `cfg.backbone.pretrained`: an address, or the name of a dense network's published weights
    (`backbone.published_dense`), becomes a local file; true and other strings are returned unchanged.

    An address may end in `#sha256=…`, the expected checksum. Files are kept in `data/weights/HOST/…` and read like any
    other checkpoint: tensors only.

    Raises:
        UsageError: an unsupported address.
        DataError: the download fails.
    """
    if cfg.backbone.pretrained is True:
        return True
    said = str(cfg.backbone.pretrained)
    try:
        said = dense_address(str(cfg.backbone.get("name", "")), said) or said
    except ValueError as error:
        raise UsageError(f"backbone.pretrained: {error}") from error
    if "://" not in said:
        return said
    source = _source(said)
    parts = urlsplit(source.url)
    names = [plain_name(name) for name in [parts.hostname or "", *unquote(parts.path).split("/")] if name]
    path = Path(cfg.paths.data, "weights", *names)
    with writing(path, "or choose another folder with paths.data=FOLDER"):
        download(source, path)
    return str(path)


def _source(said: str) -> Source:
    address, _, checksum = said.partition("#")
    if found := re.fullmatch(r"hf://([^/]+/[^/]+)/(.+)", address):
        address = f"{os.environ.get('HF_ENDPOINT', HUB)}/{found[1]}/resolve/main/{found[2]}"
    sha256 = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", checksum)
    if checksum and sha256 is None:
        raise UsageError(
            f"backbone.pretrained={mask(said)}: behind # stands sha256= and 64 hexadecimal digits"
        )
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.path.endswith(ENDINGS):
        raise UsageError(
            f"backbone.pretrained={mask(said)}: an address is https://… or hf://OWNER/REPOSITORY/… of a file that ends "
            f"in {', '.join(ENDINGS)}"
        )
    return Source(address, sha256[1].lower() if sha256 else None, MOST_GB)
