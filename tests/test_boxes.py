import math

import pytest
import torch

from focal_tutorial.boxes import MAX_LOG_RATIO, clip_boxes, decode_boxes, encode_boxes

UNIT = torch.tensor([0.0, 0.0, 1.0, 1.0])


def test_unit_deltas_on_the_unit_box() -> None:
    decoded = decode_boxes(torch.ones(4), UNIT)
    assert decoded.tolist() == pytest.approx([0.1409, 0.1409, 2.8591, 2.8591], abs=5e-5)


def test_decode_inverts_encode() -> None:
    torch.manual_seed(0)
    corner, size = (
        torch.rand(2, 500, 2, dtype=torch.float64) * 300,
        5 + torch.rand(2, 500, 2, dtype=torch.float64) * 200,
    )
    boxes, anchors = torch.cat([corner, corner + size], dim=-1)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, rtol=1e-12, atol=1e-9)


def test_encode_by_hand() -> None:
    anchor = torch.tensor([10.0, 20.0, 30.0, 60.0])  # centre (20, 40), 20 × 40
    box = torch.tensor([20.0, 20.0, 60.0, 40.0])  # centre (40, 30), 40 × 20
    expected = [1.0, -0.25, math.log(2), math.log(0.5)]
    assert encode_boxes(box, anchor).tolist() == pytest.approx(expected)


def test_zero_deltas_give_the_anchor() -> None:
    anchors = torch.tensor([[3.0, 4.0, 10.0, 30.0]])
    assert torch.equal(decode_boxes(torch.zeros(1, 4), anchors), anchors)


def test_a_wild_log_ratio_is_clamped_and_stays_finite() -> None:
    width = decode_boxes(torch.tensor([0.0, 0.0, 1e4, 0.0]), UNIT)
    assert (width[2] - width[0]).item() == pytest.approx(math.exp(MAX_LOG_RATIO)) == pytest.approx(62.5)


def test_clip_moves_boxes_inside() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 5.0, 5.0], [90.0, 40.0, 120.0, 70.0], [200.0, 200.0, 210.0, 220.0]])
    clipped = clip_boxes(boxes, (50, 100))
    assert clipped.tolist() == [[0, 0, 5, 5], [90, 40, 100, 50], [100, 50, 100, 50]]
