"""Properties of the other readers: image files of any bytes, and Pascal VOC annotations of any XML."""

from __future__ import annotations

import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
from hypothesis import example
from hypothesis import strategies as st
from PIL import Image
from property_helpers import REFUSED, attempt, fuzz

from focal_tutorial.data import convert_voc, load_image, read_coco
from focal_tutorial.data.images import image_size
from focal_tutorial.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(stream, kind, **({"exif": exif} if kind in ("JPEG", "WEBP") else {}))
    return stream.getvalue()


WHOLE = {kind: encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}


@pytest.mark.filterwarnings("ignore:.*(Truncated|Tag data|Corrupt EXIF|Metadata):UserWarning")
@fuzz(
    "images: broken bytes",
    kind=st.sampled_from(sorted(WHOLE)),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=6)), max_size=3),
    end=st.none() | st.floats(0, 1),
)
def test_any_bytes_are_an_image_or_refused(kind: str, cuts: Any, end: float | None):
    data = WHOLE[kind]
    for where, length, new in cuts:
        start = int(where * len(data))
        data = data[:start] + new + data[start + length :]
    data = data if end is None else data[: int(end * len(data))]
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, f"image.{kind.lower()}")
        path.write_bytes(data)
        size = attempt(lambda: image_size(path), str(path))
        pixels = attempt(lambda: load_image(path), str(path), valid=True if data == WHOLE[kind] else None)
        if pixels is REFUSED:
            return
        assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3 and pixels.numel()
        assert size is not REFUSED and tuple(pixels.shape[1:]) == size[0]
        if data == WHOLE[kind] and kind in ("PNG", "BMP", "TIFF", "PPM"):
            assert torch.equal(pixels, torch.from_numpy(PIXELS).permute(2, 0, 1))
        stored = attempt(lambda: load_image(path, size[1]), str(path), valid=True)
        assert tuple(stored.shape[1:]) == size[1]
        with pytest.raises(InputError, match="its annotations say"):
            load_image(path, (size[0][0] + 99, size[0][1]))


NUMBER = st.integers(-3, 60).map(str) | st.sampled_from(
    ["", "nan", "inf", "-inf", "1e3", "1e400", "3.7", "x", "9" * 400, " 7 ", "0x10", "²", "1_0"]
)
NAME = st.sampled_from(["cat", "cat", "dog", "dog", "cat\ndog", "", " ", "a" * 300, "ä", "<&>"]) | st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=4
)
CORNERS = (
    st.tuples(*[st.integers(0, 45).map(str)] * 4)
    .map(lambda c: (*sorted(c[:2], key=int), *sorted(c[2:], key=int)))
    .map(lambda c: (c[0], c[2], c[1], c[3]))
)
OBJECT = st.fixed_dictionaries(
    {"name": NAME, "box": CORNERS | st.tuples(*[NUMBER] * 4), "difficult": st.sampled_from(["0", "1", "", "x"])}
)
FILE = st.fixed_dictionaries(
    {
        "filename": st.sampled_from(["a.jpg", "", "../../etc/passwd", "C:\\x\\b.png", "..", "a" * 300]) | NAME,
        "size": st.tuples(NUMBER, NUMBER) | st.just(("50", "40")) | st.just(("50", "40")),
        "objects": st.lists(OBJECT, max_size=3),
        "cut": st.sampled_from([None] * 4) | st.integers(0, 400),
    }
)


def xml(file: dict[str, Any]) -> bytes:
    """A VOC file with these texts in it, cut off somewhere at times."""
    parts = [f"<filename>{escape(file['filename'])}</filename>"]
    parts.append("<size><width>{}</width><height>{}</height></size>".format(*file["size"]))
    for item in file["objects"]:
        edges = "".join(f"<{e}>{v}</{e}>" for e, v in zip(("xmin", "ymin", "xmax", "ymax"), item["box"], strict=True))
        parts.append(
            f"<object><name>{escape(item['name'])}</name><difficult>{item['difficult']}</difficult>"
            f"<bndbox>{edges}</bndbox></object>"
        )
    return f"<annotation>{''.join(parts)}</annotation>".encode()[: file["cut"]]


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def kept(file: dict[str, Any]) -> list[tuple[str, list[float]]] | None:
    """The objects that are to stay, as (name, xyxy), or None where the file cannot be used."""
    w, h = (number(v) for v in file["size"])
    whole = file["cut"] is None or file["cut"] >= len(xml({**file, "cut": None}))
    if not whole or not all(math.isfinite(v) and 1 <= int(v) < 2**31 for v in (w, h)):
        return None
    w, h = int(w), int(h)
    result = []
    for item in file["objects"]:
        x1, y1, x2, y2 = (number(v) for v in item["box"])
        if not item["name"].strip() or not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 <= x1 or y2 <= y1:
            continue
        box = [max(x1 - 1, 0.0), max(y1 - 1, 0.0), min(x2, w), min(y2, h)]
        if box[0] < box[2] and box[1] < box[3]:
            result.append((item["name"].strip(), box))
    return result


@fuzz("VOC: any XML", files=st.lists(FILE, min_size=1, max_size=3), folder=st.booleans())
@example(files=[{"filename": "a" * 300, "size": ("50", "40"), "objects": [], "cut": None}], folder=True)
@example(
    files=[{
        "filename": "a.jpg", "size": ("1e300", "40"), "cut": None,
        "objects": [{"name": "cat", "box": ("1", "1", "5", "5"), "difficult": "0"}],
    }],
    folder=False,
)  # fmt: skip
def test_any_voc_file_is_converted_or_a_problem(files: list[Any], folder: bool):
    wanted = [kept(file) for file in files]
    usable = any(w is not None for w in wanted) and any(wanted)
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "xml").mkdir()
        for i, file in enumerate(files):
            (Path(home) / "xml" / f"{i}.xml").write_bytes(xml(file))
            Image.new("RGB", (50, 40)).save(Path(home, f"{i}.jpg"))
        out = Path(home, "out.json")
        images = home if folder else None
        problems = attempt(
            lambda: convert_voc(Path(home, "xml"), out, image_dir=images), "xml", valid=None if folder else usable
        )
        if problems is REFUSED:
            assert not out.exists()
            return
        content = json.loads(out.read_text())
        for problem in problems:
            assert str(problem).isprintable()
        if not folder:
            names = {c["id"]: c["name"] for c in content["categories"]}
            got = [(names[a["category_id"]], a["bbox"]) for a in content["annotations"]]
            boxes = [(n, [x, y, x2 - x, y2 - y]) for w in wanted if w is not None for n, (x, y, x2, y2) in w]
            assert got == boxes and len(content["images"]) == sum(w is not None for w in wanted)
        for image in content["images"]:
            assert "/" not in image["file_name"] and "\\" not in image["file_name"]
        again = attempt(lambda: read_coco(out), "out.json")
        if again is not REFUSED:
            assert len(again.images) == len(content["images"])
