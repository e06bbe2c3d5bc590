"""Use a detector on image files: COCO-results JSON, and pictures with the boxes drawn in."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from focal_tutorial.checkpoint import write_atomically
from focal_tutorial.data.coco import load_json
from focal_tutorial.data.coco_images import Json, check_categories, is_int
from focal_tutorial.data.images import load_image
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import detections_to_coco
from focal_tutorial.plotting.images import save_picture
from focal_tutorial.retinanet import RetinaNet

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Predicted:
    """What was found in one file: counts per class of detections that are drawn, and where the picture is."""

    path: Path
    counts: dict[str, int]
    picture: Path | None


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files among `paths`; of a folder those directly in it, by name.

    Raises:
        InputError: a path does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not inside:
                raise InputError(f"folder {path} has no image directly in it ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"image {path} does not exist; give image files or folders of images")
    return list(dict.fromkeys(found))


def image_ids(paths: Sequence[Path], annotation_file: str | Path | None = None) -> list[int]:
    """The COCO image id of each file: by name in `annotation_file`, or else counted from 1.

    Raises:
        InputError: the annotation file cannot be read, does not name one of the images, or names several alike.
    """
    return [entry["id"] for entry in _entries(paths, annotation_file)]


def _entries(paths: Sequence[Path], annotation_file: str | Path | None) -> list[Json]:
    """What the annotation file says of each image; without a file an id only."""
    if annotation_file is None:
        return [{"id": number} for number in range(1, len(paths) + 1)]
    by_name: dict[str, list[Json]] = defaultdict(list)
    for entry in load_json(Path(annotation_file))["images"]:
        if isinstance(entry, dict) and is_int(entry.get("id")) and isinstance(entry.get("file_name"), str):
            by_name[PurePosixPath(entry["file_name"]).name].append(entry)
    absent = [path for path in paths if path.name not in by_name]
    if absent:
        raise InputError(
            f"{annotation_file} does not name {absent[0].name} ({len(absent)} of {len(paths)} images); "
            "leave out --annotations to number the images from 1"
        )
    found = [_entry_of(path, by_name[path.name], annotation_file) for path in paths]
    repeated = [number for number, count in Counter(entry["id"] for entry in found).items() if count > 1]
    if repeated:
        raise InputError(f"{annotation_file}: two of the images go by its id {repeated[0]}; give one of them")
    return found


def _entry_of(path: Path, entries: list[Json], annotation_file: str | Path) -> Json:
    """The entry whose `file_name` the path ends with, of those with the same last part."""
    if len(entries) > 1:
        parts = path.absolute().parts
        entries = [e for e in entries if (end := PurePosixPath(e["file_name"]).parts) == parts[-len(end) :]]
    if len(entries) != 1:
        raise InputError(f"{annotation_file} names several images {path.name}, and not one that ends {path} alone")
    return entries[0]


def category_ids(annotation_file: str | Path | None, class_names: Sequence[str]) -> list[int]:
    """The COCO category id of each class: by name in `annotation_file`, or else counted from 1."""
    if annotation_file is None:
        return list(range(1, len(class_names) + 1))
    categories = check_categories(load_json(Path(annotation_file))["categories"], str(annotation_file), [])
    known: dict[str, int] = {category["name"]: category["id"] for category in categories}
    absent = [name for name in class_names if name not in known]
    if absent:
        raise InputError(f"{annotation_file} has no category {absent[0]!r}, which the model was trained for")
    return [known[name] for name in class_names]


def predict(
    model: RetinaNet,
    paths: Sequence[Path],
    out: str | Path,
    *,
    threshold: float = 0.5,
    annotation_file: str | Path | None = None,
    pictures: bool = True,
    report: Callable[[Predicted], Any] = lambda found: None,
) -> list[InputError]:
    """Detect objects in image files; write `detections.json` and one picture per image into `out`.

    The JSON is COCO results with the `file_name` added, and holds every detection above the model's own score
    threshold (0.05), so that AP can be computed from it; `threshold` is for pictures and counts.

    Args:
        model: in eval mode; it resizes images of any size by itself.
        paths: image files, read as `load_image` does (greyscale, RGBA, EXIF orientation, …).
        threshold: score in [0, 1] from which a detection is drawn and counted.
        annotation_file: COCO file to take image and category ids from; by default both count from 1.
        report: called after each image.

    Returns:
        What was wrong with the images that could not be read; the others are done.

    Raises:
        InputError: `threshold` out of range, ids that do not fit, or a folder that cannot be written.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: a score in 0 … 1 wanted, got {threshold:g}")
    names = model.class_names or [str(label) for label in range(model.num_classes)]
    entries, categories = _entries(paths, annotation_file), category_ids(annotation_file, names)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    results: list[dict[str, Any]] = []
    faults: list[InputError] = []
    targets = _picture_paths(paths, folder)
    for path, entry, target in zip(paths, entries, targets, strict=True):
        sized = is_int(entry.get("height")) and is_int(entry.get("width"))
        try:  # the size tells whether the annotations were made with the EXIF orientation
            image = load_image(path, (entry["height"], entry["width"]) if sized else None)
        except InputError as error:
            faults.append(error)
            continue
        with torch.inference_mode():
            found = {key: value.cpu() for key, value in model([image.to(device)])[0].items()}
        results += [{**r, "file_name": path.name} for r in detections_to_coco([found], [entry["id"]], categories)]
        shown = {key: value[found["scores"] >= threshold] for key, value in found.items()}
        if pictures:
            save_picture(target, image, shown["boxes"], shown["labels"], names=names, scores=shown["scores"])
        counts = {name: int((shown["labels"] == k).sum()) for k, name in enumerate(names)}
        report(Predicted(path, {name: n for name, n in counts.items() if n}, target if pictures else None))
    write_results(folder / "detections.json", results)
    return faults


def write_results(path: str | Path, results: list[dict[str, Any]]) -> None:
    """COCO results as JSON, on one line: they are many, and for programs."""
    write_atomically(path, lambda file: file.write(json.dumps(results).encode()))


def _picture_paths(paths: Sequence[Path], folder: Path) -> list[Path]:
    """A PNG file in `folder` per image; images of one name from several folders get a number."""
    taken: set[str] = set()
    targets = []
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        targets.append(folder / f"{name}.png")
    return targets
