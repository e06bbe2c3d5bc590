"""Figures of the chapter on anchors, OHEM and speed: shapes of boxes, what a sampler keeps, accuracy over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from focal_tutorial.coverage import Array, LevelGrid
from focal_tutorial.plotting.paper_tables import MARKERS
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, INK, PALETTE, label, tidy
from focal_tutorial.table_view import Row

Point = tuple[str, Row | float, Row | float]  # name, milliseconds, AP


def plot_box_shapes(
    ax: Axes,
    boxes: Array,
    reached: NDArray[np.bool_],
    grids: Sequence[LevelGrid],
    *,
    title: str = "",
    ylabel: bool = True,
) -> str:
    """Width and height of boxes as dots, coloured by whether an anchor reaches them, and of the anchors as crosses.

    Args:
        ax: to draw on.
        boxes: (M, 4) xyxy in pixels.
        reached: (M,) bool.
        grids: the anchors, from `coverage.anchor_grids`.
        title: written above, with the share that is reached.
        ylabel: whether the axis says its name.
    """
    sides = boxes[:, 2:] - boxes[:, :2]  # (M, 2)
    for which, name, colour in ((reached, "reached", BACKGROUND), (~reached, "out of reach", FOREGROUND)):
        ax.plot(*sides[which].T, "o", markersize=3, markeredgewidth=0, alpha=0.75, color=colour, label=name,
                rasterized=True)  # fmt: skip
    anchors = np.concatenate([grid.sides for grid in grids])
    ax.plot(*anchors.T, "P", markersize=6.5, markeredgewidth=0.6, markeredgecolor="white", color=INK, label="anchor")
    for set_scale, axis in ((ax.set_xscale, ax.xaxis), (ax.set_yscale, ax.yaxis)):
        set_scale("log", base=2)
        axis.set_major_locator(FixedLocator([8, 16, 32, 64]))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_locator(NullLocator())
    low, high = sides.min() / 1.15, sides.max() * 1.15
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    tidy(ax, grid="both")
    label(ax, x="width, px")
    if ylabel:
        ax.set_ylabel("height, px", fontsize=9, color=INK)
    share = 100 * reached.mean()
    ax.set_title(f"{title}: {share:.0f} % reached", fontsize=10, loc="left", color=INK)
    return f"{title}: width and height of {len(boxes)} boxes, {share:.0f} % reached by one of the anchors' shapes."


def plot_selected(
    ax: Axes,
    batches: Sequence[int],
    kept: Mapping[str, Sequence[float]],
    *,
    limit: float | None = None,
    ylabel: str = "",
    title: str = "",
) -> str:
    """Bars in groups: what a sampler keeps at each batch size, one bar for each way of choosing.

    Args:
        ax: to draw on.
        batches: anchors chosen an image; one group each.
        kept: way → a number for each batch.
        limit: a dashed line: what it would be with all anchors.
        ylabel, title: texts.
    """
    width = 0.8 / len(kept)
    for i, (name, values) in enumerate(kept.items()):
        x = np.arange(len(batches)) + width * (i - (len(kept) - 1) / 2)
        ax.bar(x, values, 0.9 * width, color=PALETTE[i % len(PALETTE)], label=name)
    if limit is not None:
        ax.axhline(limit, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="all anchors")
    tidy(ax)
    ax.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    label(ax, x="anchors chosen an image", y=ylabel, title=title)
    told = "; ".join(f"{name}: {', '.join(f'{value:.1f}' for value in values)}" for name, values in kept.items())
    return f"{title or ylabel} for {', '.join(map(str, batches))} anchors an image. {told}."


def plot_speed(ax: Axes, series: Mapping[str, Sequence[Point]], *, xlabel: str = "", title: str = "") -> str:
    """Accuracy against time as in the paper's Figure 2: a line for each network, a point for each size of the image.

    Args:
        ax: to draw on.
        series: network → (name of the point, milliseconds, AP), fastest first; rows are drawn with ± one sample
            standard deviation, both ways.
        xlabel, title: texts.
    """
    told = []
    for i, (name, points) in enumerate(series.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        names = [point[0] for point in points]
        (x, dx), (y, dy) = _with_spread([point[1] for point in points]), _with_spread([point[2] for point in points])
        ax.errorbar(x, y, dy if any(dy) else None, dx if any(dx) else None, color=colour, marker=marker,
                    markersize=6, capsize=2.5, linewidth=1.6, elinewidth=1.2, label=name)  # fmt: skip
        first = i % 2 == 0
        shift, align = (0, -8 if first else 8), ("center", "top" if first else "bottom")
        if any(dy):  # beside the bars
            shift, align = ((-6, 4), ("right", "bottom")) if first else ((6, -4), ("left", "top"))
        for text, place in zip(names, zip(x, y, strict=True), strict=True):
            ax.annotate(text, place, xytext=shift, textcoords="offset points", ha=align[0], va=align[1], fontsize=8.5,
                        color=colour)  # fmt: skip
        reached = (f"{text} {a:.1f} ms, AP {b:.1f}" for text, a, b in zip(names, x, y, strict=True))
        told.append(f"{name}: {', '.join(reached)}")
    tidy(ax, grid="both")
    ax.margins(0.12, 0.16)
    label(ax, x=xlabel or "milliseconds an image", y="AP", title=title)
    ax.legend(fontsize=8.5, frameon=False, loc="lower right")
    return f"{title + '. ' if title else ''}AP over {xlabel or 'milliseconds an image'}. {'; '.join(told)}."


def _with_spread(values: Sequence[Row | float]) -> tuple[list[float], list[float]]:
    """Means and standard deviations; 0 for plain numbers."""
    means = [value.mean if isinstance(value, Row) else float(value) for value in values]
    return means, [(value.sd or 0.0) if isinstance(value, Row) else 0.0 for value in values]


def plot_by_share(
    ax: Axes, series: Mapping[str, Sequence[Point]], *, reference: Row | float | None = None, xlabel: str = ""
) -> str:
    """AP over a share in per cent, on a logarithmic axis, with ± one sample standard deviation.

    Args:
        ax: to draw on.
        series: kind → (name of the point or "", share in per cent, AP).
        reference: AP of a dashed line, with its spread as a band.
        xlabel: what the share is of.
    """
    told = []
    for i, (name, points) in enumerate(series.items()):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        (x, _), (y, dy) = _with_spread([point[1] for point in points]), _with_spread([point[2] for point in points])
        ax.errorbar(x, y, dy if any(dy) else None, color=colour, marker=marker, markersize=6.5, capsize=3, linewidth=0,
                    elinewidth=1.4, label=name)  # fmt: skip
        for (text, *_), a, b, up in zip(points, x, y, dy, strict=True):
            if i % 2 == 0:
                ax.annotate(text, (a, b), xytext=(-7, 0), textcoords="offset points", ha="right", va="center",
                            fontsize=8.5, color=colour)  # fmt: skip
            else:  # above its bar: two series may stand close together
                ax.annotate(text, (a, b + up), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom",
                            fontsize=8.5, color=colour)  # fmt: skip
        reached = (f"{point[0] or name} at {a:.1f} % AP {b:.1f}" for point, a, b in zip(points, x, y, strict=True))
        told.append(f"{name}: {', '.join(reached)}")
    if reference is not None:
        (mean,), (spread,) = _with_spread([reference])
        ax.axhline(mean, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        ax.axhspan(mean - spread, mean + spread, color=INK, alpha=0.08, linewidth=0)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(0.14, 0.08)
    tidy(ax, grid="both")
    label(ax, x=xlabel, y="AP")
    ax.legend(fontsize=8.5, frameon=False)
    return f"AP over {xlabel}. {'; '.join(told)}."
