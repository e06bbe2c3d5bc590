"""Synthetic shapes: deterministic, boxed exactly, and the same in memory as on disk."""

from __future__ import annotations

import hashlib
import itertools
import os
import time

import numpy as np
import pytest
import torch
from data_helpers import picture
from pycocotools.coco import COCO

from focal_tutorial.data import CocoDataset, ShapesDataset, make_shapes
from focal_tutorial.data.shapes_draw import CLASSES, DISTRACTORS, Item, ShapesConfig, _distance
from focal_tutorial.errors import InputError

PLAIN = {"clutter": 0.0, "distractors": (0, 0), "contrast": (60, 60)}


def test_item_contract():
    dataset = ShapesDataset(3)
    image, target = dataset[0]
    assert image.shape == (3, 192, 192) and image.dtype == torch.uint8 and dataset.size(0) == (192, 192)
    assert target["boxes"].dtype == torch.float32 and target["boxes"].shape[1] == 4
    assert target["labels"].dtype == torch.int64 and target["image_id"] == 1
    assert dataset.class_names == list(CLASSES) and dataset.category_ids == [1, 2, 3] and dataset.problems == []


def test_same_seed_same_images_in_any_order():
    one, two = ShapesDataset(5, seed=4), ShapesDataset(9, seed=4, cache=False)
    for index in (3, 0, 4):
        assert torch.equal(one[index][0], two[index][0])
        assert torch.equal(one[index][1]["boxes"], two[index][1]["boxes"])
    others = [ShapesDataset(5, seed=5), ShapesDataset(5, seed=4, split="val"), ShapesDataset(5, seed=4, size=160)]
    assert all(not torch.equal(one[0][0][:, :160, :160], other[0][0][:, :160, :160]) for other in others)
    assert not torch.equal(one[0][0], one[1][0])


BOXES, LABELS, FIRST, MEANS = 38, [12, 11, 15], [143.8, 161.3, 158.2, 175.7], [110.91, 149.76, 149.69]


def test_default_scenes_never_change():
    """Numbers in the book rest on these scenes; a change of the generator must be a decision."""
    dataset = ShapesDataset(20)
    boxes = np.concatenate([dataset.target(i)["boxes"].numpy() for i in range(20)]).round(1)
    labels = np.concatenate([dataset.target(i)["labels"].numpy() for i in range(20)])
    assert (len(boxes), np.bincount(labels).tolist()) == (BOXES, LABELS)
    assert boxes[0].tolist() == pytest.approx(FIRST, abs=0.05)
    means = [dataset[i][0].float().mean().item() for i in range(3)]
    assert means == pytest.approx(MEANS, abs=0.05)


def test_boxes_are_tight():
    """Without clutter, the pixels that differ from the ground are the shape: its extent is the box."""
    dataset = ShapesDataset(40, objects=(1, 1), **PLAIN)
    for index in range(40):
        image, target = dataset[index]
        ground = image[:, 0, 0].int()  # no shape reaches the corner: it lies inside its circle, in the image
        ys, xs = torch.where((image.int() - ground[:, None, None]).abs().sum(0) > 20)
        seen = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (target["boxes"][0] - seen).abs().max() < 1.6, index


def test_shapes_fill_what_their_names_say():
    """Areas by geometry, as shares of the circumscribed circle's square; distractors differ from their models."""
    r, grid = 100.0, np.arange(-110, 111, dtype=np.float64)
    u, v = np.meshgrid(grid, grid)
    area = {kind: (_distance(kind, u, v, r) < 0).sum() / r**2 for kind in CLASSES + DISTRACTORS}
    assert area["circle"] == pytest.approx(np.pi, rel=0.01) and area["square"] == pytest.approx(2, rel=0.02)
    assert area["triangle"] == pytest.approx(3 * 3**0.5 / 4, rel=0.02)
    assert area["ring"] == pytest.approx(np.pi * (1 - 0.36), rel=0.02)
    assert area["frame"] < 0.7 * area["square"] and area["chevron"] < 0.7 * area["triangle"]
    assert all(np.hypot(u, v)[_distance(kind, u, v, r) < 0].max() <= r + 1 for kind in area)


def test_ranges_are_kept_and_filled():
    dataset = ShapesDataset(200, objects=(2, 4), radius=(5, 9), distractors=(1, 3), contrast=(30, 40))
    scenes = [dataset.scene(i) for i in range(200)]
    items = [item for scene in scenes for item in scene.items]
    objects = [sum(item.label is not None for item in scene.items) for scene in scenes]
    assert set(objects) == {2, 3, 4} and {len(s.items) - n for s, n in zip(scenes, objects, strict=True)} == {1, 2, 3}
    assert 5 <= min(i.radius for i in items) < 5.2 and 8.8 < max(i.radius for i in items) <= 9
    assert {i.kind for i in items if i.label is None} == set(DISTRACTORS)
    assert {i.kind for i in items if i.label is not None} == set(CLASSES)
    strengths = [abs(np.mean(i.colour)) for i in items]
    assert min(strengths) >= 30 - 1e-9 and max(strengths) <= 40 + 1e-9
    for scene in scenes:
        for a, b in itertools.combinations(scene.items, 2):
            assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (a.radius + b.radius) ** 2
        assert all(i.radius < i.x < 192 - i.radius and i.radius < i.y < 192 - i.radius for i in scene.items)


def test_empty_images_have_distractors_only():
    dataset = ShapesDataset(300, empty=0.5)
    empty = [i for i in range(300) if len(dataset.target(i)["labels"]) == 0]
    assert 110 < len(empty) < 190
    assert all(len(dataset.scene(i).items) >= 3 for i in empty)
    assert dataset[empty[0]][1]["boxes"].shape == (0, 4)
    assert sum(len(ShapesDataset(20, empty=1.0).target(i)["labels"]) for i in range(20)) == 0


def test_low_contrast_stays_inside_the_grey_range():
    image = torch.cat([ShapesDataset(30)[i][0].flatten() for i in range(30)])
    assert ((image == 0) | (image == 255)).float().mean() < 0.002 and image.float().std() > 15


def test_classes_can_be_chosen():
    dataset = ShapesDataset(30, classes=("triangle", "circle"))
    assert dataset.class_names == ["triangle", "circle"]
    kinds = {(item.kind, item.label) for i in range(30) for item in dataset.scene(i).items if item.label is not None}
    assert kinds == {("triangle", 0), ("circle", 1)}


def test_coco_dict_is_read_by_pycocotools_and_holds_every_box():
    dataset = ShapesDataset(12)
    ground = COCO()
    ground.dataset = dataset.coco_dict()
    ground.createIndex()
    for index, image_id in enumerate(dataset.image_ids):
        records = ground.loadAnns(ground.getAnnIds([image_id]))
        boxes = torch.tensor([r["bbox"] for r in records])
        boxes[:, 2:] += boxes[:, :2]
        assert torch.allclose(boxes, dataset.target(index)["boxes"].as_subclass(torch.Tensor), atol=2e-3)
        assert [dataset.category_ids.index(r["category_id"]) for r in records] == dataset.target(index)[
            "labels"
        ].tolist()
    assert len(ground.anns) == len({*ground.anns}) == sum(len(dataset.target(i)["labels"]) for i in range(12))


def test_files_hold_what_memory_holds(tmp_path):
    paths = make_shapes(tmp_path, num_train=4, num_val=3, size=96, seed=2)
    for split, count in (("train", 4), ("val", 3)):
        memory = ShapesDataset(count, split=split, size=96, seed=2)
        disk = CocoDataset(paths[f"{split}_images"], paths[split])
        assert disk.problems == [] and disk.image_ids == memory.image_ids and disk.class_names == memory.class_names
        for index in range(count):
            assert torch.equal(disk[index][0], memory[index][0])
            assert torch.allclose(disk[index][1]["boxes"], memory[index][1]["boxes"], atol=2e-3)
            assert torch.equal(disk[index][1]["labels"], memory[index][1]["labels"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shapes"]


def test_made_once_and_made_again_when_asked_for_others(tmp_path):
    paths = make_shapes(tmp_path, num_train=2, num_val=1, size=96)
    picture(tmp_path / "shapes" / "train" / "mark.png")
    make_shapes(tmp_path, num_train=2, num_val=1, size=96)
    assert (tmp_path / "shapes" / "train" / "mark.png").exists()
    (paths["train_images"] / "000002.png").unlink()
    make_shapes(tmp_path, num_train=2, num_val=1, size=96)
    assert len(CocoDataset(paths["train_images"], paths["train"])) == 2
    make_shapes(tmp_path, num_train=3, num_val=1, size=96)
    assert len(CocoDataset(paths["train_images"], paths["train"])) == 3


def test_a_folder_of_someone_else_is_never_replaced(tmp_path):
    picture(tmp_path / "shapes" / "holiday.png")
    with pytest.raises(InputError, match="was not made by this program: move it away"):
        make_shapes(tmp_path, num_train=1, num_val=1, size=96)
    assert (tmp_path / "shapes" / "holiday.png").exists()


def test_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file/shapes: .*; give another place with --root"):
        make_shapes(tmp_path / "file", num_train=1, num_val=1, size=96)


def test_failure_leaves_the_old_files_and_no_litter(tmp_path, monkeypatch):
    make_shapes(tmp_path, num_train=2, num_val=1, size=96)
    before = digest(tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("focal_tutorial.data.shapes.draw_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path, num_train=3, num_val=1, size=96)
    assert digest(tmp_path) == before


def digest(folder):
    return {
        os.path.join(where, name): hashlib.sha256(open(os.path.join(where, name), "rb").read()).hexdigest()
        for where, _, names in os.walk(folder)
        for name in names
    }


def test_data_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FOCAL_TUTORIAL_DATA", str(tmp_path / "here"))
    assert make_shapes(num_train=1, num_val=1, size=96)["train"] == tmp_path / "here" / "shapes" / "train.json"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objects": (3, 1)}, "objects must be"),
        ({"objects": 3}, "objects must be"),
        ({"radius": (1, 5)}, "radius must be"),
        ({"size": 40}, "radius must be"),
        ({"empty": 1.2}, "empty"),
        ({"clutter": -1}, "clutter"),
        ({"contrast": (5,)}, "contrast must be"),
        ({"classes": ("circle", "star")}, "classes must be"),
        ({"classes": ()}, "classes must be"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        ShapesDataset(3, **options)


def test_other_arguments_out_of_range():
    with pytest.raises(ValueError, match="num_images"):
        ShapesDataset(0)
    with pytest.raises(ValueError, match="split must be one of train, val, test"):
        ShapesDataset(3, split="training")
    with pytest.raises(TypeError, match="colour"):
        ShapesDataset(3, colour=3)


def test_lists_from_json_make_the_same_config():
    assert ShapesConfig(objects=[1, 2], classes=["circle"]) == ShapesConfig(objects=(1, 2), classes=("circle",))
    assert ShapesDataset(2, objects=[1, 2]).config.objects == (1, 2)


def test_box_of_a_turned_square():
    item = Item("square", 1, 50.0, 40.0, 10.0, 0.0, (1.0, 1.0, 1.0))
    assert item.box() == pytest.approx((40, 30, 60, 50))
    turned = Item("square", 1, 50.0, 40.0, 10.0, np.pi / 4, (1.0, 1.0, 1.0))
    assert turned.box() == pytest.approx((50 - 50**0.5, 40 - 50**0.5, 50 + 50**0.5, 40 + 50**0.5))


def test_generation_is_fast():
    """About 1 ms an image on a free core; 10 ms leave room for a busy one."""
    dataset = ShapesDataset(60, cache=False)
    dataset.load_image(0)
    times = []
    for index in range(60):
        start = time.perf_counter()
        dataset.load_image(index)
        times.append(time.perf_counter() - start)
    assert sorted(times)[30] < 0.010


def test_nothing_is_drawn_out_at_one():
    """Every image and box as without the option, to the byte: the random stream is the same."""
    plain, one = ShapesDataset(6), ShapesDataset(6, stretch=(1, 1))
    for index in range(6):
        assert torch.equal(plain[index][0], one[index][0])
        assert torch.equal(plain.target(index)["boxes"], one.target(index)["boxes"])


def test_boxes_of_drawn_out_shapes_are_tight():
    dataset = ShapesDataset(60, objects=(1, 1), stretch=(1.5, 4.0), radius=(8, 14), **PLAIN)
    for index in range(60):
        image, target = dataset[index]
        ground = image[:, 0, 0].int()
        ys, xs = torch.where((image.int() - ground[:, None, None]).abs().sum(0) > 20)
        seen = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (target["boxes"][0] - seen).abs().max() < 2, index  # a corner is sharper than a pixel


@pytest.mark.parametrize("kind", CLASSES)
def test_box_of_a_drawn_out_shape(kind):
    """Against the extent of the shape's pixels on a fine grid: eight to the pixel."""
    item = Item(kind, 1, 0.0, 0.0, 10.0, 0.7, (1.0, 1.0, 1.0), stretch=2.25)
    grid = np.arange(-20, 20, 0.125)
    dx, dy = np.meshgrid(grid, grid)
    u, v = dx * np.cos(0.7) + dy * np.sin(0.7), dy * np.cos(0.7) - dx * np.sin(0.7)
    ys, xs = np.nonzero(_distance(kind, u / 1.5, v * 1.5, 10.0) < 0)
    assert item.box() == pytest.approx((grid[xs.min()], grid[ys.min()], grid[xs.max()], grid[ys.max()]), abs=0.3)
    assert item.reach == pytest.approx(15)
    area = len(xs) * 0.125**2  # as that of the shape before
    assert area == pytest.approx(100 * {"circle": np.pi, "square": 2, "triangle": 1.299}[kind], rel=0.02)


def test_drawn_out_shapes_stay_inside_and_apart():
    dataset = ShapesDataset(100, stretch=(1, 3))
    scenes = [dataset.scene(i) for i in range(100)]
    stretches = [item.stretch for scene in scenes for item in scene.items]
    assert 1 <= min(stretches) < 1.05 and 2.95 < max(stretches) <= 3
    for scene in scenes:
        assert all(i.reach < i.x < 192 - i.reach and i.reach < i.y < 192 - i.reach for i in scene.items)
        for a, b in itertools.combinations(scene.items, 2):
            assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (a.reach + b.reach) ** 2
    boxes = np.concatenate([dataset.target(i)["boxes"].numpy() for i in range(100)])
    ratios = np.divide(*(boxes[:, 2:] - boxes[:, :2]).T)
    assert ratios.min() < 0.5 and ratios.max() > 2
    with pytest.raises(ValueError, match="stretch must be at least 1"):
        ShapesDataset(1, stretch=(0.5, 1))
    with pytest.raises(ValueError, match="drawn out by stretch"):
        ShapesDataset(1, size=60, stretch=(1, 9))
