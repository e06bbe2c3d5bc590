"""The guards around nbval, each tried on a notebook that breaks its rule."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]


def run_nbval(folder: Path, cells: list[Any], needs: list[str] | None = None, **environment: str) -> str:
    """The report of pytest with this project's conftest.py on one notebook."""
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = new_notebook(cells=cells, metadata=metadata)
    if needs:
        notebook.metadata["focal_tutorial"] = {"needs": needs}
    nbformat.write(notebook, folder / "chapter.ipynb")
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --nbval --nbval-current-env -rs\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "chapter.ipynb"]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", **environment}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return run.stdout + run.stderr


def cell(source: str, count: int | None, text: str = "") -> Any:
    outputs = [new_output("execute_result", data={"text/plain": text}, execution_count=count)] if text else []
    return new_code_cell(source, execution_count=count, outputs=outputs)


def test_a_sound_notebook_passes(tmp_path: Path) -> None:
    assert "2 passed" in run_nbval(tmp_path, [cell("x = 2", 1), cell("x + 1", 2, "3")])


def test_cells_that_are_not_compared_are_listed(tmp_path: Path) -> None:
    ignored = cell("1 + 1", 2, "3")
    ignored.metadata["tags"] = ["nbval-ignore-output"]
    report = run_nbval(tmp_path, [cell("x = 2", 1), ignored])
    assert "2 passed" in report
    assert "chapter.ipynb: cells 1\n" in report


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (cell("1 + 1", None), "this cell was never run"),
        (cell("1 + 1;", 1), "this cell ends in `;`"),
        (cell("1 + 1", 1, "3"), "Cell outputs differ"),
        (cell("1 / 0", 1), "ZeroDivisionError"),
    ],
    ids=["never-run", "semicolon", "changed-output", "error"],
)
def test_a_broken_cell_fails_and_says_why(broken: Any, complaint: str, tmp_path: Path) -> None:
    report = run_nbval(tmp_path, [broken])
    assert complaint in report
    assert "1 passed" not in report


def test_a_notebook_on_real_images_is_skipped_without_data_and_network(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # the discard port: a proxy that refuses
    offline = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), nowhere)
    offline |= {"FOCAL_TUTORIAL_DATA": str(tmp_path / "none"), "XDG_CACHE_HOME": str(tmp_path), "no_proxy": ""}
    report = run_nbval(tmp_path, [cell("1 / 0", 1)], needs=["bccd"], HOME=str(tmp_path), **offline)
    assert "1 skipped" in report
    assert "needs the BCCD images: none in the data root, and no network" in report


def test_a_notebook_on_real_images_runs_where_the_archive_lies(tmp_path: Path) -> None:
    from focal_tutorial.data.bccd import ARCHIVE

    (tmp_path / ARCHIVE).touch()
    report = run_nbval(tmp_path, [cell("1 + 1", 1, "2")], needs=["bccd"], FOCAL_TUTORIAL_DATA=str(tmp_path))
    assert "1 passed" in report
