"""Figure 4's measurement against plain loops over all terms."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from focal_tutorial import loss_distribution as ld
from focal_tutorial.cells import Config
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.losses import focal_term, sigmoid_focal_loss
from focal_tutorial.paper import FIGURE_4, TABLE_LONG, TABLES
from focal_tutorial.retinanet import RetinaNet, build_model
from focal_tutorial.tables import MEASURES, cell_config


@pytest.fixture(scope="module")
def dataset() -> ShapesDataset:
    return ShapesDataset(4, split="test", size=64, objects=(0, 2), distractors=(1, 3), radius=(6.0, 12.0))


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    """Untrained, but with logits far apart and matching thresholds of its own."""
    torch.manual_seed(0)
    built = build_model(
        {"builder": "retinanet_tiny", "num_classes": 3, "canvas": (64, 64), "levels": (2, 3), "sizes": (8, 16),
         "channels": 8, "widths": (8, 8, 8, 8), "foreground_iou": 0.45, "background_iou": 0.35}
    ).eval()  # fmt: skip
    with torch.no_grad():
        built.head.classification.predict.weight.mul_(60)
    return built


def all_terms(model: RetinaNet, dataset: ShapesDataset) -> dict[str, Tensor]:
    """Signed logits of positives and negatives, one loop over anchors at a time."""
    found: dict[str, list[float]] = {"positives": [], "negatives": []}
    for index in range(len(dataset)):
        image, target = dataset[index]
        batch, _, _, moved = model.preprocess([image.as_subclass(Tensor)], [target])
        with torch.no_grad():
            logits = model.network(batch)[0][0]
        labels = model.criterion.match(torch.cat(model.anchors((64, 64))), moved)[0][0]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            for k, x in enumerate(row):
                if label != -2:
                    found["positives" if k == label else "negatives"].append(x if k == label else -x)
    return {sign: torch.tensor(values) for sign, values in found.items()}


def test_everything_equals_a_plain_computation(model: RetinaNet, dataset: ShapesDataset) -> None:
    found = ld.loss_distribution(model, dataset)
    json.dumps(found, allow_nan=False)
    total = 0.0
    for sign, x_t in all_terms(model, dataset).items():
        assert found[sign]["terms"] == len(x_t) == sum(found[sign]["kinds"].values()) > 10
        for gamma, name in ((0.0, "0"), (0.5, "0_5"), (1.0, "1"), (2.0, "2")):
            stated = found[sign]["gammas"][name]
            losses = focal_term(x_t.double(), gamma).sort(descending=True).values
            assert stated["sum"] == pytest.approx(float(losses.sum()), rel=1e-5)
            assert sum(stated["kinds"].values()) == pytest.approx(1, abs=1e-5)
            for fraction, share in zip(found["fractions"], stated["curve"], strict=True):
                n = fraction * len(losses)
                carried = losses[: int(n)].sum() + (n - int(n)) * (losses[int(n)] if int(n) < len(losses) else 0)
                assert share == pytest.approx(float(carried / losses.sum()), abs=2e-6)
            x = x_t.double().requires_grad_()
            (w,) = torch.autograd.grad(focal_term(x, gamma).sum(), x)
            assert stated["gradient"] == pytest.approx(float(-w.sum()), rel=1e-5)
            assert stated["effective"] == pytest.approx(float(w.sum() ** 2 / (w**2).sum()), rel=1e-4)
            total += stated["sum"] if name == "2" else 0
    whole = sum(_loss(model, dataset, index) for index in range(len(dataset)))
    assert total == pytest.approx(whole, rel=1e-5)  # all terms of the training loss, and no others


def _loss(model: RetinaNet, dataset: ShapesDataset, index: int) -> float:
    image, target = dataset[index]
    batch, _, _, moved = model.preprocess([image.as_subclass(Tensor)], [target])
    with torch.no_grad():
        logits = model.network(batch)[0]
    labels = model.criterion.match(torch.cat(model.anchors((64, 64))), moved)[0]
    return float(sigmoid_focal_loss(logits, labels, alpha=None, gamma=2.0, reduction="sum"))


def test_one_gamma_does_not_change_the_order_but_the_share(model: RetinaNet, dataset: ShapesDataset) -> None:
    stated = ld.loss_distribution(model, dataset)["negatives"]["gammas"]
    shares = [stated[name]["hardest"]["10"] for name in ("0", "0_5", "1", "2")]
    assert shares == sorted(shares) and shares[0] < shares[-1]
    curve = stated["0"]["curve"]
    assert curve[0] == 1 and curve[-1] == 0 and curve == sorted(curve, reverse=True)


def test_hardest_shares_of_a_few_terms() -> None:
    x_t = torch.tensor([-2.0, -1.0, 0.0, 3.0])
    a, b, c, d = torch.nn.functional.softplus(-x_t).tolist()
    total = a + b + c + d
    expected = [a / total, (a + b + c / 2) / total, 0.0, 1.0]
    assert ld.hardest_shares(x_t, 0.0, [0.25, 0.625, 0.0, 1.0]).tolist() == pytest.approx(expected)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x_t = ld.sort_terms(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    fractions = [0.0005, 0.1, 0.4567, 1.0]
    whole = ld.hardest_shares(x_t, 2.0, fractions)
    monkeypatch.setattr(ld, "CHUNK", 7)
    assert ld.hardest_shares(x_t, 2.0, fractions).tolist() == pytest.approx(whole.tolist(), rel=1e-12)


def test_terms_and_their_kinds() -> None:
    logits = torch.arange(18.0).reshape(6, 3)
    labels = torch.tensor([2, -2, -1, -1, -1, -1])
    object_iou = torch.tensor([0.65, 0.45, 0.35, 0.2, 0.2, 0.0])
    distractor_iou = torch.tensor([0.0, 0.9, 0.5, 0.3, 0.0, 0.29])
    positives, negatives = ld.split_terms(logits, labels, object_iou, distractor_iou)
    assert positives.x_t.tolist() == [2] and ld.POSITIVE_KINDS[positives.kind[0]] == "iou_0_6_to_0_7"
    assert negatives.x_t.tolist() == [0, -1, -6, -7, -8, -9, -10, -11, -12, -13, -14, -15, -16, -17]
    kinds = [ld.NEGATIVE_KINDS[k] for k in negatives.kind[[0, 2, 5, 8, 11]]]
    assert kinds == ["other_class", "beside_object", "distractor", "touches_object", "plain"]


def test_hardest_kinds_count_the_hardest() -> None:
    x_t = torch.linspace(-5, 5, 1000)
    kind = (x_t > -4.0).to(torch.uint8)
    described = ld.describe_terms(ld.Terms(x_t, kind), ("hard", "easy"), (0.0,))
    assert described["hardest_kinds"]["20"] == {"hard": 100, "easy": 100}
    assert described["hardest_kinds"]["0_1"] == {"hard": 1, "easy": 0}
    share = described["gammas"]["0"]["kinds"]["hard"]
    assert share == pytest.approx(described["gammas"]["0"]["hardest"]["10"], abs=2e-6)


def test_distractors_of_a_scene_are_where_they_stand(dataset: ShapesDataset) -> None:
    items = [item for item in dataset.scene(0).items if item.label is None]
    boxes = ld.distractor_boxes(dataset, 0)
    assert len(boxes) == len(items) >= 1
    centre = (boxes[0, :2] + boxes[0, 2:]) / 2
    assert centre.tolist() == pytest.approx([items[0].x, items[0].y], abs=1e-4)


def test_a_sample_of_the_negatives_is_near_the_whole(model: RetinaNet, dataset: ShapesDataset) -> None:
    whole = ld.loss_distribution(model, dataset, gammas=(0.0,))
    sample = ld.loss_distribution(model, dataset, gammas=(0.0,), limit=whole["negatives"]["terms"] // 3)
    assert sample["positives"] == whole["positives"] and 0.2 < sample["kept"] < 0.4
    assert sample["negatives"]["terms"] == pytest.approx(sample["kept"] * whole["negatives"]["terms"], rel=0.1)
    hard = [s["negatives"]["gammas"]["0"]["hardest"]["20"] for s in (sample, whole)]
    assert hard[0] == pytest.approx(hard[1], abs=0.03)


def test_without_positives_there_is_nothing_to_state(model: RetinaNet) -> None:
    empty = ShapesDataset(1, split="test", size=64, empty=1.0, radius=(6.0, 12.0))
    found = ld.loss_distribution(model, empty)
    assert found["positives"] == {
        "terms": 0, "kinds": dict.fromkeys(ld.POSITIVE_KINDS, 0), "hardest_kinds": {}, "gammas": {},
    }  # fmt: skip
    assert found["negatives"]["kinds"]["beside_object"] == 0


def test_figure_4_shares_the_cells_of_the_long_table() -> None:
    assert MEASURES["distribution"] is ld.loss_distribution and {*TABLES["figure_4"].tasks} == {"cpu", "gpu"}
    for profile, steps in (("cpu", 2400), ("gpu", 14400)):
        for name in FIGURE_4:
            config = _config("figure_4", profile, name)
            assert config == _config("table_long", profile, name)
            assert config["measure"] == "distribution" and config["train"]["steps"] == steps
    assert {*FIGURE_4} < {*TABLE_LONG}


def _config(table: str, profile: str, setting: str) -> Config:
    t = TABLES[table]
    return cell_config(t.settings[setting], t.tasks[profile], t.rates[profile], 0)
