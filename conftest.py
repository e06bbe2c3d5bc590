"""What pytest does with notebooks beyond nbval: skip the ones without data, refuse the ones left half-run."""

from __future__ import annotations

import os
import random
import shutil
import urllib.request
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

# One thread a process unless somebody asks for more: small tensors are faster, several can run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")
# Frozen modules make the kernel's debugger warn on stderr, and a new line there fails a notebook cell.
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
# A backend that the shell names would keep notebooks from showing their figures.
os.environ.pop("MPLBACKEND", None)


@cache
def bccd_is_missing() -> str:
    """Why the notebooks on real images cannot run here, or the empty string when they can."""
    from focal_tutorial.data.bccd import ARCHIVE, URL
    from focal_tutorial.data.root import cache_root, data_root

    roots = (data_root(None), cache_root())
    if any((root / "bccd" / "test.json").is_file() or (root / ARCHIVE).is_file() for root in roots):
        return ""
    try:
        urllib.request.urlopen(urllib.request.Request(URL, method="HEAD"), timeout=15).close()
    except OSError:
        return "needs the BCCD images: none in the data root, and no network to download them from"
    return ""


def needs_of(notebook: Any) -> list[str]:
    """The data that a notebook's metadata says it needs: `{"focal_tutorial": {"needs": ["bccd"]}}`."""
    return list(notebook.metadata.get("focal_tutorial", {}).get("needs", []))


def pytest_report_header() -> str | None:
    """The seed of the long mode of the property-based tests (tests/property_helpers.py), to repeat a run with."""
    cases = os.environ.get("FOCAL_TUTORIAL_FUZZ")
    if not cases:
        return None
    seed = os.environ.setdefault("FOCAL_TUTORIAL_FUZZ_SEED", str(random.SystemRandom().randrange(2**32)))
    return f"property-based tests: at least {cases} cases, FOCAL_TUTORIAL_FUZZ_SEED={seed}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tag in getattr(item, "cell", {}).get("metadata", {}).get("tags", []):
            item.keywords[tag] = True  # carried into the report, for the summary below
        notebook = getattr(item.parent, "nb", None)
        if notebook is not None and "bccd" in needs_of(notebook) and bccd_is_missing():
            item.add_marker(pytest.mark.skip(reason=bccd_is_missing()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """nbval passes a cell that was never run, and fails a trailing `;` with a riddle: say both plainly."""
    cell = getattr(item, "cell", None)
    if cell is None or getattr(item, "options", {}).get("skip"):
        return
    source = cell.source.strip()
    if source and cell.execution_count is None:
        pytest.fail("this cell was never run: no execution count (CONTRIBUTING.md, Notebooks)", pytrace=False)
    if source.endswith(";"):
        pytest.fail("this cell ends in `;`, which nbval fails: end a plot with plt.show()", pytrace=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the cells that ran without being compared: each is a place where a change goes unseen."""
    ignored: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        if report.when == "call" and "nbval-ignore-output" in report.keywords:
            notebook, _, cell = report.nodeid.partition("::")
            ignored.setdefault(notebook, []).append(cell.removeprefix("Cell "))
    if ignored:
        terminalreporter.section("notebook cells run but not compared")
        for notebook, cells in ignored.items():
            terminalreporter.write_line(f"{notebook}: cells {', '.join(cells)}")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; tests that use it are marked `needs_browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
