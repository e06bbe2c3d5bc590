"""The settings of a training run, what they may be, and what stands in for those left open."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from focal_tutorial.errors import InputError

CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "step"),
    "amp": ("none", "bf16", "fp16"),
}
# Settings that say where and how a run computes, not what: a resumed run may change them.
FREE_ON_RESUME = (
    *("out", "resume", "resume_or_start", "device", "workers", "threads", "tensorboard", "save_every", "log_every"),
)


@dataclass
class TrainConfig:
    """Every setting of a training run; each is a number, text, list or dictionary, so that it fits into JSON.

    `None` leaves a choice to `resolved` (learning rate, length, …) or switches a part off.
    """

    # Data: COCO-format sets. Without `images` and `annotations` the run is on the synthetic shapes.
    images: str | None = None
    annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    shapes: dict[str, Any] = field(default_factory=dict)  # num_train, num_val, and options of ShapesDataset
    cache: bool | None = None  # keep the resized images in memory; None: only the shapes
    out: str | None = None  # run folder; None: the first free one of runs/shapes, runs/shapes-2, … (runs/train, …)
    resume: bool = False  # go on from last.pt in `out`
    resume_or_start: bool = False  # the same if there is one, else start: for jobs that something starts again

    # Model: a builder of focal_tutorial.retinanet and its options.
    model: str = "retinanet_tiny"
    weights: str | None = None
    weights_backbone: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    canvas: tuple[int, int] | None = None  # (height, width) of the network's input in pixels

    # Length and batch. A step is one update of the weights, on batch_size × accumulate × processes images.
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1

    # Optimisation. The paper: sgd, lr 0.01 at 16 images, weight_decay 1e-4, schedule step, ema None.
    optimizer: str | None = None
    lr: float | None = None
    momentum: float = 0.9  # of sgd
    weight_decay: float | None = None
    decay_norm_bias: bool = True  # the paper decays all parameters; False spares biases and norm layers
    warmup_steps: int = 100  # the rate rises linearly from lr/warmup_steps
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)  # of step: the rate falls to a tenth at these shares of the run
    clip_grad: float | None = None  # largest norm of the gradient; 0: any
    ema: float | None = 0.998  # decay per step of the averaged weights

    # Augmentation
    flip: float = 0.5  # chance of a mirror image
    flip_vertical: float = 0.0  # chance of turning it upside down: for images without an up
    scale: tuple[float, float] | None = None
    colour: float = 0.0

    # Computing
    device: str = "auto"  # cuda where there is one
    amp: str = "none"
    channels_last: bool | None = None  # memory layout of images and weights; None: yes
    compile: bool = False
    deterministic: bool = False  # only algorithms that give the same bits again, on CUDA too
    seed: int = 0
    workers: int = 0  # processes that load images beside the training
    threads: int | None = None  # of the CPU, per process; None: 1 for retinanet_tiny, else torch's choice

    # Records
    eval_every: int = 0  # epochs between evaluations; 0: at the end only. There is always one at the end.
    save_every: int = 500  # steps between checkpoints
    log_every: int = 20  # steps between looks at the loss and rows of log.csv
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("canvas", "milestones", "scale"):  # JSON has lists for tuples
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        self._check()

    def _check(self) -> None:
        """Raise InputError for values that no run can use."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in (*allowed, *([None] if name == "optimizer" else [])):
                raise InputError(f"{name}: one of {', '.join(allowed)} wanted, got {getattr(self, name)!r}")
        for name in ("epochs", "steps", "batch_size", "accumulate", "threads", "save_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: at least 1 wanted, got {value}")
        for name in ("lr", "weight_decay", "warmup_steps", "workers", "eval_every", "seed", "clip_grad"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name}: 0 or more wanted, got {value}")
        for name in ("momentum", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"{name}: at least 0 and below 1 wanted, got {value}")
        for name in ("scale", "milestones"):
            value = getattr(self, name)
            if value is not None and not all(map(math.isfinite, value)):
                raise InputError(f"{name}: finite numbers wanted, got {value}")
        if self.seed >= 2**62:
            raise InputError(f"seed: below 2^62 wanted, got {self.seed}")
        if self.epochs is not None and self.steps is not None:
            raise InputError(f"epochs ({self.epochs}) and steps ({self.steps}) both set the length: give one of them")
        for a, b in (("images", "annotations"), ("val_images", "val_annotations")):
            if (getattr(self, a) is None) != (getattr(self, b) is None):
                raise InputError(f"{a} and {b} belong together: give both or neither")
        if self.resume_or_start and self.out is None:
            raise InputError("resume_or_start: name the run folder (out)")
        if self.images is None and self.val_images is not None:
            raise InputError("val_images without images: give the training set too")

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dictionary for JSON; `TrainConfig(**it)` is this again."""
        return dataclasses.asdict(self)

    def resolved(self, images_per_step: int, sizes: Sequence[tuple[int, int]]) -> TrainConfig:
        """These settings with the open ones chosen, for images of `sizes` (height, width).

        | setting | retinanet_tiny | ResNets |
        |---|---|---|
        | optimizer | adamw | sgd |
        | lr | adamw .002, sgd .02 | adamw 1e-4, sgd .01 × images per step / 16 |
        | weight_decay | adamw .01, sgd 1e-4 | the same |
        | length | 2,400 steps on the shapes, else 30 epochs | the same |
        | clip_grad | 1 on the shapes, else 10 | the same |
        | canvas | the median size, shrunk to 512 on its longer side | the same |
        """
        tiny = self.model == "retinanet_tiny"
        optimizer = self.optimizer or ("adamw" if tiny else "sgd")
        rates = {"adamw": 2e-3, "sgd": 0.02} if tiny else {"adamw": 1e-4, "sgd": 0.01 * images_per_step / 16}
        open_length = self.steps is None and self.epochs is None
        model_options = dict(self.model_options)
        if tiny and self.images is None:
            # Strides 4, 8, 16 for shapes of 14 to 40 pixels; a wide body, since their classes differ in detail only.
            model_options = {"levels": [2, 3, 4], "channels": 32, "widths": [32, 64, 96, 128], **model_options}
        return dataclasses.replace(
            self,
            model_options=model_options,
            optimizer=optimizer,
            lr=rates[optimizer] if self.lr is None else self.lr,
            weight_decay={"adamw": 0.01, "sgd": 1e-4}[optimizer] if self.weight_decay is None else self.weight_decay,
            steps=2400 if open_length and self.images is None else self.steps,
            epochs=30 if open_length and self.images is not None else self.epochs,
            canvas=self.canvas or median_canvas(sizes),
            clip_grad=(1.0 if self.images is None else 10.0) if self.clip_grad is None else self.clip_grad,
            channels_last=True if self.channels_last is None else self.channels_last,
            cache=self.images is None if self.cache is None else self.cache,
        )

    def continued(self, stored: dict[str, Any]) -> TrainConfig:
        """The settings of the run that `stored` was saved by, with what this one may change (`FREE_ON_RESUME`).

        Raises:
            InputError: if this configuration sets something else (not to its default) than the run did.
        """
        default = TrainConfig().to_dict()
        given = {name: value for name, value in self.to_dict().items() if value != default[name]}
        # Of a dictionary only the given entries count: `resolved` may have added others.
        again = {n: {**stored[n], **value} if isinstance(value, dict) else value for n, value in given.items()}
        old, new = (json.loads(json.dumps(x)) for x in (stored, again))  # in which lists and tuples are the same
        changed = [name for name in given if name not in FREE_ON_RESUME and new[name] != old.get(name)]
        if changed:
            name = changed[0]
            raise InputError(
                f"{name} is {given[name]!r}, but the run in {self.out} was started with {stored.get(name)!r}; a "
                "resumed run keeps its settings: leave it out, or start another run"
            )
        free = {name: given[name] for name in FREE_ON_RESUME if name in given}
        return TrainConfig(**{**stored, **free})


def median_canvas(sizes: Sequence[tuple[int, int]], longest: int = 512, multiple: int = 32) -> tuple[int, int]:
    """`(height, width)` for images of `sizes`: the median of each side, no side over `longest`, rounded up."""
    height, width = (sorted(side)[len(sizes) // 2] for side in zip(*sizes, strict=True))
    shrink = min(1.0, longest / max(height, width))
    rounded = [-(-round(side * shrink) // multiple) * multiple for side in (height, width)]
    return rounded[0], rounded[1]
