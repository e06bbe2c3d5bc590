"""Optimiser, learning-rate schedule, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(
    model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float, decay_norm_bias: bool = True
) -> torch.optim.Optimizer:
    """SGD with momentum (the paper) or AdamW over the parameters that learn, in one fused update.

    Args:
        name: "sgd" or "adamw".
        decay_norm_bias: False leaves vectors (biases, scales and shifts of norm layers) without weight decay.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": learning, "weight_decay": weight_decay}]
    if not decay_norm_bias:
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def learning_rate(
    step: int,
    total_steps: int,
    lr: float,
    *,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    milestones: Sequence[float] = (2 / 3, 8 / 9),
) -> float:
    """The rate of step `step`, counted from 0: a function of the step alone, so that a run resumes without a state.

    It rises linearly over `warmup_steps`; then "cosine" falls from `lr` to 0 at the end, and "step" falls to
    a tenth at each of `milestones` (the paper's 60k and 80k of 90k iterations are 2/3 and 8/9 of the run).
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "step":
        return lr * 0.1 ** sum(step >= share * total_steps for share in milestones)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)  # 0…1
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


class AveragedWeights:
    """An exponential moving average of a model's weights: `average.model` is a copy of the model that holds it.

    average ← d · average + (1 − d) · weights after each step, with d = min(decay, (1 + step) / (10 + step)),
    so that the random weights of the first steps are soon forgotten. Buffers (statistics of batch norm) are
    copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._average = [p.detach() for p in self.model.parameters()]
        self._buffers = list(self.model.buffers())

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in `model`'s weights after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights: list[Tensor] = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(self._average, weights, 1 - decay)  # one call, not one per parameter
        for average, buffer in zip(self._buffers, model.buffers(), strict=True):
            average.copy_(buffer)


class Accumulation:
    """Makes the gradient of several batches, added up, that of one batch of all their images.

    The criterion divides each batch's loss by the batch's own foreground anchors, n_i, and one large batch by Σ n_i. So
    each loss is multiplied by n_i / n_1 on the way into the sum, and the sum by n_1 / Σ n_i. (n_1 only keeps the
    numbers near 1, for float16.) Where the criterion does not divide by the batch's foreground, the batches are
    averaged.
    """

    def __init__(self, batches: int, processes: int = 1) -> None:
        self.batches = batches
        self.floor = 1 / processes  # the criterion's n_i is at least this
        self.first: Tensor | None = None
        self.sum: Tensor | None = None

    def weight(self, foreground: Tensor | None) -> Tensor | float:
        """What the next batch's loss is multiplied by; `foreground` is `Criterion.last_foreground`, 0-d."""
        if self.batches == 1 or foreground is None:
            return 1.0
        divided_by = foreground.clamp(min=self.floor)
        if self.first is None or self.sum is None:
            self.first, self.sum = divided_by, foreground
        else:
            self.sum = self.sum + foreground
        return divided_by / self.first

    def scale(self) -> Tensor | float:
        """What the sum of all batches is multiplied by."""
        if self.first is None or self.sum is None:
            return 1 / self.batches
        return self.first / self.sum.clamp(min=self.floor)
