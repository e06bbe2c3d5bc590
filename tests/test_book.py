"""The book as source: notebooks run in order, alt text, no machine paths, toc, citations, numbers, settings."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.md"))
RESULTS = sorted((ROOT / "book" / "results").glob("*.json"))
IGNORED_SHARE = 0.25  # of a notebook's code cells may go uncompared: training logs and timings

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@cache
def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]


def toc_files() -> list[str]:
    """Every page of _toc.yml, without its ending."""
    found = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend(value for key, value in node.items() if key in ("root", "file"))
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                walk(child)

    walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    return found


def prose(path: Path) -> str:
    """The Markdown of a page, or of a notebook's text cells and captions."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    parts = []
    for cell in read(path).cells:
        caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
        parts.append(cell.source if cell.cell_type == "markdown" else caption)
    return "\n\n".join(parts)


def load_extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# ---- notebooks -------------------------------------------------------------------------------------------------


def ran_in_order(cells: list[Any]) -> list[str]:
    """What is wrong with the way these code cells were run."""
    counts = [cell.execution_count for cell in cells]
    problems = [] if counts == list(range(1, len(cells) + 1)) else [f"execution counts are {counts}"]
    for cell in cells:
        if "raises-exception" not in cell.metadata.get("tags", []):  # a cell may show an error on purpose
            problems += [f"stored error {out.ename}" for out in cell.outputs if out.output_type == "error"]
    return problems


@each_notebook
def test_every_cell_ran_in_order_without_error(path: Path) -> None:
    assert ran_in_order(code_cells(path)) == []


def test_the_order_check_sees_a_skipped_and_a_failed_cell() -> None:
    cell = nbformat.v4.new_code_cell
    good = [cell("a", execution_count=1), cell("b", execution_count=2)]
    assert ran_in_order(good) == []
    assert ran_in_order([good[1], good[0]])
    assert ran_in_order([good[0], cell("b", execution_count=None)])
    failed = nbformat.v4.new_output("error", ename="NameError", evalue="", traceback=[])
    assert ran_in_order([cell("a", execution_count=1, outputs=[failed])]) == ["stored error NameError"]
    meant = {"tags": ["raises-exception"]}
    assert ran_in_order([cell("a", execution_count=1, outputs=[failed], metadata=meant)]) == []
    assert ran_in_order([cell("a", execution_count=2, outputs=[failed], metadata=meant)]), "nor is its place free"


@each_notebook
def test_ignored_cells_are_few_and_marked_by_tag(path: Path) -> None:
    cells = code_cells(path)
    ignored = [cell for cell in cells if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    print(f"{path.name}: {len(ignored)} of {len(cells)} cells not compared: {[c.execution_count for c in ignored]}")
    assert len(ignored) <= IGNORED_SHARE * len(cells)
    for cell in cells:
        assert "nbval-skip" not in cell.metadata.get("tags", []), "a skipped cell proves nothing"
        assert not re.search(r"NBVAL_\w+", cell.source), "mark cells by tag, not by a comment the reader sees"


def without_alt(cells: list[Any]) -> list[int]:
    """The cells (by execution count) that show a picture and do not say what it shows."""
    found = []
    for cell in cells:
        data = [out.get("data", {}) for out in cell.outputs]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if any(kind.startswith("image/") for kinds in data for kind in kinds) and len(alt.strip()) <= 20:
            found.append(cell.execution_count)
        for html in (kinds.get("text/html", "") for kinds in data):
            if any(not re.search(r'alt="[^"]{20,}"', tag) for tag in re.findall(r"<img[^>]*>", html)):
                found.append(cell.execution_count)
    return found


@each_notebook
def test_every_image_has_alt_text(path: Path) -> None:
    assert without_alt(code_cells(path)) == [], "mystnb: image: alt: says what the picture shows"


def test_the_alt_text_check_sees_a_bare_picture() -> None:
    def cell(data: dict[str, str], alt: str = "") -> Any:
        out = nbformat.v4.new_output("display_data", data=data)
        metadata = {"mystnb": {"image": {"alt": alt}}}
        return nbformat.v4.new_code_cell("plot()", execution_count=7, outputs=[out], metadata=metadata)

    assert without_alt([cell({"image/png": ""}, "Two curves that fall from left to right")]) == []
    assert without_alt([cell({"image/png": ""})]) == [7]
    assert without_alt([cell({"image/svg+xml": ""}, "plot")]) == [7]
    assert without_alt([cell({"text/html": '<p><img src="data:,"></p>'})]) == [7]
    assert without_alt([cell({"text/html": "<table></table>"})]) == []


@each_notebook
def test_notebook_is_clean(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert "execution" not in cell.metadata, "run it with .ci/execute.py: no timings in the file"
        for out in cell.get("outputs", []):
            assert not (out.output_type == "stream" and out.name == "stderr"), "a warning on stderr"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_images_in_pages_have_alt_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"!\[\s*\]\(", text)
    for block in re.findall(r"```\{(?:figure|image)\}.*?```", text, re.DOTALL):
        assert re.search(r":alt: \S.{20,}", block), block


@pytest.mark.parametrize(
    "path",
    [*NOTEBOOKS, *PAGES, *RESULTS, ROOT / "README.md", ROOT / "requirements.txt", ROOT / "_config.yml"],
    ids=lambda path: path.name,
)
def test_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":  # a picture's base64 may spell anything
        text = re.sub(r'"image/(?:png|jpeg)": "[^"]*"', "", text)
    found = re.search(r"/(?:home|root|Users|work|tmp|var|private|mnt)/[\w.-]+|[A-Z]:\\\\?Users|file://", text)
    assert found is None, found


# ---- table of contents, citations --------------------------------------------------------------------------------


def test_toc_and_files_agree() -> None:
    listed = toc_files()
    assert len(listed) == len(set(listed))
    for name in listed:
        assert any((ROOT / f"{name}{ending}").is_file() for ending in (".md", ".ipynb")), f"{name} is missing"
    unlisted = {str(p.relative_to(ROOT).with_suffix("")) for p in [*NOTEBOOKS, *PAGES]} - set(listed)
    assert not unlisted, "every notebook and page is in _toc.yml"


def test_introduction_points_to_every_chapter() -> None:
    text = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert path.stem in text, f"book/intro.md does not lead to {path.name}"


def test_citations_exist_and_keys_are_unique() -> None:
    keys = re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.M)
    assert len(keys) == len(set(keys))
    for path in [*PAGES, *NOTEBOOKS]:
        for cited in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", prose(path)):
            for key in cited.split(","):
                assert key.strip() in keys, f"{path.name} cites {key.strip()}"


# ---- numbers in prose ----------------------------------------------------------------------------------------------

# What may stand in the text as it is: settings and definitions, not measurements. Each with its reason.
ALLOWED_EVERYWHERE = {
    "0.5": "IoU threshold of a definition, and the even prior",
    "0.4": "IoU threshold of a definition",
    "0.50": "first IoU threshold of COCO's AP",
    "0.95": "last IoU threshold of COCO's AP",
    "0.25": "the paper's alpha",
    "0.75": "alpha of balanced cross entropy in the paper; COCO's strict IoU",
    "0.01": "the paper's prior; its learning rate",
    "0.05": "the paper's score threshold",
    "0.9": "momentum of the paper's recipe; COCO-style recall grid",
    "0.1": "loss of an easy background in the article's example; step of the paper's learning rate",
    "50%": "a half",
    "100%": "all",
}
VERSION = re.compile(r"\b(?:Python|torch|torchvision|PyTorch|CUDA|CC BY|Jupyter Book)[ -]?[\d.]+", re.I)
NOT_PROSE = re.compile(
    r"""
    ^(```+|~~~+|:::+)\{(?:code|eval-rst|bibliography|figure|image|math|literalinclude|code-cell).*?^\1\s*$
    | ^```.*?^```\s*$            # code
    | ^<!--\s*from\ the\ paper.*?^<!--\s*end\s*-->   # a table of the paper, said to be one
    | \$\$.*?\$\$ | \$[^$\n]+\$  # mathematics
    | \{[\w:-]+\}`[^`]*`         # roles: glue, result, cite, eq
    | `+[^`]+`+                  # code in the line
    | \]\([^)]*\) | <[^>\s]+>    # addresses
    | arXiv:[\d.]+ | doi:\S+
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
MEASURED = re.compile(
    r"(?<![\w.,])\d[\d,]*\.\d+(?:\s?%|\s(?=per\s?cent))?(?!\.?\d)|(?<![\w.])\d+\s?(?:%|(?=per\s?cent))|(?<![\w.])\.\d+\b"
)


def bare_numbers(text: str, allowed: dict[str, str]) -> Iterator[str]:
    """Decimals and percentages that stand in the prose and come from nowhere."""
    text = VERSION.sub(" ", NOT_PROSE.sub(" ", text))
    for match in MEASURED.finditer(text):
        number = re.sub(r"\s", "", match[0])
        if ("0" + number if number.startswith(".") else number) not in allowed:
            yield f"…{text[max(0, match.start() - 40) : match.end() + 15]}…".replace("\n", " ")


@pytest.mark.parametrize("path", [p for p in [*PAGES, *NOTEBOOKS] if p.stem != "changelog"], ids=lambda path: path.stem)
def test_no_bare_measured_number(path: Path) -> None:
    """Use {glue:text} or {result}; a setting goes to the allow list, or to the notebook's own, with its reason."""
    own = {}
    if path.suffix == ".ipynb":
        own = read(path).metadata.get("focal_tutorial", {}).get("allowed_numbers", {})
    assert list(bare_numbers(prose(path), {**ALLOWED_EVERYWHERE, **own})) == []


def test_the_number_check_sees_numbers() -> None:
    assert len(list(bare_numbers("AP is 50.3 and recall 84 %, time 1.7 s.", {}))) == 3
    assert len(list(bare_numbers("AP is .503, recall 84 per cent or 84.1 percent, of 1,234.5", {}))) == 4
    assert list(bare_numbers("weight .25, see 2.", {"0.25": "setting"})) == []
    for harmless in (
        "alpha is $0.37$ and `x = 1.25`",
        "```python\ny = 3.14\n```",
        "{glue:text}`ap:.1f` and {result}`bccd::summary.AP.mean*100:.1f`",
        "Python 3.11, torch 2.6",
        "<!-- from the paper: Table 1a -->\n| .75 | 31.1 |\n<!-- end -->",
        "Table 1.",
        "one, e.g. 3 of 4.",
    ):
        assert list(bare_numbers(harmless, {})) == [], harmless


# ---- results, figure, settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_their_provenance(path: Path) -> None:
    from focal_tutorial.results import check_result

    result = json.loads(path.read_text(encoding="utf-8"))
    assert check_result(result) == []
    assert result["name"] == path.stem


def test_result_role_formats_and_refuses(tmp_path: Path) -> None:
    role = load_extension("results_role")
    (tmp_path / "run.json").write_text(json.dumps({"summary": {"AP": {"mean": 0.5034}}, "runs": [{"seed": 7}]}))
    assert role.look_up("run::summary.AP.mean*100:.1f", tmp_path) == "50.3"
    assert role.look_up("run::runs.0.seed", tmp_path) == "7"
    for wrong in ("run::summary.AP.median:.1f", "other::x", "run", "run::summary.AP.mean:q"):
        with pytest.raises((ValueError, OSError, LookupError)):
            role.look_up(wrong, tmp_path)


def test_story_figure_is_drawn_by_its_script_from_the_focal_loss() -> None:
    import torch

    from focal_tutorial import sigmoid_focal_loss

    story = load_extension("story_figure")
    assert (ROOT / "book" / "_static" / "story.svg").read_text(encoding="utf-8") == story.draw()
    losses = torch.tensor([story.HARD_LOSS, *[story.EASY_LOSS] * story.BACKGROUNDS], dtype=torch.float64)
    logits = -torch.expm1(losses).log()  # the logit at which a positive has this cross entropy
    for gamma in (0.0, 2.0):
        loss = sigmoid_focal_loss(logits, torch.ones_like(logits), alpha=-1, gamma=gamma)
        assert float(loss[0] / loss.sum()) == pytest.approx(story.object_share(gamma), rel=1e-6)


class Options:
    """What the repository extension sees of Sphinx's configuration."""

    def __init__(self, url: str) -> None:
        self.html_theme_options: dict[str, Any] = {"repository_url": url}
        self.myst_substitutions: dict[str, str] = {}


class App:
    def __init__(self) -> None:
        self.tags: set[str] = set()


@pytest.mark.parametrize("url", ["", "https://github.com/someone/focal", "https://github.com/someone/focal.git"])
def test_one_setting_switches_all_links(url: str) -> None:
    app, config = App(), Options(url)
    load_extension("repository").switch_on(app, config)
    options, given = config.html_theme_options, bool(url)
    for button in ("use_repository_button", "use_edit_page_button", "use_issues_button"):
        assert options[button] is given
    assert bool(options["launch_buttons"]) is given
    assert ("repository" in app.tags) is given
    assert options["repository_url"] == ("https://github.com/someone/focal" if given else "")


def test_a_wrong_repository_address_stops_the_build() -> None:
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match="repository url"):
        load_extension("repository").switch_on(App(), Options("https://example.org/focal"))


def test_configuration_leaves_execution_to_nbval() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["execute"]["execute_notebooks"] == "off"


def test_docstring_translation() -> None:
    translate = load_extension("plain_docstrings").translate
    assert translate("`x` and ``y`` and :func:`z`, |d|, `box`es") == (
        "``x`` and ``y`` and :func:`z`, \\|d\\|, ``box``\\ es"
    )


def test_requirements_are_exact_and_complete() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins[-1] == "-e ."
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; sys_platform == \"linux\")?", pin) for pin in pins[:-1]), pins
    names = {pin.split("==")[0] for pin in pins[:-1]}
    needed = {"torch", "torchvision", "jupyter-book", "nbval", "pytest", "pycocotools", "sphinx-mathjax-offline"}
    assert needed <= names
