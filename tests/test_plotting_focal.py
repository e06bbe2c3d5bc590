"""Figures of the chapter that derives focal loss: what is drawn and what the alt text says."""

from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from focal_tutorial.plotting import focal as draw

X = torch.linspace(0.005, 0.995, 11)


def panel() -> Axes:
    return Figure(figsize=(4, 3)).subplots()


def test_lines_are_drawn_named_and_coloured_by_gamma() -> None:
    ax = panel()
    lines = draw.by_gamma(lambda gamma: (1 - X) ** gamma)
    alt = draw.plot_lines(ax, X, lines, "p", "weight", bold=["γ = 2"], dashed=["γ = 5"])
    names = ["CE (γ = 0)", "γ = 0.5", "γ = 1", "γ = 2", "γ = 5"]
    assert [line.get_label() for line in ax.lines] == names == list(lines)
    assert [to_hex(line.get_color()) for line in ax.lines] == list(draw.GAMMA_COLOURS.values())
    torch.testing.assert_close(torch.tensor(ax.lines[3].get_ydata()), (1 - X.double()) ** 2, rtol=1e-5, atol=1e-6)
    widths = [line.get_linewidth() for line in ax.lines]
    assert widths[3] == max(widths) and widths.count(max(widths)) == 1
    assert ax.lines[4].is_dashed() and not ax.lines[3].is_dashed()
    assert ax.get_xlim() == (0.0, 1.0)
    assert alt.startswith("Lines over p, weight: CE (γ = 0) from 1 to 1, ") and "γ = 1 from 0.995 to 0.005" in alt


def test_lines_with_gaps_and_own_colours() -> None:
    ax = panel()
    y = X.clone()
    y[0] = torch.nan
    alt = draw.plot_lines(ax, X, {"a": y, "b": X}, "x", "y", colours=["#000000", "#ff0000"])
    assert to_hex(ax.lines[1].get_color()) == "#ff0000"
    assert "a from 0.104 to 0.995" in alt
    with pytest.raises(ValueError, match="zip"):
        draw.plot_lines(ax, X, {"a": X, "b": X}, "x", "y", colours=["#000000"])


def test_marks_stand_where_they_belong() -> None:
    ax = panel()
    draw.mark_points(ax, [1.0, 2.0], [3.0, 4.0], ["#000000", "#ff0000"])
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [(1.0, 3.0), (2.0, 4.0)]
    draw.mark_factor(ax, 0.9, 0.1, 0.001, "÷ 100")
    arrow, words = ax.texts
    assert arrow.xy == (0.9, 0.001) and arrow.get_position() == (0.9, 0.1)
    assert words.get_text() == "÷ 100"


def test_shares_are_bars_with_percentages() -> None:
    ax = panel()
    alt = draw.plot_shares(ax, {"CE": 0.09, "focal": 0.92}, title="of the loss")
    assert [patch.get_width() for patch in ax.patches] == [1.0, 1.0, 0.09, 0.92]
    assert [text.get_text() for text in ax.texts] == ["9%", "92%"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["CE", "focal"]
    assert alt == "Bars, the object's share, of the loss: CE 9%, focal 92%."
    draw.plot_shares(ax, {"CE": 0.09}, names=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == [""]


def test_balancing_alpha_beside_the_reported_one() -> None:
    ax = panel()
    alt = draw.plot_balancing_alpha(ax, [0.0, 1.0, 2.0], {"start": [0.9, 0.5, 0.1]}, {0.0: 0.75, 2.0: 0.25})
    line, dots = ax.lines
    assert list(line.get_ydata()) == [0.9, 0.5, 0.1]
    assert list(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [(0, 0.75), (2, 0.25)]
    assert "start: 0.9, 0.5, 0.1" in alt and "0.25" in alt


def test_differences_show_mean_and_spread() -> None:
    ax = panel()
    samples = torch.tensor([[0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    alt = draw.plot_differences(ax, [0.0, 0.1], {"γ = 2": samples}, title="noise")
    assert "γ = 2 +0.00 ± 0.00, -2.00 ± 1.00" in alt
    (bars,) = ax.containers
    assert list(bars[0].get_ydata()) == [0.0, -2.0]
    assert ax.get_title(loc="left") == "noise"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0%", "10%"]


def test_parts_of_a_loss_on_a_logarithmic_axis() -> None:
    ax = panel()
    alt = draw.plot_loss_parts(ax, {"CE": (4.605, 5403.05), "FL": (1.128, 0.4052)}, xlabel="first loss")
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["4.61", "5,403", "1.13", "0.405"]
    assert alt == "first loss, objects and background: CE 4.61 and 5,403, FL 1.13 and 0.405."
