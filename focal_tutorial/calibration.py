"""What a detector's scores mean: how often a detection of score s is right, and how to mend it.

Average precision looks at the order of the scores only. A score is *calibrated* if of all detections with score 0.7
seven in ten are right. Cross entropy aims at that; balanced cross entropy and focal loss do not, and how far off they
aim follows from their formula (`true_probability`). The experiment at the end measures it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pycocotools.cocoeval import COCOeval

from focal_tutorial.checkpoint import read_checkpoint, write_json
from focal_tutorial.comparison import (
    COMPARISON_RECIPES,
    RATES,
    SETTINGS,
    comparison_config,
    comparison_model,
    finished,
    scene_options,
)
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.evaluate import Results, detect, evaluate_coco, run_coco_eval
from focal_tutorial.results import peak_memory
from focal_tutorial.retinanet import RetinaNet
from focal_tutorial.train import train

Array = NDArray[np.float64]

EDGES: Array = np.linspace(0, 1, 21)  # 20 bins of equal width, for detections
# Anchors are nearly all close to 0: bins of equal width in the logit, half a unit from −8 to 8.
LOGIT_EDGES: Array = np.concatenate([[0], 1 / (1 + np.exp(-np.arange(-8, 8.25, 0.5))), [1]])

# Three times as long as the comparison's runs: there cross entropy has caught up enough to have scores worth a look.
CALIBRATION: dict[str, Any] = {"steps": 2400}
CALIBRATION_SETTINGS = ("ce", "bce_75", "fl05", "fl1", "fl2")
LOWEST = 0.001  # detections below this score are not looked at
SHOWN = 0.05  # what a detector shows by default
CUTS = (0.05, 0.3, 0.5)  # score thresholds that AP is measured at


def true_probability(scores: ArrayLike, alpha: float | None, gamma: float) -> Array:
    """The chance of "yes" for which `scores` make the expected focal loss smallest.

    For a question whose answer is yes with chance η the loss to expect of the score p is
    η·α·(1 − p)^γ·(−log p) + (1 − η)·(1 − α)·p^γ·(−log(1 − p)). Setting its derivative to zero gives the odds

    η / (1 − η) = (1 − α) / α · p^γ·(p − γ·(1 − p)·log(1 − p)) / ((1 − p)^γ·(1 − p − γ·p·log p)).

    Args:
        scores: probabilities p in [0, 1], any shape.
        alpha: weight of "yes" in (0, 1); `None` for none.
        gamma: focusing parameter, at least 0.

    Returns:
        η, same shape; with γ = 0 and no α it is p.
    """
    p = np.asarray(scores, float)
    q = 1 - p
    with np.errstate(divide="ignore", invalid="ignore"):
        yes = p**gamma * (p - gamma * np.where(q > 0, q * np.log(q), 0.0))
        no = q**gamma * (q - gamma * np.where(p > 0, p * np.log(p), 0.0))
    yes *= 1 if alpha is None else (1 - alpha) / alpha
    return np.asarray(yes / (yes + no), float)


def judge_results(coco_eval: COCOeval, iou_index: int = 0) -> NDArray[np.int8]:
    """Which results pycocotools' greedy matching finds right: 1 right, 0 wrong, −1 does not count.

    Detections that match a crowd box, and those beyond the 100 best of their image and class, do not count.

    Args:
        coco_eval: of `run_coco_eval`.
        iou_index: 0 for IoU 0.50, 1 for 0.55, … 9 for 0.95.

    Returns:
        `(D,)`, in the order of the results that were evaluated.
    """
    verdict = np.full(len(coco_eval.cocoDt.anns), -1, np.int8)
    for one in coco_eval.evalImgs:  # (class, area range, image); None where there is nothing
        if one is None or one["aRng"] != coco_eval.params.areaRng[0]:
            continue
        right = one["dtMatches"][iou_index] > 0
        counts = ~one["dtIgnore"][iou_index].astype(bool)
        numbers = np.array(one["dtIds"], int) - 1  # loadRes counts from 1
        verdict[numbers[counts]] = right[counts]
    return verdict


def reliability(scores: ArrayLike, right: ArrayLike, edges: Array = EDGES) -> dict[str, Array]:
    """Scores in B bins: `{"count", "score" (mean), "precision" (share that is right)}`, each `(B,)`, 0 where empty.

    Args:
        scores: `(D,)` in [0, 1].
        right: `(D,)` booleans or 0 and 1.
        edges: `(B + 1,)` rising from 0 to 1; a score on an edge belongs to the bin above it.
    """
    values, bins = np.asarray(scores, float), len(edges) - 1
    number = np.searchsorted(edges[1:-1], values, side="right")  # (D,) in 0…B−1
    count = np.bincount(number, minlength=bins).astype(float)
    sums = (np.bincount(number, weights, bins) for weights in (values, np.asarray(right, float)))
    score, precision = (np.divide(total, count, out=np.zeros(bins), where=count > 0) for total in sums)
    return {"count": count, "score": score, "precision": precision}


def calibration_error(binned: dict[str, Array]) -> float:
    """The mean difference between score and precision over the bins of `reliability`, weighted by count: the ECE."""
    gap = np.abs(binned["score"] - binned["precision"])
    return float((binned["count"] * gap).sum() / max(binned["count"].sum(), 1))


def fit_scaling(scores: ArrayLike, right: ArrayLike, *, bias: bool = True, steps: int = 50) -> tuple[float, float]:
    """Slope a and bias b for which σ(a·logit(score) + b) has the smallest log loss (Platt scaling), by Newton's method.

    The temperature is 1 / a.

    Args:
        scores: `(D,)` in [0, 1].
        right: `(D,)` booleans or 0 and 1, with some of both.
        bias: fit b too; without, it is 0 (temperature scaling).
        steps: of Newton's method, at most.

    Raises:
        ValueError: if all are right, or none is.
    """
    y = np.asarray(right, float)
    if y.min(initial=1) == y.max(initial=0):
        raise ValueError("right: some right and some wrong detections wanted, there is only one kind")
    x = np.stack([logit(scores), np.ones(len(y))], axis=1)[:, : 1 + bias]  # (D, 1 or 2)
    weights = np.array([1.0, 0.0])[: 1 + bias]
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = (x * (p * (1 - p))[:, None]).T @ x
        step = np.linalg.solve(hessian, x.T @ (p - y))
        before = _log_loss(x @ weights, y)
        while _log_loss(x @ (weights - step), y) > before and np.abs(step).max() > 1e-10:
            step = step / 2  # a first step can be far too long
        weights = weights - step
        if np.abs(step).max() <= 1e-10:
            break
    return float(weights[0]), float(weights[1]) if bias else 0.0


def _log_loss(x: Array, y: Array) -> float:
    return float((np.logaddexp(0, x) - x * y).sum())


def rescale(scores: ArrayLike, slope: float, bias: float = 0.0) -> Array:
    """σ(slope·logit(score) + bias), same shape as `scores`."""
    return np.asarray(1 / (1 + np.exp(-(slope * logit(scores) + bias))), float)


def logit(scores: ArrayLike) -> Array:
    """log(p / (1 − p)), with p kept 1e−7 away from 0 and 1."""
    p = np.clip(np.asarray(scores, float), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p), float)


@torch.no_grad()
def anchor_reliability(model: RetinaNet, dataset: DetectionDataset) -> dict[str, Array]:
    """`reliability` over `LOGIT_EDGES` of all questions that training asks: each class of each anchor not ignored."""
    ones = []
    for image, target in (dataset[i] for i in range(len(dataset))):
        batch, _, _, targets = model.preprocess([torch.as_tensor(image)], [target])
        logits, _ = model.network(batch)  # (1, R, K)
        labels, _ = model.criterion.match(torch.cat(model.anchors((batch.shape[-2], batch.shape[-1]))), targets)
        scores = logits[labels > -2].sigmoid()  # (R', K)
        truth = labels[labels > -2][:, None] == torch.arange(logits.shape[-1])
        ones.append(reliability(scores.flatten().numpy(), truth.flatten().numpy(), LOGIT_EDGES))
    counts = np.stack([one["count"] for one in ones])  # (N, B)
    count = counts.sum(0)
    means = {
        name: (counts * np.stack([one[name] for one in ones])).sum(0) / np.maximum(count, 1)
        for name in ("score", "precision")
    }
    return {"count": count, **means}


def measure_calibration(model: RetinaNet, setting: dict[str, Any], num_images: int, **shapes: Any) -> dict[str, Any]:
    """Scores of a trained model on test images, as they are and rescaled: `{"metrics": …, "curves": …}`.

    Three ways to rescale: "theory" is `true_probability` for the setting's α and γ, without any fit; "temperature"
    and "affine" (with a bias) are fitted on validation images.

    Args:
        model: of `comparison_model`, trained.
        setting: of `comparison.SETTINGS`.
        num_images: of each split.
        shapes: options of `ShapesDataset`.
    """
    model.options = replace(model.options, score_threshold=LOWEST)
    found, truth, right = {}, {}, {}
    for split in ("val", "test"):
        dataset = ShapesDataset(num_images, split=split, **shapes)
        found[split], truth[split] = detect(model, dataset), dataset.coco_dict()
        right[split] = judge_results(run_coco_eval(truth[split], found[split]))
    scores = {split: np.array([r["score"] for r in found[split]]) for split in found}
    slope, _ = fit_scaling(scores["val"], right["val"] == 1, bias=False)
    affine = fit_scaling(scores["val"], right["val"] == 1)
    maps: dict[str, Callable[[Array], Array]] = {
        "raw": lambda p: p,
        "theory": lambda p: true_probability(p, setting["alpha"], setting["gamma"]),
        "temperature": lambda p: rescale(p, slope),
        "affine": lambda p: rescale(p, *affine),
    }
    metrics = {
        **_at_thresholds(truth["test"], found["test"], maps["affine"]),
        **_scores_of_the_right(scores["test"], right["test"], len(truth["test"]["annotations"])),
        "scaling": {"temperature_alone": 1 / slope, "temperature": 1 / affine[0], "bias": affine[1]},
    }
    anchors = {  # on images that it has learnt and on others
        name: anchor_reliability(model, ShapesDataset(num_images, split=split, **shapes))
        for name, split in (("anchors", "test"), ("anchors_train", "train"))
    }
    curves = {name: reliability(change(scores["test"]), right["test"] == 1) for name, change in maps.items()}
    shown = scores["test"] >= SHOWN
    metrics["ece"] = {
        "all": {name: calibration_error(curve) for name, curve in curves.items()},
        "shown": {
            name: calibration_error(reliability(change(scores["test"][shown]), right["test"][shown] == 1))
            for name, change in maps.items()
        },
        **{which: {name: _anchor_error(anchors[which], maps[name]) for name in ("raw", "theory")} for which in anchors},
    }
    return {"metrics": metrics, "curves": {name: _short(curve) for name, curve in {**curves, **anchors}.items()}}


def _at_thresholds(truth: dict[str, Any], found: Results, change: Callable[[Array], Array]) -> dict[str, Any]:
    """AP of all detections, of those above each of `CUTS`, and of all with their scores rescaled."""
    rescaled = change(np.array([r["score"] for r in found]))
    sets = {
        "": found,
        **{f"_{cut:g}".replace(".", "_"): [r for r in found if r["score"] >= cut] for cut in CUTS},
        "_rescaled": [{**r, "score": float(s)} for r, s in zip(found, rescaled, strict=True)],
    }
    aps = {name: evaluate_coco(truth, results) for name, results in sets.items()}
    return {f"{key}{name}": ap[key] for name, ap in aps.items() for key in ("AP", "AP50", "AR100")}


def _scores_of_the_right(scores: Array, right: NDArray[np.int8], objects: int) -> dict[str, float]:
    """The mean score of right detections, and how many of the best, as many as there are objects, are right."""
    best = np.argsort(-scores, kind="stable")[:objects]
    return {
        "detections": len(scores),
        "objects": objects,
        "score_right": float(scores[right == 1].mean()),
        "score_best": float(scores[best].mean()),
        "precision_best": float((right[best] == 1).mean()),
        **{
            f"{name}_{cut:g}".replace(".", "_"): float(value)
            for cut in CUTS
            for name, value in (
                ("precision", (right[scores >= cut] == 1).mean() if (scores >= cut).any() else 0.0),
                ("recall", ((right == 1) & (scores >= cut)).sum() / objects),
            )
        },
    }


def _anchor_error(anchors: dict[str, Array], change: Callable[[Array], Array]) -> float:
    """The ECE of anchors with a probability from `SHOWN` on: below lie nearly all, and they would hide the rest."""
    kept = {name: column[anchors["score"] >= SHOWN] for name, column in anchors.items()}
    return calibration_error({**kept, "score": change(kept["score"])})


def _short(curve: dict[str, Array]) -> dict[str, list[float]]:
    return {name: [float(f"{value:.4g}") if name != "count" else value for value in column.tolist()]
            for name, column in curve.items()}  # fmt: skip


def calibration_recipe(profile: str) -> dict[str, Any]:
    """The configuration of the experiment as its result holds it."""
    kept = {name: SETTINGS[name] for name in CALIBRATION_SETTINGS}
    rates = {s["family"]: RATES[profile][s["family"]] for s in kept.values()}
    own = {"edges": EDGES.round(4).tolist(), "lowest": LOWEST, "shown": SHOWN, "cuts": CUTS}
    return {**COMPARISON_RECIPES[profile], **CALIBRATION, **own, "settings": kept, "rates": rates}


def run_calibration(
    profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any
) -> dict[str, Any]:
    """`CALIBRATION_SETTINGS` with one seed: "metrics" and "curves" of `measure_calibration` by setting, and the cost.

    A setting that `out` holds finished, with the same configuration, is read.
    """
    runs = {name: _run_setting(name, profile, seed, out / name, **changes) for name in CALIBRATION_SETTINGS}
    return {
        **{what: {name: run[what] for name, run in runs.items()} for what in ("metrics", "curves")},
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
        "peak_memory_mib": max(run["peak_memory_mib"] or 0 for run in runs.values()) or None,
    }


def _run_setting(setting: str, profile: str, seed: int, out: Path, **changes: Any) -> dict[str, Any]:
    record, folder, changes = out / "record.json", out / "run", {**CALIBRATION, **changes}
    begun = {"recipe": calibration_recipe(profile), "changes": changes, "seed": seed}
    if (stored := finished(record, begun)) is not None:
        return stored
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    start = time.perf_counter()
    config = comparison_config(profile, RATES[profile][SETTINGS[setting]["family"]], seed, folder, **changes)
    model = comparison_model(setting, profile, seed).to(config.device)
    train(config, model=model, progress=False)
    model.load_state_dict(read_checkpoint(folder / "best.pt")["model"])  # the averaged weights
    found = measure_calibration(model.eval(), SETTINGS[setting], config.shapes["num_val"], **scene_options(config))
    seconds = round(time.perf_counter() - start, 1)
    run = {**found, "seconds": seconds, "peak_memory_mib": peak_memory(config.device)}
    shutil.rmtree(folder)
    write_json(record, {"begun": begun, **run})
    return run
