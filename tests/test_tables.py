"""The paper's tables as cells: what a cell stands for is what the package's own functions say, on every profile."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from table_helpers import SETTINGS, TASK, toy_table
from torch.nn.functional import binary_cross_entropy_with_logits

from focal_tutorial import table_run, tables
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.evaluate import evaluate
from focal_tutorial.experiments import EXPERIMENTS, out_of_date
from focal_tutorial.hinge import hinge_loss
from focal_tutorial.losses import focal_loss_star, sigmoid_focal_loss
from focal_tutorial.paper import RATE_GRID, RATE_SETTINGS, RATES, TABLES
from focal_tutorial.results import check_result
from focal_tutorial.sampling import mine_hard_negatives, mine_online
from focal_tutorial.table_cost import Cost, kind_of_cell, measure_cost, table_cost
from focal_tutorial.table_run import run_table, table_cells
from focal_tutorial.tables import cell_config, cell_criterion, cell_data, cell_model, cell_sampler, cell_training

CELLS = {
    (name, profile): table_cells(table, profile, 1) for name, table in TABLES.items() for profile in table.tasks
}  # the first seed of every setting


def config_of(setting: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return cell_config(setting, TASK, {"ce": 0.1, "focal": 0.2}, seed)


def test_a_configuration_is_json_and_takes_the_rate_of_its_family_and_what_the_setting_changes() -> None:
    setting = {
        **SETTINGS["fl"], "shapes": {"empty": 0.5}, "train": {"steps": 7}, "model": {"prior": 0.5}, "longer": 3,
    }  # fmt: skip
    config = config_of(setting, 4)
    assert config == json.loads(json.dumps(config)) and config["train"]["canvas"] == [64, 64]
    assert (config["lr"], config["seed"], config["loss"]) == (0.2, 4, {"name": "focal", "alpha": 0.25, "gamma": 2.0})
    assert config["shapes"]["empty"] == 0.5 and config["model"]["prior"] == 0.5 and config["train"]["steps"] == 7
    assert config_of({**SETTINGS["fl"], "longer": 3})["train"]["steps"] == 36
    assert config_of({**SETTINGS["fl"], "lr": 0.3})["lr"] == 0.3
    assert config_of(SETTINGS["fl"]) == config_of({**SETTINGS["fl"], "title": "only for people", "seeds": 9})


def test_main_settings_have_more_seeds_and_a_recipe_holds_its_own_rates_only() -> None:
    table = toy_table()
    more = replace(table, settings={**SETTINGS, "ce": {**SETTINGS["ce"], "seeds": 3}}, first_seed=10)
    assert list(more.seeds_of("ce")) == [10, 11, 12] and list(more.seeds_of("fl")) == [10, 11]
    assert list(more.seeds_of("ce", 1)) == [10]
    places = list(table_cells(more, "cpu"))
    assert places == [("ce", 10), ("fl", 10), ("ce", 11), ("fl", 11), ("ce", 12)]  # whole seeds first
    assert more.recipes["cpu"]["rates"] == {"ce": 0.004, "focal": 0.01}  # the toy has no FL*
    assert more.recipes["cpu"]["task"] == TASK


LOSSES = {
    "ce": lambda x, y: binary_cross_entropy_with_logits(x, one_hot(y), reduction="sum"),
    "bce_0_9": partial(sigmoid_focal_loss, alpha=0.9, gamma=0.0, reduction="sum"),
    "fl_0_5_0_75": partial(sigmoid_focal_loss, alpha=0.75, gamma=0.5, reduction="sum"),
    "star_4_2": partial(focal_loss_star, gamma=4.0, beta=2.0, reduction="sum"),
    "hinge_0_5_lr_0_004": partial(hinge_loss, margin=0.5, reduction="sum"),
}


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([(labels == k).float() for k in range(3)], dim=-1)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_cell_is_the_packages(name: str) -> None:
    setting = next(table.settings[name] for table in TABLES.values() if name in table.settings)
    criterion = cell_criterion(cell_config(setting, TASK, RATES["cpu"], 0))
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(2, 50, 3), torch.randint(-1, 3, (2, 50))
    torch.testing.assert_close(criterion.classification_loss(logits, labels), LOSSES[name](logits, labels))
    assert criterion.thresholds == (0.5, 0.4, None) and criterion.sampler is None


def test_matching_of_a_cell_is_that_of_its_model() -> None:
    model = {"foreground_iou": 0.4, "background_iou": 0.3, "low_quality_iou": 0.2}
    assert cell_criterion(config_of({**SETTINGS["ce"], "model": model})).thresholds == (0.4, 0.3, 0.2)


def test_samplers_of_cells_are_the_packages() -> None:
    torch.manual_seed(0)
    corner = 20 * torch.rand(60, 2)
    boxes = torch.cat([corner, corner + 8], dim=1)
    losses, labels = torch.rand(2, 60), torch.randint(-2, 3, (2, 60))
    setting = TABLES["table_1d"].settings["ohem13_32_0_5"]
    online = cell_sampler(cell_config(setting, TASK, RATES["cpu"], 0)["sampler"])
    wanted = mine_online(losses, labels, boxes, batch_size=32, nms_iou=0.5, foreground_fraction=0.25)
    assert torch.equal(online(losses, labels, boxes), wanted)
    assert not torch.equal(wanted, mine_online(losses, labels, boxes, batch_size=32, nms_iou=0.5))
    hard = cell_sampler({"name": "hard", "ratio": 2.0})(losses, labels, boxes)
    assert torch.equal(hard, mine_hard_negatives(losses, labels, ratio=2.0))


@pytest.fixture(scope="module")
def model() -> Any:
    """An untrained network, some of whose scores are above the threshold."""
    config = config_of(SETTINGS["ce"])
    model = cell_model(config, cell_training(config, Path("nowhere"))).eval()
    last = model.head.classification.predict
    last.weight.data *= 20  # scores of .02 to .5, a few in a hundred candidates above the threshold
    last.bias.data.fill_(torch.tensor(0.01).logit())
    return model


def test_one_pass_gives_the_metrics_with_and_without_the_threshold(model: Any) -> None:
    """Scores above and below it, so that the threshold matters."""
    dataset = ShapesDataset(10, split="test", **{k: v for k, v in TASK["shapes"].items() if "num" not in k})
    options = model.options
    with_threshold = evaluate(model, dataset)
    model.options = replace(options, score_threshold=0.0)
    without = evaluate(model, dataset)
    model.options = options
    found = tables.test_metrics(model, dataset)
    assert model.options is options
    assert found == {**{name: with_threshold[name] for name in tables.METRICS}, "AP_any": without["AP"]}
    assert with_threshold["AR100"] != without["AR100"]


def test_splits_of_a_cell(tmp_path: Path) -> None:
    config = config_of({**SETTINGS["ce"], "test_shapes": {"empty": 1.0}})
    train, val, test = (cell_data(config, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (20, 6, 10)
    assert sum(len(test.boxes_and_labels(i)[1]) for i in range(10)) == 0
    assert sum(len(val.boxes_and_labels(i)[1]) for i in range(6)) == 0
    assert sum(len(train.boxes_and_labels(i)[1]) for i in range(6)) > 0
    plain = cell_data(config_of(SETTINGS["ce"]), "val")
    assert sum(len(plain.boxes_and_labels(i)[1]) for i in range(6)) > 0
    assert not torch.equal(train.load_image(0), plain.load_image(0))


def test_where_the_test_images_are_others_so_are_those_of_the_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training sees no object in 39 of 40 images, as where objects are rare; validation and test do in all."""
    evaluated: list[tuple[str, int]] = []

    def score(model: Any, dataset: Any, **options: Any) -> dict[str, Any]:
        boxes = sum(len(dataset.boxes_and_labels(i)[1]) > 0 for i in range(len(dataset)))
        evaluated.append((dataset.split, boxes))
        return dict.fromkeys((*tables.METRICS, "AP_any"), 0.25)

    monkeypatch.setattr(tables, "evaluate", score)
    monkeypatch.setattr(tables, "test_metrics", score)
    rare = {"num_train": 40, "empty": 0.975, "num_val": 9}
    config = config_of({**SETTINGS["fl"], "shapes": rare, "test_shapes": {"empty": 0.0}})
    assert cell_training(config, tmp_path).shapes["num_val"] == 1  # of scenes that say little
    record = tables.train_cell(config, tmp_path)
    assert evaluated == [("val", 9), ("test", 10)] and record["metrics"]["validation_AP"] == 0.25
    evaluated.clear()
    plain = tables.train_cell(config_of(SETTINGS["fl"]), tmp_path / "plain")  # validated by the training alone
    assert [split for split, _ in evaluated] == ["test"] and plain["metrics"]["validation_AP"] != 0.25


@pytest.mark.parametrize("place", CELLS, ids="-".join)
def test_every_cell_of_the_paper_can_be_built(place: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, loss, sampler and training configuration, also of the GPU's profile; each kind of model once."""
    paths = {split: Path(f"{split}.json") for split in ("train", "val", "test")} | {"images": Path("images")}
    monkeypatch.setattr(tables, "prepare_bccd", lambda root: paths)
    built: set[str] = set()
    for config in CELLS[place].values():
        training = cell_training(config, Path("nowhere"))
        assert training.device == {"cpu": "cpu", "gpu": "cuda"}[place[1]] and training.lr == config["lr"]
        if json.dumps(config["model"]) in built:
            assert cell_criterion(config).classification_loss is not None
            continue
        built.add(json.dumps(config["model"]))
        with torch.device("meta"):  # no weights are drawn
            model = cell_model(config, replace(training, device="meta"))
        height, width = training.canvas or (0, 0)
        anchors = model.anchors((height, width), torch.device("cpu"))
        assert len(anchors) == len(config["model"].get("levels", (1, 2, 3, 4, 5)[: len(anchors)]))
        assert all(len(level) for level in anchors)


def test_rates_are_on_the_grid_that_table_rates_tries() -> None:
    families = {s["family"] for table in TABLES.values() for s in table.settings.values() if "family" in s}
    assert families == set(RATES["cpu"]) == set(RATES["gpu"]) == set(RATE_SETTINGS)
    assert set(RATES["cpu"].values()) <= set(RATE_GRID)
    assert len(TABLES["table_rates"].settings) == len(RATE_GRID) * len(families)
    first_seeds = {name: table.first_seed for name, table in TABLES.items()}
    assert first_seeds.pop("table_rates") >= 100 and set(first_seeds.values()) == {0}  # chosen with other seeds


def test_the_result_grows_with_each_cell_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of four cells, the third of which fails at first."""
    seen: list[dict[str, Any]] = []
    broken = True

    def work(config: dict[str, Any], folder: Path, root: Path | str | None) -> dict[str, Any]:
        if (tmp_path / "toy_cpu.json").exists():
            seen.append(json.loads((tmp_path / "toy_cpu.json").read_text()))
        if broken and len(seen) == 2:
            raise KeyboardInterrupt
        bad = config["loss"]["gamma"] == 2.0 and config["seed"] == 0
        return {
            "metrics": {"AP": 0.1 * config["seed"] + 0.25, "APm": None},
            "measured": {"milliseconds": 3} if bad else None,
            "diverged": "the loss is not finite at step 3" if bad else None, "seconds": 40.0,
            "peak_memory_mib": 100.0 + config["seed"], "device": "a core", "commit": f"c{config['seed']}",
        }  # fmt: skip

    monkeypatch.setattr(table_run, "train_cell", work)
    monkeypatch.setattr(table_run, "table_cost", lambda configs, root: [20.0] * len(configs))
    lines: list[str] = []
    table = toy_table()
    with pytest.raises(KeyboardInterrupt):
        run_table("toy", table, "cpu", out=tmp_path, results=tmp_path, report=lines.append)
    assert [list(run["metrics"]) for run in seen[-1]["runs"]] == [["ce", "fl"]]
    assert out_of_date(seen[-1], table, "cpu") == ["ce, seed 1 is missing", "fl, seed 1 is missing"]
    broken = False
    result = json.loads(run_table("toy", table, "cpu", out=tmp_path, results=tmp_path, report=lines.append).read_text())
    assert lines == [
        "toy, cpu: 4 cells, about 80 s with 1 job",
        "[1/4] ce, seed 0: AP 25.0, 40 s; about 3 min left",  # 160 s in all, none of it over
        "[2/4] fl, seed 0: diverged, 40 s; about 3 min left",
        "toy, cpu: 4 cells (2 are there already), about 40 s with 1 job",
        "[3/4] ce, seed 1: AP 35.0, 40 s; about 80 s left",
        "[4/4] fl, seed 1: AP 35.0, 40 s",
    ]
    assert check_result(result) == [] and out_of_date(result, table, "cpu") == []
    assert result["config"] == json.loads(json.dumps(table.recipes["cpu"]))
    assert result["summary"]["ce"]["AP"]["mean"] == pytest.approx(0.3) and result["summary"]["ce"]["AP"]["n"] == 2
    first, second = result["runs"]
    assert first["diverged"] == {"fl": "the loss is not finite at step 3"} and second["diverged"] == {}
    assert first["measured"] == {"fl": {"milliseconds": 3}} and first["cells"]["ce"] == {
        "seconds": 40.0, "peak_memory_mib": 100.0,
    }  # fmt: skip
    assert (second["seconds"], second["peak_memory_mib"]) == (80.0, 101.0)
    assert (first["commits"], second["commits"], first["devices"]) == (["c0"], ["c1"], ["a core"])
    assert result["provenance"]["device"] == "a core" and result["provenance"]["wall_seconds"] == 160.0


def test_a_result_of_another_configuration_or_with_other_runs_is_out_of_date() -> None:
    table = toy_table()
    runs = [{"seed": seed, "metrics": {"ce": {"AP": 0.5}, "fl": {"AP": 0.5}}} for seed in (0, 1)]
    good = {"config": json.loads(json.dumps(table.recipes["cpu"])), "runs": runs}
    assert out_of_date(good, table, "cpu") == []
    changed = json.loads(json.dumps(good))
    changed["config"]["task"]["train"]["steps"] += 1
    assert out_of_date(changed, table, "cpu") == ["its configuration is another than the experiment's"]
    fewer = {**good, "runs": runs[:1]}
    assert out_of_date(fewer, table, "cpu") == ["ce, seed 1 is missing", "fl, seed 1 is missing"]
    more = {**good, "runs": [*runs, {"seed": 7, "metrics": {"ce": {}}}]}
    assert out_of_date(more, table, "cpu") == ["ce, seed 7 is not of the experiment"]
    bccd = EXPERIMENTS["bccd"]
    seeds = [{"seed": seed, "metrics": {}} for seed in (0, 1)]
    config = json.loads(json.dumps(bccd.recipes["cpu"]))
    assert out_of_date({"config": config, "runs": seeds}, bccd, "cpu") == ["seed 2 is missing"]


def test_a_cost_is_measured_once_for_cells_of_a_kind_and_grows_with_their_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs = [config_of(SETTINGS["ce"]), config_of(SETTINGS["fl"], seed=3), config_of({**SETTINGS["ce"], "longer": 2})]
    assert len({kind_of_cell(config) for config in configs}) == 1
    ohem = config_of({**SETTINGS["ce"], "sampler": {"name": "ohem"}})
    large = config_of({**SETTINGS["ce"], "train": {"canvas": (96, 96)}})
    assert len({kind_of_cell(config) for config in (configs[0], ohem, large)}) == 3
    measured: list[dict[str, Any]] = []

    def measure(config: dict[str, Any], root: Path | str | None) -> Cost:
        measured.append(config)
        return Cost(step=2.0, new_image=3.0, val_image=5.0, test_image=7.0)

    monkeypatch.setattr("focal_tutorial.table_cost.measure_cost", measure)
    # 12 steps, 20 images that are seen, 6 to validate on, 10 to test on
    assert table_cost(configs) == [24 + 60 + 30 + 70, 24 + 60 + 30 + 70, 48 + 60 + 30 + 70]
    assert measured == configs[:1]


def test_measuring_a_cost_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cost = measure_cost(config_of({**SETTINGS["fl"], "shapes": {"empty": 0.9}}))
    assert 1e-4 < cost.step < 5 and 0 <= cost.new_image < 1 and 0 < cost.test_image < 5
    assert list(tmp_path.iterdir()) == []
