"""A subnet of 3×3 convolutions computed around the anchors that somebody asks about, and nowhere else.

The class subnet owes focal loss an answer for every anchor. The box subnet does not: the box loss reads the deltas of
the foreground anchors, a few dozen of a hundred thousand, and detection those of the best-scored ones. A 3×3
convolution looks one location further, so a square of `SIDE` outputs after `n` convolutions needs a square of
`SIDE + 2n` inputs: a window. All windows of a batch, of every level, go through the convolutions as one batch of
small images, and what they give is what the convolutions give on whole levels: where a window reaches over the edge of
its level, it is set to 0 before each convolution, which is what padding does.

Shapes: N images, A anchors per location, P locations of one image over all levels, F anchors asked about, B windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 6  # outputs of a window: the foreground of one box on one level spans 3 to 6 locations
WORTH = 0.5  # windows are taken while they need less than this share of the work on whole levels

Grid = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """Where the windows lie, and where in them the anchors asked about.

    Attributes:
        cells: `(B, S, S)` int64 rows of `location_table`, S = `SIDE` + 2 · convolutions; the last row outside a level.
        inside: `(B, 1, S, S)` bool, whether a cell lies on its level.
        window, row, column, anchor: `(F,)` int64 each: window, place among its outputs, anchor at that location.
    """

    cells: Tensor
    inside: Tensor
    window: Tensor
    row: Tensor
    column: Tensor
    anchor: Tensor


def place_windows(
    grids: Sequence[Grid], images: int, num_anchors: int, convolutions: int,
    image: Tensor, anchor: Tensor, group: Tensor,
) -> Windows | None:  # fmt: skip
    """Windows that hold all anchors asked about, or `None` where whole levels cost little more.

    Args:
        grids: (rows, columns) of each level, finest first.
        images: N.
        num_anchors: A.
        convolutions: 3×3 convolutions of the subnet.
        image, anchor: `(F,)` int64 each: anchors asked about, by image and by row among the R of an image.
        group: `(F,)` int64: anchors of one group, image and level get common windows; those of one ground-truth box
            lie close together.
    """
    start, columns, rows = _levels(tuple(grids), anchor.device)  # (L,) each
    level, i, j = _locate(grids, num_anchors, anchor)
    _, cluster = _numbered(torch.stack([group, image, level], dim=1))
    i0, j0 = _smallest(i, cluster), _smallest(j, cluster)
    part_i, part_j = (i - i0) // SIDE, (j - j0) // SIDE  # a cluster that is larger than one window takes several
    first, window = _numbered(torch.stack([cluster, part_i, part_j], dim=1))
    top, left = i0 + SIDE * part_i, j0 + SIDE * part_j
    locations = images * sum(height * width for height, width in grids)
    work = len(first) * sum((SIDE + 2 * k) ** 2 for k in range(convolutions))
    if work > WORTH * convolutions * locations:
        return None
    reach = torch.arange(-convolutions, SIDE + convolutions, device=anchor.device)  # (S,)
    y, x = (top[first, None] + reach)[:, :, None], (left[first, None] + reach)[:, None, :]  # (B, S, 1), (B, 1, S)
    at = level[first, None, None]  # (B, 1, 1)
    inside = (y >= 0) & (y < rows[at]) & (x >= 0) & (x < columns[at])  # (B, S, S)
    size = rows * columns  # (L,)
    cells = images * start[at] + image[first, None, None] * size[at] + y * columns[at] + x
    cells = torch.where(inside, cells, locations)
    return Windows(cells, inside[:, None], window, i - top, j - left, anchor % num_anchors)


def tiles(grids: Sequence[Grid], num_anchors: int, anchor: Tensor) -> Tensor:
    """Groups for anchors `(F,)` that belong to no box: `(F,)` int64, the squares of `SIDE` locations they lie in."""
    _, row, column = _locate(grids, num_anchors, anchor)
    return row // SIDE * 2**20 + column // SIDE


def location_table(levels: Sequence[Tensor]) -> Tensor:
    """Features of all locations as rows, level after level, and a row of zeros: `(N · P + 1, C)`."""
    rows = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in levels]  # (N · H_l · W_l, C) each
    return torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])])


def run_windows(levels: Sequence[Tensor], windows: Windows, convolutions: Sequence[nn.Conv2d], width: int) -> Tensor:
    """`(F, width)`: what 3×3 convolutions with ReLU between them give at the anchors asked about.

    Args:
        levels: `[(N, C, H_l, W_l)]`.
        windows: of `place_windows` for as many convolutions.
        convolutions: 3×3, stride 1, padding 1; the last has A · `width` channels.
        width: numbers per anchor.
    """
    b, s, _ = windows.cells.shape
    x = location_table(levels).index_select(0, windows.cells.flatten())  # (B · S · S, C)
    x = x.view(b, s, s, -1).permute(0, 3, 1, 2)  # (B, C, S, S), channels last
    inside = windows.inside
    for convolution in convolutions[:-1]:
        inside = inside[..., 1:-1, 1:-1]
        x = F.relu(F.conv2d(x, convolution.weight, convolution.bias) * inside, inplace=True)  # 2 smaller each time
    x = F.conv2d(x, convolutions[-1].weight, convolutions[-1].bias)  # (B, A · width, SIDE, SIDE)
    x = x.unflatten(1, (-1, width))  # (B, A, width, SIDE, SIDE)
    return x[windows.window, windows.anchor, :, windows.row, windows.column]  # (F, width)


@lru_cache(maxsize=64)
def _levels(grids: tuple[Grid, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """First location, columns and rows of each level, `(L,)` int64 each."""
    rows, columns = torch.tensor(grids, device=device).unbind(1)
    size = rows * columns
    return size.cumsum(0) - size, columns, rows


def _locate(grids: Sequence[Grid], num_anchors: int, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level, row and column of anchors `(F,)`, `(F,)` each."""
    start, columns, _ = _levels(tuple(grids), anchor.device)
    location = anchor // num_anchors
    level = torch.bucketize(location, start[1:], right=True)
    inner = location - start[level]
    return level, inner // columns[level], inner % columns[level]


def _numbered(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `keys` `(F, D)` that differ: where one of each stands `(B,)`, and the number of every row `(F,)`."""
    unique, number = torch.unique(keys, dim=0, return_inverse=True)
    place = torch.arange(len(keys), device=keys.device)
    first = place.new_full((len(unique),), len(keys)).scatter_reduce(0, number, place, "amin")
    return first, number


def _smallest(values: Tensor, cluster: Tensor) -> Tensor:
    """For each value `(F,)` the smallest one of its cluster."""
    return torch.full_like(values, 2**40).scatter_reduce(0, cluster, values, "amin")[cluster]
