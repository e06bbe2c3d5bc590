"""From logits and deltas to detections: threshold, top-k per level, decode, clip, NMS per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from focal_tutorial.boxes import clip_boxes, decode_boxes


class Candidates(NamedTuple):
    """Pairs of anchor and class in one image that may become detections: scores, anchors, labels, `(D,)` each."""

    scores: Tensor
    anchor: Tensor
    labels: Tensor


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
    found = pick_candidates(logits, score_threshold, topk_per_level)
    chosen, every_anchor = torch.cat(list(deltas))[found.anchor], torch.cat(list(anchors))
    return suppress(found, chosen, every_anchor, size, nms_iou, detections_per_image)


def pick_candidates(logits: Sequence[Tensor], score_threshold: float, topk_per_level: int) -> Candidates:
    """`top_candidates` of every level of one image, level after level, from logits `(R_l, K)`."""
    picked, start = [], 0
    for level in logits:
        scores, index, labels = top_candidates(level, score_threshold, topk_per_level)
        picked.append((scores, index + start, labels))
        start += len(level)
    return Candidates(*(torch.cat(column) for column in zip(*picked, strict=True)))


def suppress(
    candidates: Candidates,
    deltas: Tensor,
    anchors: Tensor,
    size: tuple[int, int],
    nms_iou: float,
    detections_per_image: int,
) -> dict[str, Tensor]:
    """Detections, as `detect_image` gives them, from candidates, their deltas `(D, 4)` and all anchors `(R, 4)`."""
    boxes = clip_boxes(decode_boxes(deltas.float(), anchors[candidates.anchor]), size)
    best = batched_nms(boxes, candidates.scores, candidates.labels, nms_iou)[:detections_per_image]
    return {"boxes": boxes[best], "scores": candidates.scores[best], "labels": candidates.labels[best]}
