"""Loading: what a batch holds depends on (seed, epoch, position) and on nothing else."""

from __future__ import annotations

import pickle
import time

import pytest
import torch
from data_helpers import box, coco, picture, write_coco

from focal_tutorial.data import CocoDataset, ShapesDataset, make_loader, train_transforms
from focal_tutorial.errors import InputError

AUGMENT = {"flip": 0.5, "scale": (0.5, 1.5), "colour": 0.3}


@pytest.fixture(scope="module")
def shapes():
    return ShapesDataset(11, size=64, radius=(4, 9), transforms=train_transforms((64, 64), **AUGMENT))


def batches(loader, epoch, start=0):
    loader.set_epoch(epoch, start)
    return list(loader)


def same(one, other):
    """Equal batches, tensor by tensor."""
    if len(one) != len(other):
        return False
    for (images, targets), (other_images, other_targets) in zip(one, other, strict=True):
        if not torch.equal(images, other_images):
            return False
        for a, b in zip(targets, other_targets, strict=True):
            if a["image_id"] != b["image_id"] or not torch.equal(a["boxes"], b["boxes"]):
                return False
            if not torch.equal(a["labels"], b["labels"]):
                return False
    return True


def ids(batch_list):
    return [[target["image_id"] for target in targets] for _, targets in batch_list]


def flat(lists):
    return [item for part in lists for item in part]


def test_batch_contract(shapes):
    images, targets = next(iter(make_loader(shapes, 4, shuffle=True, seed=0)))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 64, 64) and type(images) is torch.Tensor
    assert len(targets) == 4 and type(targets[0]["boxes"]) is torch.Tensor
    assert targets[0]["boxes"].dtype == torch.float32 and targets[0]["labels"].dtype == torch.int64


def test_one_seed_one_stream(shapes):
    first, second = (make_loader(shapes, 4, shuffle=True, seed=3) for _ in range(2))
    torch.manual_seed(1)
    kept = batches(first, 0)
    torch.manual_seed(2)
    assert same(kept, batches(second, 0)) and same(kept, batches(first, 0))
    assert not same(kept, batches(first, 1))
    assert not same(kept, batches(make_loader(shapes, 4, shuffle=True, seed=4), 0))


def test_every_image_once_an_epoch_in_a_new_order(shapes):
    loader = make_loader(shapes, 4, shuffle=True, seed=0)
    orders = [flat(ids(batches(loader, epoch))) for epoch in range(3)]
    assert all(sorted(order) == list(range(1, 12)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert flat(ids(batches(make_loader(shapes, 4, shuffle=False), 5))) == list(range(1, 12))


def test_augmentation_differs_between_epochs_and_images(shapes):
    loader = make_loader(shapes, 1, shuffle=False)
    one, two = batches(loader, 0), batches(loader, 1)
    assert sum(not torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True)) == 11


def test_workers_change_nothing(shapes):
    alone, helped = (make_loader(shapes, 3, shuffle=True, seed=1, workers=n) for n in (0, 2))
    for epoch in (0, 2):
        assert same(batches(alone, epoch), batches(helped, epoch))
    assert same(batches(alone, 4, start=2), batches(helped, 4, start=2))


def test_resuming_in_mid_epoch_continues_it(shapes):
    loader = make_loader(shapes, 3, shuffle=True, seed=1)
    whole = batches(loader, 2)
    for start in range(5):
        assert same(whole[start:], batches(make_loader(shapes, 3, shuffle=True, seed=1), 2, start))
    assert len(loader) == 4


def test_the_callers_random_numbers_are_left_alone(shapes):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(make_loader(shapes, 4, shuffle=True, seed=9), 0)
    assert torch.equal(torch.rand(3), expected)


def test_drop_last(shapes):
    assert [len(b) for b in ids(batches(make_loader(shapes, 4, shuffle=True), 0))] == [4, 4, 3]
    assert [len(b) for b in ids(batches(make_loader(shapes, 4, shuffle=True, drop_last=True), 0))] == [4, 4]
    with pytest.raises(InputError, match="11 images make no full batch of 12: use a smaller batch size"):
        make_loader(shapes, 12, shuffle=True, drop_last=True)
    with pytest.raises(InputError, match="no full batch of 12"):
        make_loader(shapes, 6, shuffle=True, drop_last=True, world_size=2)


def test_ranks_together_make_the_batches_of_one_process(shapes):
    one = ids(batches(make_loader(shapes, 4, shuffle=True, seed=2), 1))
    ranks = [ids(batches(make_loader(shapes, 2, shuffle=True, seed=2, rank=r, world_size=2), 1)) for r in range(2)]
    joined = [a + b for a, b in zip(*ranks, strict=True)]
    assert joined[:2] == one[:2]
    assert [len(b) for b in ranks[0]] == [len(b) for b in ranks[1]] == [2, 2, 2]  # 11 images: one is seen twice
    assert joined[2] == one[2] + one[0][:1]


def test_more_ranks_than_images():
    dataset = ShapesDataset(2, size=64, radius=(4, 9))
    shares = [ids(batches(make_loader(dataset, 1, shuffle=False, rank=r, world_size=5), 0)) for r in range(5)]
    assert shares == [[[1]], [[2]], [[1]], [[2]], [[1]]]


def test_images_of_several_sizes_come_as_a_list(tmp_path):
    content = coco()
    content["images"][1] |= {"height": 50, "width": 20}
    images, path = write_coco(tmp_path, content)
    picture(images / "b.png", 20, 50)
    batch, targets = next(iter(make_loader(CocoDataset(images, path), 2, shuffle=False)))
    assert isinstance(batch, list) and [tuple(image.shape) for image in batch] == [(3, 30, 40), (3, 50, 20)]
    assert [len(target["labels"]) for target in targets] == [2, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_one_line_from_any_process(tmp_path, workers):
    images, path = write_coco(tmp_path, coco(annotations=[box(1, [1, 1, 5, 5])]))
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:900])
    loader = make_loader(CocoDataset(images, path), 1, shuffle=False, workers=workers)
    with pytest.raises(InputError, match=r"cannot read image .*b\.png") as error:
        list(loader)
    assert "\n" not in str(error.value)


def test_what_a_worker_gets_can_be_sent_to_it(shapes, tmp_path):
    """Where processes are spawned, as on macOS and Windows, the dataset travels by pickle."""
    images, path = write_coco(tmp_path, coco())
    for dataset in (shapes, CocoDataset(images, path, transforms=train_transforms((64, 64), **AUGMENT), cache=True)):
        loader = make_loader(dataset, 2, shuffle=False)
        kept = batches(loader, 0)
        copy = make_loader(pickle.loads(pickle.dumps(loader.dataset)).dataset, 2, shuffle=False)
        assert same(kept, batches(copy, 0))


def test_arguments_out_of_range(shapes):
    loader = make_loader(shapes, 4, shuffle=True)
    for arguments in ((-1, 0), (0, 4), (0, -1)):
        with pytest.raises(ValueError, match="start_batch"):
            loader.set_epoch(*arguments)
    with pytest.raises(ValueError, match="rank must be"):
        make_loader(shapes, 4, shuffle=True, rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        make_loader(shapes, 0, shuffle=True)


def test_cached_items_are_fast():
    """A cached 320x240 item with flip: well under 1 ms on a free core; 5 ms leave room for a busy one."""
    dataset = ShapesDataset(32, size=320, transforms=train_transforms((240, 320)))
    loader = make_loader(dataset, 4, shuffle=True)
    times = []
    for epoch in range(6):
        start = time.perf_counter()
        batches(loader, epoch)
        times.append((time.perf_counter() - start) / 32)
    assert min(times) < 0.005
