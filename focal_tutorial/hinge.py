"""The hinge loss on the probability of the truth: the counter-example to focal loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ._loss_checks import check_common
from ._numbers import describe, is_positive
from .losses import _balance, _dense_targets, _reduce

__all__ = ["hinge_loss"]


def hinge_loss(
    inputs: Tensor,
    targets: Tensor,
    margin: float = 0.5,
    alpha: float | Tensor | None = None,
    reduction: str = "none",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """max(0, margin - p_t): no loss above a certain p_t (paper, section 5.1, which gives no formula).

    Its derivative by x_t is -p_t (1 - p_t) below the margin and 0 above: the easy examples have no gradient, and the
    hardest next to none.

    Args:
        inputs, targets, alpha, reduction, normalizer: as in `sigmoid_focal_loss`; a soft target t means the
            expectation t hinge(x) + (1 - t) hinge(-x).
        margin: the p_t from which the loss is 0, in (0, 1].

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or range.
    """
    if not is_positive(margin) or margin > 1:
        raise ValueError(f"margin must lie in (0, 1], got {describe(margin)}")
    targets = check_common(inputs, targets, alpha, reduction, normalizer)
    x, t = _dense_targets(inputs, targets)
    positive = (margin - torch.sigmoid(x)).clamp(min=0)
    negative = (margin - torch.sigmoid(-x)).clamp(min=0)
    loss = _balance(t * positive + (1 - t) * negative, t, alpha)
    return _reduce(loss, inputs, targets, reduction, normalizer)
