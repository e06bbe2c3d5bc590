"""Figures of chapter 3: that they draw the numbers they are given, and say them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from focal_tutorial.plotting import remedies as draw
from focal_tutorial.plotting.style import FOREGROUND


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(5, 3)).subplots()


def test_cross_entropy_marks_answers_on_the_curve(ax: Axes) -> None:
    alt = draw.plot_cross_entropy(ax, {"sure and wrong": 0.05, "easy": 0.9})
    curve, *marks = ax.lines
    x, y = curve.get_data()
    for mark, (p_t, loss) in zip(marks, ((0.05, 2.9957), (0.9, 0.1054)), strict=True):
        assert [float(v) for v in np.ravel(mark.get_data())] == pytest.approx([p_t, loss], abs=1e-4)
        assert np.interp(p_t, x, y) == pytest.approx(loss, rel=0.01)
    assert "sure and wrong at 0.05 costs 3.00" in alt


def test_piles_have_the_areas_of_the_sums(ax: Axes) -> None:
    alt = draw.plot_piles(ax, {"object": (1, 10), "backgrounds": (1000, 0.1)})
    areas = [len(pile.get_paths()) for pile in ax.collections if isinstance(pile, PatchCollection)]
    assert areas == [100, 1000]
    assert "1 object times 10 is 10" in alt and "1,000 backgrounds times 0.1 is 100" in alt


def test_over_probability_draws_lines_and_dots_in_per_cent(ax: Axes) -> None:
    p = torch.tensor([0.001, 0.01, 0.1])
    curves = {"loss": torch.tensor([0.9, 0.5, 0.1]), "gradient": torch.tensor([0.5, 0.1, 0.0])}
    dots = torch.tensor([0.02, 0.05]), [torch.tensor([0.4, 0.2]), torch.tensor([0.05, 0.01])]
    alt = draw.plot_over_probability(ax, p, curves, {"here": 0.01}, dots=dots, ylabel="share (%)")
    drawn = [list(line.get_ydata()) for line in ax.lines]
    assert [pytest.approx(d, abs=1e-4) for d in drawn[:4]] == [[90, 50, 10], [40, 20], [50, 10, 0], [5, 1]]
    assert ax.get_xscale() == "log" and "gradient from 50.0 to 0.0" in alt and "here" in alt


def test_answers_over_steps(ax: Axes) -> None:
    alt = draw.plot_answers(ax, [0, 5, 10], {"foreground": [0.5, 0.1, 0.2], "background": [0.5, 0.1, 0.01]}, 0.001)
    assert list(ax.lines[1].get_ydata()) == [0.5, 0.1, 0.01] and ax.get_yscale() == "log"
    assert "background from 0.5 to 0.01" in alt


def test_spread_is_mean_and_sample_deviation(ax: Axes) -> None:
    alt = draw.plot_spread(ax, [0, 10, 100], {"ce": [[10, 20, 30], [20, 30, 40]]}, ylabel="share (%)")
    assert list(ax.lines[0].get_ydata()) == [15, 25, 35]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(15 - 50**0.5) and band.max() == pytest.approx(35 + 50**0.5)
    assert "ce from 15.0 over 25.0 to 35.0" in alt
    draw.plot_spread(ax, [0, 10], {"one seed": [[1, 2]]}, ylabel="share (%)")  # no deviation of one


def test_easy_background_counts_anchors_and_their_loss(ax: Axes) -> None:
    losses = torch.tensor([0.0] * 90 + [0.05] * 8 + [0.3] * 2)
    alt = draw.plot_easy_background(ax, losses)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights[:6] == pytest.approx([90, 0, 0, 8, 2, 0])
    assert heights[6:] == pytest.approx([0, 0, 0, 40, 60, 0])
    assert "to 0.1: 8.0 and 40.0" in alt


def test_kept_discs_are_filled_where_kept(ax: Axes) -> None:
    losses, labels = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0, -1, -1])
    alt = draw.plot_kept(ax, losses, labels, {"all": labels, "some": torch.tensor([0, -1, -2])})
    out, inside = ax.collections[2:]
    assert len(out.get_offsets()) == 1 and inside.get_offsets()[:, 0].tolist() == [0, 1]
    assert tuple(inside.get_facecolors()[0]) == to_rgba(FOREGROUND)
    sizes = inside.get_sizes()
    assert sizes[1] > sizes[0]
    assert "some keeps a b" in alt


def test_draw_kept_frames_each_anchor(ax: Axes) -> None:
    anchors = torch.tensor([[1.0, 1, 9, 9], [5, 5, 20, 20], [0, 0, 30, 30]])
    image = torch.zeros(3, 32, 40, dtype=torch.uint8)
    alt = draw.draw_kept(ax, image, anchors, torch.tensor([2, -1, -2]), title="OHEM")
    frames = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert [len(f.get_segments()) for f in frames] == [1, 1]
    assert np.allclose(frames[1].get_segments()[0][[0, 2]], [[1, 1], [9, 9]])
    assert "1 foreground, 1 background" in alt and ax.get_title(loc="left").startswith("OHEM")


def test_losses_on_a_logarithmic_axis(ax: Axes) -> None:
    alt = draw.plot_losses(ax, {"wild": [1000, 20, 5000], "calm": [20, 9, 8]}, ylabel="loss")
    assert ax.get_yscale() == "log" and list(ax.lines[0].get_xdata()) == [1, 2, 3]
    assert "wild from 1e+03 to 5e+03" in alt
