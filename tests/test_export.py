"""Exported detectors: programs and ONNX files that find what the model finds, and stand on their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from focal_tutorial import RetinaNet, cli, retinanet_resnet50_fpn, retinanet_tiny
from focal_tutorial.boxes import decode_boxes
from focal_tutorial.checkpoint import load_checkpoint, save_checkpoint
from focal_tutorial.data.images import load_image
from focal_tutorial.data.shapes import make_shapes
from focal_tutorial.errors import InputError
from focal_tutorial.export import (
    OUTPUTS,
    ExportedDetector,
    _to_onnx,
    describe,
    export_onnx,
    export_program,
    export_pt2,
    split_detections,
)
from focal_tutorial.options import TORCHVISION

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
Detections = list[dict[str, Tensor]]
SCORE, PIXELS = 2e-5, 2e-2  # how far float32 sums in another order may lie apart


def lively(model: RetinaNet, logit_std: float = 1.5, bias: float = -3.0) -> RetinaNet:
    """Random weights that find something: scores and boxes spread as a trained model's are, not all at the prior."""
    model.eval()
    with torch.no_grad():
        batch = model.preprocess(torch.rand(1, 3, 96, 128)).images
        for part, std in ((model.head.classification, logit_std), (model.head.regression, 0.3)):
            out = part(model.backbone(batch))
            part.predict.weight.mul_(std / out.std())
        model.head.classification.predict.bias.fill_(bias)
    return model


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(runner: Any, images: Tensor) -> Detections:
    return split_detections(*runner.run(None, {"images": images.numpy()}))


def assert_same(found: Detections, wanted: Detections) -> None:
    """The same detections: each with its partner, and best first. Equal scores may stand in either order."""
    assert [len(d["scores"]) for d in found] == [len(d["scores"]) for d in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert bool((a["scores"].diff() < 1e-7).all())
        torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=SCORE)
        distance = torch.cdist(a["boxes"], b["boxes"], p=torch.inf) / PIXELS  # (D, D)
        distance += (a["scores"][:, None] - b["scores"]).abs() / SCORE + 1e9 * (a["labels"][:, None] != b["labels"])
        partner = []
        for i in range(len(distance)):
            partner.append(int(distance[i].argmin()))
            distance[:, partner[-1]] = torch.inf
        torch.testing.assert_close(a["boxes"], b["boxes"][partner], rtol=0, atol=PIXELS)
        torch.testing.assert_close(a["scores"], b["scores"][partner], rtol=0, atol=SCORE)
        assert torch.equal(a["labels"], b["labels"][partner])


def check_files(model: RetinaNet, size: tuple[int, int], folder: Path, counts: Sequence[int]) -> Detections:
    """Both files of a model, read back, against the model, on random images; what was found in the last batch."""
    export_pt2(model, folder / "model.pt2", size)
    export_onnx(model, folder / "model.onnx", size)
    program, runner = torch.export.load(folder / "model.pt2").module(), session(folder / "model.onnx")
    generator = torch.Generator().manual_seed(7)
    wanted: Detections = []
    for count in counts:
        images = torch.rand(count, 3, *size, generator=generator)
        wanted = model(images)  # type: ignore[assignment]
        assert min(len(d["scores"]) for d in wanted) > 20, "or nothing is shown"
        assert_same(split_detections(*program(images)), wanted)
        assert_same(run_onnx(runner, images), wanted)
    return wanted


# ---- whole models --------------------------------------------------------------------------------------------------


def test_tiny_model_of_three_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = check_files(lively(retinanet_tiny(3)), (120, 160), tmp_path, counts=(1, 3))
    assert set(torch.cat([d["labels"] for d in found]).tolist()) == {0, 1, 2}
    inputs, outputs = session(tmp_path / "model.onnx").get_inputs(), session(tmp_path / "model.onnx").get_outputs()
    assert [(i.name, i.shape) for i in inputs] == [("images", ["batch", 3, 120, 160])]
    assert [o.name for o in outputs] == list(OUTPUTS)
    assert [o.shape for o in outputs] == [["batch", 100, 4], ["batch", 100], ["batch", 100], ["batch"]]


def test_resnet50_in_torchvisions_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {**TORCHVISION, "min_size": 96, "max_size": 160}
    model = lively(retinanet_resnet50_fpn(91, norm="frozen", **options))
    found = check_files(model, (70, 90), tmp_path, counts=(2,))  # 90×70 pixels grow to 123×96, padded to 128×96
    assert all(len(d["scores"]) > 100 for d in found), "its limit is 300"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`make_shapes` of 96×96 pixels and, under "checkpoint", a tiny model after 60 steps on them."""
    base = tmp_path_factory.mktemp("export")
    paths = make_shapes(base, num_train=64, num_val=8, size=96)
    data = ["--images", str(paths["train_images"]), "--annotations", str(paths["train"]), "--out", str(base / "run")]
    steps = ["--steps", "60", "--warmup-steps", "10", "--batch-size", "8", "-o", "levels=[2,3,4]"]
    assert cli.run(["train", *data, *steps]) == 0
    return {**paths, "checkpoint": base / "run" / "last.pt"}


def test_a_trained_model_through_the_command_line(trained: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """Images of another size than the canvas, 96×96: they are shrunk inside, with a filter, and padded."""
    for name in ("model.onnx", "model.pt2"):
        assert cli.run(["export", str(trained["checkpoint"]), str(tmp_path / name), "--size", "120x144"]) == 0
        told = capsys.readouterr().out
        assert "(N, 3, 120, 144)" in told and f"written: {tmp_path / name}" in told and "boxes, scores" in told
    pictures = [load_image(path) for path in sorted(trained["val_images"].iterdir())[:4]]
    images = F.interpolate(torch.stack(pictures) / 255, size=(120, 144))
    model = load_checkpoint(trained["checkpoint"])
    wanted = model(images)
    assert sum(len(d["scores"]) for d in wanted) > 4
    assert_same(run_onnx(session(tmp_path / "model.onnx"), images), wanted)  # type: ignore[arg-type]

    torch.save(images, tmp_path / "images.pt")
    alone = """if True:
        import json, sys
        sys.modules["focal_tutorial"] = None  # not there
        import torch, torchvision
        kept = {"describe.json": ""}
        program = torch.export.load("model.pt2", extra_files=kept)
        found = program.module()(torch.load("images.pt"))
        torch.save([*found], "found.pt")
        print(json.loads(kept["describe.json"])["class_names"])
    """
    done = subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['circle', 'square', 'triangle']"
    assert_same(split_detections(*torch.load(tmp_path / "found.pt")), wanted)  # type: ignore[arg-type]


def test_the_snippet_of_the_book(trained: dict[str, Path], tmp_path: Path) -> None:
    """The page's code, as it stands, where neither torch nor this package can be imported."""
    page = (Path(__file__).parents[1] / "book" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) <= 16, "short"
    code = code.replace("photo.jpg", "photo.png").replace("> 0.5", "> 0.05")
    assert code.count("photo.png") == 1 and code.count("> 0.05") == 1
    assert cli.run(["export", str(trained["checkpoint"]), str(tmp_path / "detector.onnx")]) == 0
    model = load_checkpoint(trained["checkpoint"])
    names, scene = model.class_names or [], Image.open(sorted(trained["val_images"].iterdir())[1])
    block = "import sys\nsys.modules['torch'] = sys.modules['focal_tutorial'] = None\n"
    for size in ((96, 96), (192, 144)):  # the canvas itself, and what has to be shrunk and padded
        scene.resize(size, Image.Resampling.NEAREST).save(tmp_path / "photo.png")
        done = subprocess.run([sys.executable, "-c", block + code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = [line.split(maxsplit=2) for line in done.stdout.strip().splitlines()]
        (wanted,) = model([load_image(tmp_path / "photo.png")])
        # PIL rounds a resized image to whole grey levels, so there the best detection has to do
        expected = list(zip(wanted["labels"], wanted["scores"], wanted["boxes"], strict=True))[
            : None if size == (96, 96) else 1
        ]
        assert len(found) == len(expected) > 0 or size != (96, 96)
        near = {"abs": 0.01 if size == (96, 96) else 0.05}
        for label, score, box in expected:
            alike = [
                line
                for line in found
                if line[0] == names[label] and float(line[1]) == pytest.approx(float(score), **near)
            ]
            assert any(json.loads(line[2]) == pytest.approx(box.tolist(), abs=100 * near["abs"]) for line in alike)


# ---- parts, on inputs made for them --------------------------------------------------------------------------------


class Heads(nn.Module):
    """What follows the heads alone, so that any logits can be given."""

    def __init__(self, detector: ExportedDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        return self.detector.detect(logits, deltas)


def decoders(model: RetinaNet, size: tuple[int, int], path: Path) -> list[Callable[[Tensor, Tensor], Detections]]:
    """`model.detect` for images of `size`, and the same by torch.export and by onnxruntime, for any batch."""
    rows = len(ExportedDetector(model, size).every_anchor)
    example = (torch.zeros(2, rows, model.num_classes), torch.zeros(2, rows, 4))
    batch = torch.export.Dim("batch", min=1, max=64)
    programs = [
        torch.export.export(
            Heads(ExportedDetector(model, size, onnx=onnx)), example, dynamic_shapes=({0: batch}, {0: batch}),
            strict=False,
        )
        for onnx in (False, True)
    ]  # fmt: skip
    path.write_bytes(_to_onnx(programs[1], OUTPUTS, ("logits", "deltas")).SerializeToString())
    runner, resized = session(path), model.preprocess.resized(size)
    anchors = model.anchors(model.preprocess.padded([resized]))
    return [
        lambda logits, deltas: model.detect(logits, deltas, anchors, [resized] * len(logits), [size] * len(logits)),
        lambda logits, deltas: split_detections(*programs[0].module()(logits, deltas)),
        lambda logits, deltas: split_detections(
            *runner.run(None, {"logits": logits.numpy(), "deltas": deltas.numpy()})
        ),
    ]


@pytest.mark.parametrize(("classes", "threshold"), [(1, 0.05), (80, 0.05), (3, 0.0)])
def test_decoding_of_any_heads(classes: int, threshold: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(classes)
    model = retinanet_tiny(classes, score_threshold=threshold, topk_per_level=200, detections_per_image=50).eval()
    size = (60, 100)
    eager, program, onnx = decoders(model, size, tmp_path / "heads.onnx")
    rows = len(ExportedDetector(model, size).every_anchor)
    for bias in (-2.0, -8.0):  # more candidates than a level's top k, and images with one or none
        logits = bias + 1.5 * torch.randn(5, rows, classes, generator=generator)
        deltas = 0.7 * torch.randn(5, rows, 4, generator=generator)  # some boxes are outside the image
        logits[1] -= 10.0
        logits[3, 17, 0] = 4.0
        wanted = eager(logits, deltas)
        if threshold:
            assert len(wanted[1]["scores"]) == 0 and len(wanted[3]["scores"]) > 0
        assert_same(program(logits, deltas), wanted)
        assert_same(onnx(logits, deltas), wanted)
        nothing = torch.full_like(logits[:1], -30.0 if threshold else -torch.inf)
        for decode in (eager, program, onnx):
            assert threshold == 0 or [len(d["boxes"]) for d in decode(nothing, deltas[:1])] == [0]


def test_ties(tmp_path: Path) -> None:
    """Many detections of one score: the same ones, in whatever order, as none overlaps another of its class."""
    model = retinanet_tiny(2).eval()
    eager, program, onnx = decoders(model, (64, 96), tmp_path / "ties.onnx")
    logits = torch.full((2, len(ExportedDetector(model, (64, 96)).every_anchor), 2), -9.0)
    deltas = torch.zeros(2, logits.shape[1], 4)
    logits[0, 4 : 9 * 96 : 9 * 3, 0] = logits[0, 4 : 9 * 96 : 9 * 3, 1] = 1.0  # every third location, anchors of 32 px
    logits[1, 4 : 9 * 96 : 9 * 3, 1] = 1.0
    deltas[..., 2:] = -2.0  # shrunk to 4 px, so that they lie apart
    wanted = eager(logits, deltas)
    assert [len(d["scores"]) for d in wanted] == [64, 32]
    assert_same(program(logits, deltas), wanted)
    assert_same(onnx(logits, deltas), wanted)


def test_raw_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, size = lively(retinanet_tiny(3, canvas=(64, 96))), (100, 120)
    export_onnx(model, tmp_path / "raw.onnx", size, raw=True)
    images = torch.rand(2, 3, *size)
    batch = model.preprocess(images).images
    wanted = [*model.network(batch), torch.cat(model.anchors((64, 96)))]
    found = export_program(model, size, raw=True, batch=2).module()(images)
    for a, b, c in zip(
        wanted, found, session(tmp_path / "raw.onnx").run(None, {"images": images.numpy()}), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(c), a, rtol=0, atol=1e-4)
    # decoding by hand, as the book says it
    facts = describe(model, size, raw=True)
    boxes = decode_boxes(found[1], found[2]) * torch.tensor(
        [facts["size"][1] / facts["resized"][1], facts["size"][0] / facts["resized"][0]] * 2
    )
    best = found[0][0].flatten().argmax()
    (detected, _) = model(images)
    torch.testing.assert_close(
        detected["boxes"][0], boxes[0, best // 3].clamp(min=0).minimum(torch.tensor([120.0, 100, 120, 100]))
    )
    assert detected["labels"][0] == best % 3


# ---- what a file says, and what is refused -------------------------------------------------------------------------


def test_metadata_and_the_model_stay(tmp_path: Path) -> None:
    model = retinanet_tiny(2, canvas=(64, 96)).train()
    model.class_names = ["Zelle", "Plättchen"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx", batch=1)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    runner = session(tmp_path / "model.onnx")
    facts = runner.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == model.class_names
    assert json.loads(facts["size"]) == json.loads(facts["network_size"]) == [64, 96]
    assert facts["package"].startswith("focal_tutorial ") and "[0, 1]" in facts["input"]
    assert runner.get_inputs()[0].shape == [1, 3, 64, 96]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"], "one file, nothing beside it"
    with pytest.raises(Exception, match="invalid dimensions for input: images"):
        runner.run(None, {"images": torch.rand(1, 3, 64, 64).numpy()})


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = retinanet_tiny(2)
    with pytest.raises(ValueError, match=r"size: .* wanted"):
        export_program(model)
    with pytest.raises(ValueError, match=r"size: .* got \(0, 64\)"):
        export_program(model, (0, 64))
    with pytest.raises(ValueError, match="batch: at least 1"):
        export_program(model, (64, 64), batch=0)
    with pytest.raises(InputError, match="cannot be written"):
        export_pt2(model, tmp_path / "missing" / "model.pt2", (64, 64), raw=True)
    monkeypatch.setattr("focal_tutorial.export.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install focal-tutorial\[export\]"):
        export_onnx(model, tmp_path / "model.onnx", (64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["{checkpoint}", "model.bin"], "ending in .onnx or .pt2"),
        (["{checkpoint}", "missing/model.onnx"], "no such folder"),
        (["missing.pt", "model.onnx"], "missing.pt: cannot be read"),
        (["{checkpoint}", "model.onnx", "--size", "12"], "--size: pixels"),
        (["{checkpoint}", "model.pt2", "--batch", "0"], "--batch"),
        (["{any_size}", "model.onnx"], "--size: wanted"),
    ],
)
def test_bad_use_of_the_command_line(
    words: list[str], complaint: str, trained: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    model = retinanet_tiny(2)
    save_checkpoint("any.pt", {"model": model.state_dict(), "model_config": model.config, "class_names": None})
    given = [word.format(checkpoint=trained["checkpoint"], any_size="any.pt") for word in words]
    assert cli.run(["export", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert complaint in line
    assert [path.name for path in tmp_path.iterdir()] == ["any.pt"]
