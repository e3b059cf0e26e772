"""Which parts of a network are kept as they are while the rest is trained."""

import re
from collections.abc import Sequence

STAGES = 4
ALL = ("embedder", "backbone")
_STAGES = re.compile(r"stages\.(\d)(?:-(\d))?")


def frozen_modules(freeze: str | Sequence[str] | None) -> list[str]:
    """The submodules of a `Network` that `freeze` names.

    Args:
        freeze: `none`; `all` (everything before the head, which is linear probing where the head is linear); or one or
            a list of `embedder`, `stem`, `stages.A` and `stages.A-B`, counted from 0 as the parameters are, both ends
            frozen. A stage goes with the downsampling in front of it; in front of stage 0 there is the stem, which
            has its own name, because it is what another modality needs anew.

    Raises:
        ValueError: anything else, in one sentence.

    >>> frozen_modules("stages.0-1")
    ['backbone.stages.0', 'backbone.downsample_layers.1', 'backbone.stages.1']
    """
    words = [freeze] if isinstance(freeze, str) else list(freeze or [])
    if words in ([], ["none"]):
        return []
    if words == ["all"]:
        return list(ALL)
    names: list[str] = []
    for word in words:
        found = _STAGES.fullmatch(str(word))
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if word == "embedder":
            names.append("embedder")
        elif word == "stem":
            names.append("backbone.downsample_layers.0")
        elif first <= last < STAGES:
            for stage in range(first, last + 1):
                names += [f"backbone.downsample_layers.{stage}"] if stage else []
                names.append(f"backbone.stages.{stage}")
        else:
            raise ValueError(
                f"freeze={freeze}: {word} is not one of none, all, embedder, stem, stages.A and stages.A-B "
                f"(A and B from 0 to {STAGES - 1})"
            )
    return list(dict.fromkeys(names))
