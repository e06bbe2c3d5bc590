"""From anchors, predictions and targets to the two losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from focal_tutorial.boxes import decode_boxes, encode_boxes
from focal_tutorial.losses import sigmoid_focal_loss, smooth_l1
from focal_tutorial.matching import match_anchors

ClassificationLoss = Callable[[Tensor, Tensor], Tensor]
QualityLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Sampler = Callable[[Tensor, Tensor, Tensor], Tensor]

IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
BOX_LOSSES = ("smooth_l1", "l1", *IOU_LOSSES)
NORMALIZERS = ("foreground", "foreground_plus_one", "image", "ema")


@dataclass(frozen=True)
class Assignment:
    """Who answers for what in a batch: all that the losses need of the targets.

    Attributes:
        labels: `(N, R)` int64, class of every anchor, −1 background, −2 ignored.
        matches: `(N, R)` int64, index of its box in its image, or −1, −2.
        image, anchor: `(F,)` int64 each, the F foreground anchors of the batch.
        box: `(F,)` int64, number of its box among those of the whole batch.
        boxes: `(F, 4)` xyxy, its box.
    """

    labels: Tensor
    matches: Tensor
    image: Tensor
    anchor: Tensor
    box: Tensor
    boxes: Tensor


class Criterion(nn.Module):
    """RetinaNet's training loss: focal loss over all anchors, a box loss over the foreground ones.

    Args:
        foreground_iou, background_iou, low_quality_iou: see `match_anchors`.
        alpha, gamma: of the focal loss.
        box_loss: "smooth_l1" (the paper), "l1" (torchvision v1, detectron2); "giou", "diou" or "ciou" of decoded boxes.
        beta: where smooth L1 turns from quadratic to linear; the paper's code uses 1/9.
        normalizer: what the sums are divided by. "foreground": anchors assigned to a box in the batch, at least 1 (the
            paper, which speaks of one image, read for a batch); "foreground_plus_one": Σ over images of
            (foreground + 1) (Detectron); "image": each image by its own, then the mean (torchvision); "ema": a moving
            average of the batch's, momentum 0.9 (detectron2, which counts an empty batch as 1).
        classification_loss: `(logits (n, R, K), labels (n, R)) → 0-d sum`, labels −1 background and −2 ignored;
            the focal loss by default.
        quality_loss: in its place, `(logits (n, R, K), labels (n, R), quality (n, R)) → 0-d sum`, where `quality` is
            the IoU of a foreground anchor's predicted box with its ground truth, without gradient, 0 elsewhere; see
            `focal_tutorial.neighbours`.
        sampler: `(losses (N, R), labels (N, R), anchors (R, 4)) → labels`, with what it discards set to −2; see
            `focal_tutorial.sampling`. `losses` is the cross entropy of every anchor, summed over classes. Only the
            classification loss is sampled; the normaliser counts every assigned anchor all the same. A sampler that
            remembers images has a method `expect`, called before with the list of the targets' "image_id".

    Source: RetinaNet paper §4, "Training"; the alternatives are those of the released implementations.
    """

    ema_foreground: Tensor

    def __init__(
        self,
        *,
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
        low_quality_iou: float | None = None,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        box_loss: str = "smooth_l1",
        beta: float = 1 / 9,
        normalizer: str = "foreground",
        classification_loss: ClassificationLoss | None = None,
        quality_loss: QualityLoss | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss: one of {BOX_LOSSES} wanted, got {box_loss!r}")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer: one of {NORMALIZERS} wanted, got {normalizer!r}")
        if classification_loss is not None and quality_loss is not None:
            raise ValueError("classification_loss and quality_loss exclude each other: give one of them")
        self.thresholds = (foreground_iou, background_iou, low_quality_iou)
        self.alpha, self.gamma = alpha, gamma
        self.box_loss, self.beta, self.normalizer = box_loss, beta, normalizer
        self.classification_loss = classification_loss or self.focal_loss
        self.quality_loss = quality_loss
        self.sampler = sampler
        self.last_foreground: Tensor | None = None  # of the last batch; gradient accumulation weighs its batches by it
        if normalizer == "ema":
            self.register_buffer("ema_foreground", torch.tensor(100.0))

    def focal_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed focal loss of `logits` `(n, R, K)` against integer `labels` `(n, R)`."""
        return sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma, reduction="sum")

    def match(self, anchors: Tensor, targets: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Class label and box index of every anchor in every image: `(N, R)` int64 each, −1 background, −2 ignored."""
        matches = torch.stack([match_anchors(anchors, target["boxes"], *self.thresholds) for target in targets])
        labels = []
        for match, target in zip(matches, targets, strict=True):
            # An image without boxes has nothing to look up; a zero row keeps the shapes.
            classes = target["labels"] if len(target["labels"]) else match.new_zeros(1)
            labels.append(torch.where(match >= 0, classes[match.clamp(min=0)], match))
        return torch.stack(labels), matches  # (N, R) each

    def forward(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The two losses, each a 0-d float32 tensor.

        Args:
            logits: `(N, R, K)`.
            deltas: `(N, R, 4)`.
            anchors: `(R, 4)` xyxy pixels of the network's input.
            targets: per image `{"boxes": (M, 4), "labels": (M,)}` in the same pixels.

        Returns:
            `{"classification": …, "bbox_regression": …}`.
        """
        assignment = self.assign(anchors, targets)
        return self.losses(logits, deltas[assignment.image, assignment.anchor], anchors, targets, assignment)

    def assign(self, anchors: Tensor, targets: Sequence[dict[str, Tensor]]) -> Assignment:
        """Match `anchors` `(R, 4)` with the targets of every image; needs no predictions."""
        labels, matches = self.match(anchors, targets)
        image, anchor = torch.where(labels >= 0)  # (F,) each, F foreground anchors in the batch
        offsets = torch.tensor([0, *(len(t["boxes"]) for t in targets[:-1])], device=labels.device).cumsum(0)
        box = matches[image, anchor] + offsets[image]  # (F,)
        return Assignment(labels, matches, image, anchor, box, torch.cat([t["boxes"] for t in targets])[box])

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        targets: Sequence[dict[str, Tensor]],
        assignment: Assignment,
    ) -> dict[str, Tensor]:
        """The two losses, as `forward` returns them, from the deltas of the foreground anchors alone, `(F, 4)`."""
        a = assignment
        labels, matches, image, anchor, boxes = a.labels, a.matches, a.image, a.anchor, a.boxes
        predicted, reference = deltas.float(), anchors[anchor]  # (F, 4)
        box_losses = self.box_losses(predicted, reference, boxes)  # (F,)
        if self.sampler is not None:
            if hasattr(self.sampler, "expect"):
                self.sampler.expect([int(target["image_id"]) for target in targets])
            labels = self.sampler(anchor_cross_entropy(logits, labels), labels, anchors)
        quality = None
        if self.quality_loss is not None:
            quality = logits.new_zeros(labels.shape, dtype=torch.float32)  # (N, R)
            quality[image, anchor] = paired_iou(decode_boxes(predicted.detach(), reference), boxes)
        if self.normalizer == "image":
            return self._per_image(logits, labels, matches, box_losses, image, quality)
        normalizer = self._foreground(len(image), len(targets), logits.device)
        return {
            "classification": self._classification(logits, labels, quality) / normalizer,
            "bbox_regression": box_losses.sum() / normalizer,
        }

    def box_losses(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Loss of each foreground anchor, `(F,)`, from deltas, anchors and boxes `(F, 4)`."""
        if self.box_loss in IOU_LOSSES:
            return IOU_LOSSES[self.box_loss](decode_boxes(deltas, anchors), boxes)
        beta = self.beta if self.box_loss == "smooth_l1" else 0.0
        return smooth_l1(deltas, encode_boxes(boxes, anchors), beta=beta, reduction="none").sum(-1)

    def _foreground(self, foreground: int, images: int, device: torch.device) -> Tensor:
        """What the batch's sums are divided by: averaged over processes, so that DDP's mean gradient is the batch's."""
        count = torch.tensor(
            float(foreground + (images if self.normalizer == "foreground_plus_one" else 0)), device=device
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count /= dist.get_world_size()
        if self.normalizer == "ema":
            if self.training:
                self.ema_foreground.mul_(0.9).add_(0.1 * count)
            count = self.ema_foreground.clone()
        else:
            self.last_foreground = count
        # With several processes the sum over all of them is at least 1, so each one's share is 1 / processes.
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return count.clamp(min=1.0 / world)

    def _classification(self, logits: Tensor, labels: Tensor, quality: Tensor | None) -> Tensor:
        if self.quality_loss is None or quality is None:
            return self.classification_loss(logits, labels)
        return self.quality_loss(logits, labels, quality)

    def _per_image(
        self,
        logits: Tensor,
        labels: Tensor,
        matches: Tensor,
        box_losses: Tensor,
        image: Tensor,
        quality: Tensor | None,
    ) -> dict[str, Tensor]:
        foreground = (matches >= 0).sum(1).clamp(min=1)  # (N,)
        # split, not logits[i]: the gradient of an index is a whole tensor of zeros for each image
        qualities = [None] * len(labels) if quality is None else quality.split(1)
        classification = [
            self._classification(x, y, q) / count
            for x, y, q, count in zip(logits.split(1), labels.split(1), qualities, foreground, strict=True)
        ]
        return {
            "classification": torch.stack(classification).mean(),
            "bbox_regression": (box_losses / foreground[image]).sum() / len(labels),
        }


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with the other box of the same row: `(F,)` from `(F, 4)` xyxy each; 0 where both are empty."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    overlap = (high - low).clamp(min=0).prod(1)  # (F,)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1) - overlap
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


@torch.no_grad()
def anchor_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every anchor, summed over classes: `(N, R)` from `(N, R, K)` and `(N, R)`; 0 where ignored.

    In float32: samplers rank by it, and half precision ties thousands of anchors.
    """
    return sigmoid_focal_loss(logits.float(), labels, alpha=None, gamma=0.0, reduction="none").sum(-1)
