"""Colours, and what all figures share."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Literal

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

# Okabe and Ito's palette: told apart by colour-blind readers.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# For boxes on photographs: bright enough for a dark image; a dark halo keeps them visible on a light one.
BOX_COLOURS = ("#f0e442", "#56b4e9", "#ff8c42", "#4ee0b0", "#ff8fd0", "#a6c8ff", "#ffffff")
FOREGROUND, IGNORED, BACKGROUND = "#d55e00", "#e69f00", "#9fb0bb"
HIT, WRONG, MISSED = "#4ee0b0", "#ff8c42", "#f0e442"
OTHER_SCRIPTS = (
    "Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo", "Noto Sans CJK JP", "Noto Serif CJK JP",
    "Microsoft YaHei", "PingFang SC", "Arial Unicode MS",
)  # fmt: skip
INK, MUTED = "#1f2933", "#5f6c76"


def tidy(ax: Axes, *, grid: Literal["x", "y", "both"] | None = "y") -> None:
    """Take away what carries no data from `ax`: two spines, tick marks; leave a faint grid along `grid`."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9aa5ae")
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    ax.set_axisbelow(True)
    ax.grid(False)
    if grid is not None:
        ax.grid(True, axis=grid, color="#d8dee3", linewidth=0.7)


def label(ax: Axes, *, x: str = "", y: str = "", title: str = "", size: float = 9) -> None:
    """Names of the axes, `size` points high, and a title at the left."""
    ax.set_xlabel(x, fontsize=size, color=INK)
    ax.set_ylabel(y, fontsize=size, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)


@cache
def fonts() -> list[str]:
    """Font families for class names in any script: matplotlib's own, then what this machine has of `OTHER_SCRIPTS`."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


def save_figure(figure: Figure, path: str | Path, *, alt: str = "", dpi: float = 150) -> None:
    """Write `figure` to `path` (the ending chooses the format); PNG files carry `alt` as their description."""
    metadata = {"Description": alt, "Software": None} if alt and Path(path).suffix.lower() == ".png" else None
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts())
    with warnings.catch_warnings(), rc_context({"savefig.bbox": None}):  # a notebook's "tight" would change the size
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # then a frame stands in its place
        figure.savefig(path, dpi=dpi, metadata=metadata)
