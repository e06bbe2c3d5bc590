"""How sure an AP is: drawing the test images again and again, with replacement, and measuring each draw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

Array = NDArray[np.float64]


def bootstrap_ap(coco_eval: COCOeval, samples: int = 1000, seed: int = 0) -> Array:
    """AP on `samples` random draws of as many images as there are, with replacement: `(samples,)`.

    What a matching finds in an image does not depend on the other images, so that pycocotools' matching is done once
    and only the curves are drawn anew. Each figure is what pycocotools would give for that draw. Nothing is trained
    again: it is the uncertainty from the choice of test images alone.

    Args:
        coco_eval: of `evaluate.run_coco_eval`.
        samples: how many draws.
        seed: of the random numbers.
    """
    images = len(coco_eval.params.imgIds)
    draw = np.random.default_rng(seed)
    counts = (draw.multinomial(images, np.full(images, 1 / images)) for _ in range(samples))
    classes = _by_class(coco_eval)
    return np.array([_ap(classes, count, coco_eval.params.recThrs) for count in counts])


def ap_of_images(coco_eval: COCOeval, counts: NDArray[np.int64]) -> float:
    """AP of a collection that holds image i of the evaluation `counts[i]` times; NaN where it has no object.

    Args:
        coco_eval: of `evaluate.run_coco_eval`.
        counts: `(N,)` in the order of `coco_eval.params.imgIds`.
    """
    return _ap(_by_class(coco_eval), counts, coco_eval.params.recThrs)


def _by_class(coco_eval: COCOeval) -> list[tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]]:
    """Per class, best detection first: image number `(D,)`, objects per image `(N,)`, hits and misses `(10, D)`."""
    images, areas = len(coco_eval.params.imgIds), len(coco_eval.params.areaRng)
    found = []
    for k in range(len(coco_eval.params.catIds)):
        ones = [(i, one) for i, one in enumerate(coco_eval.evalImgs[k * areas * images :][:images]) if one is not None]
        objects = np.zeros(images, np.int64)
        for i, one in ones:
            objects[i] = (one["gtIgnore"] == 0).sum()
        scores = np.concatenate([[], *(one["dtScores"] for _, one in ones)])
        order = np.argsort(-scores, kind="mergesort")  # as pycocotools: of equal scores the first image's comes first
        image = np.concatenate([np.zeros(0, np.int64), *(np.full(len(one["dtScores"]), i) for i, one in ones)])[order]
        empty = np.zeros((len(coco_eval.params.iouThrs), 0))
        matched = np.concatenate([empty, *(one["dtMatches"] for _, one in ones)], axis=1)[:, order] > 0
        counted = np.concatenate([empty, *(one["dtIgnore"] for _, one in ones)], axis=1)[:, order] == 0
        found.append((image, objects, (matched & counted).astype(float), (~matched & counted).astype(float)))
    return found


def _ap(
    classes: list[tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]], counts: NDArray[np.int64], levels: Array
) -> float:
    """A detection of an image that is there c times counts c times: the curve keeps its corners."""
    aps = []
    for image, objects, hits, misses in classes:
        total = int((objects * counts).sum())
        if not total:
            continue
        weights = counts[image]
        right, wrong = (hits * weights).cumsum(1), (misses * weights).cumsum(1)  # (10, D)
        precision = right / np.maximum(right + wrong, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for recall, row in zip(right / total, envelope, strict=True):
            reached = np.searchsorted(recall, levels, side="left")
            aps.append(np.append(row, 0.0)[np.minimum(reached, len(row))].mean())
    return float(np.mean(aps)) if aps else float("nan")
