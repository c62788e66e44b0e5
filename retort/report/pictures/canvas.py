"""What all pictures have in common: size, fonts, files, and the sentence that belongs to each."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from retort.artifacts.reports import Picture
from retort.io.terminal import printable

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
TEACHER, STAGE, FINAL, CHAMPION, BASELINE = "#8a6d3b", "#4c78a8", "#c2410c", "#7b5aa6", "#7a8691"
GOOD, BAD, SAME = "#2f7d4f", "#b3392f", "#b8860b"
COLORS = ("#4c78a8", "#c2410c", "#2f7d4f", "#7b5aa6", "#b8860b", "#5aa6a0", "#b3392f", "#8a6d3b", "#d77fa1", "#7a8691")
"""For groups without a meaning of their own."""
WIDTH = 4.8
"""Inches. At this width, a phone shows the letters at about their size."""
DOTS_PER_INCH = 130
_PNG_COLORS = 96
_OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei",
                  "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari")  # fmt: skip
"""Fonts for what the first one lacks, used if they are installed."""


@contextmanager
def drawn(folder: Path, picture: Picture, height: float, width: float = WIDTH) -> Iterator[Axes]:
    """Yield axes to draw on; then write `KEY.png` and `KEY.svg`. Sizes are in inches."""
    with figure_of(folder, picture.key, (width, height)) as figure:
        axes = figure.subplots()
        plain(axes)
        figure.suptitle(picture.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        yield axes


@contextmanager
def figure_of(folder: Path, name: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure; then write `NAME.png` and `NAME.svg`, the same bytes for the same figure.

    Letters stay letters in the SVG, so that the reader's fonts show every script. What is no letter in the fonts here
    is a box in the PNG.
    """
    style: Any = {
        "svg.hashsalt": f"retort-{name}",  # ids must differ between the pictures of a page
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", *_other_scripts()],
        "font.size": 9,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
    }
    with matplotlib.rc_context(style), catch_warnings():
        filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        _keep_inside(figure)
        figure.set_layout_engine("none")  # its layout is found once, not again for each file
        _save_small(figure, folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


def _keep_inside(figure: Figure) -> None:
    """A title in the middle of its axis is cut off where that is short, as beside long names: it then ends with it."""
    for axes in figure.axes:
        across, up = axes.xaxis.label, axes.yaxis.label
        if across.get_window_extent().x1 > figure.bbox.x1:
            across.set(x=1, horizontalalignment="right")
        if up.get_window_extent().y1 > figure.bbox.y1:
            up.set(y=1, horizontalalignment="right")


def _save_small(figure: Figure, path: Path) -> None:
    """Few colors make files of a third of the size, as every run leaves some in Prefect's database."""
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    painted = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    image = Image.frombuffer("RGBA", canvas.get_width_height(), painted).convert("RGB")
    image.quantize(_PNG_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines[:].set_visible(False)


def legend(axes: Axes, columns: int = 2) -> None:
    """Below the axes, where it covers nothing."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=8)


def named(text: str, most: int = 26) -> str:
    """A name from the data, short enough for an axis: both ends stay, since names often begin alike."""
    text = printable(" ".join(text.split()))
    if len(text) <= most:
        return text
    end = (most - 1) // 3
    return f"{text[: most - 1 - end]}\u2026{text[-end:]}"


@cache
def _other_scripts() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    return tuple(name for name in _OTHER_SCRIPTS if name in installed)
