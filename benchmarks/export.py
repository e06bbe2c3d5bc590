"""Does an exported detector find what the model finds, how fast, and how large is the file?

    python benchmarks/export.py             about three minutes on an idle CPU: book/results/export_cpu.json
    python benchmarks/export.py --smoke     the small model and one round, writes nothing

Eager code, the torch.export program and the ONNX file in onnxruntime answer the same images, one thread, one image at a
time, in turns. Weights are random: the last layers are scaled so that logits and boxes spread as a trained model's do,
and the class bias set so that about 300 candidates of an image pass the score threshold.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from focal_tutorial import RetinaNet, retinanet_resnet50_fpn, retinanet_tiny
from focal_tutorial.export import export_onnx, export_pt2, split_detections
from focal_tutorial.results import save_result

Detections = list[dict[str, Tensor]]
CONFIG: dict[str, Any] = {
    "threads": 1,
    "batch": 1,
    "candidates": 300,  # of an image, above the score threshold
    "logit_std": 1.5,
    "delta_std": 0.3,
    "images_compared": 8,
    "repetitions": 3,
    "models": {
        "tiny": {"classes": 3, "size": [240, 320], "calls": 10},
        "resnet50": {"classes": 80, "size": [512, 512], "calls": 3},
    },
}
PIXELS, SCORE = 0.05, 1e-4  # within which two detections of one class are the same


def make(name: str) -> RetinaNet:
    """A model with random weights that finds about as much as a trained one."""
    setting = CONFIG["models"][name]
    torch.manual_seed(0)
    if name == "tiny":
        model = retinanet_tiny(setting["classes"])
    else:
        model = retinanet_resnet50_fpn(setting["classes"], norm="frozen", min_size=None)
    model.eval()
    classify, regress = model.head.classification, model.head.regression
    with torch.no_grad():
        levels = model.backbone(model.preprocess(torch.rand(1, 3, *setting["size"])).images)
        for part, std in ((classify, CONFIG["logit_std"]), (regress, CONFIG["delta_std"])):
            part.predict.weight.mul_(std / part(levels).std())
        limit = torch.tensor(model.options.score_threshold).logit()
        last = classify(levels).flatten().topk(CONFIG["candidates"]).values[-1]
        classify.predict.bias.add_(limit - last)
    return model


def runners(model: RetinaNet, size: tuple[int, int], folder: Path) -> dict[str, Callable[[Tensor], Detections]]:
    """Eager, program and onnxruntime as functions of images; writes both files to `folder`."""
    export_pt2(model, folder / "model.pt2", size)
    export_onnx(model, folder / "model.onnx", size)
    program = torch.export.load(folder / "model.pt2").module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = CONFIG["threads"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return {
        "eager": lambda images: model(images),
        "program": lambda images: split_detections(*program(images)),
        "onnxruntime": lambda images: split_detections(*session.run(None, {"images": images.numpy()})),
    }


def compare(found: Detections, wanted: Detections) -> dict[str, float]:
    """Detections without a partner on either side, and the largest differences of the pairs."""
    alone, box, score = 0, 0.0, 0.0
    for a, b in zip(found, wanted, strict=True):
        boxes = torch.cdist(a["boxes"], b["boxes"], p=torch.inf)  # (D, D') in pixels
        scores = (a["scores"][:, None] - b["scores"]).abs()
        paired = (boxes < PIXELS) & (scores < SCORE) & (a["labels"][:, None] == b["labels"])
        alone += int((~paired.any(0)).sum()) + int((~paired.any(1)).sum())
        box, score = max(box, float(boxes[paired].max())), max(score, float(scores[paired].max()))
    return {"without_partner": alone, "box_pixels": box, "score": score}


def seconds(run: Callable[[Tensor], Detections], images: Tensor, calls: int) -> float:
    """Median CPU time of a call. On one thread that is the time it takes, less what other programs take away."""
    times = []
    for _ in range(calls):
        began = time.process_time()
        run(images)
        times.append(time.process_time() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the small model, one round, writes nothing")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(CONFIG["threads"])
    began, files, agreement = time.perf_counter(), {}, {}
    runs: list[dict[str, Any]] = [{"seed": i, "metrics": {}} for i in range(1 if smoke else CONFIG["repetitions"])]
    for name in ["tiny"] if smoke else CONFIG["models"]:
        setting, model = CONFIG["models"][name], make(name)
        with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
            ways = runners(model, tuple(setting["size"]), Path(temporary))
            files[name] = {kind: (Path(temporary) / f"model.{kind}").stat().st_size / 1e6 for kind in ("onnx", "pt2")}
            images = torch.rand(CONFIG["images_compared"], 3, *setting["size"])
            wanted = [ways["eager"](image[None])[0] for image in images]
            agreement[name] = {"detections": sum(len(d["scores"]) for d in wanted)}
            for way in ("program", "onnxruntime"):
                agreement[name][way] = compare([ways[way](image[None])[0] for image in images], wanted)
            for run in runs:
                took = {way: seconds(ways[way], images[:1], setting["calls"]) for way in ways}
                ratios = {f"{way}_ratio": took[way] / took["eager"] for way in ("program", "onnxruntime")}
                run["metrics"][name] = {way: 1000 * took[way] for way in took} | ratios  # ms an image
                print(name, {key: round(value, 2) for key, value in run["metrics"][name].items()}, flush=True)
        print(name, agreement[name], files[name], flush=True)
    if not smoke:
        config = CONFIG | {"onnxruntime": onnxruntime.__version__}
        payload = {"config": config, "runs": runs, "megabytes": files, "agreement": agreement}
        print(save_result("export_cpu", payload, wall_seconds=time.perf_counter() - began))


if __name__ == "__main__":
    main()
