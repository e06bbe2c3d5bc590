"""The reader's self-checks: right answers pass in any style, and each wrong one fails for its own reason."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from focal_tutorial.checks import check_head
from focal_tutorial.heads import RetinaNetHead


class Plain(nn.Module):
    """The head as a reader may write it: lists of convolutions, and one place for each mistake."""

    filters = 256
    kernel = 3
    padding = 1
    depth = 4

    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.classes = self.subnet(c, a * k, -math.log(99))
        self.boxes = self.subnet(c, a * 4, 0.0)

    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        widths = [c, *[self.filters] * self.depth, out]
        convs = [nn.Conv2d(i, o, self.kernel, padding=self.padding) for i, o in pairwise(widths)]
        for conv in convs:
            self.start(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(convs[-1].bias, bias)
        return nn.ModuleList(convs)

    def start(self, weight: Tensor) -> None:
        nn.init.normal_(weight, std=0.01)

    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        for conv in convs[:-1]:
            x = F.relu(conv(x))
        return convs[-1](x)

    def rows(self, x: Tensor, width: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(len(x), -1, width)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        pairs = ((self.classes, self.k), (self.boxes, 4))
        logits, deltas = (torch.cat([self.rows(self.run(x, c), w) for x in levels], dim=1) for c, w in pairs)
        return logits, deltas


class Torchvision(nn.Module):
    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__()
        self.head = torchvision.models.detection.retinanet.RetinaNetHead(c, a, k)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        out = self.head(levels)
        return out["cls_logits"], out["bbox_regression"]


class LayerByLayer(Plain):
    """All levels through one convolution, then all through the next."""

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.side(levels, self.classes, self.k), self.side(levels, self.boxes, 4)

    def side(self, levels: list[Tensor], convs: nn.ModuleList, width: int) -> Tensor:
        for conv in convs[:-1]:
            levels = [F.relu(conv(x)) for x in levels]
        return torch.cat([self.rows(convs[-1](x), width) for x in levels], dim=1)


class ByName(nn.Module):
    """Convolutions under names, a clamp for the ReLU, and rows written into tensors that are made first."""

    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__()
        self.a, self.k = a, k
        for side, width in (("c", k), ("b", 4)):
            for i in range(5):
                conv = nn.Conv2d(256 if i else c, a * width if i == 4 else 256, (3, 3), padding="same")
                conv.weight.data.normal_(0, 0.01)
                conv.bias.data.fill_(math.log(0.01 / 0.99) if side == "c" and i == 4 else 0)  # type: ignore[union-attr]
                self.add_module(f"{side}{i}", conv)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        n, sizes = len(levels[0]), [self.a * x[0, 0].numel() for x in levels]
        outs = levels[0].new_empty(n, sum(sizes), self.k), levels[0].new_empty(n, sum(sizes), 4)
        for side, out in zip("bc", outs[::-1], strict=True):  # boxes first
            row = 0
            for y, size in zip(levels, sizes, strict=True):
                for i in range(5):
                    y = self.get_submodule(f"{side}{i}")(y if i == 0 else y.clamp(min=0))
                out[:, row : row + size] = y.permute(0, 2, 3, 1).reshape(n, size, -1)
                row += size
        return outs


@pytest.mark.parametrize(
    "build", [RetinaNetHead, Plain, LayerByLayer, ByName, Torchvision, lambda *sizes: RetinaNetHead(*sizes)]
)
def test_right_heads_pass(build: Callable[..., nn.Module]) -> None:
    assert check_head(build).startswith("right")


WRONG: dict[str, tuple[Callable[..., nn.Module], str]] = {}


def wrong(reason: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a head that must fail with a message that contains `reason`."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        WRONG[cls.__name__] = cls, reason
        return cls

    return register


@wrong("plain view")
class PlainView(Plain):
    def rows(self, x: Tensor, width: int) -> Tensor:
        return x.reshape(len(x), -1, width)


@wrong("all locations of one anchor")
class AnchorByAnchor(Plain):
    def rows(self, x: Tensor, width: int) -> Tensor:
        n, _, h, w = x.shape
        return x.view(n, -1, width, h * w).permute(0, 1, 3, 2).reshape(n, -1, width)


@wrong("column by column")
class ColumnByColumn(Plain):
    def rows(self, x: Tensor, width: int) -> Tensor:
        return x.permute(0, 3, 2, 1).reshape(len(x), -1, width)


@wrong("channel k·A + a")
class ClassMajor(Plain):
    def rows(self, x: Tensor, width: int) -> Tensor:
        n, _, h, w = x.shape
        return x.view(n, width, -1, h, w).permute(0, 3, 4, 2, 1).reshape(n, -1, width)


@wrong("last level comes first")
class CoarseFirst(Plain):
    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        return super().forward(levels[::-1])


@wrong("stand in the wrong order")
class UpsideDown(Plain):
    def rows(self, x: Tensor, width: int) -> Tensor:
        return super().rows(x.flip(2), width)


@wrong("prior: bias 0.0000, p = 0.5000")
class NoPrior(Plain):
    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        return super().subnet(c, out, 0.0)


@wrong("prior: bias 4.5951, p = 0.9900")
class WrongSign(Plain):
    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        return super().subnet(c, out, -bias)


@wrong("prior: bias -4.6052, p = 0.0099")
class LogOfPi(Plain):
    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        return super().subnet(c, out, bias and math.log(0.01))


@wrong("box subnet, convolution 5: bias -4.5951; 0 wanted")
class PriorForBoxes(Plain):
    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        return super().subnet(c, out, -math.log(99))


@wrong("class subnet, convolution 1, 2, 3, 4: bias -4.5951; 0 wanted")
class PriorEverywhere(Plain):
    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        convs = super().subnet(c, out, bias)
        for conv in convs:
            nn.init.constant_(conv.bias, bias)
        return convs


@wrong("convolution 1, 2, 3, 4, 5: weights with mean 0.0000 and standard deviation 0.0120")
class PyTorchsInit(Plain):
    def start(self, weight: Tensor) -> None:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


@wrong("a normal law wanted")
class UniformInit(Plain):
    def start(self, weight: Tensor) -> None:
        nn.init.uniform_(weight, -0.01 * math.sqrt(3), 0.01 * math.sqrt(3))


@wrong("standard deviation 0.1000")
class VarianceForStd(Plain):
    def start(self, weight: Tensor) -> None:
        nn.init.normal_(weight, std=0.1)
        weight.data *= 0.1 / weight.data.std()  # to the last digit that the message has


@wrong("sigmoid after the last convolution")
class Probabilities(Plain):
    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(levels)
        return logits.sigmoid(), deltas


@wrong("ReLU after the last convolution")
class LastRelu(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        return F.relu(super().run(x, convs))


@wrong("before convolution 2, 3, 4, 5;")
class NoRelu(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        for conv in convs:
            x = conv(x)
        return x


@wrong("before convolution 5;")
class OneReluLess(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        for conv in convs[:-2]:
            x = F.relu(conv(x))
        return convs[-1](convs[-2](x))


@wrong("before convolution 1;")
class ReluFirst(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        return super().run(F.relu(x), convs)


@wrong("changes the levels")
class ReluInPlace(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        return super().run(x.relu_(), convs)


@wrong("not those of the package's head")
class OtherActivation(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        for conv in convs[:-1]:
            x = F.silu(conv(x))
        return convs[-1](x)


@wrong("serve both subnets")
class OneTower(Plain):
    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__(c, a, k)
        for i in range(4):
            self.boxes[i] = self.classes[i]


@wrong("2 parameters serve both subnets")
class FirstOneShared(Plain):
    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__(c, a, k)
        self.boxes[0] = self.classes[0]


class PerLevel(Plain):
    """A class subnet, or a box subnet, of its own for each level."""

    which = "classes"

    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__(c, a, k)
        self.own = nn.ModuleList(self.copies(c, a, k) for _ in range(5))

    def copies(self, c: int, a: int, k: int) -> nn.ModuleList:
        return self.subnet(c, a * k, -math.log(99))

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = [self.rows(self.run(x, own), self.k) for x, own in zip(levels, self.own, strict=False)]
        return torch.cat(logits, dim=1), super().forward(levels)[1]


@wrong("levels: the class subnet has other weights")
class OwnTowers(PerLevel):
    pass


@wrong("levels: the class subnet has other weights")
class OwnTowersAlikeAtFirst(PerLevel):
    def copies(self, c: int, a: int, k: int) -> nn.ModuleList:
        return copy.deepcopy(self.classes)


@wrong("levels: the box subnet has other weights")
class OwnBoxTowers(PerLevel):
    def copies(self, c: int, a: int, k: int) -> nn.ModuleList:
        return self.subnet(c, a * 4, 0.0)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        deltas = [self.rows(self.run(x, own), 4) for x, own in zip(levels, self.own, strict=False)]
        return Plain.forward(self, levels)[0], torch.cat(deltas, dim=1)


@wrong("4 + 1 convolutions (nn.Conv2d) wanted, 4 found")
class Shallow(Plain):
    depth = 3


@wrong("4 + 1 convolutions (nn.Conv2d) wanted, 6 found")
class Deep(Plain):
    depth = 5


@wrong("4 + 1 convolutions (nn.Conv2d) wanted, 1 found on the way back from its output; a plain list hides")
class TowerInAList(Plain):
    def subnet(self, c: int, out: int, bias: float) -> list[nn.Module]:  # type: ignore[override]
        convs = super().subnet(c, out, bias)
        self.add_module(f"last{out}", convs[-1])
        return list(convs)


@wrong("4 + 1 convolutions (nn.Conv2d) wanted, 0 found on the way back from its output; a plain list hides")
class AllInLists(Plain):
    def subnet(self, c: int, out: int, bias: float) -> list[nn.Module]:  # type: ignore[override]
        return list(super().subnet(c, out, bias))


@wrong("called twice")
class SameFourTimes(Plain):
    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        convs = super().subnet(c, out, bias)
        if c == self.filters:
            convs[1] = convs[2] = convs[3] = convs[0]
        return convs


@wrong("256 filters wanted, got 128")
class Narrow(Plain):
    filters = 128


@wrong("the head raised RuntimeError")
class NoPadding(Plain):
    padding = 0


@wrong("a plain 3×3 with stride 1 wanted")
class OneByOne(Plain):
    kernel = 1
    padding = 0


@wrong("padding of one zero wanted")
class Reflected(Plain):
    def subnet(self, c: int, out: int, bias: float) -> nn.ModuleList:
        convs = super().subnet(c, out, bias)
        for conv in convs:
            conv.padding_mode = "replicate"
        return convs


@wrong("look for other layers")
class Normalised(Plain):
    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__(c, a, k)
        self.norm = nn.GroupNorm(1, self.filters)

    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        x = F.relu(convs[0](x))
        for conv in convs[1:-1]:
            x = F.relu(self.norm(conv(x)) if convs is self.classes else conv(x))
        return convs[-1](x)


@wrong("output: the same levels get other numbers")
class Dropout(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        return super().run(F.dropout(x, 0.1), convs)


@wrong("shape: deltas (2, 68, 4) wanted")
class BoxesPerClass(Plain):
    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(levels)
        return logits, deltas.repeat(1, 1, self.k)


@wrong("shape: logits (2, 68, 3) wanted")
class BackgroundClass(Plain):
    def __init__(self, c: int, a: int, k: int) -> None:
        super().__init__(c, a, k + 1)


@wrong("the deltas come first")
class Swapped(Plain):
    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        return super().forward(levels)[::-1]


@wrong("got a tuple of a list of a tensor")
class NotJoined(Plain):
    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:  # type: ignore[override]
        pairs = [super(NotJoined, self).forward([x]) for x in levels]
        return [p[0] for p in pairs], [p[1] for p in pairs]


@wrong("got a dict")
class Named(Plain):
    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(zip(("logits", "deltas"), super().forward(levels), strict=True))


@wrong("raised RuntimeError")
class FixedGrid(Plain):
    def rows(self, x: Tensor, width: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(2, 7, width)


@wrong("0 found on the way back")
class NoGradient(Plain):
    @torch.no_grad()
    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        return super().forward(levels)


@wrong("from the box subnet none reaches the features of level 1, 2, 3")
class DetachedBoxes(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        return super().run(x.detach() if convs is self.boxes else x, convs)


@wrong("level 2 of 3 does not teach the whole class subnet")
class FineLevelsOnly(Plain):
    def run(self, x: Tensor, convs: nn.ModuleList) -> Tensor:
        y = super().run(x, convs)
        return y.detach() if x.shape[2:] == (2, 3) and self.k == 5 else y


@pytest.mark.parametrize("name", WRONG)
def test_wrong_heads_fail_for_their_own_reason(name: str) -> None:
    torch.manual_seed(0)
    build, reason = WRONG[name]
    with pytest.raises(AssertionError) as caught:
        check_head(build)
    assert reason in str(caught.value), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2, str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"depth": 3}, "4 found"),
        ({"prior": 0.1}, "p = 0.1000"),
        ({"channels": 64}, "got 64"),
        ({"norm": "group"}, "bias"),
    ],
)
def test_the_packages_head_with_other_options_is_another_head(options: dict[str, object], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_head(partial(RetinaNetHead, **options))  # type: ignore[arg-type]


def test_a_head_in_place_of_its_class_is_named() -> None:
    with pytest.raises(AssertionError, match="the class itself is wanted"):
        check_head(Plain(256, 9, 80))


def test_several_faults_come_together() -> None:
    class Both(Narrow, NoPrior):
        pass

    with pytest.raises(AssertionError) as caught:
        check_head(Both)
    assert len(str(caught.value).splitlines()) == 3
    assert "got 128" in str(caught.value) and "prior" in str(caught.value)
