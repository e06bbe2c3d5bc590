"""The advantage of each loss over cross entropy as a map over imbalance and schedule, and what changes along its axes.

The map is read from a result of `imbalance_map` of `focal_tutorial.paper`, or of its finer sister for a GPU, whose
settings are named LOSS_to_IMBALANCE_steps_STEPS_lr_RATE. Every loss is trained at a few learning rates; what counts in
a field is the rate that was best there on the validation images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from focal_tutorial.focal_term import focal_term_derivative
from focal_tutorial.imbalance import imbalance_report
from focal_tutorial.retinanet import build_model
from focal_tutorial.table_view import Difference, Row, best_row, common_seeds, paired, row
from focal_tutorial.tables import cell_config, cell_data

NAME = re.compile(r"(.+)_to_(\d+)_steps_(\d+)_lr_\w+")
Place = tuple[str, int, int]  # loss, imbalance, steps
FLOOR = 1.0  # AP in points that one loss has to reach before a field says anything about losses


@dataclass(frozen=True)
class AdvantageMap:
    """AP of a few losses over imbalance and schedule; a **field** is one imbalance with one schedule.

    Attributes:
        losses: name → title, the reference first.
        imbalance: background anchors to one of foreground as the settings are named, ascending.
        steps: lengths of the schedules, ascending.
        rows: (loss, imbalance, steps) → AP in points of each seed. What has not been run is missing.
        rates: (loss, imbalance, steps) → the learning rate with which.
    """

    losses: dict[str, str]
    imbalance: tuple[int, ...]
    steps: tuple[int, ...]
    rows: dict[Place, Row]
    rates: dict[Place, float]

    @property
    def reference(self) -> str:
        """The loss that the others are compared with."""
        return next(iter(self.losses))

    def advantage(self, loss: str, imbalance: int, steps: int) -> Difference | None:
        """AP of `loss` minus that of the reference, seed by seed; `None` where one of the two has not been run.

        Told apart from 0 (`Difference.clear`) is what leaves 0 out of its 95 % interval by Student's t. With three
        seeds that interval is 2.5 standard deviations of the difference to each side: it overlooks much, and of twenty
        fields without any difference it still reports one.
        """
        mine, other = (self.rows.get((name, imbalance, steps)) for name in (loss, self.reference))
        return None if mine is None or other is None else paired(mine, other)

    def silent(self, imbalance: int, steps: int) -> bool:
        """Whether no loss reaches an AP of `FLOOR` here: then a difference of 0 says nothing about the losses."""
        found = [self.rows[p].mean for name in self.losses if (p := (name, imbalance, steps)) in self.rows]
        return bool(found) and max(found) < FLOOR

    def best(self, imbalance: int, steps: int) -> list[str]:
        """The losses that may be the best of a field: the highest mean, then all that are not told apart from it.

        Empty where the field is silent or a loss has not been run.
        """
        found = {name: self.rows.get((name, imbalance, steps)) for name in self.losses}
        known = {name: one for name, one in found.items() if one is not None}
        if len(known) < len(found) or self.silent(imbalance, steps):
            return []
        first, *others = sorted(known, key=lambda name: -known[name].mean)
        return [first, *(name for name in others if not paired(known[first], known[name]).clear)]


def advantage_map(result: Mapping[str, Any], metric: str = "AP", *, rate: float | None = None) -> AdvantageMap:
    """The map of a result: each loss in each field at the better one of its learning rates, by `best_rate`.

    Args:
        result: as `load_result` returns it.
        metric: "AP" (detections of a score above 0.05), "AP_any" (all) or another one that comes in points.
        rate: take every loss at this rate instead.

    Raises:
        ValueError: no setting is named as those of a map are and has that rate, or none has been run at all its rates.
    """
    losses: dict[str, str] = {}
    settings: dict[Place, dict[float, str]] = {}
    for name, setting in result["config"]["settings"].items():
        match = NAME.fullmatch(name)
        if match and rate in (None, setting["lr"]):
            place = match[1], int(match[2]), int(match[3])
            losses.setdefault(match[1], setting["title"].partition(", 1 : ")[0])
            settings.setdefault(place, {})[setting["lr"]] = name
    rates = {place: best for place, tried in settings.items() if (best := best_rate(result, tried)) is not None}
    rows = {place: row(result, settings[place][best], metric) for place, best in rates.items()}
    if not rows:
        raise ValueError("no LOSS_to_IMBALANCE_steps_STEPS_lr_RATE of the result has been run at all its rates")
    imbalances, lengths = {place[1] for place in rows}, {place[2] for place in rows}
    return AdvantageMap(losses, tuple(sorted(imbalances)), tuple(sorted(lengths)), rows, rates)


def best_rate(result: Mapping[str, Any], tried: Mapping[float, str]) -> float | None:
    """The rate with the highest mean AP on the validation images, over the seeds that all rates have.

    Args:
        result: as loaded.
        tried: rate → the setting that has it.

    Returns:
        Of equal ones the lowest, so where nothing was learned at any rate the lowest of all. `None` until all have a
        run.
    """
    if any(all(name not in run["metrics"] for run in result["runs"]) for name in tried.values()):
        return None
    rate_of = {name: rate for rate, name in sorted(tried.items())}
    found = [row(result, name, "validation_AP") for name in rate_of]
    return rate_of[best_row(found).setting] if common_seeds(*found) else None


@dataclass(frozen=True)
class SceneCount:
    """The training images of a setting, counted.

    Attributes:
        imbalance: background anchors to one of foreground.
        objects: an image, on average.
        empty: share of the images without an object.
        foreground: foreground anchors to an object.
    """

    imbalance: float
    objects: float
    empty: float
    foreground: float


def count_scenes(setting: dict[str, Any], task: dict[str, Any], images: int | None = None) -> SceneCount:
    """Count what a setting trains on, from its scenes and its anchors; no image is drawn.

    Args:
        setting, task: as for `focal_tutorial.tables.cell_config`.
        images: the first so many; by default all training images.
    """
    config = cell_config({**setting, "lr": 0.0}, task, {}, seed=0)
    if images is not None:
        config["shapes"]["num_train"] = images
    canvas = config["train"]["canvas"]
    model = build_model({"num_classes": 3, "canvas": canvas, **config["model"]})
    given = config["model"]
    thresholds = {name: given[name] for name in ("foreground_iou", "background_iou") if name in given}
    report = imbalance_report(cell_data(config, "train"), model.anchors, canvas=tuple(canvas), **thresholds)
    boxes = max(report.boxes, 1)
    return SceneCount(
        imbalance=report.ratio or float("inf"),
        objects=report.boxes / report.images,
        empty=report.images_without_boxes / report.images,
        foreground=report.foreground.mean * report.images / boxes,
    )


def first_push(
    imbalance: float, alpha: float | None, gamma: float, *, prior: float = 0.01, num_classes: int = 3
) -> float:
    """How much harder background pushes all answers down than objects pull them up, before the first step.

    Every answer is π then, so that the gradient of the loss by a shift of all logits has a closed form: with n
    background anchors to one of foreground and K classes, one term pulls by α |dFL(x_t)/dx_t| at p_t = π, and
    K n + K - 1 terms push by 1 - α times that at p_t = 1 - π.

    Args:
        imbalance: n.
        alpha: weight of the objects' terms; `None` for equal weights.
        gamma: ≥ 0.
        prior: π in (0, 1).
        num_classes: K.

    Returns:
        push / pull.
    """
    x = torch.logit(torch.tensor([prior, 1 - prior], dtype=torch.float64))  # (2,) logits of the truth
    pull, push = focal_term_derivative(x, gamma).abs().tolist()
    weight = 1.0 if alpha is None else (1 - alpha) / alpha
    return float(weight * push * (num_classes * imbalance + num_classes - 1) / pull)


def even_imbalance(alpha: float | None, gamma: float, *, prior: float = 0.01, num_classes: int = 3) -> float:
    """The imbalance at which `first_push` is 1: above it the first steps push answers down, below it up."""
    at_0, at_1 = (first_push(n, alpha, gamma, prior=prior, num_classes=num_classes) for n in (0.0, 1.0))
    return (1 - at_0) / (at_1 - at_0)
