"""Checkpoints: read them safely, adapt them to a network, report the result.

    >>> report = load_pretrained(model, "in1k")                    # doctest: +SKIP
    >>> print(report)                                              # doctest: +SKIP
    in1k (unireplknet_t_in1k_224_acc83.21.pth): 1114 tensors loaded; left out head.weight, head.bias

Files are only read as tensors (``weights_only=True``): a pickle that would run code is rejected.
Everything is checked before the first tensor is written: a rejected checkpoint leaves the network unchanged.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from backbone.sizes import HUB_REPO, NAMES, PUBLISHED, SIZES

_FIRST_CONV = "downsample_layers.0.0.weight"
_HEAD = re.compile(r"(norm\d?|head)\.")
_FEATURE_NORM = re.compile(r"norm\d\.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, trusted or loaded; the message is one sentence."""


class DamagedCheckpoint(CheckpointError):
    """A corrupt checkpoint file."""


class Loadable(Protocol):
    """The interface that loading requires of a network, e.g. :class:`~backbone.unireplknet.UniRepLKNet`."""

    in_chans: int
    depths: tuple[int, ...]
    dims: tuple[int, ...]

    @property
    def deploy(self) -> bool: ...

    def train_form(self, layer_scale_init_value: float | None) -> Self: ...

    def reparameterize(self) -> Self: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...


@dataclass
class LoadReport:
    """Result of :func:`load_pretrained`; ``str(report)`` is one line.

    Attributes:
        source: the file, or the name with its file.
        loaded: number of tensors written into the network.
        adapted: descriptions of the adaptations made.
        left_out: names of unused tensors of the checkpoint.
        initial: names of the network's tensors missing in the checkpoint, left unchanged.
    """

    source: str
    loaded: int = 0
    adapted: list[str] = field(default_factory=list)
    left_out: dict[str, Tensor] = field(default_factory=dict)
    initial: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        if self.adapted:
            parts.append(f"adapted {', '.join(self.adapted)}")
        if self.left_out:
            parts.append(f"left out {_some(self.left_out)}")
        if self.initial:
            parts.append(f"not in the checkpoint: {_some(self.initial)}")
        return f"{self.source}: {'; '.join(parts)}"


def load_pretrained(model: Loadable, source: str | Path | Literal[True]) -> LoadReport:
    """Load a checkpoint into ``model``, in place.

    Differences are adapted where possible. The first convolution is adapted to any number of input channels
    (:func:`adapt_first_conv`). The classifier is skipped if the number of classes differs, along with its norm
    if the network has none. A train-form checkpoint is merged when loaded into a deploy-form network.

    Args:
        model: the network, in train or deploy form.
        source: path of a ``.pth``, ``.ckpt`` or ``.safetensors`` file (a state dict, alone or under ``model``
            or ``state_dict``, with any prefix such as ``backbone.``); or ``"in1k"``, ``"in22k"``,
            ``"in22k_to_in1k"`` for the published weights of this size on the Hugging Face hub; or True for the
            ImageNet-1K classification weights.

    Returns:
        A report of the loaded, adapted and unused tensors.

    Raises:
        CheckpointError: no such file or name, unreachable hub, a file that is corrupt or would run code,
            weights of another architecture, or a deploy-form checkpoint for a train-form network.
    """
    path, label = _locate(model, default_source(model) if source is True else source)
    return load_weights(model, weights_in(read_safely(path), path), label)


def load_weights(model: Loadable, content: Mapping[str, Any], label: str) -> LoadReport:
    """Like :func:`load_pretrained`, from tensors in memory; ``label`` names them in messages."""
    state, other = _network_part(content, label)
    merged = any(name.endswith(".pwconv2.0.bias") for name in state)
    if merged and not model.deploy:
        raise CheckpointError(
            f"{label} is in deploy form (branches already merged), the network in train form: "
            "build it with deploy=True, or load the train-form checkpoint"
        )
    if merged or not model.deploy:
        return _load(model, state, other, label)
    twin = _train_form(model, state)
    report = _load(twin, state, other, label)
    model.load_state_dict(twin.reparameterize().state_dict())
    report.adapted.append("train form (merged into deploy form)")
    return report


def adapt_first_conv(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt a first convolution ``(O, c, 3, 3)`` to another number of input channels, ``(O, in_chans, 3, 3)``.

    For one channel: the sum over channels, equivalent to repeating a grey image c times.
    For n channels: the channels repeated cyclically, scaled by c/n to preserve the magnitude of activations.

    >>> adapt_first_conv(torch.ones(2, 3, 3, 3), 1)[0, 0, 0, 0].item()
    3.0
    """
    channels = weight.shape[1]
    if in_chans == channels:
        return weight
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    order = torch.arange(in_chans) % channels
    return weight[:, order] * (channels / in_chans)


def default_source(model: Loadable) -> str:
    """Name of the published ImageNet-1K classification weights of this size.

    Raises:
        CheckpointError: no weights are published for this network.
    """
    return next(iter(_published(model)))


def _published(model: Loadable) -> dict[str, str]:
    for name, (depths, dims) in SIZES.items():
        if (depths, dims) == (model.depths, model.dims):
            return PUBLISHED[name]
    raise CheckpointError(
        f"no weights are published for depths {model.depths} with dims {model.dims}: "
        f"the published sizes are {', '.join(PUBLISHED)}"
    )


def _locate(model: Loadable, source: str | Path) -> tuple[Path, str]:
    """Local path of the checkpoint, and its name in messages."""
    if isinstance(source, str) and source in NAMES:
        return _fetch(model, source)
    path = Path(source).expanduser()
    if path.is_file():
        return path, path.name
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint file")
    if isinstance(source, str) and path.name == source and not path.suffix:
        raise CheckpointError(f"unknown weights {source!r}: use {', '.join(NAMES)} or the path of a file")
    raise CheckpointError(f"there is no checkpoint file {path}")


def _fetch(model: Loadable, name: str) -> tuple[Path, str]:
    import huggingface_hub  # slow to import and not needed for local files

    published = _published(model)
    if name not in published:
        raise CheckpointError(f"{name} weights are not published for this size, only {', '.join(published)}")
    file = published[name]
    try:
        path = huggingface_hub.hf_hub_download(repo_id=HUB_REPO, filename=file)
    except Exception as error:  # the remedy is the same for any cause (network, proxy, disk, hub)
        url = f"https://huggingface.co/{HUB_REPO}/resolve/main/{file}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"could not fetch {file} from the Hugging Face repository {HUB_REPO} ({reason}): "
            f"download {url} by hand and give its path instead of {name!r}, pretrained=PATH/{file}"
        ) from error
    return Path(path), f"{name} ({file})"


def read_safely(path: Path, map_location: Any = "cpu") -> Any:
    """Content of a PyTorch file, read without executing code.

    PyTorch's archives contain CRC-32 checksums, which PyTorch itself does not verify when reading; here all are
    verified first. Files in the old format and ``.safetensors`` have none.

    Raises:
        DamagedCheckpoint: a truncated or corrupt file.
        CheckpointError: a file that would execute code when read; the message names that code.
    """
    try:
        check_archive(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official script stores its options
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"(?:GLOBAL|global|class) ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} is refused: loading it would run code ({found[1]}), not only read tensors"
            ) from None
        raise DamagedCheckpoint(f"{path} is not a checkpoint that PyTorch can read, or is damaged") from None
    except CheckpointError:
        raise
    except Exception as error:  # truncated zip, empty file, bad header: each library raises its own exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(f"{path} is damaged or incomplete, or no checkpoint ({reason})") from error


def check_archive(path: Path) -> None:
    """Verify the checksums of a zip archive; any other file passes.

    Raises:
        DamagedCheckpoint: a member does not match its checksum, or the members are larger than the file.
        zipfile.BadZipFile, OSError, ...: other errors from :mod:`zipfile`.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise DamagedCheckpoint(f"{path} is compressed or damaged: it claims to hold more than its size")
        if wrong := archive.testzip():
            raise DamagedCheckpoint(f"{path} is damaged: the checksum of {wrong!r} in it is wrong")


def weights_in(content: Any, path: Path) -> Mapping[str, Any]:
    """The state dict in a file's content, at the top level or under ``model`` or ``state_dict``."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not the weights of a network")
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            return dict(content[key])
    return content


def _network_part(content: Mapping[str, Any], label: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's tensors without name prefix, and all other tensors (e.g. a task's head)."""
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    prefixes = sorted((n.removesuffix(_FIRST_CONV) for n in tensors if n.endswith(_FIRST_CONV)), key=len)
    if not prefixes:
        raise CheckpointError(f"{label} holds no UniRepLKNet weights (there is no {_FIRST_CONV})")
    prefix = prefixes[0]
    inside: dict[str, Tensor] = {}
    outside: dict[str, Tensor] = {}
    for name, value in tensors.items():
        short = name.removeprefix(prefix)
        belongs = name.startswith(prefix) and (
            prefix or short.startswith(("downsample_layers.", "stages.")) or _HEAD.match(short)
        )
        (inside if belongs else outside)[short if belongs else name] = value
    return inside, outside


def _train_form(model: Loadable, state: Mapping[str, Tensor]) -> Loadable:
    """A train-form copy of ``model`` on the CPU, with a layer scale as in the checkpoint."""
    has_gamma = any(re.fullmatch(r"stages\.\d+\.\d+\.gamma", name) for name in state)
    with torch.random.fork_rng(devices=[]):
        twin = model.train_form(1e-6 if has_gamma else None)
    own = twin.state_dict()
    shared = {n: v.cpu() for n, v in model.state_dict().items() if n in own}
    twin.load_state_dict(shared, strict=False)  # tensors missing in the checkpoint keep the model's values
    return twin


def _load(
    model: Loadable, state: Mapping[str, Tensor], other: Mapping[str, Tensor], label: str
) -> LoadReport:
    own = model.state_dict()
    report = LoadReport(label, left_out=dict(other))
    fitted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == _FIRST_CONV and value.ndim == 4 and value.shape[1] != model.in_chans:
            report.adapted.append(f"{name} ({value.shape[1]} -> {model.in_chans} input channels)")
            value = adapt_first_conv(value, model.in_chans)
        if _HEAD.match(name) and (name not in own or own[name].shape != value.shape):
            report.left_out[name] = value
        else:
            fitted[name] = value

    missing = [n for n in own if n not in fitted]
    report.initial = [n for n in missing if _HEAD.match(n)]
    # Feature norms occur only in the files of dense networks, which have all of them.
    dense = any(_FEATURE_NORM.match(n) for n in fitted)
    report.initial = [n for n in report.initial if not (dense and _FEATURE_NORM.match(n))]
    wrong = [n for n in missing if n not in report.initial and not n.endswith(".num_batches_tracked")]
    wrong += [n for n in fitted if n not in own or own[n].shape != fitted[n].shape]
    if wrong:
        norms = _norms(state) != _norms(own)
        raise CheckpointError(
            f"{label} does not fit this network: it holds {_describe(state, norms)}, the network is "
            f"{_describe(own, norms)}, and {_some(wrong)} differ"
        )
    model.load_state_dict(fitted, strict=False)
    report.loaded = len(fitted)
    return report


def _describe(state: Mapping[str, Tensor], norms: bool) -> str:
    """Depths, dims and, where asked, norms, inferred from the names and shapes of a state dict."""
    depths = [0, 0, 0, 0]
    for name in state:
        if found := re.match(r"stages\.([0-3])\.(\d+)\.", name):
            stage, block = int(found[1]), int(found[2])
            depths[stage] = max(depths[stage], block + 1)
    lasts = ["downsample_layers.0.3.weight", *(f"downsample_layers.{i}.0.weight" for i in (1, 2, 3))]
    dims = [state[n].shape[0] if n in state and state[n].ndim else 0 for n in lasts]
    return f"depths {tuple(depths)}, dims {tuple(dims)}" + (f" with {_norms(state)} norms" if norms else "")


def _norms(state: Mapping[str, Tensor]) -> str:
    """Which norms stand between the stages (`downsample_norm`), inferred likewise."""
    if "downsample_layers.1.1.running_mean" in state:
        return "batch"
    return "layer" if "downsample_layers.1.1.weight" in state else "merged batch"


def _some(names: Mapping[str, Any] | list[str], most: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
