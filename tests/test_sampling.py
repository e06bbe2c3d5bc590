import pytest
import torch

from focal_tutorial.matching import BACKGROUND, IGNORE
from focal_tutorial.sampling import mine_hard_negatives, mine_online, sample_balanced


@pytest.fixture
def labels() -> torch.Tensor:
    labels = torch.full((2, 1000), BACKGROUND)
    labels[0, :10], labels[0, 10:30] = 1, IGNORE
    labels[1, :200] = 2
    return labels


@pytest.fixture
def losses() -> torch.Tensor:
    return torch.rand(2, 1000, generator=torch.Generator().manual_seed(1))


def counts(labels: torch.Tensor) -> list[tuple[int, int]]:
    return [(int((row >= 0).sum()), int((row == BACKGROUND).sum())) for row in labels]


def unchanged_where_kept(sampled: torch.Tensor, labels: torch.Tensor) -> bool:
    return bool(((sampled == labels) | (sampled == IGNORE)).all())


def test_balanced_minibatch_fills_up_with_background(labels: torch.Tensor) -> None:
    sampled = sample_balanced(labels, 256, 0.25, torch.Generator().manual_seed(0))
    assert counts(sampled) == [(10, 246), (64, 192)]
    assert unchanged_where_kept(sampled, labels)
    again = sample_balanced(labels, 256, 0.25, torch.Generator().manual_seed(0))
    other = sample_balanced(labels, 256, 0.25, torch.Generator().manual_seed(1))
    assert torch.equal(sampled, again) and not torch.equal(sampled, other)


def test_hard_negatives_are_the_hardest(labels: torch.Tensor, losses: torch.Tensor) -> None:
    sampled = mine_hard_negatives(losses, labels, ratio=3)
    assert counts(sampled) == [(10, 30), (200, 600)]
    background, kept = labels[0] == BACKGROUND, sampled[0] == BACKGROUND
    assert losses[0][kept].min() > losses[0][background & ~kept].max()


def test_hard_negatives_of_an_image_without_objects(losses: torch.Tensor) -> None:
    empty = torch.full((2, 1000), BACKGROUND)
    assert counts(mine_hard_negatives(losses, empty)) == [(0, 0), (0, 0)]
    assert counts(mine_hard_negatives(losses, empty, minimum=5)) == [(0, 5), (0, 5)]


def test_ohem_without_nms_is_the_top_of_the_loss(labels: torch.Tensor, losses: torch.Tensor) -> None:
    sampled = mine_online(losses, labels, batch_size=128, nms_iou=None)
    for image in range(2):
        allowed = torch.where(labels[image] != IGNORE, losses[image], -1)
        assert set((sampled[image] != IGNORE).nonzero().flatten().tolist()) == set(allowed.topk(128).indices.tolist())


def test_ohem_one_to_three(labels: torch.Tensor, losses: torch.Tensor) -> None:
    sampled = mine_online(losses, labels, batch_size=128, nms_iou=None, foreground_fraction=0.25)
    assert counts(sampled) == [(10, 118), (32, 96)]


def test_ohem_nms_keeps_one_of_a_pile(labels: torch.Tensor, losses: torch.Tensor) -> None:
    corner = torch.arange(1000.0)[:, None] * 100
    boxes = torch.cat([corner, corner, corner + 10, corner + 10], dim=1)
    boxes[500:600] = boxes[500]  # a hundred anchors at one place
    sampled = mine_online(losses, labels, boxes, batch_size=1000, nms_iou=0.7)
    kept = (sampled[1, 500:600] != IGNORE).nonzero().flatten()
    assert kept.tolist() == [int(losses[1, 500:600].argmax())]
    assert counts(sampled)[1] == (200, 1000 - 200 - 99)


def test_ohem_needs_boxes_for_nms(labels: torch.Tensor, losses: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="boxes are needed"):
        mine_online(losses, labels)
