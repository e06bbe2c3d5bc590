"""Figures of chapter 17: that they draw the shares they are given, and say them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.plotting import loss_distribution as draw
from focal_tutorial.plotting.style import FOREGROUND

HARDEST = (1.0, 0.5, 0.2, 0.01, 0.0)


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(5, 3)).subplots()


def test_cumulative_is_read_from_the_easy_end(ax: Axes) -> None:
    alt = draw.plot_cumulative(ax, HARDEST, {"γ = 0": [1, 0.9, 0.7, 0.1, 0]}, title="negatives")
    x, y = ax.lines[1].get_data()
    assert list(np.asarray(x)) == pytest.approx([0, 0.5, 0.8, 0.99, 1])
    assert list(np.asarray(y)) == pytest.approx([0, 0.1, 0.3, 0.9, 1])
    assert "negatives" in alt and "γ = 0 30" in alt


def test_cumulative_of_seeds_is_mean_and_sample_deviation(ax: Axes) -> None:
    draw.plot_cumulative(ax, HARDEST, {"a": [[1, 0.9, 0.7, 0.1, 0], [1, 0.7, 0.5, 0.1, 0]]})
    assert list(np.asarray(ax.lines[1].get_ydata())) == pytest.approx([0, 0.2, 0.4, 0.9, 1])
    band = np.asarray(ax.collections[0].get_paths()[0].vertices)
    at_half = band[np.isclose(band[:, 0], 0.5), 1]
    assert at_half.max() - at_half.min() == pytest.approx(2 * 0.02**0.5)


def test_hardest_is_logarithmic_and_leaves_out_zero(ax: Axes) -> None:
    alt = draw.plot_hardest(ax, HARDEST, {"γ = 2": [1, 0.9, 0.7, 0.4, 0]}, title="negatives")
    assert ax.get_xscale() == "log"
    assert list(np.asarray(ax.lines[0].get_xdata())) == [1.0, 0.5, 0.2, 0.01]
    assert [text.get_text() for text in ax.get_xticklabels()][-1] == "100 %" and "γ = 2 40" in alt


def test_a_curve_keeps_the_colour_of_its_gamma(ax: Axes) -> None:
    draw.plot_hardest(ax, HARDEST, {"γ = 2": [1, 0.9, 0.7, 0.4, 0]}, styles=(3,))
    assert ax.lines[0].get_color() == draw.GAMMA_COLOURS[3] and ax.lines[0].get_linestyle() == "-."


def test_parts_fill_the_row(ax: Axes) -> None:
    alt = draw.plot_parts(ax, {"terms": {"a": 0.25, "b": 0.75}, "loss": {"a": 0.98, "b": 0.02}})
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 0.25, 0, 0.98])
    assert [bar.get_width() for bar in bars] == pytest.approx([0.25, 0.75, 0.98, 0.02])
    assert [text.get_text() for text in ax.texts] == ["25", "75", "98"]
    assert "loss: a 98, b 2" in alt


def test_a_term_is_drawn_where_it_is(ax: Axes) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    alt = draw.draw_term(ax, image, (10, 20, 30, 30), [[12, 18, 33, 31]], title="p = 0.9\nring", margin=10)
    anchor, truth = ax.patches[1], ax.patches[2]
    assert isinstance(anchor, Rectangle) and isinstance(truth, Rectangle)
    assert (anchor.get_x(), anchor.get_y(), anchor.get_width(), anchor.get_height()) == (10, 20, 20, 10)
    assert truth.get_edgecolor() == to_rgba(FOREGROUND)
    assert ax.get_xlim() == (0, 40) and ax.get_ylim() == (45, 5)
    assert "p = 0.9, ring" in alt


def test_effective_numbers_beside_the_counts(ax: Axes) -> None:
    numbers = {"negatives": [[1000, 10], [3000, 30]], "positives": [[50, 20]]}
    alt = draw.plot_effective(ax, (0.0, 2.0), numbers, {"negatives": 1e6, "positives": 60})
    assert list(np.asarray(ax.lines[0].get_ydata())) == [2000, 20] and ax.get_yscale() == "log"
    assert "negatives from 2,000 to 20 of 1,000,000" in alt and "positives from 50 to 20 of 60" in alt
