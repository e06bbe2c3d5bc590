"""Datasets in COCO format: read, checked annotation by annotation, and served as images with boxes.

What is wrong is collected as `Problem` records. A file that cannot be used at all raises `InputError`;
anything less is dropped or mended, and says so. The checks are in `coco_images.py` and
`coco_annotations.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from focal_tutorial._numbers import is_positive
from focal_tutorial.data.coco_annotations import check_annotations
from focal_tutorial.data.coco_images import Json, check_categories, check_images_list, is_int
from focal_tutorial.data.dataset import DetectionDataset, Sample
from focal_tutorial.data.images import load_image
from focal_tutorial.data.problems import Problem
from focal_tutorial.errors import InputError


@dataclass
class CocoData:
    """The usable part of a COCO annotation file, and a list of what was not.

    Attributes:
        file: the annotation file.
        images: usable image records (`id`, `file_name`, `height`, `width`, …), in the file's order.
        annotations: for each image its usable annotation records, crowds included, boxes as in the file.
        categories: category records sorted by id; label k is the k-th.
        boxes: (M, 4) float32 xyxy, clipped to the image, of all annotations in the order of `annotations`.
        labels: (M,) int64, 0…K−1.
        crowd: (M,) bool.
        problems: what was found wrong.
    """

    file: str
    images: list[Json]
    annotations: list[list[Json]]
    categories: list[Json]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    problems: list[Problem]

    @property
    def class_names(self) -> list[str]:
        """Name of each label."""
        return [category["name"] for category in self.categories]

    @property
    def category_ids(self) -> list[int]:
        """COCO category id of each label."""
        return [category["id"] for category in self.categories]


def read_coco(annotation_file: str | Path, image_dir: str | Path | None = None) -> CocoData:
    """Read and check a COCO annotation file.

    Args:
        annotation_file: JSON with `images`, `annotations` and `categories`; boxes `[x, y, width, height]` in
            pixels.
        image_dir: the folder that `file_name` is relative to. With it, images that are missing, unreadable or
            of another size than the file says are found too (by their headers; `check_images` decodes them).

    Raises:
        InputError: the file is missing, not JSON, not COCO, or has no usable image or category.
    """
    path = Path(annotation_file)
    content = load_json(path)
    problems = [Problem(**record) for record in _recorded_problems(content)]
    categories = check_categories(content["categories"], str(path), problems)
    images, dropped = check_images_list(content["images"], str(path), image_dir, problems)
    if not categories:
        raise InputError(f"{path} has no usable category: its `categories` list names the classes to learn")
    if not images:
        raise InputError(_no_images(path, image_dir, problems))
    checked = check_annotations(content["annotations"], str(path), images, dropped, categories, problems)
    annotations: list[list[Json]] = [[] for _ in images]
    for record, index in zip(checked.records, checked.image.tolist(), strict=True):
        annotations[index].append(record)
    return CocoData(str(path), images, annotations, categories, checked.boxes, checked.labels, checked.crowd, problems)


class CocoDataset(DetectionDataset):
    """Images and boxes of a COCO annotation file.

    Crowds and unusable boxes are in no target; images without boxes stay, as negatives. Boxes that reach over
    the image's edge are clipped. What was dropped or mended is in `problems`.

    Args:
        image_dir: the folder that the file's `file_name` entries are relative to.
        annotation_file: COCO JSON.
        transforms: called as `transforms(image, target)`; see `focal_tutorial.data.transforms`.
        cache: keep decoded (and, by this package's transforms, resized) images in memory, as uint8. Every
            loader worker has its own cache.

    Raises:
        InputError: see `read_coco`; from `dataset[i]`, when the image cannot be decoded.
    """

    def __init__(
        self,
        image_dir: str | Path,
        annotation_file: str | Path,
        *,
        transforms: Callable[..., Sample] | None = None,
        cache: bool = False,
    ) -> None:
        super().__init__(transforms, cache)
        self.image_dir = Path(image_dir)
        self.data = read_coco(annotation_file, image_dir)
        self.annotation_file = str(annotation_file)
        self.image_ids = [image["id"] for image in self.data.images]
        self.class_names = self.data.class_names
        self.category_ids = self.data.category_ids
        self.problems = self.data.problems
        counts = [len(records) for records in self.data.annotations]
        self._start = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.image_dir / self.data.images[index]["file_name"]

    def size(self, index: int) -> tuple[int, int]:
        image = self.data.images[index]
        return image["height"], image["width"]

    def load_image(self, index: int) -> Tensor:
        return load_image(self.path(index), self.size(index))

    def boxes_and_labels(self, index: int) -> tuple[Tensor, Tensor]:
        rows = slice(self._start[index], self._start[index + 1])
        keep = ~self.data.crowd[rows]
        boxes = torch.from_numpy(self.data.boxes[rows][keep])  # (M, 4)
        return boxes, torch.from_numpy(self.data.labels[rows][keep])  # (M,)

    def coco_dict(self) -> dict[str, Any]:
        """The usable ground truth for pycocotools: boxes as in the file (unclipped), crowds included."""
        records = [_for_evaluation(record) for image in self.data.annotations for record in image]
        return {
            "info": {},
            "images": self.data.images,
            "annotations": records,
            "categories": self.data.categories,
        }


def check_images(data: CocoData, image_dir: str | Path) -> list[Problem]:
    """Decode every image of `data` and list the ones that cannot be used; slow, for reports.

    `read_coco` looks at headers only, and a truncated file's header is whole.
    """
    problems = []
    for image in data.images:
        try:
            load_image(Path(image_dir) / image["file_name"], (image["height"], image["width"]))
        except InputError as error:
            problems.append(Problem(image["file_name"], image["id"], "unreadable image", str(error)))
    return problems


def load_json(path: Path) -> dict[str, Any]:
    """A COCO annotation file's content, its three lists made sure of; raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"annotation file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read annotation file {path}: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits is a plain ValueError
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"annotation file {path} is not valid JSON: {reason}; export it again") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is not a COCO annotation file: its top level is a {type(content).__name__}, not an object"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = ", ".join(sorted(content)[:8]) or "none"
            raise InputError(f"{path} is not a COCO annotation file: it has no list `{key}` (keys found: {found})")
    return content


def _recorded_problems(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What this package's VOC converter dropped and wrote down in the file."""
    info = content.get("info")
    records = info.get("problems") if isinstance(info, dict) else None
    return [r for r in records if _is_problem(r)] if isinstance(records, list) else []


def _is_problem(record: Any) -> bool:
    if not isinstance(record, dict) or set(record) != {"file", "id", "kind", "detail"}:
        return False
    texts = all(isinstance(record[key], str) for key in ("file", "kind", "detail"))
    return texts and (record["id"] is None or isinstance(record["id"], str) or is_int(record["id"]))


def _no_images(path: Path, image_dir: str | Path | None, problems: list[Problem]) -> str:
    if image_dir is not None and any(problem.kind == "missing image" for problem in problems):
        return f"none of the images of {path} can be used in {image_dir}; the first: {problems[0]}"
    return f"{path} has no usable image" + (f"; the first problem: {problems[0]}" if problems else "")


def _for_evaluation(record: Json) -> Json:
    """The fields pycocotools reads, the optional ones filled in."""
    box = record["bbox"]
    area = record.get("area")
    return {
        "id": record["id"],
        "image_id": record["image_id"],
        "category_id": record["category_id"],
        "bbox": box,
        "area": area if is_positive(area) else box[2] * box[3],
        "iscrowd": int(bool(record.get("iscrowd", 0))),  # pycocotools has a byte for it
    }
