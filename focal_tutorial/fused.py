"""The focal loss in one pass over the logits, forward and backward, keeping nothing for the backward but the inputs.

Two operators, registered with `torch.library` so that autograd, `torch.compile(fullgraph=True)`, autocast and CUDA
graphs take them as they are. Behind them stand three implementations, and which one runs depends only on the device,
the dtype and the size, so that a run repeats to the last bit:

| name | where | what |
|---|---|---|
| `triton` | CUDA with Triton; float32, bfloat16, float16 | one kernel each way (`_fused_triton.py`) |
| `cpp` | CPU with a C++ compiler; float32, bfloat16; `COMPILE_FROM` elements or more | `_fused_cpp.py`, built once |
| `eager` | CPU | PyTorch operations over chunks (`_fused_cpu.py`) |

Everything else (other devices, float64 on CUDA, targets or alpha that need a gradient) takes the `reference` in
`losses.py`. The environment variable FOCAL_TUTORIAL_PATH forces one of the four names, for tests and benchmarks; where
that one does not know the dtype, the next one down computes it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import _fused_cpp, _fused_cpu
from .focal_term import _curvature, _Slope, at_least_float32

COMPILE_FROM = 262_144  # elements; below, the compiler's seconds would never be earned back
HAS_TRITON = find_spec("triton") is not None
PATHS = ("auto", "reference", "eager", "cpp", "triton")
_ARGUMENTS = "Tensor x, Tensor targets, Tensor? class_weight, float positive, float negative, float gamma"


def is_fused(x: Tensor) -> bool:
    """Whether an operator below computes logits x, or the reference; asks nothing that `torch.compile` cannot trace."""
    forced = os.environ.get("FOCAL_TUTORIAL_PATH", "auto")
    if forced not in PATHS:
        raise ValueError(f"FOCAL_TUTORIAL_PATH must be one of {', '.join(PATHS)}, got {forced!r}")
    if forced == "reference":
        return False
    has_triton = HAS_TRITON and x.dtype != torch.float64
    return has_triton if forced == "triton" or x.device.type == "cuda" else x.device.type == "cpu"


def path_for(x: Tensor) -> str:
    """Which implementation computes logits x: "reference", "eager", "cpp" or "triton"."""
    forced = os.environ.get("FOCAL_TUTORIAL_PATH", "auto")
    if not is_fused(x):
        return "reference"
    if forced == "triton" or x.device.type == "cuda":
        return "triton"
    wanted = forced == "cpp" or (forced == "auto" and x.numel() >= COMPILE_FROM)
    return "cpp" if wanted and _fused_cpp.supports(x) and _fused_cpp.library() is not None else "eager"


def fused_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float | Tensor | None, gamma: float, reduce: bool
) -> Tensor:
    """The focal loss of logits (..., K), summed to 0-d or not; arguments as in `losses.sigmoid_focal_loss`."""
    columns = inputs.shape[-1] if inputs.dim() else 1
    x = inputs.reshape(-1, columns).contiguous()
    if targets.is_floating_point() or targets.dtype == torch.bool:
        targets = targets.to(x.dtype if targets.dtype == torch.bool else targets.dtype).reshape(-1, columns)
    else:
        targets = targets.reshape(-1).long()
    class_weight, positive, negative = None, 1.0, 1.0
    if isinstance(alpha, Tensor):
        a = alpha.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(columns)
        class_weight = torch.stack([a, 1 - a])  # (2, K)
    elif alpha is not None and alpha >= 0:
        positive, negative = float(alpha), 1.0 - float(alpha)
    op = torch.ops.focal_tutorial.focal_forward
    loss = op(x, targets.contiguous(), class_weight, positive, negative, float(gamma), reduce)
    return loss if reduce else loss.view(inputs.shape)


# ---------------------------------------------------------------- the operators
@torch.library.custom_op(
    "focal_tutorial::focal_forward", mutates_args=(), schema=f"({_ARGUMENTS}, bool reduce) -> Tensor"
)
def _forward(
    x: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    positive: float,
    negative: float,
    gamma: float,
    reduce: bool,
) -> Tensor:
    out = None if reduce else torch.empty_like(x)
    path = path_for(x)
    if x.numel() == 0:
        total = torch.zeros((), dtype=torch.float64, device=x.device)
    elif path == "triton":
        from . import _fused_triton

        total = _fused_triton.forward(x, targets, class_weight, positive, negative, gamma, out)
    else:
        _check_labels(x, targets)
        cpu = _fused_cpp if path == "cpp" else _fused_cpu
        total = cpu.forward(x, targets, _weight(x, class_weight, positive, negative), gamma, out)
    return total.to(torch.promote_types(x.dtype, torch.float32)) if out is None else out


@torch.library.custom_op(
    "focal_tutorial::focal_backward", mutates_args=(), schema=f"(Tensor grad, {_ARGUMENTS}) -> Tensor"
)
def _backward(
    grad: Tensor,
    x: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    positive: float,
    negative: float,
    gamma: float,
) -> Tensor:
    out = torch.empty_like(x)
    grad = grad.contiguous()
    path = path_for(x)
    if x.numel() == 0:
        return out
    if path == "triton":
        from . import _fused_triton

        _fused_triton.backward(grad, x, targets, class_weight, positive, negative, gamma, out)
    else:
        cpu = _fused_cpp if path == "cpp" else _fused_cpu
        cpu.backward(grad, x, targets, _weight(x, class_weight, positive, negative), gamma, out)
    return out


@_forward.register_fake
def _(x: Tensor, targets: Tensor, class_weight: Any, p: float, n: float, g: float, reduce: bool) -> Tensor:
    return x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32)) if reduce else torch.empty_like(x)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, targets: Tensor, class_weight: Any, p: float, n: float, g: float) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """For both operators: keep the tensors, all of them inputs, and the numbers."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.tensors = [isinstance(value, Tensor) for value in inputs]
    ctx.numbers = [value for value in inputs if not isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors)


def _saved(ctx: Any) -> list[Any]:
    tensors, numbers = iter(ctx.saved_tensors), iter(ctx.numbers)
    return [next(tensors) if is_tensor else next(numbers) for is_tensor in ctx.tensors]


def _forward_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *arguments, _ = _saved(ctx)
    dx = torch.ops.focal_tutorial.focal_backward(grad, *arguments)
    return (dx, *[None] * 6)


def _backward_gradient(ctx: Any, grad_dx: Tensor) -> tuple[Any, ...]:
    """Second derivatives, for the rare one who asks: plain PyTorch, with the one-hot that the kernels avoid."""
    grad, x, targets, class_weight, positive, negative, gamma = _saved(ctx)
    z, incoming, scale = at_least_float32(x), at_least_float32(grad_dx), at_least_float32(grad)
    t, kept = targets.to(z.dtype), 1.0
    if targets.dim() == 1:
        t = (targets[:, None] == torch.arange(x.shape[1], device=x.device)).to(z.dtype)
        z = z.masked_fill((targets == -2)[:, None], 0.0)
        kept = (targets != -2)[:, None].to(z.dtype)
    p, n = (positive, negative) if class_weight is None else class_weight
    weighted = incoming * kept * (t * p + (1 - t) * n)
    d_grad = weighted * _Slope.apply(z, t, gamma)
    d_grad = d_grad if grad.dim() else d_grad.sum()
    d_x = weighted * scale * _curvature(z, t, gamma)
    return (d_grad.to(grad.dtype), d_x.to(x.dtype), *[None] * 5)


_forward.register_autograd(_forward_gradient, setup_context=_save)
_backward.register_autograd(_backward_gradient, setup_context=_save)


# ---------------------------------------------------------------- helpers
def _weight(x: Tensor, class_weight: Tensor | None, positive: float, negative: float) -> Tensor:
    if class_weight is not None:
        return class_weight
    return torch.tensor([positive, negative], dtype=torch.promote_types(x.dtype, torch.float32))


def _check_labels(x: Tensor, targets: Tensor) -> None:
    if targets.dim() == 2 or targets.numel() == 0:
        return
    low, high = (int(v) for v in targets.aminmax())
    if low < -2 or high >= x.shape[1]:
        raise ValueError(
            f"integer targets must lie in 0 … {x.shape[1] - 1}, or be -1 (background) or -2 (ignored); "
            f"got {low if low < -2 else high}"
        )
