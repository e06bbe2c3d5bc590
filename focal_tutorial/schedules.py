"""What the learning rate and the warm-up decide: at which rates the loss dies, and what keeps it alive (chapter 11).

The comparison's images and network, the focal loss and the paper's optimiser at a grid of rates: as it is, with
warm-up, and with clipped gradients. Two kinds of heads: without normalisation, as in the paper, and with GroupNorm, as
`retinanet_tiny` has them.
"""

from __future__ import annotations

import csv
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from focal_tutorial.comparison import COMPARISON_RECIPES, SGD, comparison_config, scene_options
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import detect, evaluate_coco
from focal_tutorial.results import peak_memory
from focal_tutorial.retinanet import RetinaNet, build_model
from focal_tutorial.train import train

# What replaces the comparison's settings: SGD, a rate that stays where the warm-up leaves it, no averaged weights.
CONSTANT: dict[str, Any] = {**SGD, "steps": 300, "schedule": "step", "milestones": (), "ema": None, "log_every": 1}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {"head_norm": None, "rates": (0.0025, 0.005, 0.01, 0.02)},
    "group": {"head_norm": "group", "rates": (0.03, 0.1, 0.3, 1.0)},
}
TREATMENTS: dict[str, dict[str, Any]] = {
    "cold": {"warmup_steps": 0},
    "warm": {"warmup_steps": 100},
    "clipped": {"warmup_steps": 0, "clip_grad": 1.0},
}
BLOCK = 10  # steps that share a point of the loss curve
LOOK_IMAGES = 8  # that `logit_spread` is measured on


def warmup_recipe(profile: str) -> dict[str, Any]:
    """The configuration of the experiment as its result holds it."""
    return {**COMPARISON_RECIPES[profile], **CONSTANT, "heads": HEADS, "treatments": TREATMENTS}


def rate_name(lr: float) -> str:
    """A rate as a key that a path can hold: "0_01"."""
    return f"{lr:g}".replace(".", "_")


def warmup_model(head: str, profile: str, seed: int) -> RetinaNet:
    """The comparison's network with the weights of `seed` and one of the two kinds of heads."""
    recipe = COMPARISON_RECIPES[profile]
    size = recipe["shapes"]["size"]
    torch.manual_seed(seed)
    options = {**recipe["model_options"], "canvas": (size, size), "head_norm": HEADS[head]["head_norm"]}
    return build_model({"builder": recipe["model"], "num_classes": 3, **options})


@torch.no_grad()
def logit_spread(model: RetinaNet, images: Tensor) -> float:
    """How much a class logit differs from place to place: its standard deviation over an image, meaned.

    0 for a model that says the same everywhere, as one does whose class subnet is dead.

    Args:
        images: `(N, 3, H, W)`, float in [0, 1] or uint8.
    """
    batch = model.preprocess(images.to(next(model.parameters()).device)).images
    logits, _ = model.network(batch)  # (N, R, K)
    per_place = logits.unflatten(1, (-1, model.anchors.num_anchors))  # (N, places, A, K)
    return float(per_place.std(1).mean())


def run_rate(
    head: str, treatment: str, profile: str, lr: float, seed: int, out: Path, **changes: Any
) -> dict[str, Any]:
    """One short training and what became of it.

    Returns:
        A dictionary. "diverged_step" is that of the first loss that is not finite, or None; "losses" go up to there,
        a mean for each `BLOCK`; "metrics" holds "survived" (1 or 0) and, where it survived, "final_loss" (mean of the
        last 20 steps), "AP", "AP_any_score" (without a score threshold) on the test images, and "spread", see
        `logit_spread`. A run that did not survive detects nothing: both AP are 0.
    """
    config = comparison_config(profile, lr, seed, out, **{**CONSTANT, **TREATMENTS[treatment], **changes})
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped
    scenes, num_test = scene_options(config), config.shapes["num_val"]
    config.shapes = {**config.shapes, "num_val": 1}  # train looks at validation images, and nothing here depends on it
    model = warmup_model(head, profile, seed).to(config.device)
    diverged = None
    metrics: dict[str, Any] = {"survived": 1, "AP": 0.0, "AP_any_score": 0.0}
    try:
        train(config, model=model, progress=False)
    except InputError as error:
        diverged = re.search(r"not finite at step (\d+)", str(error))
        if diverged is None:
            raise
        metrics["survived"] = 0
    with (out / "log.csv").open(encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    if diverged is None:
        look = ShapesDataset(LOOK_IMAGES, **scenes)
        images = [look[i][0].as_subclass(Tensor) for i in range(LOOK_IMAGES)]
        metrics["spread"] = round(logit_spread(model, torch.stack(images)), 5)
        metrics["final_loss"] = _mean(losses[-20:])
        metrics |= both_aps(model, ShapesDataset(num_test, split="test", **scenes))
    shutil.rmtree(out)
    return {
        "metrics": metrics,
        "diverged_step": int(diverged[1]) if diverged else None,
        "losses": [_mean(losses[i : i + BLOCK]) for i in range(0, len(losses), BLOCK)],
    }


def _mean(values: list[float]) -> float:
    """To four digits: all that a curve needs."""
    return float(f"{sum(values) / len(values):.4g}")


def both_aps(model: RetinaNet, dataset: ShapesDataset) -> dict[str, float]:
    """ "AP" with the model's score threshold and "AP_any_score" without one, from the same detections."""
    threshold = model.options.score_threshold
    model.options = replace(model.options, score_threshold=0.0)
    results = detect(model, dataset)
    model.options = replace(model.options, score_threshold=threshold)
    truth = dataset.coco_dict()
    sure = [found for found in results if found["score"] > threshold]
    return {"AP": evaluate_coco(truth, sure)["AP"], "AP_any_score": evaluate_coco(truth, results)["AP"]}


def run_warmup(profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any) -> dict[str, Any]:
    """Every head, rate and treatment with one seed.

    Returns:
        "metrics" and "diverged_step" of `run_rate` as `[head][rate][treatment]`, "losses" the same way, and the cost.
    """
    start = time.perf_counter()
    found: dict[str, Any] = {"metrics": {}, "diverged_step": {}, "losses": {}}
    for head, settings in HEADS.items():
        for lr in settings["rates"]:
            for treatment in TREATMENTS:
                run = run_rate(head, treatment, profile, lr, seed, out / f"{head}-{lr:g}-{treatment}", **changes)
                for what, part in found.items():
                    part.setdefault(head, {}).setdefault(rate_name(lr), {})[treatment] = run[what]
    seconds = round(time.perf_counter() - start, 1)
    device = comparison_config(profile, 1.0, seed, out).device
    return {**found, "seconds": seconds, "peak_memory_mib": peak_memory(device)}
