"""The ground of all figures: style, the settings small below, names drawn as they are.

PNG at 200 dpi. matplotlib is imported where a figure is drawn: it takes a second, which `--help`
need not wait. Names are of the user's: they are never read as mathematics.
"""

import contextlib
import itertools
import logging
import os
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from common.job import printable

FONT = "DejaVu Sans"  # which matplotlib carries
STYLE = {
    "font.family": FONT,
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@cache
def load_matplotlib():
    """matplotlib, imported as if no MPLBACKEND were set: a notebook's may name one we don't have.

    What it logs below an error, such as that it has no place for a cache, is left out.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib.figure  # not pyplot, which would keep every figure in memory
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


@contextlib.contextmanager
def new_figure(
    path: Path,
    title: str,
    shape: tuple[int, int],
    size: tuple[float, float],
    settings: str = "",
    **options,
) -> Iterator[tuple]:
    """A figure of `size` inches and its (rows, columns) of axes, written when the block ends.

    The title says what is seen, `settings` of what it is, small below.
    """
    matplotlib = load_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc has
        matplotlib.rcParams.update(STYLE)
        title = wrapped(title, characters=round(12 * size[0]))
        settings = wrapped(settings, characters=round(16 * size[0]))
        more = 0.18 * lines_more([title]) + 0.15 * len(settings.splitlines())
        figure = matplotlib.figure.Figure((size[0], size[1] + more), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=11)
        figure.supxlabel(settings, fontsize=8, color="0.4")
        yield figure, figure.subplots(*shape, squeeze=False, **options)
        for text in figure.findobj(matplotlib.text.Text):
            text.set_text(drawable(text.get_text()))
        figure.savefig(path, dpi=200)


def drawable(text: str) -> str:
    """Text, lines and all, with what the font has no glyph for as <U+732B U+864E>."""
    runs = itertools.groupby(text, lambda char: char == "\n" or ord(char) in _glyphs())
    return "".join(
        "".join(run) if has_glyphs else f"<{' '.join(f'U+{ord(char):04X}' for char in run)}>"
        for has_glyphs, run in runs
    )


@cache
def _glyphs() -> frozenset[int]:
    """The code points that the font can draw."""
    fonts = load_matplotlib().font_manager
    return frozenset(fonts.get_font(fonts.findfont(FONT)).get_charmap())


def one_line(text: str) -> str:
    """A text that may hold names of the user's, drawable: newlines are escaped."""
    return drawable(printable(text))


def wrapped(text: str, characters: int) -> str:
    """A text as `one_line` has it, in lines of that many characters at most."""
    return "\n".join(textwrap.wrap(one_line(text), characters))


def lines_more(texts: Iterable[str]) -> int:
    """Lines of the longest text beyond the three that a figure has room for."""
    return max([0, *(text.count("\n") - 2 for text in texts)])
