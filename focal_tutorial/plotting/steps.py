"""Figures of the chapter on one-stage detectors: every step on one photograph, and what is counted after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, PercentFormatter

from focal_tutorial.plotting.images import as_array, as_picture, draw_boxes, judge_detections
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, HIT, IGNORED, INK, MISSED, MUTED, PALETTE, WRONG, tidy


def _show_photo(ax: Axes, image: Any, grey: bool = False) -> tuple[int, int]:
    """`image` with pixel i between i and i + 1, as boxes count; returns its (height, width)."""
    picture = as_picture(image)
    height, width = picture.shape[:2]
    ax.imshow(picture.mean(2) if grey else picture, cmap="gray" if grey else None, extent=(0, width, height, 0))
    ax.set_axis_off()
    return height, width


def show_map(
    ax: Axes,
    values: Any,
    size: tuple[int, int],
    stride: int = 1,
    *,
    title: str = "",
    limits: tuple[float, float] | None = None,
    cmap: str = "magma",
    photo: Any | None = None,
) -> AxesImage:
    """One number per grid cell, each drawn over the pixels it stands for; returns the artist, for a colour bar.

    Args:
        values: (rows, columns), one value per cell.
        size: (height, width) of the image in pixels; cells that reach beyond it are cut.
        stride: side of a cell in pixels.
        limits: values of the colour scale's ends; the smallest and largest by default.
        photo: drawn in grey under the map, as `as_picture` takes it.
    """
    values = as_array(values, float)
    if photo is not None:
        _show_photo(ax, photo, grey=True)
    low, high = limits if limits is not None else (values.min(), values.max())
    extent = (0, values.shape[1] * stride, values.shape[0] * stride, 0)
    drawn = ax.imshow(values, cmap=cmap, vmin=low, vmax=high, extent=extent, interpolation="nearest",
                      alpha=None if photo is None else 0.68)  # fmt: skip
    ax.set_axis_off()
    ax.set(xlim=(0, size[1]), ylim=(size[0], 0))
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    return drawn


def draw_grid(ax: Axes, image: Any, stride: int, boxes: Any, *, title: str = "") -> str:
    """The cells of one feature map laid over the image, and for each box the cell that holds its centre.

    Args:
        image: as `as_picture` takes it, at the network's input size.
        stride: pixels from one cell to the next.
        boxes: (M, 4) xyxy in pixels of `image`.
    """
    height, width = _show_photo(ax, image)
    for x in range(0, width + 1, stride):
        ax.plot((x, x), (0, height), color="white", linewidth=0.6, alpha=0.75)
    for y in range(0, height + 1, stride):
        ax.plot((0, width), (y, y), color="white", linewidth=0.6, alpha=0.75)
    corners = np.asarray(boxes, float).reshape(-1, 4)
    centres = (corners[:, :2] + corners[:, 2:]) / 2  # (M, 2) x, y
    cells = sorted({(int(x // stride), int(y // stride)) for x, y in centres})
    for column, row in cells:
        ax.add_patch(Rectangle((column * stride, row * stride), stride, stride, facecolor=FOREGROUND, alpha=0.6,
                               edgecolor="white", linewidth=1.0, zorder=2))  # fmt: skip
    ax.plot(centres[:, 0], centres[:, 1], "o", color="white", markeredgecolor=INK, markeredgewidth=0.7,
            markersize=3, zorder=3)  # fmt: skip
    ax.set(xlim=(0, width), ylim=(height, 0))
    rows, columns = -(-height // stride), -(-width // stride)
    ax.set_title(title or f"stride {stride}: {rows} × {columns} cells", fontsize=9, color=INK, loc="left")
    return f"Grid of {rows} by {columns} cells over the image; {len(cells)} of them hold the centres of its objects."


def draw_anchors(ax: Axes, image: Any, anchors: Any, ious: Any, box: Any, *, title: str = "") -> str:
    """Anchors coloured by what their overlap with one box makes of them; the box is dotted white.

    Args:
        image: as `as_picture` takes it.
        anchors: (n, 4) xyxy in pixels of `image`.
        ious: (n,) IoU of each with `box`: foreground from 0.5 on, background below 0.4, ignored between.
        box: (4,) xyxy.
    """
    overlap = np.asarray(ious, float)
    boxes = np.asarray(anchors, float).reshape(-1, 4)
    kinds = {"background": overlap < 0.4, "ignored": (overlap >= 0.4) & (overlap < 0.5), "foreground": overlap >= 0.5}
    _show_photo(ax, image)
    for (kind, which), colour in zip(kinds.items(), (BACKGROUND, IGNORED, FOREGROUND), strict=True):
        style = "-" if kind == "foreground" else "--"
        draw_boxes(ax, None, boxes[which], colours=colour, linestyle=style, linewidth=1.3, fontsize=0)
    draw_boxes(ax, None, np.asarray(box, float)[None], colours="white", linestyle=":", linewidth=2.2, fontsize=0)
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    counts = ", ".join(f"{int(which.sum())} {kind}" for kind, which in kinds.items())
    return f"{len(boxes)} anchors around one box: {counts}."


def show_verdicts(
    ax: Axes, image: Any, truth: Mapping[str, Any], found: Mapping[str, Any], *, missed: bool = True, title: str = ""
) -> str:
    """Detections without names, right ones solid, wrong ones dashed, missed objects dotted; counts in the title.

    Args:
        image: as `as_picture` takes it.
        truth, found: as `judge_detections` takes them, boxes in pixels of `image`.
        missed: draw the objects that no detection found.
    """
    right, seen = judge_detections(truth, found)
    boxes, objects = (np.asarray(side["boxes"], float).reshape(-1, 4) for side in (found, truth))
    _show_photo(ax, image)
    draw_boxes(ax, None, boxes[~right], colours=WRONG, linestyle="--", linewidth=1.1, fontsize=0)
    draw_boxes(ax, None, boxes[right], colours=HIT, fontsize=0)
    if missed:
        draw_boxes(ax, None, objects[~seen], colours=MISSED, linestyle=":", linewidth=2.2, fontsize=0)
    counts = f"{right.sum()} right, {(~right).sum()} wrong, {(~seen).sum()} missed"
    ax.set_title(f"{title}: {counts}" if title else counts, fontsize=9, color=INK, loc="left")
    return f"Detections on the photograph: {counts}."


def plot_sweep(
    ax: Axes,
    settings: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str = "",
    percent: bool = True,
    bottom: float = 0.0,
    mark: float | None = None,
) -> str:
    """What moves while one setting moves: a line per quantity.

    Args:
        settings: values of the setting, ascending.
        curves: quantity → its value at each setting: fractions, drawn in per cent, or with `percent=False` numbers,
            drawn on a logarithmic axis with a 0.
        bottom: where the axis of per cents begins.
        mark: setting to mark with a vertical line.
    """
    for (name, values), style, colour in zip(curves.items(), ("-", "--", ":"), PALETTE, strict=False):
        heights = [100 * v if percent else v for v in values]
        ax.plot(settings, heights, style, color=colour, linewidth=2.2, label=name, marker="o", markersize=3)
    if mark is not None:
        ax.axvline(mark, color=MUTED, linewidth=1, linestyle=":")
    tidy(ax)
    if percent:
        ax.set_ylim(bottom, 103)
        ax.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    else:
        least = min((v for values in curves.values() for v in values if v > 0), default=1.0)
        ax.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(least)), linscale=0.5)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    if len(curves) > 1:
        ax.legend(fontsize=8.5, frameon=False)
    scale = 100 if percent else 1
    ends = ", ".join(f"{name} {scale * values[0]:.0f} to {scale * values[-1]:.0f}" for name, values in curves.items())
    return f"Curves over {xlabel}, from {settings[0]:g} to {settings[-1]:g}: {ends}{' per cent' if percent else ''}."


def _note(ax: Axes, at: tuple[float, float], text: str, shift: tuple[float, float], side: str) -> None:
    """`text` beside a point in data coordinates, moved by `shift` points."""
    ax.annotate(text, at, xytext=shift, textcoords="offset points", ha=side, va="center", fontsize=8.5, color=INK)


def plot_box_counts(
    ax: Axes, boxes: Mapping[str, float], foreground: Mapping[str, float], background: Mapping[str, float]
) -> str:
    """Boxes per image of several detectors on a logarithmic axis, and how many of them are foreground.

    Args:
        boxes: detector → boxes it scores in one image.
        foreground, background: detector → how many of them are so; the rest is ignored in training.
    """
    names = list(boxes)
    places = np.arange(len(names))[::-1]
    few, many = ([side[name] for name in names] for side in (foreground, boxes))
    ax.hlines(places, few, many, color="#d8dee3", linewidth=5, zorder=1)
    ax.plot(few, places, "o", color=FOREGROUND, markersize=9, label="foreground", zorder=2)
    ax.plot(many, places, "s", color=MUTED, markersize=8, label="all boxes", zorder=2)
    parts = []
    for place, name in zip(places, names, strict=True):
        ratio = f"1 : {background[name] / foreground[name]:,.0f}"
        parts.append(f"{name} {foreground[name]:,.1f} of {boxes[name]:,.0f}, {ratio}")
        middle = (foreground[name] * boxes[name]) ** 0.5
        _note(ax, (middle, place), ratio, (0, 8), "center")
        _note(ax, (foreground[name], place), f"{foreground[name]:,.0f}", (-9, 0), "right")
        _note(ax, (boxes[name], place), f"{boxes[name]:,.0f}", (9, 0), "left")
    ax.set_xscale("log")
    ax.set_xlim(min(few) / 3, 6 * max(many))
    ax.set_ylim(-0.6, len(names) - 0.3)
    ax.set_yticks(places, names)
    tidy(ax, grid="x")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set_xlabel("boxes an image, logarithmic; above each bar foreground : background", fontsize=8.5, color=INK)
    ax.legend(fontsize=8.5, frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return f"Foreground and all boxes per image: {'; '.join(parts)}."


def plot_probabilities(ax: Axes, background: Any, foreground: Any, *, images: int, easy: float) -> str:
    """Histograms of the highest class probability, of background and of foreground anchors, both axes logarithmic.

    Args:
        background, foreground: (n,) probabilities in (0, 1).
        images: over how many the anchors were gathered; the axis counts per image.
        easy: probability below which a background anchor is called easy.
    """
    edges = np.logspace(-3, 0, 37)
    for values, colour, name in ((background, BACKGROUND, "background"), (foreground, FOREGROUND, "foreground")):
        counts = np.histogram(np.clip(np.asarray(values, float), edges[0], edges[-1]), edges)[0] / images
        ax.stairs(counts, edges, fill=True, color=colour, alpha=0.75, label=f"{name} anchors")
    share = float((np.asarray(background, float) < easy).mean())
    ax.axvline(easy, color=INK, linewidth=1, linestyle=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set(xlim=(edges[0], edges[-1]), ylim=(low, 12 * high))
    _note(ax, (easy, 4 * high), f"easy: {100 * share:.0f} %\nof the background", (-6, 0), "right")
    tidy(ax)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_xlabel("highest class probability $p$ that the model gives the anchor", fontsize=9, color=INK)
    ax.set_ylabel("anchors an image", fontsize=9, color=INK)
    ax.legend(fontsize=8.5, frameon=False, loc="upper right")
    return f"Histograms of p: {100 * share:.0f} per cent of the background anchors lie below {easy:g}."
