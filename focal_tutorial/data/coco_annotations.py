"""Checks of a COCO file's annotations: keys and types, references, boxes; all boxes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from focal_tutorial.data.coco_images import Json, is_int, short
from focal_tutorial.data.problems import Problem
from focal_tutorial.errors import InputError

EDGE_TOLERANCE = 0.5  # pixels a box may reach over the edge before it is reported; less is rounding
REASONS = (
    "unknown image",
    "unknown category",
    "non-finite box",
    "negative-size box",
    "zero-size box",
    "box outside image",
)


@dataclass
class CheckedAnnotations:
    """Usable annotations by image, row by row: record, image index, xyxy box, label, crowd flag."""

    records: list[Json]
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


def check_annotations(
    entries: list[Any],
    file: str,
    images: list[Json],
    dropped_images: set[int],
    categories: list[Json],
    problems: list[Problem],
) -> CheckedAnnotations:
    """The usable annotations, boxes clipped; those of `dropped_images` go without a further word."""
    well_formed, boxes = _well_formed(entries, file, problems)  # (M, 4) xywh
    records = _distinct_ids(well_formed, file, problems)
    index_of = {image["id"]: index for index, image in enumerate(images)}
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    image = np.array([index_of.get(r["image_id"], -1) for r in records], dtype=np.int64)  # (M,)
    label = np.array([label_of.get(r["category_id"], -1) for r in records], dtype=np.int64)  # (M,)
    crowd = np.array([bool(r.get("iscrowd", 0)) for r in records], dtype=bool)  # (M,)
    sizes = np.array([(i["height"], i["width"]) for i in images], dtype=np.float64)[image]  # (M, 2)
    clipped = _clip(boxes, sizes)  # (M, 4) xyxy
    reasons = _reasons(boxes, clipped, image, label)
    usable = reasons == len(REASONS)
    for row in np.flatnonzero(~usable):
        record, reason = records[row], REASONS[reasons[row]]
        if not (image[row] < 0 and record["image_id"] in dropped_images):
            name = images[image[row]]["file_name"] if image[row] >= 0 else file
            problems.append(Problem(name, record["id"], reason, _detail(reason, record, sizes[row])))
    _report_clipped(boxes, sizes, usable, records, images, image, file, problems)
    _refuse_normalised(boxes[usable], sizes[usable], file)
    order = np.flatnonzero(usable)
    order = order[np.argsort(image[order], kind="stable")]
    return CheckedAnnotations([records[row] for row in order], image[order], clipped[order], label[order], crowd[order])


def _well_formed(entries: list[Any], file: str, problems: list[Problem]) -> tuple[list[Json], np.ndarray]:
    """The entries that have the right keys and types, and their boxes as (M, 4) float64 xywh."""
    boxes = _columns(entries)  # the whole file at once; only a file with faults is read entry by entry
    if boxes is not None:
        return entries, boxes
    records: list[Json] = []
    for entry in entries:
        wrong = _malformed_annotation(entry)
        if wrong is None:
            records.append(entry)
            continue
        number = entry.get("id") if isinstance(entry, dict) else None
        problems.append(Problem(file, number if is_int(number) else None, "malformed annotation", f"{wrong}; dropped"))
    return records, np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)


def _columns(entries: list[Any]) -> np.ndarray | None:
    """All boxes (M, 4), or None when any entry lacks a key or has a value of the wrong type."""
    if not entries:
        return np.zeros((0, 4))
    try:
        ids = [e[key] for e in entries for key in ("id", "image_id", "category_id")]
        integers = {type(number) for number in ids}
        flags = {type(e.get("iscrowd", 0)) for e in entries}
        numbers = {type(value) for e in entries for value in e["bbox"]}
        boxes = np.array([e["bbox"] for e in entries])
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    typed = integers == {int} and flags <= {int, bool} and numbers <= {int, float}
    if not typed or not all(map(is_int, ids)) or boxes.shape != (len(entries), 4) or boxes.dtype.kind not in "if":
        return None
    return boxes.astype(np.float64)


def _malformed_annotation(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"{short(entry)} is not an object"
    for key in ("image_id", "category_id"):
        if not is_int(entry.get(key)):
            return f"`{key}` is {short(entry.get(key))}, not an integer"
    if entry.get("id") is not None and not is_int(entry["id"]):
        return f"`id` is {short(entry['id'])}, not an integer"
    if not isinstance(entry.get("iscrowd", 0), int):
        return f"`iscrowd` is {short(entry['iscrowd'])}, not 0 or 1"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"`bbox` is {short(box)}, not four numbers [x, y, width, height]"
    return None


def _distinct_ids(records: list[Json], file: str, problems: list[Problem]) -> list[Json]:
    """The records with missing and repeated ids replaced by new ones: the boxes themselves are good."""
    ids = [record.get("id") for record in records]
    if None not in ids and len(set(ids)) == len(ids):
        return records
    fresh = max((number for number in ids if number is not None), default=0) + 1
    seen: set[int] = set()
    result = []
    for record, number in zip(records, ids, strict=True):
        if number is None or number in seen:
            kind = "missing annotation id" if number is None else "duplicate annotation id"
            problems.append(
                Problem(file, number, kind, f"the annotation of image {record['image_id']} gets id {fresh}")
            )
            record, fresh = {**record, "id": fresh}, fresh + 1
        seen.add(record["id"])
        result.append(record)
    return result


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """xywh boxes to float32 xyxy inside the image; rows that are not finite stay so."""
    with np.errstate(invalid="ignore", over="ignore"):
        low = np.minimum(np.maximum(boxes[:, :2], 0), sizes[:, ::-1])
        high = np.minimum(np.maximum(boxes[:, :2] + boxes[:, 2:], 0), sizes[:, ::-1])
    return np.concatenate([low, high], axis=1).astype(np.float32)  # (M, 4)


def _reasons(boxes: np.ndarray, clipped: np.ndarray, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Why each annotation cannot be used, as index into REASONS; one past the end where it can."""
    with np.errstate(invalid="ignore"):
        empty = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
    negative = (boxes[:, 2:] < 0).any(axis=1)
    zero = (boxes[:, 2:] == 0).any(axis=1)
    conditions = [image < 0, label < 0, ~np.isfinite(boxes).all(axis=1), negative, zero, empty]
    return np.select(conditions, range(len(REASONS)), default=len(REASONS))  # (M,)


def _detail(reason: str, record: Json, size: np.ndarray) -> str:
    if reason == "unknown image":
        return f"no image has id {record['image_id']}; dropped"
    if reason == "unknown category":
        return f"no category has id {record['category_id']}; dropped"
    where = f" in an image of {size[1]:.0f}x{size[0]:.0f}" if reason == "box outside image" else ""
    return f"bbox {short(record['bbox'])}{where}; dropped"


def _report_clipped(
    boxes: np.ndarray,
    sizes: np.ndarray,
    usable: np.ndarray,
    records: list[Json],
    images: list[Json],
    image: np.ndarray,
    file: str,
    problems: list[Problem],
) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = [-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes[:, ::-1]]
        over = np.concatenate(beyond, axis=1).max(axis=1, initial=0)  # (M,) pixels
    rows = np.flatnonzero(usable & (over > EDGE_TOLERANCE))
    for row in rows:
        where = f"{over[row]:.4g} px over the edge of the {sizes[row, 1]:.0f}x{sizes[row, 0]:.0f} image"
        detail = f"bbox {short(records[row]['bbox'])} reaches {where}; clipped"
        name = images[image[row]]["file_name"]
        problems.append(Problem(name, records[row]["id"], "box partly outside image", detail))
    if 2 * len(rows) > usable.sum():
        detail = (
            f"{len(rows)} of {usable.sum()} boxes reach over their image's edge: if they are [x1, y1, x2, y2], "
            "write them as [x, y, width, height], which is COCO's form"
        )
        problems.append(Problem(file, None, "suspicious boxes", detail))


def _refuse_normalised(boxes: np.ndarray, sizes: np.ndarray, file: str) -> None:
    """Boxes in units of the image size are a file of another format: every one would be under a pixel."""
    if len(boxes) and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 and (boxes % 1 != 0).any() and sizes.max() > 2:
        raise InputError(
            f"all {len(boxes)} boxes of {file} lie between 0 and 1: COCO boxes are [x, y, width, height] in "
            "pixels; multiply them by the image size"
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63
