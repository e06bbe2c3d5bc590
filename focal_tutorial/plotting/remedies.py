"""Figures of the chapter on why imbalance hurts: whose loss it is, and which anchors each remedy keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.patches import Rectangle
from torch import Tensor

from focal_tutorial.plotting.images import as_picture
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, INK, MUTED, PALETTE, tidy

NEGATIVE = PALETTE[0]  # a background anchor that is kept; grey would vanish on a photograph


def plot_cross_entropy(ax: Axes, answers: Mapping[str, float]) -> str:
    """−log p_t over p_t, with named answers (their p_t in (0, 1)) marked on the curve."""
    p = np.linspace(0.004, 1, 400)
    ax.plot(p, -np.log(p), color=INK, linewidth=1.8)
    for i, (name, p_t) in enumerate(answers.items()):
        loss = -np.log(p_t)
        colour = PALETTE[i % len(PALETTE)]
        ax.plot(p_t, loss, "o", color=colour, markersize=7, clip_on=False, zorder=4)
        ax.annotate(f"{name}: {loss:.2f}", (p_t, loss), xytext=(9, 7), textcoords="offset points", fontsize=8.5,
                    color=colour, ha="left" if p_t < 0.7 else "right")  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 5.5)
    ax.set_xlabel("probability given to the truth $p_t$", color=INK)
    ax.set_ylabel("cross entropy", color=INK)
    tidy(ax, grid="both")
    listed = ", ".join(f"{name} at {p_t:g} costs {-np.log(p_t):.2f}" for name, p_t in answers.items())
    return f"Cross entropy falls from infinity at p_t = 0 to 0 at p_t = 1. Marked: {listed}."


def plot_piles(ax: Axes, groups: Mapping[str, tuple[int, float]], *, cell: float = 0.1, high: int = 10) -> str:
    """Summed losses as areas: each group's count × loss, drawn as small squares worth `cell` each, `high` to a column.

    Args:
        groups: for each name the number of anchors and the loss of each; the first is foreground, the others not.
        cell: loss that one square stands for.
        high: squares on top of each other.
    """
    left, sums = 0, []
    for i, (name, (count, loss)) in enumerate(groups.items()):
        squares = round(count * loss / cell)
        columns = -(-squares // high)
        patches = [Rectangle((left + k // high, k % high), 1, 1) for k in range(squares)]
        colour = BACKGROUND if i else FOREGROUND
        ax.add_collection(PatchCollection(patches, facecolor=colour, edgecolor="white", linewidth=0.6))
        ax.text(left, high + 0.7, f"{count:,} {name} × {loss:g} = {count * loss:g}", fontsize=9.5, color=INK, ha="left")
        sums.append(f"{count:,} {name} times {loss:g} is {count * loss:g}")
        left += max(columns, 30) + 4
    ax.set_xlim(-1, left - 3)
    ax.set_ylim(-0.5, high + 2.5)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return f"Two piles of squares, each square a loss of {cell:g}: {'; '.join(sums)}."


def plot_over_probability(
    ax: Axes,
    p: Tensor,
    curves: Mapping[str, Tensor],
    marks: Mapping[str, float],
    *,
    dots: tuple[Tensor, Sequence[Tensor]] | None = None,
    ylabel: str,
) -> str:
    """Curves over a probability on a logarithmic axis, with named places on it and measured dots beside the curves.

    Args:
        ax: to draw on.
        p: `(n,)`, ascending, in (0, 1).
        curves: name → `(n,)` shares in 0…1, drawn in per cent.
        marks: name → place on the axis, drawn as a dotted line.
        dots: places `(m,)` and, for each curve in its order, `(m,)` measured shares.
        ylabel: what is drawn.
    """
    for i, (name, share) in enumerate(curves.items()):
        style = ("-", "--")[i % 2]
        ax.plot(p.tolist(), (100 * share).tolist(), color=PALETTE[i], linewidth=1.8, label=name, linestyle=style)
        if dots is not None:
            ax.plot(dots[0].tolist(), (100 * dots[1][i]).tolist(), "o", color=PALETTE[i], markersize=5, alpha=0.85,
                    markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
    for name, place in marks.items():
        ax.axvline(place, color=MUTED, linewidth=1, linestyle=":")
        ax.annotate(name, (place, 102), fontsize=8.5, color=MUTED, ha="center", annotation_clip=False)
    ax.set_xscale("log")
    ax.set_xlim(float(p[0]), float(p[-1]))
    ax.set_ylim(0, 100)
    ax.set_xlabel("probability $p$ of “object”", color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.legend(fontsize=8.5, loc="lower left", facecolor="white", edgecolor="none", framealpha=1)
    tidy(ax, grid="both")
    ax.tick_params(which="minor", length=0)
    ends = ", ".join(f"{name} from {100 * c[0]:.1f} to {100 * c[-1]:.1f}" for name, c in curves.items())
    return f"{ylabel} over p from {p[0]:.0e} to {p[-1]:.2g}: {ends}. Marked: {', '.join(marks)}."


def plot_answers(ax: Axes, steps: Sequence[int], answers: Mapping[str, Sequence[float]], base_rate: float) -> str:
    """Mean probability of "object" over training steps for each kind of anchor, on a logarithmic axis."""
    ends = []
    for i, (name, values) in enumerate(answers.items()):
        ax.plot(steps, values, color=(FOREGROUND, "#60727f", *PALETTE)[i], marker="o", markersize=3.2, label=name,
                linewidth=1.8)  # fmt: skip
        ends.append(f"{name} from {values[0]:.2g} to {values[-1]:.2g}")
    dress_answers(ax, steps[-1], base_rate)
    return f"Mean probability over training steps: {', '.join(ends)}."


def dress_answers(
    ax: Axes, last: int, base_rate: float, *, top: float = 1, legend: Literal["best", "lower left"] = "best"
) -> None:
    """Axes, base rate and legend of a figure of answers over the steps from 0 to `last`; the lines are drawn before."""
    ax.axhline(base_rate, color=MUTED, linewidth=1, linestyle=":")
    ax.annotate("base rate", (last, base_rate), xytext=(5, 0), fontsize=8.5, color=MUTED, va="center",
                textcoords="offset points", annotation_clip=False)  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlim(0, last)
    ax.set_ylim(top=top)
    ax.set_xlabel("training step", color=INK)
    ax.set_ylabel("mean probability of “object”", color=INK)
    ax.legend(fontsize=8.5, frameon=False, loc=legend)
    tidy(ax)
    ax.tick_params(which="minor", length=0)


def plot_spread(
    ax: Axes, steps: Sequence[int], runs: Mapping[str, Any], *, ylabel: str, top: float | None = 100
) -> str:
    """Mean ± sample standard deviation over seeds as a line with a band; early steps are spread out.

    Args:
        steps: T training steps, ascending from 0.
        runs: name → `(seeds, T)` numbers.
        ylabel: quantity and unit.
        top: of the axis; `None` leaves it to the data.
    """
    ends = []
    for i, (name, values) in enumerate(runs.items()):
        values = np.asarray(values, float)
        mean = values.mean(0)
        spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        ax.fill_between(steps, mean - spread, mean + spread, color=PALETTE[i], alpha=0.2, linewidth=0)
        ax.plot(steps, mean, color=PALETTE[i], marker="o", markersize=3.5, label=name, linewidth=1.8,
                linestyle=("-", "--")[i % 2])  # fmt: skip
        ends.append(f"{name} from {mean[0]:.1f} over {mean[len(mean) // 2]:.1f} to {mean[-1]:.1f}")
    ax.set_xscale("symlog", linthresh=10, linscale=0.6)
    ax.set_xticks(steps, [f"{step:,}" for step in steps])
    ax.minorticks_off()
    ax.set_xlim(-0.4, 1.1 * steps[-1])
    ax.set_ylim(0, top)
    ax.set_xlabel("training step", color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.legend(fontsize=8.5, frameon=False)
    tidy(ax)
    return f"{ylabel} over training steps 0 to {steps[-1]:,}: {'; '.join(ends)}."


def plot_easy_background(ax: Axes, losses: Tensor) -> str:
    """For each decade of loss, which share of the background anchors it holds and which share of their loss.

    Args:
        losses: `(B,)` losses of background anchors, at least 0.
    """
    values = losses.double().numpy()
    edges = np.array([0, *10.0 ** np.arange(-4, 1), np.inf])
    which = np.digitize(values, edges) - 1
    counts = np.bincount(which, minlength=len(edges) - 1) / len(values)
    sums = np.bincount(which, weights=values, minlength=len(edges) - 1) / values.sum()
    names = ["< 0.0001", "to 0.001", "to 0.01", "to 0.1", "to 1", "> 1"]
    x = np.arange(len(names))
    for shift, shares, colour, name in (
        (-0.2, counts, BACKGROUND, "of the anchors"),
        (0.2, sums, PALETTE[0], "of the loss"),
    ):
        ax.bar(x + shift, 100 * shares, 0.38, color=colour, label=name)
        for place, share in zip(x + shift, shares, strict=True):
            ax.annotate(f"{100 * share:.1f}", (place, 100 * share), xytext=(0, 2), textcoords="offset points",
                        ha="center", fontsize=7.5, color=INK)  # fmt: skip
    ax.set_xticks(x, names)
    ax.set_ylim(0, 108)
    ax.set_xlabel("loss of a background anchor", color=INK)
    ax.set_ylabel("share (%)", color=INK)
    ax.legend(fontsize=8.5, frameon=False)
    tidy(ax)
    listed = ", ".join(f"{n}: {100 * c:.1f} and {100 * s:.1f}" for n, c, s in zip(names, counts, sums, strict=True))
    return f"Per cent of background anchors and of their loss, by the anchor's loss: {listed}."


def plot_kept(ax: Axes, losses: Tensor, labels: Tensor, kept: Mapping[str, Tensor]) -> str:
    """Which of a few anchors each remedy keeps: a row of discs per remedy, as large as the anchor's loss.

    Args:
        losses: `(R,)` loss of each anchor.
        labels: `(R,)` true labels, −1 background.
        kept: remedy → `(R,)` labels with −2 where the anchor is discarded.
    """
    area = 25 + 420 * (losses / losses.max()).numpy()
    colours = np.where(labels.numpy() >= 0, FOREGROUND, NEGATIVE)
    texts = []
    for row, (name, sampled) in enumerate(kept.items()):
        inside = sampled.numpy() != -2
        x = np.arange(len(losses))
        ax.scatter(x[~inside], np.full((~inside).sum(), row), s=area[~inside], facecolors="none", edgecolors="#b9c3ca",
                   linewidths=1.0)  # fmt: skip
        ax.scatter(x[inside], np.full(inside.sum(), row), s=area[inside], color=colours[inside])
        texts.append(f"{name} keeps {' '.join('abcdefghijklmnop'[i] for i in x[inside])}")
    ax.set_yticks(range(len(kept)), list(kept))
    ax.set_xticks(range(len(losses)), [f"{'abcdefghijklmnop'[i]}\n{v:.2f}" for i, v in enumerate(losses.tolist())])
    ax.set_ylim(len(kept) - 0.4, -0.6)
    ax.set_xlim(-0.6, len(losses) - 0.4)
    tidy(ax, grid=None)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlabel("anchor and its loss", color=INK)
    return f"Rows of discs, filled where an anchor is kept: {'; '.join(texts)}."


def draw_kept(ax: Axes, image: Any, anchors: Tensor, labels: Tensor, *, title: str = "") -> str:
    """The anchors of an image that still count: foreground in orange, background in blue, thin enough to overlap.

    Args:
        image: as `as_picture` takes it.
        anchors: `(R, 4)` xyxy in its pixels.
        labels: `(R,)`; only those ≥ −1 are drawn.
        title: of the picture; the counts are added.
    """
    picture = as_picture(image)
    grey = picture.mean(-1, keepdims=True).repeat(3, -1)
    ax.imshow((0.35 * picture + 0.4 * grey + 62).clip(0, 255).astype(np.uint8), interpolation="antialiased")
    ax.set_axis_off()
    counts = []
    for wanted, colour, width in ((labels == -1, NEGATIVE, 0.7), (labels >= 0, FOREGROUND, 0.9)):
        chosen = anchors[wanted.to(anchors.device)].cpu().numpy()
        frames = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)] for x1, y1, x2, y2 in chosen]
        ax.add_collection(LineCollection(frames, colors=colour, linewidths=width, alpha=0.75))
        counts.append(len(chosen))
    ax.set_xlim(-0.5, picture.shape[1] - 0.5)
    ax.set_ylim(picture.shape[0] - 0.5, -0.5)
    said = f"{counts[1]} foreground, {counts[0]} background"
    ax.set_title(f"{title}\n{said}" if title else said, fontsize=9, color=INK, loc="left")
    return f"{title or 'An image'} with the anchors kept: {said}."


def plot_losses(ax: Axes, runs: Mapping[str, Sequence[float]], *, ylabel: str) -> str:
    """Loss at every step of a few runs, on a logarithmic axis."""
    ends = []
    for i, (name, values) in enumerate(runs.items()):
        ax.plot(range(1, len(values) + 1), values, color=(FOREGROUND, PALETTE[0], PALETTE[2])[i % 3], label=name,
                linewidth=1.7, linestyle=("-", "--", "-.")[i % 3])  # fmt: skip
        ends.append(f"{name} from {values[0]:.3g} to {values[-1]:.3g}")
    ax.set_yscale("log")
    ax.set_xlabel("training step", color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.legend(fontsize=8.5, frameon=False)
    tidy(ax)
    ax.tick_params(which="minor", length=0)
    return f"{ylabel} over training steps: {', '.join(ends)}."
