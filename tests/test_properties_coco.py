"""Properties of the COCO reader: any JSON is read or refused, and what is read is what a plain loop would keep."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import box, coco, picture
from hypothesis import example
from hypothesis import strategies as st
from property_helpers import REFUSED, attempt, fuzz
from pycocotools.coco import COCO

from focal_tutorial import cli
from focal_tutorial.data import CocoDataset, check_images, count_problems, read_coco
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import evaluate_coco
from focal_tutorial.imbalance import imbalance_report

HUGE = 10**400
INTEGERS = st.integers(-3, 50) | st.sampled_from([0, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), HUGE, -HUGE])
NUMBERS = INTEGERS | st.floats() | st.floats(-10, 60) | st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 1e-300])
TEXT = st.text(max_size=5) | st.sampled_from(
    ["7", "a.png", "1e5", "\ud800", "x\ny", "\x1b[31m", "..", "/", "a" * 300, "../images/a.png", "ä.png", "\0", "NaN"]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
BOX = st.lists(NUMBERS, min_size=4, max_size=4) | JSON
FIELDS = {
    "images": ["id", "file_name", "height", "width"],
    "annotations": ["id", "image_id", "category_id", "bbox", "iscrowd", "area"],
    "categories": ["id", "name"],
    "info": ["problems"],
}
PLACES = [(key, row, field) for key, names in FIELDS.items() for row in (0, 1, None) for field in (None, *names)]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder with the images a.png and b.png of `coco()` in `images`."""
    with tempfile.TemporaryDirectory() as name:
        for i, file in enumerate(("a.png", "b.png")):
            picture(Path(name, "images", file), seed=i)
        yield Path(name)


def opened(home: Path, text: str | bytes) -> CocoDataset:
    path = home / "annotations.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return CocoDataset(home / "images", path)


def is_sound(dataset: CocoDataset) -> None:
    """What comes after reading: items, pycocotools, the report, the problems as lines."""
    for index in range(len(dataset)):
        image, target = dataset[index]
        boxes, labels = target["boxes"], target["labels"]
        assert image.shape[1:] == dataset.size(index) and len(boxes) == len(labels)
        assert ((boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2])).all()
        assert (boxes <= torch.tensor([image.shape[2], image.shape[1]] * 2)).all()
        assert ((labels >= 0) & (labels < len(dataset.class_names))).all()
    content = dataset.coco_dict()
    ground = COCO()
    ground.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        ground.createIndex()
    assert len(ground.anns) == len(content["annotations"]), "annotation ids repeat"
    assert len(set(dataset.image_ids)) == len(dataset) and len(set(dataset.class_names)) == len(dataset.category_ids)
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in content["annotations"]
    ]
    metrics = evaluate_coco(content, results)
    assert metrics["AP"] is None or 0 <= metrics["AP"] <= 1
    json.loads(json.dumps(content))
    assert sum(count_problems(dataset.problems).values()) == len(dataset.problems)
    for problem in dataset.problems:
        str(problem).encode()
        assert str(problem).isprintable() and len(str(problem)) < 2000, repr(str(problem))


@fuzz("COCO: any value anywhere", changes=st.lists(st.tuples(st.sampled_from(PLACES), BOX), min_size=1, max_size=3))
@example(changes=[(("annotations", 0, "id"), HUGE)])
@example(changes=[(("annotations", 0, "iscrowd"), 256)])
@example(changes=[(("annotations", 0, "area"), True)])
@example(changes=[(("info", None, "problems"), [{"file": 1, "id": [], "kind": [], "detail": {}}])])
@example(changes=[(("info", None, "problems"), [{"file": "a", "id": None, "kind": [], "detail": "b"}])])
@example(changes=[(("images", 0, "file_name"), "a" * 300)])
@example(changes=[(("images", 0, "file_name"), "x\ny")])
@example(changes=[(("categories", 0, "name"), "\ud800")])
def test_any_value_anywhere_is_read_or_refused(changes: Any):
    content: dict[str, Any] = {**coco(), "info": {}}
    for (key, row, field), value in changes:
        part = content[key] if row is None or not isinstance(content[key], list) else (content[key] + [{}, {}])[row]
        if field is None:
            content[key] = value if row is None or not isinstance(content[key], list) else [value, *content[key][1:]]
        elif isinstance(part, dict):
            part[field] = value
    with folder() as home:
        dataset = attempt(lambda: opened(home, json.dumps(content)), "annotations.json")
        if dataset is not REFUSED:
            is_sound(dataset)


KEYS = ["image_id", "category_id"]
SOUND = st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(1, 12), st.integers(1, 12)).map(list)
STRANGE = st.lists(st.floats(-20, 60) | st.integers(-5, 45) | st.just(math.nan), min_size=4, max_size=4)
ENTRY = st.fixed_dictionaries(
    {
        "bbox": SOUND | STRANGE, "image_id": st.sampled_from([7, 7, 3, 3, 8, "7", True]),
        "category_id": st.sampled_from([2, 9, 2, 9, 1, 2.0]),
    },
    optional={"id": st.integers(0, 5), "iscrowd": st.sampled_from([0, 0, 1]), "area": NUMBERS},
).flatmap(lambda e: st.just(e) | st.sampled_from(KEYS).map(lambda k: {**e, k: None}))  # fmt: skip


@fuzz("COCO: records against an oracle", entries=st.lists(ENTRY, max_size=8), swap=st.booleans())
def test_what_is_kept_is_what_a_loop_keeps(entries: list[Any], swap: bool):
    """Missing keys, wrong types, dangling and repeated ids, boxes of any kind: the usable ones, clipped, in order."""
    wanted: dict[int, list[Any]] = {7: [], 3: []}
    dropped = 0
    for entry in entries:
        x, y, w, h = entry["bbox"]
        clipped = (
            [max(x, 0), max(y, 0), min(x + w, 40), min(y + h, 30)] if not any(map(math.isnan, (x, y, w, h))) else []
        )
        usable = type(entry.get("image_id")) is int and entry["image_id"] in wanted
        usable = usable and type(entry.get("category_id")) is int and entry["category_id"] in (2, 9)
        usable = usable and bool(clipped) and w > 0 and h > 0
        if usable:
            small = torch.tensor(clipped, dtype=torch.float64).float().tolist()  # a box may vanish in float32
            usable = small[2] > small[0] and small[3] > small[1]
        if usable:
            wanted[entry["image_id"]].append((small, {2: 0, 9: 1}[entry["category_id"]], entry))
        dropped += not usable
    kept = [row for rows in wanted.values() for row in rows]
    corners = [v for _, _, e in kept for v in (e["bbox"][0] + e["bbox"][2], e["bbox"][1] + e["bbox"][3])]
    fractions = any(v % 1 for _, _, e in kept for v in e["bbox"])
    normalised = bool(kept) and max(corners) <= 1 and fractions
    content = coco(annotations=entries)
    if swap:
        content["images"].reverse()
    with folder() as home:
        dataset = attempt(lambda: opened(home, json.dumps(content)), "annotations.json", valid=not normalised)
        if dataset is REFUSED:
            return
        for index, image_id in enumerate(dataset.image_ids):
            boxes, labels = dataset.boxes_and_labels(index)
            plain = [row for row in wanted[image_id] if not row[2].get("iscrowd")]
            assert boxes.tolist() == [row[0] for row in plain] and labels.tolist() == [row[1] for row in plain]
        assert [a["bbox"] for a in dataset.coco_dict()["annotations"]] == [
            row[2]["bbox"] for image_id in dataset.image_ids for row in wanted[image_id]
        ]
        assert sum("dropped" in problem.detail for problem in dataset.problems) == dropped
        truth = dataset.coco_dict()
        found = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in truth["annotations"]]
        assert evaluate_coco(truth, found)["AP"] in (None, pytest.approx(1.0))  # the truth is all right
        is_sound(dataset)


WHOLE = json.dumps(coco(), indent=1).encode()


@fuzz(
    "COCO: broken bytes",
    cuts=st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 30), st.binary(max_size=4)), max_size=3),
    nesting=st.sampled_from([0, 0, 0, 100, 900, 950, 980, 990, 100_000]) | st.integers(900, 1000),
    digits=st.sampled_from([1, 1, 1, 400, 5000]),
)
@example(cuts=[], nesting=0, digits=5000)
@example(cuts=[(0, 0, b"\xef\xbb\xbf")], nesting=0, digits=1)
def test_broken_bytes_are_read_or_refused(cuts: Any, nesting: int, digits: int):
    """Cut, overwritten, deeply nested files, and numbers of thousands of digits."""
    data = WHOLE
    if nesting:
        data = data.replace(b'"name": "cat"', b'"name": ' + b"[" * nesting + b"]" * nesting)
    data = data.replace(b'"area": 1.0', b'"area": ' + b"9" * digits)
    for start, length, new in cuts:
        data = data[:start] + new + data[start + length :]
    with folder() as home:
        dataset = attempt(lambda: opened(home, data), "annotations.json")
        if dataset is not REFUSED:
            is_sound(dataset)


NAMES = st.text(min_size=1, max_size=8) | st.sampled_from(
    [
        "a.png", "./a.png", "../images/a.png", "..", ".", "/", "pipe", "sub", "../secret.png", "a" * 256 + ".png",
        "\ud83d", "a.png/", "/dev/zero", "/dev/stdin", "~/a.png", "a.png\n", "{0}", "images\\a.png", "loop", "text",
    ]
)  # fmt: skip


@fuzz("COCO: file names", names=st.lists(NAMES, min_size=1, max_size=3))
@example(names=["pipe"])
@example(names=["/dev/zero"])
@example(names=["a" * 256 + ".png"])
def test_a_file_name_reads_an_image_or_is_a_problem(names: list[str]):
    """Pipes, devices, folders, links in a circle, names that no file system takes; nothing is written."""
    images = [{"id": i, "file_name": name, "height": 30, "width": 40} for i, name in enumerate([*names, "b.png"])]
    with folder() as home:
        (home / "images" / "sub").mkdir()
        (home / "images" / "text").write_text("no image")
        (home / "images" / "loop").symlink_to("loop")
        os.mkfifo(home / "images" / "pipe")
        picture(home / "secret.png", seed=5)
        dataset = opened(home, json.dumps(coco(images=images, annotations=[])))
        usable = {Path(name) for name in ("a.png", "b.png", "../images/a.png", "../secret.png")}
        assert [i["file_name"] for i in dataset.data.images] == [
            n["file_name"] for n in images if Path(n["file_name"]) in usable
        ]
        assert len(dataset.problems) == len(images) - len(dataset)
        is_sound(dataset)
        assert check_images(dataset.data, home / "images") == []


@fuzz(
    "COCO: evaluation",
    truth=st.lists(ENTRY | JSON, max_size=4),
    found=st.lists(st.fixed_dictionaries({
        "image_id": st.sampled_from([7, 3, 8]) | JSON, "category_id": st.sampled_from([2, 9]) | JSON,
        "bbox": st.lists(st.floats(-20, 60), min_size=4, max_size=4) | BOX, "score": st.floats(0, 1) | JSON,
    }) | JSON, max_size=4),
    lists=st.dictionaries(st.sampled_from(["images", "categories"]), JSON | st.lists(JSON, max_size=2), max_size=1),
)  # fmt: skip
@example(truth=[box(1, [HUGE, 0, 1, 1])], found=[], lists={})
@example(truth=[box(1, [1, 1, 9, 9])], found=[], lists={"categories": [{"id": 2, "name": "a"}, {"id": "b"}]})
@example(truth=[], found=[], lists={"categories": [{"id": 2, "name": "a"}, {"id": 3, "name": "a"}]})
@example(truth=[box(1, [0, 0, 1, 1], iscrowd="yes")], found=[], lists={})
def test_evaluation_is_a_number_or_a_refusal(truth: list[Any], found: list[Any], lists: dict[str, Any]):
    content = coco(annotations=truth, **lists)
    metrics = attempt(lambda: evaluate_coco(content, found), "results", "annotations")
    if metrics is not REFUSED:
        values = [v for v in metrics.values() if isinstance(v, float)]
        assert all(0 <= v <= 1 for v in values)
        assert len(metrics["per_class"]) == len({c["id"] for c in content["categories"]})


@fuzz(
    "COCO: inspect",
    changes=st.lists(st.tuples(st.sampled_from(PLACES), BOX), min_size=1, max_size=2),
    names=st.tuples(TEXT, TEXT),
)
@example(changes=[], names=("\ud800", "x\ny"))
def test_inspect_ends_in_a_report_or_in_one_line(changes: Any, names: tuple[str, str]):
    content: dict[str, Any] = {**coco(), "info": {}}
    content["categories"] = [{"id": 9, "name": names[0]}, {"id": 2, "name": names[1]}]
    for (key, row, field), value in changes:
        if row is not None and isinstance(content[key], list) and field is not None:
            content[key][row % len(content[key])][field] = value
        elif row is None and field is None:
            content[key] = value
    with folder() as home:
        path = home / "annotations.json"
        path.write_text(json.dumps(content))
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.run(["inspect", str(home / "images"), str(path)])
        for stream in (out, err):
            stream.flush()
        said, wrong = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
        if status == 0:
            assert "problem" in said or "boxes" in said
            assert imbalance_report(read_coco(path, home / "images")).images >= 1
        else:
            assert status == 2 and wrong.startswith("error: ") and wrong.count("\n") == 1 and str(path) in wrong, wrong
            attempt(lambda: _raise(wrong), "annotations.json")


def _raise(text: str) -> None:
    raise InputError(text.strip())
