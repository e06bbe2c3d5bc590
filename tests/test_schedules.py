"""Where the loss dies: what a short run reports, alive or dead, and that the stored result is this code's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from focal_tutorial import schedules
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.evaluate import evaluate
from focal_tutorial.results import RESULTS
from focal_tutorial.schedules import (
    HEADS,
    TREATMENTS,
    both_aps,
    logit_spread,
    rate_name,
    run_rate,
    run_warmup,
    warmup_model,
    warmup_recipe,
)

TOY: dict[str, Any] = {"steps": 4, "shapes": {"num_train": 8, "num_val": 3, "size": 192, "objects": (1, 2)}}


def test_the_two_heads_differ_in_their_normalisation_only() -> None:
    plain, group = (warmup_model(head, "cpu", 3) for head in ("plain", "group"))
    kinds = [{type(m).__name__ for m in model.head.modules()} for model in (plain, group)]
    assert kinds[1] - kinds[0] == {"GroupNorm"} and not kinds[0] - kinds[1]
    for name, value in plain.backbone.state_dict().items():
        assert torch.equal(value, group.backbone.state_dict()[name])


def test_spread_is_zero_where_the_class_subnet_is_dead() -> None:
    model = warmup_model("plain", "cpu", 0)
    images = torch.rand(2, 3, 192, 192)
    assert logit_spread(model, images) > 1e-4
    last = [m for m in model.head.classification.conv.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    torch.nn.init.constant_(last.bias, -100.0)  # type: ignore[arg-type]
    assert logit_spread(model, images) == pytest.approx(0.0, abs=1e-6)


def test_both_aps_are_those_of_two_evaluations() -> None:
    from focal_tutorial.comparison import comparison_model

    model = comparison_model("fl2", "cpu", 0)
    torch.nn.init.constant_(model.head.classification.predict.bias, -2.94)  # type: ignore[arg-type]  # about 0.05
    dataset = ShapesDataset(3, size=192)
    model.class_names = list(dataset.class_names)
    found = both_aps(model, dataset)
    assert found["AP"] == pytest.approx(evaluate(model, dataset)["AP"], abs=1e-9)
    assert model.options.score_threshold == 0.05


def test_a_run_that_lives_and_one_that_dies(tmp_path: Path) -> None:
    alive = run_rate("group", "warm", "cpu", 0.01, 0, tmp_path / "run", **TOY)
    assert alive["diverged_step"] is None and alive["metrics"]["survived"] == 1
    assert len(alive["losses"]) == 1 and alive["metrics"]["final_loss"] == alive["losses"][0]
    assert set(alive["metrics"]) == {"survived", "AP", "AP_any_score", "spread", "final_loss"}
    dead = run_rate("plain", "cold", "cpu", 1e12, 0, tmp_path / "run", **TOY)
    assert dead["diverged_step"] in (2, 3) and len(dead["losses"]) == 1
    assert dead["metrics"] == {"survived": 0, "AP": 0.0, "AP_any_score": 0.0}
    assert not (tmp_path / "run").exists()


def test_every_cell_of_the_grid_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def note(head: str, treatment: str, profile: str, lr: float, seed: int, out: Path) -> dict[str, Any]:
        seen.append((head, treatment, lr))
        return {"metrics": {"AP": 0.0}, "diverged_step": None, "losses": [lr]}

    monkeypatch.setattr(schedules, "run_rate", note)
    found = run_warmup("cpu", 0, tmp_path)
    assert len(set(seen)) == sum(len(head["rates"]) for head in HEADS.values()) * len(TREATMENTS)
    assert found["losses"]["plain"]["0_01"]["warm"] == [0.01]


def test_rates_as_keys() -> None:
    assert [rate_name(lr) for lr in (0.0025, 0.1, 1.0)] == ["0_0025", "0_1", "1"]


def test_the_stored_result_is_this_codes() -> None:
    path = RESULTS / "warmup_cpu.json"
    if not path.exists():
        pytest.skip("not measured yet")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["config"] == json.loads(json.dumps(warmup_recipe("cpu")))
    assert len(result["runs"]) == 3
