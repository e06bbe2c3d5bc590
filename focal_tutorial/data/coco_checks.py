"""The checks behind `read_coco`: images, categories and annotations, each linear in the size of the file."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from focal_tutorial.data.images import image_size, size_mismatch
from focal_tutorial.data.problems import Problem
from focal_tutorial.errors import InputError

Json = dict[str, Any]
EDGE_TOLERANCE = 0.5  # pixels a box may reach over the edge before it is reported; less is rounding
REASONS = (
    "unknown image",
    "unknown category",
    "non-finite box",
    "negative-size box",
    "zero-size box",
    "box outside image",
)


def check_categories(entries: list[Any], file: str, problems: list[Problem]) -> list[Json]:
    """Usable categories sorted by id, with distinct names."""
    categories: dict[int, Json] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_int(entry.get("id")):
            problems.append(Problem(file, None, "malformed category", f"{_short(entry)} has no integer `id`; dropped"))
        elif entry["id"] in categories:
            first = categories[entry["id"]].get("name")
            problems.append(
                Problem(file, entry["id"], "duplicate category id", f"{_short(entry)} dropped, {first!r} kept")
            )
        else:
            categories[entry["id"]] = {**entry, "name": str(entry.get("name", entry["id"]))}
    names: set[str] = set()
    result = [categories[key] for key in sorted(categories)]
    for category in result:
        if category["name"] in names:  # per-class results are keyed by name
            problems.append(
                Problem(file, category["id"], "duplicate category name", f"{category['name']!r} gets its id appended")
            )
            category["name"] += f" ({category['id']})"
        names.add(category["name"])
    return result


def check_images_list(
    entries: list[Any], file: str, image_dir: str | Path | None, problems: list[Problem]
) -> tuple[list[Json], set[int]]:
    """Usable image records in the file's order, and the ids of those that are known but cannot be used."""
    folder = None if image_dir is None else Path(image_dir)
    if folder is not None and not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist")
    by_id: dict[int, list[Json]] = defaultdict(list)
    for entry in entries:
        wrong = _malformed_image(entry, sized=folder is not None)
        if wrong:
            problems.append(Problem(*_image_place(entry, file), "malformed image entry", f"{wrong}; dropped"))
        else:
            by_id[entry["id"]].append(entry)
    images: list[Json] = []
    dropped = {e["id"] for e in entries if isinstance(e, dict) and _is_int(e.get("id"))}
    for records in by_id.values():
        image = _one_of(records, problems)
        if image is not None and (folder is None or (image := _on_disk(image, folder, problems)) is not None):
            images.append(image)
    return images, dropped - {image["id"] for image in images}


def _malformed_image(entry: Any, sized: bool) -> str | None:
    if not isinstance(entry, dict):
        return f"{_short(entry)} is not an object"
    if not _is_int(entry.get("id")):
        return f"`id` is {_short(entry.get('id'))}, not an integer"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"] or "\0" in entry["file_name"]:
        return f"`file_name` is {_short(entry.get('file_name'))}"
    if sized and entry.get("height") is None and entry.get("width") is None:
        return None  # the file on disk will say
    for key in ("height", "width"):
        if not _is_int(entry.get(key)) or not 0 < entry[key] < 2**31:
            return f"`{key}` is {_short(entry.get(key))}, not a positive integer"
    return None


def _image_place(entry: Any, file: str) -> tuple[str, int | None]:
    """File and id under which to report a malformed entry, as far as it has any."""
    name, number = (entry.get("file_name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
    return name if isinstance(name, str) and name else file, number if _is_int(number) else None


def _one_of(records: list[Json], problems: list[Problem]) -> Json | None:
    """The image of an id. Repeated entries are harmless; different images under one id make its boxes ambiguous."""
    first = records[0]
    names = {record["file_name"] for record in records}
    if len(names) > 1:
        detail = f"{len(records)} images have it ({', '.join(sorted(names)[:3])}): which one the boxes belong to is unknown"
        problems.extend(
            Problem(r["file_name"], r["id"], "duplicate image id", detail + "; dropped with its boxes") for r in records
        )
        return None
    problems.extend(
        Problem(r["file_name"], r["id"], "duplicate image id", "the entry is repeated; kept once") for r in records[1:]
    )
    return first


def _on_disk(image: Json, folder: Path, problems: list[Problem]) -> Json | None:
    """`image` if its file is there and has the size it claims (filled in where it claims none), else None."""
    name, path = image["file_name"], folder / image["file_name"]
    try:
        shown, stored = image_size(path)
    except InputError as error:
        kind = "unreadable image" if path.exists() else "missing image"
        problems.append(Problem(name, image["id"], kind, f"{error}; dropped"))
        return None
    if image.get("height") is None:
        return {**image, "height": shown[0], "width": shown[1]}
    claimed = (image["height"], image["width"])
    if claimed not in (shown, stored):
        problems.append(Problem(name, image["id"], "size mismatch", size_mismatch(path, claimed, shown) + "; dropped"))
        return None
    if claimed != shown:
        detail = "the annotations were made without the EXIF orientation; the image is used without it too"
        problems.append(Problem(name, image["id"], "ignored EXIF orientation", detail))
    return image


@dataclass
class CheckedAnnotations:
    """Usable annotations, grouped by image: records, image index, xyxy boxes, labels, crowd flags, row by row."""

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
    _report_clipped(boxes, sizes, usable, records, images, image, problems)
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
        problems.append(Problem(file, number if _is_int(number) else None, "malformed annotation", f"{wrong}; dropped"))
    return records, np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)


def _columns(entries: list[Any]) -> np.ndarray | None:
    """All boxes (M, 4), or None when any entry lacks a key or has a value of the wrong type."""
    if not entries:
        return np.zeros((0, 4))
    try:
        integers = {type(e[key]) for e in entries for key in ("id", "image_id", "category_id")}
        flags = {type(e.get("iscrowd", 0)) for e in entries}
        boxes = np.array([e["bbox"] for e in entries])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        return None
    if integers != {int} or not flags <= {int, bool} or boxes.shape != (len(entries), 4) or boxes.dtype.kind not in "if":
        return None
    return boxes.astype(np.float64)


def _malformed_annotation(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"{_short(entry)} is not an object"
    for key in ("image_id", "category_id"):
        if not _is_int(entry.get(key)):
            return f"`{key}` is {_short(entry.get(key))}, not an integer"
    if entry.get("id") is not None and not _is_int(entry["id"]):
        return f"`id` is {_short(entry['id'])}, not an integer"
    if not isinstance(entry.get("iscrowd", 0), int):
        return f"`iscrowd` is {_short(entry['iscrowd'])}, not 0 or 1"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"`bbox` is {_short(box)}, not four numbers [x, y, width, height]"
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
            problems.append(Problem(file, number, kind, f"the annotation of image {record['image_id']} gets id {fresh}"))
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
    return f"bbox {_short(record['bbox'])}{where}; dropped"


def _report_clipped(
    boxes: np.ndarray,
    sizes: np.ndarray,
    usable: np.ndarray,
    records: list[Json],
    images: list[Json],
    image: np.ndarray,
    problems: list[Problem],
) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        over = np.concatenate([-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes[:, ::-1]], axis=1).max(axis=1, initial=0)
    for row in np.flatnonzero(usable & (over > EDGE_TOLERANCE)):
        size = sizes[row]
        detail = f"bbox {_short(records[row]['bbox'])} reaches {over[row]:.4g} px over the edge of the {size[1]:.0f}x{size[0]:.0f} image"
        name = images[image[row]]["file_name"]
        problems.append(Problem(name, records[row]["id"], "box partly outside image", detail + "; clipped"))


def _refuse_normalised(boxes: np.ndarray, sizes: np.ndarray, file: str) -> None:
    """Boxes in units of the image size are a file of another format; every one of them would be under a pixel."""
    if len(boxes) and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 and (boxes % 1 != 0).any() and sizes.max() > 2:
        raise InputError(
            f"all {len(boxes)} boxes of {file} lie between 0 and 1: COCO boxes are [x, y, width, height] in pixels; "
            "multiply them by the image size"
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
