"""Named, seeded experiments whose results the book quotes.

An experiment is a recipe for each profile ("cpu", "gpu"), run once per seed; its result file keeps the configuration,
every seed's metrics, and where they were measured. `focal-tutorial experiment run NAME` makes it again. The paper's
tables are experiments too, made of cells: one training for each setting and seed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from focal_tutorial.calibration import calibration_recipe, run_calibration
from focal_tutorial.checkpoint import write_json
from focal_tutorial.comparison import (
    RATE_SEED,
    long_recipe,
    losses_recipe,
    rates_recipe,
    run_long,
    run_losses,
    run_rates,
    run_unsure,
    unsure_recipe,
)
from focal_tutorial.data.bccd import prepare_bccd
from focal_tutorial.data.coco import CocoDataset
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import evaluate
from focal_tutorial.paper import TABLES
from focal_tutorial.results import peak_memory, save_result
from focal_tutorial.schedules import run_warmup, warmup_recipe
from focal_tutorial.table_run import run_table, table_cells
from focal_tutorial.tables import Table
from focal_tutorial.train import TrainConfig, load_checkpoint, train
from focal_tutorial.train_setup import resume_or_start
from focal_tutorial.training_cost import PRECISIONS, THROUGHPUT_RECIPES, precision_recipe, run_precision, run_throughput

PROFILES = {"cpu": "cpu", "gpu": "cuda"}  # and the device of each: its figures are given out as that device's

# The CPU's settings were chosen on BCCD's 87 validation images; the test images only measure. The GPU's have not been
# tried yet.
BCCD_RECIPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "model": "retinanet_tiny",
        "model_options": {"sizes": (20, 40, 80)},
        "canvas": (240, 320),
        "cache": True,
        "steps": 2200,
        "batch_size": 4,
        "optimizer": "adamw",
        "lr": 0.005,
        "warmup_steps": 50,
        "ema": 0.99,
        "flip_vertical": 0.5,
        "channels_last": True,
        "threads": 1,
    },
    "gpu": {
        "model": "retinanet_resnet50_fpn",
        "model_options": {"sizes": (24, 48, 96, 192, 384), "low_quality_iou": 0.4},
        "canvas": (512, 672),
        "cache": True,
        "steps": 3000,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 5e-4,
        "warmup_steps": 200,
        "ema": 0.998,
        "flip_vertical": 0.5,
        "scale": (0.7, 1.4),
        "colour": 0.2,
        "amp": "bf16",
        "channels_last": True,
        "workers": 12,
    },
}


def bccd_config(
    profile: str, seed: int, out: Path | str, root: Path | str | None = None, **changes: Any
) -> TrainConfig:
    """The training run of chapter 14 on BCCD: `profile` "cpu" or "gpu", one seed, into the run folder `out`."""
    paths = prepare_bccd(root)
    return TrainConfig(
        images=str(paths["images"]),
        annotations=str(paths["train"]),
        val_images=str(paths["images"]),
        val_annotations=str(paths["val"]),
        seed=seed,
        out=str(out),
        **{"device": PROFILES[profile], **BCCD_RECIPES[profile], **changes},
    )


def run_bccd(profile: str, seed: int, out: Path, root: Path | str | None, **changes: Any) -> dict[str, Any]:
    """Train one seed, or go on where it was stopped; returns its "metrics" on BCCD's 72 test images."""
    config = bccd_config(profile, seed, out, root, **changes)
    resume_or_start(config)
    trained = train(config)
    paths = prepare_bccd(root)
    model = load_checkpoint(out / "best.pt", device=PROFILES[profile])
    metrics = evaluate(model, CocoDataset(paths["images"], paths["test"]))
    return {"metrics": {**metrics, "validation_AP": trained["best"]["AP"], "train_seconds": trained["seconds"]}}


@dataclass(frozen=True)
class Experiment:
    """What `experiment list` shows and `experiment run` does.

    Attributes:
        title: its subject.
        run: `(profile, seed, folder, data root, **changes) → {"metrics": …, and what else is to be kept}`.
        recipes: the configuration of each profile; it stands in the result.
        minutes: of a seed on each profile: the CPU's measured on one core, the GPU's an estimate for an H200.
        seeds: how many, and the first.
    """

    title: str
    run: Callable[..., dict[str, Any]]
    recipes: dict[str, dict[str, Any]]
    minutes: dict[str, float]
    seeds: int = 3
    first_seed: int = 0


EXPERIMENTS: dict[str, Experiment | Table] = {
    "bccd": Experiment(
        "RetinaNet on BCCD, tested on its 72 test images", run_bccd, BCCD_RECIPES, {"cpu": 2.5, "gpu": 6}
    ),
    "loss_rates": Experiment(
        "the learning rate of each family of losses", run_rates, {"cpu": rates_recipe("cpu")}, {"cpu": 55}, 1, RATE_SEED
    ),
    "losses": Experiment(
        "CE, balanced CE, focal loss, samplers and neighbours on one task", run_losses,
        {"cpu": losses_recipe("cpu")}, {"cpu": 20},
    ),
    "losses_long": Experiment(
        "CE, focal loss and OHEM on that task, three times as long", run_long,
        {"cpu": long_recipe("cpu")}, {"cpu": 9},
    ),
    "losses_unsure": Experiment(
        "settings that end at AP 0, counted without a score threshold", run_unsure,
        {"cpu": unsure_recipe("cpu")}, {"cpu": 4},
    ),
    "warmup": Experiment(
        "learning rate, warm-up and clipping: where the loss dies", run_warmup,
        {"cpu": warmup_recipe("cpu")}, {"cpu": 8},
    ),
    "calibration": Experiment(
        "what scores mean under cross entropy, balanced cross entropy and focal loss", run_calibration,
        {"cpu": calibration_recipe("cpu")}, {"cpu": 15},
    ),
    "throughput": Experiment(
        "speed and memory of training, setting by setting", run_throughput, THROUGHPUT_RECIPES, {"cpu": 2, "gpu": 6}
    ),
    "precision": Experiment(
        "the same training in float32 and under bf16 autocast", run_precision,
        {"cpu": precision_recipe(), "gpu": {**BCCD_RECIPES["gpu"], "precisions": PRECISIONS}},
        {"cpu": 2.5, "gpu": 18},
    ),
    **TABLES,
}  # fmt: skip


def pick_profile(profile: str | None) -> str:
    """`profile`, or "gpu" where there is one and "cpu" elsewhere."""
    if profile not in (None, *PROFILES):
        raise InputError(f"profile: one of {', '.join(PROFILES)} wanted, got {profile!r}")
    if profile == "gpu" and not torch.cuda.is_available():
        raise InputError("profile gpu needs a CUDA device and torch sees none; use --profile cpu")
    return profile or ("gpu" if torch.cuda.is_available() else "cpu")


def run_experiment(
    name: str,
    *,
    profile: str | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    out: Path | str = "runs/experiments",
    results: Path | str | None = None,
    root: Path | str | None = None,
    report: Callable[[str], None] = print,
    **changes: Any,
) -> Path:
    """Run every seed that is not done yet and write `NAME_PROFILE.json` after each; returns its path.

    A finished seed's metrics stay in `out`, so that a stopped experiment goes on with the next one. A table goes on
    cell by cell instead, and the tables share the cells that they have in common.

    Args:
        name: a key of `EXPERIMENTS`.
        profile: "cpu" or "gpu"; by default what the machine has.
        seeds: how many, from the experiment's first on; by default as many as the experiment names.
        jobs: cells of a table at once.
        out: folder for runs.
        results: folder for the result file; `out` by default. The book reads `book/results`.
        root: data root.
        report: gets a line on progress.
        changes: settings of `TrainConfig` to change, for trying things out; they are kept in the result.

    Raises:
        InputError: for an unknown name or profile, `jobs` or `changes` that are not for this experiment, or data that
            is not there.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}")
    profile, experiment = pick_profile(profile), EXPERIMENTS[name]
    if profile not in experiment.recipes:
        raise InputError(f"{name} has no profile {profile}; there is: {', '.join(experiment.recipes)}")
    if jobs < 1:
        raise InputError(f"jobs: at least 1 wanted, got {jobs}")
    files = Path(results) if results is not None else Path(out)
    if isinstance(experiment, Table):
        if changes:
            raise InputError(f"{name} is a table, whose settings cannot be changed: {', '.join(changes)}")
        return run_table(
            name, experiment, profile, seeds=seeds, jobs=jobs, out=Path(out), results=files, root=root, report=report
        )
    if jobs != 1:
        raise InputError(f"{name} runs its seeds one after the other; several jobs are for tables")
    folder = Path(out) / f"{name}_{profile}"
    numbers = range(experiment.first_seed, experiment.first_seed + (seeds or experiment.seeds))
    configuration = {**experiment.recipes[profile], **changes}
    report(f"{name}, {profile}: {len(numbers)} seeds, about {experiment.minutes[profile] * len(numbers):.0f} minutes")
    runs: list[dict[str, Any]] = []
    for seed in numbers:
        run = _seed(experiment, profile, seed, folder, root, configuration, changes)
        runs.append(run)
        report(f"seed {seed}: {_in_short(run['metrics'])}, {run['seconds']:.0f} s")
        path = save_result(
            f"{name}_{profile}",
            {"title": experiment.title, "config": configuration, "runs": runs},
            wall_seconds=sum(r["seconds"] for r in runs),
            peak_memory_mib=max((r["peak_memory_mib"] or 0 for r in runs), default=0) or None,
            device=PROFILES[profile],
            folder=_made(files),
        )
    return path


def out_of_date(result: dict[str, Any], experiment: Experiment | Table, profile: str) -> list[str]:
    """Where a result is not what the present code would run, as sentences: another configuration, other runs."""
    problems = []
    if result["config"] != json.loads(json.dumps(experiment.recipes[profile])):
        problems.append("its configuration is another than the experiment's")
    if isinstance(experiment, Table):
        wanted = {f"{setting}, seed {seed}" for setting, seed in table_cells(experiment, profile)}
        found = {f"{setting}, seed {run['seed']}" for run in result["runs"] for setting in run["metrics"]}
    else:
        first = experiment.first_seed
        wanted = {f"seed {seed}" for seed in range(first, first + experiment.seeds)}
        found = {f"seed {run['seed']}" for run in result["runs"]}
    problems += [f"{run} is missing" for run in sorted(wanted - found)]
    return problems + [f"{run} is not of the experiment" for run in sorted(found - wanted)]


def _seed(
    experiment: Experiment,
    profile: str,
    seed: int,
    folder: Path,
    root: Path | str | None,
    configuration: dict[str, Any],
    changes: dict[str, Any],
) -> dict[str, Any]:
    """One seed's run: its stored record if it was finished with this configuration, else made now.

    A run that was stopped goes on if it had this configuration too, and is thrown away otherwise.
    """
    record, run_folder = folder / f"seed-{seed}.json", folder / f"seed-{seed}"
    begun = run_folder / "recipe.json"
    configuration = json.loads(json.dumps(configuration))  # as it comes back from the file: lists for tuples
    if record.exists():
        stored: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if stored["config"] == configuration:
            return dict(stored["run"])
    if run_folder.exists() and (not begun.exists() or json.loads(begun.read_text("utf-8")) != configuration):
        shutil.rmtree(run_folder)
    write_json(_made(run_folder) / begun.name, configuration)
    if PROFILES[profile] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = experiment.run(profile, seed, run_folder, root, **changes)
    run = {
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mib": peak_memory(PROFILES[profile]),
        **result,  # an experiment that reads finished parts from disk says itself how long they took
    }
    write_json(record, {"config": configuration, "run": run})
    return run


def _in_short(metrics: dict[str, Any]) -> str:
    """AP and AP50, or how many settings were measured where there are several."""
    if "AP" in metrics:
        return f"AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}"
    return f"{len(metrics)} settings"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
