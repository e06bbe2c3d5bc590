"""The comparison of remedies: its settings, its probe of who carries the loss, and a toy run stopped and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from focal_tutorial import comparison
from focal_tutorial.comparison import (
    PROBE_STEPS,
    RATE_SETTINGS,
    RATES,
    SETTINGS,
    Probe,
    comparison_model,
    loss_shares,
    rate_grid,
    run_setting,
)
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.evaluate import evaluate
from focal_tutorial.losses import sigmoid_focal_loss
from focal_tutorial.proposals import TwoStageDetector
from focal_tutorial.results import RESULTS

TOY: dict[str, Any] = {"steps": 2, "shapes": {"num_train": 8, "num_val": 3, "size": 192, "objects": (1, 2)}}


def test_every_family_has_a_rate_from_the_grid_and_a_setting_that_chose_it() -> None:
    families = {setting["family"] for setting in SETTINGS.values()}
    assert set(RATES["cpu"]) == set(RATE_SETTINGS) == families
    for family, name in RATE_SETTINGS.items():
        assert RATES["cpu"][family] in rate_grid(name, "cpu")
    assert all(SETTINGS[name]["family"] == family for family, name in RATE_SETTINGS.items())


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_start_from_the_same_weights_and_say_what_they_change(name: str) -> None:
    setting, model = SETTINGS[name], comparison_model(name, "cpu", seed=3)
    if setting.get("model") == "two_stage":
        assert isinstance(model, TwoStageDetector)
        return
    plain = comparison_model("fl2", "cpu", seed=3)
    bias = "head.classification.predict.bias"
    for key, value in model.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]) or key == bias, key
    assert torch.allclose(model.state_dict()[bias].sigmoid(), torch.tensor(setting.get("prior", 0.01)))
    criterion = model.criterion
    assert (criterion.sampler is not None) == ("sampler" in setting)
    assert (criterion.quality_loss is not None) == ("quality" in setting)
    if "quality" not in setting:
        assert (criterion.alpha, criterion.gamma) == (setting["alpha"], setting["gamma"])
    assert criterion.box_loss == setting.get("box_loss", "smooth_l1")


def test_shares_are_those_of_the_losses_and_their_gradients() -> None:
    logits = (3 * torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))).double()
    labels = torch.full((2, 40), -1)
    labels[0, :5], labels[1, 3], labels[1, 10:20] = 1, 0, -2
    found = loss_shares(logits, labels)
    for name, alpha, gamma in (("ce", None, 0.0), ("balanced", 0.75, 0.0), ("focal", 0.25, 2.0)):
        x = logits.clone().requires_grad_()
        loss = sigmoid_focal_loss(x, labels, alpha=alpha, gamma=gamma)
        gradient = torch.autograd.grad(loss.sum(), x)[0].abs()
        for what, value in (("loss", loss.detach()), ("gradient", gradient)):
            share = value[labels >= 0].sum() / value.sum()
            assert found[what][name] == pytest.approx(share.item(), abs=1e-5)


def test_the_probe_looks_at_its_steps_only() -> None:
    model = comparison_model("ce", "cpu", seed=0)
    probe = Probe(ShapesDataset(2, size=192), images=2)
    for step in range(12):
        probe(step, model)
    assert [record["step"] for record in probe.trace] == [step for step in PROBE_STEPS if step < 12]
    first = probe.trace[0]
    assert first["p_foreground"] == pytest.approx(0.01, abs=0.002)
    # With π = 0.01 a background term costs CE 0.01005 and a foreground anchor 4.6: the share follows from the counts.
    labels, _ = model.criterion.match(
        torch.cat(model.anchors((192, 192))), [ShapesDataset(2, size=192)[i][1] for i in range(2)]
    )
    few, many = int((labels >= 0).sum()), int((labels == -1).sum())
    assert first["loss"]["ce"] == pytest.approx(few * 4.625 / (few * 4.625 + many * 0.03015), rel=0.03)


def test_a_finished_run_is_read_a_stopped_or_changed_one_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_text("left by a run that was killed")
    first = run_setting("fl2", "cpu", 0.004, 0, tmp_path, **TOY)
    assert set(first["metrics"]) == {"AP", "AP50", "AP75", "AR100", "validation_AP"}
    assert [record["step"] for record in first["trace"]] == [0]
    assert not (tmp_path / "run").exists()
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["begun"]["lr"] == 0.004 and record["begun"]["setting"]["gamma"] == 2.0

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(comparison, "train", refuse)
    assert run_setting("fl2", "cpu", 0.004, 0, tmp_path, **TOY) == first
    with pytest.raises(InterruptedError):
        run_setting("fl2", "cpu", 0.008, 0, tmp_path, **TOY)


def test_the_threshold_is_that_of_the_test_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def look(model: Any, dataset: Any) -> dict[str, float]:
        seen.append(model.options.score_threshold)
        return evaluate(model, dataset)

    monkeypatch.setattr(comparison, "evaluate", look)
    strict = run_setting("ce", "cpu", 0.002, 0, tmp_path, threshold=0.9, **TOY)
    loose = run_setting("ce", "cpu", 0.002, 0, tmp_path, threshold=0.0, **TOY)  # not read from the record
    assert seen == [0.9, 0.0]
    assert strict["metrics"]["AR100"] == 0
    assert strict["metrics"]["validation_AP"] == loose["metrics"]["validation_AP"]


def test_a_run_that_diverges_detects_nothing(tmp_path: Path) -> None:
    run = run_setting("ce_half_sgd", "cpu", 1e30, 0, tmp_path, **{**TOY, "steps": 4, "warmup_steps": 0})
    assert run["metrics"] == dict.fromkeys(("AP", "AP50", "AP75", "AR100", "validation_AP"), 0.0)
    assert "not finite at step" in run["diverged"]


def test_the_rates_are_those_that_the_grid_gave() -> None:
    path = RESULTS / "loss_rates_cpu.json"
    chosen = json.loads(path.read_text(encoding="utf-8"))["runs"][0]["metrics"]
    assert {family: found["lr"] for family, found in chosen.items()} == RATES["cpu"]
    for family, setting in RATE_SETTINGS.items():
        assert len(chosen[family]["AP"]) == len(rate_grid(setting, "cpu"))
