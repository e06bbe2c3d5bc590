"""What focal loss replaces: choosing a few anchors to learn from and discarding the rest.

Every sampler takes labels `(N, R)` (class 0…K−1, −1 background, −2 ignored) and returns a copy in which the discarded
anchors are −2. A loss that skips ignored labels then needs no other change.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from focal_tutorial.matching import BACKGROUND, IGNORE


def _top(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Mask `(R,)` of the `count` entries with the highest `scores` among `allowed` (all of them if fewer)."""
    count = min(count, int(allowed.sum()))
    chosen = torch.zeros_like(allowed)
    chosen[torch.where(allowed, scores, -torch.inf).topk(count).indices] = True
    return chosen


def sample_balanced(
    labels: Tensor, batch_size: int = 256, foreground_fraction: float = 0.25, generator: torch.Generator | None = None
) -> Tensor:
    """Keep a random minibatch of anchors an image, a fixed share of it foreground: labels `(N, R)`.

    Where an image has fewer foreground anchors than the share asks for, background fills the place, as in
    Faster R-CNN. The R-CNN family's 1 : 3 is `foreground_fraction=0.25`; its RPN uses 256 anchors and 0.5.

    Args:
        labels: `(N, R)` integers, −1 background, −2 ignored.
        batch_size: anchors kept per image.
        foreground_fraction: largest share of foreground in the minibatch, in [0, 1].

    Source: Girshick, Fast R-CNN (2015), §2.3; Ren et al., Faster R-CNN (2015), §3.1.3.
    """
    order = torch.rand(labels.shape, generator=generator).to(labels.device)  # (N, R)
    sampled = torch.full_like(labels, IGNORE)
    for image, rank in enumerate(order):
        foreground, background = labels[image] >= 0, labels[image] == BACKGROUND  # (R,) each
        few = _top(rank, foreground, int(batch_size * foreground_fraction))
        many = _top(rank, background, batch_size - int(few.sum()))
        sampled[image] = torch.where(few | many, labels[image], IGNORE)
    return sampled


def mine_hard_negatives(losses: Tensor, labels: Tensor, ratio: float = 3.0, minimum: int = 0) -> Tensor:
    """Keep all foreground and, per image, the `ratio` times as many background anchors of highest loss: `(N, R)`.

    Args:
        losses: `(N, R)` current loss of each anchor (no gradient needed).
        labels: `(N, R)` integers, −1 background, −2 ignored.
        minimum: background anchors kept even where an image has no foreground.

    Source: Liu et al., SSD (2016), §2.2, "Hard negative mining", with ratio 3.
    """
    sampled = torch.full_like(labels, IGNORE)
    for image in range(len(labels)):
        foreground, background = labels[image] >= 0, labels[image] == BACKGROUND
        hard = _top(losses[image], background, max(minimum, round(ratio * int(foreground.sum()))))
        sampled[image] = torch.where(foreground | hard, labels[image], IGNORE)
    return sampled


def mine_online(
    losses: Tensor,
    labels: Tensor,
    boxes: Tensor | None = None,
    batch_size: int = 128,
    nms_iou: float | None = 0.7,
    foreground_fraction: float | None = None,
) -> Tensor:
    """OHEM: keep the `batch_size` anchors of highest loss an image, after NMS by loss: `(N, R)`.

    Args:
        losses: `(N, R)` current loss of each anchor.
        labels: `(N, R)` integers, −1 background, −2 ignored.
        boxes: `(R, 4)` or `(N, R, 4)` xyxy that NMS compares; needed unless `nms_iou` is `None`.
        nms_iou: among anchors overlapping more than this, only the one of highest loss stays.
        foreground_fraction: force at most this share of foreground, the rest background (the paper's "OHEM 1:3"
            is 0.25); `None` lets the loss alone decide.

    Source: Shrivastava et al., OHEM (2016); the settings are those of the RetinaNet paper's Table 1d.
    """
    if boxes is None and nms_iou is not None:
        raise ValueError("boxes are needed for NMS; give them, or nms_iou=None")
    sampled = torch.full_like(labels, IGNORE)
    for image in range(len(labels)):
        loss, label = losses[image], labels[image]  # (R,) each
        allowed = label != IGNORE
        if nms_iou is not None and boxes is not None:
            where = allowed.nonzero().squeeze(1)
            corners = boxes if boxes.ndim == 2 else boxes[image]
            survivors = where[nms(corners[where].float(), loss[where].float(), nms_iou)]
            allowed = torch.zeros_like(allowed).index_fill_(0, survivors, True)
        if foreground_fraction is None:
            kept = _top(loss, allowed, batch_size)
        else:
            few = _top(loss, allowed & (label >= 0), int(batch_size * foreground_fraction))
            kept = few | _top(loss, allowed & (label == BACKGROUND), batch_size - int(few.sum()))
        sampled[image] = torch.where(kept, label, IGNORE)
    return sampled
