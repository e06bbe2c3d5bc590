"""What the losses check of their arguments, once, before any arithmetic. Nothing here waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor


def check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def check_common(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None,
    reduction: str,
    normalizer: float | Tensor | None,
) -> None:
    check_reduction(reduction)
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point logits, got {inputs.dtype}")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        if targets.shape != inputs.shape:
            raise ValueError(
                f"float targets must be shaped like inputs {tuple(inputs.shape)}, got {tuple(targets.shape)}"
            )
    elif inputs.dim() == 0 or targets.shape != inputs.shape[:-1]:
        raise ValueError(
            f"integer targets hold one class index per row: shape {tuple(inputs.shape[:-1])} for inputs "
            f"{tuple(inputs.shape)}, got {tuple(targets.shape)}; a 0/1 matrix must be floating point"
        )
    if isinstance(alpha, Tensor):
        if alpha.dim() and alpha.shape != inputs.shape[-1:]:
            raise ValueError(
                f"alpha must have one entry per class, {tuple(inputs.shape[-1:])}, got {tuple(alpha.shape)}"
            )
    elif alpha is not None and not alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], or be None or negative for no balancing, got {alpha}")
    if normalizer is None:
        return
    if reduction == "mean":
        raise ValueError("normalizer divides a sum or the single terms; with reduction='mean' leave it out")
    if isinstance(normalizer, Tensor):
        if normalizer.dim():
            raise ValueError(
                f"normalizer must be a number or a 0-d tensor, got shape {tuple(normalizer.shape)}"
            )
    elif not normalizer > 0:
        raise ValueError(f"normalizer must be > 0, got {normalizer}")


def check_softmax(inputs: Tensor, targets: Tensor, alpha: float | Tensor | None) -> int:
    """The class dimension of inputs."""
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point logits, got {inputs.dtype}")
    if inputs.dim() == 0:
        raise ValueError("inputs must have a class dimension, got a 0-d tensor")
    dim = 0 if inputs.dim() == 1 else 1
    shape = inputs.shape[:dim] + inputs.shape[dim + 1 :]
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.shape != shape:
        raise ValueError(
            f"targets must be class indices of shape {tuple(shape)} for inputs {tuple(inputs.shape)}, "
            f"got {targets.dtype} {tuple(targets.shape)}"
        )
    if isinstance(alpha, Tensor) and alpha.dim() and alpha.shape != inputs.shape[dim : dim + 1]:
        raise ValueError(
            f"alpha must have one entry per class, ({inputs.shape[dim]},), got {tuple(alpha.shape)}"
        )
    return dim
