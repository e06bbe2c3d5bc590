"""Figures of the paper's tables draw the means, spreads and verdicts that they are given, and say them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from focal_tutorial.plotting.paper_tables import (
    BETTER,
    UNCLEAR,
    WORSE,
    plot_against_ratio,
    plot_differences,
    plot_effective,
    plot_grid,
    plot_spread,
)
from focal_tutorial.table_view import Difference, Row

BETTER_BY_TWO = Difference({0: 1.9, 1: 2.0, 2: 2.1})
WORSE_BY_TWO = Difference({0: -1.9, 1: -2.0, 2: -2.1})
NOT_CLEAR = Difference({0: -1.0, 1: 3.0, 2: 0.5})


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def drawn(line: Line2D) -> list[float]:
    return [float(y) for y in np.atleast_1d(np.asarray(line.get_ydata()))]


def test_spread_draws_means_seeds_and_plain_numbers(ax: Axes) -> None:
    ours = [Row("a", "A", {0: 10.0, 1: 14.0}), None, Row("c", "C", {0: 30.0})]
    alt = plot_spread(ax, (".1", ".5", ".9"), {"here": ours, "paper": [1.0, 2.0, 3.0]}, xlabel="α", title="Table")
    assert "here: .1: 12.0 ± 2.8, .9: 30.0" in alt and "paper: .1: 1.0, .5: 2.0, .9: 3.0" in alt and "α" in alt
    means = [drawn(line) for line in ax.lines if line.get_markersize() == 5.5]
    assert means == [[12.0, 30.0], [1.0, 2.0, 3.0]]
    assert [drawn(line) for line in ax.lines if line.get_color() == "white"] == [[10.0, 14.0], [30.0]]
    assert [handle.get_label() for handle in ax.get_legend_handles_labels()[0]] == ["here", "paper"]


def test_grid_writes_every_cell_and_frames_the_best(ax: Axes) -> None:
    cells: dict[tuple[str, str], Row | float] = {
        ("0", ".25"): Row("a", "A", {0: 10.0, 1: 14.0}),
        ("0", ".5"): 3.0,
        ("2", ".25"): 7.0,
    }
    alt = plot_grid(ax, cells, framed=[("0", ".25")], ringed=[("2", ".25")], title="AP")
    assert [text.get_text() for text in ax.texts] == ["12.0\n± 2.8", "3", "7"]
    assert "framed: γ = 0, α = .25" in alt and "from 3.0 to 12.0" in alt
    assert sum(isinstance(patch, Rectangle) for patch in ax.patches) == 1 and len(ax.lines) == 1
    assert np.shape(np.asarray(ax.images[0].get_array())) == (2, 2)


def test_differences_are_coloured_by_their_interval(ax: Axes) -> None:
    alt = plot_differences(ax, {"a": BETTER_BY_TWO, "b": WORSE_BY_TWO, "c": NOT_CLEAR}, title="Table")
    marks = [line for line in ax.lines if line.get_marker() == "o" and line.get_markersize() == 6]
    assert [line.get_color() for line in marks] == [BETTER, WORSE, UNCLEAR]
    assert "a +2.0 ± 0.2, b -2.0 ± 0.2, c +0.8 ± 5.0 ?" in alt
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "c"]


def test_points_stand_at_their_ratio(ax: Axes) -> None:
    points = {"γ = 0": [(0.1, Row("a", "A", {0: 10.0, 1: 14.0})), (5.0, Row("b", "B", {0: 30.0}))]}
    points["FL*"] = [(1.0, Row("c", "C", {0: 20.0}))]
    alt = plot_against_ratio(ax, points, loose=["FL*"], xlabel="pull of objects")
    line, apart = (line for line in ax.lines if line.get_markersize() == 6)
    assert line.get_linewidth() > 0 and apart.get_linewidth() == 0
    assert np.asarray(line.get_xdata()).tolist() == [0.1, 5.0] and drawn(line) == [12.0, 30.0]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "pull of objects"
    assert "γ = 0: 12.0 ± 2.8 at 0.1, 30.0 at 5" in alt


def test_effective_losses_have_the_colour_of_their_verdict(ax: Axes) -> None:
    x = torch.linspace(-2, 2, 5)
    curves = {"CE": x, "good": 2 * x, "bad": 3 * x, "unclear": 4 * x}
    verdicts = {"good": BETTER_BY_TWO, "bad": WORSE_BY_TWO, "unclear": NOT_CLEAR}
    alt = plot_effective(ax, x, curves, verdicts)
    lines = [line for line in ax.lines if drawn(line)]
    assert [line.get_color() for line in lines[1:]] == [BETTER, WORSE, UNCLEAR]
    assert "CE (reference), good (better), bad (worse), unclear (not clearly different)" in alt
