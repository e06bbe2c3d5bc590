"""Which anchor answers for which ground-truth box: foreground, background, or ignored."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from focal_tutorial._numbers import describe, is_number, is_positive
from focal_tutorial.losses import BACKGROUND, IGNORE

__all__ = ["BACKGROUND", "IGNORE", "match_anchors", "match_iou", "pairwise_iou"]

# Boxes compared with all anchors at a time: bounds the memory at CHUNK × R floats however many boxes an image has.
CHUNK = 16


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of every box with every anchor: `(M, R)` from `(M, 4)` and `(R, 4)`, 0 where the union has no area.

    `torchvision.ops.box_iou` gives NaN for two boxes without area; a NaN would win every comparison in `max`.
    """
    bx1, by1, bx2, by2 = boxes[:, :, None].unbind(1)  # (M, 1) each
    ax1, ay1, ax2, ay2 = anchors.t().contiguous()  # (R,) each: whole columns are several times faster than corners
    width = torch.minimum(bx2, ax2).sub_(torch.maximum(bx1, ax1)).clamp_(min=0)  # (M, R)
    height = torch.minimum(by2, ay2).sub_(torch.maximum(by1, ay1)).clamp_(min=0)  # (M, R)
    intersection = width.mul_(height)
    union = ((bx2 - bx1) * (by2 - by1) + (ax2 - ax1) * (ay2 - ay1)).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
    low_quality_iou: float | None = None,
) -> Tensor:
    """For each anchor the index of its box, or `BACKGROUND` (−1), or `IGNORE` (−2).

    An anchor takes the box it overlaps most: foreground at IoU ≥ `foreground_iou` > 0, background below
    `background_iou`, ignored between the two (RetinaNet paper §4). A box whose best anchor does not reach
    `foreground_iou` has none, unless `low_quality_iou` is given.

    Args:
        anchors: `(R, 4)` xyxy.
        boxes: `(M, 4)` xyxy; M may be 0. A box with a coordinate that is not finite matches nothing.
        low_quality_iou: let a box take its best anchors (all that tie) below `foreground_iou` too, where that IoU is
            at least this. Detectron uses 0.4; torchvision and detectron2 have no lower bound, which is 0 here. A
            box that overlaps no anchor at all matches nothing: in torchvision one box outside the image ties with
            every anchor at IoU 0 and turns all of them into foreground. A rescued anchor still goes to the box that
            *it* overlaps most, which can be another one.

    Returns:
        `(R,)` int64.

    Raises:
        ValueError, TypeError: on a wrong shape or dtype, or thresholds out of order.
    """
    _check(foreground_iou, background_iou, low_quality_iou, anchors=anchors, boxes=boxes)
    anchors = anchors.to(torch.promote_types(anchors.dtype, torch.float32))  # an area of 256² overflows float16
    boxes = boxes.to(anchors.dtype)
    usable = boxes.isfinite().all(dim=1, keepdim=True)  # (M, 1): a NaN would win every `max`, and hide other boxes
    boxes = torch.where(usable, boxes, 0)
    blocks = (
        pairwise_iou(boxes[start : start + CHUNK], anchors)
        for start in range(0, len(boxes) if len(anchors) else 0, CHUNK)
    )
    return _match(blocks, anchors.new_zeros(len(anchors)), foreground_iou, background_iou, low_quality_iou)


def match_iou(
    iou: Tensor, foreground_iou: float = 0.5, background_iou: float = 0.4, low_quality_iou: float | None = None
) -> Tensor:
    """The rule of `match_anchors` on IoUs `(M, R)` that are there already: `(R,)` int64.

    Args:
        iou: IoU of box m with anchor r, finite, in [0, 1]; M may be 0.
        foreground_iou, background_iou, low_quality_iou: as in `match_anchors`.

    Raises:
        ValueError, TypeError: on a wrong shape or dtype, or thresholds out of order.
    """
    _check(foreground_iou, background_iou, low_quality_iou, iou=iou)
    blocks = iou.split(CHUNK) if iou.numel() else ()
    return _match(blocks, iou.new_zeros(iou.shape[1]), foreground_iou, background_iou, low_quality_iou)


def _check(foreground_iou: float, background_iou: float, low_quality_iou: float | None, **given: Tensor) -> None:
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: a tensor of floats wanted, got {found}")
        if tensor.ndim != 2 or (name != "iou" and tensor.shape[1] != 4):
            wanted = {"anchors": "(R, 4)", "boxes": "(M, 4)", "iou": "(M, R)"}[name]
            raise ValueError(f"{name} {wanted} wanted, got {tuple(tensor.shape)}")
    ordered = is_positive(foreground_iou) and foreground_iou <= 1 and is_number(background_iou, 0, foreground_iou)
    if not ordered or not (low_quality_iou is None or is_number(low_quality_iou, 0, 1)):
        raise ValueError(
            "0 ≤ background_iou ≤ foreground_iou ≤ 1, foreground_iou > 0 and low_quality_iou in [0, 1] or None wanted, "
            f"got {describe(background_iou)}, {describe(foreground_iou)} and {describe(low_quality_iou)}"
        )


def _match(
    blocks: Iterable[Tensor],
    best_iou: Tensor,
    foreground_iou: float,
    background_iou: float,
    low_quality_iou: float | None,
) -> Tensor:
    """Matches `(R,)` from the IoU matrix, some rows at a time; `best_iou` starts at 0."""
    best_box = torch.zeros_like(best_iou, dtype=torch.int64)  # (R,)
    rescued = torch.zeros_like(best_iou, dtype=torch.bool)  # (R,)
    start = 0
    for iou in blocks:  # (≤ CHUNK, R)
        value, index = iou.max(dim=0)
        better = value > best_iou  # the first of equal boxes wins
        best_iou = torch.where(better, value, best_iou)
        best_box = torch.where(better, index + start, best_box)
        if low_quality_iou is not None:
            top = iou.max(dim=1, keepdim=True).values  # (≤ CHUNK, 1)
            rescued |= ((iou == top) & (top > 0) & (top >= low_quality_iou)).any(dim=0)
        start += len(iou)
    matches = torch.where(best_iou >= background_iou, IGNORE, BACKGROUND)
    return torch.where((best_iou >= foreground_iou) | rescued, best_box, matches)
