"""The two modes of the property-based tests: that CI runs as many cases as promised, and what counts as a refusal."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import property_helpers
import pytest
from hypothesis import strategies as st
from property_helpers import CASES, REFUSED, attempt, cases_of, fuzz

FILES = sorted(path.stem for path in Path(__file__).parent.glob("test_properties_*.py"))


def test_ci_runs_over_2000_cases():
    """Every target of the list is tested by one property, and a property that ran on fewer cases fails (below)."""
    targets = []
    for name in FILES:
        properties = vars(importlib.import_module(name)).values()
        targets += [p.target for p in properties if getattr(p, "__module__", "") == name and hasattr(p, "target")]
    assert sorted(targets) == sorted(CASES) and sum(CASES.values()) >= 2000


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setitem(CASES, "trial", 20)
    monkeypatch.setattr(property_helpers, "RECORDS", {})
    return "trial"


def test_cases_are_counted(target):
    seen = []

    @fuzz(target, x=st.integers())
    def many(x):
        seen.append(x)
        attempt(lambda: int(f"{x}z") if x % 2 else x, "invalid literal")

    many()
    record = property_helpers.RECORDS[target]
    assert record["cases"] == len(seen) >= cases_of(target)
    assert record["refused"] == sum(x % 2 for x in seen) and record["accepted"] == sum(1 - x % 2 for x in seen)


def test_too_few_cases_fail(target):
    @fuzz(target, x=st.booleans())
    def few(x):
        pass

    with pytest.raises(AssertionError, match="trial: 2 cases only"):
        few()


def test_a_failure_is_one_and_is_recorded(target):
    @fuzz(target, x=st.integers(0, 100))
    def wrong(x):
        assert x < 50

    with pytest.raises(AssertionError):
        wrong()
    assert property_helpers.RECORDS[target]["failures"] == 1


def test_a_hang_is_a_failure(target, monkeypatch):
    monkeypatch.setattr(property_helpers, "HANG", 0.2)

    @fuzz(target, x=st.integers())
    def endless(x):
        while True:
            pass

    with pytest.raises(AssertionError, match=r"no answer after 0\.2 s"):
        endless()


def test_a_refusal_names_the_argument_on_one_line(target, monkeypatch):
    def refuse(error):
        raise error

    monkeypatch.setattr(property_helpers, "_VERDICTS", [[]])
    assert attempt(lambda: refuse(ValueError("size: 2 wanted")), "size") is REFUSED
    assert attempt(lambda: SimpleNamespace(a=1).a, "size", valid=True) == 1
    for error, valid, words in (
        (ValueError("size: 2 wanted"), True, "good input refused"),
        (ValueError("cannot unpack"), None, "names none of"),
        (TypeError("size:\nwanted"), None, "not one line"),
    ):
        with pytest.raises(AssertionError, match=words):
            attempt(lambda error=error: refuse(error), "size", valid=valid)
    with pytest.raises(AssertionError, match="bad input accepted"):
        attempt(lambda: 1, "size", valid=False)
    with pytest.raises(RuntimeError):
        attempt(lambda: refuse(RuntimeError("size")), "size")
