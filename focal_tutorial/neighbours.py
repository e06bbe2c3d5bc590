"""Focal loss's descendants that learn the quality of a box: varifocal loss and quality focal loss.

Both ask one number of the detector for each anchor and class: 0 for background, and on the true class of a foreground
anchor the IoU of the box it predicts with its ground truth. Both are smallest where the probability equals that number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from focal_tutorial._loss_checks import check_common
from focal_tutorial._numbers import describe, is_number, is_positive
from focal_tutorial.focal_term import _Focal, _parts, _slope, at_least_float32, check_gamma
from focal_tutorial.losses import IGNORE, _reduce, sigmoid_focal_loss

__all__ = ["quality_focal_criterion", "quality_focal_loss", "varifocal_criterion", "varifocal_loss"]


def varifocal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Varifocal loss: q CE(p, q) where q > 0, alpha p^gamma CE(p, 0) where q = 0, with CE of the soft target q.

    Args:
        inputs: logits (..., K) of any floating dtype; half precision is computed in float32.
        targets: q, float (..., K) in [0, 1]: IoU of the predicted box with its ground truth on the true class of a
            foreground anchor, 0 elsewhere. No gradient flows into it.
        alpha: weight > 0 of the negatives; the positives have none but q.
        gamma: how fast the weight of a negative falls with p, any number >= 0.
        reduction: "none" (shape of inputs), "sum", or "mean" over all elements.
        normalizer: divides the loss, a float > 0 or a 0-d tensor. Not with "mean".

    Returns:
        (..., K) in the dtype of inputs, or a 0-d loss in float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype or range.

    Source: Zhang et al., VarifocalNet (2021), equation 2.
    """
    check_gamma(gamma)
    if isinstance(alpha, Tensor) or not is_positive(alpha):
        raise ValueError(f"alpha must be a finite number > 0, got {describe(alpha)}")
    x, q = _logits_and_quality(inputs, targets, reduction, normalizer)
    positive = q * _Focal.apply(x, q, 0.0)  # gamma = 0: cross entropy, exactly
    negative = alpha * _Focal.apply(x, torch.zeros_like(x), gamma)
    return _reduce(torch.where(q > 0, positive, negative), inputs, targets, reduction, normalizer)


def quality_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    beta: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Quality focal loss, |y - p|^beta CE(p, y), with CE of the soft target y.

    Other arguments, results and errors as in :func:`varifocal_loss`.

    Args:
        targets: y, float (..., K) in [0, 1], what :func:`varifocal_loss` calls q.
        beta: how fast the weight falls as p nears y, any number >= 0; 0 is cross entropy. Below 1 the slope at a
            soft y grows without bound around p = y (where it is taken as 0).

    Source: Li et al., Generalized Focal Loss (2020), the equation called QFL.
    """
    if isinstance(beta, Tensor) or not is_number(beta, 0):
        raise ValueError(f"beta must be a finite number >= 0, got {describe(beta)}")
    x, y = _logits_and_quality(inputs, targets, reduction, normalizer)
    return _reduce(_QualityFocal.apply(x, y, beta), inputs, targets, reduction, normalizer)


def varifocal_criterion(logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
    """Sum of :func:`varifocal_loss`, for `Criterion(quality_loss=…)`.

    Args:
        logits: (N, R, K).
        labels: (N, R) integers: class 0 … K-1, -1 background, -2 ignored (without loss, whatever its logits are).
        quality: (N, R) in [0, 1], IoU of each foreground anchor's predicted box with its ground truth; read only
            where labels >= 0.
    """
    rows, targets, background = _split(logits, labels, quality)
    negatives = sigmoid_focal_loss(logits, background, alpha=None, gamma=2.0, reduction="sum")
    return varifocal_loss(rows, targets, reduction="sum") + 0.75 * negatives


def quality_focal_criterion(logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
    """Sum of :func:`quality_focal_loss`, for `Criterion(quality_loss=…)`; arguments as in `varifocal_criterion`."""
    rows, targets, background = _split(logits, labels, quality)
    negatives = sigmoid_focal_loss(logits, background, alpha=None, gamma=2.0, reduction="sum")
    return quality_focal_loss(rows, targets, reduction="sum") + negatives


class _QualityFocal(Function):
    """Quality focal loss of logits x and targets y, right at every logit, infinite ones too; one derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, beta: float) -> Tensor:
        _, wrong, ce, _, _ = _parts(x, y)
        gap = _slope(x, y, 0.0).abs()  # the slope of cross entropy is p - y
        return torch.where(x.isinf() & (wrong > 0), x.abs(), gap**beta * ce)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        x, y, ctx.beta = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """sign(p - y) |p - y|^beta (beta CE p (1 - p) / |p - y| + |p - y|)."""
        x, y = ctx.saved_tensors
        e, _, ce, _, _ = _parts(x, y)
        signed = _slope(x, y, 0.0)
        gap = signed.abs()
        # 1 where both vanish: far out on the right side of a hard target, and, times gap^beta = 0, at p = y
        ratio = torch.where(gap == 0, 1.0, e / (1 + e) ** 2 / gap)
        return grad * signed.sign() * gap**ctx.beta * (ctx.beta * ratio * ce + gap), None, None


def _logits_and_quality(
    inputs: Tensor, targets: Tensor, reduction: str, normalizer: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        raise TypeError(f"targets must be floating point qualities in [0, 1], got {describe(targets)}")
    check_common(inputs, targets, None, reduction, normalizer)
    x = at_least_float32(inputs)
    return x, targets.detach().to(x.dtype)


def _split(logits: Tensor, labels: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets (F, K) of the foreground anchors, and labels (N, R) in which only the background counts.

    On background both losses are a focal loss, which has a fast path; only the few others need the general form.
    """
    if labels.shape != logits.shape[:-1] or quality.shape != labels.shape:
        raise ValueError(
            f"labels and quality must both have shape {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, "
            f"got {tuple(labels.shape)} and {tuple(quality.shape)}"
        )
    foreground = labels >= 0
    true_class = labels[foreground][:, None] == torch.arange(logits.shape[-1], device=labels.device)  # (F, K)
    targets = torch.where(true_class, quality[foreground][:, None], 0.0)
    return logits[foreground], targets, torch.where(foreground, IGNORE, labels)
