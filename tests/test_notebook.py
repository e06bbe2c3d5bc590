"""The notebooks' helper: glue writes myst_nb's own record, setup repeats itself."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch

from focal_tutorial import notebook


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    """`setup` changes the whole process: other tests must not notice."""
    threads, options = torch.get_num_threads(), np.get_printoptions()
    with mpl.rc_context(), warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    torch.set_printoptions(profile="default")
    np.set_printoptions(**options)


def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: calls.append((data, how)))
    return calls


@pytest.mark.parametrize("value", [0.25, 7, "tiny", True])
def test_glue_is_the_record_of_myst_nb(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from myst_nb.ext import glue as theirs

    calls = captured(monkeypatch)
    notebook.glue("name", value)
    monkeypatch.setattr(theirs, "ipy_display", lambda data, **how: calls.append((data, how)))
    theirs.glue("name", value, display=False)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_glue_unwraps_arrays_of_one(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = captured(monkeypatch)
    notebook.glue("x", value)
    assert calls[0][0] == {"application/papermill.record/text/plain": "0.5"}


def test_setup_repeats_random_numbers() -> None:
    def draw() -> tuple[float, float, float]:
        notebook.setup(threads=1, seed=3)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    assert draw() == draw()
    assert torch.get_num_threads() == 1
    assert mpl.rcParams["svg.hashsalt"] == "focal-tutorial"


def test_setup_refuses_no_threads() -> None:
    with pytest.raises(ValueError, match="threads"):
        notebook.setup(threads=0)
