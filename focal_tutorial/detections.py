"""From logits and deltas to detections: threshold, top-k per level, decode, clip, NMS per class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from focal_tutorial.boxes import clip_boxes, decode_boxes


def top_candidates(logits: Tensor, threshold: float, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The at most `k` best (anchor, class) pairs of one level with a probability above `threshold`.

    Args:
        logits: `(R_l, K)` of one image and level.
        threshold: probability in [0, 1); compared as a logit, so that σ is only taken of the survivors.

    Returns:
        scores `(D,)` in float32, highest first, anchor indices `(D,)`, labels `(D,)`.
    """
    limit = math.log(threshold / (1 - threshold)) if threshold > 0 else -math.inf
    flat = logits.flatten()
    candidates = (flat > limit).nonzero().squeeze(1)
    best, order = flat[candidates].float().topk(min(k, len(candidates)))
    chosen = candidates[order]
    return best.sigmoid(), chosen // logits.shape[1], chosen % logits.shape[1]


def detect_image(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    topk_per_level: int = 1000,
    nms_iou: float = 0.5,
    detections_per_image: int = 100,
) -> dict[str, Tensor]:
    """Detections of one image, best first, in pixels of the network's input.

    Args:
        logits, deltas, anchors: per level `(R_l, K)`, `(R_l, 4)`, `(R_l, 4)`.
        size: `(height, width)` of the image inside the padded input; boxes are clipped to it.
        score_threshold, topk_per_level, nms_iou: 0.05, 1000 and 0.5 in the paper (§4, "Inference").
        detections_per_image: 100 in COCO's evaluation.

    Returns:
        `{"boxes": (D, 4), "scores": (D,), "labels": (D,)}`, D ≤ `detections_per_image`.
    """
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        scores, index, labels = top_candidates(level_logits, score_threshold, topk_per_level)
        boxes = decode_boxes(level_deltas[index].float(), level_anchors[index])
        kept.append((clip_boxes(boxes, size), scores, labels))
    boxes, scores, labels = (torch.cat(column) for column in zip(*kept, strict=True))
    best = batched_nms(boxes, scores, labels, nms_iou)[:detections_per_image]
    return {"boxes": boxes[best], "scores": scores[best], "labels": labels[best]}
