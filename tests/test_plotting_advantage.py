"""Figures of the map: every field has its number, its colour says better or worse, and doubt is seen and said."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.advantage import AdvantageMap
from focal_tutorial.plotting.advantage import (
    DIVERGING,
    plot_advantage,
    plot_advantage_map,
    plot_best,
    plot_first_answers,
    plot_levels,
)
from focal_tutorial.plotting.style import PALETTE
from focal_tutorial.table_view import Row

MEASURED = {9: 7.1, 930: 901.0}
SHORT = {"ce": "CE", "fl": "γ = 2"}


@pytest.fixture
def fields() -> AdvantageMap:
    """Better at 1:930, worse but not told apart at 1:9, nothing learned after 50 steps at 1:930, one field not run."""
    values = {
        ("ce", 9, 50): (10.0, 20.0, 30.0), ("fl", 9, 50): (12.0, 10.0, 29.0),
        ("ce", 930, 50): (0.0, 0.0, 0.0), ("fl", 930, 50): (0.1, 0.2, 0.1),
        ("ce", 930, 400): (5.0, 7.0, 6.0), ("fl", 930, 400): (15.0, 17.2, 16.1), ("ce", 9, 400): (50.0, 50.0, 51.0),
    }  # fmt: skip
    rows = {place: Row(place[0], place[0], dict(enumerate(v))) for place, v in values.items()}
    return AdvantageMap({"ce": "CE", "fl": "FL, γ = 2"}, (9, 930), (50, 400), rows, dict.fromkeys(rows, 0.002))


def texts(ax) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in ax.texts}


def patches(ax, x: int, y: int) -> list[Rectangle]:
    return [
        p
        for p in ax.patches
        if round(p.get_x() + p.get_width() / 2) == x and round(p.get_y() + p.get_height() / 2) == y
    ]


def test_fields_have_number_colour_and_doubt(fields: AdvantageMap) -> None:
    ax = Figure().subplots()
    alt = plot_advantage(ax, fields, "fl", limit=20)
    assert texts(ax) == {(0, 0): "-3.0", (1, 0): "–", (1, 1): "+10.1"}  # (0, 1) has not been run
    better, worse = patches(ax, 1, 1), patches(ax, 0, 0)
    assert [p.get_hatch() for p in better] == [None] and "///" in [p.get_hatch() for p in worse]
    red, _, blue = to_rgb(better[0].get_facecolor())
    assert blue > red
    red, _, blue = to_rgb(worse[0].get_facecolor())
    assert red > blue
    assert "at 1:9 after 50 steps -3.0 (not told apart from 0)" in alt and "1:930 after 400 steps +10.1" in alt
    assert "at 1:930 after 50 steps nothing learned" in alt


def test_colours_are_symmetric_about_no_difference() -> None:
    assert to_rgb(DIVERGING(0.5)) == pytest.approx((1, 1, 1), abs=0.01)
    assert to_rgb(DIVERGING(0.0)) == pytest.approx(to_rgb(PALETTE[1]), abs=0.01)
    assert to_rgb(DIVERGING(1.0)) == pytest.approx(to_rgb(PALETTE[0]), abs=0.01)


def test_best_is_named_with_its_rivals(fields: AdvantageMap) -> None:
    ax = Figure().subplots()
    alt = plot_best(ax, fields, SHORT)
    assert texts(ax) == {(0, 0): "CE\n(γ = 2)", (1, 0): "–", (1, 1): "γ = 2"}
    assert "at 1:930 after 400 steps FL, γ = 2" in alt and "1:930 after 50" not in alt


def test_map_is_a_panel_a_loss_and_the_best_on_counted_axes(fields: AdvantageMap) -> None:
    figure = Figure(layout="constrained")
    alt = plot_advantage_map(figure, fields, MEASURED, SHORT, limit=20)
    first, second = figure.axes
    assert first.get_title(loc="left") == "FL, γ = 2" and second.get_title(loc="left").startswith("best")
    assert [t.get_text() for t in second.get_xticklabels()] == ["7", "901"]
    assert [t.get_text() for t in first.get_yticklabels()] == ["50", "400"]
    assert "minus CE" in alt and "Best by the mean" in alt


def test_levels_are_means_with_their_spread_on_one_scale(fields: AdvantageMap) -> None:
    ax = Figure().subplots()
    alt = plot_levels(ax, fields, 50, MEASURED)
    lines = [container.lines[0] for container in ax.containers]
    assert [list(line.get_ydata()) for line in lines] == [[20.0, 0.0], [17.0, pytest.approx(0.4 / 3)]]
    assert lines[0].get_xdata() == pytest.approx([7.1, 901], rel=0.05)
    assert ax.get_xscale() == "log" and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 50
    assert "CE 20.0, 0.0" in alt


def test_first_answers_fall_on_a_logarithmic_axis_past_the_base_rate() -> None:
    ax = Figure().subplots()
    alt = plot_first_answers(ax, [0, 10, 20], {"CE": [0.01, 1e-4, 1e-9], "FL": [0.01, 0.008, 0.003]}, 1e-3)
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.01, 1e-4, 1e-9], [0.01, 0.008, 0.003], [1e-3, 1e-3]]
    assert ax.get_yscale() == "log" and ax.lines[0].get_color() != ax.lines[1].get_color()
    assert "CE from 1e-02 to 1e-09; FL from 1e-02 to 3e-03" in alt
