"""The counting behind the imbalance report: a dataset's boxes at the network's input, by class, size and level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.coverage import Array, Indices
from focal_tutorial.data.coco import CocoData, CocoDataset
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.preprocess import Preprocess

Mask = NDArray[np.bool_]
SMALL, MEDIUM = 32.0**2, 96.0**2  # COCO's bins: areas in pixels of the original image


@dataclass(frozen=True)
class Spread:
    """A count per image over the images."""

    mean: float
    median: float
    min: int
    max: int

    @staticmethod
    def of(values: Indices) -> Spread:
        if not len(values):
            return Spread(0.0, 0.0, 0, 0)
        return Spread(float(values.mean()), float(np.median(values)), int(values.min()), int(values.max()))


@dataclass(frozen=True)
class ClassCount:
    """Boxes of one class; sides in pixels of the network's input."""

    name: str
    boxes: int
    images: int
    small: int
    medium: int
    large: int
    median_side: float | None
    unreached: int


@dataclass(frozen=True)
class LevelCount:
    """Anchors of one pyramid level, per image; `sides` are the smallest and largest √(w·h) in pixels of the input."""

    level: int
    stride: int
    sides: tuple[float, float]
    anchors: float
    foreground: Spread
    ignored: Spread
    background: Spread


@dataclass(frozen=True)
class Histogram:
    """`counts[series][i]` values lie in [edges[i], edges[i + 1])."""

    edges: list[float]
    counts: dict[str, list[int]]


@dataclass(frozen=True)
class Boxes:
    """The good boxes of the counted images, image by image."""

    boxes: Array  # (M, 4) xyxy in pixels of the network's input
    areas: Array  # (M,) COCO areas in pixels of the original
    labels: Indices  # (M,)
    image: Indices  # (M,) position among the counted images
    ids: list[int | str | None]  # (M,) annotation ids
    files: list[str]  # (I,) file names
    padded: list[tuple[int, int]]  # (I,) size of the network's input, height and width


def evenly(total: int, limit: int | None) -> list[int]:
    """`limit` positions spread evenly over 0 … `total` − 1; all of them without a limit."""
    if limit is None or limit >= total:
        return list(range(total))
    return [int(i) for i in np.linspace(0, total - 1, limit).round()]


def as_coco(dataset: DetectionDataset) -> CocoData:
    """The annotations of a dataset as `read_coco` would give them; no image is read."""
    if isinstance(dataset, CocoDataset):
        return dataset.data
    coco = dataset.coco_dict()
    records: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco["images"]}
    for record in coco["annotations"]:
        records[record["image_id"]].append(record)
    per_image = [dataset.boxes_and_labels(i) for i in range(len(dataset))]
    boxes = np.concatenate([part.numpy() for part, _ in per_image]).reshape(-1, 4)
    labels = np.concatenate([part.numpy() for _, part in per_image])
    name = dataset.annotation_file or type(dataset).__name__
    crowd = np.zeros(len(labels), bool)
    annotations = [records[image["id"]] for image in coco["images"]]
    return CocoData(name, coco["images"], annotations, coco["categories"], boxes, labels, crowd, dataset.problems)


def groups(boxes: Boxes) -> list[tuple[list[int], Indices]]:
    """Images that the network sees at one size, with the indices of their boxes: they share one set of anchors."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(boxes.padded):
        by_size.setdefault(size, []).append(i)
    which = np.empty(len(boxes.padded), np.int64)
    for number, members in enumerate(by_size.values()):
        which[members] = number
    return [(members, np.nonzero(which[boxes.image] == n)[0]) for n, members in enumerate(by_size.values())]


def collect(data: CocoData, chosen: Sequence[int], preprocess: Preprocess) -> Boxes:
    """The boxes of the chosen images, scaled to the network's input; crowds are left out, as in training."""
    counts = np.array([len(records) for records in data.annotations], np.int64)
    place = np.full(len(counts), -1, np.int64)
    place[list(chosen)] = np.arange(len(chosen))
    image = place[np.repeat(np.arange(len(counts)), counts)]
    keep = (image >= 0) & ~data.crowd
    records = [record for some in data.annotations for record in some]
    records = [records[i] for i in np.nonzero(keep)[0]]
    sizes = [(data.images[i]["height"], data.images[i]["width"]) for i in chosen]
    resized = [preprocess.resized(size) for size in sizes]
    scale = np.array(resized, float).reshape(-1, 2) / np.array(sizes, float).reshape(-1, 2)  # (I, 2) y, x
    at = image[keep]
    plain = data.boxes[keep].astype(float)
    areas = (plain[:, 2:] - plain[:, :2]).prod(1)
    given = [record.get("area") for record in records]  # pycocotools bins by `area`, which may be a mask's
    areas = np.array(
        [a if isinstance(a, int | float) and a > 0 else b for a, b in zip(given, areas, strict=True)], float
    )
    return Boxes(
        plain * np.tile(scale[at][:, ::-1], 2),
        areas,
        data.labels[keep],
        at,
        [record.get("id") for record in records],
        [data.images[i]["file_name"] for i in chosen],
        [preprocess.canvas or preprocess.padded([size]) for size in resized],
    )


def box_sides(boxes: Boxes) -> Array:
    return boxes.boxes[:, 2:] - boxes.boxes[:, :2]


def size_bins(areas: Array) -> dict[str, Mask]:
    """Which boxes are small (area < 32²), medium, large (≥ 96²), in pixels of the original image."""
    return {"small": areas < SMALL, "medium": (areas >= SMALL) & (areas < MEDIUM), "large": areas >= MEDIUM}


def count_classes(names: Sequence[str], boxes: Boxes, missed: Mask) -> list[ClassCount]:
    side = np.sqrt(box_sides(boxes).prod(1))
    rows = []
    for label, name in enumerate(names):
        mine = boxes.labels == label
        bins = {key: int(inside.sum()) for key, inside in size_bins(boxes.areas[mine]).items()}
        rows.append(
            ClassCount(
                name=name,
                boxes=int(mine.sum()),
                images=len(np.unique(boxes.image[mine])),
                **bins,
                median_side=round(float(np.median(side[mine])), 2) if mine.any() else None,
                unreached=int((mine & missed).sum()),
            )
        )
    return rows


def count_levels(anchors: AnchorGenerator, foreground: Indices, ignored: Indices, totals: Indices) -> list[LevelCount]:
    rows = []
    for i, (level, stride, size) in enumerate(zip(anchors.levels, anchors.strides, anchors.sizes, strict=True)):
        counts = (foreground[:, i], ignored[:, i], totals[:, i] - foreground[:, i] - ignored[:, i])
        sides = (size * min(anchors.scales), size * max(anchors.scales))
        rows.append(LevelCount(level, stride, sides, float(totals[:, i].mean()), *map(Spread.of, counts)))
    return rows


def balance(foreground: Indices, ignored: Indices, totals: Indices, num_classes: int) -> dict[str, Any]:
    background = totals - foreground - ignored
    positive, negative = int(foreground.sum()), int(background.sum())
    terms = (positive + negative) * num_classes  # one sigmoid per class and anchor; ignored anchors have none
    return {
        "anchors_per_image": float(totals.mean()),
        "foreground": Spread.of(foreground),
        "ignored": Spread.of(ignored),
        "background": Spread.of(background),
        "ratio": negative / positive if positive else None,
        "alpha": negative / (negative + positive) if positive else None,
        "alpha_terms": 1 - positive / terms if positive else None,
    }


def histograms(boxes: Boxes, best: Array, names: Sequence[str]) -> dict[str, Any]:
    """Sides and ratios in half octaves, best IoUs in steps of 0.05, each per class."""
    width, height = box_sides(boxes).T
    return {
        "sides": histogram(np.sqrt(width * height), 2.0 ** np.arange(1, 11.01, 0.5), boxes.labels, names),
        "ratios": histogram(height / width, 2.0 ** np.arange(-4, 4.01, 0.5), boxes.labels, names),
        "best_ious": histogram(best, np.linspace(0, 1, 21), boxes.labels, names),
    }


def histogram(values: Array, edges: Array, labels: Indices, names: Sequence[str]) -> Histogram:
    """Counts per class; what lies beyond the edges goes into the outer bins."""
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], 0))
    counts = {name: np.histogram(inside[labels == k], edges)[0].tolist() for k, name in enumerate(names)}
    return Histogram([round(float(edge), 4) for edge in edges], counts)


def describe_anchors(anchors: AnchorGenerator) -> dict[str, Any]:
    """The anchor setting as JSON-able values."""
    return {
        "levels": list(anchors.levels),
        "strides": list(anchors.strides),
        "sizes": list(anchors.sizes),
        "ratios": list(anchors.ratios),
        "scales": [round(scale, 4) for scale in anchors.scales],
        "per_location": anchors.num_anchors,
    }


def describe_input(preprocess: Preprocess, padded: Sequence[tuple[int, int]]) -> str:
    if preprocess.canvas is not None:
        return f"{preprocess.canvas[1]}×{preprocess.canvas[0]} px, images fitted in and padded"
    most, count = Counter(padded).most_common(1)[0]
    often = "" if count == len(padded) else " (most often)"
    rule = f"shorter side {preprocess.min_size} px, longer at most {preprocess.max_size} px"
    rule = "images not resized" if preprocess.min_size is None else rule
    return f"{most[1]}×{most[0]} px after padding{often}, {rule}"
