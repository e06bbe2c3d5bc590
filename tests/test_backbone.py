import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from focal_tutorial.backbone import FeaturePyramid, FoldedConv2d, FrozenNorm, TinyBody, norm_layer, resnet_body
from focal_tutorial.errors import InputError


def test_stages_have_strides_8_16_32() -> None:
    features = resnet_body("resnet18").eval()(torch.zeros(1, 3, 96, 160))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "C3": (1, 128, 12, 20), "C4": (1, 256, 6, 10), "C5": (1, 512, 3, 5)
    }  # fmt: skip


@pytest.mark.parametrize("p6_from", ["C5", "P5"])
def test_pyramid_shapes_on_odd_sizes(p6_from: str) -> None:
    features = [torch.randn(2, c, *s) for c, s in [(8, (13, 21)), (16, (7, 11)), (32, (4, 6))]]
    levels = FeaturePyramid((8, 16, 32), 24, 2, p6_from)(features)
    assert [tuple(x.shape) for x in levels] == [(2, 24, *s) for s in [(13, 21), (7, 11), (4, 6), (2, 3), (1, 2)]]


def test_p6_comes_from_where_it_is_said() -> None:
    features = [torch.randn(1, c, s, s) for c, s in [(8, 16), (16, 8), (32, 4)]]
    for source, channels in [("C5", 32), ("P5", 24)]:
        pyramid = FeaturePyramid((8, 16, 32), 24, 2, source)
        levels = pyramid(features)
        assert pyramid.extra_blocks["p6"].in_channels == channels
        torch.testing.assert_close(levels[3], pyramid.extra_blocks["p6"](features[-1] if source == "C5" else levels[2]))
        torch.testing.assert_close(levels[4], pyramid.extra_blocks["p7"](levels[3].relu()))


def test_pyramid_equals_torchvisions() -> None:
    theirs = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    ).eval()
    ours = FeaturePyramid((128, 256, 512), 256, 2, "P5")
    ours.load_state_dict(theirs.fpn.state_dict())
    x = torch.randn(1, 3, 100, 132)
    for a, b in zip(ours(list(theirs.body(x).values())), theirs(x).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_tiny_body_returns_the_last_stages() -> None:
    features = TinyBody((8, 12, 16), returned=2)(torch.zeros(1, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in features.items()} == {"C3": (1, 12, 8, 12), "C4": (1, 16, 4, 6)}


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d), ("group", nn.GroupNorm)]
)
def test_norm_by_name(norm: str, kind: type) -> None:
    assert isinstance(norm_layer(norm)(32), kind)


def test_frozen_norm_is_torchvisions_and_stays_in_half_precision() -> None:
    torch.manual_seed(0)
    ours, theirs = FrozenNorm(16), FrozenBatchNorm2d(16)
    state = {"weight": torch.randn(16), "bias": torch.randn(16), "running_mean": torch.randn(16),
             "running_var": torch.rand(16) + 0.1}  # fmt: skip
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(ours(x), theirs(x))
    for dtype in (torch.bfloat16, torch.float16):
        half = ours(x.to(dtype))
        assert half.dtype == dtype and theirs(x.to(dtype)).dtype == torch.float32
        torch.testing.assert_close(half.float(), theirs(x), rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("trainable", "stages"),
    [(0, set()), (2, {"layer3", "layer4"}), (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"})],
)
def test_trainable_stages(trainable: int, stages: set[str]) -> None:
    body = resnet_body("resnet18", trainable=trainable)
    assert {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad} == stages


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="norm: one of"):
        norm_layer("layer")
    with pytest.raises(ValueError, match="p6_from"):
        FeaturePyramid((8,), 8, 1, "C6")


def test_backbone_weights_without_a_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(torch.hub, "_dir", None, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(InputError, match="Without a network"):
        resnet_body("resnet18", weights="IMAGENET1K_V1")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_folded_norm_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    body = resnet_body(name, norm="frozen")
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5), module.bias.normal_(0, 0.1)
    folded = [module for module in body.modules() if isinstance(module, nn.Conv2d)]
    assert all(isinstance(module, FoldedConv2d) for module in folded)
    plain = getattr(torchvision.models, name)(norm_layer=FrozenBatchNorm2d)
    plain = IntermediateLayerGetter(plain, {"layer2": "C3", "layer3": "C4", "layer4": "C5"})
    plain.load_state_dict(body.state_dict())  # every name is still there
    x = torch.randn(2, 3, 128, 160, dtype=torch.double)
    ours, theirs = body.double()(x), plain.double()(x)
    for level, wanted in theirs.items():
        torch.testing.assert_close(ours[level], wanted)
    ours["C5"].sum().backward(), theirs["C5"].sum().backward()
    gradients = dict(body.named_parameters())
    for key, parameter in plain.named_parameters():
        if not key.startswith("bn") and ".bn" not in key:
            torch.testing.assert_close(gradients[key].grad, parameter.grad)
