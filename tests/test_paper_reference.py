"""The paper's figures, copied by hand a second time, and the settings that stand for its rows."""

from __future__ import annotations

from typing import Any

import pytest

from focal_tutorial import paper, paper_reference
from focal_tutorial.paper_reference import PaperTable, Rows

# One table a line: the split, then AP AP50 AP75 of every row in the paper's order.
BY_HAND = {
    "TABLE_1A": "minival 0.0 0.0 0.0 10.8 16.0 11.7 30.2 46.7 32.8 31.1 49.4 33.0 30.8 49.7 32.3 28.7 47.4 29.9 "
    "25.1 41.7 26.1",
    "TABLE_1B": "minival 31.1 49.4 33.0 31.4 49.9 33.1 31.9 50.7 33.4 32.9 51.7 35.2 33.7 52.0 36.2 34.0 52.5 36.5 "
    "32.2 49.6 34.8",
    "TABLE_1C": "minival 30.3 49.0 31.8 31.9 50.0 34.0 31.8 49.4 33.7 32.4 52.3 33.9 34.2 53.1 36.5 34.0 52.5 36.5 "
    "33.8 52.1 36.2",
    "TABLE_1D": "minival 31.1 47.2 33.2 31.8 48.8 33.9 30.6 47.0 32.6 32.8 50.3 35.1 31.0 47.4 33.0 27.6 42.0 29.2 "
    "31.1 47.2 33.2 28.3 42.4 30.3 24.0 35.5 25.8 36.0 54.9 38.7",
    "TABLE_1E": "test-dev 30.5 47.8 32.7 32.5 50.9 34.8 34.3 53.2 36.9 35.1 54.2 37.7 35.7 55.0 38.5 31.9 49.5 34.1 "
    "34.4 53.1 36.8 36.0 55.2 38.7 37.1 56.6 39.8 37.8 57.5 40.8",
    "TABLE_3": "minival 31.1 49.4 33.0 34.0 52.5 36.5 33.8 52.7 36.3 33.9 51.8 36.4",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_figures_and_split(name: str) -> None:
    split, *figures = BY_HAND[name].split()
    table: PaperTable = getattr(paper_reference, name)
    assert table.split == split
    assert [r[m] for r in table.rows.values() for m in ("AP", "AP50", "AP75")] == [float(f) for f in figures]


def test_sizes_and_times_of_table_1e() -> None:
    found = paper_reference.TABLE_1E.rows
    assert [r["ms"] for r in found.values()] == [64, 72, 98, 121, 153, 81, 90, 122, 154, 198]
    assert [r["APs"] for r in found.values()] == [11.2, 13.9, 16.2, 18.0, 18.9, 11.6, 14.7, 17.4, 19.1, 20.2]
    assert [r["APm"] for r in found.values()] == [33.8, 35.8, 37.4, 39.3, 38.9, 35.8, 38.5, 39.6, 40.6, 41.1]
    assert [r["APl"] for r in found.values()] == [46.1, 46.7, 47.4, 46.4, 46.3, 48.5, 49.1, 49.7, 49.4, 49.2]


@pytest.mark.parametrize(
    ("rows", "settings", "missing"),
    [
        (paper_reference.TABLE_1A.rows, paper.TABLE_1A, set()),
        (paper_reference.TABLE_1B.rows, paper.TABLE_1B, {"fl_0_1_0_75"}),  # γ = 0.1 is not in our grid
        (paper_reference.TABLE_3.rows, paper.TABLE_3, set()),
    ],
)
def test_rows_have_the_names_of_our_settings(
    rows: Rows, settings: dict[str, dict[str, Any]], missing: set[str]
) -> None:
    assert set(rows) - set(settings) == missing
