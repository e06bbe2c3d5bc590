"""Figures of chapter 8: what lands where on the axes, and what the alt text counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.anchors import AnchorGenerator, cell_anchors
from focal_tutorial.matching import match_anchors
from focal_tutorial.plotting import anchors as draw
from focal_tutorial.plotting.style import FOREGROUND, IGNORED, PALETTE

IMAGE = torch.full((3, 64, 64), 0.5)
GENERATOR = AnchorGenerator(levels=(4,))


def new_axes() -> Axes:
    return Figure(figsize=(4, 3)).subplots()


def frames(ax: Axes, colour: str) -> list[tuple[float, ...]]:
    """(x1, y1, x2, y2) of the boxes drawn in `colour`."""
    found = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_edgecolor()[:3] == to_rgb(colour)]
    return [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in found]


def legend(ax: Axes) -> list[str]:
    box = ax.get_legend()
    assert box is not None
    return [text.get_text() for text in box.get_texts()]


def test_the_nine_anchors_keep_their_sides_and_ratios() -> None:
    ax = new_axes()
    cell = cell_anchors(32, (0.5, 1.0, 2.0), (1.0, 1.26, 1.59))
    alt = draw.draw_cell(ax, cell, 8, ratios=("1 : 2", "1 : 1", "2 : 1"))
    for i, colour in enumerate(PALETTE[:3]):
        assert np.allclose(frames(ax, colour), cell[3 * i : 3 * i + 3])
    assert legend(ax) == ["1 : 2", "1 : 1", "2 : 1"]
    assert alt.startswith("9 boxes around one point, 23 to 72 pixels")


def test_the_ladder_stands_on_an_octave_axis() -> None:
    ax = new_axes()
    alt = draw.plot_side_ladder(ax, {"P3": [32, 40, 51], "P4": [64, 81, 102]})
    assert ax.get_xscale() == "log" and [label.get_text() for label in ax.get_yticklabels()] == ["P4", "P3"]
    assert alt == "6 sides from 32 to 102 pixels, 2 levels."


def test_a_level_shows_every_location_and_one_locations_anchors() -> None:
    ax = new_axes()
    alt = draw.draw_level(ax, IMAGE, GENERATOR((64, 64))[0], 16, (40, 20), per_location=9, title="P4")
    dots = np.column_stack(ax.lines[0].get_data())
    assert len(dots) == 16 and np.allclose((dots.min(), dots.max()), (8, 56))
    drawn = np.array(frames(ax, PALETTE[0]))
    assert len(drawn) == 9 and np.allclose((drawn[:, :2] + drawn[:, 2:]) / 2, (40, 24), atol=1e-4)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < drawn[:, 0].min() and right > drawn[:, 2].max() and top < drawn[:, 1].min() < bottom
    assert "16 locations at stride 16, with the 9 anchors" in alt


def test_level_counts_are_summed() -> None:
    ax = new_axes()
    alt = draw.plot_level_counts(ax, {"P3": 900, "P4": 100})
    assert [bar.get_width() for bar in ax.patches] == [900, 100]
    assert ax.get_title(loc="left") == "all levels: 1,000" and "P3 900, P4 100, 1,000 in all" in alt
    assert [text.get_text() for text in ax.texts] == ["900  (90.0 %)", "100  (10.0 %)"]


def test_centres_of_several_programs() -> None:
    ax = new_axes()
    alt = draw.plot_centres(
        ax, (100, 200), {"a": torch.tensor([[50.0, 50.0], [150.0, 50.0]]), "b": [[0, 0], [120, 90]]}
    )
    assert legend(ax) == ["a", "b"]
    assert "a: last at (150, 50); b: last at (120, 90)" in alt


@pytest.mark.parametrize(("box", "shared"), [((3, 2, 8, 7), 16), ((8, 7, 9, 9), 0)])
def test_the_overlap_is_counted(box: tuple[int, ...], shared: int) -> None:
    ax = new_axes()
    alt = draw.draw_overlap(ax, (1, 1, 7, 6), box)
    assert alt.endswith(f"share {shared}.")
    assert [text.get_text() for text in ax.texts] == ([str(shared)] if shared else [])
    assert legend(ax)[0] == "anchor: 30"


def test_iou_curves_name_their_lowest_value() -> None:
    ax = new_axes()
    alt = draw.plot_iou_curves(ax, [0.25, 1, 4], {"one": [0.3, 1, 0.3], "three": [0.5, 1, 0.55]}, xlabel="ratio",
                               octaves=True)  # fmt: skip
    assert alt == "IoU over ratio; lowest values: one 0.30, three 0.50."
    assert ax.get_xscale() == "log" and ax.get_xlim() == (0.25, 4)
    assert [line.get_ydata()[0] for line in ax.lines[:2]] == [0.5, 0.4]  # the two thresholds
    formatter = ax.xaxis.get_major_formatter()
    assert formatter(0.5) == "1/2" and formatter(4) == "4"


def test_a_shape_map_draws_the_line_of_one_half() -> None:
    side = np.geomspace(10, 80, 9)
    ious = np.minimum.outer(side, side) / np.maximum.outer(side, side)
    ax = new_axes()
    drawn = draw.plot_shape_map(ax, side, ious, title="3 × 3")
    assert drawn.get_clim() == (0, 1) and len(ax.collections) == 2  # the map and the line
    flat = new_axes()
    draw.plot_shape_map(flat, side, np.full((9, 9), 0.3))
    assert len(flat.collections) == 1, "no line where nothing crosses 0.5"


def test_zones_take_the_best_anchor_of_each_cell() -> None:
    ax = new_axes()
    boxes = torch.tensor([[8.0, 8.0, 72.0, 72.0]])
    matches = match_anchors(GENERATOR((64, 64))[0], boxes)
    alt = draw.draw_zones(ax, IMAGE, matches, (4, 4), 16, boxes)
    zones = np.asarray(ax.images[1].get_array().filled(np.nan))
    kinds = matches.view(4, 4, 9)
    assert np.array_equal(zones == 2, (kinds >= 0).any(2).numpy()) and (zones == 2).any()
    only_ignored = (kinds == -2).any(2) & ~(kinds >= 0).any(2)
    assert np.array_equal(zones == 1, only_ignored.numpy()) and (zones == 1).any()
    assert alt.startswith(f"{int((matches >= 0).sum())} foreground, {int((matches == -2).sum())} ignored")


def test_the_histogram_puts_the_thresholds_into_the_upper_zone() -> None:
    ax = new_axes()
    alt = draw.plot_zone_histogram(ax, torch.tensor([0.0, 0.399, 0.4, 0.499, 0.5, 1.0], dtype=torch.float64))
    assert alt == "Histogram of the anchors' highest IoU: 2 background, 2 ignored, 2 foreground."
    assert legend(ax) == ["background: 2", "ignored: 2", "foreground: 2"]


def test_reach_sorts_boxes_into_zones_under_the_limit() -> None:
    ax = new_axes()
    alt = draw.plot_reach(ax, [10, 22, 30], [0.1, 0.45, 0.8], smallest=32)
    assert alt == "3 boxes by size and best IoU: 1 reach 0.5."
    assert legend(ax)[:3] == ["unreached, below 0.4: 1", "unreached, 0.4 to 0.5: 1", "reached: 1"]
    limit = next(line for line in ax.lines if str(line.get_label()).startswith("limit"))
    x, y = (np.asarray(values) for values in limit.get_data())
    assert np.allclose(y, (x / 32) ** 2) and y.max() == 1


def test_deltas_are_written_beside_the_two_boxes() -> None:
    ax = new_axes()
    alt = draw.draw_deltas(ax, [0, 0, 10, 10], torch.tensor([2.0, 0.0, 12.0, 10.0]), [0.2, 0.0, 0.0, 0.0])
    assert frames(ax, PALETTE[0]) == [(0, 0, 10, 10)] and frames(ax, PALETTE[1]) == [(2, 0, 12, 10)]
    assert "+0.200" in alt and any("$t_x$ = +0.200" in text.get_text() for text in ax.texts)


def test_the_zones_keep_their_colours() -> None:
    ax = new_axes()
    draw.draw_zones(ax, IMAGE, torch.tensor([0, -2, -1, -1]), (2, 2), 32, torch.zeros(0, 4))
    colours = ax.images[1].cmap([0.0, 1.0])[:, :3]
    assert np.allclose(colours, [to_rgb(IGNORED), to_rgb(FOREGROUND)])
