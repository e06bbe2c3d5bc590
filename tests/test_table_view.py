"""Results as rows: spread, best α by validation, differences over common seeds, and the tables that are printed."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from focal_tutorial.table_view import (
    T_95,
    Difference,
    Row,
    best_alpha,
    best_row,
    by_gamma,
    common_seeds,
    comparison_table,
    difference,
    markdown_table,
    paired,
    row,
    rows,
    text_table,
)


def metrics(ap: float, validation: float) -> dict[str, float]:
    return {"AP": ap, "AP50": 2 * ap, "validation_AP": validation}


@pytest.fixture
def result() -> dict[str, Any]:
    """Two α of γ = 2, one with an additional seed, cross entropy, and an OHEM setting without a run of seed 1."""
    settings = {
        "ce": {"title": "CE", "alpha": None, "gamma": 0.0},
        "fl_2_0_5": {"title": "FL, α = 0.5", "alpha": 0.5, "gamma": 2.0},
        "fl_2_0_25": {"title": "FL, α = 0.25", "alpha": 0.25, "gamma": 2.0},
        "ohem": {"title": "OHEM", "alpha": 0.3, "gamma": 0.0, "sampler": {"name": "ohem"}},
    }
    runs = [
        {
            "seed": 0,
            "metrics": {
                "ce": metrics(0.10, 0.1), "fl_2_0_5": metrics(0.30, 0.5), "fl_2_0_25": metrics(0.40, 0.4),
                "ohem": metrics(0.2, 0.2),
            },
            "measured": {"ce": {"milliseconds": 7.5}, "fl_2_0_5": None},
            "diverged": {"ce": None},
        },
        {
            "seed": 1,
            "metrics": {"ce": metrics(0.0, 0.0), "fl_2_0_5": metrics(0.32, 0.5), "fl_2_0_25": metrics(0.40, 0.4)},
            "diverged": {"ce": "the loss is not finite"},
        },
        {"seed": 2, "metrics": {"fl_2_0_25": metrics(0.7, 1.0)}, "measured": {}, "diverged": {}},
    ]  # fmt: skip
    return {"name": "table", "config": {"settings": settings}, "runs": runs}


def test_rows_are_in_points_and_in_the_order_of_the_table(result: dict[str, Any]) -> None:
    ce, half, quarter, ohem = rows(result)
    assert [r.setting for r in (ce, half, quarter, ohem)] == list(result["config"]["settings"])
    assert half.title == "FL, α = 0.5" and (half.n, quarter.n, ohem.n) == (2, 3, 1)
    assert half.values == pytest.approx({0: 30.0, 1: 32.0}) and half.mean == pytest.approx(31.0)
    assert half.sd == pytest.approx(math.sqrt(2)) and ohem.sd is None
    assert str(half) == "31.0 ± 1.4" and str(ohem) == "20.0"
    assert ce.diverged == (1,) and half.diverged == ()
    assert row(result, "fl_2_0_5", "AP50").mean == pytest.approx(62.0)


def test_what_was_measured_keeps_its_unit(result: dict[str, Any]) -> None:
    assert row(result, "ce", "milliseconds").values == {0: 7.5}
    with pytest.raises(KeyError, match="milliseconds of fl_2_0_5"):
        row(result, "fl_2_0_5", "milliseconds")


def test_differences_are_over_common_seeds(result: dict[str, Any]) -> None:
    found = difference(result, "fl_2_0_25", "fl_2_0_5")
    assert found.values == pytest.approx({0: 10.0, 1: 8.0}) and (found.n, found.mean) == (2, pytest.approx(9.0))
    assert found.standard_error == pytest.approx(1.0) and found.margin == pytest.approx(12.706)
    assert not found.clear and str(found) == "+9.0 ± 12.7 ?"
    assert not difference(result, "ohem", "ce").clear and difference(result, "ohem", "ce").sd is None
    other = {**result, "runs": [{**run, "seed": run["seed"] + 10} for run in result["runs"]]}
    with pytest.raises(ValueError, match="no seed in common"):
        paired(row(result, "ce"), row(other, "ce"))


def test_a_difference_is_clear_where_its_interval_leaves_out_zero() -> None:
    values = {seed: 3.0 + (-1) ** seed for seed in range(5)}
    found = Difference(values)
    assert found.margin == pytest.approx(2.776 * statistics.stdev(values.values()) / math.sqrt(5)) and found.clear
    assert Difference({seed: -v for seed, v in values.items()}).clear
    assert str(found) == f"+3.2 ± {found.margin:.1f}"
    many = Difference({seed: 1.0 + 10 * (-1) ** seed for seed in range(30)})  # more seeds than the list has
    assert many.margin == pytest.approx(T_95[-1] * (many.standard_error or 0)) and not many.clear


def test_best_alpha_is_chosen_on_validation_over_the_common_seeds(result: dict[str, Any]) -> None:
    assert by_gamma(result) == {2.0: ["fl_2_0_25", "fl_2_0_5"]}
    assert best_alpha(result) == {2.0: "fl_2_0_5"}  # seed 2 would turn it round
    assert best_alpha(result, "AP") == {2.0: "fl_2_0_25"}


def test_tables() -> None:
    assert text_table(("", "AP"), [("CE", 1.5), ("focal", 10)]) == "        AP\nCE     1.5\nfocal   10"
    assert markdown_table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | ---: |\n| 1 | x |"


def test_comparison_puts_the_paper_beside_ours(result: dict[str, Any]) -> None:
    paper = {"fl_2_0_25": {"AP": 34.0, "AP50": 52.5}}
    lines = comparison_table(paper, result, reference="fl_2_0_25").splitlines()
    assert " ".join(lines[0].split()) == "paper AP paper AP50 our AP our AP50 n AP against FL, α = 0.25"
    assert "34.0" in lines[3] and lines[3].split()[-1] == "3"
    assert "–" in lines[2] and lines[2].endswith("-9.0 ± 12.7 ?")
    short = comparison_table(paper, result, {"fl_2_0_5": "fl_2_0_25"}, metrics=("AP",)).splitlines()
    assert len(short) == 2 and short[1].split()[-5:] == ["34.0", "31.0", "±", "1.4", "2"]


def test_the_best_row_counts_only_seeds_that_all_have() -> None:
    lucky, steady, alone = (
        Row("a", "A", {2: 1.0, 0: 1.0, 5: 90.0}),
        Row("b", "B", {0: 2.0, 2: 2.0}),
        Row("c", "C", {7: 3.0}),
    )
    assert common_seeds(lucky, steady) == [2, 0] and common_seeds(lucky, alone) == []
    assert best_row([lucky, steady]) is steady and best_row([steady, Row("d", "D", steady.values)]) is steady
    with pytest.raises(ValueError, match="a, c have no seed in common"):
        best_row([lucky, alone])
