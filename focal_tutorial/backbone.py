"""From image to pyramid: ResNet stages C3–C5 and the feature pyramid P3–P7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from focal_tutorial.errors import InputError

NORMS = ("batch", "frozen", "group")


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's batch norm with fixed statistics, in half precision where its input is.

    The float32 statistics would turn every activation back to float32 under autocast, the next convolution round it
    again, and the backward pass keep both: more memory than without autocast.
    """

    folded = False  # whether a `FoldedConv2d` before it has done its work

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, `(C,)` each: γ/√(σ² + ε) and β − μγ/√(σ² + ε)."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            return x
        if x.dtype == torch.float32:
            return super().forward(x)
        scale, shift = self.affine()
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


class FoldedConv2d(nn.Conv2d):
    """A convolution that does the work of the frozen norm after it: s · (W ∗ x) + t = (s · W) ∗ x + t.

    Scaling the weights instead of the activations saves two passes over those, forward and backward, and W learns all
    the same. Where there are more weights than activations, as in the last stage of a ResNet, the activations are
    scaled, in one pass. The norm stays in its place, where its statistics are loaded and saved.

    Args:
        convolution: without bias; its weight is taken over.
        norm: that follows it.
    """

    def __init__(self, convolution: nn.Conv2d, norm: FrozenNorm) -> None:
        c = convolution
        shape: dict[str, Any] = {"kernel_size": c.kernel_size, "stride": c.stride, "padding": c.padding}
        super().__init__(c.in_channels, c.out_channels, **shape, bias=False, device="meta")
        self.weight = c.weight
        norm.folded = True
        self._norm = [norm]  # in a list: as a submodule it would be saved twice

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._norm[0].affine()
        outputs = len(x) * self.out_channels * (x.shape[-2] // self.stride[0]) * (x.shape[-1] // self.stride[1])
        if self.weight.numel() <= outputs:
            return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)
        x = self._conv_forward(x, self.weight, None)
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


def fold_frozen_norms(body: nn.Module) -> None:
    """Give every convolution of a torchvision ResNet that a `FrozenNorm` follows the work of that norm, in place."""
    for parent in list(body.modules()):
        children = list(parent.named_children())
        for (name, module), (_, after) in pairwise(children):
            if isinstance(module, nn.Conv2d) and isinstance(after, FrozenNorm):
                setattr(parent, name, FoldedConv2d(module, after))


def norm_layer(norm: str) -> Callable[[int], nn.Module]:
    """Normalisation by name: "batch", "frozen" (batch norm with fixed statistics) or "group" (16 channels a group)."""
    if norm == "batch":
        return nn.BatchNorm2d
    if norm == "frozen":
        return FrozenNorm
    if norm == "group":
        return lambda channels: nn.GroupNorm(max(1, channels // 16), channels)
    raise ValueError(f"norm: one of {NORMS} wanted, got {norm!r}")


def offline_hint(what: str, error: Exception) -> InputError:
    """The error for pretrained weights that could not be fetched, with what to do about it."""
    return InputError(
        f"{what} could not be loaded through torchvision ({type(error).__name__}: {error}). Without a network, put the "
        f"file into {torch.hub.get_dir()}/checkpoints (same name), or build the model without pretrained weights"
    )


def resnet_body(name: str, *, weights: str | None = None, norm: str = "batch", trainable: int = 5) -> nn.Module:
    """ResNet without its classifier: image `(N, 3, H, W)` → {"C3": …, "C4": …, "C5": …} at strides 8, 16, 32.

    Args:
        name: "resnet18", "resnet34", "resnet50" or "resnet101".
        weights: a torchvision weight name such as "IMAGENET1K_V1" (downloaded by torchvision), or `None` for random.
        norm: "batch", "frozen" or "group"; the paper keeps pretrained batch norm frozen.
        trainable: how many of the five stages learn, counted from the last; the rest keep their weights.

    Raises:
        InputError: where the weights cannot be fetched.
    """
    if not 0 <= trainable <= 5:
        raise ValueError(f"trainable: a number of stages in 0 … 5 wanted, got {trainable}")
    try:
        resnet = getattr(torchvision.models, name)(weights=weights, norm_layer=norm_layer(norm))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise offline_hint(f"weights_backbone={weights!r}", error) from error
    learning = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable] + (["bn1"] if trainable == 5 else [])
    for parameter_name, parameter in resnet.named_parameters():
        parameter.requires_grad_(any(parameter_name.startswith(stage) for stage in learning))
    body = IntermediateLayerGetter(resnet, {"layer2": "C3", "layer3": "C4", "layer4": "C5"})
    fold_frozen_norms(body)
    return body


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut; halves the size where `stride` is 2."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        make_norm = norm_layer(norm)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = make_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), make_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class TinyBody(nn.Module):
    """The CPU's backbone: a strided stem, then one residual stage per stride from 4 on.

    Args:
        widths: channels of the stages C2, C3, C4, … at strides 4, 8, 16, …
        returned: how many of the last stages come back.
        blocks: residual blocks of a stage; the first halves the size.
    """

    def __init__(self, widths: Sequence[int], returned: int, norm: str = "group", blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            norm_layer(norm)(widths[0]),
            nn.ReLU(inplace=True),
        )
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.stages = nn.ModuleList(self._stage(before, after, norm, blocks) for before, after in pairs)
        self.returned = returned

    @staticmethod
    def _stage(before: int, after: int, norm: str, blocks: int) -> nn.Module:
        first = ResidualBlock(before, after, 2, norm)
        if blocks == 1:
            return first
        return nn.Sequential(first, *(ResidualBlock(after, after, 1, norm) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)  # (N, widths[0], H/2, W/2)
        features = {}
        for level, stage in enumerate(self.stages, start=2):
            x = stage(x)  # (N, widths[level−2], H/2^level, W/2^level)
            features[f"C{level}"] = x
        return dict(list(features.items())[-self.returned :])


class FeaturePyramid(nn.Module):
    """Top-down pyramid: every level sees as finely as its own C and as deeply as the last.

    P_l = 3×3 conv(1×1 conv(C_l) + upsampled sum of the level above); the extra levels P6 (and P7) are 3×3 convolutions
    of stride 2, with a ReLU before every one but the first.

    Args:
        in_channels: channels of the backbone's stages, finest first.
        channels: channels of every pyramid level (256 in the paper).
        extra_levels: levels above the last stage (2 in the paper: P6, P7).
        p6_from: what P6 is computed from, "C5" (the paper, Detectron, detectron2) or "P5" (torchvision v1).

    Source: Lin et al., FPN (2017), and the RetinaNet paper §4, footnote 2. The attribute names are torchvision's.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 256, extra_levels: int = 2, p6_from: str = "C5"
    ) -> None:
        super().__init__()
        if p6_from not in ("C5", "P5"):
            raise ValueError(f"p6_from: 'C5' or 'P5' wanted, got {p6_from!r}")
        self.p6_from = p6_from
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(c, channels, 1)) for c in in_channels)
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)) for _ in in_channels
        )
        first = channels if p6_from == "P5" else in_channels[-1]
        conv = partial(nn.Conv2d, out_channels=channels, kernel_size=3, stride=2, padding=1)
        self.extra_blocks = nn.ModuleDict(
            {f"p{6 + i}": conv(first if i == 0 else channels) for i in range(extra_levels)}
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # Detectron's "XavierFill"
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Stages `[(N, C_l, H_l, W_l)]`, finest first → levels `[(N, channels, H_l, W_l)]` plus the extra ones."""
        top_down = self.inner_blocks[-1](features[-1])
        levels = [self.layer_blocks[-1](top_down)]
        for feature, lateral, smooth in list(zip(features, self.inner_blocks, self.layer_blocks, strict=True))[-2::-1]:
            upsampled = F.interpolate(top_down, size=feature.shape[-2:], mode="nearest")
            top_down = lateral(feature) + upsampled  # (N, channels, H_l, W_l)
            levels.insert(0, smooth(top_down))
        x = levels[-1] if self.p6_from == "P5" else features[-1]
        for i, block in enumerate(self.extra_blocks.values()):
            x = block(x if i == 0 else F.relu(x))  # half the size each time, rounded up
            levels.append(x)
        return levels


class Backbone(nn.Module):
    """A body and its pyramid: image `(N, 3, H, W)` → `L` levels `(N, channels, H_l, W_l)`, finest first."""

    def __init__(self, body: nn.Module, pyramid: FeaturePyramid) -> None:
        super().__init__()
        self.body, self.fpn = body, pyramid

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.fpn(list(self.body(images).values()))
