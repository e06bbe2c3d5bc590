"""benchmarks/retinanet.py: it compares like with like, and its committed result is one of today's settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from focal_tutorial.results import RESULTS, load_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import retinanet as bench

TRAIN, DETECT = bench.SETTINGS["smoke"].values()


@pytest.mark.parametrize("setting", [TRAIN, DETECT], ids=lambda s: s["task"])
def test_both_compute_the_same(setting: dict[str, Any]) -> None:
    found = bench.speed(setting, "cpu", 0, 1)
    assert {"torchvision", "torchvision_channels_last", "ours"} <= found["seconds"].keys()
    assert ("ours_without_folding" in found["seconds"]) == setting.get("without", False)
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["ratio"]["torchvision"] == 1.0
    assert max(found["difference"].values()) < 1e-4
    assert 0.3 < found["convolutions"]["ours"] < 1


def test_as_many_candidates_as_asked_for() -> None:
    theirs = bench.torchvision_model(96, 0).eval()
    images, _ = bench.inputs(DETECT, 0, "cpu")
    bench.set_candidates(theirs, images, 30)
    with torch.no_grad():
        batch = theirs.transform(images)[0].tensors
        scores = theirs.head(list(theirs.backbone(batch).values()))["cls_logits"].sigmoid()
    assert 28 <= int((scores > 0.05).sum()) <= 32


def test_a_lost_detection_and_a_changed_loss_are_seen() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 50.0, 60.0]])
    both = [{"boxes": boxes, "labels": torch.tensor([1, 2])}]
    other = [{"boxes": boxes, "labels": torch.tensor([1, 3])}]
    assert bench.difference(DETECT, both, both) == 0
    assert bench.difference(DETECT, other, both) == 0.5
    assert bench.difference(DETECT, [{"boxes": boxes[:1], "labels": torch.tensor([1])}], both) == 1.0
    losses = {"classification": torch.tensor(2.0), "bbox_regression": torch.tensor(1.0)}
    changed = {**losses, "classification": torch.tensor(2.2)}
    assert bench.difference(TRAIN, changed, losses) == pytest.approx(0.1)


def test_torchvisions_anchors_lose_bits_under_autocast() -> None:
    """What the page gives as the reason why our losses in bf16 are nearer to those in float32."""
    theirs = bench.torchvision_model(800, 0)
    ours = torch.cat(bench.our_model(theirs, 800).anchors((800, 1088)))
    images = ImageList(torch.zeros(1, 3, 800, 1088), [(800, 1066)])
    grids = [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    exact, rounded = (
        theirs.anchor_generator(images, [torch.zeros(1, 1, *grid, dtype=dtype) for grid in grids])[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(exact, ours) and ours.dtype == torch.float32
    assert 2 <= (rounded.float() - exact).abs().max() <= 6


def test_convolutions_are_told_from_the_rest() -> None:
    x, w = torch.randn(1, 64, 64, 64), torch.randn(64, 64, 3, 3)
    assert bench.convolution_share(lambda: torch.nn.functional.conv2d(x, w), "cpu") > 0.9
    assert bench.convolution_share(lambda: x.exp(), "cpu") == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_counts_what_training_holds(tmp_path: Path) -> None:
    asked = {"setting": TRAIN, "device": "cpu", "seed": 0, "variant": "ours"}
    held = bench.in_process(tmp_path, "memory", asked)
    assert 38 * 4 * 2 < held < 1500  # MiB: 38 million weights and their momentum at least
    assert bench.in_process(tmp_path, "memory", {"seed": "never looked at"}) == held


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_committed_result_is_of_these_settings(device: str) -> None:
    if not (RESULTS / f"retinanet_{device}.json").exists():
        pytest.skip(f"no result of a {device} yet: benchmarks/retinanet.py --device {device}")
    result = load_result(f"retinanet_{device}")
    assert result["config"]["settings"] == bench.SETTINGS[device]
    assert len(result["runs"]) >= 3
    for run in result["runs"]:
        assert run["metrics"].keys() == bench.SETTINGS[device].keys()
        for name, metrics in run["metrics"].items():
            limit = 0.1 if "bf16" in name else 1e-5  # the same losses, or the same detections
            assert max(value or 0 for value in metrics["difference"].values()) <= limit, name


def test_goals_that_the_page_calls_met() -> None:
    summary = load_result("retinanet_cpu")["summary"]
    for name, found in summary.items():
        goal = 1.25 if name.startswith("train") else 1.2
        ratio = found["ratio"]["ours"]
        assert ratio["mean"] - ratio["sd"] >= goal, name
        assert ratio["mean"] > found["ratio"]["torchvision_channels_last"]["mean"], name
        if "memory_ratio" in found:
            assert found["memory_ratio"]["ours"]["mean"] <= 0.7, name
        if name.startswith("train"):
            assert found["convolutions"]["ours"]["mean"] >= 0.9, name
