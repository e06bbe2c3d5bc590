from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from focal_tutorial import matching
from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.matching import BACKGROUND, IGNORE, match_anchors, match_iou, pairwise_iou

ANCHORS = torch.cat(AnchorGenerator(levels=(3, 4, 5))((128, 160)))


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) * 60], dim=1)


def test_iou_is_torchvisions() -> None:
    boxes = random_boxes(40, 0)
    torch.testing.assert_close(pairwise_iou(boxes, ANCHORS), box_iou(boxes, ANCHORS), rtol=1e-5, atol=1e-7)


def test_the_example_of_two_boxes_and_three_anchors() -> None:
    iou = torch.tensor([[0.45, 0.10, 0.05], [0.20, 0.30, 0.05]])
    assert match_iou(iou).tolist() == [IGNORE, BACKGROUND, BACKGROUND]
    assert match_iou(iou, low_quality_iou=0.0).tolist() == [0, 1, BACKGROUND]
    assert match_iou(iou, low_quality_iou=0.4).tolist() == [0, BACKGROUND, BACKGROUND]


def test_a_rescued_anchor_goes_to_the_box_it_overlaps_most() -> None:
    iou = torch.tensor([[0.45, 0.30], [0.41, 0.0]])  # the first anchor is the best of both boxes
    assert match_iou(iou, low_quality_iou=0.0).tolist() == [0, BACKGROUND]
    assert Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou).tolist() == [0, BACKGROUND]


@pytest.mark.parametrize("low_quality_iou", [None, 0.0, 0.4])
def test_matching_by_boxes_and_by_their_iou_agree(low_quality_iou: float | None) -> None:
    boxes = random_boxes(40, 3)
    by_iou = match_iou(pairwise_iou(boxes, ANCHORS), low_quality_iou=low_quality_iou)
    assert torch.equal(by_iou, match_anchors(ANCHORS, boxes, low_quality_iou=low_quality_iou))
    assert match_iou(torch.zeros(0, 5)).tolist() == [BACKGROUND] * 5


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_torchvisions_matcher(seed: int, low_quality: bool) -> None:
    boxes = random_boxes(50, seed)  # more than one chunk
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)(box_iou(boxes, ANCHORS))
    ours = match_anchors(ANCHORS, boxes, low_quality_iou=0.0 if low_quality else None)
    assert torch.equal(ours, theirs)
    assert (ours >= 0).any() and (ours == IGNORE).any()


def test_a_box_outside_the_image_matches_nothing_where_torchvision_matches_all() -> None:
    outside = torch.tensor([[1000.0, 1000.0, 1050.0, 1050.0]])
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(outside, ANCHORS))
    assert (theirs == 0).all()  # the defect designed against
    assert (match_anchors(ANCHORS, outside, low_quality_iou=0.0) == BACKGROUND).all()


def test_no_boxes_means_background_everywhere() -> None:
    assert (match_anchors(ANCHORS, torch.zeros(0, 4)) == BACKGROUND).all()


def test_a_zero_size_box_matches_nothing() -> None:
    assert (match_anchors(ANCHORS, torch.tensor([[50.0, 50.0, 50.0, 50.0]]), low_quality_iou=0.0) == BACKGROUND).all()


@pytest.mark.parametrize("bad", [[float("nan")] * 4, [0.0, 0.0, float("nan"), 9.0], [float("inf")] * 4])
def test_a_box_that_is_not_finite_matches_nothing_and_hides_no_other(bad: list[float]) -> None:
    boxes = random_boxes(5, 1)
    alone = match_anchors(ANCHORS, boxes, low_quality_iou=0.0)
    assert torch.equal(match_anchors(ANCHORS, torch.cat([boxes, torch.tensor([bad])]), low_quality_iou=0.0), alone)
    assert (alone >= 0).any()


def test_the_chunk_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = random_boxes(70, 9)
    whole = match_anchors(ANCHORS, boxes, low_quality_iou=0.4)
    monkeypatch.setattr(matching, "CHUNK", 7)
    assert torch.equal(match_anchors(ANCHORS, boxes, low_quality_iou=0.4), whole)


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return made


def test_memory_does_not_grow_with_the_boxes() -> None:
    """Chapter 8's figures, measured: no tensor is larger than CHUNK × R, and torchvision's IoU needs two of M × R."""
    anchors, boxes = torch.empty(201_600, 4, device="meta"), torch.empty(1000, 4, device="meta")
    expected = {pairwise_iou: 1000, match_anchors: matching.CHUNK, box_iou: 2 * 1000}
    for function, rows in expected.items():
        with LargestTensor() as largest:
            function(*((anchors, boxes) if function is match_anchors else (boxes, anchors)))
        assert largest.size == rows * 201_600 * 4, function.__name__


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"boxes \(M, 4\) wanted"):
        match_anchors(ANCHORS, torch.zeros(4))
    with pytest.raises(ValueError, match="background_iou ≤ foreground_iou"):
        match_anchors(ANCHORS, torch.zeros(0, 4), foreground_iou=0.3)
    with pytest.raises(ValueError, match=r"iou \(M, R\) wanted"):
        match_iou(torch.zeros(3))


def test_a_box_too_large_for_the_anchors_dtype_hides_no_other() -> None:
    """Finite in float64, infinite in the anchors' float32: its IoU was NaN, which wins every comparison."""
    boxes = torch.tensor([[1e300, 0, 1e301, 1], [0, 0, 8, 8]], dtype=torch.float64)
    assert match_anchors(torch.tensor([[0.0, 0, 8, 8]]), boxes).tolist() == [1]


def test_half_precision_anchors_of_any_size() -> None:
    anchors = torch.tensor([[0, 0, 512, 512]], dtype=torch.float16)  # an area beyond float16
    assert match_anchors(anchors, anchors.float()).tolist() == [0]


def test_no_anchors_at_all() -> None:
    assert match_anchors(torch.zeros(0, 4), torch.ones(1, 4), low_quality_iou=0.0).shape == (0,)


@pytest.mark.parametrize("limits", [{"foreground_iou": 0, "background_iou": 0}, {"low_quality_iou": float("nan")}])
def test_thresholds_that_mean_nothing(limits: dict) -> None:
    with pytest.raises(ValueError, match=r"foreground_iou > 0 and low_quality_iou"):
        match_iou(torch.zeros(2, 3), **limits)
