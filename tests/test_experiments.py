"""The runner of the book's experiments: resumable by seed, results as they come, bad input explained."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from focal_tutorial import experiments
from focal_tutorial.cli import run as command
from focal_tutorial.errors import InputError
from focal_tutorial.experiments import Experiment, out_of_date, run_experiment
from focal_tutorial.paper import TABLES
from focal_tutorial.results import RESULTS, check_result


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """An experiment that measures nothing and notes which seeds were run."""
    seen: list[tuple[int, dict[str, Any]]] = []

    def run(profile: str, seed: int, out: Path, root: Path | None, **changes: Any) -> dict[str, Any]:
        if changes.get("fail_at") == seed:
            raise InputError("stopped on purpose")
        seen.append((seed, changes))
        return {"metrics": {"AP": 0.5 + 0.1 * seed, "AP50": 0.75, "per_class": {"cell": {"AP": 0.5}}}}

    fake = Experiment("a test", run, {"cpu": {"steps": 3, "canvas": (8, 8)}}, {"cpu": 0.1})
    monkeypatch.setitem(experiments.EXPERIMENTS, "fake", fake)
    return seen


def test_result_has_every_seed_its_spread_and_provenance(calls: list, tmp_path: Path) -> None:
    lines: list[str] = []
    path = run_experiment("fake", profile="cpu", seeds=3, out=tmp_path, report=lines.append)
    result = json.loads(path.read_text())
    assert path.name == "fake_cpu.json" and check_result(result) == []
    assert [run["seed"] for run in result["runs"]] == [0, 1, 2]
    assert result["summary"]["AP"] == pytest.approx({"mean": 0.6, "sd": 0.1, "n": 3})
    assert result["config"] == {"steps": 3, "canvas": [8, 8]}
    assert len(lines) == 4 and "seed 2: AP 0.700" in lines[3]


def test_finished_seeds_are_not_run_again_and_a_changed_setting_is(calls: list, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on purpose"):
        run_experiment("fake", profile="cpu", seeds=3, out=tmp_path, report=str, fail_at=2)
    stopped = json.loads((tmp_path / "fake_cpu.json").read_text())
    assert len(stopped["runs"]) == 2  # written as they came
    calls.clear()
    run_experiment("fake", profile="cpu", seeds=2, out=tmp_path, report=str, fail_at=2)
    assert calls == []
    run_experiment("fake", profile="cpu", seeds=2, out=tmp_path, report=str, steps=4)
    assert [seed for seed, _ in calls] == [0, 1]


def test_a_run_begun_with_another_recipe_is_thrown_away(calls: list, tmp_path: Path) -> None:
    begun = tmp_path / "fake_cpu" / "seed-0"
    for changes in ({}, {"steps": 9}, {"steps": 9}):
        with pytest.raises(InputError, match="on purpose"):
            run_experiment("fake", profile="cpu", seeds=1, out=tmp_path, report=str, fail_at=0, **changes)
        left = [path.name for path in begun.iterdir()]
        (begun / f"left by {changes}").touch()
    assert set(left) == {"recipe.json", "left by {'steps': 9}"}


def test_unknown_names_and_profiles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no experiment 'fig99'; there are: bccd, loss_rates"):
        run_experiment("fig99", out=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="loss_rates has no profile gpu; there is: cpu"):
        run_experiment("loss_rates", profile="gpu", out=tmp_path)
    with pytest.raises(InputError, match="profile: one of"):
        run_experiment("bccd", profile="tpu", out=tmp_path)


@pytest.mark.parametrize(("profile", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_a_profile_runs_on_the_device_that_its_result_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, device: str
) -> None:
    paths = {name: tmp_path / name for name in ("images", "train", "val", "test")}
    monkeypatch.setattr(experiments, "prepare_bccd", lambda root: paths)
    assert experiments.bccd_config(profile, 0, tmp_path).device == device  # "auto" would take a GPU for the CPU's run


def test_bccd_at_toy_size(tmp_path: Path) -> None:
    folders = (Path(os.environ.get("FOCAL_TUTORIAL_DATA", "")), Path(__file__).parents[2] / "shared" / "data")
    archive = next((file for folder in folders for file in folder.glob("BCCD_Dataset-*.zip")), None)
    if archive is None:
        pytest.skip("needs the BCCD archive in $FOCAL_TUTORIAL_DATA or ../shared/data")
    from focal_tutorial.data.bccd import prepare_bccd

    prepare_bccd(tmp_path, source=archive)
    path = run_experiment("bccd", profile="cpu", seeds=1, out=tmp_path, root=tmp_path, report=str, steps=3)
    result = json.loads(path.read_text())
    assert result["config"]["steps"] == 3 and set(result["summary"]["per_class"]) == {"Platelets", "RBC", "WBC"}
    assert 0 <= result["runs"][0]["metrics"]["AP"] < 0.2
    assert (tmp_path / "bccd_cpu" / "seed-0" / "best.pt").exists()


BOOK = [
    (name, profile)
    for name, experiment in experiments.EXPERIMENTS.items()
    for profile in experiment.recipes
    if (RESULTS / f"{name}_{profile}.json").exists()
]


@pytest.mark.parametrize(("name", "profile"), BOOK)
def test_results_in_the_book_are_those_of_the_present_recipes(name: str, profile: str) -> None:
    result = json.loads((RESULTS / f"{name}_{profile}.json").read_text(encoding="utf-8"))
    problems = out_of_date(result, experiments.EXPERIMENTS[name], profile)
    assert problems == [], f"`focal-tutorial experiment run {name} --profile {profile}` makes it again"


def test_what_has_cells_is_a_table_and_every_experiment_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiments.EXPERIMENTS["table_1a"] is TABLES["table_1a"]
    assert command(["experiment", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(experiments.EXPERIMENTS)
    assert "8 settings × 3 to 5 seeds; minutes a seed: cpu 4, gpu 24" in lines["table_1a"]
    assert "3 seeds; minutes a seed: cpu 2.5, gpu 6" in lines["bccd"]


def test_changes_and_jobs_that_an_experiment_has_not_are_refused(calls: list, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be changed: steps"):
        run_experiment("table_1a", profile="cpu", out=tmp_path, steps=3)
    with pytest.raises(InputError, match="several jobs are for tables"):
        run_experiment("fake", profile="cpu", out=tmp_path, jobs=2)
    with pytest.raises(InputError, match="jobs: at least 1"):
        run_experiment("table_1a", profile="cpu", out=tmp_path, jobs=0)
    assert calls == [] and list(tmp_path.iterdir()) == []
