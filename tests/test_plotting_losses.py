"""Figures of the chapter on implementing focal loss: what is drawn and what the alt text says."""

from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_tutorial.plotting import losses as draw


def panel() -> Axes:
    return Figure(figsize=(4, 3)).subplots()


def test_a_line_for_each_form_and_crosses_where_the_gradient_is_nan() -> None:
    ax, logits = panel(), torch.linspace(-50, 50, 21)
    bad = torch.full((21,), 1e-3)
    bad[:6] = torch.nan
    alt = draw.plot_gradient_errors(ax, logits, {"blog": bad, "ours": torch.zeros(21)}, title="float32")
    drawn = {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    assert drawn.keys() == {"blog", "ours"}
    assert drawn["ours"].get_linewidth() > drawn["blog"].get_linewidth()
    assert list(drawn["ours"].get_ydata()) == pytest.approx([draw.LEAST] * 21)
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert len(crosses) == 1 and list(crosses[0].get_xdata()) == logits[:6][::2].tolist()
    assert "NaN: blog." in alt and "blog up to 1e-03" in alt and "float32" in alt
    assert "NaN" not in draw.plot_gradient_errors(panel(), logits, {"ours": torch.zeros(21)})


def test_a_line_is_the_worst_of_five_neighbours() -> None:
    ax, error = panel(), torch.full((9,), 1e-6)
    error[4] = 1e-2
    draw.plot_gradient_errors(ax, torch.arange(9.0), {"one": error})
    assert [round(y, 8) for y in ax.lines[0].get_ydata()] == [1e-6] * 2 + [1e-2] * 5 + [1e-6] * 2


def test_bars_stand_from_top_to_bottom_with_their_numbers() -> None:
    ax = panel()
    alt = draw.plot_bars(
        ax, ["theirs", "ours"], [4.0, 1.0], [(3.0, 5.0), (0.9, 1.1)], own=[False, True], xlabel="ms", number="{:.2f}"
    )
    assert [bar.get_width() for bar in ax.patches] == [4.0, 1.0]
    assert ax.patches[0].get_y() > ax.patches[1].get_y()
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()
    assert [text.get_text().strip() for text in ax.texts] == ["4.00", "1.00"]
    assert ax.texts[0].get_position()[0] == 5.0  # beyond the spread
    assert alt == "Bars, ms: theirs 4.00, ours 1.00."


def test_relative_error_counts_two_zeros_as_equal() -> None:
    got = draw.relative_error(torch.tensor([0.0, 1.1, 2.0]), [0.0, 1.0, 4.0])
    assert got.tolist() == pytest.approx([0.0, 0.1, 0.5], rel=1e-6)
