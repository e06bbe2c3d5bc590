"""How time and memory grow with what there is to do: boxes, images, pixels, candidates, detections, workers.

    python benchmarks/growth.py                      # CPU, one thread: about 5 minutes, book/results/growth_cpu.json
    python benchmarks/growth.py --only matching      # one part again; the others stay in the file
    python benchmarks/growth.py --device cuda        # GPU: book/results/growth_cuda.json
    python benchmarks/growth.py --smoke              # small sizes, one repetition, prints and writes nothing

A part is a process of its own, and each part is saved as it ends. Its points take turns, repetition after repetition,
each with other random inputs; what is kept is the better of a few calls. Memory is measured apart from time, and a
point is a process of its own there: what the call holds at its peak beyond what was there before, the inputs left out.
On Linux that is the resident set's high-water mark, reset by /proc/self/clear_refs just before the call, under an
allocator that maps every large block anew; on a GPU PyTorch's counter. A slope is that of log y against log x, by least
squares through the medians, over all points and over the upper half of them; 1 means in proportion.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_convert, box_iou

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.criterion import Criterion
from focal_tutorial.data.bccd import prepare_bccd
from focal_tutorial.data.coco import CocoDataset
from focal_tutorial.data.loader import make_loader
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.data.transforms import train_transforms
from focal_tutorial.detections import detect_image
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import evaluate_coco
from focal_tutorial.matching import match_anchors
from focal_tutorial.results import describe_device, library_versions, load_result, save_result

CLASSES, BOXES = 80, 7  # COCO has 80 classes and 7 boxes an image
FULL, MIDDLE, SMOKE = (800, 1344), (512, 512), (128, 128)  # (height, width): 201,600, 49,104 and 3,078 anchors
BATCH, IMAGES = 8, 128  # in a batch and in an epoch, when loading
PARTS = ("matching", "loss", "batch", "size", "candidates", "evaluation", "loading")
ANCHORS = AnchorGenerator()
Call = Callable[[], Any]
Points = dict[str, dict[str, list[dict[str, float | None]]]]  # curve → x → for each repetition {"ms": …, "mib": …}


class Curve(NamedTuple):
    """One measured line: `make(x, seed, device)` prepares the inputs and returns the call that is measured."""

    xs: list[int]
    make: Callable[[int, int, str], Call]
    memory: bool = True


# ---------------------------------------------------------------- inputs
def random_boxes(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """`(count, 4)` xyxy inside an image of `(height, width)`: sides from 8 pixels to half the image, log-uniform."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([size[1], size[0]]) / 2
    side = 8 * torch.exp(torch.rand(count, 1, generator=generator) * math.log(min(size) / 16))
    shape = torch.exp((torch.rand(count, 1, generator=generator) - 0.5) * 1.4)  # the root of the aspect, 1/2 to 2
    sides = torch.minimum(torch.cat([side * shape, side / shape], 1), limit)  # (count, 2)
    corner = torch.rand(count, 2, generator=generator) * (2 * limit - sides)
    return torch.cat([corner, corner + sides], 1)


@lru_cache(maxsize=1)
def outputs(images: int, size: tuple[int, int], seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Logits `(images, R, K)` around −6, one in a thousand above the threshold of 0.05, and deltas `(images, R, 4)`."""
    generator = torch.Generator(device).manual_seed(seed)
    anchors = sum(len(level) for level in ANCHORS(size))
    logits = torch.randn(images, anchors, CLASSES, generator=generator, device=device).sub_(6)
    return logits, torch.randn(images, anchors, 4, generator=generator, device=device) / 10


def targets(images: int, boxes: int, size: tuple[int, int], seed: int, device: str) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images, boxes), generator=generator)
    found = [random_boxes(boxes, size, seed * 1000 + i) for i in range(images)]
    return [{"boxes": b.to(device), "labels": k.to(device)} for b, k in zip(found, labels, strict=True)]


# ---------------------------------------------------------------- what is measured
def matching(size: tuple[int, int], images: int, boxes: int, seed: int, device: str, theirs: bool = False) -> Call:
    anchors = torch.cat(ANCHORS(size, device))
    wanted = [target["boxes"] for target in targets(images, boxes, size, seed, device)]
    if theirs:
        matcher = Matcher(0.5, 0.4, allow_low_quality_matches=False)
        return lambda: [matcher(box_iou(b, anchors)) for b in wanted]
    return lambda: [match_anchors(anchors, b) for b in wanted]


def loss(size: tuple[int, int], images: int, boxes: int, seed: int, device: str, backward: bool = True) -> Call:
    """`Criterion`, matching included, forward alone or with the gradients of logits and deltas."""
    anchors, criterion = torch.cat(ANCHORS(size, device)), Criterion().to(device)
    wanted = targets(images, boxes, size, seed, device)
    logits, deltas = (x.detach().requires_grad_(backward) for x in outputs(images, size, 0, device))

    def call() -> None:
        losses = criterion(logits, deltas, anchors, wanted)
        if backward:
            torch.autograd.grad(losses["classification"] + losses["bbox_regression"], (logits, deltas))

    return call


def detections(size: tuple[int, int], images: int, seed: int, device: str, candidates: int | None = None) -> Call:
    """Threshold, top-k, decoding and NMS, image by image; with `candidates` exactly so many scores are above 0.05."""
    anchors = ANCHORS(size, device)
    logits, deltas = outputs(images, size, seed, device)
    if candidates is not None:
        generator = torch.Generator(device).manual_seed(seed)
        logits = torch.full_like(logits, -6.0)
        place = torch.randperm(logits.numel(), generator=generator, device=device)[:candidates]
        logits.view(-1)[place] = torch.rand(candidates, generator=generator, device=device) * 5 - 2.9
    levels = [len(level) for level in anchors]
    split = [(x.split(levels), d.split(levels)) for x, d in zip(logits, deltas, strict=True)]
    return lambda: [detect_image(x, d, anchors, size) for x, d in split]


def evaluation(images: int, found: int, seed: int) -> Call:
    """The COCO part alone: `found` detections an image, a third of them near one of its 7 boxes."""
    size, generator = (480, 640), torch.Generator().manual_seed(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, target in enumerate(targets(images, BOXES, size, seed, "cpu"), start=1):
        xywh = box_convert(target["boxes"], "xyxy", "xywh")
        for box, label in zip(xywh.tolist(), target["labels"].tolist(), strict=True):
            annotations.append({"image_id": image, "category_id": label + 1, "bbox": box, "id": len(annotations) + 1})
        which = torch.randint(3 * BOXES, (found,), generator=generator)
        near = xywh[which % BOXES] + torch.randn(found, 4, generator=generator) * 2
        labels = torch.where(which < BOXES, target["labels"][which % BOXES], which * 7 % CLASSES)
        score = torch.rand(found, generator=generator)
        for box, label, s in zip(near.clamp(min=1).tolist(), labels.tolist(), score.tolist(), strict=True):
            results.append({"image_id": image, "category_id": label + 1, "bbox": box, "score": s})
    truth = {
        "images": [{"id": i + 1, "height": size[0], "width": size[1]} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": str(k)} for k in range(CLASSES)],
    }
    return lambda: evaluate_coco(truth, results)


@lru_cache(maxsize=1)
def photographs(most: int) -> tuple[CocoDataset, str]:
    """JPEG files: BCCD's training images, 480 × 640 pixels, or drawn shapes of 512 × 512 where it is not at hand."""
    try:
        paths = prepare_bccd()
        data, source = CocoDataset(paths["images"], paths["train"]), "BCCD"
    except InputError:
        from torchvision.io import write_jpeg

        shapes = ShapesDataset(most, size=512, cache=False)
        folder, content = Path(tempfile.mkdtemp()), shapes.coco_dict()
        for i, image in enumerate(content["images"]):
            image["file_name"] = f"{i}.jpg"
            write_jpeg(shapes.load_image(i), str(folder / image["file_name"]))
        (folder / "all.json").write_text(json.dumps(content))
        data, source = CocoDataset(folder, folder / "all.json"), "shapes"
    data.image_ids = data.image_ids[:most]
    data.set_transforms(train_transforms((480, 640), scale=(0.8, 1.25), colour=0.2), cache=False)
    return data, source


def loading(images: int, workers: int, seed: int) -> Call:
    """An epoch: read, decode, flip, scale, crop, jitter colours, collate. The workers run before the clock does."""
    loader = make_loader(photographs(images)[0], BATCH, shuffle=True, seed=seed, workers=workers)
    next(iter(loader))

    def call() -> None:
        loader.set_epoch(1)
        assert sum(len(batch) for batch, _ in loader) == images

    return call


def parts(smoke: bool) -> dict[str, dict[str, Curve]]:
    full, middle = (SMOKE, SMOKE) if smoke else (FULL, MIDDLE)
    boxes = [1, 3, 10] if smoke else [1, 3, 10, 30, 100, 300, 1000]
    batch = [1, 2] if smoke else [1, 2, 4, 8]
    sides = {len(torch.cat(ANCHORS((s, s)))): (s, s) for s in ((64, 128) if smoke else (256, 384, 512, 768, 1024))}
    images = BATCH if smoke else IMAGES
    cores = [n for n in (0, 1, 2, 4, 8, 16) if n <= (1 if smoke else os.cpu_count() or 1)]
    return {
        "matching": {
            "ours": Curve(boxes, lambda m, seed, at: matching(full, 1, m, seed, at)),
            "torchvision": Curve(boxes, lambda m, seed, at: matching(full, 1, m, seed, at, theirs=True)),
        },
        "loss": {
            "forward": Curve(boxes, lambda m, seed, at: loss(full, 1, m, seed, at, backward=False)),
            "step": Curve(boxes, lambda m, seed, at: loss(full, 1, m, seed, at)),
        },
        "batch": {
            "matching": Curve(batch, lambda n, seed, at: matching(middle, n, BOXES, seed, at)),
            "loss": Curve(batch, lambda n, seed, at: loss(middle, n, BOXES, seed, at)),
            "detections": Curve(batch, lambda n, seed, at: detections(middle, n, seed, at)),
        },
        "size": {
            "matching": Curve([*sides], lambda r, seed, at: matching(sides[r], 1, BOXES, seed, at)),
            "loss": Curve([*sides], lambda r, seed, at: loss(sides[r], 1, BOXES, seed, at)),
            "detections": Curve([*sides], lambda r, seed, at: detections(sides[r], 1, seed, at)),
        },
        "candidates": {
            "detections": Curve(
                [10, 100] if smoke else [10, 100, 1000, 10_000, 100_000, 1_000_000],
                lambda c, seed, at: detections(full, 1, seed, at, candidates=c),
            ),
        },
        "evaluation": {
            "detections": Curve(
                [1, 10] if smoke else [1, 3, 10, 30, 100], lambda d, seed, at: evaluation(4 if smoke else 100, d, seed)
            ),
            "images": Curve([2, 4] if smoke else [25, 50, 100, 200, 400], lambda n, seed, at: evaluation(n, 30, seed)),
        },
        "loading": {"workers": Curve(cores, lambda n, seed, at: loading(images, n, seed), memory=False)},
    }  # fmt: skip


# ---------------------------------------------------------------- one part in one process
def times(curves: dict[str, Curve], device: str, seeds: int) -> Points:
    """Milliseconds of each point."""
    torch.set_num_threads(1)
    found: Points = {name: {str(x): [] for x in curve.xs} for name, curve in curves.items()}
    for seed in range(seeds):
        for name, curve in curves.items():
            for x in curve.xs:
                call = curve.make(x, seed, device)
                if seed == 0:
                    timed(call, device)  # what is built, loaded or touched once does not count
                spent: list[float] = []
                while not spent or (sum(spent) < 0.2 and len(spent) < 5):
                    spent.append(timed(call, device))
                found[name][str(x)].append({"ms": round(1000 * min(spent), 4)})
    return found


def timed(call: Call, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memories(curves: dict[str, Curve], device: str, seeds: int) -> Points:
    """MiB at the peak of each point beyond its inputs; `None` where the system does not tell."""
    torch.set_num_threads(1)
    found: Points = {}
    for name, curve in curves.items():
        if curve.memory:
            small = curve.make(curve.xs[0], 0, device)
            found[name] = {
                str(x): [{"mib": peak(curve.make(x, seed, device), small, device)} for seed in range(seeds)]
                for x in curve.xs
            }
    return found


def peak(call: Call, small: Call, device: str) -> float | None:
    """MiB of `call`; `small` comes before it, for what is built, loaded or touched once."""
    if device == "cuda":
        small()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return None
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:  # memory that an earlier point freed would hide what this one takes
        small()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = resident("VmRSS")
        call()
        os.write(writer, str((resident("VmHWM") - before) / 1024).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return round(float(text), 3)


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))  # KiB


# ---------------------------------------------------------------- slopes
def fit_slope(xs: Sequence[float], ys: Sequence[float | None]) -> dict[str, float | int | None] | None:
    """Slope of log y against log x by least squares, and its standard error (`None` through two points).

    `None` in place of a slope where fewer than two points have positive x and y, or all the same x.
    """
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if x > 0 and y is not None and y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    centre, height = (statistics.fmean(column) for column in zip(*points, strict=True))
    spread = sum((x - centre) ** 2 for x, _ in points)
    slope = sum((x - centre) * (y - height) for x, y in points) / spread
    left = sum((y - height - slope * (x - centre)) ** 2 for x, y in points)
    free = len(points) - 2
    return {"slope": slope, "se": math.sqrt(left / free / spread) if free else None, "points": len(points)}


def as_curve(points: dict[str, list[dict[str, float | None]]]) -> dict[str, Any]:
    """Median, smallest and largest of each point, and the slopes over all points and over the upper half."""
    xs = [int(x) for x in points]
    half = max(3, math.ceil(len(xs) / 2))
    curve: dict[str, Any] = {"x": xs}
    for unit in ("ms", "mib"):
        columns = [[cell[unit] for cell in cells if cell.get(unit) is not None] for cells in points.values()]
        if all(columns):
            middle = [statistics.median(column) for column in columns]
            curve[unit] = {
                "median": middle,
                "low": [min(column) for column in columns],
                "high": [max(column) for column in columns],
                "all": fit_slope(xs, middle),
                "upper": fit_slope(xs[-half:], middle[-half:]),
            }
    return curve


# ---------------------------------------------------------------- everything
def call_self(arguments: list[str], **variables: str) -> Any:
    """Run this file as a worker; its last line is its result."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(part: str, device: str, seeds: int, smoke: bool) -> Points:
    """Every point of one part; in the smoke run within this process, as nobody reads its numbers."""
    if smoke:
        curves = parts(smoke)[part]
        return together(times(curves, device, seeds), memories(curves, device, seeds))
    shared = ["--device", device, "--seeds", str(seeds)]
    ms: Points = call_self(["--times", part, *shared])
    # glibc must give freed memory back at once, or the next allocation's peak does not show
    mib: Points = call_self(["--memory", part, *shared], MALLOC_MMAP_THRESHOLD_="100000", MALLOC_TRIM_THRESHOLD_="0")
    return together(ms, mib)


def together(ms: Points, mib: Points) -> Points:
    return {
        name: {
            x: [{**a, **b} for a, b in zip(cells, mib[name][x] if name in mib else [{}] * len(cells), strict=True)]
            for x, cells in points.items()
        }
        for name, points in ms.items()
    }


def print_curve(part: str, name: str, curve: dict[str, Any]) -> None:
    for unit in ("ms", "mib"):
        if unit in curve:
            ends = "  ".join(f"{x}: {v:.2f}" for x, v in zip(curve["x"], curve[unit]["median"], strict=True))
            slopes = [curve[unit][key] for key in ("all", "upper")]
            told = ", ".join(f"{s['slope']:.2f} ± {s['se'] or math.nan:.2f}" for s in slopes if s)
            print(f"{part:10s} {name:12s} {unit:4s} {ends}   slope {told}", flush=True)


def save(part: str, points: Points, seconds: float, device: str, seeds: int, folder: Path | None) -> Path:
    """Put one part in the place of its forerunner; a file of another machine or library is replaced as a whole."""
    name = f"growth_{device}"
    done: dict[str, Points] = {}
    spent: dict[str, float] = {}
    with contextlib.suppress(InputError):
        old = load_result(name, folder)
        same = old["provenance"]["device"] == describe_device(device) and len(old["runs"]) == seeds
        if same and old["provenance"]["versions"] == library_versions():
            done, spent = {p: regroup(old["runs"], p) for p in old["curves"]}, old["seconds"]
    done[part], spent[part] = points, round(seconds, 1)
    runs = [{"seed": i, "metrics": {p: pick(found, i) for p, found in done.items()}} for i in range(seeds)]
    config = {
        "classes": CLASSES, "boxes_per_image": BOXES, "anchors": len(torch.cat(ANCHORS(FULL))), "threads": 1,
        "sizes": {"matching, loss, candidates": FULL, "batch": MIDDLE, "evaluation, loading": (480, 640)},
        "batch_when_loading": BATCH, "images_loaded": IMAGES, "cores": os.cpu_count(),
    }  # fmt: skip
    curves = {p: {curve: as_curve(cells) for curve, cells in found.items()} for p, found in done.items()}
    for curve in curves.get("loading", {}).values():
        curve["images_per_second"] = [1000 * IMAGES / ms for ms in curve["ms"]["median"]]
    return save_result(
        name,
        {"config": config, "runs": runs, "curves": curves, "seconds": spent},
        wall_seconds=sum(spent.values()),
        device=device,
        folder=folder,
    )


def pick(found: Points, i: int) -> dict[str, Any]:
    return {curve: {x: cells[i] for x, cells in points.items()} for curve, points in found.items()}


def regroup(runs: list[dict[str, Any]], part: str) -> Points:
    first = runs[0]["metrics"][part]
    return {c: {x: [run["metrics"][part][c][x] for run in runs] for x in points} for c, points in first.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument("--out", type=Path, help="folder for the JSON file; default book/results")
    parser.add_argument("--smoke", action="store_true")
    for hidden in ("--times", "--memory"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.times or options.memory:
        run, part = (times, options.times) if options.times else (memories, options.memory)
        device = "cpu" if part in ("evaluation", "loading") else options.device
        print(json.dumps(run(parts(options.smoke)[part], device, options.seeds)))
        return
    seeds = 1 if options.smoke else options.seeds
    for part in options.only:
        start = time.perf_counter()
        points = measure(part, options.device, seeds, options.smoke)
        for name, cells in points.items():
            print_curve(part, name, as_curve(cells))
        if not options.smoke:
            path = save(part, points, time.perf_counter() - start, options.device, seeds, options.out)
            print(f"{time.perf_counter() - start:.0f} s, {path}", flush=True)


if __name__ == "__main__":
    main()
