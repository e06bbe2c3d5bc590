"""The map of advantages: read from a result, its axes counted, and the first push in closed form."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from focal_tutorial.advantage import advantage_map, count_scenes, even_imbalance, first_push
from focal_tutorial.criterion import Criterion
from focal_tutorial.losses import sigmoid_focal_loss
from focal_tutorial.paper import MAP, MAP_DENSITIES, MAP_RATES, MAP_STEPS, RATE_GRID, TABLES, TASKS
from focal_tutorial.retinanet import build_model
from focal_tutorial.tables import cell_config, cell_data


def result(aps: dict[str, list[float]], validation: dict[str, list[float]] | None = None) -> dict[str, Any]:
    """A result with the AP, in points, of each seed of a few settings, in which AP_any is a point more.

    Where no validation AP is given, it is the AP.
    """
    names = [*aps, "a_to_9_steps_900_lr_0_002"]
    rates = {name: float(name.split("_lr_")[1].replace("_", ".")) for name in names}
    settings = {name: {"title": f"loss {name[0]}, 1 : 9, 150 steps, rate", "lr": rates[name]} for name in names}
    chosen_by = {**aps, **(validation or {})}

    def metrics(seed: int) -> dict[str, dict[str, float]]:
        return {
            name: {"AP": v[seed] / 100, "AP_any": (v[seed] + 1) / 100, "validation_AP": chosen_by[name][seed] / 100}
            for name, v in aps.items()
            if seed < len(v)
        }

    return {
        "name": "a map",
        "config": {"settings": settings},
        "runs": [{"seed": seed, "metrics": metrics(seed)} for seed in range(3)],
    }


@pytest.fixture
def fields() -> dict[str, Any]:
    aps = {
        "a_to_93_steps_150": [10.0, 20.0, 30.0], "b_to_93_steps_150": [14.0, 24.5, 33.5],
        "c_to_93_steps_150": [16.0, 30.0, 29.0], "a_to_9_steps_150": [0.0, 0.2, 0.1],
        "b_to_9_steps_150": [0.0, 0.3, 0.1], "c_to_9_steps_150": [0.9, 0.9, 0.9],
        "a_to_9_steps_400": [5.0, 6.0, 7.0],
    }  # fmt: skip
    return result({f"{name}_lr_0_002": values for name, values in aps.items()})


def test_map_has_its_axes_in_order_and_only_what_was_run(fields: dict[str, Any]) -> None:
    found = advantage_map(fields)
    assert found.losses == {"a": "loss a", "b": "loss b", "c": "loss c"} and found.reference == "a"
    assert (found.imbalance, found.steps) == ((9, 93), (150, 400))
    assert found.rows["b", 93, 150].mean == pytest.approx(24.0)
    assert advantage_map(fields, "AP_any").rows["b", 93, 150].mean == pytest.approx(25.0)
    assert found.advantage("b", 9, 400) is None and found.best(9, 400) == []
    assert found.advantage("b", 93, 400) is None and not found.silent(93, 400)


@pytest.fixture
def two_rates() -> dict[str, Any]:
    """The higher rate is better on the validation images for a, on the test images for b, nowhere for c; d is short."""
    name = "{}_to_9_steps_150_lr_{}".format
    slow, fast = "0_002", "0_008"
    return result(
        {
            name("a", fast): [30.0, 31.0, 32.0], name("a", slow): [40.0, 41.0, 42.0],
            name("b", slow): [10.0, 11.0, 12.0], name("b", fast): [20.0, 21.0, 22.0],
            name("c", fast): [0.0, 0.0, 0.0], name("c", slow): [0.0, 0.0, 0.0],
            name("d", slow): [5.0, 5.0, 50.0], name("d", fast): [6.0, 6.0],
            name("e", slow): [5.0, 5.0, 5.0], name("e", fast): [],
        },
        {
            name("a", slow): [9.0, 1.0, 1.0], name("a", fast): [4.0, 4.0, 4.0],
            name("b", slow): [3.0, 3.0, 3.0], name("b", fast): [2.0, 2.0, 2.0],
        },
    )  # fmt: skip


def test_each_loss_has_in_each_field_the_rate_that_validation_finds_better(two_rates: dict[str, Any]) -> None:
    found = advantage_map(two_rates)
    assert found.rates == {
        ("a", 9, 150): 0.008,  # by the mean: one seed says otherwise
        ("b", 9, 150): 0.002,  # not by the test images
        ("c", 9, 150): 0.002,  # the lower one where both learned nothing, also where the higher is named first
        ("d", 9, 150): 0.008,  # over the two seeds that both rates have
    }  # e has not been run at both
    assert found.rows["a", 9, 150].mean == pytest.approx(31.0) and found.rows["b", 9, 150].mean == pytest.approx(11.0)
    advantage = found.advantage("b", 9, 150)
    assert advantage is not None and advantage.mean == pytest.approx(-20.0)


def test_map_at_one_rate(two_rates: dict[str, Any]) -> None:
    slow = advantage_map(two_rates, rate=0.002)
    assert set(slow.rates.values()) == {0.002} and len(slow.rates) == 5
    assert slow.rows["a", 9, 150].mean == pytest.approx(41.0)
    assert slow.rows["e", 9, 150].mean == pytest.approx(5.0)
    fast = advantage_map(two_rates, "AP_any", rate=0.008)
    assert fast.rows["b", 9, 150].mean == pytest.approx(22.0) and fast.rows["d", 9, 150].n == 2
    with pytest.raises(ValueError, match="all its rates"):
        advantage_map(two_rates, rate=0.004)


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
    assert replace(found, losses=without).best(93, 150) == ["b"]


def test_a_result_that_is_no_map_is_told() -> None:
    with pytest.raises(ValueError, match="LOSS_to_IMBALANCE"):
        advantage_map({"config": {"settings": {"ce": {"title": "CE"}}}, "runs": [{"metrics": {"ce": {"AP": 0.1}}}]})


@pytest.mark.parametrize(("density", "images"), [("9", 30), ("93", 150), ("930", 1000), ("4650", 2000)])
def test_scenes_are_as_imbalanced_as_they_are_named(density: str, images: int) -> None:
    counted = count_scenes(MAP[f"ce_to_{density}_steps_{MAP_STEPS[0]}_lr_0_002"], TASKS["cpu"], images)
    assert int(density) / 1.35 < counted.imbalance < 1.35 * int(density)
    assert counted.empty == pytest.approx(MAP_DENSITIES[density]["empty"], abs=0.03)


def test_count_is_what_training_matches() -> None:
    setting = MAP[f"ce_to_93_steps_{MAP_STEPS[0]}_lr_0_002"]
    config = cell_config(setting, TASKS["cpu"], {}, 0)
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


@pytest.mark.parametrize(("name", "profile", "lengths"), [
    ("imbalance_map", "cpu", [4, 4, 3, 2]), ("imbalance_map_fine", "gpu", [5, 5, 4, 2]),
])  # fmt: skip
def test_a_map_is_every_loss_imbalance_length_and_rate(name: str, profile: str, lengths: list[int]) -> None:
    table = TABLES[name]
    assert list(table.tasks) == [profile]
    matches = [re.fullmatch(r"(.+)_to_(\d+)_steps_(\d+)_lr_([\d_]+)", name) for name in table.settings]
    parts = list(zip(*(match.groups() for match in matches if match), strict=True))
    assert [len(set(part)) for part in parts] == lengths and len(parts[0]) == len(matches) == math.prod(lengths)
    for setting, steps, rate in zip(table.settings.values(), parts[2], parts[3], strict=True):
        config = cell_config(setting, table.tasks[profile], table.rates[profile], 0)
        assert config["test_shapes"] == {"empty": 0.0} and config["train"]["steps"] == int(steps)
        assert config["lr"] == float(rate.replace("_", "."))


def test_cells_of_a_field_differ_in_their_loss_and_rate_only() -> None:
    table, field = TABLES["imbalance_map"], "_to_4650_steps_450_lr_"
    configs = [cell_config(setting, TASKS["cpu"], {}, 0) for name, setting in table.settings.items() if field in name]
    assert len(configs) == 8 and set(MAP_RATES) <= set(RATE_GRID)
    differ = {key for one in configs for key in one if one[key] != configs[0][key]}
    assert differ == {"loss", "lr"}
    assert sorted(config["lr"] for config in configs) == [0.002] * 4 + [0.008] * 4
    boxes = [len(cell_data(configs[0], "val").boxes_and_labels(i)[0]) for i in range(100)]
    assert boxes == [1] * 100  # though 24 of 25 images of the training are empty


@pytest.mark.parametrize(("density", "images"), [("10", 12), ("100", 60), ("5000", 3000)])
def test_fine_scenes_are_as_imbalanced_as_they_are_named(density: str, images: int) -> None:
    settings = TABLES["imbalance_map_fine"].settings
    counted = count_scenes(settings[f"ce_to_{density}_steps_1000_lr_0_002"], TASKS["gpu"], images)
    assert int(density) / 1.35 < counted.imbalance < 1.35 * int(density)
