"""Box arithmetic: the R-CNN parameterisation of a box relative to an anchor, its inverse, and clipping.

Boxes are `(x1, y1, x2, y2)` in pixels. IoU, NMS and format conversions come from `torchvision.ops`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A predicted side may be at most 1000/16 times the anchor's: exp() of a wild logit must not overflow.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)  # (…,) each
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas `(…, 4)` that turn `anchors` into `boxes`: `((x−xa)/wa, (y−ya)/ha, log w/wa, log h/ha)`.

    Args:
        boxes: `(…, 4)` xyxy, positive width and height.
        anchors: `(…, 4)` xyxy, same shape (or broadcastable), positive width and height.

    Source: Girshick et al., R-CNN (2014), appendix C; RetinaNet §4 uses it unchanged.
    """
    x, y, w, h = _centre_size(boxes)
    xa, ya, wa, ha = _centre_size(anchors)
    return torch.stack([(x - xa) / wa, (y - ya) / ha, torch.log(w / wa), torch.log(h / ha)], dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes `(…, 4)` xyxy from `deltas` `(…, 4)` and `anchors` `(…, 4)`: the inverse of `encode_boxes`.

    The two log-ratios are clamped at log(1000/16) ≈ 4.135 from above.
    """
    dx, dy, dw, dh = deltas.unbind(-1)
    xa, ya, wa, ha = _centre_size(anchors)
    x, y = dx * wa + xa, dy * ha + ya
    half_w = 0.5 * wa * torch.exp(dw.clamp(max=MAX_LOG_RATIO))
    half_h = 0.5 * ha * torch.exp(dh.clamp(max=MAX_LOG_RATIO))
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """`boxes` `(…, 4)` moved inside an image of `size` `(height, width)`; a box outside gets zero area."""
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)
