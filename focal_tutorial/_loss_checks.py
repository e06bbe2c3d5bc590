"""What the losses check of their arguments, once, before any arithmetic. Nothing here waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor

from ._numbers import describe, is_number, is_positive

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {describe(reduction)}")


def check_common(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None,
    reduction: str,
    normalizer: float | Tensor | None,
) -> Tensor:
    """The targets, of integers as int64: unsigned ones would take -2, the ignored, for 254."""
    check_reduction(reduction)
    _check_tensors(inputs, targets)
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
    _check_alpha(alpha, inputs.shape[-1:])
    if alpha is not None and not isinstance(alpha, Tensor) and not is_number(alpha, high=1):
        raise ValueError(f"alpha must lie in [0, 1], or be None or negative for no balancing, got {describe(alpha)}")
    _check_normalizer(normalizer, reduction)
    return targets.long() if targets.dtype in _INTEGERS else targets


def _check_tensors(inputs: Tensor, targets: Tensor) -> None:
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got a {type(tensor).__name__}")
    if inputs.dtype not in FLOATS:
        raise TypeError(f"inputs must be floating point logits, got {inputs.dtype}")
    if targets.dtype not in (*FLOATS, *_INTEGERS, torch.bool):
        raise TypeError(f"targets must be floating point or class indices of up to 64 signed bits, got {targets.dtype}")


def _check_alpha(alpha: float | Tensor | None, classes: tuple[int, ...]) -> None:
    if not isinstance(alpha, Tensor):
        return
    if alpha.dtype not in FLOATS:
        raise TypeError(f"alpha must be a number or a floating point tensor, got {alpha.dtype}")
    if alpha.dim() and alpha.shape != classes:
        raise ValueError(f"alpha must have one entry per class, {tuple(classes)}, got {tuple(alpha.shape)}")


def _check_normalizer(normalizer: float | Tensor | None, reduction: str) -> None:
    if normalizer is None:
        return
    if reduction == "mean":
        raise ValueError("normalizer divides a sum or the single terms; with reduction='mean' leave it out")
    if isinstance(normalizer, Tensor):
        if normalizer.dim():
            raise ValueError(f"normalizer must be a number or a 0-d tensor, got shape {tuple(normalizer.shape)}")
        if normalizer.dtype not in (*FLOATS, *_INTEGERS):
            raise TypeError(f"normalizer must be a real number, got {normalizer.dtype}")
    elif not is_positive(normalizer):
        raise ValueError(f"normalizer must be > 0 and finite, got {describe(normalizer)}")


def check_softmax(inputs: Tensor, targets: Tensor, alpha: float | Tensor | None) -> int:
    """The class dimension of inputs."""
    _check_tensors(inputs, targets)
    if inputs.dim() == 0:
        raise ValueError("inputs must have a class dimension, got a 0-d tensor")
    dim = 0 if inputs.dim() == 1 else 1
    shape = inputs.shape[:dim] + inputs.shape[dim + 1 :]
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.shape != shape:
        raise ValueError(
            f"targets must be class indices of shape {tuple(shape)} for inputs {tuple(inputs.shape)}, "
            f"got {targets.dtype} {tuple(targets.shape)}"
        )
    _check_alpha(alpha, inputs.shape[dim : dim + 1])
    if alpha is not None and not isinstance(alpha, Tensor) and not is_number(alpha, 0):
        raise ValueError(f"alpha must be a finite number >= 0, or None, got {describe(alpha)}")
    return dim
