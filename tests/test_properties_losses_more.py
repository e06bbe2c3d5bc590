"""More properties of the losses: FL*, the neighbours, smooth L1, the scalar term, and malformed arguments."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import example
from hypothesis import strategies as st
from property_helpers import JUNK, REFUSED, attempt, fuzz
from test_properties_losses import (
    DTYPES,
    GAMMAS,
    INF,
    INTERPRETED,
    LOGITS,
    REDUCTIONS,
    forced,
    near,
    term,
    with_gradient,
)

from focal_tutorial.hinge import hinge_loss
from focal_tutorial.losses import (
    balanced_cross_entropy,
    focal_loss_star,
    focal_term,
    focal_term_derivative,
    focal_term_second_derivative,
    sigmoid_focal_loss,
    smooth_l1,
    softmax_focal_loss,
)
from focal_tutorial.neighbours import quality_focal_loss, varifocal_loss

TARGETS = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)


def softplus(x: Any) -> Any:
    return x if x > 1000 else mpmath.log1p(mpmath.exp(x))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def formula(name: str, x: float, t: float, gamma: float, beta: float) -> Any:
    """The loss of one finite logit in 60 digits."""
    z, t, gamma, beta = (mpmath.mpf(v) for v in (x, t, gamma, beta))
    if name == "star":
        return (t * softplus(-gamma * z - beta) + (1 - t) * softplus(gamma * z - beta)) / gamma
    if name == "hinge":
        return t * max(beta - sigmoid(z), 0) + (1 - t) * max(beta - sigmoid(-z), 0)
    ce = t * softplus(-z) + (1 - t) * softplus(z)
    if name == "varifocal":
        return t * ce if t > 0 else mpmath.mpf(0.75) * sigmoid(z) ** gamma * ce
    return abs(t - sigmoid(z)) ** gamma * ce


@fuzz(
    "losses: FL*, hinge, varifocal, quality",
    name=st.sampled_from(["star", "hinge", "varifocal", "quality"]),
    rows=st.lists(st.tuples(LOGITS, TARGETS), max_size=5),
    gamma=GAMMAS,
    beta=st.floats(0.0625, 1, width=32),
    dtype=st.sampled_from(DTYPES),
    reduction=REDUCTIONS,
)
@example(
    name="hinge", rows=[(-math.inf, 1.937549852981908e-32)], gamma=0.0, beta=1.0, dtype=torch.float16, reduction="none"
)
def test_the_neighbours_are_their_formulas(
    name: str, rows: Any, gamma: float, beta: float, dtype: torch.dtype, reduction: str
):
    gamma = max(gamma, 0.125) if name == "star" else gamma
    x = torch.tensor([r[0] for r in rows], dtype=torch.float64).to(dtype)[:, None]
    t = torch.tensor([r[1] for r in rows], dtype=torch.float32)[:, None]
    calls: dict[str, Any] = {
        "star": lambda x, reduction: focal_loss_star(x, t, gamma, beta, reduction=reduction),
        "hinge": lambda x, reduction: hinge_loss(x, t, beta, reduction=reduction),
        "varifocal": lambda x, reduction: varifocal_loss(x, t, gamma=gamma, reduction=reduction),
        "quality": lambda x, reduction: quality_focal_loss(x, t, gamma, reduction=reduction),
    }
    got, gradient = with_gradient(lambda x: calls[name](x, "none"), x)
    single = torch.promote_types(dtype, torch.float32)
    eps, total = torch.finfo(single).eps, mpmath.mpf(0)
    for i, (z, target) in enumerate(zip(x[:, 0].tolist(), t[:, 0].tolist(), strict=True)):
        if math.isnan(z):
            assert got[i].isnan().all() or (name == "hinge")
            total = None
        elif math.isinf(z):
            right = target == float(z > 0)
            if name == "hinge":  # the only bounded one
                wanted = formula(name, math.copysign(1e4, z), target, gamma, beta)
                assert near(got[i].item(), wanted, dtype, 4, 8 * eps)
                continue
            assert (got[i] == 0).all() if right else got[i] > 0
            assert not gradient[i].isnan().any()
            total = total if right or total is None else None
        else:
            value = formula(name, z, target, gamma, beta)
            near_zero = 8 * eps if name in ("hinge", "quality") else 0  # a difference of p and t, or of p and margin
            slack = (4 + gamma) * (4 + abs(z) * (gamma if name == "star" else 0.1))
            assert near(got[i].item(), value, dtype, slack, near_zero), (i, value)
            total = None if total is None else total + value
            if abs(z) < 30 and 0.01 < target < 0.99 and name != "hinge":
                step = mpmath.mpf(10) ** -20
                ends = [formula(name, mpmath.mpf(z) + s, target, gamma, beta) for s in (step, -step)]
                if name != "quality" or abs(target - sigmoid(mpmath.mpf(z))) > 0.02:
                    assert near(gradient[i].item(), (ends[0] - ends[1]) / (2 * step), dtype, 400, 400 * eps)
    if total is not None and rows and reduction != "none" and not (name == "hinge" and not x.isfinite().all()):
        total = total / (len(rows) if reduction == "mean" else 1)
        if total < torch.finfo(single).max / 2:
            assert near(calls[name](x, reduction).item(), total, single, 1000, 40 * eps)


@fuzz("losses: the scalar term", x=LOGITS, gamma=GAMMAS, dtype=st.sampled_from(DTYPES[:2]))
def test_the_scalar_term_and_its_derivatives(x: float, gamma: float, dtype: torch.dtype):
    logit = torch.tensor(x, dtype=dtype)
    value, slope = focal_term(logit, gamma), focal_term_derivative(logit, gamma)
    curve = focal_term_second_derivative(logit, gamma)
    if math.isnan(x):
        assert value.isnan() and slope.isnan()
        return
    wanted = term(logit.item(), gamma)
    assert near(value.item(), wanted[0], dtype, 1 + gamma)
    assert near(slope.item(), wanted[1], dtype, 4 + 4 * gamma) and curve.isfinite()
    if abs(x) < 30:
        z, step = logit.item(), mpmath.mpf(10) ** -20
        second = (term(mpmath.mpf(z) + step, gamma)[1] - term(mpmath.mpf(z) - step, gamma)[1]) / (2 * step)
        assert near(curve.item(), second, dtype, 400, 4 * torch.finfo(dtype).eps)


@fuzz(
    "losses: smooth L1",
    rows=st.lists(st.tuples(st.floats(-50, 50, width=16) | LOGITS, st.floats(-50, 50, width=16) | LOGITS), max_size=5),
    beta=st.sampled_from([0.0, 1 / 9, 1.0]) | st.floats(0, 10),
    dtype=st.sampled_from(DTYPES),
    reduction=REDUCTIONS,
)
def test_smooth_l1_is_the_formula(rows: Any, beta: float, dtype: torch.dtype, reduction: str):
    x, y = (torch.tensor([r[k] for r in rows], dtype=torch.float64).to(dtype) for k in (0, 1))
    got, gradient = with_gradient(lambda x: smooth_l1(x, y, beta, "none"), x)
    reduced = smooth_l1(x, y, beta, reduction)
    terms = []
    for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        d = abs(mpmath.mpf(a) - mpmath.mpf(b)) if math.isfinite(a) and math.isfinite(b) else None
        if d is None:
            undefined = math.isnan(a) or math.isnan(b) or a == b
            assert got[i].isnan() if undefined else got[i] == math.inf
            terms.append(math.nan if undefined else math.inf)
            continue
        value = d * d / (2 * mpmath.mpf(beta)) if d < beta else d - mpmath.mpf(beta) / 2
        assert near(got[i].item(), value, dtype, 4, 8 * torch.finfo(torch.float32).eps * (1 if d < 1 else 0)), value
        slope = math.copysign(1, a - b) if d > beta else float((a - b) / beta) if beta and d else 0.0
        assert abs(gradient[i].item() - slope) <= 8 * torch.finfo(dtype).eps
        terms.append(float(value))
    total = math.fsum(terms) if all(map(math.isfinite, terms)) else math.nan
    if reduction != "none" and math.isfinite(total) and rows:
        total = total / (len(rows) if reduction == "mean" else 1)
        assert abs(reduced.item() - total) <= 1e-5 * abs(total) + 1e-6


TENSORS = st.builds(
    lambda shape, dtype: (torch.ones(shape) if dtype.is_floating_point else torch.zeros(shape)).to(dtype),
    st.sampled_from([(), (2,), (3,), (2, 3), (2, 3), (3, 2), (0, 3), (2, 0), (2, 3, 2)]),
    st.sampled_from([
        *DTYPES, torch.int64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
        torch.uint16,
    ]),
)  # fmt: skip
FUNCTIONS: dict[Any, tuple[str, ...]] = {
    sigmoid_focal_loss: ("alpha", "gamma", "reduction", "normalizer"),
    balanced_cross_entropy: ("alpha", "reduction", "normalizer"),
    focal_loss_star: ("gamma", "beta", "alpha", "reduction", "normalizer"),
    softmax_focal_loss: ("alpha", "gamma", "ignore_index", "reduction"),
    smooth_l1: ("beta", "reduction"),
    hinge_loss: ("margin", "alpha", "reduction", "normalizer"),
    varifocal_loss: ("alpha", "gamma", "reduction", "normalizer"),
    quality_focal_loss: ("beta", "reduction", "normalizer"),
}


FINE = (torch.zeros(2, 3), torch.ones(2, 3))
LABELS = (torch.zeros(2, 3), torch.tensor([0, 1]))


@fuzz(
    "losses: malformed",
    function=st.sampled_from(list(FUNCTIONS)),
    tensors=st.tuples(TENSORS | JUNK, TENSORS | JUNK) | st.sampled_from([FINE, LABELS]),
    changes=st.dictionaries(
        st.sampled_from(sorted({name for names in FUNCTIONS.values() for name in names})),
        JUNK | TENSORS | st.sampled_from(["sum", "mean", "none", 0.5, 2]),
        max_size=2,
    ),
    path=st.sampled_from(["reference", "eager"]),
)
@example(function=sigmoid_focal_loss, tensors=(torch.ones(2, 3), torch.ones(2, 3) * 1j), changes={}, path="eager")
@example(function=smooth_l1, tensors=(FINE[0].to(torch.float8_e4m3fn), FINE[1]), changes={}, path="eager")
@example(function=focal_loss_star, tensors=FINE, changes={"beta": math.nan}, path="eager")
def test_malformed_arguments_are_named(function: Any, tensors: Any, changes: Any, path: str):
    inputs, targets = tensors
    options = {k: v for k, v in changes.items() if k in FUNCTIONS[function]}
    with forced(path):
        got = attempt(lambda: function(inputs, targets, **options), "inputs", "targets", *FUNCTIONS[function])
    if got is REFUSED:
        whole = LABELS if function is softmax_focal_loss else FINE
        assert options or tensors is not whole, "refused for nothing"
        return
    assert inputs.dtype in DTYPES and isinstance(targets, torch.Tensor) and not targets.is_complex()
    reduction = options.get("reduction", "mean" if function is softmax_focal_loss else "none")
    rows = (*inputs.shape[:1], *inputs.shape[2:]) if inputs.ndim > 1 else ()
    whole = rows if function is softmax_focal_loss else tuple(inputs.shape)
    assert tuple(got.shape) == (whole if reduction == "none" else ())
    for name in ("gamma", "beta", "margin"):
        value = options.get(name, 1.0)
        assert type(value) in (int, float) and abs(value) < INF


@pytest.mark.skipif(INTERPRETED, reason="is the one that starts the interpreter")
def test_the_kernels_have_the_properties_too():
    """Sigmoid focal loss once more, on Triton's kernels: TRITON_INTERPRET must stand before triton is imported."""
    pytest.importorskip("triton", reason="Triton is not installed: CUDA would take the reference path")
    file = str(Path(__file__).with_name("test_properties_losses.py"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        file,
        "-k",
        "sigmoid or wide",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FOCAL_TUTORIAL_FUZZ")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-3000:]
