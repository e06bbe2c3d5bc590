"""What a second process costs: images a second of several processes that train one model, against one process alone.

    python benchmarks/scaling.py                     # CPU, one thread a process: about 5 minutes, scaling_cpu.json
    python benchmarks/scaling.py --device cuda       # 1, 2, 4, … GPUs, as many as there are: scaling_cuda.json
    python benchmarks/scaling.py --smoke             # a small model, one repetition, prints and writes nothing

Weak scaling: each process has the same batch, so that two of them take twice as many images a step. Three ways take
turns, repetition after repetition: `alone`, one process; `beside`, several that train a model each and do not speak to
each other; and `together`, several with one model (DDP over gloo on the CPU, NCCL on GPUs, and the criterion's sum of
foreground anchors). What `beside` loses against `alone` is the machine's: memory, caches and clock are shared. What
`together` loses beyond that is the price of working together: sending the gradients, and waiting for the slowest.
Images are random and lie on the device; loading and evaluation are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from focal_tutorial.distributed import data_parallel, process_group
from focal_tutorial.optim import make_optimizer
from focal_tutorial.results import describe_device, peak_memory, save_result
from focal_tutorial.retinanet import build_model
from focal_tutorial.step_profile import StepClock, spread, to_device, training_step
from focal_tutorial.throughput import random_batch

FROZEN = {"norm": "frozen", "trainable": 3}  # as after pretraining: of the ResNet the last three stages learn
TINY = {"builder": "retinanet_tiny", "options": {"sizes": [20, 40, 80]}, "size": [240, 320], "classes": 3}
R18 = {"builder": "retinanet_resnet18_fpn", "options": FROZEN, "classes": 80}
R50 = {"builder": "retinanet_resnet50_fpn", "options": FROZEN, "classes": 80}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "tiny": {**TINY, "batch": 4, "steps": 40, "warmup": 5},
        "resnet18": {**R18, "size": [256, 256], "batch": 2, "steps": 6, "warmup": 2},
        "resnet50": {**R50, "size": [256, 256], "batch": 2, "steps": 5, "warmup": 1},
    },
    "cuda": {
        "tiny": {**TINY, "batch": 64, "steps": 40, "warmup": 10},
        "resnet50_b2": {**R50, "size": [800, 1344], "batch": 2, "amp": "bf16", "steps": 30, "warmup": 5},
        "resnet50_b8": {**R50, "size": [800, 1344], "batch": 8, "amp": "bf16", "steps": 20, "warmup": 5},
    },
    "smoke": {"tiny": {**TINY, "size": [64, 64], "batch": 2, "steps": 3, "warmup": 1}},
}


# ---------------------------------------------------------------- one process
def work(way: str, profile: str, device_name: str, folder: Path) -> None:
    """Measure every setting in this process, and write what was found to the folder."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(device_name, int(os.environ["LOCAL_RANK"])) if device_name == "cuda" else torch.device("cpu")
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    found = {}
    with process_group(device) if way == "together" else contextlib.nullcontext():
        for name, setting in SETTINGS[profile].items():
            found[name] = measure(setting, device, lambda name=name: meet(folder, name, rank, count))
    (folder / f"{rank}.json").write_text(json.dumps({"metrics": found, "peak": peak_memory(device)}))


def measure(setting: dict[str, Any], device: torch.device, ready: Any) -> dict[str, Any]:
    """Seconds of training steps; `ready()` returns when all processes are about to begin."""
    torch.manual_seed(0)
    size, batch = tuple(setting["size"]), setting["batch"]
    options = {"canvas": size, **setting["options"]}
    model = build_model({"builder": setting["builder"], "num_classes": setting["classes"], **options})
    model.to(device, memory_format=torch.channels_last).train()
    parallel = data_parallel(model)
    name = "adamw" if setting["builder"] == "retinanet_tiny" else "sgd"
    optimizer = make_optimizer(model, name, lr=1e-9, momentum=0.9, weight_decay=1e-4)
    images, targets = random_batch(size, batch, setting["classes"], seed=int(os.environ["RANK"]))
    images = to_device(images, device, True)
    clock = StepClock(device)
    for _ in range(setting["warmup"]):
        training_step(parallel, optimizer, images, targets, amp=setting.get("amp", "none"))
    ready()
    clock.start()
    for _ in range(setting["steps"]):
        training_step(parallel, optimizer, images, targets, amp=setting.get("amp", "none"))
        clock.mark("step")
    seconds = [milliseconds / 1e3 for _, milliseconds in clock.stop()]
    learned = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return {"seconds": spread(seconds), "images_per_second": batch / statistics.median(seconds),
            "gradient_mib": learned / 2**20}  # fmt: skip


def meet(folder: Path, name: str, rank: int, count: int) -> None:
    """Wait until all processes are here: by files, since those that work beside each other have no group."""
    (folder / f"{name}.{rank}").touch()
    while not all((folder / f"{name}.{other}").exists() for other in range(count)):
        time.sleep(0.001)


# ---------------------------------------------------------------- all of them
def launch(way: str, count: int, profile: str, device: str) -> tuple[dict[str, Any], float]:
    """What `count` processes find, by setting: seconds of a step of the slowest, images a second of all; the peak."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        words = ["--work", way, "--profile", profile, "--device", device, "--folder", folder]
        done = subprocess.run(
            [*torchrun, str(Path(__file__).resolve()), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{way}, {count} processes:\n{done.stderr[-3000:]}")
        each = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]
    metrics = {}
    for name in SETTINGS[profile]:
        mine = [one["metrics"][name] for one in each]
        slowest = max(mine, key=lambda found: found["seconds"]["median"])
        metrics[name] = {**slowest, "images_per_second": sum(found["images_per_second"] for found in mine)}
    return metrics, max(one["peak"] or 0.0 for one in each)


def repetition(counts: list[int], profile: str, device: str) -> dict[str, Any]:
    """All ways once: setting → way → figures, with each way's efficiency, its speed over `count` times one's alone."""
    ways = [("alone", 1), *((way, count) for count in counts for way in ("beside", "together"))]
    metrics: dict[str, Any] = {name: {} for name in SETTINGS[profile]}
    peak = 0.0
    for way, count in ways:
        found, memory = launch(way, count, profile, device)
        peak = max(peak, memory)
        for name, figures in found.items():
            key = way if count == 1 else f"{way}_{count}"
            metrics[name]["gradient_mib"] = figures.pop("gradient_mib")
            one = metrics[name].get("alone", figures)["images_per_second"]
            metrics[name][key] = {**figures, "efficiency": figures["images_per_second"] / (count * one)}
    return {"metrics": metrics, "peak_memory_mib": peak}


def show(runs: list[dict[str, Any]]) -> None:
    """The medians over the repetitions, a row each."""
    print(f"{'model':13}{'way':12}{'ms a step':>10}{'images/s':>10}{'efficiency':>12}  low … high")
    for name, ways in runs[0]["metrics"].items():
        for way in (way for way in ways if way != "gradient_mib"):
            found = [run["metrics"][name][way] for run in runs]
            step, speed, efficiency = (
                [pick(one) for one in found]
                for pick in (
                    lambda one: 1e3 * one["seconds"]["median"],
                    lambda one: one["images_per_second"],
                    lambda one: one["efficiency"],
                )
            )
            low_high = f"{min(efficiency):.3f} … {max(efficiency):.3f}"
            print(f"{name:13}{way:12}{statistics.median(step):10.1f}{statistics.median(speed):10.2f}"
                  f"{statistics.median(efficiency):12.3f}  {low_high}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a small model, one repetition; writes nothing")
    parser.add_argument("--out", type=Path, help="folder of the result; book/results by default")
    for name in ("--work", "--profile", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.profile, args.device, Path(args.folder))
        return
    torch.set_num_threads(1)
    profile = "smoke" if args.smoke else args.device
    most = torch.cuda.device_count() if args.device == "cuda" else 2
    counts = [count for count in (2, 4, 8, 16) if count <= most]
    start, runs = time.perf_counter(), []
    for number in range(1 if args.smoke else args.repetitions):
        began = time.perf_counter()
        runs.append({"seed": number, **repetition(counts, profile, args.device)})
        runs[-1]["seconds"] = round(time.perf_counter() - began, 1)
    show(runs)
    if not args.smoke:
        config = {"settings": SETTINGS[profile], "processes": [1, *counts], "threads": 1,
                  "backend": "nccl" if args.device == "cuda" else "gloo"}  # fmt: skip
        payload = {"title": "several processes that train one model, against one alone", "config": config, "runs": runs}
        path = save_result(
            f"scaling_{args.device}", payload, wall_seconds=round(time.perf_counter() - start, 1),
            peak_memory_mib=max(run["peak_memory_mib"] for run in runs), device=args.device,
            device_name=describe_device(args.device), folder=args.out,
        )  # fmt: skip
        print(f"written: {path}")


if __name__ == "__main__":
    main()
