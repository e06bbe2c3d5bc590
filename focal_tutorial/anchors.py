"""Anchors: the boxes that a dense detector scores, laid on a grid per pyramid level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from focal_tutorial._numbers import describe, is_count, is_number, is_positive

OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


def cell_anchors(size: float, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
    """The anchors of one location, centred on the origin: `(A, 4)` xyxy in float64, ratio-major.

    Every anchor of scale s has area (size·s)²; `ratio` is height / width.

    With size 32, ratios ½, 1, 2 and three octave scales the half sides of the first are (22.6274, 11.3137).
    """
    sides = [(size * s / math.sqrt(r), size * s * math.sqrt(r)) for r in ratios for s in scales]
    return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=torch.float64)  # (A, 4)


def grid_anchors(cell: Tensor, grid: tuple[int, int], stride: tuple[float, float], centre: float) -> Tensor:
    """`cell` `(A, 4)` repeated at every location of a `grid` `(rows, columns)`: `(rows · columns · A, 4)`.

    Location (i, j) lies at ((j + centre) · stride_x, (i + centre) · stride_y). The order is row-major, and a location's
    anchors lie together.
    """
    rows, columns = grid
    y = (torch.arange(rows, dtype=cell.dtype) + centre) * stride[0]
    x = (torch.arange(columns, dtype=cell.dtype) + centre) * stride[1]
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([xx, yy, xx, yy], dim=-1).reshape(-1, 1, 4)  # (rows·columns, 1, 4)
    return (shifts + cell).reshape(-1, 4)


def _check_list(name: str, values: Any, good: Callable[[Any], bool], wanted: str) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values or not all(map(good, values)):
        raise ValueError(f"{name}: a list of {wanted} wanted, got {describe(values)}")


class AnchorGenerator:
    """Anchors for every pyramid level, cached per image size.

    Args:
        levels: pyramid levels l; the stride of level l is 2^l pixels.
        sizes: one base side in pixels per level; `None` means 4 · 2^l, the paper's 32 … 512 on P3 … P7.
        ratios: height / width of the anchors.
        scales: factors on the base side; the paper's are three steps of an octave.
        centre: where in its cell an anchor sits, in strides. 0.5 is the middle of the cell (Detectron, the paper's
            code); torchvision and detectron2 use 0, the corner.
        torchvision_compat: do as torchvision does: sides truncated and corners rounded to whole pixels, and a stride
            of padded size // grid size, which drifts from 2^l where the size is no multiple of it.

    Raises:
        ValueError: where sizes and levels differ in number, a level is no whole number of 0 … 30, or a size, ratio or
            scale is not positive, or an anchor would have a side beyond 0.01 … 10⁷ pixels; from a call, where the
            image has no area.

    Source: RetinaNet paper §4, "Anchors". A 640×640 image has 76,725 of them, an 800×1344 one 201,600.
    """

    def __init__(
        self,
        levels: Sequence[int] = (3, 4, 5, 6, 7),
        sizes: Sequence[float] | None = None,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        scales: Sequence[float] = OCTAVE_SCALES,
        *,
        centre: float = 0.5,
        torchvision_compat: bool = False,
    ) -> None:
        _check_list("levels", levels, lambda level: is_count(level, 0) and level <= 30, "whole numbers of 0 … 30")
        sizes = [4.0 * 2**level for level in levels] if sizes is None else sizes
        for name, values in {"sizes": sizes, "ratios": ratios, "scales": scales}.items():
            _check_list(name, values, is_positive, "positive numbers")
        if len(sizes) != len(levels):
            raise ValueError(f"sizes: one per level wanted, got {len(sizes)} sizes for {len(levels)} levels")
        if not is_number(centre, -1000, 1000):
            raise ValueError(f"centre: a number of strides wanted, got {describe(centre)}")
        self.levels, self.sizes = tuple(levels), tuple(map(float, sizes))
        self.ratios, self.scales = tuple(ratios), tuple(scales)
        self.centre, self.torchvision_compat = centre, torchvision_compat
        self._check_sides()
        self._cache: dict[object, list[Tensor]] = {}

    def _check_sides(self) -> None:
        """Raise for an anchor so small that float32 has no room for it beside an image's coordinates, or so large."""
        for size in self.sizes:
            good = size * max(self.scales) <= 1e7
            if good:
                with torch.device("cpu"):  # a model may be built on "meta", where no number can be looked at
                    cell = self._cell(size)
                sides = cell[:, 2:] - cell[:, :2]  # (A, 2)
                good = bool(((sides >= 0.01) & (sides <= 1e7)).all())
            if not good:
                raise ValueError(f"sizes, ratios, scales: sides of 0.01 … 10⁷ pixels wanted, not so at size {size:g}")

    @property
    def num_anchors(self) -> int:
        """A, the number of anchors at one location."""
        return len(self.ratios) * len(self.scales)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring locations, one per level."""
        return tuple(2**level for level in self.levels)

    def grid_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(rows, columns) of each level's grid for a padded input of `(height, width)`: size / 2^l, rounded up."""
        return [(-(-image_size[0] // s), -(-image_size[1] // s)) for s in self.strides]

    def _cell(self, size: float) -> Tensor:
        if not self.torchvision_compat:
            return cell_anchors(size, self.ratios, self.scales)
        sides = torch.tensor([float(int(size * s)) for s in self.scales])
        h_ratio = torch.sqrt(torch.tensor(self.ratios))
        w_ratio = 1 / h_ratio
        half_w, half_h = (torch.outer(ratio, sides).flatten() / 2 for ratio in (w_ratio, h_ratio))
        return torch.stack([-half_w, -half_h, half_w, half_h], dim=1).round().double()  # (A, 4)

    def __call__(
        self, image_size: tuple[int, int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """Anchors of each level, `(R_l, 4)` xyxy in pixels of the padded input of `image_size` `(height, width)`.

        The tensors are shared between calls of the same size: do not write to them.
        """
        if not torch.compiler.is_compiling():  # there sizes are symbols, and a check would be a graph break
            if not isinstance(image_size, Sequence) or len(image_size) != 2 or not all(map(is_count, image_size)):
                raise ValueError(f"image_size: (height, width) in whole pixels wanted, got {describe(image_size)}")
            if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
                raise TypeError(f"dtype: a floating point one wanted, got {describe(dtype)}")
        key = (tuple(image_size), torch.device(device), dtype)
        if key not in self._cache:
            if len(self._cache) >= 64:  # a dataset of unequal sizes must not fill the memory
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = [a.to(device=device, dtype=dtype) for a in self._make(image_size)]
        return self._cache[key]

    def _make(self, image_size: tuple[int, int]) -> list[Tensor]:
        made = []
        for size, stride, grid in zip(self.sizes, self.strides, self.grid_sizes(image_size), strict=True):
            steps = (float(stride), float(stride))
            if self.torchvision_compat:
                steps = (float(image_size[0] // grid[0]), float(image_size[1] // grid[1]))
            made.append(grid_anchors(self._cell(size), grid, steps, self.centre))
        return made


def yolo_boxes(grid: int = 13, per_cell: int = 5) -> int:
    """Boxes that a YOLO grid predicts: 7·7·2 = 98 for YOLOv1, 13·13·5 = 845 for YOLOv2 at 416 px."""
    return grid * grid * per_cell


def ssd_default_boxes(image_size: int = 300) -> Tensor:
    """The default boxes of SSD300, `(8732, 4)` xyxy in pixels: six maps, 4 or 6 boxes a location.

    Args:
        image_size: side of the square input; boxes scale with it (the grids stay those of SSD300).

    Source: Liu et al., SSD (2016), §2.2 and the released COCO-free (VOC) configuration.
    """
    grids = (38, 19, 10, 5, 3, 1)
    scales = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9, 1.075)
    extra_ratios: tuple[tuple[int, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    boxes = []
    for k, grid in enumerate(grids):
        sides = [(scales[k], scales[k]), (math.sqrt(scales[k] * scales[k + 1]),) * 2]
        for ratio in extra_ratios[k]:
            wide, narrow = scales[k] * math.sqrt(ratio), scales[k] / math.sqrt(ratio)
            sides += [(wide, narrow), (narrow, wide)]
        cell = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=torch.float64)
        boxes.append(grid_anchors(cell, (grid, grid), (1 / grid, 1 / grid), 0.5))
    return (torch.cat(boxes) * image_size).float()  # (8732, 4)
