"""The hinge on the probability of the truth."""

from __future__ import annotations

import pytest
import torch

from focal_tutorial.hinge import hinge_loss

X = torch.tensor([[-4.0, 0.5], [3.0, -0.1]], dtype=torch.float64)


def test_values_and_gradient_by_hand() -> None:
    target = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    x = X.clone().requires_grad_()
    p_t = torch.where(target > 0, x.sigmoid(), 1 - x.sigmoid())
    loss = hinge_loss(x, target, margin=0.5)
    torch.testing.assert_close(loss, (0.5 - p_t).clamp(min=0))
    assert loss[0, 1] == 0 and loss[1, 1] == 0 and loss[0, 0] > 0.48
    (slope,) = torch.autograd.grad(loss.sum(), x)
    sign = 2 * target - 1
    torch.testing.assert_close(slope, torch.where(p_t < 0.5, -sign * p_t * (1 - p_t), 0.0).detach())


def test_hard_and_easy_examples_have_next_to_no_gradient() -> None:
    x = torch.tensor([-9.0, 9.0], requires_grad=True)
    (slope,) = torch.autograd.grad(hinge_loss(x, torch.ones(2)).sum(), x)
    assert -2e-4 < slope[0] < 0 and slope[1] == 0


def test_integer_targets_reductions_and_alpha_as_in_focal_loss() -> None:
    labels = torch.tensor([1, -1, -2])
    x = torch.tensor([[1.0, -1.0], [2.0, 0.3], [5.0, 5.0]])
    dense = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    terms = hinge_loss(x, labels, 0.9, 0.25)
    torch.testing.assert_close(terms[:2], hinge_loss(x, dense, 0.9, 0.25)[:2])
    assert (terms[2] == 0).all()  # ignored
    torch.testing.assert_close(hinge_loss(x, labels, 0.9, 0.25, "sum", normalizer=2.0), terms.sum() / 2)
    torch.testing.assert_close(hinge_loss(x, labels, 0.9, 0.25, "mean"), terms.sum() / 4)
    torch.testing.assert_close(terms[0, 1], 0.25 * hinge_loss(x, labels, 0.9)[0, 1])


def test_soft_targets_are_an_expectation() -> None:
    x = torch.tensor([-2.0, 0.0, 1.0])
    soft = hinge_loss(x, torch.full((3,), 0.3), 0.8)
    hard = 0.3 * hinge_loss(x, torch.ones(3), 0.8) + 0.7 * hinge_loss(x, torch.zeros(3), 0.8)
    torch.testing.assert_close(soft, hard)


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.tensor([-4.59375], dtype=torch.bfloat16)  # a number that bfloat16 has
    loss = hinge_loss(x, torch.ones(1, dtype=torch.bfloat16))
    assert loss.dtype == torch.bfloat16
    assert loss.item() == hinge_loss(x.float(), torch.ones(1)).bfloat16().item()


@pytest.mark.parametrize("margin", [0.0, -1.0, 1.5, float("nan")])
def test_margin_out_of_range(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        hinge_loss(torch.zeros(2), torch.zeros(2), margin)
