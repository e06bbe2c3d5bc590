"""The clock, the profile of a step, throughput, the cost of a COCO run, and the two experiments at toy size."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from focal_tutorial import training_cost
from focal_tutorial.experiments import run_experiment
from focal_tutorial.optim import make_optimizer
from focal_tutorial.results import check_result, peak_memory
from focal_tutorial.retinanet import RetinaNet, retinanet_resnet18_fpn, retinanet_tiny
from focal_tutorial.step_profile import PARTS, StepClock, StepProfile, profile_step, spread, training_step
from focal_tutorial.throughput import coco_cost, kept_for_backward, measure_training, random_batch
from focal_tutorial.training_cost import PRECISIONS, THROUGHPUT_RECIPES, in_new_process, measured, run_throughput

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
SIZE = (64, 96)
TOY: dict[str, Any] = {"builder": "retinanet_tiny", "size": SIZE, "batch": 2, "num_classes": 3, "steps": 2, "warmup": 1}


def toy(device: str = "cpu", seed: int = 0) -> tuple[RetinaNet, Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = retinanet_tiny(3, canvas=SIZE, sizes=(20, 40, 80)).to(device)
    optimizer = make_optimizer(model, "sgd", lr=0.01, momentum=0.9, weight_decay=0.0)
    return model, random_batch(SIZE, 2, 3), optimizer


class Clock:
    """The processor time of this process, which other programs do not stretch, and what a test adds to it."""

    added = 0.0

    def __call__(self) -> float:
        return time.process_time() + self.added

    def slow(self, function: Any, seconds: float) -> Any:
        """`function`, taking so many seconds longer."""

        def slowed(*arguments: Any, **named: Any) -> Any:
            self.added += seconds
            return function(*arguments, **named)

        return slowed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_the_clock_splits_a_stretch_into_its_parts(clock: Clock) -> None:
    step = StepClock(torch.device("cpu"))
    for _ in range(2):
        clock.added += 9.0  # before the start, so of no part
        step.start()
        for seconds, name in ((0.3, "a"), (0.0, "b"), (0.6, "c")):
            clock.added += seconds
            step.mark(name)
        clock.added += 9.0
        parts = step.stop()
        assert [name for name, _ in parts] == ["a", "b", "c"]
        assert [length for _, length in parts] == pytest.approx([300, 0, 600], abs=20)
    with pytest.raises(ValueError, match="cpu or cuda wanted, got meta"):
        StepClock(torch.device("meta"))


@pytest.mark.parametrize("device", DEVICES)
def test_the_parts_add_up_to_the_step(device: str, clock: Clock) -> None:
    model, batch, optimizer = toy(device)
    profile = profile_step(model, [batch], optimizer, repetitions=9, warmup=2)
    assert tuple(profile.parts) == PARTS and {len(values) for values in profile.parts.values()} == {9}
    assert len(profile.whole) == 9
    assert all(value >= 0 for values in profile.parts.values() for value in values)
    steps = [sum(values) for values in zip(*profile.parts.values(), strict=True)]
    assert min(steps) == pytest.approx(min(profile.whole), rel=0.2)
    medians, spreads = profile.medians(), profile.spreads()
    assert medians["backward"] == statistics.median(profile.parts["backward"]) == spreads["backward"]["median"]
    assert medians["backward"] > medians["preprocess"]


@pytest.mark.parametrize("part", PARTS)
def test_time_goes_to_the_part_that_takes_it(part: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, optimizer = toy()

    class Loader:
        def __iter__(self) -> Any:
            return iter([batch])

    owner, name = {
        "data": (Loader, "__iter__"),
        "preprocess": (model.preprocess, "normalise"),
        "backbone": (model.backbone.body, "forward"),
        "pyramid": (model.backbone.fpn, "forward"),
        "heads": (model.head, "forward"),
        "matching": (model.criterion, "match"),
        "losses": (model.criterion, "box_losses"),
        "backward": (torch.Tensor, "backward"),
        "optimizer": (optimizer, "step"),
    }[part]
    monkeypatch.setattr(owner, name, clock.slow(getattr(owner, name), 10.0))
    profile = profile_step(model, Loader(), optimizer, repetitions=2, warmup=1)
    for name, values in profile.parts.items():
        assert all((value >= 10_000) == (name == part) for value in values), name
    assert min(profile.whole) >= 10_000


def test_profiling_trains_as_the_plain_steps_do_and_leaves_no_trace() -> None:
    (model, batch, optimizer), (plain, _, other) = toy(), toy()
    before = set(vars(model.criterion))
    profile_step(model, [batch], optimizer, repetitions=2, warmup=1)
    images, targets = batch
    for _ in range(5):
        training_step(plain.train(), other, images, targets)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert set(vars(model.criterion)) - before <= {"match"}
    assert not any(module._forward_hooks for module in model.modules())
    assert model.criterion.match.__func__ is type(model.criterion).match


def test_an_error_in_a_step_leaves_no_hooks() -> None:
    model, (images, targets), optimizer = toy()
    bad = [{**target, "boxes": target["boxes"].flip(1)} for target in targets]
    with pytest.raises(ValueError, match="box 0"):
        profile_step(model, [(images, bad)], optimizer, repetitions=1, warmup=0)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_compiled_model_has_no_parts() -> None:
    model, batch, optimizer = toy()
    model.network = torch.compile(model.network)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        profile_step(model, [batch], optimizer)


def test_bf16_reaches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, optimizer = toy()
    seen = []
    model.head.register_forward_hook(lambda module, arguments, output: seen.append(output[0].dtype))
    profile_step(model, [batch], optimizer, repetitions=1, warmup=0)
    profile_step(model, [batch], optimizer, repetitions=1, warmup=0, amp="bf16")
    assert seen == 2 * [torch.float32] + 2 * [torch.bfloat16]


def test_spread() -> None:
    assert spread([4.0]) == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert StepProfile({"a": [1.0, 9.0]}, [10.0]).spreads()["a"]["low"] == 3.0


def test_random_batches_are_valid_and_repeat() -> None:
    images, targets = random_batch((60, 90), 3, 5, objects=4, seed=1)
    assert images.shape == (3, 3, 60, 90) and images.dtype == torch.uint8
    again = random_batch((60, 90), 3, 5, objects=4, seed=1)
    assert torch.equal(images, again[0]) and torch.equal(targets[2]["boxes"], again[1][2]["boxes"])
    assert not torch.equal(images, random_batch((60, 90), 3, 5, seed=2)[0])
    boxes = torch.cat([target["boxes"] for target in targets])  # (12, 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 90).all() and (boxes[:, 3] <= 60).all()
    sides = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([90.0, 60.0])
    assert sides.min() >= 0.124 and sides.max() <= 0.501
    assert all(int(target["labels"].min()) >= 0 and int(target["labels"].max()) < 5 for target in targets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", [{}, {"amp": "bf16", "channels_last": False, "profile": 1}])
def test_measured_training(device: str, changes: dict[str, Any]) -> None:
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    found = measure_training(**TOY, **changes, device=device, tf32=False)
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, tf32)
    seconds = found["seconds"]
    assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
    assert found["images_per_second"] == pytest.approx(2 / seconds["median"])
    assert found["first_step_seconds"] > 0
    assert ("parts" in found) == ("profile" in changes)
    assert found["kept_mib"] > 1
    if found["peak_memory_mib"] is not None:
        assert found["peak_memory_mib"] >= found["memory_before_mib"]
    json.dumps(found, allow_nan=False)


def test_kept_for_backward_counts_activations_but_no_weights() -> None:
    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(256, 512), torch.nn.Linear(512, 256)

        def forward(self, x: torch.Tensor, targets: Any) -> torch.Tensor:
            x = self.a(x)  # keeps x: 1024 × 256
            x = torch.relu(x)  # keeps its result: 1024 × 512
            return self.b(x).sum()  # keeps x, which is the same

    toy, x = Toy(), torch.ones(1024, 256)
    assert kept_for_backward(toy, x, []) == 4 * 1024 * (256 + 512) / 2**20  # type: ignore[arg-type]
    rounded = 2 * 1024 * (256 + 512) + 2 * 256 * 512  # and the last layer's weights, for the gradient of its input
    assert kept_for_backward(toy, x, [], amp="bf16") == rounded / 2**20  # type: ignore[arg-type]


def test_bf16_keeps_less_and_twice_the_images_twice_as_much() -> None:
    model = retinanet_tiny(3, canvas=(192, 256))
    images, targets = random_batch((192, 256), 4, 3)
    two = kept_for_backward(model, images[:2], targets[:2])
    assert kept_for_backward(model, images, targets) == pytest.approx(2 * two, rel=0.02)
    assert 0.4 < kept_for_backward(model, images, targets, amp="bf16") / (2 * two) < 0.8


def test_bf16_halves_what_a_frozen_resnet_keeps() -> None:
    model = retinanet_resnet18_fpn(3, canvas=(128, 128), norm="frozen")
    images, targets = random_batch((128, 128), 2, 3)
    full, half = (
        kept_for_backward(model, images, targets, amp=amp) - kept_for_backward(model, images[:1], targets[:1], amp=amp)
        for amp in ("none", "bf16")
    )
    assert half / full == pytest.approx(0.5, abs=0.05)  # of one more image; autocast keeps rounded weights besides


def test_measured_seconds_are_those_of_a_step(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def step(*arguments: Any, **named: Any) -> None:
        clock.added += [50, 40, 2, 5, 3, 4][len(calls)]
        calls.append(named)

    monkeypatch.setattr("focal_tutorial.throughput.training_step", step)
    found = measure_training(**{**TOY, "steps": 4, "warmup": 2}, amp="bf16")
    assert calls == 6 * [{"amp": "bf16"}]
    assert found["first_step_seconds"] == pytest.approx(50, abs=0.2)
    assert found["seconds"] == pytest.approx({"low": 2.75, "median": 3.5, "high": 4.25}, abs=0.2)
    assert found["images_per_second"] == pytest.approx(2 / 3.5, rel=0.05)


def test_the_layout_is_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(model: RetinaNet, optimizer: Any, images: torch.Tensor, targets: Any, **named: Any) -> None:
        weight = model.head.classification.predict.weight
        seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in (weight, images)])

    monkeypatch.setattr("focal_tutorial.throughput.training_step", look)
    measure_training(**{**TOY, "steps": 1}, channels_last=True)
    measure_training(**{**TOY, "steps": 1}, channels_last=False)
    assert seen == 2 * [[True, True]] + 2 * [[False, False]]


@needs_cuda
def test_on_cuda_less_memory_can_follow_more() -> None:
    large = measure_training(**{**TOY, "batch": 16}, device="cuda")
    small = measure_training(**TOY, device="cuda")
    assert small["peak_memory_mib"] < large["peak_memory_mib"]


def test_the_cost_of_the_papers_run() -> None:
    cost = coco_cost(50)
    assert cost["images"] == 90_000 * 16 and cost["hours"] == pytest.approx(8.0)
    assert cost["epochs"] == pytest.approx(12.17, abs=0.01) and cost["cost"] is None
    twelve = coco_cost(50, epochs=12, gpus=8, efficiency=0.8, price_per_hour=2.5)
    assert twelve["images"] == 12 * 118_287
    assert twelve["hours"] == pytest.approx(12 * 118_287 / (50 * 8 * 0.8) / 3600)
    assert twelve["gpu_hours"] == pytest.approx(8 * float(twelve["hours"] or 0))
    assert twelve["cost"] == pytest.approx(2.5 * float(twelve["gpu_hours"] or 0))
    half = coco_cost(10, images=1000, iterations=100, batch=5)
    assert half["epochs"] == 0.5 and half["hours"] == pytest.approx(50 / 3600)


@pytest.mark.parametrize(
    "wrong", [{"images_per_second": 0}, {"epochs": -1}, {"gpus": 0}, {"price_per_hour": float("nan")}, {"batch": 0}]
)
def test_costs_of_nonsense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: a positive number wanted"):
        coco_cost(**{"images_per_second": 50, **wrong})
    with pytest.raises(ValueError, match="efficiency: above 0 and at most 1"):
        coco_cost(50, efficiency=1.2)


def test_a_new_process_starts_without_the_memory_of_this_one(tmp_path: Path) -> None:
    held = torch.ones(2**28)  # 1 GiB
    mine, new = peak_memory(), in_new_process(peak_memory)
    if mine is None or new is None:
        pytest.skip("this system does not tell how much memory a process has held")
    assert mine > held.nbytes / 2**20 > 1000
    assert new < mine - 500


def test_what_torch_cannot_do_is_recorded_without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**arguments: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB\nsee /some/where/file.py:3 or C:\\some\\where")

    monkeypatch.setattr(training_cost, "measure_training", fail)
    assert measured() == {"error": "OutOfMemoryError: tried to allocate 9 GiB see … or …"}
    monkeypatch.setattr(training_cost, "measure_training", lambda **a: {}["a bug of ours"])
    with pytest.raises(KeyError):
        measured()


def test_every_setting_names_arguments_of_measure_training() -> None:
    settings = [s for recipe in THROUGHPUT_RECIPES.values() for s in recipe["settings"].values()]
    names = set(measure_training.__annotations__) - {"return", "device", "seed"}
    assert all(set(setting) <= names and {"builder", "size", "batch"} <= set(setting) for setting in settings)
    assert all(h % 32 == 0 or s["builder"] == "retinanet_tiny" for s in settings for h in s["size"])
    for profile in THROUGHPUT_RECIPES.values():
        distinct = [json.dumps(setting, sort_keys=True) for setting in profile["settings"].values()]
        assert len(set(distinct)) == len(distinct)


def test_throughput_at_toy_size_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"good": TOY, "bad": TOY}

    def here(function: Any, **arguments: Any) -> Any:
        return {"error": "no compiler"} if len(list(tmp_path.rglob("good.json"))) else function(**arguments)

    monkeypatch.setattr(training_cost, "in_new_process", here)
    path = run_experiment("throughput", profile="cpu", seeds=1, out=tmp_path, report=str, settings=settings)
    result = json.loads(path.read_text())
    assert check_result(result) == []
    run = result["runs"][0]
    assert run["metrics"]["bad"] == {"error": "no compiler"}
    assert run["peak_memory_mib"] == run["metrics"]["good"]["peak_memory_mib"]
    assert result["summary"]["good"]["seconds"]["median"]["n"] == 1 and result["summary"]["bad"] == {}
    monkeypatch.setattr(training_cost, "in_new_process", None)  # nothing is measured again
    again = run_throughput("cpu", 0, tmp_path / "throughput_cpu" / "seed-0", settings=settings)
    assert again["metrics"] == run["metrics"]


def test_precision_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def here(function: Any, *arguments: Any, **named: Any) -> Any:
        seen.append({name: named[name] for name in named if name in ("amp", "channels_last")})
        return function(*arguments, **named)

    monkeypatch.setattr(training_cost, "in_new_process", here)
    small = {"steps": 2, "shapes": {"num_train": 8, "num_val": 3, "size": 192, "objects": (1, 2)}}
    path = run_experiment("precision", profile="cpu", seeds=1, out=tmp_path, report=str, **small)
    metrics = json.loads(path.read_text())["runs"][0]["metrics"]
    assert seen == [*PRECISIONS.values()] and set(metrics) == set(PRECISIONS)
    assert set(metrics["bf16"]) == {"AP", "AP50", "AP75", "loss", "train_seconds", "peak_memory_mib"}
    full, half, again = (metrics[name]["loss"] for name in PRECISIONS)
    assert full != half and half == pytest.approx(full, rel=0.02)  # the same run, but for rounding
    assert abs(again - full) < abs(half - full)
    for name, precision in PRECISIONS.items():
        config = json.loads((tmp_path / "precision_cpu" / "seed-0" / name / "config.json").read_text())
        assert (config["amp"], config["seed"], config["lr"]) == (precision["amp"], 0, 0.001)
        assert config["channels_last"] == (name != "float32_again")
