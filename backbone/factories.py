"""Factory functions of the official sizes: ``unireplknet_t(in_chans=1)``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal, Protocol

from backbone.sizes import SIZES
from backbone.unireplknet import UniRepLKNet


class Factory(Protocol):
    """``unireplknet_a`` to ``unireplknet_xl``: same arguments as :class:`UniRepLKNet`, except for its size."""

    __name__: str

    def __call__(
        self, *, pretrained: str | Path | Literal[True] | None = None, **settings: Any
    ) -> UniRepLKNet: ...


def _factory(name: str) -> Factory:
    depths, dims = SIZES[name]

    def build(*, pretrained: str | Path | Literal[True] | None = None, **settings: Any) -> UniRepLKNet:
        model = UniRepLKNet(depths=depths, dims=dims, **settings)
        if pretrained:
            model.load_pretrained(pretrained)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""UniRepLKNet-{name.rpartition("_")[2].upper()}: depths {depths}, dims {dims}.

    Arguments are those of :class:`UniRepLKNet`, and ``pretrained``: a checkpoint file, a name
    (``in1k``, ``in22k``, ``in22k_to_in1k``), or True for the published weights that classify ImageNet-1K.
    """
    signature = inspect.signature(UniRepLKNet)
    settings = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
        if parameter.name not in ("depths", "dims")
    ]
    own = inspect.signature(build).parameters["pretrained"]
    vars(build)["__signature__"] = inspect.Signature([own, *settings], return_annotation=UniRepLKNet)
    return build


unireplknet_a = _factory("unireplknet_a")
unireplknet_f = _factory("unireplknet_f")
unireplknet_p = _factory("unireplknet_p")
unireplknet_n = _factory("unireplknet_n")
unireplknet_t = _factory("unireplknet_t")
unireplknet_s = _factory("unireplknet_s")
unireplknet_b = _factory("unireplknet_b")
unireplknet_l = _factory("unireplknet_l")
unireplknet_xl = _factory("unireplknet_xl")
