"""What it would take for anchors to reach boxes that they do not: changes of setting, each with its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.coverage import Array, LevelGrid, anchor_grids, best_iou

THIRD = 2 ** (-1 / 3)  # one step of an octave down
STEPS = 12  # how far to look below the smallest anchor: four octaves
ENOUGH = 0.95  # of what can be gained by going on

# Boxes that share one size of the network's input: that size (height, width), boxes (M, 4), number of images.
Part = tuple[tuple[int, int], Array, int]


@dataclass(frozen=True)
class Change:
    """A change of the anchor setting: anchors per image with it, and the boxes still out of reach."""

    change: str
    anchors: float
    unreached: int


@dataclass(frozen=True)
class SmallestAnchor:
    """How small anchors on the finest level must get, as √(w·h) in pixels, and the boxes then out of reach."""

    level: int
    stride: int
    now: float
    side: float
    unreached: int


def varied(anchors: AnchorGenerator, **changes: Any) -> AnchorGenerator:
    """A generator like `anchors` with some of `levels`, `sizes`, `ratios`, `scales` replaced."""
    kept = {
        name: getattr(anchors, name) for name in ("levels", "sizes", "ratios", "scales", "centre", "torchvision_compat")
    }
    return AnchorGenerator(**{**kept, **changes})


def changes_that_help(anchors: AnchorGenerator, parts: Sequence[Part], need: float) -> list[Change]:
    """The setting as it is, and those changes of it that reach more boxes, the cheapest first."""
    tried = [_measure("none", anchors, parts, need, 1.0)]
    levels, sizes, scales = anchors.levels, anchors.sizes, anchors.scales
    settings: list[tuple[str, dict[str, Any], float]] = [
        ("halve every anchor", {"sizes": [size / 2 for size in sizes]}, 1.0),
        ("double every anchor", {"sizes": [size * 2 for size in sizes]}, 1.0),
        (f"add scale {min(scales) * THIRD:.2f}", {"scales": (*scales, min(scales) * THIRD)}, 1.0),
        ("add ratios 1:3 and 3:1", {"ratios": (*anchors.ratios, 1 / 3, 3.0)}, 1.0),
        (
            f"add level P{levels[-1] + 1}",
            {"levels": (*levels, levels[-1] + 1), "sizes": (*sizes, sizes[-1] * 2)},
            1.0,
        ),
        ("input 1.5 times as large", {}, 1.5),
        ("input twice as large", {}, 2.0),
        ("input twice as large, anchors halved", {"sizes": [size / 2 for size in sizes]}, 2.0),
    ]
    if levels[0] > 2:  # the backbones' finest stage has stride 4
        finer = {"levels": (levels[0] - 1, *levels), "sizes": (sizes[0] / 2, *sizes)}
        settings.append((f"add level P{levels[0] - 1}, {sizes[0] / 2:g} px", finer, 1.0))
    for name, change, scale in settings:
        tried.append(_measure(name, varied(anchors, **change), parts, need, scale))
    helpful = [change for change in tried[1:] if change.unreached < tried[0].unreached]
    return [tried[0], *sorted(helpful, key=lambda change: (change.anchors, change.unreached))]


def _measure(name: str, anchors: AnchorGenerator, parts: Sequence[Part], need: float, scale: float) -> Change:
    images = sum(count for _, _, count in parts)
    total, unreached = 0, 0
    for (height, width), boxes, count in parts:
        grids = anchor_grids(anchors, (round(height * scale), round(width * scale)))
        total += count * sum(grid.size for grid in grids)
        unreached += int((best_iou(boxes * scale, grids) < need).sum())
    return Change(name, total / max(1, images), unreached)


def smallest_anchor(anchors: AnchorGenerator, parts: Sequence[Part], need: float) -> SmallestAnchor | None:
    """The largest side, in steps of a third of an octave, at which smaller anchors on the finest level stop paying.

    Anchors of every step from the present smallest down to that side are added; `None` where that reaches nothing.
    """
    finest = int(np.argmin(anchors.strides))
    now = anchors.sizes[finest] * min(anchors.scales)
    smallest = varied(anchors, levels=anchors.levels[finest : finest + 1], sizes=[now], scales=(1.0,))
    counts = np.zeros(STEPS + 1, np.int64)  # boxes out of reach after each step
    for size, boxes, _ in parts:
        best = best_iou(boxes, anchor_grids(anchors, size))
        counts[0] += int((best < need).sum())
        grid = anchor_grids(smallest, size)[0]
        for step in range(1, STEPS + 1):
            left = best < need
            best[left] = np.maximum(best[left], best_iou(boxes[left], [_scaled(grid, THIRD**step)]))
            counts[step] += int((best < need).sum())
    gained = counts[0] - counts
    if gained[-1] == 0:
        return None
    step = int(np.argmax(gained >= ENOUGH * gained[-1]))
    return SmallestAnchor(
        anchors.levels[finest], anchors.strides[finest], now, round(now * THIRD**step, 2), int(counts[step])
    )


def _scaled(grid: LevelGrid, factor: float) -> LevelGrid:
    return replace(grid, sides=grid.sides * factor)
