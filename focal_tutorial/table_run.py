"""Tables as experiments: their cells trained as far as they are missing, and the result file that grows with them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from focal_tutorial.cells import Config, Record, memory_explained, read_cell, run_cells
from focal_tutorial.results import save_result
from focal_tutorial.table_cost import table_cost
from focal_tutorial.tables import Table, cell_config, train_cell
from focal_tutorial.train_log import percent

Place = tuple[str, int]  # setting and seed: where a cell stands in its table


def table_cells(table: Table, profile: str, seeds: int | None = None) -> dict[Place, Config]:
    """The configuration of every cell: all settings with the first seed, then all that have the second, and so on.

    Args:
        table: one of `focal_tutorial.paper.TABLES`.
        profile: "cpu" or "gpu".
        seeds: of each setting; by default as many as the table names for it.
    """
    places = [(setting, seed) for setting in table.settings for seed in table.seeds_of(setting, seeds)]
    task, rates = table.tasks[profile], table.rates[profile]
    return {
        (setting, seed): cell_config(table.settings[setting], task, rates, seed)
        for setting, seed in sorted(places, key=lambda place: place[1])
    }


def run_table(
    name: str,
    table: Table,
    profile: str,
    *,
    seeds: int | None = None,
    jobs: int = 1,
    out: Path,
    results: Path,
    root: Path | str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train the cells that `out/cells` lacks; `results/NAME_PROFILE.json` is written anew after each. Returns its path.

    Args:
        name, table, profile: which, and on what.
        seeds: as for `table_cells`.
        jobs: cells at once, each in its own process.
        out: folder whose `cells` all tables and profiles share.
        results: folder for the result file.
        root: data root.
        report: gets a line before the first cell, with the time that a few steps of each kind of cell let expect, and
            one after each cell.

    Raises:
        InputError: what a cell raises, or a process that died.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    store, cells = out / "cells", table_cells(table, profile, seeds)
    results.mkdir(parents=True, exist_ok=True)
    found = {place: read_cell(store, config) for place, config in cells.items()}
    records = {place: record for place, record in found.items() if record is not None}
    missing = [place for place in cells if place not in records]
    if records:
        write_table(name, table, profile, records, results)
    configs = [cells[place] for place in missing]
    with memory_explained():
        cost = table_cost(configs, root)
    forecast = _Forecast(dict(zip(missing, cost, strict=True)), min(jobs, len(missing), os.cpu_count() or 1))
    report(f"{name}, {profile}: {forecast.before(len(cells), jobs)}")
    running = run_cells(train_cell, configs, store, root, jobs=jobs)
    with contextlib.closing(running):  # at once, whatever happens here: its processes stop with it
        for index, record in running:
            place = missing[index]
            records[place] = record
            write_table(name, table, profile, records, results)
            number = f"{len(records):{len(str(len(cells)))}}/{len(cells)}"
            report(f"[{number}] {_in_short(place, record)}{forecast.after(place, record)}")
    return write_table(name, table, profile, records, results)


def write_table(name: str, table: Table, profile: str, records: dict[Place, Record], folder: Path) -> Path:
    """Write `NAME_PROFILE.json` into `folder` from the cells that are there, by seed; returns its path."""
    commits = _different(records, "commit")
    return save_result(
        f"{name}_{profile}",
        {
            "title": table.title,
            "config": table.recipes[profile],
            "runs": [_seed_run(table, seed, records) for seed in sorted({seed for _, seed in records})],
        },
        wall_seconds=sum(record["seconds"] for record in records.values()),
        peak_memory_mib=max((record["peak_memory_mib"] or 0 for record in records.values()), default=0) or None,
        device_name="; ".join(_different(records, "device")),
        commit=commits[0] if len(commits) == 1 else None,
        folder=folder,
    )


def _seed_run(table: Table, seed: int, records: dict[Place, Record]) -> dict[str, Any]:
    """One seed's part of the result: what every setting's cell measured, in the table's order."""
    cells = {s: records[s, seed] for s in table.settings if (s, seed) in records}
    return {
        "seed": seed,
        "metrics": {setting: record["metrics"] for setting, record in cells.items()},
        "diverged": {s: record["diverged"] for s, record in cells.items() if record["diverged"] is not None},
        "measured": {s: record["measured"] for s, record in cells.items() if record["measured"] is not None},
        "cells": {s: {key: record[key] for key in ("seconds", "peak_memory_mib")} for s, record in cells.items()},
        "seconds": round(sum(record["seconds"] for record in cells.values()), 1),
        "peak_memory_mib": max((record["peak_memory_mib"] or 0 for record in cells.values()), default=0) or None,
        "commits": _different(cells, "commit"),
        "devices": _different(cells, "device"),
    }


def _different(records: dict[Any, Record], key: str) -> list[str]:
    return sorted({record[key] for record in records.values() if record[key] is not None})


def _in_short(place: Place, record: Record) -> str:
    """`fl_2_0_25, seed 0: AP 34.1, 31 s`."""
    found = "diverged" if record["diverged"] else f"AP {percent(record['metrics']['AP'])}"
    return f"{place[0]}, seed {place[1]}: {found}, {record['seconds']:.0f} s"


@dataclass
class _Forecast:
    """What is left to do, in words.

    Attributes:
        expected: seconds that each missing cell was expected to take.
        at_once: how many of them can run side by side.
    """

    expected: dict[Place, float]
    at_once: int
    done: float = 0.0  # seconds expected of the finished cells, and what they took
    taken: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def before(self, cells: int, jobs: int) -> str:
        """`28 cells (12 are there already), about 9 min with 2 jobs`."""
        there = cells - len(self.expected)
        if not self.expected:
            return f"{cells} cells, all there already"
        known = f" ({there} {'are' if there > 1 else 'is'} there already)" if there else ""
        wall = sum(self.expected.values()) / self.at_once
        return f"{cells} cells{known}, about {_minutes(wall)} with {jobs} job{'s' * (jobs > 1)}"

    def after(self, place: Place, record: Record) -> str:
        """`; about 14 min left`: the rest takes as much longer than expected as what is done has."""
        whole = self.done + sum(self.expected.values())
        self.done += self.expected.pop(place)
        self.taken += record["seconds"]
        left = self.taken / self.done * whole / self.at_once - (time.perf_counter() - self.start)
        return f"; about {_minutes(left)} left" if self.expected else ""


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 1):.0f} s"
