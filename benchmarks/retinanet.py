"""The package's RetinaNet beside torchvision's `retinanet_resnet50_fpn`: speed and memory of the same computation.

    python benchmarks/retinanet.py                  # CPU, about 25 minutes: book/results/retinanet_cpu.json
    python benchmarks/retinanet.py --device cuda    # GPU: book/results/retinanet_cuda.json
    python benchmarks/retinanet.py --smoke          # small, one round, writes nothing

Both models have the same weights (the package loads torchvision's state dict, K = 91, frozen batch norm, three stages
of the ResNet that learn, as after ImageNet) and get the same images, and what they return is compared with
torchvision's in float32 first: the losses in training, the detections otherwise. A training step is forward with
resizing and targets, loss, backward, optimiser; detection goes from images of 480 × 640 pixels to boxes in them.

Times: within one process the variants take turns, round after round, and what counts is the ratio of one round, of
which the median is taken; each seed (of weights, images, boxes) is a process of its own. Memory: a process for each
variant; the most it held during three steps beyond what it held before there was a model (on a GPU: torch's peak).
Convolutions: their share of one profiled step. Without: the same model without one of the things that make it faster.
Detection meets images with few candidates (about 50 above the score threshold) and with many (about 2,000, scattered;
a trained detector's lie around objects, which is easier).

The machine must be idle. Finished measurements are kept under runs/benchmarks and not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from focal_tutorial import retinanet_resnet50_fpn
from focal_tutorial.backbone import FoldedConv2d, FrozenNorm
from focal_tutorial.throughput import random_batch

K = 91
IMAGE = (480, 640)
ROUNDS = {"cpu": {"train": 2, "detect": 7}, "cuda": {"train": 10, "detect": 10}}


def setting(task: str, size: int, batch: int, dtype: str, **more: Any) -> dict[str, Any]:
    """`size`: the shorter side that the models resize images to; `memory`: whether that is measured too."""
    return {"task": task, "image": list(IMAGE), "size": size, "batch": batch, "dtype": dtype, **more}


SETTINGS = {
    "cpu": {
        **{f"train_512_b2_{d}": setting("train", 512, 2, d) for d in ("float32", "bf16")},
        "train_512_b4_float32": setting("train", 512, 4, "float32", memory=True),
        "train_800_b1_float32": setting("train", 800, 1, "float32", memory=True, without=True),
        "train_800_b1_bf16": setting("train", 800, 1, "bf16", memory=True),
        **{f"detect_512_b1_{d}": setting("detect", 512, 1, d, candidates=50) for d in ("float32", "bf16")},
        "detect_800_b1_float32": setting("detect", 800, 1, "float32", candidates=50, without=True),
        "detect_800_b1_bf16": setting("detect", 800, 1, "bf16", candidates=50),
        "detect_800_b1_float32_many": setting("detect", 800, 1, "float32", candidates=2000),
        "detect_512_b4_float32": setting("detect", 512, 4, "float32", candidates=50),
    },
    "cuda": {
        "train_800_b16_bf16": setting(
            "train", 800, 16, "bf16", image=[600, 600], compile=True, memory=True, without=True
        ),
        "train_800_b16_float32": setting("train", 800, 16, "float32", image=[600, 600], memory=True),
        "train_800_b2_bf16": setting("train", 800, 2, "bf16", compile=True),
        "detect_800_b16_bf16": setting("detect", 800, 16, "bf16", candidates=50, compile=True, without=True),
        "detect_800_b16_bf16_many": setting("detect", 800, 16, "bf16", candidates=2000),
        "detect_800_b1_bf16": setting("detect", 800, 1, "bf16", candidates=50),
        "detect_800_b16_float32": setting("detect", 800, 16, "float32", candidates=50),
    },
    "smoke": {
        "train_96_b1_float32": setting("train", 96, 1, "float32", memory=True, without=True),
        "detect_96_b1_float32": setting("detect", 96, 1, "float32", candidates=20),
    },
}
CONVOLUTION = re.compile(r"convolution|conv2d")  # names of the operations that do the work


# ---------------------------------------------------------------- the two models
def torchvision_model(size: int, seed: int) -> nn.Module:
    """What `retinanet_resnet50_fpn` builds around a pretrained backbone, with random weights instead."""
    torch.manual_seed(seed)
    body = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=extra)
    model = TorchvisionRetinaNet(backbone, K, min_size=size, max_size=1333)
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)  # scores that differ
    return model


def our_model(theirs: nn.Module, size: int) -> nn.Module:
    return retinanet_resnet50_fpn(weights=theirs.state_dict(), min_size=size, max_size=1333)


def variants(s: dict[str, Any], theirs: nn.Module, only: str | None = None) -> dict[str, nn.Module]:
    """Models by name; `only` one of them is built, for what must not see the others' memory."""
    names = ["torchvision", "torchvision_channels_last", "ours"]
    names += ["torchvision_compiled", "ours_compiled"] if s.get("compile") else []
    names += ["ours_without_layout", "ours_without_windows", "ours_without_folding"] if s.get("without") else []
    models = {}
    for name in names if only is None else [only]:
        if name.startswith("ours"):
            model = our_model(theirs, s["size"])
        else:
            model = theirs if name == "torchvision" else copy_of(theirs, s["size"])
        if name not in ("torchvision", "ours_without_layout"):
            model.to(memory_format=torch.channels_last)
        if name == "ours_without_windows":
            model.head.regression.windows = lambda *ignored: None
        if name == "ours_without_folding":
            unfold(model)
        if name == "torchvision_compiled":
            model.backbone, model.head = torch.compile(model.backbone), torch.compile(model.head)
        if name == "ours_compiled":
            model.compile_network()
        models[name] = model
    return models


def copy_of(theirs: nn.Module, size: int) -> nn.Module:
    model = torchvision_model(size, 0)
    model.load_state_dict(theirs.state_dict())
    return model


def unfold(model: nn.Module) -> None:
    """Let every convolution and every frozen norm do its own work again."""
    for module in model.modules():
        if isinstance(module, FoldedConv2d):
            module.forward = partial(nn.Conv2d.forward, module)
        if isinstance(module, FrozenNorm):
            module.folded = False


def inputs(s: dict[str, Any], seed: int, device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = random_batch(tuple(s["image"]), s["batch"], K, seed=seed)
    moved = [{k: v.to(device) for k, v in target.items()} for target in targets]
    return [image.float().div(255).to(device) for image in images], moved


@torch.no_grad()
def set_candidates(theirs: nn.Module, images: list[Tensor], per_image: int) -> None:
    """Move the classes' biases so that this many scores of an image pass torchvision's threshold of 0.05."""
    layer = theirs.head.classification_head.cls_logits
    layer.bias.zero_()
    batch = theirs.transform(images)[0].tensors
    logits = theirs.head(list(theirs.backbone(batch).values()))["cls_logits"].flatten()
    last, next_one = logits.topk(per_image * len(images) + 1).values[-2:]
    layer.bias.fill_(float(torch.logit(torch.tensor(0.05)) - (last + next_one) / 2))  # rounding must not decide


# ---------------------------------------------------------------- the work
def work(s: dict[str, Any], model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Callable:
    """A training step, which returns its losses, or detection, which returns what was found."""
    device = images[0].device.type

    def precision() -> contextlib.AbstractContextManager[None]:
        return torch.autocast(device, torch.bfloat16, enabled=s["dtype"] == "bf16")

    if s["task"] == "detect":
        model.eval()

        def detect() -> list[dict[str, Tensor]]:
            with torch.inference_mode(), precision():
                return model(images)

        return detect
    model.train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.0, momentum=0.9, weight_decay=1e-4)  # every step the same one

    def step() -> dict[str, Tensor]:
        with precision():
            losses = model(images, [dict(target) for target in targets])
        (losses["classification"].float() + losses["bbox_regression"].float()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {name: loss.detach() for name, loss in losses.items()}

    return step


def difference(s: dict[str, Any], found: Any, wanted: Any) -> float | None:
    """Largest relative difference of the losses, or the share of detections that the other side does not have.

    `None` for detections in bf16: of random weights hardly any is so clear that rounding does not move it.
    """
    if s["task"] == "train":
        return max(abs(float(found[k]) / float(wanted[k]) - 1) for k in wanted)
    if s["dtype"] != "float32":
        return None
    lost = total = 0
    for a, b in zip(found, wanted, strict=True):
        iou = torchvision.ops.box_iou(b["boxes"].float(), a["boxes"].float())
        same = (iou > 0.99) & (b["labels"][:, None] == a["labels"])
        lost, total = lost + int((~same.any(1)).sum()) + abs(len(a["boxes"]) - len(b["boxes"])), total + len(b["boxes"])
    return lost / max(total, 1)


def timed(function: Callable, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def convolution_share(function: Callable, device: str) -> float:
    kinds = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else [])
    with torch.profiler.profile(activities=kinds) as profile:
        function()
        timed(lambda: None, device)
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times = [(event.key, getattr(event, name)) for event in profile.key_averages() if event.key.startswith("aten::")
             or "::" in event.key]  # fmt: skip
    return sum(t for key, t in times if CONVOLUTION.search(key)) / max(sum(t for _, t in times), 1e-9)


# ---------------------------------------------------------------- one measurement in one process
def speed(s: dict[str, Any], device: str, seed: int, rounds: int) -> dict[str, Any]:
    """Seconds of each variant, torchvision's over its own (ratio), and how far their results differ."""
    theirs = torchvision_model(s["size"], seed)
    images, targets = inputs(s, seed, "cpu")
    if s["task"] == "detect":
        set_candidates(theirs.eval(), images, s["candidates"])
    models = {name: model.to(device) for name, model in variants(s, theirs).items()}
    images, targets = inputs(s, seed, device)
    functions = {name: work(s, model, images, targets) for name, model in models.items()}
    wanted = work({**s, "dtype": "float32"}, models["torchvision"], images, targets)()
    first = {name: function() for name, function in functions.items()}  # compiles, fills caches; compared
    if device == "cuda":
        for function in functions.values():
            function(), function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(timed(function, device))
    base = times["torchvision"]
    return {
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "ratio": {name: statistics.median(b / t for b, t in zip(base, ts, strict=True)) for name, ts in times.items()},
        "difference": {name: difference(s, found, wanted) for name, found in first.items()},
        "convolutions": {name: convolution_share(functions[name], device) for name in ("torchvision", "ours")},
    }


def memory(s: dict[str, Any], device: str, seed: int, variant: str) -> float:
    """MiB that three training steps hold at most, beyond what the process held before."""
    images, targets = inputs(s, seed, device)
    before = 0.0 if device == "cuda" else resident("VmRSS")
    theirs = torchvision_model(s["size"], seed)
    model = variants(s, theirs, only=variant)[variant].to(device)
    del theirs
    gc.collect()
    step = work(s, model, images, targets)
    if device == "cuda":
        step(), step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again: two models were built here
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith(name))


# ---------------------------------------------------------------- everything
def in_process(folder: Path, name: str, arguments: dict[str, Any]) -> Any:
    """This file as a process for one measurement, unless its result is there."""
    record = folder / f"{name}.json"
    if not record.exists():
        command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--worker", json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}\n{done.stderr[-3000:]}")
        record.write_text(done.stdout.splitlines()[-1])
        print(name, record.read_text()[:400], flush=True)
    return json.loads(record.read_text())


def worker(a: dict[str, Any]) -> Any:
    if "variant" in a:
        return memory(a["setting"], a["device"], a["seed"], a["variant"])
    return speed(a["setting"], a["device"], a["seed"], a["rounds"])


def measure(kind: str, device: str, seed: int, folder: Path) -> dict[str, Any]:
    metrics = {}
    for name, s in SETTINGS[kind].items():
        rounds = ROUNDS[device][s["task"]] if kind != "smoke" else 1
        base = {"setting": s, "device": device, "seed": seed}
        metrics[name] = in_process(folder, f"{name}_{seed}", {**base, "rounds": rounds})
        if s.get("memory"):
            held = {
                variant: in_process(folder, f"{name}_{seed}_{variant}", {**base, "variant": variant})
                for variant in ("torchvision", "ours", *(("ours_compiled",) if s.get("compile") else ()))
            }
            metrics[name]["memory_mib"] = held
            metrics[name]["memory_ratio"] = {v: mib / held["torchvision"] for v, mib in held.items()}
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description="the package's RetinaNet beside torchvision's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of the result; by default book/results")
    parser.add_argument("--smoke", action="store_true", help="small sizes, one round, writes nothing")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(json.loads(given.worker))))
        return
    from tempfile import TemporaryDirectory

    from focal_tutorial.results import save_result

    kind = "smoke" if given.smoke else given.device
    start = time.perf_counter()
    with TemporaryDirectory() if given.smoke else contextlib.nullcontext(f"runs/benchmarks/retinanet_{kind}") as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        seeds = range(1 if given.smoke else given.seeds)
        runs = [{"seed": seed, "metrics": measure(kind, given.device, seed, Path(folder))} for seed in seeds]
    print(json.dumps(runs[0]["metrics"], indent=1))
    if not given.smoke:
        config = {"settings": SETTINGS[kind], "rounds": ROUNDS, "num_classes": K}
        path = save_result(
            f"retinanet_{kind}", {"config": config, "runs": runs}, device=given.device, folder=given.out,
            wall_seconds=time.perf_counter() - start,
        )  # fmt: skip
        print(f"written: {path.name}")


if __name__ == "__main__":
    main()
