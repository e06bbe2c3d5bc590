"""Figures of the chapter on subnets and the prior: what is drawn and what the alt text says."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from focal_tutorial.heads import flatten_level
from focal_tutorial.plotting import heads as draw


def panel() -> Axes:
    return Figure(figsize=(4, 3)).subplots()


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_the_head_shows_levels_filters_and_rows() -> None:
    ax = panel()
    alt = draw.draw_head(ax, [(4, 6), (2, 3)], channels=16, anchors=2, classes=5)
    shown = words(ax)
    assert [t for t in shown if t.startswith("$P_")] == ["$P_3$  4 × 6", "$P_4$  2 × 3"]
    assert shown.count("3×3\n16\nReLU") == 8
    assert "3×3\n10" in shown and "3×3\n8" in shown
    assert "logits\n60 × 5" in shown and "deltas\n60 × 4" in shown  # 2 · (24 + 6) rows
    assert "10 filters in the class subnet" in " ".join(alt.split()) and "60 rows" in alt


def test_channels_have_the_colours_of_their_locations() -> None:
    ax = panel()
    alt = draw.draw_channels(ax, 6, (2, 2), 3)
    assert len(ax.patches) == 24
    assert [to_hex(patch.get_facecolor()) for patch in ax.patches[:4]] == list(draw.LOCATIONS[:4])
    assert words(ax).count("5") == 4 and {"anchor 0", "anchor 1", "channel 5"} <= set(words(ax))
    assert "6 grids of 2 × 2" in alt


def test_a_table_tells_right_rows_from_mixed_ones() -> None:
    origin = torch.arange(24).view(1, 6, 2, 2)
    ax = panel()
    alt = draw.draw_rows(ax, flatten_level(origin, 3)[0], 4, title="right")
    assert "8 rows come from one location each" in alt and ax.get_title(loc="left") == "right"
    colours = [to_hex(patch.get_facecolor()) for patch in ax.patches]
    assert colours[:6] == [draw.LOCATIONS[0]] * 6 and colours[6] == draw.LOCATIONS[1]
    assert words(ax)[:4] == ["0", "1", "2", "0"] and words(ax)[4] == "3"  # three channels, then the row's number
    assert "0 rows come from one location each" in draw.draw_rows(panel(), origin.view(8, 3), 4, title="view")


def test_spikes_count_every_number_in_the_limits() -> None:
    ax = panel()
    values = {"a": torch.tensor([0.15, 0.15, 0.95]), "b": torch.full((2, 5), 0.55)}
    alt = draw.plot_spikes(ax, values, "p", limits=(0, 1), bins=10)
    heights = [patch.get_height() for patch in ax.patches]
    assert heights[:10] == [0, 2, 0, 0, 0, 0, 0, 0, 0, 1] and heights[15] == 10 and sum(heights) == 13
    assert ax.get_yscale() == "log" and ax.get_xlim() == (0, 1)
    assert "a from 0.15 to 0.95" in alt and "b from 0.55 to 0.55" in alt


def test_start_loss_marks_the_least_point_and_breaks_parts() -> None:
    ax = panel()
    priors = torch.tensor([1e-3, 1e-2, 1e-1])
    losses = {"one": torch.tensor([3.0, 2.0, 5.0]), "of it, a part": torch.tensor([2.0, 1.0, 0.5]),
              "two": torch.tensor([1.0, 4.0, 9.0])}  # fmt: skip
    alt = draw.plot_start_loss(ax, priors, losses, [0.01])
    lines = {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    assert list(lines) == list(losses)
    assert lines["of it, a part"].get_linestyle() == ":" and lines["one"].get_linestyle() == "-"
    assert lines["of it, a part"].get_color() == lines["one"].get_color() != lines["two"].get_color()
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert [round(float(y), 3) for _, y in dots] == [2.0, 1.0]
    assert words(ax) == ["0.01"] and ax.get_xscale() == ax.get_yscale() == "log"
    assert "one is least, 2, at 0.01" in alt and "two is least, 1, at 0.001" in alt and "part" not in alt
