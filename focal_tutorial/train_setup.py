"""What a training run stands on: device, data, model, folder."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from focal_tutorial.checkpoint import read_checkpoint, write_json
from focal_tutorial.data.coco import CocoDataset
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.data.transforms import train_transforms
from focal_tutorial.distributed import rank, require_same, share
from focal_tutorial.errors import InputError
from focal_tutorial.retinanet import RetinaNet, build_model
from focal_tutorial.train_config import TrainConfig

# What processes on different machines may set differently: where things are, and what computes them.
PER_MACHINE = (
    *("images", "annotations", "val_images", "val_annotations", "out", "weights", "weights_backbone"),
    *("device", "workers", "threads", "tensorboard"),
)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: auto, cpu, cuda or cuda:N wanted, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        number = torch.cuda.device_count()
        found = f"finds {number} here, counted from 0" if number else "finds no CUDA device here"
        raise InputError(f"device {name}: torch {found}; use another one or cpu")
    if device.type not in ("cuda", "cpu"):
        try:
            torch.zeros(1, device=device).item()  # an accelerator that is not there, or "meta", which holds no numbers
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise InputError(f"device {name}: torch cannot compute on it here; use cpu or cuda") from error
    return device


@contextlib.contextmanager
def computing(config: TrainConfig) -> Iterator[None]:
    """Set torch's threads and determinism for a run, and put them back after it."""
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # The tiny model gains little from a second thread, and loses a factor once another program wants the cores: the
    # threads of each operation wait for each other.
    wanted = config.threads or (1 if config.model == "retinanet_tiny" else None)
    if wanted is not None:
        torch.set_num_threads(wanted)
    if config.deterministic:
        _fix_cublas_workspace(config)
        torch.use_deterministic_algorithms(True)  # what cannot repeat stops the run, and does not only warn
        torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = not config.deterministic  # all batches have one shape: trying pays
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


def _fix_cublas_workspace(config: TrainConfig) -> None:
    """cuBLAS adds in one order only with one of two workspaces; it reads the setting when CUDA starts.

    Raises:
        InputError: the environment asks for another, and the run may be on a GPU.
    """
    chosen = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if chosen not in (":4096:8", ":16:8") and config.device != "cpu" and torch.cuda.is_available():
        raise InputError(
            f"deterministic: CUBLAS_WORKSPACE_CONFIG is {chosen!r}, with which cuBLAS does not repeat; unset it, or "
            "set it to :4096:8"
        )


def load_data(
    config: TrainConfig, images_per_step: int
) -> tuple[TrainConfig, DetectionDataset, DetectionDataset | None]:
    """The resolved configuration, the training set with its augmentation, and the validation set without any."""
    train_set: DetectionDataset
    val_set: DetectionDataset | None = None
    if config.images is None or config.annotations is None:
        options = {"num_train": 1000, "num_val": 300, **config.shapes}
        num_train, num_val = options.pop("num_train"), options.pop("num_val")
        try:
            train_set = ShapesDataset(num_train, split="train", **options)
            val_set = ShapesDataset(num_val, split="val", **options)
        except (TypeError, ValueError) as error:
            raise InputError(f"shapes: {error}") from error
    else:
        train_set = CocoDataset(config.images, config.annotations)
        if config.val_images is not None and config.val_annotations is not None:
            val_set = CocoDataset(config.val_images, config.val_annotations)
    config = config.resolved(images_per_step, [train_set.size(i) for i in range(len(train_set))])
    train_set.set_transforms(_augmentation(config), cache=bool(config.cache))
    train_set.require_trainable()
    if val_set is not None:
        val_set.set_transforms(None, cache=bool(config.cache))
    return config, train_set, val_set


def check_agreement(
    config: TrainConfig, train_set: DetectionDataset, val_set: DetectionDataset | None, step: int
) -> None:
    """Raise InputError unless all processes train the same: `step` is where each of them would go on."""
    require_same(
        {
            **{name: value for name, value in config.to_dict().items() if name not in PER_MACHINE},
            "training images": len(train_set),
            "validation images": len(val_set or ()),
            "classes": list(train_set.class_names),
            "step to go on from": step,
        }
    )


def _augmentation(config: TrainConfig) -> Any:
    c = config
    try:
        return train_transforms(
            c.canvas or (0, 0), flip=c.flip, flip_vertical=c.flip_vertical, scale=c.scale, colour=c.colour
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def make_model(config: TrainConfig, num_classes: int) -> RetinaNet:
    """The model of a resolved configuration, with weights drawn from `config.seed` or loaded."""
    if "canvas" in config.model_options:  # the images are brought to config.canvas; the model would resize them again
        raise InputError("model option canvas: set the size of the training canvas instead (--size)")
    torch.manual_seed(config.seed)
    given = {"weights": config.weights, "weights_backbone": config.weights_backbone, "canvas": config.canvas}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return build_model({"builder": config.model, "num_classes": num_classes, **given, **config.model_options})
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"model {config.model}: {error}") from error


def describe(
    config: TrainConfig,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    steps: int,
    images_per_step: int,
    device: torch.device,
) -> str:
    """What is about to be trained on what, and what of the data is left out, in a few lines."""
    names = train_set.class_names
    classes = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    checked_on = f"checked on {len(val_set)}" if val_set is not None else "no validation set, so no AP"
    lines = [f"{len(train_set)} images, {len(names)} classes ({classes}); {checked_on}"]
    for dataset in filter(None, (train_set, val_set)):
        if dataset.problems:
            kinds = Counter(problem.kind for problem in dataset.problems).most_common()
            found = ", ".join(f"{count} × {kind}" for kind, count in kinds)
            lines.append(
                f"left out or mended in {dataset.annotation_file}: {found} (focal-tutorial inspect lists them)"
            )
    height, width = config.canvas or (0, 0)
    lines.append(
        f"{config.model} at {height}×{width} on {device}: {steps} steps of {images_per_step} images, "
        f"{config.optimizer} with lr {config.lr:g}"
    )
    return "\n".join(lines)


# What last.pt holds beside the weights, and of which kind.
RUN_STATE: dict[str, type | tuple[type, ...]] = {
    "step": int, "seconds": (int, float), "metrics": dict, "best": dict, "optimizer": dict, "scaler": dict,
}  # fmt: skip


def read_last(config: TrainConfig) -> dict[str, Any]:
    """The last.pt of the run to resume."""
    path = Path(config.out or ".") / "last.pt"
    if not path.exists():
        raise InputError(f"resume: {path} does not exist; start the run without resume")
    state = read_checkpoint(path)
    if "optimizer" not in state:
        raise InputError(f"resume: {path} holds a model only, not a run; start a new run with weights {path}")
    try:
        TrainConfig(**state["config"])
        if any(not isinstance(state[name], kind) for name, kind in RUN_STATE.items()) or state["step"] < 0:
            raise TypeError("a part of another kind")
    except (TypeError, ValueError, LookupError) as error:
        raise InputError(
            f"resume: {path} is not as this version saves a run ({error}); start a new run, with weights {path}"
        ) from error
    return state


def resume_or_start(config: TrainConfig) -> None:
    """Set `config.resume` if there is a checkpoint in `config.out`, a folder that is the caller's alone.

    A run that was killed before its first last.pt leaves a log, perhaps best.pt, and starts again.
    """
    folder = Path(config.out or ".")
    config.resume = (folder / "last.pt").exists()
    if not config.resume and (folder / "log.csv").exists():
        (folder / "best.pt").unlink(missing_ok=True)
        (folder / "log.csv").unlink()


def open_folder(config: TrainConfig) -> Path:
    """Make the run folder and write config.json; a folder with a run in it is only opened to resume.

    Rank 0 does it. The others get its answer, an error included, so that none of them waits for ever.
    """
    answer: Path | InputError = InputError("")
    if rank() == 0:
        try:
            answer = _open_folder(config)
        except InputError as error:
            answer = error
    answer = share(answer)
    if isinstance(answer, InputError):
        raise answer
    return answer


def _open_folder(config: TrainConfig) -> Path:
    folder = Path(config.out) if config.out is not None else next(f for f in _folders(config) if not f.exists())
    if not config.resume and (folder / "last.pt").exists():
        raise InputError(f"{folder} already holds a run: resume it, or choose another out")
    if not config.resume and any((folder / name).exists() for name in ("best.pt", "log.csv")):
        raise InputError(
            f"{folder} holds a run that has no checkpoint yet: it is under way, or was killed early; choose another "
            "out, or delete the folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            abandoned.unlink()
    except OSError as error:
        raise InputError(f"run folder {folder}: {error.strerror}; choose another out") from error
    write_json(folder / "config.json", {**config.to_dict(), "out": str(folder)})
    return folder


def _folders(config: TrainConfig) -> Iterator[Path]:
    """Where runs go that name no folder: runs/shapes, runs/shapes-2, … or runs/train, …"""
    name = "shapes" if config.images is None else "train"
    return (Path("runs", name if number == 1 else f"{name}-{number}") for number in itertools.count(1))


def latest_folder(config: TrainConfig) -> Path:
    """The folder of the run to resume: `config.out`, else the last one that was made without a name."""
    if config.out is not None:
        return Path(config.out)
    made = list(itertools.takewhile(Path.exists, _folders(config)))
    if not made:
        raise InputError(f"resume: there is no run in {next(_folders(config))}; name the run folder (out)")
    return made[-1]
