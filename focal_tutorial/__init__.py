"""Class imbalance in object detection, focal loss and RetinaNet."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from focal_tutorial.losses import (
        SigmoidFocalLoss,
        SoftmaxFocalLoss,
        balanced_cross_entropy,
        focal_loss_star,
        sigmoid_focal_loss,
        softmax_focal_loss,
    )
    from focal_tutorial.retinanet import (
        RetinaNet,
        build_model,
        retinanet_resnet18_fpn,
        retinanet_resnet34_fpn,
        retinanet_resnet50_fpn,
        retinanet_resnet101_fpn,
        retinanet_tiny,
    )

__all__ = [
    "RetinaNet",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "balanced_cross_entropy",
    "build_model",
    "focal_loss_star",
    "retinanet_resnet18_fpn",
    "retinanet_resnet34_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet101_fpn",
    "retinanet_tiny",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `focal-tutorial --help` need not load torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    is_model = name == "RetinaNet" or name.startswith(("retinanet_", "build_"))
    return getattr(importlib.import_module(f"{__name__}.{'retinanet' if is_model else 'losses'}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
