"""Counting and looking through a network: against hand counts, torchvision's published ones, and known fields."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights
from torchvision.models.detection import retinanet_resnet50_fpn as torchvision_retinanet

from focal_tutorial import retinanet_resnet50_fpn, retinanet_tiny
from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.architecture import (
    count_macs,
    count_parameters,
    count_parts,
    field_centre,
    field_side,
    gradient_energy,
    layer_shapes,
    main_path,
    receptive_field,
    skeleton,
    support_side,
)
from focal_tutorial.backbone import FeaturePyramid, TinyBody, resnet_body

ROOT = Path(__file__).resolve().parents[1]


def load_figure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("retinanet_figure", ROOT / "book" / "_ext" / "retinanet_figure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    with torch.device("meta"):
        return torchvision_retinanet(weights=None, weights_backbone=None)


# ---- shapes and counts --------------------------------------------------------------------------------------------


def test_shapes_come_in_order_and_the_hooks_go() -> None:
    body = resnet_body("resnet18").eval()
    rows = layer_shapes(body, torch.zeros(1, 3, 64, 96))
    assert [name for name, _ in rows] == [
        "conv1",
        "bn1",
        "relu",
        "maxpool",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    ]
    assert rows[0][1] == (1, 64, 32, 48) and rows[-1][1] == (1, 512, 2, 3)
    body(torch.zeros(1, 3, 64, 96))
    assert len(rows) == 8, "a hook that stays would have added to the list"


def test_one_convolution_counts_as_by_hand() -> None:
    conv = nn.Conv2d(5, 7, 3, stride=2, padding=1)
    assert count_macs(conv, torch.zeros(2, 5, 9, 12)) == 2 * (5 * 6) * 7 * (3 * 3 * 5)
    assert count_parameters(conv) == 7 * 3 * 3 * 5 + 7


def test_parameters_without_norms_are_those_torchvision_publishes(theirs: nn.Module) -> None:
    published = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta
    assert count_parameters(theirs, norms=False) == published["num_params"] == 34_014_999
    assert count_parameters(theirs) == sum(p.numel() for p in theirs.parameters()) > 34_014_999


def test_multiply_adds_are_those_torchvision_publishes(theirs: nn.Module) -> None:
    published = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["_ops"]
    assert sum(part.macs for part in count_parts(theirs, (800, 800))) / 1e9 == pytest.approx(published, abs=0.005)


def test_ours_in_torchvisions_setting_counts_the_same(theirs: nn.Module) -> None:
    with torch.device("meta"):
        ours = retinanet_resnet50_fpn(91, p6_from="P5")
        paper = retinanet_resnet50_fpn(norm="frozen")
    assert count_parts(ours, (320, 416)) == count_parts(theirs, (320, 416))
    parts = count_parts(paper, (320, 416))
    assert sum(part.parameters for part in parts) == count_parameters(paper) == 37_915_572
    assert [part.name for part in parts] == ["backbone", "pyramid", "class subnet", "box subnet"]
    images = torch.empty(1, 3, 320, 416, device="meta")
    assert sum(part.macs for part in parts) == count_macs(_Network(paper), images)


class _Network(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> object:
        return self.model.network(images)


# ---- receptive fields ----------------------------------------------------------------------------------------------


def test_receptive_field_by_hand() -> None:
    assert receptive_field([]) == (1, 1)
    assert receptive_field([(3, 1), (3, 1)]) == (5, 1)
    assert receptive_field([(7, 2), (3, 2), (3, 1)]) == (7 + 2 * 2 + 2 * 4, 4)


def test_receptive_fields_of_resnet_50() -> None:
    with torch.device("meta"):
        body = resnet_body("resnet50")
    layers, fields = [], {}
    for name, stage in body.named_children():
        layers += main_path(stage)
        fields[name] = receptive_field(layers)
    assert fields["layer2"] == (91, 8) and fields["layer3"] == (267, 16) and fields["layer4"] == (427, 32)


def test_the_skeletons_gradient_is_the_receptive_field() -> None:
    body = TinyBody((8, 12, 16), returned=2)
    side, stride = receptive_field(main_path(body))
    images = torch.ones(1, 1, 256, 256, dtype=torch.float64, requires_grad=True)
    deepest = skeleton(body)(images)["C4"]
    energy = gradient_energy(deepest[0, :, 8, 8], images)
    assert support_side(energy) == (side, side) and stride == 16
    assert isinstance(body.stem[1], nn.GroupNorm), "the original keeps its layers"


def test_the_skeleton_sees_through_the_top_down_path() -> None:
    pyramid = skeleton(FeaturePyramid((8, 16), 4, extra_levels=0))
    coarse = torch.ones(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    fine = torch.ones(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    levels = pyramid([fine, coarse])
    assert support_side(gradient_energy(levels[0][0, :, 3, 3], fine)) == (3, 3)
    assert support_side(gradient_energy(levels[0][0, :, 3, 3], coarse)) == (2, 2)  # rows 2, 3, 4 lie over 1, 1, 2


def test_gradient_energy_is_the_squared_jacobian() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 1, 3, padding=1, bias=False)
    images = torch.randn(1, 3, 7, 9, requires_grad=True)
    energy = gradient_energy(conv(images)[0, :, 2, 5], images)
    expected = torch.zeros(7, 9)
    expected[1:4, 4:7] = conv.weight[0].detach().square().sum(0)
    torch.testing.assert_close(energy, expected)
    two = torch.stack([3 * images[0, 0, 1, 1], images[0, 2, 4, 4]])  # channels that look at different pixels
    energy = gradient_energy(two, images, probes=3)
    assert energy[1, 1] == pytest.approx(9) and energy[4, 4] == pytest.approx(1) and energy.sum() == pytest.approx(10)


def test_field_side_holds_the_share() -> None:
    energy = torch.zeros(21, 31)
    energy[10, 15] = 6
    for row, column in ((8, 15), (12, 15), (10, 13), (10, 17)):
        energy[row, column] = 1
    assert field_centre(energy) == pytest.approx((10.5, 15.5))
    assert [field_side(energy, share) for share in (0.5, 0.6, 0.61, 1.0)] == [1, 1, 5, 5]
    with pytest.raises(ValueError, match="share"):
        field_side(energy, 0)


def test_parts_of_the_tiny_model() -> None:
    tiny = retinanet_tiny(3)
    parts = count_parts(tiny, (240, 320))
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in tiny.parameters())
    assert all(part.macs > 0 for part in parts)


# ---- the diagram ---------------------------------------------------------------------------------------------------


def test_the_diagram_is_drawn_by_its_script() -> None:
    figure = load_figure()
    assert (ROOT / "book" / "_static" / "retinanet.svg").read_text(encoding="utf-8") == figure.draw()


def test_the_diagrams_numbers_are_the_packages() -> None:
    drawn = load_figure().draw()
    anchors = AnchorGenerator()
    for (rows, columns), stride in zip(anchors.grid_sizes((640, 640)), anchors.strides, strict=True):
        assert f">{rows} × {columns}<" in drawn and f"stride {stride}<" in drawn
    assert "76,725" in drawn and sum(map(len, anchors((640, 640)))) == 76_725
    assert "720" in drawn and "36" in drawn
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', drawn)]
    assert min(sizes) >= 11.5, "readable at the width of the page"
