from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from focal_tutorial.boxes import encode_boxes
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.evaluate import evaluate
from focal_tutorial.proposals import TwoStageDetector, region_proposals, two_stage_tiny
from focal_tutorial.retinanet import retinanet_tiny
from focal_tutorial.train import TrainConfig, train

TARGET = {"boxes": torch.tensor([[20.0, 20.0, 52.0, 50.0]]), "labels": torch.tensor([2])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


@pytest.fixture
def model() -> TwoStageDetector:
    torch.manual_seed(0)
    return two_stage_tiny(3, canvas=(64, 96), channels=16, widths=(16, 16, 16, 16), hidden=16)


def test_losses_in_training_with_gradients_everywhere(model: TwoStageDetector) -> None:
    losses = model.train()(torch.rand(2, 3, 64, 96), [TARGET, EMPTY])
    assert set(losses) == {"classification", "bbox_regression"}
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    only_empty = model(torch.rand(1, 3, 64, 96), [EMPTY])
    assert only_empty["bbox_regression"] == 0 and only_empty["classification"].isfinite()


def test_at_the_start_each_stage_guesses(model: TwoStageDetector) -> None:
    """Objectness starts at p = 0.5 and the classes at 1/(K + 1): ln 2 and ln 4, whatever the sample."""
    losses = model.train()(torch.rand(2, 3, 64, 96), [TARGET, TARGET])
    assert losses["classification"].item() == pytest.approx(0.6931 + 1.3863, abs=0.05)


def test_detections_come_back_in_the_pixels_of_each_image(model: TwoStageDetector) -> None:
    images = [torch.rand(3, 128, 192), (torch.rand(3, 32, 48) * 255).byte()]
    found = model.eval()(images)
    for image, detections in zip(images, found, strict=True):
        assert set(detections) == {"boxes", "scores", "labels"} and 0 < len(detections["boxes"]) <= 100
        limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
        assert (detections["boxes"] >= 0).all() and (detections["boxes"] <= limit + 1e-3).all()
        assert detections["boxes"][:, 2].max() > 0.8 * image.shape[2]
        assert detections["labels"].min() >= 0 and detections["labels"].max() < 3
        assert torch.equal(detections["scores"], detections["scores"].sort(descending=True).values)


def test_proposals_are_the_best_boxes_after_nms() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [50, 0, 70, 20]])
    logits = torch.tensor([[1.0], [2.0], [0.0], [3.0]])
    boxes, scores = region_proposals([logits[:3], logits[3:]], [torch.zeros(3, 4), torch.zeros(1, 4)],
                                     [anchors[:3], anchors[3:]], (64, 60))  # fmt: skip
    assert boxes.tolist() == [[50, 0, 60, 20], [1, 0, 11, 10], [30, 30, 40, 40]]  # clipped; 0 falls to 1 (IoU 0.82)
    assert scores.tolist() == pytest.approx(torch.sigmoid(torch.tensor([3.0, 2.0, 0.0])).tolist())
    few, _ = region_proposals([logits], [torch.zeros(4, 4)], [anchors], (64, 60), topk_per_level=3, count=2)
    assert few.tolist() == boxes[:2].tolist()


def test_the_second_stage_learns_from_three_backgrounds_for_each_foreground(model: TwoStageDetector) -> None:
    inside = TARGET["boxes"] + torch.linspace(-3, 3, 60)[:, None]
    outside = torch.tensor([[60.0, 30.0, 90.0, 60.0]]).repeat(300, 1)
    (sample,) = model.sample([torch.cat([outside, inside])], [TARGET])
    assert len(sample.labels) == 128 and (sample.labels == 2).sum() == 32 and (sample.labels == -1).sum() == 96
    assert torch.equal(sample.labels >= 0, box_iou(sample.boxes, TARGET["boxes"])[:, 0] >= 0.5)
    assert (sample.matched[sample.labels >= 0] == TARGET["boxes"]).all()
    (alone,) = model.sample([outside], [TARGET])  # no proposal finds the object, but its own box is there
    assert (alone.labels >= 0).sum() == 1 and torch.equal(alone.boxes[alone.labels >= 0], TARGET["boxes"])


def test_the_funnel_counts_every_step(model: TwoStageDetector) -> None:
    funnel = model.funnel(torch.rand(2, 3, 64, 96), [TARGET, EMPTY])
    anchors = sum(len(level) for level in model.first.anchors((64, 96)))
    assert list(funnel) == ["anchors", "first labels", "first batch", "proposals", "second batch"]
    assert funnel["anchors"].sum(1).tolist() == [anchors, anchors]
    iou = box_iou(torch.cat(model.first.anchors((64, 96))), TARGET["boxes"])[:, 0]
    assert funnel["anchors"][:, 0].tolist() == [int((iou >= 0.5).sum()), 0]
    assert funnel["first labels"][0].tolist() == [int((iou >= min(0.7, iou.max())).sum()), int((iou < 0.3).sum())]
    assert funnel["first batch"].sum(1).tolist() == [256, 256]
    assert (funnel["proposals"].sum(1) <= 1000).all() and funnel["second batch"].sum(1).tolist() == [128, 128]
    assert all(counts[1, 0] == 0 for counts in funnel.values()) and funnel["second batch"][0, 0] >= 1


def test_two_boxes_in_one_image_keep_their_places(model: TwoStageDetector) -> None:
    """Perfect deltas give no box loss in either stage, whichever image and box an anchor belongs to."""
    two = {"boxes": torch.tensor([[0.0, 0, 24, 30], [50, 20, 82, 50]]), "labels": torch.tensor([0, 1])}
    targets = [two, TARGET]
    anchors = torch.cat(model.first.anchors((64, 96)))
    _, matches = model.first_labels(anchors, targets)
    deltas = torch.stack(
        [encode_boxes(t["boxes"][m.clamp(min=0)], anchors) for t, m in zip(targets, matches, strict=True)]
    )
    losses = model.first_losses(torch.zeros(2, len(anchors), 1), deltas, anchors, targets)
    assert losses["bbox_regression"] == 0
    assert model.first_losses(torch.zeros(2, len(anchors), 1), deltas + 0.5, anchors, targets)["bbox_regression"] > 0


def test_it_learns_one_image_by_heart() -> None:
    torch.manual_seed(0)
    model = two_stage_tiny(3, channels=16, widths=(16, 16, 32), levels=(2, 3, 4), hidden=32).train()
    image = torch.rand(1, 3, 64, 96) * 0.2
    image[:, 0, 20:50, 20:52] += 0.7
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(50):
        optimizer.zero_grad()
        sum(model(image, [TARGET]).values()).backward()
        optimizer.step()
    found = model.eval()(image)[0]
    assert found["scores"][0] > 0.5 and found["labels"][0] == 2
    assert (found["boxes"][0] - TARGET["boxes"][0]).abs().max() < 5


def test_train_and_evaluate_take_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = two_stage_tiny(3, canvas=(96, 96), channels=16, widths=(16, 16, 16), proposals=100)
    config = TrainConfig(
        out=str(tmp_path / "run"), steps=2, batch_size=2, shapes={"num_train": 4, "num_val": 2, "size": 96}
    )
    metrics = train(config, model=model, progress=False)
    assert metrics["step"] == 2 and 0 <= metrics["AP"] <= 1 and model.class_names == ["circle", "square", "triangle"]
    assert evaluate(model, ShapesDataset(2, split="val", size=96))["AP"] is not None
    rebuilt = two_stage_tiny(**{k: v for k, v in model.config.items() if k != "builder"})
    rebuilt.load_state_dict(model.state_dict())


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="first stage of 1 class"):
        TwoStageDetector(retinanet_tiny(3), 3)
