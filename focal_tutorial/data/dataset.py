"""What every dataset here is: RGB uint8 images with boxes and labels, cached if asked, then transformed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from focal_tutorial.data.problems import Problem
from focal_tutorial.errors import InputError

Target = dict[str, Any]
Sample = tuple[tv_tensors.Image, Target]


class DetectionDataset(Dataset[Sample]):
    """Images with boxes; `CocoDataset` reads them from files, `ShapesDataset` draws them.

    `dataset[i]` is `(image, target)`: a uint8 `tv_tensors.Image` (3, H, W), and a dictionary of `boxes`
    (`tv_tensors.BoundingBoxes`, float32 (M, 4), xyxy in pixels), `labels` (int64 (M,), 0…K−1) and `image_id`
    (int).
    """

    image_ids: list[int]  # COCO image id of each item
    class_names: list[str]  # name of label k
    category_ids: list[int]  # COCO category id of label k
    annotation_file: str | None  # where the annotations came from
    problems: list[Problem]  # what was found wrong, and dropped or mended

    def __init__(self, transforms: Callable[..., Sample] | None, cache: bool) -> None:
        self.set_transforms(transforms, cache=cache)

    def set_transforms(self, transforms: Callable[..., Sample] | None, *, cache: bool) -> None:
        """Change transforms and caching; what was cached is forgotten."""
        self.transforms = transforms
        self._cache: dict[int, Sample] | None = {} if cache else None
        # Transforms of this package come in two parts; what the first makes of an image is always the same,
        # so the cache keeps its result.
        self._prepare: Callable[..., Sample] | None = getattr(transforms, "prepare", None)
        self._augment: Callable[..., Sample] | None = getattr(transforms, "augment", transforms)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        image, target = self._load(index % len(self))
        if self._augment is not None:
            return self._augment(image, target)
        if self._cache is not None:
            image = tv_tensors.wrap(image.clone(), like=image)  # the caller may write to it
        return image, target

    def _load(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            image, target = self._cache[index]
            return image, dict(target)
        sample = tv_tensors.Image(self.load_image(index)), self.target(index)
        if self._prepare is not None:
            sample = self._prepare(*sample)
        if self._cache is not None:
            self._cache[index] = sample
        return sample[0], dict(sample[1])

    def load_image(self, index: int) -> Tensor:
        """The image, uint8 (3, H, W), neither cached nor transformed."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index` in pixels, without decoding it."""
        raise NotImplementedError

    def boxes_and_labels(self, index: int) -> tuple[Tensor, Tensor]:
        """The usable boxes of image `index`, float32 (M, 4) xyxy, and their labels, int64 (M,); no image is
        read."""
        raise NotImplementedError

    def coco_dict(self) -> dict[str, Any]:
        """The ground truth as a COCO dictionary for evaluation, crowds included."""
        raise NotImplementedError

    def target(self, index: int) -> Target:
        """The target of image `index` before any transform; no image is read."""
        boxes, labels = self.boxes_and_labels(index)  # (M, 4), (M,)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=self.size(index))
        return {"boxes": boxes, "labels": labels, "image_id": self.image_ids[index]}

    def require_trainable(self) -> None:
        """Raise `InputError` when there is nothing to learn from: no usable box in any image."""
        if not any(len(self.boxes_and_labels(i)[1]) for i in range(len(self))):
            raise InputError(
                f"{self.annotation_file or 'the dataset'} has no usable box in its {len(self)} images: there is "
                "nothing to learn from. `focal-tutorial inspect` lists what is wrong with each"
            )


def no_boxes() -> tuple[Tensor, Tensor]:
    """Boxes and labels of an image without objects."""
    return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
