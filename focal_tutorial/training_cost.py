"""What training costs: the experiments `throughput` (speed and memory) and `precision` (what bf16 does to AP).

Each measurement has a process of its own: the most memory that a process has held never falls again, and what one
setting compiled would be there for the next. A seed runs every setting once, so that a slow minute of the machine does
not meet one setting only; the spread over seeds is one over processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from focal_tutorial.checkpoint import load_checkpoint, read_checkpoint, write_json
from focal_tutorial.comparison import (
    COMPARISON_RECIPES,
    RATES,
    SETTINGS,
    comparison_config,
    comparison_model,
    scene_options,
)
from focal_tutorial.data.coco import CocoDataset
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.evaluate import evaluate
from focal_tutorial.results import peak_memory
from focal_tutorial.retinanet import RetinaNet
from focal_tutorial.throughput import measure_training
from focal_tutorial.train import TrainConfig, train
from focal_tutorial.train_setup import resume_or_start

_TINY: dict[str, Any] = {  # chapter 14's on the CPU
    "builder": "retinanet_tiny", "size": (240, 320), "batch": 4, "num_classes": 3,
    "model_options": {"sizes": (20, 40, 80)}, "steps": 20,
}  # fmt: skip
_R50: dict[str, Any] = {  # the paper's detector and COCO's 80 classes; of the ResNet learns what learns after ImageNet
    "builder": "retinanet_resnet50_fpn", "model_options": {"norm": "frozen", "trainable": 3},
}  # fmt: skip
_SMALL = {**_R50, "size": (256, 256), "batch": 2, "threads": 1, "steps": 4, "warmup": 1}
_HALF = {**_R50, "size": (512, 512), "batch": 16}
_FULL = {**_R50, "size": (800, 1344)}  # what the paper's 800 px makes of COCO's wide images, in multiples of 32
_BF16 = {"amp": "bf16"}
_PLAIN = {"channels_last": False}

# "steps" and the rest: arguments of `measure_training`. "profile" adds where the time goes.
THROUGHPUT_RECIPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "settings": {
            "tiny": {**_TINY, **_PLAIN},
            "tiny_last": {**_TINY, "profile": 10},
            "tiny_bf16": {**_TINY, **_PLAIN, **_BF16},
            "tiny_bf16_last": {**_TINY, **_BF16, "profile": 10},
            "tiny_last_compile": {**_TINY, "compile": True},
            "tiny_last_2threads": {**_TINY, "threads": 2},
            "tiny_last_b1": {**_TINY, "batch": 1},
            "tiny_last_b16": {**_TINY, "batch": 16, "steps": 6},
            "r50": {**_SMALL, **_PLAIN},
            "r50_last": {**_SMALL, "profile": 2},
            "r50_bf16": {**_SMALL, **_PLAIN, **_BF16},
            "r50_bf16_last": {**_SMALL, **_BF16, "profile": 2},
            "r50_last_2threads": {**_SMALL, "threads": 2},
            "r50_bf16_last_2threads": {**_SMALL, **_BF16, "threads": 2},
            "r50_last_b1": {**_SMALL, "batch": 1},
        }
    },
    "gpu": {
        "settings": {
            "r50_fp32": {**_HALF, **_PLAIN, "tf32": False},
            "r50": {**_HALF, **_PLAIN},  # TF32 in the convolutions, as torch has it
            "r50_last": {**_HALF, "profile": 10},
            "r50_bf16": {**_HALF, **_PLAIN, **_BF16},
            "r50_bf16_last": {**_HALF, **_BF16, "profile": 10},
            "r50_bf16_last_compile": {**_HALF, **_BF16, "compile": True},
            **{f"r50_bf16_last_b{n}": {**_HALF, **_BF16, "batch": n} for n in (2, 4, 8, 32)},
            "full_last_b8": {**_FULL, "batch": 8},
            "full_bf16_last_b8_compile": {**_FULL, **_BF16, "batch": 8, "compile": True},
            "full_bf16_last_b16": {**_FULL, **_BF16, "batch": 16, "profile": 10},
            **{f"full_bf16_last_b{n}": {**_FULL, **_BF16, "batch": n} for n in (2, 4, 8)},
            "tiny_last": {**_TINY, "profile": 10},
            "tiny_last_b64": {**_TINY, "batch": 64},
        }
    },
}

# Two trainings that differ in rounding only part ways too, since each step starts where the last one ended. So there is
# a third, float32 in the other memory layout, whose sums are added up in another order. What bf16 costs is the
# difference beyond that.
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"amp": "none"},
    "bf16": {"amp": "bf16"},
    "float32_again": {"amp": "none", "channels_last": False},
}


def in_new_process(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """`function(*arguments, **named)` in a fresh process, with empty caches for what torch compiles.

    Args:
        function: at the top of a module that can be imported; what it takes and returns must be picklable.

    Raises:
        RuntimeError: (BrokenProcessPool) when the process dies, as it does when the machine's memory is used up.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        new = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=new, initializer=_compile_into, initargs=(cache,)) as pool:
            return pool.submit(function, *arguments, **named).result()


def _compile_into(folder: str) -> None:
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=f"{folder}/inductor", TRITON_CACHE_DIR=f"{folder}/triton")


def measured(**arguments: Any) -> dict[str, Any]:
    """`measure_training(**arguments)`, or `{"error": why not}` where torch cannot: no compiler, out of memory."""
    try:
        return measure_training(**arguments)
    except RuntimeError as error:
        text = re.sub(r"\S*[/\\]\S*", "…", f"{type(error).__name__}: {error}")  # no paths of the machine
        return {"error": " ".join(text.split())[:200]}


def run_throughput(
    profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any
) -> dict[str, Any]:
    """Every setting of `THROUGHPUT_RECIPES` once, each in its own process: `{"metrics": {setting: measured(…)}, …}`.

    Args:
        profile: "cpu" or "gpu".
        seed: of weights and images.
        out: folder; a setting that is done there is read.
        changes: "settings" for others.
    """
    settings = {**THROUGHPUT_RECIPES[profile], **changes}["settings"]
    metrics: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for name, arguments in settings.items():
        record = out / f"{name}.json"
        if not record.exists():
            where = "cuda" if profile == "gpu" else "cpu"
            try:
                found = in_new_process(measured, **arguments, device=where, seed=seed)
            except BrokenProcessPool:
                found = {"error": "the process died; out of memory?"}
            write_json(record, found)
        metrics[name] = json.loads(record.read_text(encoding="utf-8"))
    peaks = [m["peak_memory_mib"] for m in metrics.values() if m.get("peak_memory_mib") is not None]
    return {"metrics": metrics, "peak_memory_mib": max(peaks, default=None)}


def precision_recipe() -> dict[str, Any]:
    """The configuration of `precision` on the CPU as its result holds it; a GPU's is chapter 14's."""
    return {
        **COMPARISON_RECIPES["cpu"],
        "setting": SETTINGS["fl2"],
        "lr": RATES["cpu"]["focal"],
        "precisions": PRECISIONS,
    }


def run_precision(profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any) -> dict[str, Any]:
    """The same training as each of `PRECISIONS` says: `{"metrics": {"float32": {…}, "bf16": {…}, …}, …}`.

    Weights, images and their order are those of `seed` in all. The metrics are those on the test images, always
    evaluated in float32, so that only the training differs: AP, AP50, AP75, "loss" (the mean of the last steps),
    "train_seconds", and "peak_memory_mib" of the training.
    """
    metrics: dict[str, Any] = {}
    for name, precision in PRECISIONS.items():
        folder = out / name
        record = folder / "record.json"
        if not record.exists():
            run = (profile, seed, str(folder), None if root is None else str(root))
            run_here = {**changes, **precision}
            found = (
                precision_cell(*run, **run_here)
                if profile == "gpu"
                else in_new_process(precision_cell, *run, **run_here)
            )
            write_json(record, found)
        metrics[name] = json.loads(record.read_text(encoding="utf-8"))
    peaks = [m["peak_memory_mib"] for m in metrics.values() if m["peak_memory_mib"] is not None]
    return {"metrics": metrics, "peak_memory_mib": max(peaks, default=None)}


def precision_cell(profile: str, seed: int, out: str, root: str | None, **changes: Any) -> dict[str, Any]:
    """One training of `precision` and its metrics; a stopped one goes on."""
    folder = Path(out)
    config, model, test_set = (_bccd if profile == "gpu" else _shapes)(seed, folder, root, **changes)
    resume_or_start(config)
    peak: list[float | None] = []

    def watch(step: int, model: RetinaNet) -> None:
        if step == 10 and config.device == "cuda":  # forget what cuDNN's search for algorithms took
            torch.cuda.reset_peak_memory_stats()
        if step == config.steps:
            peak.append(peak_memory(config.device))

    trained = train(config, model=model, after_step=watch, progress=False)
    if model is None:
        model = load_checkpoint(folder / "best.pt", device=config.device)
    else:
        model.load_state_dict(read_checkpoint(folder / "best.pt")["model"])  # the averaged weights
    metrics = evaluate(model, test_set)
    return {
        **{name: metrics[name] for name in ("AP", "AP50", "AP75")},
        "loss": trained["loss"],
        "train_seconds": trained["seconds"],
        "peak_memory_mib": peak[-1] if peak else None,
    }


Cell = tuple[TrainConfig, RetinaNet | None, DetectionDataset]


def _shapes(seed: int, folder: Path, root: str | None, **changes: Any) -> Cell:
    """The comparison's run with the focal loss, its model, and its test images."""
    config = comparison_config("cpu", RATES["cpu"]["focal"], seed, folder, **changes)
    test_set = ShapesDataset(config.shapes["num_val"], split="test", **scene_options(config))
    return config, comparison_model("fl2", "cpu", seed), test_set


def _bccd(seed: int, folder: Path, root: str | None, **changes: Any) -> Cell:
    """Chapter 14's run on a GPU, and BCCD's test images."""
    from focal_tutorial.data.bccd import prepare_bccd
    from focal_tutorial.experiments import bccd_config  # which imports this module

    paths = prepare_bccd(root)
    config = bccd_config("gpu", seed, folder, root, **changes)
    return config, None, CocoDataset(paths["images"], paths["test"])
