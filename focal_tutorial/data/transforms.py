"""Augmentation by torchvision.transforms.v2: every image becomes a uint8 canvas of one size, its boxes moved
along.

One size for all images makes static shapes, which is what `torch.compile` and CUDA graphs want. The image
keeps its aspect, lies in the upper left corner, and the rest is the mean pixel, which the model's
normalisation turns into zero.
"""

from __future__ import annotations

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from focal_tutorial.data.dataset import Sample, Target

MEAN_PIXEL = (124, 116, 104)  # ImageNet's mean as uint8 RGB
MIN_SIDE = 1.0  # pixels; a box with less left of it after a crop is no target


def train_transforms(
    canvas: tuple[int, int],
    *,
    flip: float = 0.5,
    flip_vertical: float = 0.0,
    scale: tuple[float, float] | None = None,
    colour: float = 0.0,
) -> CanvasTransform:
    """Augmentation for training: flips, scale jitter with crop or padding, colour jitter.

    Args:
        canvas: `(H, W)` of every image that comes out, in pixels.
        flip: probability of a mirror image, 0…1.
        flip_vertical: probability of turning it upside down, 0…1: for images without an up, as under a microscope.
        scale: the image is resized to a factor drawn from this range of the largest size that fits the
            canvas; what is larger than the canvas is cropped at a random place. None: it fits exactly.
        colour: brightness, contrast and saturation vary by a factor within 1 ± this, 0…1.
    """
    return CanvasTransform(canvas, flip=flip, flip_vertical=flip_vertical, scale=scale, colour=colour)


def eval_transforms(canvas: tuple[int, int]) -> CanvasTransform:
    """No augmentation: the image, as large as fits, on a canvas of `(H, W)` pixels."""
    return CanvasTransform(canvas)


class CanvasTransform:
    """`transform(image, target)`: `prepare`, which is always the same for an image, then `augment`, which is
    not.

    A dataset's cache keeps what `prepare` returns. Random numbers come from torch's global generator.
    """

    def __init__(
        self,
        canvas: tuple[int, int],
        *,
        flip: float = 0.0,
        flip_vertical: float = 0.0,
        scale: tuple[float, float] | None = None,
        colour: float = 0.0,
    ) -> None:
        if len(canvas) != 2 or min(canvas) < 1:
            raise ValueError(f"canvas must be (height, width) of at least 1 pixel each, got {canvas!r}")
        for name, chance in (("flip", flip), ("flip_vertical", flip_vertical)):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} must be a probability in 0…1, got {chance!r}")
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {scale!r}")
        if not 0 <= colour <= 1:
            raise ValueError(f"colour must be in 0…1, got {colour!r}")
        self.canvas = (int(canvas[0]), int(canvas[1]))
        self.flip, self.flip_vertical = flip, flip_vertical
        self.scale = scale
        self.jitter = v2.ColorJitter(colour, colour, colour) if colour > 0 else None

    def __call__(self, image: tv_tensors.Image, target: Target) -> Sample:
        return self.augment(*self.prepare(image, target))

    def prepare(self, image: tv_tensors.Image, target: Target) -> Sample:
        """Resize to the canvas; under scale jitter only down to the largest size that it can ask for."""
        largest = 1.0 if self.scale is None else self.scale[1]
        factor = self._fit(image) * largest
        return _resize(image, target, factor if self.scale is None else min(factor, 1.0))

    def augment(self, image: tv_tensors.Image, target: Target) -> Sample:
        """Flip, jitter the scale, crop, jitter the colours, pad."""
        if self.flip > 0 and torch.rand(()) < self.flip:
            image = F.horizontal_flip(image)
            target = {**target, "boxes": F.horizontal_flip(target["boxes"])}
        if self.flip_vertical > 0 and torch.rand(()) < self.flip_vertical:
            image = F.vertical_flip(image)
            target = {**target, "boxes": F.vertical_flip(target["boxes"])}
        if self.scale is not None:
            low, high = self.scale
            factor = low + (high - low) * float(torch.rand(()))
            image, target = _resize(image, target, self._fit(image) * factor)
        image, target = self._crop(image, target)
        if self.jitter is not None:
            image = self.jitter(image)
        return self._pad(image, target)

    def _fit(self, image: tv_tensors.Image) -> float:
        """The factor that makes the image as large as the canvas allows."""
        return min(self.canvas[0] / image.shape[-2], self.canvas[1] / image.shape[-1])

    def _crop(self, image: tv_tensors.Image, target: Target) -> Sample:
        height, width = min(self.canvas[0], image.shape[-2]), min(self.canvas[1], image.shape[-1])
        if (height, width) != tuple(image.shape[-2:]):
            top = int(torch.randint(image.shape[-2] - height + 1, ()))
            left = int(torch.randint(image.shape[-1] - width + 1, ()))
            image = F.crop(image, top, left, height, width)
            target = {**target, "boxes": F.crop(target["boxes"], top, left, height, width)}  # clips as well
        return image, _without_slivers(target)

    def _pad(self, image: tv_tensors.Image, target: Target) -> Sample:
        bottom, right = self.canvas[0] - image.shape[-2], self.canvas[1] - image.shape[-1]
        if bottom or right:
            image = F.pad(image, [0, 0, right, bottom], fill=list(MEAN_PIXEL))
            target = {**target, "boxes": F.pad(target["boxes"], [0, 0, right, bottom])}
        return image, target


def _resize(image: tv_tensors.Image, target: Target, factor: float) -> Sample:
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    if size == list(image.shape[-2:]):
        return image, target
    return F.resize(image, size, antialias=True), {**target, "boxes": F.resize(target["boxes"], size)}


def _without_slivers(target: Target) -> Target:
    boxes = target["boxes"]  # (M, 4)
    keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1)  # (M,)
    if bool(keep.all()):
        return target
    return {**target, "boxes": tv_tensors.wrap(boxes[keep], like=boxes), "labels": target["labels"][keep]}
