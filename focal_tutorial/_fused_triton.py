"""The focal loss and its gradient on a GPU: one Triton kernel each, one read of the logits, one write of the gradient.

With labels, a program takes ROWS rows, reads their labels once and goes through the columns WIDTH at a time: no
division to find row and column, and an ignored row is not even read. With float targets it takes BLOCK elements of
the flat tensor. Sums are per program, without atomics, and added up in float64: the same bits from run to run.
Arithmetic is float32 for every input dtype. The same kernels run on a CPU under TRITON_INTERPRET=1.

Shapes: logits x (R, K); targets, labels (R,) int64 or floats (R, K); class_weight (2, K) or None.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 8  # elements of a program, or of one step of it; warps that share them


PTX = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)


@triton.jit
def _exp2(x):
    """2^x in one instruction; Triton's own takes four, for the sake of results below 1e-38."""
    if PTX:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def _reciprocal(x):
    """1 / x in one instruction, for x from 1 to 2."""
    if PTX:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit
def _exp_negative(y, lo):
    """exp(-(y + lo)) for y >= 0: exp2 of the rounded product, and what the rounding took to first order."""
    y = tl.minimum(y, 150.0, propagate_nan=tl.PropagateNan.ALL)
    hi = y * 1.4426950216293335
    rest = tl.fma(y, 1.4426950216293335, -hi) + y * 1.925963033500e-08
    return _exp2(-hi) * (1.0 - (rest * 0.6931471805599453 + lo))


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
    elif TWICE == 0:
        result = q * 0.0 + 1.0
    elif TWICE == 1:
        result = tl.sqrt(q)
    elif TWICE == 2:
        result = q
    elif TWICE == 3:
        result = q * tl.sqrt(q)
    elif TWICE == 4:
        result = q * q
    elif TWICE == 6:
        result = q * q * q
    elif TWICE == 8:
        result = (q * q) * (q * q)
    else:
        tl.static_assert(TWICE == 10)
        result = (q * q) * (q * q) * q
    return result


@triton.jit
def _shared(a):
    """e = exp(-a), 1 / (1 + e) and log(1 + e) of a = |logit|."""
    e = _exp_negative(a, 0.0)
    return e, _reciprocal(1.0 + e), _log1p(e)


# ---------------------------------------------------------------- labels
@triton.jit
def _labels(label_ptr, rows, K: tl.constexpr, ROWS: tl.constexpr):
    """Of this program's rows: index, label, whether it exists, whether it counts; and NaN if a label is wrong."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    r = tl.arange(0, ROWS)
    exists = r < tl.minimum(rows - first, ROWS).to(tl.int32)
    label = tl.load(label_ptr + first + r, mask=exists, other=-2)
    poison = tl.where((label < -2) | (label >= K), float("nan"), 0.0)
    return first * K, r, label.to(tl.int32), exists, label != -2, poison


@triton.jit
def _columns(x_ptr, r, c, label, counts, K: tl.constexpr, WIDTH: tl.constexpr):
    """WIDTH columns from c on: offsets, column numbers, which are positive, and the logits turned to negatives."""
    k = c + tl.arange(0, WIDTH)
    offsets = r[:, None] * K + k[None, :]
    mask = counts[:, None] if K % WIDTH == 0 else counts[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=float("-inf")).to(tl.float32)  # -inf: no loss, no gradient
    positive = label[:, None] == k[None, :]
    return offsets, k, positive, tl.where(positive, -x, x)  # FL(x, 1) = FL(-x, 0)


@triton.jit
def _signed_weights(
    at_positive, weight_ptr, k, positive, negative, SIGN: tl.constexpr, K: tl.constexpr, PER_CLASS: tl.constexpr
):
    """The weight of each element, SIGN times it at the positives."""
    if PER_CLASS:
        positive = tl.load(weight_ptr + k, mask=k < K, other=0.0)[None, :]
        negative = tl.load(weight_ptr + K + k, mask=k < K, other=0.0)[None, :]
    return tl.where(at_positive, SIGN * positive, negative)


@triton.jit
def _forward_labels(
    x_ptr, label_ptr, weight_ptr, partial_ptr, out_ptr, rows, positive, negative, gamma, gamma_low,
    K: tl.constexpr, PER_CLASS: tl.constexpr, TWICE: tl.constexpr, WRITE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    start, r, label, exists, counts, poison = _labels(label_ptr, rows, K, ROWS)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for c in range(0, K, WIDTH):
        offsets, k, at_positive, z = _columns(x_ptr + start, r, c, label, counts, K, WIDTH)
        a = tl.abs(z)
        e, u, log_u = _shared(a)
        wrong = z >= 0
        q = tl.where(wrong, 1.0, e) * u
        loss = _power(q, tl.where(wrong, 0.0, a), log_u, gamma, gamma_low, TWICE) * (log_u + tl.where(wrong, a, 0.0))
        loss *= _signed_weights(at_positive, weight_ptr, k, positive, negative, 1.0, K, PER_CLASS)
        if WRITE:
            loss = (loss + poison[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + start + offsets, loss, mask=exists[:, None] & (k < K)[None, :])
        else:
            total += loss
    if not WRITE:
        tl.store(partial_ptr + tl.program_id(0), tl.sum(total) + tl.sum(poison))


@triton.jit
def _backward_labels(
    grad_ptr, x_ptr, label_ptr, weight_ptr, out_ptr, rows, positive, negative, gamma, gamma_low,
    K: tl.constexpr, PER_CLASS: tl.constexpr, TWICE: tl.constexpr, GRADS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    start, r, label, exists, counts, _ = _labels(label_ptr, rows, K, ROWS)
    for c in range(0, K, WIDTH):
        offsets, k, at_positive, z = _columns(x_ptr + start, r, c, label, counts, K, WIDTH)
        mask = exists[:, None] & (k < K)[None, :] if K % WIDTH else exists[:, None]
        a = tl.abs(z)
        e, u, log_u = _shared(a)
        wrong = z >= 0
        ce = log_u + tl.where(wrong, tl.where(a > 1e30, 1e30, a), 0.0)  # 0 * inf would be NaN
        near = tl.where(wrong, 1.0, e)
        slope = (gamma * tl.where(wrong, e, 1.0) * ce + near) * u
        slope *= _power(near * u, tl.where(wrong, 0.0, a), log_u, gamma, gamma_low, TWICE)
        slope *= _signed_weights(at_positive, weight_ptr, k, positive, negative, -1.0, K, PER_CLASS)
        if GRADS:
            slope *= tl.load(grad_ptr + start + offsets, mask=mask, other=0.0).to(tl.float32)
        else:
            slope *= tl.load(grad_ptr).to(tl.float32)
        tl.store(out_ptr + start + offsets, slope.to(out_ptr.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- float targets, hard or soft
@triton.jit
def _elements(x_ptr, t_ptr, n, BLOCK: tl.constexpr):
    """Of this program's elements: first one, offsets, which exist, logit and target."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    mask = i < tl.minimum(n - start, BLOCK).to(tl.int32)
    x = tl.load(x_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    return start, i, mask, x, tl.load(t_ptr + start + i, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _alpha_t(t, weight_ptr, start, i, positive, negative, K: tl.constexpr, PER_CLASS: tl.constexpr):
    if PER_CLASS:
        k = ((start % K).to(tl.int32) + i) % K
        positive = tl.load(weight_ptr + k)
        negative = tl.load(weight_ptr + K + k)
    return t * positive + (1.0 - t) * negative


@triton.jit
def _soft_parts(x, t):
    """`focal_term._parts`: what contradicts the sign of x, q (1 + e), and -log q - log(1 + e)."""
    a = tl.abs(x)
    e, u, log_u = _shared(a)
    wrong = tl.where(x < 0, t, 1.0 - t)
    d = wrong + (1.0 - wrong) * e
    distance = tl.where(wrong == 0.0, a, tl.where(wrong < 1.0, -tl.log(d), 0.0))
    return a, e, u, log_u, wrong, d, distance


@triton.jit
def _forward_dense(
    x_ptr, t_ptr, weight_ptr, partial_ptr, out_ptr, n, positive, negative, gamma, gamma_low,
    K: tl.constexpr, PER_CLASS: tl.constexpr, TWICE: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start, i, mask, x, t = _elements(x_ptr, t_ptr, n, BLOCK)
    a, _, u, log_u, wrong, d, distance = _soft_parts(x, t)
    ce = log_u + tl.where(wrong == 0.0, 0.0, wrong * a)
    loss = tl.where(ce > 3.4e38, ce, _power(d * u, distance, log_u, gamma, gamma_low, TWICE) * ce)
    loss *= _alpha_t(t, weight_ptr, start, i, positive, negative, K, PER_CLASS)
    if WRITE:
        tl.store(out_ptr + start + i, loss.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(mask, loss, 0.0)))


@triton.jit
def _backward_dense(
    grad_ptr, x_ptr, t_ptr, weight_ptr, out_ptr, n, positive, negative, gamma, gamma_low,
    K: tl.constexpr, PER_CLASS: tl.constexpr, TWICE: tl.constexpr, GRADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start, i, mask, x, t = _elements(x_ptr, t_ptr, n, BLOCK)
    a, e, u, log_u, wrong, d, distance = _soft_parts(x, t)
    ce = log_u + wrong * tl.where(a > 1e30, 1e30, a)  # 0 * inf would be NaN
    ratio = (e + 1.2e-38) / (d + 1.2e-38)  # 1 where both vanish
    slope = (gamma * ratio * (2.0 * wrong - 1.0) * ce + (wrong - (1.0 - wrong) * e)) * u
    slope *= _power(d * u, distance, log_u, gamma, gamma_low, TWICE)
    slope = tl.where(x < 0, -slope, slope) * _alpha_t(t, weight_ptr, start, i, positive, negative, K, PER_CLASS)
    if GRADS:
        slope *= tl.load(grad_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    else:
        slope *= tl.load(grad_ptr).to(tl.float32)
    tl.store(out_ptr + start + i, slope.to(out_ptr.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- launching
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
    kernel = _forward_labels if targets.dim() == 1 else _forward_dense
    count, grid, options = _launch(x, targets, class_weight, gamma)
    partial = torch.empty(0 if out is not None else grid[0], dtype=torch.float32, device=x.device)
    with _device(x):
        kernel[grid](
            x, targets, class_weight, partial, out, count, positive, negative, *_gamma(gamma),
            WRITE=out is not None, **options,
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
    kernel = _backward_labels if targets.dim() == 1 else _backward_dense
    count, grid, options = _launch(x, targets, class_weight, gamma)
    with _device(x):
        kernel[grid](
            grad, x, targets, class_weight, out, count, positive, negative, *_gamma(gamma),
            GRADS=grad.dim() > 0, **options,
        )  # fmt: skip


def _launch(
    x: Tensor, targets: Tensor, class_weight: Tensor | None, gamma: float
) -> tuple[int, tuple[int], dict[str, Any]]:
    """What the kernel counts (rows or elements), the grid, and the constants compiled in."""
    rows, columns = x.shape
    twice = int(2 * gamma) if 2 * gamma in (0, 1, 2, 3, 4, 6, 8, 10) else -1
    options: dict[str, Any] = {"K": columns, "PER_CLASS": class_weight is not None, "TWICE": twice, "num_warps": WARPS}
    if targets.dim() == 2:
        return rows * columns, (triton.cdiv(rows * columns, BLOCK),), options | {"BLOCK": BLOCK}
    width = min(triton.next_power_of_2(columns), 16 if columns <= 512 else 128)
    height = BLOCK // width
    return rows, (triton.cdiv(rows, height),), options | {"ROWS": height, "WIDTH": width}


def _gamma(gamma: float) -> tuple[float, float]:
    """gamma as the sum of two float32 numbers."""
    high = torch.tensor(gamma, dtype=torch.float32).item()
    return high, gamma - high


def _device(x: Tensor) -> torch.cuda.device:
    return torch.cuda.device(x.device if x.is_cuda else -1)  # -1: do nothing
