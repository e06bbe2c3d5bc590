"""Cross entropy, balanced cross entropy, focal loss, FL* and smooth L1, for the sigmoid and the softmax.

Every focal loss here is the scalar function of `focal_term.py` at a signed logit: x_t = ±x for a sigmoid, the
margin over the other classes for a softmax. K classes; labels are 0 … K-1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from . import fused
from ._loss_checks import FLOATS, check_common, check_reduction, check_softmax
from ._numbers import describe, is_number, is_positive
from .focal_term import (
    _Focal,
    at_least_float32,
    check_gamma,
    focal_term,
    focal_term_derivative,
    focal_term_second_derivative,
)

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "balanced_cross_entropy",
    "focal_loss_star",
    "focal_term",
    "focal_term_derivative",
    "focal_term_second_derivative",
    "sigmoid_focal_loss",
    "smooth_l1",
    "softmax_focal_loss",
]

BACKGROUND = -1  # integer target: every class of this row is negative
IGNORE = -2  # integer target: this row has no loss


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Alpha-balanced focal loss of independent sigmoids, exact at every logit (paper, equation 5).

    Args:
        inputs: logits (..., K) of any floating dtype; half precision is computed in float32.
        targets: float (..., K) in [0, 1], hard or soft, by the convention of
            `torchvision.ops.sigmoid_focal_loss`: p_t = t p + (1 - t)(1 - p), alpha_t likewise, CE of the soft
            target. Or integer (...): the class 0 … K-1 of each row, -1 for background, -2 for a row without
            loss; no one-hot is built.
        alpha: weight in [0, 1] of the positives (1 - alpha of the negatives), one number or one per class
            (K,); None or a negative number: no balancing.
        gamma: focusing parameter, any number >= 0; 0 is (balanced) cross entropy.
        reduction: "none" (shape of inputs), "sum", or "mean" over all elements of rows that are not ignored.
        normalizer: divides the loss, e.g. the number of positive anchors; a float > 0 or a 0-d tensor,
            used without waiting for the device. Not with "mean".

    Returns:
        (..., K) in the dtype of inputs, or a 0-d loss in float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype or range. Class indices out of range raise
            on the CPU; on other devices, where looking would stall the stream, they make the loss NaN.
    """
    check_gamma(gamma)
    targets = check_common(inputs, targets, alpha, reduction, normalizer)
    learned = targets.requires_grad or (isinstance(alpha, Tensor) and alpha.requires_grad)
    if not learned and not _transformed(inputs, targets) and fused.is_fused(inputs):
        loss = fused.fused_focal_loss(inputs, targets, alpha, gamma, reduce=reduction != "none")
        return _normalize(loss, inputs, targets, reduction, normalizer)
    x, t = _dense_targets(inputs, targets)
    loss = _balance(_focal_of_targets(x, t, gamma), t, alpha)
    return _reduce(loss, inputs, targets, reduction, normalizer)


def balanced_cross_entropy(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = 0.75,
    reduction: str = "none",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Alpha-balanced binary cross entropy, -alpha_t log p_t (paper, equation 3): the focal loss at gamma = 0.

    The default alpha is the best of the paper's Table 1a; arguments as in :func:`sigmoid_focal_loss`.
    """
    return sigmoid_focal_loss(inputs, targets, alpha, 0.0, reduction, normalizer=normalizer)


def focal_loss_star(
    inputs: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    beta: float = 1.0,
    alpha: float | Tensor | None = None,
    reduction: str = "none",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """FL* = -log(p*_t) / gamma with p*_t = sigmoid(gamma x_t + beta) (paper, equations 7 and 8).

    gamma must be > 0, beta is any number; a soft target t means the expectation t FL*(x) + (1 - t) FL*(-x).
    Other arguments as in :func:`sigmoid_focal_loss`.
    """
    if not is_positive(gamma):
        raise ValueError(f"gamma must be a finite number > 0, got {describe(gamma)}")
    if not is_number(beta):
        raise ValueError(f"beta must be a finite number, got {describe(beta)}")
    targets = check_common(inputs, targets, alpha, reduction, normalizer)
    x, t = _dense_targets(inputs, targets)
    positive = focal_term(beta + gamma * x, 0.0) / gamma  # gamma = 0: -log sigmoid, exactly
    negative = focal_term(beta - gamma * x, 0.0) / gamma
    loss = torch.where(t > 0, t * positive, 0.0) + torch.where(t < 1, (1 - t) * negative, 0.0)
    loss = _balance(loss, t, alpha)
    return _reduce(loss, inputs, targets, reduction, normalizer)


def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Multi-class focal loss, -alpha_y (1 - p_y)^gamma log p_y with p = softmax(inputs).

    With the margin z = x_y - logsumexp(the other logits), p_y = sigmoid(z): the same scalar function.

    Args:
        inputs: logits (K,), (N, K) or (N, K, d1, …), as `torch.nn.functional.cross_entropy` takes them.
        targets: int64 class indices 0 … K-1 of shape (), (N,) or (N, d1, …), or ignore_index.
        alpha: factor >= 0, one number or one per class (K,); None: 1.
        gamma: any number >= 0; 0 is cross entropy.
        ignore_index: targets with this value have no loss.
        reduction: "none", "sum", or "mean" over the targets that are not ignored (0 if all are). The mean
            is not divided by the weights alpha, as that of `cross_entropy` is.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or range.
    """
    check_gamma(gamma)
    check_reduction(reduction)
    dim = check_softmax(inputs, targets, alpha)
    if not is_number(ignore_index) or ignore_index != int(ignore_index):
        raise ValueError(f"ignore_index must be a whole number, got {describe(ignore_index)}")
    targets = targets.long()
    kept = targets != ignore_index
    index = torch.where(kept, targets, 0).unsqueeze(dim)
    if inputs.device.type == "cpu" and bool(((index < 0) | (index >= inputs.shape[dim])).any()):
        raise ValueError(f"targets must lie in 0 … {inputs.shape[dim] - 1} or equal ignore_index ({ignore_index})")
    x = _Finite.apply(at_least_float32(inputs).masked_fill(~kept.unsqueeze(dim), 0.0))
    loss = focal_term(_margin(x, index, dim), gamma)
    if alpha is not None:
        weight = alpha.to(loss)[index.squeeze(dim)] if isinstance(alpha, Tensor) and alpha.dim() else alpha
        loss = loss * weight
    loss = loss.masked_fill(~kept, 0.0)
    if reduction == "none":
        return loss.to(inputs.dtype)
    return _sum(loss) if reduction == "sum" else _sum(loss) / kept.sum().clamp(min=1)


def smooth_l1(inputs: Tensor, targets: Tensor, beta: float = 1 / 9, reduction: str = "none") -> Tensor:
    """Smooth L1: d²/(2 beta) for d = |inputs - targets| < beta, else d - beta/2; beta = 0 is L1.

    The box loss of the paper's section 4; the default beta is the one of the paper's released code. Half
    precision is computed in float32.
    """
    check_reduction(reduction)
    if not is_number(beta, 0):
        raise ValueError(f"beta must be a finite number >= 0, got {describe(beta)}")
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be a floating point tensor, got {describe(tensor)}")
    if inputs.shape != targets.shape:
        raise ValueError(f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} must have one shape")
    loss = F.smooth_l1_loss(at_least_float32(inputs), at_least_float32(targets), beta=beta, reduction=reduction)
    return loss.to(inputs.dtype) if reduction == "none" else loss


class SigmoidFocalLoss(nn.Module):
    """:func:`sigmoid_focal_loss` as a module."""

    alpha: float | Tensor | None

    def __init__(self, alpha: float | Tensor | None = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        check_gamma(gamma)
        check_reduction(reduction)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)  # moves with the module
        else:
            self.alpha = alpha
        self.gamma, self.reduction = gamma, reduction

    def forward(self, inputs: Tensor, targets: Tensor, normalizer: float | Tensor | None = None) -> Tensor:
        return sigmoid_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction, normalizer=normalizer)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"


class SoftmaxFocalLoss(nn.Module):
    """:func:`softmax_focal_loss` as a module."""

    alpha: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_gamma(gamma)
        check_reduction(reduction)
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)  # moves with the module
        else:
            self.alpha = alpha
        self.gamma, self.ignore_index, self.reduction = gamma, ignore_index, reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return softmax_focal_loss(inputs, targets, self.alpha, self.gamma, self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"


class _Finite(Function):
    """±inf becomes ± the largest float; the gradient passes, which clamp's would not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        limit = torch.finfo(x.dtype).max
        return x.clamp(-limit, limit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _margin(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """x_y - logsumexp over the other classes, of finite x; ± the largest float stands for ±inf."""
    if x.shape[dim]:  # the margin does not change, and near 0 no digits go to the size of the logits
        x = x - x.detach().amax(dim, keepdim=True)
    x_y = x.gather(dim, index)
    others = torch.logsumexp(x.scatter(dim, index, -torch.inf), dim)
    z = x_y.squeeze(dim) - others
    limit = torch.finfo(x.dtype).max
    return z + torch.where(z <= -limit, -torch.inf, 0.0)


def _balance(loss: Tensor, t: Tensor, alpha: float | Tensor | None) -> Tensor:
    """alpha_t times the loss."""
    if alpha is None or (not isinstance(alpha, Tensor) and alpha < 0):
        return loss
    return loss * (alpha * t + (1 - alpha) * (1 - t))


def _focal_of_targets(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    if not t.requires_grad:
        return _Focal.apply(x, t, gamma)
    ce = t * F.softplus(-x) + (1 - t) * F.softplus(x)  # learned targets: leave the derivatives to autograd
    return (t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)) ** gamma * ce


def _dense_targets(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets (..., K) in one dtype."""
    x = at_least_float32(inputs)
    if targets.shape == inputs.shape and (targets.is_floating_point() or targets.dtype == torch.bool):
        return x, targets.to(x.dtype)
    kept = targets != IGNORE
    x = x.masked_fill(~kept.unsqueeze(-1), 0.0)  # a NaN there must not reach the gradient
    classes = torch.arange(inputs.shape[-1], device=inputs.device)
    t = (targets.unsqueeze(-1) == classes).to(x.dtype)
    bad = (targets < IGNORE) | (targets >= inputs.shape[-1])
    if inputs.device.type == "cpu" and not _transformed(inputs, targets):
        if bool(bad.any()):
            raise ValueError(
                f"integer targets must lie in 0 … {inputs.shape[-1] - 1}, -1 (background) or -2 (ignored); "
                f"got {targets[bad][0].item()}"
            )
        return x, t
    return x, t.masked_fill(bad.unsqueeze(-1), torch.nan)


def _reduce(loss: Tensor, inputs: Tensor, targets: Tensor, reduction: str, normalizer: float | Tensor | None) -> Tensor:
    """Terms (..., K) of the loss, those of ignored rows taken out, added up as asked."""
    if targets.dim() < loss.dim():
        loss = loss.masked_fill((targets == IGNORE).unsqueeze(-1), 0.0)
    return _normalize(loss if reduction == "none" else _sum(loss), inputs, targets, reduction, normalizer)


def _normalize(
    loss: Tensor, inputs: Tensor, targets: Tensor, reduction: str, normalizer: float | Tensor | None
) -> Tensor:
    if reduction == "mean":
        rows = (targets != IGNORE).sum() * inputs.shape[-1] if targets.dim() < inputs.dim() else inputs.numel()
        return loss / rows
    if normalizer is not None:
        loss = loss / normalizer
    return loss.to(inputs.dtype) if reduction == "none" else loss


def _transformed(*tensors: Tensor) -> bool:
    """Whether torch.func (vmap, grad, …) is at work: operators cannot be transformed, nor looked into."""
    if torch.compiler.is_compiling():
        return False
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def _sum(loss: Tensor) -> Tensor:
    """Sum of many small terms, added up in float64."""
    return loss.sum() if loss.device.type == "mps" else loss.sum(dtype=torch.float64).to(loss.dtype)
