"""Figures of the chapter on COCO AP: boxes and their verdicts, curves and levels, errors, and what scores mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from focal_tutorial.plotting.balance import log_odds
from focal_tutorial.plotting.images import draw_boxes
from focal_tutorial.plotting.style import INK, MUTED, PALETTE, tidy

RIGHT, WRONG, UNCOUNTED = PALETTE[2], PALETTE[1], MUTED
VERDICTS = {1: ("right", RIGHT, "-"), 0: ("wrong", WRONG, "--"), -1: ("not counted", UNCOUNTED, ":")}
ERROR_COLOURS = {"twice": "#ff8fd0", "class": "#56b4e9", "place": "#ff8c42", "nothing": "#f0e442", "missed": "#ffffff"}


def draw_scene(
    ax: Axes,
    size: tuple[float, float],
    objects: Any,
    found: Any,
    verdicts: Sequence[int],
    *,
    crowds: Sequence[int] = (),
    title: str = "",
) -> str:
    """A made-up image: objects filled, crowds hatched, detections as numbered frames in the colour of their verdict.

    Args:
        size: (height, width) of the image.
        objects: `(M, 4)` boxes, xywh as in COCO files.
        found: `(D, 4)` boxes, xywh, best first.
        verdicts: `(D,)` 1 right, 0 wrong, −1 does not count.
        crowds: indices of the objects that are crowds.
    """
    ax.add_patch(Rectangle((0, 0), size[1], size[0], facecolor="#f3f5f7", edgecolor="#9aa5ae", linewidth=0.8))
    for i, (x, y, w, h) in enumerate(np.asarray(objects, float).reshape(-1, 4)):
        hatch = "///" if i in crowds else None
        ax.add_patch(Rectangle((x, y), w, h, facecolor="#d5dce3", edgecolor="#9aa5ae", hatch=hatch, linewidth=0.8))
    for i, ((x, y, w, h), verdict) in enumerate(zip(np.asarray(found, float).reshape(-1, 4), verdicts, strict=True)):
        _, colour, line = VERDICTS[int(verdict)]
        ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=1.8, linestyle=line, zorder=3))
        corner, ha, va = ((x, y), "left", "top") if verdict == 1 else ((x + w, y + h), "right", "bottom")
        ax.annotate(str(i + 1), corner, xytext=(2, -2) if verdict == 1 else (-2, 2), textcoords="offset points", ha=ha,
                    va=va, fontsize=9.5, fontweight="bold", color=colour, zorder=4)  # fmt: skip
    ax.set(xlim=(-1, size[1] + 1), ylim=(size[0] + 1, -1), aspect="equal")
    ax.set_axis_off()
    counts = [f"{sum(v == kind for v in verdicts)} {name}" for kind, (name, *_) in VERDICTS.items() if kind in verdicts]
    ax.set_title(title or ", ".join(counts), fontsize=9.5, color=INK, loc="left")
    return (
        f"{len(np.asarray(objects).reshape(-1, 4))} objects and {len(verdicts)} numbered frames: {', '.join(counts)}."
    )


def plot_points(ax: Axes, recall: Any, precision: Any, right: Sequence[bool]) -> str:
    """Precision against recall after each detection, numbered, in the colour of the last one's verdict."""
    x, y = np.asarray(recall, float), np.asarray(precision, float)
    ax.plot(x, y, "-", color="#9aa5ae", linewidth=1.2, zorder=2)
    for i, ok in enumerate(right):
        colour = RIGHT if ok else WRONG
        ax.plot(x[i], y[i], "o" if ok else "X", color=colour, markersize=7, zorder=3)
        below = i > 0 and y[i] < y[i - 1]
        ax.annotate(str(i + 1), (x[i], y[i]), xytext=(-9 if not below else 5, 5 if not below else -11),
                    textcoords="offset points", fontsize=9.5, color=colour)  # fmt: skip
    _unit_axes(ax, "recall", "precision")
    return f"Precision against recall after each of {len(x)} detections; it ends at recall {x[-1]:.2f}."


def plot_levels(
    ax: Axes, recall: Any, precision: Any, levels: Mapping[str, tuple[Any, Any]], *, title: str = ""
) -> str:
    """The raw curve, its monotone envelope, and the recall levels at which a definition of AP reads it.

    Args:
        recall, precision: `(D,)`, after each detection.
        levels: name → (recalls, precisions read there).
    """
    x, y = np.asarray(recall, float), np.asarray(precision, float)
    envelope = np.maximum.accumulate(y[::-1])[::-1]
    corners, tops = np.concatenate([[0], x, x[-1:]]), np.concatenate([envelope[:1], envelope, [0]])
    ax.fill_between(corners, tops, step="pre", color=PALETTE[0], alpha=0.12)
    ax.step(corners, tops, where="pre", color=PALETTE[0], linewidth=1.8, label="envelope")
    ax.plot(x, y, "-", color="#9aa5ae", linewidth=1.1, label="raw")
    for (name, (at, values)), colour, size in zip(levels.items(), (PALETTE[1], INK), (7, 2.6), strict=False):
        ax.plot(at, values, "o", color=colour, markersize=size, label=name, zorder=3)
    _unit_axes(ax, "recall", "precision")
    ax.legend(fontsize=9, frameon=False, loc="lower left")
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    return f"Raw curve and its envelope, read at the levels of {', '.join(levels)}."


def plot_curves_by_iou(ax: Axes, precision: Any, ious: Any, *, title: str = "", labels: bool = True) -> str:
    """One precision–recall curve for each IoU threshold, dark for lenient ones.

    Args:
        precision: `(10, 101)` at COCO's recall levels.
        ious: `(10,)`.
    """
    curves, levels = np.asarray(precision, float), np.linspace(0, 1, 101)
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(curves)))
    for i, (curve, iou) in enumerate(zip(curves, np.asarray(ious, float), strict=True)):
        named = labels and i % 3 == 0
        ax.plot(levels, curve, color=colours[i], linewidth=1.5, label=f"{iou:.2f}" if named else None)
    if labels:
        ax.legend(title="IoU", fontsize=9, title_fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _unit_axes(ax, "recall", "precision")
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    return f"{title}: precision–recall curves from IoU {float(ious[0]):.2f} to {float(ious[-1]):.2f}."


def draw_errors(ax: Axes, image: Any, boxes: Any, kinds: Sequence[str], *, title: str = "") -> str:
    """Wrong detections and missed objects on a photograph, coloured by the kind of error, with a legend of counts.

    Args:
        boxes: `(E, 4)` xyxy in pixels of `image`.
        kinds: one of `ERROR_COLOURS` for each.
    """
    draw_boxes(ax, image, np.zeros((0, 4)))
    corners, names = np.asarray(boxes, float).reshape(-1, 4), np.asarray(kinds)
    for kind, colour in ERROR_COLOURS.items():
        which = names == kind
        if which.any():
            line = ":" if kind == "missed" else "-"
            draw_boxes(ax, None, corners[which], colours=colour, linestyle=line, linewidth=2.0, fontsize=0)
            ax.plot([], [], color=colour, linestyle=line, linewidth=3, label=f"{kind}: {which.sum()}")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9.5, facecolor="#5f6c76", labelcolor="white",
              frameon=True, edgecolor="none")  # fmt: skip
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    return ", ".join(f"{(names == kind).sum()} {kind}" for kind in ERROR_COLOURS)


def plot_error_costs(ax: Axes, gains: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """Bars: how many points of AP each kind of error costs, with how many there are."""
    names = list(gains)
    values = [100 * gains[name] for name in names]
    ax.barh(range(len(names)), values, 0.62, color=PALETTE[0])
    for i, name in enumerate(names):
        ax.annotate(f"{values[i]:.1f}   ({counts[name]:,})", (values[i], i), xytext=(5, 0), va="center",
                    textcoords="offset points", fontsize=9.5, color=INK)  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.3 * max([*values, 1e-9]))
    ax.set_xlabel("points of AP50 gained without them (how many there are)", fontsize=9.5, color=INK)
    tidy(ax, grid="x")
    return "Points of AP50 by kind of error: " + ", ".join(f"{n} {v:.1f}" for n, v in zip(names, values, strict=True))


def plot_draws(ax: Axes, draws: Any, ap: float, interval: tuple[float, float], seeds: Sequence[float] = ()) -> str:
    """How AP is spread over random draws of the images, its interval, and, if given, AP of several trainings."""
    points = 100 * np.asarray(draws, float)
    ax.hist(points, bins=30, color=PALETTE[5], alpha=0.75)
    low, high = 100 * interval[0], 100 * interval[1]
    top = ax.get_ylim()[1]
    ax.plot([100 * ap] * 2, [0, top], color=INK, linewidth=1.6)
    ax.plot([low, high], [1.06 * top] * 2, "|-", color=INK, markersize=9, linewidth=1.6)
    ax.annotate(f"{low:.1f} to {high:.1f}", (100 * ap, 1.06 * top), xytext=(0, 6), textcoords="offset points",
                ha="center", fontsize=9.5, color=INK)  # fmt: skip
    if len(seeds):
        spread = 100 * (np.asarray(seeds) - np.mean(seeds)) + 100 * ap
        ax.plot(spread, np.full(len(spread), 0.06 * top), "D", color=PALETTE[1], markersize=6, markeredgecolor="white",
                label="spread of seeds, moved to the same mean")  # fmt: skip
        ax.legend(fontsize=9, frameon=False, loc="upper left")
    ax.set_ylim(0, 1.4 * top)
    ax.set_yticks([])
    ax.set_xlabel("AP", fontsize=9.5, color=INK)
    tidy(ax, grid=None)
    return f"AP over random draws of the images: nineteen in twenty lie between {low:.1f} and {high:.1f}."


def plot_targets(ax: Axes, scores: Any, chances: Mapping[str, Any]) -> str:
    """For each loss, the chance of "yes" that stands behind a score: curves over `scores`."""
    for (name, values), colour in zip(chances.items(), PALETTE, strict=False):
        ax.plot(scores, values, color=colour, linewidth=1.8, label=name)
    _unit_axes(ax, "score", "chance of “yes”")
    ax.legend(fontsize=9, frameon=False, loc="upper left")
    return f"The chance behind a score for {', '.join(chances)}."


def plot_anchor_frequencies(
    ax: Axes,
    curves: Mapping[str, Mapping[str, Any]],
    theory: Mapping[str, Callable[[Any], Any]],
    *,
    title: str = "",
    least: int = 100,
) -> str:
    """How often anchors of a score show the class, measured (dots) and from theory (lines), on axes in logits.

    Args:
        curves: name → `{"count", "score", "precision"}` over bins.
        theory: name → function from score to chance.
        least: bins with fewer anchors, or none that shows the class, are left out.
    """
    line = 1 / (1 + np.exp(-np.linspace(-7, 6, 261)))
    for (name, curve), colour in zip(curves.items(), PALETTE, strict=False):
        count, score, share = (np.asarray(curve[key], float) for key in ("count", "score", "precision"))
        kept = (count >= least) & (share > 0) & (share < 1)
        ax.plot(log_odds(score[kept]), log_odds(share[kept]), "o", color=colour, markersize=4.2, label=name)
        ax.plot(log_odds(line), log_odds(theory[name](line)), "-", color=colour, linewidth=1.2, alpha=0.8)
    ticks = np.array([0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
    words = FuncFormatter(lambda value, _: f"{1 / (1 + np.exp(-value)):.3g}")
    for axis, shown in ((ax.xaxis, ticks), (ax.yaxis, np.concatenate([[0.0001], ticks]))):
        axis.set_ticks(log_odds(shown))
        axis.set_major_formatter(words)
    ax.set(xlim=(-6.3, 6.3), ylim=(-9.8, 8))
    ax.set_xlabel("score of the anchor", fontsize=9.5, color=INK)
    ax.set_ylabel("share that shows the class", fontsize=9.5, color=INK)
    ax.label_outer()
    tidy(ax, grid="both")
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    return f"Share of anchors that show their class against their score, for {', '.join(curves)}."


def plot_reliability(ax: Axes, curves: Mapping[str, Mapping[str, Any]], *, title: str = "", least: int = 10) -> str:
    """Reliability diagram of detections: the share that is right against the mean score of a bin.

    Args:
        curves: name → `{"count", "score", "precision"}` over bins.
        least: bins with fewer detections are left out.
    """
    ax.plot((0, 1), (0, 1), "--", color="#9aa5ae", linewidth=1.2)
    for (name, curve), colour in zip(curves.items(), PALETTE, strict=False):
        count, score, share = (np.asarray(curve[key], float) for key in ("count", "score", "precision"))
        kept = count >= least
        ax.plot(score[kept], share[kept], "-", color=colour, linewidth=0.9, alpha=0.5)
        ax.plot(score[kept], share[kept], "o", color=colour, markersize=4.2, label=name)
    _unit_axes(ax, "mean score", "share that is right")
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    return f"{title}: share of right detections against score, for {', '.join(curves)}."


def legend_above(axes: Sequence[Axes]) -> None:
    """One legend for panels that show the same things, above them all; for figures with a constrained layout."""
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(
        handles, names, loc="outside upper center", ncols=2, fontsize=9, frameon=False, columnspacing=3
    )


def _unit_axes(ax: Axes, x: str, y: str) -> None:
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    ax.set_xlabel(x, fontsize=9.5, color=INK)
    ax.set_ylabel(y, fontsize=9.5, color=INK)
    ax.label_outer()  # of several panels in a row the first one says it
    tidy(ax, grid="both")
