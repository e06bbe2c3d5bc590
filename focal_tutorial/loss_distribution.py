"""Where the classification loss of a trained model sits: Figure 4 of the paper, and what the hardest terms are.

A term is one (anchor, class) pair, one sigmoid. Positive terms: an anchor's own class, one for each foreground anchor.
Negative terms: all other pairs, of background anchors and the other classes of foreground ones. Ignored anchors have
none. The focal loss falls with the signed logit x_t for every γ, so one order, by x_t, is the order of hardness for all
γ; and a constant factor such as α cancels when positives and negatives are each divided by their own sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.focal_term import focal_term, focal_term_derivative
from focal_tutorial.matching import pairwise_iou
from focal_tutorial.retinanet import RetinaNet

GAMMAS = (0.0, 0.5, 1.0, 2.0)
# Fractions of the terms, hardest first: every twentieth, then ten a decade down to one term in 100,000.
FRACTIONS = (*(k / 20 for k in range(20, 2, -1)), *(10 ** (-k / 10) for k in range(10, 51)), 0.0)
HARDEST = {"20": 0.2, "10": 0.1, "1": 0.01, "0_1": 0.001}  # per cent → fraction
# A negative term's place, the first that applies: a foreground anchor's other class; IoU with an object at least .3;
# IoU with a distractor at least .3; IoU with an object at least .1; none of these.
NEGATIVE_KINDS = ("other_class", "beside_object", "distractor", "touches_object", "plain")
POSITIVE_KINDS = ("iou_below_0_6", "iou_0_6_to_0_7", "iou_from_0_7")  # of the anchor with its box
BESIDE, TOUCHES = 0.3, 0.1
CHUNK = 1 << 18  # terms computed at a time


class Terms(NamedTuple):
    """Terms of one image, or of many.

    `x_t`: `(n,)` signed logits, the logit of a positive and minus that of a negative. `kind`: `(n,)` uint8, index into
    `NEGATIVE_KINDS` or `POSITIVE_KINDS`.
    """

    x_t: Tensor
    kind: Tensor


def loss_distribution(
    model: RetinaNet, dataset: DetectionDataset, *, gammas: Sequence[float] = GAMMAS, limit: int = 50_000_000
) -> dict[str, Any]:
    """How the focal loss of a trained model is spread over its terms (paper, Figure 4), for several γ.

    Args:
        model: trained with whatever loss; its own matching thresholds decide what is foreground.
        dataset: without transforms. Where it has scenes, their distractors make a kind of their own.
        gammas: of the losses that the model's logits are measured with.
        limit: terms to keep, four bytes each. Of a larger data set each negative term is kept with the same chance.

    Returns:
        "images", "kept" (share of the negative terms, 1 if all), "fractions", and for "positives" and "negatives" what
        `describe_terms` says.

    Source: RetinaNet paper, §5.1, "Analysis of the Focal Loss", which samples about 10⁷ negatives and 10⁵ positives.
    """
    per_image = len(torch.cat(model.anchors(_input_size(model, dataset)))) * model.num_classes
    kept = min(1.0, limit / (per_image * len(dataset)))
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[Terms]] = {"positives": [], "negatives": []}
    for positives, negatives in image_terms(model, dataset):
        if kept < 1:
            chosen = torch.rand(len(negatives.x_t), generator=generator) < kept
            negatives = Terms(negatives.x_t[chosen], negatives.kind[chosen])
        parts["positives"].append(positives)
        parts["negatives"].append(negatives)
    names = {"positives": POSITIVE_KINDS, "negatives": NEGATIVE_KINDS}
    described = {}
    for sign, terms in parts.items():
        x_t, kind = torch.cat([t.x_t for t in terms]), torch.cat([t.kind for t in terms])
        described[sign] = describe_terms(Terms(x_t, kind), names[sign], gammas)
    fractions = [round(fraction, 8) for fraction in FRACTIONS]
    return {"images": len(dataset), "kept": round(kept, 6), "fractions": fractions, **described}


def _input_size(model: RetinaNet, dataset: DetectionDataset) -> tuple[int, int]:
    batch = model.preprocess([dataset[0][0].as_subclass(Tensor)]).images
    return int(batch.shape[-2]), int(batch.shape[-1])


@torch.inference_mode()
def image_terms(model: RetinaNet, dataset: DetectionDataset) -> Iterator[tuple[Terms, Terms]]:
    """Positive and negative terms of one image after the other, on the CPU.

    Ordered as the tensor `(R, K)` of logits is, without what is left out.
    """
    device = next(model.parameters()).device
    for index in range(len(dataset)):
        image, target = dataset[index]
        batch, sizes, before, moved = model.preprocess([image.as_subclass(Tensor).to(device)], [target])
        assert moved is not None
        logits = model.network(batch)[0][0].float()  # (R, K)
        anchors = torch.cat(model.anchors((batch.shape[-2], batch.shape[-1]), device))  # (R, 4)
        labels = model.criterion.match(anchors, moved)[0][0]  # (R,)
        scale = sizes[0][0] / before[0][0]
        distractors = distractor_boxes(dataset, index).to(device) * scale
        yield split_terms(logits, labels, best_iou(anchors, moved[0]["boxes"]), best_iou(anchors, distractors))


def split_terms(logits: Tensor, labels: Tensor, object_iou: Tensor, distractor_iou: Tensor) -> tuple[Terms, Terms]:
    """Positive and negative terms of one image, on the CPU.

    Args:
        logits: `(R, K)`.
        labels: `(R,)`, −1 background, −2 ignored.
        object_iou, distractor_iou: `(R,)`, largest IoU of each anchor with an object or a distractor.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    positive = labels[:, None] == classes  # (R, K)
    negative = ~positive & (labels != -2)[:, None]  # (R, K)
    fine = (object_iou >= 0.6).int() + (object_iou >= 0.7).int()  # (R,)
    coarse = torch.full_like(fine, NEGATIVE_KINDS.index("plain"))  # (R,), the last that is written stays
    coarse[object_iou >= TOUCHES] = NEGATIVE_KINDS.index("touches_object")
    coarse[distractor_iou >= BESIDE] = NEGATIVE_KINDS.index("distractor")
    coarse[object_iou >= BESIDE] = NEGATIVE_KINDS.index("beside_object")
    coarse[labels >= 0] = NEGATIVE_KINDS.index("other_class")
    found = []
    for mask, sign, kind in ((positive, 1, fine), (negative, -1, coarse)):
        kinds = kind.to(torch.uint8)[:, None].expand_as(mask)
        found.append(Terms((sign * logits[mask]).cpu(), kinds[mask].cpu()))
    return found[0], found[1]


def best_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Largest IoU of each anchor with a box: `(R,)`, 0 where there are no boxes."""
    if len(boxes) == 0:
        return anchors.new_zeros(len(anchors))
    return pairwise_iou(boxes, anchors).amax(0)


def distractor_boxes(dataset: DetectionDataset, index: int) -> Tensor:
    """Squares around the distractors of image `index`, `(D, 4)` xyxy in its pixels; none where there is no scene."""
    items = dataset.scene(index).items if hasattr(dataset, "scene") else ()
    found = [(i.x - i.radius, i.y - i.radius, i.x + i.radius, i.y + i.radius) for i in items if i.label is None]
    return torch.tensor(found).reshape(-1, 4)


def describe_terms(terms: Terms, kinds: Sequence[str], gammas: Sequence[float] = GAMMAS) -> dict[str, Any]:
    """What Figure 4 draws, and which terms the loss belongs to.

    Args:
        terms: in any order.
        kinds: their kinds' names.
        gammas: see `loss_distribution`.

    Returns:
        "terms", their number; "kinds", kind → number; "hardest_kinds", for the hardest "10", "1", "0_1" per cent of the
        terms, ties included, kind → number; "gammas", "0", "0_5", … → `describe_loss`. The last two are empty where
        there are no terms.
    """
    number = len(terms.x_t)
    stated: dict[str, Any] = {"terms": number, "kinds": _count(terms.kind, kinds), "hardest_kinds": {}, "gammas": {}}
    if number == 0:
        return stated
    in_order = sort_terms(terms.x_t)
    for name, fraction in HARDEST.items():
        last = in_order[max(1, round(fraction * number)) - 1]
        stated["hardest_kinds"][name] = _count(terms.kind[terms.x_t <= last], kinds)
    for gamma in gammas:
        stated["gammas"][f"{gamma:g}".replace(".", "_")] = describe_loss(terms, in_order, gamma, kinds)
    return stated


def describe_loss(terms: Terms, in_order: Tensor, gamma: float, kinds: Sequence[str]) -> dict[str, Any]:
    """One γ of `describe_terms`; `in_order` are the signed logits, hardest first.

    Returns:
        "sum" of the loss without α; "gradient", Σw with w = |dFL/dx|; "effective", (Σw)²/Σw², how many terms of equal
        gradient would vary as little; "curve", share of the loss of the hardest `FRACTIONS`; "hardest", of the hardest
        "20", "10", "1", "0_1" per cent; "kinds", kind → share of the loss.
    """
    loss, gradient, square = 0.0, 0.0, 0.0
    by_kind = torch.zeros(len(kinds), dtype=torch.float64)
    for x_t, kind in zip(terms.x_t.split(CHUNK), terms.kind.split(CHUNK), strict=True):
        losses, slopes = focal_term(x_t, gamma).double(), focal_term_derivative(x_t, gamma).double()
        loss += losses.sum().item()
        gradient -= slopes.sum().item()
        square += slopes.dot(slopes).item()
        by_kind += torch.bincount(kind, losses, minlength=len(kinds))
    shares = hardest_shares(in_order, gamma, [*FRACTIONS, *HARDEST.values()]).tolist()
    return {
        "sum": float(f"{loss:.7g}"),
        "gradient": float(f"{gradient:.7g}"),
        "effective": float(f"{gradient**2 / square if square else 0.0:.7g}"),
        "curve": [round(share, 6) for share in shares[: len(FRACTIONS)]],
        "hardest": {name: round(s, 6) for name, s in zip(HARDEST, shares[len(FRACTIONS) :], strict=True)},
        "kinds": {name: round(s, 6) for name, s in zip(kinds, (by_kind / loss).tolist(), strict=True)} if loss else {},
    }


def sort_terms(x_t: Tensor) -> Tensor:
    """The signed logits in ascending order, hardest term first."""
    return torch.from_numpy(np.sort(x_t.numpy()))  # several times faster than torch.sort, which also keeps the places


def hardest_shares(x_t: Tensor, gamma: float, fractions: Sequence[float]) -> Tensor:
    """Share of the focal loss that the hardest fraction of the terms carries: `(F,)` float64.

    Losses in the precision of `x_t`, summed in float64; a fraction that ends inside a term takes that part of the term.

    Args:
        x_t: `(n,)` signed logits in ascending order, n ≥ 1.
        gamma: focusing parameter, ≥ 0.
        fractions: F numbers in [0, 1], in any order.
    """
    places = torch.tensor(fractions, dtype=torch.float64) * len(x_t)  # how many terms, with a part of the last
    whole = places.floor().long()
    carried, total = torch.zeros_like(places), 0.0
    for start, chunk in zip(range(0, len(x_t), CHUNK), x_t.split(CHUNK), strict=True):
        losses = focal_term(chunk, gamma).double()  # (c,)
        sums = torch.cat([losses.new_zeros(1), losses.cumsum(0)])  # (c + 1,)
        carried += sums[(whole - start).clamp(0, len(chunk))]
        cut = (whole >= start) & (whole < start + len(chunk))
        carried[cut] += (places - whole)[cut] * losses[whole[cut] - start]
        total += float(sums[-1])
    return carried / total


def _count(kind: Tensor, kinds: Sequence[str]) -> dict[str, int]:
    return dict(zip(kinds, torch.bincount(kind, minlength=len(kinds)).tolist(), strict=True))
