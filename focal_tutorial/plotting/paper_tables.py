"""Figures of the chapters that run the paper's tables again: means with their spread, grids, differences, FL*."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from focal_tutorial.plotting.style import INK, MUTED, PALETTE, label, tidy
from focal_tutorial.table_view import Difference, Row

MARKERS = "osD^vPX"
BETTER, WORSE, UNCLEAR = PALETTE[0], PALETTE[1], "#8a96a0"


def plot_spread(
    ax: Axes,
    labels: Sequence[str],
    series: Mapping[str, Sequence[Row | float | None]],
    *,
    joined: bool = True,
    xlabel: str = "",
    ylabel: str = "AP",
    title: str = "",
) -> str:
    """Means over the seeds with ± one sample standard deviation, and each seed as a small dot beside.

    Args:
        ax: to draw on.
        labels: below the places on the x axis, from left to right.
        series: name → a row, a plain number (drawn without spread), or nothing, for each place.
        joined: whether a line joins the means of a series; not for places without an order.
        xlabel, ylabel, title: texts.
    """
    told, shift = [], 0.24 if len(series) > 1 else 0.0
    for i, (name, entries) in enumerate(series.items()):
        known = [(place, entry) for place, entry in enumerate(entries) if entry is not None]
        x = np.array([place for place, _ in known]) + shift * (i - (len(series) - 1) / 2)
        means = [entry.mean if isinstance(entry, Row) else entry for _, entry in known]
        spread = [(entry.sd or 0.0) if isinstance(entry, Row) else 0.0 for _, entry in known]
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        ax.errorbar(x, means, spread if any(spread) else None, color=colour, marker=marker, markersize=5.5, capsize=3,
                    linewidth=1.6 if joined else 0, elinewidth=1.4, label=name)  # fmt: skip
        for place, (_, entry) in zip(x, known, strict=True):
            if isinstance(entry, Row):
                dots = list(entry.values.values())
                ax.plot([place + 0.09] * len(dots), dots, "o", markersize=2.8, color="white", markeredgecolor=colour,
                        markeredgewidth=0.8, zorder=4)  # fmt: skip
        values = (f"{labels[place]}: {e}" if isinstance(e, Row) else f"{labels[place]}: {e:.1f}" for place, e in known)
        told.append(f"{name}: {', '.join(values)}")
    tidy(ax)
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.5, len(labels) - 0.5)
    label(ax, x=xlabel, y=ylabel, title=title)
    if len(series) > 1:
        ax.legend(fontsize=8.5, frameon=False)
    return f"{title + '. ' if title else ''}{ylabel} by {xlabel or 'setting'}. {'; '.join(told)}."


def plot_grid(
    ax: Axes,
    cells: Mapping[tuple[str, str], Row | float],
    *,
    framed: Sequence[tuple[str, str]] = (),
    ringed: Sequence[tuple[str, str]] = (),
    xlabel: str = "γ",
    ylabel: str = "α",
    title: str = "",
) -> str:
    """A grid of two settings as a heat map with its numbers.

    Args:
        ax: to draw on.
        cells: (column, row) → a row of a table, written as mean and spread, or a plain number.
        framed: cells with a dark frame.
        ringed: cells with a dot in the corner.
        xlabel, ylabel, title: texts.
    """
    columns, lines = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    values = np.full((len(lines), len(columns)), np.nan)
    for (column, line), cell in cells.items():
        values[lines.index(line), columns.index(column)] = cell.mean if isinstance(cell, Row) else cell
    low, high = np.nanmin(values), np.nanmax(values)
    ax.imshow(values, cmap="Blues", vmin=low - 0.1 * (high - low), vmax=high + 0.7 * (high - low), aspect="auto")
    ax.grid(False)
    for (column, line), cell in cells.items():
        x, y = columns.index(column), lines.index(line)
        text = f"{cell.mean:.1f}\n± {cell.sd or 0:.1f}" if isinstance(cell, Row) else f"{cell:.0f}"
        ax.text(x, y, text, ha="center", va="center", fontsize=9, color=INK, linespacing=1.25)
        if (column, line) in framed:
            ax.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=2))
        if (column, line) in ringed:
            ax.plot(x + 0.36, y - 0.33, "o", markersize=6.5, color=PALETTE[1])
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(lines)), lines)
    ax.tick_params(length=0, labelsize=9, colors=INK)
    ax.spines[:].set_visible(False)
    label(ax, x=xlabel, y=ylabel, title=title, size=9.5)
    best = ", ".join(f"{xlabel} = {c}, {ylabel} = {r}" for c, r in framed)
    return f"{title}: {len(cells)} cells of {xlabel} and {ylabel}, from {low:.1f} to {high:.1f}; framed: {best}."


def plot_differences(
    ax: Axes, differences: Mapping[str, Difference], *, xlabel: str = "AP against CE", title: str = ""
) -> str:
    """Differences from a reference, paired by seed, with their 95 % intervals: blue and red where they leave out 0.

    Args:
        ax: to draw on.
        differences: name → difference of at least two seeds, from top to bottom.
        xlabel, title: texts.
    """
    for y, difference in enumerate(differences.values()):
        colour = UNCLEAR if not difference.clear else BETTER if difference.mean > 0 else WORSE
        ax.errorbar(difference.mean, y, xerr=difference.margin, color=colour, marker="o", markersize=6, capsize=3,
                    elinewidth=1.6)  # fmt: skip
        dots = list(difference.values.values())
        ax.plot(dots, [y + 0.24] * len(dots), "o", markersize=2.8, color="white", markeredgecolor=colour,
                markeredgewidth=0.8)  # fmt: skip
    ax.axvline(0, color=MUTED, linewidth=1)
    tidy(ax, grid="x")
    ax.set_yticks(range(len(differences)), list(differences))
    ax.set_ylim(len(differences) - 0.5, -0.5)
    label(ax, x=xlabel, title=title)
    told = ", ".join(f"{name} {difference}" for name, difference in differences.items())
    return f"{title + '. ' if title else ''}{xlabel}, with the half width of the 95 % interval: {told}."


def plot_against_ratio(
    ax: Axes,
    points: Mapping[str, Sequence[tuple[float, Row]]],
    *,
    loose: Collection[str] = (),
    xlabel: str,
    ylabel: str = "AP",
    title: str = "",
) -> str:
    """AP over a ratio, one point a setting: mean ± sample standard deviation over a logarithmic axis.

    Args:
        ax: to draw on.
        points: group → its settings as (ratio > 0, row), ascending by ratio; a line joins a group.
        loose: groups whose points are not joined.
        xlabel, ylabel, title: texts.
    """
    told = []
    for i, (group, settings) in enumerate(points.items()):
        ax.errorbar([ratio for ratio, _ in settings], [r.mean for _, r in settings],
                    [r.sd or 0.0 for _, r in settings], color=PALETTE[i % len(PALETTE)],
                    marker=MARKERS[i % len(MARKERS)], markersize=6, capsize=2.5,
                    linewidth=0 if group in loose else 1.1, elinewidth=1, label=group)  # fmt: skip
        told.append(f"{group}: {', '.join(f'{r} at {ratio:.2g}' for ratio, r in settings)}")
    tidy(ax, grid="both")
    ax.set_xscale("log")
    label(ax, x=xlabel, y=ylabel, title=title)
    ax.legend(fontsize=8.5, frameon=False, loc="upper right", ncols=2)
    return f"{title + '. ' if title else ''}{ylabel} over {xlabel}. {'; '.join(told)}."


def plot_effective(
    ax: Axes,
    x: Tensor,
    curves: Mapping[str, Tensor],
    verdicts: Mapping[str, Difference],
    *,
    ylabel: str = "loss",
    title: str = "",
) -> str:
    """Losses or slopes over x_t, coloured by whether they beat the reference, as in the paper's Figure 7.

    Args:
        ax: to draw on.
        x: logits of the truth, (n,), ascending.
        curves: name → values (n,).
        verdicts: name → its difference from the reference; a curve without one is drawn in black, dashed.
        ylabel, title: texts.
    """
    told = []
    for name, values in curves.items():
        verdict = verdicts.get(name)
        colour, word = INK, "reference"
        if verdict is not None:
            colour, word = UNCLEAR, "not clearly different"
            if verdict.clear:
                colour, word = (BETTER, "better") if verdict.mean > 0 else (WORSE, "worse")
        ax.plot(x.tolist(), values.tolist(), color=colour, linewidth=1.6,
                linestyle="--" if verdict is None else "-", zorder=5 if verdict is None else 2)  # fmt: skip
        told.append(f"{name} ({word})")
    for word, colour in (("better", BETTER), ("not clear", UNCLEAR), ("worse", WORSE)):
        ax.plot([], [], color=colour, label=word)
    ax.plot([], [], color=INK, linestyle="--", label="reference")
    tidy(ax, grid="both")
    label(ax, x="logit of the truth, $x_t$", y=ylabel, title=title)
    return f"{title + ': ' if title else ''}{ylabel} over the logit of the truth: {', '.join(told)}."
