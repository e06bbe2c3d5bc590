"""`focal-tutorial experiment {list, run NAME}`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Run the book's experiments again: named, seeded, resumable.", no_args_is_help=True)


class Profile(str, Enum):
    """How large an experiment is run."""

    cpu = "cpu"
    gpu = "gpu"


@app.command("list")
def list_experiments() -> None:
    """Name, subject, size, and minutes per seed of every experiment."""
    from focal_tutorial.experiments import EXPERIMENTS
    from focal_tutorial.tables import Table

    width = max(map(len, EXPERIMENTS))
    for name, experiment in EXPERIMENTS.items():
        size = _seeds([experiment.seeds])
        if isinstance(experiment, Table):
            seeds = [len(experiment.seeds_of(setting)) for setting in experiment.settings]
            size = f"{len(experiment.settings)} settings × {_seeds(seeds)}"
        minutes = ", ".join(f"{profile} {value:g}" for profile, value in experiment.minutes.items())
        typer.echo(f"{name:{width}}  {experiment.title}; {size}; minutes a seed: {minutes}")


def _seeds(numbers: list[int]) -> str:
    """`3 seeds`, `3 to 5 seeds`, `1 seed`."""
    low, high = min(numbers), max(numbers)
    return f"{low}{f' to {high}' if high > low else ''} seed{'s' * (high > 1)}"


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="One of `experiment list`.")],
    profile: Annotated[Profile | None, typer.Option(help="cpu or gpu; by default gpu where there is one.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; by default as the book.", min=1)] = None,
    jobs: Annotated[int, typer.Option(help="Trainings of a table at once, each in its own process.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the runs; what is done there is not done again.")] = Path(
        "runs/experiments"
    ),
    results: Annotated[Path | None, typer.Option(help="Folder for NAME_PROFILE.json; by default --out.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the datasets; as for `data`.")] = None,
) -> None:
    """Train and test what is not done yet; the result file grows with each seed, or with each cell of a table."""
    from focal_tutorial.experiments import run_experiment

    path = run_experiment(
        name, profile=profile.value if profile else None, seeds=seeds, jobs=jobs, out=out, results=results, root=root
    )
    typer.echo(f"written: {path}")
