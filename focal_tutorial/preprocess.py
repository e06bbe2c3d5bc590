"""What happens to images before the network sees them: checks, normalisation, resizing, padding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focal_tutorial._numbers import describe, is_count, is_number, is_positive

Target = dict[str, Tensor]
Size = tuple[int, int]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Prepared(NamedTuple):
    """A batch for the network: images `(N, 3, H, W)`, each one's size in it and before, targets in its pixels."""

    images: Tensor
    sizes: list[Size]
    original_sizes: list[Size]
    targets: list[Target] | None


class Preprocess(nn.Module):
    """Normalise, resize, pad, in this order (padding is 0 after normalisation, the mean colour).

    Args:
        min_size, max_size: the shorter side becomes `min_size` unless the longer would pass `max_size`
            (torchvision's and Detectron's rule); `min_size=None` leaves the size alone.
        canvas: `(height, width)` instead: fit inside with the aspect kept and pad to exactly this size, so that every
            batch has the same shape.
        size_divisible: pad to a multiple of this (Detectron 128, torchvision 32); not used with `canvas`.
        antialias: filter before shrinking, as Pillow does; torchvision's detection models do not.
        mean, std: per channel, of images in [0, 1].

    Raises:
        ValueError: for a size that is no whole number of at least 1, or a mean or std that is not three numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        min_size: int | None = 800,
        max_size: int = 1333,
        canvas: Size | None = None,
        size_divisible: int = 128,
        antialias: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        _check_settings(min_size, max_size, canvas, size_divisible, mean, std)
        self.min_size, self.max_size = min_size, max_size
        self.canvas = None if canvas is None else (int(canvas[0]), int(canvas[1]))
        self.size_divisible, self.antialias = size_divisible, antialias
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor | Sequence[Tensor], targets: Sequence[Target] | None = None) -> Prepared:
        """Check and prepare a batch; the targets' boxes move with their images.

        Args:
            images: `(N, 3, H, W)` or a list of `(3, H, W)`, float in [0, 1] or uint8, of any sizes.
            targets: per image `{"boxes": (M, 4) xyxy float, "labels": (M,) int64}`.

        Raises:
            ValueError, TypeError: for what is not of that form, saying which image or target.
        """
        check_images(images)
        device = self.mean.device
        original_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        sizes = [self.resized(size) for size in original_sizes]
        padded = self.canvas or self.padded(sizes)
        if isinstance(images, Tensor) and sizes == original_sizes and padded == sizes[0]:
            batch = self.normalise(images.to(device, non_blocking=True))  # nothing to resize or pad: one operation
        else:
            batch = torch.zeros(len(sizes), 3, *padded, device=device)
            for slot, image, size in zip(batch, images, sizes, strict=True):
                slot[:, : size[0], : size[1]] = self.resize(self.normalise(image.to(device)), size)
        moved = None
        if targets is not None:
            moved = [move(t, a, b, device) for t, a, b in zip(targets, original_sizes, sizes, strict=True)]
        return Prepared(batch, sizes, original_sizes, moved)

    def normalise(self, images: Tensor) -> Tensor:
        """(image − mean) / std, in float32; uint8 is scaled by 1/255 first."""
        if images.dtype == torch.uint8:
            return (images - 255 * self.mean) / (255 * self.std)
        return (images.float() - self.mean) / self.std

    def resized(self, size: Size) -> Size:
        """The size that an image of `(height, width)` is resized to."""
        if self.canvas is not None:
            scale = min(self.canvas[0] / size[0], self.canvas[1] / size[1])
            return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        if self.min_size is None:
            return size
        scale = min(self.min_size / min(size), self.max_size / max(size))
        return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))

    def padded(self, sizes: Sequence[Size]) -> Size:
        """The size of a batch that holds images of `sizes`, as a multiple of `size_divisible`."""
        d = self.size_divisible
        return -(-max(s[0] for s in sizes) // d) * d, -(-max(s[1] for s in sizes) // d) * d

    def resize(self, image: Tensor, size: Size) -> Tensor:
        """`(3, H, W)` → `(3, *size)`, bilinear."""
        if tuple(image.shape[-2:]) == size:
            return image
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=self.antialias)[0]


def _check_settings(
    min_size: int | None,
    max_size: int,
    canvas: Size | None,
    size_divisible: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    sizes = {"min_size": 1 if min_size is None else min_size, "max_size": max_size, "size_divisible": size_divisible}
    for name, value in sizes.items():
        if not is_count(value):
            raise ValueError(f"{name}: a whole number of at least 1 wanted, got {describe(value)}")
    if canvas is not None and not (isinstance(canvas, Sequence) and len(canvas) == 2 and all(map(is_count, canvas))):
        raise ValueError(f"canvas: (height, width) in whole pixels wanted, got {describe(canvas)}")
    for name, values, good in (("mean", mean, is_number), ("std", std, is_positive)):
        if not isinstance(values, Sequence) or len(values) != 3 or not all(map(good, values)):
            raise ValueError(f"{name}: three finite numbers wanted, those of std above 0, got {describe(values)}")


def check_images(images: Tensor | Sequence[Tensor]) -> None:
    """Raise for anything but colour images, float in [0, 1] or uint8, with a message that says which and why."""
    several = (
        images.ndim > 0 if isinstance(images, Tensor) else isinstance(images, Sequence) and not isinstance(images, str)
    )
    if not several:
        raise TypeError(f"images: a list of tensors (3, H, W) or a tensor (N, 3, H, W) wanted, got {describe(images)}")
    if len(images) == 0:
        raise ValueError("images: at least one image wanted, got none")
    for i, image in enumerate(images if not isinstance(images, Tensor) else [images]):
        name = f"images[{i}]" if not isinstance(images, Tensor) else "images"
        wanted = (3, 4)[isinstance(images, Tensor)]
        if not isinstance(image, Tensor):
            raise TypeError(f"{name}: a tensor wanted, got {type(image).__name__}")
        if image.ndim != wanted or image.shape[-3] != 3 or 0 in image.shape:
            raise ValueError(f"{name}: shape ({'N, ' * (wanted - 3)}3, H, W) wanted, got {tuple(image.shape)}")
        if image.dtype == torch.uint8:
            continue
        if image.dtype not in _FLOATS:
            raise TypeError(f"{name}: float in [0, 1] or uint8 wanted, got {image.dtype}")
        low, high = (value.item() for value in image.detach().aminmax())
        if not (low >= -1 and high <= 2):  # NaN fails too; augmentation may leave [0, 1] a little
            raise ValueError(
                f"{name}: values in [0, 1] wanted, got {low:g} … {high:g}; divide by 255, or look for NaN in the image"
            )


def check_targets(targets: Sequence[Target] | None, images: int, num_classes: int) -> None:
    """Raise for targets that do not fit: number, keys, shapes, dtypes, labels out of range, boxes without area."""
    if targets is None:
        raise ValueError("targets are needed in training mode; call model.eval() to get detections")
    if not isinstance(targets, Sequence) or isinstance(targets, str):
        raise TypeError(f"targets: a list of dictionaries with boxes and labels wanted, got {describe(targets)}")
    if len(targets) != images:
        raise ValueError(f"targets: one per image wanted, got {len(targets)} for {images} images")
    for i, target in enumerate(targets):
        name = f"targets[{i}]"
        if not isinstance(target, Mapping):
            raise TypeError(f"{name}: a dictionary with boxes and labels wanted, got {type(target).__name__}")
        for key in ("boxes", "labels"):
            if not isinstance(target.get(key), Tensor):
                raise TypeError(f"{name}: a tensor under {key!r} wanted, got {type(target.get(key)).__name__}")
        boxes, labels = target["boxes"], target["labels"]
        if labels.ndim != 1 or boxes.shape != (len(labels), 4):
            raise ValueError(
                f"{name}: boxes (M, 4) and labels (M,) wanted, got {tuple(boxes.shape)} and {tuple(labels.shape)}"
            )
        if boxes.dtype not in _FLOATS or labels.dtype not in _INTEGERS:
            raise TypeError(f"{name}: float boxes and integer labels wanted, got {boxes.dtype} and {labels.dtype}")
        if len(labels) == 0:
            continue
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise ValueError(
                f"{name}: labels in 0…{num_classes - 1} wanted, got {int(labels.min())}…{int(labels.max())}"
            )
        good = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
        if not bool(good.all()):
            bad = int((~good).nonzero()[0])
            raise ValueError(f"{name}: box {bad} is {boxes[bad].tolist()}; x2 > x1, y2 > y1 and finite numbers wanted")


def move(target: Target, before: Size, after: Size, device: torch.device) -> Target:
    """`target` on `device`, its boxes scaled from an image of size `before` to one of size `after`."""
    scale = torch.tensor([after[1] / before[1], after[0] / before[0]] * 2)
    boxes = target["boxes"].as_subclass(Tensor).float()
    if before != after:
        boxes = boxes * scale.to(boxes.device)
    moved = {
        "boxes": boxes.to(device, non_blocking=True),
        "labels": target["labels"].long().to(device, non_blocking=True),
    }
    if "image_id" in target:  # for samplers that remember images; read on the CPU, so it stays there
        moved["image_id"] = torch.as_tensor(target["image_id"])
    return moved
