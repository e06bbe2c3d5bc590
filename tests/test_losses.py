"""The losses against mpmath, torchvision, torch and the figures of the paper and the sources."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
import torchvision

from focal_tutorial.losses import (
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    balanced_cross_entropy,
    focal_loss_star,
    focal_term,
    focal_term_derivative,
    focal_term_second_derivative,
    sigmoid_focal_loss,
    smooth_l1,
    softmax_focal_loss,
)

GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
GRID = [0.0] + [
    sign * x
    for x in (1e-8, 1e-4, 0.01, 0.1, 0.5, 1, 2, 3, 4, 5, 8, 10, 15, 17, 20, 30, 50, 80, 100, 500, 1000)
    for sign in (1, -1)
]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}
INF = math.inf
paths = pytest.mark.parametrize("path", ["reference", "eager"])  # test_fused.py has the other ones


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact(x_t: float, gamma: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """Focal loss of a signed logit and its first two derivatives."""
    with mpmath.workdps(30):
        e = mpmath.exp(-abs(mpmath.mpf(x_t)))
        p, q = (1 / (1 + e), e / (1 + e)) if x_t >= 0 else (e / (1 + e), 1 / (1 + e))
        s = mpmath.log1p(e) + max(0, -mpmath.mpf(x_t))
        m = q ** mpmath.mpf(gamma)
        return m * s, -m * (gamma * p * s + q), p * m * ((1 + 2 * gamma) * q + gamma * (gamma * p - q) * s)


def assert_accurate(got: torch.Tensor, wanted: list[mpmath.mpf], dtype: torch.dtype, what: str) -> None:
    """Relative error within the dtype's tolerance, or half precision's rounding; below the normal range, absolute."""
    info = torch.finfo(dtype)
    relative = TOLERANCE.get(dtype, info.eps / 2 * 1.001)
    for i, (value, reference) in enumerate(zip(got.tolist(), wanted, strict=True)):
        if abs(reference) > info.max:
            assert abs(value) == INF or abs(value) >= info.max * 0.99, (what, i, value)
            continue
        error = abs(mpmath.mpf(value) - reference)
        floor = info.smallest_normal if dtype in TOLERANCE else info.smallest_normal * info.eps / 2
        assert error <= relative * abs(reference) + 1.001 * floor, (what, i, value, float(reference))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", GAMMAS)
@paths
def test_value_and_gradient_against_mpmath(dtype, gamma, path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    x = torch.tensor(GRID, dtype=dtype)
    x = torch.unique(x[x.isfinite()]).requires_grad_()
    for target in (0.0, 1.0):
        sign = 2 * target - 1
        wanted = [exact(sign * v, gamma) for v in x.tolist()]
        loss = sigmoid_focal_loss(x, torch.full_like(x, target), None, gamma)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert_accurate(loss, [w[0] for w in wanted], dtype, f"loss, target {target}")
        assert_accurate(gradient, [sign * w[1] for w in wanted], dtype, f"gradient, target {target}")


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.5, 2.0])
@paths
def test_dense_sweep_in_every_dtype(gamma, path, monkeypatch):
    """Every 1/64 up to 80: the others against float64, float64 against mpmath (all for one gamma, else every 7th)."""
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    sweep = torch.arange(-80 * 64, 80 * 64 + 1, dtype=torch.float64) / 64
    every = sweep[:: 1 if (path, gamma) == ("reference", 0.5) else 7].clone().requires_grad_()
    loss = sigmoid_focal_loss(every, torch.ones_like(every), None, gamma)
    (gradient,) = torch.autograd.grad(loss.sum(), every)
    wanted = [exact(v, gamma) for v in every.tolist()]
    assert_accurate(loss, [w[0] for w in wanted], torch.float64, "loss")
    assert_accurate(gradient, [w[1] for w in wanted], torch.float64, "gradient")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = sweep.detach().to(dtype).requires_grad_()
        z = x.detach().double().requires_grad_()  # the logits that this dtype holds
        for target in (0.0, 1.0):
            got, right = (sigmoid_focal_loss(v, torch.full_like(v, target), None, gamma) for v in (x, z))
            grads = [torch.autograd.grad(v.sum(), w)[0] for v, w in ((got, x), (right, z))]
            info = torch.finfo(dtype)
            relative = TOLERANCE.get(dtype, info.eps / 2 * 1.001)
            floor = info.smallest_normal if dtype in TOLERANCE else info.smallest_normal * info.eps / 2 * 1.001
            for a, b in ((got, right), grads):
                assert ((a.double() - b).abs() <= relative * b.abs() + floor).all(), (dtype, target)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_closed_form_derivatives(dtype, gamma):
    x = torch.tensor(GRID, dtype=dtype)
    wanted = [exact(v, gamma) for v in x.tolist()]
    assert_accurate(focal_term(x, gamma), [w[0] for w in wanted], dtype, "value")
    assert_accurate(focal_term_derivative(x, gamma), [w[1] for w in wanted], dtype, "slope")
    second = focal_term_second_derivative(x, gamma).double()
    for value, (_, first, reference) in zip(second.tolist(), wanted, strict=True):
        # it changes sign, so the error is measured against its terms
        scale = abs(reference) + (1 + gamma) * abs(first)
        assert abs(value - reference) <= 5 * TOLERANCE[dtype] * scale + torch.finfo(dtype).smallest_normal


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@paths
def test_infinite_and_far_logits(gamma, dtype, path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    x = torch.tensor([INF, -INF, 17.0, -17.0, 30.0, -30.0], dtype=dtype, requires_grad=True)
    for target, right, wrong in ((1.0, 0, 1), (0.0, 1, 0)):
        loss = sigmoid_focal_loss(x, torch.full_like(x, target), None, gamma)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert loss[right] == 0 and gradient[right] == 0
        assert loss[wrong] == INF and gradient[wrong] == (1 if target == 0 else -1)
        assert gradient.isfinite().all() and loss[2:].isfinite().all()


@pytest.mark.parametrize("gamma", GAMMAS)
@paths
def test_a_positive_is_a_negative_mirrored(gamma, path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    x = torch.linspace(-100, 100, 2001)
    zeros = torch.zeros_like(x)
    positive, negative = (sigmoid_focal_loss(v, t, None, gamma) for v, t in ((x, zeros + 1), (-x, zeros)))
    assert torch.equal(positive, negative)


def test_gamma_0_is_cross_entropy():
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    for t in (0.0, 0.3, 1.0):
        wanted = F.binary_cross_entropy_with_logits(x, torch.full_like(x, t), reduction="none")
        torch.testing.assert_close(sigmoid_focal_loss(x, torch.full_like(x, t), None, 0.0), wanted)
    logits, labels = torch.randn(50, 7, dtype=torch.float64), torch.randint(7, (50,))
    torch.testing.assert_close(softmax_focal_loss(logits, labels, gamma=0.0), F.cross_entropy(logits, labels))


def test_bfloat16_gradient_at_the_prior():
    x = torch.full((1000,), -math.log(99), dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(sigmoid_focal_loss(x, torch.zeros_like(x), reduction="sum"), x)
    wanted = -0.75 * float(exact(-x[0].item(), 2.0)[1])
    assert abs(gradient[0].item() / wanted - 1) < 0.005


def test_a_logit_where_float16_breaks():
    x = torch.tensor([9.3906], dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(sigmoid_focal_loss(x, torch.ones_like(x), None, 0.5).sum(), x)
    wanted = float(exact(x.item(), 0.5)[1])
    assert abs(gradient.item() / wanted - 1) < 0.02  # a subnormal of float16: the step there is 3 %


@pytest.mark.parametrize("gamma", (0.0, 0.1, 0.5, 1.0, 2.0, 5.0))
@paths
def test_gradcheck_twice(gamma, path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    torch.manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    soft, labels, alpha = torch.rand(4, 5, dtype=torch.float64), torch.tensor([0, -1, -2, 4]), torch.rand(5)
    for targets in (soft, labels):
        for a in (0.25, None, alpha.double()):
            for reduction in ("none", "sum", "mean"):

                def loss(v, targets=targets, a=a, reduction=reduction):
                    return sigmoid_focal_loss(v, targets, a, gamma, reduction)

                assert torch.autograd.gradcheck(loss, x, fast_mode=True)
                assert torch.autograd.gradgradcheck(loss, x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: softmax_focal_loss(v, labels.clamp(min=0), None, gamma), x)
    assert torch.autograd.gradgradcheck(lambda v: softmax_focal_loss(v, labels.clamp(min=0), None, gamma), x)
    assert torch.autograd.gradcheck(lambda v: focal_loss_star(v, labels, gamma + 0.1), x)


@pytest.mark.parametrize("gamma", GAMMAS)
@paths
def test_equal_to_torchvision(gamma, path, monkeypatch):
    """Values everywhere that torchvision is right; soft targets, too."""
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    torch.manual_seed(1)
    x = torch.randn(200, 9, dtype=torch.float64) * 3
    for targets in (torch.rand(200, 9, dtype=torch.float64), torch.randint(2, (200, 9)).double()):
        for alpha in (0.25, 0.9, -1):
            for reduction in ("none", "mean", "sum"):
                args = (targets, alpha, gamma, reduction)
                torch.testing.assert_close(
                    sigmoid_focal_loss(x, *args), torchvision.ops.sigmoid_focal_loss(x, *args), rtol=1e-9, atol=1e-12
                )


@paths
def test_labels_equal_a_one_hot(path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    torch.manual_seed(2)
    for shape in ((6, 1), (3, 8, 4), (5, 91), (7, 40), (4,)):
        classes = shape[-1]
        x = torch.randn(shape, requires_grad=True)
        labels = torch.randint(-2, classes, shape[:-1])
        one_hot = (labels.unsqueeze(-1) == torch.arange(classes)).float()
        kept = (labels != -2).unsqueeze(-1).expand(shape)
        for alpha in (0.25, None, torch.rand(classes)):
            wanted = torch.where(kept, sigmoid_focal_loss(x, one_hot, alpha), 0.0)
            got = sigmoid_focal_loss(x, labels, alpha)
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=1e-12)
            total = sigmoid_focal_loss(x, labels, alpha, reduction="sum", normalizer=torch.tensor(7.0))
            torch.testing.assert_close(total, wanted.sum() / 7, rtol=2e-6, atol=1e-12)
            if kept.any():
                mean = sigmoid_focal_loss(x, labels, alpha, reduction="mean")
                torch.testing.assert_close(mean, wanted.sum() / kept.sum(), rtol=2e-6, atol=1e-12)
            gradients = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (got, wanted)]
            torch.testing.assert_close(*gradients, rtol=3e-6, atol=1e-12)


@paths
def test_nan_in_an_ignored_row_goes_nowhere(path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    for classes in (3, 40):
        x = torch.zeros(3, classes)
        x[1] = math.nan
        x.requires_grad_()
        loss = sigmoid_focal_loss(x, torch.tensor([-1, -2, 0]), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite() and gradient.isfinite().all() and (gradient[1] == 0).all()
        seen = sigmoid_focal_loss(x.detach(), torch.tensor([-1, -1, 0]), reduction="sum")
        assert seen.isnan()


@paths
def test_dtypes_of_results(path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    labels = torch.tensor([0, -1])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(2, 3, dtype=dtype, requires_grad=True)
        wide = torch.promote_types(dtype, torch.float32)
        assert sigmoid_focal_loss(x, labels).dtype == dtype
        loss = sigmoid_focal_loss(x, labels, reduction="sum")
        assert loss.dtype == wide and torch.autograd.grad(loss, x)[0].dtype == dtype
        assert softmax_focal_loss(x, labels.clamp(min=0)).dtype == wide
        assert softmax_focal_loss(x, labels.clamp(min=0), reduction="none").dtype == dtype


@paths
def test_empty_and_non_contiguous(path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    for shape in ((0, 5), (4, 0, 3)):
        x = torch.zeros(shape, requires_grad=True)
        loss = sigmoid_focal_loss(x, torch.zeros(shape[:-1], dtype=torch.int64), reduction="sum")
        assert loss == 0 and torch.autograd.grad(loss, x)[0].shape == shape
    x = torch.randn(5, 6).t().requires_grad_()
    labels = torch.tensor([0, 1, -1, -2, 4, 3])
    apart, together = (torch.autograd.grad(sigmoid_focal_loss(v, labels).sum(), x)[0] for v in (x, x.contiguous()))
    assert torch.equal(apart, together)


def test_learned_targets_and_alpha_get_gradients():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    t = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    alpha = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *v: sigmoid_focal_loss(*v), (x, t, alpha))


def test_torch_func_transforms():
    """Gradients per sample, and through a transform; the operators give way to the reference."""
    torch.manual_seed(7)
    x, labels = torch.randn(5, 6, 4), torch.randint(-2, 4, (5, 6))

    def loss(v, y):
        return sigmoid_focal_loss(v, y, reduction="sum")

    per_sample = torch.func.vmap(torch.func.grad(loss))(x, labels)
    z = x.clone().requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(loss(z, labels), z)[0])
    hessian = torch.func.jacrev(torch.func.grad(lambda v: softmax_focal_loss(v, torch.tensor(1))))(x[0, 0])
    torch.testing.assert_close(hessian, hessian.t())


def test_one_hot_is_not_needed_by_the_normalizer():
    x, labels = torch.randn(9, 4), torch.randint(-1, 4, (9,))
    plain = sigmoid_focal_loss(x, labels, reduction="sum")
    assert torch.equal(sigmoid_focal_loss(x, labels, reduction="sum", normalizer=3.0), plain / 3)
    torch.testing.assert_close(sigmoid_focal_loss(x, labels, normalizer=3.0).sum(), plain / 3)


# ---------------------------------------------------------------- figures of the paper and of the sources
def test_figures_of_the_paper():
    p, y = torch.tensor([0.05, 0.12, 0.89, 0.79], dtype=torch.float64), torch.tensor([1.0, 1.0, 0.0, 0.0])
    x = torch.logit(p)
    assert balanced_cross_entropy(x, y, None).sum().item() == pytest.approx(8.883919, abs=1e-6)
    loss = sigmoid_focal_loss(x, y.double())
    assert loss.tolist() == pytest.approx([0.675912, 0.410483, 1.311287, 0.730500], abs=5e-7)
    assert loss.sum().item() == pytest.approx(3.128182, abs=5e-7)


def test_initial_loss_at_800_by_1344():
    anchors, classes, positives = 201_600, 80, 30
    negative, positive = (sigmoid_focal_loss(*_prior(1, c)).item() for c in (-1, 0))
    assert negative == pytest.approx(7.5378e-7, rel=1e-4) and positive == pytest.approx(1.12838, rel=1e-5)
    negatives = anchors * classes - positives
    assert (negatives * negative + positives * positive) / positives == pytest.approx(1.534, abs=5e-4)
    cross_entropy = balanced_cross_entropy(*_prior(1, -1), None).item()
    assert negatives * cross_entropy / positives == pytest.approx(5403, abs=0.5)  # the negatives' part
    half = math.log(2) * anchors * classes / positives
    assert half == pytest.approx(372_636, abs=0.5)
    logits, labels = torch.full((anchors // 100, classes), -math.log(99)), torch.full((anchors // 100,), -1)
    labels[:positives] = torch.arange(positives)
    total = sigmoid_focal_loss(logits, labels, reduction="sum").item()
    terms = (labels.numel() * classes - positives) * negative + positives * positive
    assert total == pytest.approx(terms, rel=1e-6)


def _prior(classes: int, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One anchor at the prior 0.01."""
    return torch.full((1, classes), -math.log(99)), torch.tensor([label])


def test_down_weighting_of_section_3():
    for p, factor in ((0.9, 100), (0.968, 1000)):
        x = torch.logit(torch.tensor(p, dtype=torch.float64))
        assert (focal_term(x, 0.0) / focal_term(x, 2.0)).item() == pytest.approx(factor, rel=0.03)


def test_example_of_source_4():
    x, t = torch.tensor([[0.8], [-1.5], [0.1]]), torch.tensor([[1.0], [0.0], [1.0]])
    for alpha, total, mean in ((None, 0.290724, 0.096908), (0.25, None, None)):
        if total is not None:
            assert sigmoid_focal_loss(x, t, alpha, 1.5, "sum").item() == pytest.approx(total, abs=5e-7)
            assert sigmoid_focal_loss(x, t, alpha, 1.5, "mean").item() == pytest.approx(mean, abs=5e-7)
    balanced = sigmoid_focal_loss(x, t, 0.25, 1.5, "sum").item()
    assert balanced == pytest.approx(0.080528, abs=5e-7) and balanced / 3 == pytest.approx(0.026843, abs=5e-7)


def test_class_of_source_1():
    """FocalLoss(alpha=1, gamma=2): softmax, integer targets, mean; on the formula -(1 - p)^2 log p by hand."""
    torch.manual_seed(3)
    x, labels = torch.randn(20, 5, dtype=torch.float64), torch.randint(5, (20,))
    p = torch.softmax(x, 1)[torch.arange(20), labels]
    wanted = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(SoftmaxFocalLoss(alpha=1.0, gamma=2.0)(x, labels), wanted)


def test_plateau_of_a_clamped_implementation():
    """Clamping p at 1e-4 stops the loss at 2.30212; ours goes on, and its gradient with it."""
    x = torch.tensor([-9.0, -9.21, -20.0, -50.0], requires_grad=True)
    loss = sigmoid_focal_loss(x, torch.ones(4))
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss[2] > 4.9 and loss[3] > 12 and (gradient < -0.24).all()


# ---------------------------------------------------------------- softmax, FL*, smooth L1
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_softmax_against_mpmath(dtype, gamma):
    torch.manual_seed(4)
    rows = [[0.0, 0.0, 0.0], [30.0, 1.0, -2.0], [-40.0, 3.0, 0.0], [1000.0, 999.0, 0.0], [5.0, -80.0, 5.0]]
    x = torch.cat([torch.tensor(rows, dtype=dtype), torch.randn(20, 3, dtype=dtype) * 5]).requires_grad_()
    loss = softmax_focal_loss(x, torch.zeros(25, dtype=torch.int64), None, gamma, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    for row, value, slope in zip(x.tolist(), loss.tolist(), gradient.tolist(), strict=True):
        with mpmath.workdps(30):
            others = [mpmath.exp(mpmath.mpf(v) - max(row[1:])) for v in row[1:]]
            z = mpmath.mpf(row[0]) - max(row[1:]) - mpmath.log(sum(others))
            wanted, first, _ = exact(z, gamma)
            wanted_slope = [first] + [-first * o / sum(others) for o in others]
        # rounding the margin once is inherent: relative to the loss it is worth gamma + 1 times its last bit
        slack = TOLERANCE[dtype] + (1 + gamma) * max(abs(float(z)), *map(abs, row)) * torch.finfo(dtype).eps
        floor = torch.finfo(dtype).smallest_normal
        assert abs(value - wanted) <= slack * wanted + floor
        for a, b in zip(slope, wanted_slope, strict=True):
            assert abs(a - b) <= 2 * slack * abs(b) + floor


def test_softmax_with_infinite_logits():
    x = torch.tensor([[INF, 1, 2], [-INF, 1, 2], [1, INF, 2], [-INF, -INF, 0]], requires_grad=True)
    for gamma in GAMMAS:
        loss = softmax_focal_loss(x, torch.zeros(4, dtype=torch.int64), None, gamma, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert loss.tolist() == [0, INF, INF, INF]
        assert gradient.isfinite().all() and (gradient[0] == 0).all()
        assert gradient[2].tolist() == [-1, 1, 0]
        assert gradient[1].tolist() == pytest.approx([-1, 0.268941, 0.731059], abs=1e-6)


def test_softmax_options():
    torch.manual_seed(5)
    x, labels = torch.randn(4, 5, 3, 2), torch.randint(5, (4, 3, 2))
    labels[0, 0] = -100
    alpha = torch.rand(5)
    terms = softmax_focal_loss(x, labels, alpha, reduction="none")
    assert terms.shape == labels.shape and (terms[0, 0] == 0).all()
    weighted = F.cross_entropy(x, labels, weight=alpha, reduction="none")
    torch.testing.assert_close(softmax_focal_loss(x, labels, alpha, 0.0, reduction="none"), weighted)
    torch.testing.assert_close(softmax_focal_loss(x, labels, alpha, reduction="sum"), terms.sum())
    torch.testing.assert_close(softmax_focal_loss(x, labels, alpha), terms.sum() / (labels != -100).sum())
    assert softmax_focal_loss(x[0, :, 0, 0], torch.tensor(2)).shape == ()
    assert softmax_focal_loss(x, torch.full_like(labels, -100)) == 0
    two_classes = torch.stack([torch.zeros(7), torch.linspace(-3, 3, 7)], 1)
    sigmoid = sigmoid_focal_loss(two_classes[:, 1], torch.ones(7), None, 2.0)
    torch.testing.assert_close(softmax_focal_loss(two_classes, torch.ones(7).long(), reduction="none"), sigmoid)
    assert softmax_focal_loss(torch.randn(3, 1), torch.zeros(3).long()) == 0  # one class: nothing to learn


def test_focal_loss_star():
    x = torch.linspace(-20, 20, 81, dtype=torch.float64).requires_grad_()
    for gamma, beta in ((2.0, 1.0), (4.0, 0.0)):
        for target in (0.0, 1.0):
            loss = focal_loss_star(x, torch.full_like(x, target), gamma, beta)
            x_t = (2 * target - 1) * x
            p_star = torch.sigmoid(gamma * x_t + beta)
            torch.testing.assert_close(loss, -torch.log(p_star) / gamma, rtol=1e-9, atol=1e-13)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            torch.testing.assert_close(gradient, (2 * target - 1) * (p_star - 1), rtol=1e-9, atol=1e-12)
    far = torch.tensor([INF, -INF], requires_grad=True)
    loss = focal_loss_star(far, torch.ones(2))
    assert loss.tolist() == [0, INF] and torch.autograd.grad(loss.sum(), far)[0].tolist() == [0, -1]
    labels = torch.tensor([1, -1, -2])
    dense = focal_loss_star(torch.ones(3, 2), torch.tensor([[0.0, 1], [0, 0], [0, 0]]), alpha=0.25)
    got = focal_loss_star(torch.ones(3, 2), labels, alpha=0.25)
    assert torch.equal(got[:2], dense[:2]) and (got[2] == 0).all()


def test_smooth_l1():
    a, b = torch.tensor([0.0, 0.05, 1.0, -2.0]), torch.zeros(4)
    assert smooth_l1(a, b, beta=0.0).tolist() == [0.0, pytest.approx(0.05), 1.0, 2.0]
    torch.testing.assert_close(smooth_l1(a, b), F.smooth_l1_loss(a, b, beta=1 / 9, reduction="none"))
    assert smooth_l1(a, b)[1].item() == pytest.approx(0.05**2 * 4.5)
    assert smooth_l1(a.half(), b.half(), reduction="sum").dtype == torch.float32


def test_modules():
    x, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, -1, -2, 3])
    module = SigmoidFocalLoss(torch.rand(4), 1.5, "sum")
    assert "alpha" in module.state_dict() and "gamma=1.5" in repr(module)
    wanted = sigmoid_focal_loss(x, labels, module.alpha, 1.5, "sum", normalizer=4)
    assert torch.equal(module(x, labels, normalizer=4), wanted)
    softmax = SoftmaxFocalLoss(0.5, 1.0, ignore_index=-2, reduction="sum")
    kept = labels.clamp(min=0) - 2 * (labels == -2)
    assert torch.equal(softmax(x, kept), softmax_focal_loss(x, kept, 0.5, 1.0, -2, "sum"))


# ---------------------------------------------------------------- bad arguments
X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"inputs": X.long(), "targets": X}, TypeError, "inputs must be floating point"),
        ({"inputs": X, "targets": torch.zeros(3, 2)}, ValueError, "shaped like inputs"),
        ({"inputs": X, "targets": X.long()}, ValueError, "one class index per row"),
        ({"inputs": X, "targets": torch.tensor([0, 3])}, ValueError, "0 … 2.*got 3"),
        ({"inputs": X, "targets": torch.tensor([0, -3])}, ValueError, "0 … 2.*got -3"),
        ({"inputs": X, "targets": X, "gamma": -1}, ValueError, "gamma must be"),
        ({"inputs": X, "targets": X, "gamma": math.nan}, ValueError, "gamma must be"),
        ({"inputs": X, "targets": X, "alpha": 1.5}, ValueError, "alpha must lie"),
        ({"inputs": X, "targets": X, "alpha": torch.ones(2)}, ValueError, "one entry per class"),
        ({"inputs": X, "targets": X, "reduction": "avg"}, ValueError, "reduction must be"),
        ({"inputs": X, "targets": X, "reduction": "mean", "normalizer": 2.0}, ValueError, "leave it out"),
        ({"inputs": X, "targets": X, "normalizer": 0.0}, ValueError, "normalizer must be > 0"),
        ({"inputs": X, "targets": X, "normalizer": torch.ones(2)}, ValueError, "0-d tensor"),
    ],
)
@paths
def test_bad_arguments(arguments, error, says, path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    with pytest.raises(error, match=says):
        sigmoid_focal_loss(**arguments)


def test_bad_arguments_of_the_others():
    with pytest.raises(ValueError, match="finite number > 0"):
        focal_loss_star(X, X, gamma=0)
    with pytest.raises(ValueError, match="class indices of shape"):
        softmax_focal_loss(X, X)
    with pytest.raises(ValueError, match="0 … 2 or equal ignore_index"):
        softmax_focal_loss(X, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="one shape"):
        smooth_l1(X, X[0])
    with pytest.raises(ValueError, match="beta must be"):
        smooth_l1(X, X, beta=-1)


@pytest.mark.parametrize("path", ["reference", "eager"])
def test_unsigned_labels_are_classes_and_never_marks(path, monkeypatch):
    """In uint8, -2 is 254: such rows went for ignored, and the labels below it for wrong ones."""
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", path)
    x, labels = torch.randn(3, 300), torch.tensor([254, 255, 7], dtype=torch.uint8)
    for reduction in ("none", "mean"):
        got = sigmoid_focal_loss(x, labels, reduction=reduction)
        assert torch.equal(got, sigmoid_focal_loss(x, labels.long(), reduction=reduction))
    wide, many = torch.randn(2, 200), torch.tensor([156, 3], dtype=torch.uint8)  # 156 is -100 there
    assert torch.equal(softmax_focal_loss(wide, many), softmax_focal_loss(wide, many.long()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: sigmoid_focal_loss(x, y, gamma="2"), "gamma must be"),
        (lambda x, y: sigmoid_focal_loss(x, y, gamma=10**400), "gamma must be"),
        (lambda x, y: sigmoid_focal_loss(x, y, alpha="0.25"), "alpha must"),
        (lambda x, y: sigmoid_focal_loss(x, y.to(torch.complex64)), "targets must be"),
        (lambda x, y: sigmoid_focal_loss(x.to(torch.float8_e4m3fn), y), "inputs must be"),
        (lambda x, y: sigmoid_focal_loss(x.tolist(), y), "inputs must be a tensor"),
        (lambda x, y: sigmoid_focal_loss(x, y, reduction=[]), "reduction must be"),
        (lambda x, y: focal_loss_star(x, y, beta=math.nan), "beta must be"),
        (lambda x, y: softmax_focal_loss(x, y, alpha=-1.0), "alpha must be"),
        (lambda x, y: softmax_focal_loss(x, y, ignore_index=None), "ignore_index must be"),
        (lambda x, y: smooth_l1(x, x, beta=math.inf), "beta must be"),
        (lambda x, y: smooth_l1(x, x.int()), "targets must be"),
    ],
)
def test_arguments_of_another_kind_are_named(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(torch.randn(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_a_common_shift_of_the_logits_costs_softmax_no_digits(size):
    """Four digits went to logsumexp of large logits, and as many of its gradient's."""
    x = torch.tensor([[size, size, size + 1]], requires_grad=True)
    small = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
    losses = [softmax_focal_loss(logits, torch.tensor([0]), gamma=2.0) for logits in (x, small)]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss, logits in zip(losses, (x, small), strict=True)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=0)
