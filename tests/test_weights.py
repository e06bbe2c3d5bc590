"""The same weights give the same results as torchvision's retinanet_resnet50_fpn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn as torchvision_retinanet

from focal_tutorial.errors import InputError
from focal_tutorial.heads import prior_bias
from focal_tutorial.retinanet import build_model, retinanet_resnet18_fpn, retinanet_resnet50_fpn, retinanet_tiny
from focal_tutorial.weights import to_torchvision

K = 21
SIZES = [[(160, 224)], [(133, 97), (101, 150)], [(120, 120), (64, 200), (150, 90)]]
RESIZE = {"min_size": 160, "max_size": 266}


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """torchvision's model with random weights that see something: detections at many scores, no saturation."""
    torch.manual_seed(0)
    model = torchvision_retinanet(weights=None, weights_backbone=None, num_classes=K, **RESIZE)
    with torch.no_grad():
        for module in model.backbone.body.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.6)
        for level in model.backbone.fpn.layer_blocks:
            level[0].weight *= 0.3
        model.head.classification_head.cls_logits.weight.normal_(0, 0.03)
        model.head.classification_head.cls_logits.bias.normal_(-3, 0.5)
        model.head.regression_head.bbox_reg.weight.normal_(0, 0.01)
    return model


@pytest.fixture(scope="module")
def ours(theirs: torch.nn.Module) -> torch.nn.Module:
    return retinanet_resnet50_fpn(weights=theirs.state_dict(), **RESIZE)


@pytest.fixture(params=SIZES, ids=str)
def images(request: pytest.FixtureRequest) -> Iterator[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    yield [torch.rand(3, *size, generator=generator) for size in request.param]


@torch.inference_mode()
def test_logits_and_deltas(theirs: torch.nn.Module, ours: torch.nn.Module, images: list[torch.Tensor]) -> None:
    theirs.eval(), ours.eval()
    batch = theirs.transform(images)[0].tensors
    prepared = ours.preprocess(images).images
    torch.testing.assert_close(prepared, batch)
    wanted = theirs.head(list(theirs.backbone(batch).values()))
    logits, deltas = ours.network(prepared)
    torch.testing.assert_close(logits, wanted["cls_logits"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deltas, wanted["bbox_regression"], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_detections(theirs: torch.nn.Module, ours: torch.nn.Module, images: list[torch.Tensor]) -> None:
    for a, b in zip(theirs.eval()(images), ours.eval()(images), strict=True):
        assert len(a["scores"]) == 300 and a["scores"].max() < 0.999 and len(a["labels"].unique()) > 1
        torch.testing.assert_close(b["scores"], a["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(b["boxes"], a["boxes"], rtol=1e-5, atol=1e-3)
        assert torch.equal(a["labels"], b["labels"])


def test_both_losses_and_their_gradients(
    theirs: torch.nn.Module, ours: torch.nn.Module, images: list[torch.Tensor]
) -> None:
    targets = [
        {"boxes": torch.tensor([[10.0, 20.0, 60.0, 55.0], [30.0, 5.0, 80.0, 60.0]]), "labels": torch.tensor([1, 20])}
        for _ in images
    ]
    targets[-1] = {"boxes": torch.tensor([[5.0, 6.0, 14.0, 16.0]]), "labels": torch.tensor([4])}  # under any anchor
    state = {k: v.clone() for k, v in theirs.state_dict().items()}
    grads = []
    for model in (theirs, ours):
        model.train().zero_grad()
        losses = model(images, [{k: v.clone() for k, v in t.items()} for t in targets])
        sum(losses.values()).backward()
        grads.append((losses, model.backbone.fpn.inner_blocks[0][0].weight.grad))
    for name in ("classification", "bbox_regression"):
        torch.testing.assert_close(grads[1][0][name], grads[0][0][name], rtol=1e-5, atol=1e-6)
    # 2e-3: a ReLU that one float32 program opens and another does not; both are that far from float64's gradient
    torch.testing.assert_close(grads[1][1], grads[0][1], rtol=2e-3, atol=2e-3 * float(grads[0][1].abs().max()))
    theirs.load_state_dict(state)  # training mode moved the batch norm statistics
    ours.load_state_dict(retinanet_resnet50_fpn(weights=state, **RESIZE).state_dict())


def test_weights_go_back_to_torchvision(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    back = to_torchvision(ours.state_dict())
    assert list(back) and set(back) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(back[name], value), name


def test_a_file_selects_torchvisions_settings(theirs: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = retinanet_resnet50_fpn(weights=tmp_path / "weights.pth")
    assert model.num_classes == K and model.options.p6_from == "P5" and model.options.detections_per_image == 300
    again = build_model(model.config)
    assert again.options == model.options


def test_files_from_before_torchvision_0_14(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    old = {}
    for name, value in theirs.state_dict().items():
        parts = name.split(".")
        if "inner_blocks" in parts or "layer_blocks" in parts:
            parts.pop(-2)
        if parts[0] == "head" and parts[2] == "conv":
            parts = [*parts[:3], str(2 * int(parts[3])), parts[5]]
        old[".".join(parts)] = value
    assert set(old) != set(theirs.state_dict())
    model = retinanet_resnet50_fpn(weights=old)
    for name, value in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_another_number_of_classes_keeps_all_but_the_last_class_layer(
    theirs: torch.nn.Module, ours: torch.nn.Module
) -> None:
    model = retinanet_resnet50_fpn(3, weights=theirs.state_dict())
    fresh = ("head.classification.predict.weight", "head.classification.predict.bias")
    for name, value in ours.state_dict().items():
        assert name in fresh or torch.equal(model.state_dict()[name], value), name
    bias = model.head.classification.predict.bias
    assert bias.shape == (27,) and torch.allclose(bias, torch.tensor(prior_bias(0.01)))
    assert model.head.classification.predict.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_frozen_batch_norm_of_pretrained_weights(theirs: torch.nn.Module) -> None:
    frozen = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    model = retinanet_resnet50_fpn(weights=frozen)
    assert model.config["norm"] == "frozen"
    assert not any("bn" in name for name, _ in model.backbone.body.named_parameters())


def test_coco_v1_takes_torchvisions_epsilon(theirs: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focal_tutorial.weights.torchvision_retinanet", lambda **kwargs: theirs)
    model = retinanet_resnet50_fpn(weights="COCO_V1", norm="frozen")
    assert model.backbone.body.bn1.eps == 0.0
    assert build_model(model.config).backbone.body.bn1.eps == 0.0


def test_coco_v1_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(InputError, match=r"COCO_V1.*could not be loaded.*Without a network"):
        retinanet_resnet50_fpn(weights="COCO_V1")


def test_bad_weights_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        retinanet_resnet50_fpn(weights=tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(InputError, match="refused as weights") as error:
        retinanet_resnet50_fpn(weights=tmp_path / "text.pth")
    assert "weights_only" not in str(error.value)  # no advice to run code from the file
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="no state dict"):
        retinanet_resnet50_fpn(weights=tmp_path / "list.pth")
    with pytest.raises(InputError, match="not a RetinaNet's"):
        retinanet_resnet50_fpn(weights={"fc.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="resnet50 only"):
        retinanet_resnet18_fpn(2, weights="COCO_V1")
    with pytest.raises(InputError, match="do not fit this model"):
        retinanet_tiny(2, weights=retinanet_tiny(2, channels=32).state_dict())


def test_a_checkpoint_to_resume_gives_its_averaged_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    raw, averaged = retinanet_tiny(2).state_dict(), retinanet_tiny(2).state_dict()
    torch.save({"model": raw, "ema": averaged}, tmp_path / "last.pt")
    torch.save({"model": raw, "ema": None}, tmp_path / "plain.pt")
    for file, wanted in (("last.pt", averaged), ("plain.pt", raw)):
        loaded = retinanet_tiny(2, weights=tmp_path / file).state_dict()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


def test_own_weights_load_into_the_same_and_another_number_of_classes() -> None:
    torch.manual_seed(0)
    model = retinanet_tiny(2)
    same = retinanet_tiny(2, weights=model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), model.state_dict().values(), strict=True))
    other = retinanet_tiny(5, weights=model.state_dict())
    assert torch.equal(other.head.regression.predict.weight, model.head.regression.predict.weight)
