"""Freezing of parts of a network."""

import re
from collections.abc import Sequence

from backbone.protocol import Backbone

ALL = ("embedder", "backbone")
_STAGES = re.compile(r"stages\.(\d)(?:-(\d))?")


def frozen_modules(freeze: str | Sequence[str] | None, backbone: Backbone) -> list[str]:
    """The submodules and parameters of a `Network` that `freeze` names.

    Args:
        freeze: `none`; `all` (everything before the head, which is linear probing where the head is linear); or one or
            a list of `embedder`, `stem`, `stages.A` and `stages.A-B` (inclusive), numbered from 0 as in the parameter
            names. A stage includes the downsampling layer before it, except for stage 0: the stem before it has a name
            of its own, because a new modality needs a new stem. The network's own stage names (`layer1` of a ResNet)
            are accepted as well.
        backbone: the network's backbone.

    Raises:
        ValueError: any other value.
    """
    words = [freeze] if isinstance(freeze, str) else list(freeze or [])
    if words in ([], ["none"]):
        return []
    if words == ["all"]:
        return list(ALL)
    stages = backbone.stage_parts()
    names: list[str] = []
    for word in map(str, words):
        found = _STAGES.fullmatch(word)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        own = [part for stage in stages for part in stage if part == word or part.endswith(f".{word}")]
        if word == "embedder":
            names.append("embedder")
        elif word == "stem":
            names += [f"backbone.{part}" for part in backbone.stem_parts()]
        elif first <= last < len(stages):
            names += [f"backbone.{part}" for stage in stages[first : last + 1] for part in stage]
        elif own:
            names += [f"backbone.{part}" for part in own]
        else:
            raise ValueError(
                f"freeze={freeze}: {word} is not one of none, all, embedder, stem, stages.A and stages.A-B "
                f"(A and B from 0 to {len(stages) - 1})"
            )
    return list(dict.fromkeys(names))
