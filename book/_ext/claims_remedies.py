"""Claims about the remedies that choose what to learn from."""

from __future__ import annotations

import statistics

from claims_evidence import Claim, Evidence, Finding, Verdict, better, check, combine
from claims_imbalance import BCCD, FEW

LONG, TABLE_LONG = "losses_long_cpu", "table_long_cpu"  # 2,400 steps, on the two tasks
F_95 = {2: 39.0, 3: 15.44, 4: 9.60}  # degrees of freedom of both variances → their ratio at the two-sided 5 % level


def sampling_heuristics(e: Evidence) -> Finding:
    names = {
        "random": "random 1 : 3",
        "bootstrapping": "bootstrapping",
        "hard_negatives": "hard negatives",
        "ohem": "OHEM",
    }
    return combine(*(better(e, FEW, "fl2", name, label=label) for name, label in names.items()))


def focal_over_ohem(e: Evidence) -> Finding:
    table = "table_1d_cpu"
    rows = {name: e.row(table, name, "validation_AP").mean for name in e.settings(table, "ohem")}
    best = max(rows, key=rows.__getitem__)
    title = e.row(table, best).title
    return combine(
        better(e, table, "fl_2_0_25", best, label=title),
        better(e, TABLE_LONG, "fl_2_0_25", "ohem_128_0_5", label="2,400 steps, OHEM of 128"),
        better(e, LONG, "fl2", "ohem", label="another task, 2,400 steps"),
        better(e, BCCD, "fl_2_0_25", "ohem_128_0_5", label="blood cells, OHEM of 128"),
    )


def ratio_hurts(e: Evidence) -> Finding:
    """With the mixture enforced: where background fills up, nearly all batches stay those of plain OHEM."""
    table = "table_1d_cpu"
    fixed = {name.split("_")[1]: name for name in e.settings(table, "enforced13_")}
    return combine(*(better(e, table, f"ohem_{b}_0_5", name, label=f"batch {b}") for b, name in fixed.items()))


def smaller_batch(e: Evidence) -> Finding:
    pairs = ((32, 128), (128, 512))
    found = combine(
        *(better(e, "table_1d_cpu", f"ohem_{a}_0_5", f"ohem_{b}_0_5", label=f"{a} and {b}") for a, b in pairs)
    )
    scale = f"our 32 is as large a share of all anchors as about {e.glue(16, 'same_as_32'):g} in the paper"
    return found._replace(figure=f"{found.figure}; {scale}")


def ohem_keeps(e: Evidence) -> Finding:
    kept = e.glue(7, "kept_share")
    return check(f"a batch of OHEM holds {kept:g} % of the anchors; the others have no gradient", kept < 5)


def smoother(e: Evidence) -> Finding:
    findings = []
    for name, focal, ohem, label in (
        (FEW, "fl2", "ohem", "800 steps, 192 pixels"),
        (LONG, "fl2", "ohem", "2,400 steps, 192 pixels"),
        (TABLE_LONG, "fl_2_0_25", "ohem_128_0_5", "2,400 steps, 128 pixels"),
    ):
        values = [list(e.row(name, setting).values.values()) for setting in (ohem, focal)]
        n = min(len(v) for v in values)
        one, other = (statistics.variance(v[:n]) for v in values)
        ratio = one / other if other else float("inf")
        limit = F_95[n - 1]
        text = f"{label}: sd {other**0.5:.1f} of focal loss, {one**0.5:.1f} of OHEM ({n} seeds)"
        clear = Verdict.HOLDS if ratio > limit else Verdict.FAILS if ratio < 1 / limit else Verdict.UNDECIDED
        findings.append(Finding(text, clear))
    return combine(*findings)


def hands(e: Evidence) -> Finding:
    samplers = {
        "random 1 : 3": e.knobs("sampling", "sample_balanced"),
        "hard negatives": e.knobs("sampling", "mine_hard_negatives"),
        "OHEM": e.knobs("sampling", "mine_online"),
        "bootstrapping": e.knobs("sampling", "Bootstrapping"),
    }
    mine = [name for name in e.knobs("losses", "sigmoid_focal_loss") if name in ("alpha", "gamma")]
    text = ", ".join(f"{label} ({len(names)})" for label, names in samplers.items())
    fewer = all(len(mine) <= len(names) for names in samplers.values())
    return check(f"numbers to choose, in parentheses: focal loss ({len(mine)}), {text}", len(mine) == 0, fewer)


CLAIMS = [
    Claim(
        "random-sampling",
        "Keeping one foreground to three of background, drawn at random, copes with the imbalance.",
        "article 1, §2-3; paper, §1 and §3.4",
        "By the paired difference in AP to cross entropy over all anchors.",
        ("chapter:3#one-to-three-at-random", "test:test_sampling.py::test_balanced_minibatch_fills_up_with_background"),
        lambda e: better(e, FEW, "random", "ce"),
        "Both speak of the second stage, whose background has been chosen by the first. Here it is drawn from all "
        "anchors.",
    ),
    Claim(
        "hard-negatives",
        "One-stage detectors cope by hard negative mining.",
        "article 1, §2-3; paper, §1 and §2",
        "By the paired difference in AP to cross entropy over all anchors.",
        ("chapter:3#hard-negative-mining", "test:test_sampling.py::test_hard_negatives_are_the_hardest"),
        lambda e: better(e, FEW, "hard_negatives", "ce"),
    ),
    Claim(
        "bootstrapping",
        "Bootstrapping copes with the inefficiency of easy background.",
        "paper, §1; article 2",
        "By the paired difference in AP to cross entropy over all anchors.",
        ("chapter:3#bootstrapping", "test:test_sampling.py::test_bootstrapping_adds_the_hardest_after_each_round"),
        lambda e: better(e, FEW, "bootstrapping", "ce"),
        "It lives on many rounds, and this schedule has three or four.",
    ),
    Claim(
        "focal-over-heuristics",
        "Focal loss is more effective than the sampling heuristics.",
        "paper, §1; article 2",
        "By the paired differences in AP to four of them: holds if all are above zero, in part if some.",
        ("chapter:7#the-comparison",),
        sampling_heuristics,
    ),
    Claim(
        "focal-over-ohem",
        "Focal loss beats the best setting of OHEM, by 3.2 AP (36.0 against 32.8, COCO minival).",
        "paper, §5.1 and Table 1d",
        "By the paired difference in AP to the setting of OHEM that is best on validation images, and, to one "
        "setting, after longer trainings and on BCCD: holds if all are above zero, in part if some.",
        (
            "chapter:16#the-tables-side-by-side",
            "chapter:3#compared-on-one-task",
            "test:test_sampling.py::test_online_mining_equals_nms_over_all_anchors",
        ),
        focal_over_ohem,
    ),
    Claim(
        "ohem-1-3",
        "Fixing 1 : 3 on top of OHEM makes it worse.",
        "paper, §5.1 and Table 1d",
        "By the paired differences in AP, OHEM minus OHEM 1 : 3, at each size of the batch: holds if all are above "
        "zero, in part if some.",
        ("chapter:16#the-quarter-that-never-fills", "test:test_sampling.py::test_ohem_one_to_three"),
        ratio_hurts,
    ),
    Claim(
        "ohem-batch",
        "OHEM depends on its settings: with NMS at 0.5 a batch of 128 anchors is better than one of 512 (32.8 "
        "against 27.6 AP, COCO minival).",
        "paper, §5.1 and Table 1d",
        "By the paired differences in AP, a batch of 32 minus one of 128, 128 minus 512: holds if both are above "
        "zero, in part if one. As a share of the anchors our batches begin in the middle of the paper's and go beyond.",
        ("chapter:16#one-number-behind-two-settings", "chapter:16#which-batch-is-comparable"),
        smaller_batch,
    ),
    Claim(
        "ohem-discards",
        "OHEM discards easy examples altogether; focal loss keeps all and weighs them.",
        "paper, §2 and §5.1; article 4",
        "Holds if a batch of OHEM has less than 5 % of the anchors. That the others get no gradient, the test shows.",
        (
            "chapter:7#ohem-choose-instead-of-weigh",
            "test:test_sampling.py::test_ohem_without_nms_is_the_top_of_the_loss",
        ),
        ohem_keeps,
    ),
    Claim(
        "focal-smoother",
        "Focal loss gives a smoother and more stable training signal than OHEM.",
        "article 4",
        "By the spread of AP between seeds: holds if that of focal loss is smaller, by an F-test at the 5 % level, "
        "in all three comparisons; in part if in some; undecided if neither is smaller.",
        ("chapter:16#longer-and-on-other-images", "chapter:7#the-comparison"),
        smoother,
        "Few seeds say little about a spread, and the spread of AP is an indirect measure of the signal.",
    ),
    Claim(
        "no-hand",
        "The remedies need a person's hand; focal loss does not.",
        "article 1, §2-3",
        "Holds if focal loss has no number to choose; in part if it has no more than each of the four samplers. "
        "Counted in the signatures of this package's functions.",
        ("chapter:3#what-a-person-has-to-choose",),
        hands,
    ),
]
