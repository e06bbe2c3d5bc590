"""Claims about the loss as code, and about where training starts."""

from __future__ import annotations

import math

from claims_evidence import Claim, Evidence, Finding, Verdict, check
from claims_focal import factor, focal, sigmoid


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def sigmoid_focal(logits: list[float], targets: list[int], gamma: float, alpha: float | None = None) -> list[float]:
    """Terms of the sigmoid focal loss, from logits."""
    terms = []
    for x, t in zip(logits, targets, strict=True):
        signed = x if t else -x
        weight = 1.0 if alpha is None else alpha if t else 1 - alpha
        terms.append(weight * sigmoid(-signed) ** gamma * softplus(-signed))
    return terms


def softmax_focal(logits: list[float], label: int, gamma: float) -> float:
    """The article's form: one softmax over all classes."""
    return focal(math.exp(logits[label]) / sum(math.exp(x) for x in logits), gamma)


def within_the_loss(e: Evidence) -> Finding:
    apart, wrong = e.printed(
        6, r"gamma 0\.5: log\(sigmoid\)\s+NaN at\s+(\d+) of 241 logits, off by more than 1e-3 at\s+(\d+)"
    )
    ours, other = e.printed(
        6, r"gamma 0\.5: this package\s+NaN at\s+(\d+) of 241 logits, off by more than 1e-3 at\s+(\d+)"
    )
    figure = (
        f"gradient of 241 logits, γ = 0.5, float32: log of a sigmoid NaN at {apart:.0f}, wrong at {wrong:.0f} more; "
        "from the "
        f"logit, NaN at {ours:.0f}, wrong at {other:.0f}"
    )
    return check(figure, ours + other == 0 and apart + wrong > 0)


def article_class(e: Evidence) -> Finding:
    by_hand, package = e.printed(6, r"by hand ([\d.]+), package ([\d.]+)")
    broken, tried = e.printed(6, r"gamma 0\.5: article\s+NaN at\s+(\d+) of (\d+) logits")
    figure = (
        f"γ = 2: {by_hand:.6f}, this package {package:.6f}; γ = 0.5: the gradient is NaN at {broken:.0f} of "
        f"{tried:.0f} logits"
    )
    return check(figure, by_hand == package, broken == 0, no=Verdict.WRONG)


def softmax_or_sigmoid(e: Evidence) -> Finding:
    two, three = [1.2, 0.0], [2.0, -1.0, 0.5]
    softmax = softmax_focal(two, 0, 2), softmax_focal(three, 0, 2)
    sigmoids = sigmoid_focal([1.2], [1], 2)[0], sum(sigmoid_focal(three, [1, 0, 0], 2))
    figure = (
        "object and background: {:.4f} by softmax, {:.4f} by sigmoid of the difference; three classes: {:.4f} and "
        "{:.4f}"
    )
    return check(
        figure.format(softmax[0], sigmoids[0], softmax[1], sigmoids[1]),
        *(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(softmax, sigmoids, strict=True)),
        no=Verdict.WRONG,
    )


def normalise(e: Evidence) -> Finding:
    (mean_few, pos_few), (mean_many, pos_many) = (
        e.printed(6, rf"\s{anchors}\s+([\d.e-]+)\s+([\d.e-]+)") for anchors in ("1,000", "100,000")
    )
    figure = (
        f"the pull of one object among 100,000 anchors is {mean_few / mean_many:.0f} times smaller than among 1,000 "
        "if all are "
        f"counted, {pos_few / pos_many:.2f} times if only its own"
    )
    return check(figure, math.isclose(pos_few, pos_many, rel_tol=1e-3) and mean_few > 50 * mean_many)


def glossary_example(e: Evidence) -> Finding:
    logits, targets = [0.8, -1.5, 0.1], [1, 0, 1]
    plain, balanced = (sum(sigmoid_focal(logits, targets, 1.5, alpha)) for alpha in (None, 0.25))
    ce = sum(sigmoid_focal(logits, targets, 0.0))
    figure = (
        f"the example's sum: cross entropy {ce:.6f}, focal loss {plain:.6f}, with α = 0.25 {balanced:.6f}; at p_t = "
        "0.9 the "
        f"loss is {factor(0.9, 1.5):.0f} times lower"
    )
    right = abs(plain - 0.290724) < 1e-6 and abs(balanced - 0.080528) < 1e-6
    return check(figure, right and factor(0.9, 1.5) > 10, no=Verdict.WRONG)


def first_loss(e: Evidence) -> Finding:
    half, ce, fl, rest = (e.glue(5, name) for name in ("start", "start_prior", "fl_background", "ce_background"))
    (total,) = e.printed(10, r"FL from 0\.01:\s+([\d.]+) by hand")
    figure = (
        f"first loss per object: CE {half:,.0f} from p = 0.5 and {ce:,.0f} from π = 0.01, {rest:g} % of it "
        "background; focal loss "
        f"{total:.3f} from π = 0.01, {fl:g} % background"
    )
    return check(figure, rest < 50, fl < 50)


def prior_bias(e: Evidence) -> Finding:
    bias = -math.log((1 - 0.01) / 0.01)
    (built,) = e.printed(10, r"b = ([−-]?[\d.]+)")
    figure = f"b = {bias:.4f}, and σ(b) = {sigmoid(bias):.4f}"
    return check(figure, math.isclose(sigmoid(bias), 0.01), abs(bias - built) < 1e-4, no=Verdict.WRONG)


CLAIMS = [
    Claim(
        "sigmoid-inside",
        "Computing the sigmoid within the loss is numerically more stable.",
        "paper, §3.2; article 2, which only combines them",
        "Holds if the form from the logit is nowhere NaN nor off by a thousandth, and the logarithm of a sigmoid is.",
        ("chapter:6#where-it-breaks", "test:test_losses.py::test_value_and_gradient_against_mpmath"),
        within_the_loss,
    ),
    Claim(
        "article-class",
        "A few lines on top of cross entropy are a focal loss: a weight $(1 - p_t)^\\gamma$ with p_t = exp(−CE).",
        "article 1, §5",
        "Holds if it has the right value, and a gradient everywhere; in part if one of the two.",
        ("chapter:6#where-it-breaks", "test:test_losses.py::test_class_of_source_1"),
        article_class,
    ),
    Claim(
        "softmax-sigmoid",
        "A class with a softmax over the classes implements the focal loss of RetinaNet.",
        "article 1, §5, by what it shows",
        "Holds if it equals the sigmoid form on two classes (a margin) and on three; in part if on one of them.",
        ("chapter:6#softmax-through-the-margin", "test:test_losses.py::test_softmax_against_mpmath"),
        softmax_or_sigmoid,
        "RetinaNet has one sigmoid for each class and no column for background.",
    ),
    Claim(
        "normaliser",
        "Divide by the number of anchors assigned to objects, not by the number of all anchors.",
        "paper, §4.1",
        "Holds if an object's pull then does not depend on how many backgrounds there are, and does under the mean.",
        ("chapter:6#divide-by-what", "test:test_criterion.py::test_normalizers"),
        normalise,
        "The class of article 1 takes the mean.",
    ),
    Claim(
        "glossary-example",
        "γ = 1.5 turns easy examples down aggressively.",
        "article 4, code example",
        "Holds if at p_t = 0.9 the loss is more than 10 times lower, and the example's sum is what this book "
        "computes with its own loss.",
        ("chapter:6#the-form-that-articles-print", "test:test_losses.py::test_example_of_source_4"),
        glossary_example,
    ),
    Claim(
        "first-loss",
        "Starting from a prior of 0.01 keeps the background from dominating the first loss, of cross entropy and of "
        "focal loss.",
        "paper, §3.3; article 2",
        "Holds if background has less than half of the first loss under both, at 800 × 1344 pixels with 80 classes "
        "and 30 objects; in part if under one.",
        (
            "chapter:5#the-prior-π-where-training-starts",
            "chapter:10#the-first-loss",
            "test:test_losses.py::test_initial_loss_at_800_by_1344",
            "test:test_retinanet.py::test_initial_loss_at_the_papers_size",
        ),
        first_loss,
    ),
    Claim(
        "prior-bias",
        "A last bias of −log((1 − π)/π) makes every answer start at π.",
        "paper, §4.1",
        "Holds if the sigmoid of that bias is π = 0.01, and the package's head is built with it.",
        (
            "chapter:10#the-last-bias",
            "test:test_heads.py::test_prior_bias",
            "test:test_heads.py::test_every_class_probability_starts_near_the_prior",
        ),
        prior_bias,
    ),
]
