"""Synthetic scenes: circles, squares and triangles among rings, crosses and clutter, at low contrast.

The distractors share edges, corners and colours with the classes, so that telling foreground from background
takes more than finding "something there". Every image is a function of (seed, split, index); nothing is
downloaded. The drawing is in `shapes_draw.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from focal_tutorial.data.dataset import DetectionDataset, Sample, no_boxes
from focal_tutorial.data.root import data_root, new_folder
from focal_tutorial.data.shapes_draw import Scene, ShapesConfig, draw_scene, plan_scene

SPLITS = {"train": 0, "val": 1, "test": 2}


class ShapesDataset(DetectionDataset):
    """The shapes in memory: items as those of `CocoDataset`, drawn when asked for.

    Args:
        num_images: how many.
        split: "train", "val" or "test": different scenes of the same kind.
        transforms: called as `transforms(image, target)`.
        cache: keep drawn images in memory.
        options: fields of `ShapesConfig`: `size`, `seed`, `objects`, `radius`, `distractors`, `contrast`,
            `clutter`, `empty`, `classes`, `stretch`.
    """

    def __init__(
        self,
        num_images: int,
        *,
        split: str = "train",
        transforms: Callable[..., Sample] | None = None,
        cache: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(transforms, cache)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.config = ShapesConfig(**options)
        self.split = split
        self.image_ids = list(range(1, num_images + 1))
        self.class_names = list(self.config.classes)
        self.category_ids = list(range(1, len(self.class_names) + 1))
        self.annotation_file = None
        self.problems = []
        self._scenes: dict[int, Scene] = {}

    def scene(self, index: int) -> Scene:
        """What stands where in image `index`: classes, distractors, places, sizes, angles."""
        if index not in self._scenes:
            self._scenes[index] = plan_scene(self.config, SPLITS[self.split], index)
        return self._scenes[index]

    def size(self, index: int) -> tuple[int, int]:
        return self.config.size, self.config.size

    def load_image(self, index: int) -> Tensor:
        pixels = draw_scene(self.config, self.scene(index))  # (H, W, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)

    def boxes_and_labels(self, index: int) -> tuple[Tensor, Tensor]:
        objects = [item for item in self.scene(index).items if item.label is not None]
        if not objects:
            return no_boxes()
        return torch.tensor([item.box() for item in objects]), torch.tensor([item.label for item in objects])

    def coco_dict(self) -> dict[str, Any]:
        """The ground truth as a COCO dictionary."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids):
            height, width = self.size(index)
            images.append({"id": image_id, "file_name": f"{image_id:06d}.png", "height": height, "width": width})
            boxes, labels = self.boxes_and_labels(index)
            for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.category_ids[label],
                        "bbox": box,
                        "area": round(box[2] * box[3], 3),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": k, "name": n} for k, n in zip(self.category_ids, self.class_names, strict=True)]
        info = {"description": "synthetic shapes", **dataclasses.asdict(self.config), "split": self.split}
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def make_shapes(
    root: str | Path | None = None, *, num_train: int = 1000, num_val: int = 300, **options: Any
) -> dict[str, Path]:
    """Write the shapes as PNG files with COCO annotations to `shapes` in the data root.

    A folder that already has exactly these images is left alone, any other is replaced. The folder appears
    whole or not at all.

    Args:
        root: data root; see `data_root`.
        num_train, num_val: images of each split.
        options: fields of `ShapesConfig`, as for `ShapesDataset`.

    Raises:
        InputError: the folder cannot be written to, or was made by someone else.

    Returns:
        Paths: `train_images`, `train` (its JSON), `val_images`, `val`.
    """
    folder = data_root(root) / "shapes"
    splits = {"train": ShapesDataset(num_train, split="train", cache=False, **options)}
    splits["val"] = ShapesDataset(num_val, split="val", cache=False, **options)
    paths = {f"{name}_images": folder / name for name in splits}
    paths |= {name: folder / f"{name}.json" for name in splits}
    contents = {name: json.dumps(dataset.coco_dict()) for name, dataset in splits.items()}
    if all(_has_files(folder, name, text) for name, text in contents.items()):
        return paths
    with new_folder(folder) as temporary:
        for name, dataset in splits.items():
            (temporary / name).mkdir()
            for index, image in enumerate(dataset.coco_dict()["images"]):
                pixels = draw_scene(dataset.config, dataset.scene(index))
                Image.fromarray(pixels).save(temporary / name / image["file_name"], compress_level=1)
            (temporary / f"{name}.json").write_text(contents[name])
    return paths


def _has_files(folder: Path, split: str, text: str) -> bool:
    """Whether a split is there with just these annotations, and its images with it."""
    annotations = folder / f"{split}.json"
    if not annotations.is_file() or annotations.read_text() != text:
        return False
    return all((folder / split / image["file_name"]).is_file() for image in json.loads(text)["images"])
