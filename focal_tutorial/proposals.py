"""A small two-stage detector from this package's parts: propose boxes densely, then classify a sample of them.

The first stage is a `RetinaNet` with one class, "object", that learns from 256 sampled anchors an image: an RPN. The
second pools features inside each of its best boxes and classifies them. It is there to be compared with the one-stage
detector on the same images, so it trains with `focal_tutorial.train.train(config, model=…)` and is measured by
`focal_tutorial.evaluate.evaluate`; `load_checkpoint` does not know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, batched_nms

from focal_tutorial.boxes import clip_boxes, decode_boxes, encode_boxes
from focal_tutorial.criterion import Criterion
from focal_tutorial.detections import top_candidates
from focal_tutorial.losses import smooth_l1
from focal_tutorial.matching import BACKGROUND, match_anchors
from focal_tutorial.preprocess import Preprocess, Size, Target, check_targets
from focal_tutorial.retinanet import RetinaNet, retinanet_tiny
from focal_tutorial.sampling import sample_balanced

# The second stage's deltas are small, since its boxes are already close. Times these, they have about unit variance
# (Fast R-CNN §2.3 normalises them; the numbers are those of its code).
DELTA_SCALE = (10.0, 10.0, 5.0, 5.0)


class Sample(NamedTuple):
    """One image's minibatch of the second stage."""

    boxes: Tensor  # (S, 4) xyxy, the regions that are pooled
    labels: Tensor  # (S,) class 0…K−1, −1 background
    matched: Tensor  # (S, 4) the ground-truth box of each; meaningless where the label is −1


def region_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    size: Size,
    *,
    topk_per_level: int = 1000,
    nms_iou: float = 0.7,
    count: int = 1000,
) -> tuple[Tensor, Tensor]:
    """The best boxes of one image, whatever they hold: `(P, 4)` xyxy and objectness `(P,)`, best first, P ≤ `count`.

    Args:
        logits, deltas, anchors: per level `(R_l, 1)`, `(R_l, 4)`, `(R_l, 4)`.
        size: `(height, width)` of the image inside the padded input; boxes are clipped to it.
        topk_per_level: anchors of highest objectness that each level keeps.
        nms_iou: among boxes of a level that overlap more than this, the best one stays.

    Source: Ren et al., Faster R-CNN (2015), §3.3, "Sharing features"; per level as in Lin et al., FPN (2017), §4.1.
    """
    boxes, scores, levels = [], [], []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
        score, index, _ = top_candidates(level_logits, 0.0, topk_per_level)
        boxes.append(clip_boxes(decode_boxes(level_deltas[index].float(), level_anchors[index]), size))
        scores.append(score)
        levels.append(torch.full_like(index, level))
    all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
    best = batched_nms(all_boxes, all_scores, torch.cat(levels), nms_iou)[:count]
    return all_boxes[best], all_scores[best]


class RegionHead(nn.Module):
    """The second stage: 7×7 features of each region, two linear layers, K + 1 class logits and 4 deltas.

    Args:
        in_channels: of the pyramid.
        num_levels: of the pyramid; a region is pooled from the level that its size asks for.
        num_classes: K. The background is class K here, the last logit: softmax needs it, a sigmoid does not.
        hidden: width of the two linear layers.

    Source: Girshick, Fast R-CNN (2015), §2; RoIAlign from He et al., Mask R-CNN (2017), §3.
    """

    def __init__(self, in_channels: int, num_levels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.names = [str(level) for level in range(num_levels)]
        self.pool = MultiScaleRoIAlign(self.names, output_size=7, sampling_ratio=2)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_channels * 49, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.classify = nn.Linear(hidden, num_classes + 1)
        self.regress = nn.Linear(hidden, 4)  # one box for all classes
        for layer, std in ((self.classify, 0.01), (self.regress, 0.001)):  # Fast R-CNN §2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor], boxes: list[Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Levels `[(N, C, H_l, W_l)]`, N × `(S_n, 4)` boxes in an input of `size` → `(ΣS, K+1)`, `(ΣS, 4)`."""
        pooled = self.pool(dict(zip(self.names, levels, strict=True)), boxes, [size] * len(boxes))  # (ΣS, C, 7, 7)
        features = self.layers(pooled)  # (ΣS, hidden)
        return self.classify(features), self.regress(features)


class TwoStageDetector(nn.Module):
    """A Faster R-CNN in small, with the interface of `RetinaNet`.

    In training mode `model(images, targets)` returns `{"classification": …, "bbox_regression": …}`, each the sum of
    both stages' losses; in eval mode `model(images)` returns detections in each image's pixels. What images and targets
    are: see `RetinaNet`.

    Args:
        first: the proposal stage, a `RetinaNet` with `num_classes` 1. Its matching thresholds and detection settings
            are those of the first stage and of the final detections.
        num_classes: K; there is no background class among them.
        hidden: width of the second stage's two linear layers.
        proposals: regions an image that the first stage hands on.
        first_batch, first_fraction: anchors an image that the first stage learns from, and the largest share of
            foreground among them.
        second_batch, second_fraction: the same of the regions that the second stage learns from.

    Source: Ren et al., Faster R-CNN (2015), §3. As there, the ground-truth boxes join the proposals in training.
    """

    def __init__(
        self,
        first: RetinaNet,
        num_classes: int,
        *,
        hidden: int = 128,
        proposals: int = 1000,
        first_batch: int = 256,
        first_fraction: float = 0.5,
        second_batch: int = 128,
        second_fraction: float = 0.25,
    ) -> None:
        super().__init__()
        if first.num_classes != 1 or num_classes < 1:
            raise ValueError(f"a first stage of 1 class and K ≥ 1 wanted, got {first.num_classes} and {num_classes}")
        self.first = first
        self.num_classes, self.proposals = num_classes, proposals
        self.first_batch, self.first_fraction = first_batch, first_fraction
        self.second_batch, self.second_fraction = second_batch, second_fraction
        self.class_names: list[str] | None = None
        self.config: dict[str, Any] = {}
        self.second = RegionHead(first.options.channels, len(first.anchors.levels), num_classes, hidden)
        self.register_buffer("delta_scale", torch.tensor(DELTA_SCALE), persistent=False)

    delta_scale: Tensor

    @property
    def criterion(self) -> Criterion:
        """The first stage's, which matches anchors; its `last_foreground` stays None: no loss is divided by it."""
        return self.first.criterion

    @property
    def preprocess(self) -> Preprocess:
        """The first stage's."""
        return self.first.preprocess

    def network(self, batch: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Prepared images `(N, 3, H, W)` → pyramid levels, objectness `(N, R, 1)`, deltas `(N, R, 4)`."""
        levels = self.first.backbone(batch)
        return levels, *self.first.head(levels)

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in eval mode; see the class."""
        if self.training:
            check_targets(targets, len(images), self.num_classes)
        batch, sizes, original_sizes, moved = self.preprocess(images, targets if self.training else None)
        size = (batch.shape[-2], batch.shape[-1])
        levels, logits, deltas = self.network(batch)
        anchors = self.first.anchors(size, batch.device)  # L × (R_l, 4)
        proposals = [boxes for boxes, _ in self.propose(logits, deltas, anchors, sizes)]
        if moved is None:
            return self.detect(levels, proposals, size, sizes, original_sizes)
        first = self.first_losses(logits, deltas, torch.cat(anchors), moved)
        second = self.second_losses(levels, self.sample(proposals, moved), size)
        return {
            "classification": first["classification"] + second["classification"],
            "bbox_regression": first["bbox_regression"] + second["bbox_regression"],
        }

    @torch.no_grad()
    def propose(
        self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image the boxes `(P, 4)` and objectness `(P,)` of `region_proposals`, in pixels of the input."""
        per_level = [len(a) for a in anchors]
        limits = {"topk_per_level": self.first.options.topk_per_level, "count": self.proposals}
        return [
            region_proposals(logits[n].split(per_level), deltas[n].split(per_level), anchors, size, **limits)
            for n, size in enumerate(sizes)
        ]

    def first_labels(self, anchors: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Label of every anchor, 0 object, −1 background, −2 ignored, and its box index: `(N, R)` each."""
        objects = [{"boxes": t["boxes"], "labels": torch.zeros_like(t["labels"])} for t in targets]
        return self.criterion.match(anchors, objects)

    def first_losses(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Cross entropy over the sampled anchors, smooth L1 over their foreground, both per sampled anchor."""
        labels, matches = self.first_labels(anchors, targets)
        sampled = sample_balanced(labels, self.first_batch, self.first_fraction)  # (N, R)
        chosen = sampled >= BACKGROUND
        truth = (sampled[chosen] >= 0).float()
        classification = F.binary_cross_entropy_with_logits(logits[..., 0][chosen].float(), truth)
        image, anchor = torch.where(sampled >= 0)  # (F,) each
        boxes = torch.cat([targets[n]["boxes"][matches[n, anchor[image == n]]] for n in range(len(targets))])  # (F, 4)
        wanted = encode_boxes(boxes, anchors[anchor])
        offsets = smooth_l1(deltas[image, anchor].float(), wanted, beta=self.criterion.beta, reduction="sum")
        return {"classification": classification, "bbox_regression": offsets / max(len(truth), 1)}

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> list[Sample]:
        """The regions that the second stage learns from: proposals and ground truth, labelled at IoU 0.5, sampled."""
        samples = []
        for boxes, target in zip(proposals, targets, strict=True):
            regions = torch.cat([boxes, target["boxes"]])  # (P + M, 4)
            labels, matches = self.second_labels(regions, target)
            kept = (sample_balanced(labels[None], self.second_batch, self.second_fraction)[0] >= BACKGROUND).nonzero()
            index = kept.squeeze(1)  # (S,)
            truth = target["boxes"] if len(target["boxes"]) else regions.new_zeros(1, 4)
            samples.append(Sample(regions[index], labels[index], truth[matches[index].clamp(min=0)]))
        return samples

    @staticmethod
    def second_labels(regions: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Class of each region, −1 background, and its box index: `(P,)` each. IoU 0.5 divides, nothing is ignored."""
        matches = match_anchors(regions, target["boxes"], 0.5, 0.5)
        classes = target["labels"] if len(target["labels"]) else matches.new_zeros(1)
        return torch.where(matches >= 0, classes[matches.clamp(min=0)], BACKGROUND), matches

    def second_losses(self, levels: Sequence[Tensor], samples: Sequence[Sample], size: Size) -> dict[str, Tensor]:
        """Softmax cross entropy over the sampled regions and smooth L1 over their foreground, both per region."""
        logits, deltas = self.second(levels, [s.boxes for s in samples], size)  # (S, K+1), (S, 4)
        labels = torch.cat([s.labels for s in samples])
        classification = F.cross_entropy(logits.float(), torch.where(labels >= 0, labels, self.num_classes))
        foreground = labels >= 0
        regions, boxes = (torch.cat([getattr(s, name) for s in samples])[foreground] for name in ("boxes", "matched"))
        wanted = encode_boxes(boxes, regions) * self.delta_scale
        offsets = smooth_l1(deltas[foreground].float(), wanted, beta=self.criterion.beta, reduction="sum")
        return {"classification": classification, "bbox_regression": offsets / max(len(labels), 1)}

    @torch.no_grad()
    def detect(
        self,
        levels: Sequence[Tensor],
        proposals: list[Tensor],
        size: Size,
        sizes: Sequence[Size],
        original_sizes: Sequence[Size],
    ) -> list[dict[str, Tensor]]:
        """Detections of every image in its original pixels: threshold, decode, clip, NMS per class, the best ones."""
        o = self.first.options
        logits, deltas = self.second(levels, proposals, size)
        counts = [len(boxes) for boxes in proposals]
        probabilities = logits.float().softmax(-1)[:, :-1].split(counts)  # N × (P, K)
        found = []
        for boxes, p, delta, inner, original in zip(
            proposals, probabilities, deltas.float().split(counts), sizes, original_sizes, strict=True
        ):
            region, label = torch.where(p > o.score_threshold)  # (D,) each
            moved = clip_boxes(decode_boxes(delta / self.delta_scale, boxes), inner)[region]
            best = batched_nms(moved, p[region, label], label, o.nms_iou)[: o.detections_per_image]
            back = moved.new_tensor([original[1] / inner[1], original[0] / inner[0]] * 2)
            found.append({"boxes": moved[best] * back, "scores": p[region, label][best], "labels": label[best]})
        return found

    @torch.no_grad()
    def funnel(self, images: Tensor | Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Foreground and background of every image at each step of the filter: `(N, 2)` counts by name.

        "anchors": all of them, foreground at IoU ≥ 0.5 (the second stage's rule, so that it compares with the later
        steps); "first labels": by the first stage's own rule, ignored ones left out; "first batch": the anchors it
        learns from; "proposals": its best boxes, foreground at IoU ≥ 0.5; "second batch": the regions sampled from them
        and the ground truth. Draws from torch's global generator, as training does.
        """
        check_targets(targets, len(images), self.num_classes)
        batch, sizes, _, moved = self.preprocess(images, targets)
        _, logits, deltas = self.network(batch)
        levels = self.first.anchors((batch.shape[-2], batch.shape[-1]), batch.device)
        anchors = torch.cat(levels)
        proposals = [boxes for boxes, _ in self.propose(logits, deltas, levels, sizes)]
        labels, _ = self.first_labels(anchors, moved or [])
        return {
            "anchors": _count([self.second_labels(anchors, t)[0] for t in moved or []]),
            "first labels": _count(labels),
            "first batch": _count(sample_balanced(labels, self.first_batch, self.first_fraction)),
            "proposals": _count([self.second_labels(p, t)[0] for p, t in zip(proposals, moved or [], strict=True)]),
            "second batch": _count([s.labels for s in self.sample(proposals, moved or [])]),
        }


def _count(labels: Sequence[Tensor] | Tensor) -> Tensor:
    return torch.stack([torch.stack([(row >= 0).sum(), (row == BACKGROUND).sum()]) for row in labels])  # (N, 2)


def two_stage_tiny(
    num_classes: int,
    *,
    hidden: int = 128,
    proposals: int = 1000,
    first_batch: int = 256,
    first_fraction: float = 0.5,
    second_batch: int = 128,
    second_fraction: float = 0.25,
    **options: Any,
) -> TwoStageDetector:
    """A two-stage detector on the backbone, pyramid, anchors and dense head of `retinanet_tiny`.

    The first stage's rule is Faster R-CNN's: foreground at IoU ≥ 0.7 or as the best anchor of a box, background below
    0.3. It starts at p = 0.5, since its minibatch is to be half and half.

    Args:
        num_classes: K.
        hidden, proposals, first_batch, first_fraction, second_batch, second_fraction: see `TwoStageDetector`.
        options: of `retinanet_tiny`; here `levels` are (2, 3, 4), `channels` 32 and `widths` (32, 64, 96, 128), for
            objects of 14 to 40 pixels.
    """
    own: dict[str, Any] = {
        "hidden": hidden, "proposals": proposals, "first_batch": first_batch, "first_fraction": first_fraction,
        "second_batch": second_batch, "second_fraction": second_fraction,
    }  # fmt: skip
    small: dict[str, Any] = {
        "levels": (2, 3, 4), "channels": 32, "widths": (32, 64, 96, 128), "prior": 0.5,
        "foreground_iou": 0.7, "background_iou": 0.3, "low_quality_iou": 0.0,
    }  # fmt: skip
    settings = {**small, **options}
    model = TwoStageDetector(retinanet_tiny(1, **settings), num_classes, **own)
    model.config = {"builder": "two_stage_tiny", "num_classes": num_classes, **own, **settings}
    return model
