"""Examples of docstrings as code in the reference: a Griffe extension."""

import re
from typing import Any

import griffe

_SINGULAR = re.compile(r"^( *)Example:$", re.MULTILINE)
_BARE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)  # at the left edge, up to an empty line


class Doctests(griffe.Extension):
    """`Example:` counts as `Examples:`, and examples outside such a section become blocks of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = _SINGULAR.sub(r"\1Examples:", obj.docstring.value)
        obj.docstring.value = _BARE.sub(lambda found: f"\n```pycon\n{found[0]}\n```\n", text)
