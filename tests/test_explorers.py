"""The explorers: Python and JavaScript compute the same, and the page says what it shows without JavaScript too.

The comparisons run explorer.js in Debian's chromium and are skipped without one. How the built page behaves (keyboard,
dark mode, narrow screens) is in test_book_browser.py.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from torchvision.ops import batched_nms

from conftest import bccd_is_missing, needs_browser
from focal_tutorial import sigmoid_focal_loss
from focal_tutorial.experiments import BCCD_RECIPES
from focal_tutorial.losses import focal_term, focal_term_derivative
from focal_tutorial.plotting import judge_detections

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "book" / "_static"
KINDS = ("loss", "share", "thresholds")


def extension(name: str) -> ModuleType:
    """A module of book/_ext, found as Sphinx finds it: on the path."""
    folder = str(ROOT / "book" / "_ext")
    if folder not in sys.path:
        sys.path.append(folder)
    return __import__(name)


explorer, figures, explorer_data = (extension(n) for n in ("explorer", "explorer_figures", "explorer_data"))
DATA = figures.load_data()


@pytest.fixture(scope="module")
def script(browser: Any) -> Any:
    """An empty page with explorer.js: evaluate `Explorer.…` on it."""
    page = browser.new_page()
    page.add_script_tag(path=str(STATIC / "explorer.js"))
    return page


def close(a: Any, b: Any, tolerance: float = 1e-9) -> bool:
    """Relative agreement of doubles; below 1e-290 only that both are that small."""
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    return bool(((a - b).abs() <= tolerance * b.abs() + 1e-290).all())


# ---- the same numbers -----------------------------------------------------------------------------------------------

LOGITS = [
    *torch.linspace(-30, 30, 241, dtype=torch.float64).tolist(),
    *(s * v for v in (60, 350, 745, 1e4) for s in (1, -1)),
]
GAMMAS = [0.0, 0.1, 0.5, 1.0, 2.0, 3.7, 5.0]


@needs_browser
@pytest.mark.parametrize(("name", "f"), [("loss", focal_term), ("slope", focal_term_derivative)])
def test_loss_and_gradient_are_the_packages(script: Any, name: str, f: Any) -> None:
    got = script.evaluate(f"([xs, gs]) => gs.map(g => xs.map(x => Explorer.{name}(x, g)))", [LOGITS, GAMMAS])
    x = torch.tensor(LOGITS, dtype=torch.float64)
    assert close(got, [f(x, gamma).tolist() for gamma in GAMMAS])


def test_the_comparison_sees_a_difference() -> None:
    assert close([1.0, 1e-300], [1.0 + 1e-10, 0.0])
    assert not close([1.0], [1.0 + 1e-8])
    assert not close([math.nan], [1.0])


STATES = [
    {"positives": n, "negatives": m, "x_positive": a, "x_negative": b, "gamma": gamma, "alpha": alpha}
    for n, m, a, b, gamma, alpha in itertools.product(
        (1, 37), (10, 200_000), (-10, 0.3, 4.6), (-11.2022, -2.2522), (0, 0.5, 2, 5), (0.05, 0.75, 0.999)
    )
]


def shares_by_the_loss(state: dict[str, float]) -> dict[str, dict[str, list[float]]]:
    """The sums made the long way: the package's loss of every single logit, and its gradient by autograd."""
    n, m = int(state["positives"]), int(state["negatives"])
    settings = {"ce": (0, None), "balanced": (0, state["alpha"])}
    settings |= {"focal": (state["gamma"], None), "both": (state["gamma"], state["alpha"])}
    result: dict[str, dict[str, list[float]]] = {"loss": {}, "slope": {}}
    for name, (gamma, alpha) in settings.items():
        x = torch.tensor([state["x_positive"]] * n + [state["x_negative"]] * m, dtype=torch.float64, requires_grad=True)
        loss = sigmoid_focal_loss(x, torch.tensor([1.0] * n + [0.0] * m, dtype=torch.float64), alpha, gamma)
        loss.sum().backward()
        assert x.grad is not None
        for kind, values in (("loss", loss.detach()), ("slope", x.grad.abs())):
            result[kind][name] = [float(values[:n].sum()), float(values[n:].sum())]
    return result


def flat(shares: dict[str, dict[str, Any]]) -> list[Any]:
    return [list(shares[kind][name]) for kind in ("loss", "slope") for name in ("ce", "balanced", "focal", "both")]


def test_the_static_shares_are_the_losses() -> None:
    for state in (STATES[0], STATES[77], {**STATES[5], "negatives": 1000}):
        assert close(flat(figures.shares(state)), flat(shares_by_the_loss(state)))


@needs_browser
def test_the_moving_shares_are_the_losses(script: Any) -> None:
    got = script.evaluate("states => states.map(Explorer.shares)", STATES)
    for state, shares in zip(STATES, got, strict=True):
        assert close(flat(shares), flat(figures.shares(state))), state


def random_boxes(seed: int, count: int = 120) -> list[list[float]]:
    """Crowded boxes of two classes with falling scores, some of them equal."""
    g = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(count, 2, generator=g) * 60, torch.rand(count, 2, generator=g) * 30 + 1
    scores = (torch.rand(count, generator=g) * 40).round().sort(descending=True).values / 40
    labels = torch.randint(0, 2, (count,), generator=g)
    table = torch.cat([corner, corner + size, labels[:, None].float(), scores[:, None]], 1)
    return [[round(v, 1) for v in row[:4]] + row[4:] for row in table.double().tolist()]


def columns(rows: list[list[float]]) -> dict[str, torch.Tensor]:
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
    found = {"boxes": table[:, :4], "labels": table[:, 4].long()}
    return {**found, "scores": table[:, 5]} if table.shape[1] > 5 else found


@needs_browser
@pytest.mark.parametrize("limit", [0.05, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_suppression_is_torchvisions(script: Any, limit: float) -> None:
    for rows in (DATA["detections"], random_boxes(0), random_boxes(1), []):
        got = script.evaluate("([rows, limit]) => Explorer.suppress(rows, limit)", [rows, limit])
        if not rows:
            assert got == []
            continue
        found = columns(rows)
        expected = batched_nms(found["boxes"], found["scores"], found["labels"], limit)
        assert got == sorted(expected.tolist())  # best first, and equal scores in their order


@needs_browser
def test_right_and_missed_are_those_of_the_package(script: Any) -> None:
    for truth, rows in (
        (DATA["truth"], DATA["detections"][:400]),
        (random_boxes(2, 15), random_boxes(3)),
        (random_boxes(4, 9), []),
    ):
        truth = [row[:5] for row in truth]
        got = script.evaluate("([truth, rows]) => Explorer.judge(truth, rows)", [truth, rows])
        if rows:
            right, seen = judge_detections(columns(truth), columns(rows))
            assert got == {"right": right.tolist(), "seen": seen.tolist()}
            assert right.any() and not right.all()
        else:
            assert got == {"right": [], "seen": [False] * len(truth)}


@needs_browser
@pytest.mark.parametrize("score", [0.05, 0.2, 0.4, 0.5, 0.75, 0.98])
@pytest.mark.parametrize("iou", [0.1, 0.5, 0.9, 1.0])
def test_precision_and_recall_are_those_of_the_package(script: Any, score: float, iou: float) -> None:
    got = script.evaluate("([data, s, i]) => Explorer.detect(data, s, i)", [DATA, score, iou])
    kept, right, seen = figures.detect(DATA, score, iou)
    hits = int(right.sum())
    assert got["rows"] == kept.tolist()
    assert got["above"] == len(got["rows"]) + len(got["removed"])
    assert (got["right"], got["seen"], got["hits"]) == (right.tolist(), seen.tolist(), hits)
    wanted = [hits / len(kept), hits / len(DATA["truth"]), 2 * hits / (len(kept) + len(DATA["truth"]))]
    assert close([got["precision"], got["recall"], got["f1"]], wanted)


VALUES = [
    0.0,
    1,
    2,
    2.5,
    100,
    1000,
    999_400,
    999_600,
    1e6,
    1e-5,
    9.994e-6,
    4.54e-5,
    123_456,
    1e-30,
    7.3e12,
    0.1,
    1 / 3,
    -2.2,
]


@needs_browser
def test_numbers_are_written_the_same_way(script: Any) -> None:
    values = [*VALUES, *(1.37**k for k in range(-60, 60))]
    assert script.evaluate("values => values.map(Explorer.short)", values) == [figures.short(v) for v in values]
    parts = [0, 0.001, 0.0909, 0.5, 0.9994, 0.9995, 0.99999, 1]
    assert script.evaluate("values => values.map(Explorer.percent)", parts) == [figures.percent(v) for v in parts]
    powers = [10 ** (1 + 0.05 * k) for k in range(87)]
    assert script.evaluate("values => values.map(Explorer.roundToTwo)", powers) == [
        explorer.round_to_two(v) for v in powers
    ]


def test_short_numbers() -> None:
    texts = [figures.short(v) for v in (0, 100, 1000, 0.00105, 4.54e-5, 1.2345e-7, 2.5e6)]
    assert texts == ["0", "100", "1,000", "0.00105", "0.0000454", "1.23 × 10⁻⁷", "2.5 × 10⁶"]
    assert [figures.percent(v) for v in (0.0909, 0.9999, 1)] == ["9.09\u00a0%", "> 99.9\u00a0%", "100\u00a0%"]


# ---- what the page holds --------------------------------------------------------------------------------------------


def soup(kind: str) -> Any:
    return BeautifulSoup(explorer.html(kind, "../_static/"), "html.parser")


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_described(kind: str) -> None:
    page = soup(kind)
    assert page.select(".panels > svg")
    for svg in page.select("svg"):
        assert svg["role"] == "img"
        texts = [page.find(id=name).get_text() for name in svg["aria-labelledby"].split()]
        assert len(texts) == 2 and len(texts[0]) > 10 and len(texts[1]) > 80, texts
        assert "<" not in "".join(texts)
    ids = [node["id"] for other in KINDS for node in soup(other).select("[id]")]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_has_a_label_and_waits_for_the_script(kind: str) -> None:
    page = soup(kind)
    form = page.form
    assert form.has_attr("hidden") and form.find("button", type="reset")
    assert page.select_one(".live")["aria-live"] == "polite"
    inputs = form.select("input")
    assert inputs
    for node in inputs:
        label = form.find("label", attrs={"for": node["id"]})
        assert label is not None and label.get_text().strip()
        if node["type"] == "range":
            low, high, step, value = (float(node[key]) for key in ("min", "max", "step", "value"))
            assert low <= value <= high
            assert abs((value - low) / step - round((value - low) / step)) < 1e-6, "the browser would move it to a step"


def test_the_static_captions_say_what_is_known() -> None:
    text = {kind: soup(kind).select_one(".live").get_text() for kind in KINDS}
    assert "At pt = 0.9" in text["loss"] and "100 times smaller" in text["loss"]
    assert "1 object with p = 0.0000454 (cross entropy 10) against 1,000 backgrounds" in text["share"]
    assert "(0.1 each)" in text["share"] and "9.09\u00a0% of the cross entropy and 91.7\u00a0%" in text["share"]
    kept, right, _ = figures.detect(DATA, 0.4, 0.5)
    assert f"NMS leaves {len(kept)}: {int(right.sum())} right" in text["thresholds"]


def test_curves_end_where_the_loss_does() -> None:
    panel = soup("loss").select_one('[data-panel="loss"]')
    first, last = (
        [float(v) for v in point.split()]
        for point in (panel.select_one('[data-mark="ce"]')["d"][1:].split("L")[i] for i in (0, -1))
    )
    assert first == pytest.approx([figures.LEFT + figures.WIDTH * math.exp(-5), figures.TOP], abs=0.01)
    bottom = figures.TOP + figures.HEIGHT
    assert last == pytest.approx([figures.LEFT + figures.WIDTH * 0.9995, bottom * (1 - 0.0005 / 5 / 1.16)], abs=0.02)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@needs_browser
@pytest.mark.parametrize("kind", KINDS)
def test_the_script_starts_with_the_static_figure(kind: str, browser: Any, tmp_path: Path) -> None:
    """What stands in the page before and after explorer.js ran for the first time: the same words and places."""
    for name in ("explorer.js", "explorer.css", "explorer_cells.jpg"):
        shutil.copy(STATIC / name, tmp_path)
    head = '<meta charset="utf-8"><link rel="stylesheet" href="explorer.css"><script defer src="explorer.js"></script>'
    (tmp_path / "page.html").write_text(f"<!doctype html>{head}<body>{explorer.html(kind, '')}", encoding="utf-8")
    seen = []
    for javascript in (False, True):
        page = browser.new_context(java_script_enabled=javascript).new_page()
        page.goto((tmp_path / "page.html").as_uri())
        assert page.locator("form").is_visible() == javascript
        assert page.locator(".panels > svg").first.is_visible()
        html = page.locator(".panels").inner_html() + page.locator(".legend, .live").evaluate_all(
            "ns => ns.map(n => n.innerHTML).join()"
        )
        html = re.sub(r'<path class="removed off"[^>]*>', "", html)  # hidden until asked for
        seen.append((NUMBER.sub("#", html), [float(v) for v in NUMBER.findall(html)]))
        page.context.close()
    (static, places), (moved, other) = seen
    if kind == "loss":  # a hidden entry, with α in it
        static, moved = (re.sub(r'<li class="background off">.*?</li>', "", html) for html in (static, moved))
    assert moved == static
    if kind != "loss":
        assert other == pytest.approx(places, abs=0.011)


# ---- the data -------------------------------------------------------------------------------------------------------


def data_problems(data: dict[str, Any]) -> list[str]:
    """What is wrong with a content of explorer_detections.json."""
    problems = [] if data["schema"] == 1 else ["schema"]
    wide, high, kinds = data["image"]["width"], data["image"]["height"], len(data["classes"])
    for key, length in (("truth", 5), ("detections", 6)):
        for row in data[key]:
            x1, y1, x2, y2, label = row[:5]
            if len(row) != length or not (0 <= x1 < x2 <= wide and 0 <= y1 < y2 <= high and label in range(kinds)):
                problems.append(f"{key}: {row}")
    scores = [row[5] for row in data["detections"]]
    if scores != sorted(scores, reverse=True) or min(scores) < data["provenance"]["score_threshold"]:
        problems.append("scores")
    recipe = {"experiment": "bccd", "profile": "cpu", "seed": explorer_data.SEED, **BCCD_RECIPES["cpu"]}
    if data["provenance"]["recipe"] != json.loads(json.dumps(recipe)):
        problems.append("the recipe has changed since: run book/_ext/explorer_data.py")
    if not re.fullmatch(r"[0-9a-f]{40}(-dirty)?", data["provenance"]["commit"]):
        problems.append("commit")
    return problems


def test_the_data_are_whole_and_say_where_they_come_from(tmp_path: Path) -> None:
    assert data_problems(DATA) == []
    assert "MIT licence" in DATA["credit"] and "bccd" in (ROOT / "book" / "explorers.md").read_text(encoding="utf-8")
    assert (ROOT / DATA["provenance"]["script"]).is_file()
    explorer_data.write(DATA, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == figures.DATA.read_bytes(), "written by the script, not by hand"
    with Image.open(STATIC / DATA["image"]["file"]) as picture:
        assert picture.size == (DATA["image"]["width"], DATA["image"]["height"])
    assert max((STATIC / name).stat().st_size for name in ("explorer_cells.jpg", "explorer_detections.json")) < 60_000


def test_the_data_check_sees_faults() -> None:
    assert data_problems({**DATA, "schema": 2}) == ["schema"]
    assert data_problems({**DATA, "truth": [[5, 5, 4, 9, 0]]}) == ["truth: [5, 5, 4, 9, 0]"]
    assert data_problems({**DATA, "detections": DATA["detections"][::-1]}) == ["scores"]
    stale = {**DATA["provenance"], "recipe": {**DATA["provenance"]["recipe"], "steps": 1}}
    assert len(data_problems({**DATA, "provenance": stale})) == 1


def test_picture_and_truth_are_bccds() -> None:
    if bccd_is_missing():
        pytest.skip(bccd_is_missing())
    from focal_tutorial.data import CocoDataset, prepare_bccd

    paths = prepare_bccd()
    assert (STATIC / DATA["image"]["file"]).read_bytes() == (paths["images"] / DATA["image"]["name"]).read_bytes()
    dataset = CocoDataset(paths["images"], paths["test"])
    index = [entry["file_name"] for entry in dataset.coco_dict()["images"]].index(DATA["image"]["name"])
    boxes, labels = dataset.boxes_and_labels(index)
    assert explorer_data.rows(boxes, labels) == DATA["truth"]
    assert dataset.class_names == DATA["classes"]
