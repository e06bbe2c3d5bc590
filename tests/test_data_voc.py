"""VOC to COCO: coordinates, splits, every bad box by name, and XML that means harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_helpers import bccd_archive, picture

from focal_tutorial.data import CocoDataset, convert_voc, count_problems, read_coco
from focal_tutorial.data.download import read_zip, write_files
from focal_tutorial.errors import InputError


def voc(folder: Path, stem: str, objects: str = "", *, width=40, height=30, filename: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    name = f"{stem}.png" if filename is None else filename
    path = folder / f"{stem}.xml"
    path.write_text(f"<annotation><filename>{name}</filename>{size}{objects}</annotation>", encoding="utf-8")
    return path


def thing(name: str, corners: tuple, extra: str = "") -> str:
    edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{edges}</bndbox></object>"


def convert(tmp_path: Path, **options):
    problems = convert_voc(tmp_path / "xml", tmp_path / "out.json", **options)
    return json.loads((tmp_path / "out.json").read_text()), [(p.kind, p.file, p.id) for p in problems]


def test_pixel_numbers_become_coordinates(tmp_path):
    voc(tmp_path / "xml", "a", thing("dog", (1, 1, 40, 30)) + thing("cat", (5, 6, 15, 14)))
    content, problems = convert(tmp_path)
    assert problems == []
    assert [a["bbox"] for a in content["annotations"]] == [[0, 0, 40, 30], [4, 5, 11, 9]]
    assert [a["area"] for a in content["annotations"]] == [1200, 99]
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [a["category_id"] for a in content["annotations"]] == [2, 1]
    assert content["images"] == [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}]


def test_coordinates_from_zero(tmp_path):
    voc(tmp_path / "xml", "a", thing("dog", (0, 0, 40, 30)) + thing("cat", (4.5, 6, 15, 14)))
    content, problems = convert(tmp_path, first_pixel=0)
    assert [a["bbox"] for a in content["annotations"]] == [[0, 0, 40, 30], [4.5, 6, 10.5, 8]] and problems == []
    _, problems = convert(tmp_path)
    assert problems == [("box partly outside image", "a.xml", 1)]
    with pytest.raises(ValueError, match="first_pixel must be 0 or 1"):
        convert(tmp_path, first_pixel=2)


def test_splits_agree_on_ids_and_classes(tmp_path):
    for stem, name in (("c", "dog"), ("a", "cat"), ("b", "cow")):
        voc(tmp_path / "xml", stem, thing(name, (2, 2, 9, 9)))
    (tmp_path / "split.txt").write_text("c\n\na \r\nc\n")
    content, problems = convert(tmp_path, split_file=tmp_path / "split.txt")
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [(1, "a.png"), (3, "c.png")] and problems == []
    assert [c["name"] for c in content["categories"]] == ["cat", "cow", "dog"]


def test_class_lists_of_voc_with_a_second_column(tmp_path):
    for stem in "abc":
        voc(tmp_path / "xml", stem, thing("dog", (2, 2, 9, 9)))
    (tmp_path / "dog_train.txt").write_text("a  1\nb -1\nc  0\n")
    content, _ = convert(tmp_path, split_file=tmp_path / "dog_train.txt")
    assert [i["file_name"] for i in content["images"]] == ["a.png", "c.png"]


def test_split_names_a_file_that_is_not_there(tmp_path):
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9)))
    (tmp_path / "split.txt").write_text("a\ngone\n")
    assert convert(tmp_path, split_file=tmp_path / "split.txt")[1] == [("missing annotation file", "gone.xml", None)]


def test_difficult_objects_become_crowds(tmp_path):
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9), "<difficult>1</difficult>") + thing("dog", (3, 3, 9, 9)))
    content, _ = convert(tmp_path)
    assert [a["iscrowd"] for a in content["annotations"]] == [1, 0]


@pytest.mark.parametrize(
    ("corners", "kind"),
    [
        ((5, 6, 5, 14), "zero-size box"),
        ((5, 6, 5, 6), "zero-size box"),
        ((15, 6, 5, 14), "negative-size box"),
        ((41, 6, 50, 14), "box outside image"),
        ((-9, 6, 0, 14), "box outside image"),
        (("nan", 6, 15, 14), "non-finite box"),
        ((5, 6, "inf", 14), "non-finite box"),
        ((5, 6, "wide", 14), "non-finite box"),
        ((5, 6, "", 14), "non-finite box"),
    ],
)
def test_unusable_box_is_dropped_and_named(tmp_path, corners, kind):
    voc(tmp_path / "xml", "a", thing("dog", corners) + thing("dog", (2, 2, 9, 9)))
    content, problems = convert(tmp_path)
    assert problems == [(kind, "a.xml", 1)] and len(content["annotations"]) == 1
    data = read_coco(tmp_path / "out.json")  # the report outlives the conversion
    assert [(p.kind, p.file, p.id) for p in data.problems] == problems


def test_object_without_name_or_box(tmp_path):
    voc(tmp_path / "xml", "a", "<object><name>dog</name></object>" + thing("", (2, 2, 9, 9)) + thing("x", (2, 2, 9, 9)))
    content, problems = convert(tmp_path)
    assert [kind for kind, *_ in problems] == ["non-finite box", "malformed annotation"]
    assert len(content["annotations"]) == 1


def test_box_over_the_edge_is_clipped(tmp_path):
    voc(tmp_path / "xml", "a", thing("dog", (30, 20, 50, 31)))
    content, problems = convert(tmp_path)
    assert content["annotations"][0]["bbox"] == [29, 19, 11, 11] and problems == [
        ("box partly outside image", "a.xml", 1)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "not xml",
        "<annotation><size></annotation>",
        '<?xml version="1.0" encoding="klingon"?><annotation/>',
        '<!DOCTYPE a [<!ENTITY e "x">]><annotation><filename>&e;</filename></annotation>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>&e;</annotation>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_broken_or_hostile_xml_is_dropped_and_named(tmp_path, text, encoding):
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9)))
    (tmp_path / "xml" / "b.xml").write_text(text, encoding=encoding)
    content, problems = convert(tmp_path)
    assert problems == [("broken XML", "b.xml", 2)] and len(content["images"]) == 1


def test_billion_laughs_is_refused_at_once(tmp_path):
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9)))
    text = f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]><annotation>&e11;</annotation>'
    (tmp_path / "xml" / "b.xml").write_text(text)
    problems = convert_voc(tmp_path / "xml", tmp_path / "out.json")
    assert "document type" in problems[0].detail


def test_image_names_and_sizes_come_from_the_files(tmp_path):
    picture(tmp_path / "images" / "a.png", 40, 30)
    picture(tmp_path / "images" / "b.JPG", 20, 50)
    picture(tmp_path / "images" / "c.png", 40, 30)
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9)), filename="C:\\work\\a.png")
    voc(tmp_path / "xml", "b", thing("dog", (2, 2, 9, 49)), filename="b", width=0, height=0)
    voc(tmp_path / "xml", "c", thing("dog", (2, 2, 9, 9)), filename="a.png")  # copied and not edited
    voc(tmp_path / "xml", "d", thing("dog", (2, 2, 9, 9)))
    voc(tmp_path / "xml", "e", thing("dog", (2, 2, 9, 9)), width=41)
    picture(tmp_path / "images" / "e.png", 40, 30)
    content, problems = convert(tmp_path, image_dir=tmp_path / "images")
    assert [(i["file_name"], i["height"], i["width"]) for i in content["images"]] == [
        ("a.png", 30, 40),
        ("b.JPG", 50, 20),
        ("c.png", 30, 40),
    ]
    assert problems == [("missing image", "d.xml", 4), ("size mismatch", "e.xml", 5)]
    assert CocoDataset(tmp_path / "images", tmp_path / "out.json").problems[0].kind == "missing image"


@pytest.mark.parametrize("size", [("0", "0"), ("x", "30"), ("inf", "30"), ("nan", "30"), ("-4", "30")])
def test_image_without_a_size(tmp_path, size):
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9)), width=size[0], height=size[1])
    voc(tmp_path / "xml", "b", thing("dog", (2, 2, 9, 9)))
    assert convert(tmp_path)[1] == [("malformed image entry", "a.xml", 1)]


def test_nothing_usable(tmp_path):
    with pytest.raises(InputError, match=r"annotation folder .* does not exist"):
        convert(tmp_path)
    (tmp_path / "xml").mkdir()
    with pytest.raises(InputError, match=r"has no \.xml file"):
        convert(tmp_path)
    voc(tmp_path / "xml", "a")
    with pytest.raises(InputError, match="has no usable object"):
        convert(tmp_path)
    (tmp_path / "xml" / "a.xml").write_text("<a>")
    with pytest.raises(InputError, match=r"has no usable object.*broken XML"):
        convert(tmp_path)
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9)))
    for split, words in (("gone", "has no usable image"), ("", "names no image"), (None, "cannot read split list")):
        path = tmp_path / "split.txt"
        path.unlink(missing_ok=True)
        if split is not None:
            path.write_text(split)
        with pytest.raises(InputError, match=words):
            convert(tmp_path, split_file=path)
    with pytest.raises(InputError, match=r"image folder .* does not exist"):
        convert(tmp_path, image_dir=tmp_path / "none")
    assert not (tmp_path / "out.json").exists()


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    voc(tmp_path / "xml", "a", thing("dog", (2, 2, 9, 9)))

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(InputError, match=r"cannot write .*out\.json: No space left on device"):
        convert_voc(tmp_path / "xml", tmp_path / "out.json")
    assert [p.name for p in tmp_path.iterdir()] == ["xml"]


def test_real_annotations(tmp_path):
    """BCCD: pixel numbers run from 1 to the full width, and two clicks are no boxes."""
    files = {k: v for k, v in read_zip(bccd_archive()).items() if k.startswith("BCCD/Annotations/")}
    write_files(files, tmp_path)
    problems = convert_voc(tmp_path / "BCCD" / "Annotations", tmp_path / "out.json")
    data = read_coco(tmp_path / "out.json")
    assert [(p.file, p.kind) for p in problems] == [
        ("BloodImage_00338.xml", "zero-size box"),
        ("BloodImage_00343.xml", "zero-size box"),
    ]
    assert len(data.images) == 364 and data.class_names == ["Platelets", "RBC", "WBC"]
    assert [int((data.labels == k).sum()) for k in range(3)] == [361, 4153, 372]
    assert data.boxes.min() == 0 and data.boxes[:, 2].max() == 640 and data.boxes[:, 3].max() == 480
    assert count_problems(data.problems) == {"zero-size box": 2}


def test_a_size_without_bounds_is_no_size(tmp_path):
    """Minus infinity raised an OverflowError; 1e300 pixels went into the JSON."""
    for name, width in (("a", "-inf"), ("b", "1e300"), ("c", "50")):
        text = (
            "<object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"
        )
        size = f"<size><width>{width}</width><height>40</height></size>"
        (tmp_path / f"{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    problems = convert_voc(tmp_path, tmp_path / "out.json")
    assert [(p.file, p.kind) for p in problems] == [(f"{n}.xml", "malformed image entry") for n in "ab"]


def test_a_file_name_too_long_for_the_file_system_is_looked_for_in_vain(tmp_path):
    (tmp_path / "a.xml").write_text(f"<annotation><filename>{'a' * 300}.png</filename></annotation>")
    with pytest.raises(InputError, match="missing image"):
        convert_voc(tmp_path, tmp_path / "out.json", image_dir=tmp_path)
