"""Box arithmetic: the R-CNN parameterisation of a box relative to an anchor, its inverse, and clipping.

Boxes are `(x1, y1, x2, y2)` in pixels. IoU, NMS and format conversions come from `torchvision.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from focal_tutorial._numbers import describe, is_number

# A predicted side may be at most 1000/16 times the anchor's: exp() of a wild logit must not overflow.
MAX_LOG_RATIO = math.log(1000.0 / 16)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_REAL = (*_FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _checked(**given: Tensor) -> list[Tensor]:
    """Arguments of shape `(…, 4)` that fit together, as floats; raises for others, naming the argument."""
    if torch.compiler.is_compiling():  # what is being compiled has run before, and a check would be a graph break
        return list(given.values())
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: a tensor (…, 4) wanted, got {describe(tensor)}")
        if tensor.ndim == 0 or tensor.shape[-1] != 4:
            raise ValueError(f"{name}: shape (…, 4) wanted, got {tuple(tensor.shape)}")
        if tensor.dtype not in _REAL:
            raise TypeError(f"{name}: real numbers wanted, got {tensor.dtype}")
    first, *others = given.items()
    for name, tensor in others:
        pairs = zip(reversed(first[1].shape), reversed(tensor.shape), strict=False)
        if not all(a == b or 1 in (a, b) for a, b in pairs):
            shapes = f"{tuple(first[1].shape)} and {tuple(tensor.shape)}"
            raise ValueError(f"{first[0]} and {name}: shapes that broadcast wanted, got {shapes}")
    return [t if t.is_floating_point() else t.float() for t in given.values()]  # unsigned ones would wrap around


def _is_pair(size: object) -> bool:
    return isinstance(size, Sequence) and len(size) == 2


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)  # (…,) each
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas `(…, 4)` that turn `anchors` into `boxes`: `((x−xa)/wa, (y−ya)/ha, log w/wa, log h/ha)`.

    Args:
        boxes: `(…, 4)` xyxy, positive width and height.
        anchors: `(…, 4)` xyxy, same shape (or broadcastable), positive width and height.

    Sizes are not looked at, which would wait for the device: a box or an anchor without area gives infinities or NaN.

    Raises:
        ValueError, TypeError: for another shape or dtype.

    Source: Girshick et al., R-CNN (2014), appendix C; RetinaNet §4 uses it unchanged.
    """
    boxes, anchors = _checked(boxes=boxes, anchors=anchors)
    x, y, w, h = _centre_size(boxes)
    xa, ya, wa, ha = _centre_size(anchors)
    return torch.stack([(x - xa) / wa, (y - ya) / ha, torch.log(w / wa), torch.log(h / ha)], dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes `(…, 4)` xyxy from `deltas` `(…, 4)` and `anchors` `(…, 4)`: the inverse of `encode_boxes`.

    The two log-ratios are clamped at log(1000/16) ≈ 4.135 from above.

    Raises:
        ValueError, TypeError: for another shape or dtype.
    """
    deltas, anchors = _checked(deltas=deltas, anchors=anchors)
    dx, dy, dw, dh = deltas.unbind(-1)
    xa, ya, wa, ha = _centre_size(anchors)
    x, y = dx * wa + xa, dy * ha + ya
    half_w = 0.5 * wa * torch.exp(dw.clamp(max=MAX_LOG_RATIO))
    half_h = 0.5 * ha * torch.exp(dh.clamp(max=MAX_LOG_RATIO))
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """`boxes` `(…, 4)` moved inside an image of `size` `(height, width)`; a box outside gets zero area.

    Raises:
        ValueError, TypeError: for boxes of another shape or dtype, or a `size` that is no image's.
    """
    (boxes,) = _checked(boxes=boxes)
    if not torch.compiler.is_compiling() and not (_is_pair(size) and all(is_number(side, 0) for side in size)):
        raise ValueError(f"size: (height, width) of at least 0 wanted, got {describe(size)}")
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)
