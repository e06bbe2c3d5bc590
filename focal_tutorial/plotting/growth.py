"""Figures of the benchmarks page: how time and memory grow, on two logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from focal_tutorial.plotting.style import PALETTE, label, tidy

MARKERS = ("o", "s", "^", "D")
UNITS = {"ms": "time in ms", "mib": "memory in MiB"}
GUIDE = "#9aa5ae"


def plot_growth(
    ax: Axes, curves: Mapping[str, Mapping[str, Any]], unit: str = "ms", *, xlabel: str = "", title: str = ""
) -> str:
    """One line a curve through its medians, a band from its smallest to its largest, and a dashed line in proportion.

    Args:
        ax: to draw on.
        curves: name → curve as `benchmarks/growth.py` writes it: "x" and, for each unit, "median", "low", "high"
            and the slope of the upper half, "upper".
        unit: "ms" or "mib".
        xlabel, title: texts.

    Raises:
        ValueError: for another unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit: one of {', '.join(UNITS)} wanted, got {unit!r}")
    ends = []
    for i, (name, curve) in enumerate(curves.items()):
        x, values, colour = curve["x"], curve[unit], PALETTE[i]
        ax.fill_between(x, values["low"], values["high"], color=colour, alpha=0.18, linewidth=0)
        ax.plot(x, values["median"], color=colour, marker=MARKERS[i], markersize=4, linewidth=1.7, label=name)
        slope = f", slope {values['upper']['slope']:.2f}" if values.get("upper") else ""
        ends.append(f"{name} from {values['median'][0]:.3g} to {values['median'][-1]:.3g}{slope}")
    ax.set(xscale="log", yscale="log")
    _guide(ax)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(_short))
        axis.set_minor_formatter(NullFormatter())
    label(ax, x=xlabel, y=UNITS[unit], title=title)
    tidy(ax, grid="both")
    ax.tick_params(which="minor", length=0)
    ax.legend(fontsize=8, frameon=False, loc="best")
    return f"{title}, {UNITS[unit]} against {xlabel}: {'; '.join(ends)}."


def _short(value: float, _: int) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _guide(ax: Axes) -> None:
    """A line of slope 1 through the lower left corner; the limits stay, or reach down to a power of ten to have two."""
    (left, right), (low, high) = (
        (10 ** math.floor(math.log10(a)) if b < 100 * a else a, b) for a, b in (ax.get_xlim(), ax.get_ylim())
    )
    factor = min(right / left, high / low)
    ax.plot([left, left * factor], [low, low * factor], color=GUIDE, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    ax.set(xlim=(left, right), ylim=(low, high))
