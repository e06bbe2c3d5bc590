"""Properties of matching and sampling: against a loop over boxes with fractions, and under boxes of any kind."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from hypothesis import example
from hypothesis import strategies as st
from property_helpers import JUNK, REFUSED, WILD_FLOATS, attempt, fuzz
from torch import Tensor
from torchvision.ops import box_iou, nms

from focal_tutorial.matching import BACKGROUND, IGNORE, match_anchors, match_iou, pairwise_iou
from focal_tutorial.sampling import mine_hard_negatives, mine_online, sample_balanced

CELL = st.integers(0, 24)  # whole pixels so few that fractions which differ also differ in float32
BOXES = st.lists(st.tuples(CELL, CELL, CELL, CELL), max_size=40)
THRESHOLDS = st.tuples(*[st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0])] * 2).map(sorted)
LOW = st.none() | st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])


def fraction_iou(a: Any, b: Any) -> Fraction:
    """IoU of two boxes with whole coordinates, 0 where one of them is turned inside out."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - inside
    return Fraction(inside, union) if inside else Fraction(0)


def matched(iou: list[list[Any]], anchors: int, foreground: Any, background: Any, low: Any) -> list[int]:
    """The rule of §4 by two loops: `iou[m][r]`."""
    result = []
    for r in range(anchors):
        column = [row[r] for row in iou]
        best = max(column, default=0)
        rescued = low is not None and any(row[r] == max(row) and row[r] > 0 and row[r] >= low for row in iou)
        if best >= foreground or rescued:
            result.append(column.index(best) if column else 0)
        else:
            result.append(IGNORE if best >= background else BACKGROUND)
    return result


def exact(value: float | None) -> Fraction | None:
    return None if value is None else Fraction(str(value))


@fuzz(
    "matching: brute force",
    anchors=BOXES,
    boxes=BOXES,
    thresholds=THRESHOLDS,
    low=LOW,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    copies=st.sampled_from([1, 1, 2, 17]),
)
@example(
    anchors=[(0, 0, 8, 8)], boxes=[(0, 0, 8, 7)], thresholds=(0.4, 0.5), low=None, dtype=torch.float32, copies=17
)  # fmt: skip
def test_matching_is_the_rule_in_fractions(
    anchors: Any, boxes: Any, thresholds: Any, low: Any, dtype: torch.dtype, copies: int
):
    """Copies of a box tie, also with one of another block of `CHUNK`; the first wins."""
    boxes = (boxes * copies)[:40]
    background, foreground = thresholds[0], max(thresholds[1], 0.1)
    grid = torch.tensor(anchors, dtype=dtype).reshape(-1, 4)
    given = torch.tensor(boxes, dtype=dtype).reshape(-1, 4)
    iou = [[fraction_iou(b, a) for a in anchors] for b in boxes]
    got = pairwise_iou(given, grid)
    torch.testing.assert_close(
        got.double(),
        torch.tensor([float(v) for row in iou for v in row]).double().reshape(got.shape),
        rtol=1e-6,
        atol=0,
    )
    matches = match_anchors(grid, given, foreground, background, low)
    wanted = matched(iou, len(anchors), exact(foreground), exact(background), exact(low))
    assert matches.tolist() == wanted and matches.dtype == torch.int64
    assert torch.equal(match_iou(got, foreground, background, low), matches)
    backwards = match_anchors(grid.flip(0), given, foreground, background, low)
    assert torch.equal(backwards.flip(0), matches)  # no anchor cares where it stands
    plain = (grid[:, 2:] > grid[:, :2]).all(1), (given[:, 2:] > given[:, :2]).all(1)
    theirs = box_iou(given[plain[1]], grid[plain[0]])
    torch.testing.assert_close(got[plain[1]][:, plain[0]], theirs)


@fuzz(
    "matching: IoU matrix",
    rows=st.lists(st.lists(st.integers(0, 20), min_size=6, max_size=6), max_size=35),
    anchors=st.integers(0, 6),
    thresholds=THRESHOLDS,
    low=LOW,
)
def test_ious_at_hand_are_matched_by_the_rule(rows: Any, anchors: int, thresholds: Any, low: Any):
    background, foreground = max(thresholds[0], 0.1), max(thresholds[1], 0.1)
    iou = [[v / 20 for v in row[:anchors]] for row in rows]
    matrix = torch.tensor(iou, dtype=torch.float64).reshape(len(rows), anchors)
    got = match_iou(matrix, foreground, background, low)
    assert got.tolist() == matched(iou, anchors, foreground, background, low)


@fuzz(
    "matching: wild boxes",
    anchors=BOXES,
    boxes=st.lists(st.tuples(CELL, CELL, CELL, CELL), max_size=20),
    wild=st.lists(st.tuples(*[WILD_FLOATS] * 4), max_size=20),
    place=st.integers(0, 20),
    low=LOW,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
@example(
    anchors=[(0, 0, 8, 8)],
    boxes=[(0, 0, 8, 8)],
    wild=[(1e300, 0.0, 1e301, 1.0)],
    place=0,
    low=None,
    dtype=torch.float32,
)
def test_a_wild_box_hides_no_other(anchors: Any, boxes: Any, wild: Any, place: int, low: Any, dtype: torch.dtype):
    """Boxes of any floats among good ones: those that overlap no anchor change nothing but the numbering."""
    grid = torch.tensor(anchors, dtype=dtype).reshape(-1, 4)
    good = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    strange = torch.tensor(wild, dtype=torch.float64).reshape(-1, 4)
    usable = strange.to(grid.dtype).isfinite().all(1)
    inside = usable & (strange[:, 2:] > 0).all(1) & (strange[:, :2] < 24).all(1)
    strange = torch.where(inside[:, None], math.nan, strange)  # what could overlap an anchor is made unusable
    place = min(place, len(good))
    mixed = torch.cat([good[:place], strange, good[place:]])
    got = match_anchors(grid, mixed, 0.5, 0.4, low)
    alone = match_anchors(grid, good, 0.5, 0.4, low)
    assert torch.equal(got, torch.where(alone >= place, alone + len(strange), alone))


@fuzz(
    "matching: malformed",
    call=st.sampled_from([match_anchors, match_iou]),
    shapes=st.tuples(*[st.lists(st.integers(0, 4), max_size=3)] * 2) | st.just(((3, 4), (2, 4))),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64])] * 2)
    | st.just((torch.float32, torch.float32)),
    thresholds=st.fixed_dictionaries(
        {}, optional={k: JUNK | st.floats(0, 1) for k in ("foreground_iou", "background_iou", "low_quality_iou")}
    ),
    junk=st.none() | JUNK,
)
@example(call=match_anchors, shapes=((3, 4), (2, 4)), dtypes=(torch.int64, torch.float32), thresholds={}, junk=None)
@example(
    call=match_iou, shapes=((3, 4), (2, 4)), dtypes=(torch.float32,) * 2,
    thresholds={"low_quality_iou": math.nan}, junk=None,
)  # fmt: skip
def test_malformed_boxes_and_thresholds_are_named(call: Any, shapes: Any, dtypes: Any, thresholds: Any, junk: Any):
    tensors = [torch.zeros(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    given: list[Any] = tensors if call is match_anchors else tensors[:1]
    if junk is not None:
        given[-1] = junk
    limits = {"foreground_iou": 0.5, "background_iou": 0.4, "low_quality_iou": None, **thresholds}
    numbers = [v for k, v in limits.items() if v is not None or k != "low_quality_iou"]
    real = all(type(v) in (int, float) and 0 <= v <= 1 for v in numbers) and limits["foreground_iou"] > 0
    real = real and limits["background_iou"] <= limits["foreground_iou"]
    for g in given:
        real = real and isinstance(g, Tensor) and g.ndim == 2 and g.dtype in (torch.float32, torch.float64)
        real = real and (call is match_iou or g.shape[1] == 4)
    got = attempt(lambda: call(*given, **thresholds), "anchors", "boxes", "iou", valid=real)
    if got is not REFUSED:
        assert got.shape == (given[0].shape[0 if call is match_anchors else 1],)


# ---------------------------------------------------------------- sampling
@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (N, R), distinct losses (N, R), infinite ones at times, and boxes (R, 4)."""
    images, anchors = draw(st.integers(0, 3)), draw(st.integers(0, 20))
    size = images * anchors
    labels = draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size))
    order = draw(st.permutations(range(size)))
    losses = torch.tensor(order, dtype=torch.float32).reshape(images, anchors)
    if draw(st.booleans()):
        losses[losses == size - 1] = math.inf
        losses[losses == 0] = -math.inf
    corners = draw(st.lists(st.tuples(CELL, CELL), min_size=anchors, max_size=anchors))
    boxes = torch.tensor([(x, y, x + 8, y + 8) for x, y in corners]).float().reshape(-1, 4)
    return torch.tensor(labels, dtype=torch.int64).reshape(images, anchors), losses, boxes


def hardest(losses: list[float], allowed: list[int], count: int) -> set[int]:
    return set(sorted(allowed, key=lambda r: -losses[r])[:count])


@fuzz(
    "sampling: which anchors stay",
    data=scored(),
    batch=st.integers(0, 12),
    share=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ratio=st.sampled_from([0.0, 1.0, 3.0]),
    minimum=st.integers(0, 3),
    overlap=st.none() | st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    shared=st.booleans(),
)
def test_samplers_keep_what_they_promise(
    data: Any, batch: int, share: float, ratio: float, minimum: int, overlap: float | None, shared: bool
):
    labels, losses, boxes = data
    balanced = sample_balanced(labels, batch, share, torch.Generator().manual_seed(0))
    hard = mine_hard_negatives(losses, labels, ratio, minimum)
    online = mine_online(losses, labels, boxes, batch, overlap, share if shared else None)
    for i, row in enumerate(labels.tolist()):
        kept = [{r for r, v in enumerate(s[i].tolist()) if v != IGNORE} for s in (balanced, hard, online)]
        for sampled in (balanced, hard, online):
            assert all(v in (IGNORE, row[r]) for r, v in enumerate(sampled[i].tolist()))
        foreground = [r for r, v in enumerate(row) if v >= 0]
        negatives = [r for r, v in enumerate(row) if v == BACKGROUND]
        few = min(int(batch * share), len(foreground))
        assert len(kept[0] & set(foreground)) == few
        assert len(kept[0]) == few + min(batch - few, len(negatives))
        loss = losses[i].tolist()
        wanted = max(minimum, round(ratio * len(foreground)))
        assert kept[1] == set(foreground) | hardest(loss, negatives, wanted)
        allowed = [r for r, v in enumerate(row) if v != IGNORE]
        if overlap is not None and allowed:
            allowed = [allowed[k] for k in nms(boxes[allowed], losses[i][allowed], overlap).tolist()]
        if shared:
            front = hardest(loss, [r for r in allowed if row[r] >= 0], int(batch * share))
            rest = hardest(loss, [r for r in allowed if row[r] == BACKGROUND], batch - len(front))
            assert kept[2] == front | rest
        else:
            assert kept[2] == hardest(loss, allowed, batch)


GOOD = {
    "labels": torch.tensor([[0, -1, -2]]), "losses": torch.tensor([[1.0, 2.0, 0.5]]),
    "boxes": torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9], [20, 20, 28, 28]]), "batch_size": 2, "minimum": 1,
    "foreground_fraction": 0.5, "ratio": 3.0, "nms_iou": 0.7,
}  # fmt: skip
OTHER = [
    torch.zeros(3),
    torch.zeros(1, 3),
    torch.zeros(1, 2),
    torch.zeros(3).long(),
    torch.rand(2, 4),
    torch.ones(1, 3) * 1j,
]
SAMPLERS = {
    sample_balanced: ("labels", "batch_size", "foreground_fraction"),
    mine_hard_negatives: ("losses", "labels", "ratio", "minimum"),
    mine_online: ("losses", "labels", "boxes", "batch_size", "nms_iou", "foreground_fraction"),
}


@fuzz(
    "sampling: malformed",
    call=st.sampled_from(list(SAMPLERS)),
    changes=st.dictionaries(
        st.sampled_from(sorted(GOOD)), JUNK | st.sampled_from(OTHER) | st.floats(0, 2), min_size=1, max_size=2
    ),
)
@example(call=mine_hard_negatives, changes={"losses": None})
@example(call=mine_online, changes={"losses": torch.zeros(1, 2)})
def test_malformed_samples_are_named(call: Any, changes: Any):
    given = {name: {**GOOD, **changes}[name] for name in SAMPLERS[call]}
    got = attempt(lambda: call(**given), *GOOD)
    if got is REFUSED:
        assert set(changes) & set(given), "refused for nothing"
        return
    labels, losses = given["labels"], given.get("losses", given["labels"])
    assert got.shape == labels.shape == losses.shape and ((got == labels) | (got == IGNORE)).all()
    for name in set(given) - {"labels", "losses", "boxes"}:
        value = given[name]
        assert (value is None and name in ("nms_iou", "foreground_fraction")) or (0 <= value < math.inf)
