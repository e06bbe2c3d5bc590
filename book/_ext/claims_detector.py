"""Claims that the paper's experiments make about a trained detector: Figure 4, Tables 1c and 1e."""

from __future__ import annotations

import re
import statistics

from claims_evidence import (
    Claim,
    Evidence,
    Finding,
    Missing,
    Verdict,
    better,
    check,
    combine,
    mean_margin,
    seeds,
    sign,
    versus,
)


def carried(e: Evidence, sign_of: str, gamma: str, hardest: str, setting: str = "fl_2_0_25") -> list[float]:
    """Per cent of the loss that the hardest per cent of positives or negatives carry, seed by seed."""
    values = e.per_seed("figure_4_cpu", "measured", setting, sign_of, "gammas", gamma, "hardest", hardest)
    return [100 * value for value in values]


def positives(e: Evidence) -> Finding:
    plain, focused = carried(e, "positives", "0", "20"), carried(e, "positives", "2", "20")
    figure = (
        f"the hardest 20 % of the positives carry {percent(plain)} of the loss at γ = 0 and {percent(focused)} at γ = 2"
    )
    change = [b - a for a, b in zip(plain, focused, strict=True)]
    return check(figure, all(40 <= value <= 60 for value in plain), max(change) < 10)


def negatives(e: Evidence) -> Finding:
    one, tenth = carried(e, "negatives", "2", "1"), carried(e, "negatives", "2", "0_1")
    figure = f"the hardest 1 % of the negatives carry {percent(one)} of the loss, the hardest 0.1 % {percent(tenth)}"
    return check(figure, min(one) > 90)


def distances(e: Evidence, sign_of: str) -> list[float]:
    """Largest distance between the curves of γ = 0 and 2, in points of the share of the loss, seed by seed."""
    found = []
    for run in e.result("figure_4_cpu")["runs"]:
        measured = run["measured"].get("fl_2_0_25")
        if measured is None:  # a seed that this setting has not
            continue
        gammas = measured[sign_of]["gammas"]
        pairs = zip(gammas["0"]["curve"], gammas["2"]["curve"], strict=True)
        found.append(100 * max(abs(focused - plain) for plain, focused in pairs))
    return found


def negatives_more(e: Evidence) -> Finding:
    moved = {sign_of: distances(e, sign_of) for sign_of in ("negatives", "positives")}
    pairs = zip(*moved.values(), strict=True)
    figure = "between γ = 0 and 2 the curve of the negatives moves by up to {} of the loss, that of the positives by {}"
    return check(figure.format(*map(percent, moved.values())), all(n > 2 * p for n, p in pairs))


def percent(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.2f} %" if 99.5 < mean < 100 else f"{mean:.1f} %"


# ---- anchors, scale and depth ------------------------------------------------------------------------------

TABLE_1C, TABLE_1E = "table_1c_cpu", "table_1e_cpu"
LENGTHS = {"1,000 steps": TABLE_1C, "2,400 steps": "table_1c_long_cpu"}


def one_anchor(e: Evidence) -> Finding:
    findings = []
    for label, name in LENGTHS.items():
        one, nine = e.row(name, "anchors_1_1"), e.row(name, "anchors_3_3")
        mean, margin = mean_margin([value - 0.8 * nine.values[seed] for seed, value in one.values.items()])
        share = f"{100 * one.mean / nine.mean:.0f} % ({seeds(one.n)})"
        findings.append(Finding(f"{label}: AP {one} with one anchor, {nine} with nine: {share}", sign(mean, margin)))
    return combine(*findings)


def more_anchors(e: Evidence) -> Finding:
    return combine(*(better(e, name, "anchors_3_3", "anchors_1_1", label=label) for label, name in LENGTHS.items()))


def saturates(e: Evidence) -> Finding:
    gap, text = versus(e, (TABLE_1C, "anchors_4_3"), (TABLE_1C, "anchors_2_3"))
    figure = f"twelve and six anchors: {text}"
    if gap.mean + gap.margin < 3:
        return Finding(figure, Verdict.HOLDS)
    return Finding(figure, Verdict.FAILS if gap.mean > gap.margin else Verdict.UNDECIDED)


def canvases(e: Evidence) -> dict[tuple[int, int], str]:
    """(blocks a stage, side) → setting of Table 1e."""
    found = {}
    for name in e.settings(TABLE_1E, "canvas_"):
        side, blocks = map(int, re.findall(r"canvas_(\d+)_blocks_(\d+)", name)[0])
        found[blocks, side] = name
    if len({blocks for blocks, _ in found}) < 2:
        raise Missing(f"{TABLE_1E}: two depths wanted")
    return found


def larger_image(e: Evidence) -> Finding:
    found = canvases(e)
    sides, depths = ({key[i] for key in found} for i in (1, 0))
    low, high = min(sides), max(sides)
    return combine(
        *(
            better(e, TABLE_1E, found[d, high], found[d, low], label=f"{high} and {low} pixels, {d} block(s) a stage")
            for d in sorted(depths)
        )
    )


def slower(e: Evidence) -> Finding:
    found = canvases(e)
    texts, rises = [], []
    for depth in sorted({key[0] for key in found}):
        times = [e.row(TABLE_1E, found[key], "milliseconds").mean for key in sorted(found) if key[0] == depth]
        texts.append(f"{depth} block(s) a stage: " + ", ".join(f"{t:.1f}" for t in times) + " ms")
        rises.append(times == sorted(times))
    sides = sorted({side for _, side in found})
    return check(f"at {', '.join(map(str, sides))} pixels, {'; '.join(texts)}", *rises)


def deeper(e: Evidence) -> Finding:
    found = canvases(e)
    shallow, deep = min(found)[0], max(found)[0]
    sides = sorted({side for _, side in found})
    return combine(*(better(e, TABLE_1E, found[deep, s], found[shallow, s], label=f"{s} pixels") for s in sides))


CLAIMS = [
    Claim(
        "figure-4-positives",
        "In a trained model the hardest fifth of the positives carries about half of their loss, whatever γ.",
        "paper, §5.1 and Figure 4",
        "Holds if it carries 40 to 60 % at γ = 0, and less than 10 points more at γ = 2, in every run; in part if "
        "one of the two.",
        ("chapter:17#what-we-measured", "test:test_loss_distribution.py::test_hardest_shares_of_a_few_terms"),
        positives,
    ),
    Claim(
        "figure-4-negatives",
        "At γ = 2 a small fraction of the negatives carries nearly all of their loss.",
        "paper, §5.1 and Figure 4",
        "Holds if the hardest 1 % carry more than 90 % in every run.",
        ("chapter:17#what-we-measured", "test:test_loss_distribution.py::test_everything_equals_a_plain_computation"),
        negatives,
    ),
    Claim(
        "figure-4-both",
        "γ changes the negatives much more than the positives.",
        "paper, §5.1 and Figure 4",
        "Holds if the share of the loss that the hardest carry grows more than twice as much among negatives as among "
        "positives from γ = 0 to 2, at the fraction where it grows most, in every run.",
        ("chapter:17#what-we-measured", "chapter:17#why-the-positives-move"),
        negatives_more,
    ),
    Claim(
        "one-anchor",
        "One square anchor at a place already does well (30.3 against 34.0 AP with nine, COCO minival).",
        "paper, §5.2 and Table 1c",
        "Holds if its AP is above 80 % of that of nine anchors, by the interval of the paired differences, after a "
        "short and a longer training; in part if after one. In the paper it is 89 %.",
        ("chapter:16#what-training-makes-of-it",),
        one_anchor,
        "A share of AP is a coarse measure: it depends on how hard the task is.",
    ),
    Claim(
        "more-anchors",
        "Several scales and ratios are better than one square (34.0 against 30.3 AP, COCO minival).",
        "paper, §5.2 and Table 1c",
        "By the paired differences in AP of three scales and three ratios to one of each, after a short and a longer "
        "training: holds if both are above zero, in part if one.",
        ("chapter:16#what-training-makes-of-it", "chapter:8#how-fast-iou-falls"),
        more_anchors,
    ),
    Claim(
        "anchors-saturate",
        "More than six to nine anchors at a place bring nothing (34.2 AP with six, 33.8 with twelve, COCO minival).",
        "paper, §5.2 and Table 1c",
        "Holds if the 95 % interval of the paired difference, twelve minus six, ends below 3 AP; does not hold if it "
        "lies above zero.",
        ("chapter:16#what-training-makes-of-it",),
        saturates,
    ),
    Claim(
        "larger-images",
        "Larger input images bring AP (30.5 at 400 pixels to 35.7 at 800, ResNet-50, COCO test-dev).",
        "paper, §5.2 and Table 1e",
        "By the paired difference in AP between the largest and the smallest input, for a shallow and a deep "
        "network: holds if both are above zero, in part if one.",
        ("chapter:16#ours-beside-the-papers",),
        larger_image,
    ),
    Claim(
        "larger-slower",
        "Larger input images cost time (64 ms at 400 pixels to 153 at 800, ResNet-50).",
        "paper, §5.2 and Table 1e",
        "Holds if the time for an image rises with its size at both depths; in part if at one.",
        ("chapter:16#ours-beside-the-papers",),
        slower,
    ),
    Claim(
        "deeper",
        "A deeper network brings AP at every size (ResNet-101 instead of 50: 34.3 to 36.0 at 600 pixels, COCO "
        "test-dev).",
        "paper, §5.2 and Table 1e",
        "By the paired differences in AP of four blocks a stage to one, at each size: holds if all are above zero, "
        "in part if some.",
        ("chapter:16#ours-beside-the-papers",),
        deeper,
        "Both from random weights, where the paper's are pretrained.",
    ),
]
