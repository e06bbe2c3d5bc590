from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import focal_tutorial.windows as windows_module
from focal_tutorial import retinanet_resnet18_fpn, retinanet_tiny
from focal_tutorial.heads import Subnet
from focal_tutorial.windows import SIDE, place_windows, tiles

GRIDS = {
    "pyramid": [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)],
    "wide": [(5, 41)],
    "one place": [(1, 1), (1, 1)],
}
TARGETS = [
    {"boxes": torch.tensor([[10.0, 20.0, 60.0, 55.0], [30.0, 5.0, 80.0, 60.0]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.tensor([[5.0, 6.0, 24.0, 26.0]]), "labels": torch.tensor([0])},
]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows even where whole levels would cost less."""
    monkeypatch.setattr(windows_module, "WORTH", float("inf"))


def subnet(anchors: int = 3, width: int = 4, depth: int = 4) -> Subnet:
    torch.manual_seed(0)
    net = Subnet(8, anchors, width, channels=12, depth=depth).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases too: padding is then not what a bias leaves behind
    return net


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(("asked", "groups"), [(1, 1), (7, 3), (80, 2)])
@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.usefixtures("always")
def test_values_and_gradients_of_the_whole_levels(
    grids: list[tuple[int, int]], asked: int, groups: int, depth: int
) -> None:
    net = subnet(depth=depth)
    levels = [torch.randn(2, 8, *grid, dtype=torch.double, requires_grad=True) for grid in grids]
    rows = 3 * sum(h * w for h, w in grids)
    image, anchor = torch.randint(0, 2, (asked,)), torch.randint(0, rows, (asked,))
    windows = net.windows(grids, 2, image, anchor, torch.randint(0, groups, (asked,)))
    assert windows is not None
    got, wanted = net.at(levels, windows, image, anchor), net(levels)[image, anchor]
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(got)
    inputs = [*net.parameters(), *levels]
    ours, theirs = (torch.autograd.grad(out, inputs, gradient) for out in (got, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("always")
def test_a_group_gets_one_window_where_it_fits_and_several_where_not() -> None:
    def count(columns: list[int], groups: list[int]) -> int:
        placed = place_windows(
            [(40, 40)], 1, 1, 2, torch.zeros(len(columns), dtype=torch.long),
            torch.tensor([40 * 7 + c for c in columns]), torch.tensor(groups),
        )  # fmt: skip
        assert placed is not None
        return len(placed.cells)

    assert count([3, 3 + SIDE - 1], [0, 0]) == 1
    assert count([3, 3 + SIDE], [0, 0]) == 2
    assert count([3, 4], [0, 1]) == 2


def test_tiles_part_what_is_far_apart() -> None:
    grids, at = [(20, 30), (10, 15)], torch.tensor
    assert tiles(grids, 1, at([0, SIDE - 1])).unique().numel() == 1
    assert tiles(grids, 1, at([0, SIDE, 30 * SIDE])).unique().numel() == 3
    assert tiles(grids, 9, at([0, 8])).unique().numel() == 1


def test_whole_levels_where_windows_would_cost_more() -> None:
    net, grid = subnet(), [(64, 64)]
    few, many = torch.tensor([50, 51]), torch.arange(0, 64 * 64 * 3, 5)
    zero = torch.zeros_like
    assert net.windows(grid, 1, zero(few), few, zero(few)) is not None
    assert net.windows(grid, 1, zero(many), many, many) is None
    levels = [torch.randn(1, 8, 64, 64, dtype=torch.double)]
    assert torch.equal(net.at(levels, None, zero(many), many), net(levels)[0, many])


def test_a_norm_needs_the_whole_level() -> None:
    net = Subnet(16, 1, 4, channels=16, depth=1, norm="group")
    assert net.windows([(64, 64)], 1, torch.zeros(1).long(), torch.zeros(1).long(), torch.zeros(1).long()) is None


def losses_and_gradients(model: torch.nn.Module, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    model.train().zero_grad()
    losses = model(images, copy.deepcopy(TARGETS))
    sum(losses.values()).backward()
    return losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("options", [{}, {"box_loss": "giou"}, {"normalizer": "image"}, {"normalizer": "ema"}], ids=str)
def test_a_model_learns_the_same(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = retinanet_tiny(3, head_norm=None, min_size=None, canvas=(96, 128), **options)
    images, found = torch.rand(2, 3, 96, 128), []
    for worth in (0.0, float("inf")):
        monkeypatch.setattr(windows_module, "WORTH", worth)
        found.append(losses_and_gradients(copy.deepcopy(model), images))
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value)
    for a, b in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-9)


def test_images_without_boxes_leave_zeros_not_nothing() -> None:
    model = retinanet_resnet18_fpn(3, canvas=(64, 64)).train()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = model(torch.rand(1, 3, 64, 64), [nothing])
    assert losses["bbox_regression"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.head.regression.parameters())


def test_detections_are_those_of_the_whole_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = retinanet_resnet18_fpn(5, min_size=None, size_divisible=32).eval()
    torch.nn.init.normal_(model.head.classification.predict.weight, std=5.0)
    torch.nn.init.normal_(model.head.regression.predict.weight, std=0.05)
    images, found, windows = [torch.rand(3, 96, 128), torch.rand(3, 70, 90), torch.rand(3, 64, 64)], [], []
    place = windows_module.place_windows
    monkeypatch.setattr("focal_tutorial.heads.place_windows", lambda *a: windows.append(place(*a)) or windows[-1])
    for worth in (0.0, float("inf")):
        monkeypatch.setattr(windows_module, "WORTH", worth)
        found.append(model(images))
    assert windows[0] is None and windows[1] is not None
    for ours, wanted in zip(found[1], found[0], strict=True):
        assert len(wanted["scores"]) > 20
        assert torch.equal(ours["labels"], wanted["labels"]) and torch.equal(ours["scores"], wanted["scores"])
        torch.testing.assert_close(ours["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-3)


def test_no_candidate_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = retinanet_resnet18_fpn(3, min_size=None, size_divisible=32, score_threshold=0.9).eval()
    monkeypatch.setattr(model.head.regression, "at", None)
    found = model([torch.rand(3, 64, 64)])
    assert found[0]["boxes"].shape == (0, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("always")
def test_on_cuda_as_on_the_cpu() -> None:
    net, grids = subnet(), GRIDS["pyramid"]
    levels = [torch.randn(2, 8, *grid, dtype=torch.double) for grid in grids]
    image, anchor, group = torch.randint(0, 2, (30,)), torch.randint(0, 900, (30,)), torch.randint(0, 4, (30,))
    wanted = net.at(levels, net.windows(grids, 2, image, anchor, group), image, anchor)
    image, anchor, group = image.cuda(), anchor.cuda(), group.cuda()
    got = net.cuda().at([x.cuda() for x in levels], net.windows(grids, 2, image, anchor, group), image, anchor)
    torch.testing.assert_close(got.cpu(), wanted)
