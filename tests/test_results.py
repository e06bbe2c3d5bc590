"""Results with provenance: what is written, what is refused, what the summary says."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from focal_tutorial import results
from focal_tutorial.errors import InputError
from focal_tutorial.results import (
    RESULTS,
    check_result,
    describe_device,
    git_commit,
    load_result,
    peak_memory,
    save_result,
    summarise,
)

PAYLOAD: dict[str, Any] = {
    "config": {"steps": 10, "canvas": (64, 96), "images": "/somewhere/else/images"},
    "runs": [
        {"seed": 0, "metrics": {"AP": 0.5, "APl": None, "per_class": {"cat": {"AP": 0.25}}}},
        {"seed": 1, "metrics": {"AP": 0.7, "APl": None, "per_class": {"cat": {"AP": 0.75}}}},
    ],
    "note": "two seeds",
}


def test_round_trip(tmp_path: Path) -> None:
    path = save_result("trial", PAYLOAD, wall_seconds=12.345, folder=tmp_path)
    assert path == tmp_path / "trial.json"
    result = load_result("trial", tmp_path)
    assert check_result(result) == []
    assert result["config"] == {"steps": 10, "canvas": [64, 96], "images": "images"}  # no path of this machine
    assert result["note"] == "two seeds"
    provenance = result["provenance"]
    assert provenance["wall_seconds"] == 12.35 or provenance["wall_seconds"] == 12.34
    assert {"python", "torch", "torchvision", "focal_tutorial"} <= set(provenance["versions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", provenance["date"])
    assert provenance["peak_memory_mib"] > 10
    assert [p.name for p in tmp_path.iterdir()] == ["trial.json"]


def test_summary() -> None:
    summary = summarise([run["metrics"] for run in PAYLOAD["runs"]])
    assert summary["AP"] == {"mean": pytest.approx(0.6), "sd": pytest.approx(math.sqrt(0.02)), "n": 2}
    assert summary["APl"] == {"mean": None, "sd": None, "n": 0}
    assert summary["per_class"]["cat"]["AP"]["mean"] == 0.5
    one = summarise([{"AP": 0.5, "name": "text is left out"}, {"AP": None}])
    assert one == {"AP": {"mean": 0.5, "sd": None, "n": 1}}
    assert summarise([]) == {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.pop("provenance"), "provenance is missing"),
        (lambda r: r["provenance"].pop("commit"), "provenance.commit is missing"),
        (lambda r: r.update(schema=99), "schema is 99"),
        (lambda r: r.update(runs=[]), "runs is empty"),
        (lambda r: r["runs"][0].pop("seed"), r"runs\[0\].seed is missing"),
        (lambda r: r["runs"][0]["metrics"].update(AP=0.9), "summary is not"),
        (lambda r: r["config"].update(out="/home/someone/run"), "config.out holds an absolute path"),
        (lambda r: r["config"].update(out="C:\\Users\\someone"), "config.out holds an absolute path"),
        (lambda r: r.update(extra=[float("nan")]), r"extra\[0\] is nan"),
        (lambda r: r["provenance"].update(wall_seconds="long"), "wall_seconds is a str"),
    ],
)
def test_check_finds(tmp_path: Path, change: Any, complaint: str) -> None:
    save_result("trial", PAYLOAD, wall_seconds=1, folder=tmp_path)
    result = load_result("trial", tmp_path)
    change(result)
    assert any(re.search(complaint, problem) for problem in check_result(result))
    (tmp_path / "changed.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=r"changed\.json"):
        load_result("changed", tmp_path)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs is missing"):
        save_result("trial", {"config": {}}, wall_seconds=1, folder=tmp_path)
    with pytest.raises(ValueError, match="is inf"):
        save_result("trial", {**PAYLOAD, "loss": math.inf}, wall_seconds=1, folder=tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        save_result("trial", PAYLOAD, wall_seconds=1, folder=tmp_path / "missing")
    with pytest.raises(InputError, match="no such result"):
        load_result("trial", tmp_path)
    (tmp_path / "half.json").write_text('{"schema": 1,')
    with pytest.raises(InputError, match="not valid JSON"):
        load_result("half", tmp_path)
    assert check_result([]) == ["is not a JSON object"]


def test_device_and_commit_give_no_machine_away() -> None:
    import socket

    text = describe_device("cpu")
    assert "thread" in text and "/" not in text and socket.gethostname() not in text
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    memory = peak_memory()
    assert memory is None or memory > 10


def test_the_commit_is_never_that_of_a_repository_around_the_package(tmp_path: Path, monkeypatch: Any) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(tmp_path), *who, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(results, "REPOSITORY", tmp_path / "site-packages")
    assert git_commit() is None
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", git_commit() or "")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_of_the_book_is_sound(path: Path) -> None:
    result = load_result(path.stem)
    assert result["name"] == path.stem
    assert result["provenance"]["commit"]
