"""NMS for a batch with static shapes, once in torch and once in ONNX's operators; for `focal_tutorial.export`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

NOTHING = -1.0  # the score of a candidate that is none: below the threshold, or suppressed


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int, most: int, iou: float) -> Tensor:
    """NMS per image and class: the places of each image's best detections, best first, and −1 after the last.

    One call for the whole batch: every (image, class) pair is moved to a place of its own. In float64 that changes no
    IoU; in float32 a shift by 80 classes of 800 pixels would leave boxes a precision of 1/128 pixel.

    Args:
        boxes, scores, labels: `(N, C, 4)` without negative corners, `(N, C)`, `(N, C)`; candidates have scores ≥ 0.
        classes, most, iou: K, the most detections of an image, the overlap above which the weaker box goes.

    Returns:
        int64 `(N, min(most, C))`.
    """
    n, c = scores.shape
    flat = scores.flatten()
    candidates = (flat >= 0).nonzero().squeeze(1)
    pair = labels + classes * torch.arange(n, device=labels.device)[:, None]  # (N, C)
    apart = boxes.double() + (pair * (boxes.max().double() + 1))[..., None]
    survivors = candidates[nms(apart.flatten(0, 1)[candidates], flat[candidates].double(), iou)]
    kept = torch.full_like(flat, NOTHING).index_copy(0, survivors, flat[survivors])
    best, order = kept.view(n, c).sort(dim=1, descending=True, stable=True)
    return torch.where(best >= 0, order, -1)[:, : min(most, c)]


# One node in the graph, so that the conversion to ONNX can replace it as a whole.
_suppress_op = torch.library.custom_op("focal_tutorial::suppress", suppress, mutates_args=())


@_suppress_op.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int, most: int, iou: float) -> Tensor:
    return labels.new_empty(scores.shape[0], min(most, scores.shape[1]))


def onnx_suppress(boxes: Any, scores: Any, labels: Any, classes: int, most: int, iou: float) -> Any:
    """`suppress` in ONNX's operators. NonMaxSuppression knows images and classes, so nothing is shifted."""
    from onnxscript import opset18 as op

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=values)

    none = op.Constant(value_float=NOTHING)
    columns = ints(*range(classes))  # (K,)
    own = op.Equal(op.Unsqueeze(labels, ints(1)), op.Unsqueeze(columns, ints(1)))  # (N, K, C)
    by_class = op.Where(own, op.Unsqueeze(scores, ints(1)), none)
    limit = op.Constant(value_floats=[NOTHING / 2])
    selected = op.NonMaxSuppression(boxes, by_class, ints(most), op.Constant(value_floats=[iou]), limit)  # (S, 3)
    place = op.Gather(selected, ints(0, 2), axis=1)  # image and candidate, (S, 2)
    survivors = op.GatherND(scores, place)
    kept = op.ScatterND(op.Expand(none, op.Shape(scores)), place, survivors)
    best, order = op.TopK(kept, ints(min(most, scores.shape[1])), axis=1)
    return op.Where(op.Less(best, op.Constant(value_float=0.0)), op.Constant(value_int=-1), order)
