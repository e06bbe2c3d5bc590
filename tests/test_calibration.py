"""Calibration: the scores that a loss aims at, what is right by pycocotools, binning, scaling, and a toy run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from focal_tutorial import calibration
from focal_tutorial.calibration import (
    CALIBRATION_SETTINGS,
    EDGES,
    LOGIT_EDGES,
    anchor_reliability,
    calibration_error,
    fit_scaling,
    judge_results,
    logit,
    measure_calibration,
    reliability,
    rescale,
    run_calibration,
    true_probability,
)
from focal_tutorial.comparison import SETTINGS, comparison_model
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.evaluate import run_coco_eval
from focal_tutorial.losses import sigmoid_focal_loss

TOY: dict[str, Any] = {"steps": 2, "shapes": {"num_train": 8, "num_val": 3, "size": 192, "objects": (1, 2)}}


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 0.0), (0.75, 0.0), (0.5, 0.5), (0.25, 1.0), (0.25, 2.0)])
@pytest.mark.parametrize("chance", [0.001, 0.2, 0.5, 0.97])
def test_the_score_that_minimises_the_expected_loss_maps_back_to_the_chance(
    alpha: float | None, gamma: float, chance: float
) -> None:
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    yes, no = (sigmoid_focal_loss(x, torch.full_like(x, t), alpha=alpha, gamma=gamma) for t in (1.0, 0.0))
    best = (chance * yes + (1 - chance) * no).argmin()
    assert float(true_probability(x[best].sigmoid().item(), alpha, gamma)) == pytest.approx(chance, rel=1e-3)


def test_known_places_of_the_map() -> None:
    p = np.linspace(0, 1, 101)
    assert true_probability(p, None, 0.0) == pytest.approx(p)
    assert true_probability(p, 0.5, 2.0)[[0, 50, 100]] == pytest.approx([0, 0.5, 1])  # even, it leaves the middle
    assert true_probability(0.5, 0.25, 2.0) == pytest.approx(0.75)  # α alone shifts it
    assert (np.diff(true_probability(p, 0.25, 2.0)) > 0).all()
    assert (true_probability(p[51:100], 0.5, 2.0) > p[51:100]).all()  # so scores lie nearer to 0.5 than the truth


def coco_eval_of(boxes: list[list[float]], crowds: list[int], found: list[list[float]], scores: list[float]) -> Any:
    truth = {
        "images": [{"id": 3}],
        "categories": [{"id": 5, "name": "cell"}],
        "annotations": [
            {"id": i, "image_id": 3, "category_id": 5, "bbox": box, "iscrowd": crowd}
            for i, (box, crowd) in enumerate(zip(boxes, crowds, strict=True))
        ],
    }
    results = [{"image_id": 3, "category_id": 5, "bbox": b, "score": s} for b, s in zip(found, scores, strict=True)]
    return run_coco_eval(truth, results)


def test_verdicts_come_in_the_order_of_the_results() -> None:
    box, crowd = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 40.0, 40.0]
    found = [[30.0, 0.0, 10.0, 10.0], box, [0.0, 0.0, 10.0, 9.0], [55.0, 55.0, 9.0, 9.0]]
    coco_eval = coco_eval_of([box, crowd], [0, 1], found, [0.9, 0.3, 0.8, 0.7])
    assert judge_results(coco_eval).tolist() == [0, 0, 1, -1]  # wrong place, second best, right, in the crowd
    assert judge_results(coco_eval, iou_index=9).tolist() == [0, 1, 0, -1]
    assert judge_results(coco_eval_of([box], [0], [], [])).tolist() == []


def test_bins_hold_counts_and_means() -> None:
    binned = reliability([0.0, 0.1, 0.3, 1.0, 0.9], [0, 1, 0, 1, 1], np.linspace(0, 1, 5))
    assert binned["count"].tolist() == [2, 1, 0, 2]
    assert binned["score"] == pytest.approx([0.05, 0.3, 0, 0.95])
    assert binned["precision"] == pytest.approx([0.5, 0, 0, 1])
    assert calibration_error(binned) == pytest.approx((2 * 0.45 + 0.3 + 2 * 0.05) / 5)
    assert calibration_error(reliability([], [])) == 0


@pytest.mark.parametrize(("slope", "bias"), [(0.5, 0.0), (2.5, -1.0)])
def test_scaling_finds_what_was_done_to_the_scores(slope: float, bias: float) -> None:
    draw = np.random.default_rng(0)
    chance = draw.uniform(0.01, 0.99, 200_000)
    right = draw.random(len(chance)) < chance
    scores = rescale(chance, 1 / slope, -bias / slope)
    found = fit_scaling(scores, right)
    assert found == pytest.approx((slope, bias), abs=0.03)
    assert calibration_error(reliability(rescale(scores, *found), right)) < 0.005
    alone, nothing = fit_scaling(scores, right, bias=False)
    assert nothing == 0 and (bias != 0 or alone == pytest.approx(slope, abs=0.03))


def test_scaling_survives_sure_scores_and_refuses_one_kind() -> None:
    scores, right = np.array([0.0, 1.0, 1.0, 0.5, 1e-12]), np.array([0, 1, 0, 1, 1])
    slope, bias = fit_scaling(scores, right)
    assert np.isfinite([slope, bias]).all() and np.isfinite(logit(scores)).all()
    for only in (0, 1):
        with pytest.raises(ValueError, match="only one kind"):
            fit_scaling(scores, np.full(5, only))


def test_anchors_are_counted_by_class_without_the_ignored() -> None:
    model, dataset = comparison_model("ce", "cpu", seed=0), ShapesDataset(2, size=192)
    found = anchor_reliability(model.eval(), dataset)
    labels, _ = model.criterion.match(torch.cat(model.anchors((192, 192))), [dataset[i][1] for i in range(2)])
    assert found["count"].sum() == 3 * int((labels > -2).sum())
    assert (found["count"] * found["precision"]).sum() == pytest.approx(int((labels >= 0).sum()))
    assert (found["count"] * found["score"]).sum() / found["count"].sum() == pytest.approx(0.01, abs=0.002)
    assert found["count"][LOGIT_EDGES[1:] > 0.05].sum() == 0  # an untrained model says 0.01 everywhere


def test_measures_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "judge_results", lambda e: np.arange(len(e.cocoDt.anns), dtype=np.int8) % 2)
    setting, model = SETTINGS["fl2"], comparison_model("fl2", "cpu", seed=0)
    found = measure_calibration(model.eval(), setting, 2, size=192)
    metrics, curves = found["metrics"], found["curves"]
    assert model.options.score_threshold == 0.001
    assert set(metrics["ece"]["all"]) == {"raw", "theory", "temperature", "affine"}
    assert metrics["detections"] == sum(curves["raw"]["count"]) == 200
    assert metrics["AP_rescaled"] == pytest.approx(metrics["AP"], abs=1e-12)
    assert metrics["precision_0_5"] == metrics["recall_0_5"] == 0  # nothing of an untrained model is above 0.5
    assert metrics["ece"]["all"]["raw"] == pytest.approx(0.49, abs=0.01)  # scores 0.01, half of them "right"
    assert metrics["ece"]["all"]["affine"] < 0.05
    assert metrics["ece"].keys() == {"all", "shown", "anchors", "anchors_train"}
    assert {name: len(curve["score"]) for name, curve in curves.items() if "anchors" not in name} == {
        name: len(EDGES) - 1 for name in ("raw", "theory", "temperature", "affine")
    }


def test_a_finished_setting_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measure_calibration", lambda *a, **k: {"metrics": {"AP": 0.5}, "curves": {}})
    first = run_calibration("cpu", 0, tmp_path, **TOY)
    assert set(first["metrics"]) == set(CALIBRATION_SETTINGS)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["record.json"] * len(CALIBRATION_SETTINGS)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(calibration, "train", refuse)
    assert run_calibration("cpu", 0, tmp_path, **TOY) == first
    with pytest.raises(InterruptedError):
        run_calibration("cpu", 1, tmp_path, **TOY)
