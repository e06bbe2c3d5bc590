"""The training loop: what it writes, that it resumes to the same bits, and what it says when something is wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from focal_tutorial.checkpoint import read_checkpoint, save_checkpoint, write_atomically
from focal_tutorial.criterion import Criterion
from focal_tutorial.data import coco
from focal_tutorial.data.loader import EpochLoader
from focal_tutorial.data.shapes import ShapesDataset, make_shapes
from focal_tutorial.errors import InputError
from focal_tutorial.optim import Accumulation, AveragedWeights, learning_rate, make_optimizer
from focal_tutorial.train import Run, TrainConfig, load_checkpoint, train
from focal_tutorial.train_config import median_canvas
from focal_tutorial.train_setup import load_data

SMALL: dict[str, Any] = {
    "shapes": {"num_train": 20, "num_val": 4, "size": 64, "radius": [6.0, 12.0], "distractors": [0, 2]},
    "model_options": {"levels": [2, 3, 4], "widths": [8, 16, 16], "channels": 16, "head_depth": 1},
    "batch_size": 2,
    "steps": 12,
    "warmup_steps": 2,
    "log_every": 2,
}


def config(out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, "out": str(out), **changes})


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, tensors inside included."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: Any) -> Path:
    """A run of 12 steps in one go; an epoch is 10."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    train(config(folder), progress=False)
    return folder


def assert_same_run(folder: Path, unbroken: Path) -> None:
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (folder, unbroken))
    for part in ("model", "ema", "optimizer", "scaler", "step", "metrics", "best"):
        assert same(a[part], b[part]), part
    assert rows(folder) == rows(unbroken)


def test_run_folder(unbroken: Path) -> None:
    assert sorted(p.name for p in unbroken.iterdir()) == [
        "best.pt",
        "config.json",
        "last.pt",
        "log.csv",
        "metrics.json",
    ]
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert {"AP", "AP50", "per_class", "loss", "step", "seconds", "best"} <= set(metrics)
    assert metrics["step"] == 12 and metrics["best"]["step"] == 12
    settings = json.loads((unbroken / "config.json").read_text())
    assert settings["optimizer"] == "adamw" and settings["canvas"] == [64, 64]  # the open settings are chosen
    assert TrainConfig(**settings).to_dict() == TrainConfig(**settings | {"canvas": (64, 64)}).to_dict()
    log = rows(unbroken)
    assert [row["step"] for row in log] == ["2", "4", "6", "8", "10", "12", "12"]
    assert all(math.isfinite(float(row["loss"])) for row in log[:-1]) and log[-1]["AP"] != ""
    total = float(log[0]["classification"]) + float(log[0]["bbox_regression"])
    assert total == pytest.approx(float(log[0]["loss"]), rel=1e-4)


def test_checkpoint_is_the_averaged_model(unbroken: Path) -> None:
    last = torch.load(unbroken / "last.pt", weights_only=True)
    model = load_checkpoint(unbroken / "best.pt")
    assert not model.training and model.class_names == ["circle", "square", "triangle"]
    assert same(dict(model.state_dict()), dict(last["ema"])) and not same(dict(last["ema"]), dict(last["model"]))
    assert same(dict(load_checkpoint(unbroken / "last.pt").state_dict()), dict(last["ema"]))
    assert isinstance(model([torch.zeros(3, 40, 50)])[0]["boxes"], torch.Tensor)


def test_same_seed_same_bits_other_seed_not(unbroken: Path, tmp_path: Path) -> None:
    train(config(tmp_path / "again"), progress=False)
    assert_same_run(tmp_path / "again", unbroken)
    train(config(tmp_path / "other", seed=1), progress=False)
    a, b = (torch.load(f / "last.pt", weights_only=True)["model"] for f in (tmp_path / "other", unbroken))
    assert not same(dict(a), dict(b))


KILLED = """
import json, os, signal, sys
from focal_tutorial.train import Run, TrainConfig, train
step = Run._train_step
def killed(self, batches):
    step(self, batches)
    if self.step == 9:
        os.kill(os.getpid(), signal.SIGKILL)
Run._train_step = killed
train(TrainConfig(**json.loads(sys.argv[1])), progress=False)
"""


def test_killed_and_resumed_equals_unbroken(unbroken: Path, tmp_path: Path) -> None:
    """SIGKILL in step 10, after log rows past the checkpoint of step 6; the resumed run crosses the epoch's end."""
    folder = tmp_path / "killed"
    settings = json.dumps(config(folder, save_every=6).to_dict())
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", KILLED, settings], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 6 and rows(folder)[-1]["step"] == "8"
    (folder / ".last.pt.half.tmp").write_bytes(b"of a write that was cut off")
    train(TrainConfig(out=str(folder), resume=True), progress=False)
    assert_same_run(folder, unbroken)
    assert not list(folder.glob(".*"))


def test_ctrl_c_saves_the_last_finished_step(unbroken: Path, tmp_path: Path, monkeypatch: Any) -> None:
    step = Run._train_step

    def interrupted(self: Run, batches: Any) -> None:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, batches)

    folder, before = tmp_path / "stopped", signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Run, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 12 and saved; resume with out"):
        train(config(folder), progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 5
    train(TrainConfig(out=str(folder), resume=True), progress=False)
    # The log has rows of its own where it was cut, so only the state is compared.
    a, b = (torch.load(f / "last.pt", weights_only=True) for f in (folder, unbroken))
    assert all(same(a[part], b[part]) for part in ("model", "ema", "optimizer", "step"))


def test_finished_run_resumes_to_itself(unbroken: Path) -> None:
    metrics = json.loads((unbroken / "metrics.json").read_text())
    again = train(TrainConfig(out=str(unbroken), resume=True), progress=False)
    assert {k: v for k, v in again.items() if k != "out"} == metrics


def test_resume_keeps_its_settings(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lr is 0\.5, but the run .* was started with 0\.002"):
        train(TrainConfig(out=str(unbroken), resume=True, lr=0.5), progress=False)
    with pytest.raises(InputError, match=r"last\.pt does not exist"):
        train(config(tmp_path, resume=True), progress=False)
    state = torch.load(unbroken / "last.pt", weights_only=True)
    (tmp_path / "other").mkdir()
    save_checkpoint(tmp_path / "other" / "last.pt", {**state, "num_images": 19})
    with pytest.raises(InputError, match="num_images is 20, but was 19"):
        train(TrainConfig(out=str(tmp_path / "other"), resume=True), progress=False)
    best_only = {k: v for k, v in state.items() if k != "optimizer"}
    save_checkpoint(tmp_path / "other" / "last.pt", best_only)
    with pytest.raises(InputError, match="holds a model only"):
        train(TrainConfig(out=str(tmp_path / "other"), resume=True), progress=False)
    resumed = TrainConfig(out="x", resume=True, threads=3, workers=1).continued(state["config"])
    assert (resumed.threads, resumed.workers, resumed.steps, resumed.lr) == (3, 1, 12, 0.002)
    config(tmp_path, resume=True).continued(state["config"])  # the command of the start, repeated
    with pytest.raises(InputError, match="model_options is"):
        config(tmp_path, resume=True, model_options={"gamma": 1.0}).continued(state["config"])


def test_a_loss_that_is_not_finite_stops_with_its_images(tmp_path: Path, monkeypatch: Any) -> None:
    losses, seen = Run._losses, {}

    def poisoned(self: Run, images: Any, targets: Any) -> Any:
        found = losses(self, images, targets)
        seen[self.step] = [target["image_id"] for target in targets]
        return found * float("nan") if self.step == 6 else found

    monkeypatch.setattr(Run, "_losses", poisoned)
    with pytest.raises(InputError, match="not finite at step 7") as error:
        train(config(tmp_path / "run", save_every=4, log_every=5), progress=False)
    assert f"images with id {seen[6][0]}, {seen[6][1]}." in str(error.value)
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert last["step"] == 4  # step 8 would have been saved with NaN in it
    assert all(value.isfinite().all() for value in last["model"].values())


def test_a_worker_that_dies(tmp_path: Path, monkeypatch: Any) -> None:
    load = ShapesDataset.load_image

    def killed(self: ShapesDataset, index: int) -> torch.Tensor:
        if torch.utils.data.get_worker_info() is not None and index == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, index)

    monkeypatch.setattr(ShapesDataset, "load_image", killed)
    with pytest.raises(InputError, match=r"a process that loads images died .* resume with fewer workers"):
        train(config(tmp_path / "run", workers=1), progress=False)


def test_a_worker_that_dies_handing_over_a_batch(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(self: EpochLoader) -> Any:
        raise ConnectionResetError("Connection reset by peer")
        yield

    monkeypatch.setattr(EpochLoader, "__iter__", broken)
    with pytest.raises(InputError, match="a process that loads images died"):
        train(config(tmp_path / "run", workers=1), progress=False)


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install focal-tutorial\[tensorboard\]"):
        train(config(tmp_path / "run", tensorboard=True), progress=False)


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    """Batches of 2 × 2 and of 4 give the same losses and weights, though their foreground counts differ."""
    shared = {"optimizer": "sgd", "lr": 0.02, "steps": 4, "log_every": 1, "ema": None}
    results = [
        train(config(tmp_path / f"{n}", batch_size=4 // n, accumulate=n, **shared), progress=False) for n in (1, 2, 4)
    ]
    states = [torch.load(tmp_path / f"{n}" / "last.pt", weights_only=True)["model"] for n in (1, 2, 4)]
    for result, state in zip(results[1:], states[1:], strict=True):
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)
        for name, value in states[0].items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)
    start = train(config(tmp_path / "0", lr=0.0, **{k: v for k, v in shared.items() if k != "lr"}), progress=False)
    assert start["loss"] != pytest.approx(results[0]["loss"], rel=1e-2)  # else all of this could be standing still


def test_accumulation_by_hand() -> None:
    loss_sums, foreground = torch.tensor([6.0, 0.5, 10.0]), torch.tensor([3.0, 0.0, 5.0])
    sums = Accumulation(3)
    total = sum(loss / max(n, 1) * sums.weight(n) for loss, n in zip(loss_sums, foreground, strict=True)) * sums.scale()
    assert float(total) == pytest.approx(16.5 / 8)
    none_at_all = Accumulation(2)
    total = sum(torch.tensor(2.0) * none_at_all.weight(torch.tensor(0.0)) for _ in range(2)) * none_at_all.scale()
    assert float(total) == pytest.approx(4.0)  # divided by at least 1, as one batch without foreground is
    averaged = Accumulation(4)
    assert [averaged.weight(None) for _ in range(4)] == [1.0] * 4 and averaged.scale() == 0.25
    assert Criterion(normalizer="image").last_foreground is None


def test_learning_rate() -> None:
    assert learning_rate(0, 100, 0.1, warmup_steps=10) == pytest.approx(0.01)
    assert learning_rate(9, 100, 0.1, warmup_steps=10) == pytest.approx(0.1)
    assert learning_rate(10, 100, 0.1, warmup_steps=10) == pytest.approx(0.1)
    assert learning_rate(55, 100, 0.1, warmup_steps=10) == pytest.approx(0.05)
    assert learning_rate(99, 100, 0.1, warmup_steps=10) < 1e-4
    paper = [learning_rate(s, 90_000, 0.01, schedule="step") for s in (0, 59_999, 60_000, 79_999, 80_000)]
    assert paper == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_log_has_the_rate_that_its_step_used(tmp_path: Path) -> None:
    train(config(tmp_path / "run", lr=0.01, steps=4, log_every=1), progress=False)
    used = [learning_rate(step, 4, 0.01, warmup_steps=2) for step in range(4)]  # 0.005, 0.01, 0.01, 0.005
    assert [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]] == pytest.approx(used)


def test_a_run_goes_on_with_the_same_settings_as_lists_or_tuples() -> None:
    stored = TrainConfig(model_options={"levels": (2, 3)}, shapes={"radius": [6, 12]}, milestones=(0.5, 0.9)).to_dict()
    asked = TrainConfig(
        model_options={"levels": [2, 3]}, shapes={"radius": (6, 12)}, milestones=(0.5, 0.9), resume=True
    )
    assert asked.continued(stored).model_options == {"levels": (2, 3)}
    assert TrainConfig(lr=1).continued({**stored, "lr": 1.0}).lr == 1.0
    with pytest.raises(InputError, match="model_options is"):
        TrainConfig(model_options={"levels": [2, 4]}).continued(stored)


def test_annotations_are_read_once(tmp_path: Path, monkeypatch: Any) -> None:
    """Those of COCO take half a minute, and as much memory as the copy."""
    paths = make_shapes(tmp_path, num_train=4, num_val=2, size=64)
    read = []
    original = coco.read_coco
    monkeypatch.setattr(coco, "read_coco", lambda file, folder: read.append(Path(file)) or original(file, folder))
    data = {"images": paths["train_images"], "annotations": paths["train"]}
    data |= {"val_images": paths["val_images"], "val_annotations": paths["val"]}
    files = {name: str(path) for name, path in data.items()}
    train(config(tmp_path / "run", shapes={}, steps=1, **files), progress=False)
    assert read == [paths["train"], paths["val"]]


@pytest.mark.parametrize("cache", [True, False])
def test_cache_is_as_asked_for(tmp_path: Path, cache: bool) -> None:
    _, *datasets = load_data(config(tmp_path, cache=cache), 2)
    assert all((dataset._cache is not None) is cache for dataset in datasets)


def test_averaged_weights_and_weight_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = AveragedWeights(model, 0.9)
    expected = model[0].weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model[0].weight.add_(0.1)
            model[1].running_mean.add_(1)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.model[0].weight, expected)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)
    assert not any(p.requires_grad for p in average.model.parameters())
    groups = make_optimizer(model, "sgd", lr=1, momentum=0.9, weight_decay=0.1).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(4, 0.1)]
    groups = make_optimizer(model, "adamw", lr=1, momentum=0, weight_decay=0.1, decay_norm_bias=False).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"amp": "bf16", "channels_last": False, "eval_every": 1, "epochs": 2, "steps": None},
        {"optimizer": "sgd", "schedule": "step", "ema": None, "clip_grad": 0.0, "decay_norm_bias": False},
        {
            "scale": [0.8, 1.2],
            "colour": 0.2,
            "flip_vertical": 0.5,
            "deterministic": True,
            "accumulate": 2,
            "workers": 1,
        },
        {"amp": "fp16"},
    ],
)
def test_options_train(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = train(config(tmp_path / "run", **{"steps": 4, **changes}), progress=False)
    assert math.isfinite(result["loss"]) and result["AP"] is not None
    assert not torch.are_deterministic_algorithms_enabled()  # what a run sets, it puts back


def test_best_is_the_evaluation_with_the_highest_ap(tmp_path: Path, monkeypatch: Any) -> None:
    import focal_tutorial.train as module

    scores = iter([0.2, 0.4, 0.3])
    monkeypatch.setattr(module, "evaluate", lambda *a, **k: {"AP": (ap := next(scores)), "AP50": ap})
    result = train(config(tmp_path / "run", epochs=3, steps=None, eval_every=1), progress=False)
    assert result["AP"] == 0.3 and result["best"]["AP"] == 0.4 and result["best"]["step"] == 20
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert best["step"] == 20 and "optimizer" not in best
    assert [row["AP"] for row in rows(tmp_path / "run") if row["AP"]] == ["0.2", "0.4", "0.3"]


@pytest.fixture(scope="module")
def coco_set(tmp_path_factory: Any) -> dict[str, Any]:
    options = {"size": 64, "radius": (6.0, 12.0)}
    return make_shapes(tmp_path_factory.mktemp("data"), num_train=6, num_val=3, **options)


def test_coco_format_set(coco_set: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    data = {"images": str(coco_set["train_images"]), "annotations": str(coco_set["train"]), "shapes": {}, "steps": 2}
    without = train(config(tmp_path / "a", **data), progress=False)
    assert "AP" not in without and (tmp_path / "a" / "best.pt").exists()
    validation = {"val_images": str(coco_set["val_images"]), "val_annotations": str(coco_set["val"])}
    settings = config(tmp_path / "b", **data, **validation, canvas=(96, 128), cache=True)
    assert train(settings)["AP"] is not None
    out = capsys.readouterr().out
    assert "6 images, 3 classes (circle, square, triangle); checked on 3" in out and "AP50" in out
    assert load_checkpoint(tmp_path / "b" / "best.pt").preprocess.canvas == (96, 128)


def test_data_faults(coco_set: dict[str, Any], tmp_path: Path) -> None:
    data = {"images": str(coco_set["train_images"]), "annotations": str(coco_set["train"]), "shapes": {}}
    truth = json.loads(Path(coco_set["val"]).read_text())
    truth["categories"] = truth["categories"][:2]
    (tmp_path / "two.json").write_text(json.dumps(truth))
    two = {"val_images": str(coco_set["val_images"]), "val_annotations": str(tmp_path / "two.json")}
    with pytest.raises(InputError, match="the model has 3 classes"):
        train(config(tmp_path / "run", **data, **two), progress=False)
    with pytest.raises(InputError, match="make no full batch of 8"):
        train(config(tmp_path / "run", **data, batch_size=8), progress=False)
    with pytest.raises(InputError, match="make no step of 8"):
        train(config(tmp_path / "run", **data, batch_size=2, accumulate=4), progress=False)
    with pytest.raises(InputError, match="does not exist"):
        train(config(tmp_path / "run", **{**data, "annotations": "nowhere.json"}), progress=False)
    truth = json.loads(Path(coco_set["train"]).read_text())
    (tmp_path / "none.json").write_text(json.dumps({**truth, "annotations": []}))
    with pytest.raises(InputError, match="no usable box"):
        train(config(tmp_path / "run", **{**data, "annotations": str(tmp_path / "none.json")}), progress=False)
    assert not (tmp_path / "run").exists()  # nothing is left behind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr: 0 or more wanted, got -1"),
        ({"lr": float("nan")}, "lr: 0 or more wanted, got nan"),
        ({"lr": float("inf")}, "lr: 0 or more wanted, got inf"),
        ({"scale": (0.5, float("inf"))}, "scale: finite numbers wanted"),
        ({"seed": 10**20}, "seed: below 2.62 wanted"),
        ({"shapes": {"corners": 7}}, "shapes: .*corners"),
        ({"shapes": {"num_train": 0}}, "shapes: num_images must be at least 1"),
        ({"device": "meta"}, "device meta: torch cannot compute on it here"),
        ({"device": "mps:7"}, "device mps:7: torch cannot compute on it here"),
        ({"model_options": {"score_threshold": 1}}, "score_threshold: a number of at least 0 and below 1"),
        ({"optimizer": "adam"}, "optimizer: one of adamw, sgd wanted, got 'adam'"),
        ({"amp": "half"}, "amp: one of none, bf16, fp16 wanted"),
        ({"batch_size": 0}, "batch_size: at least 1 wanted, got 0"),
        ({"ema": 1.0}, "ema: at least 0 and below 1 wanted"),
        ({"epochs": 3}, "epochs .3. and steps .12. both set the length"),
        ({"images": "somewhere"}, "images and annotations belong together"),
        ({"val_images": "a", "val_annotations": "b"}, "give the training set too"),
        ({"model": "yolo"}, "model yolo: builder"),
        ({"model_options": {"gama": 2}}, "gama"),
        ({"flip": 2.0}, "flip must be a probability"),
        ({"device": "gpu"}, "device: auto, cpu, cuda or cuda:N wanted, got 'gpu'"),
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        train(config(tmp_path / "run", **changes), progress=False)
    assert "\n" not in str(error.value)


def test_folders(unbroken: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(InputError, match="already holds a run: resume it"):
        train(config(unbroken), progress=False)
    (tmp_path / "early").mkdir()
    (tmp_path / "early/log.csv").write_text("step,loss\n1,2.0\n")
    with pytest.raises(InputError, match=r"no checkpoint yet.*choose another out, or delete"):
        train(config(tmp_path / "early"), progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run folder .*file"):
        train(config(tmp_path / "file"), progress=False)
    monkeypatch.chdir(tmp_path)
    free = dataclasses.replace(config(tmp_path), out=None, steps=1)
    assert [Path(train(free, progress=False)["out"]) for _ in range(2)] == [Path("runs/shapes"), Path("runs/shapes-2")]
    again = train(dataclasses.replace(free, resume=True), progress=False)
    assert Path(again["out"]) == Path("runs/shapes-2") and again["step"] == 1
    with pytest.raises(InputError, match="there is no run in runs/train"):
        train(TrainConfig(images="a", annotations="b", resume=True), progress=False)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo this must not run",))


def test_checkpoints_that_are_refused(unbroken: Path, tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(tmp_path / "nowhere.pt")
    torch.save({"model": Malicious()}, tmp_path / "malicious.pt")
    with pytest.raises(InputError, match="refused"):
        load_checkpoint(tmp_path / "malicious.pt")
    assert "must not run" not in capfd.readouterr().out
    whole = (unbroken / "best.pt").read_bytes()
    for name, content in {"half": whole[: len(whole) // 2], "text": b"hello", "empty": b""}.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.pt: (broken|refused)"):
            load_checkpoint(tmp_path / f"{name}.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "plain.pt")
    with pytest.raises(InputError, match="not a checkpoint of focal-tutorial"):
        load_checkpoint(tmp_path / "plain.pt")
    state = read_checkpoint(unbroken / "best.pt")
    torch.save({**state, "model_config": {**state["model_config"], "channels": 32}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="do not fit"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def full_disk(file: Any) -> None:
        file.write(b"new, but")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot be written .*No space left"):
        write_atomically(path, full_disk)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "nowhere" / "last.pt", full_disk)


def test_median_canvas() -> None:
    assert median_canvas([(480, 640)] * 3) == (384, 512)
    assert median_canvas([(100, 60), (90, 70), (64, 64)]) == (96, 64)
    assert median_canvas([(2000, 1000)]) == (512, 256)
