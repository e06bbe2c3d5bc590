"""How imbalanced is *this* dataset for *these* anchors: counts, coverage, bad boxes. What a person with "mAP 0" needs.

No image is decoded: sizes come from the annotations, and anchors are counted by `coverage`, without laying them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.coverage import Array, Indices, anchor_grids, best_iou, count_matches, shape_iou
from focal_tutorial.data.coco import CocoData
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.errors import InputError
from focal_tutorial.imbalance_counts import (
    Boxes,
    ClassCount,
    Histogram,
    LevelCount,
    Mask,
    Spread,
    as_coco,
    balance,
    box_sides,
    collect,
    count_classes,
    count_levels,
    describe_anchors,
    describe_input,
    evenly,
    groups,
    histograms,
    size_bins,
)
from focal_tutorial.preprocess import Preprocess
from focal_tutorial.remedies import Change, SmallestAnchor, changes_that_help, smallest_anchor

IMAGES_AT_A_TIME = 2000  # bounds the memory: about a million candidate anchors at seven boxes an image
WORST = 1000  # unreached boxes listed in the JSON, worst first


@dataclass(frozen=True)
class UnreachedBox:
    """A box that no anchor overlaps enough; width and height in pixels of the network's input."""

    file: str
    id: int | str | None
    name: str
    width: float
    height: float
    best_iou: float
    reason: str


@dataclass
class ImbalanceReport:
    """What `imbalance_report` found; `str()` is the text, `to_dict()` the JSON, `plotting.imbalance` the picture."""

    dataset: str
    images: int  # in the dataset
    counted: int  # of them, looked at
    boxes: int
    input: str  # how an image gets to the network
    anchors: dict[str, Any]  # the anchor setting
    thresholds: dict[str, float]
    classes: list[ClassCount]
    levels: list[LevelCount]
    anchors_per_image: float
    foreground: Spread
    ignored: Spread
    background: Spread
    ratio: float | None  # background anchors per foreground anchor; None without foreground
    alpha: float | None  # inverse class frequency over anchors: background / (background + foreground)
    alpha_terms: float | None  # the same over the loss's K terms per anchor
    images_without_boxes: int
    images_without_foreground: int  # among those with boxes
    sides: Histogram  # √(w·h) at the network's input, per class
    ratios: Histogram  # height / width, per class
    best_ious: Histogram  # highest IoU with any anchor, per class
    unreached: int
    reasons: dict[str, int]
    unreached_by_size: dict[str, int]
    unreached_boxes: list[UnreachedBox]
    rescued: dict[str, int]  # unreached boxes that the best-anchor rule gives an anchor, by its lower bound on IoU
    crowded_out: int  # reached boxes whose anchors all go to a neighbour
    changes: list[Change]
    smallest: SmallestAnchor | None
    problems: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values, with the plain-language findings under `findings`."""
        from focal_tutorial.imbalance_text import findings

        return {**asdict(self), "findings": findings(self)}

    def text(self, *, problems: int | None = 20) -> str:
        """The report as tables and sentences; at most `problems` of the data's problems, all with `None`."""
        from focal_tutorial.imbalance_text import report_text

        return report_text(self, problems=problems)

    def __str__(self) -> str:
        return self.text().rstrip()


def imbalance_report(
    dataset: CocoData | DetectionDataset,
    anchors: AnchorGenerator | None = None,
    *,
    canvas: tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
    limit: int | None = None,
) -> ImbalanceReport:
    """Count boxes, anchors and what goes unseen, for a dataset and an anchor setting.

    Args:
        dataset: as `read_coco` gives it, or a `CocoDataset` or `ShapesDataset`; its
            `problems` go into the report.
        anchors: the paper's by default; `model.anchors` for a model.
        canvas: (height, width) in pixels that images are fitted into and padded to.
        preprocess: `model.preprocess`, in place of `canvas`; without either, torchvision's 800/1333 rule.
        foreground_iou, background_iou: as in `match_anchors`.
        limit: look at no more images than this, spread evenly over the dataset.

    Raises:
        InputError: `limit` is below 1.

    Source: RetinaNet paper §1 and §3 (the imbalance), §3.1 (α by inverse frequency), §4 (the assignment).
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: at least 1 image wanted, got {limit}")
    anchors = anchors or AnchorGenerator()
    preprocess = preprocess or Preprocess(canvas=canvas)
    data = dataset if isinstance(dataset, CocoData) else as_coco(dataset)
    chosen = evenly(len(data.images), limit)
    boxes = collect(data, chosen, preprocess)
    best, shape, per_box, foreground, ignored, totals = _count(boxes, anchors, (foreground_iou, background_iou))
    missed = best < foreground_iou
    with_boxes = np.unique(boxes.image)
    return ImbalanceReport(
        dataset=Path(data.file).name,
        images=len(data.images),
        counted=len(chosen),
        boxes=len(boxes.labels),
        input=describe_input(preprocess, boxes.padded),
        anchors=describe_anchors(anchors),
        thresholds={"foreground_iou": foreground_iou, "background_iou": background_iou},
        classes=count_classes(data.class_names, boxes, missed),
        levels=count_levels(anchors, foreground, ignored, totals),
        **balance(foreground.sum(1), ignored.sum(1), totals.sum(1), len(data.class_names)),
        images_without_boxes=len(chosen) - len(with_boxes),
        images_without_foreground=int((foreground.sum(1)[with_boxes] == 0).sum()),
        **histograms(boxes, best, data.class_names),
        **_unreached(data.class_names, boxes, anchors, best, shape, missed, foreground_iou),
        rescued={f"{low:g}": int((missed & (best > 0) & (best >= low)).sum()) for low in (background_iou, 0.0)},
        crowded_out=int((~missed & (per_box == 0)).sum()),
        problems=[asdict(problem) for problem in data.problems],
    )


def _count(
    boxes: Boxes, anchors: AnchorGenerator, thresholds: tuple[float, float]
) -> tuple[Array, Array, Indices, Indices, Indices, Indices]:
    """Of each box best IoU, by shape alone, and foreground anchors; per image and level foreground, ignored, all."""
    best, shape = np.zeros(len(boxes.labels)), np.zeros(len(boxes.labels))
    per_box = np.zeros(len(boxes.labels), np.int64)
    foreground, ignored, totals = (np.zeros((len(boxes.files), len(anchors.levels)), np.int64) for _ in range(3))
    for group, inside in groups(boxes):
        grids = anchor_grids(anchors, boxes.padded[group[0]])
        totals[group] = [grid.size for grid in grids]
        for start in range(0, len(group), IMAGES_AT_A_TIME):
            part = group[start : start + IMAGES_AT_A_TIME]
            mine = inside[(boxes.image[inside] >= part[0]) & (boxes.image[inside] <= part[-1])]
            at = np.searchsorted(part, boxes.image[mine])
            matches = count_matches(boxes.boxes[mine], at, len(part), grids, *thresholds)
            foreground[part], ignored[part], per_box[mine] = (
                matches.foreground,
                matches.ignored,
                matches.per_box,
            )
            best[mine] = best_iou(boxes.boxes[mine], grids)
            shape[mine] = shape_iou(boxes.boxes[mine], grids)
    return best, shape, per_box, foreground, ignored, totals


def _reasons(sides: Array, anchors: AnchorGenerator, shape: Array, missed: Mask, need: float) -> list[str]:
    """Why no anchor reaches a box: off the grid, too small, too large, or too elongated."""
    area = sides.prod(1)
    low = (min(anchors.sizes) * min(anchors.scales)) ** 2
    high = (max(anchors.sizes) * max(anchors.scales)) ** 2
    rules = [
        (shape >= need, "between anchors"),  # the shape would do, but no anchor stands near enough
        (area < low * need, "too small"),  # even inside the anchor, the box fills less than `need` of it
        (area > high / need, "too large"),
    ]
    chosen = np.select([rule for rule, _ in rules], range(len(rules)), default=len(rules))
    texts = [text for _, text in rules] + ["too elongated"]
    return [texts[i] if bad else "" for i, bad in zip(chosen, missed, strict=True)]


def _unreached(
    names: Sequence[str], boxes: Boxes, anchors: AnchorGenerator, best: Array, shape: Array,
    missed: Mask, need: float,
) -> dict[str, Any]:  # fmt: skip
    sides = box_sides(boxes)
    reasons = _reasons(sides, anchors, shape, missed, need)
    worst = [
        UnreachedBox(
            file=boxes.files[boxes.image[i]],
            id=boxes.ids[i],
            name=names[boxes.labels[i]],
            width=round(float(sides[i, 0]), 1),
            height=round(float(sides[i, 1]), 1),
            best_iou=round(float(best[i]), 4),
            reason=reasons[i],
        )
        for i in sorted(np.nonzero(missed)[0], key=lambda i: best[i])[:WORST]
    ]
    parts = [(boxes.padded[group[0]], boxes.boxes[inside], len(group)) for group, inside in groups(boxes)]
    return {
        "unreached": int(missed.sum()),
        "reasons": dict(Counter(reason for reason in reasons if reason).most_common()),
        "unreached_by_size": {k: int((missed & inside).sum()) for k, inside in size_bins(boxes.areas).items()},
        "unreached_boxes": worst,
        "changes": changes_that_help(anchors, parts, need) if missed.any() else [],
        "smallest": smallest_anchor(anchors, parts, need) if missed.any() else None,
    }
