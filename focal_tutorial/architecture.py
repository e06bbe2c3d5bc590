"""A network measured: shapes, parameters and multiply–adds by part, and how much of the image a location sees."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

NORM_LAYERS = (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d)
SHORTCUTS = ("downsample", "shortcut")  # beside the main path of a residual block
PARTS = {"backbone.body": "backbone", "backbone.fpn": "pyramid", "head.classification": "class subnet",
         "head.regression": "box subnet"}  # fmt: skip


class Part(NamedTuple):
    """One part of a detector: its name, its parameters, its multiply–adds for one image."""

    name: str
    parameters: int
    macs: int


def layer_shapes(module: nn.Module, *inputs: object) -> list[tuple[str, tuple[int, ...]]]:
    """Names and output shapes of the direct children of `module`, in the order in which `module(*inputs)` runs them."""
    rows: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        child.register_forward_hook(lambda _, __, output, name=name: rows.append((name, tuple(output.shape))))
        for name, child in module.named_children()
    ]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def count_parameters(module: nn.Module, *, norms: bool = True) -> int:
    """Numbers that `module` learns; buffers are none of them. `norms=False` leaves out normalisation layers."""
    left_out = set() if norms else {p for m in module.modules() if isinstance(m, NORM_LAYERS) for p in m.parameters()}
    return sum(p.numel() for p in module.parameters() if p not in left_out)


def count_macs(module: nn.Module, *inputs: object) -> int:
    """Multiply–adds of convolutions and matrix products in `module(*inputs)`: half of torch's count of FLOPs.

    Normalisation, ReLU, pooling, upsampling and additions are not counted. Tensors on the device "meta" will do.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def count_parts(detector: nn.Module, image_size: tuple[int, int]) -> list[Part]:
    """Backbone, pyramid, class subnet and box subnet of a RetinaNet, ours or torchvision's, counted.

    Args:
        detector: on any device; "meta" computes no values and needs no memory.
        image_size: (height, width) of the padded input, one image.

    Multiply–adds are counted as by `count_macs`, parameters as by `count_parameters`.
    """
    device = next(detector.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        levels = detector.get_submodule("backbone")(torch.empty(1, 3, *image_size, device=device))
        detector.get_submodule("head")(levels if isinstance(levels, list) else list(levels.values()))
    flops = {key.split(".", 1)[-1]: sum(ops.values()) for key, ops in counter.get_flop_counts().items()}
    rows = []
    for path, name in PARTS.items():
        inner = path.split(".")[1]
        inner = inner if inner in flops else f"{inner}_head"  # torchvision's name
        part = detector.get_submodule(f"{path.split('.')[0]}.{inner}")
        rows.append(Part(name, count_parameters(part), flops[inner] // 2))
    return rows


def main_path(module: nn.Module) -> list[tuple[int, int]]:
    """(kernel, stride) of every convolution and pooling along `module`, shortcuts of residual blocks left out."""
    return [
        (_first(layer.kernel_size), _first(layer.stride))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and not any(part in SHORTCUTS for part in name.split("."))
    ]


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def receptive_field(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Side of the square of input pixels that one output location depends on, and its stride.

    Args:
        layers: (kernel, stride) of each layer, first to last.

    A layer of kernel k adds (k − 1) steps of its input's grid, and its stride multiplies the step:
    r ← r + (k − 1)·j, then j ← j·s, from r = j = 1.
    """
    side, step = 1, 1
    for kernel, stride in layers:
        side += (kernel - 1) * step
        step *= stride
    return side, step


def skeleton(module: nn.Module) -> nn.Module:
    """A copy of `module` with one channel and averaging kernels: its gradients are positive exactly where it looks.

    Convolutions and max pooling become averages of the same kernel, stride and padding, normalisation goes. What the
    gradient of one output location reaches is then its theoretical receptive field, through any branches. Input
    `(1, 1, H, W)`.
    """
    bones = copy.deepcopy(module)
    for name, layer in list(bones.named_modules()):
        new: nn.Module
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
            new = nn.Conv2d(1, 1, kernel, stride, padding, bias=False, device="cpu")  # type: ignore[arg-type]
            nn.init.constant_(new.weight, 1 / new.weight.numel())
        elif isinstance(layer, nn.MaxPool2d):
            new = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
        elif isinstance(layer, NORM_LAYERS):
            new = nn.Identity()
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(bones.get_submodule(parent), child, new)
    return bones.double()


def gradient_energy(unit: Tensor, images: Tensor, *, probes: int = 1, seed: int = 0) -> Tensor:
    """How strongly each pixel moves one location: `(H, W)`, the squared gradient summed over channels and colours.

    With independent noise of variance v on every pixel, the summed variance of `unit` is v times the sum of this map
    (to first order).

    Args:
        unit: `(C,)`, the channels of one location, computed from `images` with gradients.
        images: `(1, 3, H, W)` (or one channel) that require gradients.
        probes: random sign vectors over the channels; the mean over them estimates the sum over channels, exactly
            for C = 1.
    """
    generator = torch.Generator().manual_seed(seed)
    energy = torch.zeros(images.shape[-2:], dtype=images.dtype)
    for _ in range(probes):
        signs = torch.randint(0, 2, unit.shape, generator=generator).to(unit) * 2 - 1
        (gradient,) = torch.autograd.grad(unit @ signs, images, retain_graph=True)  # (1, 3, H, W)
        energy += gradient[0].square().sum(dim=0).cpu() / probes
    return energy


def field_centre(energy: Tensor) -> tuple[float, float]:
    """(y, x) of the centre of mass of an `(H, W)` map, in pixels of which the first spans 0 to 1."""
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in energy.shape)
    mass = energy.double() / energy.double().sum()
    return float(mass.sum(dim=1) @ rows), float(mass.sum(dim=0) @ columns)


def field_side(energy: Tensor, share: float = 0.9) -> int:
    """Side in pixels of the smallest square around the centre of mass that holds `share` of an `(H, W)` map.

    The square has a whole pixel in its middle, so that the side is odd; what lies beyond the image holds nothing.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: above 0 and at most 1 wanted, got {share}")
    y, x = (int(value) for value in field_centre(energy))
    rows, columns = (torch.arange(n) for n in energy.shape)
    ring = torch.maximum((rows - y).abs()[:, None], (columns - x).abs()[None])  # (H, W): rings around the centre
    held = torch.bincount(ring.flatten(), energy.double().flatten()).cumsum(0)
    radius = int((held >= share * held[-1] * (1 - 1e-12)).nonzero()[0])
    return 2 * radius + 1


def support_side(energy: Tensor) -> tuple[int, int]:
    """(height, width) in pixels of the smallest rectangle outside of which an `(H, W)` map is 0."""
    touched = energy > 0
    height, width = (touched.any(dim=d).nonzero().flatten() for d in (1, 0))
    return int(height[-1] - height[0] + 1), int(width[-1] - width[0] + 1)
