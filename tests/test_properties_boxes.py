"""Properties of boxes and anchors: coder and clipping against formulas, grids against a loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import example
from hypothesis import strategies as st
from property_helpers import JUNK, REFUSED, WILD_FLOATS, attempt, fuzz
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.boxes import MAX_LOG_RATIO, clip_boxes, decode_boxes, encode_boxes

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIDE = st.floats(0.25, 500)
CORNER = st.floats(-1000, 1000)


@st.composite
def boxes(draw: st.DrawFn, count: int) -> list[list[float]]:
    """Boxes with an area, sides from 16 to 64: an encoding far from the clamp."""
    corners = [(draw(CORNER), draw(CORNER), draw(st.floats(16, 64)), draw(st.floats(16, 64))) for _ in range(count)]
    return [[x, y, x + w, y + h] for x, y, w, h in corners]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    count = draw(st.integers(0, 4))
    return draw(boxes(count)), draw(boxes(count))


def centre_size(box: list[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


@fuzz("boxes: encode and decode", pair=pairs(), dtype=st.sampled_from(FLOATS), shift=CORNER, scale=st.floats(0.5, 2))
def test_encoding_is_the_formula_and_decoding_its_inverse(pair: Any, dtype: torch.dtype, shift: float, scale: float):
    given, anchors = (torch.tensor(part, dtype=dtype).reshape(-1, 4) for part in pair)
    eps = torch.finfo(dtype).eps
    given, anchors = (torch.where(sized(part), part, part.new_tensor([0, 0, 16, 16])) for part in (given, anchors))
    deltas = encode_boxes(given, anchors)
    assert deltas.dtype == dtype and deltas.shape == given.shape
    for got, box, anchor in zip(deltas.tolist(), given.tolist(), anchors.tolist(), strict=True):
        (x, y, w, h), (xa, ya, wa, ha) = centre_size(box), centre_size(anchor)
        wanted = ((x - xa) / wa, (y - ya) / ha, math.log(w / wa), math.log(h / ha))
        slack = 8 * eps * (1 + max(map(abs, (*box, *anchor))) / min(wa, ha, w, h))
        assert all(abs(a - b) <= slack + 4 * eps * abs(b) for a, b in zip(got, wanted, strict=True)), (got, wanted)
    back = decode_boxes(deltas, anchors)
    slack = 32 * eps * (given.abs().amax(1, keepdim=True) + anchors.abs().amax(1, keepdim=True) + 64)
    assert ((back - given).abs() <= slack).all(), (back, given)
    if dtype == torch.float64:  # neither a shift of both nor a change of scale matters to the deltas
        torch.testing.assert_close(
            encode_boxes(given * scale + shift, anchors * scale + shift), deltas, rtol=0, atol=1e-9
        )


def sized(part: Tensor) -> Tensor:
    """Rows that have kept their size in a coarse dtype."""
    return ((part[:, 2:] - part[:, :2]) >= 8).all(1, keepdim=True)


@fuzz(
    "boxes: decode any deltas",
    deltas=st.lists(st.tuples(*[WILD_FLOATS] * 4), max_size=4),
    anchor=st.tuples(CORNER, CORNER, SIDE, SIDE),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@example(deltas=[(0.0, 0.0, 1.0, math.nan)], anchor=(0.0, 0.0, 1.0, 1.0), dtype=torch.float32)
@example(deltas=[(0.0, 0.0, math.inf, -math.inf)], anchor=(0.0, 0.0, 10.0, 10.0), dtype=torch.float32)
def test_any_deltas_decode_to_the_formula(deltas: Any, anchor: Any, dtype: torch.dtype):
    x, y, w, h = anchor
    anchors = torch.tensor([[x, y, x + w, y + h]], dtype=dtype)
    rows = torch.tensor(deltas, dtype=torch.float64).reshape(-1, 4).to(dtype)
    got = decode_boxes(rows, anchors)
    xa, ya, wa, ha = (torch.tensor(v, dtype=torch.float64) for v in centre_size(anchors[0].tolist()))
    dx, dy, dw, dh = rows.double().unbind(1)
    cx, cy = dx * wa + xa, dy * ha + ya
    half_w, half_h = (s * d.minimum(d.new_tensor(MAX_LOG_RATIO)).exp() / 2 for s, d in ((wa, dw), (ha, dh)))
    wanted = torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], dim=1)
    halves = torch.stack([half_w, half_h] * 2, dim=1)
    slack = 64 * torch.finfo(dtype).eps * (wanted.abs() + halves + abs(x) + abs(y) + w + h)
    equal = (got.double() - wanted).abs() <= slack
    same = equal | (got.double() == wanted.to(dtype).double()) | (got.isnan() & wanted.isnan())
    edge = wanted.abs() > torch.finfo(dtype).max / 2  # there an intermediate result may be infinite already
    assert (same | edge).all(), (got, wanted)


@fuzz(
    "boxes: clip",
    rows=st.lists(st.tuples(*[WILD_FLOATS] * 4), max_size=4),
    size=st.tuples(st.integers(-2, 3000), st.integers(-2, 3000)),
    dtype=st.sampled_from(FLOATS),
)
def test_clipping_is_a_minimum_and_a_maximum(rows: Any, size: tuple[int, int], dtype: torch.dtype):
    given = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).to(dtype)
    got = attempt(lambda: clip_boxes(given, size), "size", valid=min(size) >= 0)
    if got is REFUSED:
        return
    limits = torch.tensor([size[1], size[0]] * 2, dtype=dtype).tolist()  # as this dtype writes them
    for row, before in zip(got.tolist(), given.tolist(), strict=True):
        for value, old, limit in zip(row, before, limits, strict=True):
            assert value == min(max(old, 0), limit) or (math.isnan(old) and math.isnan(value))
    assert got.dtype == dtype and torch.equal(clip_boxes(got, size).nan_to_num(-1), got.nan_to_num(-1))


DTYPES = [*FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16]
TENSORS = st.builds(
    lambda shape, dtype: torch.arange(1, math.prod(shape) + 1).reshape(shape).to(dtype),
    st.lists(st.integers(0, 4), max_size=3).map(lambda s: (*s, 4)) | st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(DTYPES),
)

ROWS = st.lists(st.integers(1, 3), max_size=2).map(lambda shape: torch.ones(*shape, 4))


@fuzz(
    "boxes: malformed",
    call=st.sampled_from([encode_boxes, decode_boxes, clip_boxes]),
    one=ROWS | TENSORS | JUNK,
    two=ROWS | ROWS | TENSORS | JUNK,
    size=st.tuples(st.integers(0, 9), st.integers(0, 9)) | JUNK | st.tuples(JUNK, JUNK),
)
@example(call=encode_boxes, one=torch.zeros(3, 4), two=torch.zeros(2, 4), size=None)
@example(call=encode_boxes, one=torch.tensor([[9, 9, 4, 4]], dtype=torch.uint8), two=torch.ones(2, 4) * 3, size=None)
@example(call=clip_boxes, one=torch.zeros(1, 4), two=None, size=(10**400, 1))
@example(call=clip_boxes, one=torch.zeros(1, 4), two=None, size=[0, 0])
@example(call=clip_boxes, one=torch.zeros(1, 4), two=None, size=5)
def test_malformed_boxes_are_named(call: Any, one: Any, two: Any, size: Any):
    clip = call is clip_boxes
    parts = [one] if clip else [one, two]
    real = all(isinstance(p, Tensor) and p.ndim and p.shape[-1] == 4 and p.dtype in DTYPES[:8] for p in parts)
    shape = None
    if real:
        try:
            shape = torch.broadcast_shapes(*(p.shape for p in parts))
        except RuntimeError:
            real = False
    if clip:
        usable = isinstance(size, tuple | list) and len(size) == 2 and all(type(s) in (int, float) for s in size)
        real = real and usable and all(0 <= s < 2**63 for s in size)
    names = ("boxes:", "size:") if clip else ("boxes", "anchors", "deltas")
    got = attempt(lambda: call(one, size if clip else two), *names, valid=real)
    if got is not REFUSED:
        assert got.shape == shape and got.is_floating_point()
        if call is decode_boxes and not any(p.dtype in FLOATS for p in parts):  # whole numbers mean what they say
            assert torch.equal(got, decode_boxes(one.float(), two.float()))


# ---------------------------------------------------------------- anchors
NUMBERS = st.lists(st.floats(0.2, 5), min_size=1, max_size=3)


@fuzz(
    "anchors: grid",
    levels=st.lists(st.integers(2, 7), min_size=1, max_size=3, unique=True),
    ratios=NUMBERS,
    scales=NUMBERS,
    base=st.none() | st.floats(4, 600),
    centre=st.floats(-1, 1),
    image=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_the_grid_is_that_of_a_loop(levels: Any, ratios: Any, scales: Any, base: Any, centre: float, image: Any):
    sizes = None if base is None else [base * (i + 1) for i in range(len(levels))]
    made = AnchorGenerator(levels, sizes, ratios, scales, centre=centre)
    got = made(image, dtype=torch.float64)
    assert made.num_anchors == len(ratios) * len(scales)
    for i, (level, rows) in enumerate(zip(levels, got, strict=True)):
        stride, side = 2**level, 4 * 2**level if sizes is None else sizes[i]
        wanted = []
        for y in range(math.ceil(image[0] / stride)):
            for x in range(math.ceil(image[1] / stride)):
                for ratio in ratios:
                    for scale in scales:
                        h, w = side * scale * math.sqrt(ratio), side * scale / math.sqrt(ratio)
                        cy, cx = (y + centre) * stride, (x + centre) * stride
                        wanted.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        torch.testing.assert_close(rows, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-9)
    assert made(image) is made(image)


@fuzz(
    "anchors: as torchvision",
    levels=st.lists(st.integers(3, 6), min_size=1, max_size=3, unique=True).map(sorted),
    ratios=NUMBERS,
    scales=NUMBERS,
    cells=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_the_compatible_grid_is_torchvisions(levels: Any, ratios: Any, scales: Any, cells: tuple[int, int]):
    image = cells[0] * 64, cells[1] * 64
    got = AnchorGenerator(levels, None, ratios, scales, centre=0.0, torchvision_compat=True)(image)
    sizes = tuple(tuple(int(4 * 2**level * s) for s in scales) for level in levels)
    theirs = TorchvisionAnchors(sizes, tuple(tuple(ratios) for _ in levels))
    maps = [torch.zeros(1, 1, image[0] // 2**level, image[1] // 2**level) for level in levels]
    wanted = theirs(ImageList(torch.zeros(1, 3, *image), [image]), maps)[0]
    assert torch.equal(torch.cat(got), wanted)


@fuzz(
    "anchors: malformed",
    field=st.sampled_from(["levels", "sizes", "ratios", "scales", "centre", "image_size", "dtype"]),
    value=JUNK | st.lists(JUNK, min_size=1, max_size=3) | st.lists(st.floats(), min_size=1, max_size=3),
    compat=st.booleans(),
)
@example(field="sizes", value=[math.inf, 1.0], compat=False)
@example(field="levels", value=[-1], compat=False)
@example(field="levels", value=[2000], compat=False)
@example(field="ratios", value=[], compat=False)
@example(field="centre", value=math.nan, compat=False)
@example(field="image_size", value=[-64, 64], compat=False)
@example(field="image_size", value=[0, 64], compat=True)
@example(field="sizes", value=[0.5, 8.0], compat=True)
@example(field="scales", value=[2e307], compat=True)
@example(field="dtype", value=torch.int64, compat=False)
def test_malformed_anchor_settings_are_named(field: str, value: Any, compat: bool):
    setting: dict[str, Any] = {"levels": [3, 4], "sizes": [8.0, 16.0], "ratios": [1.0], "scales": [1.0], "centre": 0.5}
    call: dict[str, Any] = {"image_size": (64, 32), "dtype": torch.float32}
    (setting if field in setting else call)[field] = value
    if field == "levels":
        setting["sizes"] = None

    def make() -> list[Tensor]:
        return AnchorGenerator(**setting, torchvision_compat=compat)(call["image_size"], dtype=call["dtype"])

    got = attempt(make, field)
    if got is not REFUSED:
        rows = torch.cat(got)
        assert rows.isfinite().all() and len(rows) and rows.is_floating_point()
        assert (rows[:, 2:] > rows[:, :2]).all()
