"""Saves a report's figures: PNG for light and dark pages, SVG and PDF for papers."""

from pathlib import Path

import matplotlib
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from workbench import figures
from workbench.files import write_atomically

DARK = "_dark"  # file name suffix of the rendering for dark pages
SUFFIXES = (".png", ".svg", ".pdf")
BLACKEST, WHITEST = 0.09, 0.92  # grey range of a dark page
DPI = 120
MOST_SHAPES = 500  # lines with more points are rasterised in SVG and PDF


def save(figure: Figure, path: Path, note: str | None) -> None:
    """Write `path` (PNG), the same as SVG and PDF, and `NAME_dark.png`; `note` is the provenance note, if any."""
    figures.say_provenance(figure, note)
    for line in figure.findobj(Line2D):
        line.set_rasterized(len(line.get_xdata()) > MOST_SHAPES)  # type: ignore[arg-type]
    figure.set_dpi(DPI)  # text widths depend slightly on the DPI
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is computed once for all files
    # Keep text as text, and make the files reproducible.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": path.stem}):
        for suffix in SUFFIXES:
            _write(figure, path.with_suffix(suffix))
        darken(figure)
        _write(figure, path.with_stem(path.stem + DARK))


def _write(figure: Figure, path: Path) -> None:
    kind = path.suffix.removeprefix(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    write_atomically(path, lambda draft: figure.savefig(draft, dpi=DPI, format=kind, metadata=undated))


def darken(figure: Figure) -> None:
    """Adapt a figure to a dark page in place: greys are inverted, colours are kept."""
    for part in figure.findobj():
        if isinstance(part, (Text, Line2D)):
            part.set_color(_inverted(part.get_color()))
        elif isinstance(part, Patch):
            edge = part.get_edgecolor()
            part.set_facecolor(_inverted(part.get_facecolor()))
            part.set_edgecolor(_inverted(edge))
        elif isinstance(part, Collection):
            part.set_edgecolor([_inverted(colour) for colour in part.get_edgecolor()])
    for panel in figure.axes:  # includes ticks created when drawing
        panel.tick_params(which="both", colors=_inverted("black"), grid_color=_inverted("0.69")[:3])


def _inverted(colour: object) -> tuple[float, float, float, float]:
    """Invert a grey; other colours are returned unchanged."""
    red, green, blue, alpha = to_rgba(colour)  # type: ignore[arg-type]
    if max(red, green, blue) - min(red, green, blue) > 0.02:
        return red, green, blue, alpha
    grey = BLACKEST + (1 - red) * (WHITEST - BLACKEST)
    return grey, grey, grey, alpha
