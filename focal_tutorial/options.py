"""The settings of a RetinaNet: the paper's by default, torchvision's by name, each checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from focal_tutorial._numbers import is_count, is_number, is_positive
from focal_tutorial.anchors import OCTAVE_SCALES
from focal_tutorial.preprocess import IMAGENET_MEAN, IMAGENET_STD, Size

# What torchvision's retinanet_resnet50_fpn (v1) does differently from the paper, in this package's options.
TORCHVISION: dict[str, Any] = {
    "p6_from": "P5",
    "centre": 0.0,
    "torchvision_anchors": True,
    "low_quality_iou": 0.0,
    "box_loss": "l1",
    "normalizer": "image",
    "detections_per_image": 300,
    "min_size": 800,
    "max_size": 1333,
    "size_divisible": 32,
    "antialias": False,
}


def _are(values: Any, good: Callable[[Any], bool], length: int | None = None) -> bool:
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == (length or len(values))
    return is_list and len(values) > 0 and all(map(good, values))


# What is wanted, in words and as a test, of which settings. The choices by name are checked where they are used.
WANTED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("whole numbers, as [3, 4, 5],", lambda v: _are(v, lambda x: is_count(x, 0)), "levels"),
    ("positive numbers", lambda v: _are(v, is_positive), "sizes ratios scales"),
    ("(height, width) in whole pixels", lambda v: _are(v, is_count, 2), "canvas"),
    ("three numbers", lambda v: _are(v, is_number, 3), "mean"),
    ("three positive numbers", lambda v: _are(v, is_positive, 3), "std"),
    ("a whole number of at least 1", is_count, "channels head_channels topk_per_level detections_per_image"),
    ("a whole number of at least 1", is_count, "min_size max_size size_divisible"),
    ("a whole number of at least 0", lambda v: is_count(v, 0), "head_depth"),
    ("a number in 0 … 1", lambda v: is_number(v, 0, 1), "background_iou low_quality_iou nms_iou"),
    ("a number above 0 and up to 1", lambda v: is_number(v, 0, 1) and v > 0, "foreground_iou"),
    ("a number of at least 0 and below 1", lambda v: is_number(v, 0, 1) and v < 1, "score_threshold"),
    ("a number of at least 0", lambda v: is_number(v, 0), "gamma beta frozen_eps"),
    ("a number up to 1", lambda v: is_number(v, high=1), "alpha"),
    ("a number", is_number, "centre prior"),
)
MAY_BE_NONE = ("sizes", "head_channels", "low_quality_iou", "alpha", "min_size", "canvas")


@dataclass(frozen=True)
class Options:
    """Every setting of a RetinaNet; the defaults are the paper's.

    - Pyramid: `levels`, `channels`, `p6_from`; `frozen_eps` of frozen batch norm (0 for COCO_V1). See `FeaturePyramid`.
    - Anchors: `sizes` (`None`: 4 · 2^l), `ratios`, `scales`, `centre`, `torchvision_anchors`. See `AnchorGenerator`.
    - Heads: `head_channels` (`None`: as `channels`), `head_depth`, `head_norm`, `prior`. See `RetinaNetHead`.
    - Losses: `foreground_iou`, `background_iou`, `low_quality_iou`, `alpha`, `gamma`, `box_loss`, `beta`,
      `normalizer`. See `Criterion`.
    - Detections: `score_threshold`, `topk_per_level`, `nms_iou`, `detections_per_image`. See `detect_image`.
    - Input: `min_size`, `max_size`, `canvas`, `size_divisible`, `antialias`, `mean`, `std`. See `Preprocess`.
    """

    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    channels: int = 256
    p6_from: str = "C5"
    frozen_eps: float = 1e-5
    sizes: tuple[float, ...] | None = None
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    scales: tuple[float, ...] = OCTAVE_SCALES
    centre: float = 0.5
    torchvision_anchors: bool = False
    head_channels: int | None = None
    head_depth: int = 4
    head_norm: str | None = None
    prior: float = 0.01
    foreground_iou: float = 0.5
    background_iou: float = 0.4
    low_quality_iou: float | None = None
    alpha: float | None = 0.25
    gamma: float = 2.0
    box_loss: str = "smooth_l1"
    beta: float = 1 / 9
    normalizer: str = "foreground"
    score_threshold: float = 0.05
    topk_per_level: int = 1000
    nms_iou: float = 0.5
    detections_per_image: int = 100
    min_size: int | None = 800
    max_size: int = 1333
    canvas: Size | None = None
    size_divisible: int = 128
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Raise ValueError for a value that no model can have, naming the setting."""
        for wanted, good, names in WANTED:
            for name in names.split():
                value = getattr(self, name)
                if isinstance(value, list):
                    object.__setattr__(self, name, tuple(value))
                if not (value is None and name in MAY_BE_NONE) and not good(value):
                    raise ValueError(f"{name}: {wanted} wanted, got {value!r}")
        if self.background_iou > self.foreground_iou:
            raise ValueError(
                f"background_iou: at most foreground_iou ({self.foreground_iou}) wanted, got {self.background_iou}"
            )

    def pick(self, *names: str) -> dict[str, Any]:
        """The named settings as keyword arguments."""
        return {name: getattr(self, name) for name in names}
