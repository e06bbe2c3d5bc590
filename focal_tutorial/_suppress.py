"""NMS for a batch with static shapes, once in torch and once in ONNX's operators; for `focal_tutorial.export`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

NOTHING = -math.inf  # the rank of a candidate that is none: below the threshold, or suppressed


def suppress_batch(boxes: Tensor, ranks: Tensor, labels: Tensor, classes: int, most: int, iou: float) -> Tensor:
    """NMS per image and class: the places of each image's best detections, best first, and −1 after the last.

    One call for the whole batch: every (image, class) pair is moved to a place of its own. In float64 that changes no
    IoU; in float32 a shift by 80 classes of 800 pixels would leave boxes a precision of 1/128 pixel.

    Args:
        boxes: `(N, C, 4)` xyxy, without negative corners.
        ranks: `(N, C)`, scores or logits; the higher goes first, and `NOTHING` is no candidate.
        labels: `(N, C)`, 0 … K−1.
        classes, most, iou: K, the most detections of an image, the overlap above which the weaker box goes.

    Returns:
        int64 `(N, min(most, C))`.
    """
    n, c = ranks.shape
    pair = labels + classes * torch.arange(n, device=labels.device)[:, None]  # (N, C)
    apart = boxes.double() + (pair * (boxes.max().double() + 1))[..., None]
    # Two more, which overlap nothing: torchvision tells torch.export that at least two boxes survive.
    apart = torch.cat([apart.flatten(0, 1), apart.new_tensor([[-4, -4, -3, -3], [-2, -2, -1, -1]])])  # (N·C + 2, 4)
    flat = F.pad(ranks.flatten(), (0, 2))
    candidates = (flat > NOTHING).nonzero().squeeze(1)
    survivors = candidates[nms(apart[candidates], flat[candidates].double(), iou)]
    kept = torch.full_like(flat, NOTHING).index_copy(0, survivors, flat[survivors])[:-2]  # (N·C,)
    best, order = kept.view(n, c).sort(dim=1, descending=True, stable=True)
    return torch.where(best > NOTHING, order, -1)[:, : min(most, c)]


# One node in the graph, so that the conversion to ONNX can replace it as a whole.
_operator = torch.library.custom_op("focal_tutorial::suppress_batch", suppress_batch, mutates_args=())


@_operator.register_fake
def _(boxes: Tensor, ranks: Tensor, labels: Tensor, classes: int, most: int, iou: float) -> Tensor:
    return labels.new_empty(ranks.shape[0], min(most, ranks.shape[1]))


def onnx_suppress(boxes: Any, ranks: Any, labels: Any, classes: int, most: int, iou: float) -> Any:
    """`suppress_batch` in ONNX's operators. NonMaxSuppression knows images and classes, so nothing is shifted."""
    from onnxscript import opset18

    op: Any = opset18  # its types allow more than mypy can follow

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=values)

    none = op.Constant(value_float=NOTHING)
    columns = ints(*range(classes))  # (K,)
    own = op.Equal(op.Unsqueeze(labels, ints(1)), op.Unsqueeze(columns, ints(1)))  # (N, K, C)
    by_class = op.Where(own, op.Unsqueeze(ranks, ints(1)), none)
    lowest = op.Constant(value_floats=[torch.finfo(torch.float32).min])
    selected = op.NonMaxSuppression(boxes, by_class, ints(most), op.Constant(value_floats=[iou]), lowest)  # (S, 3)
    place = op.Gather(selected, ints(0, 2), axis=1)  # image and candidate, (S, 2)
    survivors = op.GatherND(ranks, place)
    kept = op.ScatterND(op.Expand(none, op.Shape(ranks)), place, survivors)
    best, order = op.TopK(kept, ints(min(most, ranks.shape[1])), axis=1)
    return op.Where(op.Equal(best, none), op.Constant(value_int=-1), order)
