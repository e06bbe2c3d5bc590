import math

import pytest
import torch

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.heads import RetinaNetHead, flatten_level, prior_bias


def test_prior_bias() -> None:
    assert prior_bias(0.01) == pytest.approx(-4.5951, abs=5e-5)
    assert 1 / (1 + math.exp(-prior_bias(0.2))) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="strictly between"):
        prior_bias(1.0)


def test_every_class_probability_starts_near_the_prior() -> None:
    torch.manual_seed(0)
    logits, deltas = RetinaNetHead(32, 9, 5)([torch.randn(2, 32, 8, 8), torch.randn(2, 32, 4, 4)])
    assert logits.shape == (2, 9 * (64 + 16), 5) and deltas.shape == (2, 9 * (64 + 16), 4)
    assert logits.sigmoid().sub(0.01).abs().max() < 1e-3
    assert deltas.abs().max() < 0.05


def test_rows_are_in_the_order_of_the_anchors() -> None:
    a, width, h, w = 3, 2, 4, 5
    level = torch.arange(a * width * h * w, dtype=torch.float32).view(1, a * width, h, w)
    rows = flatten_level(level, width)
    for row, column, anchor in [(0, 0, 0), (1, 2, 1), (3, 4, 2)]:
        index = (row * w + column) * a + anchor
        assert rows[0, index].tolist() == level[0, anchor * width : (anchor + 1) * width, row, column].tolist()
    anchors = AnchorGenerator(levels=(3,), ratios=(1.0,), scales=(1, 2, 3))((h * 8, w * 8))[0]
    assert len(anchors) == rows.shape[1]


def test_the_same_weights_on_every_level_and_not_shared_between_the_subnets() -> None:
    head = RetinaNetHead(16, 1, 2, channels=16, depth=1)
    level = torch.randn(1, 16, 4, 4)
    logits, _ = head([level, level])
    assert torch.equal(logits[:, :16], logits[:, 16:])
    assert not set(map(id, head.classification.parameters())) & set(map(id, head.regression.parameters()))


def test_depth_and_width_of_the_paper() -> None:
    head = RetinaNetHead(256, 9, 80)
    assert len(head.classification.conv) == 4
    assert head.classification.predict.out_channels == 720 and head.regression.predict.out_channels == 36
    std = head.classification.conv[0][0].weight.std().item()
    assert std == pytest.approx(0.01, rel=0.02)
    assert head.classification.conv[0][0].bias.abs().max() == 0
