"""The command line: every verb end to end on tiny data, and one line with exit status 2 for whatever is wrong."""

from __future__ import annotations

import copy
import dataclasses
import inspect as pyinspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from focal_tutorial import __version__, cli
from focal_tutorial.cli_options import parse_numbers, parse_options, parse_size
from focal_tutorial.cli_train import train as train_command
from focal_tutorial.errors import InputError
from focal_tutorial.train_config import TrainConfig

SHORT = ["--steps", "2", "--warmup-steps", "1", "--batch-size", "2"]
VERBS = ("data", "convert-voc", "inspect", "train", "convert-weights", "evaluate", "predict", "export")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of noise with a box each, two classes, and a model trained on them for two steps."""
    base = tmp_path_factory.mktemp("cli")
    (base / "images").mkdir()
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for i in range(1, 5):
        Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(base / "images" / f"{i}.png")
        content["images"].append({"id": 10 * i, "file_name": f"{i}.png", "height": 64, "width": 96})
        content["annotations"].append(
            {"id": i, "image_id": 10 * i, "category_id": 3 + i % 2, "bbox": [9, 9, 30, 30], "area": 900, "iscrowd": 0}
        )
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
    (base / "good.json").write_text(json.dumps(content))
    options = ["--images", f"{base}/images", "--annotations", f"{base}/good.json", "--out", f"{base}/run"]
    assert cli.run(["train", *options, *SHORT]) == 0
    return base


def changed(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """An annotation file like the good one, with something wrong."""
    content = copy.deepcopy(json.loads((folder / "good.json").read_text()))
    change(content)
    (tmp_path / "bad.json").write_text(json.dumps(content))
    return str(tmp_path / "bad.json")


def fails(capsys: pytest.CaptureFixture[str], words: list[str], pattern: str) -> str:
    """The single line on stderr of a command that exits with 2."""
    capsys.readouterr()
    assert cli.run(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and "Traceback" not in lines[0]
    assert re.search(pattern, lines[0]), lines[0]
    return lines[0]


# Help, version, start-up


def test_help_is_quick_and_loads_no_torch() -> None:
    code = "import sys; from focal_tutorial.cli import run; run(['train', '--help']); sys.exit('torch' in sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--warmup-steps" in done.stdout
    assert time.perf_counter() - start < 5  # 0.2 s on a quiet machine


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert result.exit_code == 0 and "Usage" in result.output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"focal-tutorial {__version__}\n"


def test_train_has_an_option_for_every_setting_with_the_same_default() -> None:
    parameters = pyinspect.signature(train_command).parameters
    renamed = {"canvas": "size", "model_options": "options"}
    for setting in dataclasses.fields(TrainConfig):
        parameter = parameters[renamed.get(setting.name, setting.name)]
        if setting.default is not dataclasses.MISSING and setting.name != "milestones":
            assert parameter.default == setting.default, setting.name
    assert len(parameters) == len(dataclasses.fields(TrainConfig))


# Usage


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["nonsense"], "nonsense"),
        (["train", "--bogus"], "--bogus"),
        (["train", "--steps", "many"], "--steps"),
        (["train", "--steps", "0"], "steps: at least 1"),
        (["train", "--size", "big"], "--size"),
        (["train", "--size", "16"], "32 or more"),
        (["train", "--option", "levels"], "NAME=VALUE"),
        (["train", "--scale", "2"], "--scale: 2 numbers"),
        (["train", "--images", "x"], "images and annotations belong together"),
        (["train", "--resume"], "resume"),
        (["train", "--device", "abacus"], "abacus"),
        (["train", "--images", "x", "--annotations", "y", "--shapes", "num_train=3"], "--shapes"),
        (["data", "nothing"], "nothing"),
        (["data", "shapes", "--source", "x.zip"], "--source"),
        (["convert-voc", "no-such-folder", "out.json"], "no-such-folder"),
        (["evaluate"], "CHECKPOINT|checkpoint"),
        (["predict"], "CHECKPOINT|checkpoint"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], words: list[str], pattern: str) -> None:
    fails(capsys, words, pattern)


def test_options_as_values() -> None:
    assert parse_size(None) is None and parse_size("512") == (512, 512) and parse_size("384x512") == (384, 512)
    assert parse_numbers("0.8,1.25", "--scale", 2) == (0.8, 1.25)
    assert parse_options(["levels=[2,3]", "prior=0.02", "norm=group"]) == {
        "levels": (2, 3),
        "prior": 0.02,
        "norm": "group",
    }
    for bad in ("x", "1x2x3", "512x", "-5"):
        with pytest.raises(InputError, match="--size"):
            parse_size(bad)


# The verbs


def test_train_leaves_a_run_folder_and_refuses_to_overwrite_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"best.pt", "last.pt", "log.csv", "config.json"} <= {path.name for path in (folder / "run").iterdir()}
    options = ["--images", f"{folder}/images", "--annotations", f"{folder}/good.json", "--out", f"{folder}/run"]
    fails(capsys, ["train", *options, *SHORT], "already holds a run")
    assert cli.run(["train", *options, *SHORT, "--resume"]) == 0


def test_train_on_shapes_prints_ap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["--shapes", "num_train=8", "--shapes", "num_val=4"]
    assert cli.run(["train", *shapes, *SHORT, "--out", f"{tmp_path}/run"]) == 0
    out = capsys.readouterr().out
    assert "AP50" in out and "triangle" in out and f"{tmp_path}/run" in out


def test_evaluate_prints_and_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--images", f"{folder}/images", "--annotations", f"{folder}/good.json"]
    assert cli.run(["evaluate", f"{folder}/run/last.pt", *data, "--out", f"{tmp_path}/out"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("AP75", "APs", "AR100", "cat", "dog"))
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(metrics["per_class"]) == {"cat", "dog"}
    # The same by hand: pycocotools on the two files.
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = json.loads((tmp_path / "out/detections.json").read_text())
    if results:
        truth = COCO(f"{folder}/good.json")
        judged = COCOeval(truth, truth.loadRes(results), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        assert metrics["AP"] == pytest.approx(judged.stats[0], abs=1e-9)
    assert (tmp_path / "out/precision_recall.png").stat().st_size > 0


def test_inspect_prints_and_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", f"{folder}/images", f"{folder}/good.json", "--size", "128x192", "--out", f"{tmp_path}/report"]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert "192×128 px" in out and "Boxes per class" in out and max(map(len, out.split("\n\n")[1].splitlines())) <= 100
    assert json.loads((tmp_path / "report/report.json").read_text())["boxes"] == 4
    with Image.open(tmp_path / "report/report.png") as picture:
        assert picture.size[0] > 1000
    assert "Boxes per class" in (tmp_path / "report/report.txt").read_text()


def test_inspect_takes_anchors_from_options_and_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", f"{folder}/images", f"{folder}/good.json"]
    assert cli.run([*words, "--model", "retinanet_resnet50_fpn", "--size", "128"]) == 0
    assert "P3–P7" in capsys.readouterr().out
    assert cli.run([*words, "--option", "levels=[2,3]", "--option", "ratios=[1]"]) == 0
    assert "P2–P3" in capsys.readouterr().out
    assert cli.run([*words, "--checkpoint", f"{folder}/run/last.pt"]) == 0
    assert "96×64 px" in capsys.readouterr().out
    assert cli.run([*words, "--option", "foreground_iou=0.7"]) == 0
    assert "no anchor by IoU ≥ 0.7" in " ".join(capsys.readouterr().out.split())
    fails(capsys, [*words, "--checkpoint", f"{folder}/run/last.pt", "--option", "levels=[2,3]"], "give one of them")
    fails(capsys, [*words, "--option", "colour=3"], "colour")
    fails(capsys, [*words, "--model", "yolo"], "retinanet_tiny")


def test_predict_reads_every_kind_of_image(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    images = tmp_path / "in"
    images.mkdir()
    image.convert("L").save(images / "grey.png")
    image.convert("RGBA").save(images / "alpha.png")
    image.resize((301, 17)).save(images / "flat.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(images / "turned.jpg", exif=exif)
    (images / "notes.txt").write_text("not an image, and not looked at")
    assert (
        cli.run(["predict", f"{folder}/run/last.pt", str(images), "--out", f"{tmp_path}/out", "--threshold", "0"]) == 0
    )
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"grey.png", "alpha.png", "flat.png", "turned.png"}
    with Image.open(tmp_path / "out/turned.png") as picture:
        assert picture.size[0] < picture.size[1]
    results = json.loads((tmp_path / "out/detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score", "file_name"} <= set(results[0]) if results else True
    assert capsys.readouterr().out.count("→") == 4


def test_predict_takes_ids_from_annotations(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from focal_tutorial.predict import category_ids, find_images, image_ids

    paths = find_images([folder / "images"])
    assert [path.name for path in paths] == ["1.png", "2.png", "3.png", "4.png"]
    assert image_ids(paths) == [1, 2, 3, 4] and image_ids(paths, folder / "good.json") == [10, 20, 30, 40]
    assert category_ids(folder / "good.json", ["dog", "cat"]) == [4, 3] and category_ids(None, ["a", "b"]) == [1, 2]
    with pytest.raises(InputError, match="bird"):
        category_ids(folder / "good.json", ["bird"])
    with pytest.raises(InputError, match=r"nine\.png"):
        image_ids([Path("nine.png")], folder / "good.json")


def test_predict_tells_images_of_one_name_by_their_folders(tmp_path: Path) -> None:
    from focal_tutorial.predict import image_ids

    entries = [{"id": 1, "file_name": "a/0.png"}, {"id": 2, "file_name": "b/0.png"}, {"id": "3", "file_name": "1.png"}]
    file = tmp_path / "two.json"
    file.write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    assert image_ids([tmp_path / "b/0.png", tmp_path / "a/0.png"], file) == [2, 1]
    with pytest.raises(InputError, match=r"several images 0\.png"):
        image_ids([tmp_path / "0.png"], file)
    with pytest.raises(InputError, match=r"does not name 1\.png"):  # its id is text, which evaluation refuses
        image_ids([tmp_path / "1.png"], file)
    file.write_text(json.dumps({"images": entries[:1], "annotations": [], "categories": []}))
    with pytest.raises(InputError, match="two of the images go by its id 1"):
        image_ids([tmp_path / "a/0.png", tmp_path / "c/0.png"], file)


def test_predict_turns_an_image_as_its_annotations_do(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(tmp_path / "1.jpg", exif=exif)
    content = json.loads((folder / "good.json").read_text())
    content["images"] = [{"id": 7, "file_name": "1.jpg", "height": 64, "width": 96}]  # as the pixels lie
    (tmp_path / "turned.json").write_text(json.dumps(content))
    words = ["predict", f"{folder}/run/last.pt", f"{tmp_path}/1.jpg", "--out", f"{tmp_path}/out"]
    for more, wide in (([], False), (["--annotations", f"{tmp_path}/turned.json"], True)):
        assert cli.run([*words, *more]) == 0
        with Image.open(tmp_path / "out/1.png") as picture:
            assert (picture.size[0] > picture.size[1]) is wide


def test_predict_with_a_broken_annotation_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", f"{folder}/run/last.pt", f"{folder}/images/1.png", "--out", f"{tmp_path}/out"]
    for categories in (None, "cat", [5]):
        file = changed(folder, tmp_path, lambda content, c=categories: content.update(categories=c))
        fails(capsys, [*words, "--annotations", file], "categor")


def test_predict_numbers_pictures_of_one_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "a/1.png")
    images = [f"{folder}/images/1.png", f"{tmp_path}/a/1.png"]
    assert cli.run(["predict", f"{folder}/run/last.pt", *images, "--out", f"{tmp_path}/out"]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"1.png", "1-2.png"}


def test_data_makes_shapes_and_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "shapes", "--root", str(tmp_path), "--num-train", "3", "--num-val", "2", "--image-size", "96"]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert len(list((tmp_path / "shapes/train").glob("*.png"))) == 3
    assert f"focal-tutorial inspect {tmp_path}/shapes/train {tmp_path}/shapes/train.json" in out


def test_convert_voc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>{}</xmax><ymax>30</ymax></bndbox>"
    objects = "".join(f"<object><name>cat</name>{box.format(x)}</object>" for x in (20, 5))
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    (tmp_path / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>")
    assert cli.run(["convert-voc", str(tmp_path), f"{tmp_path}/out.json"]) == 0
    captured = capsys.readouterr()
    assert "1 images, 1 annotations, 1 categories; 1 problem" in captured.out
    assert len(captured.err.splitlines()) == 1 and "a." in captured.err


# Bad input


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda c: c["annotations"][0].update(category_id=9), "unknown category"),
        (lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 0]), "zero-size box"),
        (lambda c: c["annotations"][0].update(bbox=[500, 500, 20, 20]), "box outside image"),
        (lambda c: c["annotations"][0].update(bbox=[float("nan"), 5, 20, 20]), "non-finite box"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "missing image"),
    ],
)
def test_what_training_can_do_without_is_dropped_and_inspect_lists_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], Any], kind: str
) -> None:
    bad = changed(folder, tmp_path, change)
    options = ["--images", f"{folder}/images", "--annotations", bad, "--out", f"{tmp_path}/run"]
    assert cli.run(["train", *options, *SHORT]) == 0
    assert f"1 × {kind}" in capsys.readouterr().out
    assert cli.run(["inspect", f"{folder}/images", bad]) == 0
    listed = capsys.readouterr().out.partition("Problems in the data")[2]
    assert kind in listed and "id " in listed


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (None, "does not exist"),
        ('{"images": [', "not valid JSON"),
        ("[]", "not a COCO annotation file"),
        ('{"images": [], "annotations": [], "categories": []}', "no usable"),
    ],
)
def test_annotation_files_that_cannot_be_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, pattern: str
) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    data = ["--images", f"{folder}/images", "--annotations", str(path)]
    for words in (
        ["train", *data, "--out", f"{tmp_path}/run", *SHORT],
        ["inspect", f"{folder}/images", str(path)],
        ["evaluate", f"{folder}/run/last.pt", *data],
    ):
        assert str(path) in fails(capsys, words, pattern)


def test_no_boxes_at_all(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = changed(folder, tmp_path, lambda c: c.update(annotations=[]))
    data = ["--images", f"{folder}/images", "--annotations", bad]
    fails(capsys, ["train", *data, "--out", f"{tmp_path}/run"], "nothing to learn from")
    assert cli.run(["inspect", f"{folder}/images", bad]) == 0
    assert "no box to learn from" in capsys.readouterr().out
    assert cli.run(["evaluate", f"{folder}/run/last.pt", *data]) == 0


def test_a_truncated_image(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (folder / "images").iterdir():
        content = path.read_bytes()
        (images / path.name).write_bytes(content[: len(content) // 2] if path.name == "2.png" else content)
    data = ["--images", str(images), "--annotations", f"{folder}/good.json"]
    model = f"{folder}/run/last.pt"
    fails(capsys, ["train", *data, "--out", f"{tmp_path}/run", *SHORT, "--workers", "0"], r"2\.png")
    fails(capsys, ["evaluate", model, *data], r"2\.png")
    fails(capsys, ["predict", model, str(images), "--out", f"{tmp_path}/out"], r"2\.png")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "1.png",
        "3.png",
        "4.png",
    }  # the others are done
    assert cli.run(["inspect", str(images), f"{folder}/good.json"]) == 0
    assert "2.png, id 20: unreadable image" in capsys.readouterr().out


def test_nan_in_an_image_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    fails(
        capsys, ["predict", f"{folder}/run/last.pt", f"{tmp_path}/nan.tiff", "--out", f"{tmp_path}/out"], r"nan\.tiff"
    )


def test_a_checkpoint_of_other_classes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = changed(folder, tmp_path, lambda c: c["categories"].append({"id": 5, "name": "emu"}))
    data = ["--images", f"{folder}/images", "--annotations", three]
    line = fails(capsys, ["evaluate", f"{folder}/run/last.pt", *data], "2 classes")
    assert "cat, dog, emu" in line
    good = ["--images", f"{folder}/images", "--annotations", f"{folder}/good.json", "--out", f"{tmp_path}/run"]
    fails(capsys, ["train", *good, "--val-images", f"{folder}/images", "--val-annotations", three, *SHORT], "3")


@pytest.mark.parametrize("kind", ["missing", "junk", "tensors only", "empty", "odd", "cut"])
def test_files_that_are_no_checkpoints(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "model.pt"
    if kind == "junk":
        path.write_text("junk")
    elif kind == "tensors only":
        torch.save({"weight": torch.zeros(2)}, path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "odd":
        torch.save({"model": 3, "model_config": {"builder": "retinanet_tiny"}, "class_names": None}, path)
    elif kind == "cut":
        path.write_bytes((folder / "run/last.pt").read_bytes()[:5000])
    fails(capsys, ["predict", str(path), f"{folder}/images"], r"model\.pt")


def test_output_folders_that_cannot_be(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    model = f"{folder}/run/last.pt"
    fails(capsys, ["predict", model, f"{folder}/images", "--out", str(occupied)], "file")
    fails(capsys, ["predict", model, f"{folder}/images", "--out", f"{occupied}/below"], "file")
    fails(capsys, ["inspect", f"{folder}/images", f"{folder}/good.json", "--out", str(occupied)], "file")
    fails(capsys, ["predict", model, f"{folder}/nothing.png"], r"nothing\.png")
    fails(capsys, ["predict", model, str(tmp_path)], "no image")
    fails(capsys, ["predict", model, f"{folder}/images", "--threshold", "7"], "threshold")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(28, "No space left on device"), 2, "free space"),
        (PermissionError(13, "Permission denied", "/data/run"), 2, "/data/run"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "--batch-size"),
        (InputError("two\nlines"), 2, "two"),
        (ZeroDivisionError("by zero"), 1, "--debug"),
    ],
)
def test_every_error_gets_a_status_and_a_line(error: Exception, status: int, words: str) -> None:
    found, message = cli.explain(error)
    assert found == status and words in message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_leaves_a_run_to_go_on_with(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    shapes = [word for pair in ("num_train=8", "num_val=2", "size=64") for word in ("--shapes", pair)]
    words = ["train", "--steps", "100000", "--log-every", "1", "--batch-size", "2", *shapes, "--out", f"{tmp_path}/run"]
    words += ["--workers", str(workers)]
    command = [sys.executable, "-m", "focal_tutorial", *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    log = tmp_path / "run/log.csv"
    for _ in range(600):
        time.sleep(0.1)
        if log.exists() and log.read_text().count("\n") > 2:
            break
    os.killpg(process.pid, number)  # as a terminal or a job queue does: the workers get it, too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    assert (tmp_path / "run/last.pt").exists()
