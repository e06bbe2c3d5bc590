"""The imbalance report as one picture of four panels; each panel is a function of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullLocator

from focal_tutorial.imbalance_text import number, percent
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, IGNORED, INK, MUTED, tidy

if TYPE_CHECKING:
    from focal_tutorial.imbalance import ImbalanceReport
    from focal_tutorial.imbalance_counts import Histogram

CLASSES = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#000000")  # the palette without the zones' orange
STACKED = 5  # classes shown by colour; with more, all boxes get one
BARS = 12  # classes in the panel of classes


def plot_anchor_counts(ax: Axes, report: ImbalanceReport) -> str:
    """Background, ignored and foreground anchors per image and level, as bars on a log scale."""
    names = [f"P{row.level}" for row in report.levels] + ["all"]
    kinds = {
        "background": ([row.background.mean for row in report.levels] + [report.background.mean], BACKGROUND),
        "ignored": ([row.ignored.mean for row in report.levels] + [report.ignored.mean], IGNORED),
        "foreground": ([row.foreground.mean for row in report.levels] + [report.foreground.mean], FOREGROUND),
    }
    y = np.arange(len(names), dtype=float)
    y[-1] += 0.25  # the sum stands apart
    floor = 0.1
    for i, (kind, (values, colour)) in enumerate(kinds.items()):
        shown = [max(value, floor) for value in values]
        ax.barh(y + 0.27 * (i - 1), np.array(shown) - floor, 0.25, left=floor, color=colour, label=kind)
        for at, value in zip(y + 0.27 * (i - 1), values, strict=True):
            ax.annotate(number(value), (max(value, floor), at), xytext=(3, 0), textcoords="offset points",
                        va="center", fontsize=6.5, color=INK if value else MUTED)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(floor, 12 * report.anchors_per_image)
    ratios = [b / f if f else None for b, f in zip(kinds["background"][0], kinds["foreground"][0], strict=True)]
    ax.set_yticks(
        y,
        [f"{n}\n1 : {number(r)}" if r else f"{n}\nno foreground" for n, r in zip(names, ratios, strict=True)],
    )
    ax.invert_yaxis()
    ax.set_xlabel("anchors per image (mean, log scale)", fontsize=8.5, color=INK)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False, handlelength=1)
    tidy(ax, grid="x")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    ax.xaxis.set_minor_locator(NullLocator())
    total = f"{number(report.foreground.mean)} foreground, {number(report.ignored.mean)} ignored and "
    total += f"{number(report.background.mean)} background anchors per image"
    return f"Bars on a log scale, per pyramid level: {total} over all levels, 1 : {number(report.ratio)}."


def _stacks(ax: Axes, histogram: Histogram, widths: np.ndarray) -> None:
    """The histogram's classes on top of each other, the one with most boxes at the bottom."""
    edges = np.array(histogram.edges)
    series = {name: np.array(counts) for name, counts in histogram.counts.items()}
    if len(series) > STACKED:
        series = {"all classes": np.sum(list(series.values()), axis=0)}
    bottom = np.zeros(len(edges) - 1)
    colours = dict(zip(series, CLASSES, strict=False))  # a class keeps its colour in every panel
    for name in sorted(series, key=lambda name: -series[name].sum()):
        ax.bar(edges[:-1], series[name], widths, bottom=bottom, align="edge", color=colours[name], label=name,
               edgecolor="white", linewidth=0.4)  # fmt: skip
        bottom = bottom + series[name]


def plot_box_sizes(ax: Axes, report: ImbalanceReport) -> str:
    """Box sides at the network's input, against what the anchors of each level can match."""
    edges = np.array(report.sides.edges)
    _stacks(ax, report.sides, np.diff(edges))
    need = report.thresholds["foreground_iou"]
    low = report.levels[0].sides[0] * need**0.5  # a square of this side fills `need` of the smallest anchor
    high = report.levels[-1].sides[1] / need**0.5
    used = np.nonzero(np.sum(list(report.sides.counts.values()), axis=0))[0]
    left = min(edges[used[0]] if len(used) else low, low) * 0.6
    right = max(edges[used[-1] + 1] if len(used) else high, high) * 1.9
    for start, stop in ((left, low), (high, right)):
        ax.axvspan(start, stop, color=FOREGROUND, alpha=0.1, linewidth=0)
        ax.text((start * stop) ** 0.5, 0.98, "no anchor\nmatches", transform=ax.get_xaxis_transform(), ha="center",
                va="top", fontsize=7, color=FOREGROUND)  # fmt: skip
    top = ax.get_ylim()[1]
    ax.set_ylim(0, 1.32 * top)
    for row in report.levels:  # a ruler of the anchors' sides
        y = 1.1 * top
        ax.plot(row.sides, (y, y), color=INK, linewidth=3, solid_capstyle="butt")
        ax.text((row.sides[0] * row.sides[1]) ** 0.5, y + 0.03 * top, f"P{row.level}", ha="center", va="bottom",
                fontsize=7, color=INK)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xlim(left, right)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("box side √(w·h) in pixels of the network's input (black: the anchors')", fontsize=8.5, color=INK)
    ax.set_ylabel("boxes", fontsize=8.5, color=INK)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    ax.legend(
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=STACKED,
        handlelength=1,
    )
    tidy(ax)
    sides = f"{number(report.levels[0].sides[0])} to {number(report.levels[-1].sides[1])} px"
    return f"Histogram of box sides per class, against anchors of {sides}."


def plot_best_iou(ax: Axes, report: ImbalanceReport) -> str:
    """Each box's best IoU with any anchor, over the zones of the assignment."""
    edges = np.array(report.best_ious.edges)
    _stacks(ax, report.best_ious, np.diff(edges))
    low, need = report.thresholds["background_iou"], report.thresholds["foreground_iou"]
    for start, stop, colour, name in ((0, low, BACKGROUND, "background"), (low, need, IGNORED, "ignored")):
        ax.axvspan(start, stop, color=colour, alpha=0.25, linewidth=0, zorder=0)
        ax.text((start + stop) / 2, 0.97, name, transform=ax.get_xaxis_transform(), ha="center", va="top",
                fontsize=7.5, color=INK, rotation=0 if stop - start > 0.2 else 90)  # fmt: skip
    share = percent(report.unreached, report.boxes)
    text = f"{report.unreached:,} boxes\n({share})\nno anchor\nreaches"
    ax.text(low / 2, 0.55, text, transform=ax.get_xaxis_transform(), ha="center", va="center", fontsize=9,
            color=FOREGROUND if report.unreached else MUTED)  # fmt: skip
    ax.axvline(need, color=INK, linewidth=1)
    ax.set_xlim(0, 1)
    ax.set_xlabel("best IoU of a box with any anchor", fontsize=8.5, color=INK)
    ax.set_ylabel("boxes", fontsize=8.5, color=INK)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    tidy(ax)
    text = f"{report.unreached:,} of {report.boxes:,} ({share}) lie below {need:g}"
    return f"Histogram of the best IoU of each box: {text}."


def plot_class_coverage(ax: Axes, report: ImbalanceReport) -> str:
    """Per class the share of boxes that no anchor reaches; the worst classes where there are many."""
    worst = sorted(report.classes, key=lambda row: (-row.unreached, -row.boxes))[:BARS]
    rows = sorted(worst, key=lambda row: -row.boxes)
    y = np.arange(len(rows))
    lost = np.array([row.unreached / row.boxes if row.boxes else 0.0 for row in rows])
    there = np.array([1.0 if row.boxes else 0.0 for row in rows])
    ax.barh(y, 100 * (there - lost), 0.62, left=100 * lost, color=BACKGROUND)
    ax.barh(y, 100 * lost, 0.62, color=FOREGROUND)
    for at, row in enumerate(rows):
        text = (
            f"{row.unreached:,} out of reach ({percent(row.unreached, row.boxes)})" if row.unreached else "all reached"
        )
        outside = lost[at] < 0.6
        ax.annotate(text if row.boxes else "no box", (100 * lost[at] if outside else 2, at), xytext=(5, 0),
                    textcoords="offset points", va="center", fontsize=8,
                    color=INK if outside else "white")  # fmt: skip
    names = [row.name if len(row.name) <= 18 else row.name[:17] + "…" for row in rows]
    between, unit = ("\n", " boxes") if len(rows) <= 6 else (" · ", "")
    ax.set_yticks(y, [f"{name}{between}{row.boxes:,}{unit}" for name, row in zip(names, rows, strict=True)])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 100)
    hidden = f", {len(rows)} of {len(report.classes)} classes" if len(rows) < len(report.classes) else ""
    ax.set_xlabel(f"per cent of the boxes (orange: no anchor reaches them{hidden})", fontsize=8.5, color=INK)
    tidy(ax, grid=None)
    parts = [f"{row.name} {row.boxes:,} ({row.unreached:,} out of reach)" for row in rows]
    return f"Boxes per class: {', '.join(parts)}."


def plot_imbalance_report(report: ImbalanceReport, figure: Figure | None = None) -> tuple[Figure, str]:
    """The report as one picture: anchor counts, box sizes against anchors, best IoU, classes.

    Args:
        figure: an empty one to draw on; a new one of 11 × 7.4 inches by default.

    Returns:
        The figure and its alt text.
    """
    spacing = ConstrainedLayoutEngine(hspace=0.06, wspace=0.05, h_pad=0.08, w_pad=0.08)
    figure = figure or Figure(figsize=(11, 7.4), layout=spacing)
    axes = figure.subplots(2, 2)
    panels = (
        (plot_anchor_counts, "How many anchors an image trains"),
        (plot_box_sizes, "How large the boxes are, how large the anchors"),
        (plot_best_iou, "How well the best anchor fits"),
        (plot_class_coverage, "Which classes go unseen"),
    )
    texts = []
    for ax, (panel, title) in zip(axes.flat, panels, strict=True):
        texts.append(panel(ax, report))
        pad = 22 if ax.get_legend() is not None else 6
        ax.set_title(title, fontsize=10, color=INK, loc="left", pad=pad, fontweight="bold")
    figure.suptitle(headline(report), fontsize=11.5, color=INK, x=0.012, ha="left")
    return figure, f"Imbalance report of {report.dataset}. {' '.join(texts)}"


def headline(report: ImbalanceReport) -> str:
    """The report in one line."""
    ratio = f"foreground : background = 1 : {number(report.ratio)}" if report.ratio else "no foreground anchor"
    share = percent(report.unreached, report.boxes)
    unreached = f"{report.unreached:,} of {report.boxes:,} boxes out of reach ({share})"
    bad = f"{len(report.problems) or 'no'} problem{'s' * (len(report.problems) != 1)} in the data"
    return f"{report.dataset[:40]}: {ratio}   ·   {unreached}   ·   {bad}"
