"""Figures of the chapter on backbone and pyramid: what is drawn where, and what the alt text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from focal_tutorial.plotting.pyramid import Field, plot_energy, plot_fields, plot_shares
from focal_tutorial.plotting.style import FOREGROUND


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(7, 4)).subplots()


def test_fields_stand_beside_their_anchors(ax: Axes) -> None:
    alt = plot_fields(
        ax, [Field("P3", (32, 50.8), (459, 523), (163, 167)), Field("P4", (64, 101.6), (460, 619), (9, 10))]
    )
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), to_hex(bar.get_facecolor())) for bar in ax.patches]
    assert bars == [(32, pytest.approx(50.8), FOREGROUND), (64, pytest.approx(101.6), FOREGROUND)]
    lines = [line.get_xdata() for line in ax.lines if len(np.atleast_1d(line.get_xdata())) == 2]
    assert [tuple(line) for line in lines] == [(163, 167), (459, 523), (9, 10), (460, 619)]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the finest level on top"
    assert "P3 anchors 32 to 51, effective 163 and 167, theoretical 459 and 523" in alt


def test_energy_lies_on_the_photo_with_both_squares(ax: Axes) -> None:
    energy = torch.zeros(48, 64)
    energy[20, 30] = 4.0
    alt = plot_energy(ax, energy, torch.zeros(3, 48, 64, dtype=torch.uint8), (20.5, 30.5), 11, 32, title="P3")
    photo, veil = ax.images
    assert tuple(photo.get_extent()) == (0, 64, 48, 0) and veil.get_array().shape == (6, 8)
    assert np.unravel_index(veil.get_array().argmax(), (6, 8)) == (2, 3)
    squares = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in ax.patches]
    assert squares == [(25.0, 15.0, 11, 11), (14.5, 4.5, 32, 32)]
    assert "square of 11 px" in alt and "anchor of 32 px" in alt


def test_shares_add_up_and_keep_their_colours(ax: Axes) -> None:
    alt = plot_shares(ax, {"weights": {"body": 3, "heads": 1}, "work": {"body": 1, "heads": 3, "rest": 0.04}})
    widths = [bar.get_width() for bar in ax.patches]
    assert widths[:2] == [0.75, 0.25] and sum(widths[2:]) == pytest.approx(1)
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours[:2] == colours[2:4] and len(set(colours)) == 3
    assert [text.get_text() for text in ax.texts] == ["75%", "25%", "25%", "74%"]
    assert "weights: body 75%, heads 25%" in alt
