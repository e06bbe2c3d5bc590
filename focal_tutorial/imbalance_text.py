"""The imbalance report in words: tables of plain text, at most 100 columns, and what they mean."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from focal_tutorial.imbalance import ImbalanceReport
    from focal_tutorial.imbalance_counts import Spread

WIDTH = 84  # of wrapped sentences: the widest output that a page of the book shows whole
LISTED_CLASSES = 40  # classes in the text, those with most boxes
LISTED = 8  # unreached boxes in the text; the JSON has more


def report_text(report: ImbalanceReport, *, problems: int | None = 20) -> str:
    """The whole report as text.

    Args:
        problems: bad boxes and files to list before "… and n more"; `None` for all.
    """
    parts = [_head(report), _reading(report), _classes(report), _anchors(report)]
    if report.unreached:
        parts.append(_unreached(report))
    parts.append(_problems(report, problems))
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Sequence[str]], *, left: int = 1, indent: str = "  ") -> str:
    """Rows of equal length as aligned columns: the first `left` flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """A count or size for people: thousands separated, `digits` significant ones kept, no trailing zeros."""
    if value is None:
        return "–"
    if value == round(value) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(part: float, whole: float) -> str:
    """`part` of `whole` in per cent, with one digit below ten."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"


def findings(report: ImbalanceReport) -> list[str]:
    """What a person should know, in plain sentences, the gravest first."""
    said = [*_fatal(report), *_coverage(report), *_imbalance(report), *_rare(report), *_crowding(report)]
    if report.problems:
        kinds = Counter(problem["kind"] for problem in report.problems).most_common(3)
        listed = ", ".join(f"{count} × {kind}" for kind, count in kinds)
        count = len(report.problems)
        said.append(f"{count} problem{'s' * (count > 1)} in the data ({listed}): listed below with file and id.")
    return said


def _fatal(report: ImbalanceReport) -> list[str]:
    if report.boxes == 0:
        return ["There is no box to learn from: a detector trained on this finds nothing, and AP is undefined."]
    if report.ratio is None:
        return [
            "No anchor is foreground in any image: nothing can be learned, and AP will be 0. Change the anchors or "
            "the input size."
        ]
    if report.unreached >= report.boxes / 2:
        share = percent(report.unreached, report.boxes)
        return [f"{share} of the boxes are out of every anchor's reach: expect an AP near 0 for them."]
    return []


def _coverage(report: ImbalanceReport) -> list[str]:
    if not report.boxes:
        return []
    need = report.thresholds["foreground_iou"]
    if not report.unreached:
        return [f"Every box is reached by an anchor at IoU ≥ {need:g}."]
    nothing = f"overlap no anchor by IoU ≥ {need:g}: with the paper's matching they train nothing."
    usual = report.unreached / report.boxes
    hit = [row for row in report.classes if row.unreached > max(0.01, 2 * usual) * row.boxes]
    said = []
    for row in sorted(hit, key=lambda row: -row.unreached)[:3]:
        share = percent(row.unreached, row.boxes)
        said.append(f"{row.unreached:,} of {row.boxes:,} {row.name} boxes ({share}) {nothing}")
    if sum(row.unreached for row in hit) < 0.5 * report.unreached:
        share = percent(report.unreached, report.boxes)
        said.insert(0, f"{report.unreached:,} of {report.boxes:,} boxes ({share}) {nothing}")
    reason, count = next(iter(report.reasons.items()))
    low, high = report.levels[0].sides[0], report.levels[-1].sides[1]
    why = {
        "too small": f"smaller than the smallest anchor ({number(low)} px) can match",
        "too large": f"larger than the largest anchor ({number(high)} px) can match",
        "too elongated": f"longer or flatter than the anchors' ratios ({_ratios(report)})",
        "between anchors": "of a matching shape, but not near enough to an anchor's centre",
    }
    most = "All of these" if count == report.unreached else f"Most of these ({count:,} of {report.unreached:,})"
    said.append(f"{most} are {why[reason]}.{_advice(report)}")
    return said


def _advice(report: ImbalanceReport) -> str:
    """The cheapest change that gains at least half of what any gains, and the sizes that would do it."""
    gains = [report.unreached - change.unreached for change in report.changes]
    enough = max(0.5 * max(gains), 0.1 * report.unreached)
    texts = []
    s = report.smallest
    small = next(iter(report.reasons)) == "too small"  # most of them
    if s is not None and small and report.unreached - s.unreached >= enough:
        texts.append(f"anchors down to {number(s.side)} px on P{s.level} would leave {s.unreached:,}")
    for change, gain in zip(report.changes, gains, strict=True):
        if gain >= enough:
            texts.append(f"the change “{change.change}” would leave {change.unreached:,}")
            break
    return f" {'; '.join(texts)[0].upper()}{'; '.join(texts)[1:]}." if texts else ""


def _imbalance(report: ImbalanceReport) -> list[str]:
    if report.ratio is None or report.alpha is None:
        return []
    said = [
        f"1 : {number(report.ratio)}: for each foreground anchor {number(report.ratio)} background ones. A detector "
        f"that always says “background” is right on {100 * report.alpha:.2f} % of them, and plain cross entropy "
        f"rewards it for that: what focal loss is for. By inverse frequency alone α would be {report.alpha:.4f}."
    ]
    if report.images_without_foreground:
        said.append(f"{report.images_without_foreground:,} images have boxes but not one foreground anchor.")
    idle = [f"P{row.level}" for row in report.levels if row.foreground.max == 0]
    if idle and len(idle) < len(report.levels):
        said.append(f"{' and '.join(idle)}: no foreground anchor in any image, so only background is learned there.")
    return said


def _rare(report: ImbalanceReport) -> list[str]:
    said = []
    empty = [row.name for row in report.classes if row.boxes == 0]
    if empty and report.boxes:
        said.append(f"No box of {', '.join(empty[:5])}{' …' if len(empty) > 5 else ''}: the AP there is undefined.")
    present = sorted((row for row in report.classes if row.boxes), key=lambda row: row.boxes)
    if len(present) > 1 and present[-1].boxes >= 10 * present[0].boxes:
        most, least = present[-1], present[0]
        said.append(
            f"The classes are unequal too: {number(most.boxes / least.boxes)} times as many boxes of {most.name} as of "
            f"{least.name} ({least.boxes:,} in {least.images:,} images). Read the AP per class."
        )
    return said


def _crowding(report: ImbalanceReport) -> list[str]:
    if not report.crowded_out:
        return []
    return [
        f"{report.crowded_out:,} boxes are reached, but each of their anchors overlaps a neighbour more and goes to "
        "that one: crowded or nearly doubled boxes."
    ]


def _ratios(report: ImbalanceReport) -> str:
    return ", ".join(f"{ratio:.2g}" for ratio in report.anchors["ratios"])


def _head(report: ImbalanceReport) -> str:
    looked = "" if report.counted == report.images else f" (a sample of {report.counted:,}, evenly spread)"
    low, high = report.levels[0], report.levels[-1]
    return "\n".join(
        [
            f"Imbalance report: {report.dataset}",
            f"  {report.images:,} images{looked} · {report.boxes:,} boxes · {len(report.classes)} classes",
            f"  input    {report.input}",
            f"  anchors  P{low.level}–P{high.level}, strides {low.stride}–{high.stride}, sides {number(low.sides[0])}–"
            f"{number(high.sides[1])} px, ratios (h/w) {_ratios(report)}",
            f"           {report.anchors['per_location']} per location, {number(report.anchors_per_image)} per image",
        ]
    )


def _reading(report: ImbalanceReport) -> str:
    lines = [textwrap.fill(text, WIDTH, initial_indent="  - ", subsequent_indent="    ") for text in findings(report)]
    return "Reading\n" + "\n".join(lines)


def _classes(report: ImbalanceReport) -> str:
    rows = [["class", "boxes", "share", "images", "small", "medium", "large", "median side", "unreached"]]
    shown = report.classes
    if len(shown) > LISTED_CLASSES:
        shown = sorted(shown, key=lambda row: -row.boxes)[:LISTED_CLASSES]
    for row in shown:
        rows.append(
            [
                row.name[:24], f"{row.boxes:,}", percent(row.boxes, report.boxes), f"{row.images:,}",
                f"{row.small:,}", f"{row.medium:,}", f"{row.large:,}",
                f"{number(row.median_side)} px" if row.median_side is not None else "–",
                f"{row.unreached:,} ({percent(row.unreached, row.boxes)})" if row.boxes else "–",
            ]
        )  # fmt: skip
    if len(report.classes) > 1:
        sums = [f"{sum(getattr(row, key) for row in report.classes):,}" for key in ("small", "medium", "large")]
        rows.append(
            ["all", f"{report.boxes:,}", "", f"{report.counted - report.images_without_boxes:,}", *sums, "",
             f"{report.unreached:,} ({percent(report.unreached, report.boxes)})"]
        )  # fmt: skip
    need = report.thresholds["foreground_iou"]
    notes = [
        "small, medium, large: COCO's bins, area under 32², under 96², above, in the original image",
        "median side √(w·h) in the network's input",
        f"unreached: no anchor at IoU ≥ {need:g}",
    ]
    if len(shown) < len(report.classes):
        notes.append(f"{len(report.classes) - len(shown)} classes with fewer boxes are in the JSON")
    if report.images_without_boxes:
        notes.append(f"{report.images_without_boxes:,} images have no box")
    note = textwrap.fill("; ".join(notes), WIDTH, initial_indent="  ", subsequent_indent="  ")
    return f"Boxes per class\n{table(rows)}\n{note}"


def _spread(spread: Spread) -> list[str]:
    return [number(spread.mean), number(spread.median), f"{spread.min:,}–{spread.max:,}"]


def _anchors(report: ImbalanceReport) -> str:
    rows = [["level", "sides px", "anchors", "foreground", "median", "range", "ignored", "background", "1 : n"]]
    for row in report.levels:
        ratio = row.background.mean / row.foreground.mean if row.foreground.mean else None
        sides = f"{number(row.sides[0])}–{number(row.sides[1])}"
        rows.append(
            [f"P{row.level}", sides, number(row.anchors), *_spread(row.foreground), number(row.ignored.mean),
             number(row.background.mean), number(ratio)]
        )  # fmt: skip
    rows.append(
        ["all", "", number(report.anchors_per_image), *_spread(report.foreground), number(report.ignored.mean),
         number(report.background.mean), number(report.ratio)]
    )  # fmt: skip
    return f"Anchors per image (mean; of the foreground also median and range)\n{table(rows)}"


def _unreached(report: ImbalanceReport) -> str:
    need, low = report.thresholds["foreground_iou"], report.thresholds["background_iou"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.reasons.items())
    sizes = ", ".join(f"{count:,} {size}" for size, count in report.unreached_by_size.items() if count)
    lines = [
        f"Boxes no anchor reaches at IoU ≥ {need:g}: {report.unreached:,} of {report.boxes:,} "
        f"({percent(report.unreached, report.boxes)})",
        f"  why: {reasons}",
        f"  by COCO size: {sizes}",
        f"  the best-anchor rule would rescue {report.rescued[f'{low:g}']:,} of them from IoU {low:g} (Detectron), "
        f"{report.rescued['0']:,} at any IoU",
        "",
    ]
    rows = [["what would reach them", "anchors per image", "out of reach"]]
    for change in report.changes:
        name = "(as it is)" if change.change == "none" else change.change
        rows.append(
            [
                name,
                number(change.anchors),
                f"{change.unreached:,} ({percent(change.unreached, report.boxes)})",
            ]
        )
    if len(rows) == 2:
        rows.append(["(no change that was tried)", "", ""])
    lines.append(table(rows))
    if report.smallest is not None:
        s = report.smallest
        down = f"from {number(s.now)} px down to {number(s.side)} px on P{s.level} (stride {s.stride})"
        lines.append(f"  smallest anchors that would: {down}, {s.unreached:,} left")
    worst = [["worst", "id", "class", "width×height", "best IoU", "reason"]]
    for box in report.unreached_boxes[:LISTED]:
        size = f"{box.width:g}×{box.height:g}"
        worst.append([box.file[-36:], str(box.id), box.name[:16], size, f"{box.best_iou:.2f}", box.reason])
    return "\n".join([*lines, "", table(worst, left=3)])


def _problems(report: ImbalanceReport, limit: int | None) -> str:
    if not report.problems:
        return "Problems in the data: none"
    shown = report.problems[:limit]
    lines = []
    for problem in shown:
        where = problem["file"] if problem["id"] is None else f"{problem['file']}, id {problem['id']}"
        lines.append(textwrap.fill(f"{where}: {problem['kind']}: {problem['detail']}", WIDTH,
                                   initial_indent="  ", subsequent_indent="    "))  # fmt: skip
    if len(shown) < len(report.problems):
        lines.append(f"  … and {len(report.problems) - len(shown):,} more (all of them in the JSON)")
    return f"Problems in the data: {len(report.problems)}\n" + "\n".join(lines)
