"""Exported detectors: programs and ONNX files that find what the model finds, and stand on their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from focal_tutorial import RetinaNet, cli, retinanet_resnet18_fpn, retinanet_resnet50_fpn, retinanet_tiny
from focal_tutorial.errors import InputError
from focal_tutorial.export import (
    OUTPUTS,
    ExportedDetector,
    describe,
    export_onnx,
    export_program,
    export_pt2,
    split_detections,
)
from focal_tutorial.options import TORCHVISION

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
Detections = list[dict[str, Tensor]]


def lively(model: RetinaNet, logit_std: float = 1.5, bias: float = -3.0) -> RetinaNet:
    """Random weights that find something: scores and boxes spread as a trained model's are, not all at the prior."""
    model.eval()
    with torch.no_grad():
        batch = model.preprocess(torch.rand(1, 3, 96, 128)).images
        for part, std in ((model.head.classification, logit_std), (model.head.regression, 0.3)):
            out = part(model.backbone(batch))
            part.predict.weight.mul_(std / out.std())
        model.head.classification.predict.bias.fill_(bias)
    return model


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(runner: Any, images: Tensor) -> Detections:
    return split_detections(*runner.run(None, {"images": images.numpy()}))


def assert_same(found: Detections, wanted: Detections) -> None:
    """The same detections: each with its partner, and best first. Equal scores may stand in either order."""
    assert [len(d["scores"]) for d in found] == [len(d["scores"]) for d in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert bool((a["scores"].diff() <= 0).all())
        torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=2e-5)
        distance = torch.cdist(a["boxes"], b["boxes"], p=torch.inf)  # (D, D) in pixels
        distance += 1e6 * (a["labels"][:, None] != b["labels"])
        nearest = distance.argmin(1) if len(distance) else torch.zeros(0, dtype=torch.long)
        assert sorted(nearest.tolist()) == list(range(len(nearest))), "one partner for each"
        torch.testing.assert_close(a["boxes"], b["boxes"][nearest], rtol=0, atol=2e-2)
        torch.testing.assert_close(a["scores"], b["scores"][nearest], rtol=0, atol=2e-5)
        assert torch.equal(a["labels"], b["labels"][nearest])


def batches(size: tuple[int, int], counts: Sequence[int] = (1, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(n, 3, *size, generator=generator) for n in counts]


MODELS: dict[str, Any] = {  # a model, and the size of the images
    "tiny": (lambda: retinanet_tiny(3), (120, 160)),
    "one class, padding": (lambda: retinanet_tiny(1, levels=(2, 3, 4)), (100, 140)),
    "80 classes, canvas": (lambda: retinanet_tiny(80, canvas=(96, 128)), (150, 170)),
    "torchvision": (
        lambda: retinanet_resnet18_fpn(7, norm="frozen", **{**TORCHVISION, "min_size": 96, "max_size": 160}),
        (70, 90),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_program_and_onnx_find_what_the_model_finds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, size = MODELS[name]
    model = lively(make())
    program = export_program(model, size).module()
    export_onnx(model, tmp_path / "model.onnx", size)
    runner = session(tmp_path / "model.onnx")
    for images in batches(size):
        wanted = model(images)
        assert min(len(d["scores"]) for d in wanted) > 20, "or nothing is shown"
        assert_same(split_detections(*program(images)), wanted)
        assert_same(run_onnx(runner, images), wanted)
