"""Cells: each is done once, by whoever comes first; stopped ones go on; several at a time, and none is left behind."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from table_helpers import obey, start_command, toy_table

from focal_tutorial import tables
from focal_tutorial.cells import cell_folder, read_cell, run_cell, run_cells
from focal_tutorial.checkpoint import read_checkpoint, write_json
from focal_tutorial.cli import run as command
from focal_tutorial.errors import InputError
from focal_tutorial.stopping import StopRequest
from focal_tutorial.table_run import run_table, table_cells

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def refuse(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
    raise AssertionError("this cell is finished")


def test_a_cell_is_its_configuration_whatever_the_order_of_its_keys(tmp_path: Path) -> None:
    folder = cell_folder(tmp_path, {"loss": {"alpha": 0.25, "gamma": 2.0}, "seed": 0})
    assert folder == cell_folder(tmp_path, {"seed": 0, "loss": {"gamma": 2.0, "alpha": 0.25}})
    assert folder != cell_folder(tmp_path, {"loss": {"alpha": 0.25, "gamma": 2.0}, "seed": 1})
    assert folder != cell_folder(tmp_path, {"loss": {"alpha": 0.25, "gamma": 2.1}, "seed": 0})
    assert folder.parent == tmp_path


def test_a_finished_cell_is_read_and_its_run_folder_is_gone(tmp_path: Path) -> None:
    def work(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
        folder.mkdir()
        (folder / "last.pt").touch()
        return {"root": root, "seed": config["seed"]}

    config = {"seed": 3}
    assert read_cell(tmp_path, config) is None
    assert run_cell(work, config, tmp_path, "data") == {"root": "data", "seed": 3}
    assert run_cell(refuse, config, tmp_path) == read_cell(tmp_path, config) == {"root": "data", "seed": 3}
    assert {path.name for path in cell_folder(tmp_path, config).iterdir()} == {"config.json", "record.json", "lock"}


def test_a_stopped_cell_finds_what_it_left(tmp_path: Path) -> None:
    def work(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
        if folder.exists():
            return {"found": [path.name for path in folder.iterdir()]}
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(work, {}, tmp_path)
    assert read_cell(tmp_path, {}) is None
    assert run_cell(work, {}, tmp_path) == {"found": ["half"]}


@posix
def test_a_cell_that_another_process_is_at_comes_last_and_is_read(tmp_path: Path) -> None:
    import fcntl

    busy, free = {"cell": "busy"}, {"cell": "free"}
    folder = cell_folder(tmp_path, busy)
    folder.mkdir()
    other = (folder / "lock").open("a")
    fcntl.flock(other, fcntl.LOCK_EX)

    def finish() -> None:
        write_json(folder / "record.json", {"by": "the other"})
        other.close()

    def work(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
        assert config == free
        threading.Timer(0.3, finish).start()  # while this process waits for the lock
        return {"by": "this one"}

    found = list(run_cells(work, [busy, free], tmp_path))
    assert found == [(1, {"by": "this one"}), (0, {"by": "the other"})]


def test_those_on_disk_come_first_and_no_job_is_refused(tmp_path: Path) -> None:
    configs = [{"do": name} for name in ("a", "b", "c")]
    run_cell(obey, configs[2], tmp_path)
    assert [index for index, _ in run_cells(obey, configs, tmp_path)] == [2, 0, 1]
    assert [index for index, _ in run_cells(refuse, configs, tmp_path, jobs=5)] == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 1"):
        next(run_cells(obey, configs, tmp_path, jobs=0))


def test_no_gpu_memory_left_is_explained(tmp_path: Path) -> None:
    def work(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match=r"too little memory .* fewer jobs"):
        list(run_cells(work, [{}], tmp_path))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import torch anew."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)


@posix
def test_a_process_that_dies_is_said_and_the_other_finishes_its_cell(tmp_path: Path, forked: None) -> None:
    configs = [{"do": "die"}, {"do": "two"}]
    with pytest.raises(InputError, match=r"died \(memory\?\).* fewer jobs"):
        list(run_cells(obey, configs, tmp_path, jobs=2))
    assert read_cell(tmp_path, configs[0]) is None
    record = read_cell(tmp_path, configs[1])
    assert record is not None and record["process"] != os.getpid()


@posix
def test_what_cells_raise_comes_out_of_their_processes(tmp_path: Path, forked: None) -> None:
    with pytest.raises((InputError, RuntimeError), match=r"^no such thing$|^KeyError: 'a slip' \("):
        list(run_cells(obey, [{"do": "complain"}, {"do": "fail"}], tmp_path, jobs=2))


@posix
def test_a_stop_in_the_last_step_of_a_training_is_heard_after_it(tmp_path: Path) -> None:
    def work(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked
        return {}

    with pytest.raises(KeyboardInterrupt):
        list(run_cells(work, [{"cell": 1}, {"cell": 2}], tmp_path))
    assert read_cell(tmp_path, {"cell": 1}) == {} and read_cell(tmp_path, {"cell": 2}) is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@posix
def test_processes_end_with_the_run_even_if_a_training_finishes_first(tmp_path: Path) -> None:
    deaf = {"do": "deaf"}
    running = run_cells(obey, [{"do": "one"}, deaf], tmp_path, jobs=2)
    next(running)
    until(lambda: (cell_folder(tmp_path, deaf) / "begun").exists())
    running.close()
    assert read_cell(tmp_path, deaf) is not None  # its cell was finished, and is kept


STEPS = 50  # about half a second a cell, and three where `table_helpers.main` trains


def metrics_of(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    runs = json.loads(path.read_text())["runs"]
    return {(setting, run["seed"]): metrics for run in runs for setting, metrics in run["metrics"].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    """The metrics of the toy table, run without a stop in one process."""
    out = tmp_path_factory.mktemp("whole")
    metrics = metrics_of(run_table("toy", toy_table(STEPS), "cpu", out=out, results=out, report=str))
    assert len(metrics) == 4 and all(found["AP_any"] > 0 for found in metrics.values())
    return metrics


def until(happened: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for it, for the five minutes that a busy machine may need."""
    for _ in range(30_000):
        if happened():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def stop_in_the_middle(out: Path, jobs: int, stop: Callable[[int], None]) -> tuple[subprocess.Popen[str], list[int]]:
    """Start the toy table, and `stop` it with a cell finished and another half done; also its processes."""
    process = start_command(STEPS, "experiment", "run", "toy", "--profile", "cpu", "--out", str(out), f"--jobs={jobs}")
    begun = STEPS // 2  # later than that, it may be finished before it is stopped
    until(lambda: (out / "toy_cpu.json").exists() and any(step <= begun for step in half_done(out)), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    stop(process.pid)
    return process, [int(pid) for pid in children]


def unfinished(out: Path) -> list[Path]:
    """The checkpoints of cells that are under way."""
    return [path for path in out.glob("cells/*/run/last.pt") if not (path.parents[1] / "record.json").exists()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def go_on(
    out: Path, jobs: int, monkeypatch: pytest.MonkeyPatch | None = None
) -> tuple[dict[tuple[str, int], dict[str, Any]], list[bool], list[str]]:
    """Finish the toy table: its metrics, which of the trainings went on, and what was reported."""
    went_on: list[bool] = []
    lines: list[str] = []
    train = tables.train

    def noting(training: Any, **options: Any) -> dict[str, Any]:
        went_on.append(training.resume)
        return train(training, **options)

    if monkeypatch is not None:
        monkeypatch.setattr(tables, "train", noting)
    path = run_table("toy", toy_table(STEPS), "cpu", jobs=jobs, out=out, results=out, report=lines.append)
    return metrics_of(path), went_on, lines


def half_done(out: Path) -> list[int]:
    """The steps at which unfinished cells can go on."""
    steps = []
    for path in unfinished(out):
        with contextlib.suppress(InputError):  # finished since, and its run is gone
            steps.append(int(read_checkpoint(path)["step"]))
    return steps


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc")


@linux
def test_killed_and_run_again_nothing_is_lost(whole: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = stop_in_the_middle(tmp_path, 1, lambda pid: os.kill(pid, signal.SIGKILL))
    process.communicate()
    finished = metrics_of(tmp_path / "toy_cpu.json")
    assert process.returncode == -signal.SIGKILL and 1 <= len(finished) < 4
    (step,) = half_done(tmp_path)
    assert 0 < step < STEPS and step % 5 == 0  # the last one that was saved on the way
    metrics, went_on, lines = go_on(tmp_path, 1, monkeypatch)
    assert metrics == whole and went_on == [True] + [False] * (3 - len(finished))
    assert f"4 cells ({len(finished)} " in lines[0] and lines[-1].startswith("[4/4] fl, seed 1: AP ")
    assert go_on(tmp_path, 1, monkeypatch)[1:] == ([], ["toy, cpu: 4 cells, all there already"])


@linux
def test_ctrl_c_with_two_jobs_saves_both_and_says_one_line(whole: dict, tmp_path: Path) -> None:
    process, children = stop_in_the_middle(tmp_path, 2, lambda pid: os.killpg(pid, signal.SIGINT))  # as a terminal does
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "stopped; the same command goes on where it was stopped\n"
    assert len(children) >= 2
    until(lambda: not any(map(is_alive, children)))  # multiprocessing's own helper ends after the command
    assert len(half_done(tmp_path)) >= 1
    metrics, _, _ = go_on(tmp_path, 2)
    assert metrics == whole  # to the bit, whoever trained them


@linux
def test_no_process_outlives_the_one_that_started_it(whole: dict, tmp_path: Path) -> None:
    process, children = stop_in_the_middle(tmp_path, 2, lambda pid: os.kill(pid, signal.SIGKILL))
    until(lambda: not any(map(is_alive, children)))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    steps = half_done(tmp_path)
    assert steps and all(step > 0 for step in steps)
    assert go_on(tmp_path, 1)[0] == whole


def test_killed_before_the_first_checkpoint_a_cell_starts_again(whole: dict, tmp_path: Path) -> None:
    folders = [cell_folder(tmp_path / "cells", c) / "run" for c in table_cells(toy_table(STEPS), "cpu").values()]
    for folder in folders[:2]:
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text("step,loss\n1,2.0\n")
    assert go_on(tmp_path, 1)[0] == whole


def test_zero_jobs_are_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["experiment", "run", "table_1a", "--out", str(tmp_path), "--jobs", "0"]) == 2
    assert "--jobs" in capsys.readouterr().err
    assert command(["experiment", "run", "bccd", "--profile", "cpu", "--out", str(tmp_path), "--jobs", "2"]) == 2
    assert "several jobs are for tables" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cells_shared_by_two_tables_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def note(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
        trained.append(config["loss"]["name"])
        return {
            "metrics": {"AP": None}, "measured": None, "diverged": "at step 2", "seconds": 1.0,
            "peak_memory_mib": None, "device": "here", "commit": None,
        }  # fmt: skip

    monkeypatch.setattr("focal_tutorial.table_run.train_cell", note)
    monkeypatch.setattr("focal_tutorial.table_run.table_cost", lambda configs, root: [1.0] * len(configs))
    one = toy_table()
    star = {"title": "FL*", "family": "star", "loss": "star", "gamma": 1.0, "beta": 0.0}
    other = replace(one, settings={"fl": one.settings["fl"], "star": star})
    lines: list[str] = []
    for name, table in (("one", one), ("other", other)):
        run_table(name, table, "cpu", out=tmp_path, results=tmp_path, report=lines.append)
    assert trained == ["focal"] * 4 + ["star"] * 2
    assert "other, cpu: 4 cells (2 are there already), about 2 s with 1 job" in lines
    assert table_cells(one, "cpu")["fl", 1] == table_cells(other, "cpu")["fl", 1]
