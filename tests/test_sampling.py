import math

import pytest
import torch
import torchvision

from focal_tutorial.matching import BACKGROUND, IGNORE
from focal_tutorial.sampling import Bootstrapping, mine_hard_negatives, mine_online, sample_balanced


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
    enforced = mine_online(losses, labels, batch_size=128, nms_iou=None, foreground_fraction=0.25, enforce=True)
    assert counts(enforced) == [(10, 30), (32, 96)]
    hardest = torch.where(labels[0] == BACKGROUND, losses[0], -1).topk(30).indices
    assert set((enforced[0] == BACKGROUND).nonzero().flatten().tolist()) == set(hardest.tolist())


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


def visit(sampler: Bootstrapping, losses: torch.Tensor, labels: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    sampler.expect(list(ids))
    return sampler(losses, labels)


def test_bootstrapping_adds_the_hardest_after_each_round(labels: torch.Tensor, losses: torch.Tensor) -> None:
    sampler = Bootstrapping(start=20, per_round=5, visits=2, generator=torch.Generator().manual_seed(0))
    kept = [visit(sampler, losses + step, labels, (7, 8)) for step in range(5)]
    assert [counts(k) for k in kept] == [[(10, n), (200, n)] for n in (20, 20, 25, 25, 30)]
    assert all(unchanged_where_kept(k, labels) for k in kept)
    assert torch.equal(kept[0], kept[1]) and bool(((kept[0] == IGNORE) | (kept[2] == kept[0])).all())
    joined = (kept[2][0] == BACKGROUND) & (kept[0][0] != BACKGROUND)
    waiting = (labels[0] == BACKGROUND) & (kept[2][0] != BACKGROUND)
    assert losses[0][joined].min() > losses[0][waiting].max()


def test_bootstrapping_remembers_by_image_and_not_by_place(labels: torch.Tensor, losses: torch.Tensor) -> None:
    sampler = Bootstrapping(start=20, per_round=0, generator=torch.Generator().manual_seed(0))
    first = visit(sampler, losses, labels, (7, 8))
    second = visit(sampler, losses.flip(0), labels.flip(0), (8, 7))
    assert torch.equal(second, first.flip(0))
    assert sampler.seen == {7: 2, 8: 2} and [len(sampler.negatives[i]) for i in (7, 8)] == [20, 20]


def test_bootstrapping_stops_and_forgets_when_told(labels: torch.Tensor, losses: torch.Tensor) -> None:
    stops = Bootstrapping(start=3, per_round=5, rounds=2)
    assert [counts(visit(stops, losses, labels, (0, 1)))[0][1] for _ in range(5)] == [3, 8, 13, 13, 13]
    full = Bootstrapping(start=20, per_round=5, capacity=22)
    for _ in range(2):
        sampled = visit(full, losses, labels, (0, 1))
    assert counts(sampled) == [(10, 22), (200, 22)]
    easiest = min(losses[0][full.negatives[0]].tolist())
    assert easiest > losses[0][20:].min()  # the 3 easiest of 25 went


def test_bootstrapping_without_memory_is_hard_negative_mining(labels: torch.Tensor, losses: torch.Tensor) -> None:
    labels[1, 10:200] = BACKGROUND  # 10 foreground in both, so that 1 : 3 is 30 in both
    labels[1, :10] = 2
    sampler = Bootstrapping(start=0, per_round=30, capacity=30)
    assert counts(visit(sampler, losses, labels, (0, 1))) == [(10, 0), (10, 0)]
    for shift in (0, 300):
        now = losses.roll(shift, dims=1)
        assert torch.equal(visit(sampler, now, labels, (0, 1)), mine_hard_negatives(now, labels, ratio=3))


def test_bootstrapping_notices_what_it_cannot_do(labels: torch.Tensor, losses: torch.Tensor) -> None:
    sampler = Bootstrapping()
    with pytest.raises(ValueError, match="expect"):
        sampler(losses, labels)
    visit(sampler, losses, labels, (0, 1))
    with pytest.raises(ValueError, match="expect"):  # the ids count for one call
        sampler(losses, labels)
    with pytest.raises(ValueError, match="image 0 has other foreground"):
        visit(sampler, losses, labels.flip(1), (0, 1))
    with pytest.raises(ValueError, match="visits"):
        Bootstrapping(visits=0)


@pytest.mark.parametrize("fraction", [None, 0.25])
@pytest.mark.parametrize("batch_size", [1, 64, 700, 5000])
def test_online_mining_equals_nms_over_all_anchors(fraction: float | None, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(batch_size)
    corners = 60 * torch.rand(3000, 2, generator=generator)
    boxes = torch.cat([corners, corners + 4 + 20 * torch.rand(3000, 2, generator=generator)], 1)
    losses = torch.rand(1, 3000, generator=generator)
    labels = torch.full((1, 3000), BACKGROUND)
    labels[0, ::50], labels[0, 1::50] = 0, IGNORE
    where = (labels[0] != IGNORE).nonzero().squeeze(1)
    left = where[torchvision.ops.nms(boxes[where], losses[0, where], 0.5)]  # by loss, the highest first
    few = [r for r in left.tolist() if labels[0, r] >= 0][: int(batch_size * (fraction or 0))]
    many = [r for r in left.tolist() if fraction is None or labels[0, r] == BACKGROUND]
    wanted = torch.full_like(labels, IGNORE)
    kept = torch.tensor(few + many[: batch_size - len(few)])
    wanted[0, kept] = labels[0, kept]
    found = mine_online(losses, labels, boxes, batch_size, 0.5, fraction)
    assert torch.equal(found, wanted)


def test_a_loss_of_minus_infinity_neither_hangs_nor_lets_a_discarded_anchor_in():
    """It tied with the anchors that are not allowed; NMS then looked for it for ever."""
    losses, labels = torch.tensor([[-math.inf, 1.0, 2.0]]), torch.tensor([[BACKGROUND, IGNORE, 0]])
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8], [90, 90, 98, 98]])
    assert mine_online(losses, labels, boxes, 3, 0.7, 0.5).tolist() == [[BACKGROUND, IGNORE, 0]]
    assert mine_online(losses, labels, None, 3, None).tolist() == [[BACKGROUND, IGNORE, 0]]
    assert mine_hard_negatives(losses, labels, 1.0).tolist() == [[BACKGROUND, IGNORE, 0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": -1}, "batch_size: a whole number"),
        ({"foreground_fraction": math.nan}, "foreground_fraction: a number up to 1"),
        ({"nms_iou": 2.0}, "nms_iou: a number up to 1"),
        ({"labels": torch.zeros(1, 3)}, "labels: signed integers"),
        ({"losses": torch.zeros(1, 2)}, "losses: real numbers"),
        ({"losses": None}, "losses: real numbers"),
        ({"boxes": torch.zeros(2, 4)}, "boxes: real numbers"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    good = {"losses": torch.zeros(1, 3), "labels": torch.zeros(1, 3).long(), "boxes": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match=words):
        mine_online(**{**good, **change})
