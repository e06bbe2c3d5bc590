"""COCO metrics: equal to pycocotools by hand, and right where pycocotools by hand would fail."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import detect, detections_to_coco, evaluate, evaluate_coco, ground_truth, pr_curves

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"]


@pytest.fixture(scope="module")
def coco() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth with crowds, all sizes, an image without boxes, a class without boxes; noisy detections of it."""
    rng = np.random.default_rng(0)
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 400, "height": 300} for i in range(12)]
    annotations: list[dict[str, Any]] = []
    results = []
    for image in images[1:]:
        for _ in range(8):
            x, y = rng.uniform(0, 200, 2)
            w, h = rng.uniform(8, 150, 2)
            category = int(rng.choice([3, 7, 90]))
            crowd = int(rng.random() < 0.15)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "iscrowd": crowd}
                | {"bbox": [x, y, w, h], "area": w * h * 0.8}
            )
            for _ in range(rng.integers(0, 4)):
                box = [float(v) for v in np.array([x, y, w, h]) + rng.normal(0, 5, 4)]
                wrong = int(rng.choice([3, 7, 90])) if rng.random() < 0.1 else category
                results.append(
                    {"image_id": image["id"], "category_id": wrong, "bbox": box, "score": float(rng.random())}
                )
    names = {3: "cat", 7: "dog", 90: "bird", 55: "nobody"}
    categories = [{"id": k, "name": n} for k, n in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def by_hand(annotation_file: Path, results_file: Path, category: int | None = None) -> list[float]:
    """The twelve numbers of COCOeval.summarize, called as its documentation says."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        coco_eval = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
        if category is not None:
            coco_eval.params.catIds = [category]
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return [float(value) for value in coco_eval.stats]


def test_equals_pycocotools_by_hand(coco: Any, tmp_path: Path, capsys: Any) -> None:
    truth, results = coco
    annotation_file, results_file = tmp_path / "truth.json", tmp_path / "results.json"
    annotation_file.write_text(json.dumps(truth))
    results_file.write_text(json.dumps(results))
    stats = by_hand(annotation_file, results_file)
    capsys.readouterr()
    metrics = evaluate_coco(annotation_file, results_file)
    assert capsys.readouterr().out == ""  # pycocotools prints a dozen lines
    assert [metrics[key] for key in KEYS] == pytest.approx(stats[:9], abs=1e-12)
    assert 0.1 < metrics["AP"] < 0.9  # else the comparison says little
    for name, category in {"cat": 3, "dog": 7, "bird": 90}.items():
        one = by_hand(annotation_file, results_file, category)
        assert metrics["per_class"][name] == pytest.approx({"AP": one[0], "AP50": one[1]}, abs=1e-12)
    assert metrics["per_class"]["nobody"] == {"AP": None, "AP50": None}
    assert evaluate_coco(truth, results) == metrics  # dictionaries as well as files
    json.dumps(metrics, allow_nan=False)


def test_crowds_neither_help_nor_hurt(coco: Any) -> None:
    truth, _ = coco
    crowds = [a for a in truth["annotations"] if a["iscrowd"]]
    assert crowds
    found = [{**_result(a), "score": 0.9} for a in truth["annotations"] if not a["iscrowd"]]
    on_crowds = [{**_result(a), "score": 0.99} for a in crowds for _ in range(3)]
    assert evaluate_coco(truth, found + on_crowds)["AP"] == pytest.approx(1.0)
    without = {**truth, "annotations": [a for a in truth["annotations"] if not a["iscrowd"]]}
    assert evaluate_coco(without, found + on_crowds)["AP"] < 0.9


def _result(a: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": 0.5}


def test_no_detections_and_no_boxes(coco: Any) -> None:
    truth, results = coco
    nothing_found = evaluate_coco(truth, [])
    assert nothing_found["AP"] == 0 and nothing_found["AR100"] == 0
    assert nothing_found["per_class"]["cat"] == {"AP": 0.0, "AP50": 0.0}
    nothing_there = evaluate_coco({**truth, "annotations": []}, results)
    assert all(nothing_there[key] is None for key in KEYS)
    assert evaluate_coco({**truth, "annotations": []}, [])["AP"] is None


def test_annotation_id_zero_and_missing_fields_count(coco: Any) -> None:
    """pycocotools takes a match with annotation 0 for none, and needs `area` and `iscrowd`."""
    truth, _ = coco
    one = {"id": 0, "image_id": 10, "category_id": 3, "bbox": [10, 10, 50, 40]}
    metrics = evaluate_coco({**truth, "annotations": [one]}, [_result(one)])
    assert metrics["AP"] == metrics["APm"] == pytest.approx(1.0)
    assert metrics["APs"] is None  # 50 × 40 is a medium box


def test_what_pycocotools_cannot_use_is_left_out(coco: Any) -> None:
    truth, _ = coco
    good = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [10, 10, 50, 40]}
    bad: list[dict[str, Any]] = [
        {**good, "bbox": [1, 2, 3]}, {**good, "bbox": None}, {**good, "bbox": [1, 2, float("nan"), 4]},
        {**good, "image_id": 999}, {**good, "category_id": 999},
    ]  # fmt: skip
    assert evaluate_coco({**truth, "annotations": [*bad, good]}, [_result(good)])["AP"] == pytest.approx(1.0)


def test_files_that_cannot_be_used(coco: Any, tmp_path: Path) -> None:
    truth, results = coco
    with pytest.raises(InputError, match=r"nowhere.json: cannot be read"):
        evaluate_coco(tmp_path / "nowhere.json", results)
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(InputError, match="not valid JSON"):
        evaluate_coco(tmp_path / "broken.json", results)
    (tmp_path / "other.json").write_text('{"pictures": []}')
    with pytest.raises(InputError, match="images, annotations, categories"):
        evaluate_coco(tmp_path / "other.json", results)
    with pytest.raises(InputError, match="image 5 and category 3"):
        evaluate_coco(truth, [{**results[0], "image_id": 5, "category_id": 3}])
    with pytest.raises(InputError, match="category 4"):
        evaluate_coco(truth, [{**results[0], "category_id": 4}])
    for unusable in ({"results": results}, [{"image_id": 10, "category_id": 3}], ["cat"]):
        (tmp_path / "unusable.json").write_text(json.dumps(unusable))
        with pytest.raises(InputError, match=r"unusable\.json: not COCO results"):
            evaluate_coco(truth, tmp_path / "unusable.json")


def test_results_stay_as_they_are(coco: Any) -> None:
    truth, results = coco
    before = json.dumps(results)
    evaluate_coco(truth, results)
    assert json.dumps(results) == before  # pycocotools adds area, id, iscrowd and a polygon to what it is given


@pytest.mark.parametrize("wrong", [{"bbox": []}, {"bbox": None}, {"bbox": [1, 2, 3, "4"]}, {"score": None},
                                   {"score": float("nan")}, {"image_id": [10]}])  # fmt: skip
def test_the_result_that_cannot_be_used_is_named(coco: Any, wrong: dict[str, Any]) -> None:
    truth, results = coco
    with pytest.raises(InputError, match="results: entry 1 has no"):
        evaluate_coco(truth, [results[0], {**results[1], **wrong}])


def test_annotations_of_other_types(coco: Any) -> None:
    truth, _ = coco
    good = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [10, 10, 50, 40], "area": None, "iscrowd": None}
    odd = [5, {**good, "image_id": [10]}, good]
    assert evaluate_coco({**truth, "annotations": odd}, [_result(good)])["AP"] == pytest.approx(1.0)
    nameless = {**truth, "categories": [{"id": c["id"]} for c in truth["categories"]]}
    assert "90" in evaluate_coco(nameless, [])["per_class"]
    with pytest.raises(InputError, match="the annotations: an entry of `images` has no id"):
        evaluate_coco({**truth, "images": [5]}, [])


def test_pr_curves_average_to_ap(coco: Any) -> None:
    truth, results = coco
    metrics = evaluate_coco(truth, results)
    curves = pr_curves(truth, results)
    assert set(curves) == {"cat", "dog", "bird"}  # "nobody" has no boxes
    for name, curve in curves.items():
        assert curve["recall"].shape == curve["precision"].shape == curve["score"].shape == (101,)
        assert curve["precision"].mean() == pytest.approx(metrics["per_class"][name]["AP50"])
        assert (np.diff(curve["precision"]) <= 0).all()
        reached = curve["score"] > 0
        assert (np.diff(curve["score"][reached]) <= 0).all()
    stricter = pr_curves(truth, results, iou=0.75)
    assert np.mean([c["precision"].mean() for c in stricter.values()]) == pytest.approx(metrics["AP75"])
    with pytest.raises(ValueError, match="iou"):
        pr_curves(truth, results, iou=0.3)


def test_detections_to_coco() -> None:
    found = {
        "boxes": torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0]]),
        "scores": torch.tensor([0.75, 0.5]),
        "labels": torch.tensor([1, 0]),
    }
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    results = detections_to_coco([empty, found], [5, 6], [3, 90])
    assert results == [
        {"image_id": 6, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75},
        {"image_id": 6, "category_id": 3, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.5},
    ]
    with pytest.raises(ValueError, match="image_ids"):
        detections_to_coco([found], [1, 2], [3, 90])


class Oracle(nn.Module):
    """Finds every box of a dataset, in the order of its images, and notes how it was called."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_classes, self.class_names = len(dataset.class_names), list(dataset.class_names)
        self.truth = iter([dataset.boxes_and_labels(i) for i in range(len(dataset))])
        self.calls: list[int] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training and torch.is_inference_mode_enabled()
        assert all(type(image) is Tensor and image.dtype == torch.uint8 for image in images)
        self.calls.append(len(images))
        found = [next(self.truth) for _ in images]
        return [{"boxes": boxes, "labels": labels, "scores": torch.ones(len(labels))} for boxes, labels in found]


@pytest.fixture(scope="module")
def shapes() -> ShapesDataset:
    return ShapesDataset(7, split="val", size=64, objects=(1, 2), radius=(6.0, 12.0), distractors=(0, 1))


def test_evaluate_runs_the_model_and_leaves_things_as_they_were(shapes: ShapesDataset) -> None:
    model = Oracle(shapes).train()
    before = torch.get_rng_state()
    metrics = evaluate(model, shapes, batch_size=3)
    assert metrics["AP"] == pytest.approx(1.0)
    assert model.calls == [3, 3, 1]
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)  # else evaluating would change a training run
    assert len(detect(Oracle(shapes), shapes)) == sum(len(shapes.boxes_and_labels(i)[1]) for i in range(7))


def test_mode_comes_back_after_an_error(shapes: ShapesDataset) -> None:
    model = Oracle(shapes).train()
    model.truth = iter(())
    with pytest.raises((StopIteration, RuntimeError)):
        evaluate(model, shapes)
    assert model.training


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_one_line(shapes: ShapesDataset, monkeypatch: Any, workers: int) -> None:
    def fail(self: Any, index: int) -> Tensor:
        raise InputError(f"image {index} is truncated")

    broken = ShapesDataset(3, split="val", size=64, cache=False)
    monkeypatch.setattr(ShapesDataset, "load_image", fail)
    with pytest.raises(InputError, match=r"^image 0 is truncated$"):
        evaluate(Oracle(broken), broken, workers=workers)


def test_other_classes_are_refused(shapes: ShapesDataset) -> None:
    model = Oracle(shapes)
    model.num_classes, model.class_names = 2, ["ring", "cross"]
    with pytest.raises(InputError, match=r"the model has 2 classes \(ring, cross\), but .* has 3 \(circle, square"):
        evaluate(model, shapes)
    model.num_classes, model.class_names = 3, ["square", "circle", "triangle"]
    with pytest.raises(InputError, match="names and order"):
        evaluate(model, shapes)


def test_results_of_a_real_model_are_those_by_hand(tmp_path: Path) -> None:
    from focal_tutorial import retinanet_tiny

    dataset = ShapesDataset(3, split="val", size=64)
    torch.manual_seed(0)
    model = retinanet_tiny(3, levels=(2, 3, 4), prior=0.2, canvas=(64, 64))  # the prior: many false detections
    results = detect(model, dataset, batch_size=2)
    assert results
    (tmp_path / "truth.json").write_text(json.dumps(dataset.coco_dict()))
    (tmp_path / "results.json").write_text(json.dumps(results))
    stats = [None if s == -1 else s for s in by_hand(tmp_path / "truth.json", tmp_path / "results.json")[:9]]
    metrics = evaluate(model, dataset, batch_size=3)
    assert [metrics[key] for key in KEYS] == pytest.approx(stats, abs=1e-9)
    in_bf16 = detect(model, dataset, amp="bf16")
    assert in_bf16 and in_bf16 != results


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"bbox": [10**400, 0, 1, 1]}, 0), ({"iscrowd": "yes"}, 0), ({"iscrowd": 256}, 1), ({"image_id": True}, 0)],
)
def test_annotations_of_wrong_numbers_are_left_out(change, kept):
    """An integer beyond any float, a crowd flag that is a text or does not fit a byte, a bool for an id."""
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}]}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], **change}
    assert len(ground_truth({**truth, "annotations": [annotation]}).anns) == kept
    assert evaluate_coco({**truth, "annotations": [annotation]}, [])["AP"] in (None, 0.0)


def test_ids_of_two_kinds_are_refused_and_names_made_distinct():
    truth = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": "b", "name": "a"}]}
    with pytest.raises(InputError, match="ids of `categories` are numbers and texts"):
        evaluate_coco(truth, [])
    truth["categories"][1]["id"] = 2
    assert list(evaluate_coco(truth, [])["per_class"]) == ["a", "a (2)"]
