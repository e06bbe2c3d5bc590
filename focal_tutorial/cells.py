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
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO, cast

import torch

from focal_tutorial.checkpoint import write_json
from focal_tutorial.errors import InputError
from focal_tutorial.stopping import StopRequest

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

    `work` gets a run folder of its own, in which it finds what it left there when it was stopped; once the record is
    written, the folder is deleted. If another process is at the same cell, this one waits for it and reads.
    """
    record = _attempt(work, config, store, root, wait=True)
    assert record is not None
    return record


def _attempt(work: Work, config: Config, store: Path, root: Path | str | None, wait: bool) -> Record | None:
    """`run_cell`, but without `wait` only `None` for a cell that another process is at."""
    folder = cell_folder(store, config)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock, _locked(lock, wait) as held:
        record = read_cell(store, config)
        if record is None and held:
            write_json(folder / "config.json", config)
            record = work(config, folder / "run", root)
            write_json(folder / "record.json", record)
        if held:
            shutil.rmtree(folder / "run", ignore_errors=True)  # only now: killed before, the cell goes on from it
    return record


@contextlib.contextmanager
def _locked(file: TextIO, wait: bool) -> Iterator[bool]:
    """Hold the file for this process alone, where the system can; a process that ends lets go.

    Without `wait`, `False` if another one holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are then the user's affair
        yield True
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
    else:
        yield True


def run_cells(
    work: Work, configs: Sequence[Config], store: Path, root: Path | str | None = None, *, jobs: int = 1
) -> Generator[tuple[int, Record], None, None]:
    """`(index, record)` of every cell as it is finished, those on disk first, `jobs` at a time.

    With one job the cells run in this process, else in `jobs` processes of their own; on a GPU they share it, as far as
    its memory goes. A cell that another program is at comes last. A cell that fails ends the run after the others that
    are under way. On Ctrl-C or SIGTERM, and if this process dies, each training stops after its step and is saved.

    Args:
        work: a function of a module, which processes can be told of by name.
        configs: one a cell.
        store: folder of all cells.
        root: data root, handed to `work`.
        jobs: how many at once.

    Raises:
        ValueError: `jobs` below 1.
        InputError: what `work` raised, out of memory, or a process that died.
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
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
    if jobs > 1 and len(missing) > 1:
        yield from _side_by_side(work, configs, missing, store, root, jobs)
    else:
        yield from _in_turn(work, configs, missing, store, root)


def _in_turn(
    work: Work, configs: Sequence[Config], missing: list[int], store: Path, root: Path | str | None
) -> Iterator[tuple[int, Record]]:
    """The missing cells one after the other, in this process."""
    busy: list[int] = []
    with StopRequest() as stop:
        for wait, indices in ((False, missing), (True, busy)):
            for index in indices:
                with memory_explained():
                    record = _attempt(work, configs[index], store, root, wait)
                if record is None:
                    busy.append(index)
                else:
                    yield index, record
                if stop.asked:  # while no training ran, or in the last step of one
                    raise KeyboardInterrupt


def _side_by_side(
    work: Work, configs: Sequence[Config], missing: list[int], store: Path, root: Path | str | None, jobs: int
) -> Iterator[tuple[int, Record]]:
    """The missing cells, each by the first process that is free."""
    queue = deque((index, False) for index in missing)
    under_way: dict[Connection, int] = {}
    failure: Exception | None = None
    with _stopped_by_sigterm(), _processes(min(jobs, len(missing))) as free:
        while True:
            while queue and free and failure is None:
                index, wait = queue.popleft()
                connection = free.pop(0)
                under_way[connection] = index
                with contextlib.suppress(OSError):  # it has died: found below
                    connection.send((work, configs[index], store, root, wait))
            if not under_way:
                break
            for waiting in multiprocessing.connection.wait(list(under_way)):
                ready = cast(Connection, waiting)
                index = under_way.pop(ready)
                try:
                    record, error = ready.recv()
                except (EOFError, OSError):
                    failure = failure or InputError(
                        "a process that trained a cell died (memory?); finished cells are kept: run again, with fewer "
                        "jobs if it was the memory"
                    )
                    continue
                free.append(ready)
                if error is not None:
                    failure = failure or error
                elif record is None:
                    queue.append((index, True))
                else:
                    yield index, record
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _processes(number: int) -> Iterator[list[Connection]]:
    """Connections to new processes that wait for cells. At the end they are told to stop, and have stopped."""
    context = multiprocessing.get_context("spawn")  # a process with CUDA cannot be forked
    connections, processes = [], []
    try:
        for _ in range(number):
            mine, theirs = context.Pipe()
            with _ctrl_c_held():
                process = context.Process(target=_serve, args=(theirs,))
                process.start()
            theirs.close()
            connections.append(mine)
            processes.append(process)
        yield list(connections)
    finally:
        try:
            for connection in connections:
                connection.close()  # ends those that wait for a cell, and those whose training ends before it is told
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
        except KeyboardInterrupt:  # once more: do not wait
            for process in processes:
                process.kill()
            raise


@contextlib.contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """A process started within ignores Ctrl-C, from its first moment; its parent tells it when to stop."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Within it, SIGTERM does what Ctrl-C does, so that no process is left behind."""
    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers nowhere else
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(connection: Connection) -> None:
    """The life of one process: cells come in, `(record, error)` goes out; it ends with its parent, or on SIGTERM."""
    if hasattr(os, "setsid"):
        os.setsid()  # what is sent to the parent's group comes once, from the parent: a second signal would kill
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            threading.Thread(target=_stop_with_parent, daemon=True).start()
            while True:
                connection.send(_answer(*connection.recv()))
        finally:  # the connection may have ended it just before its SIGTERM, which must not meet Python's own clean-up
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _answer(
    work: Work, config: Config, store: Path, root: Path | str | None, wait: bool
) -> tuple[Record | None, Exception | None]:
    try:
        with memory_explained():
            return _attempt(work, config, store, root, wait), None
    except (InputError, OSError) as error:
        return None, error
    except Exception as error:
        return None, RuntimeError(f"{type(error).__name__}: {error} (one job at a time shows where)")


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Within it, a GPU without memory left is an InputError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            "the GPU has too little memory for this cell beside what else runs on it; finished cells are kept: run "
            "again with fewer jobs"
        ) from error
