"""Small datasets on disk for the tests of `focal_tutorial.data`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BCCD_ARCHIVE = "BCCD_Dataset-d272fb14cdff6e473fafeeeba32aba5f560e9e43.zip"


def picture(path: Path, width: int = 40, height: int = 30, seed: int = 0, **save: Any) -> Path:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def coco(**changes: Any) -> dict[str, Any]:
    """Two images of 40x30 with two boxes in the first; `changes` replace top-level entries."""
    content: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 3, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "annotations": [box(1, [5, 6, 10, 8]), box(2, [20, 10, 4, 4], category_id=9)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    return {**content, **changes}


def box(number: int, bbox: Any, **changes: Any) -> dict[str, Any]:
    """An annotation of image 7, category 2."""
    return {"id": number, "image_id": 7, "category_id": 2, "bbox": bbox, "area": 1.0, "iscrowd": 0, **changes}


def write_coco(folder: Path, content: Any) -> tuple[Path, Path]:
    """Write `content` and its images (noise); returns image folder and JSON path."""
    images = folder / "images"
    for image in (picture(images / name, seed=i) for i, name in enumerate(("a.png", "b.png"))):
        assert image.exists()
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return images, path


def bccd_archive() -> Path:
    """The real archive, or a skip that says where it was looked for."""
    folders = [os.environ.get("FOCAL_TUTORIAL_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"]
    for folder in folders:
        if folder and (Path(folder) / BCCD_ARCHIVE).is_file():
            return Path(folder) / BCCD_ARCHIVE
    pytest.skip(f"{BCCD_ARCHIVE} is neither in $FOCAL_TUTORIAL_DATA nor in ../shared/data")
