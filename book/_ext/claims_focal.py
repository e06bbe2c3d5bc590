"""Claims about focal loss as a formula."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

from claims_evidence import Claim, Evidence, Finding, Verdict, check
from claims_imbalance import share

PAPER_GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)  # of the curves that all sources print
PROBABILITIES = [step / 1000 for step in range(1, 1000)]


def focal(p_t: float, gamma: float) -> float:
    """Focal loss of the probability of the truth."""
    return -((1 - p_t) ** gamma) * math.log(p_t)


def factor(p_t: float, gamma: float = 2.0) -> float:
    """By how much focal loss is smaller than cross entropy."""
    return (1 - p_t) ** -gamma


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(function: object, x: float, step: float = 1e-5) -> float:
    """Central difference."""
    assert callable(function)
    return float((function(x + step) - function(x - step)) / (2 * step))


def gamma_0(e: Evidence) -> Finding:
    largest = max(abs(focal(p, 0.0) + math.log(p)) for p in PROBABILITIES)
    return check(f"largest difference over 999 probabilities: {largest:g}", largest == 0, no=Verdict.WRONG)


def thousand(e: Evidence) -> Finding:
    figure = f"{factor(0.9):.1f} and {factor(0.968):.1f} times"
    return check(figure, abs(factor(0.9) / 100 - 1) < 0.01, abs(factor(0.968) / 1000 - 1) < 0.05, no=Verdict.WRONG)


def at_most_4(e: Evidence) -> Finding:
    factors = [factor(p) for p in PROBABILITIES if p <= 0.5]
    figure = f"between {min(factors):.2f} and {max(factors):.2f} times smaller for p_t from 0.001 to 0.5"
    return check(figure, max(factors) <= 4, no=Verdict.WRONG)


def always_4(e: Evidence) -> Finding:
    figure = ", ".join(f"{factor(p):.2f} times at p_t = {p:g}" for p in (0.5, 0.3, 0.1, 0.01))
    return check(figure, all(math.isclose(factor(p), 4) for p in (0.5, 0.3, 0.1, 0.01)), no=Verdict.WRONG)


def curves_fall(e: Evidence) -> Finding:
    falls = all(focal(p, high) < focal(p, low) for p in PROBABILITIES for low, high in pairwise(PAPER_GAMMAS))
    values = ", ".join(f"{focal(0.6, gamma):.3f}" for gamma in PAPER_GAMMAS)
    return check(
        f"at p_t = 0.6 and γ = 0, 0.5, 1, 2, 5: {values}; so at all 999 probabilities", falls, no=Verdict.WRONG
    )


def larger_weight(e: Evidence) -> Finding:
    weights = [(1 - 0.1) ** gamma for gamma in PAPER_GAMMAS]
    relative = [(0.9 / 0.1) ** gamma for gamma in PAPER_GAMMAS]
    figure = (
        "weight at p_t = 0.1 for γ = 0, 0.5, 1, 2, 5: " + ", ".join(f"{w:.2f}" for w in weights)
        + "; against p_t = 0.9: " + ", ".join(f"{r:,.0f}" for r in relative) + " times"
    )  # fmt: skip
    return check(figure, weights == sorted(weights), relative == sorted(relative), no=Verdict.WRONG)


def repaired_example(e: Evidence) -> Finding:
    objects, backgrounds = focal(math.exp(-10), 2), 1000 * focal(math.exp(-0.1), 2)
    part = objects / (objects + backgrounds)
    plain = 10 / 110
    figure = f"the object's share of the loss goes from {100 * plain:.0f} % to {100 * part:.0f} % with γ = 2"
    return check(figure, part > 0.5, no=Verdict.WRONG)


def focal_share(e: Evidence) -> Finding:
    """The article's last figure: who has the loss over the training, under each loss's own weights."""
    own = {step: share(e, "fl2", step, "loss", "focal") for step in (0, 20, 400, 800)}
    text = ", ".join(f"{statistics.fmean(values):.0f} % at step {step}" for step, values in own.items())
    plain = (statistics.fmean(share(e, "ce", step)) for step in own)
    beside = ", ".join(f"{value:.0f} %" for value in plain)
    figure = f"the objects have {text} of the focal loss; of cross entropy, where that trains, {beside}"
    return check(figure, *(min(values) > 50 for values in own.values()))


def derivatives(e: Evidence) -> Finding:
    def signed(gamma: float, x: float) -> float:
        return focal(sigmoid(x), gamma)

    worst = 0.0
    for gamma in (0.5, 2.0):
        for x in (-6.0, -1.0, 0.5, 4.0):
            p = sigmoid(x)
            formula = (1 - p) ** gamma * (gamma * p * math.log(p) + p - 1)
            worst = max(worst, abs(slope(lambda z, g=gamma: signed(g, z), x) / formula - 1))
    star = max(
        abs(slope(lambda z: -math.log(sigmoid(2 * z + 1)) / 2, x) / (sigmoid(2 * x + 1) - 1) - 1)
        for x in (-3.0, 0.0, 2.0)
    )
    digits = int(-math.log10(max(worst, star)))
    figure = f"slopes by small differences and by formula agree to {digits} digits"
    return check(figure, worst < 1e-5, star < 1e-5, no=Verdict.WRONG)


def opposite_of_robust(e: Evidence) -> Finding:
    figure = (
        "weight of an easy and of a hard example: Huber loss 1.00 and {:.2f} (error 0.1 and 5, δ = 1), focal loss "
        "{:.2f} and {:.2f}"
    )
    huber, soft, hard = 1 / 5, (1 - 0.9) ** 2, (1 - 0.1) ** 2
    return check(figure.format(huber, soft, hard), huber < 1, soft < hard, no=Verdict.WRONG)


CLAIMS = [
    Claim(
        "gamma-0",
        "With γ = 0 focal loss is cross entropy.",
        "paper, §3.2; articles 2, 3 and 4",
        "Holds if both agree at 999 probabilities; the test compares values and gradients of the package.",
        ("chapter:5#focal-loss", "test:test_losses.py::test_gamma_0_is_cross_entropy"),
        gamma_0,
    ),
    Claim(
        "factor-1000",
        "With γ = 2 an example at p_t = 0.9 has a loss 100 times lower than under cross entropy, at p_t ≈ 0.968 one "
        "1000 times lower.",
        "paper, §3.2; article 2",
        "Holds if both are so, to 1 % and, as the paper says “about”, to 5 %.",
        ("chapter:5#focal-loss", "test:test_losses.py::test_down_weighting_of_section_3"),
        thousand,
    ),
    Claim(
        "at-most-4",
        "For p_t ≤ 0.5 the loss is at most 4 times lower.",
        "paper, §3.2",
        "Holds if the factor never exceeds 4 there.",
        ("chapter:5#focal-loss", "test:test_equations.py::test_reduction_factor"),
        at_most_4,
    ),
    Claim(
        "always-4",
        "For p_t ≤ 0.5 the loss is 4 times lower.",
        "article 2",
        "Holds if the factor is 4 at 0.5, 0.3, 0.1 and 0.01. “At most” got lost: the hardest examples keep their loss.",
        ("chapter:5#focal-loss", "test:test_equations.py::test_reduction_factor"),
        always_4,
    ),
    Claim(
        "curves-fall",
        "The curve of focal loss lies below cross entropy, and the lower the larger γ.",
        "article 1, §4-3; article 3",
        "Holds if it is so at all 999 probabilities, for the five γ that the paper draws.",
        ("chapter:5#focal-loss", "explorer:explorer-loss", "test:test_equations.py::test_focal_loss"),
        curves_fall,
    ),
    Claim(
        "larger-weight",
        "The larger γ, the larger the weight of a misclassified example.",
        "article 3",
        "Holds if the weight at p_t = 0.1 grows with γ; in part if only its ratio to that of an easy example (p_t = "
        "0.9) does.",
        ("chapter:5#focal-loss", "test:test_equations.py::test_weight_on_the_gradient_of_easy_examples"),
        larger_weight,
        "No loss becomes larger. The gradient is another matter: at p_t = 0.1 it gains a little.",
    ),
    Claim(
        "repairs-the-example",
        "Focal loss repairs the example of one object against 1,000 easy backgrounds.",
        "article 1, §4 and §7",
        "Holds if the object then has more than half of the loss.",
        (
            "chapter:5#whose-loss-is-it-now",
            "explorer:explorer-share",
            "test:test_book.py::test_story_figure_is_drawn_by_its_script_from_the_focal_loss",
        ),
        repaired_example,
    ),
    Claim(
        "focal-stays-balanced",
        "Because its weight follows difficulty, focal loss stays with the objects as training goes on.",
        "article 1, §4-2 and §7",
        "Holds if the objects have more than half of the focal loss at the start, at step 20, half-way and at the "
        "end, in every run; in part if at some.",
        ("chapter:7#the-articles-last-figure-measured",),
        focal_share,
    ),
    Claim(
        "derivatives",
        "The derivatives of focal loss and FL* by the logit are those of equations 10 and 11.",
        "paper, appendix B",
        "Holds if the formulas agree with small differences to five digits.",
        (
            "chapter:5#the-derivative",
            "test:test_equations.py::test_derivative_of_focal_loss",
            "test:test_equations.py::test_slope_of_focal_loss_star",
        ),
        derivatives,
    ),
    Claim(
        "opposite-of-robust",
        "Focal loss does the opposite of a robust loss: it turns down the easy examples, not the outliers.",
        "paper, §2",
        "Holds if the Huber loss weighs the large error less and focal loss the easy example less.",
        ("chapter:5#the-opposite-of-a-robust-loss", "test:test_equations.py::test_weight_of_huber"),
        opposite_of_robust,
    ),
]
