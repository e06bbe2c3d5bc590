"""Properties of what goes into a model and comes out: images, targets, losses, detections, against plain loops."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import example
from hypothesis import strategies as st
from property_helpers import JUNK, REFUSED, WILD_FLOATS, attempt, fuzz
from test_properties_matching import fraction_iou, matched
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from focal_tutorial.boxes import encode_boxes
from focal_tutorial.detections import detect_image
from focal_tutorial.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from focal_tutorial.retinanet import retinanet_tiny

SIDE = st.integers(1, 40)
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def image(height: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    return (pixels * 255).to(torch.uint8) if dtype == torch.uint8 else pixels.to(dtype)


@fuzz(
    "model: preprocess",
    sides=st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=3),
    dtype=st.sampled_from([*FLOATS, torch.uint8]),
    rule=st.one_of(
        st.fixed_dictionaries({"min_size": st.none() | st.integers(1, 60), "max_size": st.integers(1, 80)}),
        st.fixed_dictionaries({"canvas": st.tuples(st.integers(1, 60), st.integers(1, 60))}),
    ),
    divisible=st.integers(1, 33),
    antialias=st.booleans(),
    stacked=st.booleans(),
    box=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_images_are_normalised_resized_and_padded(
    sides: Any, dtype: torch.dtype, rule: Any, divisible: int, antialias: bool, stacked: bool, box: Any
):
    sides = [sides[0]] * len(sides) if stacked else sides
    images = [image(h, w, dtype, i) for i, (h, w) in enumerate(sides)]
    preprocess = Preprocess(**rule, size_divisible=divisible, antialias=antialias)
    targets = [{"boxes": torch.tensor([box]) * w, "labels": torch.tensor([0])} for _, w in sides]
    batch, sizes, before, moved = preprocess(torch.stack(images) if stacked else images, targets)
    assert before == sides and batch.dtype == torch.float32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for i, (h, w) in enumerate(sides):
        if "canvas" in rule:
            scale = min(rule["canvas"][0] / h, rule["canvas"][1] / w)
            wanted = max(1, round(h * scale)), max(1, round(w * scale))
        else:
            low = rule["min_size"]
            scale = 1 if low is None else min(low / min(h, w), rule["max_size"] / max(h, w))
            wanted = (h, w) if low is None else (max(1, math.floor(h * scale)), max(1, math.floor(w * scale)))
        assert sizes[i] == wanted
        pixels = (images[i].float() / (255 if dtype == torch.uint8 else 1) - mean) / std
        if wanted != (h, w):
            pixels = F.interpolate(pixels[None], size=wanted, mode="bilinear", antialias=antialias)[0]
        inside = batch[i, :, : wanted[0], : wanted[1]]
        torch.testing.assert_close(inside, pixels, rtol=1e-4, atol=1e-4)
        assert batch[i].abs().sum() - inside.abs().sum() <= 1e-3 * (1 + inside.abs().sum())  # the rest is 0
        ratio = torch.tensor([wanted[1] / w, wanted[0] / h] * 2)
        torch.testing.assert_close(moved[i]["boxes"], targets[i]["boxes"] * ratio)
    most = [max(s[k] for s in sizes) for k in (0, 1)]
    padded = rule.get("canvas") or tuple(math.ceil(m / divisible) * divisible for m in most)
    assert tuple(batch.shape) == (len(sides), 3, *padded)


def tiny() -> Any:
    torch.manual_seed(0)
    return retinanet_tiny(2, widths=(4, 4, 4), levels=(3,), channels=8, head_depth=1, norm="batch", sizes=(8.0,))


MODEL = tiny()
IMAGES = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.sampled_from([(3, 9, 8), (3, 16, 16), (2, 3, 8, 8), (1, 8, 8), (3, 0, 8), (3,), (), (0, 3, 8, 8), (8, 8, 3)]),
    st.sampled_from([*FLOATS, torch.uint8, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from([0.0, 0.5, 1.0, -1.5, 255.0, math.nan, math.inf]),
)


@fuzz("model: malformed images", images=st.lists(IMAGES | JUNK, max_size=2) | IMAGES | JUNK)
@example(images=torch.tensor(0.5))
@example(images=[torch.full((3, 9, 8), 255.0)])
@example(images=[torch.full((3, 9, 8), math.nan)])
@example(images={"a": 1})
@example(images=5)
def test_malformed_images_are_named(images: Any):
    def good(x: Any, dims: int) -> bool:
        if not isinstance(x, Tensor) or x.ndim != dims or x.shape[-3] != 3 or 0 in x.shape:
            return False
        if x.dtype == torch.uint8:
            return True
        return x.is_floating_point() and bool((x >= -1).all() and (x <= 2).all())

    batch = isinstance(images, Tensor)
    fit = good(images, 4) if batch else isinstance(images, list) and len(images) > 0 and all(good(x, 3) for x in images)
    found = attempt(lambda: MODEL.eval()(images), "images", valid=fit)
    if found is not REFUSED:
        assert len(found) == len(images)


BOX = st.tuples(st.integers(-2, 12), st.integers(-2, 12), st.integers(3, 14), st.integers(3, 14)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
) | st.tuples(*[st.integers(0, 16)] * 4)
TARGET = st.fixed_dictionaries(
    {"boxes": st.lists(BOX, max_size=4), "labels": st.lists(st.integers(0, 1), min_size=2, max_size=4)}
)


@fuzz(
    "model: targets",
    rows=st.lists(TARGET, min_size=1, max_size=2),
    junk=st.none() | st.tuples(st.integers(0, 4), JUNK | st.sampled_from([-1, 2, torch.zeros(1, 3), torch.ones(0)])),
    dtype=st.sampled_from(FLOATS[:3]),
)
@example(rows=[{"boxes": [(0, 0, 8, 8)], "labels": [1]}], junk=(3, math.nan), dtype=torch.float64)
@example(rows=[{"boxes": [(0, 0, 8, 8)], "labels": [1]}], junk=(3, math.inf), dtype=torch.float32)
@example(rows=[{"boxes": [(0, 0, 8, 8), (8, 8, 16, 16)], "labels": [1, 0]}], junk=None, dtype=torch.float32)
def test_losses_are_those_of_a_loop_or_targets_are_named(rows: Any, junk: Any, dtype: torch.dtype):
    images = [image(16, 16, torch.float32, i) for i in range(len(rows))]
    targets: Any = []
    fit = True
    for row in rows:
        count = min(len(row["boxes"]), len(row["labels"]))
        boxes = torch.tensor(row["boxes"][:count], dtype=dtype).reshape(-1, 4)
        targets.append({"boxes": boxes, "labels": torch.tensor(row["labels"][:count], dtype=torch.int64)})
        fit = fit and bool((boxes[:, 2:] > boxes[:, :2]).all())
    if junk is not None:
        place, value = junk
        if place == 0:
            targets = value
        elif place == 1:
            targets[0] = value
        elif place == 2:
            targets[0]["labels"] = value
        elif place == 3 and len(targets[0]["boxes"]):
            targets[0]["boxes"][0, 2] = value if isinstance(value, float) else -1.0
        elif place == 4:
            targets[0]["boxes"] = value
    checked = fit if junk is None else None
    losses = attempt(lambda: MODEL.train()(images, targets), "targets", valid=checked)
    if losses is REFUSED:
        return
    with torch.no_grad():
        logits, deltas = MODEL.network(MODEL.preprocess(images).images)
    anchors = MODEL.anchors((32, 32))[0]
    assert all(target["boxes"].isfinite().all() for target in targets)
    classes, box_loss, count = 0.0, 0.0, 0
    for i, target in enumerate(targets):
        corners = [[round(v * 1024) for v in a] for a in anchors.tolist()]
        boxes = target["boxes"].float()
        iou = [[fraction_iou([round(v * 1024) for v in b], a) for a in corners] for b in boxes.tolist()]
        if any(abs(float(v) - limit) < 1e-3 for row in iou for v in row for limit in (0.4, 0.5)):
            return  # the last bit of an anchor's corner decides
        match = torch.tensor(matched(iou, len(corners), 0.5, 0.4, None))
        hot = torch.zeros(len(match), 2)
        for r in (match >= 0).nonzero()[:, 0].tolist():
            hot[r, target["labels"][match[r]]] = 1
            difference = (deltas[i, r] - encode_boxes(boxes[match[r]], anchors[r])).abs().double()
            box_loss += torch.where(difference < 1 / 9, difference**2 * 4.5, difference - 1 / 18).sum().item()
        count += int((match >= 0).sum())
        loss = torchvision_focal_loss(logits[i].double(), hot.double(), 0.25, 2.0)
        classes += loss[match != -2].sum().item()
    assert math.isclose(losses["classification"].item(), classes / max(count, 1), rel_tol=1e-4, abs_tol=1e-6)
    assert math.isclose(losses["bbox_regression"].item(), box_loss / max(count, 1), rel_tol=1e-4, abs_tol=1e-6)


def slow_nms(rows: list[Any], limit: float) -> list[Any]:
    """Detections (score, label, box), best first, each dropped that overlaps a better one of its class."""
    kept: list[Any] = []
    for row in rows:
        if all(k[1] != row[1] or float_iou(k[2], row[2]) <= limit for k in kept):
            kept.append(row)
    return kept


def float_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside) if inside else 0.0


@fuzz(
    "model: detections",
    scores=st.lists(st.tuples(st.integers(-90, 90), st.integers(-90, 90)), min_size=1, max_size=9, unique=True),
    wild=st.lists(st.tuples(st.integers(0, 8), *[WILD_FLOATS] * 4), max_size=2),
    threshold=st.sampled_from([0.0, 0.05, 0.5, 0.9]),
    topk=st.integers(1, 12),
    most=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_detections_are_those_of_a_loop(scores: Any, wild: Any, threshold: float, topk: int, most: int, seed: int):
    """Threshold, the best of a level, decoding, clipping, NMS by class; wild deltas give no box outside the image."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(scores)
    order = torch.randperm(2 * rows, generator=generator).reshape(rows, 2)
    logits = torch.tensor(scores) / 10 + order * 1e-3  # distinct, or the order of equals would be anybody's
    deltas = torch.randn(rows, 4, generator=generator) * 0.3
    anchors = torch.rand(rows, 4, generator=generator) * 20
    anchors[:, 2:] += anchors[:, :2] + 4
    strange = {place % rows: values for place, *values in wild}
    for place, values in strange.items():
        deltas[place] = torch.tensor(values, dtype=torch.float64).float()
    got = detect_image(
        [logits], [deltas], [anchors], (30, 40), score_threshold=threshold, topk_per_level=topk,
        detections_per_image=most, nms_iou=0.5,
    )  # fmt: skip
    limit = math.log(threshold / (1 - threshold)) if threshold else -math.inf
    pairs = sorted(
        ((logits[r, k].item(), k, r) for r in range(rows) for k in (0, 1) if logits[r, k] > limit), reverse=True
    )[:topk]
    assert got["scores"].tolist() == sorted(got["scores"].tolist(), reverse=True) and len(got["scores"]) <= most
    if not strange:
        found = []
        for logit, k, r in pairs:
            (x1, y1, x2, y2), (dx, dy, dw, dh) = anchors[r].tolist(), deltas[r].tolist()
            w, h = x2 - x1, y2 - y1
            x, y, w, h = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h, w * math.exp(dw), h * math.exp(dh)
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            found.append(
                (1 / (1 + math.exp(-logit)), k, [min(max(v, 0), e) for v, e in zip(box, (40, 30) * 2, strict=True)])
            )
        overlaps = [float_iou(a[2], b[2]) for a in found for b in found]
        if any(abs(v - 0.5) < 1e-4 for v in overlaps):
            return
        kept = slow_nms(found, 0.5)[:most]
        assert got["labels"].tolist() == [k for _, k, _ in kept]
        torch.testing.assert_close(got["scores"], torch.tensor([s for s, _, _ in kept]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            got["boxes"], torch.tensor([b for *_, b in kept]).reshape(-1, 4), rtol=1e-4, atol=1e-3
        )
    boxes = got["boxes"][~got["boxes"].isnan().any(1)]
    assert len(boxes) == len(got["boxes"]) or deltas.isnan().any()  # what is no number came from the network
    assert ((boxes >= 0) & (boxes <= torch.tensor([40.0, 30.0, 40.0, 30.0]))).all(), boxes
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


SETTINGS = ["min_size", "max_size", "canvas", "size_divisible", "mean", "std"]


@fuzz("model: malformed settings", name=st.sampled_from(SETTINGS), value=JUNK | st.lists(JUNK, max_size=3))
@example(name="size_divisible", value=0)
@example(name="std", value=[0.0, 1.0, 1.0])
@example(name="canvas", value=[0, 5])
def test_malformed_settings_are_named(name: str, value: Any):
    preprocess = attempt(lambda: Preprocess(**{name: value}), name)
    if preprocess is not REFUSED:
        batch = preprocess([image(9, 9, torch.float32, 0)]).images
        assert batch.isfinite().all() and batch.numel()
