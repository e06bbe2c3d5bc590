import math
from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen

from focal_tutorial.anchors import AnchorGenerator, cell_anchors, ssd_default_boxes, yolo_boxes


def test_counts_per_level_at_640_pixels() -> None:
    assert [len(a) for a in AnchorGenerator()((640, 640))] == [57600, 14400, 3600, 900, 225]
    assert 57600 + 14400 + 3600 + 900 + 225 == 76725


def test_an_800_by_1344_image_has_201600() -> None:
    assert sum(len(a) for a in AnchorGenerator()((800, 1344))) == 201600


def test_half_sizes_of_the_first_cell() -> None:
    cell = AnchorGenerator()((640, 640))[0][:9]
    half = (cell[:, 2:] - cell[:, :2]) / 2
    wide = [(22.6274, 11.3137), (28.5088, 14.2544), (35.9188, 17.9594)]
    square = [(16.0, 16.0), (20.1587, 20.1587), (25.3984, 25.3984)]
    expected = torch.tensor(wide + square + [(h, w) for w, h in wide])
    torch.testing.assert_close(half, expected, rtol=0, atol=5e-5)


def test_sides_span_32_to_813_pixels() -> None:
    areas = torch.cat([cell_anchors(s, (1.0,), (1, 2 ** (1 / 3), 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512)])
    sides = areas[:, 2] - areas[:, 0]
    assert sides.min().item() == pytest.approx(32) and sides.max().item() == pytest.approx(812.75, abs=0.01)


def test_centres_sit_in_the_middle_of_their_cells() -> None:
    anchors = AnchorGenerator(levels=(3,))((16, 24))[0].view(2, 3, 9, 4)
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    torch.testing.assert_close(centre[1, 2], torch.tensor([[20.0, 12.0]] * 9))  # column 2, row 1, stride 8
    corner = AnchorGenerator(levels=(3,), centre=0.0)((16, 24))[0].view(2, 3, 9, 4)
    torch.testing.assert_close(anchors - corner, torch.full_like(anchors, 4.0))


@pytest.mark.parametrize("size", [(800, 1344), (608, 832), (320, 352), (800, 1088)])
def test_torchvision_compat_is_torchvision(size: tuple[int, int]) -> None:
    generator = AnchorGenerator(centre=0.0, torchvision_compat=True)
    maps = [torch.zeros(1, 1, *grid) for grid in generator.grid_sizes(size)]
    theirs = _default_anchorgen()(ImageList(torch.zeros(1, 3, *size), [size]), maps)[0]
    assert torch.equal(torch.cat(generator(size)), theirs)


def test_torchvisions_stride_drifts_and_ours_does_not() -> None:
    ours, theirs = (
        AnchorGenerator(levels=(6,), centre=0.0),
        AnchorGenerator(levels=(6,), centre=0.0, torchvision_compat=True),
    )
    last = [(g((800, 1344))[0][-1, :2] + g((800, 1344))[0][-1, 2:]) / 2 for g in (ours, theirs)]
    assert last[0].tolist() == [20 * 64, 12 * 64]
    assert last[1].tolist() == [20 * 64, 12 * (800 // 13)]


def test_the_cache_returns_the_same_tensors_and_stays_bounded() -> None:
    generator = AnchorGenerator(levels=(6,))
    assert generator((128, 128))[0] is generator((128, 128))[0]
    for side in range(64, 64 * 100, 64):
        generator((64, side))
    assert len(generator._cache) <= 64


@pytest.mark.parametrize(
    "options",
    [
        {"levels": (3, 4), "sizes": (32,)},
        {"sizes": (0, 1, 2, 3, 4)},
        {"ratios": (-1.0,)},
        {"levels": ()},
        {"ratios": ()},
        {"levels": (-1,)},
        {"levels": (2000,)},
        {"levels": (3,), "sizes": (math.inf,)},
        {"levels": (3,), "sizes": (0.5,), "torchvision_compat": True},
        {"levels": (3,), "sizes": (1e300,), "scales": (1e300,), "torchvision_compat": True},
    ],
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"sizes|levels|ratios"):
        AnchorGenerator(**options)


@pytest.mark.parametrize("size", [(0, 64), (-64, 64), (64.5, 64), 64, None])
def test_an_image_without_area_has_no_grid(size: Any) -> None:
    with pytest.raises(ValueError, match="image_size: "):
        AnchorGenerator()(size)


def test_a_generator_can_be_made_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert AnchorGenerator().num_anchors == 9


def test_grids_of_the_counting_chapter() -> None:
    assert yolo_boxes(7, 2) == 98 and yolo_boxes(13, 5) == 845
    boxes = ssd_default_boxes()
    assert boxes.shape == (8732, 4)
    per_map = [38 * 38 * 4, 19 * 19 * 6, 10 * 10 * 6, 5 * 5 * 6, 3 * 3 * 4, 1 * 1 * 4]
    assert sum(per_map) == 8732
    first = (boxes[1][2:] - boxes[1][:2]) / 300  # the extra square box of the first map: √(0.1 · 0.2)
    assert first.tolist() == pytest.approx([math.sqrt(0.1 * 0.2)] * 2, rel=1e-5)
