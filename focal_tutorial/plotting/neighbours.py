"""Figures of the chapter on focal loss's neighbours: one map of the losses, weights, box quality, the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, INK, MUTED, PALETTE, tidy

STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), "-.", (0, (6, 1.5, 1.5, 1.5)), "-")


def plot_loss_family(
    ax: Axes, x: Tensor, curves: Mapping[str, Tensor], *, xlabel: str = "", ylabel: str = "", title: str = ""
) -> str:
    """Several losses (or slopes) over one axis, told apart by colour and dashes.

    Args:
        ax: to draw on.
        x: logits or probabilities, (n,), ascending.
        curves: values (n,) of each, under its name.
        xlabel, ylabel, title: texts.
    """
    for i, (name, values) in enumerate(curves.items()):
        ax.plot(x.tolist(), values.tolist(), color=PALETTE[i % len(PALETTE)], linestyle=STYLES[i % len(STYLES)],
                linewidth=1.9, label=name)  # fmt: skip
    tidy(ax, grid="both")
    ax.set_xlabel(xlabel, fontsize=8.5, color=INK)
    ax.set_ylabel(ylabel, fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    return f"Curves of {', '.join(curves)} ({title}): {ylabel} over {xlabel}."


def plot_weights(ax: Axes, losses: Tensor, weights: Tensor, foreground: Tensor, *, title: str = "") -> str:
    """What a remedy multiplies each anchor's cross entropy with, against that cross entropy.

    Args:
        ax: to draw on.
        losses: cross entropy of each anchor, (n,), above 0; drawn on a logarithmic axis.
        weights: (n,), from 0 to 1.
        foreground: (n,) bool.
        title: of the panel.
    """
    for mask, name, colour, size in (
        (~foreground, "background", BACKGROUND, 7),
        (foreground, "object", FOREGROUND, 15),
    ):
        ax.scatter(losses[mask].tolist(), weights[mask].tolist(), s=size, color=colour, linewidths=0, alpha=0.75,
                   label=f"{name} ({int(mask.sum()):,} anchors)", rasterized=True)  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(-0.06, 1.06)
    tidy(ax, grid="both")
    ax.set_xlabel("cross entropy of the anchor", fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    used = int((weights > 0).sum())
    return f"Weight over cross entropy ({title}): {used:,} of {len(weights):,} anchors have a weight above 0."


def plot_quality_curves(ax: Axes, p: Tensor, curves: Mapping[float, Tensor], *, title: str = "") -> str:
    """A loss over the probability for several qualities, with a dot where each is smallest.

    Args:
        ax: to draw on.
        p: probabilities, (n,), ascending.
        curves: values (n,) for each quality in [0, 1].
        title: of the panel.
    """
    lowest = []
    for i, (quality, values) in enumerate(curves.items()):
        colour, at = PALETTE[i % len(PALETTE)], int(values.argmin())
        ax.plot(p.tolist(), values.tolist(), color=colour, linewidth=1.8, label=f"quality {quality:g}")
        ax.plot(float(p[at]), float(values[at]), "o", color=colour, markersize=6, markeredgecolor="white", zorder=3)
        lowest.append(f"quality {quality:g} at p = {float(p[at]):.2f}")
    tidy(ax, grid="both")
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.04, 2)
    ax.set_xlabel("probability $p$", fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    return f"{title} over the probability; smallest for {', '.join(lowest)}."


def plot_score_against_quality(ax: Axes, score: Tensor, quality: Tensor, *, title: str = "") -> str:
    """The probability that each foreground anchor gives its class, against the IoU of the box it predicts.

    Args:
        ax: to draw on.
        score, quality: (F,) each, in [0, 1].
        title: of the panel.
    """
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    ax.scatter(quality.tolist(), score.tolist(), s=7, color=FOREGROUND, alpha=0.35, linewidths=0, rasterized=True)
    edges = np.quantile(quality.numpy(), np.linspace(0, 1, 6))
    middle, mean = [], []
    for low, high in pairwise(edges):
        inside = (quality >= low) & (quality <= high)
        middle.append(float(quality[inside].mean()))
        mean.append(float(score[inside].mean()))
    ax.plot(middle, mean, "o-", color=INK, linewidth=1.6, markersize=4.5, label="mean of each fifth")
    tidy(ax, grid="both")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("IoU of the predicted box with its object", fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    return (
        f"{title}: score over IoU of {len(score):,} foreground anchors; mean score rises from {mean[0]:.2f} in the "
        f"fifth with the worst boxes to {mean[-1]:.2f} in the best."
    )


def plot_box_cases(ax: Axes, truth: Sequence[float], boxes: Mapping[str, Sequence[float]], *, title: str = "") -> str:
    """Boxes laid over the true one, each in its colour.

    Args:
        ax: to draw on.
        truth: xyxy.
        boxes: xyxy of each, under what the legend says.
        title: of the panel.
    """
    x1, y1, x2, y2 = truth
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor="#dfe5e9", edgecolor=MUTED, linewidth=1.5))
    for i, (name, (a, b, c, d)) in enumerate(boxes.items()):
        ax.add_patch(Rectangle((a, b), c - a, d - b, fill=False, edgecolor=PALETTE[i], linewidth=2, label=name,
                               linestyle=STYLES[i]))  # fmt: skip
    corners = np.array([truth, *boxes.values()])
    ax.set_xlim(corners[:, 0].min() - 4, corners[:, 2].max() + 4)
    ax.set_ylim(corners[:, 3].max() + 4, corners[:, 1].min() - 4)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.0))
    return f"{title}: the true box and {', '.join(boxes)}."


def plot_setting_dots(
    ax: Axes, values: Mapping[str, Sequence[float]], *, marked: Sequence[str] = (), xlabel: str = "AP"
) -> str:
    """One row for each setting: its seeds as dots, the mean as a bar's end with ± one sample standard deviation.

    Args:
        ax: to draw on.
        values: figures of the seeds, fractions, drawn in points of a hundred; rows from top to bottom.
        marked: settings in colour.
        xlabel: quantity.
    """
    texts = []
    for i, (name, given) in enumerate(values.items()):
        points = 100 * np.asarray(given, float)
        mean, sd = points.mean(), points.std(ddof=1)
        ax.barh(i, mean, 0.62, color=PALETTE[0] if name in marked else "#b8c2ca")
        ax.errorbar(mean, i, xerr=sd, color=INK, capsize=3, linewidth=1.2)
        ax.plot(points, i + np.linspace(-0.14, 0.14, len(points)), "o", color="white", markersize=3.6,
                markeredgecolor=INK, markeredgewidth=0.8)  # fmt: skip
        text = f"{mean:.1f} ± {sd:.1f}"
        ax.annotate(text, (max(mean + sd, points.max()), i), xytext=(6, 0), textcoords="offset points", va="center",
                    fontsize=8, color=INK)  # fmt: skip
        texts.append(f"{name} {text}")
    tidy(ax, grid="x")
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.set_xlim(0, ax.get_xlim()[1] * 1.12)
    ax.set_xlabel(f"{xlabel} (%)", fontsize=8.5, color=INK)
    return f"Bars of {xlabel} in per cent: {', '.join(texts)}."


def plot_foreground_share(
    ax: Axes, steps: Sequence[int], shares: Mapping[str, Sequence[Sequence[float]]], *, title: str = ""
) -> str:
    """What part of the loss comes from objects as the model learns: mean and range of the seeds.

    Args:
        ax: to draw on.
        steps: of the looks, ascending from 0.
        shares: for each quantity (at most two) the seeds' shares, (seeds, steps) in [0, 1].
        title: of the panel.
    """
    places = np.arange(len(steps))
    texts = []
    for i, (name, given) in enumerate(shares.items()):
        points = 100 * np.asarray(given, float)
        mean = points.mean(0)
        ax.fill_between(places, points.min(0), points.max(0), color=PALETTE[i], alpha=0.18, linewidth=0)
        ax.plot(places, mean, color=PALETTE[i], linestyle=STYLES[i], marker="o", markersize=3.5, label=name)
        for at in (0, len(steps) - 1):
            ax.annotate(f"{mean[at]:.0f}", (places[at], mean[at]), xytext=(0, 6 if i == 0 else -12),
                        textcoords="offset points", ha="center", fontsize=8, color=PALETTE[i])  # fmt: skip
        texts.append(f"{name} from {mean[0]:.0f} to {mean[-1]:.0f} %, lowest {mean.min():.0f} %")
    tidy(ax, grid="y")
    ax.set_ylim(-4, 112)
    ax.set_yticks(range(0, 101, 20))
    ax.set_xticks(places, [f"{step}" for step in steps], rotation=45)
    ax.set_xlabel("training step", fontsize=8.5, color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    return f"Share from objects ({title}): {'; '.join(texts)}."
