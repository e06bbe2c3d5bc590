"""Two-stage detection in pictures: the two stages, what the first one proposes, and how many boxes each step keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, NullLocator

from focal_tutorial.imbalance_text import number
from focal_tutorial.plotting.images import as_picture
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, INK, MUTED, PALETTE, tidy

# The diagram: name, what is inside, centre x, centre y, width; in the units of its axes.
NODES: tuple[tuple[str, str, str, float, float, float], ...] = (
    ("image", "image", "", 0.75, 2.6, 1.1),
    ("features", "backbone\nand pyramid", "features at\nevery location", 2.55, 2.6, 1.6),
    ("dense", "first stage", "object or not?\nfor every anchor", 4.95, 2.6, 1.8),
    ("filter", "filter", "best 1,000\nafter NMS", 7.15, 2.6, 1.5),
    ("pool", "RoIAlign", "7 × 7 features\nof each region", 4.95, 0.75, 1.8),
    ("second", "second stage", "which class?\nand a finer box", 7.15, 0.75, 1.8),
    ("found", "detections", "", 9.15, 0.75, 1.2),
)
# The arrows between them, as the corners of each.
ARROWS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((1.32, 2.6), (1.7, 2.6)),
    ((3.37, 2.6), (4.0, 2.6)),
    ((5.87, 2.6), (6.35, 2.6)),
    ((2.55, 2.08), (2.55, 0.75), (4.0, 0.75)),
    ((7.15, 2.08), (7.15, 1.68), (4.95, 1.68), (4.95, 1.3)),
    ((5.87, 0.75), (6.2, 0.75)),
    ((8.07, 0.75), (8.5, 0.75)),
)


def plot_two_stages(ax: Axes) -> str:
    """The anatomy of a two-stage detector: what feeds what, and where training samples."""
    colours = {"dense": PALETTE[0], "filter": PALETTE[0], "pool": PALETTE[2], "second": PALETTE[2]}
    for name, title, text, x, y, width in NODES:
        colour = colours.get(name, MUTED)
        ax.add_patch(
            FancyBboxPatch((x - width / 2, y - 0.5), width, 1.0, boxstyle="round,pad=0.02,rounding_size=0.12",
                           facecolor=colour + "18", edgecolor=colour, linewidth=1.4)
        )  # fmt: skip
        ax.text(x, y + (0.24 if text else 0.0), title, ha="center", va="center", fontsize=9, color=INK, weight="bold")
        ax.text(x, y - 0.25, text, ha="center", va="center", fontsize=8, color=INK)
    for corners in ARROWS:
        ax.plot(*zip(*corners, strict=True), color=INK, linewidth=1.2, solid_joinstyle="round")
        head = {"arrowstyle": "-|>", "mutation_scale": 11, "color": INK, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", corners[-1], corners[-2], arrowprops=head)
    for x, y, text in ((4.95, 3.36, "256 sampled anchors, 1 : 1"), (7.15, 0.0, "128 sampled regions, 1 : 3")):
        ax.text(x, y, f"training: {text}", ha="center", va="center", fontsize=8, color=FOREGROUND)
    ax.text(6.05, 1.82, "proposals", ha="center", va="center", fontsize=8, color=MUTED)
    ax.set(xlim=(0, 9.9), ylim=(-0.2, 3.6), aspect="equal")
    ax.set_axis_off()
    return (
        "Diagram. An image passes through backbone and pyramid to features. The first stage asks at every anchor: an "
        "object or not? In training it samples 256 anchors, one to one. A filter keeps the best 1,000 as proposals. "
        "RoIAlign pools 7 by 7 features of each proposal; the second stage names the class and refines the box; in "
        "training it samples 128 regions, one to three."
    )


def plot_objectness(ax: Axes, image: Any, objectness: Any, *, title: str = "") -> str:
    """One level's objectness as a veil over the image: dark where there is none.

    Args:
        image: as `as_picture` takes it.
        objectness: `(H_l, W_l)` probabilities in [0, 1], one per location of the level's grid.
    """
    picture = as_picture(image)
    height, width = picture.shape[:2]
    values = torch.as_tensor(objectness).detach().float().cpu().numpy()
    ax.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
    ax.imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=0.65, interpolation="nearest",
              extent=(-0.5, width - 0.5, height - 0.5, -0.5))  # fmt: skip
    ax.set_axis_off()
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    return f"Objectness {title}: from {values.min():.2f} to {values.max():.2f} on a grid of {values.shape}."


def plot_proposals(ax: Axes, image: Any, boxes: Any, hits: Any, *, title: str = "") -> str:
    """Proposals on an image: those that hold an object in orange, on top of the rest in white.

    Args:
        image: as `as_picture` takes it.
        boxes: `(P, 4)` xyxy in pixels of the image.
        hits: `(P,)` booleans, whether a box overlaps an object enough.
    """
    corners, right = torch.as_tensor(boxes).cpu().numpy(), torch.as_tensor(hits).cpu().numpy().astype(bool)
    picture = as_picture(image)
    ax.imshow(picture)
    many = len(corners) > 150
    for chosen, colour, width, alpha in (
        (~right, "white", 0.5 if many else 1.0, 0.22 if many else 0.8),
        (right, FOREGROUND, 1.0 if many else 1.5, 0.8 if many else 1.0),
    ):
        outlines = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)] for x1, y1, x2, y2 in corners[chosen]]
        ax.add_collection(LineCollection(outlines, colors=colour, linewidths=width, alpha=alpha), autolim=False)
    ax.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
    ax.set_axis_off()
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    return f"{len(corners)} proposals, {right.sum()} of them on an object."


def plot_proposal_recall(ax: Axes, counts: Sequence[int], recalls: Mapping[str, Sequence[float]]) -> str:
    """Share of the objects that the first n proposals reach, against n on a log scale.

    Args:
        counts: numbers of proposals n, rising.
        recalls: per line its name and one share in [0, 1] for each of `counts`.
    """
    for name, values in recalls.items():
        ax.plot(counts, [100 * value for value in values], marker="o", markersize=3.5, label=name)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 103)
    ax.set_xlabel("proposals an image, best first (log scale)", fontsize=8.5, color=INK)
    ax.set_ylabel("objects reached, %", fontsize=8.5, color=INK)
    tidy(ax, grid="both")
    ax.legend(fontsize=8)
    ends = [f"{name} {100 * values[-1]:.0f} %" for name, values in recalls.items()]
    return f"Objects reached against the number of proposals; with {counts[-1]}: {', '.join(ends)}."


def plot_funnel(ax: Axes, steps: Mapping[str, tuple[float, float]], *, title: str = "") -> str:
    """Foreground and background boxes per image at each step, as pairs of bars on a log scale, with their ratio.

    Args:
        steps: per step its name and the mean numbers of foreground and background boxes.
    """
    y = np.arange(len(steps), dtype=float)
    floor = 0.5
    for row, (foreground, background) in enumerate(steps.values()):
        for at, value, colour in ((row - 0.18, background, BACKGROUND), (row + 0.18, foreground, FOREGROUND)):
            ax.barh(at, max(value, floor) - floor, 0.34, left=floor, color=colour)
            ax.annotate(number(value), (max(value, floor), at), xytext=(3, 0), textcoords="offset points", va="center",
                        fontsize=7, color=INK)  # fmt: skip
    ratios = [number(b / f) if f else "∞" for f, b in steps.values()]
    ax.set_yticks(y, [f"{name}\n1 : {ratio}" for name, ratio in zip(steps, ratios, strict=True)])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(floor, 5 * max(b for _, b in steps.values()))
    ax.set_xlabel("boxes an image (log scale)", fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=9.5, color=INK, loc="left")
    tidy(ax, grid="x")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(
        handles=[ax.patches[0], ax.patches[1]], labels=["background", "foreground"], loc="lower right", fontsize=7.5,
        handlelength=1,
    )  # fmt: skip
    shares = [f"{name} 1 : {ratio}" for name, ratio in zip(steps, ratios, strict=True)]
    return f"{title or 'Funnel'}: foreground to background at each step: {', '.join(shares)}."


def plot_regions(ax: Axes, crops: Any, captions: Sequence[str], hits: Any, *, columns: int = 8) -> str:
    """Regions pooled to one size, in rows, each framed in orange if it holds an object.

    Args:
        crops: `(S, 3, h, w)` in [0, 1].
        captions: one per crop.
        hits: `(S,)` booleans.
    """
    crops, right = torch.as_tensor(crops).cpu(), torch.as_tensor(hits).cpu().tolist()
    step = 1.0
    for i, (crop, caption, hit) in enumerate(zip(crops, captions, right, strict=True)):
        x, y = (i % columns) * step, (i // columns) * (step + 0.22)
        ax.imshow(as_picture(crop), extent=(x, x + 0.92, y + 0.92, y), interpolation="nearest")
        colour = FOREGROUND if hit else BACKGROUND
        ax.plot([x, x + 0.92, x + 0.92, x, x], [y, y, y + 0.92, y + 0.92, y], color=colour, linewidth=2.2)
        ax.text(x + 0.46, y + 1.02, caption, ha="center", va="center", fontsize=7, color=INK)
    rows = -(-len(crops) // columns)
    ax.set(xlim=(-0.05, columns * step), ylim=(rows * (step + 0.22), -0.08), aspect="equal")
    ax.set_axis_off()
    return f"{len(crops)} regions at one size, {sum(right)} of them foreground: {', '.join(captions)}."
