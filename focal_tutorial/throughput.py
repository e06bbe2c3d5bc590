"""How fast a detector trains: seconds a step, images a second, memory, and what a full run would cost."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from focal_tutorial.evaluate import AMP_DTYPES
from focal_tutorial.optim import make_optimizer
from focal_tutorial.results import peak_memory
from focal_tutorial.retinanet import RetinaNet, build_model
from focal_tutorial.step_profile import StepClock, profile_step, spread, to_device, training_step
from focal_tutorial.train_config import TrainConfig
from focal_tutorial.train_setup import computing


def random_batch(
    size: tuple[int, int], batch: int, num_classes: int, *, objects: int = 7, seed: int = 0
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images of noise `(batch, 3, *size)` uint8 and targets for them: what a step costs hardly depends on the picture.

    Args:
        size: (height, width) in pixels.
        objects: boxes an image; COCO has 7 on average. Their sides are an eighth to a half of the image's.
        seed: of pixels, boxes and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    scale = torch.tensor([size[1], size[0]], dtype=torch.float32)
    targets = []
    for _ in range(batch):
        sides = scale * (0.125 + 0.375 * torch.rand(objects, 2, generator=generator))  # (M, 2)
        corner = (scale - sides) * torch.rand(objects, 2, generator=generator)
        labels = torch.randint(0, num_classes, (objects,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + sides], dim=1), "labels": labels})
    return images, targets


def kept_for_backward(
    model: RetinaNet, images: Tensor | list[Tensor], targets: list[dict[str, Any]], *, amp: str = "none"
) -> float:
    """MiB that the forward pass of a training step keeps for the backward pass, the weights themselves not counted.

    It is what a larger batch needs more of: a count of tensors, not of what an allocator or the system hands out. In
    float32 it is the same on every device; what autocast rounds differs (on CUDA it computes GroupNorm in float32).

    Args:
        model: in training mode, not compiled.
        images, targets: a batch.
        amp: "none" or "bf16". Autocast keeps weights that it has rounded; those are counted.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = AMP_DTYPES[amp]
    device = next(model.parameters()).device
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
    ):
        losses = model(images, targets)  # holds the graph, and so every tensor that was noted
    del losses
    return sum(kept.values()) / 2**20


def measure_training(
    builder: str,
    size: tuple[int, int],
    batch: int,
    *,
    num_classes: int = 80,
    amp: str = "none",
    channels_last: bool = True,
    compile: bool = False,
    tf32: bool = True,
    device: str = "cpu",
    threads: int | None = None,
    objects: int = 7,
    steps: int = 10,
    warmup: int = 3,
    profile: int = 0,
    seed: int = 0,
    model_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Time and memory of training steps on random images that lie on the device already: no loading, no evaluation.

    On the CPU the peak is the highest that this process has ever held, so a second call in the same process cannot show
    less than the first: `focal_tutorial.training_cost.in_new_process` gives each call its own.

    Args:
        builder: a builder of `focal_tutorial.retinanet` by name; retinanet_tiny is trained with AdamW, others with SGD.
        size: (height, width) of the network's input in pixels.
        batch: images a step.
        amp: "none" (float32) or "bf16" (autocast).
        channels_last: memory layout of weights and images.
        compile: `torch.compile` of the network, as `TrainConfig.compile` does it.
        tf32: False keeps convolutions on CUDA in full float32; torch lets cuDNN round their inputs to TF32 otherwise.
        threads: of the CPU; by default as in training, 1 for retinanet_tiny and torch's choice for the others.
        objects: boxes an image.
        steps: measured, after `warmup` others.
        profile: repetitions of `profile_step` after that, for "parts"; 0 for none.
        model_options: of the builder.

    Returns:
        A dictionary with "seconds" a step (`{"median", "low", "high"}`, with quartiles), "images_per_second" (of the
        median), "first_step_seconds" (with what is done once, such as compiling), "peak_memory_mib" (torch's on CUDA,
        the process's on the CPU), "memory_before_mib" (the same before there was a model), "kept_mib" (see
        `kept_for_backward`; not if compiled) and, if asked for, "parts" (milliseconds of each, medians).

    Raises:
        RuntimeError: what torch raises: out of memory, no compiler.
        ValueError: for settings out of range.
    """
    gc.collect()  # an optimiser lives in a cycle: that of an earlier call would keep its parameters
    target_device = torch.device(device)
    clock = StepClock(target_device)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        with computing(TrainConfig(model=builder, threads=threads)):
            if target_device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(target_device)
            before = peak_memory(target_device)
            torch.manual_seed(seed)
            options = {"canvas": size, **(model_options or {})}
            model = build_model({"builder": builder, "num_classes": num_classes, **options}).to(target_device).train()
            if channels_last:
                model.to(memory_format=torch.channels_last)
            # A rate near zero: random weights, random pictures, and no reason to leave the finite numbers.
            optimizer = make_optimizer(
                model, "adamw" if builder == "retinanet_tiny" else "sgd", lr=1e-9, momentum=0.9, weight_decay=1e-4
            )
            images, targets = random_batch(size, batch, num_classes, objects=objects, seed=seed)
            images = to_device(images, target_device, channels_last)  # type: ignore[assignment]
            if compile:
                model.compile_network()

            def step() -> None:
                training_step(model, optimizer, images, targets, amp=amp)

            found = {**_timed(step, clock, steps, warmup), "memory_before_mib": before}
            found["images_per_second"] = batch / found["seconds"]["median"]
            if not compile:
                found["kept_mib"] = round(kept_for_backward(model, images, targets, amp=amp), 1)
            if profile:
                parts = profile_step(model, [(images, targets)], optimizer, repetitions=profile, warmup=0, amp=amp)
                found["parts"] = parts.medians()
            return found
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _timed(step: Callable[[], None], clock: StepClock, steps: int, warmup: int) -> dict[str, Any]:
    """Seconds of `steps` calls after `warmup` others and of the very first, and the peak of memory."""
    first = 0.0
    for i in range(max(1, warmup)):
        clock.start()
        step()
        clock.mark("step")
        ((_, milliseconds),) = clock.stop()
        first = milliseconds if i == 0 else first
    if clock.device.type == "cuda":  # cuDNN's search for the fastest algorithm takes memory that training does not need
        torch.cuda.reset_peak_memory_stats(clock.device)
    clock.start()
    for _ in range(steps):
        step()
        clock.mark("step")  # no waiting: on a GPU the next step is queued while this one runs, as in training
    seconds = [milliseconds / 1e3 for _, milliseconds in clock.stop()]
    return {"seconds": spread(seconds), "first_step_seconds": first / 1e3, "peak_memory_mib": peak_memory(clock.device)}


def coco_cost(
    images_per_second: float,
    *,
    images: int = 118_287,
    epochs: float | None = None,
    iterations: int = 90_000,
    batch: int = 16,
    gpus: int = 1,
    efficiency: float = 1.0,
    price_per_hour: float | None = None,
) -> dict[str, float | None]:
    """Hours that a training run needs at a measured speed; by default the paper's, 90,000 iterations of 16 images.

    hours = images seen / (images_per_second · gpus · efficiency) / 3600

    Args:
        images_per_second: of one device, measured.
        images: of one epoch; COCO's train2017 has 118,287.
        epochs: length of the run in epochs, instead of `iterations · batch`.
        iterations: updates of the weights.
        batch: images an update, over all devices.
        gpus: devices that share the batch.
        efficiency: what each of several devices keeps of its speed, in (0, 1]; waiting for data counts too.
        price_per_hour: of one device, in any currency.

    Returns:
        "images" seen, "epochs", "hours", "gpu_hours" and "cost" (`None` without a price).

    Raises:
        ValueError: for a speed, count or price that is not positive, or an efficiency outside (0, 1].

    Source: RetinaNet paper §4.1 for the schedule.
    """
    given = {"images_per_second": images_per_second, "images": images, "iterations": iterations, "batch": batch,
             "gpus": gpus, "epochs": epochs, "price_per_hour": price_per_hour}  # fmt: skip
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}: a positive number wanted, got {value}")
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency: above 0 and at most 1 wanted, got {efficiency}")
    seen = float(iterations * batch if epochs is None else epochs * images)
    hours = seen / (images_per_second * gpus * efficiency) / 3600
    return {
        "images": seen,
        "epochs": seen / images,
        "hours": hours,
        "gpu_hours": hours * gpus,
        "cost": None if price_per_hour is None else hours * gpus * price_per_hour,
    }
