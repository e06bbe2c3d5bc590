"""Figures of the chapter on balanced cross entropy: shares, shifted probabilities, AP against α."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from focal_tutorial.balance import balanced_optimum
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, INK, MUTED, PALETTE, tidy

STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), "-.", (0, (8, 2, 1.5, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v")


def log_odds(p: float | np.ndarray) -> np.ndarray:
    """log(p / (1 − p)): the axis on which a weight α is a shift."""
    p = np.asarray(p, float)
    return np.log(p) - np.log1p(-p)


def odds_axis(ax: Axes, which: Literal["x", "y"], ticks: Sequence[float]) -> None:
    """Label an axis drawn in log-odds with the probabilities `ticks`."""
    places, names = log_odds(np.array(ticks)), [f"{tick:f}".rstrip("0") for tick in ticks]
    ax.set_xticks(places, names) if which == "x" else ax.set_yticks(places, names)


def plot_share_bars(ax: Axes, shares: Mapping[str, float]) -> str:
    """One bar a row, split into what objects and backgrounds give to a sum: `{row: the objects' share in 0…1}`."""
    ax.axvline(0.5, color=INK, linewidth=1, linestyle=STYLES[2], zorder=3)
    places = list(range(len(shares)))[::-1]
    for place, share in zip(places, shares.values(), strict=True):
        ax.barh(place, share, 0.56, color=FOREGROUND)
        ax.barh(place, 1 - share, 0.56, left=share, color=BACKGROUND)
        inside = share > 0.12
        ax.text(0.015 if inside else share + 0.015, place, f"{100 * share:.0f} %", fontsize=8.5, va="center",
                color="white" if inside else INK)  # fmt: skip
    ax.set_xlim(0, 1)
    tidy(ax, grid=None)
    ax.set_yticks(places, list(shares))
    ax.set_xticks([0, 0.5, 1], ["0", "half", "all"])
    ax.set_ylim(-0.5, len(shares) - 0.5)
    ax.set_xlabel("share of the loss: objects (left, orange), backgrounds (right, grey)", fontsize=8.5, color=INK)
    listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    return f"Bars of the objects' share of the loss, the rest being backgrounds': {listed}."


def plot_balanced_optimum(ax: Axes, alphas: Sequence[float], *, mark: tuple[float, float] | None = None) -> str:
    """The best answer p* against the true frequency q for each α, both axes in log-odds: parallel lines.

    Args:
        ax: to draw on.
        alphas: in 0…1, without the ends.
        mark: (q, α) of a point to point out.
    """
    q = 1 / (1 + np.exp(-np.linspace(-9.6, 4.8, 200)))
    for i, alpha in enumerate(alphas):
        ax.plot(log_odds(q), log_odds(q) + log_odds(alpha), color=PALETTE[i], linestyle=STYLES[i],
                label=f"α = {alpha:g}")  # fmt: skip
    text = ""
    if mark is not None:
        best = float(balanced_optimum(*mark))
        x, y = float(log_odds(mark[0])), float(log_odds(best))
        ax.plot([x, x, -9.6], [-9.6, y, y], color=MUTED, linewidth=1, linestyle=STYLES[2])
        ax.plot(x, y, "o", color=INK, markersize=6, zorder=4)
        text = f" At q = {mark[0]:g} and α = {mark[1]:g}, p* is {best:.2f}."
    tidy(ax, grid="both")
    ticks = (0.0001, 0.002, 0.05, 0.5, 0.95)
    odds_axis(ax, "x", ticks)
    odds_axis(ax, "y", (*ticks, 0.998))
    ax.set_xlim(-9.6, 4.8)
    ax.set_ylim(-9.6, 7.5)
    ax.set_xlabel("how often it is an object, q", fontsize=8.5, color=INK)
    ax.set_ylabel("best answer p*", fontsize=8.5, color=INK)
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return f"Parallel lines in log-odds: the best answer against the true frequency, one line for each α.{text}"


def reliability(logits: Tensor, truth: Tensor, *, least: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Mean predicted probability and measured frequency of "object" in bins of two units of the logit.

    Args:
        logits, truth: (n,), one for each yes-or-no question; truth is 0 or 1.
        least: bins of fewer questions, or without both answers, are left out.
    """
    points = []
    for low in range(-20, 20, 2):
        inside = (logits >= low) & (logits < low + 2)
        hits = float(truth[inside].sum())
        if int(inside.sum()) >= least and 0 < hits < int(inside.sum()):
            points.append((float(logits[inside].double().sigmoid().mean()), hits / int(inside.sum())))
    p, frequency = np.array(points).reshape(-1, 2).T
    return p, frequency


def plot_reliability(ax: Axes, measured: Mapping[float, tuple[np.ndarray, np.ndarray]]) -> str:
    """Frequency of "object" among answers of one probability; dashed the frequency for which that answer is best.

    Args:
        ax: to draw on.
        measured: for each α the probabilities and frequencies of `reliability`.
    """
    line = np.linspace(-13, 8, 100)
    told = []
    for i, (alpha, (p, frequency)) in enumerate(measured.items()):
        ax.plot(line, line - log_odds(alpha), color=PALETTE[i], linewidth=1.2, linestyle=STYLES[1], alpha=0.8)
        ax.plot(log_odds(p), log_odds(frequency), MARKERS[i], color=PALETTE[i], markersize=6.5, label=f"α = {alpha:g}")
        told.append(f"α = {alpha:g}, where it says {p[-1]:.2g} the frequency is {frequency[-1]:.2g}")
    tidy(ax, grid="both")
    odds_axis(ax, "x", (0.00001, 0.0005, 0.02, 0.5, 0.98))
    odds_axis(ax, "y", (0.00001, 0.0001, 0.001, 0.01, 0.1, 0.5))
    ax.set_xlim(-12.8, 7.5)
    ax.set_ylim(-12.2, 0.6)
    ax.set_xlabel("the detector's probability", fontsize=8.5, color=INK)
    ax.set_ylabel("measured frequency of an object", fontsize=8.5, color=INK)
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return f"Measured frequency against predicted probability, dots beside the derived lines: {'; '.join(told)}."


def plot_alpha_sweep(
    ax: Axes,
    results: Mapping[float, Sequence[float]],
    *,
    levels: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
) -> str:
    """AP (0 … 1, drawn in per cent) against α on a log-odds axis: mean over seeds, each seed as a dot, ± sample sd.

    Args:
        ax: to draw on.
        results: AP of every seed for each α, α ascending in 0…1 without the ends.
        levels: AP of every seed of other losses, drawn as horizontal bands.
        title: of the panel.
    """
    alphas = list(results)
    stats = [_mean_and_spread(values) for values in results.values()]
    x, y, spread = log_odds(np.array(alphas)), np.array([s[0] for s in stats]), np.array([s[1] for s in stats])
    tops = list(y + spread)
    for i, (name, values) in enumerate((levels or {}).items()):
        mean, sd = _mean_and_spread(values)
        ax.axhspan(mean - sd, mean + sd, color=PALETTE[2 + i], alpha=0.15, linewidth=0)
        ax.axhline(mean, color=PALETTE[2 + i], linewidth=1.3, linestyle=STYLES[1 + i], label=name)
        tops.append(mean + sd)
    seeds = max(map(len, results.values()))
    ax.errorbar(x, y, spread if seeds > 1 else None, color=PALETTE[0], marker="o", markersize=5.5, capsize=4,
                linewidth=1.6)  # fmt: skip
    steep = np.diff(y, append=y[-1]) > 0.2 * max(tops)  # where the line goes up so fast that it meets a label above
    for place, value, up, values, aside in zip(x, y, spread, results.values(), steep, strict=True):
        if seeds > 1:
            ax.plot(place + np.linspace(0.16, 0.3, len(values)), 100 * np.array(values), "o", markersize=3.2,
                    color="white", markeredgecolor=INK, markeredgewidth=0.7, clip_on=False, zorder=4)  # fmt: skip
        shift, side = ((-8, 4), "right") if aside and seeds == 1 else ((0, 6), "center")
        ax.annotate(f"{value:.1f}", (place, value + up), xytext=shift, textcoords="offset points", ha=side,
                    fontsize=8.5, color=INK)  # fmt: skip
    tidy(ax)
    odds_axis(ax, "x", alphas)
    ax.set_xlim(-3.1, 7.8)  # α from 0.05 to 0.9995, the same in every panel
    ax.set_ylim(0, 1.12 * max(*tops, 1.0))
    ax.set_xlabel("α", color=INK)
    ax.set_ylabel("AP (%)", fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    if levels:
        ax.legend(fontsize=8, frameon=False, loc="lower right")
    listed = ", ".join(
        f"{alpha:g} {value:.1f}" + (f" ± {sd:.1f}" if seeds > 1 else "")
        for alpha, value, sd in zip(alphas, y, spread, strict=True)
    )
    return f"AP in per cent against α ({title}): {listed}."


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, in per cent; 0 for one value."""
    given = 100 * np.array(values, float)
    return float(given.mean()), float(given.std(ddof=1)) if len(given) > 1 else 0.0


def plot_shares_over_training(
    ax: Axes,
    steps: Sequence[int],
    shares: Mapping[str, np.ndarray],
    *,
    title: str = "",
    ylabel: str = "share of the objects",
) -> str:
    """Shares in 0…1 over the steps of training, a line and a band of ± one standard deviation for each name.

    Args:
        ax: to draw on.
        steps: ascending, from 0; drawn evenly spaced in log(1 + step / 5), so that the start can be seen.
        shares: for each name (runs, steps).
        title, ylabel: of the panel.
    """
    x = np.log1p(np.asarray(steps) / 5)
    ax.axhline(0.5, color=INK, linewidth=0.9, linestyle=STYLES[2])
    told = []
    for i, (name, values) in enumerate(shares.items()):
        values = np.atleast_2d(values)
        mean = values.mean(0)
        sd = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(mean))
        ax.fill_between(x, mean - sd, mean + sd, color=PALETTE[i], alpha=0.16, linewidth=0)
        ax.plot(x, mean, color=PALETTE[i], marker=MARKERS[i], markersize=4.5, linestyle=STYLES[i], label=name)
        told.append(f"{name} from {mean[0]:.2f} to {mean[-1]:.2f}")
    tidy(ax)
    shown = [step for step in steps if step == 0 or step >= 10]  # 5 would touch its neighbours
    ax.set_xticks(np.log1p(np.array(shown) / 5), [str(step) for step in shown])
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "half", "¾", "all"])
    ax.set_xlabel("training step", fontsize=8.5, color=INK)
    ax.set_ylabel(ylabel, fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    return f"{ylabel} over training ({title}): {', '.join(told)}."


def plot_concentration(ax: Axes, parts: Mapping[str, Tensor]) -> str:
    """How few terms make up a sum: its share from the hardest terms, against their share of the terms.

    Args:
        ax: to draw on.
        parts: for each name the terms of the sum, (n,), all >= 0.
    """
    told = []
    for i, (name, terms) in enumerate(parts.items()):
        summed = terms.double().sort(descending=True).values.cumsum(0)
        running = (summed / summed[-1]).numpy()
        count = len(running)
        at = np.unique(np.geomspace(1, count, 200).astype(int)) - 1
        ax.plot((at + 1) / count, running[at], color=PALETTE[i], linestyle=STYLES[i], label=name)
        told.append(f"{name}: the hardest hundredth gives {100 * running[math.ceil(count / 100) - 1]:.0f} %")
    ax.set_xscale("log")
    ax.set_xlim(1e-4, 1)
    ax.set_ylim(0, 1.03)
    tidy(ax, grid="both")
    ax.minorticks_off()
    ax.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["1 in 10,000", "1 in 1000", "1 in 100", "1 in 10", "all"])
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "half", "¾", "all"])
    ax.set_xlabel("the hardest of the background's terms", fontsize=8.5, color=INK)
    ax.set_ylabel("their share of its push", fontsize=8.5, color=INK)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    return f"Cumulative share of a sum, hardest terms first: {'; '.join(told)}."
