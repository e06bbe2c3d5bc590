"""torchvision's columns are category ids; a checkpoint's labels count categories. Between the two nothing may slip."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.models.detection import retinanet_resnet50_fpn as torchvision_retinanet

from focal_tutorial import cli, retinanet_resnet50_fpn, retinanet_tiny
from focal_tutorial.checkpoint import load_checkpoint
from focal_tutorial.convert import coco_columns, columns_of, convert_weights, keep_classes
from focal_tutorial.errors import InputError

IDS = {1: "person", 3: "car", 6: "bus"}  # of seven columns: 0 is background, 2, 4 and 5 are gaps


def test_kept_classes_have_their_logits_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    model = retinanet_tiny(5, min_size=64, max_size=96).eval()
    model.class_names = list("abcde")
    torch.nn.init.normal_(model.head.classification.predict.bias)
    smaller = keep_classes(model, [4, 1])
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        (logits, deltas), (some, same) = model.network(image), smaller.network(image)
    torch.testing.assert_close(some, logits[..., [4, 1]])
    torch.testing.assert_close(same, deltas)
    assert smaller.class_names == ["e", "b"] and smaller.num_classes == 2 and not smaller.training
    assert smaller.config == {**model.config, "num_classes": 2} and model.num_classes == 5
    assert keep_classes(model, [0], ["x"]).class_names == ["x"]


@pytest.mark.parametrize(
    ("labels", "names"), [([], None), ([5], None), ([-1], None), ([1, 1], None), ([1], ["a", "b"])]
)
def test_labels_that_cannot_be_kept(labels: list[int], names: list[str] | None) -> None:
    with pytest.raises(ValueError, match="wanted, "):
        keep_classes(retinanet_tiny(5), labels, names)


def categories(path: Path, named: dict[int, str]) -> Path:
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": k, "name": name} for k, name in reversed(named.items())]  # not in order
    path.write_text(json.dumps(content))
    return path


def test_columns_are_category_ids(tmp_path: Path) -> None:
    coco = columns_of(91)
    assert len(coco) == 80 and coco == coco_columns()
    assert (coco[1], coco[13], coco[90]) == ("person", "stop sign", "toothbrush") and not {0, 12, 83} & set(coco)
    assert list(columns_of(7, categories(tmp_path / "a.json", IDS)).items()) == list(IDS.items())
    assert columns_of(91, categories(tmp_path / "b.json", {1: "person", 13: "stop sign"})) == {
        1: "person", 13: "stop sign",
    }  # fmt: skip


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="7 columns and are not COCO's"):
        columns_of(7)
    with pytest.raises(InputError, match="category ids in 0…5"):
        columns_of(6, categories(tmp_path / "a.json", IDS))
    with pytest.raises(InputError, match=r"category 1 'RBC'.*'person'"):
        columns_of(91, categories(tmp_path / "b.json", {1: "RBC"}), coco_weights=True)
    with pytest.raises(InputError, match="not used"):
        columns_of(91, categories(tmp_path / "c.json", {12: "street sign"}), coco_weights=True)
    own = columns_of(91, categories(tmp_path / "d.json", {1: "RBC"}))
    assert own == {1: "RBC"}, "91 columns of one's own data are not COCO's"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of torchvision's model with seven columns, two images, and annotations with gaps in the ids."""
    base = tmp_path_factory.mktemp("convert")
    torch.manual_seed(0)
    theirs = torchvision_retinanet(weights=None, weights_backbone=None, num_classes=7)
    last = theirs.head.classification_head.cls_logits
    with torch.no_grad():
        last.weight.zero_()
        rows = last.bias.view(9, 7).fill_(-9.0)  # anchors × columns
        rows[:, [0, 2, 4, 5]] = 3.0  # the columns that mean nothing are the loudest
        rows[0, 1], rows[5, 6] = 1.0, 1.5
    torch.save(theirs.state_dict(), base / "weights.pth")
    content: dict[str, Any] = {"images": [], "annotations": []}
    for i in (1, 2):
        Image.new("RGB", (400, 20), (40 * i, 90, 120)).save(base / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "height": 20, "width": 400})
        content["annotations"].append(
            {"id": i, "image_id": i, "category_id": 6, "bbox": [9, 2, 30, 15], "area": 450, "iscrowd": 0}
        )
    content["categories"] = [{"id": k, "name": name} for k, name in IDS.items()]
    (base / "truth.json").write_text(json.dumps(content))
    return base


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Path:
    assert (
        cli.run(["convert-weights", f"{data}/weights.pth", f"{data}/new/c.pt", "--annotations", f"{data}/truth.json"])
        == 0
    )
    return data / "new" / "c.pt"


def test_a_converted_checkpoint_is_torchvisions_model_with_labels(data: Path, checkpoint: Path) -> None:
    model, full = load_checkpoint(checkpoint), retinanet_resnet50_fpn(weights=data / "weights.pth").eval()
    assert model.class_names == ["person", "car", "bus"]
    assert model.options == full.options and model.options.detections_per_image == 300
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.network(image)[0], full.network(image)[0][..., [1, 3, 6]])


def test_evaluate_and_predict_take_it(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--images", str(data), "--annotations", f"{data}/truth.json"]
    assert cli.run(["evaluate", str(checkpoint), *sets, "--out", f"{tmp_path}/e"]) == 0
    assert "bus" in capsys.readouterr().out
    results = json.loads((tmp_path / "e" / "detections.json").read_text())
    assert {r["category_id"] for r in results} == {1, 6}  # labels 0 and 2
    words = ["predict", str(checkpoint), f"{data}/1.png", "--annotations", f"{data}/truth.json", "--no-pictures"]
    assert cli.run([*words, "--out", f"{tmp_path}/p"]) == 0
    found = {r["category_id"] for r in json.loads((tmp_path / "p" / "detections.json").read_text())}
    assert 6 in found and found <= {1, 6}


def test_a_checkpoint_of_torchvisions_script_is_taken(data: Path, tmp_path: Path) -> None:
    """Beside the weights it holds the script's arguments, which `weights_only` alone refuses."""
    script = {"model": torch.load(data / "weights.pth"), "optimizer": {}, "args": Namespace(lr=0.01), "epoch": 25}
    torch.save(script, tmp_path / "model_25.pth")
    model = convert_weights(tmp_path / "model_25.pth", tmp_path / "c.pt", data / "truth.json")
    assert model.class_names == ["person", "car", "bus"]


def test_own_classes_in_weights_that_are_coco_s(tmp_path: Path) -> None:
    theirs = torchvision_retinanet(weights=None, weights_backbone=None)
    own = categories(tmp_path / "own.json", {1: "RBC"})
    torch.save(theirs.state_dict(), tmp_path / "retinanet_resnet50_fpn_coco-1.pth")
    with pytest.raises(InputError, match=r"category 1 'RBC'.*'person'"):
        convert_weights(tmp_path / "retinanet_resnet50_fpn_coco-1.pth", tmp_path / "c.pt", own)


def test_weights_that_cannot_be_converted(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{tmp_path}/c.pt"
    for words, message in (
        ([f"{data}/weights.pth", out], "7 columns"),
        ([f"{data}/none.pth", out], "no such file"),
    ):
        capsys.readouterr()
        assert cli.run(["convert-weights", *words]) == 2
        assert message in capsys.readouterr().err
    torch.save(retinanet_resnet50_fpn(7).state_dict(), tmp_path / "ours.pth")
    with pytest.raises(InputError, match="torchvision"):
        convert_weights(tmp_path / "ours.pth", out, data / "truth.json")
    with pytest.raises(InputError, match="needs no conversion"):
        convert_weights(checkpoint, out, data / "truth.json")
    assert not Path(out).exists()
