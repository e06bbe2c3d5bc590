import pytest
import torch

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.detections import detect_image, top_candidates

GENERATOR = AnchorGenerator(levels=(3, 4))
SIZE = (64, 96)


def quiet() -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Logits and deltas of a network that sees nothing."""
    anchors = GENERATOR(SIZE)
    return [torch.full((len(a), 2), -9.0) for a in anchors], [torch.zeros(len(a), 4) for a in anchors], anchors


def test_threshold_and_top_k() -> None:
    logits = torch.tensor([[0.0, -3.0], [-2.9, 2.0], [-5.0, 1.0]])
    scores, index, labels = top_candidates(logits, 0.05, 3)  # σ(−2.9) = 0.052, σ(−3.0) = 0.047
    assert scores.tolist() == pytest.approx(torch.tensor([2.0, 1.0, 0.0]).sigmoid().tolist())
    assert index.tolist() == [1, 2, 0] and labels.tolist() == [1, 1, 0]
    assert len(top_candidates(logits, 0.05, 10)[0]) == 4
    assert len(top_candidates(logits, 0.0, 10)[0]) == 6


def test_nothing_above_the_threshold_gives_empty_tensors() -> None:
    found = detect_image(*quiet(), SIZE)
    assert found["boxes"].shape == (0, 4) and found["scores"].shape == found["labels"].shape == (0,)


def test_overlapping_detections_of_one_class_are_suppressed_and_of_two_are_not() -> None:
    logits, deltas, anchors = quiet()
    first = int(((anchors[0][:, 0] > 10) & (anchors[0][:, 1] > 10)).nonzero()[0])
    neighbour = first + 9  # the same anchor one cell on: IoU > 0.5 for the widest
    for shift, label, value in [(0, 0, 2.0), (1, 0, 1.0), (0, 1, 0.5)]:
        logits[0][first + 2 + 9 * shift, label] = value
    found = detect_image(logits, deltas, anchors, SIZE)
    assert neighbour < len(anchors[0])
    assert found["labels"].tolist() == [0, 1]
    assert found["scores"].tolist() == pytest.approx(torch.tensor([2.0, 0.5]).sigmoid().tolist())
    both = detect_image(logits, deltas, anchors, SIZE, nms_iou=0.95)
    assert both["labels"].tolist() == [0, 0, 1]


def test_boxes_are_clipped_to_the_image_inside_the_padding() -> None:
    logits, deltas, anchors = quiet()
    logits[1][-1, 0] = 3.0  # the last anchor sticks out at the bottom right
    found = detect_image(logits, deltas, anchors, (50, 80))
    assert found["boxes"][0, 2] == 80 and found["boxes"][0, 3] == 50


def test_at_most_so_many_detections_and_the_best_ones() -> None:
    logits, deltas, anchors = quiet()
    logits[0][:, 0] = torch.linspace(-2, 2, len(logits[0]))
    found = detect_image(logits, deltas, anchors, SIZE, detections_per_image=7)
    everything = detect_image(logits, deltas, anchors, SIZE, detections_per_image=10_000)
    assert len(found["scores"]) == 7 and torch.equal(found["scores"], everything["scores"][:7])
    assert (found["scores"].diff() <= 0).all()
