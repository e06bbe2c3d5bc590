"""Checks of a COCO file's categories and images; linear in the size of the file."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from focal_tutorial.data.images import image_size, size_mismatch
from focal_tutorial.data.problems import Problem, printable
from focal_tutorial.errors import InputError

Json = dict[str, Any]


def check_categories(entries: list[Any], file: str, problems: list[Problem]) -> list[Json]:
    """Usable categories sorted by id, with distinct names."""
    categories: dict[int, Json] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not is_int(entry.get("id")):
            detail = f"{short(entry)} has no integer `id`; dropped"
            problems.append(Problem(file, None, "malformed category", detail))
        elif entry["id"] in categories:
            first = categories[entry["id"]].get("name")
            detail = f"{short(entry)} dropped, {first!r} kept"
            problems.append(Problem(file, entry["id"], "duplicate category id", detail))
        else:
            categories[entry["id"]] = {**entry, "name": category_name(entry)}
    names: set[str] = set()
    result = [categories[key] for key in sorted(categories)]
    for category in result:
        if category["name"] in names:  # per-class results are keyed by name
            detail = f"{category['name']!r} gets its id appended"
            problems.append(Problem(file, category["id"], "duplicate category name", detail))
            category["name"] += f" ({category['id']})"
        names.add(category["name"])
    return result


def category_name(entry: Json) -> str:
    """The category's name, or its id where it has none; what cannot be printed is written as an escape."""
    name = entry.get("name", entry["id"])
    return printable(name if isinstance(name, str) else short(name))


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
    dropped = {e["id"] for e in entries if isinstance(e, dict) and is_int(e.get("id"))}
    for records in by_id.values():
        image = _one_of(records, problems)
        if image is not None and (folder is None or (image := _on_disk(image, folder, problems)) is not None):
            images.append(image)
    return images, dropped - {image["id"] for image in images}


def _malformed_image(entry: Any, sized: bool) -> str | None:
    if not isinstance(entry, dict):
        return f"{short(entry)} is not an object"
    if not is_int(entry.get("id")):
        return f"`id` is {short(entry.get('id'))}, not an integer"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"] or "\0" in entry["file_name"]:
        return f"`file_name` is {short(entry.get('file_name'))}"
    if sized and entry.get("height") is None and entry.get("width") is None:
        return None  # the file on disk will say
    for key in ("height", "width"):
        if not is_int(entry.get(key)) or not 0 < entry[key] < 2**31:
            return f"`{key}` is {short(entry.get(key))}, not a positive integer"
    return None


def _image_place(entry: Any, file: str) -> tuple[str, int | None]:
    """File and id under which to report a malformed entry, as far as it has any."""
    name, number = (entry.get("file_name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
    return name if isinstance(name, str) and name else file, number if is_int(number) else None


def _one_of(records: list[Json], problems: list[Problem]) -> Json | None:
    """The image of an id. Repeats are harmless; different images under one id make its boxes ambiguous."""
    first = records[0]
    names = {record["file_name"] for record in records}
    if len(names) > 1:
        owners = ", ".join(sorted(names)[:3])
        detail = f"{len(records)} images have it ({owners}): whose the boxes are is unknown"
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
        kind = "unreadable image" if os.path.exists(path) else "missing image"  # Path's own raises for a long name
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


def is_int(value: Any) -> bool:
    """An integer that numpy can hold, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def short(value: Any) -> str:
    """`value` as it would be written, cut to a length that fits a message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of more digits than Python writes
        text = f"a {type(value).__name__} beyond measure"
    return text if len(text) <= 60 else text[:57] + "..."
