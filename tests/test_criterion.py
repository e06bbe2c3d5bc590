import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.boxes import decode_boxes, encode_boxes
from focal_tutorial.criterion import Criterion, anchor_cross_entropy, paired_iou
from focal_tutorial.matching import BACKGROUND, IGNORE
from focal_tutorial.sampling import Bootstrapping, mine_hard_negatives

ANCHORS = torch.cat(AnchorGenerator(levels=(3, 4))((64, 96)))
K = 3
TARGETS = [
    {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0], [50.0, 10.0, 90.0, 60.0]]), "labels": torch.tensor([2, 0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {"boxes": torch.tensor([[20.0, 20.0, 60.0, 60.0]]), "labels": torch.tensor([1])},
]


def predictions(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, len(ANCHORS), K, generator=generator) - 2
    return logits.requires_grad_(), (0.3 * torch.randn(3, len(ANCHORS), 4, generator=generator)).requires_grad_()


def slow_losses(logits: torch.Tensor, deltas: torch.Tensor) -> tuple[float, float, int]:
    """The definition, one anchor at a time: sums of focal and smooth L1 loss, and the foreground count."""
    criterion = Criterion()
    labels, matches = criterion.match(ANCHORS, TARGETS)
    focal, box, foreground = 0.0, 0.0, 0
    for n in range(3):
        for r in range(len(ANCHORS)):
            label = int(labels[n, r])
            if label == IGNORE:
                continue
            for k in range(K):
                p = torch.sigmoid(logits[n, r, k].double())
                p_t, alpha_t = (p, 0.25) if k == label else (1 - p, 0.75)
                focal += float(-alpha_t * (1 - p_t) ** 2 * p_t.log())
            if label >= 0:
                foreground += 1
                target = encode_boxes(TARGETS[n]["boxes"][matches[n, r]], ANCHORS[r])
                box += float(F.smooth_l1_loss(deltas[n, r], target, beta=1 / 9, reduction="sum"))
    return focal, box, foreground


def test_the_definition_anchor_by_anchor() -> None:
    logits, deltas = predictions()
    with torch.no_grad():
        focal, box, foreground = slow_losses(logits, deltas)
    assert foreground > 20
    losses = Criterion()(logits, deltas, ANCHORS, TARGETS)
    assert losses["classification"].item() == pytest.approx(focal / foreground, rel=1e-5)
    assert losses["bbox_regression"].item() == pytest.approx(box / foreground, rel=1e-5)


def test_labels_are_the_classes_of_the_matched_boxes() -> None:
    labels, matches = Criterion().match(ANCHORS, TARGETS)
    assert set(labels[0].tolist()) == {0, 2, BACKGROUND, IGNORE}
    assert (labels[0][matches[0] == 0] == 2).all() and (labels[0][matches[0] == 1] == 0).all()
    assert (labels[1] == BACKGROUND).all()


def test_normalizers() -> None:
    logits, deltas = predictions()
    labels, _ = Criterion().match(ANCHORS, TARGETS)
    per_image = (labels >= 0).sum(1)
    total = int(per_image.sum())
    value = {
        n: Criterion(normalizer=n).eval()(logits, deltas, ANCHORS, TARGETS)["classification"].item()
        for n in ("foreground", "foreground_plus_one", "ema")
    }
    assert value["foreground"] * total == pytest.approx(value["foreground_plus_one"] * (total + 3), rel=1e-5)
    assert value["ema"] * 100 == pytest.approx(value["foreground"] * total, rel=1e-5)  # not updated in eval mode
    focal = Criterion()
    expected = (
        sum(focal.focal_loss(logits[i : i + 1], labels[i : i + 1]) / max(1, int(per_image[i])) for i in range(3)) / 3
    )
    assert Criterion(normalizer="image")(logits, deltas, ANCHORS, TARGETS)["classification"].item() == pytest.approx(
        expected.item()
    )


def test_the_moving_normalizer_moves_in_training() -> None:
    criterion = Criterion(normalizer="ema")
    total = int((criterion.match(ANCHORS, TARGETS)[0] >= 0).sum())
    criterion(*predictions(), ANCHORS, TARGETS)
    assert criterion.ema_foreground.item() == pytest.approx(0.9 * 100 + 0.1 * total)


def test_images_without_boxes_still_teach_background() -> None:
    logits, deltas = predictions()
    empty = [TARGETS[1]] * 3
    losses = Criterion()(logits, deltas, ANCHORS, empty)
    assert losses["classification"] > 0 and losses["bbox_regression"] == 0
    sum(losses.values()).backward()
    assert logits.grad.abs().sum() > 0 and deltas.grad is not None and deltas.grad.abs().sum() == 0


def test_box_losses() -> None:
    deltas = torch.tensor([[0.05, 0.5, 0.0, 0.0]])
    anchors = boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    smooth = 0.5 * 0.05**2 * 9 + (0.5 - 0.5 / 9)
    assert Criterion().box_losses(deltas, anchors, boxes).item() == pytest.approx(smooth)
    assert Criterion(box_loss="l1").box_losses(deltas, anchors, boxes).item() == pytest.approx(0.55)
    far = Criterion(box_loss="giou").box_losses(torch.tensor([[3.0, 0.0, 0.0, 0.0]]), anchors, boxes).item()
    assert far == pytest.approx(1 - (0 - 200 / 400))  # IoU 0; the hull is 40 × 10, the union 200


def test_a_sampler_leaves_the_box_loss_alone() -> None:
    logits, deltas = predictions()
    plain = Criterion()(logits, deltas, ANCHORS, TARGETS)
    mined = Criterion(sampler=lambda losses, labels, anchors: mine_hard_negatives(losses, labels))(
        logits, deltas, ANCHORS, TARGETS
    )
    assert mined["bbox_regression"] == plain["bbox_regression"]
    assert 0 < mined["classification"] < plain["classification"]


def test_a_sampler_that_remembers_images_hears_which_they_are() -> None:
    logits, deltas = predictions()
    sampler = Bootstrapping(start=1, per_round=1)
    targets = [{**target, "image_id": torch.tensor(10 + i)} for i, target in enumerate(TARGETS)]
    for _ in range(2):
        Criterion(sampler=sampler)(logits, deltas, ANCHORS, targets)
    assert sampler.seen == {10 + i: 2 for i in range(len(TARGETS))}
    with pytest.raises(KeyError, match="image_id"):
        Criterion(sampler=sampler)(logits, deltas, ANCHORS, TARGETS)


def test_cross_entropy_of_an_anchor() -> None:
    logits = torch.tensor([[[0.3, -1.0, 2.0], [0.0, 1.0, -1.0], [5.0, 5.0, 5.0]]])
    labels = torch.tensor([[1, BACKGROUND, IGNORE]])
    wanted = [
        F.binary_cross_entropy_with_logits(
            logits[0, i], torch.eye(3)[1] if i == 0 else torch.zeros(3), reduction="sum"
        ).item()
        for i in range(2)
    ]
    assert anchor_cross_entropy(logits, labels)[0].tolist() == pytest.approx([*wanted, 0.0])
    wild = torch.full((1, 1, 90), 800.0, dtype=torch.float16)  # 90 · 800 is beyond float16
    assert anchor_cross_entropy(wild, torch.tensor([[-1]])).item() == pytest.approx(72_000)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="box_loss: one of"):
        Criterion(box_loss="l2")
    with pytest.raises(ValueError, match="normalizer: one of"):
        Criterion(normalizer="none")


def test_a_quality_loss_gets_the_iou_of_the_predicted_boxes() -> None:
    logits, deltas = predictions()
    seen: list[torch.Tensor] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        assert not quality.requires_grad
        assert logits.shape[:2] == labels.shape == quality.shape
        seen.append(quality)
        return (logits.sum(-1) * quality).sum()

    for normalizer in ("foreground", "image"):
        seen.clear()
        criterion = Criterion(quality_loss=loss, normalizer=normalizer)
        labels, matches = criterion.match(ANCHORS, TARGETS)
        found = criterion(logits, deltas, ANCHORS, TARGETS)["classification"]
        quality = torch.cat(seen)
        wanted = torch.zeros(labels.shape)
        for n, r in (labels >= 0).nonzero().tolist():
            box = decode_boxes(deltas[n, r].detach()[None], ANCHORS[r][None])
            wanted[n, r] = box_iou(box, TARGETS[n]["boxes"][matches[n, r]][None])
        torch.testing.assert_close(quality, wanted, rtol=1e-5, atol=1e-6)
        foreground = (labels >= 0).sum(1)
        sums = (logits.detach().sum(-1) * wanted).sum(1)  # (3,)
        per_image = (sums / foreground.clamp(min=1)).mean()
        assert found.item() == pytest.approx(
            float(per_image if normalizer == "image" else sums.sum() / foreground.sum()), rel=1e-4
        )


def test_iou_of_pairs_without_area_is_zero() -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert paired_iou(point, point).item() == 0
    assert paired_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])).item() == (
        pytest.approx(1 / 3)
    )


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_iou_losses_vanish_at_the_truth_and_only_there(name: str) -> None:
    box, anchor = torch.tensor([[8.0, 8.0, 40.0, 44.0]]), torch.tensor([[4.0, 6.0, 36.0, 38.0]])
    right = encode_boxes(box, anchor)
    criterion = Criterion(box_loss=name)
    assert criterion.box_losses(right, anchor, box).item() == pytest.approx(0, abs=1e-5)
    assert criterion.box_losses(right + 0.2, anchor, box).item() > 0.1
    apart = torch.tensor([[4.0, 0.0, 0.0, 0.0]])  # four anchor widths to the right: no overlap, and still a slope
    loss = criterion.box_losses(apart.requires_grad_(), anchor, box)
    assert torch.autograd.grad(loss.sum(), apart)[0][0, 0] > 0


def test_a_plain_and_a_quality_loss_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        Criterion(quality_loss=lambda x, t, q: x.sum(), classification_loss=lambda x, t: x.sum())
