"""Two gloo processes under torchrun are one process with the same global batch."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from focal_tutorial.train import TrainConfig, train

SETTINGS: dict[str, Any] = {
    "shapes": {"num_train": 24, "num_val": 5, "size": 64, "radius": [6.0, 12.0], "distractors": [0, 2]},
    "model_options": {"levels": [2, 3, 4], "widths": [8, 16, 16], "channels": 16, "head_depth": 1},
    "optimizer": "sgd",
    "lr": 0.02,
    "steps": 8,
    "warmup_steps": 2,
    "log_every": 1,
    "eval_every": 1,
    "colour": 0.1,
}

SCRIPT = """
import json, sys
import torch
from focal_tutorial.train import TrainConfig, train
from focal_tutorial import train as module
from focal_tutorial.errors import InputError
settings = json.loads(sys.argv[1])
poison = settings.pop("poison", None)
if poison is not None:
    from focal_tutorial.train import Run
    from focal_tutorial.distributed import rank
    losses = Run._losses
    def poisoned(self, images, targets):
        found = losses(self, images, targets)
        return found * float("nan") if self.step == poison and rank() == 1 else found
    Run._losses = poisoned
try:
    metrics = train(TrainConfig(**settings), progress=False)
except InputError as error:
    sys.stdout.write(f"InputError: {error}\\n")  # in one piece: two processes write here
    sys.exit(2)
sys.stdout.write("metrics " + json.dumps({k: v for k, v in metrics.items() if k != "seconds"}) + "\\n")
"""


def torchrun(settings: dict[str, Any], processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    script = Path(settings["out"]).parent / "script.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [*command, str(script), json.dumps(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def losses(folder: Path) -> list[float]:
    with (folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: Any) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp") / "one"
    return folder, train(TrainConfig(**SETTINGS, batch_size=4, out=str(folder)), progress=False)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 1), (1, 2)])
def test_two_processes_are_one(
    one_process: tuple[Path, dict[str, Any]], tmp_path: Path, batch_size: int, accumulate: int
) -> None:
    """Same losses at every step, same weights at the end, same metrics; with accumulation too."""
    folder, expected = one_process
    ours = tmp_path / "two"
    done = torchrun({**SETTINGS, "batch_size": batch_size, "accumulate": accumulate, "out": str(ours)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(ours)) == 8 and losses(ours) == pytest.approx(losses(folder), rel=1e-4)
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (ours, folder))
    assert a["processes"] == 2
    for part in ("model", "ema"):
        for name, value in b[part].items():
            torch.testing.assert_close(a[part][name], value, rtol=1e-4, atol=1e-6)
    said = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("metrics")]
    assert len(said) == 2 and said[0] == said[1]  # both processes know the metrics
    assert said[0]["AP"] == pytest.approx(expected["AP"], abs=0.02)
    assert said[0]["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    rows = (ours / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 8 + 2  # header, a row a step, two evaluations: one process writes


def test_faults_reach_every_process(one_process: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A loss that is not finite on one process stops both, with that process's images; a used folder stops both too."""
    done = torchrun({**SETTINGS, "batch_size": 2, "out": str(tmp_path / "run"), "poison": 3})
    messages = [line for line in done.stdout.splitlines() if line.startswith("InputError")]
    assert done.returncode != 0 and len(messages) == 2, done.stdout + done.stderr[-2000:]
    assert all(re.search(r"not finite at step 4 .* images with id \d+, \d+\.", message) for message in messages)
    used = torchrun({**SETTINGS, "batch_size": 2, "out": str(one_process[0])})
    assert used.returncode != 0 and used.stdout.count("already holds a run") == 2, used.stdout + used.stderr[-2000:]
