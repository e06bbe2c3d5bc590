"""COCO reading: what is kept, what is dropped with which words, and images of every kind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import box, coco, picture, write_coco
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from torchvision import tv_tensors

from focal_tutorial.data import CocoDataset, check_images, count_problems, load_image, read_coco
from focal_tutorial.errors import InputError


def problems_of(tmp_path: Path, with_images: bool = False, **changes: Any) -> list[tuple[str, int | str | None, str]]:
    images, path = write_coco(tmp_path, coco(**changes))
    return [(p.kind, p.id, p.file) for p in read_coco(path, images if with_images else None).problems]


def test_item_contract(tmp_path):
    images, path = write_coco(tmp_path, coco())
    dataset = CocoDataset(images, path)
    image, target = dataset[0]
    assert len(dataset) == 2 and dataset.image_ids == [7, 3] and dataset.problems == []
    assert dataset.class_names == ["cat", "dog"] and dataset.category_ids == [2, 9]
    assert isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8 and image.shape == (3, 30, 40)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes) and target["boxes"].canvas_size == (30, 40)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[5, 6, 15, 14], [20, 10, 24, 14]]
    assert target["labels"].tolist() == [0, 1] and target["labels"].dtype == torch.int64
    assert target["image_id"] == 7 and dataset.size(0) == (30, 40)
    assert torch.equal(image, torch.from_numpy(np.array(Image.open(images / "a.png"))).permute(2, 0, 1))


def test_image_without_boxes_is_kept(tmp_path):
    images, path = write_coco(tmp_path, coco())
    _, target = CocoDataset(images, path)[1]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["image_id"] == 3


def test_indexing_like_a_list(tmp_path):
    images, path = write_coco(tmp_path, coco())
    dataset = CocoDataset(images, path)
    assert len(list(dataset)) == 2 and dataset[-1][1]["image_id"] == 3
    with pytest.raises(IndexError):
        dataset[2]


def test_annotations_in_any_order_belong_to_their_image(tmp_path):
    annotations = [box(1, [1, 1, 2, 2], image_id=3), box(2, [3, 3, 4, 4]), box(3, [5, 5, 6, 6], image_id=3)]
    images, path = write_coco(tmp_path, coco(annotations=annotations))
    dataset = CocoDataset(images, path)
    assert dataset.target(0)["boxes"].tolist() == [[3, 3, 7, 7]]
    assert dataset.target(1)["boxes"].tolist() == [[1, 1, 3, 3], [5, 5, 11, 11]]
    assert [[a["id"] for a in records] for records in dataset.data.annotations] == [[2], [1, 3]]


def test_crowds_are_for_evaluation_only(tmp_path):
    images, path = write_coco(tmp_path, coco(annotations=[box(1, [1, 1, 9, 9], iscrowd=1), box(2, [3, 3, 4, 4])]))
    dataset = CocoDataset(images, path)
    assert dataset.target(0)["boxes"].tolist() == [[3, 3, 7, 7]]
    assert [a["iscrowd"] for a in dataset.coco_dict()["annotations"]] == [1, 0]


def test_coco_dict_is_what_pycocotools_reads_from_a_clean_file(tmp_path):
    images, path = write_coco(tmp_path, coco())
    ours = CocoDataset(images, path).coco_dict()
    theirs = COCO(str(path)).dataset
    for key in ("images", "annotations"):
        assert ours[key] == theirs[key]
    assert ours["categories"] == sorted(theirs["categories"], key=lambda c: c["id"])


def test_coco_dict_keeps_boxes_as_written_and_fills_in_what_is_optional(tmp_path):
    annotation = {"id": 5, "image_id": 7, "category_id": 2, "bbox": [35, 20, 10, 20]}
    images, path = write_coco(tmp_path, coco(annotations=[annotation]))
    dataset = CocoDataset(images, path)
    assert dataset.coco_dict()["annotations"] == [{**annotation, "area": 200, "iscrowd": 0}]
    assert dataset.target(0)["boxes"].tolist() == [[35, 20, 40, 30]]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([5, 6, 0, 8], "zero-size box"),
        ([5, 6, 8, 0], "zero-size box"),
        ([5, 6, -3, 8], "negative-size box"),
        ([5, 6, 1e-30, 8], "box outside image"),
        ([NAN, 6, 3, 8], "non-finite box"),
        ([5, 6, INF, 8], "non-finite box"),
        ([-INF, 6, INF, 8], "non-finite box"),
        ([40, 6, 3, 8], "box outside image"),
        ([-9, 6, 9, 8], "box outside image"),
        ([5, 1e9, 3, 8], "box outside image"),
        ([5, 6, 3], "malformed annotation"),
        ([5, 6, 3, 8, 1], "malformed annotation"),
        (["5", "6", "3", "8"], "malformed annotation"),
        ([5, 6, None, 8], "malformed annotation"),
        ([5, 6, True, 8], "malformed annotation"),
        ([5, 6, 10**400, 8], "malformed annotation"),
        ([[5], 6, 3, 8], "malformed annotation"),
        ("5 6 3 8", "malformed annotation"),
        ({"x": 5}, "malformed annotation"),
        (None, "malformed annotation"),
        ([], "malformed annotation"),
    ],
)
def test_unusable_box_is_dropped_and_named(tmp_path, bbox, kind):
    images, path = write_coco(tmp_path, coco(annotations=[box(1, [1, 2, 3, 4]), box(44, bbox)]))
    dataset = CocoDataset(images, path)
    assert [(p.kind, p.id) for p in dataset.problems] == [(kind, 44)]
    assert dataset.target(0)["boxes"].tolist() == [[1, 2, 4, 6]]
    assert "dropped" in dataset.problems[0].detail
    assert [a["id"] for a in dataset.coco_dict()["annotations"]] == [1]


@pytest.mark.parametrize(
    ("bbox", "clipped"),
    [
        ([-5, 6, 10, 8], [0, 6, 5, 14]),
        ([30, 20, 1e9, 1e9], [30, 20, 40, 30]),
        ([-1e300, -5, 1.7e308, 1e9], [0, 0, 40, 30]),
    ],
)
def test_box_over_the_edge_is_clipped_and_reported(tmp_path, bbox, clipped):
    boxes = [box(1, bbox), box(2, [1, 1, 2, 2]), box(3, [1, 1, 2, 2])]
    images, path = write_coco(tmp_path, coco(annotations=boxes))
    dataset = CocoDataset(images, path)
    assert [(p.kind, p.id, p.file) for p in dataset.problems] == [("box partly outside image", 1, "a.png")]
    assert dataset.target(0)["boxes"][0].tolist() == clipped


def test_rounding_over_the_edge_is_clipped_without_a_word(tmp_path):
    images, path = write_coco(tmp_path, coco(annotations=[box(1, [-0.3, 6, 40.5, 8])]))
    dataset = CocoDataset(images, path)
    assert dataset.problems == [] and dataset.target(0)["boxes"].tolist() == [[0, 6, 40, 14]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"annotations": [box(1, [1, 1, 2, 2], image_id=99)]}, ("unknown image", 1)),
        ({"annotations": [box(1, [1, 1, 2, 2], category_id=5)]}, ("unknown category", 1)),
        ({"annotations": [box(1, [1, 1, 2, 2]), box(1, [3, 3, 2, 2])]}, ("duplicate annotation id", 1)),
        ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [1, 1, 2, 2]}]}, ("missing annotation id", None)),
        ({"annotations": [{"id": 1, "category_id": 2, "bbox": [1, 1, 2, 2]}]}, ("malformed annotation", 1)),
        ({"annotations": [{"id": 1, "image_id": 7, "bbox": [1, 1, 2, 2]}]}, ("malformed annotation", 1)),
        ({"annotations": [{"id": 1, "image_id": 7, "category_id": 2}]}, ("malformed annotation", 1)),
        ({"annotations": [box(1, [1, 1, 2, 2], image_id="7")]}, ("malformed annotation", 1)),
        ({"annotations": [box(1, [1, 1, 2, 2], category_id=[2])]}, ("malformed annotation", 1)),
        ({"annotations": [box(1, [1, 1, 2, 2], iscrowd="no")]}, ("malformed annotation", 1)),
        ({"annotations": [box("x", [1, 1, 2, 2])]}, ("malformed annotation", None)),
        ({"annotations": [17]}, ("malformed annotation", None)),
        (
            {"categories": [{"id": 2, "name": "cat"}, {"id": 2, "name": "dog"}], "annotations": []},
            ("duplicate category id", 2),
        ),
        ({"categories": [{"id": 2, "name": "cat"}, {"name": "dog"}], "annotations": []}, ("malformed category", None)),
        (
            {"categories": [{"id": 2, "name": "cat"}, {"id": 4, "name": "cat"}], "annotations": []},
            ("duplicate category name", 4),
        ),
    ],
)
def test_structural_problem_is_reported_with_its_id(tmp_path, changes, expected):
    assert [(kind, number) for kind, number, _ in problems_of(tmp_path, **changes)] == [expected]


def test_repeated_annotation_ids_become_distinct_and_keep_their_boxes(tmp_path):
    images, path = write_coco(tmp_path, coco(annotations=[box(4, [1, 1, 2, 2]), box(4, [3, 3, 2, 2])]))
    assert [a["id"] for a in CocoDataset(images, path).coco_dict()["annotations"]] == [4, 5]


def test_categories_of_one_name_stay_apart(tmp_path):
    content = coco(categories=[{"id": 9, "name": "cat"}, {"id": 2, "name": "cat"}])
    _, path = write_coco(tmp_path, content)
    assert read_coco(path).class_names == ["cat", "cat (9)"]


def image_entry(**changes: Any) -> dict[str, Any]:
    return {"id": 7, "file_name": "a.png", "height": 30, "width": 40, **changes}


GOOD = {"id": 3, "file_name": "b.png", "height": 30, "width": 40}


@pytest.mark.parametrize(
    ("entry", "kind", "number", "file"),
    [
        (image_entry(file_name="gone.png"), "missing image", 7, "gone.png"),
        (image_entry(height=31), "size mismatch", 7, "a.png"),
        (image_entry(height=40, width=30), "size mismatch", 7, "a.png"),
        (image_entry(height="30"), "malformed image entry", 7, "a.png"),
        (image_entry(height=0), "malformed image entry", 7, "a.png"),
        (image_entry(file_name=None), "malformed image entry", 7, "annotations.json"),
        (image_entry(id="7"), "malformed image entry", None, "a.png"),
        (image_entry(id=None), "malformed image entry", None, "a.png"),
    ],
)
def test_image_that_cannot_be_used_is_dropped_with_its_boxes(tmp_path, entry, kind, number, file):
    annotations = [box(1, [1, 1, 2, 2], image_id=3)] + ([box(2, [1, 1, 2, 2])] if number else [])
    images, path = write_coco(tmp_path, coco(images=[entry, GOOD], annotations=annotations))
    dataset = CocoDataset(images, path)
    assert [(p.kind, p.id, Path(p.file).name) for p in dataset.problems] == [(kind, number, file)]
    assert dataset.image_ids == [3] and len(dataset.coco_dict()["annotations"]) == 1


def test_repeated_image_entry_is_kept_once(tmp_path):
    assert problems_of(tmp_path, images=[GOOD, image_entry(), GOOD]) == [("duplicate image id", 3, "b.png")]


def test_two_images_of_one_id_are_dropped_both(tmp_path):
    content = coco(images=[image_entry(), GOOD, image_entry(file_name="b.png")])
    images, path = write_coco(tmp_path, content)
    dataset = CocoDataset(images, path)
    assert dataset.image_ids == [3] and count_problems(dataset.problems) == {"duplicate image id": 2}


def test_missing_sizes_come_from_the_files(tmp_path):
    content = coco(images=[{"id": 7, "file_name": "a.png"}, GOOD])
    images, path = write_coco(tmp_path, content)
    dataset = CocoDataset(images, path)
    assert dataset.size(0) == (30, 40) and dataset.problems == []
    assert count_problems(read_coco(path).problems) == {"malformed image entry": 1}  # no folder to look in


def test_problem_reads_as_one_line(tmp_path):
    _, path = write_coco(tmp_path, coco(annotations=[box(44, [5, 6, 0, 8])]))
    assert str(read_coco(path).problems[0]) == "a.png, id 44: zero-size box: bbox [5, 6, 0, 8]; dropped"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ('{"images": [', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1, 2]", "its top level is a list, not an object"),
        ("{}", "it has no list `images` (keys found: none)"),
        ('{"images": [], "annotations": {}}', "it has no list `annotations`"),
        ('{"images": [], "annotations": []}', "it has no list `categories` (keys found: annotations, images)"),
        (json.dumps(coco(categories=[])), "has no usable category"),
        (json.dumps(coco(images=[])), "has no usable image"),
        (json.dumps(coco(images=[3])), "malformed image entry: 3 is not an object"),
    ],
)
def test_file_that_cannot_be_used_at_all(tmp_path, text, words):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_coco(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_file_that_is_missing_binary_or_a_folder(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x80")
    for name, words in (("none.json", "does not exist"), ("bytes.json", "cannot read"), (".", "cannot read")):
        with pytest.raises(InputError, match=words):
            read_coco(tmp_path / name)


def test_byte_order_mark_is_no_problem(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco()).encode())
    assert len(read_coco(path).images) == 2


def test_wrong_image_folder_says_so(tmp_path):
    images, path = write_coco(tmp_path, coco())
    with pytest.raises(InputError, match=r"image folder .* does not exist"):
        CocoDataset(tmp_path / "nowhere", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of the images of .* can be used in .*the first: a\.png, id 7"):
        CocoDataset(tmp_path / "empty", path)
    assert images.is_dir()


def test_normalised_boxes_are_refused(tmp_path):
    _, path = write_coco(tmp_path, coco(annotations=[box(1, [0.1, 0.2, 0.5, 0.5])]))
    with pytest.raises(InputError, match=r"lie between 0 and 1: COCO boxes are \[x, y, width, height\] in pixels"):
        read_coco(path)


def test_corner_boxes_are_suspected(tmp_path):
    corners = [box(i, [20, 10, 30 + i, 25]) for i in range(1, 5)]
    _, path = write_coco(tmp_path, coco(annotations=corners))
    suspicion = read_coco(path).problems[-1]
    assert suspicion.kind == "suspicious boxes" and "[x1, y1, x2, y2]" in suspicion.detail


def test_nothing_to_learn_from(tmp_path):
    images, path = write_coco(tmp_path, coco(annotations=[box(1, [5, 5, 0, 0]), box(2, [5, 5, 9, 9], iscrowd=1)]))
    with pytest.raises(InputError, match="no usable box in its 2 images"):
        CocoDataset(images, path).require_trainable()
    images, path = write_coco(tmp_path, coco())
    CocoDataset(images, path).require_trainable()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = np.linspace(0, 255, 12 * 10).astype(np.uint8).reshape(10, 12)
    suffix = {"CMYK": "tif", "I": "tif"}.get(mode, "png")
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    pixels = load_image(path)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 10, 12)
    expected = torch.from_numpy(grey if mode != "1" else np.array(image.convert("L"))).expand(3, -1, -1)
    assert (pixels.int() - expected.int()).abs().max() <= 1


def test_palette_with_transparency(tmp_path, recwarn):
    image = Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes([0, 128] * 60))
    assert load_image(tmp_path / "p.png").shape == (3, 10, 12)
    assert not recwarn.list


def exif_picture(path: Path, orientation: int) -> np.ndarray:
    """40x30 as stored, marked with an EXIF orientation; the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:10, :10] = 255  # white in the stored upper left corner
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def test_exif_orientation_is_applied_when_the_annotations_saw_it(tmp_path):
    images, path = write_coco(tmp_path, coco(images=[image_entry(height=40, width=30), GOOD], annotations=[]))
    stored = exif_picture(images / "a.png", 6)  # shown turned clockwise: the white corner moves to the upper right
    dataset = CocoDataset(images, path)
    image, _ = dataset[0]
    assert dataset.problems == [] and image.shape == (3, 40, 30) and dataset.size(0) == (40, 30)
    assert torch.equal(image, torch.from_numpy(np.rot90(stored, -1).copy()).permute(2, 0, 1))


def test_exif_orientation_is_left_out_when_the_annotations_did_not_see_it(tmp_path):
    images, path = write_coco(tmp_path, coco(annotations=[]))
    stored = exif_picture(images / "a.png", 6)
    dataset = CocoDataset(images, path)
    assert [(p.kind, p.id) for p in dataset.problems] == [("ignored EXIF orientation", 7)]
    assert torch.equal(dataset[0][0], torch.from_numpy(stored).permute(2, 0, 1))


def test_truncated_image_passes_the_header_check_and_is_named_at_loading(tmp_path):
    images, path = write_coco(tmp_path, coco())
    whole = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(whole[: len(whole) // 2])
    dataset = CocoDataset(images, path)
    assert dataset.problems == []
    with pytest.raises(InputError, match=r"cannot read image .*a\.png: .*truncated"):
        dataset[0]
    assert [(p.kind, p.id, p.file) for p in check_images(dataset.data, images)] == [("unreadable image", 7, "a.png")]


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_file_that_is_no_image_is_dropped(tmp_path, content):
    images, path = write_coco(tmp_path, coco())
    (images / "a.png").write_bytes(content)
    dataset = CocoDataset(images, path)
    assert [(p.kind, p.id) for p in dataset.problems] == [("unreadable image", 7)] and dataset.image_ids == [3]


def test_image_bomb_and_float_image_are_refused(tmp_path, monkeypatch):
    path = picture(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="decompression bomb"):
        load_image(path)
    monkeypatch.undo()
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="convert the image to 8 or 16 bits"):
        load_image(tmp_path / "float.tif")


def test_cache_survives_the_file_and_the_callers_hands(tmp_path):
    images, path = write_coco(tmp_path, coco())
    dataset = CocoDataset(images, path, cache=True)
    before = dataset[0][0].clone()
    (images / "a.png").unlink()
    dataset[0][0].zero_()
    dataset[0][1]["labels"] = None
    assert torch.equal(dataset[0][0], before) and dataset[0][1]["labels"].tolist() == [0, 1]


def test_problems_recorded_by_the_converter_are_read_back(tmp_path):
    record = {"file": "x.xml", "id": 4, "kind": "zero-size box", "detail": "dropped"}
    _, path = write_coco(tmp_path, coco(info={"problems": [record, {"kind": "other"}, 3]}))
    assert [str(p) for p in read_coco(path).problems] == ["x.xml, id 4: zero-size box: dropped"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PLACES = [(key, row, field) for key, row, field in (
    ("images", 0, "id"), ("images", 0, "file_name"), ("images", 0, "height"), ("images", 1, None),
    ("annotations", 0, "id"), ("annotations", 0, "image_id"), ("annotations", 0, "category_id"),
    ("annotations", 0, "bbox"), ("annotations", 0, "iscrowd"), ("annotations", 0, "area"), ("annotations", 1, None),
    ("categories", 0, "id"), ("categories", 0, "name"), ("categories", 1, None), ("images", None, None),
    ("annotations", None, None), ("categories", None, None), ("info", None, None),
)]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3))
def test_whatever_stands_in_the_file_it_is_read_or_refused(tmp_path, changes):
    """Any JSON value in any place ends in usable data or in an InputError, and the usable data are sound."""
    content = coco()
    for (key, row, field), value in changes:
        if row is None:
            content[key] = value
        elif isinstance(content[key], list) and len(content[key]) > row and isinstance(content[key][row], dict):
            if field is None:
                content[key][row] = value
            else:
                content[key][row][field] = value
    images, path = write_coco(tmp_path, content)
    try:
        dataset = CocoDataset(images, path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    for index in range(len(dataset)):
        image, target = dataset[index]
        height, width = image.shape[1:]
        boxes = target["boxes"]
        assert ((boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2])).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert ((target["labels"] >= 0) & (target["labels"] < len(dataset.class_names))).all()
    ground = COCO()
    ground.dataset = dataset.coco_dict()
    ground.createIndex()
    assert json.loads(json.dumps(dataset.coco_dict()))["images"]
    assert all(str(problem).count("\n") == 0 for problem in dataset.problems)


def test_reading_is_linear_and_fast(tmp_path):
    """100,000 annotations, a tenth of them bad in some way: well under ten seconds even on a busy machine."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 300, (100_000, 2)), rng.uniform(-3, 60, (100_000, 2))], axis=1).round(2)
    content = coco(
        images=[{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(5000)],
        annotations=[box(i, b, image_id=i % 5000) for i, b in enumerate(boxes.tolist())],
    )
    path = tmp_path / "large.json"
    path.write_text(json.dumps(content))
    start = time.perf_counter()
    data = read_coco(path)
    assert time.perf_counter() - start < 10
    assert len(data.boxes) + len(data.problems) == 100_000 and len(data.problems) > 5000


@pytest.mark.parametrize(
    ("text", "words"), [('{"images": [' + "9" * 5000 + "]}", "not valid JSON"), ("[" * 100_000, "nested too deeply")]
)
def test_numbers_and_nesting_beyond_what_python_reads(tmp_path, text, words):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_coco(tmp_path / "bad.json")


@pytest.mark.parametrize("name", ["pipe", "a" * 256 + ".png", "/dev/zero", "x\ny.png", "\ud800.png"])
def test_a_name_that_is_no_plain_file_is_one_problem(tmp_path, name):
    """A pipe would wait for ever, a name too long for the file system raised, a line end broke the report."""
    images, path = write_coco(tmp_path, coco(images=[image_entry(file_name=name), GOOD], annotations=[]))
    os.mkfifo(images / "pipe")
    problems = CocoDataset(images, path).problems
    assert [p.id for p in problems] == [7] and str(problems[0]).isprintable()


def test_ids_and_crowds_that_pycocotools_has_no_room_for(tmp_path):
    entries = [box(10**400, [1, 1, 2, 2]), box(2, [3, 3, 2, 2], iscrowd=256, area=True)]
    images, path = write_coco(tmp_path, coco(annotations=entries))
    dataset = CocoDataset(images, path)
    assert count_problems(dataset.problems) == {"malformed annotation": 1}
    assert dataset.coco_dict()["annotations"] == [box(2, [3, 3, 2, 2], iscrowd=1, area=4)]


def test_recorded_problems_of_wrong_types_are_no_problems(tmp_path):
    record = {"file": "x.xml", "id": 4, "kind": ["zero-size box"], "detail": "dropped"}
    _, path = write_coco(tmp_path, coco(info={"problems": [record]}))
    assert count_problems(read_coco(path).problems) == {}
