"""Time, memory and errors of focal loss implementations, side by side.

    python benchmarks/focal_loss.py                   # CPU: about 8 minutes, writes book/results/focal_loss_cpu.json
    python benchmarks/focal_loss.py --device cuda     # GPU: book/results/focal_loss_cuda.json
    python benchmarks/focal_loss.py --smoke           # small sizes, one round, prints and writes nothing

Forward and backward, gamma = 2, alpha = 0.25, sum. Each implementation runs in a process of its own, and there takes
turns with torchvision's, round by round; the speed-up is torchvision's time over its own in the same round. A process
of its own because the state of one changes the time of another: see `warm_log1p` below. The 0/1 matrix that the others
need as targets is made beforehand and not counted. fvcore, kornia and MONAI run where they are installed (`[bench]`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from focal_tutorial.losses import sigmoid_focal_loss

GAMMA, ALPHA = 2.0, 0.25
SIZES = {
    "cpu": [(98_208, 80), (200_000, 91)],
    "cuda": [(16 * 201_600, 80), (16 * 98_208, 91)],
    "smoke": [(2_000, 80)],
}
Loss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]  # logits, labels, 0/1 targets, alpha, gamma → sum


# ---------------------------------------------------------------- the implementations
def blog(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """The form that most articles print."""
    ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return ((alpha * t + (1 - alpha) * (1 - t)) * (1 - torch.exp(-ce)) ** gamma * ce).sum()


def teaching_line(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """Exact at finite logits, on softplus, for hard targets."""
    x_t = torch.where(t > 0, x, -x)
    return ((alpha * t + (1 - alpha) * (1 - t)) * -torch.exp(gamma * F.logsigmoid(-x_t)) * F.logsigmoid(x_t)).sum()


def vision(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    return torchvision.ops.sigmoid_focal_loss(x, t, alpha, gamma, "sum")


def vision_after_pow(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """torchvision in a process that has called `pow` once (see `warm_log1p`)."""
    return vision(x, labels, t, alpha, gamma)


def fvcore(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    from fvcore.nn import sigmoid_focal_loss as loss

    return loss(x, t, alpha, gamma, "sum")


def kornia(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    from kornia.losses import binary_focal_loss_with_logits as loss

    return loss(x, t, alpha, gamma, "sum")


def monai(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    from monai.losses import FocalLoss

    # its "sum" of a two-dimensional input is a mean (MONAI 1.6.1): it averages over no spatial dimensions, so over all
    return FocalLoss(gamma=gamma, alpha=alpha, reduction="none")(x, t).sum()


def ours(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    return sigmoid_focal_loss(x, labels, alpha, gamma, "sum")


def ours_dense(x: Tensor, labels: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    return sigmoid_focal_loss(x, t, alpha, gamma, "sum")


IMPLEMENTATIONS: dict[str, tuple[Loss, str | None]] = {  # the second: the path that the package is made to take
    "torchvision": (vision, None),
    "torchvision compiled": (vision, None),
    "torchvision after pow": (vision_after_pow, None),
    "blog form": (blog, None),
    "teaching line": (teaching_line, None),
    "fvcore": (fvcore, None),
    "kornia": (kornia, None),
    "monai": (monai, None),
    "reference, labels": (ours, "reference"),
    "eager, labels": (ours, "eager"),
    "eager, float targets": (ours_dense, "eager"),
    "cpp, labels": (ours, "cpp"),
    "cpp, float targets": (ours_dense, "cpp"),
    "triton, labels": (ours, "triton"),
    "triton, float targets": (ours_dense, "triton"),
}


ON_TWO_THREADS = ("torchvision", *(name for name, (_, path) in IMPLEMENTATIONS.items() if path in ("eager", "cpp")))


def available(name: str, device: str) -> bool:
    from importlib.util import find_spec

    path = IMPLEMENTATIONS[name][1]
    if path is not None:
        if path == "cpp":
            from focal_tutorial._fused_cpp import library

            return device == "cpu" and library() is not None
        return {"triton": device == "cuda", "eager": device == "cpu"}.get(path, True)
    if name == "torchvision after pow":
        return device == "cpu"
    return name not in ("fvcore", "kornia", "monai") or find_spec(name) is not None


def warm_log1p() -> None:
    """One call of pow or atanh makes log1p and softplus up to 19 times faster for the rest of the process.

    Found with torch 2.14.1 on an AVX-512 CPU: 10.6 against 0.56 ns an element. Any optimiser or other loss may do it
    unseen, so a time measured in a shared process depends on what ran before.
    """
    torch.pow(torch.rand(4096) + 0.1, 1.7)


# ---------------------------------------------------------------- one implementation in one process
def worker(name: str, device: str, threads: int, rounds: int, sizes: list[list[int]], dtype: str) -> dict[str, Any]:
    torch.set_num_threads(threads)
    loss = IMPLEMENTATIONS[name][0]
    if name == "torchvision compiled":
        loss = torch.compile(loss)
    if name == "torchvision after pow":
        warm_log1p()
    results: dict[str, Any] = {}
    for rows, classes in sizes:
        x, labels, t = inputs(rows, classes, device, getattr(torch, dtype))
        first = time.perf_counter()
        step(loss, x, labels, t)
        first = time.perf_counter() - first
        step(vision, x, labels, t)
        pairs = []
        for _ in range(rounds):
            pairs.append([timed(f, x, labels, t, device) for f in (vision, loss)])
        results[f"{rows}x{classes}"] = {
            "torchvision_ms": [1000 * a for a, _ in pairs],
            "ms": [1000 * b for _, b in pairs],
            "first_call_ms": 1000 * first,
        }
        if device == "cuda":
            results[f"{rows}x{classes}"]["floor_ms"] = 1000 * floor(x)
    return results


def memory(name: str, device: str, sizes: list[list[int]], dtype: str) -> dict[str, Any]:
    """Copies of the logits kept for the backward, and at the peak."""
    torch.set_num_threads(1)
    loss = IMPLEMENTATIONS[name][0]
    if name == "torchvision compiled":
        loss = torch.compile(loss)
    results = {}
    for rows, classes in sizes:
        x, labels, t = inputs(rows, classes, device, getattr(torch, dtype))
        copy = x.numel() * x.element_size()
        step(loss, x, labels, t)  # what is built or loaded once does not count
        results[f"{rows}x{classes}"] = {
            "saved_times_logits": saved(loss, x, labels, t) / copy,
            "peak_times_logits": peak(loss, x, labels, t, device) / copy,
        }
    return results


def inputs(rows: int, classes: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits around -4, one row in a hundred positive; none ignored, which the others could not express."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, classes, generator=generator) * 2 - 4).to(device, dtype)
    labels = torch.full((rows,), -1)
    positive = torch.randperm(rows, generator=generator)[: rows // 100]
    labels[positive] = torch.randint(classes, (len(positive),), generator=generator)
    t = torch.zeros(rows, classes)
    t[positive, labels[positive]] = 1.0
    return x.requires_grad_(), labels.to(device), t.to(device, dtype)


def step(loss: Loss, x: Tensor, labels: Tensor, t: Tensor) -> None:
    x.grad = None
    loss(x, labels, t, ALPHA, GAMMA).backward()


def timed(loss: Loss, x: Tensor, labels: Tensor, t: Tensor, device: str) -> float:
    """Seconds of a step: the median of several in a row on a GPU, the better of two on a CPU."""
    if device == "cpu":
        times = []
        for _ in range(2):
            start = time.perf_counter()
            step(loss, x, labels, t)
            times.append(time.perf_counter() - start)
        return min(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(21)]
    step(loss, x, labels, t)
    for event in events[:-1]:
        event.record()
        step(loss, x, labels, t)
    events[-1].record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in pairwise(events))
    return times[len(times) // 2] / 1000


def saved(loss: Loss, x: Tensor, labels: Tensor, t: Tensor) -> int:
    """Bytes kept for the backward beyond the inputs."""
    storages = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda v: (storages.update({key(v): v}), v)[1], lambda v: v):
        loss(x, labels, t, ALPHA, GAMMA)
    known = {key(v) for v in (x, labels, t)}
    return sum(v.untyped_storage().nbytes() for k, v in storages.items() if k not in known)


def key(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def peak(loss: Loss, x: Tensor, labels: Tensor, t: Tensor, device: str) -> float:
    """Most bytes in use during a step beyond what was there before, the gradient included."""
    x.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, x, labels, t)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")

    def read(name: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = read("VmRSS")
    step(loss, x, labels, t)
    return read("VmHWM") - before


def floor(x: Tensor) -> float:
    """Seconds that reading the logits twice and writing a gradient once take at the bandwidth of a copy."""
    a, b = torch.empty_like(x), torch.empty_like(x)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    b.copy_(a)
    start.record()
    for _ in range(20):
        b.copy_(a)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 20 / 1000 * 3 / 2  # a copy moves 2 numbers an element, the loss 3


# ---------------------------------------------------------------- errors against mpmath
LOGITS = [0.0] + [s * v for v in (1e-8, 1e-3, 0.5, 3.0, 10.0, 20.0, 100.0, 1000.0) for s in (1, -1)]
GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def errors(name: str) -> dict[str, Any]:
    """Gradients of single logits: how many are NaN, how many off by more than the dtype's rounding and 1e-3."""
    loss, table = IMPLEMENTATIONS[name][0], {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        count = {"cells": 0, "nan": 0, "wrong": 0, "worst": 0.0}
        for gamma in GAMMAS:
            for label in (0, -1):
                x = torch.tensor(LOGITS, dtype=dtype)[:, None].requires_grad_()
                t = torch.full_like(x, float(label == 0)).detach()
                labels = torch.full((len(LOGITS),), label)
                (gradient,) = torch.autograd.grad(loss(x, labels, t, 0.5, gamma), x)  # alpha: 1/2 of every term
                for value, got in zip(x.flatten().tolist(), (2 * gradient.double()).flatten().tolist(), strict=True):
                    judge(count, got, exact_gradient(value, label, gamma), dtype)
        table[str(dtype).removeprefix("torch.")] = count
    return table


def exact_gradient(x: float, label: int, gamma: float) -> Any:
    import mpmath

    with mpmath.workdps(30):
        sign = 1 if label == 0 else -1
        z = mpmath.mpf(sign * x)
        e = mpmath.exp(-abs(z))
        p, q = (1 / (1 + e), e / (1 + e)) if z >= 0 else (e / (1 + e), 1 / (1 + e))
        return -sign * q ** mpmath.mpf(gamma) * (gamma * p * (mpmath.log1p(e) + max(0, -z)) + q)


def judge(count: dict[str, Any], got: float, wanted: Any, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    count["cells"] += 1
    if got != got:
        count["nan"] += 1
        return
    smallest = info.smallest_normal * info.eps  # below it there is only zero
    error = abs(got - wanted)
    relative = float(error / abs(wanted)) if wanted else 0.0
    if error > max(1e-3, info.eps) * abs(wanted) + 2 * smallest:
        count["wrong"] += 1
        count["worst"] = max(count["worst"], min(relative, 1e9))


# ---------------------------------------------------------------- everything
def call(arguments: list[str], path: str | None, **variables: str) -> Any:
    """Run this file as a worker; its last line is its result."""
    environment = {**os.environ, **variables}
    if path is not None:
        environment["FOCAL_TUTORIAL_PATH"] = path
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(device: str, rounds: int, sizes: list[tuple[int, int]], dtypes: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for threads in (1, 2) if device == "cpu" else (1,):
        for dtype in dtypes:
            setting = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else dtype
            for name, (_, path) in IMPLEMENTATIONS.items():
                if available(name, device) and (threads == 1 or name in ON_TWO_THREADS):
                    options = ["--device", device, "--threads", str(threads), "--rounds", str(rounds), "--dtype", dtype]
                    results.setdefault(setting, {})[name] = call(
                        ["--worker", name, *options, "--sizes", json.dumps(sizes)], path
                    )
                    print_row(setting, name, results[setting][name])
    return results


def measure_memory(device: str, sizes: list[tuple[int, int]], dtypes: list[str]) -> dict[str, Any]:
    """Apart from the times: glibc must give freed memory back at once, or the next step's peak does not show."""
    results: dict[str, Any] = {}
    for dtype in dtypes:
        for name, (_, path) in IMPLEMENTATIONS.items():
            if available(name, device) and name != "torchvision after pow":
                arguments = ["--memory", name, "--device", device, "--dtype", dtype, "--sizes", json.dumps(sizes)]
                row = results.setdefault(dtype, {})[name] = call(arguments, path, MALLOC_MMAP_THRESHOLD_="100000")
                cells = (f"{k}: {r['saved_times_logits']:.1f} {r['peak_times_logits']:.2f}" for k, r in row.items())
                print(f"{dtype:10s} {name:24s} kept, peak", *cells, flush=True)
    return results


def print_row(setting: str, name: str, result: dict[str, Any]) -> None:
    cells = []
    for size, r in result.items():
        ratios = sorted(a / b for a, b in zip(r["torchvision_ms"], r["ms"], strict=True))
        middle = ratios[len(ratios) // 2]
        cells.append(f"{size} {min(r['ms']):8.2f} ms {middle:5.1f}x ({ratios[0]:.1f}-{ratios[-1]:.1f}) ")
    print(f"{setting:10s} {name:24s}", *cells, flush=True)


def as_runs(results: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """One run a round: milliseconds and speed-up of every implementation."""
    runs = []
    for i in range(rounds):
        metrics = {
            setting: {
                name: {
                    size: {"ms": r["ms"][i], "speedup": r["torchvision_ms"][i] / r["ms"][i]}
                    for size, r in sizes.items()
                }
                for name, sizes in names.items()
            }
            for setting, names in results.items()
        }
        runs.append({"seed": i, "metrics": metrics})
    return runs


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("fvcore", "kornia", "monai", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the JSON file; default book/results")
    parser.add_argument("--smoke", action="store_true")
    for hidden in ("--worker", "--memory", "--errors", "--sizes", "--dtype"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sizes = json.loads(options.sizes)
        result = worker(options.worker, options.device, options.threads, options.rounds, sizes, options.dtype)
        print(json.dumps(result))
        return
    if options.memory:
        print(json.dumps(memory(options.memory, options.device, json.loads(options.sizes), options.dtype)))
        return
    if options.errors:
        print(json.dumps(errors(options.errors)))
        return
    start = time.perf_counter()
    rounds = 1 if options.smoke else options.rounds
    sizes = SIZES["smoke" if options.smoke else options.device]
    dtypes = ["float32"] if options.device == "cpu" else ["float32", "bfloat16"]
    results = measure(options.device, rounds, sizes, dtypes)
    copies = measure_memory(options.device, sizes, dtypes)
    skipped = ("torchvision compiled", "torchvision after pow", "triton, labels", "triton, float targets")
    tables = {
        name: call(["--errors", name], path)
        for name, (_, path) in IMPLEMENTATIONS.items()
        if options.device == "cpu" and name not in skipped and available(name, "cpu")
    }
    for name, table in tables.items():
        print(f"{name:24s}", *(f"{d} {c['nan']}/{c['wrong']} of {c['cells']}" for d, c in table.items()), sep="  ")
    if options.smoke:
        return
    from focal_tutorial.results import save_result

    keep = ("first_call_ms", "floor_ms")
    payload = {
        "config": {
            "gamma": GAMMA, "alpha": ALPHA, "sizes": [f"{r}x{c}" for r, c in sizes], "rounds": rounds,
            "reduction": "sum", "positives": "1 row in 100", "peers": versions(),
        },
        "runs": as_runs(results, rounds),
        "memory": copies,
        "other": {
            setting: {
                name: {size: {k: r[k] for k in keep if k in r} for size, r in by_size.items()}
                for name, by_size in names.items()
            }
            for setting, names in results.items()
        },
        "errors": tables,
    }  # fmt: skip
    path = save_result(
        f"focal_loss_{options.device}",
        payload,
        wall_seconds=time.perf_counter() - start,
        device=options.device,
        folder=options.out,
    )
    print(path)


if __name__ == "__main__":
    main()
