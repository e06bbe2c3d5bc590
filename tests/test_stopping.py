"""Ctrl-C and SIGTERM at every phase: one line, exit status 130, nothing lost; and loader processes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import assert_same_run, config, same
from torch.utils.data import DataLoader

import focal_tutorial.train as train_module
from focal_tutorial import cli
from focal_tutorial.checkpoint import read_checkpoint
from focal_tutorial.data import bccd, download
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.errors import InputError
from focal_tutorial.stopping import Interruptible, StopRequest, leave_stopping_to_parent
from focal_tutorial.train import TrainConfig, train

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs POSIX signals")
WORDS = ["train", "--steps", "100000", "--log-every", "1", "--batch-size", "2", "--save-every", "100000"]
WORDS += [word for pair in ("num_train=8", "num_val=2", "size=64") for word in ("--shapes", pair)]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own handler, and so none in processes started here, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def me(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping") / "unbroken"
    train(config(folder, eval_every=1), progress=False)
    return folder


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A training as a command, in a process group of its own, once it has made two steps."""
    command = [sys.executable, "-m", "focal_tutorial", *WORDS, "--out", str(folder), *more]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    log = folder / "log.csv"
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    return process


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("needs /proc to find the loader's processes")
    return [int(child) for child in path.read_text().split()]


# The handlers


def test_a_stop_and_a_death_at_once() -> None:
    """Both signals have come when Python looks. Taking torch's handler away at that moment made Python complain."""
    complaints: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, complaints.append
    held = {signal.SIGTERM, signal.SIGCHLD}
    try:
        with StopRequest() as stop:
            batches = iter(DataLoader([1, 2, 3], num_workers=1))
            stop.meet_deaths_between_steps()
            signal.pthread_sigmask(signal.SIG_BLOCK, held)
            worker = batches._workers[0]  # type: ignore[attr-defined]
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
            me(signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
            assert stop.asked
    finally:
        sys.unraisablehook = before
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    assert complaints == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_interruptible_raises_and_remembers_and_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        stop = Interruptible()
        with pytest.raises(KeyboardInterrupt), stop:
            me(number)
        assert stop.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        with Interruptible() as stop:
            me(signal.SIGINT)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun ends processes by SIGTERM
    with Interruptible():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class WhereAmI(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return os.getpgid(0) if index else int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


def test_loader_processes_are_out_of_the_reach_of_ctrl_c() -> None:
    loader = DataLoader(WhereAmI(), batch_size=None, num_workers=1, worker_init_fn=leave_stopping_to_parent)
    ignored, group = loader
    assert ignored == 1 and group != os.getpgid(0)


def test_an_interruption_that_compiled_code_has_turned_into_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def turned(*_: Any, **__: Any) -> None:
        try:
            me(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("unknown C++ exception") from None

    monkeypatch.setattr(cli, "app", turned)
    assert cli.run(["data", "shapes"]) == 130
    assert capsys.readouterr().err.startswith("stopped; the same command goes on")


# A training


@pytest.mark.parametrize("phase", ["evaluation", "write", "log"])
def test_ctrl_c_in_a_training_waits_for_the_step(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """In the first evaluation (step 10 of 12), in the write of last.pt after it, while a row is logged."""
    place, name = {
        "evaluation": (train_module, "evaluate"),
        "write": (torch, "save"),
        "log": (train_module.RunLog, "losses"),
    }[phase]
    original = getattr(place, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(place, name, original)
        me(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step .* and saved"):
        train(config(tmp_path / "run", eval_every=1), progress=False)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run/last.pt")["step"] in (2, 10, 11)
    train(TrainConfig(out=str(tmp_path / "run"), resume=True), progress=False)
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (tmp_path / "run", unbroken))
    assert all(same(a[part], b[part]) for part in ("model", "ema", "optimizer", "step", "best"))


@pytest.mark.parametrize("second", ["evaluation", "write"])
def test_twice_stops_at_once_and_leaves_the_last_checkpoint(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    place, name = (train_module, "evaluate") if second == "evaluation" else (torch, "save")
    original = getattr(place, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if (tmp_path / "run/last.pt").exists():  # not in the first write
            if second == "write":
                args[1].write(b"half of")
            me(signal.SIGINT)
            me(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "run", save_every=4, eval_every=1), progress=False)
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(".*"))  # no half file
    assert read_checkpoint(tmp_path / "run/last.pt")["step"] == (8 if second == "evaluation" else 4)
    train(TrainConfig(out=str(tmp_path / "run"), resume=True), progress=False)
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("reach", ["group", "every process"])
def test_a_stop_that_a_busy_machine_delivers_late(tmp_path: Path, reach: str) -> None:
    """The process does not run between the signal and the death of its loader: both are found at once.

    A terminal signals the process group; a job queue may signal every process, the loader's too.
    """
    process = start(tmp_path / "run", "--workers", "1")
    loaders = children(process.pid)
    os.kill(process.pid, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGTERM)
    for pid in loaders if reach == "every process" else []:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert errors == "stopped; the same command with --resume goes on from the last checkpoint\n"
    assert read_checkpoint(tmp_path / "run/last.pt")["step"] >= 2


def killed_at(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that loads this image is killed, as the system does when memory runs out."""
    load = ShapesDataset.load_image

    def killed(self: ShapesDataset, number: int) -> torch.Tensor:
        if torch.utils.data.get_worker_info() is not None and number == index and self.split == "train":
            me(signal.SIGKILL)
        return load(self, number)

    monkeypatch.setattr(ShapesDataset, "load_image", killed)


def test_nothing_is_lost_when_a_loader_is_killed(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint was due, and the finished steps are saved."""
    killed_at(13, monkeypatch)
    with pytest.raises(InputError, match=r"died after step (\d+) .*fewer workers. The last step that is saved: \1$"):
        train(config(tmp_path / "run", workers=1, eval_every=1), progress=False)
    monkeypatch.undo()
    assert 0 < read_checkpoint(tmp_path / "run/last.pt")["step"] < 10
    train(TrainConfig(out=str(tmp_path / "run"), resume=True), progress=False)
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (tmp_path / "run", unbroken))
    assert all(same(a[part], b[part]) for part in ("model", "ema", "optimizer", "step", "best"))


def test_ctrl_c_while_evaluations_with_loaders_come_and_go(tmp_path: Path) -> None:
    """The loaders of the evaluation, which comes every second step, live on; so it ends and the run is saved."""
    process = start(tmp_path / "run", "--workers", "1", "--eval-every", "1", "--batch-size", "4")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130 and "Traceback" not in errors and errors.count("\n") == 1, errors


# Other commands


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_downloading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fetch(url: str, part: Path) -> None:
        part.write_bytes(b"the first half")
        me(number)

    monkeypatch.setattr(download, "_fetch", fetch)
    assert cli.run(["data", "bccd", "--root", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the same command goes on" in error
    assert [path.name for path in tmp_path.iterdir()] == [bccd.ARCHIVE + ".part"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_a_data_set_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    import focal_tutorial.data.shapes as shapes

    draw: Callable[..., Any] = shapes.draw_scene

    def interrupted(*args: Any) -> Any:
        me(number)
        return draw(*args)

    words = ["data", "shapes", "--root", str(tmp_path), "--num-train", "2", "--num-val", "1", "--image-size", "64"]
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_scene", interrupted)
        assert cli.run(words) == 130
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err.startswith("stopped; ")
    assert cli.run(words) == 0
