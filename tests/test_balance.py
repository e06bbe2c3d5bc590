"""α as odds: against counts, a sampler, a minimum found by search, and shares computed directly."""

from __future__ import annotations

import pytest
import torch

from focal_tutorial import balanced_cross_entropy, sigmoid_focal_loss
from focal_tutorial.balance import balanced_optimum, balanced_shares, balancing_alpha, sampling_alpha
from focal_tutorial.comparison import loss_shares
from focal_tutorial.sampling import sample_balanced


def test_balancing_alpha_evens_the_sums() -> None:
    """Chapter 4, equations balance-equal-sums and balance-inverse-frequency."""
    alpha = balancing_alpha(10.0, 100.0)
    assert alpha * 10 == pytest.approx((1 - alpha) * 100)
    assert balancing_alpha(1, 999) == pytest.approx(0.999)
    assert balancing_alpha(0, 5) == 1.0


@pytest.mark.parametrize("sums", [(0, 0), (-1, 5), (5, -1)])
def test_balancing_alpha_refuses(sums: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        balancing_alpha(*sums)


def test_sampling_has_the_expected_loss_of_its_alpha() -> None:
    """Chapter 4, equation balance-sampling."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((1, 400), -1)
    labels[:, :8] = 0
    logits = torch.randn(1, 400, 1, generator=generator, dtype=torch.float64)
    ce = balanced_cross_entropy(logits, labels, alpha=None)[..., 0]  # (1, 400)
    sampled = sample_balanced(labels.expand(1000, -1), batch_size=32, foreground_fraction=0.25, generator=generator)
    kept = (ce * (sampled > -2)).sum(1).mean()
    alpha = sampling_alpha(8, 392)
    weighted = balanced_cross_entropy(logits, labels, alpha=alpha, reduction="sum") / alpha
    assert kept.item() == pytest.approx(weighted.item(), rel=0.01)
    assert sampling_alpha(8, 392) == pytest.approx(392 / (392 + 24))
    assert sampling_alpha(100, 100) == 0.5  # nothing to discard


def test_weight_frequency_and_prior_are_three_odds() -> None:
    """Chapter 4, equations balance-bias-gradient and balance-three-odds, by autograd."""
    n_pos, n_neg, prior = 7, 4000, 0.01
    truth = torch.zeros(n_pos + n_neg, dtype=torch.float64)
    truth[:n_pos] = 1
    balanced = balancing_alpha(n_pos * (1 - prior), n_neg * prior)
    for alpha in (0.5, 0.9, balanced):
        shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
        logits = torch.full_like(truth, prior).logit() + shift
        (slope,) = torch.autograd.grad(balanced_cross_entropy(logits, truth, alpha, "sum"), shift)
        assert slope.item() == pytest.approx(alpha * n_pos * (prior - 1) + (1 - alpha) * n_neg * prior, abs=1e-9)
    assert slope.item() == pytest.approx(0, abs=1e-9)
    assert balanced / (1 - balanced) * n_pos / n_neg == pytest.approx(prior / (1 - prior))
    assert balanced_optimum(n_pos / (n_pos + n_neg), balanced) == pytest.approx(prior)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75, 0.998])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_pull_and_push_are_equal_at_the_best_bias(alpha: float, gamma: float) -> None:
    """Chapter 4, equation balance-standstill; it holds for the focal loss, too."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3000, generator=generator, dtype=torch.float64)
    truth = (torch.rand(3000, generator=generator) < 0.02).double()
    low, high = -20.0, 20.0
    for _ in range(60):  # the sum of the slopes rises with the bias
        bias = (low + high) / 2
        x = (logits + bias).requires_grad_()
        (slope,) = torch.autograd.grad(sigmoid_focal_loss(x, truth, alpha, gamma, "sum"), x)
        low, high = (low, bias) if slope.sum() > 0 else (bias, high)
    assert (slope[truth > 0] < 0).all() and (slope[truth == 0] > 0).all()
    assert -slope[truth > 0].sum().item() == pytest.approx(slope[truth == 0].sum().item(), rel=1e-9)


def test_sampling_alpha_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="positive"):
        sampling_alpha(0, 10)


@pytest.mark.parametrize("alpha", [0.1, 0.75, 0.998])
def test_optimum_is_the_minimum_and_its_own_inverse(alpha: float) -> None:
    """Chapter 4, equations balance-group-loss, balance-optimum and balance-shift."""
    q = torch.tensor([0.002, 0.3, 0.9], dtype=torch.float64)
    best = balanced_optimum(q, alpha)
    x = best.logit().requires_grad_()
    loss = q * balanced_cross_entropy(x, torch.ones(3, dtype=torch.float64), alpha) + (1 - q) * balanced_cross_entropy(
        x, torch.zeros(3, dtype=torch.float64), alpha
    )
    (slope,) = torch.autograd.grad(loss.sum(), x)
    assert slope.abs().max() < 1e-15
    assert torch.allclose(best.logit(), q.logit() + torch.tensor(alpha, dtype=torch.float64).logit())
    assert torch.allclose(balanced_optimum(best, 1 - alpha), q)


def test_optimum_of_the_book() -> None:
    assert balanced_optimum(1 / 500, 0.998) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="alpha"):
        balanced_optimum(0.5, 1.0)


def test_shares_at_any_alpha_from_two() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64) - 2
    labels = torch.full((2, 50), -1)
    labels[:, :5], labels[:, 5:8] = 1, -2
    truth = torch.zeros_like(logits)
    truth[:, :5, 1] = 1
    given = loss_shares(logits, labels)["loss"]
    for alpha in (0.5, 0.75, 0.99):
        terms = balanced_cross_entropy(logits, truth, alpha)
        total = terms[labels > -2].sum()
        anchors, positives = balanced_shares(given["ce"], given["balanced"], alpha)
        assert anchors == pytest.approx((terms[labels >= 0].sum() / total).item(), abs=2e-4)
        assert positives == pytest.approx((terms[truth > 0].sum() / total).item(), abs=2e-4)
