"""The focal loss of one logit, and its first and second derivative, right at every logit.

Symbols, as in the RetinaNet paper: x logit, t target in [0, 1], x_t = x for t = 1 and -x for t = 0,
p = sigmoid(x), p_t = sigmoid(x_t), gamma the focusing parameter.

Two habits keep everything exact, at infinite logits too. 1 - p_t is never formed by a subtraction: it is
sigmoid(-x_t), and p and 1 - p both come from e = exp(-|x|), which cannot overflow. And the derivatives are
closed forms (paper, equation 10) in which no two large terms cancel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._numbers import describe, is_number


def _parts(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What value and derivatives share. `wrong` is the share of the target that contradicts the sign of x."""
    e = torch.exp(-x.abs())  # in (0, 1]
    wrong = torch.where(x < 0, t, 1 - t)
    finite = x.abs().clamp(max=torch.finfo(x.dtype).max)  # 0 * inf would be NaN
    ce = torch.log1p(e) + wrong * finite  # t softplus(-x) + (1 - t) softplus(x)
    d = wrong + (1 - wrong) * e
    q = d / (1 + e)  # 1 - p_t = t sigmoid(-x) + (1 - t) sigmoid(x): a sum of positive terms
    return e, wrong, ce, d, q


def _value(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """(1 - p_t)^gamma CE."""
    _, wrong, ce, _, q = _parts(x, t)
    return torch.where(x.isinf() & (wrong > 0), x.abs(), q**gamma * ce)


def _slope(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """d value / dx; for a hard target this is -+ (1 - p_t)^gamma (gamma p_t CE + 1 - p_t)."""
    e, wrong, ce, d, q = _parts(x, t)
    ratio = torch.where(d == 0, 1.0, e / d) / (1 + e)  # p (1 - p) / (1 - p_t), 1 where both vanish
    slope = q**gamma * (gamma * ratio * (2 * wrong - 1) * ce + (wrong - (1 - wrong) * e) / (1 + e))
    return torch.where(x < 0, -slope, slope)


def _curvature(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """d² value / dx², hard: p_t q^gamma [(1 + 2 gamma) q + gamma (gamma p_t - q) CE], q = 1 - p_t."""
    e, wrong, ce, d, q = _parts(x, t)
    e_d = torch.where(d == 0, 1.0, e / d)
    wrong_d = torch.where(d == 0, 0.0, wrong / d)
    a = (2 * wrong - 1) * e_d / (1 + e)  # q' / q
    b = (wrong_d - (1 - wrong) * e * e_d) / (1 + e)  # q' / q - q'' / q'
    c = (wrong - (1 - wrong) * e) / (1 + e)  # CE'
    return q**gamma * (gamma * a * (gamma * a - b) * ce + 2 * gamma * a * c + e / (1 + e) ** 2)


class _Slope(Function):
    """The gradient as a differentiable function, so that a second backward pass works."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, t: Tensor, gamma: float) -> Tensor:
        return _slope(x, t, gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        x, t, ctx.gamma = inputs
        ctx.save_for_backward(x, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, t = ctx.saved_tensors
        return grad * _curvature(x, t, ctx.gamma), None, None


class _Focal(Function):
    """The focal loss of logits x and targets t, saving nothing but these two for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, t: Tensor, gamma: float) -> Tensor:
        return _value(x, t, gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        x, t, ctx.gamma = inputs
        ctx.save_for_backward(x, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, t = ctx.saved_tensors
        return grad * _Slope.apply(x, t, ctx.gamma), None, None


def focal_term(x_t: Tensor, gamma: float) -> Tensor:
    """FL = (1 - p_t)^gamma (-log p_t) of the signed logit x_t = ±x (equation 4); differentiable twice."""
    check_gamma(gamma)
    x_t = at_least_float32(x_t)
    return _Focal.apply(x_t, torch.ones_like(x_t), gamma)


def focal_term_derivative(x_t: Tensor, gamma: float) -> Tensor:
    """dFL/dx_t = -q^gamma (gamma p_t s + q) with q = 1 - p_t and s = -log p_t (equation 10, rearranged)."""
    check_gamma(gamma)
    x_t = at_least_float32(x_t)
    return _Slope.apply(x_t, torch.ones_like(x_t), gamma)


def focal_term_second_derivative(x_t: Tensor, gamma: float) -> Tensor:
    """d²FL/dx_t² = p_t q^gamma [(1 + 2 gamma) q + gamma (gamma p_t - q) s], q = 1 - p_t and s = -log p_t."""
    check_gamma(gamma)
    x_t = at_least_float32(x_t)
    return _curvature(x_t, torch.ones_like(x_t), gamma)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is read and written, never computed in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_gamma(gamma: float) -> None:
    if isinstance(gamma, Tensor) or not is_number(gamma, 0):
        raise ValueError(f"gamma must be a finite number >= 0, got {describe(gamma)}")
