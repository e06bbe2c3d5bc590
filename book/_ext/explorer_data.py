"""Make what the explorer of thresholds shows: one test image, and everything a trained detector suspects in it.

    python book/_ext/explorer_data.py [RUN_FOLDER]

Trains the detector of chapter 14 (`bccd_config("cpu", seed 0)`, about two minutes) in the folder, or takes the finished
run that is there, and writes book/_static/explorer_detections.json and explorer_cells.jpg. The image is BCCD's file,
unchanged (MIT licence); the boxes are rounded to a tenth of a pixel and the scores to four places.
"""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from focal_tutorial.data import CocoDataset, prepare_bccd
from focal_tutorial.experiments import BCCD_RECIPES, bccd_config
from focal_tutorial.results import git_commit, library_versions
from focal_tutorial.train import load_checkpoint, train

SEED, SCORE = 0, 0.05
IMAGE = "BloodImage_00407.jpg"  # test split: all three classes, and red cells that overlap
STATIC = Path(__file__).resolve().parents[1] / "_static"
DETECTIONS, PICTURE = STATIC / "explorer_detections.json", STATIC / "explorer_cells.jpg"
CREDIT = "BCCD, MIT licence, https://github.com/Shenggan/BCCD_Dataset"


def candidates(run: Path, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """All detections of `image` with a score of at least `SCORE`, best first, before any suppression."""
    config = bccd_config("cpu", SEED, run)
    config.resume = (run / "last.pt").exists()
    train(config)
    model = load_checkpoint(run / "best.pt").eval()
    # No box overlaps another by more than 1, so NMS at 1 removes none.
    model.options = replace(model.options, score_threshold=SCORE, nms_iou=1.0, detections_per_image=100_000)
    with torch.inference_mode():
        return model([image])[0]


def rows(boxes: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor | None = None) -> list[list[float]]:
    """A list [x1, y1, x2, y2, label] or [x1, y1, x2, y2, label, score] for every box."""
    columns = [[round(x, 1) for x in box] for box in boxes.tolist()]
    table = [[*box, label] for box, label in zip(columns, labels.tolist(), strict=True)]
    if scores is None:
        return table
    return [[*row, round(score, 4)] for row, score in zip(table, scores.tolist(), strict=True)]


def make(run: Path) -> dict[str, Any]:
    """The content of explorer_detections.json; copies the picture."""
    paths = prepare_bccd()
    dataset = CocoDataset(paths["images"], paths["test"])
    index = [entry["file_name"] for entry in dataset.coco_dict()["images"]].index(IMAGE)
    image, target = dataset[index]
    found = candidates(run, torch.as_tensor(image))
    PICTURE.write_bytes((Path(paths["images"]) / IMAGE).read_bytes())
    return {
        "schema": 1,
        "image": {"file": PICTURE.name, "name": IMAGE, "width": image.shape[2], "height": image.shape[1]},
        "credit": CREDIT,
        "classes": dataset.class_names,
        "truth": rows(target["boxes"], target["labels"]),
        "detections": rows(found["boxes"], found["labels"], found["scores"]),
        "provenance": {
            "script": "book/_ext/explorer_data.py",
            "recipe": {"experiment": "bccd", "profile": "cpu", "seed": SEED, **BCCD_RECIPES["cpu"]},
            "score_threshold": SCORE,
            "split": "test",
            "versions": library_versions(),
            "commit": git_commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        },
    }


def write(content: dict[str, Any], path: Path = DETECTIONS) -> None:
    """One line a box: short, and a change shows in a diff."""
    parts = []
    for key, value in content.items():
        if key in ("truth", "detections"):
            lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(make(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/explorer")))
