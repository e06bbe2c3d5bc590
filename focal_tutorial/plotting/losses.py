"""Figures of the chapter on implementing focal loss: errors over the logit, times and memory side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from focal_tutorial.plotting.style import INK, MUTED, PALETTE, tidy

LEAST = 1e-8  # half a digit below float32's last: smaller errors are drawn here
STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), "-.", "-")


def plot_gradient_errors(ax: Axes, logits: Tensor, errors: Mapping[str, Tensor], *, title: str = "") -> str:
    """Relative error of the gradient against the signed logit, one line for each form; NaN as crosses above.

    A line shows the worst of five neighbouring logits, as single errors jump between zero and their bound.

    Args:
        ax: to draw on.
        logits: x_t, (n,), ascending.
        errors: for each form (n,) relative errors, NaN where the gradient is NaN. The last one is drawn boldly.
        title: of the panel.
    """
    broken = []
    for i, (name, error) in enumerate(errors.items()):
        last = i == len(errors) - 1
        colour = PALETTE[0] if last else PALETTE[1 + i]
        nan = error.isnan()
        worst = F.max_pool1d(error.nan_to_num(0.0)[None], 5, stride=1, padding=2)[0].clamp(LEAST, 1.0)
        worst[nan] = torch.nan
        ax.plot(
            logits.tolist(), worst.tolist(), color=colour, linewidth=2.6 if last else 1.6, label=name,
            linestyle=STYLES[i],
        )  # fmt: skip
        if nan.any():
            broken.append(name)
            marks = logits[nan][::2]
            ax.plot(marks.tolist(), [4 * 3.5**i] * len(marks), "x", color=colour, markersize=4, linestyle="none")
    ax.set_yscale("log")
    ax.set_ylim(LEAST / 2, 300)
    tidy(ax)
    ax.axhspan(1.6, 300, color="#f6ece2", zorder=0, linewidth=0)
    ax.text(logits.min().item(), 20, "NaN", fontsize=8.5, color=MUTED, va="center")
    ax.set_yticks([1e-7, 1e-5, 1e-3, 1e-1], ["$10^{-7}$", "$10^{-5}$", "$10^{-3}$", "$10^{-1}$"])
    ax.set_xlabel("logit of the truth $x_t$", color=INK)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    listed = ", ".join(f"{name} up to {error.nan_to_num(0).max().item():.0e}" for name, error in errors.items())
    nans = f" NaN: {', '.join(broken)}." if broken else ""
    return f"Relative gradient error over the logit, on a logarithmic axis ({title}). {listed}.{nans}"


def plot_bars(
    ax: Axes,
    names: Sequence[str],
    values: Sequence[float],
    spread: Sequence[tuple[float, float]] | None = None,
    *,
    own: Sequence[bool],
    xlabel: str,
    number: str = "{:.1f}",
) -> str:
    """Horizontal bars with their numbers; the package's own in colour, the others in grey.

    Args:
        ax: to draw on.
        names, values: one for each bar, from top to bottom.
        spread: lowest and highest value of each, drawn as a line.
        own: whether a bar is this package's.
        xlabel: quantity and unit.
        number: format of the numbers beside the bars.
    """
    places = list(range(len(names)))[::-1]
    colours = [PALETTE[0] if mine else "#a9b4bc" for mine in own]
    ax.barh(places, values, color=colours, height=0.66)
    right = max(values)
    for i, place in enumerate(places):
        end = values[i]
        if spread is not None:
            low, high = spread[i]
            ax.plot([low, high], [place, place], color=INK, linewidth=1.2)
            end = max(end, high)
        right = max(right, end)
        ax.text(end, place, "  " + number.format(values[i]), va="center", fontsize=8.5, color=INK)
    tidy(ax, grid="x")
    ax.set_yticks(places, names)
    ax.set_xlim(0, right * 1.15)
    ax.set_xlabel(xlabel, color=MUTED)
    listed = ", ".join(f"{name} {number.format(value)}" for name, value in zip(names, values, strict=True))
    return f"Bars, {xlabel}: {listed}."


def relative_error(got: Tensor, wanted: Sequence[float]) -> Tensor:
    """|got - wanted| / |wanted| in float64, 0 where both are 0."""
    truth = torch.tensor(wanted, dtype=torch.float64)
    return torch.where(got.double() == truth, 0.0, (got.double() - truth).abs() / truth.abs())
