"""Claims that the paper's experiments make about losses: Tables 1a, 1b and 3, Figure 7, the prior, the hinge."""

from __future__ import annotations

import math
import statistics
from collections import Counter

from claims_balanced import TABLE_1A, TABLE_1B, best, best_of_gamma
from claims_evidence import (
    Claim,
    Evidence,
    Finding,
    Missing,
    Setting,
    Verdict,
    better,
    better_of,
    check,
    combine,
    equal,
    mean_margin,
    points,
    seeds,
    sign,
    versus,
)
from claims_imbalance import BCCD, FEW

from focal_tutorial.advantage import AdvantageMap, advantage_map
from focal_tutorial.paper import MAP_DENSITIES, MAP_STEPS
from focal_tutorial.table_view import Difference, Row, common_seeds, paired

ROUGH, CALM = "prior_0_5", "prior_0_01"


PAPER_PAIRS = {0.0: (TABLE_1A, "bce_0_75"), 0.5: (TABLE_1B, "fl_0_5_0_5"), 1.0: (TABLE_1B, "fl_1_0_25"),
               2.0: (TABLE_1B, "fl_2_0_25"), 5.0: (TABLE_1B, "fl_5_0_25")}  # fmt: skip
FEW_GAMMAS = {0.5: (FEW, "fl05"), 1.0: (FEW, "fl1"), 2.0: (FEW, "fl2")}
BCCD_GAMMAS = {0.0: (BCCD, "bce_0_75"), 0.5: (BCCD, "fl_0_5_0_5"), 1.0: (BCCD, "fl_1_0_25"), 2.0: (BCCD, "fl_2_0_25")}


def robust(e: Evidence) -> Finding:
    ours = [(f"γ = {gamma:g}", pair) for gamma, pair in PAPER_PAIRS.items() if gamma]
    return combine(*(better_of(e, pair, (TABLE_1A, "ce"), label=label) for label, pair in ours))


def gamma_2_best(e: Evidence) -> Finding:
    """With the paper's α, which have more seeds, with ours, and on the other two sets of images."""
    others = {"192 pixels": FEW_GAMMAS, "blood cells": BCCD_GAMMAS}
    texts, findings = [], []
    for name, chosen in {"the paper's α": PAPER_PAIRS, "our best α": best_of_gamma(e), **others}.items():
        parts = []
        for gamma in sorted(set(chosen) - {2.0}):
            gap, _ = versus(e, chosen[2.0], chosen[gamma])
            parts.append(f"{points(gap)} against γ = {gamma:g} ({seeds(gap.n)})")
            findings.append(Finding("", sign(gap.mean, gap.margin)))
        texts.append(f"{name}: AP {e.row(*chosen[2.0])} at γ = 2, {', '.join(parts)}")
    worse = any(finding.verdict is Verdict.FAILS for finding in findings)
    return Finding("; ".join(texts), Verdict.FAILS if worse else combine(*findings).verdict)


def focal_over_balanced(e: Evidence) -> Finding:
    """The paper's settings, the best of either family on validation images, and BCCD."""
    focal = (TABLE_1B, best(e, TABLE_1B, e.settings(TABLE_1B, "fl_")))
    balanced = (TABLE_1A, best(e, TABLE_1A, e.settings(TABLE_1A, "bce_")))
    label = f"{e.row(*focal).title} and {e.row(*balanced).title}"
    return combine(
        better_of(e, PAPER_PAIRS[2.0], (TABLE_1A, "bce_0_75"), label="the paper's settings"),
        better_of(e, focal, balanced, label=f"the best here, {label}"),
        better(e, BCCD, "fl_2_0_25", "bce_0_75", label="the paper's settings, blood cells"),
    )


def longer(e: Evidence) -> Finding:
    return combine(
        better(e, "table_long_cpu", "fl_2_0_25", "ce", label="CE"),
        better(e, "table_long_cpu", "fl_2_0_25", "bce_0_75", label="balanced CE"),
        better(e, "losses_long_cpu", "fl2", "ce", label="another task, CE"),
    )


def with_imbalance(e: Evidence) -> Finding:
    """By `imbalance_slope`, with the paper's score threshold and without one."""
    findings = []
    for metric, words in (("AP", "steps"), ("AP_any", "steps, without the threshold")):
        fields = advantage_map(e.result("imbalance_map_cpu"), metric)
        findings += [imbalance_slope(fields, steps, words) for steps in MAP_STEPS]
    return combine(*findings)


def imbalance_slope(fields: AdvantageMap, steps: int, words: str) -> Finding:
    """Slope of focal loss's advantage over CE against the logarithm of the imbalance, seed by seed."""
    densities = [n for n in sorted(map(int, MAP_DENSITIES)) if not fields.silent(n, steps)]
    gaps = [gap for n in densities if (gap := fields.advantage("fl_2_0_25", n, steps))]
    if len(gaps) < len(densities):
        raise Missing(f"imbalance_map_cpu: not all fields after {steps:,} steps")
    x = [math.log10(density) for density in densities]
    lines = ([gap.values[seed] for gap in gaps] for seed in common_seeds(*gaps))
    slopes = Difference(dict(enumerate(statistics.linear_regression(x, line).slope for line in lines)))
    text = f"{steps:,} {words}: {gaps[0].mean:+.1f} where objects abound, {gaps[-1].mean:+.1f} where they are rarest"
    text = text.replace("-", "−") + f", {points(slopes)} for each factor of ten ({seeds(slopes.n)})"
    return Finding(text, sign(slopes.mean, slopes.margin))


def rates(e: Evidence, loss: str) -> list[str]:
    """Names of a loss's rates in the runs with and without the prior."""
    return [name.split("_lr_")[1] for name in e.settings("ce_prior_cpu", f"{loss}_{ROUGH}")]


def alive(e: Evidence, setting: str) -> tuple[Row, str]:
    """A setting's AP with every detection counted, and how many of its runs kept a finite loss, in words."""
    found = e.row("ce_prior_cpu", setting, "AP_any")
    return found, f"{found.n - len(found.diverged)} of {found.n} runs keep a finite loss, AP {found}"


def ce_diverges(e: Evidence) -> Finding:
    texts, lost = [], []
    for rate in rates(e, "ce"):
        found, text = alive(e, f"ce_{ROUGH}_lr_{rate}")
        texts.append(f"rate {rate.replace('_', '.')}: {text}")
        lost.append(len(found.diverged) / found.n)
    return check("; ".join(texts), any(share > 0 for share in lost), all(share == 1 for share in lost))


def prior_trains(e: Evidence) -> Finding:
    """A rate counts if no run of it is lost and the AP is clearly above a tenth of what AdamW reaches."""
    findings, tenth = [], e.row(TABLE_1A, "ce", "AP_any").mean / 10
    for rate in rates(e, "ce"):
        found, text = alive(e, f"ce_{CALM}_lr_{rate}")
        mean, margin = mean_margin(list(found.values.values()))
        verdict = Verdict.FAILS if found.diverged else sign(mean - tenth, margin)
        findings.append(Finding(f"rate {rate.replace('_', '.')}: {text}", verdict))
    whole = combine(*findings)
    return whole._replace(figure=f"{whole.figure}; a tenth of what AdamW reaches: {tenth:.1f}")


def prior_for_focal(e: Evidence) -> Finding:
    (rate,) = rates(e, "fl2")[:1]
    settings = [f"fl2_{start}_lr_{rate}" for start in (CALM, ROUGH)]
    (calm, with_it), (rough, without) = (alive(e, setting) for setting in settings)
    gap = paired(calm, rough)
    fewer = len(calm.diverged) < len(rough.diverged)
    figure = f"rate {rate.replace('_', '.')}, with the prior: {with_it}; without: {without}"
    return check(figure, fewer, gap.mean > gap.margin)


def hinge(e: Evidence) -> Finding:
    ce = e.row("hinge_cpu", "ce", "AP_any")
    tried = [e.row("hinge_cpu", name, "AP_any") for name in e.settings("hinge_cpu", "hinge_")]
    lost = sum(len(found.diverged) for found in tried)
    texts = [f"{found.title}: AP {found}" for found in tried]
    figure = "; ".join([*texts, f"cross entropy: AP {ce}", f"runs without a finite loss: {lost}"])
    return check(figure, lost > 0, *(found.mean < ce.mean / 10 for found in tried))


def star_equal(e: Evidence) -> Finding:
    return combine(
        *(
            equal(e, "table_3_cpu", name, "fl_2_0_25", 3, e.row("table_3_cpu", name).title)
            for name in ("star_2_1", "star_4_0")
        )
    )


def rivals_of_stars(e: Evidence) -> dict[str, Setting]:
    """Plain cross entropy, and the best one on validation images."""
    return {"CE": (TABLE_1A, "ce"), "the best cross entropy": (TABLE_1A, best(e, TABLE_1A, e.settings(TABLE_1A)))}


def star_over_ce(e: Evidence) -> Finding:
    findings = [
        better_of(e, ("table_3_cpu", name), rival, label=f"{e.row('table_3_cpu', name).title}, and {label}")
        for name in ("star_2_1", "star_4_0")
        for label, rival in rivals_of_stars(e).items()
    ]
    return combine(*findings)


def many_stars(e: Evidence) -> Finding:
    stars, texts, findings = e.settings("figure_7_cpu", "star_"), [], []
    for label, rival in rivals_of_stars(e).items():
        compared = [better_of(e, ("figure_7_cpu", name), rival) for name in stars]
        counts = Counter(finding.verdict for finding in compared)
        above, below = counts[Verdict.HOLDS], counts[Verdict.FAILS]
        texts.append(f"clearly above {label} ({e.row(*rival)}): {above} of {len(stars)}, clearly below: {below}")
        many = Verdict.HOLDS if above > len(stars) / 2 else Verdict.PART
        findings.append(Finding("", many if above else combine(*compared).verdict))
    return Finding(f"{'; '.join(texts)}; the best is {best_star(e)}", combine(*findings).verdict)


def best_star(e: Evidence) -> str:
    chosen = e.row("figure_7_cpu", best(e, "figure_7_cpu", e.settings("figure_7_cpu", "star_")))
    return f"{chosen.title} with {chosen}"


CLAIMS = [
    Claim(
        "focal-over-ce",
        "Focal loss with γ = 2, α = 0.25 is better than cross entropy (34.0 against 30.2 AP, COCO minival).",
        "paper, §5.1 and Tables 1a and 1b; article 2",
        "By the paired difference in AP. Both have the learning rate that is best for them.",
        ("chapter:15#table-1b-γ-each-with-its-best-α",),
        lambda e: better_of(e, PAPER_PAIRS[2.0], (TABLE_1A, "ce")),
    ),
    Claim(
        "focal-over-balanced",
        "Focal loss is better than cross entropy with its best α (34.0 against 31.1 AP, COCO minival).",
        "paper, §5.1 and Table 1b; article 1, §4",
        "By three paired differences in AP: the paper's settings, γ = 2 with α = 0.25 and balanced cross entropy with "
        "α = 0.75, on shapes and on BCCD; and on shapes the settings of the two losses that are best on validation "
        "images. Holds if all are above zero, in part if some.",
        ("chapter:15#table-1b-γ-each-with-its-best-α", "chapter:15#on-photographs"),
        focal_over_balanced,
    ),
    Claim(
        "gamma-robust",
        "The choice of γ is robust: from 0.5 to 5 focal loss beats cross entropy.",
        "paper, §4.1 and Table 1b",
        "By the paired differences in AP of γ = 0.5, 1, 2 and 5, each with the paper's α, to plain cross entropy: "
        "holds if all are above zero, in part if some.",
        ("chapter:15#table-1b-γ-each-with-its-best-α",),
        robust,
    ),
    Claim(
        "gamma-2-best",
        "γ = 2 is best.",
        "paper, §3.2 and Table 1b; article 2",
        "By the paired differences in AP to the other γ, with the paper's α and with the α that is best here on "
        "validation images, and on two other sets of images: holds if all are above zero, in part if some are and none "
        "is below; does not hold if one γ is clearly better.",
        ("chapter:15#table-1b-γ-each-with-its-best-α", "chapter:7#the-comparison", "chapter:15#on-photographs"),
        gamma_2_best,
        "Among so many intervals one may be clear by chance: look whether the same γ is ahead twice.",
    ),
    Claim(
        "alpha-half",
        "With γ = 2, α = 0.5 is nearly as good as α = 0.25 (0.4 AP lower, COCO minival).",
        "paper, §5.1",
        "Holds if the interval of the paired difference lies within 3 AP of zero, does not hold if it lies outside.",
        ("chapter:15#table-1b-γ-each-with-its-best-α",),
        lambda e: equal(e, TABLE_1B, "fl_2_0_5", "fl_2_0_25", 3),
    ),
    Claim(
        "long-training",
        "Focal loss is still ahead at the end of a long training.",
        "paper, Table 1b (trained to the end)",
        "By the paired differences in AP after trainings of 2,400 steps, to plain and to balanced cross entropy, and "
        "on another task: holds if all are above zero, in part if some.",
        ("chapter:15#longer", "chapter:7#the-comparison"),
        longer,
        "Whether such a training is long enough to be called converged is another question.",
    ),
    Claim(
        "real-images",
        "On real images focal loss is better than cross entropy.",
        "paper, Table 1b; article 4",
        "By the paired difference in AP on the test images of BCCD, γ = 2 against plain cross entropy.",
        ("chapter:15#on-photographs", "chapter:14#how-imbalanced-is-it"),
        lambda e: better(e, "table_bccd_cpu", "fl_2_0_25", "ce"),
    ),
    Claim(
        "imbalance-is-the-cause",
        "Class imbalance is what holds one-stage detectors back, and what focal loss cures: it gains most where the "
        "imbalance is greatest.",
        "paper, abstract and §1; article 2",
        "By the slope of the advantage over cross entropy, in AP for each factor of ten in the imbalance, with the "
        "score threshold and without: holds if its 95 % interval is above zero each time and at every length of "
        "training, in part if at some. Both losses have the better one of two learning rates; fields in which no loss "
        "reaches an AP of 1 are left out.",
        ("chapter:15#when-does-focal-loss-pay",),
        with_imbalance,
    ),
    Claim(
        "ce-diverges",
        "Cross entropy from p = 0.5, without the prior, diverges.",
        "paper, §5.1",
        "Holds if the loss of every run at every rate stops being finite, in part if that of some; SGD, subnets "
        "without norm, no clipping, as in the paper.",
        (
            "chapter:15#cross-entropy-without-the-prior",
            "chapter:10#training-with-and-without",
            "chapter:3#not-learning-at-all",
        ),
        ce_diverges,
    ),
    Claim(
        "prior-trains",
        "With the prior π = 0.01, and nothing else changed, cross entropy trains (30.2 AP, COCO minival).",
        "paper, §5.1; article 2",
        "Holds if at each rate every run keeps a finite loss and the AP is clearly above a tenth of what AdamW "
        "reaches; in part if at some; does not hold if at none, and a run is lost. Every detection counts, however "
        "unsure.",
        ("chapter:15#cross-entropy-without-the-prior", "chapter:10#training-with-and-without"),
        prior_trains,
    ),
    Claim(
        "prior-for-focal",
        "The prior helps focal loss, too.",
        "paper, §3.3; article 2",
        "Holds if fewer runs lose a finite loss with it, at the paper's rate for a batch of four, and the AP is higher "
        "by the paired difference; in part if one of the two. Every detection counts.",
        ("chapter:15#cross-entropy-without-the-prior", "chapter:10#π-is-a-choice"),
        prior_for_focal,
    ),
    Claim(
        "hinge",
        "With a hinge loss on p_t training is unstable and gives nothing meaningful.",
        "paper, §5.1",
        "Holds if the loss of some run stops being finite and all settings have less than a tenth of the AP of cross "
        "entropy; in part if one of the two, or some settings. Every detection counts.",
        (
            "chapter:15#the-hinge-loss",
            "chapter:5#a-counter-example-the-hinge",
            "test:test_hinge.py::test_hard_and_easy_examples_have_next_to_no_gradient",
        ),
        hinge,
        "The paper prints no formula; this is the plainest reading.",
    ),
    Claim(
        "exact-form",
        "The exact form of focal loss does not matter: FL* does as well (33.8 and 33.9 against 34.0 AP, COCO minival).",
        "paper, §3.2, appendix A and Table 3; article 2",
        "Holds if the intervals of both paired differences lie within 3 AP of zero, in part if one does; does not hold "
        "if one lies outside and none within.",
        ("chapter:15#table-3-and-figure-7-fl", "test:test_losses.py::test_focal_loss_star"),
        star_equal,
    ),
    Claim(
        "star-over-ce",
        "FL* is better than cross entropy (33.8 and 33.9 against 31.1 AP, COCO minival).",
        "paper, Table 3",
        "By the paired differences in AP of both settings to plain cross entropy and to the cross entropy, plain or "
        "balanced, that is best here on validation images: holds if all are above zero, in part if some.",
        ("chapter:15#table-3-and-figure-7-fl", "test:test_losses.py::test_focal_loss_star"),
        star_over_ce,
    ),
    Claim(
        "many-stars",
        "Many settings of FL* beat cross entropy.",
        "paper, appendix A and Figure 7",
        "By the paired differences in AP to plain cross entropy and to the one, plain or balanced, that is best on "
        "validation images: holds if more than half of the settings of the grid are above zero in both comparisons, in "
        "part if some are in either.",
        ("chapter:15#table-3-and-figure-7-fl",),
        many_stars,
    ),
]
