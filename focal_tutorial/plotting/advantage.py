"""Figures of the map of advantages: each loss against the reference, the best of each field, and the levels behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.advantage import AdvantageMap
from focal_tutorial.plotting.remedies import dress_answers
from focal_tutorial.plotting.style import INK, MUTED, PALETTE, tidy

# Worse than the reference in orange, better in blue: colour-blind readers tell them apart, and numbers carry the sign.
DIVERGING = LinearSegmentedColormap.from_list("advantage", [PALETTE[1], "#f6d9c4", "#ffffff", "#c4dff0", PALETTE[0]])
SILENT = "#e4e8eb"
MARKERS, LINES = "osD^vP", ("-", "--", "-.", ":")


def plot_advantage_map(
    figure: Figure, fields: AdvantageMap, measured: Mapping[int, float], short: Mapping[str, str], *, limit: float
) -> str:
    """A panel for each loss but the reference, and one with the best of each field; two panels side by side.

    Args:
        figure: to draw on; its panels are made here.
        fields: what is drawn.
        measured: imbalance as the settings are named → as counted, for the axis.
        short: loss → a name of at most eight characters, for the last panel.
        limit: advantage in points with the full colour.
    """
    losses = list(fields.losses)[1:]
    rows = -(-(len(losses) + 1) // 2)
    axes = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).ravel()
    words = [plot_advantage(ax, fields, loss, limit=limit) for ax, loss in zip(axes, losses, strict=False)]
    words.append(plot_best(axes[len(losses)], fields, short))
    for ax in axes[len(losses) + 1 :]:
        ax.set_axis_off()
    for ax in axes[::2]:
        ax.set_ylabel("training steps", fontsize=10, color=INK)
        ax.set_yticks(range(len(fields.steps)), [f"{steps:,}" for steps in fields.steps])
    for ax in axes[-2:]:
        ax.set_xlabel("background to 1 foreground", fontsize=10, color=INK)
        ax.set_xticks(range(len(fields.imbalance)), [f"{measured[n]:,.0f}" for n in fields.imbalance])
    return " ".join(words)


def plot_advantage(ax: Axes, fields: AdvantageMap, loss: str, *, limit: float) -> str:
    """AP of one loss minus the reference's, a number in every field; what is not told apart from 0 is hatched.

    Args:
        ax: to draw on: imbalance to the right, longer schedules upwards.
        fields: the map.
        loss: which.
        limit: advantage in points with the full colour.
    """
    words = []
    for x, y, imbalance, steps in _fields(fields):
        found = fields.advantage(loss, imbalance, steps)
        if found is None:
            continue
        where = f"at 1:{imbalance:,} after {steps:,} steps"
        if fields.silent(imbalance, steps):
            _field(ax, x, y, SILENT, "–", MUTED)
            words.append(f"{where} nothing learned")
            continue
        colour = DIVERGING(Normalize(-limit, limit, clip=True)(found.mean))
        dark = abs(found.mean) > 0.75 * limit
        _field(ax, x, y, colour, f"{found.mean:+.1f}", "white" if dark else INK, hatch=not found.clear)
        words.append(f"{where} {found.mean:+.1f}{'' if found.clear else ' (not told apart from 0)'}")
    _panel(ax, fields, fields.losses[loss])
    return f"{fields.losses[loss]} minus {fields.losses[fields.reference]}, AP points: {'; '.join(words)}."


def plot_best(ax: Axes, fields: AdvantageMap, short: Mapping[str, str]) -> str:
    """The best loss of each field by its mean, in its colour; below it those that are not told apart from it."""
    words = []
    for x, y, imbalance, steps in _fields(fields):
        best = fields.best(imbalance, steps)
        where = f"at 1:{imbalance:,} after {steps:,} steps"
        if best:
            colour = PALETTE[list(fields.losses).index(best[0])]
            others = [short[name] for name in best[1:]]
            text = "\n".join([short[best[0]], *(f"({name})" for name in others)])
            _field(ax, x, y, colour, text, INK, alpha=0.3, size=8.5 if len(others) < 2 else 8)
            words.append(f"{where} {fields.losses[best[0]]}" + (f" (or {', '.join(others)})" if others else ""))
        elif fields.silent(imbalance, steps):
            _field(ax, x, y, SILENT, "–", MUTED)
    _panel(ax, fields, "best (not told apart)")
    return f"Best by the mean: {'; '.join(words)}."


def plot_levels(ax: Axes, fields: AdvantageMap, steps: int, measured: Mapping[int, float]) -> str:
    """AP of every loss over imbalance after one schedule: the mean, and the standard deviation as a bar.

    Args:
        ax: to draw on, with a logarithmic axis.
        fields: the map.
        steps: the schedule.
        measured: imbalance as the settings are named → as counted.
    """
    words = []
    for i, (loss, title) in enumerate(fields.losses.items()):
        known = {n: fields.rows[loss, n, steps] for n in fields.imbalance if (loss, n, steps) in fields.rows}
        x = [measured[n] * 1.08 ** (i - (len(fields.losses) - 1) / 2) for n in known]  # so that bars stand apart
        means, spread = [row.mean for row in known.values()], [row.sd or 0.0 for row in known.values()]
        ax.errorbar(x, means, spread, color=PALETTE[i], marker=MARKERS[i], markersize=4.5, linewidth=1.5, capsize=2.5,
                    linestyle=LINES[i % 4], label=title)  # fmt: skip
        words.append(f"{title} {', '.join(f'{mean:.1f}' for mean in means)}")
    places = [measured[n] for n in fields.imbalance]
    ax.set_xscale("log")
    ax.set_xticks(places, [f"{n:,.0f}" for n in places])
    ax.minorticks_off()
    ax.set_ylim(0, 1.05 * max(row.mean + (row.sd or 0.0) for row in fields.rows.values()))
    ax.set_title(f"{steps:,} steps", fontsize=9.5, loc="left", color=INK)
    ax.set_xlabel("background to 1 foreground", color=INK)
    tidy(ax)
    listed = ", ".join(f"1:{n:,.0f}" for n in places)
    return f"AP after {steps:,} steps at {listed}: {'; '.join(words)}."


def plot_first_answers(ax: Axes, steps: Sequence[int], answers: Mapping[str, Sequence[float]], base_rate: float) -> str:
    """Mean probability of "object" in the first steps, one line for each loss, on a logarithmic axis.

    Args:
        ax: to draw on.
        steps: S training steps, ascending.
        answers: name → S probabilities in (0, 1).
        base_rate: share of "yes" among all answers, drawn as a dotted line.
    """
    words = []
    for i, (name, values) in enumerate(answers.items()):
        ax.plot(steps, values, color=PALETTE[i], marker=MARKERS[i], markersize=4.5, linewidth=2.8 - 0.4 * i,
                linestyle=LINES[i % 4], label=name)  # fmt: skip
        words.append(f"{name} from {values[0]:.0e} to {values[-1]:.0e}")
    dress_answers(ax, steps[-1], base_rate, top=0.1, legend="lower left")
    return f"Mean probability of object in the first {steps[-1]} steps: {'; '.join(words)}."


def _fields(fields: AdvantageMap) -> list[tuple[int, int, int, int]]:
    """Column, row, imbalance and steps of every field."""
    return [(x, y, n, steps) for y, steps in enumerate(fields.steps) for x, n in enumerate(fields.imbalance)]


def _field(
    ax: Axes, x: int, y: int, colour: Any, text: str, ink: str, *, hatch: bool = False, alpha: float = 1.0,
    size: float = 10.5,
) -> None:  # fmt: skip
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5, alpha=alpha))
    below = {}
    if hatch:
        ax.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, fill=False, hatch="///", edgecolor="#b4bfc7", lw=0))
        below = {"bbox": {"facecolor": colour, "edgecolor": "none", "pad": 1.5}}  # the number stays readable
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=ink, zorder=3, linespacing=1.15, **below)


def _panel(ax: Axes, fields: AdvantageMap, title: str) -> None:
    ax.set_xlim(-0.5, len(fields.imbalance) - 0.5)
    ax.set_ylim(-0.5, len(fields.steps) - 0.5)
    ax.set_title(title, fontsize=10.5, loc="left", color=INK)
    tidy(ax, grid=None)
    ax.tick_params(labelsize=9.5)
    ax.spines[["left", "bottom"]].set_visible(False)
