"""Where the time of a training step goes, part by part.

The same code on a CPU and on a GPU. A GPU works through a queue that the program fills ahead of it, so its times are
those of CUDA events in that queue; a CPU's are the clock's.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from focal_tutorial.data.loader import Batch
from focal_tutorial.evaluate import AMP_DTYPES
from focal_tutorial.retinanet import RetinaNet

PARTS = ("data", "preprocess", "backbone", "pyramid", "heads", "matching", "losses", "backward", "optimizer")

Mark = Callable[[str], None]


class StepClock:
    """Splits a stretch of work into named parts: each lasts from the mark before it to its own.

    Args:
        device: "cpu" or "cuda".

    Raises:
        ValueError: for any other device, whose queue this clock cannot read.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device: cpu or cuda wanted, got {device.type}")
        self.device = device
        self._names: list[str] = []
        self._marks: list[Any] = []

    def start(self) -> None:
        """Wait until the device has nothing left to do, and begin."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._names, self._marks = [], [self._now()]

    def mark(self, name: str) -> None:
        """End the part `name` here; on a GPU, where its queue is now, without waiting for it."""
        self._names.append(name)
        self._marks.append(self._now())

    def stop(self) -> list[tuple[str, float]]:
        """Name and milliseconds of each part since `start`, in order; they add up to the whole."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            lengths = [before.elapsed_time(after) for before, after in pairs]
        else:
            lengths = [1e3 * (after - before) for before, after in pairs]
        return list(zip(self._names, lengths, strict=True))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


@dataclass(frozen=True)
class StepProfile:
    """Where the time of a training step goes.

    Attributes:
        parts: milliseconds of each of `PARTS`, one number for each repetition; those of one repetition add up to it.
        whole: milliseconds of steps without any mark inside, taken in turn with the others. The parts' medians
            should add up to the median of these within a tenth on an idle machine; if not, either measuring slowed the
            step or something else ran beside it.
    """

    parts: dict[str, list[float]]
    whole: list[float]

    def medians(self) -> dict[str, float]:
        """Milliseconds of each part, the median over the repetitions."""
        return {name: statistics.median(values) for name, values in self.parts.items()}

    def spreads(self) -> dict[str, dict[str, float]]:
        """`{"median", "low", "high"}` of each part in milliseconds; low and high are the quartiles."""
        return {name: spread(values) for name, values in self.parts.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """`{"median", "low", "high"}`, where half of the values lie between low and high (the quartiles)."""
    if len(values) < 2:
        return dict.fromkeys(("median", "low", "high"), float(values[0]))
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def training_step(
    model: RetinaNet,
    optimizer: torch.optim.Optimizer,
    images: Tensor | list[Tensor],
    targets: list[dict[str, Any]],
    *,
    amp: str = "none",
    mark: Mark | None = None,
) -> Tensor:
    """One update of the weights, and its loss (0-d, on the device): forward, backward, optimiser.

    Args:
        amp: "none" or "bf16", autocast of the forward pass.
        mark: called at the end of "backward" and of "optimizer".
    """
    device = next(model.parameters()).device
    dtype = AMP_DTYPES[amp]
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        losses = model(images, targets)
    loss = losses["classification"] + losses["bbox_regression"]
    loss.backward()
    if mark is not None:
        mark("backward")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if mark is not None:
        mark("optimizer")
    return loss.detach()


def profile_step(
    model: RetinaNet,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    repetitions: int = 10,
    warmup: int = 3,
    amp: str = "none",
) -> StepProfile:
    """Milliseconds of each part of a training step, measured in the model's own modules while it trains.

    "data" is the wait for the next batch and its copy to the device; "preprocess" checks, normalises and resizes;
    "matching" includes the anchors (made once for a size, then kept) and where the box subnet is to compute, "losses"
    is the rest of the criterion.
    Gradient clipping and averaged weights are not part of this step.

    Args:
        model: on "cpu" or "cuda", not compiled. It learns: `warmup + 2 · repetitions` updates.
        batches: `(images, targets)` as a loader gives them, gone through again and again; a list of one batch will do.
        optimizer: of the model's parameters.
        repetitions: steps with marks, and as many without.
        warmup: steps before, not counted.
        amp: "none" or "bf16".

    Raises:
        ValueError: for a compiled model, whose parts have been merged, or one on another device.
    """
    if {"network", "scores"} & vars(model).keys():
        raise ValueError("model: its network is compiled into one piece; profile it before torch.compile")
    device = next(model.parameters()).device
    clock = StepClock(device)
    channels_last = _is_channels_last(model)
    model.train()
    endless = (batch for _ in iter(int, 1) for batch in batches)
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    whole = []
    for step in range(warmup + 2 * repetitions):
        marked = step >= warmup and (step - warmup) % 2 == 0
        clock.start()
        images, targets = next(endless)
        images = to_device(images, device, channels_last)
        if marked:
            clock.mark("data")
            with _marks_inside(model, clock.mark):
                training_step(model, optimizer, images, targets, amp=amp, mark=clock.mark)
            found = dict.fromkeys(PARTS, 0.0)
            for name, milliseconds in clock.stop():
                found[name] += milliseconds
            for name, total in found.items():
                parts[name].append(total)
        else:
            training_step(model, optimizer, images, targets, amp=amp)
            clock.mark("whole")
            if step >= warmup:
                whole.append(clock.stop()[0][1])
    return StepProfile(parts, whole)


def to_device(images: Tensor | list[Tensor], device: torch.device, channels_last: bool) -> Tensor | list[Tensor]:
    """Images on the device in the memory layout of the model; a list stays as it is (`preprocess` moves it)."""
    if not isinstance(images, Tensor):
        return images
    images = images.to(device, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@contextlib.contextmanager
def _marks_inside(model: RetinaNet, mark: Mark) -> Iterator[None]:
    """Within it, each module of the forward pass marks its end."""
    modules = [
        (model.preprocess, "preprocess"),
        (model.backbone.body, "backbone"),
        (model.backbone.fpn, "pyramid"),
        (model.head.classification, "heads"),
        (model.head.regression, "heads"),
    ]
    handles = [module.register_forward_hook(lambda *ignored, name=name: mark(name)) for module, name in modules]
    methods: list[tuple[Any, str, str]] = [
        (model.criterion, "assign", "matching"),
        (model.head.regression, "windows", "matching"),
        (model.head.regression, "at", "heads"),
        (model.criterion, "losses", "losses"),
    ]
    for owner, method, name in methods:
        setattr(owner, method, _marked(getattr(owner, method), name, mark))
    try:
        yield
    finally:
        for owner, method, _ in methods:
            delattr(owner, method)  # the class's own is seen again
        for handle in handles:
            handle.remove()


def _marked(function: Callable[..., Any], name: str, mark: Mark) -> Callable[..., Any]:
    def marked(*arguments: Any) -> Any:
        found = function(*arguments)
        mark(name)
        return found

    return marked


def _is_channels_last(model: RetinaNet) -> bool:
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[-1] > 1)
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
