"""Figures of chapter 16 draw what they are given, and say it."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.coverage import anchor_grids, best_iou
from focal_tutorial.plotting.anchor_tables import plot_box_shapes, plot_by_share, plot_selected, plot_speed
from focal_tutorial.table_view import Row


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def test_box_shapes_part_what_is_reached_from_what_is_not(ax: Axes) -> None:
    grids = anchor_grids(AnchorGenerator(levels=(2, 3), ratios=(1.0,), scales=(1.0,)), (64, 64))
    boxes = np.array([[22.0, 22, 38, 38], [20, 20, 50, 50], [26, 10, 34, 50]])
    reached = best_iou(boxes, grids) >= 0.5
    alt = plot_box_shapes(ax, boxes, reached, grids, title="squares")
    dots = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in ax.lines}
    assert dots == {"reached": [[16, 16], [30, 30]], "out of reach": [[8, 40]], "anchor": [[16, 16], [32, 32]]}
    assert "67 %" in alt and ax.get_title(loc="left") == "squares: 67 % reached"


def test_kept_draws_a_group_for_each_batch(ax: Axes) -> None:
    alt = plot_selected(ax, (32, 128), {"no NMS": [5.0, 9.0], "NMS": [2.0, 3.0]}, limit=9.5, ylabel="kept")
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == [5, 9, 2, 3]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert middles[0] + middles[2] == pytest.approx(0) and middles[1] + middles[3] == pytest.approx(2)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["32", "128"]
    assert any(np.allclose(np.asarray(line.get_ydata(), float), 9.5) for line in ax.lines)
    assert "no NMS: 5.0, 9.0; NMS: 2.0, 3.0" in alt


def test_speed_draws_means_spread_and_names(ax: Axes) -> None:
    ms, ap = Row("a", "A", {0: 10.0, 1: 14.0}), Row("a", "A", {0: 30.0, 1: 34.0})
    alt = plot_speed(ax, {"shallow": [("96", ms, ap), ("128", 20.0, 40.0)], "deep": [("96", 15.0, 36.0)]})
    lines = {
        tuple(map(tuple, np.asarray(line.get_xydata()).tolist())) for line in ax.lines if line.get_marker() in "os"
    }
    assert {((12, 32), (20, 40)), ((15, 36),)} <= lines
    assert [text.get_text() for text in ax.texts] == ["96", "128", "96"]
    assert "shallow: 96 12.0 ms, AP 32.0, 128 20.0 ms, AP 40.0; deep" in alt


def test_shares_stand_on_a_logarithmic_axis_beside_the_reference(ax: Axes) -> None:
    ap, reference = Row("a", "A", {0: 30.0, 1: 34.0}), Row("b", "B", {0: 35.0, 1: 37.0})
    alt = plot_by_share(ax, {"NMS 0.5": [("32", 20.0, ap), ("128", 5.0, 28.0)]}, reference=reference, xlabel="share")
    assert ax.get_xscale() == "log" and [text.get_text() for text in ax.texts] == ["32", "128"]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert np.asarray(points[0].get_xydata()).tolist() == [[20, 32], [5, 28]]
    assert any(np.allclose(np.asarray(line.get_ydata(), float), 36) for line in ax.lines)
    assert "32 at 20.0 % AP 32.0, 128 at 5.0 % AP 28.0" in alt
