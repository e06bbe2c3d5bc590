"""Figures of chapter 12: what each step leaves, the offset trick, thresholds per class, two models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from focal_tutorial.plotting.images import as_picture
from focal_tutorial.plotting.style import BOX_COLOURS, INK, MUTED, PALETTE, tidy

# Pyramid levels, dark to light: one hue that no class has.
LEVEL_COLOURS = ("#3b3054", "#7d6f9e", "#bdb2d3")


def _class_colours(labels: Any) -> list[str]:
    """The colours that these classes have on photographs, so that a class looks the same in all figures."""
    return [BOX_COLOURS[int(k) % len(BOX_COLOURS)] for k in np.asarray(labels)]


def _paths(boxes: Any) -> list[np.ndarray]:
    """The closed outline `(5, 2)` of each box of `(D, 4)` xyxy."""
    corners = np.asarray(boxes, dtype=float).reshape(-1, 4)
    return list(corners[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(-1, 5, 2))


def plot_funnel(ax: Axes, counts: Mapping[str, Sequence[int]], levels: Sequence[str]) -> str:
    """What is left after each step, one bar per step and level, on a logarithmic axis.

    Args:
        counts: step → one number per level, in the order of the steps.
        levels: names of the levels.

    Returns:
        The alt text, with every step's sum.
    """
    height = 0.8 / len(levels)
    for i, level in enumerate(levels):
        left = [values[i] for values in counts.values()]
        middle = np.arange(len(counts)) - 0.4 + height * (i + 0.5)
        ax.barh(middle, np.maximum(left, 0.6), height * 0.9, color=LEVEL_COLOURS[i % 3], label=level)  # 0 stays visible
        for y, count in zip(middle, left, strict=True):
            ax.annotate(f"{count:,}", (max(count, 0.6), y), xytext=(3, 0), textcoords="offset points", va="center",
                        fontsize=8, color=INK)  # fmt: skip
    sums = {step: sum(values) for step, values in counts.items()}
    ax.set_yticks(range(len(counts)), [f"{step}\n{total:,} in all" for step, total in sums.items()])
    ax.set(xscale="log", xlim=(0.5, 4 * max(max(values) for values in counts.values())))
    ax.set_xlabel("(anchor, class) pairs", fontsize=9, color=INK)
    ax.invert_yaxis()
    ax.legend(fontsize=8.5, loc="lower right", frameon=False)
    tidy(ax, grid="x")
    steps = ", ".join(f"{step} {total:,}" for step, total in sums.items())
    return f"Bars of the pairs left on each level after each step; all levels together: {steps}."


def draw_outlines(
    ax: Axes,
    image: Any | None,
    boxes: Any,
    labels: Any,
    *,
    linewidth: float = 0.8,
    alpha: float = 0.9,
    margin: float = 0,
    title: str = "",
) -> str:
    """Many boxes at once, thin, in the colours of their classes.

    Args:
        image: as `as_picture` takes it; `None` leaves what the axes show.
        boxes, labels: `(D, 4)` xyxy pixels and `(D,)` integers.
        margin: pixels shown around the image, so that boxes that reach beyond it can be seen.
    """
    if image is not None:
        picture = as_picture(image)
        height, width = picture.shape[:2]
        ax.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")
        ax.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin), xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    paths = _paths(boxes)
    ax.add_collection(LineCollection(paths, colors="#10181f", linewidths=linewidth + 0.9, alpha=0.5 * alpha))
    ax.add_collection(LineCollection(paths, colors=_class_colours(labels), linewidths=linewidth, alpha=alpha))
    if title:
        ax.set_title(title, fontsize=9, color=INK, loc="left")
    return f"{len(paths)} boxes" + (f" ({title})" if title else "") + "."


def plot_offset_trick(ax: Axes, boxes: Any, labels: Any, step: float, *, names: Sequence[str]) -> str:
    """Boxes moved by `labels · step` along both axes: every class in a square of its own.

    Args:
        boxes, labels: `(D, 4)` in pixels of the image and `(D,)`.
        step: side of the squares, in pixels.
        names: of the classes.
    """
    kinds = np.asarray(labels)
    for k, name in enumerate(names):
        colour = _class_colours([k])[0]
        ax.add_patch(Rectangle((k * step, k * step), step, step, facecolor=colour, alpha=0.14, edgecolor="none"))
        ax.annotate(f"{name}: + {k} · {step:.0f}", ((k + 1) * step, (k + 0.5) * step), xytext=(5, 0), color=INK,
                    textcoords="offset points", va="center", fontsize=9, annotation_clip=False)  # fmt: skip
    paths = _paths(np.asarray(boxes, dtype=float) + step * kinds[:, None])
    ax.add_collection(LineCollection(paths, colors=INK, linewidths=1.3, alpha=0.5))
    ax.add_collection(LineCollection(paths, colors=_class_colours(kinds), linewidths=0.7))
    ax.set(xlim=(0, len(names) * step), ylim=(len(names) * step, 0), aspect="equal")
    ax.set_xlabel("x + offset (pixels)", fontsize=9, color=INK)
    ax.set_ylabel("y + offset (pixels)", fontsize=9, color=INK)
    tidy(ax, grid=None)
    counts = ", ".join(f"{int((kinds == k).sum())} {name}" for k, name in enumerate(names))
    return f"Boxes of {len(names)} classes moved into {len(names)} squares along the diagonal: {counts}."


def plot_best_thresholds(
    ax: Axes, thresholds: Sequence[float], curves: Mapping[str, Sequence[float]], *, ylabel: str = "$F_1$ (%)"
) -> str:
    """A curve per class over the score threshold, with its highest point marked.

    Args:
        thresholds: of the score, rising.
        curves: class → one fraction in 0…1 per threshold.
    """
    best = {}
    outline = [withStroke(linewidth=3.6, foreground=INK)]  # yellow alone would vanish on a white page
    for colour, (name, values) in zip(_class_colours(range(len(curves))), curves.items(), strict=True):
        top = int(np.argmax(values))
        best[name] = thresholds[top]
        label = f"{name}: {thresholds[top]:.2f}"
        ax.plot(thresholds, 100 * np.asarray(values), color=colour, path_effects=outline, label=label)
        ax.plot(thresholds[top], 100 * values[top], "o", color=colour, markersize=8, markeredgecolor=INK)
    ax.set_xlabel("score threshold", fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    ax.set_ylim(0, 103)
    ax.legend(fontsize=8.5, frameon=False, title="best threshold", title_fontsize=8.5)
    tidy(ax)
    return "F1 over the score threshold, highest at " + ", ".join(f"{t:.2f} for {n}" for n, t in best.items()) + "."


def plot_ap_and_cost(ax: Axes, thresholds: Sequence[float], ap: Sequence[float], kept: Sequence[float]) -> str:
    """AP and detections an image at a few score thresholds: the one hardly moves where the other falls.

    Args:
        thresholds: evenly spaced on the page, whatever their values.
        ap: fractions in 0…1.
        kept: mean number of detections an image.
    """
    places = np.arange(len(thresholds))
    ax.bar(places, kept, 0.6, color="#c9d3da")
    ax.set_xticks(places, [f"{t:g}" for t in thresholds])
    ax.set_xlabel("score threshold", fontsize=9, color=INK)
    ax.set_ylabel("detections an image", fontsize=9, color=MUTED)
    tidy(ax, grid=None)
    right = ax.twinx()
    right.plot(places, 100 * np.asarray(ap), "o-", color=PALETTE[0])
    for place, value in zip(places, ap, strict=True):
        right.annotate(f"{100 * value:.1f}", (place, 100 * value), xytext=(0, 6), textcoords="offset points",
                       ha="center", fontsize=8.5, color=PALETTE[0])  # fmt: skip
    right.set_ylim(0, 120 * max(ap))
    right.set_ylabel("AP (%)", fontsize=9, color=PALETTE[0])
    right.tick_params(length=0, labelsize=8.5, colors=INK)
    right.spines[["top", "right", "left"]].set_visible(False)
    right.grid(False)
    points = ", ".join(
        f"{t:g}: AP {100 * a:.1f}, {n:.0f} an image" for t, a, n in zip(thresholds, ap, kept, strict=True)
    )
    return f"AP and detections an image by score threshold: {points}."


def show_two_models(axes: Sequence[Axes], image: Any, first: Any, second: Any, *, names: Sequence[str]) -> str:
    """Boxes of two models on one image, one beside the other and laid over each other.

    Args:
        axes: three: the first's, the second's, both.
        image: as `as_picture` takes it.
        first, second: boxes `(D, 4)` in its pixels.
        names: of the two models.
    """
    picture = as_picture(image)
    height, width = picture.shape[:2]
    for ax in axes:
        ax.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased", alpha=0.55)
        ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    drawn = (_paths(first), _paths(second))
    for i, (paths, name) in enumerate(zip(drawn, names, strict=True)):
        colour, wide = (PALETTE[0], PALETTE[1])[i], (4.0, 1.3)[i]
        axes[i].add_collection(LineCollection(paths, colors=colour, linewidths=1.3))
        axes[i].set_title(f"{name}: {len(paths)} boxes", fontsize=9, color=INK, loc="left")
        axes[2].add_collection(LineCollection(paths, colors=colour, linewidths=wide, alpha=(0.45, 1.0)[i]))
    axes[2].set_title(f"{names[0]} (wide), {names[1]} (thin)", fontsize=9, color=INK, loc="left")
    return f"{len(drawn[0])} boxes of {names[0]}, {len(drawn[1])} of {names[1]}, and both on one picture."
