"""What focal loss replaces: choosing a few anchors to learn from and discarding the rest.

Every sampler takes labels `(N, R)` (class 0…K−1, −1 background, −2 ignored) and returns a copy in which the discarded
anchors are −2. A loss that skips ignored labels then needs no other change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import nms

from focal_tutorial._numbers import describe, is_count, is_number
from focal_tutorial.matching import BACKGROUND, IGNORE

_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)


def _check(labels: Tensor, losses: Tensor, boxes: Tensor | None = None, **numbers: float) -> None:
    """Raise for labels, losses or boxes that do not fit together, and for a number below 0, naming it."""
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.dtype not in _SIGNED:
        raise ValueError(f"labels: signed integers (N, R) wanted, got {describe(labels)}")
    if not isinstance(losses, Tensor) or losses.shape != labels.shape or not _is_real(losses):
        raise ValueError(f"losses: real numbers {tuple(labels.shape)} as the labels wanted, got {describe(losses)}")
    wanted = [(labels.shape[1], 4), (*labels.shape, 4)]
    if boxes is not None and (not isinstance(boxes, Tensor) or boxes.shape not in wanted or not _is_real(boxes)):
        raise ValueError(f"boxes: real numbers {wanted[0]} or {wanted[1]} wanted, got {describe(boxes)}")
    for name, value in numbers.items():
        count = name in ("batch_size", "minimum")
        high = 1 if name in ("foreground_fraction", "nms_iou") else math.inf
        if not (is_count(value, 0) if count else is_number(value, 0, high)):
            kind = "a whole number" if count else "a number up to 1" if high == 1 else "a number"
            raise ValueError(f"{name}: {kind} of at least 0 wanted, got {describe(value)}")


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype in _SIGNED


def _ranked(scores: Tensor, allowed: Tensor) -> Tensor:
    """`scores` `(R,)` with everything that is not allowed below them, a score of −inf too."""
    least = torch.finfo(scores.dtype).min if scores.is_floating_point() else torch.iinfo(scores.dtype).min
    return torch.where(allowed, scores.clamp(min=least), -torch.inf)


def _top(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Mask `(R,)` of the `count` entries with the highest `scores` among `allowed` (all of them if fewer)."""
    count = min(count, int(allowed.sum()))
    chosen = torch.zeros_like(allowed)
    chosen[_ranked(scores, allowed).topk(count).indices] = True
    return chosen


def _survivors(boxes: Tensor, loss: Tensor, allowed: Tensor, iou: float, wanted: list[tuple[Tensor, int]]) -> Tensor:
    """Mask `(R,)` of the anchors that NMS by loss leaves, the first of them: at least `count` of each kind in `wanted`.

    NMS goes down the losses and never looks back, so on the anchors of highest loss alone it gives what it would give
    there on all; a few hundred suffice where all would cost a second.
    """
    order = _ranked(loss, allowed).argsort(descending=True)[: int(allowed.sum())]
    first = 512
    while True:
        top = order[:first]
        survivors = torch.zeros_like(allowed).index_fill_(0, top[nms(boxes[top], loss[top], iou)], True)
        seen = torch.zeros_like(allowed).index_fill_(0, top, True)
        if all((survivors & kind).sum() >= count or not (kind & allowed & ~seen).any() for kind, count in wanted):
            return survivors
        first *= 4


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
    _check(labels, labels, batch_size=batch_size, foreground_fraction=foreground_fraction)
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
    _check(labels, losses, ratio=ratio, minimum=minimum)
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
    enforce: bool = False,
) -> Tensor:
    """OHEM: keep the `batch_size` anchors of highest loss an image, after NMS by loss: `(N, R)`.

    Args:
        losses: `(N, R)` current loss of each anchor.
        labels: `(N, R)` integers, −1 background, −2 ignored.
        boxes: `(R, 4)` or `(N, R, 4)` xyxy that NMS compares; needed unless `nms_iou` is `None`.
        nms_iou: among anchors overlapping more than this, only the one of highest loss stays.
        foreground_fraction: take up to this share of the batch from the foreground, whatever its loss, and fill the
            rest with background (the paper's "OHEM 1:3" is 0.25); `None` lets the loss alone decide.
        enforce: where foreground is too scarce for that share, take less background rather than a smaller share, as
            hard negative mining does: an image without foreground then keeps nothing.

    Source: Shrivastava et al., OHEM (2016); the settings are those of the RetinaNet paper's Table 1d.
    """
    if boxes is None and nms_iou is not None:
        raise ValueError("boxes are needed for NMS; give them, or nms_iou=None")
    optional = {"nms_iou": nms_iou, "foreground_fraction": foreground_fraction}
    _check(labels, losses, boxes, batch_size=batch_size, **{k: v for k, v in optional.items() if v is not None})
    sampled = torch.full_like(labels, IGNORE)
    for image in range(len(labels)):
        loss, label = losses[image], labels[image]  # (R,) each
        allowed = label != IGNORE
        few_wanted = int(batch_size * (foreground_fraction or 0))
        if nms_iou is not None and boxes is not None:
            corners = boxes if boxes.ndim == 2 else boxes[image]
            wanted = [(label >= 0, few_wanted), (label == BACKGROUND, batch_size)]
            if foreground_fraction is None:
                wanted = [(allowed, batch_size)]
            allowed = _survivors(corners.float(), loss.float(), allowed, nms_iou, wanted)
        if foreground_fraction is None:
            kept = _top(loss, allowed, batch_size)
        else:
            few = _top(loss, allowed & (label >= 0), few_wanted)
            rest = batch_size - int(few.sum())
            if enforce and foreground_fraction > 0:
                rest = min(rest, round(int(few.sum()) * (1 / foreground_fraction - 1)))
            kept = few | _top(loss, allowed & (label == BACKGROUND), rest)
        sampled[image] = torch.where(kept, label, IGNORE)
    return sampled


class Bootstrapping:
    """Hard examples collected in rounds: keep all foreground and, per image, a set of negatives that grows.

    An image's set starts with a few random background anchors. At the end of every round, the `per_round` background
    anchors of highest loss that are not in it yet join it, and training goes on with the larger set.

    The classical form trains to the end, runs that detector over all training images, adds its false positives and
    trains anew. Here training is not interrupted: an image's round ends every `visits`-th time that it comes (an epoch
    is one visit), and the losses it comes with are the detector's errors on it. The hardest join, whether or not
    their score would make them detections. With `start=0`, `visits=1` and `capacity=per_round` nothing is remembered:
    then it is hard negative mining with a fixed number.

    The sets hold anchor indices, so an image must come with the same pixels each time: no random flip, crop or scale.
    They are not part of a checkpoint.

    Args:
        start: random background anchors in an image's set at first.
        per_round: anchors that join at the end of a round.
        visits: how often an image is seen in a round.
        rounds: after so many the set stays as it is; `None` goes on.
        capacity: largest size of the set; beyond it the easiest are dropped at the end of a round, as Felzenszwalb et
            al. do. `None` keeps all.
        generator: of the random start.

    Source: Sung and Poggio (1998); Rowley, Baluja and Kanade (1998); Felzenszwalb et al. (2010), §4.
    """

    def __init__(
        self,
        start: int = 64,
        per_round: int = 32,
        visits: int = 1,
        rounds: int | None = None,
        capacity: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if start < 0 or per_round < 0 or visits < 1:
            raise ValueError(f"want start >= 0, per_round >= 0, visits >= 1, got {start}, {per_round}, {visits}")
        self.start, self.per_round, self.visits = start, per_round, visits
        self.rounds, self.capacity, self.generator = rounds, capacity, generator
        self.negatives: dict[int, Tensor] = {}  # image id → anchor indices, (S,) int64
        self.seen: dict[int, int] = {}  # image id → visits so far
        self._foreground: dict[int, Tensor] = {}  # to notice an image that has changed
        self._image_ids: list[int] = []

    def expect(self, image_ids: list[int]) -> None:
        """Say which images the next call is about, in its order; `Criterion` does, from the targets' "image_id"."""
        self._image_ids = image_ids

    def __call__(self, losses: Tensor, labels: Tensor, anchors: Tensor | None = None) -> Tensor:
        """Labels `(N, R)` without the discarded anchors, from losses and labels `(N, R)`; the anchors do not matter.

        Raises:
            ValueError: unless `expect` has named the N images, or if one came with other foreground than before.
        """
        if len(self._image_ids) != len(labels):
            raise ValueError(f"{len(labels)} images, but ids of {len(self._image_ids)}: call expect() before")
        sampled = torch.full_like(labels, IGNORE)
        for image, image_id in enumerate(self._image_ids):
            foreground, background = labels[image] >= 0, labels[image] == BACKGROUND  # (R,) each
            chosen = self._visit(image_id, losses[image].detach(), foreground, background)
            sampled[image] = torch.where(foreground | chosen, labels[image], IGNORE)
        self._image_ids = []
        return sampled

    def _visit(self, image_id: int, loss: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Mask `(R,)` of the image's set, after what this visit adds to it."""
        where = foreground.nonzero().squeeze(1).cpu()
        if not torch.equal(self._foreground.setdefault(image_id, where), where):
            raise ValueError(
                f"image {image_id} has other foreground anchors than before: bootstrapping remembers anchors, "
                "so train without random flips, crops and scales"
            )
        seen = self.seen.get(image_id, 0)
        self.seen[image_id] = seen + 1
        if seen == 0:
            chosen = _top(torch.rand(loss.shape, generator=self.generator).to(loss.device), background, self.start)
        else:
            chosen = torch.zeros_like(background)
            chosen[self.negatives[image_id].to(loss.device)] = True
        ends_round = seen % self.visits == 0 and seen > 0
        if ends_round and (self.rounds is None or seen // self.visits <= self.rounds):
            chosen = chosen | _top(loss, background & ~chosen, self.per_round)
            if self.capacity is not None:
                chosen = _top(loss, chosen, self.capacity)
        self.negatives[image_id] = chosen.nonzero().squeeze(1).cpu()
        return chosen
