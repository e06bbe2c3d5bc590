"""The figures of the chapter on focal loss's neighbours draw what they are given and say it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_tutorial.plotting.neighbours import (
    plot_box_cases,
    plot_foreground_share,
    plot_loss_family,
    plot_quality_curves,
    plot_score_against_quality,
    plot_setting_dots,
    plot_weights,
)


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def test_loss_family_has_a_line_for_each(ax: Axes) -> None:
    x = torch.linspace(-2, 2, 5)
    alt = plot_loss_family(ax, x, {"CE": x**2, "focal": x**4}, xlabel="logit", ylabel="loss", title="objects")
    assert [line.get_label() for line in ax.lines] == ["CE", "focal"]
    assert list(ax.lines[1].get_ydata()) == (x**4).tolist()
    assert "CE, focal" in alt and "logit" in alt and "objects" in alt


def test_weights_are_counted(ax: Axes) -> None:
    foreground = torch.tensor([True, False, False])
    alt = plot_weights(ax, torch.tensor([2.0, 0.1, 3.0]), torch.tensor([1.0, 0.0, 1.0]), foreground, title="OHEM")
    assert "2 of 3 anchors" in alt
    assert [len(c.get_offsets()) for c in ax.collections] == [2, 1]
    assert ax.get_xscale() == "log"


def test_quality_curves_mark_the_minimum(ax: Axes) -> None:
    p = torch.linspace(0, 1, 11)
    alt = plot_quality_curves(ax, p, {0.3: (p - 0.3) ** 2, 0.8: (p - 0.8) ** 2}, title="loss")
    assert "quality 0.3 at p = 0.30" in alt and "quality 0.8 at p = 0.80" in alt
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [round(float(dot.get_xdata()[0]), 2) for dot in dots] == [0.3, 0.8]


def test_score_against_quality_says_how_the_mean_rises(ax: Axes) -> None:
    quality = torch.linspace(0.5, 1, 50)
    alt = plot_score_against_quality(ax, quality**2, quality, title="after")
    assert "50 foreground anchors" in alt and "after" in alt
    means = ax.lines[1].get_ydata()
    assert len(means) == 5 and all(a < b for a, b in pairwise(means))


def test_box_cases_lie_inside_the_axes(ax: Axes) -> None:
    alt = plot_box_cases(ax, [0, 0, 40, 40], {"shifted": [10, 0, 50, 40], "larger": [-5, -5, 45, 45]}, title="three")
    assert len(ax.patches) == 3 and "shifted, larger" in alt
    assert ax.get_xlim()[0] < -5 and ax.get_xlim()[1] > 50
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # y points down, as in images


def test_setting_dots_give_mean_and_sd(ax: Axes) -> None:
    alt = plot_setting_dots(ax, {"CE": [0.5, 0.6, 0.7], "focal": [0.7, 0.7, 0.7]}, marked=["focal"])
    assert "CE 60.0 ± 10.0" in alt and "focal 70.0 ± 0.0" in alt
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row on top
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()


def test_foreground_share_draws_mean_and_range(ax: Axes) -> None:
    alt = plot_foreground_share(ax, [0, 10, 100], {"loss": [[0.1, 0.5, 0.2], [0.3, 0.7, 0.4]]}, title="focal")
    assert "loss from 20 to 30 %" in alt and "lowest 20 %" in alt
    assert list(ax.lines[0].get_ydata()) == pytest.approx([20, 60, 30])
