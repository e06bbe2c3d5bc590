"""Figures of the chapter that derives focal loss: weights, curves, gradients, shares of a sum, balances."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from matplotlib.axes import Axes
from torch import Tensor

from focal_tutorial.plotting.style import INK, MUTED, PALETTE, tidy

# One colour for each gamma, in every figure of the chapter: dark is cross entropy, orange the paper's choice.
GAMMA_COLOURS = {0.0: INK, 0.5: "#7fa8bf", 1.0: "#3f86ab", 2.0: "#d55e00", 5.0: "#009e73"}
OBJECT, CROWD = "#d55e00", "#c3d5e0"
DASHES: tuple[tuple[int, tuple[float, ...]], ...] = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def gamma_name(gamma: float) -> str:
    """How a figure names the focal loss of this gamma."""
    return "CE (γ = 0)" if gamma == 0 else f"γ = {gamma:g}"


def by_gamma(function: Callable[[float], Tensor], gammas: Sequence[float] = tuple(GAMMA_COLOURS)) -> dict[str, Tensor]:
    """Name of each gamma → the function's values there: lines for `plot_lines`."""
    return {gamma_name(gamma): function(gamma) for gamma in gammas}


def line_colours(names: Sequence[str]) -> list[str]:
    """For names made by `gamma_name` the colour of that gamma, for others the palette in order."""
    own = {gamma_name(gamma): colour for gamma, colour in GAMMA_COLOURS.items()}
    return [own.get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)]


def plot_lines(
    ax: Axes,
    x: Tensor,
    lines: Mapping[str, Tensor],
    xlabel: str,
    ylabel: str,
    *,
    colours: Sequence[str] | None = None,
    bold: Collection[str] = (),
    dashed: Collection[str] = (),
) -> str:
    """Several functions of one variable.

    Args:
        ax: to draw on.
        x: (n,) ascending.
        lines: name → (n,) values; NaN leaves a gap.
        xlabel, ylabel: of the axes.
        colours: one for each line, in their order; by default those of `line_colours`.
        bold, dashed: names of the lines to draw thicker, or broken (each in its own pattern).
    """
    broken = iter(DASHES * len(lines))
    for (name, y), colour in zip(lines.items(), colours or line_colours(list(lines)), strict=True):
        style = next(broken) if name in dashed else "-"
        width = 3.0 if name in bold else 1.8
        ax.plot(x.tolist(), y.tolist(), color=colour, linestyle=style, linewidth=width, label=name)
    tidy(ax, grid="both")
    ax.set_xlim(round(float(x[0]), 1), round(float(x[-1]), 1))
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ends = ", ".join(f"{name} from {_first(y):.3g} to {_first(y.flip(0)):.3g}" for name, y in lines.items())
    return f"Lines over {xlabel}, {ylabel}: {ends}."


def mark_factor(ax: Axes, x: float, top: float, bottom: float, words: str) -> None:
    """An arrow down from `top` to `bottom` at `x`; at its tip, to the left, what it means in words."""
    style = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=(x, bottom), xytext=(x, top), arrowprops=style)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    ax.text(x - 0.02, bottom, words, ha="right", va="top", fontsize=9, color=INK, bbox=behind)


def mark_points(ax: Axes, x: Sequence[float], y: Sequence[float], colours: Sequence[str]) -> None:
    """Dots with a white rim, one colour each."""
    for xi, yi, colour in zip(x, y, colours, strict=True):
        ax.plot([float(xi)], [float(yi)], "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=1.2)


def plot_shares(ax: Axes, shares: Mapping[str, float], *, title: str = "", names: bool = True) -> str:
    """Who makes a sum: for each loss a bar, the object's share of it in orange, the backgrounds' in pale blue.

    Args:
        ax: to draw on.
        shares: name of the loss → the object's share in [0, 1], from top to bottom.
        title: of the panel.
        names: whether to write the names of the losses beside the bars.
    """
    places = list(range(len(shares)))[::-1]
    ax.barh(places, [1.0] * len(shares), color=CROWD, height=0.62)
    ax.barh(places, list(shares.values()), color=OBJECT, height=0.62)
    for place, share in zip(places, shares.values(), strict=True):
        inside = share > 0.2
        ax.text(
            share - 0.015 if inside else share + 0.015, place, f"{share:.0%}", va="center", fontsize=10,
            ha="right" if inside else "left", color="white" if inside else INK, fontweight="bold",
        )  # fmt: skip
    tidy(ax, grid=None)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlim(0, 1)
    ax.set_xticks([])
    ax.set_yticks(places, list(shares) if names else [""] * len(shares))
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"Bars, the object's share, {title}: {listed}."


def plot_balancing_alpha(
    ax: Axes, gammas: Sequence[float], states: Mapping[str, Sequence[float]], reported: Mapping[float, float]
) -> str:
    """The alpha at which both classes pull equally, over gamma, beside the alpha that the paper found best.

    Args:
        ax: to draw on.
        gammas: evenly spaced on the axis, whatever their values.
        states: name of the detector's state → one balancing alpha for each gamma, in [0, 1].
        reported: gamma → the paper's best alpha.
    """
    places = list(range(len(gammas)))
    for i, (name, alphas) in enumerate(states.items()):
        ax.plot(places, list(alphas), color=PALETTE[i], marker="o", markersize=4, label=name)
    where = [list(gammas).index(gamma) for gamma in reported]
    ax.plot(
        where, list(reported.values()), "D", color=INK, markersize=7, markerfacecolor="white", markeredgewidth=1.6,
        label="best α in the paper (Table 1b)",
    )  # fmt: skip
    tidy(ax)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xticks(places, [f"{gamma:g}" for gamma in gammas])
    ax.set_xlabel("γ", color=INK)
    ax.set_ylabel("α", color=INK, rotation=0, labelpad=10)
    ax.legend(fontsize=8.5)
    listed = "; ".join(f"{name}: " + ", ".join(f"{a:.2g}" for a in alphas) for name, alphas in states.items())
    return f"Balancing α over γ = {', '.join(f'{g:g}' for g in gammas)}. {listed}. Paper: {dict(reported)}."


def plot_differences(ax: Axes, x: Sequence[float], samples: Mapping[str, Tensor], *, title: str = "") -> str:
    """Differences from a baseline at zero: mean of the seeds and sample standard deviation, a line for each name.

    Args:
        ax: to draw on.
        x: (n,) one place for each row of the samples.
        samples: name → (n, seeds).
        title: of the panel.
    """
    ax.axhline(0, color=INK, linewidth=1.2)
    listed, colours = [], line_colours(list(samples))
    for i, (name, values) in enumerate(samples.items()):
        mean, spread = values.mean(1), values.std(1)
        shift = 0.002 * (i - (len(samples) - 1) / 2)  # side by side, not on top of each other
        ax.errorbar(
            [place + shift for place in x], mean.tolist(), spread.tolist(), color=colours[i], marker="o",
            markersize=5, capsize=3, linewidth=1.8, elinewidth=1.2, label=name,
        )  # fmt: skip
        listed.append(f"{name} " + ", ".join(f"{m:+.2f} ± {s:.2f}" for m, s in zip(mean, spread, strict=True)))
    tidy(ax)
    ax.set_xticks(list(x), [f"{place:.0%}" for place in x])
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    return f"Mean difference and standard deviation at {', '.join(f'{v:.0%}' for v in x)}: {'; '.join(listed)}."


def plot_loss_parts(ax: Axes, parts: Mapping[str, tuple[float, float]], *, xlabel: str) -> str:
    """The two parts of a loss on a logarithmic axis: what the objects add and what the background adds.

    Args:
        ax: to draw on.
        parts: name → (objects, background), both > 0, from top to bottom.
        xlabel: of the axis.
    """
    places = list(range(len(parts)))[::-1]
    for place, (objects, background) in zip(places, parts.values(), strict=True):
        ax.plot([objects, background], [place, place], color="#d8dee3", linewidth=5, solid_capstyle="round", zorder=1)
        for value, colour, low in ((objects, OBJECT, True), (background, PALETTE[0], False)):
            ax.plot([value], [place], "o", color=colour, markersize=10, zorder=2)
            ax.text(value, place + (0.36 if low else -0.36), _plain(value), ha="center", va="center", fontsize=8.5,
                    color=colour)  # fmt: skip
    for label, colour in (("30 objects", OBJECT), ("background", PALETTE[0])):
        ax.plot([], [], "o", color=colour, markersize=8, label=label)
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.margins(x=0.12)
    tidy(ax, grid="x")
    ax.set_ylim(-0.7, len(parts) - 0.3)
    ax.set_yticks(places, list(parts))
    ax.set_xlabel(xlabel, color=MUTED)
    ax.legend(fontsize=8.5, loc="lower right")
    listed = ", ".join(f"{name} {_plain(a)} and {_plain(b)}" for name, (a, b) in parts.items())
    return f"{xlabel}, objects and background: {listed}."


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _first(y: Tensor) -> float:
    """The first value that is a number."""
    return float(y[~y.isnan()][0])
