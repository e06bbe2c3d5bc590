"""Figures of chapter 2: what lands where on the axes, and what the alt text counts."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.plotting.steps import (
    draw_anchors,
    draw_grid,
    plot_box_counts,
    plot_probabilities,
    plot_sweep,
    show_map,
    show_verdicts,
)
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND, HIT, IGNORED, MISSED, WRONG

IMAGE = torch.full((3, 48, 64), 0.5)
BOX = torch.tensor([10.0, 10.0, 30.0, 30.0])


def new_axes() -> Axes:
    return Figure(figsize=(4, 3)).subplots()


def frames(ax: Axes, colour: str) -> list[tuple[float, ...]]:
    """(x, y, width, height) of the boxes drawn in `colour`."""
    found = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_edgecolor()[:3] == to_rgb(colour)]
    return [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in found]


def test_a_map_covers_its_cells_and_is_cut_at_the_image() -> None:
    ax = new_axes()
    drawn = show_map(ax, torch.arange(6.0).view(2, 3), (48, 64), 32, photo=IMAGE, title="C5")
    assert drawn.get_extent() == [0, 96, 64, 0]  # two rows of 32 pixels reach 16 beyond the image
    assert ax.get_xlim() == (0, 64) and ax.get_ylim() == (48, 0)
    assert drawn.get_clim() == (0, 5) and len(ax.images) == 2
    assert show_map(new_axes(), np.zeros((2, 3)), (48, 64), 32, limits=(0, 1)).get_clim() == (0, 1)


def test_the_grid_marks_the_cell_of_each_centre_once() -> None:
    ax = new_axes()
    alt = draw_grid(ax, IMAGE, 16, torch.stack([BOX, BOX + 2, BOX + 16]))
    cells = {patch.get_xy() for patch in ax.patches if isinstance(patch, Rectangle)}
    assert cells == {(16, 16), (32, 32)}  # centres (20, 20), (22, 22) and (36, 36)
    assert alt == "Grid of 3 by 4 cells over the image; 2 of them hold the centres of its objects."
    assert ax.get_title(loc="left") == "stride 16: 3 × 4 cells"


def test_anchors_take_the_colour_of_their_overlap() -> None:
    ax = new_axes()
    anchors = torch.stack([BOX, BOX + 1, BOX + 2, BOX + 3, BOX + 4])
    alt = draw_anchors(ax, IMAGE, anchors, torch.tensor([0.5, 0.499, 0.4, 0.399, 0.0]), BOX)
    assert alt == "5 anchors around one box: 2 background, 2 ignored, 1 foreground."
    assert [x for x, *_ in frames(ax, FOREGROUND)] == [10]
    assert sorted(x for x, *_ in frames(ax, IGNORED)) == [11, 12]
    assert sorted(x for x, *_ in frames(ax, BACKGROUND)) == [13, 14]


@pytest.mark.parametrize("missed", [True, False])
def test_verdicts_are_told_apart_and_counted(missed: bool) -> None:
    ax = new_axes()
    truth = {"boxes": torch.stack([BOX, BOX + 17]), "labels": torch.tensor([0, 0])}
    found = {
        "boxes": torch.stack([BOX, BOX + 1]),
        "labels": torch.tensor([0, 0]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    alt = show_verdicts(ax, IMAGE, truth, found, missed=missed, title="at 0.3")
    assert alt == "Detections on the photograph: 1 right, 1 wrong, 1 missed."
    assert ax.get_title(loc="left") == "at 0.3: 1 right, 1 wrong, 1 missed"
    assert frames(ax, HIT) == [(10, 10, 20, 20)] and frames(ax, WRONG) == [(11, 11, 20, 20)]
    assert frames(ax, MISSED) == ([(27, 27, 20, 20)] if missed else [])


def test_a_sweep_in_per_cent_and_one_with_a_zero_on_a_logarithmic_axis() -> None:
    ax = new_axes()
    alt = plot_sweep(ax, [0.1, 0.9], {"recall": [0.8, 0.25]}, xlabel="threshold", bottom=20, mark=0.5)
    assert alt == "Curves over threshold, from 0.1 to 0.9: recall 80 to 25 per cent."
    assert list(ax.lines[0].get_ydata()) == [80, 25] and ax.get_ylim() == (20, 103)
    assert list(ax.lines[1].get_xdata()) == [0.5, 0.5]
    ax = new_axes()
    plot_sweep(ax, [0.1, 0.5, 0.9], {"doubles": [0, 0.11, 132]}, xlabel="threshold", percent=False)
    assert ax.get_yscale() == "symlog" and ax.get_ylim()[0] == 0
    assert list(ax.lines[0].get_ydata()) == [0, 0.11, 132]


def test_box_counts_write_the_ratio_of_background_to_foreground() -> None:
    ax = new_axes()
    alt = plot_box_counts(ax, {"a": 1000, "b": 50}, {"a": 10, "b": 5}, {"a": 900, "b": 45})
    assert alt == "Foreground and all boxes per image: a 10.0 of 1,000, 1 : 90; b 5.0 of 50, 1 : 9."
    assert {"1 : 90", "1 : 9", "1,000", "10"} <= {text.get_text() for text in ax.texts}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_yticks()[0] > ax.get_yticks()[1]  # the first is on top


def test_histograms_count_anchors_per_image_and_share_below_the_line() -> None:
    ax = new_axes()
    background = torch.tensor([0.0, 0.02, 0.05, 0.4])  # the first lies left of the axis and is counted at its edge
    alt = plot_probabilities(ax, background, torch.tensor([0.6]), images=2, easy=0.1)
    assert alt == "Histograms of p: 75 per cent of the background anchors lie below 0.1."
    heights = [patch.get_data().values for patch in ax.patches]
    assert [h.sum() for h in heights] == [2.0, 0.5]
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_nothing_global_changes() -> None:
    before = dict(mpl.rcParams)
    draw_grid(new_axes(), IMAGE, 8, BOX[None])
    plot_sweep(new_axes(), [0, 1], {"a": [0, 1], "b": [1, 0]}, xlabel="x")
    assert dict(mpl.rcParams) == before
