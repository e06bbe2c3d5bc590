"""Transforms: boxes go where the pixels go, and every image ends on a canvas of one size."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from focal_tutorial.data import eval_transforms, train_transforms
from focal_tutorial.data.transforms import MEAN_PIXEL


def sample(height=30, width=40, boxes=((5, 6, 15, 14),)):
    """A grey image on which every box is a white rectangle, so that pixels say where the boxes should be."""
    image = torch.full((3, height, width), 60, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = 255
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(boxes)),
        "image_id": 3,
    }
    return tv_tensors.Image(image), target


def white_box(image):
    """The box around white pixels."""
    ys, xs = torch.where(image[0] > 200)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def test_eval_transform_keeps_the_aspect_and_pads_with_the_mean():
    image, target = eval_transforms((64, 64))(*sample())
    assert image.shape == (3, 64, 64) and image.dtype == torch.uint8 and isinstance(image, tv_tensors.Image)
    assert torch.allclose(target["boxes"], torch.tensor([[8, 9.6, 24, 22.4]])) and target["boxes"].canvas_size == (
        64,
        64,
    )
    assert (torch.tensor(MEAN_PIXEL, dtype=torch.uint8) == image[:, 48:].flatten(1).T).all()
    assert (image[:, :48] != torch.tensor(MEAN_PIXEL)[:, None, None]).any(0).all()
    assert target["labels"].tolist() == [0] and target["image_id"] == 3


def test_image_of_the_canvas_size_passes_unchanged():
    image, target = sample()
    result, moved = eval_transforms((30, 40))(image, target)
    assert torch.equal(result, image) and torch.equal(moved["boxes"], target["boxes"])


def test_flip_is_a_mirror_and_leaves_its_input_alone():
    image, target = sample()
    kept, kept_boxes = image.clone(), target["boxes"].clone()
    flipped, moved = train_transforms((30, 40), flip=1.0)(image, target)
    assert torch.equal(flipped, image.flip(-1)) and moved["boxes"].tolist() == [[25, 6, 35, 14]]
    assert torch.equal(image, kept) and torch.equal(target["boxes"], kept_boxes)


def test_vertical_flip_turns_upside_down():
    image, target = sample()
    flipped, moved = train_transforms((30, 40), flip=0, flip_vertical=1.0)(image, target)
    assert torch.equal(flipped, image.flip(-2)) and moved["boxes"].tolist() == [[5, 16, 15, 24]]


def test_flip_probability():
    transform = train_transforms((30, 40), flip=0.25)
    torch.manual_seed(0)
    flips = sum(transform(*sample())[1]["boxes"][0, 0].item() == 25 for _ in range(400))
    assert 70 < flips < 130


@pytest.mark.parametrize("scale", [(0.3, 0.9), (1.0, 1.0), (1.1, 2.5), (0.5, 2.0)])
@pytest.mark.parametrize("size", [(30, 40), (400, 200), (64, 64)])
def test_boxes_follow_the_pixels_under_jitter(scale, size):
    height, width = size
    drawn = (width // 4, height // 4, width // 2, height // 2)
    transform = train_transforms((96, 128), flip=0.5, scale=scale)
    torch.manual_seed(1)
    seen = 0
    for _ in range(40):
        image, target = transform(*sample(height, width, (drawn,)))
        assert image.shape == (3, 96, 128)
        if len(target["boxes"]):
            box = target["boxes"][0]
            if (box[2:] - box[:2]).min() < 4:
                continue  # too little left of it to see its edges
            tolerance = 1.5 + 0.02 * max(box[2:] - box[:2]).item()  # interpolation softens the edge
            assert (box - torch.tensor(white_box(image))).abs().max() <= tolerance
            assert (box >= 0).all() and (box <= torch.tensor([128, 96, 128, 96])).all()
            seen += 1
    assert seen > 10


def test_scale_covers_its_range():
    transform = train_transforms((60, 80), flip=0, scale=(0.5, 1.0))
    torch.manual_seed(0)
    widths = [(b[2] - b[0]).item() for b in (transform(*sample())[1]["boxes"][0] for _ in range(200))]
    assert 9.9 < min(widths) < 11 and 19 < max(widths) < 20.3


def test_boxes_cropped_away_go_with_their_labels():
    boxes = ((0, 0, 4, 4), (18, 12, 22, 18), (36, 26, 40, 30))
    transform = train_transforms((30, 40), flip=0, scale=(2.0, 2.0))
    torch.manual_seed(0)
    for _ in range(50):
        _, target = transform(*sample(boxes=boxes))
        assert len(target["boxes"]) == len(target["labels"]) < 3
        assert (target["boxes"][:, 2:] - target["boxes"][:, :2] >= 1).all()
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            whole = boxes[label]
            assert x2 - x1 <= 2 * (whole[2] - whole[0]) and y2 - y1 <= 2 * (whole[3] - whole[1])


def test_crops_come_from_everywhere():
    transform = train_transforms((30, 40), flip=0, scale=(2.0, 2.0))
    torch.manual_seed(0)
    boxes = [transform(*sample(boxes=((19, 14, 21, 16),)))[1]["boxes"] for _ in range(200)]
    corners = torch.cat([box for box in boxes if len(box) and (box[0, 2:] - box[0, :2] == 4).all()])[:, :2]
    assert corners.min() == 0 and corners[:, 0].max() > 30 and corners[:, 1].max() > 22


def test_image_without_boxes():
    image, target = train_transforms((48, 48), flip=1.0, scale=(0.5, 2.0), colour=0.4)(*sample(boxes=()))
    assert image.shape == (3, 48, 48) and target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)


def test_colour_changes_the_image_and_not_the_padding():
    transform = train_transforms((64, 64), flip=0, colour=0.5)
    torch.manual_seed(0)
    plain, _ = eval_transforms((64, 64))(*sample())
    image, target = transform(*sample())
    assert not torch.equal(image[:, :48], plain[:, :48]) and torch.equal(image[:, 48:], plain[:, 48:])
    assert torch.allclose(target["boxes"], torch.tensor([[8, 9.6, 24, 22.4]]))


def test_prepare_then_augment_is_the_transform():
    transform = train_transforms((50, 50), flip=0.5, scale=(0.5, 1.5), colour=0.2)
    torch.manual_seed(5)
    whole, target = transform(*sample(200, 300, ((20, 20, 90, 90),)))
    prepared = transform.prepare(*sample(200, 300, ((20, 20, 90, 90),)))
    assert prepared[0].shape == (3, 50, 75)  # 1.5 times what fits, and no more
    torch.manual_seed(5)
    again, again_target = transform.augment(*prepared)
    assert torch.equal(whole, again) and torch.equal(target["boxes"], again_target["boxes"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"canvas": (0, 5)}, "canvas must be"),
        ({"canvas": (5,)}, "canvas must be"),
        ({"canvas": (5, 5), "flip": 1.5}, "flip must be"),
        ({"canvas": (5, 5), "flip_vertical": -1}, "flip_vertical must be"),
        ({"canvas": (5, 5), "scale": (0, 1)}, "scale must be"),
        ({"canvas": (5, 5), "scale": (2, 1)}, "scale must be"),
        ({"canvas": (5, 5), "colour": -0.1}, "colour must be"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        train_transforms(**options)
