"""What α of balanced cross entropy does: the α that evens two sums, that sampling hides; where it puts probabilities.

Everything is a product of odds: with odds(p) = p / (1 − p), a weight α multiplies the odds of "object" by odds(α).
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Probability = TypeVar("Probability", float, Tensor)


def balancing_alpha(foreground: float, background: float) -> float:
    """The α with α · foreground = (1 − α) · background.

    Of two numbers of anchors this is inverse frequency (RetinaNet paper §3.1); of two sums of losses, or of absolute
    gradients, the α that makes them equal.

    Raises:
        ValueError: a negative number, or nothing on both sides.
    """
    if foreground < 0 or background < 0 or foreground + background == 0:
        raise ValueError(f"two numbers >= 0, not both 0, wanted, got {foreground} and {background}")
    return background / (foreground + background)


def sampling_alpha(foreground: float, background: float, ratio: float = 3.0) -> float:
    """The α that sampling 1 : `ratio` stands for: all of `foreground`, each of `background` by chance.

    A background is kept with probability r = ratio · foreground / background (at most 1). The expected loss is then the
    sum over foreground plus r times the sum over background, so that (1 − α) / α = r.

    Args:
        foreground, background: anchors of each kind, > 0.
        ratio: background anchors kept for each of foreground, > 0.

    Raises:
        ValueError: a number that is not positive.
    """
    if not min(foreground, background, ratio) > 0:
        raise ValueError(f"positive numbers wanted, got {foreground}, {background} and a ratio of {ratio}")
    return 1 / (1 + min(1.0, ratio * foreground / background))


def balanced_optimum(frequency: Probability, alpha: float) -> Probability:
    """The probability at which α-balanced cross entropy is least: αq / (αq + (1 − α)(1 − q)).

    Its log-odds are those of q plus those of α. With 1 − α in place of α it takes the shift back.

    Args:
        frequency: q in 0…1, how often the answer is "object"; a float, or a tensor of any shape.
        alpha: in 0…1, without the ends.

    Raises:
        ValueError: α out of range.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: strictly between 0 and 1 wanted, got {alpha}")
    positive = alpha * frequency
    return positive / (positive + (1 - alpha) * (1 - frequency))


def balanced_shares(ce: float, balanced: float, alpha: float) -> tuple[float, float]:
    """Shares of the foreground at any α, from the shares that `comparison.loss_shares` gives at α = ½ and α = ¾.

    A foreground anchor has one positive term and K − 1 negative ones. Two shares are enough to tell the sums apart.

    Args:
        ce: share of the foreground anchors under plain cross entropy (α = ½), in 0…1 without the ends.
        balanced: the same at α = ¾.
        alpha: the α wanted.

    Returns:
        The share of the foreground anchors, and the share of the positive terms alone, both at `alpha`.
    """
    together, weighted = ce / (1 - ce), balanced / (1 - balanced)  # P + N and 3 P + N, the background's sum being 1
    positive = (weighted - together) / 2  # P: the positive terms
    negative = together - positive  # N: the negative terms of foreground anchors
    ours, rest = alpha * positive, 1 - alpha
    total = ours + rest * (negative + 1)
    return (ours + rest * negative) / total, ours / total
