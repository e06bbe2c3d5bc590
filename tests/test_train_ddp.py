"""Two or three gloo processes under torchrun are one process with the same global batch."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from focal_tutorial.checkpoint import save_checkpoint
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.retinanet import build_model
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

WORKER = Path(__file__).with_name("ddp_worker.py")


def torchrun(
    *words: str, processes: int = 2, machines: int = 1, restarts: int = 0
) -> list[subprocess.CompletedProcess[str]]:
    """What each of `machines` answers; they are all this one, each with its share of the processes."""
    each = f"--nproc-per-node={processes // machines}"
    launch = ["--standalone", each]
    if machines > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch = [f"--nnodes={machines}", each, "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, f"--max-restarts={restarts}", *words]
    started = [
        subprocess.Popen(
            command,
            # Otherwise a process that starts again may find the address of one that is gone (pytorch issue 135712).
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(machines)
    ]
    said = [process.communicate(timeout=240) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *texts)
        for process, texts in zip(started, said, strict=True)
    ]


def training(settings: dict[str, Any], **launch: int) -> list[subprocess.CompletedProcess[str]]:
    return torchrun(str(WORKER), "train", json.dumps(settings), **launch)


def answers(done: list[subprocess.CompletedProcess[str]], kind: str) -> list[dict[str, Any]]:
    """What the processes said about `kind`."""
    for one in done:
        assert one.returncode == 0, one.stdout[-1500:] + one.stderr[-3000:]
    lines = [line.split(" ", 1) for one in done for line in one.stdout.splitlines() if line.startswith(f"{kind} ")]
    return [json.loads(text) for _, text in lines]


def losses(folder: Path) -> list[float]:
    with (folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: Any) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp") / "one"
    return folder, train(TrainConfig(**SETTINGS, batch_size=4, out=str(folder)), progress=False)


def same_weights(ours: Path, theirs: Path) -> None:
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (ours, theirs))
    assert a["step"] == b["step"]
    for part in ("model", "ema"):
        for name, value in b[part].items():
            torch.testing.assert_close(a[part][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "accumulate", "machines"), [(2, 1, 1), (1, 2, 2)])
def test_two_processes_are_one(
    one_process: tuple[Path, dict[str, Any]], tmp_path: Path, batch_size: int, accumulate: int, machines: int
) -> None:
    """Same losses at every step, same weights at the end, same metrics; with accumulation, and over two launchers."""
    folder, expected = one_process
    ours = tmp_path / "two"
    settings = {**SETTINGS, "batch_size": batch_size, "accumulate": accumulate, "out": str(ours)}
    done = training(settings, machines=machines)
    said = answers(done, "metrics")
    assert len(losses(ours)) == 8 and losses(ours) == pytest.approx(losses(folder), rel=1e-4)
    same_weights(ours, folder)
    assert torch.load(ours / "last.pt", weights_only=True)["processes"] == 2
    assert sorted(one.pop("rank") for one in said) == [0, 1] and said[0] == said[1]  # both know the metrics
    assert said[0]["AP"] == pytest.approx(expected["AP"], abs=0.02)
    assert said[0]["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    rows = (ours / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 8 + 2  # header, a row a step, two evaluations: one process writes


@pytest.fixture(scope="module", params=[2, 3])
def parts(request: Any, tmp_path_factory: Any, one_process: Any) -> tuple[int, list[Any]]:
    """The pieces below, in one start of two and of three processes."""
    folder = one_process[0].parent
    (folder / "weights.pt").unlink(missing_ok=True)
    return request.param, torchrun(str(WORKER), "parts", str(folder), processes=request.param)


def test_gradient_is_that_of_the_whole_batch(parts: tuple[int, list[Any]]) -> None:
    """However unequal the processes' boxes are, and where one of them, or all, have none."""
    found = answers(parts[1], "gradient")
    assert len(found) == parts[0] * 9
    for one in found:
        assert one["size"] > 5000 and one["off"] < 1e-5, one


def test_every_image_is_evaluated_once(parts: tuple[int, list[Any]]) -> None:
    """With fewer images than processes too: same detections on process 0, same metrics on all."""
    found = answers(parts[1], "metrics")
    assert len(found) == 3 * parts[0]
    assert all(one["same"] for one in found)
    for one in found:
        assert one["wanted"] > 20 and one["rows"] == (one["wanted"] if one["rank"] == 0 else 0)
        assert one["equal"] == (one["rank"] == 0)
    assert max(one["AR"] for one in found) > 0


def test_every_process_hears_an_objection(parts: tuple[int, list[Any]]) -> None:
    """A folder that holds a run, other data and other settings stop all processes, not the one that noticed."""
    found = answers(parts[1], "refused")
    for name, pattern in {
        "same": r"images: 4 on process 0, but 5 on process 1",
        "used": r"already holds a run",
        "settings": r"batch_size: 1 on process 0, but 2 on process 1",
    }.items():
        messages = [one["message"] for one in found if one["name"] == name]
        assert len(messages) == parts[0] and all(re.search(pattern, message) for message in messages), messages


def test_the_first_of_a_machine_goes_first(parts: tuple[int, list[Any]]) -> None:
    assert [one["found"] for one in answers(parts[1], "order")] == [True] * parts[0]


def test_a_loss_that_is_not_finite_stops_both(tmp_path: Path) -> None:
    """On one process: both stop, and both name that process's images."""
    (done,) = training({**SETTINGS, "batch_size": 2, "out": str(tmp_path / "run"), "poison": 3})
    messages = [line for line in done.stdout.splitlines() if line.startswith("InputError")]
    assert done.returncode != 0 and len(messages) == 2, done.stdout + done.stderr[-2000:]
    assert all(re.search(r"not finite at step 4 .* images with id \d+, \d+\.", message) for message in messages)


def test_a_restarted_job_goes_on(one_process: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A process dies; torchrun starts all again, with the same words; they go on to the weights of an unharmed run."""
    out = tmp_path / "run"
    settings = {**SETTINGS, "batch_size": 2, "save_every": 2, "resume_or_start": True, "out": str(out), "die": 5}
    done = training(settings, restarts=1)
    assert sorted((one["restart"], one["rank"]) for one in answers(done, "start")) == [
        ("0", 0),
        ("0", 1),
        ("1", 0),
        ("1", 1),
    ]
    same_weights(out, one_process[0])
    assert losses(out) == pytest.approx(losses(one_process[0]), rel=1e-4)


def test_who_failed_is_named(tmp_path: Path) -> None:
    """An image that only one process reads is broken: its message comes first, and torchrun names that process."""
    data = ShapesDataset(8, size=64)
    content = data.coco_dict()
    for index, image in enumerate(content["images"]):
        image["file_name"] = f"{index}.png"
        Image.fromarray(data.load_image(index).permute(1, 2, 0).numpy()).save(tmp_path / image["file_name"])
    whole = (tmp_path / "5.png").read_bytes()
    (tmp_path / "5.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "data.json").write_text(json.dumps(content))
    model = build_model({"builder": "retinanet_tiny", "num_classes": 3, "canvas": [64, 64]})
    model.class_names = list(data.class_names)
    state = {"model": model.state_dict(), "model_config": model.config, "class_names": model.class_names}
    save_checkpoint(tmp_path / "best.pt", state)
    words = ["evaluate", str(tmp_path / "best.pt"), "--images", str(tmp_path), "--annotations"]
    (done,) = torchrun("-m", "focal_tutorial", *words, str(tmp_path / "data.json"), "--batch-size=1", "--device=cpu")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode != 0 and errors, done.stderr[-3000:]
    assert re.match(r"error on process 1 of 2, counted from 0: .*5\.png", errors[0])
    assert all("another process has ended" in error for error in errors[1:])  # it is ended before, if not too busy
    assert re.search(r"rank +: 1", done.stderr.split("Root Cause")[1])
