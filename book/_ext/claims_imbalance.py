"""Claims about the imbalance itself, and about what it does to a model."""

from __future__ import annotations

import statistics

from claims_evidence import Claim, Evidence, Finding, better, better_of, check, combine

FEW = "losses_cpu"  # the comparison of chapters 3, 4 and 7: 800 steps
BCCD = "table_bccd_cpu"  # real images, chapter 15


def share(e: Evidence, setting: str, step: int, of: str = "loss", loss: str = "ce") -> list[float]:
    """The objects' share of a loss or its gradient at a step of the training, in per cent, seed by seed."""
    return [100 * value for value in e.per_seed(FEW, "trace", setting, step, of, loss)]


def belief(e: Evidence, setting: str, step: int, of: str = "p_foreground") -> list[float]:
    """Mean probability that objects (or background) are given at a step, seed by seed."""
    return e.per_seed(FEW, "trace", setting, step, of)


def proposals(e: Evidence) -> Finding:
    sparse, crowded = e.glue(1, "shapes_proposals"), e.glue(1, "blood_cells_proposals")
    figure = f"{sparse:g} % of the proposals show an object on sparse shapes, {crowded:g} % on crowded blood cells"
    return check(figure, *(0.5 <= value <= 2 for value in (sparse, crowded)))


def proposals_lessen(e: Evidence) -> Finding:
    ratios = {kind: [e.glue(1, f"{kind}_{step}_ratio") for step in ("anchors", "proposals")]
              for kind in ("blood_cells", "shapes")}  # fmt: skip
    text = (f"{kind.replace('_', ' ')} from 1 : {a:g} to 1 : {b:g}" for kind, (a, b) in ratios.items())
    return check("; ".join(text), *(after < before for before, after in ratios.values()))


def one_to_three(e: Evidence) -> Finding:
    ratios = [e.glue(1, f"{kind}_second_batch_ratio") for kind in ("blood_cells", "shapes")]
    figure = "1 : {:g} on crowded blood cells, 1 : {:g} on sparse shapes".format(*ratios)
    return check(figure, *(ratio < 3.5 for ratio in ratios))


def yolo_boxes(e: Evidence) -> Finding:
    count, foreground, ratio = e.printed(2, r"YOLOv2, 416 px\s+([\d,]+) boxes\s+([\d.]+) foreground\s+1 : (\d+)")
    figure = f"{count:.0f} boxes; 1 : {ratio:.0f} on blood cells, where {foreground:g} of them hold an object"
    return check(figure, count == 13 * 13 * 5, 83.5 / 2 < ratio < 83.5 * 2)


def retinanet_boxes(e: Evidence) -> Finding:
    (count,) = e.printed(2, r"RetinaNet, 600 px\s+([\d,]+) boxes\n")
    return check(f"{count:,.0f} boxes at 600 pixels", 50_000 < count < 200_000)


def one_to_thousand(e: Evidence) -> Finding:
    ratios = [e.glue(2, name) for name in ("ratio_RetinaNet_600", "ratio_RetinaNet_800", "shapes_2")]
    figure = "1 : {:g} and 1 : {:g} on blood cells at 600 and 800 pixels, 1 : {:g} on sparse shapes".format(*ratios)
    return check(figure, *(1000 / 3 <= ratio <= 3000 for ratio in ratios))


def easy(e: Evidence) -> Finding:
    early, late = e.glue(3, "tiny"), e.glue(2, "below_10")
    figure = (
        f"{early:g} % of the background has a loss below 0.01 after 60 steps; in another detector, after 500 steps, "
    )
    return check(figure + f"{late:g} % has p below 0.1", early > 90, late > 90)


def background_first(e: Evidence) -> Finding:
    start, objects, rest = (
        belief(e, "ce_half", step, of) for step, of in ((0, "p_foreground"), (20, "p_foreground"), (20, "p_background"))
    )
    means = [statistics.fmean(values) for values in (start, objects, rest)]
    figure = "p on objects falls from {:.2f} to {:.3f} in 20 steps, on background to {:.4f}".format(*means)
    return check(figure, max(objects) < 0.05, max(rest) < 0.05)


def outweighed(e: Evidence, of: str) -> Finding:
    """Whether the objects' part is the smaller one at the start, and still later."""
    start, prior = share(e, "ce_half", 0, of), share(e, "ce", 0, of)
    later = {step: share(e, "ce", step, of) for step in (50, 100, 400, 800)}
    middle, end = (statistics.fmean(later[step]) for step in (100, 800))
    figure = (
        f"the objects have {statistics.fmean(start):.1f} % of the {of} at p = 0.5, {statistics.fmean(prior):.0f} % at "
        f"the prior, {middle:.0f} % at step 100, {end:.0f} % at the end"
    )
    early = max(start) < 50 and max(prior) < 50
    return check(figure, early, all(max(values) < 50 for values in later.values()))


def no_learning(e: Evidence) -> Finding:
    ce = e.row(FEW, "ce")
    rough = [100 * value for value in e.per_seed("losses_unsure_cpu", "metrics", "ce_half_sgd_0_03", "AP")]
    dead = sum(value < 0.1 for value in rough)
    figure = (
        f"CE with AdamW reaches AP {ce}; with SGD from p = 0.5 at rate 0.03, {dead} of {len(rough)} runs know nothing"
    )
    return check(figure, max(ce.values.values()) < 0.1, dead > len(rough) / 2)


def inefficient(e: Evidence) -> Finding:
    """By AP: a mean probability says little, since each loss has its own idea of how sure to be."""
    return combine(
        better(e, FEW, "hard_negatives", "ce", label="hard negatives only, 800 steps"),
        better(e, FEW, "fl2", "ce", label="focal loss, 800 steps"),
        better_of(e, ("table_1b_cpu", "fl_2_0_25"), ("table_1a_cpu", "ce"), label="focal loss, 1,000 steps"),
    )


def accuracy(e: Evidence) -> Finding:
    value = e.glue(3, "accuracy")
    return check(f"“background” everywhere is right for {value:g} % of the anchors", value > 99)


CLAIMS = [
    Claim(
        "proposals-990-10",
        "Of 1,000 proposals of a two-stage detector about 10 show an object: 990 : 10.",
        "article 1, §2-1-1 (as an assumption)",
        "Holds if between half a per cent and two per cent of the proposals show an object, on both sets of images; "
        "in part if on one.",
        ("chapter:1#the-funnel-counted", "test:test_proposals.py::test_the_funnel_counts_every_step"),
        proposals,
    ),
    Claim(
        "proposals-lessen",
        "Region proposals lessen the imbalance before anything is classified.",
        "article 1, §2-3; paper, §3.4",
        "Holds if there is less background for each foreground box among the proposals than among the anchors, on "
        "both sets of images.",
        ("chapter:1#the-funnel-counted",),
        proposals_lessen,
    ),
    Claim(
        "minibatch-1-3",
        "The second stage trains on a minibatch with one foreground box to three of background.",
        "article 1, §2-3; paper, §3.4",
        "Holds if the sampled minibatch has at most 3.5 background boxes for each of foreground, on both sets of "
        "images; in part if on one.",
        (
            "chapter:1#training-both-stages",
            "test:test_proposals.py::test_the_second_stage_learns_from_three_backgrounds_for_each_foreground",
        ),
        one_to_three,
        "The ratio is a ceiling on the foreground. Where an image has few objects, background fills the batch.",
    ),
    Claim(
        "yolov2-845",
        "A one-stage detector with a 13 × 13 grid and five anchors sees 845 boxes: 835 of background to 10 objects.",
        "article 1, §2-1-2",
        "Holds if the count is right and the measured ratio lies within a factor of two of 835 : 10.",
        (
            "chapter:2#and-how-many-of-them-show-something",
            "test:test_anchors.py::test_grids_of_the_counting_chapter",
        ),
        yolo_boxes,
    ),
    Claim(
        "hundred-thousand",
        "A dense detector looks at about 100,000 boxes in an image.",
        "paper, §1 and §4",
        "Holds if RetinaNet at 600 pixels has between 50,000 and 200,000 anchors.",
        ("chapter:2#how-many-boxes-is-that", "test:test_anchors.py::test_an_800_by_1344_image_has_201600"),
        retinanet_boxes,
    ),
    Claim(
        "one-to-thousand",
        "Foreground to background is about 1 : 1000.",
        "paper, §3",
        "Holds if the measured ratios lie within a factor of three of it; in part if some do.",
        ("chapter:2#and-how-many-of-them-show-something", "test:test_imbalance.py::test_bccd_counts"),
        one_to_thousand,
        "COCO, of which the paper speaks, was not counted.",
    ),
    Claim(
        "easy-negatives",
        "Most of the background is easy: it has next to no loss and teaches next to nothing.",
        "paper, §2; article 1, §2-2-3; article 3",
        "Holds if more than 90 % of the background anchors are easy, by both measures.",
        ("chapter:3#two-ways-to-fail", "chapter:2#easy-negatives"),
        easy,
    ),
    Claim(
        "background-first",
        "A model that knows nothing first learns to answer “background”.",
        "article 1, §2-2-1",
        "Holds if 20 steps after a start at one half, both objects and background get a probability below 0.05 in "
        "every run.",
        ("chapter:3#what-a-model-that-knows-nothing-learns-first",),
        background_first,
    ),
    Claim(
        "ten-against-hundred",
        "The many small losses of the background outweigh the few large ones of the objects: 100 against 10.",
        "article 1, §2-2-2 and §7; article 2; paper, §3.2",
        "Holds if the objects have less than half of the cross entropy at the start and from step 50 on, in every "
        "run; in part if only at one of the two.",
        (
            "chapter:3#ten-against-a-hundred",
            "test:test_comparison.py::test_shares_are_those_of_the_losses_and_their_gradients",
        ),
        lambda e: outweighed(e, "loss"),
    ),
    Claim(
        "gradient-overwhelmed",
        "Easy background dominates the gradient of cross entropy.",
        "paper, §3.2; article 4",
        "Holds if the objects have less than half of the gradient by the logits at the start and from step 50 on, in "
        "every run; in part if only at one of the two.",
        (
            "chapter:3#ten-against-a-hundred",
            "test:test_comparison.py::test_shares_are_those_of_the_losses_and_their_gradients",
        ),
        lambda e: outweighed(e, "gradient"),
    ),
    Claim(
        "no-learning",
        "Under this imbalance a model does not learn the objects at all.",
        "article 1, §2-2-3",
        "Holds if cross entropy ends with an AP below 0.1 in every run, and in most of those from the roughest "
        "start; in part if one of the two is true. AP of the rough start counts every detection, however unsure.",
        ("chapter:3#not-learning-at-all",),
        no_learning,
    ),
    Claim(
        "inefficient",
        "The imbalance makes training inefficient: most examples are too easy to teach anything.",
        "article 1, §2-2-3; paper, §2",
        "By the paired differences in AP to cross entropy when easy background is left out, or turned down, in as many "
        "steps: holds if all are above zero, in part if some.",
        ("chapter:3#two-ways-to-fail", "chapter:3#hard-negative-mining", "chapter:15#table-1b-γ-each-with-its-best-α"),
        inefficient,
    ),
    Claim(
        "accuracy-99",
        "A model that always gives the frequent answer is right in 99 % of the cases and worth nothing.",
        "article 4, medical diagnosis",
        "Holds if “background” is right for more than 99 % of the anchors.",
        ("chapter:3#what-an-answer-costs",),
        accuracy,
    ),
    Claim(
        "two-stages-lead",
        "Two-stage detectors are more accurate than one-stage detectors trained with cross entropy.",
        "paper, §1; article 2",
        "By the paired difference in AP.",
        ("chapter:3#compared-on-one-task",),
        lambda e: better(e, FEW, "proposals", "ce"),
    ),
    Claim(
        "surpasses-two-stages",
        "With focal loss a one-stage detector surpasses two-stage detectors (39.1 against 36.8 AP, COCO test-dev).",
        "paper, abstract and Table 2; article 2",
        "By the paired difference in AP.",
        ("chapter:3#compared-on-one-task",),
        lambda e: better(e, FEW, "fl2", "proposals"),
        "Both tiny and from random weights, 800 steps.",
    ),
    Claim(
        "one-stage-faster",
        "One-stage detectors are faster: RetinaNet-101 at 600 pixels needs 122 ms an image, Faster R-CNN with the "
        "same backbone 172 ms.",
        "paper, §5.2; article 1, §2-1-2; articles 2 and 3",
        "The times are of one GPU and of programs that are not run here. Our two-stage model was built to be read, "
        "and a race with it would say nothing about either kind.",
    ),
]
