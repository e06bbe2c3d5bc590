"""Figures of the chapter on backbone and pyramid: receptive fields beside anchors, and where the work is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from focal_tutorial.plotting.images import as_picture
from focal_tutorial.plotting.style import FOREGROUND, INK, MUTED, PALETTE, tidy

SHARE_COLOURS = (MUTED, "#0072b2", "#c24f00", "#007a5a")  # dark enough for white figures
LEVEL_COLOURS = ("#54278f", "#756bb1", "#9e9ac8", "#bcbddc", "#dadaeb")


class Field(NamedTuple):
    """What one level sees, in pixels: anchor sides (smallest, largest), and fields before and after the subnet."""

    name: str
    anchors: tuple[float, float]
    theoretical: tuple[int, int]
    effective: tuple[int, int]


def plot_fields(ax: Axes, fields: Sequence[Field]) -> str:
    """Anchor sides of each level beside what its locations see: in theory and measured, on a log scale.

    Each pair of fields is a line from the pyramid's level (open end) to the output of the subnet (full end).
    """
    for y, field in enumerate(fields):
        low, high = field.anchors
        ax.barh(y - 0.26, high - low, 0.24, left=low, color=FOREGROUND)
        for at, (level, output), colour in ((y, field.effective, PALETTE[0]), (y + 0.26, field.theoretical, MUTED)):
            ax.plot((level, output), (at, at), color=colour, linewidth=2)
            ax.plot(level, at, "o", color=colour, markerfacecolor="white", markersize=6, markeredgewidth=1.6)
            ax.plot(output, at, "o", color=colour, markersize=6)
    ax.set_yticks(range(len(fields)), [field.name for field in fields])
    ax.set_ylim(len(fields) - 0.45, -0.55)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("side in pixels (log scale)", fontsize=9, color=INK)
    tidy(ax, grid="x")
    handles = [
        Patch(color=FOREGROUND, label="anchor sides"),
        Line2D([], [], color=PALETTE[0], marker="o", label="effective field: level ○, with subnet ●"),
        Line2D([], [], color=MUTED, marker="o", label="theoretical field"),
    ]
    ax.legend(handles=handles, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=3, handlelength=1.4)
    rows = [
        f"{f.name} anchors {f.anchors[0]:.0f} to {f.anchors[1]:.0f}, effective {f.effective[0]} and {f.effective[1]}, "
        f"theoretical {f.theoretical[0]} and {f.theoretical[1]}"
        for f in fields
    ]
    return f"Sides in pixels, before and after the subnet: {'; '.join(rows)}."


def plot_energy(
    ax: Axes, energy: Any, photo: Any, centre: tuple[float, float], side: float, anchor: float, *, title: str = ""
) -> str:
    """Where a location looks: its gradient over the photograph, the effective field's square, the level's anchor.

    Args:
        energy: (H, W) squared gradient per pixel, as `gradient_energy` makes it.
        photo: as `as_picture` takes it, (3, H, W) of the same size.
        centre: (y, x) of the square of the effective field.
        side: of that square, in pixels.
        anchor: side of the level's square anchor, drawn around the same centre.
    """
    picture = as_picture(photo)
    height, width = picture.shape[:2]
    cell = 8
    strength = F.avg_pool2d(torch.as_tensor(energy)[None, None].float(), cell, ceil_mode=True)[0, 0].sqrt()
    ax.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    extent = (0, strength.shape[1] * cell, strength.shape[0] * cell, 0)
    ax.imshow(strength.numpy(), cmap="magma", vmin=0, extent=extent, interpolation="bilinear", alpha=0.68)
    y, x = centre
    for length, colour, style in ((side, "white", "-"), (anchor, "#4ee0b0", "--")):
        corner = (x - length / 2, y - length / 2)
        ax.add_patch(Rectangle(corner, length, length, fill=False, edgecolor=colour, linewidth=1.8, linestyle=style))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    return f"{title}: nine tenths of the gradient in a square of {side:.0f} px, beside an anchor of {anchor:.0f} px."


def plot_shares(
    ax: Axes,
    rows: Mapping[str, Mapping[str, float]],
    *,
    colours: Sequence[str] = SHARE_COLOURS,
    least: float = 0.05,
) -> str:
    """One bar a row, cut into its parts' shares of the row's sum; shares of at least `least` are written inside.

    Args:
        rows: per row its name and its parts, name → value. A part has the same colour in every row.
        colours: one per part, in the order in which the names first appear.
    """
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    colour = {name: colours[i % len(colours)] for i, name in enumerate(names)}
    said = []
    for y, (row, parts) in enumerate(rows.items()):
        total, left = sum(parts.values()), 0.0
        for name, value in parts.items():
            share = value / total
            ax.barh(y, share, 0.62, left=left, color=colour[name], edgecolor="white", linewidth=1.2)
            if share >= least:
                words = ax.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", fontsize=9)
                words.set(color="white", weight="bold")
            left += share
        said.append(f"{row}: " + ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items()))
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set(xlim=(0, 1), xticks=())
    tidy(ax, grid=None)
    ax.spines[["left", "bottom"]].set_visible(False)
    handles = [Patch(color=colour[name], label=name) for name in names]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names), fontsize=8.5, handlelength=1)
    return f"Shares of {'; '.join(said)}."
