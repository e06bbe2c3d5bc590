"""The focal loss and its gradient on a GPU: one Triton kernel each, one read of the logits, one write of the gradient.

A program takes BLOCK consecutive elements of the flat logits, so that loads are wide whatever K is, and finds row and
class of each by a division by a constant. Sums are per block, without atomics, and added up in float64: the same bits
from run to run. Arithmetic is float32 for every input dtype. The same kernels run on a CPU under TRITON_INTERPRET=1.

Shapes: logits x (R, K); targets, labels (R,) int64 or floats (R, K); class_weight (2, K) or None.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
WARPS = 8


@triton.jit
def _exp_negative(y, lo):
    """exp(-(y + lo)) for y >= 0: exp2 of the rounded product, and what the rounding took to first order."""
    y = tl.where(y > 150.0, 150.0, y)  # keeps NaN, which tl.minimum would not
    hi = y * 1.4426950216293335
    rest = tl.fma(y, 1.4426950216293335, -hi) + y * 1.925963033500e-08
    return tl.exp2(-hi) * (1.0 - (rest * 0.6931471805599453 + lo))


@triton.jit
def _log1p(e):
    """log(1 + e) for e in [0, 1], to 2.3e-7."""
    p = 0.005126102141
    p = p * e - 0.029074064677
    p = p * e + 0.07751608674
    p = p * e - 0.13602247622
    p = p * e + 0.19076880736
    p = p * e - 0.24835398989
    p = p * e + 0.33318121708
    p = p * e - 0.49999444976
    p = p * e + 0.99999996593
    return p * e


@triton.jit
def _power(q, distance, log_u, gamma, gamma_low, TWICE: tl.constexpr):
    """q^gamma: TWICE is 2 gamma for the usual gammas; else -1, and log q = -(distance + log_u)."""
    if TWICE < 0:
        distance = tl.where(distance > 1e30, 1e30, distance)
        a = gamma * distance
        b = gamma * log_u
        y = a + b  # the product in two floats, as exp turns an absolute error into a relative one
        lo = tl.fma(gamma, distance, -a) + ((a - y) + b) + gamma_low * distance
        result = _exp_negative(y, tl.where(y < 104.0, lo, 0.0))
    else:
        result = q * 0.0 + 1.0
        if TWICE % 2 == 1:
            result = tl.sqrt(q)
        if TWICE // 2 % 2 == 1:
            result *= q
        square = q * q
        if TWICE // 4 % 2 == 1:
            result *= square
        if TWICE // 8 % 2 == 1:
            result *= square * square
    return result


@triton.jit
def _targets(t_ptr, start, i, mask, K: tl.constexpr, LABELS: tl.constexpr):
    """Target and class of each element, and for labels whether its row is ignored or its label is out of range."""
    first_row = start // K
    j = (start - first_row * K).to(tl.int32) + i
    row = j // K
    k = j - row * K
    if LABELS:
        label = tl.load(t_ptr + first_row + row, mask=mask, other=-1)
        t = (label == k).to(tl.float32)
        ignored = label == -2
        bad = (label < -2) | (label >= K)
    else:
        t = tl.load(t_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
        ignored = mask & False
        bad = ignored
    return t, k, ignored, bad


@triton.jit
def _parts(x, t, HARD: tl.constexpr):
    """What value and slope share; `focal_term._parts`."""
    a = tl.abs(x)
    e = _exp_negative(a, 0.0)
    r = 1.0 / (1.0 + e)
    log_u = _log1p(e)
    wrong = tl.where(x < 0, t, 1.0 - t)
    if HARD:
        d = tl.where(wrong > 0.5, 1.0, e)
        distance = tl.where(wrong > 0.5, 0.0, a)
    else:
        d = wrong + (1.0 - wrong) * e
        soft = tl.where(wrong < 1.0, -tl.log(d), 0.0)
        distance = tl.where(wrong == 0.0, a, soft)
    return a, e, r, log_u, wrong, d, distance


@triton.jit
def _weights(t, k, weight_ptr, positive, negative, mask, K: tl.constexpr, PER_CLASS: tl.constexpr):
    if PER_CLASS:
        positive = tl.load(weight_ptr + k, mask=mask, other=0.0)
        negative = tl.load(weight_ptr + K + k, mask=mask, other=0.0)
    return t * positive + (1.0 - t) * negative


@triton.jit
def _forward_kernel(
    x_ptr, t_ptr, weight_ptr, partial_ptr, out_ptr, n, positive, negative, gamma, gamma_low,
    K: tl.constexpr, LABELS: tl.constexpr, PER_CLASS: tl.constexpr, TWICE: tl.constexpr, WRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    mask = i < tl.minimum(n - start, BLOCK).to(tl.int32)
    x = tl.load(x_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    t, k, ignored, bad = _targets(t_ptr, start, i, mask, K, LABELS)
    a, _, r, log_u, wrong, d, distance = _parts(x, t, LABELS)
    ce = log_u + tl.where(wrong == 0.0, 0.0, wrong * a)
    loss = tl.where(ce > 3.4e38, ce, _power(d * r, distance, log_u, gamma, gamma_low, TWICE) * ce)
    loss *= _weights(t, k, weight_ptr, positive, negative, mask, K, PER_CLASS)
    if LABELS:
        loss = tl.where(ignored, 0.0, loss)
        loss = tl.where(bad, float("nan"), loss)
    if WRITE:
        tl.store(out_ptr + start + i, loss.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(mask, loss, 0.0), axis=0))


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, t_ptr, weight_ptr, out_ptr, n, positive, negative, gamma, gamma_low,
    K: tl.constexpr, LABELS: tl.constexpr, PER_CLASS: tl.constexpr, TWICE: tl.constexpr, GRADS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    mask = i < tl.minimum(n - start, BLOCK).to(tl.int32)
    x = tl.load(x_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    t, k, ignored, _ = _targets(t_ptr, start, i, mask, K, LABELS)
    a, e, r, log_u, wrong, d, distance = _parts(x, t, LABELS)
    a = tl.where(a > 1e30, 1e30, a)  # 0 * inf would be NaN
    right = (1.0 - wrong) * e
    if LABELS:  # noqa: SIM108 (read by Triton's compiler)
        ratio = tl.where(wrong > 0.5, e, 1.0)
    else:  # 1 where both vanish
        ratio = (e + 1.2e-38) / (d + 1.2e-38)
    slope = (gamma * ratio * (2.0 * wrong - 1.0) * (log_u + wrong * a) + (wrong - right)) * r
    slope *= _power(d * r, distance, log_u, gamma, gamma_low, TWICE)
    slope = tl.where(x < 0, -slope, slope) * _weights(t, k, weight_ptr, positive, negative, mask, K, PER_CLASS)
    if GRADS:
        slope *= tl.load(grad_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    else:
        slope *= tl.load(grad_ptr).to(tl.float32)
    if LABELS:
        slope = tl.where(ignored, 0.0, slope)
    tl.store(out_ptr + start + i, slope.to(out_ptr.dtype.element_ty), mask=mask)


def forward(
    x: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    positive: float,
    negative: float,
    gamma: float,
    out: Tensor | None,
) -> Tensor:
    """The sum of the focal loss, 0-d float64, or 0 where the terms go to out (R, K)."""
    blocks = triton.cdiv(x.numel(), BLOCK)
    partial = torch.empty(0 if out is not None else blocks, dtype=torch.float32, device=x.device)
    with _device(x):
        _forward_kernel[(blocks,)](
            x, targets, class_weight, partial, out, x.numel(), positive, negative, *_gamma(gamma),
            K=x.shape[1], LABELS=targets.dim() == 1, PER_CLASS=class_weight is not None, TWICE=_twice(gamma),
            WRITE=out is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return partial.sum(dtype=torch.float64)


def backward(
    grad: Tensor,
    x: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    positive: float,
    negative: float,
    gamma: float,
    out: Tensor,
) -> None:
    """Write grad · d loss / dx to out (R, K); grad is 0-d or (R, K)."""
    with _device(x):
        _backward_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            grad, x, targets, class_weight, out, x.numel(), positive, negative, *_gamma(gamma),
            K=x.shape[1], LABELS=targets.dim() == 1, PER_CLASS=class_weight is not None, TWICE=_twice(gamma),
            GRADS=grad.dim() > 0, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def _gamma(gamma: float) -> tuple[float, float]:
    """gamma as the sum of two float32 numbers."""
    high = torch.tensor(gamma, dtype=torch.float32).item()
    return high, gamma - high


def _twice(gamma: float) -> int:
    return int(2 * gamma) if 2 * gamma in (0, 1, 2, 3, 4, 6, 8, 10) else -1


def _device(x: Tensor) -> torch.cuda.device:
    return torch.cuda.device(x.device if x.is_cuda else -1)  # -1: do nothing
