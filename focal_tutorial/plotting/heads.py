"""Figures of the chapter on the two subnets and the prior: the head, which number becomes which row, the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from focal_tutorial.plotting.style import INK, MUTED, PALETTE, tidy

CLASSES, BOXES, LEVEL = "#d55e00", "#0072b2", "#e8edf1"
# One light colour for each location of a small grid: black text stays readable on all of them.
LOCATIONS = ("#a6cee3", "#fdcf8f", "#b7dfab", "#e8b6d4", "#fff2a8", "#c9bfe0")


def draw_head(ax: Axes, grids: Sequence[tuple[int, int]], channels: int, anchors: int, classes: int) -> str:
    """The head: every level runs through the same two subnets, whose outputs become rows.

    Args:
        ax: to draw on.
        grids: (rows, columns) of each level, finest first.
        channels: C, of the levels and of the towers.
        anchors, classes: A and K.
    """
    rows = anchors * sum(h * w for h, w in grids)
    for i, (h, w) in enumerate(grids):
        side = 0.98 * 0.9**i  # not to scale: the names must fit
        y = 4.3 - 0.98 * i
        ax.add_patch(Rectangle((-side, y - 0.28), 2 * side, 0.56, facecolor=LEVEL, edgecolor=MUTED, linewidth=1))
        ax.text(0, y, f"$P_{i + 3}$  {h} × {w}", ha="center", va="center", fontsize=8.5, color=INK)
        for y_in in (3.8, 1.0):
            _arrow(ax, (side + 0.05, y), (2.1, y_in))
    for y, colour, name, width, what in (
        (3.8, CLASSES, "class subnet", anchors * classes, f"logits\n{rows:,} × {classes}"),
        (1.0, BOXES, "box subnet", anchors * 4, f"deltas\n{rows:,} × 4"),
    ):
        ax.text(2.15, y + 0.85, name, fontsize=10, color=colour, fontweight="bold")
        for j in range(4):
            _block(ax, (2.2 + 1.15 * j, y), 0.95, f"3×3\n{channels}\nReLU", colour, 0.16)
        _block(ax, (6.8, y), 0.95, f"3×3\n{width}", colour, 0.5)
        _arrow(ax, (7.85, y), (8.6, y))
        ax.text(8.7, y, what, fontsize=9, va="center", color=INK)
    ax.set(xlim=(-1.05, 10.4), ylim=(-0.2, 5.1))
    ax.set_axis_off()
    return (
        f"{len(grids)} levels, each with arrows into the same two rows of five convolutions. Four have {channels} "
        f"filters and a ReLU; the last has {anchors * classes} filters in the class subnet, {anchors * 4} in the box "
        "subnet. "
        f"They end in {rows:,} rows of {classes} logits and of 4 deltas."
    )


def _block(ax: Axes, left: tuple[float, float], width: float, text: str, colour: str, alpha: float) -> None:
    x, y = left
    style = "round,pad=0,rounding_size=0.08"
    for face, strength in (("white", 1.0), (colour, alpha)):
        ax.add_patch(FancyBboxPatch((x, y - 0.55), width, 1.1, style, facecolor=face, alpha=strength, edgecolor="none"))
    ax.add_patch(FancyBboxPatch((x, y - 0.55), width, 1.1, style, facecolor="none", edgecolor=colour, linewidth=1.2))
    ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=8, color=INK, linespacing=1.25)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=MUTED, linewidth=0.8,
                                 shrinkA=0, shrinkB=0))  # fmt: skip


def draw_channels(ax: Axes, channels: int, grid: tuple[int, int], width: int) -> str:
    """The last convolution's output, channel by channel: each a small grid of locations, in the colours of `draw_rows`.

    Args:
        ax: to draw on.
        channels: A·width.
        grid: (rows, columns), at most six locations.
        width: numbers for each anchor.
    """
    h, w = grid
    for c in range(channels):
        y0 = -(c * (h + 0.55) + (c // width) * 0.5)
        for i in range(h):
            for j in range(w):
                ax.add_patch(Rectangle((j, y0 - i), 1, 1, facecolor=LOCATIONS[i * w + j], edgecolor="white"))
                ax.text(j + 0.5, y0 - i + 0.5, str(c), ha="center", va="center", fontsize=9, color=INK)
        ax.text(-0.25, y0 - h / 2 + 1, f"channel {c}", ha="right", va="center", fontsize=8.5, color=INK)
        if c % width == 0:
            middle = y0 - (width * (h + 0.55) - 0.55) / 2 + 1
            ax.text(w + 0.3, middle, f"anchor {c // width}", va="center", fontsize=8.5, color=MUTED, rotation=90)
    ax.set(xlim=(-2.2, w + 1), ylim=(y0 - h + 0.6, 1.4), aspect="equal")
    ax.set_axis_off()
    return f"{channels} grids of {h} × {w} cells, one for each channel; every location has its own colour."


def draw_rows(ax: Axes, rows: Tensor, locations: int, *, title: str) -> str:
    """A flattened map as a table: in each cell the channel that the number came from, coloured by its location.

    Args:
        ax: to draw on.
        rows: (R, width) integers, channel · locations + location.
        locations: H·W, at most six.
        title: over the table.
    """
    for i, row in enumerate(rows.tolist()):
        for j, value in enumerate(row):
            channel, location = divmod(int(value), locations)
            ax.add_patch(Rectangle((j, -i), 1, 1, facecolor=LOCATIONS[location], edgecolor="white"))
            ax.text(j + 0.5, -i + 0.5, str(channel), ha="center", va="center", fontsize=9, color=INK)
        ax.text(-0.25, -i + 0.5, str(i), ha="right", va="center", fontsize=8.5, color=MUTED)
    ax.set(xlim=(-1, rows.shape[1] + 0.2), ylim=(-len(rows) + 0.9, 1.3), aspect="equal")
    ax.set_title(title, fontsize=9.5, loc="left", color=INK)
    ax.set_axis_off()
    pure = sum(len({int(v) % locations for v in row}) == 1 for row in rows.tolist())
    return f"{title}: a table of {len(rows)} rows and {rows.shape[1]} columns; {pure} rows come from one location each."


def plot_spikes(
    ax: Axes, values: Mapping[str, Tensor], xlabel: str, *, limits: tuple[float, float], bins: int = 80
) -> str:
    """Histograms of several sets of numbers on one axis, the count logarithmic.

    Args:
        ax: to draw on.
        values: name → numbers of any shape.
        xlabel: what they are.
        limits: the axis; numbers outside are not shown.
        bins: over the whole axis.
    """
    edges = np.linspace(*limits, bins + 1)
    said = []
    for i, (name, numbers) in enumerate(values.items()):
        flat = numbers.detach().flatten().double().numpy()
        ax.hist(flat, bins=edges.tolist(), color=PALETTE[i], alpha=0.75, label=name)
        said.append(f"{name} from {flat.min():.3g} to {flat.max():.3g}")
    tidy(ax)
    ax.set(yscale="log", xlim=limits)
    ax.set_ylim(bottom=0.7)
    ax.tick_params(which="minor", length=0)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel("how many", color=INK)
    ax.legend(fontsize=8.5)
    return "Histograms: " + "; ".join(said) + "."


def plot_start_loss(
    ax: Axes, priors: Tensor, losses: Mapping[str, Tensor], marks: Sequence[float], *, colours: Sequence[str] = PALETTE
) -> str:
    """The first loss against the prior, both axes logarithmic, with the least point of each curve.

    Args:
        ax: to draw on.
        priors: (n,) ascending probabilities.
        losses: name → (n,); a name that starts with "of it" is a part of the curve before it, drawn broken.
        marks: priors to draw a vertical line at.
        colours: of the curves; a part has the colour of its whole.
    """
    said, colour, shade = [], iter(colours), INK
    for name, y in losses.items():
        part = name.startswith("of it")
        shade = shade if part else next(colour)
        ax.plot(priors.tolist(), y.tolist(), color=shade, linestyle=":" if part else "-",
                linewidth=1.5 if part else 2.2, label=name)  # fmt: skip
        if not part:
            k = int(y.argmin())
            ax.plot([float(priors[k])], [float(y[k])], "o", color=shade, markeredgecolor="white", markersize=8)
            said.append(f"{name} is least, {float(y[k]):.3g}, at {float(priors[k]):.2g}")
    for mark in marks:
        ax.axvline(mark, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.text(mark, 1.01, f"{mark:g}", transform=ax.get_xaxis_transform(), ha="center", fontsize=8.5, color=MUTED)
    tidy(ax, grid="both")
    ax.set(xscale="log", yscale="log", xlim=(float(priors[0]), float(priors[-1])))
    ax.tick_params(which="minor", length=0)
    ax.set_xlabel("prior π", color=INK)
    ax.set_ylabel("first loss per object", color=INK)
    ax.legend(fontsize=8.5)
    return "; ".join(said) + "."
