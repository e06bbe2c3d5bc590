"""Figures: what is drawn, what the alt text says, and that nothing global is touched."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.errors import InputError
from focal_tutorial.imbalance import ImbalanceReport, imbalance_report
from focal_tutorial.plotting import (
    PALETTE,
    as_picture,
    draw_boxes,
    judge_detections,
    plot_ap_bars,
    plot_imbalance_report,
    plot_precision_recall,
    plot_series,
    read_log,
    save_figure,
    save_picture,
    show_detections,
)

BOXES = torch.tensor([[10.0, 10.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]])
LABELS = torch.tensor([0, 1])
NAMES = ["cat", "dog"]


def axes(rows: int = 1, columns: int = 1) -> np.ndarray:
    return Figure(figsize=(4, 3)).subplots(rows, columns, squeeze=False)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 64, 80, dtype=torch.uint8),
        torch.zeros(3, 64, 80),
        torch.zeros(1, 64, 80),
        np.zeros((64, 80), np.uint8),
        np.zeros((64, 80, 3)),
        Image.new("RGBA", (80, 64)),
        Image.new("L", (80, 64)),
    ],
)
def test_pictures_from_tensors_arrays_and_pil(image: object) -> None:
    picture = as_picture(image)
    assert picture.shape == (64, 80, 3) and picture.dtype == np.uint8


def test_float_images_scale_and_bad_values_do_not_crash() -> None:
    assert as_picture(torch.full((3, 2, 2), 0.5))[0, 0, 0] == 128
    assert as_picture(torch.full((3, 2, 2), float("nan"))).max() == 0
    assert as_picture(torch.full((3, 2, 2), 7.0)).min() == 255


@pytest.mark.parametrize("image", [torch.zeros(4, 8, 8), np.zeros((8, 8, 2)), torch.zeros(8, 8)])
def test_other_shapes_are_refused(image: object) -> None:
    with pytest.raises(ValueError, match="image"):
        as_picture(image)


def test_boxes_are_drawn_where_they_are_with_names_and_scores() -> None:
    ax = axes()[0, 0]
    alt = draw_boxes(ax, torch.zeros(3, 64, 80), BOXES, LABELS, names=NAMES, scores=torch.tensor([0.9, 0.456]))
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    found = {(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in frames}
    assert found == {(10, 10, 30, 30), (30, 20, 30, 40)}
    assert {text.get_text() for text in ax.texts} == {"cat 90 %", "dog 46 %"}
    assert alt == "Image with 2 boxes: 1 cat, 1 dog."
    assert frames[0].get_edgecolor() != frames[1].get_edgecolor()


def test_no_boxes_and_boxes_over_the_edge() -> None:
    ax = axes()[0, 0]
    assert draw_boxes(ax, torch.zeros(3, 64, 80), torch.zeros(0, 4)) == "Image with 0 boxes."
    draw_boxes(ax, None, torch.tensor([[-5.0, -5.0, 100.0, 90.0]]), captions=["whole"])
    assert ax.get_xlim() == (-0.5, 79.5) and ax.get_ylim() == (63.5, -0.5)


def test_judging_follows_coco_s_greedy_rule() -> None:
    truth = {"boxes": BOXES, "labels": LABELS}
    found = {
        "boxes": torch.cat([BOXES[:1] + 2, BOXES[:1], BOXES[1:], BOXES[1:]]),
        "labels": torch.tensor([0, 0, 0, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
    }
    right, seen = judge_detections(truth, found)
    # The second is a double of the first, the third has the wrong class.
    assert right.tolist() == [True, False, False, True] and seen.tolist() == [True, True]
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    right, seen = judge_detections(truth, empty)
    assert len(right) == 0 and not seen.any()
    right, seen = judge_detections({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}, found)
    assert not right.any() and len(seen) == 0


def test_detections_are_sorted_into_right_wrong_and_missed() -> None:
    pair = axes(1, 2)[0]
    found = {"boxes": BOXES[:1], "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    alt = show_detections(pair, torch.zeros(3, 64, 80), {"boxes": BOXES, "labels": LABELS}, found, names=NAMES)
    assert "1 right, 0 wrong, 1 missed" in alt
    assert "missed: dog" in [text.get_text() for text in pair[1].texts]
    assert [patch.get_linestyle() for patch in pair[1].patches] == ["-", ":"]  # told apart without colour too


def test_a_saved_picture_has_the_images_own_size_and_carries_its_alt_text(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with mpl.rc_context({"savefig.bbox": "tight"}):  # as in a notebook
        alt = save_picture(path, torch.zeros(3, 700, 900, dtype=torch.uint8), BOXES, LABELS, names=NAMES)
    with Image.open(path) as image:
        assert image.size == (900, 700) and image.info["Description"] == alt
    save_picture(path, torch.zeros(3, 64, 80), BOXES)
    with Image.open(path) as image:
        assert image.size == (640, 512)


def test_a_dark_image_keeps_its_boxes_visible(tmp_path: Path) -> None:
    path = tmp_path / "dark.png"
    save_picture(path, torch.zeros(3, 480, 640), BOXES * 6, LABELS, fontsize=0)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert (pixels > 130).sum() > 1000  # the frames, on black
    save_picture(path, torch.ones(3, 480, 640), BOXES * 6, LABELS, fontsize=0)
    with Image.open(path) as image:
        assert (np.asarray(image.convert("L")) < 120).sum() > 1000  # their halo, on white


def test_series_skip_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss,AP\n1,2.5,\n2,1.5,0.25\n")
    ax = axes()[0, 0]
    alt = plot_series(ax, read_log(path), ["loss", "AP"], label="value")
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1]
    assert alt == "Curves over step: loss from 2.5 to 1.5, AP from 0.25 to 0.25."


@pytest.mark.parametrize(("text", "words"), [("", "no rows"), ("a,b\n", "no rows"), ("a\nx\n", "not a training log")])
def test_a_bad_log_is_bad_input(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_log(path)
    with pytest.raises(InputError, match="does not exist"):
        read_log(tmp_path / "none.csv")


def test_precision_recall_names_the_area() -> None:
    ax = axes()[0, 0]
    recall = np.linspace(0, 1, 101)
    alt = plot_precision_recall(ax, {"cat": {"recall": recall, "precision": np.full(101, 0.75)}})
    assert "cat 75.0" in alt and ax.get_xlabel() == "recall"
    assert "no class" in plot_precision_recall(axes()[0, 0], {})


def test_bars_show_mean_spread_and_what_is_undefined() -> None:
    ax = axes()[0, 0]
    alt = plot_ap_bars(ax, {"cat": [0.5, 0.6, 0.7], "dog": [0.25], "emu": [None]})
    assert alt == "Bars of AP in per cent: cat 60.0 ± 10.0, dog 25.0, emu undefined."
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([60.0, 25.0])


def many_classes_report(classes: int) -> ImbalanceReport:
    dataset = ShapesDataset(12, cache=False)
    report = imbalance_report(dataset, AnchorGenerator((2, 3, 4)), canvas=(192, 192))
    if classes > 3:
        report.classes = [report.classes[i % 3] for i in range(classes)]
        report.sides.counts.update({f"class {i}": report.sides.counts["circle"] for i in range(classes)})
    return report


@pytest.mark.parametrize("classes", [3, 80])
def test_the_report_in_one_picture(tmp_path: Path, classes: int) -> None:
    report = many_classes_report(classes)
    figure, alt = plot_imbalance_report(report)
    save_figure(figure, tmp_path / "report.png", alt=alt, dpi=60)
    assert len(figure.axes) == 4 and alt.startswith("Imbalance report of ShapesDataset")
    assert f"of {report.boxes:,} boxes out of reach" in figure.get_suptitle()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[0].startswith("P2\n1 : ") and labels[-1].startswith("all")
    assert len(figure.axes[3].get_yticklabels()) <= 12


def test_the_report_of_a_set_without_boxes_can_be_drawn(tmp_path: Path) -> None:
    dataset = ShapesDataset(3, cache=False, empty=1.0)
    figure, _ = plot_imbalance_report(imbalance_report(dataset, canvas=(192, 192)))
    save_figure(figure, tmp_path / "report.png", dpi=40)
    assert "no foreground" in figure.get_suptitle()


def test_no_global_state_is_touched(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_picture(tmp_path / "a.png", torch.zeros(3, 64, 80), BOXES, LABELS, names=NAMES)
    plot_ap_bars(axes()[0, 0], {"cat": [0.5]})
    assert dict(mpl.rcParams) == before
    assert len(set(PALETTE)) == len(PALETTE)


def test_class_names_in_any_script_are_no_trouble(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    alt = save_picture(tmp_path / "a.png", torch.zeros(3, 64, 80), BOXES, LABELS, names=["적혈구", "α-cell"])
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == alt and "적혈구" in alt
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
