import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from focal_tutorial.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, check_targets

BOX = {"boxes": torch.tensor([[10.0, 20.0, 50.0, 60.0]]), "labels": torch.tensor([1])}


@pytest.mark.parametrize("sizes", [[(333, 421)], [(500, 375), (333, 421)], [(97, 401)], [(801, 640), (30, 1000)]])
def test_equal_to_torchvisions_transform(sizes: list[tuple[int, int]]) -> None:
    images = [torch.rand(3, *s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(sizes)]
    targets = [{k: v.clone() for k, v in BOX.items()} for _ in sizes]
    theirs, their_targets = GeneralizedRCNNTransform(320, 533, list(IMAGENET_MEAN), list(IMAGENET_STD))(images, targets)
    ours = Preprocess(min_size=320, max_size=533, size_divisible=32, antialias=False)(images, targets)
    torch.testing.assert_close(ours.images, theirs.tensors)
    assert ours.sizes == theirs.image_sizes and ours.original_sizes == sizes
    for a, b in zip(ours.targets, their_targets, strict=True):
        torch.testing.assert_close(a["boxes"], b["boxes"])


def test_canvas_fits_inside_and_pads_right_and_below() -> None:
    prepared = Preprocess(canvas=(120, 160))([torch.rand(3, 480, 640), torch.rand(3, 300, 200)], [BOX, BOX])
    assert prepared.images.shape == (2, 3, 120, 160)
    assert prepared.sizes == [(120, 160), (120, 80)]
    assert (prepared.images[1, :, :, 80:] == 0).all() and prepared.images[1, :, :, :80].abs().min() > 0
    torch.testing.assert_close(prepared.targets[0]["boxes"], BOX["boxes"] / 4)
    torch.testing.assert_close(prepared.targets[1]["boxes"], BOX["boxes"] * 0.4)


def test_image_ids_come_along_where_there_are_any() -> None:
    image = torch.rand(3, 64, 64)
    given = Preprocess(min_size=32)([image, image], [{**BOX, "image_id": 7}, BOX]).targets
    assert int(given[0]["image_id"]) == 7 and "image_id" not in given[1]


def test_a_batch_of_the_canvas_size_is_only_normalised() -> None:
    batch = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    preprocess = Preprocess(canvas=(64, 96))
    as_list = preprocess(list(batch))
    as_batch = preprocess(batch, [BOX, BOX])
    torch.testing.assert_close(as_batch.images, as_list.images)
    torch.testing.assert_close(as_batch.images, preprocess(batch.float() / 255).images)
    assert as_batch.targets[0]["boxes"].equal(BOX["boxes"])


def test_no_resize_pads_to_a_multiple() -> None:
    prepared = Preprocess(min_size=None, size_divisible=32)([torch.rand(3, 50, 70)])
    assert prepared.images.shape == (1, 3, 64, 96) and prepared.sizes == [(50, 70)]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "at least one image"),
        ([torch.rand(1, 9, 9)], ValueError, r"images\[0\]: shape \(3, H, W\) wanted, got \(1, 9, 9\)"),
        (
            [torch.rand(3, 9, 9), torch.zeros(3, 9, 9, dtype=torch.int64)],
            TypeError,
            r"images\[1\]: float in \[0, 1\] or uint8",
        ),
        ([torch.full((3, 9, 9), torch.nan)], ValueError, "NaN"),
        ([torch.rand(3, 9, 9) * 255], ValueError, "divide by 255"),
        (["image.png"], TypeError, "a tensor wanted, got str"),
        (torch.rand(3, 9, 9), ValueError, r"shape \(N, 3, H, W\) wanted"),
        ([torch.rand(3, 0, 9)], ValueError, "shape"),
    ],
)
def test_bad_images_are_named(images: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Preprocess()(images)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ({"boxes": torch.zeros(1, 4)}, TypeError, "'labels'"),
        ({"boxes": torch.zeros(2, 4), "labels": torch.tensor([0])}, ValueError, r"boxes \(M, 4\)"),
        ({"boxes": torch.zeros(1, 4), "labels": torch.tensor(0)}, ValueError, r"labels \(M,\)"),
        (torch.zeros(1, 4), TypeError, r"targets\[0\]: a dictionary"),
        ({"boxes": torch.tensor([[0, 0, 5, 5]]), "labels": torch.tensor([0])}, TypeError, "float boxes"),
        ({"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([0.0])}, TypeError, "integer labels"),
        (
            {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([3])},
            ValueError,
            "labels in 0…2 wanted, got 3…3",
        ),
        ({"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([-1])}, ValueError, "labels in 0…2"),
        ({"boxes": torch.tensor([[5.0, 5, 5, 9]]), "labels": torch.tensor([0])}, ValueError, "box 0 is .* x2 > x1"),
        ({"boxes": torch.tensor([[0.0, 0, torch.inf, 9]]), "labels": torch.tensor([0])}, ValueError, "finite"),
        ({"boxes": torch.tensor([[0.0, 0, torch.nan, 9]]), "labels": torch.tensor([0])}, ValueError, "finite"),
    ],
)
def test_bad_targets_are_named(target: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_targets([target], 1, num_classes=3)


def test_targets_are_needed_and_one_per_image() -> None:
    with pytest.raises(ValueError, match="training mode"):
        check_targets(None, 1, 3)
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        check_targets([BOX], 2, 3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("size_divisible", 0),
        ("min_size", -1),
        ("max_size", None),
        ("canvas", (0, 5)),
        ("canvas", 5),
        ("std", (0.0, 1.0, 1.0)),
        ("mean", (float("nan"), 0.0, 0.0)),
    ],
)
def test_a_setting_that_makes_no_image_is_named(setting, value):
    with pytest.raises(ValueError, match=f"{setting}: "):
        Preprocess(**{setting: value})


@pytest.mark.parametrize("images", [5, None, "ab", torch.tensor(0.5), {"a": 1}, [torch.zeros(3, 4, 4) * 1j]])
def test_what_is_no_list_of_images_is_named(images):
    with pytest.raises(TypeError, match="images"):
        Preprocess()(images)


@pytest.mark.parametrize("targets", [5, {"boxes": 1}, [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1) * 1j}]])
def test_what_is_no_list_of_targets_is_named(targets):
    with pytest.raises(TypeError, match="targets"):
        check_targets(targets, 1, 2)
