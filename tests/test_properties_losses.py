"""Properties of the losses: value and gradient of every path at any logit, against the formulas in 60 digits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mpmath
import torch
import torch.nn.functional as F
from hypothesis import example
from hypothesis import strategies as st
from property_helpers import fuzz
from torch import Tensor

from focal_tutorial import _fused_cpp
from focal_tutorial.losses import (
    balanced_cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton's kernels and nothing else
FAST = ["triton"] if INTERPRETED else ["eager", *(["cpp"] if _fused_cpp.library() is not None else [])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LOGITS = st.one_of(
    st.floats(-30, 30),
    st.floats(-120, 120),
    st.sampled_from([0.0, -0.0, 88.7, -88.7, 104.0, -104.0, 1e4, -1e4, 6e4, math.inf, -math.inf, math.nan, 1e-8]),
)
GAMMAS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 5.0]) | st.floats(0, 6)
REDUCTIONS = st.sampled_from(["none", "sum", "mean"])
mpmath.mp.dps = 60
INF = mpmath.inf


@contextmanager
def forced(path: str) -> Iterator[None]:
    before = os.environ.get("FOCAL_TUTORIAL_PATH")
    os.environ["FOCAL_TUTORIAL_PATH"] = path
    try:
        yield
    finally:
        os.environ.pop("FOCAL_TUTORIAL_PATH")
        if before is not None:
            os.environ["FOCAL_TUTORIAL_PATH"] = before


def term(x: float, gamma: float) -> tuple[Any, Any]:
    """(1 - p)^gamma (-log p) of p = sigmoid(x) and its derivative by x, in 60 digits (paper, equations 4 and 10)."""
    if math.isinf(x):
        return (mpmath.mpf(0), mpmath.mpf(0)) if x > 0 else (INF, mpmath.mpf(-1))
    x = mpmath.mpf(x)
    q = 1 / (1 + mpmath.exp(x))  # 1 - p
    s = mpmath.log1p(mpmath.exp(-x)) if x > -1e3 else -x
    gamma = mpmath.mpf(gamma)
    power = q**gamma
    return power * s, -power * (gamma * (1 - q) * s + q)


def focal(x: float, t: float, gamma: float) -> tuple[Any, Any]:
    """The focal loss of a hard or soft target by torchvision's convention, and its derivative."""
    if t in (0.0, 1.0):
        value, slope = term(x if t else -x, gamma)
        return value, slope if t else -slope
    if math.isinf(x):
        return INF, None
    x, t, gamma = mpmath.mpf(x), mpmath.mpf(t), mpmath.mpf(gamma)
    p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
    ce = t * mpmath.log1p(mpmath.exp(-x)) + (1 - t) * mpmath.log1p(mpmath.exp(x))
    wrong = t * q + (1 - t) * p
    slope = gamma * wrong ** (gamma - 1) * (1 - 2 * t) * p * q * ce + wrong**gamma * (p - t)
    return wrong**gamma * ce, slope


def near(got: float, wanted: Any, dtype: torch.dtype, slack: float = 1.0, floor: float = 0.0) -> bool:
    """Whether a number is the wanted one to a few units of the arithmetic's last place."""
    if wanted is None or math.isnan(got):
        return wanted is None
    info, largest = torch.finfo(dtype), torch.finfo(dtype).max
    if mpmath.fabs(wanted) > largest * (1 - info.eps):
        return math.isinf(got) or abs(got) > largest * 0.9
    single = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    relative = slack * 40 * single + (info.eps if dtype in (torch.bfloat16, torch.float16) else 0)
    tiny = info.smallest_normal if dtype != torch.float16 else 2.0**-24
    if INTERPRETED:  # its fma rounds twice, and it cuts bfloat16 off
        relative, tiny = 4 * relative + 4e-6, 2 * tiny + info.smallest_normal
    return bool(mpmath.fabs(wanted - got) <= relative * mpmath.fabs(wanted) + 1.01 * tiny + floor)


def with_gradient(loss: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@st.composite
def classified(draw: st.DrawFn) -> tuple[Tensor, Tensor, bool]:
    """Logits (R, K), targets of one of four kinds, and whether these are labels."""
    rows, classes = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    x = torch.tensor(draw(st.lists(LOGITS, min_size=rows * classes, max_size=rows * classes)), dtype=torch.float64)
    kind = draw(st.sampled_from(["labels", "hard", "soft", "bool"]))
    size = rows if kind == "labels" else rows * classes
    if kind == "labels":
        values: Any = draw(st.lists(st.integers(-2, classes - 1), min_size=size, max_size=size))
        integer = draw(st.sampled_from([torch.int64, torch.int32, torch.int8]))
        return x.to(dtype).reshape(rows, classes), torch.tensor(values, dtype=integer), True
    unit = st.sampled_from([0.0, 1.0]) if kind != "soft" else st.floats(0, 1, width=32)
    values = draw(st.lists(unit, min_size=size, max_size=size))
    targets = torch.tensor(values, dtype=torch.bool if kind == "bool" else torch.float32).reshape(rows, classes)
    return x.to(dtype).reshape(rows, classes), targets, False


def dense(targets: Tensor, classes: int, labels: bool) -> list[list[float | None]]:
    """Targets (R, K) as floats, None where the row is ignored."""
    if not labels:
        return [[float(v) for v in row] for row in targets.tolist()]
    return [[None if v == -2 else float(v == k) for k in range(classes)] for v in targets.tolist()]


@fuzz(
    "losses: sigmoid focal",
    data=classified(),
    path=st.sampled_from(FAST if INTERPRETED else ["reference", *FAST]),
    alpha=st.sampled_from([None, 0.25, 0.0, 1.0, -1.0, "0-d", "per class"]),
    gamma=GAMMAS,
    reduction=REDUCTIONS,
    normalizer=st.sampled_from([None, 7.0, torch.tensor(3.0)]),
    function=st.sampled_from([sigmoid_focal_loss, balanced_cross_entropy]),
)
def test_sigmoid_focal_loss_is_the_formula(
    data: Any, path: str, alpha: Any, gamma: float, reduction: str, normalizer: Any, function: Any
):
    x, targets, labels = data
    classes = x.shape[1]
    weights = [0.25 if alpha == "0-d" else (k + 1) / 8 if alpha == "per class" else alpha for k in range(classes)]
    given = torch.tensor(0.25) if alpha == "0-d" else torch.tensor(weights) if alpha == "per class" else alpha
    divisor = None if reduction == "mean" else normalizer
    options = {"alpha": given, "reduction": reduction, "normalizer": divisor}
    if function is balanced_cross_entropy:
        gamma = 0.0
    else:
        options["gamma"] = gamma
    with forced(path):
        got = function(x, targets, **options)
        terms, slopes = with_gradient(lambda x: function(x, targets, **{**options, "reduction": "none"}), x)
    kept = 0
    total: Any = mpmath.mpf(0)
    scale = 1 if divisor is None else float(divisor)
    for i, row in enumerate(dense(targets, classes, labels)):
        for k, t in enumerate(row):
            z, a = x[i, k].item(), weights[k]
            value, slope = (mpmath.mpf(0),) * 2 if t is None else (None, None) if math.isnan(z) else focal(z, t, gamma)
            kept += t is not None
            balance = 1 if a is None or a < 0 or t is None else a * t + (1 - a) * (1 - t)
            if value is not None:
                value = mpmath.mpf(0) if balance == 0 and value != INF else value * balance if balance else None
            soft = t not in (None, 0.0, 1.0)
            floor = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps * 40 if soft else 0
            if value is not None or math.isnan(z):
                assert near(terms[i, k].item(), value if value is None else value / scale, x.dtype, 1 + gamma), (i, k)
            if slope is not None and balance and not (math.isinf(z) and value == INF):
                assert near(slopes[i, k].item(), slope * balance / scale, x.dtype, 4 + 4 * gamma, floor), (i, k)
            total = None if total is None or value is None else total + value
    if reduction == "none":
        assert torch.equal(got.nan_to_num(-1), terms.nan_to_num(-1)) and got.dtype == x.dtype
        return
    single = torch.promote_types(x.dtype, torch.float32)
    assert got.shape == () and got.dtype == single
    if reduction == "mean" and kept == 0:
        assert got.isnan()  # as torch's losses: a mean over nothing
    elif total is not None:
        assert near(got.item(), total / (kept if reduction == "mean" else scale), single, 2 + gamma)


@fuzz(
    "losses: wide sigmoid focal",
    rows=st.integers(0, 40),
    classes=st.sampled_from([31, 32, 33, 80, 2100]),
    dtype=st.sampled_from(DTYPES),
    path=st.sampled_from(FAST),
    gamma=GAMMAS,
    spread=st.sampled_from([0.0, 1.0, 20.0, 200.0]),
    special=st.lists(st.tuples(st.integers(0, 10**6), LOGITS), max_size=4),
    seed=st.integers(0, 2**32 - 1),
    integer=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
)
@example(
    rows=2,
    classes=2100,
    dtype=torch.float32,
    path="eager",
    gamma=2.0,
    spread=1.0,
    special=[],
    seed=0,
    integer=torch.uint8,
)
def test_wide_rows_are_those_of_the_reference_in_float64(
    rows: int, classes: int, dtype: torch.dtype, path: str, gamma: float, spread: float, special: Any, seed: int,
    integer: torch.dtype,
):  # fmt: skip
    """Many classes take other ways than few: labels over chunks, blocks of C++."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, classes, generator=generator, dtype=torch.float64) * spread).to(dtype)
    for place, value in special:
        if x.numel():
            x.view(-1)[place % x.numel()] = value
    low, high = (0, min(256, classes)) if integer == torch.uint8 else (-2, classes)
    labels = torch.randint(low, high, (rows,), generator=generator).to(integer)
    with forced(path):
        got = with_gradient(lambda x: sigmoid_focal_loss(x, labels, gamma=gamma), x)
        mean = sigmoid_focal_loss(x, labels, gamma=gamma, reduction="mean")
    with forced("reference"):
        wanted = with_gradient(lambda x: sigmoid_focal_loss(x, labels.long(), gamma=gamma), x.double())
        mean_wanted = sigmoid_focal_loss(x.double(), labels.long(), gamma=gamma, reduction="mean")
        assert torch.equal(sigmoid_focal_loss(x.double(), labels, gamma=gamma).nan_to_num(), wanted[0].nan_to_num())
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b.to(dtype), dtype, 8 * (1 + gamma))
    if mean_wanted.isfinite() and mean_wanted < 1e30:
        assert_close(mean, mean_wanted.to(mean.dtype), mean.dtype, 8 * (1 + gamma))


def assert_close(got: Tensor, wanted: Tensor, dtype: torch.dtype, slack: float) -> None:
    info = torch.finfo(dtype)
    relative = slack * 10 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps + 2 * info.eps * (info.bits < 32)
    tiny = 2 * info.smallest_normal
    relative = 4 * relative + 4e-6 if INTERPRETED else relative
    torch.testing.assert_close(got.double(), wanted.double(), rtol=relative, atol=tiny, equal_nan=True)


@fuzz(
    "losses: softmax focal",
    rows=st.integers(0, 3),
    classes=st.integers(1, 4),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    gamma=GAMMAS,
    alpha=st.sampled_from([None, 0.5, 0.0, "per class"]),
    ignore=st.sampled_from([-100, -1, 0]),
    reduction=REDUCTIONS,
    integer=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
)
def test_softmax_focal_loss_is_the_formula(
    rows: int, classes: int, data: Any, dtype: torch.dtype, gamma: float, alpha: Any, ignore: int, reduction: str,
    integer: torch.dtype,
):  # fmt: skip
    size = rows * classes
    logit = st.floats(-60, 60) | st.sampled_from([1e4, -1e4, -math.inf, math.nan])
    x = torch.tensor(data.draw(st.lists(logit, min_size=size, max_size=size)), dtype=torch.float64)
    x = x.reshape(rows, classes).to(dtype)
    label = st.integers(0, classes - 1)
    if integer != torch.uint8:
        label = label | st.just(ignore)
    y = torch.tensor(data.draw(st.lists(label, min_size=rows, max_size=rows)), dtype=integer)
    weights = torch.arange(1, classes + 1) / 4
    given = weights if alpha == "per class" else alpha
    got, gradient = with_gradient(lambda x: softmax_focal_loss(x, y, given, gamma, ignore, "none"), x)
    reduced = softmax_focal_loss(x, y, given, gamma, ignore, reduction)
    kept = [v != ignore for v in y.tolist()]
    for i, label in enumerate(y.tolist()):
        if not kept[i]:
            assert got[i] == 0 and (gradient[i] == 0).all()
            continue
        row = x[i].tolist()
        if any(map(math.isnan, row)):
            assert got[i].isnan() or alpha == 0
            continue
        weight = 1 if alpha is None else weights[label].item() if alpha == "per class" else alpha
        if all(v == -math.inf for v in row) or (weight == 0 and row[label] == -math.inf):
            continue  # no probability is defined
        others = [mpmath.exp(mpmath.mpf(v)) for j, v in enumerate(row) if j != label and v != -math.inf]
        if row[label] == -math.inf:
            assert math.isinf(got[i].item())
            continue
        if not others:
            assert got[i] == 0 and (gradient[i] == 0).all()
            continue
        z = mpmath.mpf(row[label]) - mpmath.log(sum(others))
        q = 1 / (1 + mpmath.exp(z))
        s = mpmath.log1p(mpmath.exp(-z)) if z > -1e3 else -z
        slack = (1 + gamma) * (4 + float(abs(z)) / 4)  # it is the margin that counts, however large the logits
        assert near(got[i].item(), weight * q ** mpmath.mpf(gamma) * s, dtype, slack), (i, got, z)
        slope = -weight * q ** mpmath.mpf(gamma) * (gamma * (1 - q) * s + q)
        assert near(gradient[i, label].item(), slope, dtype, slack)
        total = abs(gradient[i].double().sum().item())
        assert total <= 8 * classes * torch.finfo(dtype).eps * float(abs(slope)) + 1e-7
    if reduction != "none":
        assert reduced.dtype == torch.promote_types(dtype, torch.float32)
        total = got.double().sum() / (1 if reduction == "sum" else max(sum(kept), 1))
        coarse = 4 * torch.finfo(dtype).eps
        if total.isfinite() and total < torch.finfo(dtype).max / 8:
            torch.testing.assert_close(reduced.double(), total, rtol=coarse + 1e-6, atol=1e-4 * (dtype.itemsize == 2))
    if gamma == 0 and alpha is None and sum(kept) and x.isfinite().all() and dtype.itemsize > 2:
        theirs = F.cross_entropy(x, y.long(), ignore_index=ignore, reduction=reduction)
        torch.testing.assert_close(reduced, theirs, rtol=1e-5, atol=1e-5)
