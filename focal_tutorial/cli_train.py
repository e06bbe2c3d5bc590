"""`focal-tutorial train`: every setting of `TrainConfig` as an option, in its order, with its default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from focal_tutorial.cli_options import parse_numbers, parse_options, parse_size
from focal_tutorial.errors import InputError

DATA, MODEL, LENGTH, OPTIMISATION = "Data", "Model", "Length and batch", "Optimisation"
AUGMENTATION, COMPUTING, RECORDS = "Augmentation", "Computing", "Records"


def option(panel: str, help: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def train(
    images: Annotated[
        Path | None, option(DATA, "Folder of the training images. Without any: synthetic shapes.")
    ] = None,
    annotations: Annotated[Path | None, option(DATA, "COCO-format JSON of the training set.")] = None,
    val_images: Annotated[Path | None, option(DATA, "Folder of the validation images.")] = None,
    val_annotations: Annotated[Path | None, option(DATA, "COCO-format JSON of the validation set.")] = None,
    shapes: Annotated[
        list[str] | None, option(DATA, "Of the synthetic shapes: num_train=1000, contrast=[8,30], … Repeatable.")
    ] = None,
    cache: Annotated[
        bool | None, option(DATA, "Keep the resized images in memory; by default the shapes only.")
    ] = None,
    out: Annotated[Path | None, option(DATA, "Run folder; by default the first free of runs/train, …-2, …")] = None,
    resume: Annotated[bool, option(DATA, "Go on from last.pt in --out, to the same result.", "--resume")] = False,
    resume_or_start: Annotated[
        bool, option(DATA, "Go on if --out holds a last.pt, else start: for restarted jobs.", "--resume-or-start")
    ] = False,
    model: Annotated[
        str, option(MODEL, "Builder: retinanet_tiny or retinanet_resnet18_fpn, …34…, …50…, …101….")
    ] = "retinanet_tiny",
    weights: Annotated[str | None, option(MODEL, "COCO_V1 (downloads), a checkpoint, or a state dict file.")] = None,
    weights_backbone: Annotated[str | None, option(MODEL, "ResNet weights, as IMAGENET1K_V1 (downloads).")] = None,
    options: Annotated[
        list[str] | None,
        option(MODEL, "A model option, as levels=[2,3,4], gamma=1.5, box_loss=giou. Repeatable.", "--option", "-o"),
    ] = None,
    size: Annotated[
        str | None,
        option(MODEL, "Network input in pixels, 512 or 384x512 (height x width); else the median size, to 512."),
    ] = None,
    epochs: Annotated[int | None, option(LENGTH, "Passes over the training set; by default 30.")] = None,
    steps: Annotated[int | None, option(LENGTH, "Updates of the weights, in place of --epochs.")] = None,
    batch_size: Annotated[int, option(LENGTH, "Images at a time in each process.")] = 4,
    accumulate: Annotated[int, option(LENGTH, "Batches per update of the weights.")] = 1,
    optimizer: Annotated[str | None, option(OPTIMISATION, "adamw or sgd; by default adamw for tiny, else sgd.")] = None,
    lr: Annotated[float | None, option(OPTIMISATION, "Peak learning rate; a default per model and optimizer.")] = None,
    momentum: Annotated[float, option(OPTIMISATION, "Of sgd, 0 … 1.")] = 0.9,
    weight_decay: Annotated[float | None, option(OPTIMISATION, "By default adamw 0.01, sgd 0.0001.")] = None,
    decay_norm_bias: Annotated[bool, option(OPTIMISATION, "Decay norm layers and biases too, as the paper.")] = True,
    warmup_steps: Annotated[int, option(OPTIMISATION, "Steps in which the rate rises to --lr.")] = 100,
    schedule: Annotated[str, option(OPTIMISATION, "How the rate falls: cosine, or step (÷ 10).")] = "cosine",
    milestones: Annotated[
        str | None, option(OPTIMISATION, "Of step: shares of the run, by default 0.667,0.889.")
    ] = None,
    clip_grad: Annotated[
        float | None, option(OPTIMISATION, "Largest norm of the gradient, by default 10 (shapes: 1); 0: any.")
    ] = None,
    ema: Annotated[float, option(OPTIMISATION, "Decay per step of the averaged weights, 0 … 1; 0: none.")] = 0.998,
    flip: Annotated[float, option(AUGMENTATION, "Chance of a mirror image, 0 … 1.")] = 0.5,
    flip_vertical: Annotated[float, option(AUGMENTATION, "Chance of turning it upside down, 0 … 1.")] = 0.0,
    scale: Annotated[
        str | None, option(AUGMENTATION, "Random zoom between two factors, as 0.8,1.25; none by default.")
    ] = None,
    colour: Annotated[float, option(AUGMENTATION, "Strength of colour jitter, 0 … 1.")] = 0.0,
    device: Annotated[str, option(COMPUTING, "cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")] = "auto",
    amp: Annotated[str, option(COMPUTING, "Arithmetic: none (float32), bf16 or fp16.")] = "none",
    channels_last: Annotated[bool | None, option(COMPUTING, "Memory layout; by default channels last.")] = None,
    compile: Annotated[bool, option(COMPUTING, "torch.compile the network.", "--compile")] = False,
    deterministic: Annotated[
        bool, option(COMPUTING, "Only algorithms that repeat bit for bit.", "--deterministic")
    ] = False,
    seed: Annotated[int, option(COMPUTING, "Start of all random numbers.")] = 0,
    workers: Annotated[int, option(COMPUTING, "Processes that load images beside the training.")] = 0,
    threads: Annotated[
        int | None, option(COMPUTING, "CPU threads per process; by default 1 for retinanet_tiny, else torch's choice.")
    ] = None,
    eval_every: Annotated[int, option(RECORDS, "Epochs between evaluations; 0: at the end only.")] = 0,
    save_every: Annotated[int, option(RECORDS, "Steps between checkpoints.")] = 500,
    log_every: Annotated[int, option(RECORDS, "Steps between rows of log.csv.")] = 20,
    tensorboard: Annotated[
        bool, option(RECORDS, "Write TensorBoard events (needs the extra of that name).", "--tensorboard")
    ] = False,
) -> None:
    """Train a RetinaNet. Without arguments: on synthetic shapes, about three minutes on two CPU cores.

    The run folder gets best.pt, last.pt, log.csv, config.json and metrics.json. Several GPUs:
    torchrun --nproc-per-node N -m focal_tutorial train …
    """
    given = dict(locals())
    given |= {name: str(given[name]) for name in PATHS if given[name] is not None}
    given["shapes"] = parse_options(given["shapes"], "--shapes")
    given["model_options"] = parse_options(given.pop("options"), "--option")
    given["canvas"] = parse_size(given.pop("size"))
    given["scale"] = parse_numbers(scale, "--scale", 2)
    given["milestones"] = parse_numbers(milestones, "--milestones")
    if given["milestones"] is None:
        del given["milestones"]
    if given["shapes"] and images is not None:
        raise InputError("--shapes: only for training on the synthetic shapes, that is without --images")

    from focal_tutorial.inspection import metrics_text
    from focal_tutorial.train import TrainConfig
    from focal_tutorial.train import train as run_training

    metrics = run_training(TrainConfig(**given))
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks for all
        return
    if "AP" in metrics:
        typer.echo(metrics_text(metrics), nl=False)
    typer.echo(f"\nwritten: {metrics['out']}; use it: focal-tutorial predict {metrics['out']}/best.pt IMAGE…")


PATHS = ("images", "annotations", "val_images", "val_annotations", "out")
