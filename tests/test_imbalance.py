"""The imbalance report: counts equal to matching every anchor, coverage, remedies, text."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.coverage import anchor_grids, best_iou, count_matches, shape_iou
from focal_tutorial.data.coco import CocoData, read_coco
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.errors import InputError
from focal_tutorial.imbalance import imbalance_report
from focal_tutorial.imbalance_text import findings, number, percent
from focal_tutorial.matching import IGNORE, match_anchors, pairwise_iou
from focal_tutorial.preprocess import Preprocess

SETTINGS = {
    "paper": (AnchorGenerator(), (480, 640)),
    "corner, odd size": (AnchorGenerator(centre=0.0), (501, 333)),
    "tiny": (AnchorGenerator((2, 3, 4)), (192, 192)),
    "torchvision": (AnchorGenerator(centre=0.0, torchvision_compat=True), (608, 801)),
    "one anchor": (AnchorGenerator((4, 3), sizes=(40, 90), ratios=(1.0,), scales=(1.0,)), (160, 96)),
}


def random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    centre = rng.uniform(0, 1, (count, 2)) * [width, height]
    sides = np.exp(rng.uniform(np.log(3), np.log(500), (count, 2)))
    corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1).clip(0, [width, height] * 2).round(1)
    return corners[((corners[:, 2:] - corners[:, :2]) > 1).all(1)]


@pytest.mark.parametrize("name", SETTINGS)
def test_counts_are_those_of_matching_every_anchor(name: str) -> None:
    anchors, size = SETTINGS[name]
    rng = np.random.default_rng(0)
    grids = anchor_grids(anchors, size)
    everywhere = anchors(size, dtype=torch.float64)
    assert [len(level) for level in everywhere] == [grid.size for grid in grids]
    batch = [random_boxes(rng, int(rng.integers(0, 25)), size) for _ in range(8)]
    image = np.repeat(np.arange(8), [len(boxes) for boxes in batch])
    matches = count_matches(np.concatenate(batch), image, 8, grids)
    for i, boxes in enumerate(batch):
        expected = match_anchors(torch.cat(everywhere), torch.tensor(boxes).reshape(-1, 4))
        levels = expected.split([len(level) for level in everywhere])
        assert matches.foreground[i].tolist() == [int((level >= 0).sum()) for level in levels]
        assert matches.ignored[i].tolist() == [int((level == IGNORE).sum()) for level in levels]
        per_box = torch.bincount(expected[expected >= 0], minlength=len(boxes))
        assert matches.per_box[image == i].tolist() == per_box.tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_best_iou_is_the_highest_over_all_anchors(name: str) -> None:
    anchors, size = SETTINGS[name]
    boxes = random_boxes(np.random.default_rng(1), 60, size)
    expected = pairwise_iou(torch.tensor(boxes), torch.cat(anchors(size, dtype=torch.float64))).max(1).values
    np.testing.assert_allclose(best_iou(boxes, anchor_grids(anchors, size)), expected.numpy(), rtol=1e-9)
    assert (shape_iou(boxes, anchor_grids(anchors, size)) >= expected.numpy() - 1e-12).all()


def test_counting_without_boxes() -> None:
    matches = count_matches(np.zeros((0, 4)), np.zeros(0, np.int64), 3, anchor_grids(AnchorGenerator(), (64, 64)))
    assert matches.foreground.shape == (3, 5) and matches.foreground.sum() == matches.ignored.sum() == 0


def write_coco(folder: Path, boxes: list[list[list[float]]], size: tuple[int, int] = (128, 128), **more: Any) -> Path:
    """A COCO file of one image per entry of `boxes`; a box is [x, y, w, h] or [x, y, w, h, category]."""
    images = [{"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]} for i in range(len(boxes))]
    annotations = []
    for i, some in enumerate(boxes):
        for box in some:
            record = {"id": len(annotations) + 1, "image_id": i, "bbox": box[:4], "category_id": 1}
            annotations.append({**record, "category_id": int(box[4]) if len(box) > 4 else 1, "iscrowd": 0})
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories, **more}))
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> CocoData:
    """A box that fits P3 exactly, one too small, one too large, one too long, an empty image, a bad box."""
    boxes = [
        [[12.0, 12.0, 32.0, 32.0]],
        [[50.0, 50.0, 9.0, 9.0, 2]],
        [],
        [[0.0, 60.0, 128.0, 14.0], [5.0, 5.0, 0.0, 4.0]],
    ]
    return read_coco(write_coco(tmp_path, boxes))


def test_a_small_set_counted_by_hand(mixed: CocoData) -> None:
    anchors = AnchorGenerator((3,), sizes=(32,), ratios=(1.0,), scales=(1.0,))
    report = imbalance_report(mixed, anchors, canvas=(128, 128))
    assert (report.images, report.counted, report.boxes) == (4, 4, 3)
    assert report.anchors_per_image == 16 * 16
    # An anchor fits the first box exactly. One stride off in one axis is IoU 24·32/(2·32² − 24·32) = .6, in both axes
    # 24²/(2·32² − 24²) = .39, two strides in one 16·32/(2·32² − 16·32) = .33: 1 + 4 foreground anchors.
    assert report.foreground.max == 5 and report.foreground.mean == 5 / 4
    assert report.ignored.max == 0
    assert report.ratio == (4 * 256 - 5) / 5
    assert report.alpha == pytest.approx(1019 / 1024) and report.alpha_terms == pytest.approx(1 - 5 / 2048)
    assert (report.images_without_boxes, report.images_without_foreground) == (1, 2)
    assert report.unreached == 2 and report.reasons == {"too small": 1, "too elongated": 1}
    assert report.unreached_by_size == {"small": 1, "medium": 1, "large": 0}
    assert [(row.name, row.boxes, row.unreached) for row in report.classes] == [("cell", 2, 1), ("dust", 1, 1)]
    assert [box.file for box in report.unreached_boxes] == ["1.png", "3.png"]
    assert report.unreached_boxes[0].best_iou == pytest.approx(81 / 1024, abs=1e-3)
    assert report.rescued == {"0.4": 0, "0": 2}
    assert [(p["file"], p["kind"]) for p in report.problems] == [("3.png", "zero-size box")]
    assert sum(report.sides.counts["cell"]) == 2 and sum(report.best_ious.counts["dust"]) == 1


def test_the_remedies_say_what_would_reach_a_small_box(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [[[46.0, 46.0, 12.0, 12.0]]]))
    report = imbalance_report(data, AnchorGenerator(), canvas=(128, 128))
    assert report.unreached == 1 and report.smallest is not None
    assert report.changes[0].change == "none" and report.changes[0].unreached == 1
    assert "add level P2, 16 px" in [change.change for change in report.changes]
    assert all(change.unreached == 0 for change in report.changes[1:])
    anchors_of = [change.anchors for change in report.changes[1:]]
    assert anchors_of == sorted(anchors_of)
    # Taken at its word, the advice works.
    smaller = AnchorGenerator((3,), sizes=(report.smallest.side,), scales=(1.0,))
    assert report.smallest.side <= 16 and imbalance_report(data, smaller, canvas=(128, 128)).unreached == 0


def test_smaller_anchors_do_not_help_where_the_stride_is_too_coarse(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [[[51.0, 51.0, 8.0, 8.0]]]))  # its centre is 3 px off the nearest location
    report = imbalance_report(data, AnchorGenerator(), canvas=(128, 128))
    assert report.smallest is None
    assert [change.change for change in report.changes] == ["none", "input twice as large, anchors halved"]


def test_a_box_of_twice_the_neighbour_is_crowded_out(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [[[20.0, 20.0, 40.0, 40.0], [20.0, 20.0, 40.0, 40.0]]]))
    report = imbalance_report(data, canvas=(128, 128))
    assert report.unreached == 0 and report.crowded_out == 1


def test_boxes_are_counted_at_the_size_the_network_sees(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [[[100.0, 100.0, 64.0, 64.0]]], size=(256, 512)))
    small = imbalance_report(data, canvas=(64, 128))
    assert small.unreached == 1 and small.classes[0].median_side == 16 and small.classes[0].medium == 1
    large = imbalance_report(data, preprocess=Preprocess(min_size=256, max_size=1000))
    assert large.unreached == 0 and large.classes[0].median_side == 64
    assert large.anchors_per_image == sum(9 * (256 >> k) * (512 >> k) for k in range(3, 8))


def test_images_of_unequal_sizes_have_anchors_of_their_own(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [[[10.0, 10.0, 40.0, 40.0]], [[10.0, 10.0, 40.0, 40.0]]])
    content = json.loads(path.read_text())
    content["images"][1].update(height=256, width=256)
    path.write_text(json.dumps(content))
    report = imbalance_report(read_coco(path), preprocess=Preprocess(min_size=None, size_divisible=128))
    one = imbalance_report(read_coco(write_coco(tmp_path, [[[10.0, 10.0, 40.0, 40.0]]])), canvas=(128, 128))
    counts = [report.foreground.min, report.foreground.max]
    assert counts[0] == one.foreground.min  # inside both images alike
    assert report.anchors_per_image == one.anchors_per_image * 2.5


def test_crowds_are_left_out_as_in_training(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [[[10.0, 10.0, 40.0, 40.0], [60.0, 60.0, 40.0, 40.0]]])
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert imbalance_report(read_coco(path), canvas=(128, 128)).boxes == 1


def test_no_boxes_at_all(tmp_path: Path) -> None:
    report = imbalance_report(read_coco(write_coco(tmp_path, [[], []])), canvas=(128, 128))
    assert report.ratio is None and report.alpha is None and report.foreground.max == 0
    assert "no box to learn from" in findings(report)[0]
    json.dumps(report.to_dict(), allow_nan=False)
    assert "no box" in str(report)


def test_anchors_that_reach_nothing_are_called_fatal(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [[[50.0, 50.0, 4.0, 4.0]]] * 3))
    report = imbalance_report(data, canvas=(128, 128))
    assert report.ratio is None and report.images_without_foreground == 3
    assert "AP will be 0" in findings(report)[0]


def test_a_sample_is_spread_evenly_and_says_so(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [[[10.0, 10.0, 30.0 + i, 30.0]] for i in range(9)]))
    report = imbalance_report(data, canvas=(128, 128), limit=3)
    assert (report.images, report.counted, report.boxes) == (9, 3, 3)
    assert "a sample of 3" in str(report)
    with pytest.raises(InputError, match="at least 1"):
        imbalance_report(data, limit=0)


def test_the_text_is_narrow_and_names_file_and_id(mixed: CocoData) -> None:
    text = str(imbalance_report(mixed, canvas=(128, 128)))
    assert max(map(len, text.splitlines())) <= 100
    for part in ("1.png", "3.png, id 4: zero-size box", "Boxes per class", "1 : n", "what would reach them"):
        assert part in text, part


def test_many_problems_are_cut_in_the_text_and_whole_in_the_json(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [[[10.0, 10.0, 40.0, 40.0]] + [[1.0, 1.0, 0.0, 0.0]] * 50]))
    report = imbalance_report(data, canvas=(128, 128))
    assert "and 30 more" in report.text() and "more (all" not in report.text(problems=None)
    assert len(report.to_dict()["problems"]) == 50


def test_json_round_trip_of_a_real_report(mixed: CocoData) -> None:
    content = json.loads(json.dumps(imbalance_report(mixed, canvas=(128, 128)).to_dict(), allow_nan=False))
    assert content["anchors"]["per_location"] == 9 and content["levels"][0]["foreground"]["max"] >= 1
    assert content["findings"] and content["changes"][0]["change"] == "none"


def test_shapes_need_no_files() -> None:
    dataset = ShapesDataset(20, cache=False)
    report = imbalance_report(dataset, AnchorGenerator((2, 3, 4)), canvas=(192, 192))
    boxes = sum(len(dataset.boxes_and_labels(i)[1]) for i in range(20))
    assert report.boxes == boxes and report.images == 20 and report.dataset == "ShapesDataset"
    assert report.anchors_per_image == 9 * (48**2 + 24**2 + 12**2)


def test_thousands_of_images_take_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = [[[*rng.uniform(0, 300, 2), *rng.uniform(20, 200, 2)] for _ in range(7)] for _ in range(2000)]
    data = read_coco(write_coco(tmp_path, boxes, size=(512, 512)))
    start = time.perf_counter()
    report = imbalance_report(data, canvas=(800, 1344))
    assert report.boxes == 14_000 and report.anchors_per_image > 200_000
    assert time.perf_counter() - start < 15  # 1 s on one core; matching every anchor takes minutes


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (3.0, "3"), (1234567.0, "1,234,567"), (0.448, "0.448"), (82.31, "82.3")]
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 5, "0 %"), (1, 3, "33 %"), (7, 4886, "0.1 %"), (1, 9999, "< 0.1 %")]
)
def test_per_cent_for_people(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def test_bccd_counts(request: pytest.FixtureRequest) -> None:
    """Real images: the two zero-size boxes are reported; platelets are the ones that go unseen."""
    from focal_tutorial.data.root import cache_root, data_root

    folders = [root / "bccd" for root in (data_root(), cache_root()) if (root / "bccd" / "train.json").is_file()]
    if not folders:
        pytest.skip("BCCD is not in the data root")
    reports = [
        imbalance_report(read_coco(folders[0] / f"{s}.json"), canvas=(512, 512)) for s in ("train", "val", "test")
    ]
    assert sum(report.boxes for report in reports) == 4886
    assert sum(report.images for report in reports) == 364
    assert sum(len(report.problems) for report in reports) == 2
    for report in reports:
        lost = {row.name: row.unreached for row in report.classes}
        assert lost["RBC"] == lost["WBC"] == 0
        assert report.ratio is not None and 80 < report.ratio < 140 and math.isclose(report.anchors_per_image, 49_104)
