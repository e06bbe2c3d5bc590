"""Figures of the chapter on balanced cross entropy: what is drawn, and what the alt text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_tutorial.plotting.balance import (
    log_odds,
    plot_alpha_sweep,
    plot_balanced_optimum,
    plot_concentration,
    plot_reliability,
    plot_share_bars,
    plot_shares_over_training,
    reliability,
)


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def test_share_bars_add_up(ax: Axes) -> None:
    alt = plot_share_bars(ax, {"plain": 0.1, "weighted": 0.75})
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([0.1, 0.9, 0.75, 0.25])
    assert "plain 10.0 %" in alt and "weighted 75.0 %" in alt
    assert [text.get_text() for text in ax.texts] == ["10 %", "75 %"]


def test_optimum_is_a_shift_and_its_mark_lies_on_the_line(ax: Axes) -> None:
    alt = plot_balanced_optimum(ax, (0.5, 0.998), mark=(1 / 500, 0.998))
    plain, shifted = (line.get_xydata() for line in ax.lines[:2])
    assert shifted[:, 1] - plain[:, 1] == pytest.approx(float(log_odds(0.998)))
    assert ax.lines[-1].get_xydata()[0] == pytest.approx([float(log_odds(1 / 500)), 0.0], abs=1e-9)
    assert "p* is 0.50" in alt


def test_reliability_measures_frequencies() -> None:
    logits = torch.cat([torch.full((2000,), -3.0), torch.full((3000,), 1.0), torch.full((10,), 5.0)])
    truth = torch.zeros(len(logits))
    truth[:20], truth[2000:4000], truth[-1] = 1, 1, 1
    p, frequency = reliability(logits, truth)  # ten questions are too few for a bin
    assert p == pytest.approx(torch.tensor([-3.0, 1.0]).sigmoid().numpy())
    assert frequency == pytest.approx([0.01, 2 / 3])


def test_reliability_is_drawn_on_log_odds(ax: Axes) -> None:
    alt = plot_reliability(ax, {0.5: (np.array([0.1]), np.array([0.1])), 0.998: (np.array([0.5]), np.array([0.002]))})
    diagonal, shifted = ax.lines[0].get_xydata(), ax.lines[2].get_xydata()
    assert diagonal[:, 0] == pytest.approx(diagonal[:, 1])
    assert shifted[:, 0] - shifted[:, 1] == pytest.approx(float(log_odds(0.998)))
    assert "α = 0.998, where it says 0.5 the frequency is 0.002" in alt


def test_sweep_shows_means_seeds_bars_and_other_losses(ax: Axes) -> None:
    results = {0.5: (0.39, 0.41), 0.75: (0.5, 0.5), 0.999: (0.4, 0.5)}
    alt = plot_alpha_sweep(ax, results, levels={"focal": (0.6, 0.62)}, title="here")
    assert alt == "AP in per cent against α (here): 0.5 40.0 ± 1.4, 0.75 50.0 ± 0.0, 0.999 45.0 ± 7.1."
    assert [text.get_text() for text in ax.texts] == ["40.0", "50.0", "45.0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "0.75", "0.999"]
    assert ax.get_legend().get_texts()[0].get_text() == "focal"
    drawn = [list(line.get_ydata()) for line in ax.lines]
    assert [39.0, 41.0] in drawn and [40.0, 50.0] in drawn
    assert ax.get_ylim()[1] > 62.5  # the band is inside


def test_sweep_of_one_run_has_no_spread(ax: Axes) -> None:
    alt = plot_alpha_sweep(ax, {0.1: (0.0,), 0.5: (0.3,)}, title="x")
    assert alt == "AP in per cent against α (x): 0.1 0.0, 0.5 30.0."


def test_shares_over_training_show_mean_and_band(ax: Axes) -> None:
    runs = np.array([[0.1, 0.4], [0.3, 0.6]])
    alt = plot_shares_over_training(ax, [0, 100], {"CE": runs, "one run": np.array([0.9, 0.5])}, title="of the loss")
    assert ax.lines[1].get_ydata() == pytest.approx([0.2, 0.5])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.2 - runs[:, 0].std(ddof=1))
    assert "CE from 0.20 to 0.50" in alt and "one run from 0.90 to 0.50" in alt


def test_concentration_counts_the_hardest(ax: Axes) -> None:
    terms = torch.ones(1000)
    terms[:10] = 99.0  # a hundredth of the terms, half of the sum
    alt = plot_concentration(ax, {"even": torch.ones(1000), "uneven": terms})
    assert "even: the hardest hundredth gives 1 %" in alt
    assert "uneven: the hardest hundredth gives 50 %" in alt
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(1.0)
