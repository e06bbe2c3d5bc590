"""Claims about RetinaNet, and about where focal loss is used."""

from __future__ import annotations

import re

from claims_evidence import Claim, Evidence, Finding, Verdict, check


def without_p2(e: Evidence) -> Finding:
    times = e.glue(9, "p2")
    return check(f"with P2 the network would take {times:g} times the multiply–adds", times > 2)


def class_agnostic(e: Evidence) -> Finding:
    (one,), (each,) = (
        e.printed(10, rf"{name}\s+([\d.]+) M parameters") for name in ("as in the paper", "one box per class")
    )
    figure = f"{one:g} million weights in the head with one box an anchor, {each:g} million with one for each class"
    return Finding(figure, Verdict.PART if one < each else Verdict.FAILS)


def threshold_is_free(e: Evidence) -> Finding:
    none, some, saved = e.glue(12, "ap_0"), e.glue(12, "ap_5"), e.glue(12, "factor")
    figure = (
        f"AP {none:.1f} without a threshold and {some:.1f} with 0.05; threshold and top-k make the rest "
        f"{saved:.0f} times faster"
    )
    return check(figure, abs(none - some) <= 0.1, saved > 1)


def threshold_trades(e: Evidence) -> Finding:
    low, high = ([e.glue(2, f"{what}_{at}") for what in ("precision", "recall")] for at in ("low", "high"))
    figure = "a low threshold: precision {:g} %, recall {:g} %; a high one: {:g} % and {:g} %".format(*low, *high)
    return check(figure, low[0] < high[0], low[1] > high[1])


def nms_removes(e: Evidence) -> Finding:
    doubles, left = e.glue(2, "nms_doubles_none"), e.glue(2, "nms_doubles_usual")
    recall = e.glue(2, "nms_recall_none"), e.glue(2, "nms_recall_usual")
    figure = f"doubles an image: {doubles:g} without and {left:g} with NMS; recall {recall[0]:g} % and {recall[1]:g} %"
    return check(figure, left < doubles / 10, recall[0] - recall[1] < 5)


def where_not_what(e: Evidence) -> Finding:
    rows = {
        name: e.printed(7, rf"{name}\s+boxes: ([\d,]+) foreground anchors, (\d+) others") for name in ("giou", "ciou")
    }
    objects, background = e.printed(7, r"class loss: ([\d,]+) foreground, ([\d,]+) background")
    foreground, others = rows["giou"]
    figure = (
        f"GIoU pulls at {foreground:,.0f} foreground anchors and {others:.0f} others; the class loss at "
        f"{objects:,.0f} of foreground "
        f"and {background:,.0f} of background"
    )
    return check(figure, all(other == 0 for _, other in rows.values()), background > 0)


def yolo_losses(e: Evidence) -> Finding:
    rows = [line.split("|")[1:-1] for line in e.text(7).splitlines() if re.match(r"\| (YOLO|PP-YOLO|RTM)", line)]
    classes = [row[1] for row in rows]
    kin = sum(bool(re.search(r"varifocal|quality focal", text)) for text in classes)
    plain = sum("focal" in text and "off" not in text for text in classes) - kin
    (named,) = (text.split(" {cite")[0].strip() for text in classes if "YOLO26" in rows[classes.index(text)][0])
    figure = (
        f"of {len(rows)} families, {plain} train with focal loss by default, {kin} with a variant, all with "
        f"an IoU loss for boxes; YOLO11 and YOLO26 have {named}"
    )
    boxes = all("IoU" in row[2] or "same" in row[1] for row in rows)
    return check(figure, boxes, plain + kin == len(rows))


CLAIMS = [
    Claim(
        "no-p2",
        "There is no P2 because it would cost too much.",
        "paper, §4",
        "Holds if P2 would more than double the multiply–adds of the whole network.",
        ("chapter:9#why-there-is-no-p2",),
        without_p2,
    ),
    Claim(
        "class-agnostic-boxes",
        "One box an anchor, whatever its class, needs fewer weights and is equally effective.",
        "paper, §4",
        "In part if the head has fewer weights. Whether it is as effective was not tested here.",
        ("chapter:10#two-towers-four-layers-one-box",),
        class_agnostic,
    ),
    Claim(
        "threshold-speed",
        "Keeping only scores above 0.05, and 1,000 a level, makes inference faster.",
        "paper, §4.1",
        "Holds if it is faster and costs at most a tenth of a point of AP; in part if one of the two.",
        ("chapter:12#what-the-threshold-of-005-does-to-ap", "test:test_detections.py::test_threshold_and_top_k"),
        threshold_is_free,
    ),
    Claim(
        "threshold-trades",
        "Too high a confidence threshold misses objects, too low a one brings wrong detections.",
        "article 3, step 6",
        "Holds if the higher of two thresholds has the higher precision and the lower recall.",
        ("chapter:2#step-6-the-confidence-threshold", "explorer:explorer-thresholds"),
        threshold_trades,
    ),
    Claim(
        "nms",
        "Non-maximum suppression removes overlapping boxes and keeps the most probable.",
        "article 3, step 7",
        "Holds if it removes nine of ten doubles and costs less than five points of recall; in part if one of the two.",
        (
            "chapter:2#step-7-non-maximum-suppression",
            "test:test_detections.py::test_overlapping_detections_of_one_class_are_suppressed_and_of_two_are_not",
        ),
        nms_removes,
    ),
    Claim(
        "where-not-what",
        "Focal loss is for what an object is, IoU losses for where it is.",
        "article 4",
        "Holds if IoU losses pull at no background anchor, and the class loss does.",
        (
            "chapter:7#where-not-what-the-losses-for-boxes",
            "test:test_criterion.py::test_iou_losses_vanish_at_the_truth_and_only_there",
        ),
        where_not_what,
    ),
    Claim(
        "yolo-focal",
        "Current detectors such as YOLO11 and YOLO26 combine focal loss, or a variant of it, with an IoU loss.",
        "article 4",
        "Counted in the table of chapter 7, which was read off public code: holds if all of them do both by default; "
        "in part if all have an IoU loss.",
        ("chapter:7#what-todays-detectors-train-with",),
        yolo_losses,
    ),
    Claim(
        "coco-ap",
        "RetinaNet reaches 39.1 AP with ResNet-101 and 40.8 with ResNeXt-101 (COCO test-dev).",
        "paper, Table 2",
        "It takes COCO, eight GPUs and a day or more. Chapter 11 has the command and what it would cost.",
        ("chapter:11#the-full-run",),
    ),
    Claim(
        "other-fields",
        "In medical images focal loss greatly improves the recall of rare lesions; in driving it makes sure that "
        "small and distant obstacles are not missed.",
        "article 4",
        "Nothing in this book measures it yet.",
    ),
]
