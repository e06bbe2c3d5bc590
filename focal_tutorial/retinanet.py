"""RetinaNet: backbone, pyramid, heads, losses and detections in one module, and its builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.backbone import Backbone, FeaturePyramid, TinyBody, resnet_body
from focal_tutorial.criterion import Criterion
from focal_tutorial.detections import Candidates, pick_candidates, suppress
from focal_tutorial.heads import RetinaNetHead
from focal_tutorial.options import TORCHVISION, Options
from focal_tutorial.preprocess import Preprocess, Size, Target, check_targets
from focal_tutorial.weights import Weights, fill, read_weights
from focal_tutorial.windows import tiles


class RetinaNet(nn.Module):
    """A one-stage detector: one convolutional network scores every anchor at once.

    Speaks torchvision's detection language. In training mode `model(images, targets)` returns
    `{"classification": …, "bbox_regression": …}`; in eval mode `model(images)` returns, per image,
    `{"boxes": (D, 4), "scores": (D,), "labels": (D,)}` in that image's pixels, best first.

    `images`: list of `(3, H, W)` or one `(N, 3, H, W)`, float in [0, 1] or uint8, of any sizes.
    `targets`: list of `{"boxes": (M, 4) xyxy pixels, "labels": (M,) in 0…K−1}`; M may be 0.

    Args:
        body: maps `(N, 3, H, W)` to its stages, `{"C3": …, …}`, finest first.
        in_channels: channels of those stages.
        num_classes: K; there is no background class.
        options: everything else.

    Source: Lin et al. (2017), arXiv:1708.02002, §4.
    """

    def __init__(self, body: nn.Module, in_channels: Sequence[int], num_classes: int, options: Options) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: at least 1 wanted, got {num_classes}")
        o = self.options = options
        self.num_classes = num_classes
        self.class_names: list[str] | None = None
        self.config: dict[str, Any] = {}
        self.preprocess = Preprocess(
            **o.pick("min_size", "max_size", "canvas", "size_divisible", "antialias", "mean", "std")
        )
        self.anchors = AnchorGenerator(
            **o.pick("levels", "sizes", "ratios", "scales", "centre"), torchvision_compat=o.torchvision_anchors
        )
        extra = len(o.levels) - len(in_channels)
        self.backbone = Backbone(body, FeaturePyramid(in_channels, o.channels, extra, o.p6_from))
        self.head = RetinaNetHead(
            o.channels, self.anchors.num_anchors, num_classes,
            channels=o.head_channels or o.channels, depth=o.head_depth, norm=o.head_norm, prior=o.prior,
        )  # fmt: skip
        for module in body.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = o.frozen_eps
        self.criterion = Criterion(
            **o.pick(
                "foreground_iou",
                "background_iou",
                "low_quality_iou",
                "alpha",
                "gamma",
                "box_loss",
                "beta",
                "normalizer",
            )
        )

    def network(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared images `(N, 3, H, W)` → class logits `(N, R, K)`, box deltas `(N, R, 4)`: all that has weights."""
        return self.head(self.backbone(batch))

    def scores(self, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Prepared images `(N, 3, H, W)` → pyramid levels `[(N, C, H_l, W_l)]`, class logits `(N, R, K)`."""
        levels = self.backbone(batch)
        return levels, self.head.classification(levels)

    def compile_network(self) -> None:
        """`torch.compile` of what has weights and fixed shapes; matching, losses and windows follow the boxes."""
        if self.head.regression.is_local:
            self.scores = torch.compile(self.scores)  # type: ignore[method-assign]
        else:
            self.network = torch.compile(self.network)  # type: ignore[method-assign]

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in eval mode; see the class."""
        if self.training:
            check_targets(targets, len(images), self.num_classes)
        batch, sizes, original_sizes, moved = self.preprocess(images, targets if self.training else None)
        size = (batch.shape[-2], batch.shape[-1])
        anchors = self.anchors(size, batch.device)  # L × (R_l, 4)
        if moved is None:
            return self._detections(batch, anchors, sizes, original_sizes)
        # Matching comes first: a GPU's queue is empty then, and the program has to wait for what it finds.
        every_anchor = torch.cat(anchors)  # (R, 4)
        assignment = self.criterion.assign(every_anchor, moved)
        image, anchor, subnet = assignment.image, assignment.anchor, self.head.regression
        if subnet.is_local:
            windows = subnet.windows(self.anchors.grid_sizes(size), len(batch), image, anchor, assignment.box)
            levels, logits = self.scores(batch)
            deltas = subnet.at(levels, windows, image, anchor)  # (F, 4)
        else:
            logits, everywhere = self.network(batch)
            deltas = everywhere[image, anchor]
        return self.criterion.losses(logits, deltas, every_anchor, moved, assignment)

    @torch.no_grad()
    def _detections(
        self, batch: Tensor, anchors: list[Tensor], sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[dict[str, Tensor]]:
        """What `detect` finds, with the box subnet computed around the best-scored anchors alone where that pays."""
        subnet, size = self.head.regression, (batch.shape[-2], batch.shape[-1])
        if not subnet.is_local:
            return self.detect(*self.network(batch), anchors, sizes, original_sizes)
        levels, logits = self.scores(batch)
        picked = self._pick(logits, anchors)
        counts = [len(candidates.scores) for candidates in picked]
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(batch.device)  # (D,)
        anchor = torch.cat([candidates.anchor for candidates in picked])  # (D,)
        deltas = logits.new_zeros(0, 4)
        if len(anchor):
            grids = self.anchors.grid_sizes(size)
            group = tiles(grids, self.anchors.num_anchors, anchor)
            windows = subnet.windows(grids, len(batch), image, anchor, group)
            deltas = subnet.at(levels, windows, image, anchor)  # (D, 4)
        return self._finish(picked, deltas.split(counts), anchors, sizes, original_sizes)

    @torch.no_grad()
    def detect(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: list[Tensor],
        sizes: Sequence[Size],
        original_sizes: Sequence[Size],
    ) -> list[dict[str, Tensor]]:
        """Detections of every image, from logits `(N, R, K)` and deltas `(N, R, 4)`, in its original pixels."""
        picked = self._pick(logits, anchors)
        chosen = [deltas[n, candidates.anchor] for n, candidates in enumerate(picked)]
        return self._finish(picked, chosen, anchors, sizes, original_sizes)

    def _pick(self, logits: Tensor, anchors: list[Tensor]) -> list[Candidates]:
        per_level = [len(a) for a in anchors]
        limits = self.options.pick("score_threshold", "topk_per_level")
        return [pick_candidates(image.split(per_level), **limits) for image in logits]

    def _finish(
        self,
        picked: list[Candidates],
        deltas: Sequence[Tensor],
        anchors: list[Tensor],
        sizes: Sequence[Size],
        original_sizes: Sequence[Size],
    ) -> list[dict[str, Tensor]]:
        """Suppress the candidates of every image, given their deltas, and go back to its original pixels."""
        limits = self.options.pick("nms_iou", "detections_per_image")
        every_anchor, found = torch.cat(anchors), []
        for candidates, d, size, original in zip(picked, deltas, sizes, original_sizes, strict=True):
            detections = suppress(candidates, d, every_anchor, size, **limits)
            back = detections["boxes"].new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
            found.append({**detections, "boxes": detections["boxes"] * back})
        return found


def _build(
    builder: str,
    body: nn.Module,
    in_channels: Sequence[int],
    num_classes: int,
    made_with: dict[str, Any],
    options: Options,
) -> RetinaNet:
    """Put a model together and note how, so that a checkpoint can rebuild it."""
    model = RetinaNet(body, in_channels, num_classes, options)
    changed = {k: v for k, v in asdict(options).items() if v != getattr(Options, k, None)}
    model.config = {"builder": builder, "num_classes": num_classes, **made_with, **changed}
    return model


def _resnet(
    name: str,
    in_channels: Sequence[int],
    num_classes: int | None,
    *,
    weights: Weights | None = None,
    weights_backbone: str | None = None,
    norm: str | None = None,
    trainable: int | None = None,
    **options: Any,
) -> RetinaNet:
    loaded = None if weights is None else read_weights(weights, name)
    if loaded is not None and loaded.from_torchvision:
        options = {**TORCHVISION, "frozen_eps": loaded.eps, **options}
    classes = num_classes or (loaded.num_classes if loaded else 80)
    norm = norm or (loaded.norm if loaded else "frozen" if weights_backbone else "batch")
    trainable = trainable if trainable is not None else (3 if loaded or weights_backbone else 5)
    o = Options(**options)
    if o.levels != tuple(range(3, 3 + len(o.levels))) or len(o.levels) < 3:
        raise ValueError(f"levels: consecutive ones from 3 to 5 or higher wanted, got {o.levels}; a ResNet has C3–C5")
    body = resnet_body(name, weights=None if loaded else weights_backbone, norm=norm, trainable=trainable)
    made_with = {"norm": norm, "trainable": trainable}
    model = _build(f"retina{name.replace('resnet', 'net_resnet')}_fpn", body, in_channels, classes, made_with, o)
    if loaded is not None:
        fill(model, loaded, classes)
    return model


def retinanet_resnet50_fpn(
    num_classes: int | None = None,
    *,
    weights: Weights | None = None,
    weights_backbone: str | None = None,
    norm: str | None = None,
    trainable: int | None = None,
    **options: Any,
) -> RetinaNet:
    """RetinaNet on ResNet-50, the paper's; 37,915,572 parameters at 80 classes with frozen batch norm.

    Args:
        num_classes: K. By default that of `weights`, else COCO's 80. Other than that of `weights`: everything but the
            last class layer is kept, and that layer starts from the prior.
        weights: "COCO_V1" (torchvision's, downloaded by it), or a state dict or file of torchvision's
            `retinanet_resnet50_fpn` or of this package. One of torchvision's selects `TORCHVISION`, the settings
            under which logits, losses and detections are the same as there.
        weights_backbone: a torchvision ResNet weight name such as "IMAGENET1K_V1".
        norm: "batch", "frozen" or "group". By default frozen where pretrained weights are given, else batch.
        trainable: stages of the ResNet that learn, 0 … 5; by default 3 of a pretrained one (the stem and the first
            stage stay), 5 otherwise.
        options: see `Options`.

    Raises:
        InputError: where weights cannot be fetched, read, or do not fit.
        TypeError, ValueError: for an unknown option or a value out of range.
    """
    given: dict[str, Any] = {
        "weights": weights,
        "weights_backbone": weights_backbone,
        "norm": norm,
        "trainable": trainable,
    }
    return _resnet("resnet50", (512, 1024, 2048), num_classes, **given, **options)


def retinanet_resnet101_fpn(num_classes: int | None = None, **arguments: Any) -> RetinaNet:
    """RetinaNet on ResNet-101; arguments as `retinanet_resnet50_fpn` (torchvision has no such detector to load)."""
    return _resnet("resnet101", (512, 1024, 2048), num_classes, **arguments)


def retinanet_resnet34_fpn(num_classes: int | None = None, **arguments: Any) -> RetinaNet:
    """RetinaNet on ResNet-34; arguments as `retinanet_resnet50_fpn`."""
    return _resnet("resnet34", (128, 256, 512), num_classes, **arguments)


def retinanet_resnet18_fpn(num_classes: int | None = None, **arguments: Any) -> RetinaNet:
    """RetinaNet on ResNet-18; arguments as `retinanet_resnet50_fpn`."""
    return _resnet("resnet18", (128, 256, 512), num_classes, **arguments)


def retinanet_tiny(
    num_classes: int,
    *,
    weights: Weights | None = None,
    widths: Sequence[int] = (16, 32, 64, 96),
    norm: str = "group",
    blocks: int = 1,
    **options: Any,
) -> RetinaNet:
    """A RetinaNet for two CPU cores: residual stages with GroupNorm, a narrow pyramid, two-convolution heads.

    Args:
        num_classes: K.
        weights: a state dict or file of this package.
        widths: channels of the stages at strides 4, 8, 16, …
        norm: of backbone and heads, "group" or "batch".
        blocks: residual blocks of a stage, 1 or more.
        options: see `Options`. `levels` are (3, 4, 5) here; (2, 3, 4), strides 4, 8 and 16, suit objects under 20 px.
    """
    small = {
        "levels": (3, 4, 5),
        "channels": 48,
        "head_depth": 2,
        "head_norm": norm,
        "min_size": None,
        "size_divisible": 32,
    }
    o = Options(**{**small, **options})
    stages = [level for level in o.levels if level < 2 + len(widths)]
    if list(o.levels) != list(range(o.levels[0], o.levels[-1] + 1)) or not stages or o.levels[0] < 2:
        raise ValueError(f"levels: consecutive ones from 2 … {1 + len(widths)} on wanted, got {o.levels}")
    if blocks < 1:
        raise ValueError(f"blocks: at least 1 wanted, got {blocks}")
    widths = tuple(widths[: stages[-1] - 1])
    body = TinyBody(widths, len(stages), norm, blocks)
    made_with = {"widths": widths, "norm": norm, **o.pick(*small)}  # its own defaults are not those of `Options`
    if blocks != 1:  # so that a file from before there was the option reads as one of now
        made_with["blocks"] = blocks
    model = _build("retinanet_tiny", body, widths[-len(stages) :], num_classes, made_with, o)
    if weights is not None:
        fill(model, read_weights(weights, "tiny"), num_classes)
    return model


BUILDERS = {
    builder.__name__: builder
    for builder in (
        retinanet_tiny,
        retinanet_resnet18_fpn,
        retinanet_resnet34_fpn,
        retinanet_resnet50_fpn,
        retinanet_resnet101_fpn,
    )
}


def build_model(config: dict[str, Any]) -> RetinaNet:
    """The model that `model.config` describes, with random weights: `{"builder": name, "num_classes": K, …options}`."""
    builder = config.get("builder")
    if builder not in BUILDERS:
        raise ValueError(f"builder: one of {sorted(BUILDERS)} wanted, got {builder!r}")
    # JSON has no tuples
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != "builder"}
    own = {"widths", "blocks"} if builder == "retinanet_tiny" else {"weights_backbone", "trainable"}
    known = {f.name for f in fields(Options)} | {"num_classes", "weights", "norm"} | own
    if unknown := set(options) - known:
        raise ValueError(f"unknown model options of {builder}: {', '.join(sorted(unknown))}")
    return BUILDERS[builder](**options)
