"""Figures of chapter 12: every number that they show is the one that they were given."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.plotting.detections import (
    draw_outlines,
    plot_ap_and_cost,
    plot_best_thresholds,
    plot_funnel,
    plot_offset_trick,
    show_two_models,
)
from focal_tutorial.plotting.style import BOX_COLOURS, PALETTE

IMAGE = torch.full((3, 48, 64), 0.5)
BOXES = torch.tensor([[10.0, 10.0, 30.0, 30.0], [-5.0, 4.0, 20.0, 24.0]])


def new_axes(count: int = 1) -> list[Axes]:
    return list(np.atleast_1d(Figure(figsize=(4, 3)).subplots(1, count)))


def outlines(ax: Axes) -> list[tuple[list[float], tuple[float, ...]]]:
    """(xyxy, colour) of the boxes of the last collection, which lies on top."""
    drawn = [c for c in ax.collections if isinstance(c, LineCollection)][-1]
    boxes = [
        [p[:, 0].min(), p[:, 1].min(), p[:, 0].max(), p[:, 1].max()] for p in map(np.asarray, drawn.get_segments())
    ]
    return list(zip(boxes, [tuple(c[:3]) for c in drawn.get_colors()], strict=True))


def test_the_funnel_counts_every_level_and_adds_them_up() -> None:
    (ax,) = new_axes()
    alt = plot_funnel(ax, {"all": [4000, 1000], "best": [7, 0]}, ["P3", "P4"])
    assert alt.endswith("all levels together: all 5,000, best 7.")
    assert [t.get_text() for t in ax.texts] == ["4,000", "7", "1,000", "0"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all\n5,000 in all", "best\n7 in all"]
    bars = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert sorted(b.get_width() for b in bars) == [0.6, 7, 1000, 4000]
    assert ax.get_xscale() == "log" and ax.yaxis_inverted()
    assert not {to_rgb(b.get_facecolor()[:3]) for b in bars} & set(map(to_rgb, BOX_COLOURS)), "levels are no classes"


def test_outlines_keep_places_and_take_the_colours_of_their_classes() -> None:
    (ax,) = new_axes()
    alt = draw_outlines(ax, IMAGE, BOXES, torch.tensor([0, 2]), margin=10, title="decoded")
    assert alt == "2 boxes (decoded)." and ax.get_title(loc="left") == "decoded"
    assert ax.get_xlim() == (-10, 74) and ax.get_ylim() == (58, -10)
    assert [box for box, _ in outlines(ax)] == BOXES.tolist()
    assert [c for _, c in outlines(ax)] == [to_rgb(BOX_COLOURS[0]), to_rgb(BOX_COLOURS[2])]
    assert draw_outlines(ax, None, torch.zeros(0, 4), torch.zeros(0)) == "0 boxes."


def test_the_offset_trick_moves_each_class_along_the_diagonal() -> None:
    (ax,) = new_axes()
    alt = plot_offset_trick(ax, BOXES, torch.tensor([1, 0]), 100, names=["a", "b"])
    assert [box for box, _ in outlines(ax)] == [[110, 110, 130, 130], [-5, 4, 20, 24]]
    assert [p.get_xy() for p in ax.patches if isinstance(p, Rectangle)] == [(0, 0), (100, 100)]
    assert [t.get_text() for t in ax.texts] == ["a: + 0 · 100", "b: + 1 · 100"]
    assert alt.endswith("diagonal: 1 a, 1 b.")
    assert [c for _, c in outlines(ax)] == [to_rgb(BOX_COLOURS[1]), to_rgb(BOX_COLOURS[0])], "as on the photographs"


def test_the_best_threshold_of_each_class_is_marked() -> None:
    (ax,) = new_axes()
    alt = plot_best_thresholds(ax, [0.1, 0.2, 0.3], {"a": [0.5, 0.9, 0.4], "b": [0.2, 0.1, 0.0]})
    assert alt == "F1 over the score threshold, highest at 0.20 for a, 0.10 for b."
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert dots == [(0.2, pytest.approx(90)), (0.1, pytest.approx(20))]
    assert [line.get_color() for line in ax.lines[::2]] == list(BOX_COLOURS[:2]), "a class has one colour everywhere"


def test_ap_and_detections_stand_at_the_same_places() -> None:
    (ax,) = new_axes()
    alt = plot_ap_and_cost(ax, [0, 0.05], [0.45, 0.5], [100, 30.4])
    assert alt.endswith("0: AP 45.0, 100 an image, 0.05: AP 50.0, 30 an image.")
    assert [p.get_height() for p in ax.patches if isinstance(p, Rectangle)] == [100, 30.4]
    right = next(a for a in ax.figure.axes if a is not ax)
    assert list(right.lines[0].get_ydata()) == [45, 50]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.05"]


def test_two_models_side_by_side_and_laid_over_each_other() -> None:
    axes = new_axes(3)
    alt = show_two_models(axes, IMAGE, BOXES, BOXES[:1], names=("torchvision", "ours"))
    assert alt == "2 boxes of torchvision, 1 of ours, and both on one picture."
    assert len(axes[0].collections) == len(axes[1].collections) == 1 and len(axes[2].collections) == 2
    assert outlines(axes[1]) == outlines(axes[2]) == [(BOXES[0].tolist(), to_rgb(PALETTE[1]))]
    assert axes[0].get_title(loc="left") == "torchvision: 2 boxes"


def test_nothing_global_changes() -> None:
    before = dict(mpl.rcParams)
    draw_outlines(new_axes()[0], IMAGE, BOXES, [0, 1])
    plot_funnel(new_axes()[0], {"a": [1]}, ["P3"])
    assert dict(mpl.rcParams) == before
