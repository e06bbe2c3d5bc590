"""Figures of the chapter on training: schedules, padded batches, losses that die, where a step's time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from focal_tutorial.plotting.style import INK, MUTED, PALETTE, tidy

TREATMENT_COLOURS = {"cold": PALETTE[1], "warm": PALETTE[0], "clipped": PALETTE[2]}
PADDING = "#e4e8eb"
# Forward and backward in one family of colours each; what is no arithmetic of the network in greys.
PART_COLOURS = {
    "data": "#aab4bb", "preprocess": "#c9d1d6", "backbone": "#0072b2", "pyramid": "#3b93c7", "heads": "#86bfe0",
    "matching": "#e69f00", "losses": "#f2c75c", "backward": "#009e73", "optimizer": "#cc79a7",
}  # fmt: skip


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window - 1` before it."""
    means = []
    for i in range(len(values)):
        part = values[max(0, i + 1 - window) : i + 1]
        means.append(sum(part) / len(part))
    return means


def plot_steps(ax: Axes, losses: Sequence[float], *, window: int = 10, ylabel: str = "loss") -> str:
    """The loss of every step as dots and its running mean as a line, from step 1 on."""
    steps = range(1, len(losses) + 1)
    means = running_mean(losses, window)
    ax.plot(steps, losses, ".", color="#9fb0bb", markersize=4, label="a step")
    ax.plot(steps, means, color=PALETTE[0], label=f"mean of {window} steps")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step", fontsize=8.5, color=INK)
    ax.set_ylabel(ylabel, fontsize=8.5, color=INK)
    ax.legend(fontsize=8.5)
    tidy(ax)
    return f"{ylabel} over {len(losses)} steps; the mean of {window} falls from {means[0]:.2f} to {means[-1]:.2f}."


def plot_schedule(ax: Axes, rates: Mapping[str, Sequence[float]], *, every: int = 1) -> str:
    """Learning rates over the steps of a run, one line for each schedule.

    Args:
        rates: for each schedule the rate of every `every`-th step.
    """
    for i, (name, values) in enumerate(rates.items()):
        at = [every * step for step in range(len(values))]
        ax.plot(at, values, color=PALETTE[i], linestyle=("-", (0, (5, 2)))[i % 2], label=name)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("step", fontsize=8.5, color=INK)
    ax.set_ylabel("learning rate", fontsize=8.5, color=INK)
    ax.legend(fontsize=8.5)
    tidy(ax)
    ends = ", ".join(f"{name} up to {max(values):g}, {values[-1]:.2g} at the end" for name, values in rates.items())
    return f"Learning rate over the steps: {ends}."


def show_padded(ax: Axes, images: Tensor, sizes: Sequence[tuple[int, int]], *, title: str = "", gap: int = 24) -> str:
    """A batch side by side as the network gets it, with what is padding in grey.

    Args:
        ax: to draw on.
        images: `(N, 3, H, W)`, values in [0, 1].
        sizes: (height, width) that each image fills, from the upper left corner.
        title: a line above; the share of padding is added to it.
        gap: pixels between two images.
    """
    _, _, height, width = images.shape
    for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        left = i * (width + gap)
        ax.add_patch(Rectangle((left, 0), width, height, facecolor=PADDING, edgecolor="#9aa5ae", hatch="////", lw=0.8))
        picture = image[:, :h, :w].permute(1, 2, 0).clamp(0, 1).cpu().numpy()
        ax.imshow(picture, extent=(left, left + w, h, 0), zorder=2)
    ax.set_xlim(-2, len(images) * (width + gap) - gap + 2)
    ax.set_ylim(height + 2, -2)
    ax.set_axis_off()
    share = padding_share((height, width), sizes)
    ax.set_title(f"{title}{height} × {width}, {share:.0%} padding", fontsize=9, loc="left", color=INK)
    return f"{len(images)} images padded to {height} × {width} pixels; {share:.0%} of the batch is padding. {title}"


def padding_share(padded: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> float:
    """The share of a batch's pixels that belong to no image."""
    return 1 - sum(h * w for h, w in sizes) / (len(sizes) * padded[0] * padded[1])


def plot_deaths(
    axes: Sequence[Axes], runs: Sequence[dict[str, Any]], head: str, rates: Mapping[str, str], *, block: int = 10,
    top: float = 30.0,
) -> str:  # fmt: skip
    """Loss curves of the experiment `warmup`, a panel for each rate; a cross where a loss is no longer finite.

    Args:
        axes: one for each rate.
        runs: of the result, one for each seed: "losses" and "diverged_step" by head, rate and treatment.
        head: "plain" or "group".
        rates: key of each rate in the result, and its title.
        block: steps to a point of the curves.
        top: upper end of the axis; higher losses leave the panel.
    """
    words = []
    for ax, (rate, title) in zip(axes, rates.items(), strict=True):
        dead: dict[str, int] = {}
        for treatment, colour in TREATMENT_COLOURS.items():
            for i, run in enumerate(runs):
                losses = run["losses"][head][rate][treatment]
                at = [block * (k + 0.5) for k in range(len(losses))]
                died = run["diverged_step"][head][rate][treatment]
                ax.plot(at, losses, color=colour, linewidth=1.2, alpha=0.85, label=treatment if i == 0 else None)
                if died is not None:
                    place = 0.93 - 0.07 * list(TREATMENT_COLOURS).index(treatment)
                    ax.plot(died, place, "x", color=colour, markersize=6, markeredgewidth=1.8,
                            transform=ax.get_xaxis_transform(), clip_on=False)  # fmt: skip
                    dead[treatment] = dead.get(treatment, 0) + 1
        ax.set_yscale("log")
        ax.set_ylim(0.5, top)
        ax.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        ax.minorticks_off()
        ax.set_title(title, fontsize=9.5, loc="left", color=INK)
        tidy(ax)
        counted = ", ".join(f"{n} of {len(runs)} {treatment} runs die" for treatment, n in dead.items())
        words.append(f"{title}: {counted or 'all runs live'}")
    return f"Loss over the steps, {head} heads. " + "; ".join(words) + "."


def plot_parts(ax: Axes, profiles: Mapping[str, Mapping[str, float]], *, unit: str = "ms") -> str:
    """Where a training step's time goes: one stacked bar for each profile, as shares, with the whole beside it.

    Args:
        ax: to draw on.
        profiles: for each bar the time of each part, in the order of `PART_COLOURS`.
        unit: of the times.
    """
    words = []
    for place, (name, parts) in enumerate(profiles.items()):
        whole, left = sum(parts.values()), 0.0
        for part, value in parts.items():
            share = value / whole
            ax.barh(-place, share, left=left, height=0.62, color=PART_COLOURS[part], edgecolor="white", linewidth=0.8,
                    label=part if place == 0 else None)  # fmt: skip
            if share > 0.045:
                dark = part in ("backbone", "backward", "pyramid")
                ax.text(left + share / 2, -place, f"{share:.0%}", ha="center", va="center", fontsize=8.5,
                        color="white" if dark else INK)  # fmt: skip
            left += share
        ax.text(1.01, -place, f"{whole:,.0f} {unit}", va="center", fontsize=8.5, color=MUTED)
        largest = sorted(parts, key=lambda part: -parts[part])[:3]
        words.append(f"{name}: " + ", ".join(f"{part} {parts[part] / whole:.0%}" for part in largest))
    tidy(ax, grid=None)
    ax.set_yticks([-i for i in range(len(profiles))], list(profiles))
    ax.set_xticks([])
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.set_xlim(0, 1.12)
    ax.legend(fontsize=8.5, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, handlelength=1.2)
    return "Shares of a training step's time. " + "; ".join(words) + "."
