"""Claims that the paper's experiments make about losses: Tables 1a, 1b and 3, Figure 7, the prior, the hinge."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter

from claims_balanced import TABLE_1A, TABLE_1B, best, best_of_gamma
from claims_evidence import (
    Claim,
    Evidence,
    Finding,
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
)

from focal_tutorial.table_view import paired

ROUGH, CALM = "prior_0_5", "prior_0_01"


def robust(e: Evidence) -> Finding:
    chosen = best_of_gamma(e)
    gammas = [gamma for gamma in chosen if 0.5 <= gamma <= 5]
    finding = combine(*(better_of(e, chosen[gamma], chosen[0.0], label=f"γ = {gamma:g}") for gamma in gammas))
    return finding._replace(figure=f"the best without γ is {e.row(*chosen[0.0]).title}; {finding.figure}")


def gamma_2_best(e: Evidence) -> Finding:
    chosen = best_of_gamma(e)
    others = [gamma for gamma in chosen if gamma != 2]
    findings = [better_of(e, chosen[2.0], chosen[gamma], label=f"γ = 2 and {gamma:g}") for gamma in others]
    if any(finding.verdict is Verdict.FAILS for finding in findings):
        return Finding("; ".join(finding.figure for finding in findings), Verdict.FAILS)
    return combine(*findings)


def focal_over_ce(e: Evidence) -> Finding:
    first, chosen = (TABLE_1B, "fl_2_0_25"), best(e, TABLE_1A, e.settings(TABLE_1A, "bce_"))
    return combine(
        better_of(e, first, (TABLE_1A, "ce"), label="CE"),
        better_of(e, first, (TABLE_1A, "bce_0_75"), label="α = 0.75"),
        better_of(e, first, (TABLE_1A, chosen), label=f"best on validation images, {e.row(TABLE_1A, chosen).title}"),
    )


def longer(e: Evidence) -> Finding:
    return combine(
        better(e, "table_long_cpu", "fl_2_0_25", "ce", label="CE"),
        better(e, "table_long_cpu", "fl_2_0_25", "bce_0_75", label="balanced CE"),
        better(e, "losses_long_cpu", "fl2", "ce", label="another task, CE"),
    )


def with_imbalance(e: Evidence) -> Finding:
    """Slope of focal loss's advantage over CE against the logarithm of the imbalance, seed by seed."""
    name, found = "imbalance_map_cpu", {}
    for setting in e.settings(name, "fl_2_0_25_to_"):
        density, steps = map(int, re.findall(r"_to_(\d+)_steps_(\d+)", setting)[0])
        gap = paired(e.row(name, setting), e.row(name, setting.replace("fl_2_0_25", "ce")))
        found.setdefault(steps, {})[density] = gap.values
    findings = []
    for steps, gaps in sorted(found.items()):
        densities = sorted(gaps)
        common = set.intersection(*(set(values) for values in gaps.values()))
        x = [math.log10(density) for density in densities]
        slopes = [statistics.linear_regression(x, [gaps[d][seed] for d in densities]).slope for seed in sorted(common)]
        mean, margin = mean_margin(slopes)
        ends = (f"{statistics.fmean(gaps[d].values()):+.1f} at 1 : {d:,}" for d in (densities[0], densities[-1]))
        text = f"{steps:,} steps: {', '.join(ends)}, {mean:+.1f} ± {margin:.1f} for each factor of ten"
        findings.append(Finding(f"{text} ({seeds(len(slopes))})", sign(mean, margin)))
    return combine(*findings)


def rates(e: Evidence, loss: str) -> list[str]:
    """Names of a loss's rates in the runs with and without the prior."""
    return [name.split("_lr_")[1] for name in e.settings("ce_prior_cpu", f"{loss}_{ROUGH}")]


def ce_diverges(e: Evidence) -> Finding:
    texts, fatal = [], []
    for rate in rates(e, "ce"):
        row = e.row("ce_prior_cpu", f"ce_{ROUGH}_lr_{rate}", "AP_any")
        known = [value for seed, value in row.values.items() if seed not in row.diverged]
        texts.append(
            f"rate {rate.replace('_', '.')}: loss not finite in {len(row.diverged)} of {row.n} runs"
            + (f", AP of the others {statistics.fmean(known):.1f}" if known else "")
        )
        fatal.append(len(row.diverged) / row.n)
    return check("from p = 0.5, " + "; ".join(texts), any(f > 0 for f in fatal), all(f == 1 for f in fatal))


def prior_trains(e: Evidence) -> Finding:
    return combine(
        *(
            better(
                e,
                "ce_prior_cpu",
                f"ce_{CALM}_lr_{rate}",
                f"ce_{ROUGH}_lr_{rate}",
                "AP_any",
                f"rate {rate.replace('_', '.')}",
            )
            for rate in rates(e, "ce")
        )
    )


def prior_for_focal(e: Evidence) -> Finding:
    (rate,) = rates(e, "fl2")[:1]
    return better(e, "ce_prior_cpu", f"fl2_{CALM}_lr_{rate}", f"fl2_{ROUGH}_lr_{rate}", "AP_any")


def hinge(e: Evidence) -> Finding:
    ce = e.row("hinge_cpu", "ce", "AP_any")
    tried = {name: e.row("hinge_cpu", name, "AP_any") for name in e.settings("hinge_cpu", "hinge_")}
    top = max(tried, key=lambda name: tried[name].mean)
    gap = paired(tried[top], ce)
    figure = (
        f"best of {len(tried)} settings, {tried[top].title}: {tried[top]} against {ce} of CE, {points(gap)}, "
        f"unsure detections counted"
    )
    return check(figure, tried[top].mean < ce.mean / 10, gap.mean < -gap.margin)


def star_equal(e: Evidence) -> Finding:
    return combine(
        *(
            equal(e, "table_3_cpu", name, "fl_2_0_25", 3, e.row("table_3_cpu", name).title)
            for name in ("star_2_1", "star_4_0")
        )
    )


def star_over_ce(e: Evidence) -> Finding:
    rivals = {"α = 0.75": "bce_0_75", "the best cross entropy": best(e, TABLE_1A, e.settings(TABLE_1A))}
    findings = [
        better_of(e, ("table_3_cpu", name), (TABLE_1A, rival), label=f"{e.row('table_3_cpu', name).title} and {label}")
        for name in ("star_2_1", "star_4_0")
        for label, rival in rivals.items()
    ]
    return combine(*findings)


def many_stars(e: Evidence) -> Finding:
    rival = TABLE_1A, best(e, TABLE_1A, e.settings(TABLE_1A))
    findings = [better_of(e, ("figure_7_cpu", name), rival) for name in e.settings("figure_7_cpu", "star_")]
    counts = Counter(finding.verdict for finding in findings)
    figure = (
        f"of {len(findings)} settings, {counts[Verdict.HOLDS]} are clearly above the best cross entropy "
        f"({e.row(*rival).title}, {e.row(*rival)}), {counts[Verdict.FAILS]} clearly below; the best is {best_star(e)}"
    )
    return Finding(figure, combine(*findings).verdict)


def best_star(e: Evidence) -> str:
    chosen = e.row("figure_7_cpu", best(e, "figure_7_cpu", e.settings("figure_7_cpu", "star_")))
    return f"{chosen.title} with {chosen}"


CLAIMS = [
    Claim(
        "focal-over-ce",
        "Focal loss with γ = 2, α = 0.25 is far better than cross entropy with its best α (34.0 against 31.1 AP, "
        "COCO minival).",
        "paper, §5.1 and Table 1b; article 2",
        "By the paired differences in AP to plain cross entropy, to α = 0.75, and to the α that is best here on "
        "validation images: holds if all are above zero, in part if some.",
        ("chapter:15",),
        focal_over_ce,
    ),
    Claim(
        "gamma-robust",
        "γ from 0.5 to 5 all beat cross entropy: the choice is robust.",
        "paper, §4.1 and Table 1b",
        "By the paired differences in AP of γ = 0.5, 1, 2 and 5, each with its best α, to the best cross entropy, "
        "plain or balanced: holds if all are above zero, in part if some. “Best” is chosen on validation images.",
        ("chapter:15",),
        robust,
    ),
    Claim(
        "gamma-2-best",
        "γ = 2 is best.",
        "paper, §3.2 and Table 1b; article 2",
        "By the paired differences in AP to the other γ, each with its best α: holds if all are above zero, in part "
        "if some are and none is below; does not hold if one γ is clearly better.",
        ("chapter:15", "chapter:7#the-comparison"),
        gamma_2_best,
    ),
    Claim(
        "alpha-half",
        "With γ = 2, α = 0.5 is nearly as good as α = 0.25 (0.4 AP lower, COCO minival).",
        "paper, §5.1",
        "Holds if the 95 % interval of the paired difference lies within 3 AP.",
        ("chapter:15",),
        lambda e: equal(e, TABLE_1B, "fl_2_0_5", "fl_2_0_25", 3),
    ),
    Claim(
        "long-training",
        "Focal loss does not only learn faster, it ends higher.",
        "paper, Table 1b (trained to the end)",
        "By the paired differences in AP after trainings of 2,400 steps, to plain and to balanced cross entropy, and "
        "on another task: holds if all are above zero, in part if some.",
        ("chapter:15", "chapter:7#the-comparison"),
        longer,
        "Whether such a training is long enough to be called converged is another question.",
    ),
    Claim(
        "real-images",
        "On real images focal loss is better than cross entropy.",
        "paper, Table 1b; article 4",
        "By the paired difference in AP on the test images of BCCD, γ = 2 against plain cross entropy.",
        ("chapter:15",),
        lambda e: better(e, "table_bccd_cpu", "fl_2_0_25", "ce"),
    ),
    Claim(
        "imbalance-is-the-cause",
        "Class imbalance is what holds one-stage detectors back, and what focal loss cures: it gains most where the "
        "imbalance is greatest.",
        "paper, abstract and §1; article 2",
        "By the slope of the advantage over cross entropy, in AP for each factor of ten in the imbalance: holds if "
        "its 95 % interval is above zero at every length of training, in part if at some.",
        ("chapter:15",),
        with_imbalance,
    ),
    Claim(
        "ce-diverges",
        "Cross entropy from p = 0.5, without the prior, diverges.",
        "paper, §5.1",
        "Holds if the loss of every run at every rate stops being finite, in part if that of some; SGD, subnets "
        "without norm, no clipping, as in the paper.",
        ("chapter:15", "chapter:10#training-with-and-without", "chapter:3#not-learning-at-all"),
        ce_diverges,
    ),
    Claim(
        "prior-trains",
        "With the prior π = 0.01, and nothing else changed, cross entropy trains (30.2 AP, COCO minival).",
        "paper, §5.1; article 2",
        "By the paired difference in AP with and without the prior, at each rate: holds if all are above zero, in "
        "part if some. Every detection counts, however unsure.",
        ("chapter:15", "chapter:10#training-with-and-without"),
        prior_trains,
    ),
    Claim(
        "prior-for-focal",
        "The prior helps focal loss, too.",
        "paper, §3.3; article 2",
        "By the paired difference in AP with and without the prior, at the paper's rate. Every detection counts.",
        ("chapter:15", "chapter:10#π-is-a-choice"),
        prior_for_focal,
    ),
    Claim(
        "hinge",
        "With a hinge loss on p_t training is unstable and gives nothing meaningful.",
        "paper, §5.1",
        "Holds if the best of all settings has less than a tenth of the AP of cross entropy; in part if it is "
        "clearly below. Every detection counts.",
        (
            "chapter:15",
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
        "Holds if the 95 % intervals of both paired differences lie within 3 AP, in part if one; does not hold if "
        "one lies outside and none within.",
        ("chapter:15", "test:test_losses.py::test_focal_loss_star"),
        star_equal,
    ),
    Claim(
        "star-over-ce",
        "FL* is better than cross entropy (33.8 and 33.9 against 31.1 AP, COCO minival).",
        "paper, Table 3",
        "By the paired differences in AP of both settings to α = 0.75, as in the paper, and to the cross entropy, "
        "plain or balanced, that is best here on validation images: holds if all are above zero, in part if some.",
        ("chapter:15", "test:test_losses.py::test_focal_loss_star"),
        star_over_ce,
    ),
    Claim(
        "many-stars",
        "Many settings of FL* beat cross entropy.",
        "paper, appendix A and Figure 7",
        "By the paired differences in AP to the cross entropy that is best on validation images: holds if all "
        "settings of the grid are above zero, in part if some.",
        ("chapter:15",),
        many_stars,
    ),
]
