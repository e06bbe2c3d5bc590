"""Figures of the two stages: what is drawn where, and what the alt text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from focal_tutorial.plotting.stages import (
    NODES,
    plot_funnel,
    plot_objectness,
    plot_proposal_recall,
    plot_proposals,
    plot_regions,
    plot_two_stages,
)
from focal_tutorial.plotting.style import BACKGROUND, FOREGROUND

IMAGE = torch.zeros(3, 48, 64, dtype=torch.uint8)


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(6, 3)).subplots()


def test_the_diagram_names_every_part_and_stays_inside_its_axes(ax: Axes) -> None:
    alt = plot_two_stages(ax)
    written = {text.get_text() for text in ax.texts}
    assert {title for _, title, *_ in NODES} <= written and "RoIAlign" in alt
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    for _, _, _, x, y, width in NODES:
        assert left < x - width / 2 and x + width / 2 < right and low < y - 0.5 and y + 0.5 < high


def test_objectness_covers_the_whole_image(ax: Axes) -> None:
    alt = plot_objectness(ax, IMAGE, torch.tensor([[0.0, 0.25], [0.5, 0.75]]), title="stride 32 px")
    picture, veil = ax.images
    assert tuple(veil.get_extent()) == (-0.5, 63.5, 47.5, -0.5) and picture.get_array().shape == (48, 64)
    assert veil.get_clim() == (0, 1) and "0.00 to 0.75" in alt


def test_proposals_are_coloured_by_what_they_hold(ax: Axes) -> None:
    boxes = torch.tensor([[1.0, 2, 11, 12], [5, 5, 15, 15], [20, 20, 30, 40]])
    alt = plot_proposals(ax, IMAGE, boxes, torch.tensor([False, True, False]))
    background, foreground = (c for c in ax.collections if isinstance(c, LineCollection))
    assert len(background.get_segments()) == 2 and len(foreground.get_segments()) == 1
    assert to_hex(foreground.get_color()[0]) == FOREGROUND
    assert foreground.get_segments()[0].tolist() == [[5, 5], [15, 5], [15, 15], [5, 15], [5, 5]]
    assert alt == "3 proposals, 1 of them on an object."


def test_recall_is_drawn_in_per_cent(ax: Axes) -> None:
    alt = plot_proposal_recall(ax, (1, 10, 100), {"IoU 0.5": (0.1, 0.5, 0.95), "IoU 0.7": (0.0, 0.25, 0.5)})
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        pytest.approx([10, 50, 95]),
        pytest.approx([0, 25, 50]),
    ]
    assert ax.get_xscale() == "log" and alt.endswith("with 100: IoU 0.5 95 %, IoU 0.7 50 %.")


def test_the_funnel_shows_both_kinds_and_their_ratio(ax: Axes) -> None:
    alt = plot_funnel(ax, {"anchors": (20.0, 980.0), "none": (0.0, 50.0)}, title="shapes")
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx([980, 20, 50, 0.5])
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches[:2]] == [BACKGROUND, FOREGROUND]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["anchors\n1 : 49", "none\n1 : ∞"]
    assert "anchors 1 : 49" in alt and alt.startswith("shapes")


def test_regions_stand_in_rows(ax: Axes) -> None:
    alt = plot_regions(
        ax, torch.rand(5, 3, 8, 8), ["a", "b", "c", "d", "e"], [True, False, True, False, False], columns=3
    )
    assert len(ax.images) == 5 and [text.get_text() for text in ax.texts] == ["a", "b", "c", "d", "e"]
    tops = np.array([image.get_extent()[3] for image in ax.images])
    assert (tops[:3] == 0).all() and (tops[3:] > 1).all()
    assert [to_hex(line.get_color()) == FOREGROUND for line in ax.lines] == [True, False, True, False, False]
    assert alt.startswith("5 regions at one size, 2 of them foreground")
