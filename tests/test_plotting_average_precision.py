"""Figures of the chapter on COCO AP: what lands where, and what the alt text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from focal_tutorial.plotting.average_precision import (
    ERROR_COLOURS,
    RIGHT,
    UNCOUNTED,
    WRONG,
    draw_errors,
    draw_scene,
    legend_above,
    plot_anchor_frequencies,
    plot_curves_by_iou,
    plot_draws,
    plot_error_costs,
    plot_levels,
    plot_points,
    plot_reliability,
    plot_targets,
)

CURVE = {"count": [500, 5, 200], "score": [0.1, 0.5, 0.9], "precision": [0.02, 0.4, 0.8]}


def new_axes() -> Axes:
    return Figure(figsize=(4, 3)).subplots()


def frames(ax: Axes, colour: str) -> list[tuple[float, ...]]:
    """(x, y, width, height) of the unfilled boxes drawn in `colour`."""
    found = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_edgecolor()[:3] == to_rgb(colour)]
    return [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in found if not p.get_fill()]


def points(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata(), float).tolist(), np.asarray(line.get_ydata(), float).tolist()


def test_a_scene_colours_frames_by_verdict_and_hatches_crowds() -> None:
    ax = new_axes()
    boxes = [[1, 2, 10, 10], [20, 2, 10, 10], [40, 30, 5, 5]]
    alt = draw_scene(ax, (60, 80), [[1, 2, 11, 11], [35, 25, 30, 30]], boxes, [1, 0, -1], crowds=(1,))
    assert [frames(ax, c) for c in (RIGHT, WRONG, UNCOUNTED)] == [[tuple(box)] for box in boxes]
    assert [patch.get_hatch() for patch in ax.patches if isinstance(patch, Rectangle)][1:3] == [None, "///"]
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]
    assert alt == "2 objects and 3 numbered frames: 1 right, 1 wrong, 1 not counted."


def test_points_stand_where_they_were_measured() -> None:
    ax = new_axes()
    alt = plot_points(ax, [0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3], [True, False, True])
    assert [points(line) for line in ax.lines[1:]] == [([0.5], [1.0]), ([0.5], [0.5]), ([1.0], [2 / 3])]
    assert [line.get_color() for line in ax.lines[1:]] == [RIGHT, WRONG, RIGHT]
    assert "recall 1.00" in alt


def test_the_envelope_never_rises_and_ends_at_zero() -> None:
    ax = new_axes()
    plot_levels(ax, [0.2, 0.4, 0.6], [0.5, 0.9, 0.6], {"few": ([0.0, 0.5], [0.9, 0.6])})
    assert points(ax.lines[0]) == ([0, 0.2, 0.4, 0.6, 0.6], [0.9, 0.9, 0.9, 0.6, 0])
    assert ax.get_legend_handles_labels()[1] == ["envelope", "raw", "few"]


def test_curves_by_iou() -> None:
    ious = np.linspace(0.5, 0.95, 10)
    ax = new_axes()
    plot_curves_by_iou(ax, np.ones((10, 101)), ious, title="cell")
    assert len(ax.lines) == 10 and ax.get_legend_handles_labels()[1] == ["0.50", "0.65", "0.80", "0.95"]
    ax = new_axes()
    plot_curves_by_iou(ax, np.ones((10, 101)), ious, labels=False)
    assert ax.get_legend() is None


def test_errors_take_the_colour_of_their_kind() -> None:
    ax = new_axes()
    boxes = torch.tensor([[1.0, 1, 5, 6], [10, 10, 20, 20], [3, 3, 9, 9]])
    alt = draw_errors(ax, torch.full((3, 30, 40), 0.5), boxes, ["place", "missed", "place"])
    assert frames(ax, ERROR_COLOURS["missed"]) == [(10, 10, 10, 10)]
    assert sorted(frames(ax, ERROR_COLOURS["place"])) == [(1, 1, 4, 5), (3, 3, 6, 6)]
    assert alt == "0 twice, 0 class, 2 place, 0 nothing, 1 missed"
    assert ax.get_legend_handles_labels()[1] == ["place: 2", "missed: 1"]


def test_costs_are_in_points_with_their_counts() -> None:
    ax = new_axes()
    alt = plot_error_costs(ax, {"twice": 0.012, "missed": 0.0}, {"twice": 1234, "missed": 2})
    assert [patch.get_width() for patch in ax.patches] == pytest.approx([1.2, 0])
    assert [text.get_text() for text in ax.texts] == ["1.2   (1,234)", "0.0   (2)"]
    assert alt.endswith("twice 1.2, missed 0.0")


def test_draws_show_their_interval_and_the_seeds_around_the_same_ap() -> None:
    ax = new_axes()
    draws = np.linspace(0.4, 0.6, 100)
    alt = plot_draws(ax, draws, 0.5, (0.42, 0.58), seeds=(0.7, 0.74))
    assert "between 42.0 and 58.0" in alt
    assert points(ax.lines[-1])[0] == pytest.approx([48, 52])
    plain = new_axes()
    plot_draws(plain, draws, 0.5, (0.42, 0.58))
    assert plain.get_legend() is None


def test_one_legend_serves_all_panels() -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots(1, 2)
    for ax in axes:
        plot_reliability(ax, {"a": CURVE, "b": CURVE})
    legend_above(axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert all(ax.get_legend() is None for ax in axes)


def test_what_scores_mean() -> None:
    ax = new_axes()
    alt = plot_targets(ax, [0, 0.5, 1], {"a": [0, 0.5, 1], "b": [0, 0.2, 1]})
    assert len(ax.lines) == 2 and alt.endswith("a, b.")
    ax = new_axes()
    plot_reliability(ax, {"a": CURVE}, title="raw")
    assert points(ax.lines[-1])[0] == [0.1, 0.9], "a bin of five detections says nothing"
    assert ax.get_legend() is None
    ax = new_axes()
    plot_anchor_frequencies(ax, {"a": CURVE}, {"a": lambda p: p})
    dots, line = (points(one) for one in ax.lines)
    assert dots[0] == pytest.approx(np.log([0.1 / 0.9, 0.9 / 0.1]))
    assert dots[1] == pytest.approx(np.log([0.02 / 0.98, 0.8 / 0.2]))
    assert line[1] == pytest.approx(line[0])
