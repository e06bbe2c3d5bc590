"""A one-page book with this book's configuration: links once an address is given, numbers, failures that fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from focal_tutorial import notebook

ROOT = Path(__file__).resolve().parents[1]
URL = "https://github.com/someone/focal"
TEXT = """# A page

Glued: {glue:text}`share:.0%`. Measured: {result}`run::summary.AP.mean*100:.1f`. Cited: {cite:t}`lin2017focal`.

$$ p_t = 1 $$ (eq-one)

```{bibliography}
```
"""


def write_book(folder: Path, text: str, url: str) -> None:
    """This book's configuration, helpers and assets around one notebook of two cells."""
    shutil.copytree(ROOT / "book" / "_ext", folder / "book" / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    (folder / "book" / "results").mkdir()
    (folder / "book" / "results" / "run.json").write_text(json.dumps({"summary": {"AP": {"mean": 0.5034}}}))
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["repository"]["url"] = url
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: notebooks/page\n", encoding="utf-8")
    record = {notebook.RECORD + "text/plain": "0.92"}
    mark = {"scrapbook": {"name": "share", "mime_prefix": notebook.RECORD}}
    output = nbformat.v4.new_output("display_data", data=record, metadata=mark)
    cells = [
        nbformat.v4.new_code_cell("glue('share', 0.92)", execution_count=1, outputs=[output]),
        nbformat.v4.new_markdown_cell(text),
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    (folder / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells[::-1], metadata=kernel), folder / "notebooks" / "page.ipynb")


def build(folder: Path, text: str = TEXT, url: str = "") -> tuple[int, str, str]:
    """Exit status, log and HTML of the page."""
    write_book(folder, text, url)
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(folder), "-W", "--keep-going", "-n"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    page = folder / "_build" / "html" / "notebooks" / "page.html"
    return run.returncode, run.stdout + run.stderr, page.read_text(encoding="utf-8") if page.is_file() else ""


def test_links_are_right_once_an_address_is_given(tmp_path: Path) -> None:
    status, log, html = build(tmp_path, url=URL)
    assert status == 0, log
    assert "https://colab.research.google.com/github/someone/focal/blob/main/notebooks/page.ipynb" in html
    assert f"{URL}/edit/main/notebooks/page.ipynb" in html
    assert f"{URL}/issues/new" in html


def test_page_has_numbers_local_mathematics_and_no_links_without_an_address(tmp_path: Path) -> None:
    status, log, html = build(tmp_path)
    assert status == 0, log
    for number in ("92%", "50.3"):
        assert f">{number}<" in html
    others = ("unpkg.com", "cdn.jsdelivr", "sphinx-thebe.js", "explorer.js", "explorer.css")
    for absent in ("launch-buttons", "/edit/", "issues/new", *others):
        assert absent not in html
    static = tmp_path / "_build" / "html" / "_static" / "mathjax"
    assert (static / "tex-chtml.js").is_file()
    assert list(static.glob("output/chtml/fonts/woff-v2/*.woff"))


def test_a_page_with_an_explorer_has_figure_script_and_data(tmp_path: Path) -> None:
    status, log, html = build(tmp_path, TEXT + "\n\n```{explorer} thresholds\n```\n")
    assert status == 0, log
    assert html.count('data-explorer="thresholds"') == 1
    for file in ("explorer.js", "explorer.css", "explorer_cells.jpg"):
        assert f'="../_static/{file}' in html, file
        assert (tmp_path / "_build" / "html" / "_static" / file).is_file()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{glue:text}`missing`", "No key 'missing'"),
        ("{result}`run::summary.missing`", "KeyError('missing')"),
        ("{doc}`nowhere`", "unknown document: 'nowhere'"),
        ("{py:func}`focal_tutorial.nothing`", "reference target not found: focal_tutorial.nothing"),
        ("{cite:p}`nobody2017`", 'could not find bibtex key "nobody2017"'),
        ("```{explorer} nothing\n```", "one of loss, share, thresholds wanted"),
    ],
    ids=["glue", "result", "link", "function", "citation", "explorer"],
)
def test_what_leads_nowhere_fails_the_build(text: str, complaint: str, tmp_path: Path) -> None:
    status, log, _ = build(tmp_path, TEXT + "\n\n" + text)
    assert status != 0
    assert complaint in log
