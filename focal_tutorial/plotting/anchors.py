"""Figures of the chapter on anchors and matching: where anchors stand, what they reach, and who answers for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from focal_tutorial.plotting.images import as_array, as_picture, draw_boxes
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, IGNORED, INK, MUTED, PALETTE, tidy

SHADE = "#e6ebef"  # paper under a drawing


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize=9.5, color=INK, loc="left")


def _frame(ax: Axes, box: np.ndarray, colour: str, **options: Any) -> None:
    x1, y1, x2, y2 = box
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **{"fill": False, "edgecolor": colour, **options}))


def _show(ax: Axes, image: Any, *, grey: bool = True) -> tuple[int, int]:
    """`image` with pixel i between i and i + 1, as boxes count; returns its (height, width)."""
    picture = as_picture(image)
    height, width = picture.shape[:2]
    ax.imshow(picture.mean(2) if grey else picture, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    ax.set_axis_off()
    return height, width


def draw_cell(ax: Axes, cell: Any, stride: float, *, ratios: Sequence[str], title: str = "") -> str:
    """The anchors of one location over the grid of their level, coloured by ratio.

    Args:
        cell: (A, 4) xyxy around the origin, ratio-major, as `cell_anchors` gives them.
        stride: pixels between locations.
        ratios: names of the ratios, in order.
    """
    boxes = as_array(cell, float)
    reach = 1.08 * np.abs(boxes).max()
    ax.add_patch(Rectangle((-stride / 2, -stride / 2), stride, stride, facecolor=SHADE, edgecolor="none"))
    lines = np.arange(-reach // stride, reach // stride + 2) * stride - stride / 2
    ax.vlines(lines, -reach, reach, color=SHADE, linewidth=0.8, zorder=0)
    ax.hlines(lines, -reach, reach, color=SHADE, linewidth=0.8, zorder=0)
    per_ratio = len(boxes) // len(ratios)
    for i, box in enumerate(boxes):
        name = ratios[i // per_ratio] if i % per_ratio == 0 else None
        _frame(ax, box, PALETTE[i // per_ratio], linewidth=1.6, label=name)
    ax.plot(0, 0, "o", color=INK, markersize=4)
    ax.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
    tidy(ax, grid=None)
    ax.set_xlabel("pixels from the location", fontsize=8.5, color=INK)
    ax.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="height : width",
              title_fontsize=8.5)  # fmt: skip
    _title(ax, title)
    sides = boxes[:, 2:] - boxes[:, :2]
    return f"{len(boxes)} boxes around one point, {sides.min():.0f} to {sides.max():.0f} pixels long on a side."


def plot_side_ladder(ax: Axes, sides: Mapping[str, Sequence[float]]) -> str:
    """The side of every anchor size on one octave axis, level by level.

    Args:
        sides: level's name → sides of its square anchors in pixels.
    """
    names = list(sides)
    for place, values in enumerate(sides.values()):
        at = len(names) - 1 - place
        colour = PALETTE[place % len(PALETTE)]
        ax.hlines(at, min(values), max(values), color=colour, linewidth=1.2, alpha=0.6)
        ax.plot(values, [at] * len(values), "s", color=colour, markersize=6)
        text = ", ".join(f"{value:.0f}" for value in values)
        ax.annotate(text, (min(values), at), xytext=(0, 7), textcoords="offset points", fontsize=8, color=INK)
    every = [value for values in sides.values() for value in values]
    ax.set_xscale("log", base=2)
    ax.set_yticks(range(len(names)), names[::-1])
    ax.set(ylim=(-0.5, len(names) - 0.35), xlim=(min(every) / 1.25, 1.5 * max(every)))
    tidy(ax, grid="x")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_xlabel("side of the square anchor in pixels; each grid line is an octave", fontsize=8.5, color=INK)
    return f"{len(every)} sides from {min(every):.0f} to {max(every):.0f} pixels, {len(names)} levels."


def draw_level(
    ax: Axes, image: Any, anchors: Any, stride: int, at: tuple[float, float], *, per_location: int, title: str = ""
) -> str:
    """One level on the image: a dot at every location, and the anchors of the location nearest to `at`.

    Args:
        image: as `as_picture` takes it; drawn in grey from the upper left corner.
        anchors: (R_l, 4) xyxy of the level.
        stride: pixels between locations.
        at: (x, y) in pixels.
        per_location: A.
    """
    boxes = as_array(anchors, float).reshape(-1, per_location, 4)  # (locations, A, 4)
    centres = (boxes[:, 0, :2] + boxes[:, 0, 2:]) / 2
    right, bottom = centres.max(0) + stride / 2
    _show(ax, image)
    ax.images[0].set_alpha(0.5)
    _frame(ax, np.array([0, 0, right, bottom]), MUTED, linewidth=1)
    ax.plot(*centres.T, "o", color=FOREGROUND, markersize=min(4.0, 0.7 + stride / 32), markeredgewidth=0)
    chosen = int(np.square(centres - np.array(at)).sum(1).argmin())
    for box in boxes[chosen]:
        _frame(ax, box, PALETTE[0], linewidth=1.2)
    low, high = (np.minimum(0, boxes[chosen][:, :2].min(0)), np.maximum((right, bottom), boxes[chosen][:, 2:].max(0)))
    ax.set(xlim=(low[0] - 8, high[0] + 8), ylim=(high[1] + 8, low[1] - 8), aspect="equal")
    ax.set_axis_off()
    _title(ax, title)
    return f"{len(boxes)} locations at stride {stride}, with the {per_location} anchors of one of them."


def plot_level_counts(ax: Axes, counts: Mapping[str, int]) -> str:
    """Anchors per level as bars, with their share of all."""
    names, values = list(counts), list(counts.values())
    places = np.arange(len(names))[::-1]
    ax.barh(places, values, color=PALETTE[0], height=0.62)
    for place, value in zip(places, values, strict=True):
        share = f"{value:,}  ({100 * value / sum(values):.1f} %)"
        ax.annotate(share, (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5,
                    color=INK)  # fmt: skip
    ax.set_yticks(places, names)
    ax.set_xlim(0, 1.75 * max(values))
    tidy(ax, grid=None)
    ax.spines["bottom"].set_visible(False)
    ax.set_xticks([])
    _title(ax, f"all levels: {sum(values):,}")
    return f"Bars: {', '.join(f'{name} {value:,}' for name, value in counts.items())}, {sum(values):,} in all."


def plot_centres(ax: Axes, size: tuple[int, int], grids: Mapping[str, Any], *, title: str = "") -> str:
    """Where several programs put the locations of one level.

    Args:
        size: (height, width) of the input in pixels.
        grids: program → (n, 2) x and y of the locations in pixels.
    """
    height, width = size
    ax.add_patch(Rectangle((0, 0), width, height, facecolor=SHADE, edgecolor=MUTED, linewidth=0.8))
    parts = []
    for (name, points), marker, colour in zip(grids.items(), "o+x", (PALETTE[2], PALETTE[0], PALETTE[1]), strict=False):
        xy = as_array(points, float)
        ax.plot(*xy.T, marker, color=colour, markersize=5 if marker == "o" else 7, linestyle="none", label=name,
                markeredgewidth=0 if marker == "o" else 1.5)  # fmt: skip
        parts.append(f"{name}: last at ({xy[:, 0].max():.0f}, {xy[:, 1].max():.0f})")
    every = np.concatenate([as_array(points, float) for points in grids.values()])
    ax.set(xlim=(-40, max(width, every[:, 0].max()) + 40), ylim=(max(height, every[:, 1].max()) + 40, -40))
    ax.set_aspect("equal")
    tidy(ax, grid=None)
    ax.legend(fontsize=8.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
    _title(ax, title)
    return f"Locations over an input of {height} by {width} pixels. {'; '.join(parts)}."


def draw_overlap(ax: Axes, anchor: Sequence[float], box: Sequence[float]) -> str:
    """Two boxes on squared paper, their intersection shaded; the areas are those to count."""
    pair = np.array([anchor, box], float)
    low, high = pair[:, :2].max(0), pair[:, 2:].min(0)
    shared = float((high - low).clip(0).prod())
    areas = (pair[:, 2:] - pair[:, :2]).prod(1)
    right, bottom = np.ceil(pair[:, 2:].max(0)) + 1
    ax.vlines(np.arange(right + 1), 0, bottom, color=SHADE, linewidth=0.8, zorder=0)
    ax.hlines(np.arange(bottom + 1), 0, right, color=SHADE, linewidth=0.8, zorder=0)
    if shared:
        ax.add_patch(Rectangle(tuple(low), *(high - low), facecolor=PALETTE[2], alpha=0.35, edgecolor="none"))
        ax.annotate(f"{shared:g}", tuple((low + high) / 2), ha="center", va="center", fontsize=12, color=INK)
    kinds = (("anchor", PALETTE[0], "--"), ("box", PALETTE[1], "-"))
    for corners, area, (name, colour, style) in zip(pair, areas, kinds, strict=True):
        _frame(ax, corners, colour, linewidth=2.2, linestyle=style, label=f"{name}: {area:g}")
    ax.set(xlim=(-0.1, right), ylim=(bottom, -0.1), aspect="equal")
    ax.set_xticks(range(int(right) + 1))
    ax.set_yticks(range(int(bottom) + 1))
    tidy(ax, grid=None)
    ax.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="area in squares",
              title_fontsize=8.5)  # fmt: skip
    return f"Two boxes of {areas[0]:g} and {areas[1]:g} squares that share {shared:g}."


def plot_iou_curves(
    ax: Axes, x: Any, curves: Mapping[str, Any], *, xlabel: str, octaves: bool = False, title: str = ""
) -> str:
    """IoU over a shift, a size or a shape, with the two thresholds of the assignment.

    Args:
        x: (n,) what changes.
        curves: name → (n,) IoU.
        octaves: draw `x` on an axis of base 2.
    """
    for threshold, colour in ((0.5, FOREGROUND), (0.4, IGNORED)):
        ax.axhline(threshold, color=colour, linewidth=1, linestyle=(0, (1, 1.5)))
    for (name, values), style, colour in zip(curves.items(), ("-", "--", "-.", ":"), PALETTE, strict=False):
        ax.plot(as_array(x, float), as_array(values, float), style, color=colour, linewidth=1.8, label=name)
    ax.set_ylim(0, 1.03)
    tidy(ax)
    if octaves:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(as_array(x, float).min(), as_array(x, float).max())
    ax.set_xlabel(xlabel, fontsize=8.5, color=INK)
    if len(curves) > 1:
        ax.legend(fontsize=8, frameon=False, loc="lower center" if octaves else "upper right")
    _title(ax, title)
    lows = ", ".join(f"{name} {as_array(values, float).min():.2f}" for name, values in curves.items())
    return f"IoU over {xlabel}; lowest values: {lows}."


def plot_shape_map(ax: Axes, sides: Any, ious: Any, *, title: str = "") -> ScalarMappable:
    """Best IoU over box width and height, a line at 0.5; returns the artist, for a colour bar.

    Args:
        sides: (n,) widths, and the same heights, in pixels, ascending.
        ious: (n, n) best IoU, a row per height.
    """
    side, values = as_array(sides, float), as_array(ious, float)
    drawn = ax.pcolormesh(side, side, values, cmap="viridis", vmin=0, vmax=1, shading="nearest", rasterized=True)
    if values.min() < 0.5 < values.max():
        ax.contour(side, side, values, levels=[0.5], colors=[FOREGROUND], linewidths=1.8)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_locator(NullLocator())
    ax.set_aspect("equal")
    tidy(ax, grid=None)
    ax.set_xlabel("box width, px", fontsize=8.5, color=INK)
    ax.set_ylabel("box height, px", fontsize=8.5, color=INK)
    _title(ax, title)
    return drawn


def draw_zones(
    ax: Axes, image: Any, matches: Any, grid: tuple[int, int], stride: int, boxes: Any, *, title: str = ""
) -> str:
    """One level's assignment on the image: each cell in the colour of its best anchor's zone.

    Args:
        image: as `as_picture` takes it, at the network's input size.
        matches: (R_l,) as `match_anchors` gives them.
        grid: (rows, columns) of the level.
        boxes: (M, 4) xyxy, drawn in white.
        title: written above, with the counts.
    """
    kinds = as_array(matches, float).reshape(*grid, -1)  # (rows, columns, A)
    zones = np.where((kinds >= 0).any(2), 2.0, np.where((kinds == -2).any(2), 1.0, np.nan))
    height, width = _show(ax, image)
    extent = (0, grid[1] * stride, grid[0] * stride, 0)
    ax.imshow(zones, cmap=ListedColormap([IGNORED, FOREGROUND]), vmin=1, vmax=2, extent=extent, alpha=0.62,
              interpolation="nearest")  # fmt: skip
    ax.set(xlim=(0, width), ylim=(height, 0))
    draw_boxes(ax, None, boxes, colours="white", linewidth=0.9, fontsize=0)
    counts = [int((kinds >= 0).sum()), int((kinds == -2).sum()), int((kinds == -1).sum())]
    _title(ax, f"{title}: {counts[0]:,} foreground, {counts[1]:,} ignored" if title else "")
    return f"{counts[0]:,} foreground, {counts[1]:,} ignored and {counts[2]:,} background anchors."


def plot_zone_histogram(ax: Axes, ious: Any) -> str:
    """Anchors by their highest IoU with any box, in the colours of the three zones, counts on a log axis.

    Args:
        ious: (R,) highest IoU of each anchor.
    """
    values = as_array(ious, float)
    edges = np.linspace(0, 1, 51)
    zones = (
        ("background", 0.0, 0.4, BACKGROUND),
        ("ignored", 0.4, 0.5, IGNORED),
        ("foreground", 0.5, 1.01, FOREGROUND),
    )
    parts = []
    for name, low, high, colour in zones:
        inside = values[(values >= low) & (values < high)]
        ax.stairs(np.histogram(inside, edges)[0], edges, fill=True, color=colour, label=f"{name}: {len(inside):,}")
        parts.append(f"{len(inside):,} {name}")
    ax.set_yscale("log")
    ax.set(xlim=(0, 1), ylim=(0.7, None))
    tidy(ax)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("highest IoU of the anchor with any box", fontsize=8.5, color=INK)
    ax.set_ylabel("anchors, log scale", fontsize=8.5, color=INK)
    ax.legend(fontsize=8.5, frameon=False, loc="upper right")
    return f"Histogram of the anchors' highest IoU: {', '.join(parts)}."


def plot_reach(ax: Axes, sides: Any, ious: Any, *, smallest: float, title: str = "") -> str:
    """Highest IoU of each box with any anchor over its size, and the limit that its size sets.

    Args:
        sides: (M,) √(w·h) of the boxes in pixels.
        ious: (M,) highest IoU of each.
        smallest: side of the smallest anchor; a box inside it has an IoU of at most (side / smallest)².
    """
    side, best = as_array(sides, float), as_array(ious, float)
    zones = (("unreached, below 0.4", best < 0.4, MUTED, "v"), ("unreached, 0.4 to 0.5", (best >= 0.4) & (best < 0.5),
             IGNORED, "s"), ("reached", best >= 0.5, FOREGROUND, "o"))  # fmt: skip
    for name, which, colour, marker in zones:
        ax.plot(side[which], best[which], marker, color=colour, markersize=4, alpha=0.8, linestyle="none",
                label=f"{name}: {int(which.sum())}", markeredgewidth=0)  # fmt: skip
    x = np.linspace(max(1.0, 0.9 * side.min()), smallest, 60)
    ax.plot(x, (x / smallest) ** 2, color=INK, linewidth=1.2, label=f"limit: area / {smallest:g}²")
    ax.axhline(0.5, color=FOREGROUND, linewidth=1, linestyle=(0, (1, 1.5)))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set(ylim=(0, 1.03), xlim=(0.9 * side.min(), 1.05 * side.max()))
    tidy(ax)
    ax.set_xlabel("side of the box, √(w·h), in pixels", fontsize=8.5, color=INK)
    ax.legend(fontsize=8.5, frameon=False, loc="lower right")
    _title(ax, title)
    return f"{len(best)} boxes by size and best IoU: {int((best >= 0.5).sum())} reach 0.5."


def draw_deltas(ax: Axes, anchor: Any, box: Any, deltas: Sequence[float]) -> str:
    """An anchor, the box it should become, and the arrow between their centres with the four deltas."""
    pair = np.stack([as_array(anchor, float), as_array(box, float)])
    centres = (pair[:, :2] + pair[:, 2:]) / 2
    for corners, name, colour, style in zip(pair, ("anchor", "box"), PALETTE, ("--", "-"), strict=False):
        _frame(ax, corners, colour, linewidth=2, linestyle=style, label=name)
    ax.plot(*centres.T, "o", color=INK, markersize=3)
    ax.annotate("", centres[1], xytext=centres[0], arrowprops={"arrowstyle": "->", "color": INK, "shrinkA": 0,
                "shrinkB": 0})  # fmt: skip
    names = ("$t_x$", "$t_y$", "$t_w$", "$t_h$")
    text = "\n".join(f"{name} = {value:+.3f}" for name, value in zip(names, deltas, strict=True))
    ax.annotate(text, (1.02, 0.45), xycoords="axes fraction", fontsize=9.5, color=INK, va="center", linespacing=1.5)
    low, high = pair.reshape(-1, 2).min(0), pair.reshape(-1, 2).max(0)
    ax.set(xlim=(low[0] - 4, high[0] + 4), ylim=(high[1] + 4, low[1] - 4), aspect="equal")
    tidy(ax, grid=None)
    ax.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return f"An anchor and a box whose deltas are {', '.join(f'{value:+.3f}' for value in deltas)}."
