"""Figures of the chapter on the loss of a trained model: cumulative shares, who carries them, the hardest terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from focal_tutorial.plotting.images import as_picture
from focal_tutorial.plotting.style import FOREGROUND, INK, MUTED, PALETTE, label, tidy

GAMMA_COLOURS = ("#33414d", PALETTE[5], PALETTE[0], PALETTE[1])  # from γ = 0 on
STYLES = ("-", (0, (5, 1.6)), (0, (2, 1.4)), "-.")
KIND_COLOURS = (PALETTE[1], PALETTE[4], PALETTE[3], PALETTE[5], "#c9d2d8")
NEGATIVE = PALETTE[0]
LOWEST = 1e-4  # fraction at which logarithmic axes begin


def plot_cumulative(
    ax: Axes, hardest: Sequence[float], curves: Mapping[str, Any], *, title: str = "", ylabel: str = ""
) -> str:
    """Share of the loss over the share of the terms, smallest loss first: the paper's Figure 4.

    Args:
        ax: to draw on.
        hardest: F fractions, hardest terms first, from 1 to 0.
        curves: name → `(F,)` or `(seeds, F)` shares of the loss that those fractions carry; seeds become a line and a
            band, mean ± sample standard deviation.
        title, ylabel: texts.
    """
    x = 1 - np.asarray(hardest, float)
    ax.plot([0, 1], [0, 1], color="#b9c3ca", linewidth=1, zorder=1)
    halves = []
    for i, (name, values) in enumerate(curves.items()):
        mean, spread = _mean_and_spread(1 - np.atleast_2d(np.asarray(values, float)))
        ax.fill_between(x, mean - spread, mean + spread, color=GAMMA_COLOURS[i % 4], alpha=0.18, linewidth=0)
        ax.plot(x, mean, color=GAMMA_COLOURS[i % 4], linestyle=STYLES[i % 4], linewidth=1.9, label=name)
        halves.append(f"{name} {100 * np.interp(0.8, x, mean):.0f}")
    ax.set(xlim=(0, 1), ylim=(0, 1.01), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    label(ax, x="share of the terms, smallest loss first", y=ylabel, title=title)
    tidy(ax, grid="both")
    return (
        f"{title}: share of the loss in per cent that the easiest 80 per cent of the terms carry: {', '.join(halves)}."
    )


def plot_hardest(
    ax: Axes, hardest: Sequence[float], curves: Mapping[str, Any], *, title: str = "", ylabel: str = "",
    styles: Sequence[int] = (0, 1, 2, 3),
) -> str:  # fmt: skip
    """The same from the other end: share of the loss over the hardest fraction, on a logarithmic axis from `LOWEST`.

    Arguments as `plot_cumulative`, and

    Args:
        styles: each curve's place among the colours and line styles, which are those of γ = 0, 0.5, 1 and 2.
    """
    x = np.asarray(hardest, float)
    kept = x > 0.99 * LOWEST
    ends = []
    for k, (name, values) in enumerate(curves.items()):
        i = styles[k % len(styles)]
        mean, spread = _mean_and_spread(np.atleast_2d(np.asarray(values, float)))
        colour, style = GAMMA_COLOURS[i], STYLES[i]
        ax.fill_between(x[kept], (mean - spread)[kept], (mean + spread)[kept], color=colour, alpha=0.18, linewidth=0)
        ax.plot(x[kept], mean[kept], color=colour, linestyle=style, linewidth=1.9, label=name)
        ends.append(f"{name} {100 * np.interp(-0.01, -x, mean):.0f}")
    ax.set_xscale("log")
    ax.set(xlim=(LOWEST, 1), ylim=(0, 1.01), yticks=np.linspace(0, 1, 6))
    ticks = 10.0 ** np.arange(-4, 1)
    ax.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    label(ax, x="hardest fraction of the terms", y=ylabel, title=title)
    tidy(ax, grid="both")
    ax.tick_params(which="minor", length=0)
    return f"{title}: share of the loss in per cent of the hardest hundredth of the terms: {', '.join(ends)}."


def plot_parts(ax: Axes, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of bars, each split into named parts of 1 in the same order.

    Args:
        ax: to draw on.
        rows: row → part → share in 0…1. A part of at least 6 per cent has its number on it.
    """
    parts = list(next(iter(rows.values())))
    for row, shares in enumerate(rows.values()):
        left = 0.0
        for part, colour in zip(parts, KIND_COLOURS[-len(parts) :], strict=True):
            ax.barh(row, shares[part], 0.72, left=left, color=colour, label=part if row == 0 else None)
            if shares[part] >= 0.06:
                ax.text(left + shares[part] / 2, row, f"{100 * shares[part]:.0f}", ha="center", va="center",
                        fontsize=8.5, color=INK)  # fmt: skip
            left += shares[part]
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(0, 1)
    ax.set_xticks(np.linspace(0, 1, 6), [f"{p} %" for p in range(0, 101, 20)])
    tidy(ax, grid=None)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.legend(fontsize=8.5, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    said = "; ".join(f"{n}: " + ", ".join(f"{p} {100 * s:.0f}" for p, s in row.items()) for n, row in rows.items())
    return f"Bars split by place, in per cent. {said}."


def draw_term(
    ax: Axes, image: Any, anchor: Sequence[float], objects: Any, *, title: str = "", margin: float = 20.0
) -> str:
    """The part of an image around one anchor, with the anchor in blue and true boxes in dashed orange.

    Args:
        ax: to draw on.
        image: as `as_picture` takes it.
        anchor: xyxy in its pixels.
        objects: `(M, 4)` true boxes.
        title: above the picture.
        margin: shown around the anchor's centre beyond half its longer side, in pixels.
    """
    ax.imshow(as_picture(image), interpolation="nearest")
    x1, y1, x2, y2 = anchor
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=3))
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=NEGATIVE, linewidth=1.8))
    for a, b, c, d in np.asarray(objects, float).reshape(-1, 4):
        ax.add_patch(Rectangle((a, b), c - a, d - b, fill=False, edgecolor=FOREGROUND, linewidth=1.6, linestyle="--"))
    half = max(x2 - x1, y2 - y1) / 2 + margin
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    ax.set_xlim(centre[0] - half, centre[0] + half)
    ax.set_ylim(centre[1] + half, centre[1] - half)
    ax.set_facecolor("#e7ebee")  # beyond the image
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.grid(False)
    ax.set_title(title, fontsize=8.5, color=INK)
    return f"An anchor on a piece of an image: {title.replace(chr(10), ', ')}."


def plot_effective(ax: Axes, gammas: Sequence[float], numbers: Mapping[str, Any], counts: Mapping[str, float]) -> str:
    """Effective number of terms over γ on a logarithmic axis, with the true numbers as dotted lines.

    Args:
        ax: to draw on.
        gammas: G focusing parameters.
        numbers: name → `(seeds, G)` effective numbers; mean and range are drawn.
        counts: name → number of terms of that name.
    """
    said = []
    for i, (name, values) in enumerate(numbers.items()):
        values = np.atleast_2d(np.asarray(values, float))
        colour = (NEGATIVE, FOREGROUND)[i % 2]
        ax.fill_between(gammas, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
        ax.plot(
            gammas, values.mean(0), color=colour, marker=("s", "o")[i % 2], markersize=5, label=f"{name}, effective"
        )
        ax.axhline(counts[name], color=colour, linewidth=1.2, linestyle=":")
        ax.annotate(f"all {counts[name]:,.0f} {name}", (gammas[-1], counts[name]), xytext=(0, 3), ha="right",
                    textcoords="offset points", fontsize=8.5, color=MUTED)  # fmt: skip
        said.append(f"{name} from {values.mean(0)[0]:,.0f} to {values.mean(0)[-1]:,.0f} of {counts[name]:,.0f}")
    ax.set_yscale("log")
    ax.set_ylim(top=4 * max(counts.values()))
    ax.set_xticks(list(gammas), [f"{gamma:g}" for gamma in gammas])
    ax.set_xlabel("γ", color=INK)
    ax.set_ylabel("terms", color=INK)
    tidy(ax)
    ax.tick_params(which="minor", length=0)
    ax.legend(fontsize=8.5, frameon=False)
    return f"Effective number of terms from γ = {gammas[0]:g} to {gammas[-1]:g}: {'; '.join(said)}."


def _mean_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean: np.ndarray = values.mean(0)
    return mean, values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
