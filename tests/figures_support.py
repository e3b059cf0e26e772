"""Figures in tests are blank pictures of the right size, unless a test is about them.

Rendering takes most of the time of a short run. `@pytest.mark.figures` on a test, or `with rendered():` in a fixture of
a module, renders them in full.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

_render = Figure.savefig
_wanted: list[bool] = [False]


@contextmanager
def rendered(wanted: bool = True) -> Iterator[None]:
    """Whether figures that are saved meanwhile are rendered."""
    _wanted.append(wanted)
    try:
        yield
    finally:
        _wanted.pop()


def leave_figures_blank() -> None:
    """From now on, in this process."""
    Figure.savefig = _save  # type: ignore[method-assign]


def _save(self: Figure, target: Any, *args: Any, **kwargs: Any) -> None:
    if _wanted[-1] or kwargs.get("format") != "png" or "dpi" not in kwargs:
        return _render(self, target, *args, **kwargs)
    size = [round(inches * kwargs["dpi"]) for inches in self.get_size_inches()]
    Image.new("1", (size[0], size[1]), 1).save(Path(target), "png")
    return None


def is_drawn(path: Path) -> bool:
    """Whether a file is a picture that shows something."""
    with Image.open(path) as image:
        low, high = image.convert("L").getextrema()
    return low < 128 < high
