"""What the cells of a table will take on this machine, from a few training steps of each kind of cell."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from focal_tutorial.cells import Config
from focal_tutorial.checkpoint import write_json
from focal_tutorial.data.bccd import prepare_bccd
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.evaluate import evaluate
from focal_tutorial.retinanet import RetinaNet
from focal_tutorial.tables import cell_data, cell_model, cell_training, test_metrics
from focal_tutorial.train import train
from focal_tutorial.train_setup import computing

NEW_STEPS = 4  # of the probe, on images seen for the first time, which are drawn or read
KNOWN_STEPS = 12  # on the same images again
FEW, MORE = 4, 12  # images of its tests: their difference is what an image takes, without what a test takes anyway


@dataclass(frozen=True)
class Cost:
    """Seconds of the parts of a cell.

    Attributes:
        step: of a training step on images that are in memory.
        new_image: more for each image that is seen for the first time.
        val_image, test_image: of each image of the validation after the training, and of the test.
    """

    step: float
    new_image: float
    val_image: float
    test_image: float

    def seconds(self, config: Config, root: Path | str | None = None) -> float:
        """Of a whole cell."""
        sizes = {split: len(cell_data(config, split, root)) for split in ("train", "val", "test")}
        training = config["train"]
        seen = min(training["steps"] * training["batch_size"], sizes["train"] * max(1, training.get("workers", 0)))
        tests = self.val_image * sizes["val"] + self.test_image * sizes["test"]
        return self.step * training["steps"] + self.new_image * seen + tests


def table_cost(configs: Sequence[Config], root: Path | str | None = None) -> list[float]:
    """Seconds that each of the cells will take in one process on this machine; each kind of cell is tried once."""
    costs: dict[str, Cost] = {}
    for config in configs:
        kind = kind_of_cell(config)
        if kind not in costs:
            costs[kind] = measure_cost(config, root)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what this process keeps, the cells lack
    return [costs[kind_of_cell(config)].seconds(config, root) for config in configs]


def kind_of_cell(config: Config) -> str:
    """The part of a configuration that decides how long a step takes; its seed, its rate and its length do not."""
    scenes = {name: value for name, value in config["shapes"].items() if not name.startswith("num_")}
    training = {name: value for name, value in config["train"].items() if name not in ("steps", "warmup_steps")}
    return json.dumps([config["data"], scenes, config["model"], training, config["loss"]["name"], config["sampler"]])


def measure_cost(config: Config, root: Path | str | None = None) -> Cost:
    """What a cell like `config` takes, from training and testing it on a few images for a second or two."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder, batch = Path(temporary), config["train"]["batch_size"]
        changes = {**_few_images(config, NEW_STEPS * batch, folder, root), "steps": NEW_STEPS + KNOWN_STEPS, "lr": 1e-6}
        training = cell_training(config, folder / "run", root, **changes)
        times: list[float] = []
        with computing(training):
            model = cell_model(config, training)
            train(training, model=model, after_step=lambda *_: times.append(_now(training.device)), progress=False)
            val_image = _per_image(evaluate, model, config, "val", root)
            test_image = _per_image(test_metrics, model, config, "test", root)
    steps = [after - before for before, after in itertools.pairwise(times)]  # without the first, a warm-up
    known = statistics.median(steps[-KNOWN_STEPS:])
    new = max(0.0, statistics.fmean(steps[: NEW_STEPS - 1]) - known) / batch
    return Cost(known, new, val_image, test_image)


def _per_image(
    test: Callable[[RetinaNet, DetectionDataset], Any],
    model: RetinaNet,
    config: Config,
    split: str,
    root: Path | str | None,
) -> float:
    """Seconds that one more image takes in a test."""
    device, seconds = next(model.parameters()).device.type, []
    for number in (FEW, FEW, MORE):  # the first warms up
        dataset = cell_data(config, split, root)
        del dataset.image_ids[number:]
        start = _now(device)
        test(model, dataset)
        seconds.append(_now(device) - start)
    return max(0.0, seconds[2] - seconds[1]) / (MORE - FEW)


def _few_images(config: Config, number: int, folder: Path, root: Path | str | None) -> dict[str, Any]:
    """Changes of `cell_training` that leave `number` images to train on, and as many to validate on."""
    if config["data"] == "shapes":  # none empty, since a training set without a box is refused
        scenes = {name: value for name, value in config["shapes"].items() if name != "num_test"}
        return {"shapes": {**scenes, "num_train": number, "num_val": 1, "empty": 0.0}}
    changes = {}
    for setting, split in (("annotations", "train"), ("val_annotations", "val")):
        content = json.loads(prepare_bccd(root)[split].read_text(encoding="utf-8"))
        content["images"] = content["images"][: number if split == "train" else 1]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [box for box in content["annotations"] if box["image_id"] in kept]
        write_json(folder / f"{split}.json", content)
        changes[setting] = str(folder / f"{split}.json")
    return changes


def _now(device: str) -> float:
    """The clock, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
