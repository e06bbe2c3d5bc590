"""Claims about balanced cross entropy: one fixed weight for each class."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

from claims_evidence import Claim, Evidence, Finding, Setting, Verdict, better, check, combine
from claims_imbalance import BCCD, FEW, belief, share

from focal_tutorial.table_view import best_alpha, best_row

TABLE_1A, TABLE_1B = "table_1a_cpu", "table_1b_cpu"


def inverse_frequency_evens(e: Evidence) -> Finding:
    inverse = e.glue(4, "alpha")
    needed = {when: e.glue(4, f"needed_{when}") for when in ("start", "50", "end")}
    figure = (
        f"inverse frequency: α = {inverse:g}; needed to even the two sums: {inverse:g} while all answers are one half, "
        f"{needed['start']:g} at the prior, {needed['50']:g} at step 50, {needed['end']:g} at the end"
    )
    close = [abs(math.log(value / (1 - value)) - math.log(inverse / (1 - inverse))) < 1 for value in needed.values()]
    return check(figure, e.glue(4, "worth_inverse") == 1.0, all(close))


def inverse_frequency_best(e: Evidence) -> Finding:
    """Against the best weight of the others, chosen on validation images."""
    first = best(e, FEW, ["bce_50", "bce_75", "bce_90", "bce_99"])
    second = best(e, TABLE_1A, [s for s in e.settings(TABLE_1A, "bce_") if s != "bce_0_999"])
    return combine(
        better(e, FEW, "bce_998", first, label=f"1 : 560, α = 0.998 and {e.row(FEW, first).title}"),
        better(e, TABLE_1A, "bce_0_999", second, label=f"1 : 600, α = 0.999 and {e.row(TABLE_1A, second).title}"),
    )


def best(e: Evidence, name: str, settings: list[str]) -> str:
    """The setting of highest mean AP on validation images, over the seeds that all of them have."""
    return best_row([e.row(name, setting, "validation_AP") for setting in settings]).setting


def small_weight(e: Evidence) -> Finding:
    lowest, rows = e.row(TABLE_1A, "bce_0_1"), better(e, TABLE_1A, "bce_0_5", "bce_0_25")
    unsure = e.row(TABLE_1A, "bce_0_1", "AP_any")
    figure = f"α = 0.1: {lowest}, {unsure} if unsure detections count; α = 0.5 and 0.25: {rows.figure}"
    return check(figure, lowest.mean < 1, rows.verdict is Verdict.HOLDS)


def large_weight(e: Evidence) -> Finding:
    return combine(*(better(e, TABLE_1A, "bce_0_75", f"bce_0_{a}", label=f"α = 0.75 and 0.{a}") for a in ("99", "999")))


def balance_breaks(e: Evidence) -> Finding:
    """The objects' share of the loss with its own weight over the training, for α = 0.75 and inverse frequency."""
    figures, lower = [], []
    for setting, alpha in (("bce_75", 0.75), ("bce_998", 0.998)):
        means = {}
        for step in (0, 50, 800):
            plain = [value / 100 for value in share(e, setting, step)]
            weighted = [alpha * s / (alpha * s + (1 - alpha) * (1 - s)) for s in plain]
            means[step] = statistics.fmean(weighted)
            if step:
                lower.append(max(weighted) < 0.5)
        shares = "{:.0%} at the start, {:.0%} at step 50, {:.0%} at the end".format(*means.values())
        figures.append(f"with α = {alpha:g}: {shares}".replace("%", " %"))
    return check("the objects' share of the weighted loss: " + "; ".join(figures), *lower)


def balanced_early(e: Evidence) -> Finding:
    """By how far objects stand out: their probability alone would also rise in a model that answers “object” always."""
    texts, gaps = [], []
    for setting, label in (("ce", "CE"), ("bce_75", "α = 0.75"), ("bce_998", "inverse frequency")):
        objects, rest = (belief(e, setting, 100, of) for of in ("p_foreground", "p_background"))
        texts.append(f"{100 * statistics.fmean(objects):.0f} and {100 * statistics.fmean(rest):.1g} % ({label})")
        gaps.append([a - b for a, b in zip(objects, rest, strict=True)])
    larger = (all(a > b for a, b in zip(gap, gaps[0], strict=True)) for gap in gaps[1:])
    return check(f"after 100 steps p on objects and on background is {', '.join(texts)}", *larger)


def blind_weight(e: Evidence) -> Finding:
    hard, easy_one = 0.1, 0.9
    figure = (
        f"weight of a negative at p_t = {hard:g} and {easy_one:g}: 0.75 and 0.75 in balanced CE (α = 0.25), "
        f"{0.75 * (1 - hard) ** 2:.2f} and {0.75 * (1 - easy_one) ** 2:.4f} in focal loss (γ = 2)"
    )
    return check(figure, (1 - hard) ** 2 > 50 * (1 - easy_one) ** 2)


def missing_minus(e: Evidence) -> Finding:
    value = 0.25 * math.log(0.5)
    return check(
        f"as printed, −{-value:.3f} at p_t = 0.5 and α = 0.25; with the minus, {-value:.3f}",
        value > 0,
        no=Verdict.WRONG,
    )


def best_of_gamma(e: Evidence, among: str = "") -> dict[float, Setting]:
    """γ → its setting with the α that is best on validation images; for γ = 0 `among` those of Table 1a."""
    chosen: dict[float, Setting] = {0.0: (TABLE_1A, best(e, TABLE_1A, e.settings(TABLE_1A, among)))}
    for gamma, name in best_alpha(e.result(TABLE_1B)).items():
        if gamma:
            chosen[gamma] = (TABLE_1B, name)
    return chosen


def alpha_with_gamma(e: Evidence) -> Finding:
    chosen = best_of_gamma(e, "bce_")
    alphas = [float(e.result(name)["config"]["settings"][setting]["alpha"]) for name, setting in chosen.values()]
    text = ", ".join(f"{alpha:g} (γ = {gamma:g})" for gamma, alpha in zip(chosen, alphas, strict=True))
    falls = all(after <= before for before, after in pairwise(alphas))
    return check(f"best α on validation images: {text}", falls, alphas[-1] < alphas[0])


CLAIMS = [
    Claim(
        "inverse-frequency-evens",
        "Weights of inverse frequency put the two classes in balance.",
        "article 1, §3",
        "Holds if the α that makes both sums of losses equal has about the odds of inverse frequency (within a "
        "factor of e) at the start and later; in part if only while the model answers one half to everything.",
        ("chapter:4#weights-that-make-two-sums-equal", "test:test_balance.py::test_balancing_alpha_evens_the_sums"),
        inverse_frequency_evens,
    ),
    Claim(
        "inverse-frequency-best",
        "α is to be set by inverse frequency.",
        "article 1, §3; as one of two ways article 2 and paper, §3.1",
        "By the paired difference in AP to the α that is best on validation images, on two tasks: does not hold if it "
        "is below zero on one and above zero on none.",
        ("chapter:4#which-weight-is-best-measured", "chapter:15#table-1a-the-class-weight"),
        inverse_frequency_best,
    ),
    Claim(
        "balanced-helps",
        "Balanced cross entropy with α = 0.75 is better than plain cross entropy (31.1 against 30.2 AP, COCO minival).",
        "paper, Table 1a",
        "By the paired differences in AP on shapes and on BCCD: holds if both are above zero, in part if one. Each "
        "loss has the learning rate that is best for it on shapes.",
        ("chapter:15#table-1a-the-class-weight", "chapter:15#on-photographs"),
        lambda e: combine(
            better(e, TABLE_1A, "bce_0_75", "ce", label="shapes"),
            better(e, BCCD, "bce_0_75", "ce", label="blood cells"),
        ),
    ),
    Claim(
        "small-alpha",
        "A small α ruins training: AP 0.0 at 0.10, 10.8 at 0.25, against 30.2 at 0.50 (COCO minival).",
        "paper, Table 1a",
        "Holds if the AP at 0.1 is below 1 and that at 0.5 is above that at 0.25 by the paired difference; in part "
        "if one of the two is true.",
        ("chapter:15#nothing-learned-or-not-shown",),
        small_weight,
    ),
    Claim(
        "large-alpha",
        "Too large an α costs AP: 28.7 at 0.99, 25.1 at 0.999, against 31.1 at 0.75 (COCO minival).",
        "paper, Table 1a",
        "By the paired differences in AP, 0.75 minus 0.99 and 0.75 minus 0.999: holds if both are above zero, in "
        "part if one.",
        ("chapter:15#table-1a-the-class-weight", "chapter:4#which-weight-is-best-measured"),
        large_weight,
    ),
    Claim(
        "balanced-early",
        "At the beginning, balanced cross entropy makes the model learn the objects.",
        "article 1, §4 and §7",
        "Holds if after 100 steps the probability of objects is further above that of the background than under cross "
        "entropy in every run, with α = 0.75 and with inverse frequency; in part if with one.",
        ("chapter:4#the-moment-the-fixed-balance-breaks",),
        balanced_early,
    ),
    Claim(
        "balance-breaks",
        "Half-way through training the objects have become easy, their loss is small again, and the fixed balance "
        "tips back towards the background.",
        "article 1, §4-1 and §7",
        "Holds if the objects' share of the balanced loss is below half at step 50 and at the end in every run, for "
        "α = 0.75 and for inverse frequency; in part if at some.",
        ("chapter:4#the-moment-the-fixed-balance-breaks", "test:test_balance.py::test_shares_at_any_alpha_from_two"),
        balance_breaks,
        "Which way it tips depends on whether objects or background become easy faster.",
    ),
    Claim(
        "alpha-blind",
        "α balances positives against negatives, and cannot tell easy from hard.",
        "paper, §3.2; article 2",
        "Holds if focal loss weighs a hard example at least 50 times as much as an easy one, where α weighs both "
        "alike.",
        ("chapter:4#what-a-weight-ought-to-do-instead", "test:test_equations.py::test_balanced_cross_entropy"),
        blind_weight,
    ),
    Claim(
        "minus-sign",
        "Balanced cross entropy is α_t log p_t, as one article prints it.",
        "article 2",
        "Holds if that is a positive number, as a loss is. A slip of the pen: the minus is missing.",
        ("chapter:4#one-term-at-a-time", "test:test_equations.py::test_balanced_cross_entropy"),
        missing_minus,
    ),
    Claim(
        "alpha-with-gamma",
        "The larger γ, the smaller the best α: from 0.75 at γ = 0 to 0.25 at γ ≥ 1.",
        "paper, §4.1 and Table 1b",
        "Holds if the α that is best on validation images never rises with γ, and is smaller at the largest than at "
        "the smallest; in part if one of the two is true.",
        ("chapter:15#table-1b-γ-each-with-its-best-α", "chapter:5#α-with-γ"),
        alpha_with_gamma,
    ),
]
