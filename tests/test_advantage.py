"""The map of advantages: read from a result, its axes counted, and the first push in closed form."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from focal_tutorial.advantage import advantage_map, count_scenes, even_imbalance, first_push
from focal_tutorial.criterion import Criterion
from focal_tutorial.losses import sigmoid_focal_loss
from focal_tutorial.paper import MAP, MAP_DENSITIES, MAP_STEPS, TABLES, TASKS
from focal_tutorial.retinanet import build_model
from focal_tutorial.tables import cell_config, cell_data


def result(aps: dict[str, list[float]]) -> dict[str, Any]:
    """A result with the AP, in points, of each seed of a few settings, in which AP_any is a point more."""
    settings = {name: {"title": f"loss {name[0]}, 1 : 9, 150 steps"} for name in [*aps, "a_to_9_steps_900"]}
    runs = [
        {
            "seed": seed,
            "metrics": {name: {"AP": v[seed] / 100, "AP_any": (v[seed] + 1) / 100} for name, v in aps.items()},
        }
        for seed in range(3)
    ]
    return {"name": "a map", "config": {"settings": settings}, "runs": runs}


@pytest.fixture
def fields() -> dict[str, Any]:
    return result(
        {
            "a_to_93_steps_150": [10.0, 20.0, 30.0], "b_to_93_steps_150": [14.0, 24.5, 33.5],
            "c_to_93_steps_150": [16.0, 30.0, 29.0], "a_to_9_steps_150": [0.0, 0.2, 0.1],
            "b_to_9_steps_150": [0.0, 0.3, 0.1], "c_to_9_steps_150": [0.9, 0.9, 0.9],
            "a_to_9_steps_400": [5.0, 6.0, 7.0],
        }
    )  # fmt: skip


def test_map_has_its_axes_in_order_and_only_what_was_run(fields: dict[str, Any]) -> None:
    found = advantage_map(fields)
    assert found.losses == {"a": "loss a", "b": "loss b", "c": "loss c"} and found.reference == "a"
    assert (found.imbalance, found.steps) == ((9, 93), (150, 400))
    assert found.rows["b", 93, 150].mean == pytest.approx(24.0)
    assert advantage_map(fields, "AP_any").rows["b", 93, 150].mean == pytest.approx(25.0)
    assert found.advantage("b", 9, 400) is None and found.best(9, 400) == []
    assert found.advantage("b", 93, 400) is None and not found.silent(93, 400)


def test_advantage_is_paired_by_seed(fields: dict[str, Any]) -> None:
    advantage = advantage_map(fields).advantage("b", 93, 150)
    assert advantage is not None
    assert [round(v, 6) for v in advantage.values.values()] == [4.0, 4.5, 3.5]
    assert advantage.clear  # though the runs of one seed are 10 points from those of the next
    other = advantage_map(fields).advantage("c", 93, 150)
    assert other is not None and other.mean == pytest.approx(5.0) and not other.clear  # 6, 10, −1


def test_best_names_what_is_not_told_apart_and_nothing_where_nothing_was_learned(fields: dict[str, Any]) -> None:
    found = advantage_map(fields)
    assert found.best(93, 150) == ["c", "b", "a"]  # no interval of three seeds leaves out 0 beside c
    assert found.silent(9, 150) and found.best(9, 150) == []
    del found.rows["c", 93, 150]
    assert found.best(93, 150) == []
    without = {k: v for k, v in found.losses.items() if k != "c"}
    assert type(found)(without, found.imbalance, found.steps, found.rows).best(93, 150) == ["b"]


def test_a_result_that_is_no_map_is_told() -> None:
    with pytest.raises(ValueError, match="LOSS_to_IMBALANCE"):
        advantage_map({"config": {"settings": {"ce": {"title": "CE"}}}, "runs": [{"metrics": {"ce": {"AP": 0.1}}}]})


@pytest.mark.parametrize(("density", "images"), [("9", 30), ("93", 150), ("930", 1000), ("4650", 2000)])
def test_scenes_are_as_imbalanced_as_they_are_named(density: str, images: int) -> None:
    counted = count_scenes(MAP[f"ce_to_{density}_steps_{MAP_STEPS[0]}"], TASKS["cpu"], images)
    assert int(density) / 1.35 < counted.imbalance < 1.35 * int(density)
    assert counted.empty == pytest.approx(MAP_DENSITIES[density]["empty"], abs=0.03)


def test_count_is_what_training_matches() -> None:
    setting = MAP[f"ce_to_93_steps_{MAP_STEPS[0]}"]
    config = cell_config(setting, TASKS["cpu"], {"ce": 0.008}, 0)
    config["shapes"]["num_train"] = 6
    dataset = cell_data(config, "train")
    model = build_model({"num_classes": 3, "canvas": (128, 128), **config["model"]})
    labels, _ = Criterion(foreground_iou=0.4, background_iou=0.3).match(
        torch.cat(model.anchors((128, 128))), [dataset[i][1] for i in range(6)]
    )
    foreground, background = int((labels >= 0).sum()), int((labels == -1).sum())
    counted = count_scenes(setting, TASKS["cpu"], 6)
    assert counted.imbalance == pytest.approx(background / foreground)
    assert counted.objects == 2 and counted.foreground == pytest.approx(foreground / 12)


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 0.0), (0.75, 0.0), (0.5, 0.5), (0.25, 2.0)])
def test_first_push_is_the_gradients(alpha: float | None, gamma: float) -> None:
    n, classes, prior = 40, 3, 0.01
    logits = torch.logit(torch.full((n + 1, classes), prior, dtype=torch.float64)).requires_grad_()
    labels = torch.full((n + 1,), -1)
    labels[0] = 2
    sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma).sum().backward()
    assert logits.grad is not None
    push, pull = logits.grad.clamp(min=0).sum(), -logits.grad.clamp(max=0).sum()
    assert first_push(n, alpha, gamma) == pytest.approx(float(push / pull), rel=1e-9)
    assert first_push(even_imbalance(alpha, gamma), alpha, gamma) == pytest.approx(1.0)


def test_fine_map_has_the_coarse_one_s_shape_and_leaves_its_cells_alone() -> None:
    fine, coarse = TABLES["imbalance_map_fine"], TABLES["imbalance_map"]
    names = [re.fullmatch(r"(.+)_to_(\d+)_steps_(\d+)", name) for name in fine.settings]
    parts = [set(part) for part in zip(*(match.groups() for match in names if match), strict=True)]
    assert [len(part) for part in parts] == [5, 5, 4] and len(names) == 100
    assert list(fine.tasks) == ["gpu"] and list(coarse.tasks) == ["cpu"]
    for setting in fine.settings.values():
        config = cell_config(setting, fine.tasks["gpu"], fine.rates["gpu"], 0)
        assert config["train"]["device"] == "cuda" and config["test_shapes"] == {"empty": 0.0}


@pytest.mark.parametrize(("density", "images"), [("10", 12), ("100", 60), ("5000", 3000)])
def test_fine_scenes_are_as_imbalanced_as_they_are_named(density: str, images: int) -> None:
    counted = count_scenes(TABLES["imbalance_map_fine"].settings[f"ce_to_{density}_steps_1000"], TASKS["gpu"], images)
    assert int(density) / 1.35 < counted.imbalance < 1.35 * int(density)


def test_cross_entropy_at_the_others_rate_is_the_same_but_for_its_rate() -> None:
    ours, others = TABLES["imbalance_map"], TABLES["imbalance_map_rate"]
    assert len(others.settings) == len(MAP_DENSITIES) * len(MAP_STEPS)
    for name, setting in others.settings.items():
        config = cell_config(setting, TASKS["cpu"], others.rates["cpu"], 0)
        same = cell_config(ours.settings[name.replace("_0_002", "")], TASKS["cpu"], ours.rates["cpu"], 0)
        assert {key for key in config if config[key] != same[key]} == {"lr"}
        assert config["lr"] == ours.rates["cpu"]["focal"] == ours.rates["cpu"]["bce"]
