"""The two subnets that every pyramid level shares, and the prior they start from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from focal_tutorial.backbone import norm_layer
from focal_tutorial.windows import Windows, place_windows, run_windows


def prior_bias(prior: float) -> float:
    """The bias b with σ(b) = π: −log((1 − π)/π); −4.5951 for π = 0.01 (RetinaNet paper §4.1)."""
    if not 0 < prior < 1:
        raise ValueError(f"prior: a probability strictly between 0 and 1 wanted, got {prior}")
    return -math.log((1 - prior) / prior)


def subnet(in_channels: int, channels: int, depth: int, norm: str | None) -> nn.Sequential:
    """`depth` 3×3 convolutions with ReLU (and a normalisation between, if asked for), N(0, 0.01²) and bias 0."""
    blocks: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(in_channels if i == 0 else channels, channels, 3, padding=1, bias=norm is None)
        layers = [conv] if norm is None else [conv, norm_layer(norm)(channels)]
        blocks.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
    tower = nn.Sequential(*blocks)
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return tower


def flatten_level(x: Tensor, width: int) -> Tensor:
    """`(N, A·width, H, W)` → `(N, H·W·A, width)`: one row per anchor, in the order of `AnchorGenerator`."""
    n, _, h, w = x.shape
    return x.view(n, -1, width, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, width)


class Subnet(nn.Module):
    """A tower of convolutions and a last one that predicts `width` numbers for each of `A` anchors a location.

    Args:
        in_channels: channels of the pyramid.
        num_anchors: A.
        width: numbers per anchor: K class logits, or 4 box deltas.
        channels, depth: of the tower; 256 and 4 in the paper.
        norm: a normalisation between the convolutions, "group" or "batch"; `None` as in the paper.
        bias: initial bias of the last convolution.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, width: int, *, channels: int = 256, depth: int = 4,
        norm: str | None = None, bias: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = subnet(in_channels, channels, depth, norm)
        self.predict = nn.Conv2d(channels if depth else in_channels, num_anchors * width, 3, padding=1)
        self.num_anchors, self.width = num_anchors, width
        self.is_local = norm is None  # without statistics over a level, an output depends on its neighbourhood alone
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.constant_(self.predict.bias, bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels `[(N, C, H_l, W_l)]` → `(N, R, width)`, the same weights on every level."""
        return torch.cat([flatten_level(self.predict(self.conv(x)), self.width) for x in levels], dim=1)

    def windows(
        self, grids: Sequence[tuple[int, int]], images: int, image: Tensor, anchor: Tensor, group: Tensor
    ) -> Windows | None:
        """Where to compute for the anchors asked about, or `None`: everywhere. Arguments as in `place_windows`."""
        if not self.is_local or len(anchor) == 0:
            return None
        return place_windows(grids, images, self.num_anchors, len(self.conv) + 1, image, anchor, group)

    def at(self, levels: Sequence[Tensor], windows: Windows | None, image: Tensor, anchor: Tensor) -> Tensor:
        """`forward(levels)[image, anchor]`, `(F, width)`, without computing the rest where `windows` are given."""
        if windows is None:
            return self(levels)[image, anchor]
        convolutions = [block[0] for block in self.conv] + [self.predict]  # type: ignore[index]
        return run_windows(levels, windows, convolutions, self.width)


class RetinaNetHead(nn.Module):
    """Class and box subnets: the same shape, no shared weights (RetinaNet paper §4).

    Args:
        in_channels, num_anchors, num_classes: C, A, K.
        channels, depth, norm: of both towers.
        prior: π, the foreground probability of every anchor and class at the start.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, num_classes: int, *, channels: int = 256, depth: int = 4,
        norm: str | None = None, prior: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classification = Subnet(
            in_channels, num_anchors, num_classes, channels=channels, depth=depth, norm=norm, bias=prior_bias(prior)
        )
        self.regression = Subnet(in_channels, num_anchors, 4, channels=channels, depth=depth, norm=norm)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels `[(N, C, H_l, W_l)]` → class logits `(N, R, K)` and box deltas `(N, R, 4)`."""
        return self.classification(levels), self.regression(levels)
