"""Varifocal and quality focal loss against mpmath, the focal loss, and worked values."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from focal_tutorial.losses import sigmoid_focal_loss
from focal_tutorial.neighbours import (
    quality_focal_criterion,
    quality_focal_loss,
    varifocal_criterion,
    varifocal_loss,
)

GRID = [0.0] + [
    sign * x for x in (1e-4, 0.01, 0.1, 0.5, 1, 2, 3, 5, 8, 12, 17, 30, 50, 80, 100, 1000) for sign in (1, -1)
]
QUALITIES = (0.0, 0.03, 0.3, 0.5, 0.75, 0.9, 1.0)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6}
both = pytest.mark.parametrize("loss", [varifocal_loss, quality_focal_loss])
both_criteria = pytest.mark.parametrize("criterion", [varifocal_criterion, quality_focal_criterion])


def exact_parts(x: float, y: float) -> tuple[mpmath.mpf, ...]:
    """p, p - y, p (1 - p) and the cross entropy of a soft target, in 40 digits."""
    z, y = mpmath.mpf(x), mpmath.mpf(y)
    e = mpmath.exp(-abs(z))
    p = 1 / (1 + e) if x >= 0 else e / (1 + e)
    q = e / (1 + e) if x >= 0 else 1 / (1 + e)
    ce = y * (mpmath.log1p(e) + max(0, -z)) + (1 - y) * (mpmath.log1p(e) + max(0, z))
    return p, (1 - y) * p - y * q, p * q, ce


def exact_varifocal(x: float, q: float, alpha: float, gamma: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """Value, slope, and the size of the slope's terms."""
    with mpmath.workdps(40):
        p, gap, spread, ce = exact_parts(x, q)
        if q > 0:
            return q * ce, q * gap, mpmath.mpf(q)
        slope = alpha * p**gamma * (gamma * (spread / p) * ce + p)
        return alpha * p**gamma * ce, slope, slope


def exact_quality(x: float, y: float, beta: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    with mpmath.workdps(40):
        _, gap, spread, ce = exact_parts(x, y)
        size = abs(gap)
        slope = mpmath.sign(gap) * (beta * size ** (beta - 1) * spread * ce + size ** (beta + 1)) if size else gap
        if y in (0, 1) or not size:
            return size**beta * ce, slope, abs(slope)
        # p - y cancels where p nears a soft y: there its error is a part of 1, not of the difference
        return size**beta * ce, slope, 1 + beta * ce + abs(slope) / size


def check(loss, exact, dtype: torch.dtype, soft_value_scale: bool) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    for y in (torch.tensor(QUALITIES, dtype=dtype)).tolist():
        x = torch.tensor(GRID, dtype=dtype, requires_grad=True)
        value = loss(x, torch.full_like(x, y))
        (slope,) = torch.autograd.grad(value.sum(), x)
        assert value.isfinite().all() and slope.isfinite().all()
        for got, got_slope, at in zip(value.tolist(), slope.tolist(), x.tolist(), strict=True):
            wanted, wanted_slope, scale = exact(at, y)
            size = abs(wanted) + (1 if soft_value_scale and 0 < y < 1 else 0)
            assert abs(got - wanted) <= TOLERANCE[dtype] * size + tiny, (y, at)
            assert abs(got_slope - wanted_slope) <= TOLERANCE[dtype] * max(scale, abs(wanted_slope)) + tiny, (y, at)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_varifocal_against_mpmath(dtype, gamma):
    """Chapter 7's neighbours-vfl, neighbours-slope."""
    check(lambda x, q: varifocal_loss(x, q, 0.75, gamma), lambda x, q: exact_varifocal(x, q, 0.75, gamma), dtype, False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_quality_focal_against_mpmath(dtype, beta):
    """Chapter 7's neighbours-qfl, neighbours-qfl-slope."""
    check(lambda x, y: quality_focal_loss(x, y, beta), lambda x, y: exact_quality(x, y, beta), dtype, True)


def test_by_hand():
    """p = 0.5 everywhere: CE is log 2 whatever the target."""
    x, log2 = torch.zeros(3), math.log(2)
    q = torch.tensor([0.8, 0.2, 0.0])
    torch.testing.assert_close(varifocal_loss(x, q), torch.tensor([0.8 * log2, 0.2 * log2, 0.75 * 0.25 * log2]))
    torch.testing.assert_close(quality_focal_loss(x, q), torch.tensor([0.09 * log2, 0.09 * log2, 0.25 * log2]))


def test_hard_targets_are_focal_losses():
    """Chapter 7's neighbours-family at its special cases."""
    x = torch.linspace(-20, 20, 401, dtype=torch.float64)
    zeros, ones = torch.zeros_like(x), torch.ones_like(x)
    for t in (zeros, ones):
        torch.testing.assert_close(quality_focal_loss(x, t), sigmoid_focal_loss(x, t, None, 2.0))
    torch.testing.assert_close(varifocal_loss(x, zeros), 0.75 * sigmoid_focal_loss(x, zeros, None, 2.0))
    torch.testing.assert_close(varifocal_loss(x, ones), F.softplus(-x))  # no focusing of the positives
    soft = torch.rand(401, dtype=torch.float64)
    wanted = F.binary_cross_entropy_with_logits(x, soft, reduction="none")
    torch.testing.assert_close(quality_focal_loss(x, soft, beta=0.0), wanted)


@both
@pytest.mark.parametrize("quality", [0.1, 0.5, 0.9])
def test_smallest_where_the_probability_is_the_quality(loss, quality):
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    values = loss(torch.logit(p), torch.full_like(p, quality))
    assert abs(float(p[values.argmin()]) - quality) < 1e-9


@both
def test_gradcheck_and_none_for_the_targets(loss):
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    q = torch.rand(4, 3, dtype=torch.float64)
    q[0], q[1, 1] = 0.0, 1.0
    for reduction in ("none", "sum", "mean"):
        assert torch.autograd.gradcheck(lambda v, r=reduction: loss(v, q, reduction=r), x)
    assert torch.func.vmap(torch.func.grad(lambda v, t: loss(v, t, reduction="sum")))(x, q).shape == x.shape
    learned = q.clone().requires_grad_()
    loss(x, learned, reduction="sum").backward()
    assert learned.grad is None and x.grad is not None


@both
def test_infinite_logits(loss):
    x = torch.tensor([math.inf, -math.inf] * 3, requires_grad=True)
    q = torch.tensor([0.0, 0.0, 0.6, 0.6, 1.0, 1.0])
    value = loss(x, q)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert slope.isfinite().all() and not value.isnan().any()
    assert value[1] == 0 == value[4] and (value[[0, 2, 3, 5]] == math.inf).all()
    assert slope[0] > 0 and slope[2] > 0 and slope[3] < 0 and slope[5] < 0


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    x = torch.linspace(-12, 12, 49).to(dtype).requires_grad_()
    q = torch.full_like(x, 0.6)
    assert torch.equal(loss(x, q), loss(x.float(), q.float()).to(dtype)) and loss(x, q).dtype == dtype
    total = loss(x, q, reduction="sum")
    assert total.dtype == torch.float32
    total.backward()
    assert x.grad is not None and x.grad.dtype == dtype


@both
def test_reductions(loss):
    torch.manual_seed(0)
    x, q = torch.randn(6, 2), torch.rand(6, 2)
    terms = loss(x, q)
    torch.testing.assert_close(loss(x, q, reduction="sum"), terms.sum())
    torch.testing.assert_close(loss(x, q, reduction="mean"), terms.mean())
    torch.testing.assert_close(loss(x, q, reduction="sum", normalizer=torch.tensor(4.0)), terms.sum() / 4)


@both
@pytest.mark.parametrize(
    "targets, options, error, says",
    [
        (torch.zeros(2, 3, dtype=torch.long), {}, TypeError, "targets must be floating point"),
        (torch.zeros(2, 4), {}, ValueError, "shaped like inputs"),
        (torch.zeros(2, 3), {"reduction": "avg"}, ValueError, "reduction"),
        (torch.zeros(2, 3), {"reduction": "mean", "normalizer": 2.0}, ValueError, "normalizer"),
        (torch.zeros(2, 3), {"normalizer": 0.0}, ValueError, "normalizer"),
    ],
)
def test_bad_arguments(loss, targets, options, error, says):
    with pytest.raises(error, match=says):
        loss(torch.zeros(2, 3), targets, **options)
    with pytest.raises(TypeError, match="inputs"):
        loss(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3))


def test_bad_numbers():
    x = torch.zeros(2)
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha"):
            varifocal_loss(x, x, alpha=alpha)
    for gamma in (-1.0, math.nan):
        with pytest.raises(ValueError, match="gamma"):
            varifocal_loss(x, x, gamma=gamma)
    for beta in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta"):
            quality_focal_loss(x, x, beta=beta)


@both_criteria
def test_criterion_adds_what_is_not_ignored(criterion):
    loss = varifocal_loss if criterion is varifocal_criterion else quality_focal_loss
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3)
    labels = torch.tensor([[2, -1, -2, 0], [-1, -1, 1, -2]])
    quality = torch.tensor([[0.7, 0.3, 0.9, 0.0], [0.0, 0.0, 1.0, 0.5]])  # 0.3 and 0.5 stand where nothing reads them
    targets = torch.zeros(2, 4, 3)
    targets[0, 0, 2], targets[1, 2, 1] = 0.7, 1.0
    terms = loss(logits, targets)
    wanted = terms.sum() - terms[0, 2].sum() - terms[1, 3].sum()
    got = criterion(logits, labels, quality)
    assert got.dim() == 0
    torch.testing.assert_close(got, wanted)
    broken = logits.clone()
    broken[0, 2] = torch.nan  # an ignored row reaches neither the loss nor the gradient
    broken.requires_grad_()
    value = criterion(broken, labels, quality)
    value.backward()
    torch.testing.assert_close(value, wanted)
    assert broken.grad is not None and broken.grad.isfinite().all() and (broken.grad[0, 2] == 0).all()
    assert criterion(logits[:, :0], labels[:, :0], quality[:, :0]) == 0


@both_criteria
def test_criterion_checks_shapes(criterion):
    with pytest.raises(ValueError, match="labels and quality"):
        criterion(torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, 3))
