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


def test_whole_numbers_mean_what_they_say() -> None:
    """Unsigned bytes wrapped around at 0, and torch.int8 at 128."""
    boxes, anchors = torch.tensor([[10, 10, 30, 30]], dtype=torch.uint8), torch.tensor([[20, 20, 40, 40]])
    assert encode_boxes(boxes, anchors).tolist() == [[-0.5, -0.5, 0, 0]]
    assert clip_boxes(boxes, (1000, 20)).tolist() == [[10, 10, 20, 30]]


@pytest.mark.parametrize("size", [5, (1, 2, 3), (-1, 4), (math.nan, 4), (10**400, 4), ("a", 4)])
def test_a_size_that_is_none_is_refused(size) -> None:
    with pytest.raises(ValueError, match="size: "):
        clip_boxes(torch.zeros(1, 4), size)


def test_boxes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"boxes: shape"):
        encode_boxes(torch.zeros(4, 3), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="deltas and anchors: shapes that broadcast"):
        decode_boxes(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="anchors: real numbers"):
        encode_boxes(torch.zeros(4), torch.zeros(4, dtype=torch.complex64))
