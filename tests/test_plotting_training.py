"""Figures of the chapter on training: what is drawn and what the alt text says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_tutorial.plotting import training as draw


def panels(n: int = 1) -> list[Axes]:
    return list(Figure(figsize=(4 * n, 3)).subplots(1, n, squeeze=False)[0])


def test_the_running_mean_looks_back_only() -> None:
    assert draw.running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_steps_are_dots_and_their_mean_a_line() -> None:
    (ax,) = panels()
    alt = draw.plot_steps(ax, [4.0, 2.0, 1.0, 1.0], window=2)
    dots, line = ax.lines
    assert list(dots.get_xdata()) == [1, 2, 3, 4] and list(dots.get_ydata()) == [4, 2, 1, 1]
    assert list(line.get_ydata()) == [4.0, 3.0, 1.5, 1.0]
    assert alt == "loss over 4 steps; the mean of 2 falls from 4.00 to 1.00."


def test_schedules_are_lines_over_steps() -> None:
    (ax,) = panels()
    alt = draw.plot_schedule(ax, {"step": [0.0, 0.01, 0.001], "cosine": [0.0, 0.01, 0.0]}, every=30)
    assert list(ax.lines[0].get_xdata()) == [0, 30, 60]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    assert "step up to 0.01, 0.001 at the end" in alt
    assert ax.xaxis.get_major_formatter()(60_000) == "60,000"


def test_padding_is_counted_and_shown() -> None:
    (ax,) = panels()
    sizes = [(10, 20), (20, 10)]
    assert draw.padding_share((20, 20), sizes) == pytest.approx(0.5)
    alt = draw.show_padded(ax, torch.rand(2, 3, 20, 20), sizes, title="a batch: ", gap=5)
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [(f.get_x(), f.get_width(), f.get_height()) for f in frames] == [(0, 20, 20), (25, 20, 20)]
    assert [tuple(image.get_extent()) for image in ax.images] == [(0, 20, 10, 0), (25, 35, 20, 0)]
    assert ax.get_title(loc="left") == "a batch: 20 × 20, 50% padding"
    assert "50% of the batch is padding" in alt


def test_a_cross_stands_where_a_run_died() -> None:
    axes = panels(2)

    def cell(died: int | None) -> dict[str, Any]:
        return {"cold": died, "warm": None, "clipped": None}

    curve = {name: [2.0, 1.5] for name in draw.TREATMENT_COLOURS}
    runs = [
        {"losses": {"plain": {"0_01": curve, "0_1": curve}}, "diverged_step": {"plain": {"0_01": cell(None), "0_1": d}}}
        for d in (cell(17), cell(None))
    ]
    alt = draw.plot_deaths(axes, runs, "plain", {"0_01": "rate 0.01", "0_1": "rate 0.1"})
    crosses = [[line for line in ax.lines if line.get_marker() == "x"] for ax in axes]
    assert [len(c) for c in crosses] == [0, 1]
    assert list(crosses[1][0].get_xdata()) == [17]
    assert to_hex(crosses[1][0].get_color()) == draw.TREATMENT_COLOURS["cold"]
    assert list(axes[0].lines[0].get_xdata()) == [5.0, 15.0]
    assert alt.endswith("rate 0.01: all runs live; rate 0.1: 1 of 2 cold runs die.")


def test_parts_are_shares_of_a_bar() -> None:
    (ax,) = panels()
    alt = draw.plot_parts(ax, {"tiny": {"backbone": 30.0, "backward": 60.0, "optimizer": 10.0}})
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.3, 0.6, 0.1])  # type: ignore[attr-defined]
    assert [bar.get_x() for bar in ax.patches] == pytest.approx([0.0, 0.3, 0.9])  # type: ignore[attr-defined]
    assert [text.get_text() for text in ax.texts] == ["30%", "60%", "10%", "100 ms"]
    assert alt == "Shares of a training step's time. tiny: backward 60%, backbone 30%, optimizer 10%."


def test_every_part_of_a_step_has_a_colour() -> None:
    profile = pytest.importorskip("focal_tutorial.step_profile")
    assert set(profile.PARTS) == set(draw.PART_COLOURS)
