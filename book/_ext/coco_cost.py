"""What a COCO run takes, book/coco_on_gpus.md: tables that the package computes while the book is built.

    ```{coco-recipes}     learning rate, steps and drops of the paper's recipe at other batches
    ```
    ```{coco-scaling}     what several processes keep of their speed, where benchmarks/scaling.py has measured it
    ```
    ```{coco-example}     the arithmetic once, with the fastest ResNet-50 that was measured on a CPU
    ```
    ```{coco-hours}       hours on 1, 8 and 64 devices by the images a second of one, those measured first
    ```

A GPU's speed is read from book/results/throughput_gpu.json where there is one; without it the table says so and shows
what the hours would be at four speeds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FULL = (800, 1344)  # (height, width) that the page trains at
EFFICIENCY = 0.9  # assumed of each of several devices
DEVICES = (1, 8, 64)
SPEEDS = (10.0, 30.0, 100.0, 300.0)  # images a second, examples
RECIPES = ((1, 2, 8), (1, 16, 1), (8, 2, 1), (8, 4, 1), (64, 2, 1))  # GPUs, batch size, accumulated batches


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with numbers to the right."""
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hours_text(hours: float) -> str:
    """Two digits that mean something: 0.07, 1.9, 42, 1,300."""
    if hours < 10:
        return f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"
    return f"{round(hours, 1 - math.floor(math.log10(hours))):,.0f}"


def recipes() -> str:
    """The table of `{coco-recipes}`."""
    from focal_tutorial.scaling import scaled_recipe

    rows = []
    for gpus, batch, accumulate in RECIPES:
        recipe = scaled_recipe(gpus * batch * accumulate)
        each = f"{batch}" if accumulate == 1 else f"{batch} × {accumulate}"
        drops = ", ".join(f"{drop / 1000:g}k" for drop in recipe.drops)
        rows.append([str(gpus), each, f"{recipe.images_per_step}", f"{recipe.lr:g}", f"{recipe.steps:,}", drops])
    return table(["GPUs", "images each", "a step", "rate", "steps", "falls at"], rows)


def scaling(root: Path) -> str:
    """The text of `{coco-scaling}`: an efficiency of each kind for every model and number of processes."""
    parts = []
    for name in ("scaling_cpu", "scaling_cuda"):
        result = read(root, name)
        if result is None:
            continue
        rows = []
        for model, ways in result["summary"].items():
            for count in result["config"]["processes"][1:]:
                pair = [ways[f"{way}_{count}"]["efficiency"] for way in ("beside", "together")]
                mib = f"{ways['gradient_mib']['mean']:.0f}"
                rows.append(
                    [f"{count} × {model.replace('_', ' ')}", mib, *(f"{e['mean']:.2f} ± {e['sd']:.2f}" for e in pair)]
                )
        device, runs = result["provenance"]["device"].split(",")[0], len(result["runs"])
        told = f"On {device} ({result['config']['backend']}, {runs} repetitions, mean ± standard deviation):"
        parts.append(f"{told}\n\n" + table(["processes", "MiB", "beside", "together"], rows))
    return "\n\n".join(parts) or "No machine has been measured yet."


def read(root: Path, name: str) -> dict[str, Any] | None:
    path = root / "book" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def fastest(result: dict[str, Any], beginning: str) -> tuple[str, float]:
    """Name and mean images a second of the fastest setting whose name begins so."""
    found = {
        name: figures["images_per_second"]["mean"]
        for name, figures in result["summary"].items()
        if name.startswith(beginning) and figures.get("images_per_second", {}).get("mean")
    }
    best = max(found, key=lambda name: found[name])
    return best, found[best]


def measured_cpu(root: Path) -> tuple[str, dict[str, Any], float, float]:
    """The device, the setting, its images a second, and what that is at full size by the number of pixels."""
    result = read(root, "throughput_cpu")
    if result is None:
        raise OSError("book/results/throughput_cpu.json is missing")
    name, speed = fastest(result, "r50")
    setting = result["config"]["settings"][name]
    height, width = setting["size"]
    device = result["provenance"]["device"].split(",")[0]
    return device, setting, speed, speed * height * width / (FULL[0] * FULL[1])


def example(root: Path) -> str:
    """The text of `{coco-example}`."""
    from focal_tutorial.throughput import coco_cost

    device, setting, speed, full = measured_cpu(root)
    height, width = setting["size"]
    hours = coco_cost(full)["hours"]
    arithmetic = {"bf16": "bfloat16", "none": "float32"}[setting.get("amp", "none")]
    pixels = FULL[0] * FULL[1] / (height * width)
    return (
        f"On the CPU of this book ({device}, {setting['threads']} threads, {arithmetic}) a ResNet-50 RetinaNet "
        f"trains on {speed:.1f} images a second at {height} × {width} pixels. A canvas of {FULL[0]} × {FULL[1]} has "
        f"{pixels:.1f} times the pixels, so it would be about {full:.2f} images a second there, by the pixels alone. "
        f"90,000 steps of 16 images are 1,440,000 images:\n\n"
        f"$$\\frac{{1{{,}}440{{,}}000}}{{{full:.3f} \\cdot 3600}} \\approx "
        f"{hours_text(hours).replace(',', '{,}')} \\text{{ hours}}, \\text{{ or {hours / 24:.0f} days.}}$$\n\n"
        "Nobody does that; it shows the arithmetic."
    )


def hours(root: Path) -> str:
    """The table of `{coco-hours}`."""
    from focal_tutorial.throughput import coco_cost

    gpu, (device, _, _, cpu_speed) = read(root, "throughput_gpu"), measured_cpu(root)
    speeds = [(f"{cpu_speed:.2f} ({device}, estimated above)", cpu_speed)]
    if gpu is not None:
        name, speed = fastest(gpu, "full")
        speeds.append((f"{speed:.0f} ({gpu['provenance']['device']}, measured: `{name}`)", speed))
    speeds += [(f"{speed:.0f}", speed) for speed in SPEEDS]
    rows = []
    for text, speed in speeds:
        found = [coco_cost(speed, gpus=n, efficiency=1.0 if n == 1 else EFFICIENCY)["hours"] for n in DEVICES]
        rows.append([text, *(hours_text(one) for one in found if one is not None)])
    missing = "**No GPU has been measured for this book yet**: the lower four rows are examples, not results. "
    found_gpu = "The row of the GPU is measured, the lower four are examples. "
    note = missing if gpu is None else found_gpu
    return note + "Hours of training:\n\n" + table(["images a second of one", "on 1", "on 8", "on 64"], rows)


class CocoDirective(SphinxDirective):
    """Markdown of one of the functions above, in the directive's place."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.app.srcdir)
        for name in ("throughput_cpu", "throughput_gpu", "scaling_cpu", "scaling_cuda"):
            self.env.note_dependency(str(root / "book" / "results" / f"{name}.json"))
        texts = {
            "coco-recipes": recipes,
            "coco-scaling": lambda: scaling(root),
            "coco-example": lambda: example(root),
            "coco-hours": lambda: hours(root),
        }
        node = nodes.container(classes=[self.name])
        lines = texts[self.name]().split("\n")
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, node)
        return node.children


def setup(app: Sphinx) -> dict[str, Any]:
    for name in ("coco-recipes", "coco-scaling", "coco-example", "coco-hours"):
        app.add_directive(name, CocoDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
