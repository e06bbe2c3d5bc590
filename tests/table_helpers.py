"""A table that is trained in seconds, and the command line with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from focal_tutorial import experiments, table_run, tables
from focal_tutorial.cells import Config, Record
from focal_tutorial.errors import InputError
from focal_tutorial.stopping import StopRequest
from focal_tutorial.tables import Table, train_cell
from focal_tutorial.train import train

SETTINGS: dict[str, dict[str, Any]] = {
    "ce": {"title": "CE", "family": "ce", "alpha": None, "gamma": 0.0},
    "fl": {"title": "FL", "family": "focal", "alpha": 0.25, "gamma": 2.0, "seeds": 2},
}
RATES = {"cpu": {"ce": 0.004, "focal": 0.01, "star": 0.1}}
TASK: dict[str, Any] = {
    "data": "shapes",
    "shapes": {"num_train": 20, "num_val": 6, "num_test": 10, "size": 64, "radius": (8.0, 14.0), "distractors": (0, 1)},
    "model": {"builder": "retinanet_tiny", "levels": (3,), "widths": (8, 8, 8), "channels": 8, "sizes": (24,),
        "head_depth": 1, "prior": 0.05},
    "train": {"device": "cpu", "canvas": (64, 64), "steps": 12, "batch_size": 4, "optimizer": "adamw",
        "warmup_steps": 2, "ema": 0.5, "save_every": 5, "threads": 1},
}  # fmt: skip


def toy_table(steps: int = 12) -> Table:
    """Four cells of so many steps."""
    task = {**TASK, "train": {**TASK["train"], "steps": steps}}
    return Table("a toy", SETTINGS, {"cpu": task}, RATES, {"cpu": 0.1}, seeds=2)


def start_command(steps: int, *arguments: str) -> subprocess.Popen[str]:
    """`focal-tutorial ARGUMENTS` in a process group of its own, with `toy` among its experiments."""
    code = f"import table_helpers; table_helpers.main({steps})"
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def main(steps: int) -> None:
    """The command line with `toy`, whose trainings take their time."""
    from focal_tutorial.cli import main as command_line

    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    table_run.train_cell = train_slowly
    experiments.EXPERIMENTS["toy"] = toy_table(steps)
    command_line()


def train_slowly(config: Config, folder: Path, root: Path | str | None = None) -> Record:
    """`train_cell` with a rest after each step, so that a stop from outside meets it in the middle."""

    def train_and_rest(training: Any, **options: Any) -> dict[str, Any]:
        return train(training, after_step=lambda step, model: time.sleep(0.05), **options)

    tables.train = train_and_rest
    return train_cell(config, folder, root)


def obey(config: Config, folder: Path, root: Path | str | None) -> Record:
    """Work of a cell that does what its configuration says."""
    if config["do"] == "die":
        os.kill(os.getpid(), 9)
    if config["do"] == "complain":
        raise InputError("no such thing")
    if config["do"] == "fail":
        raise KeyError("a slip")
    if config["do"] == "deaf":  # as a training that is told to stop in its last step: it finishes
        with StopRequest() as stop:
            (folder.parent / "begun").touch()
            while not stop.asked:
                time.sleep(0.01)
    return {"done": config["do"], "process": os.getpid()}
