"""What anchors on a grid can reach, without laying them all out: best IoU of a box, and the matches around it.

An anchor grid is regular, so the best anchor of a given shape is the one whose centre lies nearest to the box's, and
every anchor with enough overlap lies in a small window around it. Counting a box costs a few hundred IoUs instead of
200,000, which lets a whole dataset be counted in seconds. The result is that of `matching.match_anchors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focal_tutorial.anchors import AnchorGenerator

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# IoUs computed at a time: bounds the memory at about 100 bytes × CHUNK, however large the dataset.
CHUNK = 500_000
BOXES = 20_000  # boxes compared at a time with all shapes of a level
TINY = 1e-300  # keeps 0/0 from a box without area
# Slack of a window's edge, in cells: rounding must not lose an anchor that lies exactly on it.
SLACK = 1e-6


@dataclass(frozen=True)
class LevelGrid:
    """One level's anchors: the A shapes of a location, and where the locations are."""

    level: int
    sides: Array  # (A, 2) width and height in pixels
    first: Array  # (A, 2) x and y of the anchors' centres at the first location
    stride: tuple[float, float]  # x, y in pixels
    columns: int
    rows: int

    @property
    def size(self) -> int:
        """R_l, the number of anchors of this level."""
        return self.columns * self.rows * len(self.sides)


@dataclass(frozen=True)
class Matches:
    """Foreground and ignored anchors of some images, and the foreground anchors that each box got."""

    foreground: Indices  # (I, L) anchors per image and level
    ignored: Indices  # (I, L)
    per_box: Indices  # (M,) foreground anchors assigned to each box


def anchor_grids(anchors: AnchorGenerator, image_size: tuple[int, int]) -> list[LevelGrid]:
    """The grids of `anchors(image_size)`, one per level, in float64; `image_size` is (height, width) in pixels."""
    grids = []
    shapes = anchors.grid_sizes(image_size)
    for level, size, stride, (rows, columns) in zip(
        anchors.levels, anchors.sizes, anchors.strides, shapes, strict=True
    ):
        step = (float(stride), float(stride))
        if anchors.torchvision_compat:
            step = (float(image_size[1] // columns), float(image_size[0] // rows))
        cell = anchors._cell(size).double().numpy()  # (A, 4)
        first = (cell[:, :2] + cell[:, 2:]) / 2 + anchors.centre * np.asarray(step)  # (A, 2)
        grids.append(LevelGrid(level, cell[:, 2:] - cell[:, :2], first, step, columns, rows))
    return grids


def _overlap(low: Array, high: Array, centre: Array, side: Array) -> Array:
    """Length that the interval [low, high] shares with one of length `side` around `centre`."""
    return np.clip(np.minimum(high, centre + side / 2) - np.maximum(low, centre - side / 2), 0, None)


def _iou_by_shape(boxes: Array, grid: LevelGrid) -> Array:
    """Highest IoU that each box `(M, 4)` has with any anchor of each of the level's shapes: `(M, A)`."""
    sides = []
    for axis, cells in ((0, grid.columns), (1, grid.rows)):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]  # (M, 1)
        cell = np.rint(((low + high) / 2 - grid.first[:, axis]) / grid.stride[axis]).clip(0, cells - 1)  # (M, A)
        sides.append(_overlap(low, high, grid.first[:, axis] + cell * grid.stride[axis], grid.sides[:, axis]))
    shared = sides[0] * sides[1]  # (M, A)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)  # (M,)
    return shared / np.maximum(area[:, None] + grid.sides.prod(1) - shared, TINY)


def best_iou(boxes: Array, grids: Sequence[LevelGrid]) -> Array:
    """Highest IoU that each box has with any anchor: `(M,)` for boxes `(M, 4)` xyxy with positive sides."""
    best = np.zeros(len(boxes))
    for start in range(0, len(boxes), BOXES):
        part = slice(start, start + BOXES)
        for grid in grids:
            best[part] = np.maximum(best[part], _iou_by_shape(boxes[part], grid).max(1))
    return best


def shape_iou(boxes: Array, grids: Sequence[LevelGrid]) -> Array:
    """As `best_iou`, were the anchor centred on the box: what the anchors' shapes allow, wherever they stand."""
    best = np.zeros(len(boxes))
    for start in range(0, len(boxes), BOXES):
        box = (boxes[start : start + BOXES, 2:] - boxes[start : start + BOXES, :2])[:, None]  # (m, 1, 2)
        for grid in grids:
            shared = np.minimum(grid.sides, box).prod(-1)  # (m, A)
            iou = shared / np.maximum(box.prod(-1) + grid.sides.prod(-1) - shared, TINY)
            best[start : start + BOXES] = np.maximum(best[start : start + BOXES], iou.max(1))
    return best


def _window(boxes: Array, shape: Indices, grid: LevelGrid, axis: int, need: Array) -> tuple[Indices, Indices]:
    """First cell and number of cells along `axis` where the intersection can reach `need` (pixels²)."""
    low, high, other = boxes[:, axis], boxes[:, axis + 2], boxes[:, 3 - axis] - boxes[:, 1 - axis]
    across = np.minimum(other, grid.sides[shape, 1 - axis])  # the most they can share along the other axis
    reach = (high - low + grid.sides[shape, axis]) / 2 - need / np.maximum(across, TINY)
    middle = (low + high) / 2 - grid.first[shape, axis]
    cells = grid.columns if axis == 0 else grid.rows
    start = np.ceil((middle - reach) / grid.stride[axis] - SLACK).clip(0, cells)
    stop = np.floor((middle + reach) / grid.stride[axis] + SLACK).clip(-1, cells - 1) + 1
    return start.astype(np.int64), np.maximum(stop - start, 0).astype(np.int64)


def _spread(
    boxes: Array, index: Indices, shape: Indices, grid: LevelGrid, threshold: float
) -> tuple[Indices, Indices, Array]:
    """All anchors of one level with IoU ≥ `threshold` for the pairs (box `index`, anchor `shape`).

    Returns the boxes' indices, the anchors' indices within the level, and the IoUs.
    """
    box = boxes[index]  # (P, 4)
    total = (box[:, 2:] - box[:, :2]).prod(1) + grid.sides[shape].prod(1)  # (P,) both areas
    need = threshold / (1 + threshold) * total  # IoU ≥ t is intersection ≥ t/(1+t) · both areas
    column, across = _window(box, shape, grid, 0, need)
    row, down = _window(box, shape, grid, 1, need)
    pair = np.repeat(np.arange(len(index)), across * down)  # (T,) one entry per anchor to look at
    step = np.arange(len(pair)) - np.repeat(np.cumsum(across * down) - across * down, across * down)
    column, row = column[pair] + step % across[pair], row[pair] + step // across[pair]
    box, kind = box[pair], shape[pair]
    x, y = grid.first[kind, 0] + column * grid.stride[0], grid.first[kind, 1] + row * grid.stride[1]
    shared = _overlap(box[:, 0], box[:, 2], x, grid.sides[kind, 0])
    shared *= _overlap(box[:, 1], box[:, 3], y, grid.sides[kind, 1])
    iou = shared / (total[pair] - shared)
    keep = iou >= threshold
    anchor = (row * grid.columns + column) * len(grid.sides) + kind
    return index[pair][keep], anchor[keep], iou[keep]


def _candidates(boxes: Array, grids: Sequence[LevelGrid], threshold: float) -> tuple[Indices, Indices, Array]:
    """Every (box, anchor) with IoU ≥ `threshold`: indices of boxes, of anchors over all levels, and the IoUs."""
    found: list[tuple[Indices, Indices, Array]] = []
    offset = 0
    for grid in grids:
        index, shape = np.nonzero(_iou_by_shape(boxes, grid) >= threshold)
        cells = np.prod([np.max(grid.sides[:, a]) / grid.stride[a] + 1 for a in (0, 1)])
        step = max(1, int(CHUNK / (4 * cells)))  # boxes are at most 1/threshold times the anchor's size
        for start in range(0, len(index), step):
            part = _spread(boxes, index[start : start + step], shape[start : start + step], grid, threshold)
            found.append((part[0], part[1] + offset, part[2]))
        offset += grid.size
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    box, anchor, iou = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return box, anchor, iou


def count_matches(
    boxes: Array,
    image: Indices,
    images: int,
    grids: Sequence[LevelGrid],
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
) -> Matches:
    """Foreground and ignored anchors of `images` images of one size, as `match_anchors` would assign them.

    Args:
        boxes: `(M, 4)` xyxy in pixels of the network's input, positive sides.
        image: `(M,)` which image (0 … `images` − 1) each box belongs to.
        grids: the anchors, from `anchor_grids`.

    An anchor goes to the box it overlaps most: foreground at IoU ≥ `foreground_iou`, ignored from `background_iou`.
    """
    ends = np.cumsum([grid.size for grid in grids])
    box, anchor, iou = _candidates(boxes, grids, max(background_iou, 1e-9))
    key = image[box] * ends[-1] + anchor  # one number per anchor of the dataset
    order = np.lexsort((box, -iou, key))
    first = order[np.concatenate([[True], np.diff(key[order]) > 0])] if len(order) else order  # its best box
    level = np.searchsorted(ends, anchor[first], side="right")
    cell = image[box[first]] * len(grids) + level
    foreground = iou[first] >= foreground_iou
    shape = (images, len(grids))
    return Matches(
        np.bincount(cell[foreground], minlength=images * len(grids)).reshape(shape),
        np.bincount(cell[~foreground], minlength=images * len(grids)).reshape(shape),
        np.bincount(box[first][foreground], minlength=len(boxes)),
    )
