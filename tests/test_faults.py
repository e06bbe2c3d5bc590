"""Kills at random moments, full and read-only disks, damaged and hostile files: a clear message, nothing lost.

Ctrl-C, SIGTERM and loader processes that die: test_stopping.py. Archives and broken connections: test_data_bccd.py.
"""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import coco, write_coco
from test_train import assert_same_run, config

from focal_tutorial import cli, retinanet_tiny
from focal_tutorial.checkpoint import read_checkpoint
from focal_tutorial.data import bccd, download
from focal_tutorial.data.root import HALF_MADE, _claim, new_folder
from focal_tutorial.errors import InputError
from focal_tutorial.train import TrainConfig, load_checkpoint, train
from focal_tutorial.train_log import keep_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import fault_tools
import faults


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "unbroken"
    train(config(folder), progress=False)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small disk here (root in Linux may)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def change(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


# Killed at random moments


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_training_killed_at_random_moments(tmp_path: Path) -> None:
    found = faults.drill_training(tmp_path, 2, random.Random(7), steps=40, window=0.4)
    assert found["kills"] == 2 and found["different"] == [] and found["half_files_at_the_end"] == 0
    assert found["most_steps_lost"] <= 1  # the one under way, for every step is saved


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_download_killed_at_random_moments(tmp_path: Path) -> None:
    found = faults.drill_download(tmp_path, 2, random.Random(7), fault_tools.made_up_archive(10), seconds=0.4)
    assert found["kills"] == 2 and found["finished"] >= 1


def test_the_drill_sees_differences(unbroken: Path, tmp_path: Path) -> None:
    assert faults.compare_runs(unbroken, unbroken) == []
    shutil.copytree(unbroken, tmp_path / "run")
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    name, weight = next((name, value) for name, value in state["model"].items() if value.ndim == 1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    torch.save(state, tmp_path / "run/last.pt")
    assert faults.compare_runs(unbroken, tmp_path / "run") == [f"last.pt.model.{name}"]
    (tmp_path / "root/bccd").mkdir(parents=True)
    with pytest.raises(AssertionError, match="half a data set"):
        fault_tools.must(faults.look_at_root(tmp_path / "root", b"", {"train.json": "digest"}), "")


def test_killed_between_the_first_evaluation_and_the_first_checkpoint(unbroken: Path, tmp_path: Path) -> None:
    """best.pt and a log, but nothing to resume: refused with a way out, and started again where that is asked for."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("best.pt", "log.csv"):
        shutil.copy(unbroken / name, folder)
    with pytest.raises(InputError, match=r"has no checkpoint yet.*delete the folder"):
        train(config(folder), progress=False)
    train(config(folder, resume_or_start=True), progress=False)
    assert_same_run(folder, unbroken)


def test_what_a_killed_process_left_is_removed_and_what_another_fills_is_not(tmp_path: Path) -> None:
    left, held = (tmp_path / (HALF_MADE.format("set") + name) for name in ("left", "held"))
    for folder in (left, held):
        folder.mkdir()
        (folder / "half.png").write_bytes(b"half")
    if _claim(held) is None:
        pytest.skip("this file system has no locks")
    with new_folder(tmp_path / "set") as temporary:
        (temporary / "whole.png").write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([held.name, "set"])


def test_folders_filled_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, errors = tempfile.mkdtemp, []

    def slow(**named: Any) -> str:
        made = make(**named)
        time.sleep(0.002)  # between making a folder and claiming it, another must not take it for an abandoned one
        return made

    def fill_one() -> None:
        try:
            with new_folder(tmp_path / "set") as temporary:
                (temporary / "whole.png").write_bytes(b"whole")
        except InputError as error:
            errors.append(error)

    monkeypatch.setattr("focal_tutorial.data.root.tempfile.mkdtemp", slow)
    for _ in range(10):
        threads = [threading.Thread(target=fill_one) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and [path.name for path in tmp_path.iterdir()] == ["set"]
        assert (tmp_path / "set" / "whole.png").read_bytes() == b"whole"


def test_half_a_row_of_the_log_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    keep_rows(path, 0)
    header = path.read_text()
    path.write_text(header + "2,0,0.1,1,1,1,9,,\n1\x00\n")
    keep_rows(path, 4)
    assert path.read_text() == header + "2,0,0.1,1,1,1,9,,\n"


# Disks


def test_a_disk_that_fills_during_a_training(unbroken: Path, disk: Path) -> None:
    def full(step: int, model: Any) -> None:
        if step == 5:
            fill(disk)

    with pytest.raises(InputError, match=r"cannot be written \(.*check the free space"):
        train(config(disk / "run", save_every=4), after_step=full, progress=False)
    assert read_checkpoint(disk / "run/last.pt")["step"] == 4 and not list((disk / "run").glob(".*"))
    (disk / "ballast").unlink()
    train(TrainConfig(out=str(disk / "run"), resume=True), progress=False)
    assert_same_run(disk / "run", unbroken)


def test_a_disk_that_fills_during_a_download(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = fault_tools.made_up_archive(50)
    assert len(body) > 2**21
    server = fault_tools.SlowServer(body, 0)
    (tmp_path / "archive.zip").write_bytes(body)
    monkeypatch.setattr(bccd, "URL", server.url)
    monkeypatch.setattr(bccd, "DIGEST", bccd.digest_files(bccd._select(download.read_zip(tmp_path / "archive.zip"))))
    words = ["data", "bccd", "--root", str(disk)]
    assert cli.run(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; check the free space" in error and ".part" in error
    have = (disk / (bccd.ARCHIVE + ".part")).stat().st_size
    assert have > 2**20
    change(disk, f"size={len(body) + 2**20}")  # room for the archive, and not for what is in it
    assert cli.run(words) == 2 and "cannot write" in capsys.readouterr().err
    assert [path.name for path in disk.iterdir()] == [bccd.ARCHIVE]
    change(disk, "size=64m")
    assert cli.run(words) == 0
    server.shutdown()
    server.server_close()


def test_a_disk_that_is_read_only(
    unbroken: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unbroken, disk / "run")
    torch.save(torch.zeros(1), disk / "odd.pt")
    change(disk, "ro")
    monkeypatch.setattr(bccd, "cache_root", lambda: disk / "cache")
    for words in (
        ["data", "bccd", "--root", str(disk)],
        ["data", "shapes", "--root", str(disk), "--num-train", "1", "--num-val", "1"],
        ["train", "--steps", "1", "--out", f"{disk}/new"],
        ["train", "--resume", "--out", f"{disk}/run"],
        ["convert-weights", str(disk / "odd.pt"), f"{disk}/out.pt"],
    ):
        assert cli.run(words) == 2, words
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and "disk" in lines[0], lines
    assert read_checkpoint(disk / "run/last.pt")["step"] == 12


# Files that are damaged or hostile


class Hostile:
    """Unpickled by Python's own rules, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def write_hostile(path: Path, kind: str, mark: Path, state: dict[str, Any]) -> None:
    content = {**state, "model": {**state["model"], "extra": Hostile(mark)}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


ENTRIES: dict[str, Callable[[Path], Any]] = {
    "load_checkpoint": load_checkpoint,
    "read_checkpoint": read_checkpoint,
    "weights=": lambda path: retinanet_tiny(num_classes=3, weights=path),
    "train(resume)": lambda path: train(TrainConfig(out=str(path.parent), resume=True), progress=False),
}
COMMANDS = {
    "train --resume": "train --resume --out {folder}",
    "train --weights": "train --steps 1 --weights {path} --out {folder}/new",
    "evaluate": "evaluate {path} --images {folder}/images --annotations {folder}/annotations.json",
    "predict": "predict {path} {folder}/images/a.png",
    "inspect": "inspect {folder}/images {folder}/annotations.json --checkpoint {path}",
    "convert-weights": "convert-weights {path} {folder}/out.pt",
}


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "pickle"])
@pytest.mark.parametrize("entry", [*ENTRIES, *COMMANDS])
def test_a_hostile_checkpoint_is_refused_and_not_run(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: str, kind: str
) -> None:
    path, mark = tmp_path / "last.pt", tmp_path / "mark"
    write_hostile(path, kind, mark, torch.load(unbroken / "last.pt", weights_only=True))
    write_coco(tmp_path, coco())
    if entry in ENTRIES:
        with pytest.raises(InputError, match="refused"):
            ENTRIES[entry](path)
    else:
        assert cli.run(COMMANDS[entry].format(path=path, folder=tmp_path).split()) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "refused" in lines[0] and str(path) in lines[0], lines
    assert not mark.exists()
    if kind != "before torch 1.6":
        with pytest.raises(Exception):  # noqa: B017
            (pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(path, weights_only=False))["none"]
        assert mark.exists()  # else the file proves nothing


def test_the_json_of_a_run_folder_is_not_what_it_goes_on_from(unbroken: Path, tmp_path: Path) -> None:
    train(config(tmp_path / "run", steps=12, save_every=4), progress=False)
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    for name in ("config.json", "metrics.json"):
        (tmp_path / "run" / name).write_text('{"lr": 99.0, "weights": "/etc/passwd", "out": "elsewhere"}')
    train(TrainConfig(out=str(tmp_path / "run"), resume=True), progress=False)
    assert_same_run(tmp_path / "run", unbroken)
    assert state["config"]["lr"] != 99.0


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut off, or with up to four bytes changed, half the time near the end, where a zip has its table."""
    if draw.random() < 0.2:
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed)) if draw.random() < 0.5 else -draw.randint(1, min(3000, len(changed)))
        changed[place] ^= draw.randint(1, 255)
    return bytes(changed)


def test_a_damaged_checkpoint_is_refused_or_the_damage_is_of_no_account(unbroken: Path, tmp_path: Path) -> None:
    whole = (unbroken / "best.pt").read_bytes()
    right = load_checkpoint(unbroken / "best.pt").state_dict()
    draw, refused = random.Random(0), 0
    for _ in range(150):
        (tmp_path / "best.pt").write_bytes(damaged(whole, draw))
        try:
            found = load_checkpoint(tmp_path / "best.pt").state_dict()
        except InputError as error:
            refused += 1
            assert "best.pt" in str(error)
        else:
            assert all(torch.equal(found[name], value) for name, value in right.items())
    assert refused > 100


def test_one_flipped_bit_in_a_weight_is_seen(unbroken: Path, tmp_path: Path) -> None:
    """torch.load does not compare the checksums of the file."""
    state = torch.load(unbroken / "best.pt", weights_only=True)["model"]
    weight = next(value for value in state.values() if value.ndim == 1)
    content = bytearray((unbroken / "best.pt").read_bytes())
    content[bytes(content).index(weight.numpy().tobytes()) + 2] ^= 1
    (tmp_path / "best.pt").write_bytes(content)
    torch.load(tmp_path / "best.pt", weights_only=True)
    with pytest.raises(InputError, match=r"damaged, .*data/\d+ in it is not what was written"):
        load_checkpoint(tmp_path / "best.pt")
    with pytest.raises(InputError, match="damaged"):
        retinanet_tiny(num_classes=3, weights=tmp_path / "best.pt")


@pytest.mark.parametrize("part", ["config", "step", "optimizer", "model_config", "class_names", "scaler", "best"])
@pytest.mark.parametrize("value", [None, -1, "text", {"lr": {}}])
def test_a_run_state_of_other_contents(unbroken: Path, tmp_path: Path, part: str, value: Any) -> None:
    state = torch.load(unbroken / "last.pt", weights_only=True)
    torch.save({**state, part: value}, tmp_path / "last.pt")
    if (value == {"lr": {}} and part in ("best", "scaler")) or (value is None and part == "model_config"):
        pytest.skip("of no account to the resumed run")
    if part != "model_config":
        with pytest.raises(InputError):
            train(TrainConfig(out=str(tmp_path), resume=True), progress=False)
    else:
        with pytest.raises(InputError):
            load_checkpoint(tmp_path / "last.pt")


def test_a_damaged_archive_is_refused_or_has_the_right_digest(tmp_path: Path) -> None:
    whole, draw = fault_tools.made_up_archive(2), random.Random(0)
    (tmp_path / "a.zip").write_bytes(whole)
    right = bccd.digest_files(bccd._select(download.read_zip(tmp_path / "a.zip")))
    outcomes = set()
    for _ in range(400):
        (tmp_path / "a.zip").write_bytes(damaged(whole, draw))
        try:
            files = download.read_zip(tmp_path / "a.zip")
            outcomes.add("right" if bccd.digest_files(bccd._select(files)) == right else "other digest")
        except InputError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_data_set_with_half_an_annotation_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / bccd.ARCHIVE).write_bytes(fault_tools.made_up_archive(2))
    files = bccd._select(download.read_zip(tmp_path / bccd.ARCHIVE))
    monkeypatch.setattr(bccd, "DIGEST", bccd.digest_files(files))
    paths = bccd.prepare_bccd(tmp_path)
    whole = paths["train"].read_bytes()
    for half in (whole[: len(whole) // 2], b"", b"{}"):
        paths["train"].write_bytes(half)
        assert bccd.prepare_bccd(tmp_path)["train"].read_bytes() == whole
