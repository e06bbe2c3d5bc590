"""Cells: trainings that are each done once, kept on disk, and run several at a time.

A cell is everything that decides a result, as one JSON dictionary: task, loss, learning rate, seed. Its folder is named
after it, so a cell that two tables share is trained once, one that was stopped goes on, and one whose settings have
changed is another cell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

from focal_tutorial.checkpoint import write_json
from focal_tutorial.errors import InputError

Config = dict[str, Any]
Record = dict[str, Any]
Work = Callable[[Config, Path, Path | str | None], Record]  # (config, run folder, data root) → what was measured


def cell_folder(store: Path, config: Config) -> Path:
    """Where the cell of this configuration lives below `store`."""
    return store / hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def read_cell(store: Path, config: Config) -> Record | None:
    """The record of a finished cell, else `None`."""
    path = cell_folder(store, config) / "record.json"
    if not path.exists():
        return None
    stored: Record = json.loads(path.read_text(encoding="utf-8"))
    return stored


def run_cell(work: Work, config: Config, store: Path, root: Path | str | None = None) -> Record:
    """The record of a cell: read if it is finished, made by `work` otherwise.

    `work` gets a run folder of its own, in which it finds what it left there when it was stopped. If another process is
    at the same cell, this one waits for it and reads.
    """
    folder = cell_folder(store, config)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock, _locked(lock):
        record = read_cell(store, config)
        if record is None:
            write_json(folder / "config.json", config)
            record = work(config, folder / "run", root)
            write_json(folder / "record.json", record)
    return record


@contextlib.contextmanager
def _locked(file: TextIO) -> Iterator[None]:
    """Hold the file for this process alone, where the system can; a process that ends lets go."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are then the user's affair
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def run_cells(
    work: Work, configs: Sequence[Config], store: Path, root: Path | str | None = None, *, jobs: int = 1
) -> Iterator[tuple[int, Record]]:
    """`(index, record)` of every cell as it is finished, those on disk first, `jobs` at a time.

    With one job the cells run in this process, else each in one of `jobs` processes; on a GPU they share it, as far as
    its memory goes. A cell that fails ends the run after the others that are under way.

    Args:
        work: a function of a module, which processes can be told of by name.
        configs: one a cell.
        store: folder of all cells.
        root: data root, handed to `work`.
        jobs: how many at once.

    Raises:
        ValueError: `jobs` below 1.
        InputError: what `work` raised, or a process died.
    """
    if jobs < 1:
        raise ValueError(f"jobs: at least 1 wanted, got {jobs}")
    missing = []
    for index, config in enumerate(configs):
        record = read_cell(store, config)
        if record is None:
            missing.append(index)
        else:
            yield index, record
    if jobs == 1 or len(missing) < 2:
        for index in missing:
            yield index, run_cell(work, configs[index], store, root)
        return
    context = multiprocessing.get_context("spawn")  # a process with CUDA cannot be forked
    with ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool:
        running = {pool.submit(run_cell, work, configs[index], store, root): index for index in missing}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process that trained a cell died (memory?); finished cells are kept: run again with fewer jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
