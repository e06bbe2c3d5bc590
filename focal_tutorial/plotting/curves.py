"""Curves and bars of training and evaluation."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from focal_tutorial.errors import InputError
from focal_tutorial.plotting.style import INK, PALETTE, tidy

Log = Mapping[str, Sequence[float]]


def read_log(path: str | Path) -> dict[str, list[float]]:
    """A training run's `log.csv` as columns of numbers; NaN where a cell is empty.

    Raises:
        InputError: the file is missing, empty or has a cell that is no number.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise InputError(f"{path} has no rows yet: train first, or wait for the first log entry")
        return {key: [float(row[key]) if row[key] else float("nan") for row in rows] for key in rows[0]}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the log.csv of a run folder") from None
    except (ValueError, TypeError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a training log: {error}") from error


def plot_series(
    ax: Axes, log: Log, columns: Sequence[str], *, x: str = "step", label: str = "", log_scale: bool = False
) -> str:
    """Columns of a training log against `x`: losses, learning rate, validation AP; empty cells are skipped."""
    spans, lows = [], []
    for i, name in enumerate(columns):
        at, values = np.asarray(log[x], float), np.asarray(log[name], float)
        there = np.isfinite(values)
        at, values = at[there], values[there]
        colour = PALETTE[i % len(PALETTE)]
        ax.plot(at, values, color=colour, linewidth=1.6, label=name.replace("_", " "),
                marker="o" if len(at) < 25 else None, markersize=3.5)  # fmt: skip
        if len(values):
            lows.append(values.min())
            spans.append(f"{name} from {values[0]:.3g} to {values[-1]:.3g}")
    if log_scale:
        ax.set_yscale("log")
    elif all(value >= 0 for value in lows):
        ax.set_ylim(bottom=0)
    ax.set_xlabel(x, fontsize=8.5, color=INK)
    ax.set_ylabel(label, fontsize=8.5, color=INK)
    if len(columns) > 1:
        ax.legend(fontsize=8, frameon=False)
    tidy(ax)
    return f"Curves over {x}: {', '.join(spans) or 'no values'}."


def plot_precision_recall(
    ax: Axes, curves: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]], *, iou: float = 0.5
) -> str:
    """Precision against recall, one curve per class, as `evaluate.pr_curves` gives them at that `iou`."""
    areas = []
    for i, (name, curve) in enumerate(curves.items()):
        area = f"{100 * float(np.mean(curve['precision'])):.1f}"  # COCO's AP is the mean over its 101 recalls
        style = ("-", "--", ":", "-.")[i // len(PALETTE) % 4]
        ax.plot(curve["recall"], curve["precision"], color=PALETTE[i % len(PALETTE)], linestyle=style, linewidth=1.8,
                label=f"{name}  {area}")  # fmt: skip
        areas.append(f"{name} {area}")
    ax.set_xlim(0, 1.005)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("recall", fontsize=8.5, color=INK)
    ax.set_ylabel("precision", fontsize=8.5, color=INK)
    if curves:
        ax.legend(title=f"AP at IoU {iou:g}, %", fontsize=8, title_fontsize=8, frameon=False, loc="lower left",
                  ncols=1 + len(curves) // 12)  # fmt: skip
    tidy(ax, grid="both")
    return f"Precision against recall per class; AP at IoU {iou:g} in per cent: {', '.join(areas) or 'no class'}."


def plot_ap_bars(
    ax: Axes, results: Mapping[str, Sequence[float | None]], *, label: str = "AP", colour: str = PALETTE[0]
) -> str:
    """Bars of AP (0 … 1, drawn in per cent) per class or setting: mean over seeds, each seed as a dot, ± sample sd."""
    texts = []
    for i, (name, given) in enumerate(results.items()):
        values = 100 * np.array([v for v in given if v is not None], float)
        if not len(values):
            ax.annotate("undefined", (i, 0), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7.5)
            texts.append(f"{name} undefined")
            continue
        mean, spread = values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0
        ax.bar(i, mean, 0.6, color=colour, alpha=0.85)
        top = mean
        if len(values) > 1:
            ax.errorbar(i, mean, spread, color=INK, capsize=4, linewidth=1.2)
            ax.plot(np.full(len(values), i) + np.linspace(-0.12, 0.12, len(values)), values, "o", markersize=3.2,
                    color="white", markeredgecolor=INK, markeredgewidth=0.7)  # fmt: skip
            top = max(mean + spread, values.max())
        text = f"{mean:.1f}" + (f" ± {spread:.1f}" if len(values) > 1 else "")
        ax.annotate(text, (i, top), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8, color=INK)
        texts.append(f"{name} {text}")
    names = list(results)
    crowded = len(names) > 8
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xticks(range(len(names)), names, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    ax.set_ylim(0, 108)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel(f"{label} (%)", fontsize=8.5, color=INK)
    tidy(ax)
    return f"Bars of {label} in per cent: {', '.join(texts)}."
