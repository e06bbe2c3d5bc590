"""The bootstrap of AP: each draw measured as pycocotools would, the spread that theory expects."""

import copy
from typing import Any

import numpy as np
import pytest

from focal_tutorial.bootstrap import ap_of_images, bootstrap_ap
from focal_tutorial.evaluate import evaluate_coco, run_coco_eval


def made_up(images: int, seed: int, crowds: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of two classes with gaps in their ids, detections that overlap them more or less, and false alarms."""
    draw = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 7 * i} for i in range(images)],
        "categories": [{"id": 3, "name": "a"}, {"id": 90, "name": "b"}, {"id": 91, "name": "never there"}],
        "annotations": [],
    }
    results: list[dict[str, Any]] = []
    for i in range(images):
        for _ in range(draw.integers(0, 5)):
            box = [*draw.uniform(0, 80, 2), *draw.uniform(10, 40, 2)]
            kind = {"image_id": 7 * i, "category_id": int(draw.choice([3, 90]))}
            crowd = int(crowds and draw.random() < 0.3)
            truth["annotations"].append({"id": len(truth["annotations"]), **kind, "bbox": box, "iscrowd": crowd})
            for _ in range(draw.integers(0, 3)):
                moved = [float(v) for v in np.array(box) + draw.normal(0, 3, 4)]
                results.append({**kind, "bbox": moved, "score": float(draw.uniform(0.2, 1))})
        for _ in range(draw.integers(0, 3)):
            box = [float(v) for v in (*draw.uniform(0, 80, 2), *draw.uniform(10, 40, 2))]
            kind = {"image_id": 7 * i, "category_id": int(draw.choice([3, 90]))}
            results.append({**kind, "bbox": box, "score": float(draw.uniform(0, 0.8))})
    return truth, results


def repeated(
    truth: dict[str, Any], results: list[dict[str, Any]], counts: list[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same with image i `counts[i]` times, under new ids."""
    again: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
    found: list[dict[str, Any]] = []
    for image, count in zip(truth["images"], counts, strict=True):
        for _ in range(count):
            new = 1000 + len(again["images"])
            again["images"].append({"id": new})
            for rows, kept in ((truth["annotations"], again["annotations"]), (results, found)):
                kept += [{**copy.deepcopy(row), "image_id": new} for row in rows if row["image_id"] == image["id"]]
    return again, found


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_measured_as_pycocotools_measures_it(seed: int, crowds: bool) -> None:
    truth, results = made_up(12, seed, crowds)
    coco_eval = run_coco_eval(truth, results)
    assert ap_of_images(coco_eval, np.ones(12, int)) == pytest.approx(evaluate_coco(truth, results)["AP"], abs=1e-12)
    counts = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12))
    expected = evaluate_coco(*repeated(truth, results, counts.tolist()))["AP"]
    assert ap_of_images(coco_eval, counts) == pytest.approx(expected, abs=1e-12)


def test_draws_repeat_and_spread_around_the_ap() -> None:
    truth, results = made_up(40, 0)
    coco_eval = run_coco_eval(truth, results)
    aps = bootstrap_ap(coco_eval, samples=200, seed=1)
    assert aps.shape == (200,) and (aps == bootstrap_ap(coco_eval, samples=200, seed=1)).all()
    ap = evaluate_coco(truth, results)["AP"]
    assert np.quantile(aps, 0.1) < ap < np.quantile(aps, 0.9)
    assert 0.005 < aps.std() < 0.1


def test_no_detections_and_no_objects() -> None:
    truth, results = made_up(5, 0)
    assert (bootstrap_ap(run_coco_eval(truth, []), samples=3) == 0).all()
    nothing = run_coco_eval({**truth, "annotations": []}, results)
    assert np.isnan(ap_of_images(nothing, np.ones(5, int)))
