import json
from typing import Any

import pytest
import torch

import focal_tutorial
from focal_tutorial.retinanet import BUILDERS, Options, build_model, retinanet_resnet18_fpn, retinanet_tiny

TARGET = {"boxes": torch.tensor([[10.0, 20.0, 60.0, 80.0]]), "labels": torch.tensor([1])}


@pytest.fixture(scope="module")
def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return retinanet_tiny(3)


def test_public_names() -> None:
    for name in focal_tutorial.__all__:
        assert callable(getattr(focal_tutorial, name))
    with pytest.raises(AttributeError):
        _ = focal_tutorial.nothing


def test_losses_in_training_detections_in_eval(tiny: torch.nn.Module) -> None:
    images = [torch.rand(3, 96, 128), torch.rand(3, 100, 90)]
    losses = tiny.train()(images, [TARGET, TARGET])
    assert set(losses) == {"classification", "bbox_regression"}
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tiny.parameters())
    detections = tiny.eval()(images)
    assert len(detections) == 2 and set(detections[0]) == {"boxes", "scores", "labels"}


def test_detections_come_back_in_the_pixels_of_each_image() -> None:
    torch.manual_seed(0)
    model = retinanet_tiny(2, canvas=(64, 96), score_threshold=0.0).eval()
    images = [torch.rand(3, 128, 192), torch.rand(3, 640, 320), torch.rand(3, 32, 48)]
    with torch.inference_mode():
        detections = model(images)
    for image, found in zip(images, detections, strict=True):
        limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
        assert len(found["boxes"]) == 100 and (found["boxes"] >= 0).all() and (found["boxes"] <= limit + 1e-3).all()
        assert found["boxes"][:, 2].max() > 0.8 * image.shape[2] and found["boxes"][:, 3].max() > 0.8 * image.shape[1]
        assert found["labels"].min() >= 0 and found["labels"].max() < 2


def test_a_network_learns_one_image_by_heart() -> None:
    torch.manual_seed(0)
    model = retinanet_tiny(3, levels=(3, 4, 5)).train()
    image = torch.rand(1, 3, 96, 128) * 0.2
    image[:, 0, 20:60, 30:90] += 0.7
    target = {"boxes": torch.tensor([[30.0, 20.0, 90.0, 60.0]]), "labels": torch.tensor([2])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(image, [target]).values()).backward()
        optimizer.step()
    found = model.eval()(image)[0]
    assert found["scores"][0] > 0.5 and found["labels"][0] == 2
    assert (found["boxes"][0] - target["boxes"][0]).abs().max() < 6


def test_training_needs_targets_and_checks_them(tiny: torch.nn.Module) -> None:
    tiny.train()
    with pytest.raises(ValueError, match="training mode"):
        tiny([torch.rand(3, 64, 64)])
    with pytest.raises(ValueError, match=r"labels in 0…2 wanted, got 7…7"):
        tiny([torch.rand(3, 64, 64)], [{**TARGET, "labels": torch.tensor([7])}])


def test_a_box_outside_the_image_does_not_make_every_anchor_foreground() -> None:
    torch.manual_seed(0)
    model = retinanet_tiny(3, low_quality_iou=0.0).train()
    outside = {"boxes": torch.tensor([[900.0, 900.0, 950.0, 950.0]]), "labels": torch.tensor([0])}
    losses = model([torch.rand(3, 96, 96)], [outside])
    assert losses["bbox_regression"] == 0 and losses["classification"].isfinite()


@pytest.mark.parametrize("levels", [(2, 3, 4), (3, 4, 5), (3, 4, 5, 6), (3, 4, 5, 6, 7), (4, 5)])
def test_tiny_takes_its_levels_as_a_parameter(levels: tuple[int, ...]) -> None:
    model = retinanet_tiny(2, levels=levels).eval()
    batch = torch.zeros(1, 3, 128, 160)
    logits, deltas = model.network(batch)
    assert logits.shape[:2] == deltas.shape[:2] == (1, sum(len(a) for a in model.anchors((128, 160))))
    assert [tuple(x.shape[-2:]) for x in model.backbone(batch)] == model.anchors.grid_sizes((128, 160))


def test_impossible_levels_are_refused() -> None:
    for levels in [(3, 5), (1, 2), (7, 8)]:
        with pytest.raises(ValueError, match="levels"):
            retinanet_tiny(2, levels=levels)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="focus"):
        retinanet_tiny(2, focus=3)
    with pytest.raises(ValueError, match="unknown model options"):
        build_model({"builder": "retinanet_tiny", "num_classes": 2, "focus": 3})
    with pytest.raises(ValueError, match="retinanet_tiny: weights_backbone"):
        build_model({"builder": "retinanet_tiny", "num_classes": 2, "weights_backbone": "IMAGENET1K_V1"})
    with pytest.raises(ValueError, match="builder: one of"):
        build_model({"builder": "yolo"})
    with pytest.raises(ValueError, match="num_classes"):
        retinanet_tiny(0)


def test_a_model_is_rebuilt_from_its_configuration_through_json() -> None:
    torch.manual_seed(1)
    model = retinanet_tiny(2, levels=(2, 3, 4), canvas=(64, 64), gamma=0.5, sizes=(12, 24, 48)).eval()
    again = build_model(json.loads(json.dumps(model.config))).eval()
    assert again.options == model.options and again.config == model.config
    again.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(again.network(x)[0], model.network(x)[0])


@pytest.mark.parametrize(
    "options",
    [{"levels": (3, 4, 5, 6, 7)}, {"min_size": 800}, {"channels": 256, "head_depth": 4}, {"head_norm": None}],
)
def test_a_tiny_model_with_the_papers_settings_is_rebuilt_with_them(options: dict[str, Any]) -> None:
    model = retinanet_tiny(2, **options)  # its own defaults are others
    again = build_model(json.loads(json.dumps(model.config)))
    assert again.options == model.options
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("levels", [(3, 4), (4, 5, 6), (2, 3, 4, 5), (3, 4, 5, 7)])
def test_levels_that_a_resnet_has_not_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels: consecutive ones from 3"):
        retinanet_resnet18_fpn(2, levels=levels)


def test_lists_are_as_good_as_tuples() -> None:
    assert (
        retinanet_tiny(2, levels=[2, 3], sizes=[12, 24]).options
        == retinanet_tiny(2, levels=(2, 3), sizes=(12, 24)).options
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("levels", ()), ("levels", "345"), ("levels", 3), ("sizes", (16, 0, 64)), ("ratios", ()), ("canvas", 64),
        ("canvas", (64, 64, 3)), ("mean", (0.5,)), ("std", (1, 0, 1)), ("channels", 0), ("head_depth", -1),
        ("min_size", 0), ("detections_per_image", 0), ("topk_per_level", -1), ("score_threshold", 1.0),
        ("score_threshold", 2), ("nms_iou", 1.5), ("foreground_iou", 2), ("background_iou", 0.6), ("gamma", "two"),
        ("gamma", -1), ("gamma", float("nan")), ("beta", -1), ("alpha", 3), ("prior", 2), ("prior", None),
        ("trainable", 9), ("trainable", -1),
    ],
)  # fmt: skip
def test_values_that_no_model_can_have_are_refused_by_name(name: str, value: object) -> None:
    build = retinanet_resnet18_fpn if name == "trainable" else retinanet_tiny
    with pytest.raises(ValueError, match=f"^{name}: "):
        build(2, **{name: value})


def test_defaults_are_the_papers() -> None:
    o = Options()
    assert (o.levels, o.channels, o.p6_from, o.head_depth, o.prior) == ((3, 4, 5, 6, 7), 256, "C5", 4, 0.01)
    assert (o.foreground_iou, o.background_iou, o.low_quality_iou) == (0.5, 0.4, None)
    assert (o.alpha, o.gamma, o.box_loss, o.beta, o.normalizer) == (0.25, 2.0, "smooth_l1", 1 / 9, "foreground")
    assert (o.score_threshold, o.topk_per_level, o.nms_iou) == (0.05, 1000, 0.5)


@pytest.mark.parametrize(("p6_from", "classes", "count"), [("P5", 91, 34_014_999), ("C5", 80, 37_915_572)])
def test_parameter_counts_of_resnet50(p6_from: str, classes: int, count: int) -> None:
    model = BUILDERS["retinanet_resnet50_fpn"](classes, norm="frozen", p6_from=p6_from)
    assert sum(p.numel() for p in model.parameters()) == count


def test_initial_loss_at_the_papers_size() -> None:
    """800×1344, K = 80, the prior: the figures of the paper's recipe, on a head of constant logits."""
    from focal_tutorial import sigmoid_focal_loss

    logits = torch.full((201_600, 80), -4.59511985)
    labels = torch.full((201_600,), -1)
    labels[:30] = 3
    focal = sigmoid_focal_loss(logits, labels, reduction="sum") / 30
    cross_entropy = sigmoid_focal_loss(logits, labels, alpha=None, gamma=0.0, reduction="sum") / 30
    at_half = sigmoid_focal_loss(torch.zeros_like(logits), labels, alpha=None, gamma=0.0, reduction="sum") / 30
    assert focal.item() == pytest.approx(1.534, abs=5e-4)
    assert cross_entropy.item() == pytest.approx(5403.0 + 4.605, abs=0.1)  # background + foreground
    assert at_half.item() == pytest.approx(372_636, abs=1)
    terms = sigmoid_focal_loss(logits[:31, :4], labels[:31], reduction="none")
    assert terms[30, 0].item() == pytest.approx(7.5378e-7, rel=1e-4) and terms[0, 3].item() == pytest.approx(
        1.12838, rel=1e-4
    )


def test_resnet18_trains_a_step() -> None:
    model = retinanet_resnet18_fpn(2, channels=32, canvas=(64, 96)).train()
    losses = model(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), [TARGET, TARGET])
    sum(losses.values()).backward()
    assert model.backbone.body.conv1.weight.grad.isfinite().all()


def test_deeper_stages() -> None:
    torch.manual_seed(0)
    plain = retinanet_tiny(3)
    torch.manual_seed(0)
    one = retinanet_tiny(3, blocks=1)
    assert one.config == plain.config and "blocks" not in plain.config
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), one.state_dict().values(), strict=True))

    deep = retinanet_tiny(3, blocks=3)
    again = build_model(deep.config)
    again.load_state_dict(deep.state_dict())
    convolutions = [
        sum(isinstance(m, torch.nn.Conv2d) for m in model.backbone.body.modules()) for model in (plain, deep)
    ]
    assert convolutions[1] - convolutions[0] == 2 * 2 * 4  # two more blocks of two in each of four stages
    with pytest.raises(ValueError, match="blocks: at least 1"):
        retinanet_tiny(3, blocks=0)


def test_the_network_is_one_graph_for_torch_compile() -> None:
    torch.manual_seed(0)
    model = retinanet_resnet18_fpn(3, canvas=(64, 64), norm="frozen").train()
    images, target = torch.rand(2, 3, 64, 64), {"boxes": torch.tensor([[4.0, 4, 40, 44]]), "labels": torch.tensor([1])}
    wanted = model(images, [target, target])
    model.scores = torch.compile(model.scores, backend="aot_eager", fullgraph=True)  # type: ignore[method-assign]
    found = model(images, [target, target])
    for name, loss in wanted.items():
        torch.testing.assert_close(found[name], loss)
    sum(found.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    compiled = retinanet_resnet18_fpn(3, norm="frozen"), retinanet_tiny(3)
    for one, name in zip(compiled, ("scores", "network"), strict=True):
        one.compile_network()
        assert name in vars(one)
